"""What `forebay simulate cluster` does: runs the arms, shows a table, JSON, a plot."""

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from forebay.cacheruntime.errors import ForebayError, UsageError
from forebay.cli.screens import console
from forebay.cli.simulate_commands import check_plot
from forebay.scheduler.simulation.arms import ARMS
from forebay.scheduler.simulation.compare import compare
from forebay.scheduler.simulation.report import Report
from forebay.scheduler.simulation.workload import Plan


@dataclass(frozen=True)
class Request:
    """The command's arguments, as they were given."""

    arms: list[str]
    nodes: int
    jobs: int
    load: float
    seed: int
    datasets: int
    trace: Path | None
    processes: int | None
    plot: Path | None
    json: bool


def simulate(request: Request) -> None:
    """Run and show.

    Raises:
        UsageError: no such arm, or the workload or the plot cannot be made.
        ForebayError: a process was ended from outside.
    """
    if request.plot is not None:
        check_plot(request.plot)
    arms = [name for text in request.arms for part in text.split(",") if (name := part.strip())] or list(ARMS)
    if again := sorted({arm for arm in arms if arms.count(arm) > 1}):
        raise UsageError(f"--arm names {', '.join(again)} more than once")
    plan = Plan(
        nodes=request.nodes,
        jobs=request.jobs,
        load=request.load,
        seed=request.seed,
        datasets=request.datasets,
        trace=request.trace,
    )
    try:
        reports = []
        for report in compare([(plan, arm) for arm in arms], request.processes):
            reports.append(report)
            if sys.stderr.isatty():
                print(f"{report.arm}: done, in {report.running_s:.0f} s of CPU", file=sys.stderr)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except BrokenProcessPool as error:
        raise ForebayError(
            "a process of the simulation was killed, perhaps for lack of memory; try --processes 1, or less --jobs"
        ) from error
    if request.plot is not None:
        plot(reports, request.plot)
    if request.json:
        print(json.dumps([_plain(report) for report in reports], indent=2))
        return
    source = "gpu-v2023" if plan.trace is None else str(plan.trace)
    print(
        f"{plan.nodes:,} nodes of {plan.gpus_per_node} GPUs, {plan.jobs:,} jobs with shapes of {source} at load"
        f" {plan.load:g}; seed {plan.seed}"
    )
    console.print(table(reports))
    for arm in arms:
        print(f"{arm}: {ARMS[arm].title}")


def table(reports: Sequence[Report]) -> Table:
    """A column for each arm: there are more figures than arms."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for report in reports:
        shown.add_column(report.arm, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Report], str]] = {
        "completion, s": lambda one: f"{one.completion_s:,.0f}",
        "  95 % within": lambda one: f"{one.completion_p95_s:,.0f}",
        "  over runtime": lambda one: f"{one.completion_s / max(one.runtime_s, 1e-9):.2f}",
        "wait, s": lambda one: f"{one.wait_s:,.0f}",
        "  95 % at most": lambda one: f"{one.wait_p95_s:,.0f}",
        "idle GPU-hours": lambda one: f"{one.idle_gpu_h:,.1f}",
        "warm at start": lambda one: f"{one.warm:.0%}",
        "fetched, TiB": lambda one: f"{one.fetched_bytes / 2**40:,.1f}",
        "GPUs held": lambda one: f"{one.utilisation:.0%}",
        "fragments": lambda one: f"{one.fragmentation:.1%}",
        "fairness": lambda one: f"{one.fairness:.3f}",
        "evictions": lambda one: f"{one.preemptions:,}",
        "decided, 1/s": lambda one: f"{one.decided / max(one.deciding_s, 1e-9):,.0f}",
        "CPU, s": lambda one: f"{one.running_s:,.1f}",
    }
    for name, shape in rows.items():
        shown.add_row(name, *(shape(report) for report in reports))
    return shown


def _plain(report: Report) -> dict[str, object]:
    found = asdict(report)
    del found["records"]
    return found


PANELS: dict[str, Callable[[Report], float]] = {
    "mean completion, s": lambda one: one.completion_s,
    "mean wait, s": lambda one: one.wait_s,
    "GPU-hours idle on data": lambda one: one.idle_gpu_h,
    "warm at start, %": lambda one: 100 * one.warm,
    "fetched from the under-store, TiB": lambda one: one.fetched_bytes / 2**40,
    "free GPU in fragments, %": lambda one: 100 * one.fragmentation,
    "fairness (Jain's index)": lambda one: one.fairness,
    "evictions": lambda one: one.preemptions,
}


def plot(reports: Sequence[Report], file: Path) -> None:
    """Bars of each arm, a panel for each figure.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 4, figsize=(14, 6.5), layout="constrained")
    names = [report.arm for report in reports]
    for axes, (title, value) in zip(panels.flat, PANELS.items(), strict=True):
        axes.bar(names, [value(report) for report in reports], color="#0b6e99")
        axes.set_title(title, fontsize=10)
        axes.tick_params(axis="x", labelrotation=60, labelsize=8)
        axes.grid(axis="y", alpha=0.3)
    try:
        figure.savefig(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; name another one by --plot") from error
    finally:
        pyplot.close(figure)
