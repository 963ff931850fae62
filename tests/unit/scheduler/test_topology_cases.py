"""Kueue's topology-aware scheduling: cases by their names there, rebuilt from their descriptions."""

from dataclasses import replace
from typing import Any

import pytest
from clusters import (
    admitted,
    evicted,
    job,
    node,
    on,
    outcome,
    preferred,
    racks,
    required,
    stage,
    used_nodes,
    used_racks,
)

from forebay.scheduler.decisions import Decisions
from forebay.scheduler.jobs import GpuRequest, Job, PodSet, Toleration, TopologyRequest
from forebay.scheduler.model import Node, Queue, Reservation, ResourcePolicy, Taint, Unit
from forebay.scheduler.settings import Settings

QUEUES = [Queue("q")]


def placed(nodes: tuple[Node, ...], count: int, pods: dict[str, Any], running: Any = (), **more: Any) -> Decisions:
    return outcome(nodes, QUEUES, [job("j", count=count, gpus=1, pods=pods, **more)], running)


def test_rack_required_too_many_pods_to_fit_in_any_rack() -> None:
    found = placed(racks(2, 3), 4, required("rack"))
    assert stage(found, "j") == "topology"
    assert found.waits[0].reason == (
        "the rack with most room takes 3 of 4 pods; 3 of 4 pods of 'main' would fit in an empty rack"
    )


def test_rack_preferred_but_only_multiple_blocks_can_accommodate() -> None:
    nodes = (*racks(2, 2, block="x"), *racks(2, 2, block="y"))
    found = placed(nodes, 6, preferred("rack"))
    by_block = [sum(count for name, count in used_nodes(found, "j").items() if name.startswith(one)) for one in "xy"]
    assert by_block == [4, 2]
    assert {name for name in used_nodes(found, "j") if name.startswith("y")} == {"y-r0-n0", "y-r0-n1"}, "one rack"


def test_block_required_rack_is_free() -> None:
    nodes = (*racks(2, 2, block="x"), *racks(3, 3, block="y"))
    found = placed(nodes, 5, required("block"))
    assert {name.split("-")[0] for name in used_nodes(found, "j")} == {"y"}


def test_minimize_the_number_of_used_racks_before_optimizing_the_number_of_nodes() -> None:
    """Rack r0 holds all in four nodes; r1 has one large node that holds half of it."""
    nodes = (
        *(node(f"b-r0-n{i}", 1, topology=("b", "r0")) for i in range(4)),
        node("b-r1-n0", 2, topology=("b", "r1")),
    )
    assert used_racks(placed(nodes, 4, required("block")), "j") == {"r0": 4}


def test_include_usage_from_running_pods_blocked_assignment() -> None:
    running = [on(job("other", gpus=1), "b-r0-n0", cards=[(0,)])]
    assert stage(placed(racks(3), 3, required("rack"), running), "j") == "gang"
    assert admitted(placed(racks(3), 3, required("rack"))) == ["j"]


def test_no_assignment_as_node_is_not_ready() -> None:
    nodes = racks(3)
    found = placed((replace(nodes[0], ready=False), *nodes[1:]), 3, required("rack"))
    assert not found.admissions
    assert "1 are not ready, or excluded by label, taint or kind of card" in found.waits[0].reason


def test_taints_and_tolerations() -> None:
    tainted = tuple(replace(one, taints=(Taint("gpu", "yes"),)) for one in racks(2))
    assert not placed(tainted, 2, {}).admissions
    assert placed(tainted, 2, {"tolerations": (Toleration("gpu", "yes"),)}).admissions
    assert placed(tainted, 2, {"tolerations": (Toleration(),)}).admissions
    assert not placed(tainted, 2, {"tolerations": (Toleration("gpu", "no"),)}).admissions
    soft = tuple(replace(one, taints=(Taint("gpu", "yes", "PreferNoSchedule"),)) for one in racks(2))
    assert placed(soft, 2, {}).admissions


