"""Jobs: what runs, how large it may be, what it reads, and where its pods were put."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Toleration:
    """Empty key: any taint. Value None: any value. Empty effect: any effect."""

    key: str = ""
    value: str | None = None
    effect: str = ""


@dataclass(frozen=True)
class Match:
    """One expression on the labels of a node, as in Kubernetes' node affinity."""

    label: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "Exists"
    """`NotIn` and `DoesNotExist` are met by nodes without the label, all others are not."""
    values: tuple[str, ...] = ()
    """Of `In` and `NotIn`: at least one; of `Gt` and `Lt`: one whole number; of the others: none."""

    def __post_init__(self) -> None:
        if self.operator in ("In", "NotIn"):
            if not self.values:
                raise ValueError(f"label {self.label!r} {self.operator} nothing; at least one value is needed")
        elif self.operator in ("Gt", "Lt"):
            if len(self.values) != 1 or _whole(self.values[0]) is None:
                raise ValueError(f"label {self.label!r} {self.operator} {self.values}; one whole number is needed")
        elif self.operator not in ("Exists", "DoesNotExist"):
            allowed = "In, NotIn, Exists, DoesNotExist, Gt, Lt"
            raise ValueError(f"label {self.label!r}: operator {self.operator!r}; allowed are {allowed}")
        elif self.values:
            raise ValueError(f"label {self.label!r} {self.operator} {self.values}; no value is allowed")

    def met_by(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.label)
        if self.operator in ("NotIn", "DoesNotExist"):
            return value is None or (self.operator == "NotIn" and value not in self.values)
        if value is None:
            return False
        if self.operator == "In":
            return value in self.values
        if self.operator == "Exists":
            return True
        number, bound = _whole(value), _whole(self.values[0])
        return (
            number is not None and bound is not None and (number > bound if self.operator == "Gt" else number < bound)
        )


