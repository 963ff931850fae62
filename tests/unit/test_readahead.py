"""Read-ahead: what is fetched for the ways in which files are read."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.blocks import LEAST_BYTES
from forebay.cacheruntime.config import KIB, MIB
from forebay.cacheruntime.readahead import Readahead

MOST = 64 * MIB


class Run:
    """A reader over an empty cache in which what was asked for is there at once, in blocks of 1 MiB."""

    def __init__(self, file_size: int, scans: int = 1) -> None:
        self.file_size = file_size
        self.scans = scans
        self.readahead = Readahead(MIB, MOST)
        self.asked: set[int] = set()
        self.misses = 0
        self.ahead: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> None:
        size = min(size, self.file_size - offset)
        advice = self.readahead.observe(offset, size, self.file_size)
        assert advice.window_bytes >= size
        assert offset + advice.window_bytes <= self.file_size or advice.window_bytes == size
        needed = set(range(offset // MIB, (offset + size - 1) // MIB + 1))
        if advice.ahead_bytes:
            assert advice.ahead_start + advice.ahead_bytes <= self.file_size
            assert advice.ahead_start + advice.ahead_bytes <= offset + advice.window_bytes
            if self.ahead and self.scans == 1:
                assert advice.ahead_start >= sum(self.ahead[-1]), "ahead ranges do not overlap"
            self.ahead.append((advice.ahead_start, advice.ahead_bytes))
        if needed <= self.asked:
            self._ask(advice.ahead_start, advice.ahead_bytes)
        else:
            self.misses += 1
            self._ask(offset, advice.window_bytes)

    def _ask(self, start: int, length: int) -> None:
        end = min(start + length, self.file_size)
        self.asked |= set(range(start // MIB, -(-end // MIB))) if length else set()


@pytest.mark.parametrize("size", [4 * KIB, 128 * KIB, 512 * KIB, MIB, 3 * MIB])
@pytest.mark.parametrize("file_size", [MIB, 10 * MIB + 5, 300 * MIB])
@pytest.mark.parametrize("start", [0, 700 * KIB, 9 * MIB])
def test_regression_straight_on_misses_at_most_twice(size: int, file_size: int, start: int) -> None:
    """What a miss promised to have fetched ahead was never asked for, and the reader met it as the next miss."""
    run = Run(file_size)
    for offset in range(start, file_size, size):
        run.read(offset, size)
    assert run.misses <= (2 if start < 2 * MIB else 3)
    assert run.asked == set(range(start // MIB, -(-file_size // MIB))) if start < file_size else True


def test_windows_double_up_to_the_most() -> None:
    run = Run(1 << 30)
    for offset in range(0, 1 << 30, 128 * KIB):
        run.read(offset, 128 * KIB)
    reach = [start + length for start, length in run.ahead]
    steps = [b - a for a, b in pairwise(reach)]
    assert max(length for _, length in run.ahead) <= MOST
    assert steps[:4] == sorted(steps[:4])
    assert steps[-2] >= MOST // 4
    assert len(run.ahead) < 80


def test_next_part_is_asked_for_with_half_a_window_left() -> None:
    readahead = Readahead(MIB, MOST)
    reach = MIB
    for offset in range(0, 600 * MIB, 128 * KIB):
        advice = readahead.observe(offset, 128 * KIB, 1 << 30)
        reach = max(reach, advice.ahead_start + advice.ahead_bytes)
        if offset > 200 * MIB:
            assert reach - offset >= MOST // 2 - 128 * KIB


@pytest.mark.parametrize("file_mib", [256, 1024, 10_240])
def test_random_reads_fetch_their_own_block(file_mib: int) -> None:
    source = random.Random(file_mib)
    run = Run(file_mib * MIB)
    for _ in range(200):
        run.read(source.randrange(file_mib * 256) * 4 * KIB, 4 * KIB)
    assert len(run.asked) <= run.misses * 1.05


def test_random_reads_after_one_at_the_start_fetch_their_own_block() -> None:
    source = random.Random(7)
    run = Run(4096 * MIB)
    run.read(0, 4 * KIB)
    run.read(4 * KIB, 4 * KIB)
    for _ in range(100):
        run.read(source.randrange(4096 * 256) * 4 * KIB, 4 * KIB)
    assert len(run.asked) <= run.misses + 6


def test_first_small_read_anywhere_costs_one_block() -> None:
    for offset in range(0, 4 * MIB, 100 * KIB):
        run = Run(1 << 30)
        run.read(offset, 4 * KIB)
        assert len(run.asked) == len({offset // MIB, (offset + 4 * KIB - 1) // MIB})


def test_slightly_out_of_order_is_straight_on() -> None:
    source = random.Random(3)
    offsets = list(range(0, 256 * MIB, 128 * KIB))
    for at in range(0, len(offsets) - 8, 8):
        part = offsets[at : at + 8]
        source.shuffle(part)
        offsets[at : at + 8] = part
    run = Run(256 * MIB)
    for offset in offsets:
        run.read(offset, 128 * KIB)
    assert run.misses <= 3
    assert max(length for _, length in run.ahead) >= MOST // 4


def test_a_jump_starts_small_again() -> None:
    readahead = Readahead(MIB, MOST)
    for offset in range(0, 100 * MIB, MIB):
        readahead.observe(offset, MIB, 1 << 30)
    advice = readahead.observe(900 * MIB, 4 * KIB, 1 << 30)
    assert (advice.window_bytes, advice.ahead_bytes) == (4 * KIB, 0)
    assert readahead.observe(900 * MIB + 4 * KIB, 4 * KIB, 1 << 30).window_bytes <= MIB


@given(
    st.integers(1, 400 * MIB),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([1, 4 * KIB, 128 * KIB, MIB])), max_size=30),
)
def test_advice_stays_in_the_file(file_size: int, requests: list[tuple[float, int]]) -> None:
    readahead = Readahead(MIB, MOST)
    for where, size in requests:
        offset = int(where * file_size)
        size = min(size, file_size - offset)
        advice = readahead.observe(offset, size, file_size)
        assert size <= advice.window_bytes <= max(size, file_size - offset)
        assert advice.window_bytes <= size + 2 * MOST + 2 * MIB
        assert 0 <= advice.ahead_bytes <= MOST
        assert advice.ahead_start + advice.ahead_bytes <= file_size


# Two windows


def _alternate(a: int, b: int, length: int, step: int, turn: int) -> list[int]:
    """Offsets of a reader that reads `turn` bytes here, then there."""
    found = []
    for start in range(0, length, turn):
        for base in (a, b):
            found += [base + start + at for at in range(0, turn, step)]
    return found


@pytest.mark.parametrize("turn", [512 * KIB, 2 * MIB, 32 * MIB])
@pytest.mark.parametrize("distance", [130 * MIB, 500 * MIB])
def test_two_scans_have_a_window_each(turn: int, distance: int) -> None:
    run = Run(1 << 30, scans=2)
    for offset in _alternate(0, distance, 128 * MIB, 512 * KIB, turn):
        run.read(offset, 512 * KIB)
    assert run.readahead.windows == (MOST, MOST)
    assert run.misses <= 4, "each place, and each first window"
    assert len(run.asked) <= 256 + 2 * MOST // MIB


def test_scans_that_begin_together_with_a_stray_read_between() -> None:
    run = Run(1 << 30, scans=2)
    for step in range(0, 32 * MIB, MIB):
        run.read(step, MIB)
        run.read(700 * MIB + step, MIB)
        run.read((300 + 37 * step // MIB % 100) * MIB, 4 * KIB)
    assert len(run.readahead.windows) == 2
    assert run.misses <= 6 + 32, "the strays, and the first reads of each scan"


def test_a_third_scan_takes_the_window_that_was_used_least_lately() -> None:
    readahead = Readahead(MIB, MOST)
    for base in (0, 300 * MIB, 600 * MIB):
        for offset in range(base, base + 16 * MIB, MIB):
            readahead.observe(offset, MIB, 1 << 30)
    assert len(readahead.windows) == 2
    assert readahead.observe(316 * MIB, MIB, 1 << 30).expected
    assert not readahead.observe(16 * MIB, MIB, 1 << 30).expected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [128 * KIB, 512 * KIB])
def test_the_kernel_s_read_ahead_out_of_order_is_no_second_scan(seed: int, size: int) -> None:
    """Eight requests of one read-ahead of the kernel, in any order."""
    chance = random.Random(seed)
    readahead, most = Readahead(MIB, MOST), 0
    for start in range(0, 256 * MIB, 8 * size):
        offsets = [start + part * size for part in range(8)]
        chance.shuffle(offsets)
        for offset in offsets:
            readahead.observe(offset, size, 1 << 30)
            most = max(most, len(readahead.windows))
    assert most == 1
    assert readahead.windows == (MOST,)


def test_scans_that_meet_become_one() -> None:
    readahead = Readahead(MIB, MOST)
    for offset in range(100 * MIB, 108 * MIB, MIB):
        readahead.observe(offset, MIB, 1 << 30)
    for offset in range(0, 120 * MIB, MIB):
        readahead.observe(offset, MIB, 1 << 30)
    assert readahead.windows == (MOST,)


# Amplification


@pytest.mark.parametrize("file_mib", [1, 2, 3, 5, 8, 16, 33, 64, 100, 1000])
@pytest.mark.parametrize("reads", [1, 20, 200])
@pytest.mark.parametrize("size", [4 * KIB, 128 * KIB])
def test_random_reads_stay_near_one_block_each(file_mib: int, reads: int, size: int) -> None:
    chance = random.Random(file_mib * reads)
    run = Run(file_mib * MIB, scans=reads)
    own = set()
    for _ in range(reads):
        offset = chance.randrange(file_mib * MIB // size) * size
        own.add(offset // MIB)
        run.read(offset, size)
    assert len(run.asked) <= 1.25 * len(own) + 1


def test_amplification_is_one_for_a_scan() -> None:
    run = Run(512 * MIB)
    for offset in range(0, 512 * MIB, 512 * KIB):
        run.read(offset, 512 * KIB)
    assert run.readahead.asked_bytes == 512 * MIB
    assert run.readahead.fetched_bytes == 512 * MIB


def test_amplification_of_scattered_small_reads_is_their_pieces() -> None:
    readahead = Readahead(MIB, MOST)
    for number in range(50):
        readahead.observe((1 + 10 * number) * MIB, 4 * KIB, 1 << 30)
    assert readahead.asked_bytes == 50 * 4 * KIB
    assert readahead.fetched_bytes == 50 * LEAST_BYTES


def _scan(run: Run, start: int, length: int) -> None:
    for offset in range(start, start + length, 128 * KIB):
        run.read(offset, 128 * KIB)


def test_scans_that_are_given_up_early_lose_their_read_ahead_and_a_long_one_has_it_back() -> None:
    """A reader of 1 MiB here and 1 MiB there, as of a table's row groups."""
    run = Run(10_000 * MIB, scans=150)
    for number in range(100):
        _scan(run, 50 * number * MIB, MIB)
    read = 100
    assert len(run.asked) <= 1.5 * read
    before = len(run.asked)
    for number in range(100, 150):
        _scan(run, 50 * number * MIB, MIB)
    assert len(run.asked) - before <= 1.25 * 50, "nothing is learnt anew"
    _scan(run, 9000 * MIB, 256 * MIB)
    assert run.readahead.windows[-1] == MOST


def test_no_more_is_counted_than_a_file_has() -> None:
    for size in (20_000, MIB, 5 * MIB // 2):
        readahead = Readahead(MIB, 64 * MIB)
        for offset in range(0, size, 128 << 10):
            readahead.observe(offset, 128 << 10, size)
        assert readahead.asked_bytes == readahead.fetched_bytes == size
