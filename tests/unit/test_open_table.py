"""The open table: the state machine in LMDB, resent requests, and two handlers at once."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

import pytest

from forebay.fuse import open_table as open_table_module
from forebay.fuse.open_mode import InodeState, Io
from forebay.fuse.open_table import OpenTable


class Kernel:
    """Backing ids as the kernel gives them out."""

    def __init__(self) -> None:
        self.live: set[int] = set()
        self.refuses = False
        self._next = 1

    def open(self) -> int:
        if self.refuses:
            return 0
        self._next += 1
        self.live.add(self._next)
        return self._next

    def close(self, backing_id: int) -> None:
        self.live.remove(backing_id)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[OpenTable]:
    made = OpenTable(tmp_path / "open-table")
    yield made
    made.close()


def _yes() -> bool:
    return True


def _never() -> int:
    raise AssertionError("asked in vain")


@pytest.mark.parametrize("length", [3, 4])
def test_every_sequence_with_everything_resent(table: OpenTable, length: int) -> None:
    node, handles = count(10), count(1)
    steps = ("open", "open-eligible", "open-eligible-refused", "release-first", "release-last")
    for sequence in product(steps, repeat=length):
        _run(table, next(node), handles, sequence)


def _run(table: OpenTable, node: int, handles: "count[int]", steps: tuple[str, ...]) -> None:
    kernel = Kernel()
    live: list[tuple[int, int]] = []
    for step in steps:
        if step.startswith("release"):
            if live:
                handle, _ = live.pop(0 if step == "release-first" else -1)
                table.release(node, handle, kernel.close)
                table.release(node, handle, kernel.close)
        else:
            kernel.refuses = "refused" in step
            handle = next(handles)
            backing_id = table.open(node, handle, lambda step=step: "eligible" in step, kernel.open)
            live.append((handle, backing_id))
            assert table.open(node, handle, _yes, _never) == backing_id
        ids = {backing_id for _, backing_id in live}
        assert len(ids) <= 1
        assert kernel.live == ids - {0}
        assert table.state(node).opens == len(live)
    for handle, _ in live:
        table.release(node, handle, kernel.close)
    assert table.state(node) == InodeState()
    assert kernel.live == set()


def test_inodes_are_independent(table: OpenTable) -> None:
    kernel = Kernel()
    first = table.open(5, 1, _yes, kernel.open)
    second = table.open(6, 1, _yes, kernel.open)
    assert first != second
    table.release(5, 1, kernel.close)
    assert kernel.live == {second}


def test_eligible_is_asked_only_when_it_matters(table: OpenTable) -> None:
    kernel = Kernel()
    table.open(5, 1, _yes, kernel.open)

    def never() -> bool:
        raise AssertionError("asked in vain")

    assert table.open(5, 2, never, _never) == table.state(5).backing_id


def test_unknown_release(table: OpenTable) -> None:
    table.release(5, 99, lambda backing_id: None)
    assert table.state(5) == InodeState()


def test_grant_that_fails_counts_nothing(table: OpenTable) -> None:
    def fails() -> int:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        table.open(5, 1, _yes, fails)
    assert table.state(5) == InodeState()
    assert table.open(5, 1, _yes, Kernel().open)


def test_backing_ids_are_bounded(table: OpenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_table_module, "MAX_BACKING_IDS", 3)
    kernel = Kernel()
    assert [bool(table.open(node, 1, _yes, kernel.open)) for node in range(10, 15)] == [True] * 3 + [False] * 2
    assert table.state(14).io is Io.CACHED


def test_state_outlives_its_handler(tmp_path: Path) -> None:
    kernel = Kernel()
    first = OpenTable(tmp_path / "t")
    backing_id = first.open(5, 1, _yes, kernel.open)
    first.close()
    second = OpenTable(tmp_path / "t")
    assert second.open(5, 1, _yes, _never) == backing_id
    second.release(5, 1, kernel.close)
    assert kernel.live == set()
    second.close()


_HANDLER = """
import sys
from pathlib import Path
from forebay.fuse.open_table import OpenTable

table = OpenTable(Path(sys.argv[1]))
first, rounds = int(sys.argv[2]), 200
closed, granted = [], []

def grant():
    granted.append(1000 * first + len(granted) + 1)
    return granted[-1]

print("ready", flush=True)
sys.stdin.readline()
for handle in range(first, first + rounds):
    node = handle % 3
    got = table.open(node, handle, lambda: handle % 4 != 0, grant)
    state = table.state(node)
    assert state.backing_id == got and bool(got) == (state.io.value == 2), (state, got)
    table.release(node, handle, closed.append)
print(*granted, "/", *closed)
"""


def test_two_handlers_at_once(tmp_path: Path) -> None:
    def start(first: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _HANDLER, str(tmp_path / "t"), str(first)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start(1000) as one, start(5000) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        granted: list[str] = []
        closed: list[str] = []
        for process in (one, two):
            out, _ = process.communicate(timeout=20)
            left, _, right = out.partition("/")
            granted += left.split()
            closed += right.split()
    assert granted
    assert sorted(granted) == sorted(closed), "each id is closed once, by whoever released last"
    table = OpenTable(tmp_path / "t")
    assert [table.state(node) for node in range(3)] == [InodeState()] * 3
    table.close()
