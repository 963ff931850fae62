"""What was measured, for people (rich tables, Markdown) and for programs (JSON)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from forebay.bench.measure import Series, ratio


@dataclass(frozen=True)
class Speeds:
    """A row of the demo's table."""

    name: str
    images: float
    """Files per second."""
    large: float
    """10^9 bytes per second."""


def speeds_table(rows: Sequence[Speeds]) -> Table:
    """The demo's table."""
    table = Table(title="One reader, one file at a time, random order", title_justify="left")
    table.add_column("read from")
    table.add_column("images, files/s", justify="right")
    table.add_column("large files, GB/s", justify="right")
    for row in rows:
        table.add_row(row.name, f"{row.images:,.0f}", f"{row.large:.2f}")
    return table


def mib_words(size_bytes: int) -> str:
    """A size to read."""
    return f"{size_bytes / (1 << 20):,.0f} MiB"


def held_words(status: Mapping[str, Any]) -> str:
    """What `forebay status --json` says is cached."""
    parts = []
    for row in status["datasets"]:
        tiers = ", ".join(f"{mib_words(tier['bytes'])} on {tier['medium']}" for tier in row["tiers"])
        files = f"{row['cached_files']:,} of {row['source_files']:,} files"
        parts.append(f"{files} of {row['source']} ({tiers or 'no bytes'})")
    return "; ".join(parts) or "nothing"


@dataclass(frozen=True)
class Line:
    """One comparison: ours and another side, taken in turns."""

    name: str
    unit: str
    ours: Series
    other: Series
    against: str
    target: float | None
    """The least ratio that we want; None where there is no wish."""
    method: str
    facts: Mapping[str, float | str] = field(default_factory=dict)
    """What else was measured on the way, such as CPU seconds per GiB."""

    @property
    def ratio(self) -> Series:
        """Round by round."""
        return ratio(self.ours, self.other)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.ratio.median >= self.target else "missed"


def _cells(line: Line) -> tuple[str, ...]:
    got = line.ratio
    target = f"{line.target:g} {line.verdict}" if line.target is not None else ""
    return (
        line.name,
        _number(line.ours.median),
        _number(line.other.median),
        line.unit,
        line.against,
        f"{got.median:.2f}",
        f"{got.low:.2f}-{got.high:.2f}",
        target,
        ", ".join(f"{name} {_number(value)}" for name, value in line.facts.items()),
    )


_HEADS = ("line", "Forebay", "other", "unit", "against", "ratio", "spread", "target", "also")


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 or (value and value == int(value)) else f"{value:.2f}"


def rich_report(lines: Sequence[Line], machine: Mapping[str, str], method: Sequence[str]) -> Group:
    """Table, machine and method for a terminal."""
    table = Table()
    for head in _HEADS[:-1]:
        table.add_column(head, justify="right" if head in ("Forebay", "other", "ratio") else "left")
    for line in lines:
        table.add_row(*_cells(line)[:-1])
    notes = [f"{line.name}: {_cells(line)[-1]}." for line in lines if line.facts]
    notes += [*method, *dict.fromkeys(f"{line.name}: {line.method}" for line in lines)]
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    return Group(table, Text(f"Machine: {about}"), *(Text(f"- {note}") for note in notes))


def markdown(lines: Sequence[Line], machine: Mapping[str, str], method: Sequence[str]) -> str:
    """The same for README."""
    rows = [_HEADS, tuple("---" for _ in _HEADS), *(_cells(line) for line in lines)]
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    notes = [*method, *dict.fromkeys(f"{line.name}: {line.method}" for line in lines)]
    parts = ["\n".join(f"| {' | '.join(row)} |" for row in rows), f"Machine: {about}."]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def as_json(lines: Sequence[Line], machine: Mapping[str, str], method: Sequence[str]) -> str:
    """All samples of all lines."""
    found = [asdict(line) | {"ratio": asdict(line.ratio), "ratio_median": line.ratio.median} for line in lines]
    return json.dumps({"machine": dict(machine), "method": list(method), "lines": found}, indent=2)
