"""Running jobs as the scheduler keeps them, and when they end."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.model import RunningJob
from forebay.scheduler.nodes import Demand, Ints, NodeTable
from forebay.scheduler.pending import Shape
from forebay.scheduler.quota import QuotaNode, Vector

Floats = NDArray[np.float64]


@dataclass(eq=False)
class Live:
    """A running job at work."""

    running: RunningJob
    shape: Shape
    leaf: QuotaNode
    charged: Vector
    """Its quota."""
    places: list[int] = field(default_factory=list)
    """Of its pods in the `EndTable`."""

    @property
    def job(self) -> Job:
        return self.running.job

    def pods(self) -> Iterator[tuple[PlacedPods, Demand]]:
        return self.shape.pods(self.running.pods)


class EndTable:
    """The pods of all running jobs as arrays: where they are, what they use, and when they end by the bound of their
    job's runtime.

    Each place is for the pods of one set on one node. Which place pods get depends on what was there before: whoever
    adds up must not care for their order.
    """

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self.pods: list[tuple[Live, PlacedPods, Demand] | None] = []
        self._free: list[int] = []
        self._used = np.zeros(0, dtype=np.bool_)
        self.rows: Ints = np.zeros(0, dtype=np.int64)
        """Of their nodes."""
        self.amounts: Ints = np.zeros((0, table.kinds_of_room), dtype=np.int64)
        """What they use, along `NodeTable.room_of`."""
        self.weights: Ints = np.zeros(0, dtype=np.int64)
        """Thousandths of cards, as jobs are weighed."""
        self._started = np.zeros(0)
        self._bound = np.zeros(0)

    def add(self, live: Live) -> None:
        """A job runs. Pods on nodes that are not there are left out."""
        running, count = live.running, max(sum(placed.count for placed in live.running.pods), 1)
        for placed, demand in live.pods():
            row = self._table.index.get(placed.node)
            if row is None:
                continue
            if not self._free:
                self._grow()
            place = self._free.pop()
            live.places.append(place)
            self.pods[place] = (live, placed, demand)
            self._used[place] = True
            self.rows[place] = row
            self.amounts[place] = self._table.room_of(demand) * placed.count
            self.weights[place] = round(live.shape.gpus * 1000 * placed.count / count)
            self._started[place] = running.started + running.load_s
            self._bound[place] = np.inf if running.job.max_run_s is None else running.job.max_run_s

    def _grow(self) -> None:
        old = len(self.pods)
        more = max(64, old)
        self._free = [*range(old, old + more)]
        self.pods += [None] * more
        for name in ("_used", "rows", "amounts", "weights", "_started", "_bound"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros((more, *array.shape[1:]), dtype=array.dtype)]))

    def remove(self, live: Live) -> None:
        for place in live.places:
            self.pods[place] = None
            self._used[place] = False
        self._free += live.places
        live.places = []

    def ends(self, now: float) -> tuple[Ints, Floats]:
        """Places of all pods with a bound, and when they have ended for certain, the earliest first.

        Those that have run for longer than their bound are taken to need as long again, and so on in doublings.
        """
        places = np.flatnonzero(self._used & np.isfinite(self._bound))
        bound, started = self._bound[places], self._started[places]
        over = (now - started) / np.maximum(bound, 1e-9)
        ends = started + bound * np.exp2(np.ceil(np.log2(np.maximum(over, 1.0))))
        order = np.argsort(ends, kind="stable")
        return places[order], ends[order]
