"""The cluster as the scheduler sees it: nodes, queues, datasets, reservations and policies at one moment.

Everything is frozen; who changes something makes another one. Amounts are integers by name of the resource:

| name | unit |
|---|---|
| `gpu` | thousandths of a card, over all cards of a job |
| `cpu` | thousandths of a core |
| `memory` | MiB |
| `cache` | bytes of datasets that a queue's jobs want cached |
| `bandwidth` | bytes per second that a queue's jobs read from under-stores |
| any other | as the cluster counts it, like `pods` or `rdma` |

Times are seconds on the clock of whoever makes the snapshot. Names are unique within their kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from forebay.scheduler.jobs import Job, PlacedPods, Toleration

Amounts = Mapping[str, int]

CARD = 1000
"""Thousandths of a card that a whole card has."""

QueuePolicy = Literal["fifo", "strict", "best-effort", "block"]
Preempt = Literal["never", "lower", "later"]
Reclaim = Literal["never", "lower-priority", "any"]


@dataclass(frozen=True)
class Taint:
    """Keeps pods without a matching toleration off a node; with `PreferNoSchedule`, where others will do."""

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] = "NoSchedule"

    def tolerated_by(self, tolerations: tuple[Toleration, ...]) -> bool:
        return any(
            (not toleration.key or toleration.key == self.key)
            and toleration.value in (None, self.value)
            and toleration.effect in ("", self.effect)
            for toleration in tolerations
        )


@dataclass(frozen=True)
class Gpu:
    """One card of a node, named by its place in `Node.gpus`."""

    model: str = ""
    memory_mib: int = 81920
    numa: int = 0
    healthy: bool = True


@dataclass(frozen=True)
class Node:
    """A machine. Nodes that are alike should share their `gpus` and `links` objects: tables are made once for each."""

    name: str
    allocatable: Amounts = field(default_factory=dict)
    """Everything but cards."""
    gpus: tuple[Gpu, ...] = ()
    links: tuple[tuple[int, ...], ...] = ()
    """Points of the link between each two cards (`gpu_sets.POINTS`); empty: all alike."""
    rdma: tuple[tuple[int, ...], ...] = ()
    """Points of the link between each RDMA device and each card. How many pods it serves is a resource like any."""
    numa: tuple[Amounts, ...] = ()
    """What of `allocatable` belongs to each NUMA node, by `Gpu.numa`; empty: not known, and not looked at."""
    topology: tuple[str, ...] = ()
    """The node's domain at each of `Snapshot.levels`, from the widest to the narrowest."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    ready: bool = True
    """Reachable, and not cordoned: takes new pods."""
    cache_bytes: int = 0
    """Room for datasets."""


@dataclass(frozen=True)
class Queue:
    """A node of the tree of queues. Jobs wait in leaves only.

    A resource that no queue of a tree mentions in `min` is limited by `max` alone there.
    """

    name: str
    parent: str | None = None
    min: Amounts = field(default_factory=dict)
    """Guaranteed. Of an inner queue: for the whole subtree; what exceeds the sum of its children's is theirs to borrow.
    Not mentioned: the sum of the children's. Where children's mins exceed it, they are scaled down."""
    max: Amounts = field(default_factory=dict)
    """Never exceeded, borrowed or not. Not mentioned: no limit."""
    weight: float = 1.0
    """Share of what is free to borrow, among siblings. 0: borrows only what nobody else wants, and loses it first."""
    priority: int = 0
    """Among siblings, a higher one is served first where both are within their min, or both are not."""
    lending_limit: Amounts = field(default_factory=dict)
    """At most so much of min may be used by others while it is idle. Not mentioned: all of it."""
    borrowing_limit: Amounts = field(default_factory=dict)
    """At most so much above min. Not mentioned: no limit but max."""
    policy: QueuePolicy = "best-effort"
    """What a job that must wait means for those behind it; one that could never run holds nobody up.

    * `best-effort`: nothing; each is tried.
    * `fifo`: those that compete with it wait too, unless they can be backfilled without delaying it. Two compete if
      there is a node that both may use (by labels, taints and kind of card), or if a third one links them; who asks for
      cards does not compete with who asks for none.
    * `strict`: all of this queue wait.
    * `block`: all of this queue wait, and what is free and could serve it is taken by no other queue.
    """
    newest_first: bool = False
    """Among equal priority: LIFO instead of FIFO. Its jobs do not age: who has waited longest is last here."""
    max_jobs: int | None = None
    """Jobs that run at once."""
    preempt: Preempt = "lower"
    """Which jobs of its own queue a job may evict: `lower` priority, or also `later` ones of the same priority."""
    reclaim: Reclaim = "any"
    """Which jobs of queues above their min may be evicted by one that stays within its own."""
    preempt_to_borrow: bool = False
    """A job that borrows may evict jobs of lower priority from queues above their min (Kueue's borrowWithinCohort).
    Where one queue of a tree may, shares give no claim to room in that tree: the two would evict in turns."""
    preempt_to_borrow_up_to: int | None = None
    """Only jobs of at most this priority; None: of any that is lower."""
    reclaimable: bool = True
    """Whether other queues may reclaim from this one."""
    min_runtime_s: float = 0.0
    """A job that has run for less is not evicted by another queue's."""
    usage: float = 0.0
    """Decayed historic use (`fair_share.decayed`), for `fairness="usage"`."""


