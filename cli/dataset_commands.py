"""`forebay apply`, `get`, `describe`, `delete`: the datasets of this machine's state folder."""

import json as jsonlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.dataset_reference import parse_reference
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import ForebayError, UsageError
from forebay.cacheruntime.snapshot_history import StoredSnapshot, stored_snapshots
from forebay.cacheruntime.status import cached_of_snapshot, holdings_of
from forebay.cacheruntime.understore.address import parse_address, without_userinfo
from forebay.cacheruntime.understore.credentials import redact
from forebay.cli import dataset_screens
from forebay.cli.commands import cache_config
from forebay.cli.dataset_sources import make_resolver, state_folder_path
from forebay.dataset_controller.dataset_rules import mount_options, mount_path, secret_options
from forebay.dataset_controller.dataset_types import Dataset, Mount
from forebay.dataset_controller.manifest_files import read_manifests
from forebay.dataset_controller.resolve import Found, Resolver, full_name
from forebay.dataset_controller.state_folder import Key, StateFolder, Stored, described
from forebay.fuse import lifecycle
from forebay.proto import worker_pb2 as pb

OUTPUTS = ("table", "wide", "yaml", "json", "name")

_COUNTED_FILES = 200_000
"""Of larger snapshots what is cached is taken from the index's sums, for a look at each file would take seconds."""


def apply(files: list[str]) -> None:
    if not files:
        raise UsageError("name the manifests: forebay apply -f FILE")
    datasets = read_manifests(files)
    state = StateFolder(state_folder_path())
    with state.locked():
        known = {stored.key: stored.dataset for stored in state.all()} | {d.key: d for d in datasets}
        resolver = make_resolver().among(known)
        for dataset in datasets:
            try:
                resolver.check(dataset)
            except ForebayError as error:
                raise UsageError(f"{', '.join(files)}: {dataset.metadata.name}: {error}") from error
        for dataset in datasets:
            print(f"dataset/{dataset.metadata.name} {state.put(dataset)}")
    config = cache_config(None, [])
    for dataset in datasets:
        for note in (*_notes(dataset), *_outdated(dataset, config)):
            print(f"note: dataset {dataset.metadata.name}: {note}", file=sys.stderr)


def _outdated(dataset: Dataset, config: CacheConfig) -> Iterator[str]:
    shown_by = list(mounts_of(dataset.key, config))
    spec = make_resolver(without_secrets=True).source(Found(dataset, 0, "")) if shown_by else None
    for state in shown_by:
        if spec is not None and not _shows(state, spec):
            yield f"{state.dir} goes on as it was before the mounts in the manifest were changed; mount it again"


def _notes(dataset: Dataset) -> Iterator[str]:
    """What is right and still worth knowing."""
    for number, mount in enumerate(dataset.spec.mounts):
        field = f"spec.mounts[{number}].options"
        if parse_reference(mount.mount_point) is not None:
            continue
        scheme = parse_address(mount.mount_point, {}).scheme
        options, left_out = mount_options(dataset, mount, scheme)
        if left_out:
            yield f"{field}: of no meaning here, left out: {', '.join(left_out)}"
        secret = [name for name, value in redact(options).items() if value != options[name]]
        if secret:
            yield f"{field}: {', '.join(secret)} is a secret in plain text; encryptOptions keeps it out of the manifest"
    if any(mode != "ReadOnlyMany" for mode in dataset.spec.access_modes):
        yield "spec.accessModes: mounts are read-only"


