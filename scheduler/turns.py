"""Whose turn it is: a tournament down the tree of queues, and lanes within a queue.

A lane is what must be served in order. With `best-effort` each class of equal requests is a lane of its own, with
`fifo` all that compete for nodes, with `strict` and `block` the whole queue.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from forebay.scheduler.fair_share import dominant_share, rescaled
from forebay.scheduler.pending import JobClass, PendingQueue, Rank
from forebay.scheduler.quota import QuotaNode, QuotaTree, Vector
from forebay.scheduler.rivals import Rivals
from forebay.scheduler.settings import Settings


@dataclass(eq=False)
class Lane:
    """Classes of one queue that are served in the order of their jobs."""

    queue: PendingQueue
    classes: list[JobClass]
    skip: int = 0
    """Jobs at the front of its only class that were refused for reasons of their own."""
    backfills: bool = False
    """It goes on behind a job that waits, and must not delay it."""

    @property
    def yields(self) -> bool:
        """Who is refused in it keeps nobody from being tried."""
        return self.backfills or self.queue.node.queue.policy == "best-effort"

    def head(self) -> tuple[Rank, JobClass] | None:
        best = None
        for one in self.classes:
            if len(one.ranks) > self.skip and (best is None or one.ranks[self.skip] < best[0]):
                best = (one.ranks[self.skip], one)
        if best is not None and self.queue.blocks and min(self.queue.gated.values(), default=best[0]) < best[0]:
            return None
        return best


Key = tuple[int, int, float, Rank]


@dataclass(eq=False)
class Turn:
    """The next job to try, of one leaf."""

    rank: Rank
    lane: Lane
    job_class: JobClass


@dataclass(eq=False)
class Turns:
    """The order of one pass.

    Among siblings: who borrows from least far up with its next job goes first (not at all, from its parent, from
    farther up: Kueue's borrowing level), then the higher priority, then the smaller share, then the job that waits
    longer. What one admission changes is looked at again, and nothing else.
    """

    quota: QuotaTree
    settings: Settings
    gates: Callable[[Rank, JobClass], bool] = lambda rank, job_class: False
    """Sets a job aside if it waits for data alone, and says so: it has no turn."""
    refused: Callable[[JobClass], bool] = lambda job_class: False
    """Whether a class is known to find no room."""
    penalty: dict[str, float] = field(default_factory=dict)
    """Use that counts beside the historic one, by leaf: admissions of this pass."""
    _best: dict[str, tuple[Key, Turn] | None] = field(default_factory=dict)
    """Of each queue that was looked at since it changed, the next job with its key among the siblings."""
    _lanes: dict[str, list[tuple[Rank, int, Lane, JobClass]]] = field(default_factory=dict)
    """Of each leaf those with jobs, as a heap by their heads. Heads only come later and later within a pass."""
    _numbers: Iterator[int] = field(default_factory=count)
    _parts: dict[str, list[float]] = field(default_factory=dict)

    def next(self) -> Turn | None:
        best = self._first(self.quota.roots)
        return None if best is None else best[1]

    def add(self, lane: Lane) -> None:
        """Jobs that may have a turn."""
        self._push(self._lanes.setdefault(lane.queue.node.name, []), lane)
        self._forget(lane.queue.node)

    def went_on(self, lane: Lane) -> None:
        """The lane that has had the turn has another head, or none; its leaf may use more than before."""
        lanes = self._lanes[lane.queue.node.name]
        heapq.heappop(lanes)
        self._push(lanes, lane)
        self._forget(lane.queue.node)

    def changed(self, leaf: QuotaNode) -> None:
        """Jobs of any lane of a leaf are gone, and it uses more than before."""
        before = self._lanes.get(leaf.name, [])
        lanes = self._lanes[leaf.name] = []
        for _, _, lane, _ in before:
            self._push(lanes, lane)
        self._forget(leaf)

    def drop(self, lane: Lane) -> None:
        """The lane that has had the turn gets no more."""
        heapq.heappop(self._lanes[lane.queue.node.name])
        self._forget(lane.queue.node)

    def _push(self, lanes: list[tuple[Rank, int, Lane, JobClass]], lane: Lane) -> None:
        while (head := lane.head()) is not None and self.gates(*head):
            pass
        if head is not None:
            heapq.heappush(lanes, (head[0], next(self._numbers), lane, head[1]))

    def _forget(self, leaf: QuotaNode) -> None:
        for node in leaf.path():
            self._best.pop(node.name, None)
            self._parts.pop(node.name, None)

    def _first(self, nodes: Sequence[QuotaNode]) -> tuple[Key, Turn] | None:
        best: tuple[Key, Turn] | None = None
        known = self._best
        for node in nodes:
            one = known[node.name] if node.name in known else self._of(node)
            if one is not None and (best is None or one[0] < best[0]):
                best = one
        return best

    def _of(self, node: QuotaNode) -> tuple[Key, Turn] | None:
        if node.name in self._best:
            return self._best[node.name]
        if node.children:
            best = self._first(node.children)
            turn = None if best is None else best[1]
        else:
            turn = self._of_leaf(node)
        found = self._best[node.name] = None if turn is None else (self._key(node, turn), turn)
        return found

    def _of_leaf(self, node: QuotaNode) -> Turn | None:
        lanes = self._lanes.get(node.name, [])
        while lanes:
            rank, _, lane, job_class = lanes[0]
            if not (lane.yields and self.refused(job_class)):
                return Turn(rank, lane, job_class)
            heapq.heappop(lanes)
        return None

    def _key(self, node: QuotaNode, turn: Turn) -> Key:
        least = turn.job_class.shape.least
        return (_level(node, least), -node.queue.priority, self._share(node, least), turn.rank)

    def _share(self, node: QuotaNode, more: Vector) -> float:
        kind = self.settings.fairness
        if kind == "none":
            return 0.0
        if kind == "borrowed":
            return self.quota.borrowed(node, more)
        if kind == "usage":
            use = node.queue.usage + self.penalty.get(node.name, 0.0)
            if use == 0:
                return 0.0 if node.queue.weight > 0 else float("inf")
            return use / node.queue.weight if node.queue.weight > 0 else float("inf")
        if kind == "hdrf":
            parts = self._consumed(node)
            return float(dominant_share(parts, [1] * len(parts), node.queue.weight))
        return self.quota.share(node)

    def _consumed(self, node: QuotaNode) -> list[float]:
        """Parts of all resources that a subtree uses, as hierarchical DRF sees it: queues that wait for nothing that
        they could have do not count."""
        found = self._parts.get(node.name)
        if found is None:
            going = [child for child in node.children if self._of(child) is not None]
            found = self.quota.parts(node)
            if going:
                found = rescaled([(self._consumed(child), child.queue.weight) for child in going])
            self._parts[node.name] = found
        return found


def lanes_of(
    queue: PendingQueue,
    open_classes: list[JobClass],
    refused: Callable[[JobClass], bool],
    never: Callable[[JobClass], bool],
    rivals: Rivals,
) -> list[Lane]:
    """The lanes of a queue at the start of a pass.

    Args:
        open_classes: those whose requests quota allows.
        refused: whether a class is known to find no room.
        never: whether its jobs could not run in an empty cluster either: they hold nobody up.
    """
    policy = queue.node.queue.policy
    if policy == "best-effort":
        return [Lane(queue, [one]) for one in open_classes if not refused(one)]
    classes = [one for one in queue.classes() if not never(one)]
    if not classes:
        return []
    return [Lane(queue, part) for part in (rivals.parted(classes) if policy == "fifo" else [classes])]


def _level(node: QuotaNode, more: Vector) -> int:
    """How many levels up borrowing goes with `more`; what not even the root covers counts as borrowed from it."""
    level = 0
    while not node.within_min(more):
        if node.parent is None:
            return max(level, 1)
        node, level = node.parent, level + 1
    return level
