"""A tree of stores promises what each store promises: the same list, over real stores behind a composite one."""

import os
from dataclasses import dataclass
from typing import Any

import pytest

from forebay.cacheruntime.errors import SourceUnavailable
from forebay.cacheruntime.understore.base import Entry, Kind, UnderStore
from forebay.cacheruntime.understore.composite import Child, CompositeStore
from tests.contract import test_understore as every
from tests.contract.conftest import Place


@dataclass
class TreePlace(Place):
    """A place whose store is behind a composite one, alone at its root."""

    def open(self, below: str = "", **options: str) -> UnderStore:
        return CompositeStore(self.source, [Child("", super().open(below, **options))])


@pytest.fixture(params=["s3", "posix", "memory", "http"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of under-store in turn."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return TreePlace(**vars(found))


class TestTreeOfOne(every.TestEveryStore):
    """The contract of `test_understore.py`."""

    def test_url_is_that_of_the_factory(self, place: Place) -> None:
        """A tree has the dataset's name; its content is named by the store's own URL."""
        tree = place.open()
        assert isinstance(tree, CompositeStore)
        assert tree.url == place.source
        assert [path for path, _ in tree.roots()] == [""]


def test_two_real_stores(s3_place: Place, posix_place: Place) -> None:
    for number in range(1200):  # more than a page
        posix_place.put(f"d{number % 3}/f{number}", b"1")
    s3_place.put("x/\udcff".encode("utf-8", "replace").decode(), b"odd")
    s3_place.put("x/y", b"0123456789")
    tree = CompositeStore("dataset://default/t", [Child("s/3", s3_place.open()), Child("folder", posix_place.open())])
    tree.probe()
    entries = [entry for page in tree.list_tree() for entry in page]
    files = {entry.path: entry for entry in entries if entry.kind is Kind.FILE}
    assert len(files) == 1202
    assert len({entry.path for entry in entries}) == len(entries)
    found = files["s/3/x/y"]
    assert tree.stat("s/3/x/y") == found
    assert b"".join(map(bytes, tree.read_range("s/3/x/y", 3, 4, found.version))) == b"3456"
    assert {e.path for e in tree.list_directory("folder")} == {"folder/d0", "folder/d1", "folder/d2"}
    assert tree.list_directory("s") == [Entry("s/3", Kind.DIRECTORY)]
    assert not tree.lists_in_key_order, "a folder is listed in no order"
    assert not tree.pins_version
    tree.close()


def test_the_store_that_is_away_is_named(s3_place: Place, posix_place: Place, monkeypatch: Any) -> None:
    away = s3_place.open(endpoint=f"http://127.0.0.1:{every.closed_port()}")
    tree = CompositeStore("dataset://default/t", [Child("s3", away), Child("folder", posix_place.open())])
    with pytest.raises(Exception, match=r"mount /s3 \(s3\+http://127\.0\.0\.1:") as caught:
        tree.probe()
    assert not isinstance(caught.value, SourceUnavailable), "it has tried again until the deadline"
    assert os.linesep not in str(caught.value)
