"""What no scheduler had: warm bytes in the score, jobs that wait for data, prefetch by queue position."""

from dataclasses import replace
from typing import Any

import pytest
from clusters import admitted, evicted, job, links, node, on, outcome, stage, used_racks

from forebay.scheduler.decisions import Decisions
from forebay.scheduler.fair_share import decayed
from forebay.scheduler.jobs import DataNeed, Job
from forebay.scheduler.model import Dataset, Node, Queue, Store
from forebay.scheduler.settings import Settings, Weights
from forebay.scheduler.warmth import bandwidth_needed, stall_s

QUEUES = [Queue("q")]
SIZE = 1000
STORE = Store("s", bandwidth=10)


def rack(name: str, nodes: int = 1, gpus: int = 8, **more: Any) -> tuple[Node, ...]:
    return tuple(node(f"b-{name}-n{i}", gpus, topology=("b", name), cache_bytes=2000, **more) for i in range(nodes))


NODES = (*rack("r0"), *rack("r1"))


def data(name: str = "d", **warm: int) -> Dataset:
    """A dataset of 1000 bytes, so many of them in each rack."""
    return Dataset(name, SIZE, {f"b-{place}-n0": amount for place, amount in warm.items()}, "s")


def reader(name: str, *needs: DataNeed, gpus: int = 8, **more: Any) -> Job:
    return job(name, gpus=gpus, data=needs or (DataNeed("d"),), **more)


def decided(
    waiting: list[Job], *datasets: Dataset, settings: Settings | None = None, nodes: Any = NODES, **more: Any
) -> Decisions:
    more = {"stores": (STORE,), "now": 100.0, **more}
    queues = more.pop("queues", QUEUES)
    running = more.pop("running", ())
    return outcome(nodes, queues, waiting, running, settings, datasets=datasets, **more)


class TestScore:
    def test_the_warm_rack_wins(self) -> None:
        assert used_racks(decided([reader("j")], data(r1=SIZE)), "j") == {"r1": 1}
        assert used_racks(decided([reader("j")], data()), "j") == {"r0": 1}

    def test_bytes_count_not_a_label(self) -> None:
        """A binary label takes one byte for all of it."""
        dataset = data(r0=1, r1=SIZE)
        assert used_racks(decided([reader("j")], dataset), "j") == {"r1": 1}
        label = Settings(node_choice="label")
        assert used_racks(decided([reader("j")], dataset, settings=label), "j") == {"r0": 1}

    def test_nodes_of_a_rack_add_up(self) -> None:
        nodes = (*rack("r0", 2), *rack("r1", 2))
        dataset = Dataset("d", SIZE, {"b-r0-n0": 600, "b-r1-n0": 400, "b-r1-n1": 400}, "s")
        assert used_racks(decided([reader("j")], dataset, nodes=nodes), "j") == {"r1": 1}

    def test_several_datasets_are_all_needed(self) -> None:
        """Fluid ORs required datasets (any of them suffices), though its documentation says AND: here it is AND."""
        needs = (DataNeed("d", mode="require"), DataNeed("e", mode="require"))
        one_each = decided([reader("j", *needs)], data(r0=SIZE), data("e", r1=SIZE))
        assert stage(one_each, "j") == "cache"
        assert used_racks(decided([reader("j", *needs)], data(r0=SIZE, r1=SIZE), data("e", r1=SIZE)), "j") == {"r1": 1}

    @pytest.mark.parametrize(("bandwidth", "rack_name"), [(1000, "r1"), (1, "r0")])
    def test_links_are_weighed_against_cold_bytes(self, bandwidth: int, rack_name: str) -> None:
        """The warm node has bad links left, the cold one good ones: it depends on how long loading takes."""
        table = links(4, {(0, 1): "NV2+PIX", (2, 3): "NV2+PIX"})
        nodes = (*rack("r0", gpus=4, links=table), *rack("r1", gpus=4, links=table))
        running = [
            on(job("a", gpus=2), "b-r0-n0", cards=[(0, 2)]),
            on(job("b", gpus=2), "b-r1-n0", cards=[(0, 1)]),
        ]
        found = decided(
            [reader("j", gpus=2)], data(r0=SIZE), nodes=nodes, running=running, stores=(Store("s", bandwidth),)
        )
        assert used_racks(found, "j") == {rack_name: 1}

    def test_the_score_tells_its_parts(self) -> None:
        score = decided([reader("j")], data()).admissions[0].score
        assert score.cold == pytest.approx(8 * SIZE / 10)
        assert score.total == pytest.approx(score.cold + score.pack)
        assert (
            decided([reader("j")], data(), settings=Settings(weights=Weights(cold=0.0))).admissions[0].score.cold == 0
        )

    def test_bytes_cost_those_who_wait_for_the_store_too(self) -> None:
        crowded = replace(STORE, waiting_gpus=100.0)
        score = decided([reader("j")], data(), stores=(crowded,)).admissions[0].score
        assert score.cold == pytest.approx(8 * SIZE / 10 + SIZE * 100 / 10)


