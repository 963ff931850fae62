"""Datasets of several stores in the worker: shared content, views, pins, and what is kept and forgotten."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from cache_box import RUN_S, Box
from fake_store import FakeStore

from forebay.cacheruntime import mounts
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.dataset_source import StoreMount, tree_id
from forebay.cacheruntime.errors import SourceNotFound, SourceStale, SourceUnavailable
from forebay.cacheruntime.keys import content_id
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.snapshot_history import UNCHANGED, numbers_in
from forebay.cacheruntime.worker import datasets as datasets_module
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.orders import SeveralSinks
from forebay.proto import worker_pb2 as pb

NAME = "dataset://default/both"
ONE, TWO = "file:///one", "file:///two"
STORES = (StoreMount("a", ONE), StoreMount("deep/b", TWO))


class Node:
    """A worker's core over a box, whose sources are fake stores."""

    def __init__(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        self.box = box
        self.stores = {ONE: FakeStore(ONE), TWO: FakeStore(TWO), f"{TWO}/sub": FakeStore(f"{TWO}/sub")}
        monkeypatch.setattr(datasets_module, "open_store", lambda source, *_: self.stores[source])

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

    async def attach(self, core: Core, *stores: StoreMount, name: str = NAME, **more: Any) -> pb.AttachReply:
        """As `forebay mount` does; returns when all is listed."""
        made = [store.to_proto() for store in stores or STORES]
        retention = pb.Retention(**more.pop("retention", {}))
        request = pb.AttachRequest(source=name, stores=made, list=True, retention=retention, **more)
        reply = await core.attach(request)
        await core.datasets.get(reply.dataset_id).snapshots[reply.snapshot].ended.wait()
        return reply

    def show(self, reply: pb.AttachReply, directory: str = "/mnt", **more: Any) -> None:
        """Register a mount."""
        state = MountState(
            dir=directory, source=NAME, url=NAME, dataset_id=reply.dataset_id, snapshot=reply.snapshot,
            catalogue=reply.catalogue, cache_dir=str(self.box.config.cache_dir), engine="kernel", open_mode="cached",
            open_mode_reason="", supervisor=1, supervisor_start=mounts.start_time(1) or 0, **more,
        )  # fmt: skip
        folder = mounts.mount_folder(self.box.config.runtime_dir, directory)
        folder.mkdir(parents=True, exist_ok=True)
        mounts.write_state(folder, state)

    async def read(self, core: Core, reply: pb.AttachReply, path: str) -> None:
        node = catalogue(core, reply).resolve(path.encode())
        assert node is not None
        ref = pb.FileRef(path=path.encode(), size=node.size, version=node.version)
        await core.fill(pb.FillRequest(dataset_id=reply.dataset_id, file=ref, length=node.size, window=node.size))


@pytest.fixture
def node(box: Box, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(box, monkeypatch)
    made.stores[ONE].put("x", b"one x")
    made.stores[ONE].put("d/y", b"one d/y")
    made.stores[TWO].put("z", b"two z")
    made.stores[TWO].put("sub/w", b"two sub w")
    made.stores[f"{TWO}/sub"].put("w", b"two sub w")
    return made


def dataset_of(core: Core, reply: pb.AttachReply) -> Dataset:
    return core.datasets.get(reply.dataset_id)


def catalogue(core: Core, reply: pb.AttachReply) -> Catalogue:
    return dataset_of(core, reply).snapshots[reply.snapshot].catalogue


def paths(core: Core, reply: pb.AttachReply) -> set[str]:
    shown = catalogue(core, reply)
    return {shown.path_of(node.node).decode() for node in shown.files_below(shown.resolve(b"").node)}  # type: ignore[union-attr]


def test_names_and_content(node: Node) -> None:
    async def test(core: Core) -> None:
        reply = await node.attach(core)
        assert reply.dataset_id == tree_id(NAME, list(STORES))
        assert paths(core, reply) == {"a/x", "a/d/y", "deep/b/z", "deep/b/sub/w"}
        found = catalogue(core, reply).resolve(b"deep/b/z")
        assert found is not None
        assert found.content == content_id(TWO, "z", 5, "v1")
        await node.read(core, reply, "deep/b/z")
        assert [read.path for read in node.stores[TWO].reads] == ["z"]
        assert node.box.storage.find(found.content) is not None
        assert (core.datasets.folder(dataset_of(core, reply).id) / "source").read_text() == NAME

    node.run(test)


def test_directories_are_listed_ahead_by_their_store(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Iterator[Any]:
        raise SourceUnavailable("the wire was cut")

    monkeypatch.setattr(node.stores[ONE], "list_tree", fail)

    async def test(core: Core) -> None:
        with pytest.raises(SourceUnavailable) as caught:
            await node.attach(core)
        assert f"mount /a ({ONE}): the wire was cut" in str(caught.value)
        dataset = core.datasets.get(tree_id(NAME, list(STORES)))
        for path in (b"", b"deep", b"deep/b"):
            await core.list_directory(pb.ListDirectoryRequest(dataset_id=dataset.id, path=path))
        shown = dataset.snapshots[1].catalogue
        assert shown.resolve(b"deep/b/z") is not None
        assert [child.name for child in shown.children(shown.resolve(b"").node)] == [b"a", b"deep"]  # type: ignore[union-attr]

    node.run(test)


def test_what_one_dataset_cached_is_a_hit_for_another(node: Node) -> None:
    async def test(core: Core) -> None:
        reply = await node.attach(core)
        await node.read(core, reply, "a/x")
        view = await node.attach(
            core, StoreMount("v", ONE, owner=reply.dataset_id, owner_path="a"), name="dataset://default/view"
        )
        await node.read(core, view, "v/x")
        assert len(node.stores[ONE].reads) == 1
        plain = await core.attach(pb.AttachRequest(source=ONE, list=True))
        await dataset_of(core, plain).snapshots[1].ended.wait()
        found = catalogue(core, plain).resolve(b"x")
        assert found is not None
        assert node.box.storage.find(found.content) is not None
        await node.read(core, view, "v/d/y")
        (held,) = [held for held in node.box.storage.index.reader.holdings() if held.bytes]
        assert (held.dataset, held.files) == (reply.dataset_id, 2), "what a view caches belongs to the whole"
        file = dataset_of(core, view).file("v/d/y", 7, "v1")
        assert (file.path, file.dataset, file.dataset_path) == ("d/y", reply.dataset_id, "a/d/y")
        assert dataset_of(core, reply).file("deep/b/z", 5, "v1").dataset_path == "deep/b/z"

    node.run(test)


def test_path_rules_are_of_paths_in_the_dataset(node: Node) -> None:
    """Also for what a view reads, whose paths are others, and whatever the store calls them."""
    policy = pb.CachePolicy(paths=[pb.PathRule(path=b"deep/b/sub", quota_bytes=1)])

    async def test(core: Core) -> None:
        whole = await node.attach(core, cache_policy=policy)
        store = StoreMount("v", TWO, owner=whole.dataset_id, owner_path="deep/b")
        view = await node.attach(core, store, name="dataset://default/view")
        for path in ("v/sub/w", "v/z"):
            await node.read(core, view, path)
        found = {path: catalogue(core, view).resolve(path) for path in (b"v/sub/w", b"v/z")}
        cached = {path for path, each in found.items() if each and node.box.storage.find(each.content) is not None}
        assert cached == {b"v/z"}

    node.run(test)


def test_a_mounted_view_keeps_the_whole_in_use(node: Node) -> None:
    async def test(core: Core) -> None:
        whole = await node.attach(core)
        store = StoreMount("v", ONE, owner=whole.dataset_id)
        view = await node.attach(core, store, name="dataset://default/view")
        for dataset in core.datasets.all.values():
            dataset.last_used -= 100
        assert core._idle(dataset_of(core, whole).id) is None
        for dataset in core.datasets.all.values():
            dataset.last_used -= 100
        name = next(iter(core.datasets.all))
        assert core._idle(name) is not None
        node.show(view, owners=(whole.dataset_id,))
        assert core._idle(name) is None

    node.run(test)


def test_an_order_of_a_view_is_told_to_the_policy_of_the_dataset_it_caches_for(node: Node) -> None:
    async def test(core: Core) -> None:
        whole = await node.attach(core, cache_policy=pb.CachePolicy(policy="next-use"))
        store = StoreMount("v", TWO, owner=whole.dataset_id, owner_path="deep/b")
        view = await node.attach(core, store, name="dataset://default/view")
        files = [catalogue(core, view).resolve(path) for path in (b"v/sub/w", b"v/z")]
        order = [found.node for found in files if found is not None]
        await core.post_order(
            pb.PostOrderRequest(dataset_id=view.dataset_id, snapshot=view.snapshot, reader="r", nodes=order)
        )
        for path in ("v/sub/w", "v/z"):
            await node.read(core, view, path)
        space = node.box.storage.space(dataset_of(core, whole).id)
        node.box.storage.rooms.load(space)
        contents = [found.content for found in files if found is not None]
        assert list(space.policy.victims()) == contents[::-1], "what is read last goes first"
        for dataset in core.datasets.all.values():
            dataset.last_used -= 100
        assert core._idle(dataset_of(core, whole).id) is None
        core.orders.leave("r")

    node.run(test)


def test_an_order_goes_to_all_policies_that_a_view_caches_for(node: Node) -> None:
    async def test(core: Core) -> None:
        policy = pb.CachePolicy(policy="next-use")
        wholes = [await node.attach(core, name=f"dataset://default/{n}", cache_policy=policy) for n in "ab"]
        stores = [StoreMount(f"v{n}", TWO, owner=whole.dataset_id) for n, whole in enumerate(wholes)]
        view = await node.attach(core, *stores, name="dataset://default/view")
        first = core._sink(dataset_of(core, view))
        assert first == core._sink(dataset_of(core, view))
        assert isinstance(first, SeveralSinks)
        assert len(first.sinks) == 2

    node.run(test)


def test_a_view_of_a_snapshot_shows_what_was_listed(node: Node) -> None:
    async def test(core: Core) -> None:
        whole = await node.attach(core)
        node.stores[TWO].put("new", b"new")
        node.stores[TWO].put("z", b"other", "v2")
        store = StoreMount("old", owner=whole.dataset_id, of_dataset=NAME, of_snapshot=1, of_path="deep", stores=STORES)
        view = await node.attach(core, store, name="dataset://default/view")
        assert paths(core, view) == {"old/b/z", "old/b/sub/w"}
        file = dataset_of(core, view).file("old/b/z", 5, "v1")
        assert (file.path, file.dataset, file.dataset_path) == ("z", whole.dataset_id, "deep/b/z")
        with pytest.raises(SourceStale):
            await node.read(core, view, "old/b/z")
        await node.read(core, view, "old/b/sub/w")
        assert node.stores[TWO].reads[-1].path == "sub/w"
        assert paths(core, view) == {"old/b/z", "old/b/sub/w"}
        synced = await core.sync(pb.SyncRequest(dataset_id=view.dataset_id, shown=1))
        assert synced.snapshot == synced.previous == 1
        missing = StoreMount("old", of_dataset=NAME, of_snapshot=7, stores=STORES)
        with pytest.raises(SourceNotFound, match=f"{NAME} has no snapshot 7; there are 1"):
            await node.attach(core, missing, name="dataset://default/other")

    node.run(test)


def test_a_view_of_a_snapshot_attaches_the_whole_to_a_new_worker(node: Node) -> None:
    store = StoreMount("", of_dataset=NAME, of_snapshot=1, of_path="deep/b/sub", stores=STORES)

    async def first(core: Core) -> None:
        await node.attach(core)

    async def second(core: Core) -> None:
        view = await node.attach(core, store, name="dataset://default/both/deep/b/sub")
        assert paths(core, view) == {"w"}
        found = catalogue(core, view).resolve(b"w")
        assert found is not None
        assert found.content == content_id(TWO, "sub/w", 9, "v1")

    node.run(first)
    node.run(second)


def test_a_pinned_snapshot_has_to_be_there_and_is_never_corrected(node: Node) -> None:
    async def test(core: Core) -> None:
        first = await node.attach(core)
        node.stores[TWO].put("new", b"new")
        second = await node.attach(core, relist=True)
        assert (first.snapshot, second.snapshot) == (1, 2)
        node.show(second, "/newest")
        pinned = await node.attach(core, snapshot=1, pinned=True)
        node.show(pinned, "/pinned", pinned=True)
        assert pinned.snapshot == 1
        node.stores[TWO].put("z", b"z again", "v2")
        with pytest.raises(SourceStale):
            await node.read(core, pinned, "deep/b/z")
        await node.read(core, second, "deep/b/z")
        assert [catalogue(core, r).resolve(b"deep/b/z").version for r in (pinned, second)] == ["v1", "v2"]  # type: ignore[union-attr]
        with pytest.raises(SourceNotFound, match="has no snapshot 9; there are 1, 2"):
            await node.attach(core, snapshot=9, pinned=True)
        assert numbers_in(core.datasets.folder(dataset_of(core, first).id)) == [1, 2]
        assert core._snapshots_shown(dataset_of(core, first).id) == {2}, "a sync tells nothing to the pinned mount"

    node.run(test)


def test_the_newest_snapshot_on_disk_will_do(node: Node) -> None:
    async def first(core: Core) -> None:
        await node.attach(core)

    async def second(core: Core) -> None:
        node.stores[TWO].put("new", b"new")
        reply = await node.attach(core, stored=True)
        assert reply.snapshot == 1
        assert "deep/b/new" not in paths(core, reply)
        reply = await node.attach(core, relist=True)
        assert reply.snapshot == 2

    node.run(first)
    node.run(second)


def test_a_listing_that_shows_nothing_new_is_no_history(node: Node) -> None:
    async def test(core: Core) -> None:
        for number in range(1, 5):
            reply = await node.attach(core, relist=True)
            folder = Path(reply.catalogue)
            if number > 1:
                with trio.fail_after(5):
                    while not (folder / UNCHANGED).exists():
                        await trio.sleep(0.01)
            for snapshot in dataset_of(core, reply).snapshots.values():
                snapshot.asked_for -= 100
        node.stores[TWO].put("z", b"Two Z", "v2")  # same size and count
        reply = await node.attach(core, relist=True)
        await trio.sleep(0.1)
        assert not (Path(reply.catalogue) / UNCHANGED).exists()
        core.datasets.history.collect(dataset_of(core, reply))
        assert numbers_in(folder.parent) == [1, 5]

    node.run(test)


@pytest.mark.semantics("S3")
def test_old_snapshots_go_by_the_datasets_own_rule(node: Node) -> None:
    async def test(core: Core) -> None:
        for number in range(1, 7):
            node.stores[TWO].put(f"f{number}", b"1")
            reply = await node.attach(core, relist=True, retention={"count": 2, "pinned": [2]})
            for snapshot in dataset_of(core, reply).snapshots.values():
                snapshot.asked_for -= 100
        folder = Path(reply.catalogue).parent
        dataset = dataset_of(core, reply)
        core.datasets.history.collect(dataset)
        assert numbers_in(folder) == [2, 5, 6]
        assert set(dataset.snapshots) == {6}, "what is kept for later is not kept open"
        request = pb.CollectSnapshotsRequest(dataset_id=dataset.id, retention=pb.Retention(count=1))
        assert list((await core.collect_snapshots(request)).removed) == [2, 5]
        assert numbers_in(folder) == [6]

    node.run(test)


def test_snapshots_of_a_dataset_that_is_not_attached_can_be_removed(node: Node) -> None:
    async def first(core: Core) -> None:
        for number in range(3):
            node.stores[TWO].put(f"f{number}", b"1")
            await node.attach(core, relist=True)

    async def second(core: Core) -> None:
        name = tree_id(NAME, list(STORES))
        request = pb.CollectSnapshotsRequest(dataset_id=name, retention=pb.Retention(count=1))
        assert list((await core.collect_snapshots(request)).removed) == [1, 2]

    node.run(first)
    node.run(second)


def test_forgetting_a_dataset(node: Node) -> None:
    async def test(core: Core) -> None:
        reply = await node.attach(core)
        part = await node.attach(core, StoreMount("", ONE), name=f"{NAME}/a")
        other = await node.attach(core, StoreMount("", ONE), name=f"{NAME}-2")
        await node.read(core, reply, "a/x")
        await node.read(core, other, "d/y")
        forgotten = await core.forget(pb.ForgetRequest(name=NAME, purge=True))
        assert (forgotten.snapshots, forgotten.bytes) == (2, 5)
        root = core.datasets.folder(dataset_of(core, other).id).parent
        assert [folder.name for folder in root.iterdir()] == [other.dataset_id]
        assert set(core.datasets.all) == {other.dataset_id}
        assert part.dataset_id not in core.datasets.all
        (held,) = [held for held in node.box.storage.index.reader.holdings() if held.files]
        assert (held.dataset, held.bytes) == (other.dataset_id, 7)

    node.run(test)


def test_stores_with_other_credentials_are_taken_up(node: Node) -> None:
    async def test(core: Core) -> None:
        first = await node.attach(core)
        again = await node.attach(core, StoreMount("a", ONE, {"anon": "true"}), STORES[1])
        assert again.dataset_id == first.dataset_id
        assert dataset_of(core, again).definition.stores[0].options == {"anon": "true"}

    node.run(test)
