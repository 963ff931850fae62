"""What changed between two snapshots: each kind of change, the file that tells it, and what is carried over."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime import catalogue_changes
from forebay.cacheruntime.catalogue import CARRIED_SYNCS_MAX
from forebay.cacheruntime.catalogue_changes import (
    Change,
    ChangeKind,
    changes_path,
    differing,
    read_changes,
    record_changes,
    write_changes,
)
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.errors import CacheError, CacheFormatError
from forebay.cacheruntime.keys import ROOT_NODE, NodeId, node_id
from forebay.cacheruntime.understore.base import Entry, Kind

_TABLES = st.dictionaries(st.binary(max_size=2), st.sampled_from([b"1", b"2"]), max_size=12)


class Shelf:
    """Snapshots of one source, one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writers: list[CatalogueWriter] = []

    def take(self, *entries: Entry) -> CatalogueWriter:
        """The next snapshot, synced from the one before if there is one."""
        writer = CatalogueWriter(self.root / str(len(self.writers) + 1), "fake://source")
        self.writers.append(writer)
        writer.add(list(entries))
        writer.finish()
        if len(self.writers) > 1:
            record_changes(self.writers[-2].reader(), len(self.writers) - 1, writer)
        return writer

    def changes(self, *, base: int = 0) -> set[tuple[bytes, bytes, str]]:
        """(directory's path, name, kind) of the way to the newest from the one before it, or from `base`."""
        writer = self.writers[-1]
        found = list(read_changes(changes_path(writer.folder, base or len(self.writers) - 1)))
        assert len(found) == len(set(found)), "each change once"
        return {(writer.reader().path_of(c.parent), c.name, c.kind.name) for c in found}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    for writer in made.writers:
        writer.close()


def file(path: str, version: str = "v1", mtime_ns: int = 0, mode: int | None = None) -> Entry:
    return Entry(path, Kind.FILE, 1, mtime_ns, version, mode=mode)


def folder(path: str, mtime_ns: int = 0, mode: int | None = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0, mtime_ns, mode=mode)


