"""A cluster that lives: a snapshot to which decisions and events are applied, and a State that is told of the same."""

from dataclasses import replace
from typing import Any

from forebay.scheduler.decisions import Decisions
from forebay.scheduler.jobs import Job, counts_of, joined, without
from forebay.scheduler.model import RunningJob, Snapshot
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State


class Life:
    """Every event is put into words twice: as another snapshot, and as a call of the State."""

    def __init__(self, snapshot: Snapshot, settings: Settings | None = None) -> None:
        self.snapshot = snapshot
        self.state = State(snapshot, settings)

    def _put(self, one: RunningJob | None, name: str) -> None:
        others = tuple(other for other in self.snapshot.running if other.job.name != name)
        self.snapshot = replace(self.snapshot, running=others if one is None else (*others, one))

    def running(self, name: str) -> RunningJob:
        return next(one for one in self.snapshot.running if one.job.name == name)

    def carry_out(self, decisions: Decisions) -> None:
        """What an adapter reports once it has acted; the State knows."""
        now = self.snapshot.now
        for released in decisions.releases:
            one = self.running(released.job)
            job = replace(
                one.job, retries=released.retries, not_before=released.not_before, waits_since=self._waits_since(one)
            )
            self._put(None, released.job)
            self.snapshot = replace(self.snapshot, waiting=(*self.snapshot.waiting, job))
        for given_up in decisions.given_up:
            self._put(None, given_up.job)
        jobs = {job.name: job for job in self.snapshot.waiting}
        gone = {one.job for one in (*decisions.admissions, *decisions.given_up)}
        for one in decisions.admissions:
            started = RunningJob(
                jobs[one.job], now, one.pods, False, one.bind_by, reservations=one.reservations, load_s=one.load_s
            )
            self._put(started, one.job)
        for growth in decisions.growths:
            grown = self.running(growth.job)
            pods = joined(grown.pods, growth.pods)
            grown = replace(grown, pods=pods, growing=growth.pods, grow_by=growth.bind_by)
            self._put(replace(grown, short_since=self._since(grown)), growth.job)
        for shrink in decisions.shrinks:
            shrunk = replace(self.running(shrink.job), evicted_for=shrink.for_job, leaving=shrink.pods)
            self._put(replace(shrunk, grow_after=max(shrink.grow_after, shrunk.grow_after)), shrink.job)
        for eviction in decisions.evictions:
            self._put(replace(self.running(eviction.job), evicted_for=eviction.for_job), eviction.job)
        waiting = tuple(job for job in self.snapshot.waiting if job.name not in gone)
        self.snapshot = replace(self.snapshot, waiting=waiting, holds=decisions.holds)

    def _since(self, one: RunningJob) -> float | None:
        """Since when it has fewer pods than its least."""
        counts = counts_of(one.job, one.pods)
        if all(count >= pod_set.least for count, pod_set in zip(counts, one.job.pod_sets, strict=True)):
            return None
        return self.state.now if one.short_since is None else one.short_since

    def _waits_since(self, one: RunningJob) -> float | None:
        """Of a job that waits again: what never ran has waited on."""
        return self.state.now if one.bound else one.job.waits_since

    def submit(self, job: Job) -> None:
        self.state.submit(job)
        self.snapshot = replace(self.snapshot, waiting=(*self.snapshot.waiting, job))

    def withdraw(self, name: str) -> None:
        self.state.withdraw(name)
        waiting = tuple(job for job in self.snapshot.waiting if job.name != name)
        holds = tuple(hold for hold in self.snapshot.holds if hold.job != name)
        self.snapshot = replace(self.snapshot, waiting=waiting, holds=holds)

    def finish(self, name: str) -> None:
        """It has ended well."""
        self.state.finish(name, done=True)
        group = self.running(name).job.group
        if group is not None:
            done = {**self.snapshot.done, group: (*self.snapshot.done.get(group, ()), name)}
            self.snapshot = replace(self.snapshot, done=done)
        self._put(None, name)

    def leave(self, name: str) -> None:
        """A victim is gone: the whole job, or the pods that had to go."""
        one = self.running(name)
        if one.ending:
            self.state.requeue(name)
            job = replace(one.job, retries=0, not_before=0.0, waits_since=self._waits_since(one))
            self._put(None, name)
            self.snapshot = replace(self.snapshot, waiting=(*self.snapshot.waiting, job))
        else:
            self.state.shrunk(name)
            left, growing = without(one.pods, one.leaving), without(one.growing, one.leaving)
            one = replace(one, pods=left, growing=growing, leaving=(), evicted_for=None)
            self._put(replace(one, short_since=self._since(one)), name)

    def lose(self, name: str) -> None:
        """The last pods of a job are gone."""
        one = self.running(name)
        gone = one.pods[-1:]
        self.state.lost(name, gone)
        left = without(one.pods, gone)
        one = replace(one, pods=left, growing=without(one.growing, gone))
        self._put(replace(one, short_since=self._since(one)), name)

    def bound(self, name: str) -> None:
        self.state.bound(name)
        self._put(replace(self.running(name), bound=True, bind_by=None, growing=(), grow_by=None), name)

    def save(self, name: str) -> None:
        self.state.checkpoint(name, self.snapshot.now)
        self._put(replace(self.running(name), checkpointed=self.snapshot.now), name)

    def load(self, dataset: str, warm: dict[str, int]) -> None:
        self.state.warm.set_warm(dataset, warm)
        datasets = tuple(replace(one, warm=warm) if one.name == dataset else one for one in self.snapshot.datasets)
        self.snapshot = replace(self.snapshot, datasets=datasets)

    def use(self, queue: str, usage: float) -> None:
        """Of a queue, as history has it."""
        self.state.set_usage(queue, usage)
        queues = tuple(replace(one, usage=usage) if one.name == queue else one for one in self.snapshot.queues)
        self.snapshot = replace(self.snapshot, queues=queues)

    def cordon(self, name: str, ready: bool) -> None:
        self.state.table.set_ready(self.state.table.index[name], ready)
        nodes = tuple(replace(node, ready=ready) if node.name == name else node for node in self.snapshot.nodes)
        self.snapshot = replace(self.snapshot, nodes=nodes)

    def happen(self, rng: Any, number: int, job: Job) -> None:
        """Some of all that can happen."""
        names = [one.job.name for one in self.snapshot.running]
        for name in names:
            one = self.running(name)
            if one.evicted_for is not None:
                if rng.random() < 0.5:
                    self.leave(name)
            elif not one.bound or one.growing:
                if rng.random() < 0.8:
                    self.bound(name)
            else:
                what = rng.random()
                if what < 0.15:
                    self.finish(name)
                elif what < 0.25:
                    self.save(name)
                elif what < 0.3:
                    self.lose(name)
        if rng.random() < 0.6:
            self.submit(job)
        if self.snapshot.waiting and rng.random() < 0.1:
            self.withdraw(rng.choice(sorted(job.name for job in self.snapshot.waiting)))
        if rng.random() < 0.4:
            node = rng.choice([node.name for node in self.snapshot.nodes])
            self.load(rng.choice(["d1", "d2"]), {node: rng.randrange(1000)})
        if rng.random() < 0.2:
            self.use(rng.choice(self.snapshot.queues).name, float(rng.randrange(10)))
        if rng.random() < 0.2:
            node = rng.choice(self.snapshot.nodes)
            self.cordon(node.name, not node.ready)
