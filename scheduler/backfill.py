"""EASY backfill: the first job that waits gets a start and nodes; others may run there until then.

Lifka, "The ANL/IBM SP Scheduling System" (1995), with the time that a job loads its data counted as part of its runtime
on both sides.
"""

import bisect
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import numpy as np

from forebay.scheduler.freed import Freed
from forebay.scheduler.jobs import Job
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import Hold
from forebay.scheduler.nodes import Bools, Ints
from forebay.scheduler.placement import Site
from forebay.scheduler.places import place_job
from forebay.scheduler.state import State
from forebay.scheduler.supposed import Supposed
from forebay.scheduler.topology import NoRoom


def shadow(state: State, job: Job) -> Hold | None:
    """When the job can start for certain, by the bounds of those that run, and where; None: not by them.

    Victims of evictions count as gone. Nodes that are held for others are left alone: two that hold one node would keep
    each other off it. So are those where data that it waits for is not warm now.
    """
    search = _Shadow(state, job)
    # Sums over nodes tell how many must have ended at least; from there on it is tried.
    low = search.least()
    if low is None:
        return None
    high, step = low, 1
    while (nodes := search.nodes_after(high)) is None:
        if high == search.last:
            return None
        low, high, step = high + 1, min(high + step, search.last), 2 * step
    while low < high:
        middle = (low + high) // 2
        found = search.nodes_after(middle)
        if found is None:
            low = middle + 1
        else:
            high, nodes = middle, found
    return Hold(job.name, search.start(high), nodes)


class _Shadow:
    """One job's search. Its moments are numbers: 0 is now, n when all have ended that end by the n-th of the ends."""

    def __init__(self, state: State, job: Job) -> None:
        self._state = state
        self._supposed = Supposed(state)
        self._job = job
        self._shape = state.shape(job)
        self._free = self._allowed()
        places, ends = state.ends.ends(state.now)
        evicted = (state.running[name] for name in state.evicted)
        leaving = sorted(place for live in evicted if live.running.ending for place in live.places)
        others = ~np.isin(places, leaving)
        self._places = np.concatenate([np.array(leaving, dtype=np.int64), places[others]])
        ends = ends[others]
        last = np.flatnonzero(np.diff(ends, append=np.inf) > 0)
        self._ends = ends[last]
        self._counts = [len(leaving), *(len(leaving) + 1 + last).tolist()]
        self.last = len(self._ends)

    def _allowed(self) -> Bools:
        state, job = self._state, self._job
        free = np.ones(len(state.table), dtype=np.bool_)
        for hold in state.holds.values():
            if hold.job != job.name:
                free[[state.table.index[node] for node in hold.nodes if node in state.table.index]] = False
        warm = state.warm.nodes(job, state.now)
        return free if warm is None else free & warm

    def start(self, moment: int) -> float:
        return float(self._ends[moment - 1]) if moment else self._state.now

    def _room(self, moment: int) -> list[Ints]:
        """For each pod set, no more pods of it would fit on each node."""
        ends, gone = self._state.ends, self._places[: self._counts[moment]]
        freed = Freed(self._state.table, ends.rows[gone], ends.amounts[gone])
        return [
            np.where(self._free & self._state.table.eligible(demand), freed.pods_at_most(demand), 0)
            for demand in self._shape.demands
        ]

    def least(self) -> int | None:
        """The job cannot start before this moment; None: never."""
        if self._shape.special:
            return 0  # what is reserved for it is not free in the table
        leasts = [pod_set.least for pod_set in self._job.pod_sets]

        def enough(moment: int) -> bool:
            return all(int(room.sum()) >= least for room, least in zip(self._room(moment), leasts, strict=True))

        if not enough(self.last):
            return None
        return bisect.bisect_left(range(self.last), True, key=enough)

    def nodes_after(self, moment: int) -> tuple[str, ...] | None:
        """Nodes on which the job would run then."""
        state, gone = self._state, self._places[: self._counts[moment]]
        if not self._shape.special:
            useful = np.any(self._room(moment), axis=0)
            gone = gone[useful[state.ends.rows[gone]]]
        ended = [pods for place in gone.tolist() if (pods := state.ends.pods[place]) is not None]
        with self._supposed.trial():
            self._supposed.move([(live, (placed,)) for live, placed, _ in ended], 1)
            counts = [pod_set.least for pod_set in self._job.pod_sets]
            found = place_job(state, self._job, self._shape, counts, Site(allowed=self._free))
            return None if isinstance(found, NoRoom) else found[0].nodes


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
