"""The cluster at work: a snapshot in arrays, kept up to date by events.

`State(snapshot)` and a State that has seen events up to the same moment decide alike: nothing is in here that is not in
the snapshot, but answers that could be computed again.
"""

import heapq
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace

from forebay.scheduler.cards import choose_cards
from forebay.scheduler.jobs import Job, PlacedPods, counts_of, joined, without
from forebay.scheduler.live import EndTable, Live
from forebay.scheduler.losses import LossTable
from forebay.scheduler.model import CARD, Hold, RunningJob, Snapshot
from forebay.scheduler.nodes import Demand, NodeTable
from forebay.scheduler.pending import Kind, NotYet, PendingQueue, Shape, amounts_of, shape_key, weight_of
from forebay.scheduler.placement import Placer
from forebay.scheduler.quota import QuotaTree, Vector
from forebay.scheduler.refusals import Refusal
from forebay.scheduler.reserved import Held, remainder
from forebay.scheduler.rivals import Rivals
from forebay.scheduler.settings import Settings
from forebay.scheduler.warmth import WarmTable


class State:
    """Everything that a decision looks at.

    Raises:
        ValueError: the snapshot contradicts itself; the message says where.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.now = snapshot.now
        self.table = NodeTable(snapshot.nodes, snapshot.levels)
        self.quota = QuotaTree(snapshot.queues, self.table.totals())
        self.warm = WarmTable(self.table, snapshot, self.settings)
        self._charges_data = bool({"cache", "bandwidth"} & {*self.quota.resources})
        self._policies = sorted(snapshot.policies, key=lambda policy: policy.name)
        self._reservations = sorted(snapshot.reservations, key=lambda reservation: reservation.name)
        self.queues = {
            name: PendingQueue(node, self.settings) for name, node in self.quota.nodes.items() if not node.children
        }
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, Live] = {}
        self.ends = EndTable(self.table)
        self.by_leaf: dict[str, dict[str, Live]] = {name: {} for name in self.queues}
        """The running jobs of each queue."""
        self.priorities: dict[str, Counter[tuple[int, bool]]] = {name: Counter() for name in self.queues}
        """How many they are, by priority and whether they are elastic."""
        self.later: dict[str, Job] = {}
        """Waiting jobs that are not tried yet: backoff."""
        self.foreign: dict[str, Job] = {}
        """Waiting jobs that gates of others hold."""
        self.groups: dict[str, set[str]] = {}
        """Waiting and running jobs by group of gangs."""
        self.done: dict[str, set[str]] = {group: {*names} for group, names in snapshot.done.items()}
        """By group of gangs, its jobs that have ended well."""
        self.short: set[str] = set()
        """Running jobs with fewer pods than they may have."""
        self.growing: set[str] = set()
        """Running jobs of whose further pods not all are bound yet."""
        self.evicted: set[str] = set()
        """Running jobs of which all or some pods have to go."""
        self.unbound: set[str] = set()
        """Running jobs whose pods are not all bound yet."""
        self.impossible: dict[tuple[int, str], tuple[int, Refusal | None]] = {}
        """Why jobs of a shape and a queue can never start, with `NodeTable.eligibility`."""
        self.victims: dict[str, set[str]] = {}
        """By the job that they make room for, those who have to go and are still there."""
        self.holds: dict[str, Hold] = {hold.job: hold for hold in snapshot.holds}
        self.deadlines: list[tuple[float, str]] = []
        """Heap of the times at which waiting jobs are given up or do not wait for data any more."""
        self.refusals: dict[Kind, NotYet] = {}
        """What has found no room."""
        self.epoch = 0
        """Grows whenever holds are lifted: what was refused because of them may fit now."""
        self._shapes: dict[object, Shape] = {}
        self._shape_of: dict[str, tuple[Job, Shape]] = {}
        self._mix: dict[tuple[int, int], int] = {}
        self.rivals = Rivals(self.table)
        self.losses = LossTable(self.table, self.settings)
        self.placer = Placer(self.table, self.losses, self.settings)
        for running in sorted(snapshot.running, key=lambda one: one.job.name):
            self.start(running)
        self.held = self._held(snapshot)
        self.expire()
        for job in sorted(snapshot.waiting, key=lambda one: one.name):
            self.submit(job)

    # Events

    def submit(self, job: Job) -> None:
        """A job waits from now on.

        Raises:
            ValueError: one of that name is there, its queue is no leaf, or its dataset or level is not known.
        """
        if job.name in self.waiting or job.name in self.running:
            raise ValueError(f"two jobs are named {job.name!r}")
        self.quota.leaf(job.queue)
        shape = self.shape(job)
        for need in job.data:
            self.warm.size(need.dataset)
        for pod_set in job.pod_sets:
            topology = pod_set.topology
            for level in (topology.required, topology.preferred, topology.slice_level, topology.apart):
                if level is not None:
                    self.table.depth(level)
        self.waiting[job.name] = job
        self._count(job, 1)
        if job.group is not None:
            self.groups.setdefault(job.group, set()).add(job.name)
        for time in [*(need.deadline for need in job.data), job.wait_until]:
            if time is not None:
                heapq.heappush(self.deadlines, (time, job.name))
        if job.gates:
            self.foreign[job.name] = job
        elif job.not_before > self.now:
            self.later[job.name] = job
        else:
            self.queues[job.queue].add(job, shape)

    def withdraw(self, name: str) -> None:
        """A waiting job is gone."""
        job = self.waiting.pop(name)
        self._leave_queue(job)
        self._forget(job)

    def _leave_queue(self, job: Job) -> None:
        if self.foreign.pop(job.name, None) is None and self.later.pop(job.name, None) is None:
            self.queues[job.queue].remove(job, self.shape(job))
        self.lift(job.name)

    def _forget(self, job: Job) -> None:
        self._count(job, -1)
        self._shape_of.pop(job.name, None)
        if job.group is not None:
            self.groups[job.group].discard(job.name)

    def finish(self, name: str, done: bool = False) -> None:
        """A running job has ended (well: `done`), or its pods are gone: its room is free."""
        live = self.running[name]
        self.stop(name)
        self._forget(live.job)
        if done and live.job.group is not None:
            self.done.setdefault(live.job.group, set()).add(name)

    def missing(self, job: Job) -> int:
        """How many jobs its group of gangs lacks to be complete; those that gates of others hold are not there."""
        if job.group is None:
            return 0
        there = self.groups[job.group] - self.foreign.keys() | self.done.get(job.group, set())
        return max(0, job.group_size - len(there))

    def ready(self, queue: str) -> Iterator[Job]:
        """The waiting jobs of a queue that do not lack data, in order."""
        jobs = (self.waiting[rank[2]] for rank in self.queues[queue].order)
        return (job for job in jobs if not job.data or not self.warm.lacks(job, self.now))

    def needed(self, job: Job) -> int:
        """How many jobs of its group of gangs must start for this one to start; 1 if it has none."""
        if job.group is None:
            return 1
        running = sum(1 for name in self.groups[job.group] if name in self.running)
        return max(1, job.group_size - running - len(self.done.get(job.group, ())))

    def members(self, job: Job) -> list[Job]:
        """The jobs of its group of gangs that wait and may be tried now, the first in rank first."""
        if job.group is None:
            return [job]
        names = self.groups[job.group] & self.waiting.keys() - self.foreign.keys() - self.later.keys()
        return sorted(
            (self.waiting[name] for name in names), key=lambda one: (self.queues[one.queue].rank(one), one.name)
        )

    def requeue(self, name: str, retries: int = 0, not_before: float = 0.0) -> None:
        """A running job's pods are gone, and it waits again, in its old place."""
        running = self.running[name].running
        job = self.running[name].job
        since = self.now if running.bound else job.waits_since  # what never ran has waited on
        self.finish(name)
        self.submit(replace(job, retries=retries, not_before=not_before, waits_since=since))

    def take_back(self, name: str) -> None:
        """A job that was admitted in this pass is not to start after all: it waits on as if it had not been."""
        live = self.stop(name, undone=True)
        self._forget(live.job)
        self.submit(live.job)

    def bound(self, name: str) -> None:
        """All pods of an admitted job are bound."""
        live = self.running[name]
        live.running = replace(live.running, bound=True, bind_by=None, growing=(), grow_by=None)
        self.unbound.discard(name)
        self.growing.discard(name)

    def checkpoint(self, name: str, time: float) -> None:
        """A running job has saved its work."""
        live = self.running[name]
        live.running = replace(live.running, checkpointed=time)

    def set_usage(self, queue: str, usage: float) -> None:
        """The historic use of a queue (inner or leaf) is another one: it decays, and what runs adds to it.

        Raises:
            ValueError: there is no such queue.
        """
        node = self.quota.nodes.get(queue)
        if node is None:
            raise ValueError(f"no queue is named {queue!r}; there are {', '.join(sorted(self.quota.nodes)) or 'none'}")
        node.queue = replace(node.queue, usage=usage)

    def shrunk(self, name: str) -> None:
        """The pods that had to leave a running job are gone."""
        running = self.running[name].running
        left = without(running.pods, running.leaving)
        growing = without(running.growing, running.leaving)
        self._change(replace(running, pods=left, growing=growing, leaving=(), evicted_for=None))

    def lost(self, name: str, pods: Iterable[PlacedPods]) -> None:
        """Pods of a running job are gone, and not because it was to give them up: their node failed, maybe."""
        gone = tuple(pods)
        running = self.running[name].running
        left = without(running.pods, gone)
        self._change(replace(running, pods=left, growing=without(running.growing, gone)))

    def grow(self, name: str, pods: Iterable[PlacedPods], bind_by: float) -> None:
        """A running job gets further pods, whose room is taken already."""
        live, more = self.discard(name), tuple(pods)
        running = live.running
        running = replace(running, pods=joined(running.pods, more), growing=more, grow_by=bind_by)
        self.occupy(replace(running, short_since=self._short_since(running)), in_table=False)
        self.count_reserved(running.reservations, in_table=True)

    def _change(self, running: RunningJob) -> None:
        """A running job has other pods than before."""
        self.stop(running.job.name)
        self.occupy(replace(running, short_since=self._short_since(running)), in_table=True)
        self.count_reserved(running.reservations, in_table=True)

    def _short_since(self, running: RunningJob) -> float | None:
        counts = counts_of(running.job, running.pods)
        if all(count >= pod_set.least for count, pod_set in zip(counts, running.job.pod_sets, strict=True)):
            return None
        return self.now if running.short_since is None else running.short_since

    # What events are made of

    def start(self, running: RunningJob) -> None:
        """A job runs; its room and quota are taken. Cards of pods that do not say which are chosen.

        Pods on nodes that are not there are lost.
        """
        job = running.job
        if any(placed.node not in self.table.index for placed in running.pods):
            there = tuple(placed for placed in running.pods if placed.node in self.table.index)
            running = replace(running, pods=there)
        running = replace(running, short_since=self._short_since(running))
        if job.name in self.running:
            raise ValueError(f"two jobs are named {job.name!r}")
        running = self._with_cards(running)
        self.occupy(running, True)
        self._count(job, 1)
        if job.group is not None:
            self.groups.setdefault(job.group, set()).add(job.name)

    def _with_cards(self, running: RunningJob) -> RunningJob:
        """The job with cards for all pods that ask for some."""
        pods: list[PlacedPods] = []
        with self.table.trial():
            for placed, demand in self.shape(running.job).pods(running.pods):
                row = self.table.index.get(placed.node)
                if demand.gpus is None or placed.cards or row is None:
                    pods.append(placed)
                    continue
                chosen = []
                for _ in range(placed.count):
                    cards = choose_cards(self.table, row, demand, "binpack", None)
                    if not cards:
                        raise ValueError(f"job {running.job.name!r}: no cards are left on node {placed.node!r} for it")
                    self.table.take(row, demand, cards)
                    chosen.append(cards)
                pods.append(replace(placed, cards=tuple(chosen)))
        return replace(running, pods=tuple(pods))

    def occupy(self, running: RunningJob, in_table: bool) -> Live:
        """Record a job as running; `in_table`: the room of its pods is not taken yet."""
        job = running.job
        leaf, shape = self.quota.leaf(job.queue), self.shape(job)
        counts = counts_of(job, running.pods)
        live = Live(running, shape, leaf, self.charge(job, counts))
        self.ends.add(live)
        self.warm.read(job, self._rows(running.pods), 1)
        self.quota.take(leaf, live.charged)
        if not job.preemptible:
            self.quota.firmly(leaf, live.charged, 1)
        if in_table:
            self.change_pods(shape, running.pods, 1)
        self.running[job.name] = self.by_leaf[leaf.name][job.name] = live
        self.priorities[leaf.name][job.priority, shape.elastic] += 1
        if not running.bound:
            self.unbound.add(job.name)
        if any(count < pod_set.count for count, pod_set in zip(counts, job.pod_sets, strict=True)):
            self.short.add(job.name)
        if running.growing:
            self.growing.add(job.name)
        if running.evicted_for is not None:
            self.evicted.add(job.name)
        if running.evicted_for:
            self.victims.setdefault(running.evicted_for, set()).add(job.name)
        return live

    def stop(self, name: str, undone: bool = False) -> Live:
        """The opposite of `occupy`; `undone`: reservations are as if it had never been there."""
        live = self.discard(name)
        self.change_pods(live.shape, live.running.pods, -1)
        self.count_reserved(live.running.reservations, in_table=True, undone=undone)
        if live.running.evicted_for and (others := self.victims.get(live.running.evicted_for)):
            others.discard(name)
            if not others:
                del self.victims[live.running.evicted_for]
        return live

    def discard(self, name: str) -> Live:
        """A running job's record and quota are gone; what becomes of its room is the caller's affair."""
        live = self.running.pop(name)
        for names in (self.unbound, self.short, self.growing, self.evicted):
            names.discard(name)
        del self.by_leaf[live.leaf.name][name]
        self.priorities[live.leaf.name][live.job.priority, live.shape.elastic] -= 1
        self.ends.remove(live)
        self.warm.read(live.job, self._rows(live.running.pods), -1)
        self.quota.give(live.leaf, live.charged)
        if not live.job.preemptible:
            self.quota.firmly(live.leaf, live.charged, -1)
        return live

    def data_changed(self) -> None:
        """Who waits for data of which more or less is cached by now is looked at again, and what it is charged."""
        changed = self.warm.changed
        for queue in self.queues.values() if changed else ():
            for name in [*queue.gated]:
                job = self.waiting[name]
                if any(need.dataset in changed for need in job.data):
                    queue.ungate(job, self.shape(job))
        if changed and self._charges_data:
            self._recharge(changed)
        changed.clear()

    def _recharge(self, changed: Container[str]) -> None:
        for job in self.waiting.values():
            if not any(need.dataset in changed for need in job.data):
                continue
            waits = job.name not in self.later and job.name not in self.foreign
            if waits:
                self.queues[job.queue].remove(job, self.shape(job))
            del self._shape_of[job.name]
            if waits:
                self.queues[job.queue].add(job, self.shape(job))
        for live in self.running.values():
            if any(need.dataset in changed for need in live.job.data):
                del self._shape_of[live.job.name]
                live.shape = self.shape(live.job)
                now = self.charge(live.job, counts_of(live.job, live.running.pods))
                change = [new - old for new, old in zip(now, live.charged, strict=True)]
                self.resize(live, change, 1)
                live.charged = now
        # What is known by the identity of a shape goes with it.
        used = {id(shape) for _, shape in self._shape_of.values()}
        self._shapes = {key: shape for key, shape in self._shapes.items() if id(shape) in used}
        self.refusals = {key: seen for key, seen in self.refusals.items() if key[0] in used}
        self.impossible = {key: found for key, found in self.impossible.items() if key[0] in used}

    def resize(self, live: Live, amounts: Vector, sign: int) -> None:
        """A running job uses so much more (1) or less (-1) of its quota; what it is charged is the caller's affair."""
        self.quota.resize(live.leaf, amounts, sign)
        if not live.job.preemptible:
            self.quota.firmly(live.leaf, amounts, sign)

    def _rows(self, pods: Iterable[PlacedPods]) -> list[int]:
        return [self.table.index[placed.node] for placed in pods if placed.node in self.table.index]

    def change_pods(self, shape: Shape, pods: Iterable[PlacedPods], sign: int) -> None:
        """Take (1) or give back (-1) the room of pods. Nodes that are not there any more are passed over."""
        change = self.table.take if sign > 0 else self.table.give
        for placed, demand in shape.pods(pods):
            row = self.table.index.get(placed.node)
            if row is None:
                continue
            if placed.cards:
                for cards in placed.cards:
                    change(row, demand, cards)
            else:
                change(row, demand, (), placed.count)

    def leaving(self, live: Live) -> tuple[tuple[PlacedPods, ...], Vector]:
        """Pods of a victim that have to go, and the quota that they give back; nothing of one that stays."""
        running = live.running
        if running.evicted_for is None:
            return (), [0] * len(live.charged)
        if running.ending:
            return running.pods, live.charged
        left = self.charge(live.job, counts_of(live.job, without(running.pods, running.leaving)))
        return running.leaving, [before - after for before, after in zip(live.charged, left, strict=True)]

    def shape(self, job: Job) -> Shape:
        """The one of all jobs that ask for the same, and may go to the same nodes."""
        known = self._shape_of.get(job.name)
        if known is not None and known[0] is job:
            return known[1]
        data = tuple(self.warm.amounts(job, weight_of(job)).items()) if self._charges_data else ()
        owns = tuple(reservation.name for reservation in self._reservations if reservation.owned_by(job))
        policy = next((policy for policy in self._policies if policy.concerns(job)), None)
        key = (shape_key(job), job.preemptible, data, owns, None if policy is None else policy.name)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = Shape(
                job,
                tuple(Demand.of(pod_set) for pod_set in job.pod_sets),
                self.charge(job, [pod_set.count for pod_set in job.pod_sets]),
                self.charge(job, [pod_set.least for pod_set in job.pod_sets]),
                weight_of(job),
                policy,
                owns,
            )
        self._shape_of[job.name] = (job, found)
        return found

    def charge(self, job: Job, counts: Sequence[int]) -> Vector:
        """Quota of so many pods of each set."""
        amounts = amounts_of(job, counts, self.table.least_memory)
        return self.quota.vector({**amounts, **self.warm.amounts(job, weight_of(job))})

    def lift(self, name: str) -> None:
        """A hold is not needed any more."""
        if self.holds.pop(name, None) is not None:
            self.epoch += 1

    def _count(self, job: Job, sign: int) -> None:
        """The mix of requests by which fragments are measured: all jobs that wait or run."""
        for pod_set in job.pod_sets:
            if pod_set.gpus is not None and pod_set.gpus.compute_milli:
                key = (pod_set.gpus.cards, pod_set.gpus.compute_milli)
                self._mix[key] = self._mix.get(key, 0) + sign * pod_set.count

    def awaited(self, job: Job) -> bool:
        """Whether victims leave for the job or its group."""
        return bool(self.victims) and any(self.victims.get(member.name) for member in self.members(job))

    def refresh_mix(self) -> None:
        """Once for each pass: the mix of requests as it is now, in 64ths, so that it changes seldom."""
        total = sum(self._mix.values())
        classes: dict[tuple[int, int], float] = {}
        if self.settings.shared_cards == "fgd" and any(
            milli < CARD and count for (_, milli), count in self._mix.items()
        ):
            classes = {key: parts / 64 for key, count in self._mix.items() if (parts := round(64 * count / total))}
        self.losses.set_mix(classes)

    def _held(self, snapshot: Snapshot) -> dict[str, Held]:
        held: dict[str, Held] = {}
        for reservation in sorted(snapshot.reservations, key=lambda one: one.name):
            users = [live for live in self.running.values() if reservation.name in live.running.reservations]
            if reservation.node not in self.table.index:
                continue
            left = remainder(reservation, users)
            row = self.table.index[reservation.node]
            held[reservation.name] = Held(reservation, row, left[0], left[1])
            self.table.take(row, left[0], left[1])
        return held

    def expire(self) -> None:
        """Reservations whose time is over are free."""
        for name, held in [*self.held.items()]:
            if held.reservation.expires is not None and held.reservation.expires <= self.now:
                self.table.give(held.row, held.demand, held.cards)
                del self.held[name]

    def count_reserved(self, names: Iterable[str], in_table: bool, undone: bool = False) -> None:
        """What is left of reservations when jobs have come or gone; `in_table`: the table does not know yet."""
        for name in names:
            held = self.held.get(name)
            if held is None:
                continue
            users = [live for live in self.running.values() if name in live.running.reservations]
            if held.reservation.once and not users and in_table and not undone:
                continue  # its one job is gone: it stays used up
            left = remainder(held.reservation, users)
            held.leave(self.table if in_table else None, left)
