"""The waiting jobs of one queue, in order, in classes of equal requests.

What one job of a class is refused, all of them are, until something changes. A pass therefore looks at classes, not at
jobs, and its cost does not grow with the depth of the queue.
"""

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.losses import gpus_of
from forebay.scheduler.model import CARD, ResourcePolicy
from forebay.scheduler.nodes import Bools, Demand
from forebay.scheduler.quota import QuotaNode, Vector
from forebay.scheduler.settings import Settings

Rank = tuple[float, float, str]
"""Order in a queue: lower is sooner. The name makes it total."""


@dataclass(eq=False)
class NotYet:
    """When pods found no room, and what it takes to make looking again worthwhile; `refusals.Grown` keeps it up."""

    since: int
    """Length of `NodeTable.grown` then."""
    lacking: int = 1
    """Nodes must have got room for at least so many pods."""
    among: Bools | None = None
    """Cache domains that they could use, because of their data; None: any."""
    epoch: int = -1
    """With holds that kept them off: `State.epoch` then."""
    bound: float = -math.inf
    """The same is true of jobs that may run for so long."""


Kind = tuple[int, frozenset[tuple[str, float]]]
"""What refusals are remembered by: the `id` of a shape, and the data that must be warm."""


class Rivalry(NamedTuple):
    """Whom a job competes with: equal for those that may use the same nodes."""

    cards: bool
    """It competes for cards."""
    eligible: frozenset[tuple[object, ...]]
    """`Demand.eligible` of its pods; a node that any of them may use counts."""


@dataclass(eq=False)
class Shape:
    """What a job asks for, shared by all that ask for the same."""

    job: Job
    """One of them."""
    demands: tuple[Demand, ...]
    full: Vector
    """Quota of all pods."""
    least: Vector
    """Quota of the least pods."""
    gpus: float
    """Cards of all pods, for weighing."""
    policy: ResourcePolicy | None = None
    owns: tuple[str, ...] = ()
    """Reservations that it may use."""
    crowded: "NotYet | None" = None
    """There were not nodes enough for the least pods (`Placer.crowded`); None: it is not known."""

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(pod_set.count for pod_set in self.job.pod_sets)

    def pods(self, placed: Iterable[PlacedPods]) -> Iterator[tuple[PlacedPods, Demand]]:
        """Pods of a job of this shape with what one of them asks for."""
        return ((one, self._by_name[one.pod_set]) for one in placed)

    @cached_property
    def _by_name(self) -> dict[str, Demand]:
        return dict(zip((pod_set.name for pod_set in self.job.pod_sets), self.demands, strict=True))

    @cached_property
    def contested(self) -> tuple[Demand, ...]:
        """What it competes for: pods with cards, if it has any."""
        return tuple(demand for demand in self.demands if demand.gpus) or self.demands

    @cached_property
    def rivalry(self) -> "Rivalry":
        return Rivalry(self.contested[0].gpus is not None, frozenset(demand.eligible for demand in self.contested))

    @property
    def special(self) -> bool:
        """More than what it asks for decides where it may go."""
        return bool(self.owns) or self.policy is not None

    @cached_property
    def elastic(self) -> bool:
        return any(pod_set.least < pod_set.count for pod_set in self.job.pod_sets)


def shape_key(job: Job) -> tuple[object, ...]:
    return tuple(
        (
            pod_set.name,
            pod_set.count,
            pod_set.min_count,
            Demand.of(pod_set),
            pod_set.preferences,
            pod_set.topology,
            pod_set.placement,
        )
        for pod_set in job.pod_sets
    )


