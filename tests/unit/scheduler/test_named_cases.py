"""Cases of Kueue's integration tests, scheduler-plugins' capacity, Volcano, Koordinator, KAI and Fluid, by their names.

What is not here is the adapter's: LimitRanges, transitions of PodGroup phases, pods of a replaced node that come late.
Left out on purpose: KAI's consolidation (docs/decisions/0041), and its weights by past use: with `fairness="usage"`
past use orders queues, but is no part of what is fair. A node that is replaced is no case of its own: the pods that
a gang has lost are placed anew (test_growth.py), by the same rules whoever owns it.
"""

from dataclasses import replace
from typing import Any

import pytest
from clusters import (
    admitted,
    cohort,
    decided,
    evicted,
    job,
    node,
    on,
    outcome,
    preferred,
    racks,
    required,
    run,
    stage,
    used_racks,
)  # fmt: skip

from forebay.scheduler.decide import advance
from forebay.scheduler.jobs import DataNeed, GpuRequest, Job, PlacedPods, PodSet, TopologyRequest
from forebay.scheduler.model import Dataset, Queue, ResourcePolicy, RunningJob, Snapshot, Store, Taint, Unit
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State

QUEUES = [Queue("q")]
CLASSICAL = Settings(fair_preemption=False)


class TestKueueScheduler:
    def test_can_borrow_if_needs_reclaim_from_cohort_in_different_flavor(self) -> None:
        """Flavors are resources of their own here: what b must take back of one does not hold up the other."""
        queues = [
            Queue("cohort"),
            Queue("a", "cohort", min={"spot": 5, "demand": 5}),
            Queue("b", "cohort", min={"spot": 5, "demand": 5}),
        ]
        nodes = [replace(node("n"), allocatable={"spot": 10, "demand": 10})]
        running = [on(job("a0", "a", requests={"spot": 9}), "n")]
        waiting = [job("b1", "b", requests={"spot": 4}), job("a1", "a", requests={"demand": 8}, submitted=1.0)]
        found = outcome(nodes, queues, waiting, running)
        assert (admitted(found), evicted(found)) == (["a1"], {"a0"})

    def test_only_one_workload_can_borrow_the_same_resources(self) -> None:
        waiting = [job("a1", "a", cpu=16), job("b1", "b", cpu=16)]
        assert admitted(decided(cohort(("a", 10), ("b", 10), ("c", 10)), waiting, settings=CLASSICAL)) == ["a1"]

    def test_partial_admission_preempt_first(self) -> None:
        """Kueue evicts so that the whole job fits. Here it starts with what there is, and grows later: nobody goes."""
        running = [run("r", "q", 4, priority=-1)]
        waiting = [job("j", count=8, cpu=1, pods={"min_count": 2})]
        found = decided([Queue("q", min={"cpu": 8000})], waiting, running)
        assert evicted(found) == set()
        assert sum(placed.count for placed in found.admissions[0].pods) == 4

    def test_partial_admission_preempt_with_partial_admission(self) -> None:
        """Not even its least fits: so many go as that takes, not as the whole job would."""
        running = [run(f"r{i}", "q", 2, priority=-1) for i in range(4)]
        waiting = [job("j", count=8, cpu=1, pods={"min_count": 3})]
        assert len(evicted(decided([Queue("q", min={"cpu": 8000})], waiting, running))) == 2

    def test_partial_admission_multiple_variable_pod_sets(self) -> None:
        """All sets shrink in proportion."""
        sets = (
            PodSet("a", 10, 2, {"cpu": 1000}),
            PodSet("b", 4, None, {"cpu": 1000}),
            PodSet("c", 10, 6, {"cpu": 1000}),
        )
        found = decided([Queue("q", min={"cpu": 18_000})], [Job("j", "q", sets)])
        counts = {placed.pod_set: placed.count for placed in found.admissions[0].pods}
        assert counts == {"a": 6, "b": 4, "c": 8}

    def test_multiple_preemptions_possible_after_earlier_workload_fits(self) -> None:
        """What the first of them gets without force leaves the second one its victims."""
        queues = cohort(("a", 4), ("b", 4), ("c", 4))
        running = [run("c0", "c", 4), run("c1", "c", 4)]
        found = decided(queues, [job("a1", "a", cpu=4), job("b1", "b", cpu=4, submitted=1.0)], running)
        assert admitted(found) == ["a1"]
        assert [(one.job, one.for_job) for one in found.evictions] == [("c0", "b1")]

    def test_prefer_reclamation_over_priority_based_preemption(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        running = [run("a1", "a", 3, priority=-9), run("b1", "b", 6), run("b2", "b", 3)]
        found = decided(queues, [job("j", "a", cpu=3)], running)
        assert {one.reason for one in found.evictions} == {"reclaim"}

    def test_use_second_flavor_when_the_first_has_no_preemption_candidates(self) -> None:
        nodes = [node("s", 2, labels={"kind": "spot"}), node("d", 2, labels={"kind": "demand"})]
        policy = ResourcePolicy("p", (Unit("spot", {"kind": "spot"}), Unit("demand", {"kind": "demand"})))
        running = [
            on(job("high", gpus=2, priority=9), "s", cards=[(0, 1)]),
            on(job("low", gpus=2, priority=-1), "d", cards=[(0, 1)]),
        ]
        found = outcome(nodes, QUEUES, [job("j", gpus=2)], running, policies=(policy,))
        assert evicted(found) == {"low"}

    def test_borrowing_over_preemption(self) -> None:
        """Kueue lets a queue choose; here what can be borrowed is borrowed: an eviction always costs more."""
        running = [run("a0", "a", 6, priority=-1)]
        found = decided(cohort(("a", 6), ("b", 6)), [job("j", "a", cpu=6)], running)
        assert (admitted(found), evicted(found)) == (["j"], set())
        assert found.admissions[0].borrows

    def test_preemption_over_borrowing(self) -> None:
        """The other choice is a queue that must not borrow."""
        queues = cohort(("a", 6), ("b", 6), borrowing_limit={"cpu": 0})
        found = decided(queues, [job("j", "a", cpu=6)], [run("a0", "a", 6, priority=-1)])
        assert (admitted(found), evicted(found)) == ([], {"a0"})

    def test_error_during_admission(self) -> None:
        """Whoever could not carry an admission out says so, and all of it is given back."""
        state = State(
            Snapshot(nodes=(node("n", 2),), queues=(Queue("q", min={"gpu": 2000}),), waiting=(job("j", gpus=2),))
        )
        assert admitted(advance(state, 0.0)) == ["j"]
        assert any(state.quota.leaf("q").used)
        state.requeue("j")
        assert not any(state.quota.leaf("q").used)
        assert int(state.table.idle[0]) == 2
        assert admitted(advance(state, 1.0)) == ["j"]

    def test_the_longest_wait_is_that_of_one_wait(self) -> None:
        """A job that has run longer than it may wait is not given up when it is evicted."""
        snapshot = Snapshot(
            nodes=(node("n", 2),), queues=(Queue("q", min={"gpu": 2000}),),
            waiting=(job("j", gpus=2, max_wait_s=60.0),),
        )  # fmt: skip
        state = State(snapshot)
        assert admitted(advance(state, 0.0)) == ["j"]
        state.bound("j")
        advance(state, 1000.0)
        state.requeue("j")
        assert admitted(advance(state, 1000.0)) == ["j"]
        state.requeue("j")  # it could not be carried out: it has waited on
        assert state.waiting["j"].wait_until == 1060.0
        assert [one.job for one in advance(state, 1060.0).given_up] == ["j"]

    def test_inadmissible_workloads_wait_together(self) -> None:
        """Equivalence: what one of equal jobs is refused, all are, until something that could help has changed."""
        state = State(
            Snapshot(
                nodes=(node("a", 1), node("b", cpu=8)), queues=tuple(QUEUES),
                waiting=tuple(job(f"j{i}", gpus=2) for i in range(50)),
                running=(on(job("r", cpu=1), "b"),),
            )
        )  # fmt: skip
        advance(state, 0.0, explained=False)
        shape = state.shape(state.waiting["j0"])
        assert shape.crowded is not None
        state.finish("r")
        assert not advance(state, 1.0, explained=False).admissions
        assert shape.crowded.since == len(state.table.grown), "cores that come free are no event for cards"


class TestKueueIntegration:
    def test_block_admission_of_one_new_workload_if_two_are_considered_in_the_same_cycle(self) -> None:
        """Kueue waits for the pods of the first. Here the whole gang is placed before, so nothing is blocked."""
        assert admitted(outcome([node("n", 4)], QUEUES, [job("a", gpus=2), job("b", gpus=2)])) == ["a", "b"]

    def test_keep_the_evicted_workload_at_the_front_of_the_queue(self) -> None:
        """Kueue can also move it to the end; here it keeps its age (`not_before` lets others pass meanwhile)."""
        state = State(Snapshot(nodes=(node("n", 1),), queues=tuple(QUEUES), waiting=(job("a", gpus=1, submitted=0.0),)))
        advance(state, 10.0)
        state.submit(job("b", gpus=1, submitted=5.0))
        state.requeue("a")
        assert admitted(advance(state, 20.0)) == ["a"]

    def test_restart_with_existing_usage(self) -> None:
        running = [on(job("r", count=2, gpus=1), "b-r0-n0", "b-r0-n1", cards=[(0,), (0,)])]
        found = outcome(racks(3, 2), QUEUES, [job("j", count=2, gpus=1, pods=required("rack"))], running)
        assert used_racks(found, "j") == {"r1": 2}

    def test_topology_recreated(self) -> None:
        """The same nodes in other racks: what runs stays, what comes is placed by the new ones."""
        nodes = tuple(replace(one, topology=("b", "r9")) for one in racks(2, 2))
        running = [on(job("r", count=2, gpus=1, pods=required("rack")), "b-r0-n0", "b-r1-n0", cards=[(0,), (0,)])]
        found = outcome(nodes, QUEUES, [job("j", count=2, gpus=1, pods=required("rack"))], running)
        assert admitted(found) == ["j"]
        assert not found.releases

    def test_should_not_leak_domains_if_a_workload_is_deleted_while_nodes_are_gone(self) -> None:
        """kueue #12545."""
        running = on(job("r", count=2, gpus=1), "gone", "b-r0-n0", cards=[(0,), (0,)])
        state = State(Snapshot(levels=("block", "rack"), nodes=racks(2), queues=tuple(QUEUES), running=(running,)))
        state.finish("r")
        assert state.table.idle.tolist() == [1, 1]
        assert not any(state.quota.leaf("q").used)

    def test_unscheduled_and_terminal_pods_do_not_count(self) -> None:
        """Pods without a node of the snapshot take no room."""
        running = [on(job("r", gpus=1), "", cards=[(0,)], bound=False, bind_by=60.0)]
        assert admitted(outcome([node("n", 1)], QUEUES, [job("j", gpus=1)], running)) == ["j"]

    def test_pod_terminating_capacity_not_released(self) -> None:
        leaving = replace(on(job("r", gpus=1), "n", cards=[(0,)]), evicted_for="")
        assert admitted(outcome([node("n", 1)], QUEUES, [job("j", gpus=1)], [leaving])) == []

    def test_node_tainted_and_recovered(self) -> None:
        waiting = [job("j", gpus=1)]
        tainted = replace(node("n", 1), taints=(Taint("node.kubernetes.io/unreachable", effect="NoExecute"),))
        assert admitted(outcome([tainted], QUEUES, waiting)) == []
        assert admitted(outcome([node("n", 1)], QUEUES, waiting)) == ["j"]
        state = State(
            Snapshot(nodes=(replace(node("n", 1), ready=False),), queues=tuple(QUEUES), waiting=tuple(waiting))
        )
        assert not advance(state, 0.0).admissions
        state.table.set_ready(0, True)
        assert admitted(advance(state, 1.0)) == ["j"]

    def test_delayed_admission(self) -> None:
        """An AdmissionCheck holds quota while it waits; a job that waits for its data does not."""
        need = DataNeed("d", mode="require")
        waiting = [job("j", cpu=4, data=(need,)), job("k", cpu=4, submitted=1.0)]
        found = decided(
            [Queue("q", min={"cpu": 4000})], waiting, datasets=(Dataset("d", 100, store="s"),), stores=(Store("s", 1),)
        )
        assert (admitted(found), stage(found, "j")) == (["k"], "cache")

    def test_detailed_message_of_exclusions(self) -> None:
        nodes = (
            *racks(1),
            replace(node("x", 1, topology=("b", "r1")), ready=False),
            replace(node("y", 1, topology=("b", "r1")), taints=(Taint("t"),)),
            node("z", 0, topology=("b", "r1")),
        )
        found = outcome(nodes, QUEUES, [job("j", count=2, gpus=1)])
        assert found.waits[0].reason == (
            "room for 1 of 2 pods of 'main' on 4 nodes; 2 are not ready, or excluded by label, taint or kind of card; "
            "1 lack cards; 1 of 2 pods of 'main' would fit if all nodes were empty"
        )

    def test_host_required_for_slices_within_a_rack(self) -> None:
        nodes = racks(2, 2, gpus=3)
        sliced = {"topology": TopologyRequest(required="rack", slice_size=3, slice_level="host")}
        assert used_racks(outcome(nodes, QUEUES, [job("j", count=6, gpus=1, pods=sliced)]), "j") == {"r0": 6}
        assert not outcome(nodes, QUEUES, [job("j", count=9, gpus=1, pods=sliced)]).admissions


class TestBalancedPlacement:
    """Kueue's balanced placement: as few domains as possible, and as many pods in each as in the others."""

    def place(self, sizes: tuple[int, ...], count: int) -> dict[str, int]:
        pods = {"placement": "balanced", **preferred("rack")}
        return used_racks(outcome(racks(*sizes), QUEUES, [job("j", count=count, gpus=1, pods=pods)]), "j")

    def test_even_over_the_fewest_racks(self) -> None:
        assert self.place((8, 8, 8), 10) == {"r0": 5, "r1": 5}
        assert self.place((8, 8, 8), 8) == {"r0": 8}, "one rack is enough"

    def test_pruning(self) -> None:
        """A small rack that would have to take its whole share is left out."""
        assert self.place((1, 8, 8), 10) == {"r1": 5, "r2": 5}

    def test_as_even_as_room_allows(self) -> None:
        assert self.place((3, 8), 10) == {"r0": 3, "r1": 7}

    def test_binpack_fills_one_first(self) -> None:
        found = outcome(racks(8, 8, 8), QUEUES, [job("j", count=10, gpus=1, pods=preferred("rack"))])
        assert sorted(used_racks(found, "j").values()) == [2, 8]


class TestCapacityPlugin:
    """scheduler-plugins' capacity scheduling; namespaces with an ElasticQuota are queues."""

    QUOTAS = (Queue("root"), *(Queue(name, "root", min={"cpu": 4000}, max={"cpu": 8000}) for name in "ab"))

    def test_cross_namespace_preemption(self) -> None:
        running = [run(f"b{i}", "b", 2, priority=5) for i in range(4)]
        found = decided(self.QUOTAS, [job("j", "a", cpu=4)], running)
        assert len(evicted(found)) == 2
        assert {one.reason for one in found.evictions} == {"reclaim"}

    def test_in_namespace_preemption(self) -> None:
        running = [run("a1", "a", 4, priority=-1), run("b1", "b", 4, priority=-2)]
        assert evicted(decided(self.QUOTAS, [job("j", "a", cpu=4)], running)) == {"a1"}

    def test_regular_preemption_without_quota(self) -> None:
        running = [on(job("low", cpu=4, priority=-1), "n")]
        assert evicted(outcome([node("n", cpu=4)], QUEUES, [job("j", cpu=4)], running)) == {"low"}

    def test_in_namespace_preemption_fails_when_no_node_suits(self) -> None:
        running = [run("a1", "a", 4, priority=-1)]
        assert not evicted(decided(self.QUOTAS, [job("j", "a", cpu=4, pods={"selector": {"x": "y"}})], running))

    def test_three_quotas(self) -> None:
        """c asks for its min; a and b borrow from it: from each so much as is above its own."""
        queues = [Queue("root"), *(Queue(name, "root", min={"cpu": 3000}) for name in "abc")]
        running = [run(f"{name}{i}", name, 1) for name in "ab" for i in range(4)] + [run("a4", "a", 1)]
        found = decided(queues, [job("j", "c", cpu=3)], running, CLASSICAL)
        assert sorted(name[0] for name in evicted(found)) == ["a", "a", "b"]

    def test_sum_of_used_above_sum_of_min(self) -> None:
        """Nobody gets more than all have together, whatever its own max says."""
        running = [run("b1", "b", 7)]
        found = decided(self.QUOTAS, [job("j", "a", cpu=2, preempts=False)], running)
        assert stage(found, "j") == "quota"

    @pytest.mark.parametrize("own", [True, False])
    @pytest.mark.parametrize(("for_job", "again"), [("j", False), ("", True), ("k", True)])
    def test_eligible_to_preempt_others_while_victims_terminate(self, own: bool, for_job: str, again: bool) -> None:
        """The matrix of nominated pods: while a victim terminates for the job, in the same queue or another, nobody
        else goes. If it goes for somebody else, and what it frees is not enough, others do."""
        victim = replace(run("v", "a" if own else "b", 2, priority=-1), evicted_for=for_job)
        running = [victim, run("b1", "b", 4, priority=-1), run("b2", "b", 2)]
        assert bool(evicted(decided(self.QUOTAS, [job("j", "a", cpu=4)], running))) == again

    @pytest.mark.parametrize(("least", "most", "starts"), [({}, {}, 3), ({"cpu": 2000}, {}, 2), ({}, {"cpu": 1000}, 1)])
    def test_quota_with_missing_min_or_max(self, least: dict[str, int], most: dict[str, int], starts: int) -> None:
        """No min in the whole tree: only max counts; no max: what can be borrowed does."""
        found = decided([Queue("q", min=least, max=most)], [job(f"j{i}", cpu=1) for i in range(3)])
        assert len(admitted(found)) == starts

    def test_quota_updated_and_deleted(self) -> None:
        """The next snapshot has other queues: what runs is above them now, and goes when somebody asks."""
        running = [run("a1", "a", 3), run("a2", "a", 3)]
        queues = [Queue("root"), Queue("a", "root", min={"cpu": 3000}), Queue("b", "root", min={"cpu": 3000})]
        assert len(evicted(decided(queues, [job("j", "b", cpu=3)], running))) == 1
        with pytest.raises(ValueError, match="no queue is named 'a'"):
            decided([queues[0], queues[2]], [], running)


class TestVolcano:
    def test_preemption_only_in_the_same_queue(self) -> None:
        """By priority. From other queues there is reclaim only, and both are within their min here."""
        queues = cohort(("a", 4), ("b", 4))
        running = [run("a1", "a", 4, priority=-1), run("b1", "b", 4, priority=-9)]
        assert evicted(decided(queues, [job("j", "a", cpu=4, priority=9)], running)) == {"a1"}

    def test_no_preemption_when_pending_for_capacity(self) -> None:
        """The queue's max is not to be had by evicting somebody of another queue."""
        queues = [
            Queue("root"),
            Queue("a", "root", min={"cpu": 2000}, max={"cpu": 2000}),
            Queue("b", "root", min={"cpu": 2000}),
        ]
        running = [run("a1", "a", 2, priority=9), run("b1", "b", 2, priority=-1)]
        assert not evicted(decided(queues, [job("j", "a", cpu=1)], running))

    def test_reclaim_with_multiple_queues(self) -> None:
        """From the queue that is above what it deserves, not from the one that is within."""
        queues = cohort(("a", 3), ("b", 3), ("c", 3))
        running = [run(f"a{i}", "a", 1) for i in range(3)] + [run(f"b{i}", "b", 1) for i in range(6)]
        found = decided(queues, [job("j", "c", cpu=2)], running)
        assert {name[0] for name in evicted(found)} == {"b"}
        assert len(evicted(found)) == 2

    def test_no_reclaim_for_what_exceeds_the_capacity_of_its_queue(self) -> None:
        queues = [
            Queue("root"),
            Queue("a", "root", min={"cpu": 2000}, max={"cpu": 4000}),
            Queue("b", "root", min={"cpu": 4000}),
        ]
        assert not evicted(decided(queues, [job("j", "a", cpu=5)], [run("b1", "b", 6)]))

    def test_never_below_guarantee(self) -> None:
        queues = cohort(("a", 4), ("b", 4))
        running = [run(f"b{i}", "b", 1) for i in range(8)]
        assert len(evicted(decided(queues, [job("j", "a", cpu=4), job("k", "a", cpu=4)], running))) == 4

    @pytest.mark.parametrize(("level", "starts"), [("host", False), ("rack", False), ("block", True)])
    def test_hypernode_hard_mode_to_the_highest_tier(self, level: str, starts: bool) -> None:
        """networkTopology mode hard, highestTierAllowed: the level above which it must not spread."""
        found = outcome(racks(2, 2), QUEUES, [job("j", count=3, gpus=1, pods=required(level))])
        assert bool(admitted(found)) == starts

    def test_hypernode_soft_mode(self) -> None:
        found = outcome(racks(2, 2), QUEUES, [job("j", count=3, gpus=1, pods=preferred("rack"))])
        assert sorted(used_racks(found, "j").values()) == [1, 2]

    def test_gang_preempt_within_one_hypernode(self) -> None:
        """Victims are taken so that the gang finds its rack, not here and there."""
        running = [
            on(job(f"r{rack}{i}", gpus=1, priority=-1), f"b-r{rack}-n{i}", cards=[(0,)])
            for rack in range(2)
            for i in range(2)
        ]
        found = outcome(racks(2, 2), QUEUES, [job("j", count=2, gpus=1, pods=required("rack"))], running)
        assert len({name[1] for name in evicted(found)}) == 1
        assert len(evicted(found)) == 2


class TestKoordinator:
    @pytest.mark.parametrize(("total", "mins"), [(120, [40, 80]), (60, [20, 40]), (30, [10, 20])])
    def test_scaled_min_quota(self, total: int, mins: list[int]) -> None:
        queues = [
            Queue("root", min={"cpu": total}),
            Queue("a", "root", min={"cpu": 40}),
            Queue("b", "root", min={"cpu": 80}),
        ]
        state = State(Snapshot(queues=tuple(queues)))
        place = state.quota.resources.index("cpu")
        assert [state.quota.nodes[name].quota[place] for name in "ab"] == mins

    @pytest.mark.parametrize(
        ("victim", "may"),
        [({"priority": -1}, True), ({"priority": 0}, False), ({"priority": -1, "preemptible": False}, False)],
    )
    def test_can_preempt(self, victim: dict[str, Any], may: bool) -> None:
        """Of the same quota, of lower priority, and preemptible."""
        found = decided([Queue("q", min={"cpu": 4000})], [job("j", cpu=4)], [run("v", "q", 4, **victim)])
        assert bool(evicted(found)) == may

    def test_select_victims_on_node(self) -> None:
        """The node where least is lost, and on it no more than is needed."""
        nodes = [node("a", 4), node("b", 4)]
        running = [
            on(job("a0", gpus=2, priority=-1), "a", cards=[(0, 1)], started=0.0),
            on(job("a1", gpus=2, priority=-1), "a", cards=[(2, 3)], started=90.0),
            on(job("b0", gpus=4, priority=-1), "b", cards=[(0, 1, 2, 3)], started=50.0),
        ]
        assert evicted(outcome(nodes, QUEUES, [job("j", gpus=2)], running, now=100.0)) == {"a1"}

    def test_not_allow_lent_resource(self) -> None:
        """Its min stays its own, however idle."""
        queues = [
            Queue("root"),
            Queue("a", "root", min={"cpu": 4000}, lending_limit={"cpu": 0}),
            Queue("b", "root", min={"cpu": 4000}),
        ]
        assert admitted(decided(queues, [job("j", "b", cpu=5)])) == []


class TestKai:
    def test_reclaim_across_hierarchy(self) -> None:
        """From a department above its quota to one below; the sibling leaf within its own loses nothing."""
        queues = [
            Queue("root"),
            Queue("d1", "root", min={"cpu": 4000}),
            Queue("d2", "root", min={"cpu": 4000}),
            Queue("a", "d1"),
            Queue("b", "d2"),
            Queue("c", "d2", min={"cpu": 2000}),
        ]
        running = [run("b1", "b", 6), run("c1", "c", 2)]
        assert evicted(decided(queues, [job("j", "a", cpu=4)], running)) == {"b1"}

    def test_reclaim_by_a_large_job_with_a_topology(self) -> None:
        """All of one rack, though victims of the other one would be cheaper one by one."""
        queues = [Queue("root"), Queue("a", "root", min={"gpu": 4000}), Queue("b", "root", min={"gpu": 2000})]
        nodes = racks(4, 2)
        running = [
            on(job(f"b{i}", "b", gpus=1), name, cards=[(0,)], started=50.0 if "r1" in name else 0.0)
            for i, name in enumerate([*(f"b-r0-n{i}" for i in range(4)), "b-r1-n0", "b-r1-n1"])
        ]
        found = outcome(nodes, queues, [job("j", "a", count=4, gpus=1, pods=required("rack"))], running, now=100.0)
        assert evicted(found) == {"b0", "b1", "b2", "b3"}

    def test_reclaim_of_many_singles(self) -> None:
        queues = [Queue("root"), Queue("a", "root", min={"cpu": 100_000}), Queue("b", "root", min={"cpu": 100_000})]
        running = [run(f"b{i:03}", "b", 1) for i in range(200)]
        assert len(evicted(decided(queues, [job("j", "a", count=100, cpu=1)], running))) == 100

    def test_preempt_fraction(self) -> None:
        """A share makes room for a share, and its neighbour on the card stays."""
        running = [
            on(job("a", share=GpuRequest(1, 500), priority=-1), "n", cards=[(0,)]),
            on(job("b", share=GpuRequest(1, 500), priority=1), "n", cards=[(0,)]),
        ]
        assert evicted(outcome([node("n", 1)], QUEUES, [job("j", share=GpuRequest(1, 500))], running)) == {"a"}

    def test_time_aware(self) -> None:
        """Who has used much lately comes later, whatever is used now."""
        queues = [Queue("root", min={"cpu": 2000}), Queue("a", "root", usage=100.0), Queue("b", "root", usage=1.0)]
        waiting = [job("a1", "a", cpu=2), job("b1", "b", cpu=2, submitted=1.0)]
        assert admitted(decided(queues, waiting, settings=Settings(fairness="usage"))) == ["b1"]

    def test_min_subgroups(self) -> None:
        """Two of three subgroups are enough: each is a gang, and they start together."""
        waiting = [job(f"s{i}", count=2, gpus=1, group="g", group_size=2) for i in range(3)]
        assert admitted(outcome([node("n", 5)], QUEUES, waiting)) == ["s0", "s1"]
        assert admitted(outcome([node("n", 3)], QUEUES, waiting)) == []

    def test_stale_gang_eviction(self) -> None:
        one = RunningJob(job("j", count=2, cpu=1), 0.0, (PlacedPods("main", "n"),), short_since=0.0)
        nodes = [node("n", cpu=1)]
        assert not outcome(nodes, QUEUES, [], [one], now=59.0).releases
        assert [one.job for one in outcome(nodes, QUEUES, [], [one], now=60.0).releases] == ["j"]

    def test_unschedulable_verdict(self) -> None:
        found = outcome([node("n", 8)], QUEUES, [job("j", gpus=9)])
        assert found.waits[0].reason == (
            "room for 0 of 1 pods of 'main' on 1 nodes; 1 lack cards; "
            "no node could take a pod of 'main' even if it were empty"
        )
        assert found.waits[0].unblock == "a smaller request, a larger quota or other nodes"


class TestFluid:
    NODES = racks(1, 1, 1, gpus=1)
    STORES = (Store("s", 10),)

    def place(self, *needs: DataNeed, pods: Any = None, **warm: dict[str, int]) -> dict[str, int] | str:
        datasets = tuple(Dataset(name, 1000, where, "s") for name, where in warm.items())
        found = outcome(
            self.NODES, QUEUES, [job("j", gpus=1, data=needs, pods=pods or {})], datasets=datasets, stores=self.STORES
        )
        return used_racks(found, "j") if found.admissions else stage(found, "j")

    def test_required_and_preferred_are_split(self) -> None:
        """The required one decides where it may run, the preferred one where of these."""
        needs = (DataNeed("must", mode="require"), DataNeed("may"))
        must = {"b-r0-n0": 1000, "b-r2-n0": 1000}
        assert self.place(*needs, must=must, may={"b-r1-n0": 1000, "b-r2-n0": 500}) == {"r2": 1}

    def test_a_locality_that_the_pod_asks_for_itself_stays(self) -> None:
        """Fluid adds nothing then; here the selector filters, and the cache is weighed among what is left."""
        pods = {"selector": {"none": "here"}}
        assert self.place(DataNeed("d"), pods=pods, d={"b-r1-n0": 1000}) == "gang"
        assert self.place(DataNeed("d"), d={"b-r1-n0": 1000}) == {"r1": 1}

    def test_pods_without_datasets_keep_off_nodes_with_cache(self) -> None:
        """Fluid prefers nodes without cache for them, by a label. Here a job that reads weighs more than a label."""
        waiting = [job("plain", gpus=1), job("reads", gpus=1, data=(DataNeed("d"),), submitted=1.0)]
        datasets = (Dataset("d", 1000, {"b-r1-n0": 1000}, "s"),)
        found = outcome(self.NODES, QUEUES, waiting, datasets=datasets, stores=self.STORES)
        assert used_racks(found, "reads") == {"r1": 1}
        assert used_racks(found, "plain") == {"r0": 1}
