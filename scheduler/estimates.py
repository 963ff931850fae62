"""When waiting jobs will start: from when running ones end for certain, and how many GPUs are asked for before them."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from forebay.scheduler.jobs import Job
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import CARD
from forebay.scheduler.nodes import Ints
from forebay.scheduler.pending import Rank
from forebay.scheduler.state import State


class Releases:
    """GPUs that come free over time.

    An estimate, not a promise: cards are counted, not nodes; jobs without a bound of their runtime never end; and
    beyond the last end the mean rate up to it is assumed to go on.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._places, self._ends = state.ends.ends(state.now)
        self._sums: Floats = np.cumsum(state.ends.weights[self._places]) / CARD
        self._free = float(state.table.gpu_free.sum()) / CARD

    @property
    def next_end(self) -> float:
        """When the next running job ends for certain; infinite if no bound is known."""
        return float(self._ends[0]) if len(self._ends) else math.inf

    def start(self, ahead: float) -> float:
        """When so many GPUs will have come free, over all that are now; infinite if never."""
        state, missing = self._state, ahead - self._free
        if missing <= 0:
            return state.now
        if not len(self._sums):
            return math.inf
        if missing <= self._sums[-1]:
            return float(self._ends[int(np.searchsorted(self._sums, missing))])
        span = float(self._ends[-1]) - state.now
        return state.now + span * missing / float(self._sums[-1])

    def by_domain(self, domain_of: Ints, count: int, after: float, until: float) -> Floats:
        """GPUs of each domain that come free after one time and until another."""
        ends = self._state.ends
        first, last = np.searchsorted(self._ends, (after, until), "right")
        places = self._places[first:last]
        found: Floats = np.bincount(domain_of[ends.rows[places]], ends.weights[places], count) / CARD
        return found

    def upcoming(self, each: int, horizon_s: float, gated_only: bool = False) -> Iterator[tuple[Job, float]]:
        """The first jobs of each queue with their estimated starts, the earliest first.

        Args:
            gated_only: only those that wait for their data.
        """
        state = self._state
        found: list[tuple[float, Rank, Job]] = []
        queues = [queue for queue in state.queues.values() if len(queue)]
        for queue in queues:
            ahead = 0.0
            jobs = (state.waiting[rank[2]] for rank in queue.in_order())
            if gated_only:
                jobs = (job for job in jobs if state.warm.lacks(job, state.now))
            for job in islice(jobs, each):
                rank = queue.rank(job)
                ahead += state.shape(job).gpus
                start = self.start(ahead * len(queues))
                if start - state.now > horizon_s:
                    break
                found.append((start, rank, job))
        found.sort(key=lambda one: one[:2])
        return ((job, start) for start, _, job in found)
