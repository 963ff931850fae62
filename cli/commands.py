"""What each command does: build the configuration, call the packages below, show the outcome."""

import grp
import json as jsonlib
import os
import pwd
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.client import WorkerClient, worker_pid
from forebay.cacheruntime.cluster.settings import node_cluster
from forebay.cacheruntime.config import (
    CacheConfig,
    default_cache_dir,
    default_log_format,
    default_runtime_dir,
    parse_address,
    parse_tiers,
    traces_asked,
)
from forebay.cacheruntime.counters import Counts, read_counts
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import ForebayError, SourceNotFound, UsageError
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.status import DatasetReport, cache_report
from forebay.cacheruntime.understore.credentials import resolve_options
from forebay.cli import screens
from forebay.cli.dataset_sources import named_source
from forebay.fuse import lifecycle, mounting
from forebay.proto import worker_pb2 as pb

_STATUS_S = 5.0
"""A worker that does not answer within this is shown as running, with nothing else of it."""

_MEMBERS_S = 15.0
"""For all workers of a cluster to say what they hold."""

_NO_ID = 2**32 - 1
"""(uid_t) -1, which names nobody (chown(2))."""

ENGINES = ("kernel", "pyfuse3")
OPEN_MODES = ("auto", "passthrough", "no-open", "cached")


def cache_config(
    cache_dir: Path | None,
    tiers: list[str],
    worker: str | None = None,
    tls: Path | None = None,
    insecure: bool = False,
) -> CacheConfig:
    """The configuration of a cache folder; without tiers, those that it was used with last, else the default. So it is
    with the cluster (`settings.node_cluster`)."""
    folder = Path(os.path.abspath(cache_dir)) if cache_dir else default_cache_dir(os.environ)
    runtime = default_runtime_dir(os.environ)
    config = CacheConfig(
        folder,
        parse_tiers(tiers),
        runtime,
        log_format=default_log_format(os.environ),
        traces=traces_asked(os.environ),
    )
    for number, tier in enumerate(config.tiers):
        for other in config.tiers[:number]:
            if tier.path == other.path or tier.path in other.path.parents or other.path in tier.path.parents:
                raise UsageError(f"tiers {other.path} and {tier.path} lie in each other; give each a folder of its own")
    config = replace(config, cluster=node_cluster(config, os.environ, worker, tls, insecure))
    return config if tiers else config.with_remembered_tiers()


def source_spec(source: str, options: list[str], config: CacheConfig) -> SourceSpec:
    """Source and options with everything that the environment has to say about them; a dataset by its name too."""
    named = named_source(source, options, config)
    if named is not None:
        return named
    given = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {key!r} is not KEY=VALUE; write it like endpoint=http://127.0.0.1:9000")
        given[key] = value
    if "://" not in source:
        source = os.path.abspath(source)
    return SourceSpec(source, resolve_options(source, given, os.environ))


def _owner(text: str | None) -> tuple[int, int]:
    if text is None:
        return os.geteuid(), os.getegid()
    user, colon, group = text.partition(":")
    if any(part.isdigit() and int(part) >= _NO_ID for part in (user, group)):
        raise UsageError(f"--owner {text!r}: write UID:GID with numbers up to {_NO_ID - 1}")
    try:
        uid = int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
        if not colon:
            return uid, pwd.getpwuid(uid).pw_gid
        return uid, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"--owner {text!r}: no such user or group; write UID:GID like 1000:1000") from None


def _umask(text: str) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o777:
        raise UsageError(f"--umask {text!r} is not an octal number from 000 to 777; write it like 022")
    return value


def _metrics(text: str | None) -> str | None:
    """HOST:PORT; '' to serve no metrics any more; None for no wish."""
    if text is None or text == "off":
        return "" if text else None
    host, port = parse_address(text)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


HANDLERS_MAX = 32
DEFAULT_HANDLERS_MAX = 4
"""Also on fewer cores: a handler that waits for the disk keeps its readers waiting, unless there is another one.
Measured on two cores, files of 100 KiB from a cold disk, four readers: 3.7k files/s with one handler, 5.2k with two,
5.6k with four."""


