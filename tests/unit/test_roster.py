"""The roster: who serves a mount, and which life of which handler goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.fuse.roster import SLOTS, Roster, now_ms


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    return Roster(tmp_path / "roster")


def test_an_empty_one(roster: Roster) -> None:
    assert roster.rows() == []
    assert (roster.free_slot(), roster.header("generation"), roster.is_live(0)) == (0, 0, False)


def test_incarnations_are_never_used_again(tmp_path: Path) -> None:
    assert [Roster(tmp_path / "roster").mint() for _ in range(3)] == [1, 2, 3]


def test_a_row_is_seen_by_others(tmp_path: Path, roster: Roster) -> None:
    roster.set_header("generation", 4)
    place = roster.enter(3, 7)
    (row,) = Roster(tmp_path / "roster").rows()
    assert (row.slot, row.pid, row.incarnation, row.generation, row.alive) == (3, os.getpid(), 7, 4, True)
    assert now_ms() - row.beat_ms < 10_000
    place.serve(5)
    assert roster.row(3).generation == 5
    before = roster.row(3).beat_ms
    place.beat(1.5)
    assert roster.row(3).beat_ms >= before
    assert roster.row(3).busy_us == 1_500_000
    assert roster.free_slot() == 0


def test_the_dead_leave_their_slots(roster: Roster, tmp_path: Path) -> None:
    enter = "import sys; from pathlib import Path; from forebay.fuse.roster import Roster; "
    enter += "Roster(Path(sys.argv[1])).enter(0, 9)"
    subprocess.run([sys.executable, "-c", enter, str(tmp_path / "roster")], check=True)
    assert roster.row(0).incarnation == 9
    assert not roster.row(0).alive
    assert not roster.is_live(9)
    assert roster.free_slot() == 0
    first, second = roster.enter(1, 10), roster.enter(2, 11)
    assert roster.is_live(10)
    assert (first.is_first, second.is_first) == (True, False)


def test_a_handler_that_is_given_up(roster: Roster) -> None:
    roster.enter(0, 5)
    other = roster.enter(1, 6)
    roster.clear(0)
    assert [row.slot for row in roster.rows()] == [1]
    assert not roster.is_live(5)
    assert other.is_first


def test_another_process_with_the_same_id(roster: Roster) -> None:
    roster.enter(0, 1)
    row = roster.row(0)
    assert not type(row)(row.slot, row.pid, row.start + 1, 1, row.beat_ms, 0, 0).alive


def test_all_slots(roster: Roster) -> None:
    for slot in range(SLOTS):
        assert roster.free_slot() == slot
        roster.enter(slot, slot + 1)
    with pytest.raises(StopIteration):
        roster.free_slot()
