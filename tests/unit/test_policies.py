"""Cache policies against closed forms, against libCacheSim, and each against what all of them promise."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import libcachesim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.policies import POLICIES, Epoch, Lru, NextUse, Policy, Sieve, policy_named
from forebay.cacheruntime.simulation import Workload, lru_outcomes, shuffled_epochs, simulate
from forebay.cacheruntime.stack_distance import stack_distances

COUNT = 2000
EPOCHS = 6
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)


def epochs_of(jobs: int, count: int = COUNT) -> Workload:
    return shuffled_epochs(np.ones(count, dtype=np.int64), jobs, EPOCHS, seed=jobs)


def warm_ratio(workload: Workload, policy: str, fraction: float, **more: Any) -> float:
    """The hit ratio after each reader's first epoch."""
    capacity = round(fraction * len(workload.sizes))
    return simulate(workload, policy, capacity, uncounted=len(workload.items) // EPOCHS, **more).hit_ratio


# Names


@pytest.mark.parametrize("name", ["epoch", "sieve", "lru", "next-use"])
def test_each_name_is_a_policy(name: str) -> None:
    policy = policy_named(name)
    assert len(policy) == 0
    assert policy.replaces == (name != "epoch")


def test_an_unknown_name_is_told_which_there_are() -> None:
    with pytest.raises(UsageError, match="'fifo'; allowed are epoch, sieve, lru, next-use"):
        policy_named("fifo")


# Closed forms: each item once an epoch, in an order of its own


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_epoch_hits_what_it_keeps(fraction: float) -> None:
    assert warm_ratio(epochs_of(1), "epoch", fraction) == pytest.approx(fraction, abs=1e-9)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_lru_on_random_epochs(fraction: float) -> None:
    expected = fraction + (1 - fraction) * math.log(1 - fraction)
    assert warm_ratio(epochs_of(1), "lru", fraction) == pytest.approx(expected, abs=0.012)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("posted", [{}, {"epochs": 1}, {"epochs": 2}, {"ahead": 256}, {"ahead": 256, "epochs": 1}])
def test_next_use_hits_as_much_as_fits_for_one_reader(fraction: float, posted: dict[str, Any]) -> None:
    ratio = warm_ratio(epochs_of(1), "next-use", fraction, **posted)
    assert fraction - 0.01 <= ratio <= fraction + 0.001


# Several jobs that share a dataset: what offline Belady reaches

_BELADY = {2: {0.10: 0.31, 0.25: 0.50, 0.50: 0.73, 0.75: 0.88}, 4: {0.10: 0.36, 0.25: 0.56, 0.50: 0.77, 0.75: 0.90}}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", _BELADY)
def test_jobs_that_share_a_dataset(jobs: int) -> None:
    workload = epochs_of(jobs)
    for fraction, belady in _BELADY[jobs].items():
        assert warm_ratio(workload, "next-use", fraction) == pytest.approx(belady, abs=0.03)
        assert warm_ratio(workload, "epoch", fraction) == pytest.approx(fraction, abs=0.001)


# libCacheSim on the same traces


def zipf() -> Workload:
    random = np.random.default_rng(7)
    items = np.minimum(random.zipf(1.2, 20_000), 5000) - 1
    return Workload(items.astype(np.int64), np.ones(5000, dtype=np.int64))


def scan_mixed() -> Workload:
    """A hot set, and every now and then a run through everything."""
    random = np.random.default_rng(8)
    parts = [np.concatenate([random.integers(0, 300, 1500), np.arange(n, n + 700)]) for n in range(0, 4000, 500)]
    return Workload(np.concatenate(parts).astype(np.int64), np.ones(5000, dtype=np.int64))


def sized() -> Workload:
    """Zipf with sizes from 1 to 100 bytes."""
    random = np.random.default_rng(9)
    sizes = random.integers(1, 101, 5000)
    return Workload(zipf().items, sizes)


TRACES = {"zipf": zipf, "scan-mixed": scan_mixed, "epochs": lambda: epochs_of(1), "sized": sized}


def hits_of_libcachesim(cache: Any, workload: Workload) -> int:
    request = libcachesim.Request()
    hits = 0
    sizes = workload.sizes.tolist()
    future = next_accesses(workload.items)
    for time, item in enumerate(workload.items.tolist()):
        request.obj_id, request.obj_size, request.clock_time = item + 1, sizes[item], time
        request.next_access_vtime = future[time]
        hits += cache.get(request)
    return hits


def next_accesses(items: np.ndarray[Any, Any]) -> list[int]:
    """The index of each access's next one of the same item; libCacheSim's sign for never else."""
    never, seen, found = (1 << 63) - 1, dict[int, int](), []
    for index in range(len(items) - 1, -1, -1):
        item = int(items[index])
        found.append(seen.get(item, never))
        seen[item] = index
    return found[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize(("policy", "theirs"), [("lru", libcachesim.LRU), ("sieve", libcachesim.Sieve)])
def test_as_many_hits_as_libcachesim(trace: str, policy: str, theirs: Callable[..., Any]) -> None:
    workload = TRACES[trace]()
    for fraction in (0.02, 0.1, 0.5):
        capacity = int(fraction * workload.distinct_bytes)
        ours = simulate(workload, policy, capacity)
        assert ours.hits == hits_of_libcachesim(theirs(cache_size=capacity), workload)
        assert 0 < ours.hits < ours.accesses


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["zipf", "scan-mixed", "epochs"])
def test_next_use_is_not_below_libcachesims_belady(trace: str) -> None:
    """Theirs must take in what comes; ours may pass it by, and wins by little: one place in the cache."""
    workload = TRACES[trace]()
    for fraction in (0.02, 0.1, 0.5):
        capacity = int(fraction * workload.distinct_bytes)
        ours, theirs = simulate(workload, "next-use", capacity), libcachesim.Belady(cache_size=capacity)
        belady = hits_of_libcachesim(theirs, workload)
        more_room = hits_of_libcachesim(libcachesim.Belady(cache_size=capacity + 1), workload)
        assert belady <= ours.hits <= more_room


# LRU in one pass


@given(
    st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 80), min_size=1, max_size=5), st.integers(0, 20)
)
def test_lru_in_one_pass_is_lru(items: list[int], capacities: list[int], uncounted: int) -> None:
    workload = Workload(np.array(items, dtype=np.int64), np.full(10, 7, dtype=np.int64))
    outcomes = lru_outcomes(workload, capacities, uncounted)
    if not items:
        assert outcomes is None
    else:
        assert outcomes == [simulate(workload, "lru", capacity, uncounted=uncounted) for capacity in capacities]


