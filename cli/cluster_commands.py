"""What `forebay simulate cluster` does: runs the arms, shows a table, JSON, a plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from forebay.cacheruntime.errors import UsageError
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
    """
    if request.plot is not None:
        check_plot(request.plot)
    arms = [part.strip() for text in request.arms for part in text.split(",")] or list(ARMS)
    plan = Plan(
        nodes=request.nodes,
        jobs=request.jobs,
        load=request.load,
        seed=request.seed,
        datasets=request.datasets,
        trace=request.trace,
    )
    try:
        reports = list(compare([(plan, arm) for arm in arms], request.processes))
    except ValueError as error:
        raise UsageError(str(error)) from error
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
    }
    for name, shape in rows.items():
        shown.add_row(name, *(shape(report) for report in reports))
    return shown


def _plain(report: Report) -> dict[str, object]:
    found = asdict(report)
    del found["records"]
    return found


def plot(reports: Sequence[Report], file: Path) -> None:
    """Bars of each arm: completion, waits, GPUs that idle for data, bytes fetched.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    names = [report.arm for report in reports]
    for axes, title, values in (
        (panels[0][0], "mean completion, s", [report.completion_s for report in reports]),
        (panels[0][1], "mean wait, s", [report.wait_s for report in reports]),
        (panels[1][0], "GPU-hours idle on data", [report.idle_gpu_h for report in reports]),
        (panels[1][1], "fetched from the under-store, TiB", [report.fetched_bytes / 2**40 for report in reports]),
    ):
        axes.bar(names, values, color="#0b6e99")
        axes.set_title(title, fontsize=10)
        axes.tick_params(axis="x", labelrotation=45, labelsize=8)
        axes.grid(axis="y", alpha=0.3)
    try:
        figure.savefig(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; name another one by --plot") from error
    finally:
        pyplot.close(figure)
