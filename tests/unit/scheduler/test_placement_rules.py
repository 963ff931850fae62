"""Which nodes and cards pods may use, and which queues go first: rules that more than one module must obey."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from clusters import admitted, job, outcome, racks, used_nodes, used_racks

from forebay.scheduler.decisions import Decisions
from forebay.scheduler.jobs import GpuRequest, Job, Match, PodSet, Toleration, TopologyRequest
from forebay.scheduler.model import Node, Queue, ResourcePolicy, Taint, Unit

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
