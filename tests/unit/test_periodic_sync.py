"""Syncs on an interval: by one process at a time, in its time, and later after failures."""

from pathlib import Path

import pytest
import trio
import trio.testing

from forebay.cacheruntime.errors import SourceUnavailable
from forebay.fuse import periodic_sync
from forebay.fuse.periodic_sync import Turn, keep_synced, pause_s


def test_pauses_double_up_to_an_hour() -> None:
    assert [pause_s(600, failures) for failures in range(4)] == [600, 1200, 2400, 3600]
    assert pause_s(600, 1000) == 3600
    assert pause_s(86400, 3) == 86400


def test_the_first_turn_comes_after_an_interval(tmp_path: Path) -> None:
    turn = Turn(tmp_path, "id")
    assert not turn.take(1000, 60)
    assert not turn.take(1059, 60)
    assert turn.take(1060, 60)
    turn.end(1061, 60, failed=False)
    assert not turn.take(1061 + 53, 60)
    assert turn.take(1061 + 67, 60)


def test_one_at_a_time(tmp_path: Path) -> None:
    one, two = Turn(tmp_path, "id"), Turn(tmp_path, "id")
    assert not one.take(0, 60)
    assert one.take(100, 60)
    assert not two.take(1000, 60)
    one.end(1000, 60, failed=False)
    assert not two.take(1001, 60)
    assert two.take(1070, 60)
    assert Turn(tmp_path, "other").take(1070, 60) is False, "another dataset begins its own interval"


def test_a_new_mount_waits_for_an_interval_of_its_own(tmp_path: Path) -> None:
    """It has just been listed, whatever was to be done for the mounts before it."""
    turn = Turn(tmp_path, "id")
    turn.take(0, 60)
    assert not turn.take(1000, 60), "nobody was there for long"
    assert turn.take(1060, 60)
    turn.end(1060, 86400, failed=False)
    assert not turn.take(1070, 60), "the last one had a longer interval"
    assert turn.take(1130, 60)


def test_failures_are_remembered_by_the_next(tmp_path: Path) -> None:
    turn = Turn(tmp_path, "id")
    turn.take(0, 60)
    now = 100.0
    for pause in (120, 240, 480):
        turn = Turn(tmp_path, "id")
        assert turn.take(now, 60)
        assert turn.end(now, 60, failed=True) == pause
        now += pause * 1.2
    assert turn.take(now, 60)
    assert turn.end(now, 60, failed=False) == 60


def test_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    turn = Turn(tmp_path, "id")
    turn.take(0, 60)
    (tmp_path / "syncs" / "id").write_text("{")
    assert not turn.take(100, 60)
    assert turn.take(160, 60)


def test_only_the_first_handler_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(periodic_sync, "_now", trio.current_time)
    monkeypatch.setattr(periodic_sync, "_JITTER", 0.0)
    first = [False]
    syncs: list[float] = []

    async def sync() -> None:
        syncs.append(round(trio.current_time() - began))
        if len(syncs) == 2:
            raise SourceUnavailable("the wire was cut")

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        with trio.move_on_after(200):
            await keep_synced(8.0, Turn(tmp_path, "id"), lambda: first[0], sync)
        assert syncs == []
        first[0] = True
        began = trio.current_time()
        with trio.move_on_after(45):
            await keep_synced(8.0, Turn(tmp_path, "id"), lambda: first[0], sync)

    began = 0.0
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert syncs == [10, 18, 34, 42], "looked for every two seconds; after a failure twice the interval"
    assert "the wire was cut" in caplog.text
    assert "the next one comes in 16 s" in caplog.text
