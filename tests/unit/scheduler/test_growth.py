"""Jobs that get further pods: elastic ones, and gangs that have lost some."""

from dataclasses import replace
from typing import Any

import pytest
from clusters import admitted, evicted, job, node, on, outcome, racks, required

from forebay.scheduler.decide import advance
from forebay.scheduler.decisions import Decisions, Growth
from forebay.scheduler.jobs import GpuRequest, Job, PlacedPods, PodSet, TopologyRequest, joined, without
from forebay.scheduler.model import Queue, ResourcePolicy, RunningJob, Snapshot, Unit
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State

QUEUES = [Queue("q")]


def elastic(name: str = "e", queue: str = "q", least: int = 1, count: int = 4, now: int = 1, **more: Any) -> RunningJob:
    """So many pods of one core each, of `count`, on the node n."""
    pods = {"min_count": least, **more.pop("pods", {})}
    running = on(job(name, queue, count=count, cpu=1, pods=pods, **more), "n")
    return replace(running, pods=(PlacedPods("main", "n", (), now),))


def grown(found: Decisions) -> dict[str, int]:
    return {one.job: sum(placed.count for placed in one.pods) for one in found.growths}


class TestElastic:
    def test_up_to_its_count(self) -> None:
        assert grown(outcome([node("n", cpu=9)], QUEUES, [], [elastic()])) == {"e": 3}

    def test_as_far_as_there_is_room(self) -> None:
        assert grown(outcome([node("n", cpu=3)], QUEUES, [], [elastic()])) == {"e": 2}

    def test_waiting_jobs_come_first(self) -> None:
        found = outcome([node("n", cpu=4)], QUEUES, [job("j", cpu=2)], [elastic()])
        assert (admitted(found), grown(found)) == (["j"], {"e": 1})

    def test_off(self) -> None:
        assert not outcome([node("n", cpu=9)], QUEUES, [], [elastic()], Settings(growth=False)).growths

    def test_within_quota(self) -> None:
        queues = [Queue("q", max={"cpu": 3000})]
        assert grown(outcome([node("n", cpu=9)], queues, [], [elastic()])) == {"e": 2}

    def test_max_jobs_are_not_more_jobs(self) -> None:
        assert grown(outcome([node("n", cpu=9)], [Queue("q", max_jobs=1)], [], [elastic()])) == {"e": 3}

    def test_turns_go_round(self) -> None:
        """One pod after the other to the queue with the smaller share."""
        queues = [Queue("root", min={"cpu": 8000}), *(Queue(name, "root") for name in "ab")]
        running = [elastic("a0", "a", count=9), elastic("b0", "b", count=9, now=3)]
        assert grown(outcome([node("n", cpu=8)], queues, [], running)) == {"a0": 3, "b0": 1}

    def test_who_stays_within_its_min_goes_first(self) -> None:
        queues = [Queue("root"), Queue("a", "root", min={"cpu": 4000}), Queue("b", "root")]
        running = [elastic("a0", "a", count=9), elastic("b0", "b", count=9)]
        assert grown(outcome([node("n", cpu=9)], queues, [], running)) == {"a0": 2}

    def test_what_must_not_be_evicted_does_not_grow_beyond_min(self) -> None:
        queues = [Queue("root", min={"cpu": 8000}), Queue("q", "root", min={"cpu": 2000})]
        assert grown(outcome([node("n", cpu=9)], queues, [], [elastic(preemptible=False)])) == {"e": 1}

    def test_not_while_victims_leave_for_its_queue(self) -> None:
        """Else it would take again what it has just given up."""
        leaving = replace(on(job("r", cpu=2, priority=-1), "n"), evicted_for="j")
        found = outcome([node("n", cpu=4)], [Queue("q", min={"cpu": 4000})], [job("j", cpu=3)], [elastic(), leaving])
        assert not found.growths

    def test_equal_priority_takes_back_what_was_grown(self) -> None:
        """Growing must not keep out a job that waits: what is beyond the least goes for it, whoever has run longer."""
        found = outcome([node("n", cpu=4)], QUEUES, [job("j", cpu=2)], [elastic(now=4, least=2)])
        assert [(one.job, one.for_job, sum(pod.count for pod in one.pods)) for one in found.shrinks] == [("e", "j", 2)]
        assert not outcome([node("n", cpu=4)], QUEUES, [job("j", cpu=3)], [elastic(now=4, least=2)]).shrinks

    def test_who_is_admitted_in_the_same_pass_starts_with_fewer(self) -> None:
        """It has not been told yet; and whom it makes way for need not wait."""
        one = job("e", cpu=1, count=4, pods={"min_count": 2})
        found = outcome([node("n", cpu=4)], QUEUES, [one, replace(job("j", cpu=2), submitted=1.0)])
        assert {one.job: sum(placed.count for placed in one.pods) for one in found.admissions} == {"e": 2, "j": 1}
        assert (found.shrinks, found.growths, found.evictions) == ((), (), ())

    def test_held_nodes_are_left_alone(self) -> None:
        queues = [Queue("q", policy="fifo")]
        running = [elastic(), on(job("r", cpu=2, max_run_s=60.0), "n")]
        found = outcome([node("n", cpu=4)], queues, [job("head", cpu=3)], running)
        assert found.holds
        assert not found.growths

    def test_in_its_own_rack(self) -> None:
        nodes = racks(2, 4)
        for pods, racks_used in ((required("rack"), {"r0"}), ({}, {"r0", "r1"})):
            one = on(job("e", count=4, gpus=1, pods={"min_count": 1, **pods}), "b-r0-n0", cards=[(0,)])
            found = outcome(nodes, QUEUES, [], [one])
            assert {placed.node.split("-")[1] for placed in found.growths[0].pods} == racks_used
            assert found.growths[0].pods[0].node == "b-r0-n1", "the near node first"

    def test_in_whole_slices(self) -> None:
        nodes = racks(3, 4)
        sliced = {"topology": TopologyRequest(required="block", slice_size=2, slice_level="rack"), "min_count": 2}
        one = on(job("e", count=8, gpus=1, pods=sliced), "b-r0-n0", "b-r0-n1", cards=[(0,), (0,)])
        assert grown(outcome(nodes, QUEUES, [], [one])) == {"e": 4}

    def test_by_its_resource_policy(self) -> None:
        nodes = [node("a", cpu=2, labels={"kind": "a"}), node("n", cpu=9, labels={"kind": "n"})]
        policy = ResourcePolicy("p", (Unit("a", {"kind": "a"}), Unit("n", {"kind": "n"}, max_pods=2)))
        found = outcome(nodes, QUEUES, [], [elastic()], policies=(policy,))
        assert {placed.node: placed.count for placed in found.growths[0].pods} == {"a": 2, "n": 1}

    def test_kai_reclaim_elastic(self) -> None:
        """An elastic job of a queue above its min gives up what it grew by, and runs on."""
        queues = [Queue("root"), *(Queue(name, "root", min={"cpu": 2000}) for name in "ab")]
        found = outcome([node("n", cpu=4)], queues, [job("j", "a", cpu=2)], [elastic("e", "b", now=4)])
        assert (evicted(found), [one.job for one in found.shrinks]) == (set(), ["e"])