def get(words: list[str], output: str, cache_dir: Path | None) -> None:
    if output not in OUTPUTS:
        raise UsageError(f"--output {output!r} is not one of {', '.join(OUTPUTS)}")
    names = words[1:] if words[:1] in (["dataset"], ["datasets"]) else words
    state = StateFolder(state_folder_path())
    chosen = [_stored(state, name) for name in names] if names else state.all()
    if output == "name":
        for stored in chosen:
            print(f"dataset/{stored.dataset.metadata.name}")
    elif output in ("yaml", "json"):
        objects = [described(stored) for stored in chosen]
        one = len(names) == 1
        if output == "json":
            print(jsonlib.dumps(objects[0] if one else objects, indent=2))
        else:
            import yaml

            print(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True), end="")
    else:
        rows = [_row(stored, cache_dir) for stored in chosen]
        dataset_screens.datasets(rows, wide=output == "wide")


def describe(name: str, cache_dir: Path | None) -> None:
    stored = _stored(StateFolder(state_folder_path()), name)
    dataset = stored.dataset
    row = _row(stored, cache_dir)
    alone = len(dataset.spec.mounts) == 1
    stores = [
        {
            "path": f"/{mount_path(mount, alone)}",
            "source": _shown_source(mount),
            "options": _shown_options(dataset, mount),
        }
        for mount in dataset.spec.mounts
    ]
    referring = sorted({other[1] for other, _ in make_resolver(without_secrets=True).references(stored.key)})
    shown = row | {"stores": stores, "referred_to_by": referring, "generation": stored.generation}
    dataset_screens.description(shown, dataset)


def _shown_source(mount: Mount) -> str:
    if parse_reference(mount.mount_point) is not None:
        return mount.mount_point
    return without_userinfo(mount.mount_point)


def _shown_options(dataset: Dataset, mount: Mount) -> dict[str, str]:
    if parse_reference(mount.mount_point) is not None:
        return {}
    scheme = parse_address(mount.mount_point, {}).scheme
    secrets = {
        name: f"secret {option.value_from.secret_key_ref.name}, key {option.value_from.secret_key_ref.key}"
        for name, option in secret_options(dataset, mount, scheme).items()
    }
    return redact(mount_options(dataset, mount, scheme)[0]) | secrets


def _stored(state: StateFolder, name: str) -> Stored:
    """The dataset of a name, in the namespace default or the only one of that name."""
    everything = state.all()
    found = [stored for stored in everything if name in (stored.key[1], f"{stored.key[0]}/{stored.key[1]}")]
    found = [stored for stored in found if stored.key[0] == "default"] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"which {name}? write {' or '.join('/'.join(stored.key) for stored in found)}")
    known = ", ".join(stored.key[1] for stored in everything) or "none"
    raise UsageError(f"there is no dataset {name}; there are: {known}")


def _row(stored: Stored, cache_dir: Path | None) -> dict[str, Any]:
    """What there is to say of a dataset."""
    config = cache_config(cache_dir, [])
    shown_by = list(mounts_of(stored.key, config))
    if cache_dir is None and shown_by:
        config = cache_config(Path(shown_by[0].cache_dir), [])
    trouble, spec = "", None
    try:
        spec = make_resolver(without_secrets=True).source(Found(stored.dataset, 0, ""))
    except ForebayError as error:
        trouble = str(error)
    row: dict[str, Any] = {
        "name": stored.dataset.metadata.name,
        "namespace": stored.dataset.metadata.namespace,
        "sources": [_shown_source(mount) for mount in stored.dataset.spec.mounts],
        "dataset_id": spec.dataset_id if spec is not None else "",
        "cache_dir": str(config.cache_dir),
        "mounts": [state.dir for state in shown_by],
        "outdated_mounts": [state.dir for state in shown_by if spec is not None and not _shows(state, spec)],
        "age_s": (datetime.now(UTC) - stored.created).total_seconds(),
        "created": stored.created.isoformat(),
        "trouble": trouble,
        "phase": "Bound" if shown_by else "NotBound",
        "snapshot": 0, "listed_ns": 0, "files": None, "bytes": None, "cached_bytes": 0, "snapshots": [],
    }  # fmt: skip
    if spec is not None:
        _add_snapshots(row, spec, config)
    if row["trouble"]:
        row["phase"] = "Failed"
    return row


