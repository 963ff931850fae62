"""How far a worker says that the readers of a hot file should spread."""

import random

import pytest

from forebay.cacheruntime.cluster.overload import MOST_SPREAD, Overload
from forebay.cacheruntime.keys import ContentId

HOT = ContentId(bytes(16))
MIB = 1 << 20
SHARE = 100 * MIB


def owner() -> int:
    return 0


def serve(overload: Overload, rate: float, begin: float, seconds: float, position: int = 0) -> list[int]:
    """What readers are told who read `rate` bytes a second in requests of 1 MiB, at even distances."""
    count = int(rate * seconds / (MIB + (128 << 10)))
    return [overload.record(HOT, lambda: position, MIB, begin + seconds * number / count) for number in range(count)]


def test_what_is_read_a_little_is_not_spread() -> None:
    assert set(serve(Overload(SHARE), 0.2 * SHARE, 0, 10)) == {1}
    assert set(serve(Overload(SHARE), 0.95 * SHARE, 0, 10)) == {1}


@pytest.mark.parametrize(("demand", "expected"), [(1.5, 2), (3, 4), (7.5, 8), (30, 32), (1000, MOST_SPREAD)])
def test_a_hot_file_is_spread_as_far_as_it_takes(demand: float, expected: int) -> None:
    told = serve(Overload(SHARE), demand * SHARE, 0, 1)
    assert told[0] == 1
    assert told == sorted(told)
    assert told[-1] == expected


def test_it_settles_and_stays() -> None:
    """Readers do as they are told at once, and one worker sees a k-th of them."""
    overload, demand, spread, seen = Overload(SHARE), 10 * SHARE, 1, []
    for second in range(60):
        spread = serve(overload, demand / spread, second, 1)[-1]
        seen.append(spread)
    assert seen[0] >= 8
    assert set(seen[1:]) == {16}


def test_it_ends_when_readers_leave() -> None:
    overload = Overload(SHARE)
    serve(overload, 10 * SHARE, 0, 3)
    told = [serve(overload, 0.1 * SHARE, 3 + second, 1)[-1] for second in range(8)]
    assert told == sorted(told, reverse=True)
    assert told[-1] == 1


def test_a_pause_ends_it_too() -> None:
    overload = Overload(SHARE)
    serve(overload, 10 * SHARE, 0, 3)
    assert overload.record(HOT, owner, MIB, 30) == 1


def test_a_replica_says_what_the_owner_says() -> None:
    assert serve(Overload(SHARE), 0.6 * SHARE, 0, 3, position=5)[-1] == 8
    assert serve(Overload(SHARE), 1.9 * SHARE, 0, 1, position=5)[-1] == 16
    assert set(serve(Overload(SHARE), 0.2 * SHARE, 0, 3, position=5)) == {1}


def test_small_requests_cost_too() -> None:
    overload = Overload(SHARE)
    assert [overload.record(HOT, owner, 100, number / 3000) for number in range(3000)][-1] == 4


def test_contents_are_counted_one_by_one_and_within_bounds() -> None:
    overload, rng = Overload(SHARE), random.Random(4)
    contents = [ContentId(rng.randbytes(16)) for _ in range(20_000)]
    for number in range(40_000):
        assert overload.record(contents[number % len(contents)], owner, 1000, number / 40_000) == 1
        told = overload.record(HOT, owner, MIB // 32, number / 40_000)
    assert told > 1
    assert len(overload._costs) <= 4096
