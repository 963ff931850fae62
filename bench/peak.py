"""The most memory that processes hold together while something runs."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.05
"""Between two looks; one takes some milliseconds for each process."""


@dataclass
class Peak:
    """The most of any look, in bytes; sums over all processes, each page of memory counted once (PSS)."""

    pss: int = 0
    """With pages of mapped files, which the kernel may take back at any time."""
    held: int = 0
    """Without them: anonymous and shared memory."""
    looks: int = 0

    def look(self, pids: Sequence[int]) -> None:
        """Look once."""
        parts = [memory_of(pid) for pid in pids]
        self.pss = max(self.pss, sum(part.get("Pss", 0) for part in parts))
        self.held = max(self.held, sum(part.get("Pss_Anon", 0) + part.get("Pss_Shmem", 0) for part in parts))
        self.looks += 1


@contextmanager
def peak(pids: Callable[[], Sequence[int]]) -> Iterator[Peak]:
    """Look again and again for as long as the context lasts.

    Args:
        pids: processes that are there now; asked at each look, from another thread.
    """
    found, stop = Peak(), threading.Event()

    def watch() -> None:
        ended = False
        while not ended:
            began = time.monotonic()
            found.look(pids())
            ended = stop.wait(max(_EVERY_S, time.monotonic() - began))  # at most half of a core

    thread = threading.Thread(target=watch, name="peak")
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def memory_of(pid: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/smaps_rollup; none for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(words.split()[0]) << 10 for name, _, words in (line.partition(":") for line in lines)}
