"""Which datasets to load where, ahead of the jobs that wait: by queue position, within cache and bandwidth.

For the first jobs of each queue a start is estimated and a cache domain is meant, so that each domain is meant for no
more GPUs than it can have by then: one that has the data, and room in some hours only, is no place for the job. What is
not warm there is worth loading if it can help before or soon after the start. Loads are ranked by GPU-seconds saved per
byte (the benefit order of Quiver, FAST 2020), each within what the domain's cache has room for and what prefetches may
take of the store's bandwidth until the job starts.

Room is what is free. For a job that waits for data that is nowhere, also what holds bytes that nobody reads there,
running or meant: which of these are dropped is the cache's affair. For all jobs that would be too much: copies that
others would have found are replaced by copies that are needed once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from forebay.scheduler.decisions import Prefetch
from forebay.scheduler.estimates import Releases
from forebay.scheduler.jobs import DataNeed, Job
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import CARD
from forebay.scheduler.nodes import Bools, Ints
from forebay.scheduler.state import State
from forebay.scheduler.warmth import stall_s


@dataclass(eq=False)
class _Wanted:
    """A dataset in a domain, over all jobs that are meant to read it there."""

    dataset: str
    domain: int
    cold: int
    for_job: str
    start: float
    saved: float = 0.0
    waited: bool = False
    """A job does not start without it."""


class _Room:
    """Cache bytes of each domain that may still be given to datasets, and what these have already."""

    def __init__(self, room: Ints, had: Callable[[str], Ints]) -> None:
        """Args: had: bytes of a dataset in each domain for which no room is needed."""
        self._room = room
        self._had = had
        self._meant: dict[str, Ints] = {}

    def has(self, dataset: str) -> Ints:
        if dataset not in self._meant:
            self._meant[dataset] = self._had(dataset).copy()
        return self._meant[dataset]

    def needed(self, sizes: Mapping[str, int]) -> Ints:
        """Bytes that these datasets lack in each domain, for so much of each."""
        return sum((np.maximum(0, size - self.has(name)) for name, size in sizes.items()), np.zeros_like(self._room))

    def suffices(self, sizes: Mapping[str, int]) -> Bools:
        enough: Bools = self.needed(sizes) <= self._room
        return enough

    def take(self, sizes: Mapping[str, int], domain: int) -> None:
        self._room[domain] -= self.needed(sizes)[domain]
        for name, size in sizes.items():
            self.has(name)[domain] = max(int(self.has(name)[domain]), size)


@dataclass(eq=False)
class _Plan:
    state: State
    capacity: Floats
    """GPUs that each domain may still give to waiting jobs."""
    free: _Room
    spare: _Room
    """With what nobody reads."""
    wanted: dict[tuple[str, int], _Wanted] = field(default_factory=dict)


def plan(state: State) -> tuple[Prefetch, ...]:
    """All loads that are wanted now, the most useful first; what is left out is to be cancelled.

    Without prefetches, only what jobs wait for that are held back for nothing else.
    """
    if not any(job.data for job in state.waiting.values()):
        return ()
    releases = Releases(state)
    warm = state.warm
    free = np.bincount(warm.domain_of, state.table.gpu_free, len(warm.names)) / CARD
    made = _Plan(
        state,
        free,
        _Room(warm.free(), warm.warm),
        _Room(warm.spare(), warm.kept),
    )
    gated_only, reached = not state.settings.prefetch, -math.inf
    for job, start in releases.upcoming(state.settings.lookahead, state.settings.prefetch_horizon_s, gated_only):
        made.capacity += releases.by_domain(warm.domain_of, len(warm.names), reached, start)
        reached = start
        _mean(made, job, start)
    return tuple(_within_budget(state, list(made.wanted.values())))


def _mean(made: _Plan, job: Job, start: float) -> None:
    """Choose a domain for the job, and want what it lacks there."""
    state, warm = made.state, made.state.warm
    gpus = state.shape(job).gpus
    if not job.data:
        return
    required = warm.required(job, state.now)
    new = np.zeros(len(warm.names), dtype=np.int64)
    for need in job.data:
        meant = [(need.dataset, domain) in made.wanted for domain in range(len(warm.names))]
        new += np.where(meant, 0, warm.size(need.dataset) - warm.warm(need.dataset))
    enough = made.capacity >= min(gpus, float(made.capacity.max(initial=0.0)))
    # Nothing to load, then least to load, then most room for GPUs.
    order = np.lexsort((np.arange(len(new)), -made.capacity, new))
    whole = {need.dataset: warm.size(need.dataset) for need in job.data}
    least = {need.dataset: math.ceil(need.min_warm * warm.size(need.dataset)) for need in required}
    lacks = warm.lacks(job, state.now)
    tries = [(whole, made.free), (whole, made.spare), (least, made.spare)]
    for sizes, room in tries if lacks else tries[:1]:
        possible = enough & room.suffices(sizes)
        if possible.any():
            break
    else:
        return
    domain = int(next(place for place in order if possible[place]))
    made.capacity[domain] -= gpus
    made.free.take(sizes, domain)
    made.spare.take(sizes, domain)
    for need in job.data:
        missing = sizes.get(need.dataset, 0) - int(warm.warm(need.dataset)[domain])
        if missing <= 0:
            continue
        found = made.wanted.setdefault((need.dataset, domain), _Wanted(need.dataset, domain, missing, job.name, start))
        found.cold = max(found.cold, missing)
        found.saved += gpus * _saved_s(state, need, gpus, domain, missing)
        found.waited = found.waited or (lacks and need.dataset in least)


def _saved_s(state: State, need: DataNeed, gpus: float, domain: int, missing: int) -> float:
    """Seconds of its first pass for which the job need not wait with these bytes."""
    warm, size = state.warm, state.warm.size(need.dataset)
    bandwidth, full = max(warm.bandwidth(need.dataset), 1e-9), need.read_rate * gpus
    cold = size - int(warm.warm(need.dataset)[domain])
    return stall_s(cold, bandwidth, full, size) - stall_s(cold - missing, bandwidth, full, size)


def _within_budget(state: State, wanted: list[_Wanted]) -> list[Prefetch]:
    """The best first, as long as the store can deliver them in time.

    What saves no GPU-second, but is waited for, has a store for itself: one at a time, if there is nothing better.
    More of that at once takes bandwidth from what gangs wait for.
    """
    wanted.sort(key=lambda one: (-one.saved / max(one.cold, 1), one.start, one.dataset, one.domain))
    spent: dict[str, float] = {}
    found = []
    for one in wanted:
        name = state.warm.datasets[one.dataset].store
        store = state.warm.stores.get(name)
        if one.saved <= 0 and (not one.waited or name in spent):
            continue
        if store is not None:
            budget = store.bandwidth * state.settings.prefetch_share * max(one.start - state.now, _LEAST_AHEAD_S)
            if spent.get(name, 0.0) + one.cold > budget and spent.get(name):
                continue
        spent[name] = spent.get(name, 0.0) + one.cold
        found.append(Prefetch(one.dataset, state.warm.names[one.domain], one.cold, one.for_job, one.start, one.saved))
    return found


_LEAST_AHEAD_S = 600.0
"""A load for a job that could start at once is still given so long: the job may be gated, or be followed by others."""
