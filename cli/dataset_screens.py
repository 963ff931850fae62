"""Tables and sentences of the commands for datasets and snapshots."""

import os
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from forebay.cacheruntime.catalogue_changes import ChangeKind
from forebay.cacheruntime.snapshot_diff import NamedChange
from forebay.cli.screens import console, make_table, size_text
from forebay.dataset_controller.dataset_types import Dataset

_WIDE = 1000

_MARKS = {ChangeKind.ADDED: "+", ChangeKind.CHANGED: "~", ChangeKind.REMOVED: "-"}


def age_text(seconds: float) -> str:
    """'3d4h', as kubectl shows ages: two units at most."""
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    left = max(int(seconds), 0)
    parts: list[str] = []
    for name, size in units:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{name}" if count else "")
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"


def _print(table: Table) -> None:
    """Whole lines where no terminal bounds them: they are for programs then."""
    (console if console.is_terminal else Console(width=_WIDE, highlight=False)).print(table)


def _percent(row: dict[str, Any]) -> str:
    return f"{row['cached_bytes'] / row['bytes']:.0%}" if row["bytes"] else "-"


def datasets(rows: list[dict[str, Any]], *, wide: bool) -> None:
    if not rows:
        print("no dataset yet; add one with: forebay apply -f FILE")
        return
    columns = ["NAME", "SOURCES", "FILES", "SIZE", "CACHED", "%", "SNAPSHOT", "PHASE", "AGE"]
    table = make_table(
        *columns, *(["MOUNTS", "ID"] if wide else []), right=("FILES", "SIZE", "CACHED", "%", "SNAPSHOT")
    )
    for row in rows:
        first, *more = row["sources"]
        sources = ", ".join(row["sources"]) if wide else f"{first} +{len(more)}" if more else first
        known = row["files"] is not None
        cells = [
            row["name"], sources, str(row["files"]) if known else "-", size_text(row["bytes"]) if known else "-",
            size_text(row["cached_bytes"]), _percent(row), str(row["snapshot"] or "-"), row["phase"],
            age_text(row["age_s"]),
        ]  # fmt: skip
        table.add_row(*cells, *([", ".join(row["mounts"]) or "-", row["dataset_id"]] if wide else []))
    _print(table)
    for row in rows:
        if row["trouble"]:
            print(f"{row['name']}: {row['trouble']}")


def description(shown: dict[str, Any], dataset: Dataset) -> None:
    spec = dataset.spec
    print(f"dataset    {shown['name']} (namespace {shown['namespace']}, generation {shown['generation']})")
    print(f"phase      {shown['phase']}{': ' + shown['trouble'] if shown['trouble'] else ''}")
    print(f"applied    {shown['created']}, {age_text(shown['age_s'])} ago")
    for store in shown["stores"]:
        print(f"store      {store['path']}  {store['source']}")
        for name, value in store["options"].items():
            print(f"               {name}: {value}")
    if shown["snapshot"]:
        listed = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(shown["listed_ns"] / 1e9))
        pin = " (pinned)" if spec.snapshot else ""
        print(f"snapshot   {shown['snapshot']}{pin} of {', '.join(map(str, shown['snapshots']))}; listed {listed}")
        print(f"holds      {shown['files']} files, {size_text(shown['bytes'])}")
    print(f"cached     {size_text(shown['cached_bytes'])} ({_percent(shown)}) in {shown['cache_dir']}")
    policy, history = spec.cache_policy, spec.snapshot_history
    quota = f", quota {policy.quota}" if policy.quota else ""
    copies = f", {policy.replicas} replicas" if policy.replicas else ""
    print(f"policy     {policy.policy}{quota}{copies}")
    for rule in policy.paths:
        bounds = [f"quota {rule.quota}"] if rule.quota else []
        bounds += ["pinned"] if rule.pinned else []
        bounds += [f"{rule.replicas} replicas"] if rule.replicas else []
        print(f"               {rule.path}: {', '.join(bounds) or 'no bounds'}")
    interval = f"every {spec.sync_policy.interval} while mounted" if spec.sync_policy.interval else "by forebay sync"
    print(f"syncs      {interval}{', and when it is mounted' if spec.sync_policy.on_mount else ''}")
    print(f"keeps      the last {history.count} snapshots{f', none older than {history.age}' if history.age else ''}")
    for directory in shown["mounts"]:
        old = " (as it was before its mounts were changed)" if directory in shown["outdated_mounts"] else ""
        print(f"mounted    {directory}{old}")
    if shown["referred_to_by"]:
        print(f"used by    {', '.join(shown['referred_to_by'])}")
    print(f"id         {shown['dataset_id']}")


def synced(shown: dict[str, Any], names: list[NamedChange], limit: int) -> None:
    if not shown["previous"]:
        print(f"snapshot {shown['snapshot']}: listed for the first time")
        return
    if shown["snapshot"] == shown["previous"]:
        print(f"snapshot {shown['snapshot']}: nothing has changed")
        return
    print(f"snapshot {shown['previous']} -> {shown['snapshot']}: {_counts(shown)}")
    _names(names, limit)


def differences(old: int, new: int, changes: list[NamedChange], limit: int) -> None:
    _names(changes, limit)
    counts = {"added": ChangeKind.ADDED, "changed": ChangeKind.CHANGED, "removed": ChangeKind.REMOVED}
    found = {word: sum(change.kind is kind for change in changes) for word, kind in counts.items()}
    print(f"snapshot {old} -> {new}: {_counts(found)}")


def _counts(found: dict[str, Any]) -> str:
    return f"{found['added']} added, {found['changed']} changed, {found['removed']} removed"


def _names(changes: list[NamedChange], limit: int) -> None:
    for kind, mark in _MARKS.items():
        of_kind = [change.path for change in changes if change.kind is kind]
        for path in of_kind[:limit] if limit else of_kind:
            print(f"{mark} {os.fsdecode(path).encode('utf-8', 'backslashreplace').decode()}")
        if limit and len(of_kind) > limit:
            print(f"{mark} and {len(of_kind) - limit} more")


def snapshots(shown: dict[str, Any]) -> None:
    table = make_table(
        "SNAPSHOT", "LISTED", "FILES", "SIZE", "DISK", "STATE", "SHOWN BY", right=("FILES", "SIZE", "DISK")
    )
    for row in shown["snapshots"]:
        state = (
            row["state"] + (", pinned" if row["pinned"] else "") + (", as the one before" if row["unchanged"] else "")
        )
        table.add_row(
            str(row["number"]), row["listed"], str(row["files"]), size_text(row["bytes"]), size_text(row["disk_bytes"]),
            state, ", ".join(row["mounts"]) or "-",
        )  # fmt: skip
    _print(table)
    if shown["removed"]:
        print(f"removed: {', '.join(map(str, shown['removed']))}")


def purged(name: str, size_bytes: int) -> None:
    print(f"dataset/{name}: {size_text(size_bytes)} removed from the cache")