def amounts_of(job: Job, counts: Sequence[int], card_mib: dict[str, int]) -> dict[str, int]:
    """Quota of so many pods of each set; `gpu` in thousandths.

    A share of memory alone is charged as the part that it is of the smallest card that it may run on (`card_mib`), so
    that nobody gets cards for nothing.
    """
    amounts: dict[str, int] = {}
    for pod_set, count in zip(job.pod_sets, counts, strict=True):
        for name, amount in pod_set.requests.items():
            amounts[name] = amounts.get(name, 0) + amount * count
        if (gpus := pod_set.gpus) is not None:
            milli = gpus.compute_milli
            if not gpus.exclusive and gpus.memory_mib:
                sizes = [size for model, size in card_mib.items() if not gpus.models or model in gpus.models]
                sizes = [size for size in sizes if size >= gpus.memory_mib]
                milli = max(milli, -(-CARD * gpus.memory_mib // min(sizes))) if sizes else CARD
            amounts["gpu"] = amounts.get("gpu", 0) + milli * gpus.cards * count
        amounts["pods"] = amounts.get("pods", 0) + count
    return amounts


def weight_of(job: Job) -> float:
    return sum(gpus_of(pod_set) * pod_set.count for pod_set in job.pod_sets)


@dataclass(eq=False)
class JobClass:
    """Jobs of one queue and shape, in order."""

    shape: Shape
    ranks: list[Rank] = field(default_factory=list)

    @property
    def head(self) -> Rank:
        return self.ranks[0]


class PendingQueue:
    """A leaf of the tree with its waiting jobs."""

    def __init__(self, node: QuotaNode, settings: Settings) -> None:
        self.node = node
        self._settings = settings
        self.order: list[Rank] = []
        """All that may be tried now."""
        self.gated: dict[str, Rank] = {}
        """Those that wait for data alone: they keep their rank, but are not tried."""
        self._classes: dict[int, JobClass] = {}
        self._requests = np.zeros((0, 0), dtype=np.int64)
        self._listed: list[JobClass] = []

    @property
    def blocks(self) -> bool:
        """Those behind a job that waits for its data wait too."""
        return self.node.queue.policy == "block"

    def __len__(self) -> int:
        return len(self.order) + len(self.gated)

    def rank(self, job: Job) -> Rank:
        if self.node.queue.newest_first:
            return (-job.priority, -job.submitted, job.name)
        if self._settings.ageing_s:
            return (job.submitted / self._settings.ageing_s - job.priority, job.submitted, job.name)
        return (-job.priority, job.submitted, job.name)

    def add(self, job: Job, shape: Shape) -> None:
        rank = self.rank(job)
        bisect.insort(self.order, rank)
        found = self._classes.get(id(shape))
        if found is None:
            self._listed = [one for one in self._listed if one.ranks]
            self._classes = {id(one.shape): one for one in self._listed}
            found = self._classes[id(shape)] = JobClass(shape)
            self._listed.append(found)
            self._requests = np.array([one.shape.least for one in self._listed], dtype=np.int64)
        bisect.insort(found.ranks, rank)

    def remove(self, job: Job, shape: Shape) -> None:
        if self.gated.pop(job.name, None) is not None:
            return
        rank = self.rank(job)
        del self.order[bisect.bisect_left(self.order, rank)]
        ranks = self._classes[id(shape)].ranks
        del ranks[bisect.bisect_left(ranks, rank)]

    def gate(self, job: Job, shape: Shape) -> None:
        """It waits for data: not tried until `ungate`, its place kept."""
        self.remove(job, shape)
        self.gated[job.name] = self.rank(job)

    def ungate(self, job: Job, shape: Shape) -> None:
        if self.gated.pop(job.name, None) is not None:
            self.add(job, shape)

    def classes(self) -> list[JobClass]:
        """All that have jobs."""
        return [one for one in self._listed if one.ranks]

    def candidates(self, available: Vector) -> list[JobClass]:
        """Classes with jobs whose least request is within `available`."""
        if not self.order:
            return []
        if len(self._listed) == 1:
            only = self._listed[0]
            legal = all(amount <= rest for amount, rest in zip(only.shape.least, available, strict=True) if amount)
            return [only] if legal else []
        legal_rows = ((self._requests <= np.array(available)) | (self._requests == 0)).all(axis=1)
        return [self._listed[place] for place in np.flatnonzero(legal_rows) if self._listed[place].ranks]

    def in_order(self) -> Iterator[Rank]:
        """All waiting jobs, those that wait for data among them."""
        return iter(sorted([*self.order, *self.gated.values()]) if self.gated else self.order)
