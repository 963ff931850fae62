"""Which nodes and cards pods may use, and which queues go first: rules that more than one module must obey."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import admitted, job, links, node, on, outcome, racks, used_nodes, used_racks

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.decisions import Decisions
from forebay.scheduler.jobs import DataNeed, GpuRequest, Job, Match, PlacedPods, PodSet, Toleration, TopologyRequest
from forebay.scheduler.model import (
    Dataset,
    Gpu,
    Node,
    Queue,
    Reservation,
    ResourcePolicy,
    Snapshot,
    Store,
    Taint,
    Unit,
)
from forebay.scheduler.nodes import NodeTable
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State
from forebay.scheduler.topology import Apart, Gathering, NoRoom

QUEUES = [Queue("q")]
ANY = ResourcePolicy("p", (Unit("all"),))


def pair(workers: int, **more: Any) -> Job:
    """A leader and its workers, in one rack."""
    rack = TopologyRequest(required="rack", group="g")
    one = GpuRequest(1)
    sets = (PodSet("leader", gpus=one, topology=rack), PodSet("worker", workers, gpus=one, topology=rack))
    return Job("j", "q", sets, **more)


def placed(nodes: Sequence[Node], one: Job, *policies: ResourcePolicy, **more: Any) -> Decisions:
    return outcome(nodes, QUEUES, [one], policies=policies, **more)


# Groups of pod sets under a resource policy


def test_pod_sets_of_a_group_share_a_domain_under_a_policy() -> None:
    """They were placed one after the other, and a leader with two workers went to two racks of two nodes."""
    assert not placed(racks(2, 2), pair(2), ANY).admissions
    assert used_racks(placed(racks(2, 3), pair(2), ANY), "j") == {"r1": 3}


def test_pod_sets_of_a_group_share_a_unit() -> None:
    """The rack would do, but half of it is another unit's."""
    kinds = ("demand", "demand", "spot", "spot", "spot")
    nodes = [replace(one, labels={"kind": kind}) for one, kind in zip(racks(5), kinds, strict=True)]
    units = tuple(Unit(kind, {"kind": kind}) for kind in ("demand", "spot"))
    found = placed(nodes, pair(2), ResourcePolicy("p", units))
    assert [one.unit for one in found.admissions] == ["spot"]
    assert used_nodes(found, "j") == {"b-r0-n2": 1, "b-r0-n3": 1, "b-r0-n4": 1}
    assert not placed(nodes[1:4], pair(2), ResourcePolicy("p", units)).admissions


def test_what_grows_in_one_pass_stays_within_the_cap_of_a_unit() -> None:
    """Each further pod was weighed against the cap without those before it."""
    policy = ResourcePolicy("p", (Unit("all", max_pods=4),))
    running = [
        on(job(name, count=4, gpus=1, pods={"min_count": 1}), node, cards=[(0,)])
        for name, node in (("e", "b-r0-n0"), ("f", "b-r0-n1"))
    ]
    found = outcome(racks(8), QUEUES, [], running, policies=(policy,))
    assert sum(placed.count for growth in found.growths for placed in growth.pods) == 2


