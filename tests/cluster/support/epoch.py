"""Readers on several hosts that go through a `FileSet` together, and what they report."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from forebay_command import wait_until
from host import Host
from named_files import FileSet

READER = Path(__file__).with_name("epoch_reader.py")


@dataclass(frozen=True)
class Report:
    """Of one reader."""

    files: int
    failed: int
    """Files that could not be read."""
    wrong: int
    """Files with another size or other bytes than they should have."""
    examples: list[list[object]]
    """Name, and errno or offset, of some of both."""
    seconds: float
    slowest_s: float
    """The longest time that one file took."""
    slowest: str
    """Which one."""


class Epoch:
    """Readers at work. Resources: they end with their hosts, or in `results`."""

    def __init__(
        self, files: FileSet, places: list[tuple[Host, Path]], *, order: int, epochs: int = 1, shared: bool = False
    ) -> None:
        """
        Args:
            files: which.
            places: a host and a folder of it, for each reader.
            order: seed of the order in which they are read, which is another one in each epoch.
            epochs: how often all is read.
            shared: each reader reads its share only, as data-parallel training does; else all of them read all, and
                each in an order of its own.
        """
        self._total = len(files.names) * epochs * (1 if shared else len(places))
        self._progress: list[Path] = []
        self._hosts = [host for host, _ in places]
        self._processes: list[subprocess.Popen[str]] = []
        for number, (host, folder) in enumerate(places):
            progress = host.folder / f"progress-{number}"
            progress.write_bytes(bytes(8))
            self._progress.append(progress)
            process = host.start(sys.executable, "-S", "-E", READER, stdin=subprocess.PIPE)
            task = {
                "root": str(folder), "small": files.small, "large": files.large, "seed": files.seed, "epochs": epochs,
                "order": order if shared else order * len(places) + number,
                "share": (number, len(places)) if shared else (0, 1), "progress": str(progress),
            }  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            process.stdin = None
            self._processes.append(process)

    @property
    def done(self) -> float:
        """Which share of all files has been read: 0 to 1."""
        return sum(int.from_bytes(path.read_bytes(), "little") for path in self._progress) / self._total

    def wait_done(self, share: float, timeout_s: float) -> None:
        """Until so much is done; a fault can come in the middle."""
        wait_until(lambda: self.done >= share, f"{share:.0%} of the epoch (it is at {self.done:.0%})", timeout_s)

    def results(self, timeout_s: float) -> list[Report]:
        """What all readers report. One that hangs is killed, and fails the test."""
        deadline = time.monotonic() + timeout_s
        found = []
        for host, process in zip(self._hosts, self._processes, strict=True):
            try:
                out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                at = self.done
                for other in {*self._hosts}:
                    other.power_off()
                raise AssertionError(f"the reader on {host.name} hung, {timeout_s:g} s on; {at:.1%} is done") from None
            assert process.returncode == 0, f"the reader on {host.name} ended with {process.returncode}: {err}"
            found.append(Report(**json.loads(out)))
        return found
