"""The store of docs/how-to/add-a-store.md, through those parts of the contract that it claims."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.cacheruntime.errors import SourceError, SourceNotFound
from forebay.cacheruntime.understore.base import UnderStore
from forebay.cacheruntime.understore.retry import RetryingStore
from tests.contract import test_understore as contract
from tests.contract.conftest import QUICK_RETRY, Place

PAGE = Path(__file__).parents[2] / "docs/how-to/add-a-store.md"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An archive that is written anew with each file."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    space: dict[str, Any] = {"__name__": "add_a_store"}
    exec(compile(code, str(PAGE), "exec"), space)
    archive, contents = tmp_path / "a.zip", dict[str, bytes]()

    class ZipPlace(Place):
        def open(self, below: str = "", **options: str) -> UnderStore:
            store: UnderStore = RetryingStore(space["ZipStore"](str(archive) + below), QUICK_RETRY)
            self.opened.append(store)
            return store

    def write() -> None:
        with zipfile.ZipFile(tmp_path / "new", "w") as new:
            for path, data in contents.items():
                new.writestr(path, data)
        (tmp_path / "new").rename(archive)

    def put(path: str, data: bytes) -> None:
        contents[path] = data
        write()

    def remove(path: str) -> None:
        del contents[path]
        write()

    found = ZipPlace("zip", f"zip://{archive}", {}, put, remove)
    yield found
    for store in found.opened:
        store.close()


@pytest.mark.parametrize(
    "name",
    [
        "test_lists_what_was_put",
        "test_the_order_of_keys_where_it_is_promised",
        "test_ranges",
        "test_zero_bytes",
        "test_replaced_file_is_stale",
        "test_shrunk_file_is_stale",
        "test_range_beyond_the_end_is_stale",
        "test_removed_file_is_stale_to_read_and_not_found_to_stat",
        "test_list_directory",
        "test_unchanged_file_keeps_its_version",
        "test_iterator_left_early",
        "test_close_twice",
    ],
)
def test_contract(place: Place, name: str) -> None:
    getattr(contract.TestEveryStore(), name)(place)


@pytest.mark.parametrize("name", contract.ODD_NAMES)
def test_odd_names(place: Place, name: str) -> None:
    contract.TestEveryStore().test_odd_names_are_listed_and_read(place, name)


def test_no_archive(place: Place, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"a\.zip"):
        place.open("-missing").probe()
    (tmp_path / "a.zip-bad").write_bytes(b"no zip")
    with pytest.raises(SourceError, match="no zip archive"):
        place.open("-bad").probe()
