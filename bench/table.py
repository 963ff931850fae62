"""The demo's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table


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
