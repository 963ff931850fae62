"""Which domains of the topology the pods of one pod set go to, and how many into each.

Two phases as in Kueue's topology-aware scheduling: how many pods (or slices) each domain holds, bottom-up; then, from
the domain that was chosen down to the nodes, the best fit: the smallest domain that holds all, else the largest first
and for the last piece the smallest that suffices. Where domains differ in what they cost otherwise (cold bytes, links),
that is added to the tightness in one sum, so a looser but warm domain may win.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from forebay.scheduler.jobs import TopologyRequest
from forebay.scheduler.losses import Floats
from forebay.scheduler.nodes import Ints, NodeTable


@dataclass(frozen=True)
class NoRoom:
    """Why a pod set does not fit."""

    stage: Literal["gang", "topology"]
    """'gang': not enough room at all; 'topology': enough, but not near enough together."""
    reason: str
    lacking: int = 1
    """Nodes must get room for at least so many pods more before it can fit."""
    lasting: bool = True
    """It holds for as long as no node gets more room. Else it hangs on which nodes or cards others were given."""


@dataclass(frozen=True)
class Apart:
    """How many more pods of one set each domain of a level may get."""

    table: NodeTable
    depth: int
    left: Ints
    """By domain."""

    def at(self, depth: int) -> Ints:
        """The same for each domain at a depth that is no less than its own."""
        found = np.zeros(len(self.table.domain_names[depth]), dtype=np.int64)
        found[self.table.domain_of[depth]] = self.left[self.table.domain_of[self.depth]]
        return found

    def summed(self, room: Ints, depth: int) -> Ints:
        """Pods that each domain at a depth takes, of so much room on each node."""
        table, below = self.table, max(depth, self.depth)
        count = len(table.domain_names[below])
        pods = np.minimum(np.bincount(table.domain_of[below], room, count).astype(np.int64), self.at(below))
        for above in range(below - 1, depth - 1, -1):
            pods = np.bincount(table.parents[above], pods, len(table.domain_names[above])).astype(np.int64)
        return pods


def best_fit(room: Ints, loss: Floats, need: int, slack: float) -> list[tuple[int, int]]:
    """Pieces (place, amount) of `need` over places with so much room; [] if it is too little.

    Args:
        loss: cost of a place, for the whole of `need`.
        slack: cost of leaving all of a place empty but a grain; the tightness is weighed by it.
    """
    enough = np.flatnonzero(room >= need)
    if len(enough):
        return [(_cheapest(enough, room, loss, need, slack), need)]
    if int(room.sum()) < need:
        return []
    order = np.lexsort((loss, -room))
    sizes = room[order]
    rest = need - np.concatenate(([0], np.cumsum(sizes)[:-1]))
    last = int(np.flatnonzero(sizes >= rest)[0])
    pieces = [(int(place), int(room[place])) for place in order[:last]]
    left = int(rest[last])
    tail = order[last:]
    tail = tail[room[tail] >= left]
    pieces.append((_cheapest(tail, room, loss, left, slack), left))
    return pieces


def _cheapest(places: Ints, room: Ints, loss: Floats, need: int, slack: float) -> int:
    cost = loss[places] + slack * (room[places] - need) / np.maximum(room[places], 1)
    return int(places[np.lexsort((places, room[places], cost))[0]])


def even(room: Ints, loss: Floats, need: int) -> list[tuple[int, int]]:
    """Pieces as equal as possible over all places (spread); [] if there is too little room."""
    if int(room.sum()) < need:
        return []
    low, high = 0, int(room.max())
    while low < high:
        middle = (low + high) // 2
        if int(np.minimum(room, middle).sum()) >= need:
            high = middle
        else:
            low = middle + 1
    amounts = np.minimum(room, low)
    over = int(amounts.sum()) - need
    if over:
        full = np.flatnonzero(amounts == low)
        amounts[full[np.lexsort((full, -loss[full]))[:over]]] -= 1
    return [(int(place), int(amounts[place])) for place in np.flatnonzero(amounts)]


def balanced(room: Ints, loss: Floats, need: int) -> list[tuple[int, int]]:
    """As `even`, over the fewest places that have room enough together, the largest of all (Kueue's balanced)."""
    order = np.lexsort((loss, -room))
    most = np.cumsum(room[order])
    if not len(most) or int(most[-1]) < need:
        return []
    fewest = order[: int(np.searchsorted(most, need)) + 1]
    return [(int(fewest[place]), amount) for place, amount in even(room[fewest], loss[fewest], need)]


class Gathering:
    """The search for one pod set on the nodes that were left by filters."""

    def __init__(
        self,
        table: NodeTable,
        room: Ints,
        loss: Floats,
        request: TopologyRequest,
        slack: float,
        order: str = "binpack",
        apart: Apart | None = None,
    ) -> None:
        """Args:
        room: pods that fit on each node, 0 on those that are not allowed.
        loss: of one pod on each node.
        slack: GPU-seconds of one pod for a domain that it leaves empty but for itself.
        order: as `PodSet.placement`.
        apart: what each domain may get at most.
        """
        self._apart = apart
        self._table = table
        self._order = order
        self._slack = slack
        self._slice = request.slice_size
        self._slice_depth = table.depth(request.slice_level) if request.slice_level else len(table.levels)
        if request.slice_level is None:
            self._slice = 1
        self._room: list[Ints] = []
        self._loss: list[Floats] = []
        self._fill(room, loss)

    def _fill(self, room: Ints, loss: Floats) -> None:
        """Room (in slices down to the slice's level, in pods below it) and mean loss of a pod, by depth."""
        table, depths = self._table, len(self._table.levels) + 1
        pods: list[Ints] = [np.zeros(0, dtype=np.int64)] * depths
        losses: list[Floats] = [np.zeros(0)] * depths
        pods[-1], losses[-1] = room, loss
        for depth in range(depths - 2, -1, -1):
            count = len(table.domain_names[depth])
            pods[depth] = np.bincount(table.domain_of[depth], room, count).astype(np.int64)
            weighed = np.bincount(table.domain_of[depth], room * np.where(room > 0, loss, 0.0), count)
            losses[depth] = weighed / np.maximum(pods[depth], 1)
        apart = self._apart
        if apart is not None:
            pods = [apart.summed(room, depth) for depth in range(depths)]
        if self._slice > 1:
            slices = pods[self._slice_depth] // self._slice
            pods[self._slice_depth] = slices
            for depth in range(self._slice_depth - 1, -1, -1):
                parents, count = table.parents[depth], len(table.domain_names[depth])
                pods[depth] = np.bincount(parents, pods[depth + 1], count).astype(np.int64)
                if apart is not None and depth >= apart.depth:
                    np.minimum(pods[depth], apart.at(depth) // self._slice, out=pods[depth])
        self._room, self._loss = pods, losses

    def place(self, count: int, request: TopologyRequest) -> list[tuple[int, int]] | NoRoom:
        """Rows of nodes with how many pods each gets."""
        if count % self._slice:
            return NoRoom("topology", f"{count} pods are no whole number of slices of {self._slice}")
        need = count // self._slice
        if request.required is not None:
            depth = self._table.depth(request.required)
            found = self._single(depth, count)
            if found is None:
                return self._refused(request.required, depth, count)
            return self._down(depth, [(found, self._grains(depth, count))])
        if request.preferred is not None:
            for depth in range(self._table.depth(request.preferred), -1, -1):
                found = self._single(depth, count)
                if found is not None:
                    return self._down(depth, [(found, self._grains(depth, count))])
        pieces = self._split(0, np.arange(len(self._room[0])), need)
        if not pieces:
            return NoRoom("gang", f"room for {self._most(0)} of {count} pods")
        return self._down(0, pieces)

    def _grains(self, depth: int, count: int) -> int:
        """So many pods in what room is counted in at a depth: slices, or pods below the level of slices."""
        return count // self._slice if depth <= self._slice_depth else count

    def _most(self, depth: int) -> int:
        return int(self._room[depth].sum()) * (self._slice if depth <= self._slice_depth else 1)

    def _refused(self, level: str, depth: int, count: int) -> NoRoom:
        largest = int(self._room[depth].max(initial=0)) * (self._slice if depth <= self._slice_depth else 1)
        if self._most(depth) < count:
            return NoRoom("gang", f"room for {self._most(depth)} of {count} pods")
        return NoRoom("topology", f"the {level} with most room takes {largest} of {count} pods")

    def _single(self, depth: int, count: int) -> int | None:
        room, need = self._room[depth], self._grains(depth, count)
        enough = np.flatnonzero(room >= need)
        if not len(enough):
            return None
        return _cheapest(enough, room, self._loss[depth] * count, need, self._slack * count)

    def _split(self, depth: int, among: Ints, need: int) -> list[tuple[int, int]]:
        room, loss = self._room[depth][among], self._loss[depth][among]
        hosts = depth == len(self._table.levels)
        if self._order == "spread" and hosts:
            pieces = even(room, loss, need)
        elif self._order == "balanced" and not hosts and not (room >= need).any():
            pieces = balanced(room, loss, need)
        else:
            pieces = best_fit(room, loss * need, need, self._slack * need)
        return [(int(among[place]), amount) for place, amount in pieces]

    def _down(self, depth: int, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """From domains at `depth` to nodes."""
        while depth < len(self._table.levels):
            if depth == self._slice_depth and self._slice > 1:
                pieces = [(domain, amount * self._slice) for domain, amount in pieces]
            parents = self._table.parents[depth]
            depth += 1
            pieces = [
                piece
                for domain, amount in pieces
                for piece in self._split(depth, np.flatnonzero(parents == domain), amount)
            ]
        if depth == self._slice_depth and self._slice > 1:
            pieces = [(domain, amount * self._slice) for domain, amount in pieces]
        return pieces