def _shows(state: register.MountState, spec: SourceSpec) -> bool:
    """Whether a mount shows the dataset as its manifest is now; a view of a part of it is another one anyway."""
    return state.url != spec.source or state.dataset_id == spec.dataset_id


def _add_snapshots(row: dict[str, Any], spec: SourceSpec, config: CacheConfig) -> None:
    stored = stored_snapshots(config.cache_dir / "datasets" / spec.dataset_id)
    row["snapshots"] = [snapshot.number for snapshot in stored]
    whole = [snapshot for snapshot in stored if snapshot.complete]
    shown: StoredSnapshot | None = next((s for s in whole if s.number == spec.snapshot), whole[-1] if whole else None)
    if stored and stored[-1].totals is not None and stored[-1].totals.error:
        row["trouble"] = f"the last listing broke off: {stored[-1].totals.error}"
    if spec.snapshot and (shown is None or shown.number != spec.snapshot):
        row["trouble"] = f"it is pinned to snapshot {spec.snapshot}, which is not there"
    if shown is None or shown.totals is None:
        row["cached_bytes"] = holdings_of(config, spec.dataset_id)
        return
    row |= {"snapshot": shown.number, "listed_ns": shown.listed_ns}
    row |= {"files": shown.totals.files, "bytes": shown.totals.bytes}
    counted = shown.totals.files <= _COUNTED_FILES
    row["cached_bytes"] = cached_of_snapshot(config, shown.folder) if counted else holdings_of(config, spec.dataset_id)


def mounts_of(key: Key, config: CacheConfig) -> Iterator[register.MountState]:
    """The live mounts of a dataset, or of a part of it."""
    name = full_name(key)
    for _, state in register.live(config.runtime_dir):
        if state.url == name or state.url.startswith(f"{name}/"):
            yield state


def delete(names: list[str], files: list[str], purge: bool, cache_dir: Path | None) -> None:
    if not names and not files:
        raise UsageError("name what to delete: forebay delete NAME, or forebay delete -f FILE")
    config = cache_config(cache_dir, [])
    state = StateFolder(state_folder_path())
    wanted = [*names, *("/".join(dataset.key) for dataset in (read_manifests(files) if files else []))]
    with state.locked():
        doomed = list({stored.key: stored for stored in (_stored(state, name) for name in wanted)}.values())
        keys = {stored.key for stored in doomed}
        resolver = make_resolver(without_secrets=True)
        for stored in doomed:
            _refuse_used(stored, keys, resolver, config)
        for stored in doomed:
            _forget(stored, config, purge)
            state.delete(stored.key)
            print(f"dataset/{stored.dataset.metadata.name} deleted")


def _refuse_used(stored: Stored, doomed: set[Key], resolver: Resolver, config: CacheConfig) -> None:
    name = stored.dataset.metadata.name
    mounted = [state.dir for state in mounts_of(stored.key, config)]
    if mounted:
        raise UsageError(f"dataset {name} is mounted on {', '.join(mounted)}; unmount it first: forebay umount DIR")
    referring = sorted({other[1] for other, _ in resolver.references(stored.key) if other not in doomed})
    if referring:
        raise UsageError(f"dataset {name} is referred to by {', '.join(referring)}; delete or change these first")


def _forget(stored: Stored, config: CacheConfig, purge: bool) -> None:
    """Have the worker remove what it has of the dataset; nothing is started where it has nothing."""
    name = full_name(stored.key)
    sources = config.cache_dir.glob("datasets/*/source")
    if not any(f"{path.read_text()}/".startswith(f"{name}/") for path in sources):
        return
    client = WorkerClient(config)
    try:
        client.connect()
        reply = client.call("Forget", pb.ForgetRequest(name=name, purge=purge))
        if purge:
            dataset_screens.purged(stored.dataset.metadata.name, reply.bytes)
    finally:
        lifecycle.retire(client)
        client.close()