class TestBinding:
    """Further pods must be bound in time too; if they are not, they alone are given back."""

    GROWING = (PlacedPods("main", "n", (), 2),)

    def growing(self, **more: Any) -> RunningJob:
        return replace(elastic(now=3), growing=self.GROWING, grow_by=70.0, **more)

    def test_no_further_ones_before_they_are_bound(self) -> None:
        assert not outcome([node("n", cpu=9)], QUEUES, [], [self.growing()], now=69.0).growths

    def test_given_back(self) -> None:
        found = outcome([node("n", cpu=9)], QUEUES, [], [self.growing()], now=70.0)
        assert [(one.job, one.for_job, one.pods, one.grow_after) for one in found.shrinks] == [
            ("e", "", self.GROWING, 130.0)
        ]
        assert not found.releases

    def test_the_state_follows(self) -> None:
        state = State(Snapshot(nodes=(node("n", cpu=9),), queues=tuple(QUEUES), running=(elastic(),)))
        assert advance(state, 0.0).growths == (Growth("e", (PlacedPods("main", "n", (), 3),), 60.0),)
        assert state.running["e"].running.pods == (PlacedPods("main", "n", (), 4),)
        assert int(state.table.free[0, 0]) == 5000
        assert advance(state, 60.0).shrinks
        state.shrunk("e")
        assert int(state.table.free[0, 0]) == 8000
        assert not advance(state, 100.0).growths
        assert advance(state, 120.0).growths
        state.bound("e")
        assert not advance(state, 999.0).shrinks


