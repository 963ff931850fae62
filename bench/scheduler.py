"""The scheduler's figures: python -m forebay.bench.scheduler [decide] [kueue] [arms] [--nodes N --jobs N --seeds N].

Times are CPU times of this process: what others do on the machine does not count.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

from forebay.scheduler.decide import advance
from forebay.scheduler.jobs import GpuRequest, Job, PodSet
from forebay.scheduler.model import Snapshot
from forebay.scheduler.settings import Settings
from forebay.scheduler.simulation import kueue
from forebay.scheduler.simulation.compare import compare
from forebay.scheduler.simulation.report import Report
from forebay.scheduler.simulation.run import simulate
from forebay.scheduler.simulation.workload import SHAPES, Plan, Workload, make
from forebay.scheduler.state import State

PUBLISHED = {"baseline": 351.1, "topology": 401.0}
"""Seconds that Kueue's own runs take in all; they include the runtimes of the workloads, and an API server."""


def decided(nodes: int) -> None:
    """Jobs admitted a second in one pass, and gangs."""
    workload = make(Plan(nodes=nodes, jobs=1))
    snapshot = Snapshot(levels=workload.levels, nodes=workload.nodes, queues=workload.queues)
    began = time.process_time()
    state = State(snapshot)
    print(f"{nodes:,} nodes x 8 GPUs into arrays: {time.process_time() - began:.2f} s")
    shapes = sorted(SHAPES, key=lambda shape: -SHAPES[shape])
    for number in range(5000):
        cpu, memory, cards, milli = shapes[number % len(shapes)]
        gpus = GpuRequest(cards, milli) if cards else None
        pods = PodSet(requests={"cpu": cpu, "memory": memory}, gpus=gpus)
        state.submit(Job(f"job-{number}", f"team-{number % 10:02}", (pods,), submitted=float(number)))
    began = time.process_time()
    admitted = len(advance(state, 0.0, explained=False).admissions)
    spent = time.process_time() - began
    print(f"one pass over 5,000 jobs of {len(shapes)} shapes: {admitted / spent:,.0f} admissions/s")
    for pods_of, cards in ((min(10_000, nodes * 8), 1), (min(1000, nodes), 8)):
        state = State(snapshot, Settings())
        request = PodSet(count=pods_of, requests={"cpu": 4000, "memory": 16_384}, gpus=GpuRequest(cards))
        state.submit(Job("gang", "team-00", (request,)))
        began = time.process_time()
        found = advance(state, 0.0, explained=False)
        print(
            f"a gang of {pods_of:,} pods of {cards} GPUs: {time.process_time() - began:.2f} s,"
            f" {'admitted' if found.admissions else 'refused'}"
        )


def published() -> None:
    """Kueue's workloads: simulated total, and CPU time of all decisions."""
    makers: dict[str, Callable[[], Workload]] = {"baseline": kueue.baseline, "topology": kueue.topology}
    for name, workload in makers.items():
        found = simulate(workload(), kueue.ARM, kueue.PACE)
        waits: dict[str, list[float]] = {}
        for record in found.records:
            waits.setdefault(record.name.split("-")[2], []).append((record.started or 0.0) - record.submitted)
        means = ", ".join(f"{kind} {statistics.fmean(times):.1f} s" for kind, times in waits.items())
        print(
            f"Kueue's {name}: {found.jobs:,} workloads done after {found.makespan_s:.1f} s of simulated time"
            f" (theirs: {PUBLISHED[name]} s in all), decisions took {found.deciding_s:.1f} s,"
            f" {found.decided / found.deciding_s:,.0f} admissions/s; mean waits: {means}; {found.preemptions} evictions"
        )


def arms(nodes: int, jobs: int, seeds: int, names: Sequence[str]) -> None:
    """The label beside ours, over seeds."""
    rows: dict[str, list[Report]] = {name: [] for name in names}
    tasks = [(Plan(nodes=nodes, jobs=jobs, seed=seed), name) for seed in range(1, seeds + 1) for name in names]
    for (plan, _), report in zip(tasks, compare(tasks), strict=True):
        rows[report.arm].append(report)
        print(
            f"seed {plan.seed} {report.arm:9} completion {report.completion_s:7.0f} s"
            f" ({report.completion_s / report.runtime_s:.2f} of the runtime), idle {report.idle_gpu_h:9,.0f} GPU-h,"
            f" fairness {report.fairness:.3f}, {report.preemptions} evictions,"
            f" {report.decided / report.deciding_s:,.0f} admissions/s, {report.running_s:.0f} s",
            flush=True,
        )
    for name in names:
        if name == "label" or "label" not in rows:
            continue
        pairs = list(zip(rows["label"], rows[name], strict=True))
        idle = [label.idle_gpu_h / max(ours.idle_gpu_h, 1e-9) for label, ours in pairs]
        done = [label.completion_s / ours.completion_s for label, ours in pairs]
        print(f"{name} beside the label: {_spread(idle)} times fewer GPU-hours idle,", end=" ")
        print(f"completion {_spread(done)} times better")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="decide, kueue, arms; default: all")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arm", default="label,joint,gate,prefetch", help="of the simulator, with commas")
    asked = parser.parse_args()
    parts = asked.parts or ["decide", "kueue", "arms"]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {cores} cores, load {load:.1f}")
    if "decide" in parts:
        decided(asked.nodes)
    if "kueue" in parts:
        published()
    if "arms" in parts:
        arms(asked.nodes, asked.jobs, asked.seeds, asked.arm.split(","))


if __name__ == "__main__":
    main()
