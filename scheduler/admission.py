"""Trying one job: data, quota, room, in this order; and what to do if it is admitted."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np

from forebay.scheduler import gang
from forebay.scheduler.backfill import HeldNodes
from forebay.scheduler.claims import Claims
from forebay.scheduler.decisions import Admission
from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import RunningJob
from forebay.scheduler.nodes import Bools
from forebay.scheduler.pending import Kind, NotYet, Shape
from forebay.scheduler.placement import Placement, Site
from forebay.scheduler.places import place_job
from forebay.scheduler.quota import Excess, QuotaNode
from forebay.scheduler.refusals import Grown, Refusal
from forebay.scheduler.state import State
from forebay.scheduler.topology import NoRoom
from forebay.scheduler.warmth import View


class Admitter:
    """Admits jobs of a state, one after the other, within one pass."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.held = HeldNodes(state)
        self.grown = Grown(state.table, state.warm.domain_of)
        self._claims = Claims(state)
        self.blocked_lenders: set[str] = set()
        """Roots of trees in which a queue with policy `block` waits: nobody borrows there."""

    def entitle(self, job: Job) -> None:
        """Others have made way for the job (and its group): it yields to nobody's claim in this pass."""
        self._claims.names |= {job.name} if job.group is None else self._state.groups[job.group]

    def may_borrow(self, leaf: QuotaNode) -> bool:
        """Whether jobs of a queue may start above its min now."""
        blocked = self.blocked_lenders
        return not blocked or leaf.queue.policy == "block" or [*leaf.path()][-1].name not in blocked

    def attempt(self, job: Job, backfilled: bool = False) -> list[Admission] | Refusal:
        """Admit the job, with its whole group if it has one; the state is changed only if it is admitted."""
        state = self._state
        if job.group is None:
            found = self._alone(job, backfilled)
            return found if isinstance(found, Refusal) else [found]
        if missing := state.missing(job):
            there = f"{job.group_size - missing} of {job.group_size} jobs of group {job.group!r} are there"
            return Refusal("gang", there, THE_GROUP, "job")
        needed = state.needed(job)
        members = sorted(state.members(job), key=lambda member: member.name != job.name)
        refusal = Refusal("gang", f"others of group {job.group!r} are not tried yet", "their backoff to end", "job")
        admitted: list[Admission] = []
        holds = dict(state.holds)
        with state.table.trial() as trial:
            for place, member in enumerate(members):
                if len(admitted) + len(members) - place < needed:
                    break
                found = self._alone(member, backfilled)
                if isinstance(found, Refusal):
                    refusal = found
                else:
                    admitted.append(found)
            if admitted and len(admitted) >= needed:
                trial.keep()
                return admitted
            for done in admitted:
                self._undo(done)
        state.holds = holds
        return replace(refusal, scope="job")

    def _undo(self, admission: Admission) -> None:
        """The quota and record of a member; its room goes with the trial."""
        state = self._state
        live = state.discard(admission.job)
        state.count_reserved(admission.reservations, in_table=False)
        state.waiting[live.job.name] = live.job
        state.queues[live.job.queue].add(live.job, live.shape)

    def _alone(self, job: Job, backfilled: bool) -> Admission | Refusal:
        state = self._state
        case = _Case(state, job)
        shape, leaf = case.shape, case.leaf
        if case.warm is not None and not case.warm.any():
            return not_warm(state, job)
        if (excess := self._claims.excess(job, leaf, shape.least)) is not None:
            return over_quota(excess)
        if not self.may_borrow(leaf) and state.quota.borrows(leaf, shape.least):
            return Refusal("quota", "a queue that blocks waits for what this one would borrow", "that queue's turn")
        if (known := self._known(case)) is not None:
            return known
        found = self._placed(case)
        if isinstance(found, Refusal):
            return found
        placement, reservations, unit = found
        running = RunningJob(
            job,
            state.now,
            placement.pods,
            bound=False,
            bind_by=state.now + state.settings.bind_within_s,
            reservations=reservations,
            load_s=0.0 if case.view is None else load_s(state, case.view, placement.pods),
        )
        state.queues[job.queue].remove(job, shape)
        del state.waiting[job.name]
        state.lift(job.name)
        live = state.occupy(running, in_table=False)
        state.count_reserved(reservations, in_table=False)
        assert running.bind_by is not None
        return Admission(
            job.name,
            placement.pods,
            running.bind_by,
            placement.score,
            leaf.above_min(live.charged),
            backfilled,
            reservations,
            unit,
            running.load_s,
        )

    def _placed(self, case: "_Case") -> tuple[Placement, tuple[str, ...], str | None] | Refusal:
        """Room for as many pods as quota and nodes allow, taken."""
        state, job, shape = self._state, case.job, case.shape
        kept = allowed = self._kept(case)
        if case.warm is not None:
            warm = case.warm[state.warm.domain_of]
            allowed = warm if kept is None else kept & warm
        site = Site(self._cold_s(case), allowed)
        steps = gang.steps_of(job.pod_sets)
        first = 0
        if steps:
            legal = gang.first_step(steps, lambda step: self._legal(case, step, steps))
            first = steps if legal is None else legal
        refused: list[NoRoom] = []

        def fits(step: int) -> bool:
            with state.table.trial():
                found = place_job(state, job, shape, gang.reduced(job.pod_sets, step, steps), site)
                if isinstance(found, NoRoom):
                    refused.append(found)
                return not isinstance(found, NoRoom)

        step: int | None = first
        if steps > first:
            step = gang.first_step(steps, fits, first)
        if step is not None:
            with state.table.trial() as trial:
                found = place_job(state, job, shape, gang.reduced(job.pod_sets, step, steps), site)
                if not isinstance(found, NoRoom):
                    trial.keep()
                    return found
                refused.append(found)
        return self._no_room(case, refused[-1], kept)

    def _legal(self, case: "_Case", step: int, steps: int) -> bool:
        charge = self._state.charge(case.job, gang.reduced(case.job.pod_sets, step, steps))
        return self._claims.excess(case.job, case.leaf, charge) is None

    def _cold_s(self, case: "_Case") -> Floats | None:
        state, job = self._state, case.job
        if state.settings.node_choice == "label" and job.data:
            return np.where(state.warm.labelled(need.dataset for need in job.data), 0.0, LABEL_COLD_S)
        if case.view is None or not state.settings.weights.cold:
            return None
        return case.view.load_s[state.warm.domain_of]

    def _kept(self, case: "_Case") -> Bools | None:
        """Nodes that are not held for others; None: all."""
        state, job = self._state, case.job
        if not state.holds:
            return None
        stall = None if case.view is None else case.view.stall_s[state.warm.domain_of]
        # Those for whom victims leave were found room for together: their holds on one node do not exclude each other.
        own = {job.name} if job.group is None else state.groups[job.group]
        together = own - {job.name}
        if any(state.holds[name].forced for name in own if name in state.holds):
            together |= {hold.job for hold in state.holds.values() if hold.forced}
        kept = self.held.allowed(job, stall, together)
        return None if kept is None or kept.all() else kept

    def _no_room(self, case: "_Case", room: NoRoom, kept: Bools | None) -> Refusal:
        """What `room` means for the job, remembered for those like it."""
        state, shape, warm = self._state, case.shape, case.warm
        plain = not shape.special and case.job.group is None  # what others of a group have taken may be given back
        if plain and room.lasting:
            simple = len(shape.demands) == 1 and not shape.elastic
            seen = NotYet(len(state.table.grown), room.lacking if simple else 1, warm)
            if kept is not None:
                stalls = 0.0 if case.view is None else float(case.view.stall_s.max(initial=0.0))
                seen.epoch, seen.bound = state.epoch, case.bound + stalls
            state.refusals[case.kind] = seen
        if warm is not None:
            nodes = int(warm[state.warm.domain_of].sum())
            return Refusal(room.stage, room.reason, f"room where its data is warm: {nodes} nodes", "job")
        if kept is not None:
            reason = f"{room.reason}; {int((~kept).sum())} nodes are held for others"
            return Refusal(room.stage, reason, "their start", "job")
        return Refusal(room.stage, room.reason, ENDS, "shape" if plain else "job")

    def _known(self, case: "_Case") -> Refusal | None:
        """What `_no_room` has remembered, if nothing has changed that could help: the same as would be found anew.

        Not where refusals are to be explained: it is found out then why there is no room now.
        """
        state, job, warm = self._state, case.job, case.warm
        seen = state.refusals.get(case.kind)
        if seen is None or state.placer.explains or case.shape.special or job.group is not None:
            return None
        held = seen.epoch >= 0
        if held and (job.name in state.holds or seen.epoch != state.epoch or case.bound < seen.bound):
            return None
        if warm is not None and seen.among is not None and (warm & ~seen.among).any():
            return None
        if not self.grown.still_refused(case.shape, seen):
            return None
        if warm is not None:
            return Refusal("gang", "no room where its data is warm", "room there", "job")
        if held or self._kept(case) is not None:
            return Refusal("gang", "no room beside the nodes that are held for others", "their start", "job")
        return Refusal("gang", "no room for jobs that ask for this", ENDS)

    def crowded(self, shape: Shape) -> NoRoom | None:
        """Why the least pods of such a job find no nodes, wherever they are and whatever else it needs; None: they
        may find some."""
        state = self._state
        if shape.special:
            return None
        seen = None if state.placer.explains else shape.crowded
        if seen is not None and self.grown.still_refused(shape, seen):
            return NoRoom("gang", "")
        found = state.placer.crowded(shape.job.pod_sets, shape.demands)
        lacking = found.lacking if found is not None and len(shape.demands) == 1 else 1
        shape.crowded = None if found is None else NotYet(len(state.table.grown), lacking)
        return found


