"""The event loop: jobs arrive, load, compute, end or are evicted; every cycle the core decides.

How a job runs: it reads its dataset once, at its full rate as far as the bytes are near, while what is cold in its rack
comes from the under-store at that load's share of the bandwidth; then it computes on. It ends at

    max(start + first pass, end of the load) + the rest of its runtime

and the GPU-seconds between the end of an undisturbed first pass and the end of the load are idle. Loads of one dataset
into one rack are shared. A gang over several racks, or spines, computes slower by SPREAD_RACKS, SPREAD_SPINES.
"""

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from forebay.scheduler.decide import advance
from forebay.scheduler.decisions import Admission, Decisions
from forebay.scheduler.losses import gpus_of
from forebay.scheduler.model import CARD, Snapshot
from forebay.scheduler.simulation.arms import Arm
from forebay.scheduler.simulation.report import Meters, Record, Report, report
from forebay.scheduler.simulation.store import DomainCache, Load, LoadTable, UnderStore
from forebay.scheduler.simulation.workload import SimJob, Workload
from forebay.scheduler.state import State

SPREAD_RACKS, SPREAD_SPINES = 1.10, 1.25
"""Times as long as in one rack; an assumption: published effects of placement go up to five times."""


@dataclass(frozen=True)
class Pace:
    """How often things are done."""

    cycle_s: float = 10.0
    """Decisions are made so often, if anything has happened."""
    plan_s: float = 60.0
    """Prefetches are looked for so often."""
    preempt_s: float = 300.0
    """Victims are looked for so often."""
    checkpoint_s: float = 600.0
    """Of computing, between two checkpoints of a job."""
    grace_s: float = 30.0
    """From an eviction to the end of its pods."""


SAMPLE_S = 300.0

_END, _GONE = 0, 1


@dataclass(eq=False)
class _Run:
    """A job at work."""

    started: float
    compute_s: float
    """Runtime that is left, with the slowdown of its spread."""
    slowdown: float
    first_s: float
    """Its first pass, undisturbed."""
    version: int
    """How many runs the job has had before: events of those are void."""
    milli: int
    """Thousandths of cards."""
    loads: int = 0
    idles: bool = False
    """Its first pass would be over but for its loads."""
    ready: float = 0.0
    """When the last load that it waited for ended."""
    domain: int = -1