@pytest.mark.parametrize("how", ["default", "aligned"])
def test_outside_of_its_reservations_a_job_obeys_its_policy(how: Any) -> None:
    """It went wherever there was room."""
    kinds = ("other", "demand", "demand", "spot")
    nodes = [replace(one, labels={"kind": kind}) for one, kind in zip(racks(4, gpus=2), kinds, strict=True)]
    units = (Unit("demand", {"kind": "demand"}, max_pods=1, max_wait_s=60.0), Unit("spot", {"kind": "spot"}))
    kept = (Reservation("res", "b-r0-n0", cards=(1,), owners={"team": "x"}, policy=how),)

    def made(count: int, now: float = 0.0) -> Decisions:
        one = job("j", count=count, gpus=1, labels={"team": "x"})
        return placed(nodes, one, ResourcePolicy("p", units), reservations=kept, now=now)

    inside = made(1).admissions[0]
    assert (inside.pods, inside.unit, inside.reservations) == (
        (PlacedPods("main", "b-r0-n0", ((1,),)),),
        None,
        ("res",),
    )
    assert used_nodes(made(2), "j") == {"b-r0-n0": 1, "b-r0-n1": 1}
    assert made(3).waits[0].reason == "room for 1 of 2 pods; spot is not open yet"
    later = made(4, 60.0)
    assert used_nodes(later, "j") == {"b-r0-n0": 1, "b-r0-n1": 1, "b-r0-n3": 2}
    assert (later.admissions[0].unit, later.admissions[0].reservations) == ("demand+spot", ("res",))
    assert not made(5, 60.0).admissions


def test_a_restricted_reservation_is_all_that_its_owner_gets_under_a_policy() -> None:
    kept = (Reservation("res", "b-r0-n0", cards=(1,), owners={"team": "x"}, policy="restricted"),)
    one = job("j", count=2, gpus=1, labels={"team": "x"})
    found = placed(racks(4, gpus=2), one, ANY, reservations=kept)
    assert found.waits[0].reason == "room for 1 of 2 pods in its reservations"
    assert placed(racks(4, gpus=2), job("j", gpus=1, labels={"team": "x"}), ANY, reservations=kept).admissions


# Node affinity, and taints that would rather keep pods off


def labelled(*labels: dict[str, str]) -> list[Node]:
    return [replace(one, labels=some) for one, some in zip(racks(len(labels)), labels, strict=True)]


@pytest.mark.parametrize(
    ("match", "nodes"),
    [
        (Match("zone", "In", ("a", "b")), {0, 1}),
        (Match("zone", "NotIn", ("a",)), {1, 2, 3}),
        (Match("zone", "Exists"), {0, 1}),
        (Match("zone", "DoesNotExist"), {2, 3}),
        (Match("size", "Gt", ("9",)), {1}),
        (Match("size", "Lt", ("10",)), {0, 2}),
        (Match("size", "Gt", ("-5",)), {0, 1}),
    ],
)
def test_expressions_of_node_affinity(match: Match, nodes: set[int]) -> None:
    """Numbers are compared as such (10 is more than 9), and what is none is neither more nor less."""
    found = labelled({"zone": "a", "size": "9"}, {"zone": "b", "size": "10"}, {"size": "-5"}, {"size": "many"})
    assert {place for place, one in enumerate(found) if match.met_by(one.labels)} == nodes
    for count in (len(nodes), len(nodes) + 1):
        made = placed(found, job("j", count=count, gpus=1, pods={"affinity": ((match,),)}))
        assert bool(made.admissions) == (count == len(nodes))
    assert "excluded by label" in made.waits[0].reason


def test_terms_are_joined_by_or_and_their_expressions_by_and() -> None:
    nodes = labelled({"zone": "a", "disk": "ssd"}, {"zone": "a"}, {"zone": "b"}, {"zone": "c"})
    fast = (Match("zone", "In", ("a",)), Match("disk"))
    one = job("j", count=2, gpus=1, pods={"affinity": (fast, (Match("zone", "In", ("b",)),))})
    assert used_nodes(placed(nodes, one), "j") == {"b-r0-n0": 1, "b-r0-n2": 1}
    both = job("j", gpus=1, pods={"affinity": (fast,), "selector": {"zone": "b"}})
    assert not placed(nodes, both).admissions
    assert not placed(nodes, job("j", gpus=1, pods={"affinity": ((),)})).admissions