ENDS = "pods that end on such nodes"


class _Case:
    """A job that is tried, and what has to be known of it."""

    def __init__(self, state: State, job: Job) -> None:
        self._state = state
        self.job = job
        self.shape = state.shape(job)
        self.leaf = state.quota.leaf(job.queue)
        needs = state.warm.required(job, state.now)
        self.warm = state.warm.where(needs) if needs else None
        """Cache domains where its data is warm enough; None: it waits for none."""
        self.kind: Kind = (id(self.shape), frozenset((need.dataset, need.min_warm) for need in needs))

    @cached_property
    def view(self) -> View | None:
        return self._state.warm.view(self.job, self.shape.gpus)

    @property
    def bound(self) -> float:
        return math.inf if self.job.max_run_s is None else self.job.max_run_s


def load_s(state: State, view: View, pods: Iterable[PlacedPods]) -> float:
    """Seconds that a job waits for its data where it waits longest."""
    rows = [state.table.index[placed.node] for placed in pods]
    seconds = float(view.stall_s[state.warm.domain_of[rows]].max(initial=0.0))
    return seconds if math.isfinite(seconds) else 0.0


THE_GROUP = "the rest of the group"


LABEL_COLD_S = 3600.0
"""What a node without the label costs with `node_choice="label"`: more than all else, as no plugin outvotes it here."""


