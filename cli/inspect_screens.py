"""What `info`, `stats` and `profile` print."""

import time
from typing import Any

from forebay.cli.screens import console, make_table, size_text


def info(row: dict[str, Any]) -> None:
    """One file or directory."""
    print(row["path"] or "/")
    _line("source", row["source"])
    _line("snapshot", f"{row['snapshot']} of dataset {row['dataset']}")
    changed = ""
    if row["mtime_ns"]:
        changed = f", changed {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row['mtime_ns'] // 10**9))}"
    if row["kind"] == "symlink":
        _line("link to", row["target"])
    elif row["kind"] == "directory":
        _line("directory", f"{row['files']} files, {size_text(row['size_bytes'])}")
        _line("cached", f"{row['cached_files']} files, {size_text(row['cached_bytes'])}")
    else:
        _line("file", f"{size_text(row['size_bytes'])}{changed}")
        _line("version", row["version"])
        _line("cached", f"{row['blocks_cached']} of {row['blocks']} blocks, {size_text(row['cached_bytes'])}")
        if "tier" in row:
            _line("tier", f"{row['tier']['medium']} {row['tier']['path']}")
            _line("in", row["file"] + (f" at byte {row['offset']}" if row["offset"] else ""))
            _line("checksums", f"{row['checksums']['known']} of {row['checksums']['kind']}")
            for block, value in row["checksums"].get("blocks", {}).items():
                print(f"               block {block}: {value}")
            for offset, value in row["checksums"].get("pieces", {}).items():
                print(f"               at byte {offset}: {value}")
    if "pinned" in row:
        _line("pinned", "yes" if row["pinned"] else "no")


def _line(name: str, text: str) -> None:
    print(f"    {name:10} {text}")


STATS_HEADER = (
    "    hits/s   hit MB/s  misses/s  miss MB/s   hit%   wait p50   wait p99   GETs/s   GET MB/s    GET p50  opens/s  "
    "errors/s"
)


def stats(row: dict[str, Any]) -> None:
    """One line of the live table."""
    ratio = "-" if row["hit_ratio"] is None else f"{row['hit_ratio'] * 100:.1f}"
    waits = f"{_time(row['wait_p50_s']):>10} {_time(row['wait_p99_s']):>10}"
    print(
        f"{row['hits_s']:10.0f} {row['hit_bytes_s'] / 1e6:10.1f} {row['misses_s']:9.0f}"
        f" {row['miss_bytes_s'] / 1e6:10.1f} {ratio:>6} {waits} {row['store_requests_s']:8.0f}"
        f" {row['store_bytes_s'] / 1e6:10.1f} {_time(row['store_p50_s']):>10} {row['passthrough_opens_s']:8.0f}"
        f" {row['errors_s']:9.0f}",
        flush=True,
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds * 1e6:.0f} us"
        if seconds < 1e-3
        else f"{seconds * 1e3:.3g} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )


def profile(shown: dict[str, Any]) -> None:
    """Where reads spent their time."""
    print(f"{shown['dir']}: {shown['seconds']:.1f} s, {shown['requests']} requests")
    rows = make_table("SOURCE", "READS", "DATA", "P50", "P99", "TIME", right=("READS", "DATA", "P50", "P99", "TIME"))
    for row in shown["sources"]:
        share = "-" if row["time_ratio"] is None else f"{row['time_ratio']:.0%}"
        rows.add_row(
            row["name"], str(row["reads"]), size_text(row["bytes"]), _time(row["p50_s"]), _time(row["p99_s"]), share
        )
    console.print(rows)
    print(
        f"not seen: page cache, and {shown['passthrough_opens']} opens passed through"
        f" (files of {size_text(shown['passthrough_granted_bytes'])})"
    )
    worker = make_table("WORKER", "COUNT", "DATA", "P50", "P99", right=("COUNT", "DATA", "P50", "P99"))
    for row in shown["worker"]:
        data = "-" if row["bytes"] is None else size_text(row["bytes"])
        worker.add_row(row["name"], str(row["count"]), data, _time(row["p50_s"]), _time(row["p99_s"]))
    console.print(worker)
    print(shown["verdict"])
