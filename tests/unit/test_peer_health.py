"""Which peers are set aside, and when they are asked again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.cluster.health import Health, PeerHealth
from forebay.cacheruntime.cluster.placement import WorkerId

A, B = WorkerId("a"), WorkerId("b")


def peer(seed: int = 0) -> PeerHealth:
    return PeerHealth(random.Random(seed))


def fail_until_aside(health: PeerHealth, now: float, gap: float = 0.1) -> float:
    """Requests one after the other, all failed; the time when the peer was set aside."""
    for _ in range(100):
        if health.record(False, now, now + gap):
            return now + gap
        now += gap
    raise AssertionError("never set aside")


def test_requests_that_fail_one_after_the_other_set_a_peer_aside() -> None:
    health = peer()
    assert [health.record(False, number, number + 0.5) for number in range(6)] == [False] * 5 + [True]
    assert not health.usable


def test_a_busy_peer_that_stops_is_noticed_with_the_second_round_of_time_outs() -> None:
    """100 requests a second, each given up after 1 s; the peer stops at 10 s."""
    health = peer()
    for step in range(1000):
        health.record(True, step / 100, step / 100 + 0.001)
    asides = [ended for began in range(1000, 1500) if health.record(False, began / 100, ended := began / 100 + 1.0)]
    assert asides[0] == pytest.approx(12.1, abs=0.02)


@given(st.integers(1, 200), st.floats(0, 100), st.floats(0.1, 10))
def test_one_stall_sets_nobody_aside(together: int, begin: float, limit: float) -> None:
    """Whatever is under way when a peer stalls fails at the limit; what is sent from then on is answered."""
    health = peer()
    for number in range(together):
        health.record(False, begin + limit * number / together, begin + limit + 1e-3 * number)
        health.record(False, begin, begin + 1.9 * limit)
    assert health.usable


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.floats(0, 2)), max_size=60))
def test_a_peer_is_set_aside_only_with_enough_failures(steps: list[tuple[bool, float, float]]) -> None:
    health, now, seen = peer(), 0.0, []
    for good, gap, took in steps:
        now += gap
        seen.append((good, now - took, now))
        if health.record(good, now - took, now):
            last = [(good, began, ended) for good, began, ended in seen[-20:] if ended >= now - 30]
            failures = [(began, ended) for good, began, ended in last if not good]
            assert len(last) >= 5
            assert len(failures) >= len(last) / 2
            assert failures[-1][0] > failures[0][1]
            break
        assert health.usable


def test_most_requests_lost_is_bad_and_some_is_not() -> None:
    for lost, expected in ((0.1, True), (0.7, False)):
        health, rng = peer(), random.Random(3)
        for step in range(500):
            health.record(rng.random() >= lost, step, step + 0.5)
            if not health.usable:
                break
        assert health.usable == expected


def test_old_failures_do_not_count() -> None:
    health = peer()
    for step in range(50):
        health.record(False, 31.0 * step, 31.0 * step + 1)
    assert health.usable


def test_a_probe_for_each_backoff_which_doubles() -> None:
    health = peer()
    aside = fail_until_aside(health, 100.0)
    waits = []
    for _ in range(12):
        assert health.probe_at is not None
        due = health.probe_at
        waits.append(due - aside)
        assert not health.take_probe(due - 1e-6)
        assert health.take_probe(due)
        assert not health.take_probe(due)
        aside = due + 0.5
        health.record(False, due, aside)
    for wait, ceiling in zip(waits, [1, 2, 4, 8, 16, 32, *[60] * 6], strict=True):
        assert ceiling / 2 <= wait <= ceiling


def test_an_answered_probe_brings_a_peer_back_with_a_clean_record() -> None:
    health = peer()
    fail_until_aside(health, 0.0)
    due = health.probe_at or 0.0
    assert health.take_probe(due)
    assert health.record(True, due, due + 0.1)
    assert health.usable
    assert not health.record(False, due + 1, due + 1.5)
    assert health.usable


def test_answers_to_requests_from_before_say_nothing() -> None:
    health = peer()
    aside = fail_until_aside(health, 0.0)
    assert not health.record(True, aside - 0.01, aside + 0.3)
    assert not health.usable


def test_a_probe_of_which_nothing_is_heard_is_given_up() -> None:
    health = peer()
    fail_until_aside(health, 0.0)
    due = health.probe_at or 0.0
    assert health.take_probe(due)
    assert not health.take_probe(due + 9.9)
    assert health.take_probe(due + 10)


def test_one_that_comes_and_goes_is_asked_less_and_less() -> None:
    """It answers every probe and fails at once again, for ten minutes."""
    health, now, probes = peer(), 0.0, []
    while now < 600:
        now = fail_until_aside(health, now)
        now = health.probe_at or 0.0
        assert health.take_probe(now)
        probes.append(now)
        health.record(True, now, now + 0.01)
        now += 0.02
    assert len(probes) <= 25
    assert probes[-1] - probes[-2] >= 30


def test_a_minute_of_good_conduct_is_enough() -> None:
    health, now = peer(), 0.0
    for _ in range(5):
        now = fail_until_aside(health, now)
        now = health.probe_at or 0.0
        assert health.take_probe(now)
        health.record(True, now, now + 0.01)
    now = fail_until_aside(health, now + 61)
    assert health.probe_at is not None
    assert health.probe_at - now <= 1


def test_thousands_that_lose_a_peer_together_do_not_come_back_together() -> None:
    dues = []
    for seed in range(2000):
        health = peer(seed)
        fail_until_aside(health, 0.0)
        dues.append(health.probe_at or 0.0)
    span = max(dues) - min(dues)
    assert span > 0.45
    tenths = [sum(1 for due in dues if int((due - min(dues)) / span * 9.999) == tenth) for tenth in range(10)]
    assert max(tenths) < 300


def test_all_peers() -> None:
    health = Health(random.Random(1))
    assert health.usable(A)
    assert health.changed is None
    assert health.next_probe() is None
    for number in range(6):
        health.record(A, False, number, number + 0.5)
        health.record(B, True, number, number + 0.5)
    assert (health.usable(A), health.usable(B)) == (False, True)
    assert health.aside == {A}
    assert health.changed == 5.5
    due = health.next_probe()
    assert due is not None
    assert health.take_probes(due - 0.01) == []
    assert health.take_probes(due) == [A]
    assert health.take_probes(due) == []
    health.record(A, True, due, due + 0.1)
    assert health.usable(A)
    assert health.changed == due + 0.1


def test_who_is_in_no_view_is_forgotten() -> None:
    health = Health(random.Random(1))
    for number in range(6):
        health.record(A, False, number, number + 0.5)
    health.keep([B])
    assert health.usable(A)
    assert health.take_probes(1000) == []


def test_a_peer_that_is_seldom_asked_is_judged_within_seconds() -> None:
    """One request that was not answered within its limit of 1 s; the probes are not answered either."""
    health, now, pending = peer(), 1.0, [0.0]
    while health.usable and now < 20:
        while pending and pending[0] + 1.0 <= now:
            health.record(False, pending[0], now)
            pending.pop(0)
        if health.take_probe(now):
            pending.append(now)
        now += 0.01
    assert 3 < now < 7


def test_a_peer_that_failed_once_is_in_order_again_with_the_first_answer() -> None:
    health = peer()
    assert health.probe_at is None
    health.record(False, 0.0, 1.0)
    due = health.probe_at or 0.0
    assert 1.5 <= due <= 2.0
    assert not health.take_probe(due - 0.01)
    assert health.take_probe(due)
    assert not health.record(True, due, due + 0.1)
    assert health.usable
    assert not health.take_probe(1000)


def test_a_peer_is_silent_from_a_question_unanswered_until_it_says_anything() -> None:
    health = Health(random.Random(1))
    assert not health.is_silent(A)
    health.record(A, True, 0.0, 1.0)
    health.record(A, False, 0.5, 2.5)  # sent before it said something
    assert not health.is_silent(A)
    health.hear(A, False, 3.0, 5.0)
    assert health.is_silent(A)
    assert health.usable(A), "one question sets nobody aside"
    assert not health.is_silent(B)
    health.hear(A, True, 6.0, 6.1)
    assert not health.is_silent(A)
    health.record(A, False, 7.0, 9.0)
    assert health.is_silent(A)
    health.record(A, True, 9.5, 9.6)
    assert not health.is_silent(A)
