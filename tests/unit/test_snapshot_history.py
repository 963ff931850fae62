"""Which snapshots stay."""

import time
from pathlib import Path

import pytest

from forebay.cacheruntime.catalogue import Totals
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.snapshot_history import UNCHANGED, Keep, StoredSnapshot, expired, stored_snapshots
from forebay.cacheruntime.understore.base import Entry, Kind

DAY_NS = 86400 * 10**9
NOW_NS = 1000 * DAY_NS


def snapshot(number: int, days: float = 0.0, *, complete: bool = True, unchanged: bool = False) -> StoredSnapshot:
    totals = Totals(1, 1, 1, 0, complete, "", NOW_NS - int(days * DAY_NS))
    return StoredSnapshot(number, Path(str(number)), totals, unchanged)


@pytest.mark.parametrize(
    ("keep", "in_use", "removed"),
    [
        (Keep(), (), [1, 2]),
        (Keep(3), (), [1, 2, 3, 4, 5, 6, 7]),
        (Keep(3), (2, 5), [1, 3, 4, 6, 7]),
        (Keep(3, pinned=frozenset({1})), (), [2, 3, 4, 5, 6, 7]),
        (Keep(1), (), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Keep(100), (), []),
        (Keep(100, age_s=4.5 * 86400), (), [1, 2, 3, 4, 5]),
        (Keep(100, age_s=0.1), (), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Keep(2, age_s=4.5 * 86400, pinned=frozenset({3})), (4,), [1, 2, 5, 6, 7, 8]),
    ],
)
def test_by_count_and_age(keep: Keep, in_use: tuple[int, ...], removed: list[int]) -> None:
    """Number N is 10 - N days old."""
    snapshots = [snapshot(number, 10 - number) for number in range(1, 11)]
    assert expired(snapshots, keep, in_use, NOW_NS) == removed


def test_what_is_no_history_goes_first() -> None:
    """Listings that broke off, and those that showed nothing new; the newest whole one stays whatever it is."""
    snapshots = [
        snapshot(1), snapshot(2, complete=False), snapshot(3, unchanged=True), snapshot(4, unchanged=True),
        snapshot(5), snapshot(6, unchanged=True), snapshot(7, complete=False),
    ]  # fmt: skip
    assert expired(snapshots, Keep(), (), NOW_NS) == [2, 3, 4, 7]
    assert expired(snapshots, Keep(), (4, 7), NOW_NS) == [2, 3]
    assert expired(snapshots, Keep(2), (), NOW_NS) == [1, 2, 3, 4, 7]


def test_one_that_cannot_be_read_goes() -> None:
    broken = StoredSnapshot(2, Path("2"), None, False)
    assert expired([snapshot(1), broken], Keep(), (), NOW_NS) == [2]
    assert expired([], Keep(), (), NOW_NS) == []


def test_what_is_on_disk(tmp_path: Path) -> None:
    before = time.time_ns()
    for number in (1, 2, 10):
        writer = CatalogueWriter(tmp_path / str(number), "fake://x")
        if number != 2:
            writer.finish()
        writer.close()
    (tmp_path / "10" / UNCHANGED).touch()
    (tmp_path / "3").mkdir()
    (tmp_path / "source").write_text("fake://x")
    found = stored_snapshots(tmp_path)
    assert [(s.number, s.complete, s.unchanged) for s in found] == [
        (1, True, False), (2, False, False), (3, False, False), (10, True, True),
    ]  # fmt: skip
    assert before <= found[0].listed_ns <= time.time_ns()
    assert found[0].disk_bytes() > 0
    assert stored_snapshots(tmp_path / "none") == []
    assert [(s.number, s.complete) for s in stored_snapshots(tmp_path, {})] == [
        (1, True), (2, False), (3, False), (10, True),
    ]  # fmt: skip


def test_a_worker_looks_at_summaries_alone(tmp_path: Path) -> None:
    """What a power loss has torn may end the process that opens it."""
    writer = CatalogueWriter(tmp_path / "1", "fake://x")
    writer.add([Entry("a", Kind.FILE, 5, version="v")])
    writer.finish("broke off")
    assert stored_snapshots(tmp_path, {})[0].totals is None
    writer.finish()
    totals = writer.reader().totals()
    assert (totals.files, totals.bytes, totals.complete) == (1, 5, True)
    writer.close()
    (tmp_path / "1" / "data.mdb").write_bytes(b"torn")
    assert stored_snapshots(tmp_path, {})[0].totals == totals
    assert stored_snapshots(tmp_path)[0].totals is None
