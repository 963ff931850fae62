"""The touch map."""

import subprocess
import sys
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.touch import SLOTS, TouchMap, slot_of


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1))
def test_slots_are_in_the_map(content: bytes, pack: int) -> None:
    assert 0 <= slot_of(ContentId(content), PackNumber(pack)) < SLOTS


def test_all_files_of_a_pack_share_its_slot() -> None:
    slots = {slot_of(ContentId(bytes([n]) * 16), PackNumber(7)) for n in range(9)}
    assert slots == {slot_of(ContentId(b""), PackNumber(7))}
    assert len({slot_of(ContentId(b""), PackNumber(n)) for n in range(1, 10_000)}) == 9_999


def test_take_clears(tmp_path: Path) -> None:
    touch = TouchMap(tmp_path / "touch")
    assert not touch.take(5)
    touch.set(5)
    touch.set(5)
    assert (touch.take(4), touch.take(5), touch.take(5)) == (False, True, False)
    touch.set(SLOTS - 1)
    assert touch.take(SLOTS - 1)
    touch.close()


def test_processes_share_it(tmp_path: Path) -> None:
    touch = TouchMap(tmp_path / "touch")
    touch.set(3)
    code = (
        "import sys; from pathlib import Path; from forebay.cacheruntime.touch import TouchMap\n"
        "touch = TouchMap(Path(sys.argv[1])); assert touch.take(3); touch.set(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "touch")], check=True)
    assert (touch.take(3), touch.take(9)) == (False, True)
    touch.close()


def test_map_is_sparse_and_private(tmp_path: Path) -> None:
    TouchMap(tmp_path / "touch").close()
    stat = (tmp_path / "touch").stat()
    assert (stat.st_size, stat.st_blocks * 512 < 1 << 16, stat.st_mode & 0o777) == (SLOTS + 1, True, 0o600)


def test_regression_slots_are_touched_while_they_are_looked_at(tmp_path: Path) -> None:
    """Readers in other processes do not wait: the worker ended with an error of numpy's."""
    touch = TouchMap(tmp_path / "touch")
    stop = threading.Event()

    def reader() -> None:
        other = TouchMap(tmp_path / "touch")
        number = 0
        while not stop.is_set():
            number = (number + 7919) % 100_000
            other.set(number)
        other.close()

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        seen: set[int] = set()
        for _ in range(20):
            for slot in touch.touched():
                assert touch.take(slot)
                seen.add(slot)
        assert seen
    finally:
        stop.set()
        thread.join()
    assert set(touch.touched()) <= set(range(SLOTS))
    touch.close()
