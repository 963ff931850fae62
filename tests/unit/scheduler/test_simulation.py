"""The simulator: its fluids, its accounts, and what the arms are for."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from forebay.scheduler.jobs import DataNeed, GpuRequest, Job, PodSet
from forebay.scheduler.model import Dataset, Gpu, Node, Queue, Store
from forebay.scheduler.simulation.arms import ARMS, arm_named
from forebay.scheduler.simulation.compare import compare
from forebay.scheduler.simulation.run import Pace, Simulation, simulate
from forebay.scheduler.simulation.store import DomainCache, UnderStore
from forebay.scheduler.simulation.workload import SHAPES, Plan, SimJob, Workload, make, shapes_of

TRACES = os.environ.get("FOREBAY_TRACES")
"""The folder that holds the published trace, in `alibaba-gpu-v2023`."""


def finish(store: UnderStore) -> list[tuple[float, str]]:
    found = []
    while (at := store.next_end()) < float("inf"):
        store.advance(at)
        found += [(round(at, 6), load.dataset) for load in store.ended()]
    return found


def test_loads_share_bandwidth() -> None:
    store = UnderStore(100.0, 0, 0.0)
    store.advance(0.0)
    store.start("a", 0, 100.0, False)
    store.start("b", 0, 300.0, False)
    assert finish(store) == [(2.0, "a"), (4.0, "b")]
    assert store.delivered == pytest.approx(400.0)


def test_one_load_has_a_cap() -> None:
    store = UnderStore(100.0, 20, 0.0)
    store.advance(0.0)
    store.start("a", 0, 100.0, False)
    assert finish(store) == [(5.0, "a")]


def test_prefetches_have_their_share_and_what_is_left() -> None:
    store = UnderStore(100.0, 0, 0.25)
    store.advance(0.0)
    store.start("urgent", 0, 75.0, False)
    store.start("ahead", 0, 100.0, True)
    assert finish(store) == [(1.0, "urgent"), (1.75, "ahead")]


def test_a_prefetch_that_is_waited_for_hurries() -> None:
    store = UnderStore(100.0, 0, 0.1)
    store.advance(0.0)
    store.start("urgent", 0, 900.0, False)
    load = store.start("ahead", 0, 100.0, True)
    store.advance(5.0)
    assert store.left(load) == pytest.approx(50.0)
    store.hurry(load)
    assert finish(store) == [(6.0, "ahead"), (10.0, "urgent")]


def test_a_cancelled_load_takes_nothing() -> None:
    store = UnderStore(100.0, 0, 0.5)
    store.advance(0.0)
    load = store.start("a", 0, 1000.0, True)
    store.start("b", 0, 100.0, True)
    store.advance(1.0)
    store.cancel(load)
    assert finish(store) == [(1.5, "b")]


def test_a_cache_drops_what_was_used_longest_ago() -> None:
    cache = DomainCache(100)
    for name in "abc":
        cache.put(name, 30)
    cache.touch("a")
    cache.read("b", 1)
    assert cache.make_room(40, "d") == (["c"], True)
    assert cache.make_room(90, "d") == (["a"], False)
    assert (cache.held("b"), cache.used) == (30, 30)


def tiny(*jobs: SimJob, size: int = 1000, bandwidth: int = 10, nodes: int = 2) -> Workload:
    """One-node racks of one GPU, and one dataset."""
    return Workload(
        ("spine", "rack"),
        tuple(
            Node(f"n{i}", {"cpu": 8000, "memory": 1000}, (Gpu(),), topology=("s", f"r{i}"), cache_bytes=2 * size)
            for i in range(nodes)
        ),
        (Queue("root", min={"gpu": 1000 * nodes}), Queue("q", "root", min={"gpu": 1000 * nodes})),
        jobs,
        (Dataset("d", size, {}, "s"),),
        (Store("s", bandwidth),),
    )


def sim_job(name: str, compute_s: float, at: float = 0.0, *needs: DataNeed) -> SimJob:
    pods = (PodSet(requests={"cpu": 1000}, gpus=GpuRequest(1)),)
    return SimJob(Job(name, "q", pods, submitted=at, data=needs, max_run_s=10 * compute_s), compute_s)


def test_a_job_without_data() -> None:
    found = simulate(tiny(sim_job("a", 100.0)), ARMS["fifo"])
    assert (found.jobs, found.completion_s, found.wait_s, found.idle_gpu_h) == (1, 100.0, 0.0, 0.0)


def test_a_job_idles_for_what_it_cannot_overlap() -> None:
    """1000 bytes at 10 a second; it reads them in 50 s if they are near: it idles for 50 s, and computes on for 50."""
    found = simulate(tiny(sim_job("a", 100.0, 0.0, DataNeed("d", read_rate=20))), ARMS["fifo"])
    assert found.completion_s == pytest.approx(150.0)
    assert found.idle_gpu_h == pytest.approx(50 / 3600)
    assert (found.warm, found.fetched_bytes) == (0.0, pytest.approx(1000.0))


def test_data_that_is_there_is_found() -> None:
    """The second job goes where the first one's data is, if the scheduler sees it."""
    first = sim_job("a", 100.0, 0.0, DataNeed("d", read_rate=20))
    blocker, second = sim_job("b", 400.0, 200.0), sim_job("c", 100.0, 300.0, DataNeed("d", read_rate=20))
    blind = simulate(tiny(first, blocker, second), ARMS["fifo"])
    joint = simulate(tiny(first, second), ARMS["joint"])
    assert blind.fetched_bytes == pytest.approx(2000.0)
    assert joint.fetched_bytes == pytest.approx(1000.0)
    assert joint.warm == 0.5


