"""From whom a block is asked, in what order, and that no request goes round in circles."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.cluster.health import Health
from forebay.cacheruntime.cluster.placement import Member, Placement, WorkerId
from forebay.cacheruntime.cluster.routing import MAX_HOPS, UNSETTLED_S, Attempt, Mode, Route, Router
from forebay.cacheruntime.keys import ContentId

_RANDOM = random.Random(11)
KEYS = [ContentId(_RANDOM.randbytes(16)) for _ in range(300)]
IDS = [WorkerId(f"w{number}") for number in range(8)]
SETTLED = UNSETTLED_S + 1


def view_of(ids: Iterable[WorkerId]) -> Placement:
    return Placement(Member(id_, 1.0) for id_ in ids)


def router(me: str, view: list[WorkerId] = IDS, *, has_store: bool = True, now: float = 0.0) -> Router:
    made = Router(WorkerId(me), Health(random.Random(1)), random.Random(2), has_store=has_store)
    made.set_view(view_of(view), now)
    return made


def order(key: ContentId, slice_: int = 0) -> list[WorkerId]:
    return list(view_of(IDS).rank(key, slice_, len(IDS)))


def set_aside(one: Router, peer: WorkerId, now: float) -> None:
    for _ in range(6):
        one.health.record(peer, False, now - 0.01, now)
        now += 0.02
    assert not one.health.usable(peer)


def fetches(route: Route) -> list[WorkerId]:
    return [attempt.peer for attempt in route.attempts if attempt.mode is Mode.FETCH]


def test_the_first_owner_goes_to_the_store() -> None:
    for key in KEYS[:50]:
        assert router(order(key)[0]).route(key, 0, 1, 0, SETTLED) == Route((), True)


def test_the_second_asks_the_first() -> None:
    for key in KEYS[:50]:
        first, second, *_ = order(key)
        for hops in (0, 1):
            assert router(second).route(key, 0, 1, hops, SETTLED) == Route((Attempt(first, Mode.FETCH),), True)


def test_everybody_else_asks_the_first_two() -> None:
    for key in KEYS[:50]:
        first, second, third, *_ = order(key)
        expected = (Attempt(first, Mode.FETCH), Attempt(second, Mode.FETCH))
        for me in (third, "client"):
            assert router(me).route(key, 0, 1, 0, SETTLED) == Route(expected, True)


def test_more_replicas_are_more_to_ask() -> None:
    key = KEYS[0]
    ranked = order(key)
    asked = fetches(router("client").route(key, 0, 3, 0, SETTLED))
    assert sorted(asked) == sorted(ranked[:3])
    assert fetches(router(ranked[2]).route(key, 0, 3, 0, SETTLED)) == ranked[:2]


@pytest.mark.parametrize("replicas", [2, 3])
def test_a_reader_asks_each_owner_for_some(replicas: int) -> None:
    client = router("client")
    places = Counter(order(key).index(fetches(client.route(key, 0, replicas, 0, SETTLED))[0]) for key in KEYS)
    assert set(places) == set(range(replicas))
    assert min(places.values()) > 0.8 * len(KEYS) / replicas
    for key in KEYS[:20]:
        assert len({fetches(client.route(key, 0, replicas, hops, SETTLED))[0] for hops in (1, 2)}) == 1, "no rounds"


def test_a_slice_is_asked_of_its_own_owner() -> None:
    client = router("client")
    for slice_ in range(20):
        assert fetches(client.route(KEYS[0], slice_, 1, 0, SETTLED)) == order(KEYS[0], slice_)[:2]


def test_a_request_that_was_passed_on_often_is_passed_on_no_more() -> None:
    for key in KEYS[:50]:
        first, second, *_ = order(key)
        route = router(second).route(key, 0, 1, MAX_HOPS, SETTLED)
        assert route == Route((Attempt(first, Mode.ONLY_CACHED),), True)


def test_without_a_store_more_peers_are_asked() -> None:
    key = KEYS[0]
    route = router("client", has_store=False).route(key, 0, 1, 0, SETTLED)
    assert (fetches(route), route.store) == (order(key)[:4], False)


def test_who_is_set_aside_is_left_out() -> None:
    key = KEYS[0]
    first, second, third, *_ = order(key)
    client, owner = router("client"), router(second)
    for one in (client, owner):
        set_aside(one, first, SETTLED)
    assert fetches(client.route(key, 0, 1, 0, SETTLED)) == [second, third]
    assert fetches(owner.route(key, 0, 1, 1, SETTLED)) == []
    assert owner.route(key, 0, 1, 1, SETTLED).store


def test_without_a_store_a_peer_that_failed_is_better_than_nobody() -> None:
    key = KEYS[0]
    client = router("client", IDS[:3], has_store=False)
    ranked = [id_ for id_ in order(key) if id_ in IDS[:3]]
    set_aside(client, ranked[0], 1.0)
    assert fetches(client.route(key, 0, 1, 0, SETTLED)) == [ranked[1], ranked[2], ranked[0]]
    for peer in ranked[1:]:
        set_aside(client, peer, 1.0)
    assert fetches(client.route(key, 0, 1, 0, SETTLED)) == ranked


def test_nobody_is_there() -> None:
    assert router("client", []).route(KEYS[0], 0, 1, 0, 0) == Route((), True)
    assert router("client", [], has_store=False).route(KEYS[0], 0, 1, 0, 0) == Route((), False)


# While the cluster is unsettled


def test_who_came_asks_who_owned_it_before() -> None:
    late = IDS[7]
    one = router(late, IDS[:7])
    one.set_view(view_of(IDS), 1000.0)
    mine = [key for key in KEYS if order(key)[0] == late]
    for key in mine:
        former = order(key)[1]
        route = one.route(key, 0, 1, 0, 1010.0)
        assert route.attempts[0] == Attempt(former, Mode.ONLY_CACHED)
        assert route.store
        assert one.route(key, 0, 1, 0, 1000.0 + UNSETTLED_S) == Route((), True)


def test_several_came_and_the_former_owner_is_asked_wherever_it_is_in_the_order() -> None:
    one = router(IDS[4], IDS[:4])
    one.set_view(view_of(IDS), 1000.0)
    for key in KEYS:
        if order(key)[0] == IDS[4]:
            former = next(id_ for id_ in order(key) if id_ in IDS[:4])
            assert one.route(key, 0, 1, 0, 1010.0).attempts[0] == Attempt(former, Mode.ONLY_CACHED)


def test_who_drains_is_asked_by_its_heirs() -> None:
    drained = IDS[0]
    for key in KEYS:
        first, second, *_ = order(key)
        if first == drained:
            heir = router(second)
            heir.set_view(view_of(IDS[1:]), 1000.0)
            assert heir.route(key, 0, 1, 1, 1001.0).attempts[0] == Attempt(drained, Mode.ONLY_CACHED)


def test_who_comes_while_another_drains_asks_that_one() -> None:
    """It has never seen the view from before."""
    drained, late = IDS[0], IDS[7]
    one = Router(late, Health(random.Random(1)), random.Random(2), has_store=True)
    one.set_view(view_of(IDS[1:]), 1000.0, [Member(drained, 1.0)])
    keys = [key for key in KEYS if order(key)[:2] in ([late, drained], [drained, late])]
    assert len(keys) > 3
    for key in keys:
        assert one.route(key, 0, 1, 1, 5000.0).attempts[0] == Attempt(drained, Mode.ONLY_CACHED)
    one.set_view(view_of(IDS[1:]), 6000.0)
    assert one.route(keys[0], 0, 1, 1, 9000.0) == Route((), True)


def test_who_comes_back_asks_who_stood_in_for_it() -> None:
    """The others had set it aside: the next in the order has what was read meanwhile."""
    for key in KEYS[:50]:
        first, second, *_ = order(key)
        owner = router(first, now=1000.0)  # its first view
        assert Attempt(second, Mode.ONLY_CACHED) in owner.route(key, 0, 1, 1, 1001.0).attempts


def test_the_same_view_again_changes_nothing() -> None:
    one = router(IDS[0])
    one.set_view(view_of(reversed(IDS)), 2000.0)
    assert not one.is_unsettled(2000.0)


# Hot files


def test_readers_of_a_hot_file_spread_evenly() -> None:
    key = KEYS[0]
    asked: Counter[WorkerId] = Counter()
    for number in range(4000):
        client = router(f"client-{number}")
        client.note_spread(key, 4, SETTLED)
        asked[fetches(client.route(key, 0, 1, 0, SETTLED))[0]] += 1
    assert set(asked) == set(order(key)[:4])
    assert max(asked.values()) < 1200


def test_a_replica_of_a_hot_file_is_made_from_its_owner() -> None:
    key = KEYS[0]
    ranked = order(key)
    for me in ranked[1:4]:
        replica = router(me)
        replica.note_spread(key, 4, SETTLED)
        for hops in (0, 1):
            assert fetches(replica.route(key, 0, 1, hops, SETTLED))[0] == ranked[0]


def test_many_replicas_are_made_from_the_first_few() -> None:
    """65 workers: the owner sends eight copies, each of those eight about seven, and a chain has three links."""
    ids = [WorkerId(f"w{number}") for number in range(65)]
    ranked = view_of(ids).rank(KEYS[0], 0, 64)
    asked = Counter(fetches(router(me, ids).route(KEYS[0], 0, 1, 1, SETTLED))[0] for me in ranked[1:])
    assert asked[ranked[0]] == 8
    assert set(asked) == set(ranked[:9])
    assert max(asked.values()) == 8
    for me in ranked[9:]:
        parent, owner = fetches(router(me, ids).route(KEYS[0], 0, 1, 1, SETTLED))
        assert owner == ranked[0]
        assert fetches(router(parent, ids).route(KEYS[0], 0, 1, 2, SETTLED))[0] == owner


def test_a_hint_is_forgotten_after_a_while_and_not_by_all_at_once() -> None:
    key = KEYS[0]
    client = router("client")
    clients = []
    for seed in range(500):
        client = Router(WorkerId("client"), Health(random.Random(1)), random.Random(seed), has_store=True)
        client.set_view(view_of(IDS), 0.0)
        client.note_spread(key, 8, SETTLED)
        clients.append(client)
    plain = order(key)[:2]
    spread = {
        at: sum(fetches(one.route(key, 0, 1, 0, SETTLED + at)) != plain for one in clients) for at in (14, 22, 30)
    }
    assert spread[14] == 500
    assert 150 < spread[22] < 350
    assert spread[30] == 0


def test_a_smaller_hint_waits_until_the_larger_one_has_expired() -> None:
    key = KEYS[0]
    client = router("client-5")
    assert client.note_spread(key, 8, SETTLED)
    wide = client.route(key, 0, 1, 0, SETTLED)
    for smaller in (8, 2, 1):
        assert not client.note_spread(key, smaller, SETTLED + 1)
    assert client.route(key, 0, 1, 0, SETTLED + 2) == wide


def test_hints_are_bounded() -> None:
    client = router("client")
    for number in range(10_000):
        client.note_spread(ContentId(number.to_bytes(16, "big")), 4, 0.0)
    assert len(client._hints) == 4096


def test_position() -> None:
    key = KEYS[0]
    assert [router(id_).position(key, 0) for id_ in order(key)] == list(range(8))
    assert router("client").position(key, 0) == 64


# Whatever the views are

views = st.sets(st.sampled_from(IDS))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[WorkerId, Router], float]:
    """Eight nodes, each with a view of its own, opinions of its own and hints of its own."""
    nodes = {}
    now = 1000.0
    for me in IDS:
        one = router(me, sorted(draw(views)), has_store=draw(st.sampled_from([True, True, True, False])))
        if draw(st.booleans()):
            one.set_view(view_of(sorted(draw(views))), draw(st.sampled_from([0.0, 990.0])))
        for peer in draw(st.sets(st.sampled_from(IDS), max_size=3)):
            if peer != me:
                set_aside(one, peer, 995.0)
        one.note_spread(KEYS[0], draw(st.sampled_from([1, 2, 4, 8])), now)
        nodes[me] = one
    return nodes, now


@given(worlds(), st.integers(1, 4))
def test_no_request_goes_round_in_circles(world: tuple[dict[WorkerId, Router], float], replicas: int) -> None:
    """Follow every attempt of every node as if each failed: chains end, nobody asks itself, nobody is asked twice."""
    nodes, now = world

    def follow(asked: WorkerId, hops: int) -> int:
        route = nodes[asked].route(KEYS[0], 0, replicas, hops, now)
        peers = [attempt.peer for attempt in route.attempts]
        assert asked not in peers
        assert len(set(peers)) == len(peers) <= 4
        if hops >= MAX_HOPS:
            assert not fetches(route)
        return 1 + max((follow(peer, hops + 1) for peer in fetches(route)), default=0)

    for me in IDS:
        assert follow(me, 0) <= MAX_HOPS + 1


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("spread", [1, 4])
def test_in_one_view_every_chain_ends_at_the_first_owner(replicas: int, spread: int) -> None:
    """So one block is one GET, whoever asks for it."""
    for key in KEYS[:50]:
        for me in [*IDS, WorkerId("client")]:
            at, hops = me, 0
            while asked := fetches(router(at).route(key, 0, replicas, hops, SETTLED)):
                one = router(at)
                if hops == 0:
                    one.note_spread(key, spread, SETTLED)
                    asked = fetches(one.route(key, 0, replicas, hops, SETTLED))
                at, hops = asked[0], hops + 1
            assert at == order(key)[0]
