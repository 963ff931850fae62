"""Warm-ups as jobs, over a fake store."""

import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cache_box import RUN_S, Box, bytes_of
from check import check_storage
from fake_store import HELD_S, FakeStore, Gate

from forebay.cacheruntime.config import MIB, FillConfig
from forebay.cacheruntime.errors import SourceNotFound, SourceStale, SourceUnavailable, UsageError
from forebay.cacheruntime.jobs import JobState
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.worker import datasets as datasets_module
from forebay.cacheruntime.worker import jobs as jobs_module
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.jobs import Job
from forebay.cacheruntime.worker.warmup import RateLimit
from forebay.proto import worker_pb2 as pb

SOURCE = "fake://store"


class Worker:
    """A worker's core over a box whose source is its fake store; `run` may be called again, as a new worker."""

    def __init__(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box = box
        monkeypatch.setattr(datasets_module, "open_store", lambda source, options, retry: box.store)

    def run(self, test: Callable[[Core], Awaitable[Any]], *, killed: bool = False) -> Any:
        async def main() -> Any:
            with trio.fail_after(RUN_S):
                async with trio.open_nursery() as nursery:
                    core = Core(self.box.config, self.box.storage, nursery, "test")
                    try:
                        return await test(core)
                    finally:
                        for dataset in core.datasets.all.values():
                            for snapshot in dataset.snapshots.values():
                                with trio.CancelScope(shield=True):
                                    await snapshot.ended.wait()
                                snapshot.writer.close()
                        nursery.cancel_scope.cancel()

        result = trio.run(main)
        if not killed:
            check_storage(self.box.storage)
        return result


@pytest.fixture
def worker(box: Box, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(box, monkeypatch)


async def _attach(core: Core) -> str:
    reply = await core.attach(pb.AttachRequest(source=SOURCE, list=True))
    dataset = core.datasets.get(reply.dataset_id)
    assert dataset.newest is not None
    await dataset.newest.ended.wait()
    return str(reply.dataset_id)


async def _begin(core: Core, background: bool = False, **wish: Any) -> Job:
    name = await _attach(core)
    return await core.start_warmup(pb.WarmupRequest(dataset_id=name, **wish), background)


async def _ended(job: Job) -> Job:
    await job.ended.wait()
    return job


def _warm(worker: Worker, **wish: Any) -> Job:
    async def test(core: Core) -> Job:
        return await _ended(await _begin(core, **wish))

    job: Job = worker.run(test)
    assert job.record.progress == core_progress(job), "what is on record is what came of it"
    return job


def core_progress(job: Job) -> Any:
    return job.warmup.progress.record()


def _is_whole(worker: Worker, path: str) -> bool:
    data, version = worker.box.store.files[path]
    source = worker.box.source(path, data, version)
    return worker.box.read(source, 0, len(data)) == data


def test_many_small_files_have_their_bytes(worker: Worker) -> None:
    for n in range(700):
        worker.box.store.put(f"d{n % 7}/f{n}", bytes_of(n * 13 % 5000, n))
    job = _warm(worker)
    assert job.record.state is JobState.DONE
    assert job.record.progress.files_done == 700
    assert job.record.progress.bytes_fetched == sum(len(data) for data, _ in worker.box.store.files.values())
    assert all(_is_whole(worker, path) for path, (data, _) in worker.box.store.files.items() if data)
    again = _warm(worker)
    assert again.record.id == 2
    assert (again.record.progress.files_done, again.record.progress.bytes_fetched) == (700, 0)
    assert len(worker.box.store.reads) == 699, "one is empty, and what is cached is not fetched again"


class Lane:
    """A `WholeFiles` over the fake store."""

    def __init__(self, store: "ManyStore") -> None:
        self._store = store
        self._ended: list[tuple[object, list[bytes] | None]] = []
        self._woken = threading.Event()

    def start(self, path: str, size: int, version: str, tag: object) -> None:
        if path in self._store.breaking:
            raise RuntimeError("a fault of ours")
        data, known = self._store.files[path]
        self._store.many.append(path)
        good = path not in self._store.failing and known == version
        self._ended.append((tag, [data[:7], data[7:]] if good else None))

    def wait(self, most_s: float) -> list[tuple[object, list[bytes] | None]]:
        if not self._ended:
            self._woken.wait(most_s)
        self._woken.clear()
        ended, self._ended = self._ended, []
        return ended

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._store.lanes_closed += 1


class ManyStore(FakeStore):
    """A fake store that has a way for many files at once."""

    def __init__(self) -> None:
        super().__init__()
        self.many: list[str] = []
        self.failing: set[str] = set()
        self.breaking: set[str] = set()
        self.lanes = self.lanes_closed = 0

    def whole_files(self) -> Lane:
        self.lanes += 1
        return Lane(self)


def test_many_at_once_and_one_by_one_what_fails_there(worker: Worker) -> None:
    store = worker.box.store = ManyStore()
    for n in range(300):
        store.put(f"f{n}", bytes_of(n * 13 % 5000 + 1, n))
    store.failing = {f"f{n}" for n in range(0, 300, 50)}
    job = _warm(worker)
    assert job.record.progress.files_done == 300
    assert job.record.progress.files_failed == job.record.progress.files_uncached == 0
    assert len(store.many) == 300
    assert {read.path for read in store.reads} == store.failing
    assert (store.lanes, store.lanes_closed) == (1, 1)
    assert all(_is_whole(worker, path) for path in store.files)


def test_many_at_once_breaks_by_a_fault_of_ours(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    store = worker.box.store = ManyStore()
    for n in range(100):
        store.put(f"f{n}", bytes_of(n * 13 % 5000 + 1, n))
    store.breaking = {"f50"}
    job = _warm(worker)
    assert job.record.progress.files_done == 100
    assert "going on one by one" in caplog.text
    caplog.clear()
    assert store.lanes == store.lanes_closed
    assert all(_is_whole(worker, path) for path in store.files)


def test_a_reader_joins_a_small_file_on_its_way(worker: Worker) -> None:
    data = bytes_of(5000)
    worker.box.store.put("f", data)
    gate = Gate()
    worker.box.store.before_piece = gate

    async def test(core: Core) -> None:
        job = await _begin(core)
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        source = worker.box.source("f", data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.filler.fill, source, 0, 5000, 5000)
            await trio.testing.wait_all_tasks_blocked()
            gate.let_go()
        await job.ended.wait()

    worker.run(test)
    assert len(worker.box.store.reads) == 1
    assert _is_whole(worker, "f")


def test_what_a_reader_is_fetching_is_waited_for(worker: Worker) -> None:
    data = bytes_of(5000)
    worker.box.store.put("f", data)
    gate = Gate()
    worker.box.store.before_piece = gate

    async def test(core: Core) -> Job:
        name = await _attach(core)
        await core.filler.fill(worker.box.source("f", data), 0, 5000, 5000, background=True)
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        job = await core.start_warmup(pb.WarmupRequest(dataset_id=name))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not job.ended.is_set()
        gate.let_go()
        return await _ended(job)

    assert worker.run(test).record.progress.files_done == 1
    assert len(worker.box.store.reads) == 1


def test_lists_patterns_and_what_is_missing(worker: Worker) -> None:
    for path in ("a/1", "a/2", "b/1", "c"):
        worker.box.store.put(path, path.encode())
    job = _warm(worker, paths=[b"c", b"nothing"], globs=[b"*/1"])
    progress = job.record.progress
    assert (progress.files_total, progress.files_done, progress.files_failed) == (4, 3, 1)
    assert {read.path for read in worker.box.store.reads} == {"a/1", "b/1", "c"}
    assert _failures(worker, job) == {"nothing": "not in snapshot 1"}
    for wish in ({"paths": [b"nothing"]}, {"globs": [b"nothing*"]}):
        job = _warm(worker, **wish)
        assert job.record.state is JobState.FAILED
        assert "nothing" in job.record.error


def _failures(worker: Worker, job: Job) -> dict[str, str]:
    core_store = jobs_module.JobStore(worker.box.config.jobs_dir)
    return {row["path"]: row["error"] for row in core_store.failures(job.record.id)}


@pytest.mark.semantics("W2")
def test_all_failures_are_kept_by_name(worker: Worker) -> None:
    for n in range(60):
        worker.box.store.put(f"f{n:02}", bytes_of(100, n))
    worker.box.store.faults = [SourceUnavailable("refused") for _ in range(50)]
    job = _warm(worker)
    assert (job.record.progress.files_done, job.record.progress.files_failed) == (10, 50)
    assert len(job.warmup.progress.failures) == 20
    failures = _failures(worker, job)
    assert len(failures) == 50
    assert set(failures.values()) == {"refused"}
    again = _resume(worker, job)
    assert (again.record.progress.files_done, _failures(worker, again)) == (60, {})


def _resume(worker: Worker, job: Job) -> Job:
    async def test(core: Core) -> Job:
        await _attach(core)
        return await _ended(await core.start_warmup(pb.WarmupRequest(job=job.record.id)))

    resumed: Job = worker.run(test)
    assert resumed.record.id == job.record.id
    return resumed


def test_a_file_that_changed_is_shown_as_it_is_now(worker: Worker) -> None:
    worker.box.store.put("f", b"old")

    async def test(core: Core) -> Job:
        name = await _attach(core)
        worker.box.store.put("f", b"newer", "v2")
        job = await _ended(await core.start_warmup(pb.WarmupRequest(dataset_id=name)))
        newest = core.datasets.get(name).newest
        assert newest is not None
        while (node := newest.catalogue.resolve(b"f")) is None or node.version == "v1":
            await trio.sleep(0.001)  # it is looked at in the background
        assert (node.size, node.version) == (5, "v2")
        return job

    assert worker.run(test).record.progress.files_failed == 1


def test_metadata_only(worker: Worker) -> None:
    worker.box.store.put("f", b"123")
    job = _warm(worker, metadata_only=True)
    assert (job.record.progress.files_total, job.record.progress.bytes_total) == (1, 3)
    assert (job.record.progress.files_done, worker.box.store.reads) == (0, [])


def test_skip_existing_leaves_partly_cached_files_alone(worker: Worker) -> None:
    data = bytes_of(5 * MIB)
    worker.box.store.put("big", data)
    worker.box.store.put("other", b"1")

    async def read_a_bit(core: Core) -> None:
        await core.filler.fill(worker.box.source("big", data), 0, 10, 10)

    worker.run(read_a_bit)
    job = _warm(worker, skip_existing=True)
    assert job.record.progress.files_done == 2
    assert not worker.box.has(worker.box.source("big", data))
    _warm(worker)
    assert worker.box.has(worker.box.source("big", data))


def test_one_large_file_is_fetched_in_windows_that_overlap(make_box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_box(fill=FillConfig(window_max_bytes=2 * MIB, part_bytes=MIB)), monkeypatch)
    worker.box.store.put("big", bytes_of(9 * MIB + 5))
    under_way: set[int] = set()
    most: list[int] = []
    lock = threading.Lock()

    def before(path: str, position: int) -> None:
        with lock:
            under_way.add(position // (2 * MIB))
            most.append(len(under_way))
        time.sleep(0.002)
        with lock:
            under_way.discard(position // (2 * MIB))

    worker.box.store.before_piece = before
    assert _warm(worker).record.progress.bytes_done == 9 * MIB + 5
    assert _is_whole(worker, "big")
    assert max(most) >= 2


def test_verify_finds_damage_and_mends_it(worker: Worker) -> None:
    for n in range(5):
        worker.box.store.put(f"small{n}", bytes_of(3000, n))
    worker.box.store.put("big", bytes_of(3 * MIB))
    _warm(worker)
    big = worker.box.source("big", bytes_of(3 * MIB))
    _flip(worker.box.tier_file(big.content), 2 * MIB + 17)
    job = _warm(worker, verify=True)
    progress = job.record.progress
    assert (progress.files_verified, progress.files_damaged, progress.files_failed) == (6, 1, 0)
    assert _is_whole(worker, "big")
    assert [read.path for read in worker.box.store.reads].count("small0") == 1, "what is right is not fetched again"
    clean = _warm(worker, verify=True)
    assert (clean.record.progress.files_verified, clean.record.progress.files_damaged) == (6, 0)


def test_verify_of_a_packed_file(worker: Worker) -> None:
    for n in range(3):
        worker.box.store.put(f"small{n}", bytes_of(3000, n))
    _warm(worker)
    source = worker.box.source("small1", bytes_of(3000, 1))
    cached = worker.box.storage.index.reader.find(source.content)
    assert cached is not None
    (pack,) = (worker.box.config.tiers[0].path / "packs").iterdir()
    _flip(pack, cached.offset + 5)

    async def test(core: Core) -> Job:
        job = await _ended(await _begin(core, verify=True))
        while any(core.storage.pack_in_doubt(pack) for pack in core.storage.index.reader.packs()):
            await trio.sleep(0.001)  # the pack's seal follows in the background
        return job

    progress = worker.run(test).record.progress
    assert (progress.files_verified, progress.files_damaged) == (3, 1)
    assert all(_is_whole(worker, f"small{n}") for n in range(3))


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def test_rate_limit_in_virtual_time() -> None:
    async def main() -> list[float]:
        limit = RateLimit(1000)
        found = []
        for size in (500, 1500, 100, 0):
            await limit.take(size)
            found.append(trio.current_time() - began)
        await trio.sleep(10)
        await limit.take(1)
        found.append(trio.current_time() - began)
        return found

    clock = trio.testing.MockClock(autojump_threshold=0)
    began = clock.current_time()
    assert trio.run(main, clock=clock) == pytest.approx([0, 0.5, 2.0, 2.1, 12.1])


@pytest.mark.slow
def test_the_rate_is_kept(worker: Worker) -> None:
    for n in range(20):
        worker.box.store.put(f"f{n}", bytes_of(50_000, n))
    began = time.monotonic()
    assert _warm(worker, rate_bytes_s=1_000_000).record.progress.files_done == 20
    assert 0.9 <= time.monotonic() - began <= 3.0  # the last of 20 is asked for after 0.95 s


def test_deadline(worker: Worker) -> None:
    for n in range(3):
        worker.box.store.put(f"f{n}", bytes_of(50_000, n))
    job = _warm(worker, rate_bytes_s=100_000, deadline_s=0.3)
    assert job.record.state is JobState.FAILED
    assert job.record.error == "the deadline of 0.3 s came first"
    assert job.record.progress.files_done == 1
    assert _resume(worker, job).record.state is JobState.FAILED, "the deadline counts anew"


def test_cancel(worker: Worker) -> None:
    worker.box.store.put("f", bytes_of(1000))
    gate = Gate()
    worker.box.store.before_piece = gate

    async def test(core: Core) -> None:
        started = await core.start_job(pb.WarmupRequest(dataset_id=await _attach(core)))
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        with pytest.raises(UsageError, match="job 1 is running"):
            await core.start_job(pb.WarmupRequest(job=1))
        assert not (await core.retire(pb.RetireRequest())).leaving, "a job keeps its worker alive"
        assert (await core.cancel_job(pb.CancelJobRequest(job=started.job))).state == "cancelled"
        gate.let_go()
        assert core.jobs.store.get(1).state is JobState.CANCELLED
        assert core.jobs.running == {}
        await _attach(core)
        assert core.jobs.running == {}, "it is not taken up again"
        with pytest.raises(UsageError, match="no job 5"):
            await core.cancel_job(pb.CancelJobRequest(job=5))

    worker.run(test)


@pytest.mark.parametrize("background", [True, False])
def test_after_its_worker_was_stopped_a_background_job_goes_on(worker: Worker, background: bool) -> None:
    for n in range(40):
        worker.box.store.put(f"f{n:02}", bytes_of(1000, n))
    gate = Gate(lambda path, position: path >= "f20")
    worker.box.store.before_piece = gate

    async def begin(core: Core) -> None:
        await _begin(core, background, jobs=1)
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)

    worker.run(begin, killed=True)
    gate.let_go()
    assert jobs_module.JobStore(worker.box.config.jobs_dir).get(1).state is JobState.INTERRUPTED
    fetched = len(worker.box.store.reads)

    async def go_on(core: Core) -> None:
        await _attach(core)
        if not background:
            assert core.jobs.running == {}
            await core.start_warmup(pb.WarmupRequest(job=1))
        await _ended(core.jobs.running[1])

    worker.run(go_on)
    record = jobs_module.JobStore(worker.box.config.jobs_dir).get(1)
    assert (record.state, record.progress.files_done) == (JobState.DONE, 40)
    assert len(worker.box.store.reads) - fetched <= 21, "what was cached is not fetched again"


def test_a_job_of_a_snapshot_that_is_gone(worker: Worker) -> None:
    async def test(core: Core) -> None:
        name = await _attach(core)
        with pytest.raises(UsageError, match="no snapshot 9"):
            await core.start_warmup(pb.WarmupRequest(dataset_id=name, snapshot=9))

    worker.box.store.put("f", b"1")
    worker.run(test)


def test_traffic_counts_gets_and_their_times(worker: Worker) -> None:
    for n in range(4):
        worker.box.store.put(f"f{n}", bytes_of(1000, n))
    worker.box.store.put("big", bytes_of(2 * MIB))
    worker.box.store.faults = [SourceStale("gone")]

    async def test(core: Core) -> pb.TrafficReply:
        await _ended(await _begin(core))
        while True:  # a GET is counted when its thread has ended, just behind its last block
            reply = await core.traffic(pb.TrafficRequest())
            if sum(source.gets for source in reply.sources) == 5:
                return reply
            await trio.sleep(0.01)

    (source,) = worker.run(test).sources
    assert source.dataset_id == worker.box.dataset
    assert source.errors == 1
    assert source.gets == len(worker.box.store.reads)
    assert sum(source.get_counts) == source.gets
    assert source.get_sum_s > 0
    assert sum(source.queue_counts) >= 1


# Evicting and pinning by command


def test_evict_takes_what_is_meant_and_leaves_pins(worker: Worker) -> None:
    for n in range(3):
        worker.box.store.put(f"a/small{n}", bytes_of(1000, n))
        worker.box.store.put(f"b/small{n}", bytes_of(2000, n))
    worker.box.store.put("b/big", bytes_of(3 * MIB))
    _warm(worker)

    async def test(core: Core) -> None:
        name = await _attach(core)
        assert list((await core.pin(pb.PinRequest(dataset_id=name, paths=[b"a"]))).pins) == [b"a"]
        reply = await core.evict(pb.EvictRequest(dataset_id=name, globs=[b"*/small0", b"b/*"]))
        assert (reply.files, reply.bytes, reply.pinned) == (4, 3 * MIB + 6000, 1)
        reply = await core.evict(pb.EvictRequest(dataset_id=name))
        assert (reply.files, reply.pinned) == (0, 3)
        with pytest.raises(SourceNotFound, match="'gone'"):
            await core.evict(pb.EvictRequest(dataset_id=name, paths=[b"gone"]))
        reply = await core.evict(pb.EvictRequest(dataset_id=name, pinned=True))
        assert (reply.files, reply.bytes) == (3, 3000)

    worker.run(test)


def test_a_pin_that_another_covers_stays(worker: Worker) -> None:
    worker.box.store.put("a/b/f", bytes_of(1000))
    worker.box.store.put("a/g", bytes_of(1000, 2))
    _warm(worker)

    async def test(core: Core) -> None:
        name = await _attach(core)
        await core.pin(pb.PinRequest(dataset_id=name, paths=[b"a", b"a/b"]))
        unpin = pb.PinRequest(dataset_id=name, paths=[b"a"], unpin=True)
        assert list((await core.pin(unpin)).pins) == [b"a/b"]
        assert list((await core.pin(unpin)).unknown) == [b"a"]
        reply = await core.evict(pb.EvictRequest(dataset_id=name))
        assert (reply.files, reply.pinned) == (1, 1)
        assert list((await core.pin(pb.PinRequest(dataset_id=name, unpin=True))).pins) == []
        assert (await core.evict(pb.EvictRequest(dataset_id=name))).files == 1

    worker.run(test)


def test_a_warmup_pins_before_it_brings(worker: Worker) -> None:
    for n in range(3):
        worker.box.store.put(f"a/{n}", bytes_of(1000, n))
    worker.box.store.put("b", bytes_of(10))
    _warm(worker, paths=[b"a", b"b"], pin=True)

    async def test(core: Core) -> None:
        name = await _attach(core)
        assert sorted((await core.pin(pb.PinRequest(dataset_id=name))).pins) == [b"a", b"b"]
        reply = await core.evict(pb.EvictRequest(dataset_id=name))
        assert (reply.files, reply.pinned) == (0, 4)

    worker.run(test)


def test_a_medium_that_there_is_not(worker: Worker) -> None:
    async def test(core: Core) -> None:
        name = await _attach(core)
        with pytest.raises(UsageError, match="no tier of medium HDD; this cache has"):
            await core.start_warmup(pb.WarmupRequest(dataset_id=name, medium="HDD"))

    worker.box.store.put("f", b"1")
    worker.run(test)


def test_where_the_policy_replaces_files_small_ones_have_files_of_their_own(worker: Worker) -> None:
    for n in range(5):
        worker.box.store.put(f"f{n}", bytes_of(1000, n))

    async def test(core: Core) -> None:
        policy = pb.CachePolicy(policy="lru")
        await core.attach(pb.AttachRequest(source=SOURCE, list=True, cache_policy=policy))
        await _ended(await _begin(core))

    worker.run(test)
    assert all(_is_whole(worker, f"f{n}") for n in range(5))
    assert list((worker.box.config.tiers[0].path / "packs").iterdir()) == []


def test_a_manifest_pins_what_is_cached_already(worker: Worker) -> None:
    for name in ("keep/a", "keep/b", "other/c"):
        worker.box.store.put(name, bytes_of(2 << 20, len(name)))
    _warm(worker)

    async def test(core: Core) -> None:
        policy = pb.CachePolicy(paths=[pb.PathRule(path=b"keep", pinned=True)])
        name = (await core.attach(pb.AttachRequest(source=SOURCE, list=True, cache_policy=policy))).dataset_id
        storage = worker.box.storage
        assert storage.pins(DatasetId(name)) == [b"keep"]
        sources = [worker.box.source(path, data, v) for path, (data, v) in worker.box.store.files.items()]
        with trio.fail_after(10):
            while sum(bool(found := storage.find(file.content)) and found.pinned for file in sources) < 2:
                await trio.sleep(0.01)
        assert storage.evict(file.content for file in sources)[0] == 1

    worker.run(test)


def test_a_pin_that_leaves_the_manifest_goes_and_one_by_command_stays(worker: Worker) -> None:
    for name in ("keep/a", "keep/b", "both/c", "other/d"):
        worker.box.store.put(name, bytes_of(1000, len(name)))
    _warm(worker)
    storage = worker.box.storage

    def pinned() -> set[str]:
        sources = [worker.box.source(path, data, v) for path, (data, v) in worker.box.store.files.items()]
        return {file.path for file in sources if (found := storage.find(file.content)) and found.pinned}

    async def attached(core: Core, *paths: bytes) -> str:
        rules = [pb.PathRule(path=path, pinned=True) for path in paths]
        policy = pb.CachePolicy(paths=rules)
        return (await core.attach(pb.AttachRequest(source=SOURCE, list=True, cache_policy=policy))).dataset_id

    async def wait_pinned(*paths: str) -> None:
        with trio.fail_after(10):
            while pinned() != set(paths):
                await trio.sleep(0.01)

    async def test(core: Core) -> None:
        name = await attached(core, b"keep", b"both", b"keep/a")
        await wait_pinned("keep/a", "keep/b", "both/c")
        await core.pin(pb.PinRequest(dataset_id=name, paths=[b"both"]))
        await attached(core, b"keep/a")
        await wait_pinned("keep/a", "both/c")
        assert storage.pins(DatasetId(name)) == [b"both", b"keep/a"]
        assert storage.index.reader.pins(DatasetId(name)) == [b"both", b"keep/a"]
        await core.attach(pb.AttachRequest(source=SOURCE, list=True))
        assert storage.pins(DatasetId(name)) == [b"both", b"keep/a"], "who attaches without a manifest says nothing"
        await attached(core)
        await wait_pinned("both/c")
        await core.pin(pb.PinRequest(dataset_id=name, paths=[b"both"], unpin=True))
        await wait_pinned()

    worker.run(test)