class Simulation:
    """One arm on one workload."""

    def __init__(
        self,
        workload: Workload,
        arm: Arm,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        queues = tuple(
            replace(queue, policy=arm.policy) if queue.parent is not None else queue for queue in workload.queues
        )
        snapshot = Snapshot(
            levels=workload.levels,
            nodes=workload.nodes,
            queues=queues,
            datasets=workload.datasets,
            stores=workload.stores,
        )
        self._clock = clock
        self._pace = pace or Pace()
        self._arm = arm
        self._workload = workload
        self.state = State(snapshot, arm.settings)
        store = workload.stores[0] if workload.stores else None
        self._store = UnderStore(
            store.bandwidth if store else math.inf, store.flow_bandwidth if store else 0, arm.settings.prefetch_share
        )
        self._caches = [DomainCache(int(room)) for room in self.state.warm.room]
        self._domains = {name: place for place, name in enumerate(self.state.warm.names)}
        self._sizes = {dataset.name: dataset.size for dataset in workload.datasets}
        self._loads: dict[tuple[str, int], Load] = {}
        self._progress = LoadTable()
        self._ahead: dict[tuple[str, int], Load] = {}
        """Of these, those that were prefetches when they began."""
        self._passes: list[tuple[float, int, str, int]] = []
        """Heap of the times at which first passes would be over, of jobs that wait for loads."""
        self._idle_milli = 0
        """Of the jobs that do nothing but wait for loads."""
        self._left: dict[str, SimJob] = {}
        self._runs: dict[str, _Run] = {}
        self._events: list[tuple[float, int, int, str, int]] = []
        self._numbers = 0
        self._records: dict[str, Record] = {}
        self._meters = Meters()
        self._now = 0.0
        self._last = workload.jobs[-1].job.submitted if workload.jobs else 0.0

    def run(self, limit_s: float = math.inf) -> Report:
        """Until every job has ended, or no event is left before `limit_s`."""
        began = self._clock()
        arrivals, place = self._workload.jobs, 0
        planned = preempted = sampled = -math.inf
        while True:
            first = arrivals[place].job.submitted if place < len(arrivals) else math.inf
            upcoming = min(first, self._events[0][0] if self._events else math.inf, self._store.next_end())
            if self.state.waiting:
                upcoming = min(upcoming, planned + self._pace.plan_s)
            if math.isinf(upcoming) or upcoming > limit_s:
                break
            length = self._pace.cycle_s
            cycle = max(math.ceil(upcoming / length) * length, self._now + (length if self._now else 0.0))
            self._happen(cycle)
            while place < len(arrivals) and arrivals[place].job.submitted <= cycle:
                self._arrive(arrivals[place])
                place += 1
            plans = cycle - planned >= self._pace.plan_s
            planned = cycle if plans else planned
            if cycle - sampled >= SAMPLE_S and place < len(arrivals):
                self._sample()
                sampled = cycle
            preempts = cycle - preempted >= self._pace.preempt_s
            preempted = cycle if preempts else preempted
            self._decide(cycle, plans, preempts)
            if place == len(arrivals) and not self._events and not self.state.running and not self._store.loads:
                break
        capacity = float(self.state.table.gpu_capacity.sum()) / CARD
        return report(
            self._arm.name, list(self._records.values()), self._meters, self._store.delivered, capacity, self._last,
            self._clock() - began,
        )  # fmt: skip

    def _happen(self, until: float) -> None:
        """All events up to a time, in order."""
        while True:
            at = min(self._events[0][0] if self._events else math.inf, self._store.next_end())
            if at > until:
                break
            self._now = max(at, self._now)
            self._store.advance(self._now)
            for load in self._store.ended():
                self._loaded(load)
            while self._events and self._events[0][0] <= self._now:
                _, _, kind, name, version = heapq.heappop(self._events)
                run = self._runs.get(name)
                if run is not None and run.version == version:
                    if kind == _END:
                        self._end(name, run)
                    else:
                        self._gone(name, run)
        self._now = until
        self._store.advance(until)

    def _push(self, at: float, kind: int, name: str, version: int) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (at, self._numbers, kind, name, version))

    def _arrive(self, one: SimJob) -> None:
        job = one.job
        self._left[job.name] = one
        gpus = sum(gpus_of(pod_set) * pod_set.count for pod_set in job.pod_sets if pod_set.gpus is not None)
        self._records[job.name] = Record(job.name, job.queue, gpus, job.submitted, one.compute_s)
        self.state.submit(job)

    def _decide(self, now: float, plans: bool, preempts: bool) -> None:
        if plans:
            self._tell_progress()
        began = self._clock()
        decisions = advance(self.state, now, explained=False, prefetches=plans, preempts=preempts)
        self._meters.deciding_s += self._clock() - began
        self._meters.decided += len(decisions.admissions)
        for admission in decisions.admissions:
            self._start(admission, now)
        for eviction in decisions.evictions:
            run = self._runs[eviction.job]
            self._push(now + self._pace.grace_s, _GONE, eviction.job, run.version)
        if plans:
            self._prefetch(decisions)

    def _start(self, admission: Admission, now: float) -> None:
        name = admission.job
        state, record = self.state, self._records[name]
        state.bound(name)
        one = self._left[name]
        if record.started is None:
            record.started = now
        slowdown, domain = self._spread(admission)
        compute = one.compute_s * slowdown
        milli = round(record.gpus * CARD)
        run = _Run(now, compute, slowdown, 0.0, record.preemptions, milli, ready=now, domain=domain)
        self._runs[name] = run
        for need in one.job.data:
            size = self._sizes[need.dataset]
            rate = need.read_rate * record.gpus
            run.first_s = min(compute, max(run.first_s, size / rate if rate else 0.0))
            held = self._caches[domain].held(need.dataset)
            if record.read == 0:
                record.read, record.warm = float(size), float(held)
            self._caches[domain].read(need.dataset, 1)
            self._caches[domain].touch(need.dataset)
            if held < size:
                load = self._load(need.dataset, domain, ahead=False)
                load.waiters.append(name)
                run.loads += 1
        if run.loads:
            heapq.heappush(self._passes, (run.started + run.first_s, self._numbers, name, run.version))
        else:
            self._schedule(name, run)

    def _spread(self, admission: Admission) -> tuple[float, int]:
        """The slowdown of a job's pods, and the rack that most of them are in."""
        warm, table = self.state.warm, self.state.table
        rows = [table.index[placed.node] for placed in admission.pods]
        if len(rows) == 1:
            return 1.0, int(warm.domain_of[rows[0]])
        counts: dict[int, int] = {}
        for row, placed in zip(rows, admission.pods, strict=True):
            domain = int(warm.domain_of[row])
            counts[domain] = counts.get(domain, 0) + placed.count
        home = max(counts, key=lambda domain: (counts[domain], -domain))
        if len(counts) == 1 or len(table.levels) < 2:
            return 1.0, home
        spines = {int(table.domain_of[0][row]) for row in rows}
        return (SPREAD_SPINES if len(spines) > 1 else SPREAD_RACKS), home

    def _schedule(self, name: str, run: _Run) -> None:
        """All of a job's data is near, or on its way no more: its end is known."""
        self._idles(run, False)
        idle = max(0.0, run.ready - (run.started + run.first_s))
        self._records[name].idle_gpu_s += idle * self._records[name].gpus
        self._push(run.started + run.compute_s + idle, _END, name, run.version)

    def _idles(self, run: _Run, idles: bool) -> None:
        if idles != run.idles:
            run.idles = idles
            self._idle_milli += run.milli if idles else -run.milli

    def _load(self, dataset: str, domain: int, ahead: bool, most: int | None = None) -> Load:
        """The load of a dataset into a domain: the one under way, or a new one.

        Args:
            most: bytes; None: all.
        """
        key = (dataset, domain)
        load = self._loads.get(key)
        cache, size = self._caches[domain], self._sizes[dataset]
        held = cache.held(dataset)
        if load is not None:
            if not ahead:
                load = self._loads[key] = self._whole(load, size - held)
                self._ahead.pop(key, None)
            return load
        missing = size - held if most is None else min(size - held, most)
        dropped, fits = cache.make_room(missing, dataset)
        for other in dropped:
            self.state.warm.set_domain(other, domain, 0)
        if fits:
            cache.used += missing  # the room is taken from the start
        load = self._store.start(dataset, domain, float(missing), ahead)
        load.cached = fits
        if fits:
            self._progress.add(load, self.state.warm.place(dataset), held)
        cache.read(dataset, 1)
        self._loads[key] = load
        if ahead:
            self._ahead[key] = load
        return load

    def _whole(self, load: Load, missing: int) -> Load:
        """A load that a job waits for by now, with all that was missing."""
        cache, more = self._caches[load.domain], missing - int(load.total)
        if more > 0 and load.cached:
            dropped, fits = cache.make_room(more, load.dataset)
            for other in dropped:
                self.state.warm.set_domain(other, load.domain, 0)
            cache.used += more if fits else -int(load.total)
            if not fits:
                self._progress.remove(load)
                load.cached, load.slot = False, -1
        load = self._store.hurry(load, more)
        self._progress.change(load)
        return load

    def _loaded(self, load: Load) -> None:
        cache = self._caches[load.domain]
        del self._loads[load.dataset, load.domain]
        self._ahead.pop((load.dataset, load.domain), None)
        self._progress.remove(load)
        cache.read(load.dataset, -1)
        if load.cached:
            cache.used -= int(load.total)
            cache.put(load.dataset, int(load.total))
        self.state.warm.set_domain(load.dataset, load.domain, cache.held(load.dataset))
        for name in load.waiters:
            run = self._runs.get(name)
            if run is not None and run.domain == load.domain and run.loads:
                run.loads -= 1
                run.ready = self._now
                if not run.loads:
                    self._schedule(name, run)

    def _tell_progress(self) -> None:
        """Loads under way count as warm as far as they are; whoever waits for all of it is not woken."""
        self.state.warm.set_domains(*self._progress.cached(self._store))
        while self._passes and self._passes[0][0] < self._now:
            _, _, name, version = heapq.heappop(self._passes)
            run = self._runs.get(name)
            if run is not None and run.version == version and run.loads:
                self._idles(run, True)
        idle = self._idle_milli / CARD
        for name, store in self.state.warm.stores.items():
            self.state.warm.stores[name] = replace(store, flows=self._store.loads, waiting_gpus=idle)

    def _prefetch(self, decisions: Decisions) -> None:
        wanted = {(one.dataset, self._domains[one.domain]) for one in decisions.prefetches}
        for key, load in [*self._ahead.items()]:
            if not load.waiters and key not in wanted:
                self._cancel(key, load)
        for one in decisions.prefetches:
            domain = self._domains[one.domain]
            if self._caches[domain].held(one.dataset) < self._sizes[one.dataset]:
                self._load(one.dataset, domain, ahead=True, most=one.bytes)

    def _cancel(self, key: tuple[str, int], load: Load) -> None:
        """What has come stays."""
        cache = self._caches[load.domain]
        came = int(load.total - self._store.left(load))
        self._store.cancel(load)
        del self._loads[key], self._ahead[key]
        self._progress.remove(load)
        cache.read(load.dataset, -1)
        if load.cached:
            cache.used -= int(load.total)
            cache.put(load.dataset, came)
        self.state.warm.set_domain(load.dataset, load.domain, cache.held(load.dataset), announce=False)

    def _end(self, name: str, run: _Run) -> None:
        self._leave(name, run)
        self._records[name].finished = self._now
        del self._left[name]
        self.state.finish(name)

    def _leave(self, name: str, run: _Run) -> None:
        record = self._records[name]
        self._meters.held_gpu_s += record.gpus * max(0.0, min(self._now, self._last) - run.started)
        for need in self._left[name].job.data:
            self._caches[run.domain].read(need.dataset, -1)
        self._idles(run, False)
        del self._runs[name]

    def _gone(self, name: str, run: _Run) -> None:
        """An evicted job's pods have ended: what it has saved by then need not be computed again."""
        record, one = self._records[name], self._left[name]
        idle = max(0.0, (self._now if run.loads else run.ready) - (run.started + run.first_s))
        if run.loads:
            record.idle_gpu_s += idle * record.gpus
        progress = max(0.0, self._now - run.started - idle)
        every = self._pace.checkpoint_s
        saved = min(math.floor(progress / every) * every / run.slowdown, one.compute_s * 0.999)
        self._leave(name, run)
        record.preemptions += 1
        job = one.job if one.job.max_run_s is None else replace(one.job, max_run_s=one.job.max_run_s - saved)
        self._left[name] = SimJob(job, one.compute_s - saved)
        self.state.finish(name)
        self.state.submit(job)

    def _sample(self) -> None:
        table, mix = self.state.table, self.state.losses.mix
        free = float(table.gpu_free.sum())
        if mix is None or not free:
            return
        usable = mix.whole[np.minimum(table.idle, len(mix.whole) - 1)] * CARD * table.idle
        lost = mix.part[np.maximum(table.compute, 0)].sum() + mix.whole_total * free - usable.sum()
        self._meters.free_samples.append((free, float(lost)))


def simulate(workload: Workload, arm: Arm, pace: Pace | None = None) -> Report:
    """Run one arm on a workload until every job has ended."""
    return Simulation(workload, arm, pace).run()