def _handlers(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, DEFAULT_HANDLERS_MAX
    least, colon, most = text.partition(":")
    if not least.isdigit() or (colon and not most.isdigit()):
        raise UsageError(f"--handlers {text!r} is not MIN or MIN:MAX; write it like 1:4")
    found = int(least), int(most) if colon else int(least)
    if not 1 <= found[0] <= found[1] <= HANDLERS_MAX:
        raise UsageError(f"--handlers {text!r}: 1 <= MIN <= MAX <= {HANDLERS_MAX}, like 1:4")
    return found


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UsageError(f"{option} {value!r} is not one of {', '.join(allowed)}")
    return value


def mount(
    source: str,
    directory: str,
    cache_dir: Path | None,
    tiers: list[str],
    options: list[str],
    owner: str | None,
    umask: str,
    allow_other: bool,
    engine: str,
    open_mode: str,
    handlers: str | None,
    foreground: bool,
    metrics: str | None = None,
    worker: str | None = None,
    tls: Path | None = None,
    insecure: bool = False,
) -> None:
    config = cache_config(cache_dir, tiers, worker, tls, insecure)
    spec = source_spec(source, options, config)
    uid, gid = _owner(owner or (spec.tree.owner if spec.tree is not None else None) or None)
    handlers_min, handlers_max = _handlers(handlers)
    request = lifecycle.MountRequest(
        source=spec,
        directory=directory,
        config=config,
        tiers_given=bool(tiers),
        engine=_one_of("--engine", engine, ENGINES),
        open_mode=_one_of("--open-mode", open_mode, OPEN_MODES),
        uid=uid,
        gid=gid,
        umask=_umask(umask),
        allow_other=allow_other,
        handlers_min=handlers_min,
        handlers_max=handlers_max,
        metrics=_metrics(metrics),
    )
    state, supervisor = lifecycle.mount(request)
    screens.mounted(state)
    if foreground:
        _stay(state, supervisor, request.config)


def stop_signals() -> list[int]:
    """Ctrl-C and SIGTERM end nothing from now on; they are noted in this list as they come."""
    came: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: came.append(number))
    return came


def _stay(state: register.MountState, supervisor: int, config: CacheConfig) -> None:
    stopped = stop_signals()
    while not stopped and register.start_time(supervisor) == state.supervisor_start:
        time.sleep(0.2)
    if stopped and register.start_time(supervisor) == state.supervisor_start:
        lifecycle.umount(state.dir, config, lazy=mounting.mounted(state.dir) is not None and _is_busy(state.dir))


def _is_busy(directory: str) -> bool:
    entry = mounting.mounted(directory)
    return entry is not None and any(True for _ in lifecycle.users_of(entry, directory))


def upgrade(directory: str | None) -> None:
    screens.upgraded(lifecycle.upgrade(directory, cache_config(None, [])))


def umount(directory: str, lazy: bool) -> None:
    lifecycle.umount(directory, cache_config(None, []), lazy=lazy)


def mounts(json: bool) -> None:
    found = lifecycle.survey(cache_config(None, []))
    rows = [
        {
            "dir": health.state.dir,
            "source": health.state.source,
            "url": health.state.url,
            "dataset": health.state.dataset_id,
            "snapshot": health.state.snapshot,
            "engine": health.state.engine,
            "open_mode": health.state.open_mode,
            "open_mode_reason": health.state.open_mode_reason,
            "cache_dir": health.state.cache_dir,
            "healthy": health.healthy,
            "trouble": health.trouble,
            "note": health.state.note,
            "passed_through": health.passed_through,
            "pids": {
                "supervisor": health.state.supervisor,
                "handlers": list(health.state.handlers),
                "worker": health.worker,
            },
        }
        for health in found
    ]
    print(jsonlib.dumps(rows, indent=2)) if json else screens.mounts(rows)


def mounted_at(target: str, config: CacheConfig) -> register.MountState | None:
    """The mount on a directory, or None; never looks at the mount itself."""
    if "://" in target:
        return None
    real = mounting.real_directory(target)
    for _, state in register.registered(config.runtime_dir):
        if state.dir == real:
            return state
    return None