def test_selectors_and_preferences() -> None:
    nodes = tuple(replace(one, labels={"zone": str(place)}) for place, one in enumerate(racks(1, 1, 1)))
    assert used_racks(placed(nodes, 1, {"selector": {"zone": "1"}}), "j") == {"r1": 1}
    assert used_racks(placed(nodes, 1, {"preferences": (("zone", "2", 100),)}), "j") == {"r2": 1}


def test_pod_slots_are_a_resource() -> None:
    nodes = tuple(replace(one, allocatable={"pods": 2}) for one in racks(1, gpus=8))
    found = outcome(nodes, QUEUES, [job("j", count=3, requests={"pods": 1})])
    assert found.waits[0].reason == (
        "room for 2 of 3 pods of 'main' on 1 nodes; 2 of 3 pods of 'main' would fit if all nodes were empty"
    )


def test_slices_block_for_podset_host_for_slices() -> None:
    nodes = (*racks(2, gpus=3, block="x"), *racks(2, gpus=4, block="y"))
    sliced = {"topology": TopologyRequest(required="block", slice_size=2, slice_level="host")}
    found = placed(nodes, 6, sliced)
    assert {name.split("-")[0] for name in used_nodes(found, "j")} == {"y"}
    assert all(count % 2 == 0 for count in used_nodes(found, "j").values())


def test_slices_that_do_not_divide() -> None:
    sliced = {"topology": TopologyRequest(required="block", slice_size=4, slice_level="rack")}
    found = placed(racks(8), 6, sliced)
    assert found.waits[0].reason == "6 pods are no whole number of slices of 4"


def test_same_group_podsets_share_a_domain() -> None:
    """A leader and its workers."""
    together = TopologyRequest(required="rack", group="g")
    leader = PodSet("leader", 1, gpus=GpuRequest(1), topology=together)
    workers = PodSet("workers", 4, gpus=GpuRequest(1), topology=together)
    found = outcome(racks(4, 5, 6), QUEUES, [Job("j", "q", (leader, workers))])
    assert used_racks(found, "j") == {"r1": 5}
    assert stage(outcome(racks(4, 4), QUEUES, [Job("j", "q", (leader, workers))]), "j") == "topology"


def test_spread_is_even() -> None:
    found = placed(racks(4, gpus=4), 8, {"placement": "spread", **required("rack")})
    assert sorted(used_nodes(found, "j").values()) == [2, 2, 2, 2]
    assert len(used_nodes(placed(racks(4, gpus=4), 8, required("rack")), "j")) == 2


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="no level of the topology is named 'row'; there are block, rack, host"):
        placed(racks(2), 1, required("row"))


def test_second_unit_when_the_topology_of_the_first_cannot_fit_it() -> None:
    """Kueue: should admit the workload on the second flavor when the first flavor's topology cannot fit it."""
    nodes = (
        *(replace(one, labels={"kind": "reserved"}) for one in racks(2, 2)),
        *(replace(one, labels={"kind": "spot"}) for one in racks(4, block="s")),
    )
    policy = ResourcePolicy("p", (Unit("reserved", {"kind": "reserved"}), Unit("spot", {"kind": "spot"})))
    waiting = [job("j", count=3, gpus=1, pods=required("rack"))]
    found = outcome(nodes, QUEUES, waiting, policies=(policy,))
    assert found.admissions[0].unit == "spot"


