"""A snapshot as Parquet, and two of them compared by paths."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from forebay.cacheruntime import snapshot_export
from forebay.cacheruntime.catalogue_changes import record_changes
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.errors import CacheError
from forebay.cacheruntime.keys import Roots, content_id
from forebay.cacheruntime.snapshot_diff import changed_names, recorded_names
from forebay.cacheruntime.snapshot_export import export
from forebay.cacheruntime.understore.base import Entry, Kind

ROOTS = Roots("dataset://default/t", [("a", "s3://one"), ("b", "file:///two")])
ODD = os.fsdecode(b"b/\xff\xfe")


def snapshot(root: Path, number: int, *entries: Entry) -> CatalogueWriter:
    writer = CatalogueWriter(root / str(number), ROOTS)
    writer.add(list(entries))
    writer.finish()
    return writer


def file(path: str, size: int = 1, version: str = "v1", mtime_ns: int = 1_700_000_000_123_456_789) -> Entry:
    return Entry(path, Kind.FILE, size, mtime_ns, version)


@pytest.mark.parametrize("group", [2, 100_000])
def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(snapshot_export, "ROW_GROUP", group)
    writer = snapshot(
        tmp_path, 1, file("a/x", 5, '"etag"'), file("a/d/deep/y"), file(ODD),
        Entry("b/link", Kind.SYMLINK, 3, 0, target="../a", mode=0o777), file("a-top"),
        Entry("b/file-with-mode", Kind.FILE, 7, 5, "v", mode=0o640),
    )  # fmt: skip
    out = tmp_path / "out.parquet"
    assert export(writer.reader(), out, ROOTS, {"forebay.snapshot": "1"}) == 10
    table = pq.read_table(out)
    rows = {row["path"]: row for row in table.to_pylist()}
    assert [row["path"] for row in table.to_pylist()] == [
        "a", "a/d", "a/d/deep", "a/d/deep/y", "a/x", "a-top", "b", "b/file-with-mode", "b/link", "b/\ufffd\ufffd",
    ]  # fmt: skip
    one = rows["a/x"]
    assert (one["kind"], one["size"], one["version"], one["source"]) == ("file", 5, '"etag"', "s3://one/x")
    assert one["mtime"].value == 1_700_000_000_123_456_789
    assert one["content_id"] == content_id("s3://one", "x", 5, '"etag"').hex()
    assert (one["mode"], one["target"], one["path_bytes"]) == (None, None, None)
    assert (rows["b/link"]["kind"], rows["b/link"]["target"]) == ("symlink", "../a")
    assert (rows["b/link"]["content_id"], rows["b/link"]["mtime"]) == (None, None)
    assert rows["b/file-with-mode"]["mode"] == 0o640
    assert rows["b/\ufffd\ufffd"]["path_bytes"] == b"b/\xff\xfe"
    assert rows["a"]["kind"] == "directory"
    assert table.schema.metadata[b"forebay.snapshot"] == b"1"
    assert pq.ParquetFile(out).num_row_groups == (5 if group == 2 else 1)
    writer.close()


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    writer = snapshot(tmp_path, 1, file("a/x"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "taken").mkdir()
    with pytest.raises(CacheError, match="taken cannot be written"):
        export(writer.reader(), folder / "taken", ROOTS, {})
    assert [path.name for path in folder.iterdir()] == ["taken"]
    writer.close()


def test_differences_by_path(tmp_path: Path) -> None:
    old = snapshot(
        tmp_path, 1, file("a/same"), file("a/changed"), file("a/gone/x"), file("a/gone/y"), file("b/touched")
    )
    new = snapshot(
        tmp_path, 2, file("a/same"), file("a/changed", version="v2"), file("b/new/z"), file("b/touched", mtime_ns=5)
    )  # fmt: skip
    wanted = {
        ("CHANGED", b"a/changed"), ("REMOVED", b"a/gone"), ("REMOVED", b"a/gone/x"), ("REMOVED", b"a/gone/y"),
        ("ADDED", b"b/new"), ("ADDED", b"b/new/z"), ("CHANGED", b"b/touched"),
    }  # fmt: skip
    assert {(c.kind.name, c.path) for c in changed_names(old.reader(), new.reader())} == wanted
    other_way = {(c.kind.name, c.path) for c in changed_names(new.reader(), old.reader())}
    swapped = {"ADDED": "REMOVED", "REMOVED": "ADDED", "CHANGED": "CHANGED"}
    assert other_way == {(swapped[kind], path) for kind, path in wanted}
    record_changes(old.reader(), 1, new)
    for writer in (old, new):
        writer.close()
    for folder in (tmp_path / "1", None):
        found = {(c.kind.name, c.path) for c in recorded_names(tmp_path / "2", 1, folder)}
        assert found == wanted, "also without the old one: the new one carries its directories"
    with pytest.raises(FileNotFoundError):
        list(recorded_names(tmp_path / "2", 7, None))
