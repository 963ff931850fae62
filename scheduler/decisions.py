"""What was decided, and why."""

from dataclasses import dataclass, field
from typing import Literal

from forebay.scheduler.jobs import PlacedPods
from forebay.scheduler.model import Hold

Stage = Literal["quota", "gang", "topology", "cache", "bind", "order"]
"""What a job waits for: quota; room for all of its pods at once; room that is near enough together; its data; its pods
to be bound; those before it in its queue."""


@dataclass(frozen=True)
class Admission:
    """A job starts. `pods` are all of its pods that do; fewer than asked for with a `min_count`."""

    job: str
    pods: tuple[PlacedPods, ...]
    bind_by: float
    score: "Score"
    borrows: bool = False
    """Its queue is above its min with it."""
    backfilled: bool = False
    reservations: tuple[str, ...] = ()
    unit: str | None = None
    """Of its resource policy."""
    load_s: float = 0.0
    """Seconds until its data is loaded, beyond what it reads while it computes; `RunningJob.load_s` from then on."""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(placed.node for placed in self.pods))


@dataclass(frozen=True)
class Score:
    """Expected loss of a placement in GPU-seconds, by reason; see `settings.Weights`."""

    cold: float = 0.0
    link: float = 0.0
    pack: float = 0.0
    fragment: float = 0.0
    affinity: float = 0.0
    domain: float = 0.0

    @property
    def total(self) -> float:
        return self.cold + self.link + self.pack + self.fragment + self.affinity + self.domain


@dataclass(frozen=True)
class Eviction:
    """A job has to go, for another one. Whoever acts on it reports it as `RunningJob.evicted_for` until it is gone."""

    job: str
    for_job: str
    reason: Literal["priority", "reclaim", "borrow", "fair-share"]
    cost: float
    """GPU-seconds that are lost: work since the last checkpoint, and loading its data again."""


@dataclass(frozen=True)
class Growth:
    """A running job gets further pods: an elastic one for which there is room, or one that has lost some.

    Whoever acts on it reports them among the job's pods, and as `RunningJob.growing` until they are bound.
    """

    job: str
    pods: tuple[PlacedPods, ...]
    bind_by: float


@dataclass(frozen=True)
class Shrink:
    """An elastic job gives up pods."""

    job: str
    for_job: str
    """Empty: they did not bind in time."""
    pods: tuple[PlacedPods, ...]
    grow_after: float = 0.0
    """`RunningJob.grow_after` from then on."""


@dataclass(frozen=True)
class Release:
    """An admitted job did not bind in time, or has fewer pods than its least for too long: it gives its room back and
    waits again, in its old place."""

    job: str
    not_before: float
    retries: int


@dataclass(frozen=True)
class GivenUp:
    """A job that will not be tried again."""

    job: str
    reason: str


@dataclass(frozen=True)
class Prefetch:
    """Load a dataset into a cache domain, ahead of a job."""

    dataset: str
    domain: str
    bytes: int
    """That are not there yet."""
    for_job: str
    """The first of those that it is for."""
    start: float
    """When that is expected to start."""
    saved_gpu_s: float
    """GPU-seconds that need not wait for these bytes."""


@dataclass(frozen=True)
class Wait:
    """Why a job waits."""

    job: str
    stage: Stage
    reason: str
    unblock: str
    """What would let it start."""
    position: int
    """In its queue, from 1."""
    start: float | None
    """Estimate; None: nothing that is known would let it start."""


@dataclass(frozen=True)
class Decisions:
    """In the order in which they were made."""

    admissions: tuple[Admission, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    shrinks: tuple[Shrink, ...] = ()
    growths: tuple[Growth, ...] = ()
    releases: tuple[Release, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    prefetches: tuple[Prefetch, ...] = ()
    """All that are wanted now, best first. One that is no longer in here is to be cancelled."""
    holds: tuple[Hold, ...] = ()
    """All that are in force now."""
    waits: tuple[Wait, ...] = field(default=(), repr=False)