def test_lru_in_one_pass_needs_one_size() -> None:
    assert lru_outcomes(sized(), [100]) is None


def test_stack_distances() -> None:
    items = np.array([1, 2, 3, 1, 1, 2, 4, 3], dtype=np.int64)
    assert stack_distances(items).tolist() == [-1, -1, -1, 2, 0, 2, -1, 3]


# What each promises


@st.composite
def small_workloads(draw: st.DrawFn) -> Workload:
    count = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    items = draw(st.lists(st.integers(0, count - 1), max_size=40))
    readers = draw(st.none() | st.lists(st.integers(0, 2), min_size=len(items), max_size=len(items)))
    whose = None if readers is None else np.array(readers, dtype=np.int64)
    return Workload(np.array(items, dtype=np.int64), np.array(sizes, dtype=np.int64), whose)


@given(small_workloads(), st.sampled_from(list(POLICIES)), st.integers(1, 30), st.none() | st.integers(1, 5))
def test_never_more_than_fits(workload: Workload, policy: str, capacity: int, ahead: int | None) -> None:
    outcome = simulate(workload, policy, capacity, ahead)
    assert outcome.peak_bytes <= capacity
    assert outcome.hits <= outcome.accesses - len({i for i in workload.items.tolist() if workload.sizes[i] <= capacity})
    if capacity >= workload.distinct_bytes:
        assert outcome.fetched_bytes == workload.distinct_bytes