class TestLostPods:
    """A node fails: Kueue's node replacement, KAI's stale gangs, volcano #5805."""

    def gang(self, count: int = 3, pods: dict[str, Any] | None = None, **more: Any) -> Job:
        return job("g", count=count, gpus=1, pods=pods or required("rack"), **more)

    def running(self, *nodes: str, **more: Any) -> RunningJob:
        return on(self.gang(), *nodes, cards=[(0,)] * len(nodes), **more)

    def test_replace_only_the_failed_node_inside_the_same_domain(self) -> None:
        nodes = [one for one in racks(4, 9) if one.name != "b-r0-n1"]
        found = outcome(nodes, QUEUES, [], [self.running("b-r0-n0", "b-r0-n1", "b-r0-n2")])
        assert [(one.job, one.pods[0].node) for one in found.growths] == [("g", "b-r0-n3")]

    def test_before_all_that_waits(self) -> None:
        """Or a stranger takes the last node, and the gang stays below its least for ever (volcano #5805)."""
        stranger = job("s", gpus=1, priority=9)
        found = outcome(racks(3), QUEUES, [stranger], [self.running("b-r0-n0", "b-r0-n1")])
        assert (admitted(found), [one.job for one in found.growths]) == ([], ["g"])

    def test_no_other_node_in_its_domain(self) -> None:
        """It has a minute; then it waits again as a whole, in its old place."""
        running = self.running("b-r0-n0", "b-r0-n1", short_since=100.0)
        nodes = racks(2, 9)
        early = outcome(nodes, QUEUES, [], [running], now=159.0)
        assert (early.growths, early.releases) == ((), ())
        late = outcome(nodes, QUEUES, [], [running], now=160.0)
        assert [(one.job, one.retries, one.not_before) for one in late.releases] == [("g", 0, 160.0)]
        assert admitted(late) == ["g"], "in the other rack"

    def test_multiple_nodes_deleted(self) -> None:
        """Kueue evicts at once where several nodes fail; here as many pods are replaced as it takes."""
        nodes = [one for one in racks(5) if one.name not in ("b-r0-n1", "b-r0-n2")]
        found = outcome(nodes, QUEUES, [], [self.running("b-r0-n0", "b-r0-n1", "b-r0-n2")])
        assert sorted(placed.node for placed in found.growths[0].pods) == ["b-r0-n3", "b-r0-n4"]

    def test_all_or_nothing(self) -> None:
        nodes = [one for one in racks(4) if one.name not in ("b-r0-n1", "b-r0-n2")]
        assert not outcome(nodes, QUEUES, [], [self.running("b-r0-n0", "b-r0-n1", "b-r0-n2")]).growths

    def test_an_elastic_job_goes_on_with_fewer(self) -> None:
        one = on(job("e", count=3, gpus=1, pods={"min_count": 2}), "b-r0-n0", "b-r0-n1", "x", cards=[(0,)] * 3)
        found = outcome(racks(2), QUEUES, [], [one], now=999.0)
        assert (found.releases, found.growths) == ((), ())

    def test_the_state_is_told(self) -> None:
        state = State(
            Snapshot(
                nodes=racks(4), levels=("block", "rack"), queues=tuple(QUEUES),
                running=(self.running("b-r0-n0", "b-r0-n1", "b-r0-n2"),),
            )
        )  # fmt: skip
        state.now = 50.0
        state.table.set_ready(state.table.index["b-r0-n1"], False)
        state.lost("g", [PlacedPods("main", "b-r0-n1", ((0,),))])
        assert state.running["g"].running.short_since == 50.0
        assert [one.pods[0].node for one in advance(state, 51.0).growths] == ["b-r0-n3"]
        assert state.running["g"].running.short_since is None

    def test_two_pod_sets_that_share_a_domain(self) -> None:
        together = TopologyRequest(required="rack", group="g")
        sets = tuple(PodSet(name, 1, gpus=GpuRequest(1), topology=together) for name in ("leader", "worker"))
        running = RunningJob(Job("j", "q", sets), 0.0, (PlacedPods("leader", "b-r1-n0", ((0,),)),))
        found = outcome(racks(2, 2), QUEUES, [], [running])
        assert [placed.node for placed in found.growths[0].pods] == ["b-r1-n1"]


def test_pods_are_joined_and_parted() -> None:
    a, b = PlacedPods("main", "n", ((0, 1), (2, 3)), 2), PlacedPods("main", "n", ((4, 5),))
    assert joined([a], [b]) == (PlacedPods("main", "n", ((0, 1), (2, 3), (4, 5)), 3),)
    assert without(joined([a], [b]), [a]) == (b,)
    assert without([a, b], [b]) == (a,)
    plain = PlacedPods("main", "n", (), 3)
    assert without([plain, plain], [replace(plain, count=4)]) == (replace(plain, count=2),)
    shares = PlacedPods("main", "n", ((0,), (0,), (1,)), 3)
    assert without([shares], [PlacedPods("main", "n", ((0,),))]) == (PlacedPods("main", "n", ((0,), (1,)), 2),)


@pytest.mark.parametrize("cores", [4, 5, 9])
def test_growing_and_shrinking_come_to_an_end(cores: int) -> None:
    """Two elastic jobs and one that comes: nobody takes turns in growing and giving up."""
    state = State(
        Snapshot(
            nodes=(node("n", cpu=cores),), queues=tuple(QUEUES),
            running=(elastic("e", count=9), elastic("f", count=9)), waiting=(job("j", cpu=2),),
        )
    )  # fmt: skip
    for step in range(10):
        found = advance(state, step * 10.0)
        for one in found.shrinks:
            state.shrunk(one.job)
        for name in (*admitted(found), *(one.job for one in found.growths)):
            state.bound(name)
        if not (found.admissions or found.growths or found.shrinks):
            break
    else:
        raise AssertionError("it never ends")
    assert "j" in state.running
