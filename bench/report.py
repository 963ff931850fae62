"""What came out, for people (a rich table, Markdown) and for programs (JSON)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from forebay.bench.sheet import OURS, SIDES, Figure, Line, LineSpec, verdicts

METHOD = (
    "All sides run at the same time and take turns within each round; who is first rotates. Median over the rounds,"
    " lowest and highest in brackets; ratios are medians of the rounds' own ratios.",
    "Readers are processes of their own, one read(2) of 1 MiB at a time into one buffer, each file opened anew.",
    "CPU: user and system seconds of the side's daemons (all their processes) for each GiB that was read, or for each"
    " 1,000 names; kernel threads and readers are not in it.",
    "The S3 endpoint is one nginx process that sends files by sendfile, with a listing in Python behind it; the same"
    " for all sides, on the same cores.",
    "Bytes fetched from the store are the bodies of replies to GETs of objects, counted by the endpoint for all sides;"
    " of a reply that its reader broke off, what was sent.",
    "Where the kernel shall know no names it is told to drop them (drop_caches, which only root may). Without root the"
    " walk of a mount that is listed is left out, and stats are on a fresh mount.",
)


@dataclass(frozen=True)
class Report:
    """All groups, and what they were taken on."""

    lines: Sequence[Line]
    machine: Mapping[str, str]
    sides: Mapping[str, str]
    """By side: version and flags."""
    missing: Mapping[str, str]
    """By "group, side": why there is no figure."""
    method: Sequence[str]


def number(value: float) -> str:
    """Three digits or more."""
    if abs(value) >= 1000:
        return f"{value / 1000:,.1f}k" if abs(value) < 1e6 else f"{value / 1e6:,.2f}M"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(spec: LineSpec, figure: Figure | None) -> str:
    """One side's figure: median, spread, CPU."""
    if figure is None:
        return ""
    value = figure.value
    cost = f"; {number(figure.cpu_s)} CPU s" if figure.cpu_s is not None else ""
    return f"{number(value.median)} ({number(value.low)}-{number(value.high)}){cost}"


def columns(lines: Sequence[Line]) -> list[str]:
    """The sides that have any figure."""
    return [side for side in SIDES if any(side in line.figures for line in lines)]


def _rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    sides = columns(lines)
    return [
        (f"{line.spec.title}, {line.spec.unit}", *(cell(line.spec, line.figures.get(side)) for side in sides))
        for line in lines
    ]


def _aims(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in verdicts(lines):
        spread = f"{one.ratio.median:.2f} ({one.ratio.low:.2f}-{one.ratio.high:.2f})"
        word = "met" if one.met else "missed"
        rows.append((one.line.spec.title, f"{one.aim.ours} / {one.other}", spread, f"{one.aim.at_least:g}", word))
    for line in lines:
        for name, most in line.spec.at_most.items():
            if OURS in line.figures and name in line.figures[OURS].facts:
                got = line.figures[OURS].facts[name]
                rows.append(
                    (line.spec.title, name, f"{got:g}", f"at most {most:g}", "met" if got <= most else "missed")
                )
    return rows


_AIM_HEADS = ("line", "sides", "times as good", "aim", "")


def _facts(report: Report) -> list[str]:
    notes = []
    for line in report.lines:
        for side, figure in line.figures.items():
            if figure.facts:
                notes.append(f"{line.spec.title}, {side}: " + ", ".join(f"{k} {v:g}" for k, v in figure.facts.items()))
    return notes


def notes(report: Report) -> list[str]:
    """Everything that is said below the table."""
    about = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    return [
        f"Machine: {about}.",
        *report.method,
        *_facts(report),
        *(f"{side}: {words}" for side, words in report.sides.items()),
        *(f"{where}: {why}" for where, why in report.missing.items()),
    ]


def rich_report(report: Report) -> Group:
    """For a terminal."""
    table = Table("line", *columns(report.lines))
    for row in _rows(report.lines):
        table.add_row(*row)
    aims = Table(*_AIM_HEADS)
    for row in _aims(report.lines):
        aims.add_row(*row)
    return Group(table, aims, *(Text(f"- {note}") for note in notes(report)))


def markdown(report: Report) -> str:
    """For README."""
    heads = ("line", *columns(report.lines))
    tables = [[heads, tuple("---" for _ in heads), *_rows(report.lines)]]
    tables.append([_AIM_HEADS, tuple("---" for _ in _AIM_HEADS), *_aims(report.lines)])
    text = "\n\n".join("\n".join("| " + " | ".join(row) + " |" for row in rows) for rows in tables)
    return "\n".join([text, "", *(f"* {note}" for note in notes(report))])


def as_json(report: Report) -> str:
    """Everything, every sample in it."""
    return json.dumps(
        {
            "machine": report.machine,
            "sides": report.sides,
            "missing": report.missing,
            "method": report.method,
            "lines": [{"group": line.group, **asdict(line.spec), "figures": _figures(line)} for line in report.lines],
            "aims": [
                {
                    "line": one.line.spec.key,
                    "ours": one.aim.ours,
                    "other": one.other,
                    "at_least": one.aim.at_least,
                    "ratio": one.ratio.median,
                    "ratios": one.ratio.values,
                    "met": one.met,
                }
                for one in verdicts(report.lines)
            ],
        },
        indent=2,
    )


def _figures(line: Line) -> dict[str, object]:
    return {
        side: {
            "median": figure.value.median,
            "values": figure.value.values,
            "cpu_s": figure.cpu_s,
            "facts": figure.facts,
        }
        for side, figure in line.figures.items()
    }
