"""Trying one job: data, quota, room, in this order; and what to do if it is admitted."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from forebay.scheduler import gang
from forebay.scheduler.backfill import HeldNodes
from forebay.scheduler.claims import Claims
from forebay.scheduler.decisions import Admission
from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import RunningJob
from forebay.scheduler.nodes import Bools
from forebay.scheduler.pending import NotYet, Shape
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
        self.grown = Grown(state.table)
        self._claims = Claims(state)
        self.blocked_lenders: set[str] = set()
        """Roots of trees in which a queue with policy `block` waits: nobody borrows there."""

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
        shape, leaf = state.shape(job), state.quota.leaf(job.queue)
        if state.warm.lacks(job, state.now):
            return not_warm(state, job)
        if (excess := self._claims.excess(job, leaf, shape.least)) is not None:
            return over_quota(excess)
        level = state.quota.borrows(leaf, shape.least)
        root = [*leaf.path()][-1].name
        if level and root in self.blocked_lenders and leaf.queue.policy != "block":
            return Refusal("quota", "a queue that blocks waits for what this one would borrow", "that queue's turn")
        view = state.warm.view(job, shape.gpus, state.now)
        found = self._placed(job, shape, leaf, view)
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
            load_s=0.0 if view is None else load_s(state, view, placement.pods),
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

    def _placed(
        self, job: Job, shape: Shape, leaf: QuotaNode, view: View | None
    ) -> tuple[Placement, tuple[str, ...], str | None] | Refusal:
        """Room for as many pods as quota and nodes allow, taken."""
        state = self._state
        stall = None if view is None or not state.holds else view.stall_s[state.warm.domain_of]
        warm = None if view is None or view.warm is None else view.warm[state.warm.domain_of]
        # Those for whom victims leave were found room for together: their holds on one node do not exclude each other.
        own = {job.name} if job.group is None else state.groups[job.group]
        together = own - {job.name}
        if any(state.holds[name].forced for name in own if name in state.holds):
            together |= {hold.job for hold in state.holds.values() if hold.forced}
        kept = self.held.allowed(job, stall, together)
        if not state.placer.explains and (known := self._known(job, shape, kept, warm)) is not None:
            return known
        allowed = kept if warm is None else warm if kept is None else kept & warm
        site = Site(self._cold_s(job, view), allowed)
        steps = gang.steps_of(job.pod_sets)
        first = 0
        if steps:
            legal = gang.first_step(steps, lambda step: self._legal(job, leaf, step, steps))
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
        return self._no_room(job, shape, refused[-1], kept, view, warm)

    def _legal(self, job: Job, leaf: QuotaNode, step: int, steps: int) -> bool:
        charge = self._state.charge(job, gang.reduced(job.pod_sets, step, steps))
        return self._claims.excess(job, leaf, charge) is None

    def _cold_s(self, job: Job, view: View | None) -> Floats | None:
        state = self._state
        if state.settings.node_choice == "label" and job.data:
            return np.where(state.warm.labelled(need.dataset for need in job.data), 0.0, LABEL_COLD_S)
        return None if view is None else view.load_s[state.warm.domain_of]

    def _no_room(
        self, job: Job, shape: Shape, room: NoRoom, kept: Bools | None, view: View | None, warm: Bools | None
    ) -> Refusal:
        """What `room` means for the job, remembered for those like it."""
        state, stage = self._state, room.stage
        plain = not shape.special and job.group is None  # what others of a group have taken may be given back
        lasts = plain and room.lasting
        simple = plain and len(shape.demands) == 1 and not shape.elastic
        seen = NotYet(len(state.table.grown), room.lacking if simple else 1)
        if warm is not None:
            if kept is None and lasts:
                seen.among = warm
                state.data_refusals[data_key(state, job, shape)] = seen
            unblock = f"room where its data is warm: {int(warm.sum())} nodes"
            return Refusal(stage, room.reason, unblock, "job")
        if kept is not None and not kept.all():
            if lasts:
                stalls = 0.0 if view is None else float(view.stall_s.max(initial=0.0))
                shape.held_off = (seen, state.epoch, _bound(job) + stalls)
            return Refusal(
                stage, f"{room.reason}; {int((~kept).sum())} nodes are held for others", "their start", "job"
            )
        if plain:
            if lasts:
                shape.refused = seen
            return Refusal(stage, room.reason, ENDS)
        return Refusal(stage, room.reason, ENDS, "job")

    def _known(self, job: Job, shape: Shape, kept: Bools | None, warm: Bools | None) -> Refusal | None:
        """What `_no_room` has remembered, if nothing has changed that could help: the same as would be found anew."""
        if warm is not None:
            key, refusals = data_key(self._state, job, shape), self._state.data_refusals
            seen = refusals.get(key)
            more = seen is None or seen.among is None or bool((warm & ~seen.among).any())
            if seen is None or more or not self.grown.still_refused(shape, seen):
                refusals.pop(key, None)
                return None
            return Refusal("gang", "no room where its data is warm", "room there", "job")
        if kept is None or kept.all():
            if shape.refused is not None and not self.grown.still_refused(shape, shape.refused):
                shape.refused = None
            return Refusal("gang", "no room for jobs that ask for this", ENDS) if shape.refused else None
        if shape.held_off is not None:
            seen, epoch, bound = shape.held_off
            if job.name in self._state.holds or epoch != self._state.epoch or _bound(job) < bound:
                return None
            if not self.grown.still_refused(shape, seen):
                shape.held_off = None
        if shape.held_off is None:
            return None
        return Refusal("gang", "the nodes that it could use are held for others", "their start", "job")

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


def _bound(job: Job) -> float:
    return math.inf if job.max_run_s is None else job.max_run_s


def load_s(state: State, view: View, pods: Iterable[PlacedPods]) -> float:
    """Seconds that a job waits for its data where it waits longest."""
    rows = [state.table.index[placed.node] for placed in pods]
    seconds = float(view.stall_s[state.warm.domain_of[rows]].max(initial=0.0))
    return seconds if math.isfinite(seconds) else 0.0


THE_GROUP = "the rest of the group"


def data_key(state: State, job: Job, shape: Shape) -> tuple[int, frozenset[tuple[str, float]]]:
    """What jobs have in common that may run on the same nodes because of their data."""
    return id(shape), frozenset((need.dataset, need.min_warm) for need in state.warm.required(job, state.now))


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
    reason = f"{what} to queue {excess.queue!r} of its own and to borrow"
    return Refusal("quota", reason, "jobs of the tree to end", resource=excess.resource)
