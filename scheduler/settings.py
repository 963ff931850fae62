"""How the scheduler decides: one frozen object, made by whoever calls it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Weights:
    """The joint score: expected loss in GPU-seconds, so that links, packing and cold bytes can be weighed up."""

    link: float = 360.0
    """For each GPU of a job on cards with the worst links instead of the best: a tenth of an hour."""
    rdma: float = 360.0
    """For each GPU of a job that prefers an RDMA device near it, and has none."""
    pack: float = 120.0
    """For each GPU placed on an empty node instead of one that it fills."""
    fragment: float = 120.0
    """For each GPU that the placement makes unusable (fragmentation gradient)."""
    cold: float = 1.0
    """For each GPU-second that waits for bytes from the under-store; 0: the score is blind to the cache."""
    affinity: float = 1.0
    """For each point (1 to 100) of a node preference that is not met."""
    taint: float = 100.0
    """For each `PreferNoSchedule` taint of its node that a pod does not tolerate: as the strongest preference."""
    domain: float = 600.0
    """For each GPU of a job, each time its pods span one domain more than they must."""


@dataclass(frozen=True)
class Settings:
    """Everything that is not in the snapshot. The defaults are those of production."""

    fairness: Literal["drf", "hdrf", "borrowed", "usage", "none"] = "drf"
    """Whose turn it is among queues: least dominant share of all that a subtree uses, the same without what queues use
    that cannot go on (hierarchical DRF), least borrowed share (Kueue's), least decayed use, or the highest priority and
    longest wait over all queues."""
    entry_penalty: float = 0.3
    """Part of a job's GPUs that counts at once as use of its queue when it is admitted, with `fairness="usage"`."""
    ageing_s: float | None = None
    """A job that has waited so long counts as one priority higher; None: priorities never change. Queues that serve the
    newest first do not age."""
    placement: Literal["binpack", "spread"] = "binpack"
    shared_cards: Literal["binpack", "spread", "fgd"] = "fgd"
    """On which card a share goes: the fullest, the emptiest, or where it makes least unusable."""
    node_choice: Literal["score", "label"] = "score"
    """`label`: nodes that hold any byte of one of the datasets are preferred, by a binary label, as Fluid does."""
    weights: Weights = Weights()
    cache_level: str | None = None
    """Domains within which a cached byte is as good as local; None: the narrowest level."""
    warm_gate: bool = True
    """Jobs wait for datasets with mode `require`. Off: `require` counts as `prefer`."""
    prefetch: bool = True
    lookahead: int = 64
    """Waiting jobs of each queue for whose datasets is cared ahead."""
    prefetch_share: float = 0.5
    """Of a store's bandwidth, for prefetches."""
    prefetch_horizon_s: float = 4 * 3600.0
    """Jobs that start later are not cared for yet."""
    backfill: bool = True
    class_tries: int = 8
    """Jobs with equal requests that are tried in one pass though one before them was refused: they differ in data or
    runtime."""
    preemption: bool = True
    fair_preemption: bool = True
    """A queue above its min may evict from one whose share stays at least as large as its own becomes."""
    preempt_tries: int = 2
    """Refused jobs of each queue for which victims are looked for in one pass."""
    preempt_candidates: int = 512
    """Running jobs that are looked at for one preemption, the cheapest first."""
    growth: bool = True
    """Running jobs get further pods: up to their count while there is room that nobody waits for."""
    short_s: float = 60.0
    """A job that has had fewer pods than its least for so long, and got none, waits again (KAI's staleness)."""
    bind_within_s: float = 60.0
    """An admitted job must be bound by then."""
    backoff_s: float = 60.0
    """Wait after the first release; doubled with each further one."""
    backoff_max_s: float = 3600.0
    retries_max: int | None = None
    """A job that was released so often is given up; None: never."""
    reload_weight: float = 1.0
    """What a second that a victim's GPUs wait for their data again counts, beside a second of work that is lost."""