def _whole(text: str) -> int | None:
    """Digits with a sign or without, as Kubernetes reads them; None: it is no number."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else None


@dataclass(frozen=True)
class GpuRequest:
    """Cards of one pod, all on one node."""

    cards: int = 1
    compute_milli: int = 1000
    """Thousandths of each card's compute; 1000: the card is the pod's alone."""
    memory_mib: int = 0
    """Memory of each card; it is all there is of a share with `compute_milli` 0."""
    models: tuple[str, ...] = ()
    """Any of these; empty: any card."""
    single_numa: bool = False
    """All cards at one NUMA node, and with them what else the pod requests of what NUMA nodes have."""
    rdma: Literal["any", "prefer", "require"] = "any"
    """Cards with an RDMA device on the same PCIe tree, without a host bridge in between."""

    def __post_init__(self) -> None:
        if self.cards < 1:
            raise ValueError(f"a GPU request of {self.cards} cards; leave it out for none")
        if not 0 <= self.compute_milli <= 1000:
            raise ValueError(f"{self.compute_milli} thousandths of a card; allowed are 0 to 1000")
        if self.compute_milli == 0 and self.memory_mib <= 0:
            raise ValueError("a GPU request of neither compute nor memory")

    @property
    def exclusive(self) -> bool:
        return self.compute_milli == 1000

    @classmethod
    def over(cls, memory_mib: int, cards: int, models: tuple[str, ...] = ()) -> "GpuRequest":
        """`memory_mib` in equal parts over so many cards, as `aliyun.com/gpu-mem` with `aliyun.com/gpu-count`.

        Raises:
            ValueError: the parts would not be whole MiB.
        """
        if memory_mib % cards:
            raise ValueError(f"{memory_mib} MiB over {cards} cards are not whole MiB a card")
        return cls(cards=cards, compute_milli=0, memory_mib=memory_mib // cards, models=models)


@dataclass(frozen=True)
class TopologyRequest:
    """How near to each other pods are. Levels are names of `Snapshot.levels`, or "host"."""

    required: str | None = None
    """All pods (each slice, if `slice_size` is given with `slice_level`) in one domain of this level, or not at all."""
    preferred: str | None = None
    """In one domain of this level if possible, else in as few as possible."""
    slice_size: int = 1
    """Pods of which each whole slice must be in one domain of `slice_level`."""
    slice_level: str | None = None
    group: str | None = None
    """Pod sets of one job with the same group share their `required` domain."""
    apart: str | None = None
    """At most `apart_pods` pods of this set in one domain of this level: one for each host, rack..."""
    apart_pods: int = 1

    def __post_init__(self) -> None:
        if self.apart_pods < 1:
            raise ValueError(f"apart_pods {self.apart_pods}; a domain must be allowed at least one pod")


@dataclass(frozen=True)
class PodSet:
    """Pods that are alike."""

    name: str = "main"
    count: int = 1
    min_count: int | None = None
    """The job may be admitted with so many, and shrunk to it; None: with `count` only."""
    requests: Mapping[str, int] = field(default_factory=dict)
    """Of one pod, without cards."""
    gpus: GpuRequest | None = None
    tolerations: tuple[Toleration, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that a node must have."""
    affinity: tuple[tuple[Match, ...], ...] = ()
    """Terms of which a node must meet one, each with all of its expressions; no term: any node. A term without
    expressions is met by none."""
    preferences: tuple[tuple[str, str, int] | tuple[Match, int], ...] = ()
    """Label, value (or an expression) and weight 1 to 100 of nodes that are liked."""
    topology: TopologyRequest = field(default_factory=TopologyRequest)
    placement: Literal["binpack", "spread", "balanced"] | None = None
    """`binpack`: nodes are filled one after the other; `spread`: each gets as few pods as possible; `balanced`: where
    one domain is not enough, the fewest that are get equal parts. None: as the settings say."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"pod set {self.name!r} has {self.count} pods; at least one is needed")
        if self.min_count is not None and not 1 <= self.min_count <= self.count:
            raise ValueError(f"pod set {self.name!r}: min_count {self.min_count} is not in 1..{self.count}")

    @property
    def least(self) -> int:
        return self.count if self.min_count is None else self.min_count


@dataclass(frozen=True)
class DataNeed:
    """A dataset that a job reads. Several needs are joined by AND."""

    dataset: str
    min_warm: float = 1.0
    """Fraction that must be cached near the pods before the job is admitted, with mode `require`."""
    mode: Literal["require", "prefer"] = "prefer"
    """`prefer`: the job never waits for it, but is placed where it is warm if that is worth it."""
    deadline: float | None = None
    """Time from which the job does not wait for it any more; None: waits for ever."""
    read_rate: int = 0
    """Bytes per second that one of its GPUs reads when all is cached; 0: not known."""


@dataclass(frozen=True)
class Job:
    """A gang: all of its pod sets, each with at least its least count, or nothing."""

    name: str
    queue: str
    pod_sets: tuple[PodSet, ...]
    priority: int = 0
    submitted: float = 0.0
    """When it first asked. A job that is evicted or released keeps it, and so its place."""
    labels: Mapping[str, str] = field(default_factory=dict)
    data: tuple[DataNeed, ...] = ()
    group: str | None = None
    """Jobs of one group are admitted together or not at all, and evicted so."""
    group_size: int = 0
    """How many jobs the group needs; it waits until so many are there. What it has beyond may start later."""
    preemptible: bool = True
    """If not, it does not borrow either: nobody could have it back."""
    preempts: bool = True
    """It may evict others (Kubernetes' preemptionPolicy)."""
    max_run_s: float | None = None
    """Bound of its runtime; None: none is known, and it is never backfilled."""
    max_wait_s: float | None = None
    """Of one wait; then it is given up."""
    waits_since: float | None = None
    """When it began to wait again, after it had run; None: when it was submitted."""
    retries: int = 0
    """How often it was admitted and did not bind in time."""
    not_before: float = 0.0
    """It is not tried earlier: backoff after a release."""
    gates: tuple[str, ...] = ()
    """Scheduling gates of others that its pods still have: it is not tried before they are gone."""

    def __post_init__(self) -> None:
        if not self.pod_sets:
            raise ValueError(f"job {self.name!r} has no pod set")
        names = [pod_set.name for pod_set in self.pod_sets]
        if len({*names}) != len(names):
            raise ValueError(f"job {self.name!r} has two pod sets of one name: {', '.join(sorted(names))}")

    @property
    def wait_until(self) -> float | None:
        """When it is given up if it still waits; None: never."""
        if self.max_wait_s is None:
            return None
        return (self.submitted if self.waits_since is None else self.waits_since) + self.max_wait_s


@dataclass(frozen=True)
class PlacedPods:
    """Pods of one pod set on one node."""

    pod_set: str
    node: str
    cards: tuple[tuple[int, ...], ...] = ()
    """For each pod its cards, by place; () for pods without."""

    count: int = 1


def counts_of(job: Job, pods: Iterable[PlacedPods]) -> list[int]:
    """Pods of each set."""
    counts = {pod_set.name: 0 for pod_set in job.pod_sets}
    for placed in pods:
        counts[placed.pod_set] += placed.count
    return [*counts.values()]


def without(pods: Iterable[PlacedPods], leaving: Iterable[PlacedPods]) -> tuple[PlacedPods, ...]:
    """Pods less those that leave; of pods without cards only their number counts."""
    left = list(pods)
    for gone in leaving:
        count, cards = gone.count, [*gone.cards]
        for place, one in enumerate(left):
            if (one.pod_set, one.node) != (gone.pod_set, gone.node):
                continue
            if one.cards:
                stay = []
                for taken in one.cards:
                    if taken in cards:
                        cards.remove(taken)  # only once: several pods may have shares of one card
                    else:
                        stay.append(taken)
                left[place] = replace(one, cards=tuple(stay), count=len(stay))
            else:
                left[place] = replace(one, count=max(0, one.count - count))
                count -= one.count - left[place].count
    return tuple(one for one in left if one.count)


def joined(pods: Iterable[PlacedPods], more: Iterable[PlacedPods]) -> tuple[PlacedPods, ...]:
    """Pods and those that came later, with one entry for each pod set and node."""
    found: dict[tuple[str, str], PlacedPods] = {}
    for one in (*pods, *more):
        before = found.get((one.pod_set, one.node))
        if before is not None:
            one = replace(one, cards=before.cards + one.cards, count=before.count + one.count)
        found[one.pod_set, one.node] = one
    return tuple(found.values())