def test_jobs_that_differ_in_affinity_alone_are_not_taken_for_each_other() -> None:
    nodes = labelled({"zone": "a"}, {"zone": "b"})
    one, other, third = (
        job(name, gpus=1, submitted=float(place), pods={"affinity": ((Match("zone", "In", (zone,)),),)})
        for place, (name, zone) in enumerate([("one", "a"), ("other", "a"), ("third", "b")])
    )
    found = outcome(nodes, QUEUES, [one, other, third])
    assert used_nodes(found, "one") == {"b-r0-n0": 1}
    assert used_nodes(found, "third") == {"b-r0-n1": 1}
    assert admitted(found) == ["one", "third"]


@pytest.mark.parametrize(
    ("operator", "values", "says"),
    [
        ("In", (), "at least one value"),
        ("NotIn", (), "at least one value"),
        ("Exists", ("a",), "no value is allowed"),
        ("DoesNotExist", ("a",), "no value is allowed"),
        ("Gt", ("1", "2"), "one whole number"),
        ("Lt", ("1.5",), "one whole number"),
        ("Equals", ("a",), "allowed are In, NotIn"),
    ],
)
def test_expressions_that_mean_nothing_are_errors(operator: Any, values: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Match("zone", operator, values)


def test_a_preference_may_be_an_expression() -> None:
    nodes = labelled({"size": "1"}, {"size": "2"}, {"size": "3"})
    found = placed(nodes, job("j", gpus=1, pods={"preferences": ((Match("size", "Gt", ("2",)), 10),)}))
    assert used_nodes(found, "j") == {"b-r0-n2": 1}
    assert found.admissions[0].score.affinity == 0


def test_a_node_that_would_rather_be_left_alone_comes_last() -> None:
    """The taint was ignored by the filter, as it must be, and by the score too."""
    nodes = list(racks(2))
    nodes[0] = replace(nodes[0], taints=(Taint("old", "yes", "PreferNoSchedule"),))
    assert used_nodes(placed(nodes, job("j", gpus=1)), "j") == {"b-r0-n1": 1}
    assert used_nodes(placed(nodes, job("j", gpus=1, pods={"tolerations": (Toleration("old"),)})), "j") == {
        "b-r0-n0": 1
    }
    found = placed(nodes, job("j", count=2, gpus=1))
    assert found.admissions[0].score.affinity == 100.0


# Pods of one set apart from each other


def apart(level: str, pods: int = 1, **more: Any) -> dict[str, Any]:
    return {"topology": TopologyRequest(apart=level, apart_pods=pods, **more)}


def test_one_pod_for_each_host() -> None:
    nodes = racks(2, gpus=4)
    assert used_nodes(placed(nodes, job("j", count=2, gpus=1, pods=apart("host"))), "j") == {"b-r0-n0": 1, "b-r0-n1": 1}
    found = placed(nodes, job("j", count=3, gpus=1, pods=apart("host")))
    assert found.waits[0].reason == "room for 2 of 3 pods of 'main' on 2 nodes; at most 1 of them in one host"
    assert used_nodes(placed(nodes, job("j", count=3, gpus=1, pods=apart("host", 2))), "j") == {
        "b-r0-n0": 2,
        "b-r0-n1": 1,
    }


def test_apart_without_levels() -> None:
    nodes = [replace(one, topology=()) for one in racks(3, gpus=4)]
    assert len(used_nodes(placed(nodes, job("j", count=3, gpus=1, pods=apart("host"))), "j")) == 3
    assert not placed(nodes, job("j", count=4, gpus=1, pods=apart("host"))).admissions


def test_apart_and_together() -> None:
    """One rack, and no two on one of its hosts: the rack with one large node does not do."""
    nodes = (*racks(1, gpus=8), *(replace(one, name=f"b-r1-{one.name}", topology=("b", "r1")) for one in racks(3)))
    assert used_racks(placed(nodes, job("j", count=3, gpus=1, pods=apart("host", required="rack"))), "j") == {"r1": 3}
    found = placed(nodes, job("j", count=4, gpus=1, pods=apart("host", required="rack")))
    assert found.waits[0].stage == "topology"
    assert found.waits[0].reason == "the rack with most room takes 3 of 4 pods; at most 1 of them in one host"


def test_a_group_whose_workers_are_apart_finds_its_rack_behind_many_that_are_too_small() -> None:
    """Only so many domains are tried for a group: those that cannot do must not be among them."""
    rack = TopologyRequest(required="rack", group="g")
    sets = (
        PodSet("leader", gpus=GpuRequest(1), topology=rack),
        PodSet("worker", 3, gpus=GpuRequest(1), topology=replace(rack, apart="host")),
    )
    small = [one for place in range(20) for one in racks(*([0] * place), 2, gpus=2)]
    large = racks(*([0] * 20), 3, gpus=4)
    found = placed((*small, *large), Job("j", "q", sets))
    assert used_racks(found, "j") == {"r20": 4}


def test_apart_over_the_units_of_a_policy() -> None:
    """Each unit has a part of the rack; the rack is one domain all the same."""
    kinds = ("demand", "spot", "demand", "spot")
    nodes = [replace(one, labels={"kind": kind}) for one, kind in zip(racks(2, 2), kinds, strict=True)]
    units = tuple(Unit(kind, {"kind": kind}) for kind in ("demand", "spot"))
    policy = ResourcePolicy("p", units)
    assert not placed(nodes, job("j", count=3, gpus=1, pods=apart("rack")), policy).admissions
    assert used_racks(placed(nodes, job("j", count=2, gpus=1, pods=apart("rack")), policy), "j") == {"r0": 1, "r1": 1}
    assert used_racks(placed(nodes[:2], job("j", count=2, gpus=1, pods=apart("rack", 2)), policy), "j") == {"r0": 2}
    large = [replace(one, gpus=one.gpus * 4) for one in (nodes[0], nodes[1], nodes[3])]
    assert len(used_nodes(placed(large, job("j", count=3, gpus=1, pods=apart("host")), policy), "j")) == 3


def test_further_pods_are_apart_from_those_that_are_there() -> None:
    nodes = racks(3, gpus=4)
    one = job("e", count=4, gpus=1, pods={"min_count": 1, **apart("host")})
    found = outcome(nodes, QUEUES, [], [on(one, "b-r0-n1", cards=[(0,)])])
    assert [sorted(placed.node for placed in growth.pods) for growth in found.growths] == [["b-r0-n0", "b-r0-n2"]]


def test_apart_asks_for_a_level_that_is_there() -> None:
    with pytest.raises(ValueError, match="no level of the topology is named 'row'"):
        placed(racks(2), job("j", gpus=1, pods=apart("row")))
    with pytest.raises(ValueError, match="apart_pods 0"):
        TopologyRequest(apart="host", apart_pods=0)


def test_pods_apart_find_room_exactly_where_there_is_some() -> None:
    """Beside all that topology asks for; all ways to put so many pods on a few nodes are tried."""
    rng, found_some, refused_some = random.Random(5), 0, 0
    levels = ("block", "rack", "host")
    for _ in range(300):
        nodes = [Node(f"n{place}", topology=rng.choice([("x", "r"), ("x", "s"), ("y", "r")])) for place in range(4)]
        table = NodeTable(nodes, levels[:2])
        room = np.array([rng.randrange(4) for _ in nodes], dtype=np.int64)
        required, slice_level = rng.choice([None, *levels]), rng.choice([None, *levels])
        request = TopologyRequest(
            required,
            rng.choice([None, *levels]),
            rng.choice([1, 2, 3]) if slice_level else 1,
            slice_level,
            apart=rng.choice(levels),
            apart_pods=rng.randrange(1, 5),
        )
        count = request.slice_size * rng.randrange(1, 5)
        depth = table.depth(request.apart or "")
        left = np.full(len(table.domain_names[depth]), request.apart_pods, dtype=np.int64)
        order = rng.choice(["binpack", "spread", "balanced"])
        loss = np.array([rng.random() for _ in nodes])
        gathering = Gathering(table, room, loss, request, 1.0, order, Apart(table, depth, left))
        made = gathering.place(count, request)
        ways = itertools.product(*(range(int(most) + 1) for most in room))
        possible = any(sum(way) == count and legal(table, request, way) for way in ways)
        if isinstance(made, NoRoom):
            assert not possible, (nodes, room, request, count)
            refused_some += 1
        else:
            way = [0] * len(nodes)
            for row, amount in made:
                way[row] += amount
            assert sum(way) == count
            assert all(amount <= most for amount, most in zip(way, room, strict=True))
            assert legal(table, request, way), (nodes, room, request, way)
            found_some += 1
    assert min(found_some, refused_some) > 50


def legal(table: NodeTable, request: TopologyRequest, way: Sequence[int]) -> bool:
    """Whether so many pods on each node obey the request."""

    def inside(level: str) -> list[int]:
        domains = table.domain_of[table.depth(level)]
        return [sum(way[row] for row in np.flatnonzero(domains == domain)) for domain in range(int(domains.max()) + 1)]

    return (
        max(inside(request.apart or "host")) <= request.apart_pods
        and (request.required is None or sum(1 for pods in inside(request.required) if pods) <= 1)
        and (request.slice_level is None or not any(pods % request.slice_size for pods in inside(request.slice_level)))
    )


# The order in and among queues


def test_ageing_does_not_turn_the_newest_first_round() -> None:
    """It forgot which end of the queue is the first."""
    waiting = [job(name, cpu=1, submitted=float(place)) for place, name in enumerate(["old", "middle", "new"])]
    for ageing_s in (None, 60.0):
        settings = Settings(ageing_s=ageing_s)
        found = outcome([node("n", cpu=1)], [Queue("q", newest_first=True)], waiting, (), settings, now=1000.0)
        assert admitted(found) == ["new"]
    urgent = job("urgent", cpu=1, priority=1)
    found = outcome([node("n", cpu=1)], [Queue("q", newest_first=True)], [*waiting, urgent], (), settings, now=1000.0)
    assert admitted(found) == ["urgent"]


@pytest.mark.parametrize("fairness", ["none", "drf", "borrowed", "hdrf", "usage"])
def test_who_borrows_from_nearer_goes_before_who_borrows_from_farther(fairness: Any) -> None:
    """Kueue's order: the lower borrowing level first. Both were beyond their min, and the older one went first."""
    queues = [
        Queue("root", min={"cpu": 8000}),
        Queue("team", "root", min={"cpu": 2000}),
        Queue("a", "team", min={"cpu": 0}),
        Queue("b", "team", min={"cpu": 0}),
    ]
    waiting = [job("far", "a", cpu=3), job("near", "b", cpu=2, submitted=1.0)]
    found = outcome([node("n", cpu=4)], queues, waiting, (), Settings(fairness=fairness, preemption=False))
    assert admitted(found) == ["near"]


def by_kind(*kinds: str, taken: Sequence[str] = (), **more: Any) -> Callable[..., Decisions]:
    """Decide on a fifo queue over nodes of one card with such labels, of which some are taken."""
    nodes = [replace(node(kind, 1), labels={"kind": kind}, **more) for kind in kinds]
    running = [on(job(f"r-{kind}", gpus=1), kind, cards=[(0,)]) for kind in taken]
    settings = Settings(backfill=False, preemption=False)
    return lambda *waiting: outcome(nodes, [Queue("q", policy="fifo")], waiting, running, settings)


def for_kind(name: str, *kinds: str, gpus: int = 1, **more: Any) -> Job:
    pods = {"affinity": ((Match("kind", "In", kinds),),)} if kinds else {}
    return job(name, gpus=gpus, pods=pods, **more)


def test_jobs_with_no_node_in_common_do_not_wait_for_each_other() -> None:
    """All that asked for the same card model did, whatever nodes they could use."""
    decided = by_kind("spot", "demand", taken=["spot"])
    assert admitted(decided(for_kind("head", "spot"), for_kind("j", "demand", submitted=1.0))) == ["j"]
    assert not admitted(decided(for_kind("head", "spot"), for_kind("j", "demand", "spot", submitted=1.0)))
    assert not admitted(decided(for_kind("head", "spot"), for_kind("j", submitted=1.0)))


def test_a_third_job_links_two_that_have_no_node_in_common() -> None:
    """The third may take what the second frees: who passes it may delay the first."""
    waiting = [for_kind("head", "spot"), for_kind("link", "spot", "demand", submitted=1.0)]
    last = for_kind("j", "demand", submitted=2.0)
    decided = by_kind("spot", "demand", taken=["spot"])
    assert admitted(decided(waiting[0], last)) == ["j"]
    assert not admitted(decided(*waiting, last))


def test_who_asks_for_any_card_competes_with_who_asks_for_one_model() -> None:
    """Kinds of cards were compared as words, and 'any' was another kind than each of them."""
    nodes = [replace(node(name, 1), gpus=(Gpu(name),)) for name in ("a100", "h100")]
    running = [on(job("r", gpus=1), "a100", cards=[(0,)])]
    some = job("head", share=GpuRequest(1, models=("a100",)))
    settings = Settings(backfill=False, preemption=False)
    queues = [Queue("q", policy="fifo")]
    assert not admitted(outcome(nodes, queues, [some, job("j", gpus=1, submitted=1.0)], running, settings))
    other = job("j", share=GpuRequest(1, models=("h100",)), submitted=1.0)
    assert admitted(outcome(nodes, queues, [some, other], running, settings)) == ["j"]


def test_who_asks_for_cards_does_not_compete_with_who_asks_for_none() -> None:
    decided = by_kind("spot", taken=["spot"], allocatable={"cpu": 1000})
    assert admitted(decided(job("head", gpus=1), job("j", cpu=1, submitted=1.0))) == ["j"]
    sets = (PodSet("leader", requests={"cpu": 1000}), PodSet("worker", 2, gpus=GpuRequest(1)))
    decided = by_kind("spot", "demand", taken=["spot"], allocatable={"cpu": 1000})
    waiting = (job("j", cpu=1, submitted=1.0), job("k", gpus=1, submitted=2.0))
    assert admitted(decided(Job("head", "q", sets), *waiting)) == ["j"]


def test_lanes_follow_the_nodes_that_are_there() -> None:
    """What competed through one node does not once it is cordoned."""
    nodes = [replace(node(kind, 1), labels={"kind": kind}) for kind in ("spot", "demand", "both")]
    running = tuple(on(job(f"r-{kind}", gpus=1), kind, cards=[(0,)]) for kind in ("spot", "both"))
    waiting = (for_kind("head", "spot", "both"), for_kind("j", "demand", "both", submitted=1.0))
    snapshot = Snapshot(nodes=tuple(nodes), queues=(Queue("q", policy="fifo"),), waiting=waiting, running=running)
    settings = Settings(backfill=False, preemption=False)
    state = State(snapshot, settings)
    assert not advance(state, 0.0).admissions
    state.table.set_ready(state.table.index["both"], False)
    found = advance(state, 0.0)
    assert admitted(found) == ["j"]
    nodes = [replace(one, ready=one.name != "both") for one in nodes]
    assert found == decide(replace(snapshot, nodes=tuple(nodes)), settings)


def test_a_state_is_told_of_historic_use() -> None:
    """It decides like one that is made of queues with that use, of inner queues too."""
    settings = Settings(fairness="usage", preemption=False)
    queues = [
        Queue("x", usage=5.0),
        *(Queue(name, "x", usage=use) for name, use in (("a", 1.0), ("b", 2.0))),
        *(Queue("y", usage=6.0), Queue("c", "y")),
    ]
    waiting = tuple(job(f"{queue}{number}", queue, gpus=1) for queue in "abc" for number in range(3))
    snapshot = Snapshot(nodes=(node("n", 1),), queues=tuple(queues), waiting=waiting)
    state = State(snapshot, settings)
    for told, first in (({"b": 0.0}, "b0"), ({"a": 0.5, "b": 9.0}, "a0"), ({"x": 7.0}, "c0")):
        for queue, usage in told.items():
            state.set_usage(queue, usage)
        queues = [replace(one, usage=told.get(one.name, one.usage)) for one in queues]
        snapshot = replace(snapshot, queues=tuple(queues))
        made = advance(state, 0.0)
        assert made == decide(snapshot, settings)
        assert admitted(made) == [first]
        state.finish(first)
        snapshot = replace(snapshot, waiting=tuple(one for one in snapshot.waiting if one.name != first))
    with pytest.raises(ValueError, match="no queue is named 'z'"):
        state.set_usage("z", 1.0)


# Cards of one NUMA node


TWO_ZONES = tuple(Gpu(numa=place // 4) for place in range(8))


@pytest.mark.parametrize("single", [True, False])
def test_cards_come_from_the_tightest_numa_node_that_has_enough(single: bool) -> None:
    """They broke into the first one, which then had no room for four together."""
    one = Node("n", gpus=TWO_ZONES)
    running = [on(job("r", gpus=2), "n", cards=[(4, 6)])]
    found = outcome([one], QUEUES, [job("j", share=GpuRequest(2, single_numa=single))], running)
    assert found.admissions[0].pods[0].cards == ((5, 7),)
    more = outcome([one], QUEUES, [job("j", share=GpuRequest(4, single_numa=single))], running)
    assert more.admissions[0].pods[0].cards == ((0, 1, 2, 3),)


def test_cards_come_from_two_numa_nodes_where_no_one_has_enough() -> None:
    running = [on(job("r", gpus=2), "n", cards=[(4, 6)])]
    found = outcome([Node("n", gpus=TWO_ZONES)], QUEUES, [job("j", gpus=5)], running)
    assert found.admissions[0].pods[0].cards == ((0, 1, 2, 3, 5),)


def test_the_numa_node_with_better_links_goes_before_the_tighter_one() -> None:
    pairs = {(0, 1): "NV4", **dict.fromkeys(itertools.combinations(range(4, 8), 2), "NV1")}
    one = Node("n", gpus=TWO_ZONES, links=links(8, pairs))
    running = [on(job("r", gpus=2), "n", cards=[(4, 6)])]
    found = outcome([one], QUEUES, [job("j", share=GpuRequest(2, single_numa=True))], running)
    assert found.admissions[0].pods[0].cards == ((0, 1),)


# Refusals that do not last


def test_a_set_that_another_one_left_no_room_is_tried_again_where_no_node_has_got_more() -> None:
    """The leader takes the core beside the only card as long as its data is there."""
    nodes = (Node("n0", {"cpu": 1000}, (Gpu(),)), Node("n1", {"cpu": 1000}))
    core = {"cpu": 1000}
    sets = (PodSet("leader", requests=core), PodSet("worker", requests=core, gpus=GpuRequest(1)))
    gang = Job("j", "q", sets, data=(DataNeed("d", read_rate=1000),))
    dataset, store = Dataset("d", 10**12, {"n0": 10**12}, "s"), Store("s", 10**6)
    snapshot = Snapshot(nodes=nodes, queues=(Queue("q"),), waiting=(gang,), datasets=(dataset,), stores=(store,))
    state = State(snapshot)
    assert not advance(state, 0.0, explained=False).admissions
    state.warm.set_warm("d", {"n1": 10**12})
    assert admitted(advance(state, 0.0, explained=False)) == ["j"]
