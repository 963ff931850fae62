"""The catalogue: names in order, what hides what, totals, and what older snapshots and versions still show."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.understore.base import Entry, Kind

SOURCE = "fake://source"


def file(path: str, size: int = 1, mtime_ns: int = 0, version: str = "v1") -> Entry:
    return Entry(path, Kind.FILE, size, mtime_ns, version)


def folder(path: str, mtime_ns: int = 0, mode: int | None = None) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0, mtime_ns, mode=mode)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CatalogueWriter]:
    made = CatalogueWriter(tmp_path / "1", SOURCE)
    yield made
    made.close()


def names(catalogue: Catalogue, path: bytes = b"") -> list[bytes]:
    return [node.name for node in catalogue.children(at(catalogue, path).node)]


def at(catalogue: Catalogue, path: bytes) -> Node:
    found = catalogue.resolve(path)
    assert found is not None, path
    return found


def test_names_are_in_byte_order(writer: CatalogueWriter) -> None:
    page = [file(name) for name in ("b", "a.txt", "a", "Ä", "\udcff", "a/b/c", "B", "ab")]
    random.Random(1).shuffle(page)
    writer.add(page)
    reader = writer.reader()
    assert names(reader) == sorted([b"b", b"a.txt", b"a", "Ä".encode(), b"\xff", b"B", b"ab"])
    assert names(reader, b"a/b") == [b"c"]
    assert reader.path_of(at(reader, b"a/b/c").node) == b"a/b/c"
    assert reader.path_of(ROOT_NODE) == b""


def test_children_go_on_behind_a_node_while_names_come(writer: CatalogueWriter) -> None:
    writer.add([file(f"f{n:03}") for n in range(0, 100, 2)])
    reader = writer.reader()
    seen: list[bytes] = []
    after = None
    while page := [child for child, _ in zip(reader.children(ROOT_NODE, after), range(7), strict=False)]:
        seen += [child.name for child in page]
        after = page[-1].node
        step = int(seen[-1][1:])
        writer.add([file(f"f{n:03}") for n in (step - 1, step + 1) if n > 0])
    assert seen == sorted(set(seen)), "no name twice, none out of order"
    assert {b"f%03d" % n for n in range(0, 100, 2)} <= set(seen), "what was there all the time is seen"
    assert b"f013" in seen, "what came behind the place is seen too"


def test_children_go_on_behind_a_node_that_was_replaced_or_removed(writer: CatalogueWriter) -> None:
    writer.add([file("a"), file("b"), file("c")])
    reader = writer.reader()
    b = at(reader, b"b").node
    writer.add([file("b", 7, version="v2")])
    assert [n.name for n in reader.children(ROOT_NODE, b)] == [b"c"]
    writer.remove(b"b")
    assert [n.name for n in reader.children(ROOT_NODE, b)] == [b"c"]
    assert names(reader) == [b"a", b"c"]


def test_directories_are_implied(writer: CatalogueWriter) -> None:
    writer.add([file("a/b/c/d"), file("a/x"), folder("m/n")])
    reader = writer.reader()
    assert at(reader, b"a/b").kind is Kind.DIRECTORY
    assert (names(reader), names(reader, b"m/n")) == ([b"a", b"m"], [])
    assert [at(reader, p).subdirectories for p in (b"", b"a", b"a/b", b"a/b/c", b"m")] == [2, 1, 1, 0, 1]
    assert at(reader, b"a/b").parent == at(reader, b"a").node


def test_subdirectories_count_each_directory_once(writer: CatalogueWriter) -> None:
    for _ in range(3):
        writer.add([folder("a", 5), folder("a"), file("a/f"), folder("b", 0, 0o755)])
        writer.replace_directory(b"a", [folder("a/c"), file("a/f")])
    assert [at(writer.reader(), p).subdirectories for p in (b"", b"a", b"b")] == [2, 1, 0]


def test_symbolic_links(writer: CatalogueWriter) -> None:
    writer.add([Entry("d/l", Kind.SYMLINK, 3, target="../\udcffx")])
    link = at(writer.reader(), b"d/l")
    assert (link.kind, link.target) == (Kind.SYMLINK, b"../\xffx")
    assert writer.reader().totals().files == 0


def test_very_deep_paths(writer: CatalogueWriter) -> None:
    """2,000 parts: within PATH_MAX, and more than Python's call stack holds."""
    path = "/".join("d" * 2000)
    writer.add([file(path, mtime_ns=9)])
    reader = writer.reader()
    assert reader.path_of(at(reader, path.encode()).node) == path.encode()
    assert at(reader, b"").mtime_ns == 9


