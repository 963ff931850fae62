"""Cases of Koordinator, Volcano, KAI and the capacity plugin about shares and quota, by their names there.

Volcano's three numbers are two here, on purpose: min is what its guarantee and its deserved are, max its capability.
"""

from dataclasses import replace
from typing import Any

import pytest
from clusters import admitted, divided, evicted, job, node, on, outcome, stage

from forebay.scheduler.fair_share import Claim, jain, largest_remainder, rescaled, water_fill
from forebay.scheduler.model import Node, Queue
from forebay.scheduler.quota import QuotaTree
from forebay.scheduler.settings import Settings

NODES = [node("n", cpu=1000)]


class TestKoordinator:
    def test_iteration_adjust_quota(self) -> None:
        """What one does not use goes round again until nobody can take more."""
        claims = [Claim(5, 10, weight=1), Claim(60, 10, weight=1), Claim(100, 10, weight=2)]
        assert water_fill(100, claims) == [5, 35, 60]
        queues = [Queue(name, min={"x": 10}, weight=1.0 + (name == "c")) for name in "abc"]
        assert divided(100, queues, [5, 60, 100], "borrowed") == [5, 35, 60]
        assert divided(100, queues, [5, 60, 100], "drf") == [5, 32, 63], "by weight of all, not above the mins"

    def test_integer_distribution(self) -> None:
        assert largest_remainder(10, [1, 1, 1]) == [4, 3, 3]
        assert largest_remainder(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
        assert largest_remainder(5, [0, 0]) == [0, 0]

    @pytest.mark.parametrize(("unlent", "shares"), [(0, [0, 100]), (40, [40, 60]), (10, [10, 90])])
    def test_not_allow_lent_resource(self, unlent: int, shares: list[int]) -> None:
        assert water_fill(100, [Claim(0, 40, unlent=unlent), Claim(200, 20)]) == shares
        queues = [Queue("a", min={"x": 40}, lending_limit={"x": 40 - unlent}), Queue("b", min={"x": 20})]
        for fairness in ("drf", "borrowed"):
            assert divided(100, queues, [0, 200], fairness) == [0, shares[1]], "what a keeps stays idle"

    def test_scaled_min_quota(self) -> None:
        """The parent has less than the sum of the mins: they shrink in proportion."""
        tree = QuotaTree(
            [
                Queue("root", min={"cpu": 60}),
                *(Queue(name, "root", min={"cpu": least}) for name, least in (("a", 40), ("b", 80))),
            ]
        )
        assert [tree.nodes[name].quota for name in "ab"] == [[20], [40]]

    def test_multi_child_max_greater_parent_max(self) -> None:
        tree = QuotaTree([Queue("root", max={"cpu": 50}), *(Queue(name, "root", max={"cpu": 40}) for name in "ab")])
        tree.take(tree.leaf("a"), [40])
        assert tree.available(tree.leaf("b")) == [10]
        assert tree.available(tree.leaf("a")) == [0]

    def test_update_cluster_total_resource(self) -> None:
        """Shares follow the total; where it is too small for the mins, in their proportion."""
        queues = [Queue("a", min={"x": 40}), Queue("b", min={"x": 20})]
        for total, shares in ((120, [70, 50]), (60, [40, 20]), (30, [20, 10])):
            assert water_fill(total, [Claim(80, 40), Claim(90, 20)]) == shares
            assert divided(total, queues, [80, 90], "borrowed") == shares
        assert divided(120, queues, [80, 90], "drf") == [60, 60], "it levels what each uses, its min included"

    def test_fair_shares_down_a_tree(self) -> None:
        tree = QuotaTree(
            [
                Queue("root", min={"cpu": 100}),
                Queue("left", "root", min={"cpu": 60}),
                Queue("right", "root", min={"cpu": 40}),
                Queue("a", "left", min={"cpu": 30}),
                Queue("b", "left", min={"cpu": 30}, weight=3.0),
            ]
        )
        shares = tree.fair_shares({"a": [100], "b": [100], "right": [10]})
        assert (shares["left"], shares["right"]) == ([90], [10])
        assert (shares["a"], shares["b"]) == ([38], [52]), "7.5 and 22.5 above their mins; the tie goes to the first"


class TestKai:
    def test_higher_priority_takes_all_surplus_first(self) -> None:
        claims = [Claim(50, 10, priority=1), Claim(50, 10), Claim(50, 10)]
        assert water_fill(60, claims) == [40, 10, 10]
        queues = [Queue(name, min={"x": 10}, priority=int(name == "a")) for name in "abc"]
        for fairness in ("drf", "hdrf", "borrowed"):
            assert divided(60, queues, [50, 50, 50], fairness) == [40, 10, 10]

    def test_zero_weight_gets_what_nobody_wants(self) -> None:
        assert water_fill(30, [Claim(10, 5), Claim(100, 5, weight=0.0)]) == [10, 20]
        queues = [Queue("a", min={"x": 5}), Queue("b", min={"x": 5}, weight=0.0)]
        for fairness in ("drf", "hdrf", "borrowed"):
            assert divided(30, queues, [10, 100], fairness) == [10, 20]

    def test_siblings_recover_their_fair_share_and_not_their_quota_only(self) -> None:
        """KAI #1934."""
        queues = [
            Queue("root", min={"cpu": 8000}),
            Queue("a", "root", min={"cpu": 1000}),
            Queue("b", "root", min={"cpu": 1000}),
        ]
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(8)]
        waiting = [job(f"b{i}", "b", cpu=1, submitted=float(i)) for i in range(8)]
        for _ in range(12):
            found = outcome(NODES, queues, waiting, running, now=100.0)
            started = [one for one in waiting if one.name in admitted(found)]
            running = [one for one in running if one.job.name not in evicted(found)]
            running += [on(one, "n", started=100.0) for one in started]
            waiting = [one for one in waiting if one not in started]
        counts = {queue: sum(one.job.queue == queue for one in running) for queue in "ab"}
        assert counts == {"a": 4, "b": 4}