def test_the_gate_waits_while_data_is_loaded() -> None:
    need = DataNeed("d", 1.0, "require", 10_000.0, 20)
    found = simulate(tiny(sim_job("a", 100.0, 0.0, need)), ARMS["gate"])
    assert found.idle_gpu_h == 0
    assert 100 <= found.wait_s <= 120


def test_prefetch_loads_while_others_compute() -> None:
    """Two jobs in a row on one GPU: the second one's data comes while the first one computes."""
    need = DataNeed("d", read_rate=20)
    jobs = (sim_job("a", 300.0), sim_job("b", 100.0, 1.0, need))
    assert simulate(tiny(*jobs, nodes=1), ARMS["joint"]).idle_gpu_h > 0
    assert simulate(tiny(*jobs, nodes=1), ARMS["prefetch"]).idle_gpu_h == 0


def test_it_is_the_same_each_time() -> None:
    workload = make(Plan(nodes=8, jobs=60, seed=3))
    first, again = (simulate(workload, ARMS["backfill"]) for _ in range(2))
    assert (first.completion_s, first.idle_gpu_h, first.preemptions) == (
        again.completion_s, again.idle_gpu_h, again.preemptions,
    )  # fmt: skip
    assert make(Plan(nodes=8, jobs=60, seed=3)) == workload
    assert make(Plan(nodes=8, jobs=60, seed=4)) != workload


def test_a_job_that_was_evicted_runs_all_of_its_time_again() -> None:
    """Its end in the first run must not end the second one."""
    jobs = (sim_job("low", 1000.0), sim_job("high", 300.0, 400.0))
    jobs = (jobs[0], SimJob(replace(jobs[1].job, priority=1), 300.0))
    pace = Pace(cycle_s=10.0, preempt_s=10.0, checkpoint_s=1e6, grace_s=0.0)
    found = {one.name: one for one in simulate(tiny(*jobs, nodes=1), ARMS["fifo"], pace).records}
    assert found["low"].preemptions == 1
    assert found["high"].started == 410.0
    assert found["low"].finished == pytest.approx(410.0 + 300.0 + 1000.0, abs=21.0)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_every_job_ends_and_nothing_is_left(arm: str) -> None:
    """All room, quota and readers are given back: whatever was taken in between."""
    simulation = Simulation(make(Plan(nodes=8, jobs=60, seed=5, load=1.2)), ARMS[arm])
    found = simulation.run()
    assert found.jobs == 60
    table = simulation.state.table
    assert (table.gpu_free == table.gpu_capacity).all()
    assert (table.free == table.capacity).all()
    assert not any(used for node in simulation.state.quota.nodes.values() for used in node.used)
    assert all(cache.used <= cache.room for cache in simulation._caches)
    assert not any(count for cache in simulation._caches for count in cache._readers.values())