class TestResourcePolicy:
    """Units in order, with caps and waits (ACK's ResourcePolicy)."""

    NODES = (
        *(node(f"ecs{i}", 2, labels={"kind": "ecs"}) for i in range(2)),
        *(node(f"eci{i}", 2, labels={"kind": "eci"}) for i in range(2)),
    )

    def decided(self, *units: Unit, now: float = 0.0, running: Any = (), count: int = 3) -> Decisions:
        policy = ResourcePolicy("p", units, {"app": "x"})
        waiting = [job("j", count=count, gpus=1, labels={"app": "x"})]
        return outcome(self.NODES, QUEUES, waiting, running, policies=(policy,), now=now)

    def test_units_are_filled_in_order(self) -> None:
        found = self.decided(Unit("ecs", {"kind": "ecs"}, 2), Unit("eci", {"kind": "eci"}))
        assert sum(count for name, count in used_nodes(found, "j").items() if name.startswith("ecs")) == 2
        assert found.admissions[0].unit == "ecs+eci"

    def test_caps_count_all_jobs_of_the_policy(self) -> None:
        running = [on(job("r", gpus=1, labels={"app": "x"}), "ecs0", cards=[(0,)])]
        found = self.decided(Unit("ecs", {"kind": "ecs"}, 2), Unit("eci", {"kind": "eci"}), running=running)
        assert sum(count for name, count in used_nodes(found, "j").items() if name.startswith("ecs")) == 1

    def test_max_wait_before_the_next_unit(self) -> None:
        units = (Unit("ecs", {"kind": "ecs"}, 2, max_wait_s=60.0), Unit("eci", {"kind": "eci"}))
        found = self.decided(*units, now=59.0)
        assert found.waits[0].reason == "room for 2 of 3 pods; eci is not open yet"
        assert self.decided(*units, now=60.0).admissions

    def test_scale_in_is_the_reverse(self) -> None:
        policy = ResourcePolicy("p", (Unit("ecs", {"kind": "ecs"}), Unit("eci", {"kind": "eci"})), {"app": "x"})
        queues = [Queue("q", min={"gpu": 4000})]
        elastic = on(
            job("e", count=4, gpus=1, labels={"app": "x"}, pods={"min_count": 2}, priority=-1),
            "ecs0", "eci0", "ecs1", "eci1", cards=[(0,)] * 4,
        )  # fmt: skip
        found = outcome(self.NODES, queues, [job("j", count=2, gpus=1)], [elastic], policies=(policy,))
        assert {placed.node for placed in found.shrinks[0].pods} == {"eci0", "eci1"}


class TestReservations:
    """Koordinator's reservations."""

    NODES = (node("n0", 4, cpu=4), node("n1", 4, cpu=4))

    def decided(self, waiting: list[Job], running: Any = (), **more: Any) -> Decisions:
        more = {"owners": {"team": "x"}, "cards": (0, 1), "amounts": {"cpu": 2000}, **more}
        return outcome(self.NODES, QUEUES, waiting, running, reservations=(Reservation("r", "n0", **more),), now=10.0)

    def test_others_cannot_use_it(self) -> None:
        found = self.decided([job("j", count=2, gpus=3)])
        assert stage(found, "j") == "gang"
        assert admitted(self.decided([job("j", count=2, gpus=2)])) == ["j"]

    def test_owners_can(self) -> None:
        found = self.decided([job("j", gpus=4, labels={"team": "x"})])
        assert admitted(found) == ["j"]

    def test_aligned_prefers_it(self) -> None:
        running = [on(job("o", gpus=3), "n1", cards=[(0, 1, 2)])]
        waiting = [job("j", gpus=1, labels={"team": "x"})]
        found = self.decided(waiting, running, policy="aligned")
        assert used_nodes(found, "j") == {"n0": 1}
        assert found.admissions[0].reservations == ("r",)

    def test_restricted_confines_to_it(self) -> None:
        assert not self.decided([job("j", gpus=3, labels={"team": "x"})], policy="restricted").admissions
        found = self.decided([job("j", gpus=2, labels={"team": "x"})], policy="restricted")
        assert found.admissions[0].pods[0].cards == ((0, 1),)

    def test_it_expires(self) -> None:
        assert admitted(self.decided([job("j", count=2, gpus=4)], expires=10.0)) == ["j"]

    def test_once(self) -> None:
        """Its rest is free as soon as one job uses it."""
        user = on(job("u", gpus=1, labels={"team": "x"}), "n0", cards=[(0,)], reservations=("r",))
        assert admitted(self.decided([job("j", gpus=3), job("k", gpus=4)], [user], once=True)) == ["j", "k"]
        assert admitted(self.decided([job("j", gpus=3), job("k", gpus=4)], [user])) == ["j"]


