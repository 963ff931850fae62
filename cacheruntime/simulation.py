"""What a cache would have done with a sequence of accesses, by policy and size, with the worker's own policies."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from forebay.cacheruntime.policies import NextUse, Policy, policy_named

Numbers = npt.NDArray[np.int64]


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
    workload: Workload, policy: str, capacity: int, ahead: int | None = None, by_epoch: bool = False, uncounted: int = 0
) -> Outcome:
    """Run a workload through a cache of `capacity` bytes that is empty at first.

    A miss is cached if it fits into what is free, or if the policy finds it worth making room for it. Items larger than
    the cache pass it by.

    Args:
        workload: who reads what.
        policy: its name.
        capacity: bytes.
        ahead: for `next-use`: a reader posts so many positions ahead; None: as many as there are.
        by_epoch: for `next-use`: a reader posts up to the end of the epoch that it is in, and no further.
        uncounted: so many accesses at the beginning warm the cache up and are not in the outcome.

    Raises:
        UsageError: there is no policy of that name.
    """
    chosen: Policy[int] = policy_named(policy)
    posting = _posting(workload, chosen, ahead, by_epoch) if isinstance(chosen, NextUse) else None
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
    return Outcome(len(counted), hits, int(workload.sizes[counted].sum()), hit_bytes, peak)


def _posting(workload: Workload, policy: NextUse[int], ahead: int | None, by_epoch: bool) -> Iterator[None]:
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
    step = max(window // 2, 1)
    for reader in orders if ahead is None and not by_epoch else ():
        policy.post(str(reader), 0, orders[reader])
        posted[reader] = len(orders[reader])
    for reader in whose.tolist():
        order, position = orders[reader], positions[reader]
        if posted[reader] < len(order) and posted[reader] - position <= window - step:
            end = position + window
            if by_epoch and workload.epoch:
                end = min(end, (position // workload.epoch + 1) * workload.epoch)
            if end > posted[reader]:
                policy.post(str(reader), posted[reader], order[posted[reader] : end])
                posted[reader] = end
        positions[reader] = position + 1
        policy.advance(str(reader), position + 1)
        yield
