"""The open table: every order of what can happen to the opens of an inode, against a kernel that knows EIO."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

import pytest

from forebay.fuse import open_table as open_table_module
from forebay.fuse.open_mode import InodeState, Io
from forebay.fuse.open_table import Attempt, OpenTable

DEAD, LIVE, OTHER = 1, 2, 3
"""Lives of handlers; a handle's upper half names one."""


class Kernel:
    """Gives out backing ids, and keeps the rule of fs/fuse/iomode.c: an inode's opens are all cached, or all passed
    through by one id."""

    def __init__(self) -> None:
        self.live: set[int] = set()
        self.grants = True
        """Whether a file may be registered; not when it is not whole, of another size, or refused by the ioctl."""
        self.opens: dict[int, int] = {}
        """Handle -> backing id, of opens whose reply was taken."""
        self._next = 1

    def grant(self) -> int:
        if not self.grants:
            return 0
        self._next += 1
        self.live.add(self._next)
        return self._next

    def revoke(self, backing_id: int) -> None:
        assert backing_id not in self.opens.values(), "an id that an open file still has is closed"
        self.live.remove(backing_id)

    def takes(self, handle: int, backing_id: int) -> None:
        """A reply to OPEN arrives."""
        assert not backing_id or backing_id in self.live
        assert set(self.opens.values()) <= {backing_id}, "EIO: a mode clash"
        self.opens[handle] = backing_id


class Never:
    """Passthrough of which nothing may be asked."""

    def grant(self) -> int:
        raise AssertionError("asked in vain")

    def revoke(self, backing_id: int) -> None:
        raise AssertionError("asked in vain")


def _is_live(life: int) -> bool:
    return life != DEAD


@pytest.fixture
def table(tmp_path: Path) -> Iterator[OpenTable]:
    made = OpenTable(tmp_path / "open-table", _is_live)
    yield made
    made.close()


def _first(handle: int, life: int = LIVE) -> Attempt:
    return Attempt(life << 32 | handle, handle, False)


STEPS = (
    "open",  # whole and granted
    "open, not granted",  # partly cached, evicted, of another size, refused by the ioctl
    "open, its handler dies",  # counted, not answered; a successor gets the request again
    "open, resent to two",  # both live; the kernel takes the second reply and refuses the first
    "open, resent to two, first taken",
    "open, reader gone",  # the reply is refused: nobody waits any more
    "release first",
    "release last",
)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_order(table: OpenTable, length: int) -> None:
    nodes, numbers = count(10), count(1)
    for steps in product(STEPS, repeat=length):
        _run(table, next(nodes), numbers, steps)


def _run(table: OpenTable, node: int, numbers: "count[int]", steps: tuple[str, ...]) -> None:
    kernel = Kernel()
    for step in steps:
        if step.startswith("release"):
            if kernel.opens:
                handle = (min if step == "release first" else max)(kernel.opens)
                del kernel.opens[handle]
                table.release(node, handle, kernel.revoke)
                table.release(node, handle, kernel.revoke)  # resent
        else:
            _open(table, node, next(numbers), step, kernel)
        ids = set(kernel.opens.values())
        assert kernel.live == ids - {0}, "ids are held as long as opens have them, and no longer"
        expected = Io.NONE if not ids else Io.CACHED if ids == {0} else Io.PASSTHROUGH
        assert (table.state(node).io, table.state(node).opens) == (expected, len(kernel.opens)), steps
    for handle in list(kernel.opens):
        del kernel.opens[handle]
        table.release(node, handle, kernel.revoke)
    assert table.state(node) == InodeState()
    assert kernel.live == set()


def _open(table: OpenTable, node: int, number: int, step: str, kernel: Kernel) -> None:
    kernel.grants = step != "open, not granted"
    life = DEAD if step == "open, its handler dies" else LIVE
    handle = life << 32 | number
    backing_id = table.open(node, Attempt(handle, number, False), kernel)
    if step in ("open", "open, not granted"):
        kernel.takes(handle, backing_id)
    elif step == "open, reader gone":
        table.release(node, handle, kernel.revoke)
    else:
        second = OTHER << 32 | number
        second_id = table.open(node, Attempt(second, number, True), kernel)
        if step == "open, resent to two, first taken":
            kernel.takes(handle, backing_id)
            table.release(node, second, kernel.revoke)
        else:
            kernel.takes(second, second_id)
            if step == "open, resent to two":
                table.release(node, handle, kernel.revoke)


