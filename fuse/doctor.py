"""What this machine has, what it lacks, what that costs and what cures it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.client import worker_pid
from forebay.cacheruntime.config import GIB, CacheConfig, TierConfig
from forebay.cacheruntime.errors import TierUnusable
from forebay.cacheruntime.tiers import check_writable
from forebay.fuse.probe import Probe, probe


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str
    """'good', 'warns' (works, slower or with less) or 'fails' (nothing can be mounted)."""
    name: str
    found: str
    advice: str = ""


def examine(config: CacheConfig) -> list[Finding]:
    """Look at everything that a mount of this cache needs. Leaves nothing behind."""
    seen = probe([tier.path for tier in config.tiers])
    return [
        *_mounting(seen),
        *_speed(seen),
        *(_tier(tier) for tier in config.tiers),
        _engine_pyfuse3(),
        _worker(config),
    ]


def _mounting(seen: Probe) -> list[Finding]:
    findings = [Finding("good", "kernel", f"Linux {os.uname().release}, FUSE protocol {seen.protocol or 'not seen'}")]
    if seen.trouble:
        findings.append(Finding("fails", "mounting", seen.trouble, "nothing can be mounted; the fsspec client works"))
    elif os.geteuid() == 0:
        findings.append(Finding("good", "mounting", "works, by mount(2) as root"))
    else:
        findings.append(Finding("good", "mounting", "works, by fusermount3"))
        findings.append(_user_allow_other())
    return findings


def _user_allow_other() -> Finding:
    try:
        allowed = any(line.strip() == "user_allow_other" for line in Path("/etc/fuse.conf").read_text().splitlines())
    except OSError:
        allowed = False
    if allowed:
        return Finding("good", "--allow-other", "permitted by /etc/fuse.conf")
    return Finding(
        "warns", "--allow-other", "not permitted", "only you see your mounts; add user_allow_other to /etc/fuse.conf"
    )


def _speed(seen: Probe) -> list[Finding]:
    if seen.trouble:
        return []
    findings = []
    if seen.passthrough:
        findings.append(Finding("good", "passthrough", "works on every tier: cached large files at local speed"))
    else:
        why = "; ".join(f"{where + ': ' if where else ''}{text}" for where, text in seen.passthrough_trouble.items())
        cost = "large files are read through the handler, about 5 times slower in sequence, 20 times at random"
        findings.append(Finding("warns", "passthrough", f"not possible: {why}", cost))
    if seen.resend:
        findings.append(Finding("good", "resend", "a handler may die under readers without an error"))
    else:
        cost = "requests that a dying handler had taken hang until interrupted; Linux 6.9 cures it"
        findings.append(Finding("warns", "resend", "not offered", cost))
    if seen.read_ahead:
        findings.append(Finding("good", "read-ahead", "can be raised above the kernel's 128 KiB"))
    else:
        cost = "cold sequential reads come in 128 KiB requests; make /sys writable or run as root"
        findings.append(Finding("warns", "read-ahead", "/sys/class/bdi is not writable", cost))
    return findings


def _tier(tier: TierConfig) -> Finding:
    name = f"tier {tier.medium.value}"
    existing = next(p for p in (tier.path, *tier.path.parents) if p.exists())
    stats = os.statvfs(existing)
    free = stats.f_bavail * stats.f_frsize
    found = f"{tier.path}: quota {tier.quota_bytes / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
    try:
        check_writable(tier)
    except TierUnusable as error:
        return Finding("fails", name, str(error), "mounts with this tier are refused")
    if free < tier.quota_bytes:
        return Finding("warns", name, found, "the quota is larger than what is free; what has no room is read through")
    return Finding("good", name, found)


def _engine_pyfuse3() -> Finding:
    from importlib.util import find_spec

    if find_spec("pyfuse3") is not None:
        return Finding("good", "engine pyfuse3", "installed (the way out, not needed otherwise)")
    compiler = "" if shutil.which("gcc") else " gcc"
    cure = f"apt-get install libfuse3-dev pkg-config{compiler}; pip install 'forebay[pyfuse3]'"
    return Finding("good", "engine pyfuse3", "not installed (needed for --engine pyfuse3 only)", cure)


def _worker(config: CacheConfig) -> Finding:
    pid = worker_pid(config)
    return Finding(
        "good", "worker", f"runs as process {pid}" if pid else f"none for {config.cache_dir}; mounts start one"
    )