class TestGate:
    NEED = DataNeed("d", 0.8, "require", deadline=500.0)

    def test_it_waits_without_holding_quota(self) -> None:
        """Others pass it, and it keeps its place."""
        queues = [Queue("q", min={"gpu": 8000})]
        waiting = [reader("j", self.NEED), job("k", gpus=8, submitted=1.0)]
        found = decided(waiting, data(r0=700), queues=queues)
        assert admitted(found) == ["k"]
        wait = next(one for one in found.waits if one.job == "j")
        assert (wait.stage, wait.position) == ("cache", 1)
        alone = decided([reader("j", self.NEED)], data(r0=700), queues=queues)
        assert alone.waits[0].reason == "d is warm to 70% of 80%"
        assert alone.waits[0].unblock == "loading d, or its deadline at 500"
        assert alone.waits[0].start == pytest.approx(110.0), "100 of the 800 bytes are missing, at 10 a second"

    def test_warm_enough(self) -> None:
        assert admitted(decided([reader("j", self.NEED)], data(r0=800))) == ["j"]

    def test_the_deadline_ends_it(self) -> None:
        assert admitted(decided([reader("j", self.NEED)], data(), now=500.0)) == ["j"]
        assert admitted(decided([reader("j", self.NEED)], data(), now=499.0)) == []

    def test_a_blocking_queue_is_blocked(self) -> None:
        waiting = [reader("j", self.NEED), job("k", gpus=8, submitted=1.0)]
        assert admitted(decided(waiting, data(), queues=[Queue("q", policy="block")])) == []

    def test_only_where_it_is_warm(self) -> None:
        running = [on(job("r", gpus=8), "b-r0-n0", cards=[tuple(range(8))])]
        found = decided([reader("j", self.NEED)], data(r0=SIZE), running=running)
        assert stage(found, "j") == "gang"
        assert found.waits[0].unblock == "room where its data is warm: 1 nodes"

    def test_off(self) -> None:
        assert admitted(decided([reader("j", self.NEED)], data(), settings=Settings(warm_gate=False))) == ["j"]