def not_warm(state: State, job: Job) -> Refusal:
    """The job waits for data that it requires."""
    needs = state.warm.required(job, state.now)
    how = [
        f"{need.dataset} is warm to {state.warm.fraction(need.dataset):.0%} of {need.min_warm:.0%}" for need in needs
    ]
    deadlines = [need.deadline for need in needs if need.deadline is not None]
    until = f", or its deadline at {max(deadlines):g}" if deadlines and len(deadlines) == len(needs) else ""
    return Refusal("cache", "; ".join(how), f"loading {', '.join(need.dataset for need in needs)}{until}", "job")


def over_quota(excess: Excess) -> Refusal:
    """What `excess` means for the job."""
    if excess.rule == "jobs":
        return Refusal("quota", f"queue {excess.queue!r} runs as many jobs as it may", "one of them to end")
    what = f"{excess.requested} {excess.resource} asked for, {excess.available} left"
    if excess.rule == "max":
        return Refusal("quota", f"{what} below the max of queue {excess.queue!r}", "jobs of that queue to end")
    if excess.rule == "firm":
        reason = f"{what} of the min of queue {excess.queue!r} to jobs that cannot be evicted"
        return Refusal("quota", reason, "such jobs of it to end")
    reason = f"{what} to queue {excess.queue!r} of its own and to borrow"
    return Refusal("quota", reason, "jobs of the tree to end", resource=excess.resource)
