"""Which files are meant: paths, patterns, everything."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime import selection
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.selection import Selection, glob_regex
from forebay.cacheruntime.understore.base import Entry, Kind

PATHS = ("a/1.jpg", "a/2.png", "a/b/3.jpg", "a-x/4.jpg", "b/5.jpg", "c[1]/6.jpg", "root.jpg", "ü/7.jpg")


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    writer = CatalogueWriter(tmp_path / "1", "fake://store")
    writer.add([Entry(path, Kind.FILE, size=1, version="v") for path in PATHS])
    writer.add([Entry("a/link", Kind.SYMLINK, target="1.jpg")])
    writer.finish()
    yield writer.reader()
    writer.close()


def _found(catalogue: Catalogue, *paths: str, globs: tuple[str, ...] = ()) -> list[str]:
    chosen = Selection([os.fsencode(path) for path in paths], [os.fsencode(glob) for glob in globs])
    found = [os.fsdecode(path) for path, _ in chosen.files(catalogue)]
    assert len(found) == len(set(found)), "each file once"
    return sorted(found)


@pytest.mark.parametrize(
    ("paths", "globs", "found"),
    [
        ((), (), PATHS),
        (("",), ("x*",), PATHS),
        (("a",), (), ("a/1.jpg", "a/2.png", "a/b/3.jpg")),
        (("a", "a/b", "a/1.jpg", "a-x"), (), ("a/1.jpg", "a/2.png", "a/b/3.jpg", "a-x/4.jpg")),
        ((), ("a/*.jpg",), ("a/1.jpg",)),
        ((), ("**/*.jpg",), tuple(path for path in PATHS if path.endswith(".jpg"))),
        ((), ("a/**",), ("a/1.jpg", "a/2.png", "a/b/3.jpg")),
        ((), ("a/**/*.jpg", "**/1.*"), ("a/1.jpg", "a/b/3.jpg")),
        (("a",), ("*/*.jpg",), ("a/1.jpg", "a/2.png", "a/b/3.jpg", "a-x/4.jpg", "b/5.jpg", "c[1]/6.jpg", "ü/7.jpg")),
        ((), ("c[[]1]/*",), ("c[1]/6.jpg",)),
        ((), ("[!a]/?.jpg",), ("b/5.jpg",)),
        (("a/link",), (), ()),
        (("nothing",), (), ()),
    ],
)
def test_selection(
    catalogue: Catalogue, paths: tuple[str, ...], globs: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert _found(catalogue, *paths, globs=globs) == sorted(found)


def test_missing(catalogue: Catalogue) -> None:
    assert Selection([b"a", b"x", b"b/6"]).missing(catalogue) == [b"b/6", b"x"]
    assert Selection([], [b"x*"]).missing(catalogue) == []


def test_a_large_directory_is_read_in_parts(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_CHUNK", 1)
    assert _found(catalogue) == sorted(PATHS)


@given(st.text(alphabet="ab/*?[]!^-.\\", max_size=12))
def test_every_pattern_is_a_valid_expression(glob: str) -> None:
    re.compile(glob_regex(glob.encode()), re.DOTALL)


@given(st.text(alphabet="ab/.", max_size=8))
def test_a_plain_pattern_matches_itself(path: str) -> None:
    assert re.fullmatch(glob_regex(path.encode()), path.encode())