@pytest.mark.parametrize("order", [("a", "a/b"), ("a/b", "a")])
def test_file_and_directory_of_one_name(writer: CatalogueWriter, order: tuple[str, str]) -> None:
    for path in order:
        writer.add([file(path, 10)])
    reader = writer.reader()
    assert at(reader, b"a").kind is Kind.DIRECTORY
    assert names(reader, b"a") == [b"b"]
    totals = reader.totals()
    assert (totals.files, totals.bytes, totals.skipped) == (1, 10, 1)


@pytest.mark.parametrize("order", [("a", "a/b"), ("a/b", "a")])
def test_regression_a_key_is_skipped_once_however_often_it_is_listed(
    writer: CatalogueWriter, order: tuple[str, str]
) -> None:
    """By directory and by the walk, or again by a worker that takes the listing up after a restart."""
    for _ in range(3):
        writer.add([file(path) for path in (*order, "x//y", "n" * 256)])
        writer.replace_directory(b"", [folder("a"), file("a"), file("n" * 256)])
    totals = writer.reader().totals()
    assert (totals.files, totals.skipped) == (1, 3)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\0b", "n" * 256, "d/" + "ä" * 128]
)
def test_keys_that_cannot_be_file_names(writer: CatalogueWriter, path: str) -> None:
    writer.add([file(path), file("good"), file("n" * 255)])
    totals = writer.reader().totals()
    assert (totals.files, totals.skipped) == (2, 1)
    assert names(writer.reader()) == [b"good", b"n" * 255]


def test_totals(writer: CatalogueWriter) -> None:
    reader = writer.reader()
    writer.add([file("a", 10), file("b", MIB - 1), file("c", MIB), file("d/e", 5 * MIB)])
    assert (reader.totals().files, reader.totals().bytes) == (4, 10 + MIB - 1 + MIB + 5 * MIB)
    assert reader.totals().small_bytes == 10 + MIB - 1
    writer.add([file("a", 10), file("c", 3, version="v2"), file("b", 2 * MIB, version="v2")])
    assert (reader.totals().files, reader.totals().bytes) == (4, 10 + 2 * MIB + 3 + 5 * MIB)
    assert reader.totals().small_bytes == 13
    writer.remove(b"d/e")
    writer.remove(b"d/e")
    writer.remove(b"d")
    writer.remove(b"nothing")
    assert (reader.totals().files, reader.totals().bytes) == (3, 10 + 2 * MIB + 3)
    writer.add([Entry("a", Kind.SYMLINK, 10, target="b")])
    assert (reader.totals().files, reader.totals().small_bytes) == (2, 3)


def test_older_version_stays_readable_by_node(writer: CatalogueWriter) -> None:
    reader = writer.reader()
    writer.add([file("a", 1, version="v1")])
    old = at(reader, b"a")
    writer.add([file("a", 2, version="v2")])
    new = at(reader, b"a")
    assert old.node != new.node
    assert old.content != new.content
    assert old.inode == new.inode
    assert reader.node(old.node) == old
    writer.remove(b"a")
    assert reader.resolve(b"a") is None
    assert reader.node(new.node) == new
    writer.add([file("a", 1, version="v1")])
    assert at(reader, b"a") == old


def test_nodes_and_inodes_are_the_same_in_every_snapshot(writer: CatalogueWriter, tmp_path: Path) -> None:
    page = [file("a/b", 5), file("c", 6), folder("d")]
    writer.add(page)
    other = CatalogueWriter(tmp_path / "2", SOURCE)
    try:
        other.add([*reversed(page), file("new")])
        for path in (b"", b"a", b"a/b", b"c", b"d"):
            one, two = at(writer.reader(), path), at(other.reader(), path)
            assert (one.node, one.inode, one.content) == (two.node, two.inode, two.content)
    finally:
        other.close()


