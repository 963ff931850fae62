"""The worker's memory stays under its budget, in a control group that would kill it."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from forebay_command import Forebay
from memory_group import MemoryGroup
from range_server import RangeServer
from source_tree import MIB

from forebay.cacheruntime.worker.memory import default_budget

pytestmark = [pytest.mark.slow, pytest.mark.sides("kernel")]

_LIMIT_BYTES = 512 * MIB
_READERS = 64
_FILE_BYTES = 12 * MIB + 12345


class AnonymousMemory:
    """Watches the anonymous memory of a process, while something goes on."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.most = self._now()

    def _now(self) -> int:
        found = re.search(r"^RssAnon:\s*(\d+) kB$", self._path.read_text(), re.MULTILINE)
        assert found is not None, "the worker is gone"
        return int(found[1]) << 10

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._now())

    def __enter__(self) -> "AnonymousMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[RangeServer]:
    found = RangeServer(_READERS, _FILE_BYTES)
    yield found
    found.close()


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    try:
        found = MemoryGroup(_LIMIT_BYTES)
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    yield found
    found.close()


@pytest.fixture
def limited(group: MemoryGroup, forebay: Forebay) -> Forebay:
    """After `group`, so that its processes end before the group is removed."""
    return forebay


@pytest.mark.parametrize("quota", ["2GiB", "1MiB"], ids=["cached", "read through"])
def test_memory_of_64_cold_readers(limited: Forebay, group: MemoryGroup, server: RangeServer, quota: str) -> None:
    folder = limited.mount_point()
    tier = f"SSD:{limited.root}/tier:{quota}"
    subprocess.run(
        limited.command("mount", server.source, folder, *server.args, "--tier", tier),
        env=limited.environ, check=True, timeout=60, capture_output=True, preexec_fn=group.enter,
    )  # fmt: skip
    worker = limited.pids(folder)["worker"]
    assert worker in group.pids
    with AnonymousMemory(worker) as memory:
        tasks = [{"jobs": [["read", str(folder / str(number))]], "seed": number} for number in range(_READERS)]
        results = limited.read(tasks, timeout_s=80)
    assert [result["sha256"] for result in results] == [server.digest(number) for number in range(_READERS)]
    assert group.kills == 0
    assert limited.pids(folder)["worker"] == worker, "it was not started anew"
    taken, budget = memory.most - memory.before, default_budget(os.sysconf("SC_PHYS_PAGES") * 4096, _LIMIT_BYTES)
    assert taken <= budget, f"{taken / MIB:.0f} MiB of {budget / MIB:.0f} MiB"
    print(f"{quota}: base {memory.before / MIB:.0f} MiB, then {taken / MIB:.0f} of {budget / MIB:.0f} MiB")
    limited.umount(folder)
