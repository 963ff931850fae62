"""How much memory this process may have: of the machine, and of the control groups that it is in (v1 and v2)."""

import os
import re
from pathlib import Path

_UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" by a number near 2**63."""

_ANONYMOUS = ("anon ", "total_rss ")
"""What cannot be given up without swap, in memory.stat of v2 and v1."""


def ram_bytes() -> int:
    """Of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def limits() -> list[tuple[Path, int]]:
    """The folders of our control groups that have a limit, and the limits in bytes."""
    try:
        groups, mounts = Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    except OSError:
        return []
    found = ((path.parent, _read_limit(path)) for path in limit_files(groups, mounts))
    return [(folder, limit) for folder, limit in found if limit is not None]


def available_bytes() -> int:
    """Free memory and what the kernel could give up easily, of the machine and of each of our control groups."""
    return min([_machine_available(), *(max(0, limit - _anonymous(folder)) for folder, limit in limits())])


def _machine_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _anonymous(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(_ANONYMOUS)), 0)


def limit_files(groups: str, mounts: str) -> list[Path]:
    """The files that may hold a memory limit for a process: of its control group and of those above it.

    Args:
        groups: /proc/PID/cgroup (cgroups(7)): lines HIERARCHY:CONTROLLERS:PATH.
        mounts: /proc/PID/mountinfo (proc(5)).
    """
    files: list[Path] = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            kind, name = "cgroup2", "memory.max"
        elif "memory" in controllers.split(","):
            kind, name = "cgroup", "memory.limit_in_bytes"
        else:
            continue
        for root, folder in _hierarchies(mounts, kind):
            # In a container the mount may show only what is below the container's own group.
            below = Path(group).relative_to(root) if Path(group).is_relative_to(root) else Path()
            files += [folder / part / name for part in (below, *below.parents)]
    return files


def _hierarchies(mounts: str, kind: str) -> list[tuple[str, Path]]:
    """(root, folder) of each mounted hierarchy that may hold memory limits."""
    found = []
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, (what, *more) = left.split(), right.split()
        if what == kind and (kind == "cgroup2" or "memory" in more[-1].split(",")):
            folder = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.append((fields[3], Path(folder)))
    return found


def _read_limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None
