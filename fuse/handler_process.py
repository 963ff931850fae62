"""A handler as its supervisor sees it: started or adopted, watched by a pidfd, ended. Standard library only."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_READY_S = 30.0


class HandlerProcess:
    """One handler, a child of ours or of a supervisor before us.

    Resources: `forget` closes the pidfd; the process goes on.
    """

    def __init__(self, slot: int, incarnation: int, pid: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self.slot = slot
        self.incarnation = incarnation
        self.pid = pid
        self.leaving = False
        """It was asked to stop."""
        self.given_up = False
        """It was killed and need not be waited for: a debugger, a disk or the kernel may keep what is left of it."""
        self._child = child
        self.pidfd = os.pidfd_open(pid)
        """Readable once the process has ended."""

    @classmethod
    def start(
        cls, slot: int, incarnation: int, device: int, spec: int, log: str, *, resend: bool
    ) -> "tuple[HandlerProcess, str]":
        """Start a handler and wait until it serves; also what went wrong, or ''."""
        words = [str(device), str(spec), str(slot), str(incarnation), "resend" if resend else "fresh"]
        with open(log, "ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "forebay.fuse.handler", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=[device, spec],
                cwd="/",
            )
        assert child.stdout is not None
        with child.stdout:
            ready, _, _ = select.select([child.stdout], [], [], _READY_S)
            line = child.stdout.readline().decode(errors="replace").strip() if ready else ""
        trouble = line.removeprefix("error ") or f"the handler did not start; see {log}"
        return cls(slot, incarnation, child.pid, child), "" if line == "ready" else trouble

    @property
    def ended(self) -> bool:
        """Whether the process is gone, or will be: a thread that waits in the kernel for a page that nobody brings any
        more keeps the rest of it from being reaped until the next handler brings that page."""
        if self._child is not None and self._child.poll() is not None:
            return True
        ready, _, _ = select.select([self.pidfd], [], [], 0)
        return bool(ready) or self.state() == "Z"

    @property
    def how_ended(self) -> str:
        """For the log."""
        return "ended" if self._child is None else f"ended with status {self._child.returncode}"

    def state(self) -> str:
        """R, S, D, T, ... of proc(5); '' when it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            return ""

    def stop(self) -> None:
        """Ask it to stop: it answers what it has taken and goes."""
        self.leaving = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it has not come."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self.pidfd], [], [], left)
        return True

    def forget(self) -> None:
        os.close(self.pidfd)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)
