"""Readers that work at the same time, each a process, and the CPU time that daemons use meanwhile."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import mean

from forebay.bench.reader import Done, Job

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_END_S = 10.0


class ReaderFailed(Exception):
    """A reader ended with an error, which this carries."""


@dataclass(frozen=True)
class Total:
    """What all readers did together."""

    count: int
    size: int
    """Bytes."""
    seconds: float
    """From the first one's start to the last one's end."""
    digests: tuple[int, ...] = ()
    waited: int = 0
    fetched: float = 0.0
    """See `Done`; each reader tells of all, so this is the mean."""


def total_of(dones: Sequence[Done]) -> Total:
    """The sum of what readers did."""
    return Total(
        sum(done.count for done in dones),
        sum(done.size for done in dones),
        max(done.ended_s for done in dones) - min(done.started_s for done in dones),
        tuple(digest for done in dones for digest in done.digests),
        sum(done.waited for done in dones),
        mean(done.fetched for done in dones),
    )


def run_readers(jobs: Sequence[Job]) -> Total:
    """Start one process for each job, let all go at once, and wait for them.

    Raises:
        ReaderFailed: with what the reader said.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(_Reader(job)) for job in jobs]
        for reader in readers:
            reader.expect("ready")
        for reader in readers:
            reader.tell("go")
        return total_of([reader.result() for reader in readers])


def share(job: Job, readers: int) -> list[Job]:
    """The names of a job dealt out to so many readers, as a loader deals them out to its workers."""
    return [Job(job.do, job.folder, job.names[number::readers], job.limit_s) for number in range(readers)]


class _Reader:
    """One process of `forebay.bench.reader`."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "forebay.bench.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        words = asdict(job)
        if job.limit_s == inf:
            del words["limit_s"]  # JSON has no infinity
        self.tell(json.dumps(words))

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=_END_S)

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def expect(self, word: str) -> None:
        if (said := self._line()) != word:
            raise ReaderFailed(f"a reader said {said!r}, not {word!r}")

    def result(self) -> Done:
        words = json.loads(self._line())
        self._process.wait(_END_S)
        return Done(**{**words, "digests": tuple(words["digests"])})

    def _line(self) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            raise ReaderFailed(self._process.stderr.read().strip().splitlines()[-1])
        return line.strip()


def family(pids: Sequence[int]) -> list[int]:
    """Processes and all that descend from them: proc(5), field 4 of stat."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid for pid in pids if _stat(pid)]
    for pid in found:
        found += [child for child in children.get(pid, ()) if child not in found]
    return found


def cpu_seconds(pids: Sequence[int]) -> dict[int, float]:
    """User and system time that processes have used so far (proc(5), fields 14 and 15 of stat); none for the dead."""
    used = {pid: fields for pid in pids if (fields := _stat(pid))}
    return {pid: (int(fields[11]) + int(fields[12])) / _TICKS_PER_S for pid, fields in used.items()}


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds of CPU time used between two looks; a process that was new at the second one counts whole."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, from the third on; none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
