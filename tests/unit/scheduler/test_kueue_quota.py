"""Cases of Kueue's scheduler and preemption tests, by their names there, rebuilt from their descriptions."""

from dataclasses import replace

from clusters import admitted, cohort, decided, evicted, job, node, on, outcome, run, stage

from forebay.scheduler.model import Queue
from forebay.scheduler.settings import Settings

NO_PREEMPTION = Settings(preemption=False)


class TestScheduler:
    def test_cannot_borrow_if_cohort_was_assigned_and_would_result_in_overadmission(self) -> None:
        """The second one must see what the first one took."""
        queues = cohort(("a", 10), ("b", 10))
        waiting = [job("a1", "a", cpu=11), job("b1", "b", cpu=11, submitted=1.0)]
        assert admitted(decided(queues, waiting)) == ["a1"]

    def test_two_workloads_can_borrow_the_same_resources_if_they_fit(self) -> None:
        queues = cohort(("a", 10), ("b", 10), ("c", 10))
        waiting = [job("a1", "a", cpu=15), job("b1", "b", cpu=15)]
        assert sorted(admitted(decided(queues, waiting))) == ["a1", "b1"]

    def test_workload_exceeds_lending_limit_when_borrow_in_cohort(self) -> None:
        lender = Queue("b", "cohort", min={"cpu": 10_000}, lending_limit={"cpu": 3000})
        queues = [Queue("cohort"), Queue("a", "cohort", min={"cpu": 10_000}), lender]
        assert admitted(decided(queues, [job("a1", "a", cpu=13)])) == ["a1"]
        found = decided(queues, [job("a1", "a", cpu=14)])
        assert stage(found, "a1") == "quota"
        assert "never has more than 13000" in found.waits[0].reason

    def test_hierarchical_cohort_respects_lending_limit_when_borrowing(self) -> None:
        queues = [
            Queue("root"),
            Queue("left", "root"),
            Queue("right", "root", lending_limit={"cpu": 2000}),
            Queue("a", "left", min={"cpu": 10_000}),
            Queue("b", "right", min={"cpu": 10_000}),
        ]
        assert admitted(decided(queues, [job("j", "a", cpu=12)])) == ["j"]
        assert admitted(decided(queues, [job("j", "a", cpu=13)])) == []

    def test_no_overadmission_while_borrowing(self) -> None:
        queues = cohort(("a", 10), ("b", 10))
        waiting = [job(f"{queue}{i}", queue, cpu=5) for queue in "ab" for i in range(5)]
        assert len(admitted(decided(queues, waiting, settings=NO_PREEMPTION))) == 4

    def test_borrowing_limit(self) -> None:
        queues = [Queue("cohort"), Queue("a", "cohort", min={"cpu": 10_000}, borrowing_limit={"cpu": 2000})]
        queues.append(Queue("b", "cohort", min={"cpu": 10_000}))
        assert admitted(decided(queues, [job("j", "a", cpu=12)])) == ["j"]
        assert admitted(decided(queues, [job("j", "a", cpu=13)])) == []

    def test_partial_admission_single_variable_pod_set(self) -> None:
        queues = [Queue("q", min={"cpu": 7000})]
        found = decided(queues, [job("j", count=10, cpu=1, pods={"min_count": 3})])
        assert sum(placed.count for placed in found.admissions[0].pods) == 7
        assert decided(queues, [job("j", count=10, cpu=1, pods={"min_count": 8})]).admissions == ()

    def test_partial_admission_by_room(self) -> None:
        queues = [Queue("q")]
        found = outcome([node("n", cpu=5)], queues, [job("j", count=10, cpu=1, pods={"min_count": 2})])
        assert sum(placed.count for placed in found.admissions[0].pods) == 5

    def test_in_a_hierarchical_cohort_workload_borrowing_less_is_scheduled_first(self) -> None:
        """Who stays within its min goes first, even if the other one waits longer."""
        queues = cohort(("a", 2), ("b", 10))
        waiting = [job("a1", "a", cpu=8, submitted=0.0), job("b1", "b", cpu=8, submitted=1.0)]
        assert admitted(decided(queues, waiting)) == ["b1"]

    def test_preemption_while_borrowing_should_not_block_a_borrowing_workload_in_another_queue(self) -> None:
        """a1 waits for a0, which leaves for it; what both queues borrow then is there: b1 need not wait too."""
        queues = cohort(("a", 4), ("b", 4), ("c", 8))
        running = [replace(run("a0", "a", 11), evicted_for="a1")]
        waiting = [job("a1", "a", cpu=6, priority=1), job("b1", "b", cpu=5)]
        found = decided(queues, waiting, running)
        assert (admitted(found), evicted(found)) == (["b1"], set())
        assert stage(found, "a1") == "gang"

    def test_multiple_preemptions_skip_preemption_when_shared_limited_resource(self) -> None:
        """All that there is can serve one of the two: the other one evicts nobody, nor when the victim is gone."""
        queues = [Queue("cohort", min={"cpu": 2000}), Queue("a", "cohort"), Queue("b", "cohort")]
        queues.append(Queue("c", "cohort", weight=0.0))
        waiting = [job("a1", "a", cpu=2), job("b1", "b", cpu=2)]
        found = decided(queues, waiting, [run("c0", "c", 2)])
        assert [(one.job, one.for_job) for one in found.evictions] == [("c0", "a1")]
        later = decided(queues, waiting, [], holds=found.holds)
        assert (admitted(later), evicted(later)) == (["a1"], set())

    def test_two_jobs_do_not_count_on_the_room_of_one_victim(self) -> None:
        queues = cohort(("a", 4), ("b", 4), ("c", 4))
        running = [run("c0", "c", 4), run("c1", "c", 4), run("c2", "c", 4)]
        found = decided(queues, [job("a1", "a", cpu=4), job("b1", "b", cpu=4)], running)
        assert len(evicted(found)) == 2
        assert {eviction.for_job for eviction in found.evictions} == {"a1", "b1"}

    def test_zero_quantity_requests(self) -> None:
        assert admitted(decided([Queue("q", min={"cpu": 0})], [job("j", requests={"cpu": 0})])) == ["j"]

    def test_missing_resource(self) -> None:
        found = decided([Queue("q")], [job("j", requests={"tpu": 1})])
        assert stage(found, "j") == "gang"
        assert "even if it were empty" in found.waits[0].reason

    def test_strict_fifo_and_best_effort_fifo(self) -> None:
        waiting, running = [job("big", cpu=5), job("small", cpu=1, submitted=1.0)], [run("r", "q", 1)]
        assert admitted(decided([Queue("q", min={"cpu": 5000})], waiting, running)) == ["small"]
        found = decided([Queue("q", min={"cpu": 5000}, policy="strict")], waiting, running)
        assert admitted(found) == []
        assert stage(found, "small") == "order"

    def test_strict_fifo_does_not_freeze_borrowing_by_others(self) -> None:
        """The opposite of kueue #4809."""
        queues = cohort(("a", 5), ("b", 5))
        queues[1] = replace(queues[1], policy="strict")
        waiting = [job("head", "a", cpu=20), job("other", "b", cpu=8, submitted=1.0)]
        assert admitted(decided(queues, waiting)) == ["other"]

    def test_a_blocking_queue_is_not_borrowed_from(self) -> None:
        queues = cohort(("a", 5), ("b", 5))
        queues[1] = replace(queues[1], policy="block")
        waiting = [job("head", "a", cpu=10), job("other", "b", cpu=8, submitted=1.0)]
        running = [run("b0", "b", 1)]
        assert admitted(decided(queues, waiting, running, NO_PREEMPTION)) == []

    def test_nobody_is_evicted_for_a_job_that_would_borrow_from_a_blocking_queue(self) -> None:
        queues = cohort(("a", 5), ("b", 5))
        queues[1] = replace(queues[1], policy="block")
        head, running = job("head", "a", cpu=10, preempts=False), [run("low", "b", 8, priority=-1)]
        assert evicted(decided(queues, [head, job("j", "b", cpu=8, submitted=1.0)], running)) == set()
        assert evicted(decided(queues, [head, job("j", "b", cpu=5, submitted=1.0)], running)) == {"low"}
        assert evicted(decided(queues, [job("j", "b", cpu=8, submitted=1.0)], running)) == {"low"}

    def test_foreign_gates_are_respected(self) -> None:
        """kueue #9482."""
        found = decided([Queue("q")], [job("j", gates=("someone/else",))])
        assert admitted(found) == []
        assert found.waits[0].reason == "gates of others hold it: someone/else"

    def test_many_are_admitted_in_one_pass(self) -> None:
        """kueue #14477: one for each queue and cycle is too few."""
        assert len(admitted(decided([Queue("q")], [job(f"j{i}", cpu=1) for i in range(100)]))) == 100


