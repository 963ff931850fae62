"""The table as a picture: for each line, how many times as good as the local file system (or obstore) each side is."""

from collections.abc import Sequence
from pathlib import Path

from forebay.bench.report import columns, number
from forebay.bench.sheet import LOCAL, OBSTORE, OURS, Line

_COLOURS = {
    "local": "#999999", "obstore": "#999999", "Forebay": "#0b6e99", "Forebay, order posted": "#1fb5d8",
    "Forebay pyfuse3": "#9ecae1", "JuiceFS": "#f2a65a", "JuiceFS tuned": "#d95f02",
    "rclone": "#66a61e", "s3fs": "#a6761d",
    "bare gRPC stream": "#999999", "bare sendfile": "#666666", "from the store": "#d95f02", "one worker": "#f2a65a",
}  # fmt: skip


def base_of(line: Line) -> str | None:
    """The side that a line's bars are measured by: the limit where there is one, else ours."""
    return next((side for side in (LOCAL, OBSTORE, OURS) if _has_a_bar(line, side)), None)


def _has_a_bar(line: Line, side: str) -> bool:
    """The axis is logarithmic: it has no place for 0."""
    return side in line.figures and line.figures[side].value.low > 0


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw a PNG: one row of bars for each line, on a logarithmic scale, the medians written beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    shown = [line for line in lines if base_of(line) is not None]
    sides = columns(shown)
    figure, axes = pyplot.subplots(figsize=(11, 1.0 + 1.5 * len(shown)), layout="constrained")
    height = 0.8 / max(len(sides), 1)
    for row, line in enumerate(shown):
        base = base_of(line)
        assert base is not None
        for place, side in enumerate(sides):
            if not _has_a_bar(line, side):
                continue
            ratio = line.ratio(side, base)
            at = row - 0.4 + height * (place + 0.5)
            error = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            axes.barh(at, ratio.median, height, xerr=error, color=_COLOURS[side], ecolor="#444444")
            axes.text(ratio.high * 1.05, at, number(line.figures[side].value.median), va="center", fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1.0, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{line.spec.title}\n{line.spec.unit}; 1 = {base_of(line)}" for line in shown])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times as good; bars: median, lowest and highest round; beside them the median itself")
    boxes = [patches.Patch(color=_COLOURS[side]) for side in sides]
    figure.legend(boxes, sides, fontsize=7, ncols=5, loc="outside upper center")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
