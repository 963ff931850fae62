"""Several stores under one tree: what every store promises, of the tree; and what its stores are asked."""

import os

import pytest
from fake_store import FakeStore

from forebay.cacheruntime.errors import SourceNotFound, SourceStale, SourceUnavailable
from forebay.cacheruntime.keys import FileNames, Roots, TreeNames, content_id, inode_number, node_id
from forebay.cacheruntime.listing_order import ListingOrder
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.composite import Child, CompositeStore


def store(url: str, **files: bytes) -> FakeStore:
    made = FakeStore(url)
    for path, data in files.items():
        made.put(path.replace("__", "/"), data)
    return made


def tree_of(*children: tuple[str, FakeStore]) -> CompositeStore:
    return CompositeStore("dataset://default/tree", [Child(path, each) for path, each in children])


def listed(tree: CompositeStore) -> dict[str, Entry]:
    entries = [entry for page in tree.list_tree() for entry in page]
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}


@pytest.fixture
def one() -> FakeStore:
    return store("s3://one/x", a=b"1", d__b=b"22")


@pytest.fixture
def two() -> FakeStore:
    return store("file:///two", a=b"333")


@pytest.fixture
def tree(one: FakeStore, two: FakeStore) -> CompositeStore:
    return tree_of(("deep/two", two), ("one", one))


def test_lists_all_stores_below_their_places(tree: CompositeStore) -> None:
    found = listed(tree)
    assert {path: entry.size for path, entry in found.items() if entry.kind is Kind.FILE} == {
        "deep/two/a": 3, "one/a": 1, "one/d/b": 2,
    }  # fmt: skip
    assert {path for path, entry in found.items() if entry.kind is Kind.DIRECTORY} == {"deep", "deep/two", "one"}


def test_lists_directories(tree: CompositeStore) -> None:
    def names(path: str) -> list[tuple[str, Kind]]:
        return sorted((entry.path, entry.kind) for entry in tree.list_directory(path))

    assert names("") == [("deep", Kind.DIRECTORY), ("one", Kind.DIRECTORY)]
    assert names("deep") == [("deep/two", Kind.DIRECTORY)]
    assert names("deep/two") == [("deep/two/a", Kind.FILE)]
    assert names("one") == [("one/a", Kind.FILE), ("one/d", Kind.DIRECTORY)]
    for missing in ("dee", "deep/t", "on", "one/x"):
        with pytest.raises(SourceNotFound):
            tree.list_directory(missing)


def test_stat(tree: CompositeStore) -> None:
    assert tree.stat("one/d/b") == Entry("one/d/b", Kind.FILE, 2, version="v1")
    for missing in ("deep", "one/x", "x"):
        with pytest.raises(SourceNotFound):
            tree.stat(missing)


def test_reads_with_each_stores_own_path_and_version(tree: CompositeStore, one: FakeStore) -> None:
    assert b"".join(map(bytes, tree.read_range("one/d/b", 1, 1, "v1"))) == b"2"
    assert [(read.path, read.start, read.length) for read in one.reads] == [("d/b", 1, 1)]
    with pytest.raises(SourceStale):
        list(tree.read_range("one/d/b", 0, 1, "other"))
    place = tree.locate("deep/two/a")
    assert (place.store.url, place.path) == ("file:///two", "a")
    with pytest.raises(SourceNotFound, match="no store is mounted there"):
        tree.locate("deep/a")


def test_one_store_that_fails_is_named(tree: CompositeStore, two: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SourceUnavailable("the wire was cut")

    monkeypatch.setattr(two, "probe", fail)
    monkeypatch.setattr(two, "list_tree", fail)
    monkeypatch.setattr(two, "list_directory", fail)
    for ask in (tree.probe, lambda: list(tree.list_tree()), lambda: tree.list_directory("deep/two")):
        with pytest.raises(SourceUnavailable) as caught:
            ask()
        assert str(caught.value) == "mount /deep/two (file:///two): the wire was cut"


def test_a_single_store_at_the_root_is_as_that_store(one: FakeStore) -> None:
    tree = tree_of(("", one))
    assert list(tree.list_tree()) == list(one.list_tree())
    assert tree.list_directory("d") == one.list_directory("d")
    assert tree.roots() == [("", "s3://one/x")]
    assert type(Roots(tree.url, tree.roots()).names()) is FileNames


def test_the_order_of_keys_is_that_of_the_whole() -> None:
    """Stores are listed in the order in which keys below them come: '/' stands between '-' and '0'."""
    places = ("a", "a-b", "a0", "a.b", "b/c", "b-c", "Z", "\ue000", "\U00010000")
    stores = [(path, store(f"fake://{n}", x=b"1", d__y=b"1", **{"d-e": b"1"})) for n, path in enumerate(places)]
    tree = tree_of(*stores)
    assert tree.lists_in_key_order
    order = ListingOrder("test")
    paths = [entry.path for page in order.follow(tree.list_tree()) for entry in page if entry.kind is Kind.FILE]
    assert paths == sorted(paths, key=os.fsencode)
    assert order.kept
    stores[3][1].lists_in_key_order = False
    assert not tree.lists_in_key_order


def test_a_version_is_pinned_where_all_pin_it(tree: CompositeStore, two: FakeStore) -> None:
    assert tree.pins_version
    two.pins_version = False
    assert not tree.pins_version


def test_closing_it_closes_all(tree: CompositeStore, one: FakeStore, two: FakeStore) -> None:
    tree.close()
    assert (one.closed, two.closed) == (True, True)


def test_content_is_named_by_its_own_store(tree: CompositeStore) -> None:
    names = Roots(tree.url, tree.roots()).names()
    assert isinstance(names, TreeNames)
    assert names.content(b"one/d/b", 2, b"v1") == content_id("s3://one/x", "d/b", 2, "v1")
    assert names.content(b"deep/two/a", 3, b"v") == content_id("file:///two", "a", 3, "v")
    for path in (b"one/a", b"deep/two/a"):
        content, node, inode = names.of_file(path, path, 3, b"v")
        assert content == names.content(path, 3, b"v")
        assert (node, inode) == (node_id(path, content), inode_number(path))


def test_roots_below() -> None:
    roots = Roots("dataset://x", [("a/b", "s3://one"), ("a-b", "s3://two"), ("c", "file:///c/")])
    assert sorted(roots.below("")) == [("a-b", "s3://two"), ("a/b", "s3://one"), ("c", "file:///c/")]
    assert roots.below("a") == [("b", "s3://one")]
    assert roots.below("a/b/x/y") == [("", "s3://one/x/y")]
    assert roots.below("c/d") == [("", "file:///c/d")]
    assert roots.below("b") == []
    assert roots.url_of(b"a/b") == b"s3://one"
    assert roots.url_of(b"a/bc") == b"dataset://x/a/bc"