def test_plans_are_checked() -> None:
    with pytest.raises(ValueError, match="nodes is 0; at least 1 is needed"):
        make(Plan(nodes=0))
    with pytest.raises(ValueError, match="no arm is named 'x'; there are fifo, label"):
        arm_named("x")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        shapes_of(Path("/nowhere"))


@pytest.mark.skipif(not TRACES, reason="FOREBAY_TRACES does not say which folder holds alibaba-gpu-v2023")
def test_the_built_in_shapes_are_those_of_the_trace() -> None:
    assert TRACES
    shapes = shapes_of(Path(TRACES) / "alibaba-gpu-v2023")
    total = sum(shapes.values())
    assert total == 9061
    for shape, per_mille in SHAPES.items():
        assert round(shapes[shape] / total * 1000) == per_mille


@pytest.mark.slow
def test_the_command(shared_forebay: object, tmp_path: Path) -> None:
    run = shared_forebay.run  # type: ignore[attr-defined]
    picture = tmp_path / "x.png"
    args = ("simulate", "cluster", "--nodes", "8", "--jobs", "50", "--processes", "1")
    found = run(*args, "--arm", "label,prefetch", "--json").json()
    assert [one["arm"] for one in found] == ["label", "prefetch"]
    assert all(one["jobs"] == 50 for one in found)
    shown = run(*args, "--arm", "fifo", *(("--plot", picture) if importlib.util.find_spec("matplotlib") else ())).out
    assert shown.splitlines()[0] == "8 nodes of 8 GPUs, 50 jobs with shapes of gpu-v2023 at load 0.9; seed 1"
    for row in ("completion, s", "wait, s", "idle GPU-hours", "warm at start", "fragments", "fairness", "evictions"):
        assert f"\n{row}" in shown
    assert run(*args, "--arm", "best", code=2).err.startswith("forebay: no arm is named 'best'; there are fifo, ")
    assert run(*args, "--arm", "fifo,fifo", code=2).err == "forebay: --arm names fifo more than once\n"
    assert run(*args, "--load", "nan", code=2).err == "forebay: load is nan; it has to be above 0, and finite\n"
    assert "openb_pod_list_multigpu50.csv cannot be read" in run(*args, "--trace", "/nowhere", code=2).err


def _group(leader: int) -> set[int]:
    """Living processes of a group."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.add(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["while they start", "while they work"])
def test_an_interrupt_ends_all_processes_and_says_nothing(busy: bool) -> None:
    """As a terminal does it: the whole process group gets the signal, children that still import among them."""
    command = [sys.executable, "-m", "forebay.cli.main", "simulate", "cluster", "--arm", "label,prefetch"]
    with subprocess.Popen(
        [*command, "--nodes", "2000", "--jobs", "100000", "--processes", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        limit = time.monotonic() + 60
        while len(_group(process.pid)) < 4 and time.monotonic() < limit:  # itself, a tracker of resources, two arms
            time.sleep(0.01)
        if busy:
            time.sleep(2)
        assert len(_group(process.pid)) == 4
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "")
    while _group(process.pid) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not _group(process.pid)


@pytest.mark.slow
def test_reports_come_in_the_order_of_the_tasks() -> None:
    plans = [Plan(nodes=8, jobs=60, seed=seed) for seed in (3, 4)]
    tasks = [(plan, arm) for plan in plans for arm in ("label", "prefetch")]
    apart, alone = list(compare(tasks, 2)), list(compare(tasks, 1))
    assert [report.arm for report in apart] == ["label", "prefetch"] * 2
    assert [report.completion_s for report in apart] == [report.completion_s for report in alone]
    assert all(report.completion_s >= report.runtime_s > 0 for report in apart)