@given(_TABLES, _TABLES)
def test_differing_tables(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> None:
    found = list(differing(sorted(old.items()), sorted(new.items())))
    expected = [(k, old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    assert found == expected


def test_nothing_changed(shelf: Shelf) -> None:
    for _ in range(2):
        shelf.take(file("a/b"), folder("c"), Entry("l", Kind.SYMLINK, 1, target="a"))
    assert shelf.changes() == set()
    counts = record_changes(shelf.writers[0].reader(), 1, shelf.writers[1])
    assert counts.nothing


def test_listed_ahead_is_no_change(shelf: Shelf) -> None:
    shelf.take(file("a/b")).replace_directory(b"a", [file("a/b")])
    shelf.take(file("a/b"))
    assert shelf.changes() == set()


def test_added_changed_removed(shelf: Shelf) -> None:
    shelf.take(file("d/same"), file("d/gone"), file("d/other", "v1"))
    shelf.take(file("d/same"), file("d/new"), file("d/other", "v2"))
    assert shelf.changes() == {
        (b"d", b"gone", "REMOVED"),
        (b"d", b"new", "ADDED"),
        (b"d", b"other", "CHANGED"),
        (b"d", b"", "DIRECTORY"),
    }
    counts = record_changes(shelf.writers[0].reader(), 1, shelf.writers[1])
    assert (counts.added, counts.changed, counts.removed, counts.directories) == (1, 1, 1, 1)


def test_file_becomes_a_directory_and_back(shelf: Shelf) -> None:
    shelf.take(file("x"))
    shelf.take(file("x/y"))
    there = {(b"", b"x", "CHANGED"), (b"", b"", "DIRECTORY"), (b"x", b"", "DIRECTORY")}
    assert shelf.changes() == there | {(b"x", b"y", "ADDED")}
    shelf.take(file("x"))
    assert shelf.changes() == there | {(b"x", b"y", "REMOVED")}
    reader = shelf.writers[-1].reader()
    removed = node_id(b"x", b"")
    assert reader.child(removed, b"y") is None
    assert reader.is_settled(removed)
    assert list(reader.children(removed)) == []
    carried = reader.node(removed)
    assert carried is not None
    assert (carried.kind, carried.subdirectories, carried.carried) == (Kind.DIRECTORY, 0, 1)


def test_empty_directories(shelf: Shelf) -> None:
    shelf.take(folder("a"), folder("b"), folder("c", 1))
    shelf.take(folder("b"), folder("c", 2), folder("d"))
    assert shelf.changes() == {
        (b"", b"a", "REMOVED"),
        (b"", b"d", "ADDED"),
        (b"", b"", "DIRECTORY"),
        (b"c", b"", "DIRECTORY"),
    }


def test_attributes_alone(shelf: Shelf) -> None:
    link = Entry("d/link", Kind.SYMLINK, 1, 1, target="x")
    shelf.take(folder("d", 1), file("d/time", mtime_ns=1), file("d/mode", mode=0o600), file("d/f"), link)
    later = Entry("d/link", Kind.SYMLINK, 1, 2, target="x")
    shelf.take(folder("d", 1, 0o700), file("d/time", mtime_ns=2), file("d/mode", mode=0o644), file("d/f"), later)
    names = {(b"d", name, "CHANGED") for name in (b"time", b"mode", b"link")}
    # The root has no time of its own: it shows its newest file's.
    assert shelf.changes() == names | {(b"d", b"", "DIRECTORY"), (b"", b"", "DIRECTORY")}


def test_link_with_another_target(shelf: Shelf) -> None:
    shelf.take(Entry("l", Kind.SYMLINK, 1, 5, target="a"))
    shelf.take(Entry("l", Kind.SYMLINK, 1, 5, target="b"))
    assert shelf.changes() == {(b"", b"l", "CHANGED"), (b"", b"", "DIRECTORY")}


def test_renamed_directory(shelf: Shelf) -> None:
    shelf.take(file("p/a/f"), file("p/a/g"), file("q"))
    shelf.take(file("p/b/f"), file("p/b/g"), file("q"))
    assert shelf.changes() == {
        (b"p", b"a", "REMOVED"),
        (b"p", b"b", "ADDED"),
        (b"p", b"", "DIRECTORY"),
        (b"p/a", b"f", "REMOVED"),
        (b"p/a", b"g", "REMOVED"),
        (b"p/a", b"", "DIRECTORY"),
        (b"p/b", b"f", "ADDED"),
        (b"p/b", b"g", "ADDED"),
        (b"p/b", b"", "DIRECTORY"),
    }


def test_directory_that_comes_back(shelf: Shelf) -> None:
    """Of a removed directory that is somebody's working folder, anything may be remembered."""
    shelf.take(folder("d"))
    shelf.take()
    shelf.take(folder("d"))
    assert shelf.changes() == {(b"", b"d", "ADDED"), (b"", b"", "DIRECTORY"), (b"d", b"", "DIRECTORY")}
    assert [n.carried for n in shelf.writers[-1].reader().children(ROOT_NODE)] == [0]


def test_old_versions_and_removed_nodes_are_found(shelf: Shelf) -> None:
    """[C10] For as many syncs as promised."""
    first = shelf.take(file("d/e/f", "v1"), file("x", "v1"))
    held = [node for path in (b"d", b"d/e", b"d/e/f", b"x") if (node := first.reader().resolve(path)) is not None]
    shelf.take(file("x", "v2"))
    for age in range(2, CARRIED_SYNCS_MAX + 1):
        shelf.take(file("x", f"v{age + 1}"))
        reader = shelf.writers[-1].reader()
        for node in held:
            found = reader.node(node.node)
            assert found is not None
            assert (found.content, found.version, found.size, found.carried) == (
                node.content, node.version, node.size, age,
            )  # fmt: skip
            assert reader.path_of(node.node) == first.reader().path_of(node.node)
        assert [n.name for n in reader.children(ROOT_NODE)] == [b"x"]
        assert reader.totals().files == 1
    shelf.take(file("x", "last"))
    assert [shelf.writers[-1].reader().node(node.node) for node in held] == [None] * 4


def test_readers_of_a_skipped_snapshot_find_theirs(shelf: Shelf) -> None:
    """A mount that did not take part in the last syncs is as young as one that did."""
    first = shelf.take(file("a"))
    held = first.reader().resolve(b"a")
    assert held is not None
    for _ in range(CARRIED_SYNCS_MAX + 1):
        newest = shelf.take()
    assert newest.reader().node(held.node) is None
    record_changes(first.reader(), 1, newest)
    assert shelf.changes(base=1) == {(b"", b"a", "REMOVED"), (b"", b"", "DIRECTORY")}
    found = newest.reader().node(held.node)
    assert found is not None
    assert found.carried == 1
    record_changes(shelf.writers[2].reader(), 3, newest)
    assert newest.reader().node(held.node) == found, "the lower count wins"


def test_carried_directory_is_seen_again_when_a_file_of_it_is_refreshed(shelf: Shelf) -> None:
    shelf.take(file("d/f"), file("d/e/g"))
    newest = shelf.take()
    newest.add([file("d/f", "v2")])
    reader = newest.reader()
    directory = reader.resolve(b"d")
    assert directory is not None
    assert (directory.carried, directory.subdirectories) == (0, 0)
    assert [n.name for n in reader.children(directory.node)] == [b"f"]
    root = reader.node(ROOT_NODE)
    assert root is not None
    assert root.subdirectories == 1


def test_carrying_does_not_hide_what_a_refresh_has_shown(shelf: Shelf) -> None:
    old = shelf.take(folder("d"))
    held = old.reader().resolve(b"d")
    assert held is not None
    newest = shelf.take()
    newest.add([file("d/f")])
    newest.carry([held])
    assert newest.reader().resolve(b"d/f") is not None


def test_carries_in_batches(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_changes, "_CARRY_BATCH", 7)
    first = shelf.take(*(file(f"f{n}") for n in range(50)))
    held = list(first.reader().children(ROOT_NODE))
    newest = shelf.take()
    assert all(newest.reader().node(node.node) is not None for node in held)


# The file


CHANGES = [
    Change(ROOT_NODE, b"a\xff", ChangeKind.ADDED),
    Change(NodeId(1 << 62), b"n" * 255, ChangeKind.CHANGED),
    Change(NodeId(7), b"x", ChangeKind.REMOVED),
    Change(NodeId(7), b"", ChangeKind.DIRECTORY),
]

BYTES = (
    b"fbchang1"
    b"\x01" b"\0\0\0\0\0\0\0\x01" b"\0\x02" b"a\xff"  # ADDED, the root, 2 bytes of name
    b"\x02" b"\x40\0\0\0\0\0\0\0" b"\0\xff" + b"n" * 255 +
    b"\x03" b"\0\0\0\0\0\0\0\x07" b"\0\x01" b"x"
    b"\x04" b"\0\0\0\0\0\0\0\x07" b"\0\0"
    b"\0" b"\0\0\0\0\0\0\0\x04" b"\0\0"  # the end, after 4 records
)  # fmt: skip


def test_file_of_changes(tmp_path: Path) -> None:
    path = changes_path(tmp_path, 3)
    counts = write_changes(path, CHANGES)
    assert path.name == "changes-3"
    assert path.read_bytes() == BYTES
    assert list(read_changes(path)) == CHANGES
    assert (counts.added, counts.changed, counts.removed, counts.directories) == (1, 1, 1, 1)
    assert os.listdir(tmp_path) == ["changes-3"]
    write_changes(path, [])
    assert list(read_changes(path)) == []


@pytest.mark.parametrize("length", range(len(BYTES)))
def test_file_of_changes_cut_short(tmp_path: Path, length: int) -> None:
    path = tmp_path / "changes-1"
    path.write_bytes(BYTES[:length])
    with pytest.raises(CacheFormatError):
        list(read_changes(path))


@pytest.mark.parametrize(
    "damaged",
    [BYTES + b"\0", b"fbchang2" + BYTES[8:], BYTES[:8] + b"\x05" + BYTES[9:], BYTES[:-3] + b"\x05\0\0"],
    ids=["longer", "another format", "unknown kind", "wrong number"],
)
def test_damaged_file_of_changes(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "changes-1").write_bytes(damaged)
    with pytest.raises(CacheFormatError, match="changes-1"):
        list(read_changes(tmp_path / "changes-1"))


def test_no_file_of_changes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_changes(tmp_path / "changes-1"))


def test_changes_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"changes-1 cannot be written: No such file or directory; make room"):
        write_changes(tmp_path / "none" / "changes-1", [])


def test_writing_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "changes-1"
    write_changes(path, CHANGES)

    def broken() -> Iterator[Change]:
        yield CHANGES[0]
        raise struct.error("a fault")

    with pytest.raises(struct.error):
        write_changes(path, broken())
    assert list(read_changes(path)) == CHANGES
