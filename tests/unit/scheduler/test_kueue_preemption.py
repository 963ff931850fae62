"""More cases of Kueue's preemption and fair sharing tests, by their names there, rebuilt from their descriptions."""

from dataclasses import replace

import pytest
from clusters import admitted, cohort, decided, evicted, job, node, on, outcome, run, stage

from forebay.scheduler.jobs import GpuRequest, Job, PodSet
from forebay.scheduler.model import Queue
from forebay.scheduler.settings import Settings

CLASSICAL = Settings(fair_preemption=False)


def borrows_by_force(*queues: tuple[str, int], threshold: int | None = None) -> list[Queue]:
    """Queues of which the first may evict lower priorities while it borrows."""
    found = cohort(*queues)
    found[1] = replace(found[1], preempt_to_borrow=True, preempt_to_borrow_up_to=threshold)
    return found


class TestBorrowWithinCohort:
    def test_preempt_while_borrowing(self) -> None:
        queues = borrows_by_force(("a", 6), ("b", 2))
        running = [run("b1", "b", 8, priority=-1)]
        found = decided(queues, [job("j", "a", cpu=7)], running)
        assert [(one.job, one.reason) for one in found.evictions] == [("b1", "borrow")]
        assert not evicted(decided(cohort(("a", 6), ("b", 2)), [job("j", "a", cpu=7)], running, CLASSICAL))

    def test_not_of_equal_priority(self) -> None:
        queues = borrows_by_force(("a", 6), ("b", 2))
        assert not evicted(decided(queues, [job("j", "a", cpu=7)], [run("b1", "b", 8)]))

    def test_not_above_the_threshold_if_borrowing_is_required_even_after_the_preemption(self) -> None:
        queues = borrows_by_force(("a", 6), ("b", 2), threshold=0)
        assert not evicted(decided(queues, [job("j", "a", cpu=7, priority=2)], [run("b1", "b", 8, priority=1)]))
        assert evicted(decided(queues, [job("j", "a", cpu=7, priority=2)], [run("b1", "b", 8)])) == {"b1"}

    def test_above_the_threshold_if_borrowing_is_not_required(self) -> None:
        queues = borrows_by_force(("a", 6), ("b", 2), threshold=0)
        found = decided(queues, [job("j", "a", cpu=6, priority=2)], [run("b1", "b", 8, priority=1)])
        assert [(one.job, one.reason) for one in found.evictions] == [("b1", "reclaim")]

    def test_only_preempt_from_its_own_queue_if_none_is_below_the_threshold_and_already_above_nominal(self) -> None:
        queues = borrows_by_force(("a", 2), ("b", 2), threshold=-1)
        running = [run("a1", "a", 2, priority=1), run("a2", "a", 1, priority=1), run("b1", "b", 1, priority=0)]
        found = decided(queues, [job("j", "a", cpu=1, priority=2)], running)
        assert len(found.evictions) == 1
        assert found.evictions[0].job in {"a1", "a2"}

    def test_only_from_queues_that_borrow(self) -> None:
        queues = borrows_by_force(("a", 6), ("b", 6))
        assert not evicted(decided(queues, [job("j", "a", cpu=7, priority=5)], [run("b1", "b", 6)]))


