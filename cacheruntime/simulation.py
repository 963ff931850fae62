"""What a cache would have done with a sequence of accesses, by policy and size, with the worker's own policies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forebay.cacheruntime.policies import NextUse, Policy, policy_named
from forebay.cacheruntime.stack_distance import Numbers, stack_distances


@dataclass(frozen=True)
class Workload:
    """Accesses of whole items, one after the other, by one reader or several."""

    items: Numbers
    """The number of the item that is read, for each access."""
    sizes: Numbers
    """Bytes of each item, by its number."""
    readers: Numbers | None = None
    """The number of the reader, for each access; None: there is one."""
    epoch: int | None = None
    """Accesses of one reader in one epoch; None: it has none."""
    sized: bool = True
    """Whether sizes are bytes. If not, none is known, and each item counts as 1."""

    @cached_property
    def distinct_bytes(self) -> int:
        """Of all items that are read at all."""
        return int(self.sizes[np.unique(self.items)].sum())


@dataclass(frozen=True)
class Outcome:
    """What came of one policy with one size of cache."""

    accesses: int
    hits: int
    total_bytes: int
    hit_bytes: int
    peak_bytes: int
    """The most that was cached at a time."""

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def byte_hit_ratio(self) -> float:
        return self.hit_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def fetched_bytes(self) -> int:
        """Every miss is fetched once, whether it is kept or not."""
        return self.total_bytes - self.hit_bytes


def shuffled_epochs(sizes: Numbers, jobs: int, epochs: int, seed: int) -> Workload:
    """Training jobs that each read every item once an epoch, in an order of their own, in step with one another."""
    count = len(sizes)
    randoms = np.random.default_rng(seed).spawn(jobs)
    orders = [np.concatenate([random.permutation(count) for _ in range(epochs)]) for random in randoms]
    items = np.stack(orders, axis=1).reshape(-1).astype(np.int64)
    readers = np.tile(np.arange(jobs, dtype=np.int64), count * epochs) if jobs > 1 else None
    return Workload(items, sizes, readers, count)


def simulate(
    workload: Workload,
    policy: str,
    capacity: int,
    ahead: int | None = None,
    epochs: int | None = None,
    uncounted: int = 0,
) -> Outcome:
    """Run a workload through a cache of `capacity` bytes that is empty at first.

    A miss is cached if it fits into what is free, or if the policy finds it worth making room for it. Items larger than
    the cache pass it by.

    Args:
        workload: who reads what.
        policy: its name.
        capacity: bytes.
        ahead: for `next-use`: a reader posts so many positions ahead; None: as many as there are.
        epochs: for `next-use`: a reader posts up to the end of so many epochs, the one that it is in included.
        uncounted: so many accesses at the beginning warm the cache up and are not in the outcome.

    Raises:
        UsageError: there is no policy of that name.
    """
    chosen: Policy[int] = policy_named(policy)
    posting = _posting(workload, chosen, ahead, epochs) if isinstance(chosen, NextUse) else None
    items: list[int] = workload.items.tolist()
    sizes: list[int] = workload.sizes.tolist()
    cached = bytearray(len(sizes))
    accessed, replaces = chosen.accessed, chosen.replaces
    hits = hit_bytes = used = peak = 0
    for index, item in enumerate(items):
        if index == uncounted:
            hits = hit_bytes = 0
        if posting is not None:
            next(posting)
        size = sizes[item]
        if cached[item]:
            hits += 1
            hit_bytes += size
            accessed(item)
            continue
        missing = used + size - capacity
        if missing > 0:
            if not replaces or size > capacity or not chosen.admits(item, missing):
                continue
            for victim in chosen.victims(item):
                chosen.removed(victim)
                cached[victim] = 0
                used -= sizes[victim]
                if used + size <= capacity:
                    break
        chosen.inserted(item, size)
        cached[item] = 1
        used += size
        peak = max(peak, used)
    counted = workload.items[uncounted:]
    if not len(counted):
        hits = hit_bytes = 0
    return Outcome(len(counted), hits, int(workload.sizes[counted].sum()), hit_bytes, peak)


def lru_outcomes(workload: Workload, capacities: Sequence[int], uncounted: int = 0) -> list[Outcome] | None:
    """The outcomes of `lru` for all these sizes of cache in one pass; None when not all items have the same size.

    The same as those of `simulate`. Items of different sizes have no such pass: what fits then hangs on how the room
    is cut up.
    """
    sizes = np.unique(workload.sizes[workload.items])
    if len(sizes) != 1:
        return None
    size = int(sizes[0])
    distances = np.sort(stack_distances(workload.items)[uncounted:])
    first, accesses = int(np.searchsorted(distances, 0)), len(distances)
    distinct = workload.distinct_bytes
    outcomes = []
    for capacity in capacities:
        hits = int(np.searchsorted(distances, capacity // size)) - first
        peak = min(capacity // size * size, distinct)
        outcomes.append(Outcome(accesses, hits, accesses * size, hits * size, peak))
    return outcomes


def _posting(workload: Workload, policy: NextUse[int], ahead: int | None, epochs: int | None) -> Iterator[None]:
    """Before each access: its reader posts what it knows, and is past the position that it reads now.

    So the access itself is no future use: an item that is not in is weighed by its use after this one, as in Belady's
    rule with bypass.
    """
    count = len(workload.items)
    whose = workload.readers if workload.readers is not None else np.zeros(count, dtype=np.int64)
    orders = {int(reader): workload.items[whose == reader].tolist() for reader in np.unique(whose)}
    positions = dict.fromkeys(orders, 0)
    posted = dict.fromkeys(orders, 0)
    window = count if ahead is None else ahead
    step = 1 if ahead is None else max(window // 2, 1)
    for reader in whose.tolist():
        order, position = orders[reader], positions[reader]
        if posted[reader] < len(order) and posted[reader] - position <= window - step:
            end = position + window
            if epochs is not None and workload.epoch:
                end = min(end, (position // workload.epoch + epochs) * workload.epoch)
            if end > posted[reader]:
                policy.post(str(reader), posted[reader], order[posted[reader] : end])
                posted[reader] = end
        positions[reader] = position + 1
        policy.advance(str(reader), position + 1)
        yield
