"""Which nodes and cards pods may use, and which queues go first: rules that more than one module must obey."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clusters import admitted, job, outcome, racks, stage, used_nodes, used_racks

from forebay.scheduler.decisions import Decisions
from forebay.scheduler.jobs import GpuRequest, Job, PodSet, TopologyRequest
from forebay.scheduler.model import Node, Queue, ResourcePolicy, Unit

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
