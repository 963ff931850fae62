"""What `forebay stats` and `forebay profile` make of two looks at the counters."""

import pytest

from forebay.cacheruntime.counters import Counts, Source
from forebay.cacheruntime.histogram import Histogram
from forebay.cli.live_commands import Look, profile_of, stats_row

MS = 1_000_000


def _look(at_s: float = 10.0, **more: int) -> Look:
    look = Look(at_s)
    for name, value in more.items():
        setattr(look.counts if hasattr(Counts, name) else look, name, value)
    return look


def _times(*durations_ms: float) -> Histogram:
    found = Histogram()
    for duration in durations_ms:
        found.add(int(duration * MS))
    return found


def test_rates_of_an_interval() -> None:
    before, now = _look(10.0, hits=5, gets=1, get_bytes=100), _look(12.0, hits=25, misses=5, gets=5, get_bytes=1100)
    now.sources[Source.STORE].times = _times(4, 4, 4, 20)
    row = stats_row(now.since(before))
    assert (row["hits_s"], row["misses_s"], row["hit_ratio"]) == (10, 2.5, 0.8)
    assert (row["store_requests_s"], row["store_bytes_s"]) == (2, 500)
    assert row["wait_p50_s"] == pytest.approx(0.004, rel=0.5)
    assert row["wait_p99_s"] == pytest.approx(0.02, rel=0.7)
    assert stats_row(_look(3.0).since(_look(2.0)))["wait_p50_s"] is None


def test_a_new_worker_counts_anew() -> None:
    before, now = _look(1.0, gets=100, get_bytes=1000), _look(2.0, gets=3, get_bytes=30)
    seen = now.since(before)
    assert (seen.gets, seen.get_bytes) == (3, 30)


def test_the_time_of_the_cache_is_reckoned_from_a_sample() -> None:
    seen = _look(1.0, hits=160, hit_bytes=1600)
    seen.sources[Source.TIER].times = _times(*[0.1] * 10)
    seen.sources[Source.STORE].times = _times(16)
    shown = profile_of(seen)
    tier, store = shown["sources"][0], shown["sources"][2]
    assert (tier["reads"], tier["bytes"], tier["sampled"]) == (160, 1600, 16)
    assert tier["time_ratio"] == pytest.approx(0.5)
    assert store["time_ratio"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("source", "queue", "gets", "words"),
    [
        (None, (), (), "no reads were seen"),
        (Source.TIER, (), (), "the cache's own tiers"),
        (Source.STORE, (1,), (20,), "waiting for the source"),
        (Source.STORE, (50, 60), (20, 20), "waited longer for their turn"),
        (Source.MEMORY, (), (), "no tier has room"),
    ],
)
def test_verdict(source: Source | None, queue: tuple[int, ...], gets: tuple[int, ...], words: str) -> None:
    seen = _look(1.0, hits=1 if source is Source.TIER else 0)
    if source is not None:
        seen.sources[source].times = _times(30)
    seen.queue_times, seen.get_times = _times(*queue), _times(*gets)
    assert words in profile_of(seen)["verdict"]
