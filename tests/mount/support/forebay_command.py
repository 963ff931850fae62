"""The real `forebay` command in an environment of its own, and the proof that it leaves nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_mounts import abort_below, detach, mounts_below

READER = Path(__file__).with_name("reader.py")
_FOREIGN_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "OSS_", "ALIBABA_", "FOREBAY_")
_END_S = 20.0
"""Processes of a mount that is gone have ended by then: 5 s of idling for a worker, and a busy machine."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Reading:
    """Reader processes at work on a mount; see reader.py."""

    def __init__(self, forebay: "Forebay", tasks: list[dict[str, Any]]) -> None:
        self._forebay = forebay
        self.processes = [
            subprocess.Popen(
                [*forebay.enter(), sys.executable, "-S", "-E", str(READER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in tasks
        ]  # fmt: skip
        for process, task in zip(self.processes, tasks, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            process.stdin = None

    def results(self, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """What all of them report. A reader that hangs is freed by aborting the mounts, and fails the test."""
        deadline = time.monotonic() + timeout_s
        found: list[dict[str, Any]] = []
        for process in self.processes:
            try:
                out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                aborted = abort_below(str(self._forebay.root))
                for other in self.processes:
                    other.kill()
                for other in self.processes:
                    other.communicate()
                raise AssertionError(f"a reader hung for {timeout_s:g} s; aborted {aborted}") from None
            assert process.returncode == 0, err
            found += [json.loads(line) for line in out.splitlines()]
        return found


class Forebay:
    """The command line, isolated below one folder.

    Resources: `end` takes off what is mounted, and returns what should not have been left.
    """

    def __init__(self, root: Path, enter: Callable[[], list[str]] = list) -> None:
        """
        Args:
            root: for its folders.
            enter: what commands begin with, for one that runs them elsewhere.
        """
        self.root = root
        self.enter = enter
        self.cache_dir = root / "cache"
        self.runtime_dir = root / "run"
        self.state_dir = root / "state"
        self._temporary = root / "tmp"
        for folder in (self._temporary, root / "home"):
            folder.mkdir(parents=True)
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_PREFIXES)} | {
            "FOREBAY_CACHE_DIR": str(self.cache_dir),
            "FOREBAY_RUNTIME_DIR": str(self.runtime_dir),
            "FOREBAY_STATE_DIR": str(self.state_dir),
            "TMPDIR": str(self._temporary),
            "HOME": str(root / "home"),
        }
        self._mount_points = 0
        self._expected_log: list[str] = []
        self._readings: list[Reading] = []
        self._started: list[subprocess.Popen[str]] = []

    # Commands

    def command(self, *args: str | Path) -> list[str]:
        return [*self.enter(), sys.executable, "-m", "forebay.cli.main", *map(str, args)]

    def run(
        self, *args: str | Path, code: int | None = 0, timeout_s: float = 60.0, environ: dict[str, str] | None = None
    ) -> Done:
        """Run a command to its end; its exit status must be `code` (None: any)."""
        process = self.start(*args, environ=environ)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            aborted = abort_below(str(self.root))
            process.kill()
            out, err = process.communicate()
            raise AssertionError(
                f"{args} took over {timeout_s:g} s; aborted {aborted}; it said {out!r} {err!r}"
            ) from None
        done = Done(process.returncode, out, err)
        assert code is None or done.code == code, f"{args}: {done}"
        return done

    def start(self, *args: str | Path, environ: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a command and leave it running."""
        process = subprocess.Popen(
            self.command(*args), env=self.environ | (environ or {}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="surrogateescape",
        )  # fmt: skip
        self._started.append(process)
        return process

    def mount_point(self) -> Path:
        """A fresh empty folder."""
        self._mount_points += 1
        folder = self.root / f"m{self._mount_points}"
        folder.mkdir()
        return folder

    def mount(self, source: str, *args: str, at: Path | None = None) -> Path:
        """Mount, and return where."""
        folder = at or self.mount_point()
        done = self.run("mount", source, folder, *args)
        assert done.err == ""
        return folder

    def umount(self, folder: Path, *args: str) -> None:
        done = self.run("umount", folder, *args)
        assert (done.out, done.err) == ("", "")
        assert mounts_below(folder) == []

    def pids(self, folder: Path) -> dict[str, Any]:
        """Of a mount's processes: supervisor, handlers, worker."""
        rows = self.run("mounts", "--json").json()
        return next(row["pids"] for row in rows if row["dir"] == str(folder))

    def status(self, *args: str | Path) -> Any:
        return self.run("status", *args, "--json").json()

    def dataset(self, *args: str | Path) -> Any:
        """Status of the only dataset (of that target)."""
        (found,) = self.status(*args)["datasets"]
        return found

    def read(self, tasks: list[dict[str, Any]], timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Have one reader process for each task; returns when all have ended."""
        return self.start_reading(tasks).results(timeout_s)

    def start_reading(self, tasks: list[dict[str, Any]]) -> Reading:
        reading = Reading(self, tasks)
        self._readings.append(reading)
        return reading

    def expect_log(self, pattern: str) -> None:
        """Warnings and errors in a log that match are in order (searched for, in one line)."""
        self._expected_log.append(pattern)

    # What is there

    def processes(self) -> dict[int, str]:
        """Processes started on behalf of this environment: number -> command line."""
        mark = b"FOREBAY_RUNTIME_DIR=%s\0" % os.fsencode(self.runtime_dir)
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes() and alive(int(entry.name)):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def leftovers(self) -> list[str]:
        """What is there and should not be, once nothing is mounted."""
        found = [f"mounted: {line}" for line in mounts_below(self.root)]
        found += [f"process: {pid} {command}" for pid, command in self.processes().items()]
        state = self.runtime_dir / "mounts"
        found += [f"state: {folder}" for folder in (state.iterdir() if state.exists() else ())]
        found += [f"temporary: {path}" for path in self._temporary.iterdir()]
        return found

    def end(self) -> list[str]:
        """Take everything down; returns what was wrong, which should fail the test."""
        for line in reversed(mounts_below(self.root)):
            detach(line.directory)
        for reading in self._readings:
            for process in reading.processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
        for pid, command in self.processes().items():
            if "forebay.cacheruntime.worker" in command:
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        wrong = self.leftovers()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for process in self._started:
            if process.poll() is None:
                process.wait(10)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        return wrong + self.log_surprises()

    def log_surprises(self) -> list[str]:
        """Warnings and errors in logs that nobody expected."""
        found = []
        for log in [*self.root.glob("*/*.log"), *self.root.glob("*/*/*.log")]:
            for line in log.read_text(errors="replace").splitlines():
                if re.search(r"WARNING|ERROR|CRITICAL|Traceback|^\w*(Error|Exception)\b", line) and not any(
                    re.search(pattern, line) for pattern in self._expected_log
                ):
                    found.append(f"{log.name}: {line}")
        return found