def test_resent_again_and_again(table: OpenTable) -> None:
    """Each successor takes back what the dead ones before it had counted."""
    kernel = Kernel()
    for number in range(4):
        table.open(5, Attempt(DEAD << 32 | number, 77, bool(number)), kernel)
    backing_id = table.open(5, Attempt(LIVE << 32, 77, True), kernel)
    assert (table.state(5), kernel.live) == (InodeState(Io.PASSTHROUGH, backing_id, 1), {backing_id})


def test_the_dead_are_taken_back_for_their_request_alone(table: OpenTable) -> None:
    """A handler that died has also opens that were answered, and are still in use."""
    kernel = Kernel()
    table.open(5, Attempt(DEAD << 32 | 1, 76, False), kernel)
    table.open(5, Attempt(DEAD << 32 | 2, 77, False), kernel)
    table.open(5, Attempt(LIVE << 32 | 3, 77, True), kernel)
    assert table.state(5).opens == 2


def test_inodes_are_independent(table: OpenTable) -> None:
    """So are the versions of a replaced file, for a node names one."""
    kernel = Kernel()
    first = table.open(5, _first(1), kernel)
    second = table.open(6, _first(1), kernel)
    assert first != second
    table.release(5, _first(1).handle, kernel.revoke)
    assert kernel.live == {second}
    assert table.passed_through() == 1


def test_gauge(tmp_path: Path) -> None:
    assert OpenTable.gauge(tmp_path / "none") == 0
    table = OpenTable(tmp_path / "t", _is_live)
    kernel = Kernel()
    for node in range(3):
        table.open(node, _first(1), kernel)
    table.close()
    assert OpenTable.gauge(tmp_path / "t") == 3


def test_a_grant_is_asked_for_only_when_it_matters(table: OpenTable) -> None:
    backing_id = table.open(5, _first(1), Kernel())
    assert table.open(5, _first(2), Never()) == backing_id


def test_unknown_release(table: OpenTable) -> None:
    table.release(5, 99, lambda backing_id: None)
    assert table.state(5) == InodeState()


def test_grant_that_fails_counts_nothing(table: OpenTable) -> None:
    class Fails(Never):
        def grant(self) -> int:
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        table.open(5, _first(1), Fails())
    assert table.state(5) == InodeState()
    assert table.open(5, _first(1), Kernel())


def test_backing_ids_are_bounded(table: OpenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_table_module, "MAX_BACKING_IDS", 3)
    kernel = Kernel()
    assert [bool(table.open(node, _first(1), kernel)) for node in range(10, 15)] == [True] * 3 + [False] * 2
    assert table.state(14).io is Io.CACHED
    table.release(10, _first(1).handle, kernel.revoke)
    table.release(14, _first(1).handle, kernel.revoke)
    assert table.open(14, _first(2), kernel), "there is room again"


def test_state_outlives_its_handler(tmp_path: Path) -> None:
    kernel = Kernel()
    first = OpenTable(tmp_path / "t", _is_live)
    backing_id = first.open(5, _first(1), kernel)
    first.close()
    second = OpenTable(tmp_path / "t", _is_live)
    assert second.open(5, _first(2), Never()) == backing_id
    second.release(5, _first(1).handle, kernel.revoke)
    second.release(5, _first(2).handle, kernel.revoke)
    assert kernel.live == set()
    second.close()


_HANDLER = """
import sys
from pathlib import Path
from forebay.fuse.open_table import Attempt, OpenTable

table = OpenTable(Path(sys.argv[1]), lambda life: True)
first, rounds = int(sys.argv[2]), 200
closed, granted = [], []

class Passthrough:
    def __init__(self, number):
        self.number = number

    def grant(self):
        if self.number % 4 == 0:
            return 0
        granted.append(1000 * first + len(granted) + 1)
        return granted[-1]

    def revoke(self, backing_id):
        closed.append(backing_id)

print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + rounds):
    node, handle = number % 3, first << 32 | number
    got = table.open(node, Attempt(handle, number, False), Passthrough(number))
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
    table = OpenTable(tmp_path / "t", _is_live)
    assert [table.state(node) for node in range(3)] == [InodeState()] * 3
    table.close()
