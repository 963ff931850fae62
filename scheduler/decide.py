"""The scheduler's core: a snapshot of the cluster in, decisions with reasons out. No clock, no I/O, no Kubernetes.

    from forebay.scheduler.decide import decide, advance
    from forebay.scheduler.model import Node, Queue, Snapshot
    decisions = decide(Snapshot(now=0.0, nodes=..., queues=..., waiting=..., running=...))

`decide` looks at one snapshot. Who follows a cluster keeps a `state.State`, tells it what happens (`submit`, `finish`,
`bound`, `requeue`, ...) and calls `advance(state, now)`: the same decisions, without building arrays of all nodes anew.
Admissions are applied to the state at once; evictions are remembered, and the victims' room counts when `finish` or
`requeue` says that it is free.

One pass: give up and release what is overdue; find pods anew that gangs have lost; then, job by job in the order of
`turns`, quota, data and room; then victims for the first jobs that were refused, whom those make way for that the same
pass has admitted, as if they had not been; further pods for elastic jobs; then what to load ahead. Many jobs of one
queue are admitted in one pass.
"""

import heapq
from dataclasses import dataclass, field, replace
from itertools import islice

from forebay.scheduler import gang
from forebay.scheduler.admission import ENDS, Admitter
from forebay.scheduler.backfill import shadow
from forebay.scheduler.decisions import Admission, Decisions, Eviction, GivenUp, Growth, Release, Shrink
from forebay.scheduler.explain import explain
from forebay.scheduler.growth import grow, repair
from forebay.scheduler.impossible import impossible
from forebay.scheduler.model import Snapshot
from forebay.scheduler.pending import JobClass, PendingQueue, Rank
from forebay.scheduler.preemption import Room, make_room, mark
from forebay.scheduler.prefetch import plan
from forebay.scheduler.refusals import Refusal
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State
from forebay.scheduler.turns import Lane, Turn, Turns, lanes_of
from forebay.scheduler.victims import Known


def decide(snapshot: Snapshot, settings: Settings | None = None) -> Decisions:
    """What should happen now.

    Raises:
        ValueError: the snapshot contradicts itself.
    """
    return advance(State(snapshot, settings), snapshot.now)


def advance(
    state: State, now: float, explained: bool = True, prefetches: bool = True, preempts: bool = True
) -> Decisions:
    """One pass at the time `now`. What it may leave out need not be done in every pass of a large cluster.

    Args:
        explained: fill in `Decisions.waits`; it costs as much as there are waiting jobs.
        prefetches: fill in `Decisions.prefetches`.
        preempts: look for victims.
    """
    state.now = now
    state.placer.explains = explained
    found = _Pass(state)
    found.overdue()
    found.admit()
    if preempts and state.settings.preemption:
        found.preempt()
    if state.settings.growth:
        found.grow()
    cares = prefetches and (state.settings.prefetch or state.settings.warm_gate)
    loads = plan(state) if cares else None
    return Decisions(
        admissions=tuple(found.admissions),
        evictions=tuple(found.evictions),
        shrinks=tuple(found.shrinks),
        growths=tuple(found.growths),
        releases=tuple(found.releases),
        given_up=tuple(found.given_up),
        prefetches=loads or (),
        holds=tuple(state.holds[name] for name in sorted(state.holds)),
        waits=explain(state, found.refusals, found.no_room, loads) if explained else (),
    )