class TestVolcano:
    """Volcano's reclaim suite."""

    QUEUES = (Queue("root", min={"cpu": 6000}), *(Queue(name, "root", min={"cpu": 3000}) for name in "ab"))

    def decided(self, waiting: list[Any], running: list[Any], queues: Any = QUEUES) -> Any:
        return outcome(NODES, queues, waiting, running, now=100.0)

    def test_no_reclaim_when_there_is_enough(self) -> None:
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(4)]
        found = self.decided([job("b0", "b", cpu=1)], running)
        assert (admitted(found), evicted(found)) == (["b0"], set())

    def test_reclaim_from_an_overused_queue(self) -> None:
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(6)]
        assert len(evicted(self.decided([job("b0", "b", cpu=2)], running))) == 2

    def test_no_reclaim_by_an_overused_queue(self) -> None:
        """Neither is above its min: nobody is a candidate."""
        running = [on(job(f"{queue}{i}", queue, cpu=1), "n") for queue in "ab" for i in range(3)]
        assert not evicted(self.decided([job("b9", "b", cpu=1)], running))

    @pytest.mark.parametrize(("fair", "victims"), [(True, {"a0"}), (False, set())])
    def test_an_overused_queue_and_one_that_is_more_so(self, fair: bool, victims: set[str]) -> None:
        """Volcano reclaims for queues within what they deserve only. Here a smaller share is a claim as well, unless
        `fair_preemption` is off: b has 1 of its 1, a 5 of its 1."""
        queues = (self.QUEUES[0], *(replace(queue, min={"cpu": 1000}) for queue in self.QUEUES[1:]))
        running = [on(job("b0", "b", cpu=1), "n"), *(on(job(f"a{i}", "a", cpu=1), "n") for i in range(5))]
        settings = Settings(fair_preemption=fair)
        assert evicted(outcome(NODES, queues, [job("b9", "b", cpu=1)], running, settings, now=100.0)) == victims

    def test_no_reclaim_when_predicates_fail(self) -> None:
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(6)]
        assert not evicted(self.decided([job("b0", "b", cpu=1, pods={"selector": {"zone": "x"}})], running))

    def test_not_reclaimable(self) -> None:
        queues = (self.QUEUES[0], replace(self.QUEUES[1], reclaimable=False), self.QUEUES[2])
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(6)]
        assert not evicted(self.decided([job("b0", "b", cpu=1)], running, queues))

    def test_gated_jobs_do_not_preempt(self) -> None:
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(6)]
        assert not evicted(self.decided([job("b0", "b", cpu=1, gates=("x",))], running))

    def test_drf_works(self) -> None:
        """Who has less goes next, whoever waits longer."""
        queues = (Queue("root", min={"cpu": 6000}), Queue("a", "root"), Queue("b", "root"))
        running = [on(job(f"a{i}", "a", cpu=1), "n") for i in range(2)]
        waiting = [job(f"{queue}9{i}", queue, cpu=1, submitted=float(queue == "b")) for queue in "ab" for i in range(4)]
        assert admitted(self.decided(waiting, running, queues)) == ["b90", "b91", "a90", "b92"]


