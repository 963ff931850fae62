"""Histograms of durations."""

import math
import random

import pytest

from forebay.cacheruntime.histogram import BUCKETS, Histogram, bucket_of, upper_s


@pytest.mark.parametrize(
    ("nanoseconds", "bucket"),
    [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (4_000_000, 12), (67 * 10**9, 26), (10**15, BUCKETS - 1)],
)
def test_bucket(nanoseconds: int, bucket: int) -> None:
    assert bucket_of(nanoseconds) == bucket
    assert nanoseconds / 1e9 < upper_s(bucket) or bucket == BUCKETS - 1
    assert bucket == 0 or nanoseconds / 1e9 >= upper_s(bucket - 1)


def test_quantiles_are_right_to_a_factor_of_two() -> None:
    rng = random.Random(1)
    durations = sorted(int(math.exp(rng.gauss(14, 1.5))) for _ in range(10_000))
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    assert histogram.count == 10_000
    assert histogram.sum_s == pytest.approx(sum(durations) / 1e9)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        true = durations[min(int(share * 10_000), 9_999)] / 1e9
        found = histogram.quantile_s(share)
        assert found is not None
        assert true / 2 <= found <= true * 2


def test_quantile_of_nothing() -> None:
    assert Histogram().quantile_s(0.5) is None


def test_difference_and_a_counter_that_began_anew() -> None:
    before, now = Histogram(), Histogram()
    for duration in (5_000, 80_000):
        before.add(duration)
        now.add(duration)
    now.add(1_000_000)
    assert (now - before).count == 1
    assert (now - before).sum_ns == 1_000_000
    fresh = Histogram()
    fresh.add(7_000)
    assert fresh - now == fresh
    assert (now + fresh).count == 4


def test_of_another_version_with_fewer_buckets() -> None:
    assert Histogram.of([1, 2], 9).counts == [1, 2, *[0] * (BUCKETS - 2)]
