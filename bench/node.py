"""One cache in a folder of its own, driven through the real command line, and left without a trace.

The mount is only ever touched by the reader. Whatever may hang on it is bounded from outside: commands have a time
limit, and the `Watchdog` breaks the FUSE connection of a mount that stands still.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from forebay.cacheruntime.mounts import start_time
from forebay.fuse import mounting

_COMMAND_S = 60.0
_END_S = 15.0
"""A mount's processes and its worker have ended by themselves within this, or are ended."""


class CommandFailed(Exception):
    """A `forebay` command ended with an error, which this carries."""


class Node:
    """A cache folder, a runtime folder and any number of mounts below one folder.

    *Resources*: leaving the context unmounts, ends what a failed unmount left, and keeps the files.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """
        Args:
            folder: a new one is made here.
            environ: for the commands; credentials of the source among them.
        """
        self.folder = folder
        self.cache_dir = folder / "cache"
        folder.mkdir(parents=True)
        self._environ = {**environ, "FOREBAY_RUNTIME_DIR": str(folder / "run")}
        self._mounts: list[Path] = []
        self._seen: dict[int, int] = {}  # process id -> when it started

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for directory in list(self._mounts):
            self._end_mount(directory)
        deadline = time.monotonic() + _END_S
        while self.living() and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)

    @property
    def directories(self) -> list[Path]:
        """Where mounts are, or are being made."""
        return list(self._mounts)

    def mount(self, name: str, source: str, options: list[str], *flags: str) -> Path:
        """Mount a source; returns the folder."""
        directory = self.folder / name
        directory.mkdir()
        self._mounts.append(directory)
        chosen = [word for option in options for word in ("--option", option)]
        self.command("mount", source, str(directory), "--cache-dir", str(self.cache_dir), *chosen, *flags)
        self.processes()
        return directory

    def umount(self, directory: Path) -> None:
        """Unmount; what is cached stays."""
        self.command("umount", str(directory))
        self._mounts.remove(directory)
        directory.rmdir()

    def warmup(self, directory: Path, *paths: str, time_limit_s: float = 300.0) -> None:
        """Cache a mount's files, or only some, ahead of their reader."""
        self.command("warmup", str(directory), *paths, "--json", time_limit_s=time_limit_s)

    def status(self) -> dict[str, Any]:
        """What `forebay status --json` says."""
        found: dict[str, Any] = json.loads(self.command("status", "--cache-dir", str(self.cache_dir), "--json"))
        return found

    def mounted(self, directory: Path) -> dict[str, Any]:
        """One mount, as `forebay mounts --json` says."""
        rows: list[dict[str, Any]] = json.loads(self.command("mounts", "--json"))
        return next(row for row in rows if row["dir"] == os.path.realpath(directory.parent) + f"/{directory.name}")

    def processes(self) -> dict[str, list[int]]:
        """Process ids of all mounts here: of supervisors, handlers and the worker."""
        found: dict[str, list[int]] = {"supervisor": [], "handlers": [], "worker": []}
        for row in json.loads(self.command("mounts", "--json")):
            pids = row["pids"]
            found["supervisor"].append(pids["supervisor"])
            found["handlers"] += pids["handlers"]
            if pids["worker"] and pids["worker"] not in found["worker"]:
                found["worker"].append(pids["worker"])
        for pid in [pid for group in found.values() for pid in group]:
            started = start_time(pid)
            if started is not None:
                self._seen.setdefault(pid, started)
        return found

    def command(self, *words: str, time_limit_s: float = _COMMAND_S) -> str:
        """Run one `forebay` command; its output.

        Raises:
            CommandFailed: with what it said.

        *Cancellation*: waits until the command has ended, so that nothing is half mounted behind our back.
        """
        with subprocess.Popen(
            [sys.executable, "-m", "forebay.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environ,
            start_new_session=True,
        ) as process:
            try:
                output, said = process.communicate(timeout=time_limit_s)
            except BaseException as error:
                if words[0] == "warmup" or isinstance(error, subprocess.TimeoutExpired):
                    process.terminate()
                try:
                    process.communicate(timeout=_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise
        if process.returncode:
            raise CommandFailed(f"forebay {' '.join(words)}: exit status {process.returncode}: {said.strip()}")
        return output

    def break_mounts(self) -> None:
        """Abort the FUSE connections: every reader gets an error at once, whatever our processes do."""
        for directory in self._mounts:
            entry = mounting.mounted(mounting.real_directory(str(directory)))
            if entry is not None:
                mounting.abort(entry.device)

    def _end_mount(self, directory: Path) -> None:
        real = mounting.real_directory(str(directory))
        try:
            self.processes()
            self.umount(directory)
        except (CommandFailed, subprocess.TimeoutExpired, OSError) as error:
            entry = mounting.mounted(real)
            if entry is None:
                return  # it never came to be
            print(f"unmounting by force: {error}", file=sys.stderr)
            mounting.abort(entry.device)
            mounting.unmount(real, lazy=True)

    def living(self) -> list[int]:
        """Processes of this node that were seen after a mount and are still there."""
        return [pid for pid, started in self._seen.items() if start_time(pid) == started]


class Breakable(Protocol):
    """Something with mounts on which a reader may hang."""

    def break_mounts(self) -> None:
        """Free whoever hangs; called from another thread."""


class Watchdog:
    """Breaks mounts and then ends this process when nothing has moved for a while."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._guarded: list[Breakable] = []
        self.bitten = False
        """It found us hanging; the readers it freed got errors."""

    def pat(self) -> None:
        """Something moved."""
        self._last = time.monotonic()

    def guard(self, one: Breakable) -> None:
        """Break also its mounts."""
        self._guarded.append(one)

    @contextmanager
    def watching(self) -> Iterator["Watchdog"]:
        """Watch for as long as the context lasts."""
        thread = threading.Thread(target=self._watch, name="watchdog")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            if time.monotonic() - self._last < self._limit_s:
                continue
            if self.bitten:
                print("still hanging after the mounts were broken: giving up", file=sys.stderr, flush=True)
                os._exit(3)
            self.bitten = True
            print(f"nothing moved for {self._limit_s:g} s: breaking the mounts", file=sys.stderr, flush=True)
            for one in self._guarded:
                one.break_mounts()
            self._last = time.monotonic() - self._limit_s + 3 * _END_S


@contextmanager
def signals_end() -> Iterator[None]:
    """SIGINT and SIGTERM leave by an exception, once; what comes while we clean up is not heard."""

    def leave(number: int, _: FrameType | None) -> None:
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, lambda *_: None)  # SIG_IGN would pass on to the commands that clean up
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
