"""Placement: whose share is what, and what moves when somebody comes or leaves."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Member, Placement, WorkerId, slice_of
from forebay.cacheruntime.keys import ContentId

_RANDOM = random.Random(5)
_KEYS = [ContentId(_RANDOM.randbytes(16)) for _ in range(1000)]

weights = st.floats(min_value=0.5, max_value=20.0)
members = st.dictionaries(st.uuids().map(str), weights, min_size=1, max_size=12).map(
    lambda found: [Member(WorkerId(id_), weight) for id_, weight in found.items()]
)


def first_owners(placement: Placement, count: int = len(_KEYS)) -> list[WorkerId]:
    return [placement.rank(key, 0, 1)[0] for key in _KEYS[:count]]


def margin(share: float, count: int) -> float:
    """Six standard deviations of what falls to a share by chance, and a little where it is a handful of keys."""
    return 6 * math.sqrt(share * (1 - share) / count) + 6 / count


@given(members, st.data())
def test_the_order_of_the_list_does_not_matter(some: list[Member], data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(some))
    one, other = Placement(some), Placement(mixed)
    assert one.members == other.members
    for key in _KEYS[:20]:
        assert one.rank(key, 3, 12) == other.rank(key, 3, 12)


@given(members)
def test_replicas_are_distinct_and_as_many_as_there_can_be(some: list[Member]) -> None:
    placement = Placement(some)
    for replicas in (1, 2, 3, 20):
        owners = placement.owners(_KEYS[0], 0, replicas)
        assert len(set(owners)) == len(owners) == min(replicas, len(some))
    assert placement.owners(_KEYS[0], 0, 0) == placement.owners(_KEYS[0], 0, 1)


@given(members, st.integers(0, 1 << 40))
def test_a_short_ranking_is_the_begin_of_a_long_one(some: list[Member], slice_: int) -> None:
    placement = Placement(some)
    whole = placement.rank(_KEYS[1], slice_, len(some))
    for most in range(len(some) + 1):
        assert placement.rank(_KEYS[1], slice_, most) == whole[:most]


def test_a_short_ranking_of_many_is_the_begin_of_a_long_one() -> None:
    placement = Placement(Member(WorkerId(f"w{number}"), 1 + number % 7) for number in range(1000))
    for key in _KEYS[:50]:
        assert placement.rank(key, 1, 9) == placement.rank(key, 1, 1000)[:9]


@given(members.filter(lambda some: len(some) > 1), st.data())
def test_who_leaves_takes_nobody_elses_place(some: list[Member], data: st.DataObject) -> None:
    """Views that differ by one agree on all else; read backwards, it is somebody who comes."""
    leaver = data.draw(st.sampled_from(some))
    before, after = Placement(some), Placement([member for member in some if member != leaver])
    for key in _KEYS[:40]:
        left = [id_ for id_ in before.rank(key, 0, 12) if id_ != leaver.id]
        assert list(after.rank(key, 0, 12)) == left


@given(members.filter(lambda some: len(some) > 1), st.data())
def test_who_leaves_moves_its_share_and_no_more(some: list[Member], data: st.DataObject) -> None:
    leaver = data.draw(st.sampled_from(some))
    before = first_owners(Placement(some))
    after = first_owners(Placement([member for member in some if member != leaver]))
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) <= {leaver.id}
    share = leaver.weight / sum(member.weight for member in some)
    assert abs(len(moved) / len(_KEYS) - share) <= margin(share, len(_KEYS))


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("replicas", [1, 3])
def test_one_of_n_that_comes_takes_an_nth_of_all_copies(count: int, replicas: int) -> None:
    some = [Member(WorkerId(f"w{number}"), 1.0) for number in range(count + 1)]
    before, after = Placement(some[:count]), Placement(some)
    copies = min(replicas, count)
    new = 0
    for key in _KEYS:
        came = set(after.owners(key, 0, copies)) - set(before.owners(key, 0, copies))
        assert came <= {some[count].id}
        new += len(came)
    share = copies / (count + 1)
    assert abs(new / len(_KEYS) - share) <= margin(share, len(_KEYS))


@given(members, weights, st.data())
def test_a_weight_that_changes_moves_only_what_it_gains_or_loses(
    some: list[Member], weight: float, data: st.DataObject
) -> None:
    changed = data.draw(st.sampled_from(some))
    other = [Member(member.id, weight if member == changed else member.weight) for member in some]
    for old, new in zip(first_owners(Placement(some), 300), first_owners(Placement(other), 300), strict=True):
        assert old == new or (new if weight > changed.weight else old) == changed.id


@given(members)
def test_shares_are_as_the_weights(some: list[Member]) -> None:
    counts = Counter(first_owners(Placement(some)))
    total = sum(member.weight for member in some)
    for member in some:
        share = member.weight / total
        assert abs(counts[member.id] / len(_KEYS) - share) <= margin(share, len(_KEYS))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_place_of_the_order_is_even(place: int) -> None:
    placement = Placement(Member(WorkerId(f"w{number}"), 1.0) for number in range(8))
    counts = Counter(placement.rank(key, 0, 3)[place] for key in _KEYS)
    assert all(abs(count / len(_KEYS) - 1 / 8) <= margin(1 / 8, len(_KEYS)) for count in counts.values())


def test_slices_of_one_file_are_spread() -> None:
    placement = Placement(Member(WorkerId(f"w{number}"), 1.0) for number in range(8))
    counts = Counter(placement.rank(_KEYS[0], slice_, 1)[0] for slice_ in range(4000))
    assert all(abs(count / 4000 - 1 / 8) <= margin(1 / 8, 4000) for count in counts.values())


def test_slices_begin_every_64_mib() -> None:
    assert [slice_of(offset) for offset in (0, SLICE_BYTES - 1, SLICE_BYTES, 10 * SLICE_BYTES)] == [0, 0, 1, 10]


def test_who_has_no_room_owns_nothing() -> None:
    placement = Placement([Member(WorkerId("full"), 1e12), Member(WorkerId("none"), 0)])
    assert len(placement) == 1
    assert {placement.rank(key, 0, 2) for key in _KEYS[:50]} == {("full",)}


def test_nobody_is_there() -> None:
    assert Placement([]).rank(_KEYS[0], 0, 3) == ()
    assert Placement([Member(WorkerId("a"), 0)]).owners(_KEYS[0], 0, 2) == ()


def test_weights_of_any_size_are_compared() -> None:
    placement = Placement([Member(WorkerId("a"), 5e-324), Member(WorkerId("b"), 1.7e308)])
    assert {placement.rank(key, 0, 2) for key in _KEYS[:50]} == {("b", "a")}


def test_what_cannot_be_a_member_is_named() -> None:
    with pytest.raises(ValueError, match="two members have the same id"):
        Placement([Member(WorkerId("a"), 1), Member(WorkerId("a"), 2)])
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"member a has the weight {weight}"):
            Placement([Member(WorkerId("a"), weight)])


def test_a_mixed_cluster_of_two_versions_agrees() -> None:
    """Literal: every version has to place alike, or all data moves with an upgrade."""
    placement = Placement(Member(WorkerId(f"worker-{number}"), 1 + number) for number in range(6))
    found = [placement.rank(ContentId(bytes(range(16))), slice_, 3) for slice_ in (0, 1, 1 << 33)]
    assert found == [
        ("worker-5", "worker-1", "worker-2"),
        ("worker-4", "worker-1", "worker-5"),
        ("worker-4", "worker-3", "worker-5"),
    ]