@pytest.mark.parametrize("make", [Epoch, Lru, NextUse, Sieve])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["inserted", "accessed", "removed"]), st.integers(0, 9)), max_size=40),
    dropped=st.sets(st.integers(0, 9)),
    coming=st.none() | st.integers(0, 9),
)
def test_victims_are_all_that_is_in_each_once(
    make: Callable[[], Policy[int]], steps: list[tuple[str, int]], dropped: set[int], coming: int | None
) -> None:
    policy, inside = make(), set[int]()
    for step, item in steps:
        if step == "inserted":
            policy.inserted(item, 1)
            inside.add(item)
        elif step == "accessed":
            policy.accessed(item)
        else:
            policy.removed(item)
            inside.discard(item)
        assert len(policy) == len(inside)
    assert {item for item in range(10) if item in policy} == inside
    order = []
    for victim in policy.victims(coming):
        order.append(victim)
        if victim in dropped:
            policy.removed(victim)
    assert sorted(order) == sorted(inside - {coming})
    assert {item for item in range(10) if item in policy} == inside - (dropped - {coming})


@pytest.mark.parametrize("make", [Epoch, Lru, NextUse, Sieve])
def test_victims_heed_what_happens_meanwhile(make: Callable[[], Policy[int]]) -> None:
    policy = make()
    for item in range(8):
        policy.inserted(item, 1)
    victims = policy.victims()
    given_out = list(islice(victims, 3))
    gone = next(item for item in range(8) if item not in given_out)
    policy.removed(gone)
    policy.inserted(8, 1)
    assert sorted([*given_out, *victims]) == sorted({*range(9)} - {gone})


# Each in its own way


def filled(policy: Policy[str], items: str = "abcde") -> Policy[str]:
    for item in items:
        policy.inserted(item, 1)
    return policy


def test_epoch_gives_the_oldest_untouched_first() -> None:
    policy = filled(Epoch[str]())
    for item in "eca":
        policy.accessed(item)
    assert "".join(policy.victims()) == "bdace"
    assert not policy.admits("f", 1)


def test_lru_gives_the_least_recent_first_and_growth_is_no_use() -> None:
    policy = filled(Lru[str]())
    policy.accessed("a")
    policy.inserted("b", 2)
    assert "".join(policy.victims("c")) == "bdea"


def test_lru_heeds_an_access_while_it_gives_out_victims() -> None:
    policy = filled(Lru[str]())
    victims = policy.victims()
    assert next(victims) == "a"
    policy.accessed("b")
    assert "".join(victims) == "cdeb"


def test_sieve_passes_the_visited_once() -> None:
    policy = filled(Sieve[str]())
    policy.accessed("a")
    policy.accessed("c")
    assert list(islice(policy.victims(), 1)) == ["b"]
    policy.removed("b")
    policy.inserted("f", 1)
    assert "".join(policy.victims()) == "defac"


# Next use


def test_nearest_use_over_readers_counts() -> None:
    policy = NextUse[str]()
    filled(policy, "abcd")
    policy.post("one", 0, "abcd")
    assert next(policy.victims()) == "d"
    policy.post("two", 0, "dabc")
    assert next(policy.victims()) == "c"
    policy.leave("one")
    assert "".join(policy.victims()) == "cbad"
    policy.leave("two")
    policy.leave("nobody")
    assert "".join(policy.victims()) == "dcba"


def test_who_has_no_next_use_is_the_farthest_most_recent_first() -> None:
    policy = NextUse[str]()
    filled(policy)
    policy.post("job", 100, "ab")
    policy.accessed("d")
    assert "".join(policy.victims()) == "decba"
    policy.advance("job", 101)
    assert "".join(policy.victims()) == "adecb"


def test_regression_an_item_that_is_passed_twice_at_once_is_as_recent_as_the_second_time() -> None:
    policy = NextUse[str]()
    filled(policy, "ab")
    policy.post("job", 0, "aba")
    policy.advance("job", 3)
    assert "".join(policy.victims()) == "ab"


def test_admits_what_is_needed_sooner_than_all_that_would_go() -> None:
    policy = NextUse[str]()
    filled(policy, "abc")
    policy.post("job", 0, "afbgch")
    assert policy.admits("f", 1)
    assert policy.admits("f", 2)
    assert not policy.admits("f", 3), "a is read before it"
    assert not policy.admits("h", 1)
    assert not policy.admits("x", 1), "nobody has said that it will be read"
    assert not policy.admits("f", 9), "all together are not as large"


