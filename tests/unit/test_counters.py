"""Counters that handlers and the command line share."""

from pathlib import Path

import pytest

from forebay.cacheruntime.counters import CounterRow, Counts, Source, read_counts, read_sources


def test_rows_are_summed(tmp_path: Path) -> None:
    rows = [CounterRow(tmp_path, n) for n in (0, 1, 63)]
    for number, row in enumerate(rows, 1):
        row.add("hits", number)
        row.add("hit_bytes", 1 << 40)
        row.add("misses")
    assert read_counts(tmp_path) == Counts(hits=6, hit_bytes=3 << 40, misses=3)
    for row in rows:
        row.close()


def test_a_successor_goes_on_with_the_row(tmp_path: Path) -> None:
    for _ in range(3):
        row = CounterRow(tmp_path, 0)
        row.add("requests", 5)
        row.close()
    assert read_counts(tmp_path).requests == 15


def test_no_mount(tmp_path: Path) -> None:
    assert read_counts(tmp_path / "none") == Counts()
    CounterRow(tmp_path, 0).close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"123")
    assert read_counts(tmp_path) == Counts()


@pytest.mark.parametrize(
    ("counts", "ratio"),
    [
        (Counts(), None),
        (Counts(hits=3, misses=1), 0.75),
        (Counts(passthrough_opens=1), 1.0),
        (Counts(misses=2), 0.0),
        (Counts(hits=1, passthrough_opens=1, misses=2), 0.5),
    ],
)
def test_hit_ratio(counts: Counts, ratio: float | None) -> None:
    assert counts.hit_ratio == ratio


def test_unknown_counter(tmp_path: Path) -> None:
    row = CounterRow(tmp_path, 0)
    with pytest.raises(KeyError):
        row.add("nonsense")
    row.close()


def test_times_of_reads_by_source(tmp_path: Path) -> None:
    rows = [CounterRow(tmp_path, number) for number in (0, 5)]
    rows[0].observe(Source.STORE, 3_000_000, 1000)
    rows[1].observe(Source.STORE, 5_000_000, 500)
    rows[1].observe(Source.MEMORY, 70 * 10**9, 1)
    rows[0].add("hits", 3)
    found = read_sources(tmp_path)
    store = found[Source.STORE]
    assert (store.bytes, store.times.count, store.times.sum_ns) == (1500, 2, 8_000_000)
    assert store.times.quantile_s(1.0) == pytest.approx(0.008192)
    assert found[Source.MEMORY].times.counts[-1] == 1
    assert found[Source.TIER].times.count == 0
    assert read_counts(tmp_path).hits == 3, "the numbers do not lie in each other"
    assert read_sources(tmp_path / "none")[Source.STORE].bytes == 0
    for row in rows:
        row.close()
