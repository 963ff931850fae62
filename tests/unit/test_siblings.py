"""The next small files of a directory: what sweeps and runs through a directory go by."""

from pathlib import Path
from typing import Any, cast

import pytest

from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.fuse import file_system
from forebay.fuse.file_system import FileSystem, Presentation
from forebay.fuse.open_mode import OpenMode

_LARGE = 2 << 20


def _names(folder: Path, entries: list[Entry], count: int) -> list[bytes]:
    writer = CatalogueWriter(folder, "s3://bucket")
    writer.add(entries)
    none = cast(Any, None)
    shown = Presentation(0, 0, 0)
    files = FileSystem(writer.reader(), none, none, "s3://bucket", shown, OpenMode.CACHED, none, none, none, {})
    found = [node.name for node in files.siblings(ROOT_NODE, count)]
    writer.close()
    return found


def _file(name: str, size: int) -> Entry:
    return Entry(name, Kind.FILE, size, 1, "1")


def test_they_are_what_a_reader_would_ask_for(tmp_path: Path) -> None:
    """An empty file is read without a request. As it never comes into a tier, four of them ended a sweep."""
    entries = [_file("a", 0), _file("b", 1), _file("c", _LARGE), _file("d/e", 1), _file("f", 1), _file("g", 1)]
    assert _names(tmp_path, entries, 2) == [b"b", b"f"]


def test_they_are_not_looked_for_among_a_million_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request waited meanwhile, for three seconds."""
    monkeypatch.setattr(file_system, "_SIBLINGS", 10)
    entries = [_file("a", 1), *[_file(f"b{number}", _LARGE) for number in range(10)], _file("c", 1)]
    assert _names(tmp_path, entries, 5) == [b"a"]
