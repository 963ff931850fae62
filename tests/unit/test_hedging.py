"""When a second peer is asked, and how often at most."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.cluster.hedging import HedgeBudget, Hedger, LatencyWindow


def hedger_that_saw(*seconds: float, times: int = 1000) -> Hedger:
    hedger = Hedger()
    for _ in range(times):
        for each in seconds:
            hedger.header(each)
    return hedger


@given(st.lists(st.booleans(), max_size=3000))
def test_the_budget_is_never_exceeded(wishes: list[bool]) -> None:
    """Not by all, and not in any hundred in a row."""
    budget = HedgeBudget()
    hedged = []
    for wish in wishes:
        budget.earn()
        hedged.append(wish and budget.take())
    assert budget.hedges == sum(hedged) <= 0.04 * len(wishes)
    for first in range(len(hedged) - 99):
        assert sum(hedged[first : first + 100]) <= 5


def test_the_budget_is_given_whole() -> None:
    budget = HedgeBudget()
    for _ in range(2000):
        budget.earn()
        budget.take()
    assert budget.hedges == 80


def test_a_quiet_hour_saves_one_hedge() -> None:
    budget = HedgeBudget()
    for _ in range(100_000):
        budget.earn()
    assert sum(budget.take() for _ in range(50)) == 1


def test_quantiles_are_of_what_was_seen_lately() -> None:
    window, rng = LatencyWindow(), random.Random(1)
    assert window.quantiles_s(0.5) is None
    for scale in (0.5, 0.004):
        for _ in range(4000):
            window.add(rng.expovariate(1 / scale))
    median, high = window.quantiles_s(0.5, 0.99) or (0.0, 0.0)
    assert 0.004 * 0.69 / 1.5 < median < 0.004 * 0.69 * 1.5
    assert 0.004 * 4.6 / 2 < high < 0.004 * 4.6 * 2


def test_before_anything_is_known_a_tenth_of_a_second() -> None:
    hedger = hedger_that_saw(0.001, times=99)
    assert (hedger.delay_s, hedger.limit_s) == (0.1, 1.0)


def test_fast_peers_are_given_some_milliseconds() -> None:
    hedger = hedger_that_saw(0.0003)
    assert (hedger.delay_s, hedger.limit_s) == (0.02, 1.0)


def test_the_delay_is_the_99th_percentile() -> None:
    hedger, rng = Hedger(), random.Random(2)
    for _ in range(4000):
        hedger.header(rng.uniform(0.05, 0.15))
    assert 0.14 / 2 < hedger.delay_s < 0.15 * 2
    late = sum(rng.uniform(0.05, 0.15) > hedger.delay_s for _ in range(4000))
    assert late <= 0.02 * 4000


def test_where_one_peer_in_four_is_slow_it_is_hedged() -> None:
    hedger = hedger_that_saw(0.01, 0.01, 0.01, 0.5)
    assert hedger.delay_s < 0.2


def test_where_all_are_slow_nobody_gives_up_early() -> None:
    assert hedger_that_saw(0.4, 0.6, 0.8).limit_s > 4
    assert hedger_that_saw(30.0).limit_s == 10.0


def test_a_hedge_is_counted() -> None:
    hedger = Hedger()
    for _ in range(25):
        assert not hedger.may_hedge()
        hedger.begin()
    assert hedger.may_hedge()
    assert not hedger.may_hedge()
    assert (hedger.budget.requests, hedger.budget.hedges) == (25, 1)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e6])
def test_any_duration_can_be_counted(seconds: float) -> None:
    hedger = hedger_that_saw(seconds)
    assert hedger.delay_s >= 0.02
    assert 1.0 <= hedger.limit_s <= 10.0
