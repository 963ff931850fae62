"""`forebay sync`, `snapshots`, `diff`, `export`: what a dataset showed, shows and differs by."""

import json as jsonlib
import os
import time
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_changes import ChangeKind
from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.config import KEPT_SNAPSHOTS
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import ForebayError, MountError, NotAttached, SourceNotFound, UsageError
from forebay.cacheruntime.keys import Roots
from forebay.cacheruntime.snapshot_diff import NamedChange, changed_names, recorded_names
from forebay.cacheruntime.snapshot_history import StoredSnapshot, stored_snapshots
from forebay.cli import dataset_screens
from forebay.cli.commands import cache_config, mounted_at, source_spec
from forebay.cli.dataset_sources import Target, find_target, named_source
from forebay.fuse import lifecycle
from forebay.fuse.switch import SWITCH_S, switch_mounts
from forebay.proto import worker_pb2 as pb

WORDS = {ChangeKind.ADDED: "added", ChangeKind.CHANGED: "changed", ChangeKind.REMOVED: "removed"}


def sync(target: str, options: list[str], show: bool, limit: int, cache_dir: Path | None, json: bool) -> None:
    config = cache_config(cache_dir, [])
    state = mounted_at(target, config)
    spec: SourceSpec | None = None
    if state is None:
        spec = named_source(target, options, config)
        if spec is None:
            raise MountError(f"no source is mounted on {target}; see what is with: forebay mounts")
        found = find_target(target, cache_dir, [], without_secrets=False)
        config, state = found.config, found.state
    else:
        config = cache_config(Path(state.cache_dir), [])
    folder = config.cache_dir / "datasets" / (spec.dataset_id if spec is not None else state.dataset_id)  # type: ignore[union-attr]
    first = spec is not None and not any(stored.complete for stored in stored_snapshots(folder))
    client = WorkerClient(config)
    try:
        client.connect()
        reply = _synced(client, state, spec, options, first=first)
        switched = switch_mounts(config.runtime_dir, folder.name, reply.snapshot, reply.catalogue, SWITCH_S)
        names = list(_names(reply)) if show else []
    finally:
        lifecycle.retire(client)
        client.close()
    shown: dict[str, Any] = {
        "dir": state.dir if state is not None else "",
        "dataset": folder.name,
        "snapshot": reply.snapshot,
        "previous": 0 if first else reply.previous,
        "added": reply.added,
        "changed": reply.changed,
        "removed": reply.removed,
        "switched": switched,
    }
    if show:
        shown["names"] = by_kind(names)
    if json:
        print(jsonlib.dumps(shown, indent=2))
        return
    dataset_screens.synced(shown, names, limit)
    for other in _left_behind(spec, config.runtime_dir):
        print(f"note: {other} shows {target} as it was before its mounts were changed; mount it again to follow")


def _synced(
    client: WorkerClient,
    state: register.MountState | None,
    spec: SourceSpec | None,
    options: list[str],
    *,
    first: bool = False,
) -> pb.SyncReply:
    """Have the worker list a source again (or for the first time); one that was started anew is told of it first."""
    shown = state.snapshot if state is not None and not state.pinned else 0
    if spec is not None:
        following = SourceSpec(spec.source, spec.options, spec.tree, 0, spec.shown)  # a pin is of mounts alone
        client.attach(following, list_tree=not first, snapshot=shown, stored=True)
        return client.sync(spec.dataset_id, shown)
    assert state is not None
    if not options:
        try:
            return client.sync(state.dataset_id, shown)
        except NotAttached:
            pass  # it may be reached with what the environment says
    if state.url.startswith("dataset://"):
        again = named_source(state.source, options, client.config)
        if again is None or again.dataset_id != state.dataset_id:
            raise UsageError(f"{state.source} has other mounts now than {state.dir} shows; mount it again")
        return _synced(client, state, again, [])
    given = source_spec(state.source, options, client.config)
    if given.dataset_id != state.dataset_id:
        raise UsageError(
            f"the source of {state.dir} is {state.url}, and {state.source} without its options is another;"
            " give the --option KEY=VALUE that it was mounted with"
        )
    client.attach(given, list_tree=True, snapshot=shown)
    return client.sync(state.dataset_id, shown)


def _names(reply: pb.SyncReply) -> list[NamedChange]:
    if reply.snapshot == reply.previous:
        return []
    folder = Path(reply.catalogue)
    return sorted(recorded_names(folder, reply.previous, folder.with_name(str(reply.previous))), key=lambda c: c.path)


def _left_behind(spec: SourceSpec | None, runtime_dir: Path) -> list[str]:
    if spec is None:
        return []
    return [s.dir for _, s in register.live(runtime_dir) if s.url == spec.source and s.dataset_id != spec.dataset_id]


def by_kind(changes: list[NamedChange]) -> dict[str, list[str]]:
    """Paths, as JSON has them: bytes that are not UTF-8 as surrogates."""
    found: dict[str, list[str]] = {word: [] for word in WORDS.values()}
    for change in changes:
        found[WORDS[change.kind]].append(os.fsdecode(change.path))
    return found


