"""Who may be evicted for a job, in which order, and what it costs.

The rules are made so that no two jobs can evict each other in turn: a victim by priority is of strictly lower priority,
or comes later in a queue that says so; a victim by reclaim is above its queue's min, while the other one stays within
its own; by borrowing it is of strictly lower priority too, in trees without claims by share; by fair share the other
queue's share must not exceed what the victim's queue keeps (Kueue's LessThanOrEqualToFinalShare) or, if that does not
suffice and for one victim of each queue, must stay below what that queue had (LessThanInitialShare).
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from forebay.scheduler.fair_share import Number
from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.live import Live
from forebay.scheduler.quota import QuotaNode, Vector
from forebay.scheduler.resource_policies import scale_in
from forebay.scheduler.state import State

Reason = Literal["priority", "reclaim", "borrow", "fair-share"]


@dataclass(eq=False)
class Piece:
    """Something that could be taken away: a job, a group of gangs, or one pod of an elastic job."""

    live: Live
    pods: tuple[PlacedPods, ...]
    whole: bool
    cost: float
    freed: Vector
    """Its quota."""
    others: tuple["Piece", ...] = ()
    """The rest of its group of gangs, which goes with it."""

    @property
    def name(self) -> str:
        return self.live.job.name

    @property
    def parts(self) -> tuple["Piece", ...]:
        return (self, *self.others)


def lost_gpu_s(state: State, live: Live) -> float:
    """GPU-seconds that an eviction costs: work since the last checkpoint, and loading its data again.

    The data is reckoned as if it were to start in any cache domain with the same likelihood.
    """
    gpus = live.shape.gpus
    saved = max(live.running.started, live.running.checkpointed or 0.0)
    return gpus * (max(0.0, state.now - saved) + state.settings.reload_weight * state.warm.mean_stall_s(live.job, gpus))


def meeting(one: QuotaNode, other: QuotaNode) -> tuple[list[QuotaNode], list[QuotaNode]] | None:
    """The paths of two leaves below where they meet; None: they are of different trees."""
    mine, theirs = list(one.path()), list(other.path())
    if mine[-1] is not theirs[-1]:
        return None
    while mine and theirs and mine[-1] is theirs[-1]:
        mine.pop()
        theirs.pop()
    return mine, theirs


class Rules:
    """By which rules a job may take from others, as quota is now."""

    def __init__(self, state: State, job: Job, request: Vector) -> None:
        self._state = state
        self._job = job
        self._request = request
        self._leaf = state.quota.leaf(job.queue)
        self._between: dict[str, Reason | None] = {}
        self._fair: dict[tuple[str, bool, tuple[int, ...]], bool] = {}

    def changed(self) -> None:
        """Quota is another than before."""
        self._between.clear()
        self._fair.clear()

    def reason_for(self, piece: Piece, initial: bool = False) -> Reason | None:
        """By which rule this piece may be taken for the job now; None: it may not.

        Args:
            initial: by fair share, the share that the victim's queue has now is compared, and not the one it keeps.
        """
        rule: Reason | None = None
        for part in reversed(piece.parts):
            other = part.live.leaf
            if other.name not in self._between:
                self._between[other.name] = rule_between(self._state, self._leaf, self._request, other)
            rule = self._between[other.name]
            if rule is None or not _concerned(self._state, self._job, rule, part.live, self._leaf, part.whole):
                return None
            if rule == "fair-share" and not self._is_fair(part, initial):
                return None
        return rule

    def _is_fair(self, piece: Piece, initial: bool) -> bool:
        freed = tuple(sum(amounts) for amounts in zip(*(part.freed for part in piece.parts), strict=True))
        key = (piece.live.leaf.name, initial, freed)
        if key not in self._fair:
            paths, none = meeting(self._leaf, piece.live.leaf), [0] * len(freed)
            assert paths is not None
            mine, theirs = paths[0][-1], paths[1][-1]
            self._fair[key] = _compared(self._state, mine, self._request, theirs, [*freed]) <= 0 or (
                initial and _compared(self._state, mine, self._request, theirs, none) < 0
            )
        return self._fair[key]


def rule_between(state: State, leaf: QuotaNode, request: Vector, other: QuotaNode) -> Reason | None:
    """The rule by which a job of one queue may take from jobs of another, as both are now; None: there is none."""
    if other is leaf:
        return "priority"
    paths = meeting(leaf, other)
    if paths is None or leaf.queue.reclaim == "never":
        return None
    mine, theirs = paths
    if not all(node.queue.reclaimable and node.above_min(request) for node in theirs):
        return None
    if all(node.within_min(request) for node in mine):
        return "reclaim"
    if leaf.by_priority:
        return "borrow" if leaf.queue.preempt_to_borrow else None
    if state.settings.fair_preemption and state.settings.fairness in ("drf", "hdrf", "borrowed"):
        none = [0] * len(request)
        if _compared(state, mine[-1], request, theirs[-1], none) <= 0:
            return "fair-share"
    return None


def _concerned(state: State, job: Job, rule: Reason, victim: Live, leaf: QuotaNode, whole: bool) -> bool:
    """Whether the rule is for this victim too: priority, and how long it has run.

    What a job has beyond its least was given to it because nobody else had a use for it: it is spared by neither age
    nor equal priority.
    """
    if rule == "priority" and not whole:
        return victim.job.priority <= job.priority
    if rule == "priority":
        if leaf.queue.preempt == "never":
            return False
        return victim.job.priority < job.priority or _later(state, job, victim, leaf)
    if rule == "borrow":
        most = leaf.queue.preempt_to_borrow_up_to
        if victim.job.priority >= job.priority or (most is not None and victim.job.priority > most):
            return False
    if leaf.queue.reclaim == "lower-priority" and victim.job.priority >= job.priority:
        return False
    if not whole:
        return True
    return state.now - victim.running.started >= victim.leaf.shield_s


def _any_concerned(state: State, job: Job, rule: Reason, leaf: QuotaNode, other: QuotaNode) -> bool:
    """False: the priority of each running job of a queue keeps the rule from concerning it. Quick to know."""
    if rule == "priority":
        equal = leaf.queue.preempt == "later"
    elif rule == "borrow" or leaf.queue.reclaim == "lower-priority":
        equal = False
    else:
        return True
    return any(
        priority < job.priority or (priority == job.priority and (equal or (elastic and rule == "priority")))
        for (priority, elastic), count in state.priorities[other.name].items()
        if count
    )


def _later(state: State, job: Job, victim: Live, leaf: QuotaNode) -> bool:
    """Whether it comes after the job in a queue that lets those before evict those behind."""
    if leaf.queue.preempt != "later" or victim.job.priority != job.priority:
        return False
    queue = state.queues[leaf.name]
    return queue.rank(victim.job) > queue.rank(job)


def _compared(state: State, mine: QuotaNode, request: Vector, theirs: QuotaNode, freed: Vector) -> int:
    """Whether the share of one queue with a request is less (-1), as large (0) or larger (1) than another's that keeps
    all but what is freed."""
    used = [old + amount for old, amount in zip(mine.used, request, strict=True)]
    kept = [old - amount for old, amount in zip(theirs.used, freed, strict=True)]
    one, other = _share_with(state, mine, used), _share_with(state, theirs, kept)
    if math.isclose(one, other):
        # As floats 3 / 11 / 3 is less than 1 / 11; but fractions take too long where it is clear without them.
        one = _share_with(state, mine, [Fraction(amount) for amount in used])
        other = _share_with(state, theirs, [Fraction(amount) for amount in kept])
    return (one > other) - (one < other)


def _share_with(state: State, node: QuotaNode, used: Sequence[Number]) -> Number:
    """The share of `node` if it used so much."""
    quota = state.quota
    return quota.borrowed_with(node, used) if state.settings.fairness == "borrowed" else quota.share_with(node, used)


Ranked = tuple[tuple[object, ...], Piece]

Known = dict[tuple[str, Reason], list[Ranked]]
"""Pieces of a queue that any job may take by a rule, in order."""


def pieces_for(state: State, job: Job, request: Vector, known: Known) -> list[Piece]:
    """What could be taken for a job by some rule, in the order in which it should be; not more than the settings say.

    Pods of elastic jobs before jobs; other queues' before its own; lower priority first; of queues with a larger share
    first; then what costs least, the youngest, and by name.

    Args:
        known: of earlier calls on the same state; more is put into it.
    """
    leaf = state.quota.leaf(job.queue)
    found: list[Ranked] = []
    groups: set[str] = set()
    for name in sorted(state.queues):
        other = state.quota.nodes[name]
        rule = rule_between(state, leaf, request, other) if state.by_leaf[name] else None
        if rule is None:
            continue
        # Where the job's own priority does not matter, and no group of gangs goes over queues, all get the same.
        alike = rule in ("reclaim", "fair-share") and leaf.queue.reclaim == "any" and not state.groups
        if alike and (name, rule) in known:
            found += known[name, rule]
            continue
        pieces = _of_queue(state, job, rule, leaf, other, groups)
        if alike:
            known[name, rule] = pieces
        found += pieces
    return [piece for _, piece in heapq.nsmallest(state.settings.preempt_candidates, found, key=lambda one: one[0])]


def _of_queue(
    state: State, job: Job, rule: Reason, leaf: QuotaNode, other: QuotaNode, groups: set[str]
) -> list[Ranked]:
    """Pieces of one queue with their places in the order, not more than the settings say jobs."""
    if not _any_concerned(state, job, rule, leaf, other):
        return []
    lives = [
        live
        for live in state.by_leaf[other.name].values()
        if live.running.evicted_for is None
        and live.job.preemptible
        and _concerned(state, job, rule, live, leaf, not live.shape.elastic)
    ]
    share = -round(_use(state, other), 6)
    found: list[Ranked] = []
    for live in heapq.nsmallest(state.settings.preempt_candidates, lives, key=lambda live: _roughly(state, live)):
        pieces = [(0, pod) for pod in surplus(state, live)]
        pieces += [(1, whole) for whole in _wholes(state, live, groups)]
        for tier, piece in pieces:
            key = (
                tier, other is leaf, live.job.priority, share, piece.cost, len(piece.parts), -live.running.started,
                live.job.name,
            )  # fmt: skip
            found.append((key, piece))
    return found


def _wholes(state: State, live: Live, groups: set[str]) -> Iterator[Piece]:
    """The job as a whole, if its group of gangs can do without it; and the group, if there is no piece for it yet.

    Args:
        groups: those that there is a piece for, or that must not be evicted.
    """

    def piece(one: Live) -> Piece:
        return Piece(one, one.running.pods, True, lost_gpu_s(state, one), one.charged)

    own, group = piece(live), live.job.group
    if group is None:
        yield own
        return
    lives = [
        state.running[name]
        for name in state.groups[group]
        if name in state.running and not state.running[name].running.ending
    ]
    lives.sort(key=lambda one: (one.job.priority, -one.running.started, one.job.name))
    spare = len(lives) + len(state.done.get(group, ())) - live.job.group_size
    if live in lives[: max(0, spare)]:
        yield own
    if group not in groups:
        groups.add(group)
        if all(one.job.preemptible and one.running.evicted_for is None for one in lives):
            others = tuple(piece(one) for one in lives if one is not live)
            yield replace(own, cost=own.cost + sum(other.cost for other in others), others=others)


def _use(state: State, leaf: QuotaNode) -> float:
    """By which of two queues the one that has more is known."""
    if state.settings.fairness == "usage":
        return leaf.queue.usage / leaf.queue.weight if leaf.queue.weight > 0 else float("inf")
    return state.quota.share(leaf)


def _roughly(state: State, live: Live) -> tuple[int, bool, float, str]:
    """Order of victims within a queue without the cost of loading their data again: quick to know."""
    saved = max(live.running.started, live.running.checkpointed or 0.0)
    return (live.job.priority, not live.shape.elastic, live.shape.gpus * (state.now - saved), live.job.name)


def surplus(state: State, live: Live) -> Iterator[Piece]:
    """The pods that an elastic job can do without, one by one, in the order in which it gives them up."""
    if not live.shape.elastic:
        return
    counts = {pod_set.name: 0 for pod_set in live.job.pod_sets}
    for placed in live.running.pods:
        counts[placed.pod_set] += placed.count
    spare = {pod_set.name: counts[pod_set.name] - pod_set.least for pod_set in live.job.pod_sets}
    order: Sequence[PlacedPods] = scale_in(state, live.shape.policy, live.running.pods)
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