class TestPrefetch:
    def test_by_queue_position(self) -> None:
        """Both racks are busy; the first two jobs that wait get their data loaded, the third would start too late."""
        running = [
            on(job(f"r{i}", gpus=8, max_run_s=1000.0), f"b-r{i}-n0", cards=[tuple(range(8))], started=100.0)
            for i in range(2)
        ]
        waiting = [reader(f"j{i}", DataNeed(f"d{i}"), submitted=float(i)) for i in range(3)]
        found = decided(
            waiting, *(data(f"d{i}") for i in range(3)), running=running, settings=Settings(prefetch_horizon_s=1200.0)
        )
        assert {(one.dataset, one.for_job) for one in found.prefetches} == {("d0", "j0"), ("d1", "j1")}
        assert {one.domain for one in found.prefetches} == {"b/r0", "b/r1"}
        assert all(one.start == 1100.0 for one in found.prefetches)
        assert found.prefetches[0].saved_gpu_s == pytest.approx(8 * SIZE / 10)

    def test_a_warm_copy_is_used_before_another_is_made(self) -> None:
        running = [
            on(job(f"r{i}", gpus=8, max_run_s=1000.0), f"b-r{i}-n0", cards=[tuple(range(8))], started=100.0)
            for i in range(2)
        ]
        assert decided([reader("j")], data(r1=SIZE), running=running).prefetches == ()
        partly = decided([reader("j")], data(r1=900), running=running).prefetches
        assert [(one.domain, one.bytes) for one in partly] == [("b/r1", 100)]

    def test_no_more_than_the_cache_has_room_for(self) -> None:
        """What running jobs read there cannot be dropped for it."""
        old = Dataset("old", 1500, {"b-r0-n0": 1500, "b-r1-n0": 1500}, "s")
        running = [on(reader(f"r{i}", DataNeed("old"), gpus=1), f"b-r{i}-n0", cards=[(0,)]) for i in range(2)]
        found = decided([reader("j", DataNeed("d", mode="require"))], data(), old, running=running)
        assert found.prefetches == ()
        assert found.waits[0].start is None, "nobody loads it"

    def test_what_nobody_reads_makes_room(self) -> None:
        """Else a cache that is full would never be loaded into again."""
        full = Dataset("old", 2000, {"b-r0-n0": 2000, "b-r1-n0": 2000}, "s")
        found = decided([reader("j", DataNeed("d", mode="require"))], data(), full)
        assert [(one.dataset, one.bytes) for one in found.prefetches] == [("d", SIZE)]

    def test_as_much_as_the_job_waits_for_where_there_is_no_room_for_all(self) -> None:
        large = Dataset("large", 3000, {}, "s")
        need = DataNeed("large", min_warm=0.3, mode="require", read_rate=1)
        found = decided([reader("j", need)], large)
        assert [(one.dataset, one.bytes) for one in found.prefetches] == [("large", 900)]

    def test_within_bandwidth_the_best_first(self) -> None:
        """Of two, the one with more GPU-seconds for its bytes; the store cannot deliver both in time."""
        nodes = (*rack("r0", gpus=8), *rack("r1", gpus=8))
        running = [
            on(job(f"r{i}", gpus=8, max_run_s=500.0), f"b-r{i}-n0", cards=[tuple(range(8))], started=100.0)
            for i in range(2)
        ]
        waiting = [reader("small", DataNeed("d"), gpus=1), reader("large", DataNeed("e"), submitted=1.0)]
        found = decided(waiting, data("d"), data("e"), nodes=nodes, running=running, stores=(Store("s", 3),))
        assert [one.dataset for one in found.prefetches] == ["e"]

    def test_what_fell_back_is_wanted_no_more(self) -> None:
        """It is not in the list any longer: whoever loads it cancels."""
        running = [on(job("r", gpus=8, max_run_s=1000.0), "b-r0-n0", cards=[tuple(range(8))], started=100.0)]
        waiting = [reader("j", DataNeed("d"))]
        before = decided(waiting, data(), running=running, nodes=rack("r0"))
        assert [one.dataset for one in before.prefetches] == ["d"]
        ahead = [job(f"k{i}", gpus=8, priority=1) for i in range(20)]
        assert decided([*waiting, *ahead], data(), running=running, nodes=rack("r0")).prefetches == ()


