"""Bars, tables and JSON lines of warm-ups."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from forebay.cacheruntime.jobs import JobProgress, JobStore
from forebay.cli.screens import console, errors, make_table, size_text
from forebay.proto import worker_pb2 as pb

_FAILURES_SHOWN = 20


def pace(progress: "JobProgress | pb.WarmupProgress") -> dict[str, float | None]:
    """Rate so far in bytes a second, and seconds left at it; None while they are not known."""
    rate = progress.bytes_done / progress.elapsed_s if progress.elapsed_s and progress.bytes_done else None
    left = None if progress.listing or rate is None else (progress.bytes_total - progress.bytes_done) / rate
    return {"rate_bytes_s": rate, "eta_s": max(left, 0.0) if left is not None else None}


def follow(updates: Iterable[pb.WarmupProgress], as_json: bool, store: JobStore) -> Iterator[pb.WarmupProgress]:
    """Show progress to the end, and what came of it; gives on each update."""
    last = None
    for last in _lines(updates) if as_json else _bar(updates):
        yield last
    if last is None:
        return
    failures = store.failures(last.job)
    if as_json:
        print(json.dumps(_fields(last) | {"failures": [f"{one['path']}: {one['error']}" for one in failures]}))
        return
    outcome(
        {"job": last.job, "state": last.state, "error": last.error, "failures": failures}
        | {name: getattr(last, name) for name in JobProgress.__dataclass_fields__}
    )


def _fields(update: pb.WarmupProgress) -> dict[str, Any]:
    fields = {field.name: getattr(update, field.name) for field in update.DESCRIPTOR.fields}
    return fields | {"failures": list(update.failures)} | pace(update)


def _lines(updates: Iterable[pb.WarmupProgress]) -> Iterator[pb.WarmupProgress]:
    for update in updates:
        yield update
        if update.state == "running":
            print(json.dumps(_fields(update)), flush=True)


def _bar(updates: Iterable[pb.WarmupProgress]) -> Iterator[pb.WarmupProgress]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[files]} files"), DownloadColumn(True),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        task = progress.add_task("listing", total=None, files="0")
        for update in updates:
            yield update
            known = not update.listing
            progress.update(
                task, description="warming up" if known else "listing", completed=update.bytes_done,
                total=max(update.bytes_total, 1) if known else None, files=f"{update.files_done}/{update.files_total}",
            )  # fmt: skip
            if update.finished and not update.files_failed:
                progress.update(task, completed=max(update.bytes_total, 1))


def outcome(row: dict[str, Any]) -> None:
    """What came of a job: the failures on standard error, the sum on standard output."""
    for failure in row["failures"][:_FAILURES_SHOWN]:
        print(f"failed: {failure['path']}: {failure['error']}", file=sys.stderr)
    if len(row["failures"]) > _FAILURES_SHOWN:
        more = len(row["failures"]) - _FAILURES_SHOWN
        print(f"failed: {more} more; all of them: forebay jobs {row['job']} --json", file=sys.stderr)
    if row["error"]:
        print(f"job {row['job']} is {row['state']}: {row['error']}", file=sys.stderr)
    print(f"{row['files_done']} of {row['files_total']} files, {size_text(row['bytes_done'])} done", end="")
    print(f"; {row['files_failed']} failed" if row["files_failed"] else "", end="")
    print(f"; {row['files_verified']} verified" if row["files_verified"] else "", end="")
    print(f"; {row['files_damaged']} were damaged" if row["files_damaged"] else "", end="")
    print(f"; {row['files_uncached']} found no room in the tiers" if row["files_uncached"] else "")


def jobs(rows: list[dict[str, Any]]) -> None:
    """All jobs, a line each."""
    if not rows:
        print("no job yet; begin one with: forebay warmup SOURCE --background")
        return
    shown = make_table(
        "JOB", "STATE", "SOURCE", "FILES", "DATA", "RATE", "LEFT", "FAILED", "BEGUN",
        right=("JOB", "FILES", "DATA", "RATE", "LEFT", "FAILED"),
    )  # fmt: skip
    for row in rows:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created_at"]))
        shown.add_row(
            str(row["job"]), row["state"], row["source"], *_progress(row), str(row["files_failed"]), begun
        )  # fmt: skip
    console.print(shown)


def _progress(row: dict[str, Any]) -> tuple[str, str, str, str]:
    files = f"{row['files_done']}/{row['files_total']}"
    data = f"{size_text(row['bytes_done'])}/{size_text(row['bytes_total'])}"
    rate = f"{size_text(row['rate_bytes_s'])}/s" if row["rate_bytes_s"] else "-"
    running = row["state"] == "running" and row["eta_s"] is not None
    return files, data, rate, time_text(row["eta_s"]) if running else "-"


def time_text(seconds: float) -> str:
    """'1:02:03' or '2:03'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def job_line(row: dict[str, Any]) -> None:
    """A running job in one line, again and again."""
    files, data, rate, left = _progress(row)
    print(f"job {row['job']}: {files} files, {data}, {rate}, {left} left, {row['files_failed']} failed", flush=True)


def job(row: dict[str, Any]) -> None:
    """One job whole."""
    print(f"job {row['job']}  {row['source']}  {row['state']}")
    if row["state"] == "interrupted":
        print(f"    go on with: forebay jobs resume {row['job']}")
    wishes = [f"{name} {row[name]}" for name in ("paths", "snapshot", "rate_bytes_s", "medium", "deadline_s")
              if row[name] and name != "rate_bytes_s"]  # fmt: skip
    wishes += [name.replace("_", " ") for name in ("pin", "verify", "metadata_only", "skip_existing") if row[name]]
    if wishes or row["globs"]:
        print(f"    asked for: {', '.join([*wishes, *row['globs']])}")
    if row["state"] == "running":
        _, _, rate, left = _progress(row)
        print(f"    {rate}, {left} left")
    outcome(row)
