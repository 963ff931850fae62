"""Tables, bars and sentences, with rich. Plain text when the output is not a terminal."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from forebay.cacheruntime.mounts import MountState

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, highlight=False)

_STEP = 1024


def size_text(size: float) -> str:
    """'4.2 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < _STEP or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _STEP
    raise AssertionError("unreachable")


def make_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def mounted(state: MountState) -> None:
    how = f"snapshot {state.snapshot}, {state.open_mode}: {state.open_mode_reason}"
    print(f"{state.source} is mounted on {state.dir} ({how})")
    if state.note and state.engine == "kernel":
        print(f"note: no passthrough: {state.note}; large files are read through the handler, about 5 times slower")


def mounts(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("nothing is mounted; mount something with: forebay mount SOURCE DIR")
    for row in rows:
        pids = row["pids"]
        print(f"{row['dir']}  {row['source']}  {'healthy' if row['healthy'] else 'UNHEALTHY: ' + row['trouble']}")
        print(f"    snapshot {row['snapshot']}, engine {row['engine']}")
        print(f"    open mode {row['open_mode']}: {row['open_mode_reason']}")
        if row["note"]:
            print(f"    no passthrough: {row['note']}")
        handlers = " ".join(map(str, pids["handlers"]))
        print(f"    supervisor {pids['supervisor']}, handlers {handlers}, worker {pids['worker'] or 'not running'}")


def status(shown: dict[str, Any]) -> None:
    worker = f"process {shown['worker']}" if shown["worker"] else "not running"
    print(f"cache {shown['cache_dir']}, worker {worker}")
    health = shown["health"] or {"tiers": {}}
    tiers = make_table("TIER", "FOLDER", "USED", "QUOTA", "FILES", "STATE", right=("USED", "QUOTA", "FILES"))
    for tier in shown["tiers"]:
        used, quota = size_text(tier["used_bytes"]), size_text(tier["quota_bytes"])
        state = health["tiers"].get(tier["path"], "")
        tiers.add_row(tier["medium"], tier["path"], used, quota, str(tier["files"]), state)
    console.print(tiers)
    if health.get("damaged_files") or health.get("damaged_records"):
        print(
            f"damaged since the worker started: {health['damaged_files']} files, {health['damaged_records']} records of"
            " the index; they are fetched again. See worker.log, and: forebay check --deep"
        )
    for row in shown["datasets"]:
        _dataset(row)
    if not shown["datasets"]:
        print("no dataset yet; mount one with: forebay mount SOURCE DIR")
    if shown.get("cluster"):
        _members(shown["cluster"])


def _members(members: list[dict[str, Any]]) -> None:
    right = ("USED", "QUOTA", "FILES", "OWNED", "REPLICAS")
    table = make_table("WORKER", "STATE", "TIER", "USED", "QUOTA", "DATASET", "FILES", "OWNED", "REPLICAS", right=right)
    for member in members:
        state = member["state"] + (" (this one)" if member["me"] else "")
        if member["left_bytes"]:
            state += f", {size_text(member['left_bytes'])} to move"
        tiers = [(t["medium"], size_text(t["used_bytes"]), size_text(t["quota_bytes"])) for t in member["tiers"]]
        held = [
            (d["name"], str(d["files"]), size_text(d["bytes"] - d["replica_bytes"]), size_text(d["replica_bytes"]))
            for d in member["datasets"]
        ]
        for line in range(max(len(tiers), len(held), 1)):
            first = (member["address"], state) if not line else ("", "")
            tier = tiers[line] if line < len(tiers) else ("", "", "")
            dataset = held[line] if line < len(held) else ("", "", "", "")
            table.add_row(*first, *tier, *dataset)
    print()
    console.print(table)


def _dataset(row: dict[str, Any]) -> None:
    print(f"\n{row['source']}")
    if row["snapshot"]:
        listing = f"snapshot {row['snapshot']}, listing {row['listing']}"
        print(f"    source     {row['source_files']} files, {size_text(row['source_bytes'])} ({listing})")
    if row["skipped"]:
        print(f"               {row['skipped']} keys cannot be file names and are not shown")
    share = f" ({row['cached_bytes'] / row['source_bytes']:.0%})" if row["source_bytes"] else ""
    print(f"    cached     {row['cached_files']} files, {size_text(row['cached_bytes'])}{share}")
    for tier in row["tiers"]:
        print(f"               {tier['medium']} {tier['path']}: {tier['files']} files, {size_text(tier['bytes'])}")
    counts = row["counters"]
    if row["hit_ratio"] is not None:
        passed = f", {counts['passthrough_opens']} opens passed through" if counts["passthrough_opens"] else ""
        print(f"    hit ratio  {row['hit_ratio']:.1%} ({counts['hits']} hits, {counts['misses']} misses{passed})")
    if row["amplification"] is not None:
        print(f"    cold reads {row['amplification']:.1f} bytes fetched for each byte asked for, read-ahead included")
    if counts["pushes"]:
        print(f"    put ahead  {counts['pushes']} files, {counts['pushes_lost']} of them lost before they were read")


@dataclass(frozen=True)
class _Mark:
    text: str
    style: str


_MARKS = {"good": _Mark("ok", "green"), "warns": _Mark("!!", "yellow"), "fails": _Mark("NO", "red")}


def doctor(findings: Iterable[Any]) -> None:
    shown = make_table("", "WHAT", "FOUND", "WHAT IT COSTS, AND THE CURE")
    for finding in findings:
        mark = _MARKS[finding.level]
        shown.add_row(f"[{mark.style}]{mark.text}[/]", finding.name, finding.found, finding.advice)
    console.print(shown)


def upgraded(states: list[MountState]) -> None:
    """What `forebay upgrade` has replaced."""
    for state in states:
        handlers = " ".join(map(str, state.handlers))
        print(f"{state.dir} is served by new processes: supervisor {state.supervisor}, handlers {handlers}")
    if not states:
        print("nothing is mounted")