def status(target: str | None, cache_dir: Path | None, options: list[str], json: bool, path: str | None = None) -> None:
    config = cache_config(cache_dir, [])
    only: DatasetId | None = None
    if target is not None:
        state = mounted_at(target, config)
        if state is not None:
            config = cache_config(Path(state.cache_dir), [])
            only = DatasetId(state.dataset_id)
        else:
            named = named_source(target, options, config, without_secrets=True)
            only = (named or source_spec(target, options, config)).dataset_id
    tiers, datasets = cache_report(config)
    if only is not None:
        datasets = [report for report in datasets if report.dataset_id == only]
        if not datasets:
            raise SourceNotFound(f"nothing is known of {target} in {config.cache_dir}; mount it or warm it up first")
    rows = [_dataset_row(report, config) for report in datasets]
    shown = {
        "cache_dir": str(config.cache_dir),
        "worker": worker_pid(config),
        "tiers": [asdict(tier) for tier in tiers],
        "datasets": rows,
    } | _health(config)
    if config.cluster is not None:
        if path is not None and only is None:
            raise UsageError("--path is below a dataset: name one, like forebay status NAME --path train")
        shown["cluster"] = _members(config, only or "", (path or "").strip("/"))
    elif path is not None:
        raise UsageError("--path is for clusters, to see which worker holds how much; this node is alone")
    print(jsonlib.dumps(shown, indent=2)) if json else screens.status(shown)


def _members(config: CacheConfig, dataset_id: str, path: str) -> list[dict[str, Any]] | None:
    """What each worker of the cluster holds; None when no worker runs here that could ask."""
    if worker_pid(config) is None:
        return None
    client = WorkerClient(config)
    try:
        request = pb.MembersRequest(dataset_id=dataset_id, path=os.fsencode(path))
        reply: pb.MembersReply = client.call("Members", request, _MEMBERS_S)
    except ForebayError:
        return None
    finally:
        client.close()
    return [
        {
            "id": member.id, "address": member.address, "state": member.state, "version": member.version,
            "me": member.me, "trouble": member.trouble, "gets": member.gets, "fetched_bytes": member.fetched_bytes,
            "left_bytes": member.left_bytes,
            "tiers": [
                {
                    "medium": tier.medium, "path": tier.path, "state": tier.state, "used_bytes": tier.used_bytes,
                    "quota_bytes": tier.quota_bytes,
                }
                for tier in member.tiers
            ],
            "datasets": [
                {
                    "dataset": held.dataset_id, "name": held.name, "bytes": held.bytes, "files": held.files,
                    "path_bytes": held.path_bytes, "path_files": held.path_files,
                    "replica_bytes": held.replica_bytes,
                }
                for held in member.datasets
            ],
        }
        for member in reply.members
    ]  # fmt: skip


def _health(config: CacheConfig) -> dict[str, Any]:
    """What only a running worker knows; nothing is started for it."""
    if worker_pid(config) is None:
        return {"health": None}
    client = WorkerClient(config)
    try:
        reply = client.call("Status", pb.StatusRequest(), _STATUS_S)
    except ForebayError:
        return {"health": None}
    finally:
        client.close()
    names = (
        "damaged_blocks", "damaged_files", "damaged_records", "moved_bytes", "scrubbed_bytes", "checkpoints"
    )  # fmt: skip
    states = {tier.path: tier.state for tier in reply.tiers}
    return {"health": {name: getattr(reply, name) for name in names} | {"tiers": states}}


def _dataset_row(report: DatasetReport, config: CacheConfig) -> dict[str, Any]:
    counts = Counts()
    for folder, state in register.registered(config.runtime_dir):
        if state.dataset_id == report.dataset_id and state.cache_dir == str(config.cache_dir):
            for name, value in vars(read_counts(folder)).items():
                setattr(counts, name, getattr(counts, name) + value)
    ratios = {"hit_ratio": counts.hit_ratio, "amplification": counts.amplification}
    return asdict(report) | ratios | {"counters": vars(counts)}


def doctor(cache_dir: Path | None, tiers: list[str], json: bool) -> None:
    from forebay.fuse.doctor import examine

    findings = examine(cache_config(cache_dir, tiers))
    if json:
        print(jsonlib.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        screens.doctor(findings)
    if any(finding.level == "fails" for finding in findings):
        sys.exit(1)