@dataclass(frozen=True)
class Dataset:
    """What jobs read, and where it is cached now."""

    name: str
    size: int
    """Bytes."""
    warm: Mapping[str, int] = field(default_factory=dict)
    """Distinct bytes by node. Nodes of one cache domain hold different parts (placement is by hash): they add up."""
    store: str = ""
    """The under-store that cold bytes come from."""


@dataclass(frozen=True)
class Store:
    """An under-store."""

    name: str
    bandwidth: int
    """Bytes per second, for all readers together."""
    flow_bandwidth: int = 0
    """Bytes per second that one job's nodes can take; 0: no limit but `bandwidth`."""
    flows: int = 0
    """Loads that share it now."""
    waiting_gpus: float = 0.0
    """GPUs of the jobs that wait for these loads: each byte more from here costs them too."""

    @property
    def share(self) -> float:
        """Bytes per second that one more reader may expect."""
        fair = self.bandwidth / (self.flows + 1)
        return min(fair, self.flow_bandwidth) if self.flow_bandwidth else fair


@dataclass(frozen=True)
class Reservation:
    """Room on one node, set aside for some jobs."""

    name: str
    node: str
    amounts: Amounts = field(default_factory=dict)
    """Without cards."""
    cards: tuple[int, ...] = ()
    """Whole cards, by place."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """Labels that a job must have to use it; empty: nobody can."""
    policy: Literal["default", "aligned", "restricted"] = "default"
    """`default`: an owner may use it and what else is free; `aligned`: it goes there first; `restricted`: owners use
    nothing else."""
    once: bool = False
    """The first job that uses it ends it."""
    expires: float | None = None

    def owned_by(self, job: Job) -> bool:
        return bool(self.owners) and all(job.labels.get(label) == value for label, value in self.owners.items())


@dataclass(frozen=True)
class Unit:
    """One choice of a resource policy: some of the nodes."""

    name: str
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes."""
    max_pods: int | None = None
    """Over all jobs of the policy."""
    max_wait_s: float | None = None
    """How long a job waits for this unit before the next one is tried; None: the next one at once."""


@dataclass(frozen=True)
class ResourcePolicy:
    """Units in the order in which jobs are placed on them; they are left in reverse.

    A later unit is taken early where it is warm for a job and no earlier one is. Who owns reservations is placed in
    them first, whatever unit they are in; the units are for the rest of its pods.
    """

    name: str
    units: tuple[Unit, ...]
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the jobs that it is for; of several that are for one job, the first by name is."""

    def concerns(self, job: Job) -> bool:
        return all(job.labels.get(label) == value for label, value in self.selector.items())


@dataclass(frozen=True)
class RunningJob:
    """A job with pods. Admitted counts as running: its room is taken from then on."""

    job: Job
    started: float
    pods: tuple[PlacedPods, ...]
    bound: bool = True
    """All of its pods are bound; if not, `bind_by` runs."""
    bind_by: float | None = None
    checkpointed: float | None = None
    """When it last saved its work."""
    evicted_for: str | None = None
    """The job for which its eviction was decided, or '' if for none: a victim stays one until it is gone."""
    leaving: tuple[PlacedPods, ...] = ()
    """With `evicted_for`: only these pods go, the job was shrunk; empty: all of it."""
    reservations: tuple[str, ...] = ()
    """In which it runs."""
    load_s: float = 0.0
    """Seconds that it loads its data before its runtime counts, as was reckoned when it was admitted."""
    growing: tuple[PlacedPods, ...] = ()
    """Of its pods, those that came later and are not all bound yet."""
    grow_by: float | None = None
    """They must be by then."""
    grow_after: float = 0.0
    """It gets no further pods before."""
    short_since: float | None = None
    """When it fell below its least pods; None: it has them."""

    @property
    def ending(self) -> bool:
        """It was evicted as a whole."""
        return self.evicted_for is not None and not self.leaving


@dataclass(frozen=True)
class Hold:
    """Nodes that are kept for a job: others may use them until `start` only."""

    job: str
    start: float
    nodes: tuple[str, ...]
    forced: bool = False
    """Victims leave it, or have left it, for the job."""


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment."""

    now: float = 0.0
    levels: tuple[str, ...] = ()
    """Names of the topology's levels above the node, from the widest to the narrowest, like ("spine", "rack")."""
    nodes: tuple[Node, ...] = ()
    queues: tuple[Queue, ...] = ()
    waiting: tuple[Job, ...] = ()
    running: tuple[RunningJob, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    stores: tuple[Store, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    policies: tuple[ResourcePolicy, ...] = ()
    done: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By group of gangs, its jobs that have ended well: they count as there."""
    holds: tuple[Hold, ...] = ()
    """As they were decided before."""