@dataclass(eq=False)
class _Pass:
    """The decisions of one pass while they are made."""

    state: State
    admissions: list[Admission] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    shrinks: list[Shrink] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    """By job, of this pass."""
    no_room: dict[int, Refusal] = field(default_factory=dict)
    """By shape, of this pass: none of it finds room any more."""

    def overdue(self) -> None:
        """Time has passed: jobs that did not bind, have waited too long, or may be tried again."""
        state = self.state
        state.expire()
        late = gang.unbound((state.running[name].running for name in state.unbound), state.now, state.settings)
        short = gang.short((state.running[name].running for name in state.short), state.now, state.settings)
        for one in (*late, *short):
            if one.job not in state.running:
                continue  # it went with another one of its group
            group = state.running[one.job].job.group
            names = sorted(name for name in state.groups[group] if name in state.running) if group else [one.job]
            for name in names:
                if isinstance(one, Release):
                    state.requeue(name, one.retries, one.not_before)
                    self.releases.append(replace(one, job=name))
                else:
                    state.finish(name)
                    self.given_up.append(replace(one, job=name))
        self._ungrow()
        while state.deadlines and state.deadlines[0][0] <= state.now:
            _, name = heapq.heappop(state.deadlines)
            job = state.waiting.get(name)
            if job is None:
                continue
            if job.wait_until is not None and job.wait_until <= state.now:
                state.withdraw(name)
                self.given_up.append(GivenUp(name, f"waited longer than {job.max_wait_s:g} s"))
            else:
                state.queues[job.queue].ungate(job, state.shape(job))
        for name in [name for name, job in state.later.items() if job.not_before <= state.now]:
            job = state.later.pop(name)
            state.queues[job.queue].add(job, state.shape(job))
        state.data_changed()

    def _ungrow(self) -> None:
        """Further pods that did not bind in time are given back, and nothing else of their jobs."""
        state = self.state
        for name in sorted(state.growing):
            running = state.running[name].running
            if running.grow_by is None or state.now < running.grow_by or running.evicted_for is not None:
                continue
            shrink = Shrink(name, "", running.growing, state.now + state.settings.backoff_s)
            mark(state, shrink)
            self.shrinks.append(shrink)

    def admit(self) -> None:
        state = self.state
        state.refresh_mix()
        self.growths += repair(state)
        self._admitter = Admitter(state)
        self._turns = Turns(state.quota, state.settings, self._gates, lambda one: id(one.shape) in self.no_room)
        self._waited: set[str] = set()
        self._has_data: set[str] = set()
        for queue in state.queues.values():
            for gated in [*queue.gated] if queue.blocks else ():
                job = state.waiting[gated]
                if impossible(state, job) is not None:
                    queue.ungate(job, state.shape(job))  # it has no turn, and blocks nobody
            if queue.order:
                classes = self._open_classes(queue)
                for lane in lanes_of(queue, classes, self._hopeless, self._never, state.rivals):
                    self._turns.add(lane)
        while (turn := self._turns.next()) is not None:
            self._try(turn)
        for holder in [name for name in state.holds if name not in self._waited and not state.victims.get(name)]:
            state.lift(holder)
        del self._turns  # they know this pass: no cycle of objects is to wait for the collector

    def _gates(self, rank: Rank, job_class: JobClass) -> bool:
        state, name = self.state, rank[2]
        if name in self._has_data:
            return False
        job = state.waiting[name]
        if state.warm.lacks(job, state.now):
            state.queues[job.queue].gate(job, job_class.shape)
            return True
        self._has_data.add(name)
        return False

    def _open_classes(self, queue: PendingQueue) -> list[JobClass]:
        if any(node.queue.max_jobs is not None and node.jobs >= node.queue.max_jobs for node in queue.node.path()):
            return []
        return queue.candidates(self.state.quota.available(queue.node))

    def _never(self, one: JobClass) -> bool:
        return impossible(self.state, self.state.waiting[one.head[2]]) is not None

    def _hopeless(self, one: JobClass) -> bool:
        """Whether none of these jobs can find room in this pass.

        They have no turn then, so that they do not decide when their queue has its. What is remembered of earlier
        passes must not show in it: who starts anew from a snapshot is to decide the same.
        """
        shape = id(one.shape)
        if shape not in self.no_room and (room := self._admitter.crowded(one.shape)) is not None:
            self.no_room[shape] = Refusal("gang", room.reason, ENDS)
        return shape in self.no_room

    def _try(self, turn: Turn) -> None:
        state = self.state
        job = state.waiting[turn.rank[2]]
        outcome = self._admitter.attempt(job, turn.lane.backfills)
        if isinstance(outcome, Refusal):
            self.refusals[job.name] = outcome
            self._refused(turn, outcome)
            return
        self.admissions += outcome
        for admission in outcome:
            live = state.running[admission.job]
            use = live.shape.gpus * state.settings.entry_penalty
            for node in live.leaf.path():
                self._turns.penalty[node.name] = self._turns.penalty.get(node.name, 0.0) + use
            if job.group is not None:
                self._turns.changed(live.leaf)
        if job.group is None:
            self._turns.went_on(turn.lane)

    def _refused(self, turn: Turn, refusal: Refusal) -> None:
        state, lane = self.state, turn.lane
        queue = lane.queue
        if refusal.scope == "shape" and refusal.stage in ("gang", "topology"):
            self.no_room[id(turn.job_class.shape)] = refusal
        policy = queue.node.queue.policy
        if lane.yields:
            self._pass_over(lane, refusal)
            return
        self._turns.drop(lane)
        if policy == "block":
            root = [*queue.node.path()][-1]
            self._admitter.blocked_lenders.add(root.name)
        if policy in ("fifo", "block") and refusal.stage in ("gang", "topology") and state.settings.backfill:
            self._hold(turn, policy == "fifo")

    def _pass_over(self, lane: Lane, refusal: Refusal) -> None:
        lane.skip += 1
        if refusal.scope == "shape" or lane.skip >= self.state.settings.class_tries:
            self._turns.drop(lane)
        else:
            self._turns.went_on(lane)

    def _hold(self, turn: Turn, backfills: bool) -> None:
        """Nodes for a job that waits at the front; with `backfills` those behind it go on around them."""
        state, name = self.state, turn.rank[2]
        self._waited.add(name)
        hold = state.holds.get(name)
        if name in state.victims:
            pass  # it is decided where it will run
        elif hold is None or hold.start <= state.now:
            hold = shadow(state, state.waiting[name])
            state.lift(name)
            if hold is None:
                return
            state.holds[name] = hold
        if backfills:
            for one in turn.lane.classes:
                if one.ranks and not self._hopeless(one):
                    self._turns.add(Lane(turn.lane.queue, [one], 1 if one is turn.job_class else 0, True))

    def preempt(self) -> None:
        """Victims for the first jobs of each queue that were refused, one after the other."""
        state = self.state
        known: Known = {}
        for name in sorted(state.queues):
            # Who has victims already, or could not run in an empty cluster either, is not to use up the tries.
            able = (job for job in state.ready(name) if not state.awaited(job) and impossible(state, job) is None)
            for job in [*islice(able, state.settings.preempt_tries)]:
                if state.awaited(job):
                    continue
                found = make_room(state, job, known, self._admitter.may_borrow(state.quota.nodes[name]))
                if found is not None:
                    self._make_way(found)

    def _make_way(self, room: Room) -> None:
        """Victims go. Those that were admitted in this very pass have not been told: they wait on as if they had not
        been, or start with fewer pods, and if there are no others, the job for which they make way starts at once."""
        state = self.state
        admitted = {admission.job for admission in self.admissions}
        back = [eviction for eviction in room.evictions if eviction.job in admitted]
        fewer = [shrink for shrink in room.shrinks if shrink.job in admitted]
        self.evictions += [eviction for eviction in room.evictions if eviction.job not in admitted]
        self.shrinks += [shrink for shrink in room.shrinks if shrink.job not in admitted]
        for one in back:
            state.take_back(one.job)
            self.refusals[one.job] = Refusal("gang", f"job {one.for_job!r} may take what is left", ENDS, "job")
        for shrink in fewer:
            state.shrunk(shrink.job)
        gone = {one.job for one in back}
        self.admissions = [self._as_it_is(admission) for admission in self.admissions if admission.job not in gone]
        made: list[Eviction | Shrink] = [*back, *fewer]
        if made and made[0].for_job not in state.victims:
            job = state.waiting[made[0].for_job]
            self._admitter.entitle(job)
            outcome = self._admitter.attempt(job)
            if not isinstance(outcome, Refusal):
                self.admissions += outcome

    def _as_it_is(self, admission: Admission) -> Admission:
        """As it is after other decisions of this pass."""
        live = self.state.running[admission.job]
        if live.running.pods == admission.pods:
            return admission
        return replace(admission, pods=live.running.pods, borrows=live.leaf.above_min(live.charged))

    def grow(self) -> None:
        """What is left goes to elastic jobs."""
        self.growths += grow(self.state, self._admitter.blocked_lenders)
