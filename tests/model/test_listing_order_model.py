"""Directories that a listing in key order has passed, against plain sets of keys, after every page."""

import tempfile
from pathlib import Path

import pytest
from cache_box import MEMORY
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.listing_order import ListingOrder
from forebay.cacheruntime.understore.base import Entry, Kind

# "-" < "." < "/" < "0", and characters whose order as text, as UTF-8 and as UTF-16 is not the same.
_NAMES = st.sampled_from(["a", "a-b", "a.", "a0", "b", "\x01", "\ue000", "\U00010000", "", "."])
_ENDS = st.sampled_from(["", "", "/"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=5).map("/".join)
_KEYS = st.sets(st.builds(str.__add__, _PATHS, _ENDS), max_size=24)


def entry_of(key: str) -> Entry:
    """As S3UnderStore makes it."""
    return Entry(key[:-1] or key, Kind.DIRECTORY) if key.endswith("/") else Entry(key, Kind.FILE, 1, version="v")


def directories(keys: set[str]) -> set[str]:
    """All that some key is below, odd ones included; not the root."""
    return {key[:at] for key in keys for at, character in enumerate(key) if character == "/"} - {""}


def is_odd(path: str) -> bool:
    return any(part in ("", ".", "..") for part in path.split("/"))


def names_in(keys: set[str], directory: str) -> set[str]:
    """What a directory shows: first parts below it of keys that can be paths."""
    below = f"{directory}/" if directory else ""
    shown = {key for key in keys if not is_odd(key.removesuffix("/")) and key.startswith(below) and key != below}
    return {key[len(below) :].split("/")[0] for key in shown}


def settled(catalogue: Catalogue) -> dict[str, set[str]]:
    """Directories below the root that are marked, with the names that they show."""
    found: dict[str, set[str]] = {}
    pending = [ROOT_NODE]
    assert not catalogue.is_settled(ROOT_NODE)
    while pending:
        for child in catalogue.children(pending.pop()):
            if child.kind is Kind.DIRECTORY:
                pending.append(child.node)
                if catalogue.is_settled(child.node):
                    names = {inner.name.decode() for inner in catalogue.children(child.node)}
                    found[catalogue.path_of(child.node).decode()] = names
    return found


@given(_KEYS.filter(lambda keys: "" not in keys), st.lists(st.integers(1, 6), min_size=24, max_size=24))
@example({"a", "a-b", "a/b", "a/b/c", "a0"}, [1] * 24)
@example({"a/", "a/a/", "a/a/b", "a-/x", "b/a/a/a/a", "b0"}, [1] * 24)
@example({"a/1", "a/2", "a/3", "a/b/1", "a/b/2", "b"}, [2] * 24)
@example({"/", "//", "/a", "a//b", "a//b/", "a/b", "b"}, [1] * 24)
def test_a_directory_that_is_marked_has_all_its_entries(keys: set[str], sizes: list[int]) -> None:
    order = ListingOrder("the model")
    queue = sorted(keys, key=str.encode)
    pages = []
    for size in sizes:
        pages.append(queue[:size])
        queue = queue[size:]
    assert not queue
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        writer = CatalogueWriter(Path(folder) / "1", "fake://model")
        try:
            _check(order, writer, keys, pages)
        finally:
            writer.close()


def _check(order: ListingOrder, writer: CatalogueWriter, keys: set[str], pages: list[list[str]]) -> None:
    came: set[str] = set()
    told: list[bytes] = []
    followed = order.follow([entry_of(key) for key in page] for page in pages)
    for page, entries in zip(pages, followed, strict=True):
        passed = order.take_passed()
        writer.add(entries, passed)
        told += passed
        came |= set(page)
        if not order.kept:  # "//" reads as "/" does, which may seem to come too late
            assert any(key.startswith("//") for key in keys)
            return
        last = max(came, key=str.encode, default="")
        marked = settled(writer.reader())
        for path, names in marked.items():
            assert names == names_in(keys, path), f"{path!r} after {last!r}"
        assert len(told) == len(set(told)), "each is told once"
        possible = directories({key for key in keys if not is_odd(key.removesuffix("/"))})
        for path in possible:
            came_past = f"{path}/".encode() < last.encode() and not last.startswith(f"{path}/")
            assert (path in marked) == came_past
            assert order.is_behind(path.encode()) == came_past


def test_where_it_stands() -> None:
    order = ListingOrder("the model")
    assert not order.stands_in(b"")
    assert not order.is_behind(b"a")
    for key, place in (("a", b""), ("a/b", b"a"), ("b/c/d/", b"b/c/d"), ("b/e", b"b"), ("c", b"")):
        list(order.follow([[entry_of(key)]]))
        for other in (b"", b"a", b"b", b"b/c", b"b/c/d", b"b/e"):
            assert order.stands_in(other) == (other == place)
    assert order.is_behind(b"b/c")
    assert not order.is_behind(b"")
    assert not order.is_behind(b"c"), "its keys are still to come"


@pytest.mark.parametrize("late", ["a/2", "a-b", "b/"])
def test_a_store_that_keeps_no_order_is_not_believed(
    tmp_path: Path, late: str, caplog: pytest.LogCaptureFixture
) -> None:
    order = ListingOrder("s3://look-alike")
    writer = CatalogueWriter(tmp_path / "1", "fake://model")
    try:
        for page in order.follow(
            [[entry_of("a/1"), entry_of("b/1")], [entry_of(late)], [entry_of("c/1")], [entry_of("d/1")]]
        ):
            writer.add(page, order.take_passed())
            if not order.kept:
                writer.unlist_directories()
                assert settled(writer.reader()) == {}
            else:
                assert settled(writer.reader()) == {"a": {"1"}}
    finally:
        writer.close()
    assert not order.kept
    assert "s3://look-alike does not list its keys in order" in caplog.text


def test_markers_that_lost_their_slash_are_in_order() -> None:
    """Google Cloud Storage and Azure through obstore: the object "d/" comes as "d", where "d/" stands."""
    order = ListingOrder("gs://bucket")
    entries = [
        Entry("d-x/file", Kind.FILE, 1),
        Entry("d", Kind.FILE, 0),
        Entry("e", Kind.FILE, 1),
    ]
    assert list(order.follow([entries])) == [entries]
    assert order.kept
    assert order.take_passed() == [b"d-x", b"d"]
