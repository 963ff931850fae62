"""Finding and ending mounts without ever looking at one, and the guard against mounts that hang.

As a program (``python fuse_mounts.py``) it is the guard: it reads ``arm SECONDS PREFIX`` and ``disarm`` lines, and
when an arm runs out it aborts every FUSE connection mounted below PREFIX, so that whoever hangs there gets an error.
It is a process of its own, for a fault on a mapped page would hold up a thread of ours.
"""

import ctypes
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
"""Of sys/mount.h."""
_CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True)
class MountLine:
    """One line of mountinfo."""

    directory: str
    device: str
    """MAJ:MIN."""
    fs_type: str
    options: str


def mounts_below(prefix: Path | str) -> list[MountLine]:
    """Everything mounted on or below a folder, in order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        directory = fields[4].replace("\\040", " ").replace("\\012", "\n").replace("\\134", "\\")
        if directory == str(prefix) or directory.startswith(f"{prefix}/"):
            found.append(MountLine(directory, fields[2], right.split(" ")[0], fields[5]))
    return found


def detach(directory: str) -> None:
    """Take the topmost mount off a folder, busy or not (umount2 with MNT_DETACH)."""
    if _libc.umount2(os.fsencode(directory), _MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), directory)


def abort_below(prefix: str) -> list[str]:
    """End all FUSE connections below a folder; returns their mount points."""
    ended = []
    for line in mounts_below(prefix):
        if not line.fs_type.startswith("fuse"):
            continue
        minor = line.device.partition(":")[2]
        ours = not (_CONNECTIONS / minor).exists()
        if ours:
            _libc.mount(b"fusectl", bytes(_CONNECTIONS), b"fusectl", 0, None)
        (_CONNECTIONS / minor / "abort").write_text("1")
        if ours:
            _libc.umount2(bytes(_CONNECTIONS), _MNT_DETACH)
        ended.append(line.directory)
    return ended


class Guard:
    """The guard process. Resources: `close` ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def arm(self, seconds: float, prefix: Path) -> None:
        """Abort what is mounted below `prefix` unless `disarm` comes within that time."""
        self._say(f"arm {seconds} {prefix}")

    def disarm(self) -> str:
        """Stop the clock; returns what was aborted since `arm`, or ''."""
        return self._say("disarm")

    def _say(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()
        self._process.wait()


def _guard() -> None:
    deadline, prefix, fired = float("inf"), "", ""
    os.set_blocking(0, False)
    pending = b""
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([0], [], [], None if left == float("inf") else max(left, 0))
        if not ready:
            fired, deadline = " ".join(abort_below(prefix)) or "nothing mounted", float("inf")
            continue
        read = os.read(0, 4096)
        if not read:
            return
        pending += read
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            word, _, rest = os.fsdecode(line).partition(" ")
            print(fired, flush=True)
            fired, deadline = "", float("inf")
            if word == "arm":
                seconds, _, prefix = rest.partition(" ")
                deadline = time.monotonic() + float(seconds)


if __name__ == "__main__":
    _guard()