def snapshots(
    text: str,
    gc: bool,
    keep: int | None,
    older_than: str | None,
    cache_dir: Path | None,
    options: list[str],
    json: bool,
) -> None:
    from forebay.dataset_controller.dataset_types import parse_duration

    if not gc and (keep is not None or older_than is not None):
        raise UsageError("--keep and --older-than say what --gc removes; give --gc with them")
    try:
        age_s = parse_duration(older_than) if older_than is not None else 0.0
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from None
    target = find_target(text, cache_dir, options)
    tree = target.spec.tree if target.spec is not None else None
    pinned = set(tree.keep_pinned) if tree is not None else set()
    removed: list[int] = []
    if gc:
        # By age alone every count will do; with neither, what the dataset itself says.
        count = keep or (2**32 - 1 if age_s else tree.keep_count if tree is not None else KEPT_SNAPSHOTS)
        if not (keep or age_s) and tree is not None:
            age_s = tree.keep_age_s
        removed = _collect(target, pb.Retention(count=count, age_s=age_s, pinned=sorted(pinned)))
    shown_by: dict[int, list[str]] = {}
    for _, state in register.live(target.config.runtime_dir):
        if state.dataset_id == target.dataset_id:
            shown_by.setdefault(state.snapshot, []).append(state.dir)
    rows = [_row(stored, shown_by, pinned) for stored in stored_snapshots(target.folder)]
    if not rows and not removed:
        raise SourceNotFound(f"{target.shown} has no snapshot in {target.config.cache_dir}; mount or sync it first")
    shown = {"source": target.shown, "dataset": target.dataset_id, "removed": removed, "snapshots": rows}
    print(jsonlib.dumps(shown, indent=2)) if json else dataset_screens.snapshots(shown)


def _row(stored: StoredSnapshot, shown_by: dict[int, list[str]], pinned: set[int]) -> dict[str, Any]:
    totals = stored.totals
    state = "unreadable" if totals is None else "complete" if totals.complete else "under way"
    if totals is not None and totals.error:
        state = f"broken: {totals.error}"
    return {
        "number": stored.number,
        "listed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stored.listed_ns / 1e9)),
        "state": state,
        "files": totals.files if totals is not None else 0,
        "bytes": totals.bytes if totals is not None else 0,
        "unchanged": stored.unchanged,
        "pinned": stored.number in pinned,
        "mounts": shown_by.get(stored.number, []),
        "disk_bytes": stored.disk_bytes(),
    }


def _collect(target: Target, retention: pb.Retention) -> list[int]:
    if not target.folder.exists():
        return []
    client = WorkerClient(target.config)
    try:
        client.connect()
        request = pb.CollectSnapshotsRequest(dataset_id=target.dataset_id, retention=retention)
        return list(client.call("CollectSnapshots", request).removed)
    finally:
        lifecycle.retire(client)
        client.close()


def diff(text: str, old: int, new: int, limit: int, cache_dir: Path | None, options: list[str], json: bool) -> None:
    target = find_target(text, cache_dir, options)
    folders = _folders(target, old, new)
    changes: list[NamedChange] = []
    if old != new:  # a process may open a catalogue once only
        before, after = (Catalogue(folder) for folder in folders)
        try:
            changes = sorted(changed_names(before, after), key=lambda change: change.path)
        finally:
            before.close()
            after.close()
    names = by_kind(changes)
    if json:
        counts = {word: len(paths) for word, paths in names.items()}
        print(
            jsonlib.dumps({"source": target.shown, "old": old, "new": new, "counts": counts, "names": names}, indent=2)
        )
    else:
        dataset_screens.differences(old, new, changes, limit)


def _folders(target: Target, *numbers: int) -> list[Path]:
    """Of whole snapshots. Raises: SourceNotFound: one is not there."""
    whole = [stored.number for stored in stored_snapshots(target.folder) if stored.complete]
    for number in numbers:
        if number not in whole:
            there = f"there are {', '.join(map(str, whole))}" if whole else "there is none yet"
            raise SourceNotFound(f"{target.shown} has no snapshot {number}; {there}")
    return [target.folder / str(number) for number in numbers]


def export(text: str, file: Path, number: int | None, cache_dir: Path | None, options: list[str]) -> None:
    from forebay.cacheruntime.snapshot_export import export as write

    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"{file} is no file in a folder that is there; name one like snapshot.parquet")
    target = find_target(text, cache_dir, options)
    pinned = target.spec.snapshot if target.spec is not None else target.state.snapshot if target.state else 0
    if number and target.spec is not None and target.spec.snapshot and number != target.spec.snapshot:
        raise UsageError(f"{text} names a snapshot already; leave out --snapshot {number}")
    whole = [stored.number for stored in stored_snapshots(target.folder) if stored.complete]
    if not whole:
        raise SourceNotFound(
            f"{target.shown} has no whole snapshot in {target.config.cache_dir}; mount or sync it first"
        )
    chosen = number or pinned or whole[-1]
    catalogue = Catalogue(*_folders(target, chosen))
    try:
        about = {"forebay.source": target.shown, "forebay.snapshot": str(chosen)}
        rows = write(catalogue, file, _roots(target), about)
    except UnicodeError as error:
        raise ForebayError(f"{file}: a name cannot be written: {error}") from error
    finally:
        catalogue.close()
    print(f"{file}: snapshot {chosen} of {target.shown}, {rows} rows")


def _roots(target: Target) -> Roots:
    if target.spec is not None:
        return target.spec.roots
    assert target.state is not None
    if not target.state.url.startswith("dataset://"):
        return Roots(target.state.url)
    spec = named_source(target.state.source, [], target.config, without_secrets=True)
    if spec is None or spec.dataset_id != target.dataset_id:
        return Roots(target.state.url)
    return spec.roots