def test_what_is_being_asked_for_stays_but_is_no_reason_to_come_in() -> None:
    policy = NextUse[str]()
    policy.inserted("a", 1)
    policy.inserted("b", 1)
    policy.post("job", 0, [*"xab", "b", "a", "x"])
    policy.advance("job", 0, 2)
    assert not policy.admits("x", 1), "its reader gets it all the same; after that all others are needed sooner"
    assert list(policy.victims()) == ["b", "a"], "it asks for a, and has not read it"
    policy.read("job", 1)
    assert list(policy.victims()) == ["a", "b"]
    policy.read("job", 1)
    policy.read("job", 100)
    policy.read("nobody", 1)
    policy.advance("job", 3, 3)
    assert list(policy.victims()) == ["a", "b"]


def test_an_order_can_be_changed() -> None:
    policy = NextUse[str]()
    filled(policy, "abc")
    policy.post("job", 0, "abc")
    policy.post("job", 0, "cba")
    assert "".join(policy.victims()) == "abc"
    policy.post("job", 1, "a")
    assert "".join(policy.victims()) == "bac"


def test_what_was_read_already_is_not_posted_again() -> None:
    policy = NextUse[str]()
    filled(policy, "abc")
    policy.advance("job", 2)
    policy.post("job", 0, "abc")
    assert "".join(policy.victims()) == "bac"
    policy.advance("job", 1)
    assert "".join(policy.victims()) == "bac"


def test_a_reader_twice_as_fast_reads_things_sooner() -> None:
    policy = NextUse[int]()
    fast, slow = 10**6, 10**6 + 1
    policy.post("fast", 0, range(9000))
    policy.post("slow", 0, range(10_000, 19_000))
    for step in range(4000):
        policy.advance("fast", 2 * step)
        policy.advance("slow", step)
    policy.inserted(fast, 1)
    policy.inserted(slow, 1)
    policy.post("fast", 2 * 3999 + 1500, [fast])
    policy.post("slow", 3999 + 1000, [slow])
    assert list(policy.victims()) == [slow, fast], "750 steps against 1000"
    for step in range(3 * 1024):
        policy.advance("slow", 3999 + step // 4)
        policy.advance("fast", 2 * 3999 + step // 4)
    assert list(policy.victims()) == [fast, slow], "now as fast as each other"


def test_a_window_far_ahead_begins_anew() -> None:
    policy = NextUse[str]()
    filled(policy, "ab")
    policy.post("job", 0, "ab")
    policy.post("job", 10**12, "b")
    assert "".join(policy.victims()) == "ab"


@pytest.mark.slow
@pytest.mark.parametrize("window", [64, 256])
def test_prefetch_does_not_wash_a_full_cache_out(window: int) -> None:
    """What is fetched ahead through a full cache takes the places of what was fetched ahead before it.

    Of the files in the half window ahead, half are not from the epoch before: so many places are theirs.
    """
    count, capacity, epochs = 10_000, 5000, 4
    random = np.random.default_rng(3)
    order = np.concatenate([random.permutation(count) for _ in range(epochs)]).tolist()
    policy = NextUse[int]()
    inside, fetched, late = set[int](), [0] * epochs, 0
    for position, item in enumerate(order):
        if position % (window // 2) == 0:
            policy.post("job", position, order[position : position + window])
        policy.advance("job", position)
        for ahead in order[position : position + window // 2]:
            if ahead in inside:
                continue
            if len(inside) == capacity:
                if not policy.admits(ahead, 1):
                    continue
                victim = next(policy.victims(ahead))
                policy.removed(victim)
                inside.remove(victim)
            policy.inserted(ahead, 1)
            inside.add(ahead)
            fetched[position // count] += 1
        late += item not in inside
        policy.accessed(item)
    assert late == 0
    assert all(fetches <= count - capacity + window // 4 + 10 <= 0.51 * count for fetches in fetched[1:]), fetched