class TestHierarchicalDrf:
    """Volcano's HDRF, and the two faults of simpler ways that the paper names (SoCC 2013)."""

    NODE = (Node("n", {"cpu": 10, "gpus": 10}),)
    HDRF = Settings(fairness="hdrf", preemption=False)

    def test_rescaled_to_the_least(self) -> None:
        """A uses a half of the CPUs, B a quarter of the GPUs: A counts as if it had a quarter too."""
        assert rescaled([([0.5, 0.0], 1.0), ([0.0, 0.25], 1.0)]) == [0.25, 0.25]
        assert rescaled([([0.5, 0.0], 2.0), ([0.0, 0.25], 1.0)]) == [0.5, 0.25]
        assert rescaled([([0.5, 0.0], 1.0), ([0.0, 0.0], 1.0)]) == [0.0, 0.0], "who has nothing is next"

    def counts(
        self, queues: list[Queue], jobs: dict[str, dict[str, int]], settings: Settings, running: Any = ()
    ) -> dict[str, int]:
        waiting = [
            job(f"{queue}{i}", queue, requests=requests, submitted=float(i))
            for queue, requests in jobs.items()
            for i in range(10)
        ]
        found = admitted(outcome(self.NODE, queues, waiting, running, settings))
        return {queue: sum(name.startswith(queue) for name in found) for queue in jobs}

    def test_a_saturated_child_does_not_block_its_sibling(self) -> None:
        """x has all the CPUs that it may have. Its sibling y wants GPUs, of which their queue has none."""
        queues = [
            Queue("root", min={"cpu": 10, "gpus": 10}),
            Queue("left", "root"),
            Queue("x", "left", max={"cpu": 6}),
            Queue("y", "left"),
            Queue("z", "root"),
        ]
        running = [on(job("x99", "x", requests={"cpu": 6}), "n")]
        jobs = {"x": {"cpu": 1}, "y": {"gpus": 1}, "z": {"gpus": 1}}
        assert self.counts(queues, jobs, self.HDRF, running) == {"x": 0, "y": 5, "z": 5}
        drf = self.counts(queues, jobs, replace(self.HDRF, fairness="drf"), running)
        assert drf["y"] < 5, "the CPUs of x count against y"

    def test_shares_are_fair_between_groups(self) -> None:
        """The two sides take turns; that of x and y counts as twice the lesser of them, so both get a job in a turn."""
        queues = [Queue("root", min={"cpu": 10, "gpus": 10}), Queue("left", "root"), Queue("z", "root")]
        queues += [Queue(name, "left") for name in "xy"]
        jobs = {"x": {"cpu": 1}, "y": {"cpu": 1}, "z": {"cpu": 1}}
        found = self.counts(queues, jobs, self.HDRF)
        assert found == {"x": 3, "y": 3, "z": 4}
        drf = self.counts(queues, jobs, replace(self.HDRF, fairness="drf"))
        assert (drf["x"] + drf["y"], drf["z"]) == (5, 5)

    def test_flat_is_drf(self) -> None:
        queues = [Queue("root", min={"cpu": 10, "gpus": 10}), *(Queue(name, "root") for name in "xyz")]
        jobs = {"x": {"cpu": 2}, "y": {"gpus": 1, "cpu": 1}, "z": {"gpus": 3}}
        drf = replace(self.HDRF, fairness="drf")
        assert self.counts(queues, jobs, self.HDRF) == self.counts(queues, jobs, drf)


def test_queues_are_checked() -> None:
    for queues, message in (
        ([Queue("a"), Queue("a")], "two queues are named 'a'"),
        ([Queue("a", "b")], "queue 'a': its parent 'b' is not there"),
        ([Queue("a", "b"), Queue("b", "a")], "queues a, b are their own ancestors"),
        ([Queue("a", min={"cpu": 2}, max={"cpu": 1})], "queue 'a': min cpu 2 is not in 0..1"),
    ):
        with pytest.raises(ValueError, match=message):
            QuotaTree(queues)


def test_jobs_are_checked() -> None:
    for queues, waiting, message in (
        ([Queue("q")], [job("j", "x")], "no queue is named 'x'; there are q"),
        ([Queue("q"), Queue("x", "q")], [job("j")], "queue 'q' has queues below it; jobs wait in leaves only"),
        ([Queue("q")], [job("j"), job("j")], "two jobs are named 'j'"),
    ):
        with pytest.raises(ValueError, match=message):
            outcome(NODES, queues, waiting)


def test_jain() -> None:
    assert jain([1.0, 1.0, 1.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_what_can_never_run_is_told() -> None:
    """volcano #1295."""
    found = outcome(NODES, [Queue("q", max={"cpu": 1000})], [job("j", cpu=2)])
    assert stage(found, "j") == "quota"
    assert found.waits[0].reason == "2000 cpu asked for, and queue 'q' never has more than 1000"
    assert found.waits[0].start is None


def test_fair_share_is_told() -> None:
    """KAI #2056: who is starved, and who borrows."""
    queues = [Queue("root", min={"cpu": 6000}), Queue("a", "root"), Queue("b", "root")]
    running = [on(job("a0", "a", cpu=4), "n")]
    found = outcome(NODES, queues, [job("a1", "a", cpu=3), job("b0", "b", cpu=9)], running)
    reasons = {wait.job: wait.reason for wait in found.waits}
    assert reasons["a1"].endswith(
        "2000 left to queue 'a' of its own and to borrow; its fair share is 3000, it uses 4000"
    )
    assert "never has more than 6000" in reasons["b0"]
