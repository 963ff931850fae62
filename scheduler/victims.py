"""Who may be evicted for a job, in which order, and what it costs.

The rules are made so that no two jobs can evict each other in turn: a victim by priority is of strictly lower priority;
a victim by reclaim is above its queue's min, while the other one stays within its own; and by fair share the other
queue's share must not exceed what the victim's queue keeps (Kueue's LessThanOrEqualToFinalShare).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.pending import weight_of
from forebay.scheduler.quota import QuotaNode, Vector
from forebay.scheduler.resource_policies import policy_of, scale_in
from forebay.scheduler.state import Live, State

Reason = Literal["priority", "reclaim", "fair-share"]


@dataclass(eq=False)
class Piece:
    """Something that could be taken away: a job, or one pod of an elastic one."""

    live: Live
    pods: tuple[PlacedPods, ...]
    whole: bool
    cost: float
    freed: Vector
    """Its quota."""

    @property
    def name(self) -> str:
        return self.live.job.name


def lost_gpu_s(state: State, live: Live) -> float:
    """GPU-seconds that an eviction costs: work since the last checkpoint, and loading its data again.

    The data is reckoned as if it were to start in any cache domain with the same likelihood.
    """
    gpus = weight_of(live.job)
    saved = max(live.running.started, live.running.checkpointed or 0.0)
    view = state.warm.view(live.job, gpus, state.now)
    reload_s = 0.0 if view is None or not len(view.stall_s) else float(view.stall_s.mean())
    return gpus * (max(0.0, state.now - saved) + state.settings.reload_weight * reload_s)


def meeting(one: QuotaNode, other: QuotaNode) -> tuple[list[QuotaNode], list[QuotaNode]] | None:
    """The paths of two leaves below where they meet; None: they are of different trees."""
    mine, theirs = list(one.path()), list(other.path())
    if mine[-1] is not theirs[-1]:
        return None
    while mine and theirs and mine[-1] is theirs[-1]:
        mine.pop()
        theirs.pop()
    return mine, theirs


def reason_for(state: State, job: Job, request: Vector, piece: Piece) -> Reason | None:
    """By which rule this piece may be taken for the job now; None: it may not."""
    leaf, victim = state.quota.leaf(job.queue), piece.live
    if victim.leaf is leaf:
        return "priority" if leaf.queue.preempt_lower and victim.job.priority < job.priority else None
    paths = meeting(leaf, victim.leaf)
    if paths is None:
        return None
    mine, theirs = paths
    if leaf.queue.reclaim == "never" or not all(node.queue.reclaimable for node in theirs):
        return None
    if leaf.queue.reclaim == "lower-priority" and victim.job.priority >= job.priority:
        return None
    if state.now - victim.running.started < max(node.queue.min_runtime_s for node in theirs):
        return None
    if not all(_above_min(node, request) for node in theirs):
        return None
    if all(node.within_min(request) for node in mine):
        return "reclaim"
    if state.settings.fair_preemption and state.settings.fairness in ("drf", "borrowed"):
        after = _share_with(state, leaf, mine[-1], request, 1)
        if after <= _share_with(state, victim.leaf, theirs[-1], piece.freed, -1):
            return "fair-share"
    return None


def _above_min(node: QuotaNode, request: Vector) -> bool:
    """Whether it uses more than its min of something that is asked for."""
    return any(amount and used > quota for amount, used, quota in zip(request, node.used, node.quota, strict=True))


def _share_with(state: State, leaf: QuotaNode, node: QuotaNode, amounts: Vector, sign: int) -> float:
    """The share of `node` once the leaf below it uses so much more (1) or less (-1)."""
    quota = state.quota
    quota.resize(leaf, amounts, sign)
    share = quota.borrowed(node) if state.settings.fairness == "borrowed" else quota.share(node)
    quota.resize(leaf, amounts, -sign)
    return share


def pieces_for(state: State, job: Job) -> list[Piece]:
    """All that could be taken for a job by some rule, in the order in which it should be.

    Pods of elastic jobs before jobs; other queues' before its own; lower priority first; of queues with a larger share
    first; then what costs least, the youngest, and by name.
    """
    leaf, request = state.quota.leaf(job.queue), state.shape(job).least
    found: list[tuple[tuple[object, ...], Piece]] = []
    for live in state.running.values():
        if live.running.evicted_for is not None or not live.job.preemptible:
            continue
        if live.leaf is leaf and live.job.priority >= job.priority:
            continue
        whole = Piece(live, live.running.pods, True, 0.0, live.charged)
        if not _possible(state, job, request, whole):
            continue
        whole.cost = lost_gpu_s(state, live)
        for tier, piece in ((1, whole), *((0, pod) for pod in surplus(state, live))):
            key = (
                tier,
                live.leaf is leaf,
                live.job.priority,
                -round(state.quota.share(live.leaf), 6),
                piece.cost,
                -live.running.started,
                live.job.name,
            )
            found.append((key, piece))
    found.sort(key=lambda one: one[0])
    return [piece for _, piece in found]


def _possible(state: State, job: Job, request: Vector, piece: Piece) -> bool:
    """Cheap: whether a rule could apply at all. What others lose meanwhile only makes rules stricter."""
    return reason_for(state, job, request, piece) is not None


def surplus(state: State, live: Live) -> Iterator[Piece]:
    """The pods that an elastic job can do without, one by one, in the order in which it gives them up."""
    if not live.shape.elastic:
        return
    counts = {pod_set.name: 0 for pod_set in live.job.pod_sets}
    for placed in live.running.pods:
        counts[placed.pod_set] += placed.count
    spare = {pod_set.name: counts[pod_set.name] - pod_set.least for pod_set in live.job.pod_sets}
    order: Sequence[PlacedPods] = scale_in(state, policy_of(state.policies, live.job), live.running.pods)
    left = counts
    for placed in order:
        for number in range(placed.count):
            if spare[placed.pod_set] <= 0:
                break
            spare[placed.pod_set] -= 1
            cards = (placed.cards[-1 - number],) if placed.cards else ()
            before = state.charge(live.job, [left[pod_set.name] for pod_set in live.job.pod_sets])
            left = {**left, placed.pod_set: left[placed.pod_set] - 1}
            after = state.charge(live.job, [left[pod_set.name] for pod_set in live.job.pod_sets])
            freed = [one - other for one, other in zip(before, after, strict=True)]
            yield Piece(live, (PlacedPods(placed.pod_set, placed.node, cards),), False, 0.0, freed)
