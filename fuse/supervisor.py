"""The supervisor of one mount: ``python -m forebay.fuse.supervisor SPEC_FD``.

It mounts, keeps the /dev/fuse descriptor, and starts a handler, again and again if need be: while the descriptor is
open the mount stays, and a new handler asks the kernel for what a dead one left unanswered. It takes part in nothing
else, so there is little that could bring it down. It ends when the mount is gone.

It prints one line: ``ready`` when the mount is usable, or ``error ...``.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from forebay.cacheruntime import mounts
from forebay.fuse import mounting
from forebay.fuse.mount_spec import MountSpec

MAX_READ_BYTES = 1 << 20
READ_AHEAD_BYTES = 4 << 20
"""Of the kernel, for opens that are not passed through: enough requests under way to hide a handler's latency."""

_RESTART_PAUSES_S = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0)
"""Before the next handler, by how many died within the last minute; the last one for all further."""

_READY_S = 30.0
_ENDED = 0
"""Exit status of a handler that saw the mount go away."""


class Supervisor:
    """See the module."""

    def __init__(self, spec_descriptor: int) -> None:
        self._spec_descriptor = spec_descriptor
        self._spec = MountSpec.from_memory(spec_descriptor)
        self._folder = Path(self._spec.folder)
        self._stopping = False
        self._handler: subprocess.Popen[str] | None = None

    def run(self) -> int:
        spec = self._spec
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            device = mounting.mount(spec.directory, spec.source_url, spec.allow_other, MAX_READ_BYTES)
        except mounting.MountFailed as error:
            print(f"error {error.strerror}", flush=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closing terminal does not end a mount
        trouble = self._start_handler(device)
        if trouble:
            self._unmount()
            self._end_handler()
            shutil.rmtree(self._folder, ignore_errors=True)
            print(f"error {trouble}", flush=True)
            return 1
        entry = mounting.mounted(spec.directory)
        if entry is not None:
            mounting.set_read_ahead(entry.device, READ_AHEAD_BYTES)
        print("ready", flush=True)
        _detach_output(spec.log)
        self._keep(device)
        self._end_handler()
        shutil.rmtree(self._folder, ignore_errors=True)
        return 0

    def _keep(self, device: int) -> None:
        deaths: list[float] = []
        while True:
            assert self._handler is not None
            status = self._handler.wait()
            if status == _ENDED or self._stopping or self._spec.engine != "kernel":
                break
            now = time.monotonic()
            deaths = [*(at for at in deaths if now - at < 60), now]
            time.sleep(_RESTART_PAUSES_S[min(len(deaths), len(_RESTART_PAUSES_S)) - 1])
            print(f"handler {self._handler.pid} ended with status {status}: starting another", flush=True)
            self._start_handler(device)
        if mounting.mounted(self._spec.directory) is not None and self._spec.engine != "kernel":
            self._unmount()  # its library cannot go on with a connection that another process began

    def _start_handler(self, device: int) -> str:
        """Start a handler and wait until it serves; returns what went wrong, or ''."""
        command = [sys.executable, "-m", "forebay.fuse.handler", str(device), str(self._spec_descriptor)]
        with open(self._spec.log, "a") as log:
            self._handler = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[device, self._spec_descriptor],
                text=True,
                cwd="/",
            )
        self._write_state()
        assert self._handler.stdout is not None
        line = self._handler.stdout.readline().strip()
        self._handler.stdout.close()
        return (
            "" if line == "ready" else line.removeprefix("error ") or f"the handler did not start; see {self._spec.log}"
        )

    def _write_state(self) -> None:
        spec = self._spec
        state = mounts.MountState(
            dir=spec.directory, source=spec.shown_source, url=spec.source_url, dataset_id=spec.dataset_id,
            snapshot=spec.snapshot, catalogue=spec.catalogue, cache_dir=spec.cache_dir, engine=spec.engine,
            open_mode=spec.open_mode, open_mode_reason=spec.open_mode_reason, supervisor=os.getpid(),
            supervisor_start=mounts.start_time(os.getpid()) or 0,
            handlers=(self._handler.pid,) if self._handler else (), note=spec.passthrough_note,
        )  # fmt: skip
        mounts.write_state(self._folder, state)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        self._unmount()

    def _unmount(self) -> None:
        with suppress(mounting.MountFailed):
            try:
                mounting.unmount(self._spec.directory)
            except mounting.MountFailed as error:
                if error.errno == errno.EBUSY:
                    mounting.unmount(self._spec.directory, lazy=True)

    def _end_handler(self) -> None:
        handler = self._handler
        if handler is None or handler.poll() is not None:
            return
        try:
            handler.wait(5)
        except subprocess.TimeoutExpired:
            handler.kill()
            handler.wait()


def _detach_output(log: str) -> None:
    """Whoever started the mount has read its line; from now on everything goes to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    sys.exit(Supervisor(int(sys.argv[1])).run())
