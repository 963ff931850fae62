"""How `forebay simulate` shows what it predicts: a table with bars, JSON, a plot."""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from forebay.cacheruntime.errors import UsageError
from forebay.cli.screens import console, size_text

if TYPE_CHECKING:
    from forebay.cli.simulate_commands import Prediction

_BAR = 24
"""Characters of a bar for all hits."""

_EIGHTHS = " ▏▎▍▌▋▊▉"


def amount(number: int, sized: bool) -> str:
    """'4.2 GiB', or '1,000 files' where no sizes are known."""
    return size_text(number) if sized else f"{number:,} files"


def table(prediction: "Prediction") -> None:
    workload = prediction.workload
    print(_sentence(prediction))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    fetched = "FETCHED" if prediction.epochs is None else "FETCHED/EPOCH"
    for name in ("CACHE", "", "POLICY", "HITS", "BYTES", fetched):
        shown.add_column(name, justify="left" if name == "POLICY" else "right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    last = None
    for cell in prediction.cells:
        outcome = cell.outcome
        size = ("", "")
        if cell.cache_bytes != last:
            size = (f"{cell.cache_ratio:.0%}", amount(cell.cache_bytes, workload.sized))
            last = cell.cache_bytes
        shown.add_row(
            *size, cell.policy, f"{outcome.hit_ratio:.1%}", f"{outcome.byte_hit_ratio:.1%}",
            amount(outcome.fetched_bytes // prediction.counted_epochs, workload.sized), _bar(outcome.hit_ratio),
        )  # fmt: skip
    console.print(shown)
    if prediction.note:
        print(f"note: {prediction.note}")


def _sentence(prediction: "Prediction") -> str:
    workload = prediction.workload
    files = len({*workload.items.tolist()})
    total = f", {size_text(workload.distinct_bytes)}" if workload.sized else ""
    if prediction.epochs is None:
        return f"{files:,} files{total}, read {len(workload.items):,} times; the cache is empty at first"
    jobs = "1 job" if prediction.jobs == 1 else f"{prediction.jobs} jobs in step, each with an order of its own"
    first = "; the first one is not counted" if prediction.epochs > 1 else ""
    return f"{files:,} files{total}, read in {prediction.epochs} shuffled epochs{first}; {jobs}"


def _bar(ratio: float) -> str:
    whole, rest = divmod(round(ratio * _BAR * 8), 8)
    return "█" * whole + _EIGHTHS[rest].strip()


def as_json(prediction: "Prediction") -> None:
    workload = prediction.workload
    shown = {
        "files": len({*workload.items.tolist()}),
        "bytes": workload.distinct_bytes if workload.sized else None,
        "accesses": len(workload.items),
        "jobs": prediction.jobs if prediction.epochs is not None else None,
        "epochs": prediction.epochs,
        "counted_epochs": prediction.counted_epochs if prediction.epochs is not None else None,
        "note": prediction.note,
        "unit": "bytes" if workload.sized else "files",
        "cells": [
            {
                "policy": cell.policy,
                "cache": cell.cache_bytes,
                "cache_ratio": round(cell.cache_ratio, 6),
                "accesses": cell.outcome.accesses,
                "hits": cell.outcome.hits,
                "hit_ratio": round(cell.outcome.hit_ratio, 6),
                "byte_hit_ratio": round(cell.outcome.byte_hit_ratio, 6),
                "fetched": cell.outcome.fetched_bytes,
            }
            for cell in prediction.cells
        ],
    }
    print(json.dumps(shown, indent=2))


def plot(prediction: "Prediction", file: Path) -> None:
    """Hit ratio over size of the cache, a line for each policy.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    lines = defaultdict(list)
    for cell in prediction.cells:
        lines[cell.policy].append((cell.cache_ratio, cell.outcome.hit_ratio))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for policy, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=policy)
    largest = max(cell.cache_ratio for cell in prediction.cells)
    axes.set(xlim=(0, max(largest, 1)), ylim=(0, 1), ylabel="hit ratio")
    total = amount(prediction.workload.distinct_bytes, prediction.workload.sized)
    axes.set_xlabel(f"size of the cache, in parts of {total}")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; name another one by --plot") from error
    finally:
        pyplot.close(figure)