class TestScheduleAcrossNodes:
    """scheduler-plugins' capacity and coscheduling tests."""

    def test_cross_node_preemption(self) -> None:
        """There it is not supported; here a gang may need victims on several nodes."""
        nodes = (node("a", 2), node("b", 2))
        queues = [Queue("root", min={"gpu": 4000}), Queue("x", "root", min={"gpu": 2000}), Queue("y", "root")]
        running = [on(job(f"y{i}", "y", gpus=2), name, cards=[(0, 1)]) for i, name in enumerate("ab")]
        found = outcome(nodes, queues, [job("j", "x", count=2, gpus=1)], running)
        assert len(found.evictions) == 1, "two cards of one node are enough"
        queues[1] = replace(queues[1], min={"gpu": 4000})
        found = outcome(nodes, queues, [job("j", "x", count=2, gpus=2)], running)
        assert evicted(found) == {"y0", "y1"}
        assert found.holds[0].nodes == ("a", "b")

    def test_over_used_quota_cannot_preempt_others(self) -> None:
        """Both are at their min."""
        queues = [Queue("root", min={"gpu": 4000}), *(Queue(name, "root", min={"gpu": 2000}) for name in "xy")]
        running = [
            on(job("x0", "x", gpus=2), "a", cards=[(0, 1)]),
            on(job("y0", "y", gpus=2), "a", cards=[(2, 3)]),
        ]
        assert not outcome([node("a", 4)], queues, [job("j", "x", gpus=1)], running).evictions

    @pytest.mark.parametrize(("fair", "victims"), [(True, {"y0"}), (False, set())])
    def test_over_used_quota_and_one_that_is_over_more(self, fair: bool, victims: set[str]) -> None:
        """x would be over its min, and y is: the capacity plugin evicts nobody. Here the smaller share is a claim (two
        cards against five), unless `fair_preemption` is off."""
        queues = [Queue("root", min={"gpu": 6000}), *(Queue(name, "root", min={"gpu": 1000}) for name in "xy")]
        running = [on(job("x0", "x", gpus=1), "a", cards=[(5,)])]
        running += [on(job(f"y{i}", "y", gpus=1), "a", cards=[(i,)]) for i in range(5)]
        settings = Settings(fair_preemption=fair)
        assert evicted(outcome([node("a", 6)], queues, [job("j", "x", gpus=1)], running, settings)) == victims

    @pytest.mark.parametrize("order", [("p", "r"), ("r", "p")])
    def test_pod_group_that_cannot_be_scheduled_does_not_block_others(self, order: tuple[str, str]) -> None:
        jobs = {"p": job("p", count=9, gpus=1), "r": job("r", gpus=1)}
        waiting = [replace(jobs[name], submitted=float(place)) for place, name in enumerate(order)]
        assert admitted(outcome([node("n", 8)], QUEUES, waiting)) == ["r"]

    def test_two_gangs_do_not_hold_parts_of_each_others_room(self) -> None:
        """volcano #3373: two gangs of 100 pods on 100 nodes."""
        nodes = [node(f"n{i}", 1) for i in range(100)]
        waiting = [job(name, count=100, gpus=1) for name in "ab"]
        assert admitted(outcome(nodes, QUEUES, waiting)) == ["a"]

    def test_gang_groups_start_together(self) -> None:
        """koordinator #872."""
        waiting = [job(name, gpus=3, group="g", group_size=2) for name in "ab"]
        assert admitted(outcome([node("n", 6)], QUEUES, waiting)) == ["a", "b"]
        found = outcome([node("n", 5)], QUEUES, waiting)
        assert admitted(found) == []
        found = outcome([node("n", 6)], QUEUES, waiting[:1])
        assert found.waits[0].reason == "1 of 2 jobs of group 'g' are there"

    def test_a_group_that_does_not_fit_leaves_no_trace(self) -> None:
        waiting = [*(job(name, gpus=3, group="g", group_size=2, priority=1) for name in "ab"), job("c", gpus=5)]
        queues = [Queue("q", min={"gpu": 5000})]
        assert admitted(outcome([node("n", 6)], queues, waiting)) == ["c"]


