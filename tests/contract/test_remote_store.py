"""The cluster as an under-store: what a client node sees of a source must be what its own store would have shown.

A real worker process stands behind it. Bytes do not come by it, so what the contract says of reading is not for it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.remote_store import RemoteStore
from forebay.cacheruntime.cluster.security import INSECURE, Security
from forebay.cacheruntime.config import ClusterConfig
from forebay.cacheruntime.dataset_source import ClusterView, SourceSpec
from forebay.cacheruntime.errors import SourceNotFound, SourceUnavailable
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.understore.base import Entry, Kind, UnderStore
from tests.contract.conftest import Place
from tests.contract.test_understore import ODD_NAMES, assert_good_message, files, tree

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster" / "support"))

from loopback import Node, free_ports

pytestmark = pytest.mark.slow


class Remote:
    """A member, and stores that ask it."""

    def __init__(self, root: Path) -> None:
        own = f"127.0.0.1:{free_ports(1)[0]}"
        self.node = Node(root, ClusterConfig(listen=own, advertise=own, peers=f"static:{own}"), {}).start()
        self._channels = Channels(Security.from_setting(INSECURE))
        self._address = Address(own)
        self.anew = False

    def of(self, place: Place, path: str = "", snapshot: int = 0, below: str = "") -> RemoteStore:
        """In place of the store of a place, or of a path in it; of a root below it."""
        spec = SourceSpec(place.source + (f"/{below}" if below else ""), place.options)
        name = DatasetId(self.node.client.attach(spec).dataset_id)
        return self.store(spec.url + (f"/{path}" if path else ""), ClusterView(name, path, snapshot))

    def store(self, url: str, view: ClusterView) -> RemoteStore:
        return RemoteStore(url, view, lambda: [self._channels.stub(self._address)], lambda _: self.anew)

    def close(self) -> None:
        self._channels.close()
        self.node.close()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    made = Remote(tmp_path_factory.mktemp("member"))
    yield made
    made.close()


@pytest.fixture(params=["s3", "posix"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def everything(store: UnderStore) -> dict[str, Entry]:
    """With the directories that a store does not list as they are implied."""
    return {path: entry for path, entry in tree(store).items() if entry.kind is not Kind.DIRECTORY}


def assert_alike(remote: RemoteStore, own: UnderStore) -> None:
    remote.probe()
    assert remote.url == own.url
    listed = everything(own)
    assert everything(remote) == listed
    directories = {"", *(os.path.dirname(path) for path in listed)}
    for directory in directories:
        mine, theirs = remote.list_directory(directory), own.list_directory(directory)
        assert sorted(mine, key=lambda entry: entry.path) == sorted(theirs, key=lambda entry: entry.path)
    for path, entry in listed.items():
        if entry.kind is Kind.FILE:
            assert remote.stat(path) == entry


@pytest.mark.semantics("R1")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(remote: Remote, place: Place, name: str) -> None:
    place.put(f"dir/{name}", b"0123456789")
    place.put(f"sub/{name}/x", b"y")
    place.put("zero", b"")
    assert_alike(remote.of(place), place.open())
    assert set(everything(remote.of(place, f"sub/{name}"))) == {"x"}
    assert remote.of(place, "sub").stat(f"{name}/x").path == f"{name}/x"
    assert [entry.path for entry in remote.of(place, "dir").list_directory("")] == [name]


def test_links_modes_and_names_that_are_not_utf8(remote: Remote, posix_place: Place, tmp_path: Path) -> None:
    posix_place.put("d/real", b"123")
    (tmp_path / "d/real").chmod(0o640)
    (tmp_path / "to-real").symlink_to("d/real")
    (tmp_path / "dangling").symlink_to("/no/such/place")
    (tmp_path / "empty").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/d/\xff\xfe")).write_bytes(b"12")
    os.symlink(b"\xfd", os.fsencode(tmp_path) + b"/odd-link")
    own = posix_place.open()
    assert_alike(remote.of(posix_place), own)
    listed = tree(remote.of(posix_place))
    assert listed == tree(own)
    assert listed["d/real"].mode == 0o640
    assert listed["odd-link"].target == "\udcfd"
    assert set(everything(remote.of(posix_place, "d"))) == {"real", "\udcff\udcfe"}


def test_what_is_not_there(remote: Remote, place: Place) -> None:
    place.put("d/f", b"1")
    store = remote.of(place)
    for ask in (
        lambda: store.stat("nothing"), lambda: store.list_directory("nothing"),
        lambda: list(remote.of(place, "nothing").list_tree()),
    ):  # fmt: skip
        with pytest.raises(SourceNotFound) as caught:
            ask()
        assert_good_message(caught.value)


def test_root_that_is_a_file(remote: Remote, place: Place) -> None:
    place.put("d/f", b"12345")
    assert_alike_file(remote.of(place, below="d/f"), place.open("d/f"))
    assert set(files(remote.of(place, "d/f"))) == {"f"}


def assert_alike_file(remote: RemoteStore, own: UnderStore) -> None:
    assert files(remote) == files(own)


def test_many_names(remote: Remote, place: Place) -> None:
    for number in range(2100):
        place.put(f"d{number % 3}/{number:05}", b"")
    assert_alike(remote.of(place), place.open())


def test_a_snapshot_stays_and_a_fresh_listing_is_fresh(remote: Remote, place: Place) -> None:
    place.put("d/f", b"1")
    place.put("gone", b"2")
    first = files(remote.of(place))
    place.put("d/new", b"33")
    place.put("d/f", b"4444")
    place.remove("gone")
    assert files(remote.of(place)) == first  # as the worker has it
    remote.anew = True
    try:
        fresh = files(remote.of(place))
    finally:
        remote.anew = False
    assert fresh == files(place.open())
    assert files(remote.of(place)) == fresh
    old = remote.of(place, snapshot=1)
    assert files(old) == first
    assert old.stat("d/f") == first["d/f"]
    assert [entry.path for entry in old.list_directory("d")] == ["d/f"]
    assert remote.of(place).stat("d/f") == fresh["d/f"]
    with pytest.raises(SourceNotFound, match="no snapshot 99") as caught:
        files(remote.of(place, snapshot=99))
    assert_good_message(caught.value)


def test_nobody_knows_it_or_nobody_is_there(remote: Remote, place: Place, tmp_path: Path) -> None:
    store = remote.store("s3://nowhere", ClusterView(DatasetId("0" * 16)))
    nobody = RemoteStore("s3://nowhere", ClusterView(DatasetId("0" * 16)), list, lambda _: False)
    closed = Channels(Security.from_setting(INSECURE))
    away = RemoteStore(
        "s3://nowhere", ClusterView(DatasetId("0" * 16)),
        lambda: [closed.stub(Address(f"127.0.0.1:{free_ports(1)[0]}"))], lambda _: False,
    )  # fmt: skip
    try:
        for one in (store, nobody, away):
            asks: tuple[Any, ...] = (one.probe, lambda one=one: one.stat("f"), lambda one=one: list(one.list_tree()))
            for ask in asks:
                with pytest.raises(SourceUnavailable) as caught:
                    ask()
                assert_good_message(caught.value, "s3://nowhere")
    finally:
        closed.close()
