"""Datasets, warm-ups and the core's idea of what is in use."""

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cache_box import RUN_S, Box, bytes_of
from check import check_storage
from fake_store import HELD_S, FakeStore, Gate

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.config import KIB, MIB, FillConfig
from forebay.cacheruntime.errors import ForebayError, NotAttached, SourceNotFound, SourceUnavailable
from forebay.cacheruntime.jobs import JobRequest
from forebay.cacheruntime.snapshot_history import Keep, numbers_in
from forebay.cacheruntime.understore.base import Entry
from forebay.cacheruntime.worker import core as core_module
from forebay.cacheruntime.worker import datasets as datasets_module
from forebay.cacheruntime.worker import snapshot as snapshot_module
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.warmup import Warmup
from forebay.proto import worker_pb2 as pb

SOURCE = "fake://store"


class Node:
    """A worker's core over a box, whose sources are fake stores."""

    def __init__(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box = box
        self.stores: dict[str, FakeStore] = {SOURCE: box.store}
        monkeypatch.setattr(datasets_module, "open_store", lambda source, options, retry: self.stores[source])

    def run(self, test: Callable[[Core], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            with trio.fail_after(RUN_S):
                async with trio.open_nursery() as nursery:
                    core = Core(self.box.config, self.box.storage, nursery, "test")
                    try:
                        return await test(core)
                    finally:
                        for dataset in core.datasets.all.values():
                            for snapshot in dataset.snapshots.values():
                                await snapshot.ended.wait()
                                snapshot.writer.close()
                        nursery.cancel_scope.cancel()

        result = trio.run(main)
        check_storage(self.box.storage)
        return result


@pytest.fixture
def node(box: Box, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(box, monkeypatch)


async def _listed(core: Core, source: str = SOURCE) -> tuple[Dataset, Snapshot]:
    dataset = await core.datasets.attach(source, {})
    snapshot = core.datasets.snapshot_of(dataset, relist=True)
    await snapshot.ended.wait()
    return dataset, snapshot


def _names(catalogue: Catalogue, path: bytes = b"") -> list[bytes]:
    found = catalogue.resolve(path)
    assert found is not None
    return [child.name for child in catalogue.children(found.node)]


# Datasets


def test_attach_and_list(node: Node) -> None:
    node.box.store.put("a/b", b"123")
    node.box.store.put("c", b"4")

    async def test(core: Core) -> None:
        reply = await core.attach(pb.AttachRequest(source=SOURCE, list=True, relist=True))
        assert (reply.dataset_id, reply.snapshot) == (node.box.dataset, 1)
        dataset = core.datasets.get(reply.dataset_id)
        snapshot = core.datasets.snapshot_of(dataset, relist=False)
        await snapshot.ended.wait()
        assert _names(snapshot.catalogue) == [b"a", b"c"]
        totals = snapshot.catalogue.totals()
        assert (totals.files, totals.bytes, totals.complete) == (2, 4, True)
        assert Path(reply.catalogue) == snapshot.catalogue.folder

    node.run(test)


def test_unknown_dataset(node: Node) -> None:
    async def test(core: Core) -> None:
        with pytest.raises(NotAttached):
            core.datasets.get("00" * 8)

    node.run(test)


def test_attached_once_however_often(node: Node) -> None:
    async def test(core: Core) -> None:
        first = await core.datasets.attach(SOURCE, {"a": "1"})
        assert await core.datasets.attach(SOURCE, {"a": "1"}) is first
        node.stores[SOURCE] = other = FakeStore(SOURCE)
        assert await core.datasets.attach(SOURCE, {"a": "2"}) is first
        assert (first.store, first.definition.options) == (other, {"a": "2"})

    node.run(test)


def test_probe_that_fails_attaches_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> None:
        raise SourceNotFound("no bucket")

    monkeypatch.setattr(node.box.store, "probe", probe)

    async def test(core: Core) -> None:
        with pytest.raises(SourceNotFound):
            await core.datasets.attach(SOURCE, {})
        assert core.datasets.all == {}
        assert node.box.store.closed

    node.run(test)


def test_relist_lists_anew_and_removes_the_old(node: Node) -> None:
    node.box.store.put("a", b"1")

    async def test(core: Core) -> None:
        dataset, first = await _listed(core)
        node.box.store.put("b", b"2")
        assert core.datasets.snapshot_of(dataset, relist=False) is first
        first.asked_for -= 61  # else it may be the snapshot of a mount that is being made
        _, second = await _listed(core)
        assert second is not first
        assert _names(second.catalogue) == [b"a", b"b"]
        assert numbers_in(core.datasets.folder(dataset.id)) == [1, 2]
        dataset.keep = Keep(1)
        second.asked_for -= 61
        await _listed(core)
        assert numbers_in(core.datasets.folder(dataset.id)) == [2, 3]

    node.run(test)


def test_relist_during_a_listing_is_that_listing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    real = node.box.store.list_tree

    def slow() -> Any:
        gate("", 0)
        yield from real()

    monkeypatch.setattr(node.box.store, "list_tree", slow)

    async def test(core: Core) -> None:
        dataset = await core.datasets.attach(SOURCE, {})
        first = core.datasets.snapshot_of(dataset, relist=True)
        assert core.datasets.snapshot_of(dataset, relist=True) is first
        gate.let_go()

    node.run(test)


def test_directory_ahead_of_the_listing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.box.store.put("d/x", b"1")
    node.box.store.put("d/e/y", b"2")
    gate = Gate()
    real = node.box.store.list_tree

    def slow() -> Any:
        gate("", 0)
        yield from real()

    monkeypatch.setattr(node.box.store, "list_tree", slow)

    async def test(core: Core) -> None:
        dataset = await core.datasets.attach(SOURCE, {})
        snapshot = core.datasets.snapshot_of(dataset, relist=True)
        await core.datasets.list_directory(dataset, b"d")
        assert _names(snapshot.catalogue) == [b"d"]
        assert _names(snapshot.catalogue, b"d") == [b"e", b"x"]
        directory = snapshot.catalogue.resolve(b"d")
        assert directory is not None
        assert snapshot.catalogue.is_settled(directory.node)
        assert not snapshot.catalogue.complete
        gate.let_go()

    node.run(test)


def test_listing_that_breaks_off(node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Any:
        for path in "abc":  # the first is written at once, the others would have been joined with what follows
            yield [Entry(path, node.box.store.put(path, b"1").kind, 1)]
        raise SourceUnavailable("the wire was cut")

    monkeypatch.setattr(node.box.store, "list_tree", broken)

    async def test(core: Core) -> None:
        _, snapshot = await _listed(core)
        totals = snapshot.catalogue.totals()
        assert (totals.files, totals.complete, totals.error) == (3, False, "the wire was cut")
        job = await core.start_warmup(pb.WarmupRequest(dataset_id=node.box.dataset))
        while job.failed is None:
            await trio.testing.wait_all_tasks_blocked()
        assert "broke off: the wire was cut" in str(job.failed)

    node.run(test)
    assert "broke off: the wire was cut" in caplog.text


class Walk:
    """A store's listing that gives out the next page when the test says so."""

    def __init__(self, store: FakeStore, pages: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        self._pages = [[store.put(path, b"1") for path in page] for page in pages]
        self._gates = [Gate() for _ in pages]
        self.failure: ForebayError | None = None
        """Instead of the end."""
        self.directories: list[str] = []
        """Those that were listed by themselves."""
        real = store.list_directory

        def list_directory(path: str) -> list[Entry]:
            self.directories.append(path)
            return real(path)

        monkeypatch.setattr(store, "list_directory", list_directory)
        monkeypatch.setattr(store, "list_tree", self._list_tree)
        monkeypatch.setattr(datasets_module, "_GATHERED_S", 0.0)

    def _list_tree(self) -> Any:
        for page, gate in zip(self._pages, self._gates, strict=True):
            gate("", 0)
            yield page
        if self.failure is not None:
            raise self.failure

    async def come(self, core: Core, count: int) -> tuple[Dataset, Snapshot]:
        """Begin, and have that many pages written."""
        dataset = await core.datasets.attach(SOURCE, {})
        snapshot = core.datasets.snapshot_of(dataset, relist=True)
        await self.more(snapshot, 0, count)
        return dataset, snapshot

    async def more(self, snapshot: Snapshot, done: int, count: int) -> None:
        for gate in self._gates[done : done + count]:
            moved = snapshot.moved
            gate.let_go()
            await moved.wait()

    def rest(self) -> None:
        for gate in self._gates:
            gate.let_go()


def _settled(snapshot: Snapshot, path: bytes) -> bool:
    found = snapshot.catalogue.resolve(path)
    return found is not None and snapshot.catalogue.is_settled(found.node)


def test_directories_that_the_listing_has_passed_are_whole(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(node.box.store, [["a/b/1", "a/b/2", "a/c"], ["a/d", "a0/1"], ["z"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        assert [_settled(snapshot, path) for path in (b"", b"a", b"a/b")] == [False, False, True]
        await core.datasets.list_directory(dataset, b"a/b")
        await walk.more(snapshot, 1, 1)
        assert [_settled(snapshot, path) for path in (b"", b"a", b"a0")] == [False, True, False]
        await core.datasets.list_directory(dataset, b"a")
        assert walk.directories == []
        walk.rest()

    node.run(test)


async def _waits(core: Core, dataset: Dataset, path: bytes, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Ask for a directory; the answer must not come before `meanwhile` has begun."""
    answered = trio.Event()

    async def ask() -> None:
        await core.datasets.list_directory(dataset, path)
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not answered.is_set()
        await meanwhile()


def test_the_directory_in_which_the_listing_is_is_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(node.box.store, [["a/1", "b/1"], ["b/2"], ["b/3"], ["b/4", "c/1"], ["d"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)

        async def meanwhile() -> None:
            await walk.more(snapshot, 1, 3)

        await _waits(core, dataset, b"b", meanwhile)
        assert _names(snapshot.catalogue, b"b") == [b"1", b"2", b"3", b"4"]
        assert not snapshot.ended.is_set()
        assert walk.directories == []
        walk.rest()

    node.run(test)


def test_the_directory_to_come_is_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(node.box.store, [["a/1"], ["b/1", "b/2"], ["c/1"], ["d"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        await core.datasets.list_directory(dataset, b"")

        async def meanwhile() -> None:
            await walk.more(snapshot, 1, 2)

        await _waits(core, dataset, b"b", meanwhile)
        assert walk.directories == [""]
        walk.rest()

    node.run(test)


def test_the_directory_to_come_is_waited_for_only_so_long(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(node.box.store, [["a/1"], ["a/2"], ["a/3"], ["a/4"], ["b/1"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        await core.datasets.list_directory(dataset, b"")

        async def meanwhile() -> None:
            await walk.more(snapshot, 1, 2)

        await _waits(core, dataset, b"b", meanwhile)
        assert walk.directories == ["", "b"]
        assert _names(snapshot.catalogue, b"b") == [b"1"]
        walk.rest()

    node.run(test)


@pytest.mark.parametrize("path", [b"", b"a", b"m", b"z"])
def test_other_directories_are_listed_at_once(node: Node, monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    """Far away, and those around where the listing is: their own entries are not what comes next."""
    walk = Walk(node.box.store, [["a/b/1"], ["a/b/2", "a/c", "l/1", "m/1"], ["z/1"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        await core.datasets.list_directory(dataset, path)
        assert walk.directories == [path.decode()]
        assert _settled(snapshot, path)
        walk.rest()

    node.run(test)


def test_a_store_without_order_has_its_directories_listed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.box.store.lists_in_key_order = False
    walk = Walk(node.box.store, [["a/1", "b/1"], ["b/2"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        assert not _settled(snapshot, b"a")
        await core.datasets.list_directory(dataset, b"b")
        assert walk.directories == ["b"]
        walk.rest()

    node.run(test)


def test_a_listing_that_stalls_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "_STALLED_S", 0.05)
    walk = Walk(node.box.store, [["b/1"], ["b/2"], ["b/3"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        await core.datasets.list_directory(dataset, b"b")
        assert walk.directories == ["b"]
        assert _names(snapshot.catalogue, b"b") == [b"1", b"2", b"3"]
        walk.rest()

    node.run(test)


def test_a_listing_that_breaks_off_is_not_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    walk = Walk(node.box.store, [["b/1"], ["b/2"]], monkeypatch)
    walk.failure = SourceUnavailable("the wire was cut")
    node.box.store.put("b/3", b"1")

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)

        async def meanwhile() -> None:
            walk.rest()

        await _waits(core, dataset, b"b", meanwhile)
        assert walk.directories == ["b"]
        assert _names(snapshot.catalogue, b"b") == [b"1", b"2", b"3"]

    node.run(test)
    assert "broke off: the wire was cut" in caplog.text


def test_a_store_that_breaks_its_order_is_asked_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    walk = Walk(node.box.store, [["a/1", "b/1"], ["a/2"], ["b/2"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        assert _settled(snapshot, b"a")
        await walk.more(snapshot, 1, 1)
        assert not _settled(snapshot, b"a")
        await core.datasets.list_directory(dataset, b"a")
        assert walk.directories == ["a"]
        walk.rest()

    node.run(test)
    assert "does not list its keys in order" in caplog.text


def test_one_name_in_a_directory_that_is_being_listed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(node.box.store, [["b/1"], ["b/2"]], monkeypatch)

    async def test(core: Core) -> None:
        dataset, snapshot = await walk.come(core, 1)
        await core.datasets.list_directory(dataset, b"b", b"2")
        assert _names(snapshot.catalogue, b"b") == [b"1", b"2"]
        assert walk.directories == []
        walk.rest()

    node.run(test)


def test_stale_file_is_shown_as_it_is_now(node: Node) -> None:
    store = node.box.store
    for path in ("changed", "gone"):
        store.put(path, b"old!", "v1")

    async def test(core: Core) -> None:
        dataset, snapshot = await _listed(core)
        old = snapshot.catalogue.resolve(b"changed")
        assert old is not None
        store.put("changed", b"newer", "v2")
        del store.files["gone"]
        for path in ("changed", "gone"):
            ref = pb.FileRef(path=path.encode(), size=4, version="v1")
            with pytest.raises(ForebayError, match="no longer version v1"):
                await core.fill(pb.FillRequest(dataset_id=dataset.id, file=ref, offset=0, length=4))
        now = snapshot.catalogue.resolve(b"changed")
        assert now is not None
        assert (now.size, now.version) == (5, "v2")
        assert snapshot.catalogue.resolve(b"gone") is None
        assert snapshot.catalogue.node(old.node) == old
        assert snapshot.catalogue.totals().files == 1

    node.run(test)


# Warm-up


def _warmup(core: Core, node: Node, dataset: Dataset, snapshot: Snapshot, *paths: bytes) -> Warmup:
    request = JobRequest(dataset.id, tuple(map(os.fsdecode, paths)), jobs=4)
    return Warmup(dataset, snapshot, request, core.filler, core.small_files, node.box.storage)


def test_warmup_brings_all(node: Node) -> None:
    for n in range(30):
        node.box.store.put(f"d{n % 3}/f{n}", bytes_of(100 * n, n))
    node.box.store.put("big", bytes_of(3 * MIB))
    node.box.store.put("empty", b"")

    async def test(core: Core) -> Warmup:
        job = _warmup(core, node, *await _listed(core))
        await job.run()
        return job

    progress = node.run(test).progress
    total = sum(len(data) for data, _ in node.box.store.files.values())
    assert (progress.files_total, progress.files_done, progress.files_failed) == (32, 32, 0)
    assert (progress.bytes_total, progress.bytes_done, progress.files_uncached) == (total, total, 0)
    assert progress.finished
    assert node.box.storage.tiers[0].used_bytes == total


def test_warmup_of_paths(node: Node) -> None:
    for path in ("a/1", "a/2", "b/1", "c"):
        node.box.store.put(path, path.encode())

    async def test(core: Core) -> Warmup:
        job = _warmup(core, node, *await _listed(core), b"a", b"c")
        await job.run()
        return job

    progress = node.run(test).progress
    assert (progress.files_total, progress.files_done, progress.bytes_total, progress.bytes_done) == (3, 3, 7, 7)
    assert {read.path for read in node.box.store.reads} == {"a/1", "a/2", "c"}


def test_warmup_of_a_path_that_is_not_there(node: Node) -> None:
    async def test(core: Core) -> None:
        with pytest.raises(SourceNotFound, match="there is no 'x' in snapshot 1"):
            await _warmup(core, node, *await _listed(core), b"x").run()

    node.run(test)


def test_warmup_counts_what_fails_and_goes_on(node: Node) -> None:
    for n in range(5):
        node.box.store.put(f"f{n}", bytes_of(1000, n))
    node.box.store.faults = [SourceUnavailable("refused")]

    async def test(core: Core) -> Warmup:
        job = _warmup(core, node, *await _listed(core))
        await job.run()
        return job

    progress = node.run(test).progress
    assert (progress.files_done, progress.files_failed, len(progress.failures)) == (4, 1, 1)
    assert "refused" in progress.failures[0]


def test_warmup_without_room(make_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box(2 * MIB, fill=FillConfig(part_bytes=MIB))
    node = Node(box, monkeypatch)
    box.store.put("big", bytes_of(5 * MIB))
    box.store.put("small", bytes_of(1000))

    async def test(core: Core) -> Warmup:
        job = _warmup(core, node, *await _listed(core))
        await job.run()
        return job

    progress = node.run(test).progress
    assert (progress.files_done, progress.files_failed) == (2, 0)
    assert progress.files_uncached >= 1
    assert sum(r.length for r in box.store.reads) <= 2 * MIB + 1000, "what cannot stay is not fetched"


def test_regression_relist_during_a_warmup(node: Node) -> None:
    """`forebay mount` of a dataset whose `forebay warmup` is under way (and that no mount reads yet)."""
    for n in range(8):
        node.box.store.put(f"f{n}", bytes_of(1000, n))
    gate = Gate()
    node.box.store.before_piece = gate

    async def test(core: Core) -> None:
        await _listed(core)
        job = await core.start_warmup(pb.WarmupRequest(dataset_id=node.box.dataset, jobs=1))
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        await core.attach(pb.AttachRequest(source=SOURCE, list=True, relist=True))
        gate.let_go()
        await job.ended.wait()
        assert job.failed is None
        assert job.warmup.progress.files_done == 8

    node.run(test)


# What is in use


def test_regression_a_long_warmup_does_not_evict_itself(
    make_box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box(MIB, fill=FillConfig(window_max_bytes=MIB))
    node = Node(box, monkeypatch)
    for n in range(8):
        box.store.put(f"f{n}", bytes_of(300 * KIB, n))
    gate = Gate(lambda path, position: path == "f2")
    box.store.before_piece = gate

    async def test(core: Core) -> None:
        dataset, _ = await _listed(core)
        job = await core.start_warmup(pb.WarmupRequest(dataset_id=dataset.id, jobs=1))
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        dataset.last_used = time.monotonic() - core_module.IN_USE_S - 1  # it has been running for a minute
        gate.let_go()
        await job.ended.wait()

    node.run(test)
    assert len(box.store.reads) == 3, "three fit; the others are not fetched, and push nothing out"


def test_a_pause_in_reading_does_not_cost_the_data(node: Node) -> None:
    async def test(core: Core) -> None:
        dataset, _ = await _listed(core)
        assert core._idle(dataset.id) is None
        dataset.last_used -= core_module.IN_USE_S - 1
        assert core._idle(dataset.id) is None
        dataset.last_used -= 2
        assert core._idle(dataset.id) == dataset.last_used
        other = replace(dataset)
        assert core._idle(type(other.id)("11" * 8)) == 0.0

    node.run(test)


def test_status_shows_tiers_and_datasets(node: Node) -> None:
    node.box.store.put("a", bytes_of(1000))

    async def test(core: Core) -> None:
        job = _warmup(core, node, *await _listed(core))
        await job.run()
        status = await core.status(pb.StatusRequest())
        (tier,), (dataset,) = status.tiers, status.datasets
        assert (tier.used_bytes, tier.quota_bytes, tier.state) == (1000, 1 << 30, "normal")
        assert (dataset.files, dataset.bytes, dataset.gets, dataset.fetched_bytes) == (1, 1000, 1, 1000)
        assert [(h.tier, h.bytes, h.files) for h in dataset.holdings] == [(0, 1000, 1)]

    node.run(test)