class TestBinding:
    """Kueue's podsready tests, KAI's stale gangs: an admitted job that does not bind."""

    def decided(self, now: float, retries: int = 0, settings: Settings | None = None, bound: bool = False) -> Decisions:
        one = job("j", gpus=1, retries=retries, submitted=5.0)
        running = [on(one, "n", cards=[(0,)], started=10.0, bound=bound, bind_by=70.0)]
        waiting = [job("k", gpus=1, submitted=6.0)]
        return outcome([node("n", 1)], QUEUES, waiting, running, settings, now=now)

    def test_it_has_time(self) -> None:
        assert not self.decided(69.0).releases
        assert stage(self.decided(69.0), "j") == "bind"

    def test_it_is_released_with_backoff_and_its_room_goes_to_others(self) -> None:
        found = self.decided(70.0)
        assert [(one.job, one.not_before, one.retries) for one in found.releases] == [("j", 130.0, 1)]
        assert admitted(found) == ["k"]
        assert self.decided(70.0, retries=2).releases[0].not_before == 70.0 + 240.0

    def test_it_is_deactivated_at_the_limit(self) -> None:
        found = self.decided(70.0, retries=1, settings=Settings(retries_max=1))
        assert [one.job for one in found.given_up] == ["j"]

    def test_bound_is_bound(self) -> None:
        assert not self.decided(1000.0, bound=True).releases

    def test_it_keeps_its_place(self) -> None:
        """When its backoff is over, it goes before what came after it."""
        waiting = [job("k", gpus=1, submitted=6.0), job("j", gpus=1, submitted=5.0, retries=1, not_before=130.0)]
        assert admitted(outcome([node("n", 1)], QUEUES, waiting, now=129.0)) == ["k"]
        assert admitted(outcome([node("n", 1)], QUEUES, waiting, now=130.0)) == ["j"]

    def test_max_wait(self) -> None:
        """volcano #1295: what can never run does not wait for ever."""
        found = outcome([node("n", 1)], QUEUES, [job("j", gpus=2, max_wait_s=60.0)], now=60.0)
        assert found.given_up[0].reason == "waited longer than 60 s"


class TestOrder:
    def test_priority_then_age(self) -> None:
        waiting = [
            job("old", gpus=1, submitted=0.0),
            job("new", gpus=1, submitted=1.0),
            job("high", gpus=1, submitted=2.0, priority=1),
        ]
        assert admitted(outcome([node("n", 3)], QUEUES, waiting)) == ["high", "old", "new"]

    def test_newest_first(self) -> None:
        waiting = [job("old", gpus=1, submitted=0.0), job("new", gpus=1, submitted=1.0)]
        assert admitted(outcome([node("n", 2)], [Queue("q", newest_first=True)], waiting)) == ["new", "old"]

    def test_ageing(self) -> None:
        """Waiting for a minute counts as one priority."""
        waiting = [job("old", gpus=1, submitted=0.0), job("high", gpus=1, submitted=90.0, priority=1)]
        settings = Settings(ageing_s=60.0)
        assert admitted(outcome([node("n", 2)], QUEUES, waiting, settings=settings)) == ["old", "high"]
        assert admitted(outcome([node("n", 2)], QUEUES, waiting)) == ["high", "old"]

    def test_max_jobs(self) -> None:
        """ACK's kube-queue/max-jobs."""
        waiting = [job(f"j{i}", gpus=1) for i in range(3)]
        found = outcome([node("n", 3)], [Queue("q", max_jobs=2)], waiting)
        assert admitted(found) == ["j0", "j1"]
        assert stage(found, "j2") == "quota"

    def test_per_pool_fifo(self) -> None:
        """kueue #8309: a job that waits holds up only those that ask for the same cards."""
        nodes, running = [node("a", 2)], [on(job("r", gpus=1), "a", cards=[(0,)])]
        waiting = [
            job("big", gpus=2, submitted=0.0),
            job("small", gpus=1, submitted=1.0),
            job("cpu", submitted=2.0),
        ]
        found = outcome(nodes, [Queue("q", policy="fifo")], waiting, running)
        assert admitted(found) == ["cpu"]
        assert stage(found, "small") == "order"
