"""What `forebay debug bundle` does."""

import importlib.metadata
import io
import json as jsonlib
import os
import platform
import re
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.client import worker_pid
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.counters import read_counts
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.jobs import JobStore
from forebay.cacheruntime.status import cache_report
from forebay.cacheruntime.version import VERSION
from forebay.cli.commands import cache_config
from forebay.fuse.doctor import examine

_LOG_LINES = 2000
_PATHS = 20
_PACKAGES = ("grpcio", "lmdb", "obstore", "botocore", "fsspec", "trio", "protobuf", "xxhash", "pyfuse3", "pyarrow")
_KERNEL_FILES = (
    "/proc/version", "/proc/meminfo", "/proc/loadavg", "/proc/mounts", "/proc/sys/fs/pipe-max-size", "/etc/os-release",
    "/sys/module/fuse/parameters/max_user_bgreq", "/sys/module/fuse/parameters/max_user_congthresh",
)  # fmt: skip

_SECRETS = (
    re.compile(r"(?i)\b((?:[a-z_-]*(?:secret|password|passwd|token|credential|signature|access_?key)[a-z_-]*)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,}]+"),
    re.compile(r"(\w+://[^/\s:@\"']*:)[^/\s@\"']+(?=@)"),
    re.compile(r"(?i)(authorization:?\s*(?:bearer|basic|aws4\S*)\s+)\S+"),
)  # fmt: skip
"""None should be in a log. Should one get there all the same, it does not get out of the machine with it."""


def without_secrets(text: str) -> str:
    """A text with everything that looks like a credential struck out."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def bundle(file: Path, cache_dir: Path | None) -> None:
    if not file.name.endswith((".tar.gz", ".tgz")):
        raise UsageError(f"{file} does not end in .tar.gz; the bundle is of that kind")
    config = cache_config(cache_dir, [])
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    count = 0
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for name, make in _parts(config):
                _add(archive, name, make)
                count += 1
        draft.rename(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; name another folder") from error
    finally:
        draft.unlink(missing_ok=True)
    print(f"{file}: {count} files, {file.stat().st_size} bytes; look through it before you send it on")


def _add(archive: tarfile.TarFile, name: str, make: Callable[[], Any]) -> None:
    try:
        made = make()
    except Exception as error:  # noqa: BLE001 (one part that cannot be had must not cost the others)
        made = f"not to be had: {type(error).__name__}: {error}\n"
    text = made if isinstance(made, str) else jsonlib.dumps(made, indent=2) + "\n"
    data = without_secrets(text).encode("utf-8", "surrogateescape")
    member = tarfile.TarInfo(f"forebay-bundle/{name}")
    member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
    archive.addfile(member, io.BytesIO(data))


def _parts(config: CacheConfig) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "versions.json", _versions
    for path in _KERNEL_FILES:
        yield f"kernel{path}", partial(Path(path).read_text, errors="replace")
    yield "doctor.json", lambda: [asdict(finding) for finding in examine(config)]
    yield "config.json", lambda: jsonlib.loads(config.to_json())
    yield "status.json", lambda: _status(config)
    yield "mounts.json", lambda: _mounts(config)
    yield "jobs.json", lambda: _jobs(config)
    for log in sorted(config.cache_dir.glob("*.log*")):
        yield f"logs/{log.name}", partial(_tail, log)


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"forebay": VERSION, "python": sys.version, "kernel": platform.release()}
    found["machine"] = platform.machine()
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _status(config: CacheConfig) -> dict[str, Any]:
    tiers, datasets = cache_report(config)
    return {
        "cache_dir": str(config.cache_dir), "worker": worker_pid(config),
        "tiers": [asdict(tier) for tier in tiers], "datasets": [asdict(dataset) for dataset in datasets],
    }  # fmt: skip


def _mounts(config: CacheConfig) -> list[dict[str, Any]]:
    return [
        asdict(state) | {"counters": vars(read_counts(folder))}
        for folder, state in register.registered(config.runtime_dir)
    ]


def _jobs(config: CacheConfig) -> list[dict[str, Any]]:
    found = []
    for record in JobStore(config.jobs_dir).all():
        row = asdict(record.seen_by(worker_pid(config)))
        row["request"]["paths"] = [f"{len(record.request.paths)} paths", *record.request.paths[:_PATHS]]
        found.append(row)
    return found


def _tail(log: Path) -> str:
    with log.open(errors="replace") as opened:
        return "".join(deque(opened, maxlen=_LOG_LINES))