class TestPreemption:
    def test_preempt_newer_workloads_with_the_same_priority(self) -> None:
        """Only where the queue says so: one that has waited longer takes the place of one that came later."""
        running = [run("old", "q", 2, submitted=1.0), run("new", "q", 2, submitted=9.0)]
        waiting = [job("j", cpu=2, submitted=5.0)]
        assert not evicted(decided([Queue("q", min={"cpu": 4000})], waiting, running))
        queues = [Queue("q", min={"cpu": 4000}, preempt="later")]
        assert evicted(decided(queues, waiting, running)) == {"new"}
        assert not evicted(decided(queues, [job("j", cpu=4, submitted=5.0)], running)), "one of them is not enough"

    def test_never_in_its_own_queue(self) -> None:
        queues = [Queue("q", min={"cpu": 2000}, preempt="never")]
        assert not evicted(decided(queues, [job("j", cpu=2, priority=9)], [run("r", "q", 2)]))

    def test_only_preempt_workloads_using_the_chosen_flavor(self) -> None:
        """Flavors are kinds of nodes here: who runs on the other kind stays, though its priority is the lowest."""
        nodes = [node("s", 2, labels={"kind": "spot"}), node("d", 2, labels={"kind": "demand"})]
        running = [
            on(job("spot", gpus=2, priority=-2), "s", cards=[(0, 1)]),
            on(job("demand", gpus=2, priority=-1), "d", cards=[(0, 1)]),
        ]
        waiting = [job("j", gpus=2, pods={"selector": {"kind": "demand"}})]
        assert evicted(outcome(nodes, [Queue("q")], waiting, running)) == {"demand"}

    def test_each_podset_preempts_a_different_flavor(self) -> None:
        nodes = [node("s", 2, labels={"kind": "spot"}), node("d", 2, labels={"kind": "demand"})]
        running = [
            on(job("spot", gpus=2, priority=-1), "s", cards=[(0, 1)]),
            on(job("demand", gpus=2, priority=-1), "d", cards=[(0, 1)]),
        ]
        sets = tuple(PodSet(kind, gpus=GpuRequest(2), selector={"kind": kind}) for kind in ("spot", "demand"))
        assert evicted(outcome(nodes, [Queue("q")], [Job("j", "q", sets)], running)) == {"spot", "demand"}

    def test_long_range_preemption(self) -> None:
        """From a queue three levels away, which borrows up to the root."""
        queues = [
            Queue("root"),
            *(Queue(name, "root") for name in ("left", "right")),
            *(Queue(name, name[:-1]) for name in ("left1", "right1")),
            Queue("a", "left1", min={"cpu": 10_000}),
            Queue("b", "right1"),
        ]
        found = decided(queues, [job("j", "a", cpu=10)], [run("b1", "b", 10, priority=9)], CLASSICAL)
        assert [(one.job, one.reason) for one in found.evictions] == [("b1", "reclaim")]

    def test_evicted_first(self) -> None:
        """Who leaves anyway is counted on before anybody else."""
        queues = cohort(("a", 6), ("b", 6))
        leaving = replace(run("b1", "b", 6, priority=9), evicted_for="")
        found = decided(queues, [job("j", "a", cpu=6)], [leaving, run("b2", "b", 6)])
        assert (evicted(found), admitted(found)) == (set(), [])

    def test_queue_with_more_use_first(self) -> None:
        """Kueue orders by the use of a LocalQueue before priority; here priority, as it is what was asked for."""
        queues = [Queue("root", min={"cpu": 12_000}), Queue("a", "root", min={"cpu": 3000})]
        queues += [Queue("b", "root", usage=1.0), Queue("c", "root", usage=9.0)]
        running = [run("b1", "b", 6), run("c1", "c", 6)]
        usage = Settings(fairness="usage")
        assert evicted(decided(queues, [job("j", "a", cpu=3)], running, usage)) == {"c1"}
        running[1] = run("c1", "c", 6, priority=1)
        assert evicted(decided(queues, [job("j", "a", cpu=3)], running, usage)) == {"b1"}

    def test_should_not_preempt_in_the_cohort_if_the_queue_requires_borrowing(self) -> None:
        running = [run("b1", "b", 6), run("c1", "c", 6)]
        found = decided(cohort(("a", 3), ("b", 3), ("c", 6)), [job("j", "a", cpu=4, priority=9)], running, CLASSICAL)
        assert not evicted(found)

    def test_block_preemptions_and_signal_blocked_on_preemption_gates(self) -> None:
        """A job that must not evict (Kubernetes' preemptionPolicy Never) waits, and is told so."""
        queues = [Queue("q", min={"cpu": 2000})]
        running = [run("r", "q", 2, priority=-1)]
        found = decided(queues, [job("j", cpu=2, preempts=False)], running)
        assert not evicted(found)
        assert "it may not evict others" in found.waits[0].reason
        assert evicted(decided(queues, [job("j", cpu=2)], running)) == {"r"}