class TestQuota:
    def test_cache_bytes_and_bandwidth_are_dimensions(self) -> None:
        queues = [Queue("q", max={"cache": 1500})]
        waiting = [reader("j", gpus=1), reader("k", DataNeed("e"), gpus=1, submitted=1.0)]
        found = decided(waiting, data(), data("e"), queues=queues)
        assert admitted(found) == ["j"]
        assert found.waits[0].reason == "1000 cache asked for, 500 left below the max of queue 'q'"
        rate = DataNeed("d", read_rate=6)
        found = decided(
            [reader("j", rate, gpus=1), reader("k", rate, gpus=1)], data(), queues=[Queue("q", max={"bandwidth": 10})]
        )
        assert admitted(found) == ["j"]
        warm = decided(
            [reader("j", rate, gpus=1), reader("k", rate, gpus=1)],
            data(r0=SIZE),
            queues=[Queue("q", max={"bandwidth": 10})],
        )
        assert admitted(warm) == ["j", "k"]

    def test_estimates(self) -> None:
        assert bandwidth_needed(1000, 0.5, 1.0) == 500
        assert stall_s(1000, 10, 0, 1000) == 100
        assert stall_s(1000, 10, 20, 1000) == 50
        assert decayed(100.0, 0.0, 600.0, 600.0) == 50.0


def test_reloading_counts_when_victims_are_chosen() -> None:
    """Both would lose as much work; the data of one is cold everywhere, and it would have to load it again."""
    queues = [Queue("root", min={"gpu": 16000}), Queue("a", "root", min={"gpu": 8000}), Queue("b", "root")]
    running = [
        on(replace(reader("cold", DataNeed("d")), queue="b"), "b-r0-n0", cards=[tuple(range(8))]),
        on(replace(reader("warm", DataNeed("e")), queue="b"), "b-r1-n0", cards=[tuple(range(8))]),
    ]
    found = decided(
        [replace(job("j", gpus=8), queue="a")], data("d"), data("e", r0=SIZE, r1=SIZE), queues=queues, running=running
    )
    assert evicted(found) == {"warm"}
    found = decided(
        [replace(job("j", gpus=8), queue="a")], data("d", r0=SIZE, r1=SIZE), data("e"), queues=queues, running=running
    )
    assert evicted(found) == {"cold"}


def test_loading_counts_for_backfill() -> None:
    """It would end in time, if it had not to load its data first."""
    queues = [Queue("q", policy="fifo")]
    running = [on(job("r", gpus=3, max_run_s=60.0), "b-r0-n0", cards=[(0, 1, 2)], started=100.0)]
    head = job("head", gpus=8, max_run_s=100.0)
    behind = reader("x", DataNeed("d"), gpus=4, max_run_s=50.0, submitted=1.0)
    nodes = rack("r0")
    assert admitted(decided([head, behind], data(r0=SIZE), queues=queues, running=running, nodes=nodes)) == ["x"]
    assert admitted(decided([head, behind], data(), queues=queues, running=running, nodes=nodes)) == []


def test_regression_nodes_are_held_where_the_data_is_warm() -> None:
    """The head may run in r0 only, which is busy until 160; r1, which is idle, is not held for it."""
    queues = [Queue("q", policy="fifo")]
    running = [on(job("r", gpus=8, max_run_s=60.0), "b-r0-n0", cards=[tuple(range(8))], started=100.0)]
    head = reader("head", DataNeed("d", mode="require"), max_run_s=100.0)
    found = decided([head, job("x", gpus=8, submitted=1.0)], data(r0=SIZE), queues=queues, running=running)
    assert [(hold.job, hold.start, hold.nodes) for hold in found.holds] == [("head", 160.0, ("b-r0-n0",))]
    assert admitted(found) == ["x"]


def test_data_goes_where_there_will_be_room_by_then() -> None:
    """A rack that has all of it, and no card before an hour, is no place for a job that could start in a minute."""
    running = [
        on(job(f"r{i}", gpus=8, max_run_s=end), f"b-r{i}-n0", cards=[tuple(range(8))], started=100.0)
        for i, end in enumerate((3600.0, 60.0))
    ]
    found = decided([reader("j")], data(r0=SIZE), running=running)
    assert [(one.domain, one.start) for one in found.prefetches] == [("b/r1", 160.0)]
