"""A memory control group of our own, below the one that the tests run in (cgroup v1 or v2)."""

import os
import time
from pathlib import Path

from forebay.cacheruntime.memory_limit import limit_files

_END_S = 10.0


class MemoryGroup:
    """A group with a limit.

    Resources: `close` removes it; its processes must have ended.
    """

    def __init__(self, limit_bytes: int) -> None:
        """
        Raises:
            OSError: none can be made here.
        """
        groups, mounts = Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
        files = [path for path in limit_files(groups, mounts) if path.parent.is_dir()]
        if not files:
            raise FileNotFoundError("no memory control group is mounted")
        self.folder = files[0].parent / f"forebay-test-{os.getpid()}"
        self._is_v1 = files[0].name == "memory.limit_in_bytes"
        self.folder.mkdir()
        try:
            (self.folder / files[0].name).write_text(str(limit_bytes))
        except OSError:
            self.folder.rmdir()  # v2: the parent does not hand the controller down
            raise

    def enter(self) -> None:
        """Put the calling process in, and what it starts. For Popen's `preexec_fn`."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        text = (self.folder / ("memory.oom_control" if self._is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def close(self) -> None:
        deadline = time.monotonic() + _END_S
        while True:
            try:
                self.folder.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
