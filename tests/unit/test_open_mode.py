"""The open state machine, exhaustively; and the choice of a mode."""

from itertools import product

import pytest

from forebay.cacheruntime.catalogue import Totals
from forebay.cacheruntime.config import MIB
from forebay.fuse.open_mode import Grant, InodeState, Io, OpenMode, choose, decide, opened, released

_STEPS = ("open", "open-eligible", "open-eligible-refused", "release-first", "release-last")


@pytest.mark.parametrize("length", range(1, 7))
def test_every_sequence(length: int) -> None:
    for steps in product(_STEPS, repeat=length):
        _run(steps)


def _run(steps: tuple[str, ...]) -> None:
    state, next_id = InodeState(), 1
    live: list[int] = []
    """Backing id of each open, 0 for a cached one."""
    granted: set[int] = set()
    closed: list[int] = []
    for step in steps:
        if step.startswith("release"):
            if not live:
                continue
            live.pop(0 if step == "release-first" else -1)
            state, unused = released(state)
            if unused:
                assert not live, "closed while an open has it"
                closed.append(unused)
        else:
            grant = decide(state, "eligible" in step)
            backing_id = {Grant.CACHED: 0, Grant.SHARE: state.backing_id}.get(grant, 0)
            if grant is Grant.TRY and "refused" not in step:
                backing_id, next_id = next_id, next_id + 1
                granted.add(backing_id)
            state = opened(state, backing_id)
            live.append(backing_id)
        assert len(set(live)) <= 1, "cached and passthrough opens at once, or two ids"
        expected = Io.NONE if not live else Io.PASSTHROUGH if live[0] else Io.CACHED
        assert state == InodeState(expected, live[0] if live else 0, len(live))
        assert sorted(closed) == sorted(granted - set(live)), "each id is closed once, after the last release"


def test_not_eligible_is_not_tried() -> None:
    assert decide(InodeState(), False) is Grant.CACHED
    assert decide(InodeState(Io.CACHED, 0, 1), True) is Grant.CACHED
    assert decide(InodeState(Io.PASSTHROUGH, 7, 1), False) is Grant.SHARE


def _totals(small: int, large: int, *, files: int = 9, complete: bool = True) -> Totals:
    return Totals(files, small + large, small, 0, complete, "")


@pytest.mark.parametrize(
    ("totals", "possible", "mode"),
    [
        (_totals(90, 10), True, OpenMode.NO_OPEN),
        (_totals(89, 11), True, OpenMode.PASSTHROUGH),
        (_totals(0, 100 * MIB), True, OpenMode.PASSTHROUGH),
        (_totals(0, 100 * MIB), False, OpenMode.CACHED),
        (_totals(100, 0), False, OpenMode.NO_OPEN),
        (_totals(0, 0, files=0), True, OpenMode.PASSTHROUGH),
        (_totals(0, 0), False, OpenMode.CACHED),
    ],
)
def test_choice(totals: Totals, possible: bool, mode: OpenMode) -> None:
    assert choose(totals, possible)[0] is mode


def test_reason_says_so_while_the_listing_goes_on() -> None:
    assert choose(_totals(9, 1, complete=False), True)[1] == "90% of the bytes listed so far are in files under 1 MiB"
    assert choose(_totals(1, 9), True)[1] == "90% of the bytes are in files of 1 MiB and more"
