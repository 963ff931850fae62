"""A host: network, mounts and processes of its own, and folders for one node of the product."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from forebay_command import Done, Forebay, alive, wait_until

INIT = Path(__file__).with_name("init.py")
INTERFACE = "eth0"
NAMESPACES = ("net", "mnt", "pid")
_BALLAST, _CLOCK = "ballast", "clock"
_CLOCK_SOURCE = Path(__file__).with_name("clock_offset.c")
_END_S = 30.0
"""A host whose processes write to a full or slow disk has ended within this."""


class Host:
    """Processes see no network but their host's, no mount but theirs, and no process of others.

    Files outside `disk`s are those of the machine, so a test may look at a host's folders from outside.

    Resources: `power_off` ends all processes and mounts; the folder stays, for `boot`.
    """

    def __init__(self, name: str, address: str, folder: Path, names: Path) -> None:
        """
        Args:
            name: also its folder's and its name in `names`.
            address: IPv4, in /24.
            folder: for its files; short, as paths of Unix sockets are limited to 107 bytes.
            names: what its /etc/hosts shows.
        """
        self.name, self.address, self.folder = name, address, folder
        self.forebay = Forebay(folder, self.enter)
        self._left: dict[int, str] = {}
        self._kept: list[str] = []
        self._pins: list[int] = []
        self._names = names
        self._disks: dict[Path, int] = {}
        self._init: subprocess.Popen[str] | None = None
        self.pid = 0
        """Of its first process, as the machine sees it; 0 while it is off."""

    # On and off

    def boot(self) -> None:
        """Start it without network; what was on a `disk` is gone."""
        assert not self.pid, f"{self.name} is on"
        self._init = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
             sys.executable, "-S", "-E", str(INIT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "up\n", f"{self.name} did not start"
        unshare = self._init.pid
        self.pid = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text())
        # Copies of the machine's mounts, whose processes would live as long as this host.
        self.run("umount", "--all", "--lazy", "--types", "fuse.forebay")
        self.run("mount", "--bind", self._names, "/etc/hosts")
        for folder, size in self._disks.items():
            self._mount_disk(folder, size)

    def pull_plug(self) -> None:
        """Begin `power_off`, so that several hosts go off at once."""
        if self._init is not None and self._init.stdin is not None and not self._pins:
            # Held open until what is left has been looked for: their numbers are used again as soon as they are free.
            self._pins = [os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES]
            self._init.stdin.close()

    def power_off(self) -> None:
        """All of its processes end at once, as if killed, and its mounts with them."""
        if self._init is None:
            return
        self.pull_plug()
        assert self._init.stdout is not None
        with suppress(subprocess.TimeoutExpired):  # who is there then is left
            self._init.wait(_END_S)
        spaces = {os.readlink(f"/proc/self/fd/{pin}") for pin in self._pins}
        self._left |= dict(in_namespaces(spaces))
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        self._kept += [line for line in mounts if line.split()[3] in spaces]  # of nsfs, by `ip netns attach`
        for pin in self._pins:
            os.close(pin)
        self._init.kill()
        self._init.wait()
        self._init.stdout.close()
        self._init, self.pid, self._pins = None, 0, []

    def leftovers(self) -> list[str]:
        """Processes that outlived a `power_off` and are still there, and mounts that keep a namespace."""
        found = [f"process: {pid} {command}" for pid, command in self._left.items() if alive(pid)]
        return found + [f"namespace kept by a mount: {line}" for line in self._kept]

    # Processes

    def enter(self) -> list[str]:
        """What a command begins with to run on the host."""
        assert self.pid, f"{self.name} is off"
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--"]

    def run(self, *command: str | Path, code: int | None = 0, timeout_s: float = 60.0, **how: Any) -> Done:
        """Run a program to its end; its exit status must be `code` (None: any).

        Args:
            how: for Popen.
        """
        process = self.start(*command, **how)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill(self.pid_of(process))
            out, err = process.communicate()
            raise AssertionError(f"{command} took over {timeout_s:g} s; it said {out!r} {err!r}") from None
        done = Done(process.returncode, out or "", err or "")
        assert code is None or done.code == code, f"{self.name}: {command}: {done}"
        return done

    def start(self, *command: str | Path, **how: Any) -> "subprocess.Popen[str]":
        """Start a program in the environment of the host's node.

        What is returned is the process that entered the host; `pid_of` says which one it entered for.

        Args:
            how: for Popen.
        """
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        return subprocess.Popen([*self.enter(), *map(str, command)], text=True, **{"env": self.forebay.environ} | how)

    def pid_of(self, started: "subprocess.Popen[str]") -> int:
        """The program behind what `start` returned, as the machine sees it."""
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        return int(wait_until(lambda: children.read_text().split(), f"{started.args} to enter {self.name}")[0])

    def processes(self, having: str = "") -> dict[int, str]:
        """Those of the host but its first: number as the machine sees it -> command line.

        Args:
            having: in the command line.
        """
        if not self.pid:
            return {}
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        return {
            pid: command
            for pid, command in in_namespaces({space})
            if pid != self.pid and having in command and alive(pid)
        }

    def outer(self, pid: int) -> int:
        """What the machine calls a process that its own host calls `pid`."""
        for found in self.processes():
            with suppress(OSError):
                status = Path(f"/proc/{found}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if line.split()[-1] == str(pid):
                    return found
        raise ProcessLookupError(f"{self.name} has no process {pid}")

    def kill(self, pid: int) -> None:
        """`kill -9`; returns when it is gone.

        Args:
            pid: as the machine sees it, as all that follow.
        """
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), f"end of {pid}")

    def freeze(self, pid: int) -> None:
        """SIGSTOP; returns when none of its threads runs any more."""
        os.kill(pid, signal.SIGSTOP)
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"{pid} to stop")

    def thaw(self, pid: int) -> None:
        """SIGCONT."""
        os.kill(pid, signal.SIGCONT)
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{parent}/comm").read_text() == "nsenter\n":
            os.kill(parent, signal.SIGCONT)  # it stops with its child and does not go on by itself

    # Disks

    def disk(self, name: str, size_bytes: int) -> Path:
        """A file system of that size (tmpfs), empty again after each `boot`.

        Its files are to be had from outside by `outside`.
        """
        folder = self.folder / name
        folder.mkdir()
        self._disks[folder] = size_bytes
        self._mount_disk(folder, size_bytes)
        return folder

    def _mount_disk(self, folder: Path, size: int) -> None:
        self.run("mount", "-t", "tmpfs", "-o", f"size={size}", "disk", folder)

    def outside(self, path: Path) -> Path:
        """Where a test finds what the host calls `path`. Not for mounts of FUSE: a test that looks at one may hang."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    def fill_disk(self, folder: Path) -> None:
        """Leave not one byte on a disk."""
        with open(self.outside(folder) / _BALLAST, "ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(1 << 20))
        free = os.statvfs(self.outside(folder)).f_bavail
        assert free == 0, f"{free} blocks are free"

    def empty_disk(self, folder: Path) -> None:
        """Take back what `fill_disk` did."""
        (self.outside(folder) / _BALLAST).unlink()

    # The clock

    def preload_clock(self, library: Path) -> None:
        """From now on, processes start with a wall clock that `set_clock` sets.

        Args:
            library: see `build_clock`.
        """
        self.set_clock(0)
        self.forebay.environ |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self.folder / _CLOCK)}

    def set_clock(self, ahead_s: float) -> None:
        """Have the wall clock of these processes be ahead of the machine's by so many seconds, or behind."""
        with open(self.folder / _CLOCK, "r+b" if (self.folder / _CLOCK).exists() else "wb") as file:
            file.write(struct.pack("q", round(ahead_s * 1e9)))

    def erase(self) -> None:
        """Remove its files."""
        deadline = time.monotonic() + _END_S
        while self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=time.monotonic() < deadline)


def build_clock(folder: Path) -> Path:
    """The library that shifts a wall clock, made from `clock_offset.c`.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    made = folder / "clock_offset.so"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, _CLOCK_SOURCE, "-ldl"], check=True
    )
    return made


def in_namespaces(spaces: set[str]) -> Iterator[tuple[int, str]]:
    """Processes that are in one of these namespaces: number and command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it has ended
            if spaces & {os.readlink(entry / "ns" / kind) for kind in NAMESPACES}:
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
