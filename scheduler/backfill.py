"""EASY backfill: the first job that waits gets a start and nodes; others may run there until then.

Lifka, "The ANL/IBM SP Scheduling System" (1995), with the time that a job loads its data counted as part of its runtime
on both sides.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import numpy as np

from forebay.scheduler.jobs import Job
from forebay.scheduler.live import Live, ends_of
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import Hold
from forebay.scheduler.nodes import Bools
from forebay.scheduler.placement import Site
from forebay.scheduler.places import place_job
from forebay.scheduler.state import State
from forebay.scheduler.topology import NoRoom


def shadow(state: State, job: Job) -> Hold | None:
    """When the job can start for certain, by the bounds of those that run, and where; None: not by them.

    Victims of evictions count as gone. Nodes that are held for others are left alone: two that hold one node would keep
    each other off it. So are those where data that it waits for is not warm now.
    """
    free = np.ones(len(state.table), dtype=np.bool_)
    for hold in state.holds.values():
        if hold.job != job.name:
            free[[state.table.index[node] for node in hold.nodes if node in state.table.index]] = False
    view = state.warm.view(job, state.shape(job).gpus, state.now)
    if view is not None and view.warm is not None:
        free &= view.warm[state.warm.domain_of]
    leaving = [live for live in state.running.values() if live.running.ending]
    bounded = [live for live in state.running.values() if not live.running.ending and live.job.max_run_s is not None]
    ends = [state.now] * len(leaving) + ends_of(bounded, state.now).tolist()
    ending = sorted(zip(ends, [live.job.name for live in (*leaving, *bounded)], strict=True))
    lives = [state.running[name] for _, name in ending]
    with state.table.trial():
        done, chunk = 0, 8
        while True:
            nodes = _nodes_after(state, job, lives[done : done + chunk], free)
            if nodes is not None:
                break
            if done + chunk >= len(lives):
                return None
            _release(state, lives[done : done + chunk])
            done, chunk = done + chunk, chunk * 2
        low, high, gone = 0, min(chunk, len(lives) - done), 0
        while low < high:
            middle = (low + high) // 2
            found = _nodes_after(state, job, lives[done + gone : done + middle], free)
            if found is not None:
                high, nodes = middle, found
            else:
                _release(state, lives[done + gone : done + middle])
                low, gone = middle + 1, middle
        start = ending[done + high - 1][0] if done + high else state.now
        return Hold(job.name, start, nodes)


def _release(state: State, lives: list[Live]) -> None:
    for live in lives:
        state.change_pods(live.shape, live.running.pods, -1)


def _nodes_after(state: State, job: Job, lives: list[Live], free: Bools) -> tuple[str, ...] | None:
    """Nodes on which the job would run once these have ended."""
    shape = state.shape(job)
    with state.table.trial():
        _release(state, lives)
        counts = [pod_set.least for pod_set in job.pod_sets]
        found = place_job(state, job, shape, counts, Site(allowed=free))
        if isinstance(found, NoRoom):
            return None
        return tuple(dict.fromkeys(placed.node for placed in found[0].pods))


class HeldNodes:
    """Until when each node is free for others, by the holds in force."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._key: tuple[int, int] = (-1, -1)
        self._owner: dict[str, Floats] = {}

    def allowed(self, job: Job, stall_s: Floats | None, ignored: AbstractSet[str] = frozenset()) -> Bools | None:
        """Nodes that the job may use without delaying a job that holds them; None: any.

        Args:
            ignored: jobs whose holds do not count.
        """
        others = [hold for hold in self._state.holds.values() if hold.job != job.name and hold.job not in ignored]
        if not others:
            return None
        until = self._until_of(job.name, others) if not ignored else self._until(others)
        if job.max_run_s is None:
            return np.isinf(until)
        ends = self._state.now + job.max_run_s + (0.0 if stall_s is None else stall_s)
        allowed: Bools = np.asarray(ends <= until)
        return allowed

    def _until_of(self, name: str, others: list[Hold]) -> Floats:
        key = (self._state.epoch, len(self._state.holds))
        if key != self._key:
            self._key = key
            self._owner.clear()
        own = name if name in self._state.holds else ""
        if own not in self._owner:
            self._owner[own] = self._until(others)
        return self._owner[own]

    def _until(self, holds: Iterable[Hold]) -> Floats:
        until = np.full(len(self._state.table), np.inf)
        for hold in holds:
            rows = [self._state.table.index[node] for node in hold.nodes if node in self._state.table.index]
            until[rows] = np.minimum(until[rows], hold.start)
        return until