class TestFairSharing:
    KUEUE = Settings(fairness="borrowed")

    def test_preempt_huge_workload_if_there_is_no_other_option(self) -> None:
        """The newcomer's share stays below what the victim's queue has, though above what it keeps."""
        queues = [*cohort(("a", 3), ("b", 3), ("c", 3)), Queue("pool", "cohort", min={"cpu": 3000})]
        running = [run("b1", "b", 9, priority=0)]
        found = decided(queues, [job("j", "a", cpu=4)], running, self.KUEUE)
        assert evicted(found) == {"b1"}

    def test_scenario_above_does_not_flap(self) -> None:
        queues = [*cohort(("a", 3), ("b", 3), ("c", 3)), Queue("pool", "cohort", min={"cpu": 3000})]
        found = decided(queues, [job("b1", "b", cpu=9)], [run("j", "a", 4)], self.KUEUE)
        assert (admitted(found), evicted(found)) == ([], set())

    def test_borrowing_queue_in_non_borrowing_cohort_is_protected(self) -> None:
        """b uses what its own cohort has: nobody from outside has a claim on it, weight or not."""
        queues = [
            Queue("root"),
            Queue("left", "root"),
            Queue("a", "left", min={"cpu": 3000}),
            Queue("right", "root"),
            Queue("b", "right", min={"cpu": 1000}),
            Queue("c", "right", min={"cpu": 5000}),
        ]
        running = [run("a1", "a", 3), run("b1", "b", 6)]
        assert not evicted(decided(queues, [job("j", "a", cpu=1)], running, self.KUEUE))

    def test_deep_preemption(self) -> None:
        """Shares are compared where the trees meet, not those of the leaves."""
        queues = [
            Queue("root", min={"cpu": 10_000}),
            *(Queue(name, "root") for name in ("left", "right")),
            *(Queue(f"{name}{i}", name) for name in ("left", "right") for i in range(2)),
        ]
        running = [run(f"{queue}-{i}", queue, 1) for queue in ("left0", "left1") for i in range(5)]
        found = decided(queues, [job("j", "right0", cpu=4)], running, self.KUEUE)
        assert len(evicted(found)) == 4
        assert not evicted(decided(queues, [job("j", "right0", cpu=6)], running, self.KUEUE))

    def test_candidates_skipped_by_the_first_strategy_are_still_available_to_the_second(self) -> None:
        """j asks for 8. b1 goes by the first rule, as b keeps 8; c1, after which c would keep 2, by the second one, as
        c has 9 now. Neither is enough alone."""
        queues = [Queue("cohort", min={"cpu": 19_000}), *(Queue(name, "cohort") for name in "abc")]
        running = [run("b1", "b", 2), run("c1", "c", 7)]
        running += [run("b2", "b", 8, preemptible=False), run("c2", "c", 2, preemptible=False)]
        found = decided(queues, [job("j", "a", cpu=8)], running, self.KUEUE)
        assert {(one.job, one.reason) for one in found.evictions} == {("b1", "fair-share"), ("c1", "fair-share")}
        assert not evicted(decided(queues, [job("j", "a", cpu=9)], running, self.KUEUE)), "b would keep less than a has"


@pytest.mark.parametrize("reclaim", ["any", "lower-priority", "never"])
def test_capacity_blocked_when_lending_queue_is_not_guaranteed_to_reclaim(reclaim: str) -> None:
    """Kueue's six cases of that name: `a` is within its min and waits for 9 of its 9 cores, of which 5 are lent.

    Can it take them back whenever it likes, others may borrow what is left meanwhile; if it cannot, they must not.
    """
    queues = cohort(("a", 9), ("b", 1), ("c", 0))
    queues[1] = replace(queues[1], reclaim=reclaim)
    lent = run("c1", "c", 5, priority=1, preemptible=False)
    found = decided(queues, [job("a1", "a", cpu=9), job("c2", "c", cpu=1, submitted=5.0)], [lent], CLASSICAL)
    assert admitted(found) == (["c2"] if reclaim == "any" else [])
    assert stage(found, "a1") == "quota"


class TestClaims:
    """What victims give back is for the job that they leave for (kueue #13320, #14682)."""

    QUEUES = (Queue("root", min={"cpu": 8000}), *(Queue(name, "root", min={"cpu": 4000}) for name in "ab"))

    def test_a_borrower_does_not_take_what_victims_give_back(self) -> None:
        """One of two victims has left: its quota waits for the other one's."""
        waiting = [job("j", "a", cpu=4), job("k", "b", cpu=2)]
        running = [run("b0", "b", 4), replace(run("b1", "b", 2), evicted_for="j")]
        found = decided(self.QUEUES, waiting, running)
        assert (admitted(found), evicted(found)) == ([], set())
        assert admitted(decided(self.QUEUES, waiting[1:], running)) == ["k"]

    def test_nor_does_one_behind_it_in_its_queue(self) -> None:
        queues = [Queue("q", min={"cpu": 4000})]
        waiting = [job("j", cpu=4, priority=1), job("k", cpu=2)]
        running = [replace(run("r", "q", 2), evicted_for="j")]
        found = decided(queues, waiting, running)
        assert (admitted(found), evicted(found)) == ([], set())

    def test_who_stays_within_its_min_yields_to_no_claim(self) -> None:
        waiting = [job("j", "a", cpu=4), job("k", "b", cpu=2)]
        assert admitted(decided(self.QUEUES, waiting, [replace(run("b1", "b", 2), evicted_for="j")])) == ["j", "k"]

    def test_pods_that_leave_an_elastic_job_count_for_others_too(self) -> None:
        """Two pods of e leave for j; h needs the other two cores, and nobody more than one."""
        queues = [Queue("q", min={"cpu": 6000})]
        elastic = on(job("e", count=4, cpu=1, pods={"min_count": 1}, priority=-1), "n", "n", "n", "n")
        elastic = replace(elastic, evicted_for="j", leaving=tuple(replace(one, count=1) for one in elastic.pods[:2]))
        running = [elastic, run("r", "q", 2, priority=-1)]
        found = decided(queues, [job("j", cpu=2, priority=2), job("h", cpu=2, priority=1)], running)
        assert evicted(found) == {"r"}
