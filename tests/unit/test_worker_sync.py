"""Syncs: what they bring, what they leave, what they join, and what stays when they fail."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from cache_box import RUN_S, Box
from fake_store import HELD_S, Gate

from forebay.cacheruntime import mounts
from forebay.cacheruntime.catalogue_changes import changes_path, read_changes
from forebay.cacheruntime.errors import CacheError, NotAttached, SourceUnavailable
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.snapshot_history import Keep
from forebay.cacheruntime.worker import datasets as datasets_module
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.proto import worker_pb2 as pb

SOURCE = "fake://store"


class Node:
    """A worker's core over a box, with a register of mounts."""

    def __init__(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box = box
        self.listings = 0
        self.before_listing: Callable[[], object] = lambda: None
        self.fails: Exception | None = None
        real = box.store.list_tree

        def list_tree() -> Iterator[Any]:
            self.listings += 1
            self.before_listing()
            yield from real()
            if self.fails is not None:
                raise self.fails

        monkeypatch.setattr(box.store, "list_tree", list_tree)
        monkeypatch.setattr(datasets_module, "open_store", lambda *_: box.store)

    def put(self, **files: str) -> None:
        """Set files: their name, then their bytes, which are their version too."""
        for path, text in files.items():
            self.box.store.put(path, text.encode(), text)

    def run(self, test: Any) -> None:
        async def main() -> None:
            with trio.fail_after(RUN_S):
                async with trio.open_nursery() as nursery:
                    core = Core(self.box.config, self.box.storage, nursery, "test")
                    try:
                        await test(core)
                    finally:
                        for dataset in core.datasets.all.values():
                            for snapshot in (*dataset.snapshots.values(), *dataset.dropped):
                                await snapshot.ended.wait()
                                snapshot.writer.close()

        trio.run(main)

    async def mount(self, core: Core, directory: str = "/mnt") -> pb.AttachReply:
        """What `forebay mount` does: attach, wait, register."""
        reply = await core.attach(pb.AttachRequest(source=SOURCE, list=True, relist=True))
        await core.datasets.get(reply.dataset_id).snapshots[reply.snapshot].ended.wait()
        self.show(reply.dataset_id, reply.snapshot, reply.catalogue, directory)
        return reply

    def show(self, dataset: str, snapshot: int, catalogue: str, directory: str = "/mnt") -> None:
        state = MountState(
            dir=directory, source=SOURCE, url=SOURCE, dataset_id=dataset, snapshot=snapshot, catalogue=catalogue,
            cache_dir=str(self.box.config.cache_dir), engine="kernel", open_mode="cached", open_mode_reason="",
            supervisor=os.getpid(), supervisor_start=mounts.start_time(os.getpid()) or 0,
        )  # fmt: skip
        folder = mounts.mount_folder(self.box.config.runtime_dir, directory)
        folder.mkdir(parents=True, exist_ok=True)
        mounts.write_state(folder, state)

    def on_disk(self, dataset: Dataset) -> set[int]:
        folder = self.box.config.cache_dir / "datasets" / dataset.id
        return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


@pytest.fixture
def node(box: Box, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(box, monkeypatch)


async def _sync(core: Core, dataset: str, shown: int = 0) -> pb.SyncReply:
    return await core.sync(pb.SyncRequest(dataset_id=dataset, shown=shown))


def _counts(reply: pb.SyncReply) -> tuple[int, int, int]:
    return reply.added, reply.changed, reply.removed


def _told(reply: pb.SyncReply, before: int) -> set[tuple[bytes, str]]:
    return {(c.name, c.kind.name) for c in read_changes(changes_path(Path(reply.catalogue), before))}


def test_sync_shows_what_changed(node: Node) -> None:
    """[C8] The next snapshot has what the source has now, and says how it differs."""
    node.put(same="1", changed="1", gone="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        old = core.datasets.get(mounted.dataset_id).snapshots[1].catalogue.resolve(b"gone")
        assert old is not None
        node.put(changed="2", new="1")
        del node.box.store.files["gone"]
        reply = await _sync(core, mounted.dataset_id, mounted.snapshot)
        assert (reply.snapshot, reply.previous) == (2, 1)
        assert _counts(reply) == (1, 1, 1)
        changes = {(b"new", "ADDED"), (b"changed", "CHANGED"), (b"gone", "REMOVED"), (b"", "DIRECTORY")}
        assert _told(reply, 1) == changes
        snapshot = core.datasets.get(mounted.dataset_id).snapshots[2]
        assert Path(reply.catalogue) == snapshot.catalogue.folder
        assert snapshot.catalogue.complete
        assert snapshot.catalogue.resolve(b"gone") is None
        carried = snapshot.catalogue.node(old.node)
        assert carried is not None
        assert (carried.content, carried.carried) == (old.content, 1)

    node.run(test)


def test_nothing_changed(node: Node) -> None:
    """The newest snapshot stays, and nothing of the listing is left."""
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        for _ in range(3):
            reply = await _sync(core, mounted.dataset_id, 1)
            assert (reply.snapshot, reply.previous, _counts(reply)) == (1, 1, (0, 0, 0))
            assert reply.catalogue == mounted.catalogue
        dataset = core.datasets.get(mounted.dataset_id)
        assert set(dataset.snapshots) == node.on_disk(dataset) == {1}
        assert dataset.dropped == []
        assert node.listings == 4

    node.run(test)


def test_each_mount_is_told_the_way_from_its_own_snapshot(node: Node) -> None:
    node.put(a="1")

    async def test(core: Core) -> None:
        first = await node.mount(core, "/one")
        node.put(b="1")
        second = await node.mount(core, "/two")
        node.put(c="1")
        reply = await _sync(core, first.dataset_id, first.snapshot)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (3, first.snapshot, (2, 0, 0))
        assert _told(reply, first.snapshot) == {(b"b", "ADDED"), (b"c", "ADDED"), (b"", "DIRECTORY")}
        assert _told(reply, second.snapshot) == {(b"c", "ADDED"), (b"", "DIRECTORY")}
        reply = await _sync(core, first.dataset_id, first.snapshot)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (3, first.snapshot, (2, 0, 0))
        reply = await _sync(core, first.dataset_id)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (3, 3, (0, 0, 0))

    node.run(test)


def test_a_sync_that_fails_changes_nothing(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """[C9] Mounts go on with what they show; the half-made snapshot is removed; the error names the cause."""
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        node.put(b="1")
        node.fails = SourceUnavailable("the wire was cut")
        with pytest.raises(SourceUnavailable, match=r"could not be listed again: the wire was cut; snapshot 1 stays"):
            await _sync(core, mounted.dataset_id, 1)
        dataset = core.datasets.get(mounted.dataset_id)
        assert set(dataset.snapshots) == node.on_disk(dataset) == {1}
        shown = dataset.snapshots[1].catalogue
        assert [shown.resolve(path) is not None for path in (b"a", b"b")] == [True, False]
        node.fails = None
        reply = await _sync(core, mounted.dataset_id, 1)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (3, 1, (1, 0, 0))

    node.run(test)
    assert "broke off: the wire was cut" in caplog.text


def test_a_sync_without_room_changes_nothing(node: Node) -> None:
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        node.put(b="1")
        draft = Path(mounted.catalogue).parent / "2" / "changes-1.draft"
        node.before_listing = lambda: draft.mkdir()  # no file can be made there
        with pytest.raises(CacheError, match="changes-1 cannot be written: Is a directory; make room there"):
            await _sync(core, mounted.dataset_id, 1)
        dataset = core.datasets.get(mounted.dataset_id)
        assert set(dataset.snapshots) == node.on_disk(dataset) == {1}

    node.run(test)


def test_syncs_at_a_time_are_one(node: Node) -> None:
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        node.put(b="1")
        gate = Gate()
        node.before_listing = lambda: gate("", 0)
        replies: list[pb.SyncReply] = []

        async def sync() -> None:
            replies.append(await _sync(core, mounted.dataset_id, 1))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(sync)
            await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
            gate.let_go()
        assert [(r.snapshot, r.previous, _counts(r)) for r in replies] == [(2, 1, (1, 0, 0))] * 3
        assert node.listings == 2

    node.run(test)


def test_syncs_at_a_time_fail_together(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        gate = Gate()
        node.before_listing = lambda: gate("", 0)
        node.fails = SourceUnavailable("the wire was cut")
        failures: list[str] = []

        async def sync() -> None:
            try:
                await _sync(core, mounted.dataset_id)
            except SourceUnavailable as error:
                failures.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(sync)
            await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
            gate.let_go()
        assert len(failures) == 2
        assert failures[0] == failures[1]
        assert node.listings == 2

    node.run(test)
    assert "the wire was cut" in caplog.text


def test_sync_joins_the_listing_of_a_mount(node: Node) -> None:
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core, "/one")
        node.put(b="1")
        gate = Gate()
        node.before_listing = lambda: gate("", 0)
        dataset = core.datasets.get(mounted.dataset_id)
        second = core.datasets.snapshot_of(dataset, relist=True)
        replies: list[pb.SyncReply] = []

        async def sync() -> None:
            replies.append(await _sync(core, mounted.dataset_id, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
            gate.let_go()
        assert [(r.snapshot, r.previous, _counts(r)) for r in replies] == [(second.number, 1, (1, 0, 0))]
        assert node.listings == 2

    node.run(test)


def test_sync_joins_the_first_listing(node: Node) -> None:
    node.put(a="1")

    async def test(core: Core) -> None:
        gate = Gate()
        node.before_listing = lambda: gate("", 0)
        dataset = await core.datasets.attach(SOURCE, {})
        first = core.datasets.snapshot_of(dataset, relist=True)
        node.show(dataset.id, first.number, str(first.writer.folder))
        async with trio.open_nursery() as nursery:

            async def let_go() -> None:
                await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
                gate.let_go()

            nursery.start_soon(let_go)
            reply = await _sync(core, dataset.id, 1)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (1, 1, (0, 0, 0))
        assert node.listings == 1

    node.run(test)


def test_a_mount_that_was_told_of_the_new_snapshot_keeps_it(node: Node) -> None:
    """Also when it turns out to be no news."""
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core, "/one")
        gate = Gate()
        node.before_listing = lambda: gate("", 0)
        dataset = core.datasets.get(mounted.dataset_id)
        replies: list[pb.SyncReply] = []

        async def sync() -> None:
            replies.append(await _sync(core, mounted.dataset_id, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
            assert core.datasets.snapshot_of(dataset, relist=True).number == 2
            gate.let_go()
        assert [(r.snapshot, r.previous, _counts(r)) for r in replies] == [(2, 1, (0, 0, 0))]
        assert _told(replies[0], 1) == set()
        assert node.on_disk(dataset) == {1, 2}

    node.run(test)


def test_neither_the_new_nor_the_shown_snapshot_is_removed_meanwhile(node: Node) -> None:
    node.put(a="1")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        dataset = core.datasets.get(mounted.dataset_id)
        dataset.keep = Keep(1)
        dataset.snapshots[1].asked_for -= 100  # long ago
        node.put(b="1")
        reply = await _sync(core, dataset.id, 1)
        third = core.datasets.snapshot_of(dataset, relist=True)  # another mount is being made
        await third.ended.wait()
        assert node.on_disk(dataset) == {1, 2, 3}
        node.show(dataset.id, reply.snapshot, reply.catalogue)
        for snapshot in dataset.snapshots.values():
            snapshot.asked_for -= 100
        await core.datasets.next_snapshot(dataset).ended.wait()
        assert node.on_disk(dataset) == {2, 3, 4}, "one is shown, one the newest, one begun"

    node.run(test)


def test_many_syncs_leave_no_snapshots(node: Node) -> None:
    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        dataset = core.datasets.get(mounted.dataset_id)
        dataset.keep = Keep(1)
        shown = 1
        for number in range(12):
            node.put(**{f"f{number}": "1"})
            for snapshot in dataset.snapshots.values():
                snapshot.asked_for -= 40  # a sync each 40 s
            reply = await _sync(core, dataset.id, shown)
            assert (reply.previous, _counts(reply)) == (shown, (1, 0, 0))
            shown = reply.snapshot
            node.show(dataset.id, shown, reply.catalogue)
        assert len(node.on_disk(dataset)) <= 4

    node.run(test)


def test_sync_after_a_listing_that_broke_off(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.put(a="1")
    node.fails = SourceUnavailable("the wire was cut")

    async def test(core: Core) -> None:
        mounted = await node.mount(core)
        node.fails = None
        reply = await _sync(core, mounted.dataset_id, 1)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (2, 1, (0, 0, 0)), "half a listing does not stay"
        assert core.datasets.get(mounted.dataset_id).snapshots[2].catalogue.complete

    node.run(test)
    assert "broke off" in caplog.text


def test_sync_of_a_new_worker(node: Node) -> None:
    """Mounts of which it knows from the register alone are told too."""
    node.put(a="1")

    async def mount(core: Core) -> None:
        await node.mount(core, "/one")
        node.put(b="1")
        await node.mount(core, "/two")

    async def sync(core: Core) -> None:
        with pytest.raises(NotAttached):
            await _sync(core, node.box.dataset, 1)
        node.put(c="1")
        await core.attach(pb.AttachRequest(source=SOURCE, list=True, snapshot=2))
        reply = await _sync(core, node.box.dataset, 1)
        assert (reply.snapshot, reply.previous, _counts(reply)) == (3, 1, (2, 0, 0))
        assert _told(reply, 2) == {(b"c", "ADDED"), (b"", "DIRECTORY")}

    node.run(mount)
    node.run(sync)
