"""Why a job is not admitted, and whether it is worth trying again."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from forebay.scheduler.decisions import Stage
from forebay.scheduler.nodes import Bools, Demand, Ints, NodeTable
from forebay.scheduler.pending import NotYet, Shape


@dataclass(frozen=True)
class Refusal:
    """A job has to wait."""

    stage: Stage
    reason: str
    unblock: str
    scope: Literal["shape", "job"] = "shape"
    """For whom it holds: all that ask for the same; this job."""
    resource: str = ""
    """That quota is short of, where borrowing could help."""


class Grown:
    """Whether nodes that have got more room since a refusal could change it.

    A refused job needs more room than there was, so at least one of its pods must fit on a node whose room grew. Most
    shapes are ruled out by what the best of these nodes has free.
    """

    def __init__(self, table: NodeTable, domain_of: Ints) -> None:
        """Args: domain_of: the cache domain of each node."""
        self._table = table
        self._domain_of = domain_of
        self._start = -1
        self._end = -1
        self._rows: Ints = np.zeros(0, dtype=np.int64)
        self._most: dict[str, int] = {}
        self._idle = 0
        self._share = 0

    def still_refused(self, shape: Shape, seen: NotYet) -> bool:
        """Whether a job of this shape is refused as it was; `seen` is brought up to date if it is."""
        end = len(self._table.grown)
        if seen.since == end:
            return True
        if (seen.since, end) != (self._start, self._end):
            self._look(seen.since, end)
        if seen.lacking > 1:
            rows = self._useful(shape.demands[0], seen.among)
            room = int(self._table.pods(shape.demands[0], rows).sum())
            if room >= seen.lacking:
                return False
            seen.lacking -= room
        elif any(self._fits(demand, seen.among) for demand in shape.demands):
            return False
        seen.since = end
        return True

    def _look(self, since: int, end: int) -> None:
        table = self._table
        self._start, self._end = since, end
        self._rows = np.unique(np.array(table.grown[since:end], dtype=np.int64))
        self._most = {name: int(table.free[row][self._rows].max()) for name, row in table.rows.items()}
        self._idle = int(table.idle[self._rows].max())
        self._share = int(table.compute[self._rows].max(initial=0))

    def _may_fit(self, demand: Demand) -> bool:
        if any(self._most.get(name, 0) < amount for name, amount in demand.amounts):
            return False
        if (gpus := demand.gpus) is not None:
            if gpus.exclusive and self._idle < gpus.cards:
                return False
            if self._share < max(gpus.compute_milli, 1):
                return False
        return True

    def _fits(self, demand: Demand, among: Bools | None) -> bool:
        return self._may_fit(demand) and bool(self._table.fits(demand, self._useful(demand, among)).any())

    def _useful(self, demand: Demand, among: Bools | None) -> Ints:
        """Those of the nodes that have got more room that it may use."""
        rows = self._rows if among is None else self._rows[among[self._domain_of[self._rows]]]
        useful: Ints = rows[self._table.eligible(demand)[rows]]
        return useful
