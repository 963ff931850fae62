"""Programs that touch mounts in the place of a test: each is a process with a deadline.

A test that looked at a mount itself would hang with it. A program that does not end in time is freed by aborting the
mounts, and fails the test.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuse_mounts import abort_below

SUPPORT = Path(__file__).parent


def start(
    program: str | Path, *args: str | Path, enter: Sequence[str] = (), packages: bool = False, **how: Any
) -> "subprocess.Popen[str]":
    """Start a program, its standard input and output at our hands.

    Args:
        program: its file name in this folder, or its path.
        args: its arguments.
        enter: what the command begins with, to run it elsewhere.
        packages: it uses more than the standard library.
        how: for Popen.
    """
    return subprocess.Popen(
        [*enter, sys.executable, "-E", *([] if packages else ["-S"]), str(SUPPORT / program), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **how,
    )


def ends(processes: "Sequence[subprocess.Popen[str]]", root: Path, timeout_s: float) -> list[str]:
    """Wait for processes that nobody talks to any more; what each printed.

    Args:
        processes: all must end with status 0.
        root: where the mounts are, to be aborted when one does not end.
        timeout_s: for all of them.
    """
    deadline = time.monotonic() + timeout_s
    found = []
    for process in processes:
        try:
            found.append(process.communicate(timeout=max(deadline - time.monotonic(), 0.1))[0])
        except subprocess.TimeoutExpired:
            aborted = abort_below(str(root))
            for other in processes:
                other.kill()
                other.communicate()
            raise AssertionError(f"{process.args} hung for {timeout_s:g} s; aborted {aborted}") from None
    for process in processes:
        assert process.returncode == 0, f"{process.args} ended with status {process.returncode}"
    return found


class Conversation:
    """A program that answers each line of JSON with one. Resources: `close` ends it."""

    def __init__(self, program: str | Path, *args: str | Path, root: Path, timeout_s: float, **how: Any) -> None:
        """
        Args:
            program, args, how: as for `start`.
            root: where the mounts are.
            timeout_s: for one answer.
        """
        self._process = start(program, *args, **how)
        self._root = root
        self._timeout_s = timeout_s
        self._pending = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *question: object) -> Any:
        """Say something, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line(question))

    def _line(self, question: object) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                aborted = abort_below(str(self._root))
                self.close()
                raise AssertionError(f"no answer to {question} within {self._timeout_s:g} s; aborted {aborted}")
            read = os.read(descriptor, 1 << 20)
            assert read, f"the program ended at {question}"
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def close(self) -> None:
        """End the program, whatever it does."""
        self._process.kill()
        self._process.communicate()
