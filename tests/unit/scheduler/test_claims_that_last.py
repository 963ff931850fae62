"""Jobs that cannot be evicted, jobs that can never run, and quotas of data."""

from dataclasses import replace
from typing import Any

import pytest
from clusters import admitted, evicted, job, node, on, outcome

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.jobs import DataNeed, PodSet, TopologyRequest
from forebay.scheduler.model import Dataset, Queue, Snapshot, Store
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State

BOTH = [Queue("root", min={"gpu": 8000}), *(Queue(name, "root", min={"gpu": 4000}) for name in ("x", "y"))]
"""Two queues that share eight cards."""


class TestJobsThatCannotBeEvicted:
    def test_do_not_borrow(self) -> None:
        """Else the owner could never have his min back."""
        firm = replace(job("firm", "x", gpus=8), preemptible=False)
        found = outcome([node("n", 8)], BOTH, [firm])
        assert admitted(found) == []
        assert found.waits[0].reason == (
            "8000 gpu asked for, and queue 'x' never has more than 4000 for jobs that cannot be evicted"
        )

    def test_have_all_of_min_beside_what_others_borrowed(self) -> None:
        """What can be evicted of the queue may be above its min meanwhile: the owner can have that back."""
        running = [on(job("soft", "x", gpus=2), "n", cards=[(0, 1)])]
        firm = [replace(job(name, "x", gpus=2), preemptible=False) for name in ("f0", "f1", "f2")]
        found = outcome([node("n", 8)], BOTH, firm, running)
        assert admitted(found) == ["f0", "f1"]
        assert found.waits[0].reason == (
            "2000 gpu asked for, 0 left of the min of queue 'x' to jobs that cannot be evicted"
        )

    def test_what_ends_of_them_is_free_for_others_of_them(self) -> None:
        state = State(Snapshot(nodes=(node("n", 8),), queues=tuple(BOTH)))
        for number in range(2):
            state.submit(replace(job(f"f{number}", "x", gpus=4), preemptible=False))
        assert [one.job for one in advance(state, 0.0).admissions] == ["f0"]
        state.finish("f0")
        assert [one.job for one in advance(state, 1.0).admissions] == ["f1"]

    def test_those_that_can_be_evicted_are_not_refused_with_them(self) -> None:
        waiting = [replace(job("firm", "x", gpus=6), preemptible=False), job("soft", "x", gpus=6, submitted=1.0)]
        assert admitted(outcome([node("n", 8)], BOTH, waiting)) == ["soft"]

    def test_one_that_grows_stays_within_min(self) -> None:
        elastic = replace(job("e", "x", count=8, gpus=1), preemptible=False)
        elastic = replace(elastic, pod_sets=(replace(elastic.pod_sets[0], min_count=1),))
        running = on(elastic, "n", cards=[(0,)])
        found = outcome([node("n", 8)], BOTH, [], [running])
        assert sum(pods.count for growth in found.growths for pods in growth.pods) == 3


class TestJobsThatCanNeverRun:
    def test_do_not_use_up_the_tries_for_victims(self) -> None:
        running = [on(job(f"y{i}", "y", gpus=4), "n", cards=[tuple(range(4 * i, 4 * i + 4))]) for i in range(2)]
        never = [job(f"never{i}", "x", gpus=16, priority=1) for i in range(5)]
        found = outcome([node("n", 8)], BOTH, [*never, job("x0", "x", gpus=4)], running)
        assert len(evicted(found)) == 1
        assert {one.for_job for one in found.evictions} == {"x0"}

    @pytest.mark.parametrize("policy", ["fifo", "strict", "block"])
    def test_do_not_hold_up_a_queue_that_is_served_in_order(self, policy: Any) -> None:
        waiting = [job("never", gpus=16), job("j", gpus=1, submitted=1.0)]
        assert admitted(outcome([node("n", 8)], [Queue("q", policy=policy)], waiting)) == ["j"]

    @pytest.mark.parametrize(
        ("pods", "reason"),
        [
            (PodSet(count=3, gpus=job("j", gpus=4).pod_sets[0].gpus), "2 of 3 pods of 'main' would fit if all nodes"),
            (
                PodSet(count=2, gpus=job("j", gpus=4).pod_sets[0].gpus, topology=TopologyRequest("host")),
                "1 of 2 pods of 'main' would fit in an empty host",
            ),
        ],
    )
    def test_it_is_said_of_gangs_too(self, pods: PodSet, reason: str) -> None:
        waiting = replace(job("j", "q"), pod_sets=(pods,))
        found = outcome([node(name, 4) for name in "ab"], [Queue("q")], [waiting])
        assert reason in found.waits[0].reason
        assert found.waits[0].start is None


class TestQuotaOfData:
    DATA = Dataset("d", 1000, {}, "s")

    def state(self) -> State:
        need = DataNeed("d", read_rate=10)
        waiting = tuple(replace(job(name, gpus=1), data=(need,)) for name in ("a", "b"))
        return State(
            Snapshot(
                nodes=(node("n", 4, cache_bytes=2000),), queues=(Queue("q", max={"bandwidth": 10}),), waiting=waiting,
                datasets=(self.DATA,), stores=(Store("s", 100),),
            ),
            Settings(prefetch=False),
        )  # fmt: skip

    def test_what_has_become_warm_is_charged_no_more(self) -> None:
        state = self.state()
        assert [one.job for one in advance(state, 0.0).admissions] == ["a"]
        state.warm.set_warm("d", {"n": 1000})
        assert [one.job for one in advance(state, 1.0).admissions] == ["b"]
        assert state.quota.nodes["q"].used[state.quota.resources.index("bandwidth")] == 0

    def test_as_for_a_state_that_is_new(self) -> None:
        state = self.state()
        advance(state, 0.0)
        running = tuple(live.running for live in state.running.values())
        warm = replace(self.DATA, warm={"n": 400})
        state.warm.set_warm("d", warm.warm)
        new = Snapshot(
            now=1.0, nodes=(node("n", 4, cache_bytes=2000),), queues=(Queue("q", max={"bandwidth": 10}),),
            waiting=tuple(state.waiting.values()), running=running, datasets=(warm,), stores=(Store("s", 100),),
        )  # fmt: skip
        assert advance(state, 1.0) == decide(new, Settings(prefetch=False))