def test_settled(writer: CatalogueWriter) -> None:
    reader = writer.reader()
    writer.add([file("d/e/x")])
    d, e = at(reader, b"d").node, at(reader, b"d/e").node
    assert not any(reader.is_settled(node) for node in (ROOT_NODE, d, e))
    writer.replace_directory(b"d", [folder("d/e"), file("d/y")])
    assert [reader.is_settled(node) for node in (ROOT_NODE, d, e)] == [False, True, False]
    writer.add([file("d/z"), folder("d", 99)])
    assert reader.is_settled(d), "what comes later does not take it back"
    writer.finish()
    assert reader.complete
    assert all(reader.is_settled(node) for node in (ROOT_NODE, d, e))


def test_listing_that_broke_off_and_is_taken_up(tmp_path: Path) -> None:
    first = CatalogueWriter(tmp_path / "1", SOURCE)
    first.add([file("a", 3), file("b//c")])
    first.finish("the wire was cut")
    assert (first.reader().complete, first.reader().totals().error) == (False, "the wire was cut")
    first.close()
    again = CatalogueWriter(tmp_path / "1", SOURCE)
    try:
        again.add([file("a", 3), file("b//c"), file("z", 4)])
        again.finish()
        totals = again.reader().totals()
        assert (totals.files, totals.bytes, totals.skipped) == (2, 7, 1)
        assert totals.complete
        assert totals.error == "", "it ended well"
    finally:
        again.close()


@pytest.mark.parametrize("backwards", [False, True])
def test_directory_shows_the_time_of_the_newest_below(writer: CatalogueWriter, backwards: bool) -> None:
    page = [file("a/b/1", mtime_ns=50), file("a/b/2", mtime_ns=70), file("a/3", mtime_ns=60), file("c", mtime_ns=10)]
    for entry in reversed(page) if backwards else page:
        writer.add([entry])
    reader = writer.reader()
    assert [at(reader, p).mtime_ns for p in (b"", b"a", b"a/b")] == [70, 70, 70]


def test_directory_with_a_time_of_its_own(writer: CatalogueWriter) -> None:
    writer.add([folder("a", 5, 0o750), file("a/b/c", mtime_ns=99)])
    reader = writer.reader()
    assert (at(reader, b"a").mtime_ns, at(reader, b"a").mode) == (5, 0o750)
    assert at(reader, b"a/b").mtime_ns == 99
    assert at(reader, b"").mtime_ns == 99


def test_regression_marker_with_a_time_does_not_hide_newer_files_from_above(writer: CatalogueWriter) -> None:
    writer.add([folder("a/b", 100)])
    writer.add([file("a/b/f", mtime_ns=50)])
    assert [at(writer.reader(), p).mtime_ns for p in (b"a/b", b"a", b"")] == [100, 50, 50]


def test_files_below_in_order(writer: CatalogueWriter) -> None:
    writer.add([file(p) for p in ("z", "b/2", "b/1", "b/c/d", "a/x", "b/a/y")])
    reader = writer.reader()
    paths = [reader.path_of(n.node) for n in reader.files_below(ROOT_NODE)]
    assert paths == [b"z", b"a/x", b"b/1", b"b/2", b"b/a/y", b"b/c/d"]
    below = [reader.path_of(n.node) for n in reader.files_below(at(reader, b"b/a").node)]
    assert below == [b"b/a/y"]


_OTHER = """
import sys
from pathlib import Path
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.keys import ROOT_NODE
reader = Catalogue(Path(sys.argv[1]))
for _ in sys.stdin:
    print(*(node.name.decode() for node in reader.children(ROOT_NODE)), flush=True)
"""


def test_another_process_reads_while_it_is_written(writer: CatalogueWriter) -> None:
    writer.add([file("a")])
    command = [sys.executable, "-c", _OTHER, str(writer.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for expected in ("a", "a b", "a b c"):
            writer.add([file(expected[-1])])
            other.stdin.write("look\n")
            assert other.stdout.readline().strip() == expected
        other.stdin.close()


def test_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match="holds no readable catalogue"):
        Catalogue(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheFormatError):
        Catalogue(tmp_path / "empty")


def test_unknown_nodes(writer: CatalogueWriter) -> None:
    reader = writer.reader()
    nobody = type(ROOT_NODE)(12345)
    assert reader.node(nobody) is None
    assert reader.child(nobody, b"a") is None
    assert list(reader.children(ROOT_NODE, nobody)) == []
    assert not reader.is_settled(nobody)
    with pytest.raises(KeyError):
        reader.path_of(nobody)