class TestPreemption:
    def test_preempt_lowest_priority(self) -> None:
        queues = [Queue("q", min={"cpu": 6000})]
        running = [run("low", "q", 2, priority=-1), run("mid", "q", 2), run("high", "q", 2, priority=1)]
        assert evicted(decided(queues, [job("j", cpu=2, priority=1)], running)) == {"low"}

    def test_minimal_set_excludes_low_priority(self) -> None:
        """The lowest one is too small to help: it stays."""
        queues = [Queue("q", min={"cpu": 6000})]
        running = [run("low", "q", 1, priority=-1), run("mid", "q", 2), run("high", "q", 3, priority=1)]
        assert evicted(decided(queues, [job("j", cpu=2, priority=1)], running)) == {"mid"}

    def test_equal_priority_is_not_preempted(self) -> None:
        queues = [Queue("q", min={"cpu": 2000})]
        assert not evicted(decided(queues, [job("j", cpu=2)], [run("r", "q", 2)]))

    def test_reclaim_quota_from_borrower(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        running = [run("a1", "a", 3), run("b1", "b", 6, priority=5), run("b2", "b", 3)]
        found = decided(queues, [job("j", "a", cpu=3)], running)
        assert evicted(found) == {"b2"}
        assert found.evictions[0].reason == "reclaim"

    def test_no_workloads_borrowing(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        running = [run("a1", "a", 4, priority=1), run("b1", "b", 6)]
        assert not evicted(decided(queues, [job("j", "a", cpu=4)], running, Settings(fair_preemption=False)))

    def test_not_preempting_if_borrowing_is_required(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        running = [run("b1", "b", 12, priority=1)]
        found = decided(queues, [job("j", "a", cpu=8)], running, Settings(fair_preemption=False))
        assert not evicted(found)

    def test_reclaim_never(self) -> None:
        queues = cohort(("a", 6), ("b", 6), reclaim="never")
        assert not evicted(decided(queues, [job("j", "a", cpu=3)], [run("b1", "b", 12)]))

    def test_reclaim_lower_priority(self) -> None:
        queues = cohort(("a", 6), ("b", 6), reclaim="lower-priority")
        running = [run("b1", "b", 6), run("b2", "b", 6, priority=2)]
        assert evicted(decided(queues, [job("j", "a", cpu=3, priority=1)], running)) == {"b1"}
        assert not evicted(decided(queues, [job("j", "a", cpu=3)], running))

    def test_nothing_is_reclaimed_from_a_queue_that_is_not_reclaimable(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        queues[2] = replace(queues[2], reclaimable=False)
        assert not evicted(decided(queues, [job("j", "a", cpu=3)], [run("b1", "b", 12)]))

    def test_newer_workloads_first(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        running = [run("b1", "b", 6, started=10.0), run("b2", "b", 3, started=20.0), run("b3", "b", 3, started=50.0)]
        assert evicted(decided(queues, [job("j", "a", cpu=3)], running)) == {"b3"}

    def test_other_queues_before_ones_own(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        running = [run("a1", "a", 3, priority=-1), run("b1", "b", 9)]
        assert evicted(decided(queues, [job("j", "a", cpu=3)], running)) == {"b1"}

    def test_skip_duplicate_preemption_across_calls(self) -> None:
        """A victim that is leaving for a job is enough: nobody else has to go."""
        queues = [Queue("q", min={"cpu": 4000})]
        running = [run("r1", "q", 2, priority=-1), run("r2", "q", 2, priority=-1)]
        waiting = [job("j", cpu=2)]
        first = decided(queues, waiting, running)
        assert len(first.evictions) == 1
        gone = [replace(one, evicted_for="j") if one.job.name in evicted(first) else one for one in running]
        assert not decided(queues, waiting, gone, holds=first.holds).evictions

    def test_min_runtime_shields(self) -> None:
        queues = cohort(("a", 6), ("b", 6), min_runtime_s=600.0)
        young, old = run("b1", "b", 12, started=0.0), run("b1", "b", 12, started=-600.0)
        assert not evicted(decided(queues, [job("j", "a", cpu=3)], [young]))
        assert evicted(decided(queues, [job("j", "a", cpu=3)], [old])) == {"b1"}

    def test_not_preemptible(self) -> None:
        queues = cohort(("a", 6), ("b", 6))
        assert not evicted(decided(queues, [job("j", "a", cpu=3)], [run("b1", "b", 12, preemptible=False)]))

    def test_by_last_checkpoint(self) -> None:
        """kueue #477, open since 2022: of two victims the one that has just saved its work goes."""
        queues = cohort(("a", 6), ("b", 6))
        running = [run("b1", "b", 6), replace(run("b2", "b", 6), checkpointed=95.0)]
        found = decided(queues, [job("j", "a", cpu=6)], running)
        assert evicted(found) == {"b2"}

    def test_elastic_jobs_shrink_before_others_are_killed(self) -> None:
        queues = [Queue("q", min={"cpu": 8000})]
        elastic = on(job("e", count=4, cpu=1, pods={"min_count": 2}, priority=-1), "n", "n", "n", "n")
        running = [elastic, run("r", "q", 4, priority=-2)]
        found = decided(queues, [job("j", cpu=2)], running)
        assert not found.evictions
        assert [(shrink.job, len(shrink.pods)) for shrink in found.shrinks] == [("e", 2)]


class TestFairSharing:
    """Kueue's fair sharing tests; the shares are borrowed ones, as there."""

    KUEUE = Settings(fairness="borrowed")

    def test_reclaim_nominal_from_user_using_the_most(self) -> None:
        queues = cohort(("a", 3), ("b", 3), ("c", 3))
        running = (
            [run(f"a{i}", "a", 1) for i in range(3)] + [run(f"b{i}", "b", 1) for i in range(5)] + [run("c0", "c", 1)]
        )
        assert evicted(decided(queues, [job("j", "c", cpu=1)], running, self.KUEUE)) <= {f"b{i}" for i in range(5)}
        assert len(evicted(decided(queues, [job("j", "c", cpu=1)], running, self.KUEUE))) == 1

    def test_cannot_preempt_when_it_would_switch_the_imbalance(self) -> None:
        queues = cohort(("a", 3), ("b", 3), ("c", 3))
        running = [run("a0", "a", 5), run("b0", "b", 4)]
        assert not evicted(decided(queues, [job("j", "b", cpu=2)], running, self.KUEUE))

    def test_can_preempt_anything_borrowing_from_a_queue_with_weight_0(self) -> None:
        queues = cohort(("a", 3), ("b", 3))
        queues.append(Queue("c", "cohort", weight=0.0))
        running = [run("c0", "c", 3), run("a0", "a", 3)]
        assert evicted(decided(queues, [job("j", "a", cpu=3)], running, self.KUEUE)) == {"c0"}

    def test_queue_with_higher_weight_can_preempt_more(self) -> None:
        queues = [Queue("cohort", min={"cpu": 12_000}), Queue("a", "cohort", weight=2.0), Queue("b", "cohort")]
        running = [run(f"b{i}", "b", 2) for i in range(6)]
        assert len(evicted(decided(queues, [job("j", "a", cpu=8)], running, self.KUEUE))) == 4
        queues[1] = replace(queues[1], weight=1.0)
        assert not evicted(decided(queues, [job("j", "a", cpu=8)], running, self.KUEUE))

    def test_borrowing_queue_in_another_cohort_is_protected(self) -> None:
        queues = [*cohort(("a", 3)), Queue("other", min={"cpu": 3000}), Queue("b", "other")]
        assert not evicted(decided(queues, [job("j", "a", cpu=4)], [run("b0", "b", 3)], self.KUEUE))

    def test_it_does_not_flap(self) -> None:
        """What was evicted does not evict in return."""
        queues = [Queue("cohort", min={"cpu": 8000}), Queue("a", "cohort"), Queue("b", "cohort")]
        running = [run(f"a{i}", "a", 2) for i in range(4)]
        found = decided(queues, [job("j", "b", cpu=4)], running, self.KUEUE)
        assert len(evicted(found)) == 2
        left = [one for one in running if one.job.name not in evicted(found)]
        back = [one.job for one in running if one.job.name in evicted(found)]
        after = decided(queues, back, [*left, run("j", "b", 4)], self.KUEUE)
        assert not after.evictions
        assert not after.admissions


class TestAdmissionFairSharing:
    USAGE = Settings(fairness="usage")

    def test_admits_workload_from_less_active_queue(self) -> None:
        queues = [Queue("root", min={"cpu": 1000}), Queue("a", "root", usage=10.0), Queue("b", "root", usage=1.0)]
        waiting = [job("a1", "a", cpu=1), job("b1", "b", cpu=1, submitted=5.0)]
        assert admitted(decided(queues, waiting, settings=self.USAGE)) == ["b1"]

    def test_does_not_prioritize_a_zero_weight_queue(self) -> None:
        queues = [Queue("root", min={"cpu": 1000}), Queue("a", "root", usage=10.0), Queue("b", "root", weight=0.0)]
        waiting = [job("a1", "a", cpu=1), job("b1", "b", cpu=1)]
        assert admitted(decided(queues, waiting, settings=self.USAGE)) == ["a1"]

    def test_admits_one_workload_from_each_queue_when_quota_is_limited(self) -> None:
        queues = [Queue("root", min={"cpu": 2000}), Queue("a", "root"), Queue("b", "root")]
        waiting = [job(f"{queue}{i}", queue, cpu=1, submitted=i + (queue == "b")) for queue in "ab" for i in range(2)]
        assert sorted(admitted(decided(queues, waiting, settings=self.USAGE))) == ["a0", "b0"]


def test_regression_two_that_wait_do_not_hold_one_node_against_each_other() -> None:
    """Both heads would start on n0, which is the first to be free: x, whose queue has more, must look elsewhere."""
    nodes = [node("n0", 8), node("n1", 8)]
    queues = [Queue("a", policy="fifo"), Queue("b", policy="fifo")]
    running = [
        on(job("r0", "a", gpus=8, max_run_s=50.0), "n0", cards=[tuple(range(8))]),
        on(job("r1", "a", gpus=8, max_run_s=90.0), "n1", cards=[tuple(range(8))]),
    ]
    waiting = [job("x", "a", gpus=8, max_run_s=100.0), job("y", "b", gpus=8, max_run_s=100.0, submitted=1.0)]
    found = outcome(nodes, queues, waiting, running)
    assert [(hold.job, hold.start, hold.nodes) for hold in found.holds] == [("x", 90.0, ("n1",)), ("y", 50.0, ("n0",))]
    late = outcome(nodes, queues, waiting, [], now=95.0, holds=found.holds)
    assert sorted(admitted(late)) == ["x", "y"]


def test_starts_are_estimated() -> None:
    """kueue #13159: not a position only. Three jobs of 4 cards on 8 cards that are in use until 50 and 90."""
    running = [
        on(job("r0", gpus=4, max_run_s=50.0), "n", cards=[(0, 1, 2, 3)]),
        on(job("r1", gpus=4, max_run_s=90.0), "n", cards=[(4, 5, 6, 7)]),
    ]
    waiting = [job(f"j{i}", gpus=4, submitted=float(i)) for i in range(3)]
    found = outcome([node("n", 8)], [Queue("q")], waiting, running, now=10.0)
    assert [(wait.job, wait.stage, wait.position, wait.start) for wait in found.waits] == [
        ("j0", "gang", 1, 50.0),
        ("j1", "gang", 2, 90.0),
        ("j2", "gang", 3, 10.0 + 80.0 * 12 / 8),
    ]


def test_no_start_is_promised_where_nothing_is_known() -> None:
    running = [on(job("r0", cpu=1), "n")]
    found = decided([Queue("q", min={"cpu": 1000})], [job("j", cpu=1)], running)
    assert (found.waits[0].stage, found.waits[0].start) == ("quota", None)
