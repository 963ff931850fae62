"""Which datasets to load where, ahead of the jobs that wait: by queue position, within cache and bandwidth.

For the first jobs of each queue a start is estimated and a cache domain is meant, so that each domain is meant for no
more GPUs than it can have by then. What is not warm there is worth loading if it can help before or soon after the
start. Loads are ranked by GPU-seconds saved per byte (the benefit order of Quiver, FAST 2020), each within what the
domain's cache has room for and what prefetches may take of the store's bandwidth until the job starts.
"""

from dataclasses import dataclass, field

import numpy as np

from forebay.scheduler.decisions import Prefetch
from forebay.scheduler.estimates import Releases
from forebay.scheduler.jobs import Job
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import CARD
from forebay.scheduler.nodes import Ints
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


@dataclass(eq=False)
class _Plan:
    state: State
    capacity: Floats
    """GPUs that each domain may still give to waiting jobs."""
    room: Ints
    """Cache bytes that are free in each domain."""
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
    made = _Plan(state, free + releases.by_domain(warm.domain_of, len(warm.names)), warm.room - warm.used())
    gated_only = not state.settings.prefetch
    for job, start in releases.upcoming(state.settings.lookahead, state.settings.prefetch_horizon_s, gated_only):
        _mean(made, job, start)
    return tuple(_within_budget(state, list(made.wanted.values())))


def _mean(made: _Plan, job: Job, start: float) -> None:
    """Choose a domain for the job, and want what it lacks there."""
    state, warm = made.state, made.state.warm
    gpus = state.shape(job).gpus
    if not job.data:
        return
    cold = np.zeros(len(warm.names), dtype=np.int64)
    new = np.zeros(len(warm.names), dtype=np.int64)
    for need in job.data:
        lacking = warm.size(need.dataset) - warm.warm(need.dataset)
        cold += lacking
        meant = np.array([(need.dataset, domain) in made.wanted for domain in range(len(warm.names))])
        new += np.where(meant, 0, lacking)
    possible = (new <= made.room) & (made.capacity >= min(gpus, float(made.capacity.max(initial=0.0))))
    if not possible.any():
        return
    # Nothing to load, then least to load, then most room for GPUs.
    order = np.lexsort((np.arange(len(cold)), -made.capacity, new))
    domain = int(next(place for place in order if possible[place]))
    made.capacity[domain] -= gpus
    if not cold[domain]:
        return
    for need in job.data:
        size = warm.size(need.dataset)
        missing = int(size - warm.warm(need.dataset)[domain])
        if not missing:
            continue
        key = (need.dataset, domain)
        found = made.wanted.get(key)
        if found is None:
            found = made.wanted[key] = _Wanted(need.dataset, domain, missing, job.name, start)
            made.room[domain] -= missing
        full = need.read_rate * gpus
        found.saved += gpus * stall_s(missing, warm.bandwidth(need.dataset), full, size)


def _within_budget(state: State, wanted: list[_Wanted]) -> list[Prefetch]:
    """The best first, as long as the store can deliver them in time."""
    wanted.sort(key=lambda one: (-one.saved / max(one.cold, 1), one.start, one.dataset, one.domain))
    spent: dict[str, float] = {}
    found = []
    for one in wanted:
        if one.saved <= 0:
            continue
        store = state.warm.stores.get(state.warm.datasets[one.dataset].store)
        if store is not None:
            budget = store.bandwidth * state.settings.prefetch_share * max(one.start - state.now, _LEAST_AHEAD_S)
            if spent.get(store.name, 0.0) + one.cold > budget and spent.get(store.name):
                continue
            spent[store.name] = spent.get(store.name, 0.0) + one.cold
        found.append(Prefetch(one.dataset, state.warm.names[one.domain], one.cold, one.for_job, one.start, one.saved))
    return found


_LEAST_AHEAD_S = 600.0
"""A load for a job that could start at once is still given so long: the job may be gated, or be followed by others."""
