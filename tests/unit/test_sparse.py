"""Files of which readers take parts here and there: what is fetched, what is recorded, and what is found wrong."""

import os
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from cache_box import Box, bytes_of
from check import check_index, check_storage
from fake_store import Gate, Read
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.blocks import (
    BLOCK_BYTES,
    LEAST_BYTES,
    PIECE_BYTES,
    Span,
    around,
    block_span,
    is_what_was_written,
    mask_bytes,
    mask_of,
    spans_of,
    sums_of,
)
from forebay.cacheruntime.config import KIB, MIB
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.index import sum_key
from forebay.cacheruntime.readahead import Habits, Readahead
from forebay.cacheruntime.worker.check import Check, Finding
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.mover import Mover

MakeBox = Callable[..., Box]


def _fill(box: Box, file: SourceFile, *ranges: tuple[int, int], at_once: bool = False) -> None:
    """Each (offset, length) as a reader who reads here and there."""

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            for offset, length in ranges:
                if at_once:
                    nursery.start_soon(filler.fill, file, offset, length, length)
                else:
                    await filler.fill(file, offset, length, length)

    box.run(test)


def _check(box: Box, *, deep: bool = True, repair: bool = False) -> list[Finding]:
    made = Check(box.storage, deep=deep, repair=repair)
    trio.run(made.run)
    return made.progress.findings


# Arithmetic


@given(st.integers(1, 3 * MIB), st.data())
def test_masks_are_sets_of_pieces(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    covered = set()
    for number in range(-(-size // BLOCK_BYTES)):
        mask = mask_of(number, start, end)
        spans = list(spans_of(size, number, mask))
        assert sum(span.size for span in spans) == mask_bytes(size, number, mask)
        assert len(spans) <= 1
        for span in spans:
            assert (span.block, span.mask) == (number, mask)
            covered |= set(range(span.start // PIECE_BYTES, -(-span.end // PIECE_BYTES)))
            assert span.end <= size
    assert covered == set(range(start // PIECE_BYTES, (end - 1) // PIECE_BYTES + 1))


@given(st.integers(1, 3 * MIB), st.sets(st.integers(0, 63)))
def test_spans_are_the_runs_of_a_mask(size: int, pieces: set[int]) -> None:
    block = block_span(size, 0)
    mask = sum(1 << piece for piece in pieces if piece * PIECE_BYTES < block.end)
    spans = list(spans_of(size, 0, mask))
    joined = 0
    for span in spans:
        assert not joined & span.mask
        joined |= span.mask
    assert joined == mask
    assert all(one.end < other.start for one, other in pairwise(spans))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, (0, LEAST_BYTES)),
        (MIB + 4096, MIB + 8192, (MIB, MIB + LEAST_BYTES)),
        (4096, 4096 + 128 * KIB, (0, 144 * KIB)),
        (3 * MIB - 1, 3 * MIB + 4, (3 * MIB - LEAST_BYTES, 3 * MIB + 5)),
    ],
)
def test_around(start: int, end: int, expected: tuple[int, int]) -> None:
    assert around(start, end, 3 * MIB + 5) == expected


def test_sums() -> None:
    data = bytes_of(3 * PIECE_BYTES + 7)
    sums = sums_of(data)
    assert len(sums) == 4 * 8
    assert is_what_was_written(data, sums)
    assert is_what_was_written(memoryview(data)[:PIECE_BYTES], sums[:8])
    assert not is_what_was_written(data[:-1], sums)
    assert not is_what_was_written(data, b"")
    assert not is_what_was_written(b"", b"")


# Filling


def test_one_read_of_a_file_fetches_its_pieces(box: Box) -> None:
    data = bytes_of(MIB)
    file = box.source("a", data)
    _fill(box, file, (512 * KIB, 128 * KIB))
    assert box.store.reads == [Read("a", 512 * KIB, 128 * KIB)]
    assert box.read(file, 512 * KIB, 640 * KIB) == data[512 * KIB : 640 * KIB]
    assert box.read(file, 512 * KIB - 1, 512 * KIB) is None
    assert box.read(file, 640 * KIB, 640 * KIB + 1) is None


def test_the_rest_of_a_block_comes_by_itself(box: Box) -> None:
    data = bytes_of(2 * MIB + 100 * KIB)
    file = box.source("a", data)
    _fill(box, file, (256 * KIB, 128 * KIB), (2 * MIB, 100 * KIB))
    box.run(lambda filler: filler.fill(file, 0, 4 * KIB, 3 * MIB))
    reads = sorted((read.start, read.start + read.length) for read in box.store.reads)
    assert all(one[1] <= other[0] for one, other in pairwise(reads))
    assert box.read(file, 0, file.size) == data
    cached = box.storage.find(file.content)
    assert cached is not None
    assert cached.complete
    assert _check(box) == []


def test_the_second_small_read_of_a_block_brings_all_of_it(box: Box) -> None:
    file = box.source("a", bytes_of(3 * MIB))
    _fill(box, file, (0, 4 * KIB), (8 * KIB, 4 * KIB), (900 * KIB, 4 * KIB), (MIB, 4 * KIB))
    assert box.store.reads == [
        Read("a", 0, LEAST_BYTES),
        Read("a", LEAST_BYTES, MIB - LEAST_BYTES),
        Read("a", MIB, LEAST_BYTES),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_overlapping_ranges_at_once_fetch_no_byte_twice(box: Box, seed: int) -> None:
    chance = random.Random(seed)
    data = bytes_of(5 * MIB + 777, seed)
    file = box.source("a", data)
    gate = Gate()
    box.store.before_piece = gate
    ranges = []
    for _ in range(60):
        offset = chance.randrange(file.size)
        ranges.append((offset, min(chance.randrange(1, 700 * KIB), file.size - offset)))

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            for offset, length in ranges:
                window = length * chance.choice([0, 1, 1, 4])
                nursery.start_soon(filler.fill, file, offset, length, window)
            await trio.testing.wait_all_tasks_blocked()
            gate.let_go()

    box.run(test)
    reads = sorted((read.start, read.start + read.length) for read in box.store.reads)
    assert all(one[1] <= other[0] for one, other in pairwise(reads))
    for offset, length in ranges:
        assert box.read(file, offset, offset + length) == data[offset : offset + length]


def test_past_a_full_tier_only_pieces_are_fetched_too(make_box: MakeBox) -> None:
    box = make_box(PIECE_BYTES)
    data = bytes_of(MIB)
    file = box.source("a", data)

    async def test(filler: Filler) -> None:
        for offset in (0, 700 * KIB, 640 * KIB, 700 * KIB):
            assert await filler.fill(file, offset, 128 * KIB, 0) == data[offset : offset + 128 * KIB]

    box.run(test)
    assert sum(read.length for read in box.store.reads) <= 4 * 144 * KIB


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 600 * KIB), st.sampled_from([0, 0, 0, MIB])), min_size=1, max_size=12
    ),
    st.sampled_from([MIB, MIB + 1, 2 * MIB + 20 * KIB]),
)
def test_random_ranges_against_a_set_of_pieces(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[float, int, int]], size: int
) -> None:
    box = Box(tmp_path_factory.mktemp("sparse"))
    data = bytes_of(size)
    file = box.source("a", data)
    try:
        for where, length, window in ranges:
            offset = int(where * (size - 1))
            fill_length = min(length, size - offset)
            box.run(lambda filler, o=offset, n=fill_length, w=window: filler.fill(file, o, n, w))
            assert box.read(file, offset, offset + fill_length) == data[offset : offset + fill_length]
        fetched: set[int] = set()
        for read in box.store.reads:
            pieces = set(range(read.start // PIECE_BYTES, -(-(read.start + read.length) // PIECE_BYTES)))
            assert not fetched & pieces
            fetched |= pieces
        for piece in range(-(-size // PIECE_BYTES)):
            start, end = piece * PIECE_BYTES, min((piece + 1) * PIECE_BYTES, size)
            assert box.read(file, start, end) == (data[start:end] if piece in fetched else None)
        box.kill()
        assert all(finding.kind == "seal" for finding in _check(box))
    finally:
        box.storage.close()


# Integrity


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))


def _sparse(box: Box, size: int = 3 * MIB + 5) -> tuple[SourceFile, bytes]:
    data = bytes_of(size)
    file = box.source("a", data)
    _fill(box, file, (200 * KIB, 128 * KIB), (700 * KIB, 300 * KIB), (2 * MIB + 10, 130 * KIB), (3 * MIB, 5))
    box.storage.tidy(float("inf"))
    return file, data


def test_a_sparse_file_passes_the_deep_check(box: Box) -> None:
    _sparse(box)
    assert _check(box) == []
    box.restart()
    assert _check(box) == []


@pytest.mark.parametrize("at", [192 * KIB, 320 * KIB, 999 * KIB, 2 * MIB + 5, 3 * MIB + 4])
def test_a_flipped_bit_in_one_piece_is_found(box: Box, at: int) -> None:
    file, data = _sparse(box)
    path = box.tier_file(file.content)
    before = path.stat()
    _flip(path, at)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cached = box.storage.index.reader.find(file.content)
    assert cached is not None
    assert _check(box)[0].kind in ("data", "seal")
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    try:
        assert reader.find(file.content, 2 * MIB + 10, 2 * MIB + 20) is None, "its seal is broken"
        box.run(lambda filler: filler.fill(file, 0, file.size, 0))
        place = reader.find(file.content, 0, file.size)
        assert place is not None
        assert os.pread(place.descriptor, file.size, 0) == data
    finally:
        reader.close()
    assert box.storage.damage.blocks == 1


def test_a_flipped_bit_in_a_hole_costs_only_a_look(box: Box) -> None:
    file, data = _sparse(box)
    _flip(box.tier_file(file.content), MIB + 500 * KIB)
    box.run(lambda filler: filler.fill(file, 200 * KIB, 128 * KIB, 0))
    assert box.storage.damage.blocks == 0
    assert box.read(file, 200 * KIB, 328 * KIB) == data[200 * KIB : 328 * KIB]
    reads = len(box.store.reads)
    box.run(lambda filler: filler.fill(file, 0, file.size, 0))
    assert len(box.store.reads) > reads
    assert box.read(file, 0, file.size) == data, "what was written into the hole is overwritten"


def test_a_large_sparse_file_in_doubt_is_verified_range_by_range(box: Box) -> None:
    data = bytes_of(10 * MIB)
    file = box.source("a", data)
    _fill(box, file, (MIB + 200 * KIB, 256 * KIB))
    box.storage.tidy(float("inf"))
    _flip(box.tier_file(file.content), 9 * MIB)
    got = box.run(lambda filler: filler.fill(file, MIB + 210 * KIB, 128 * KIB, 0))
    assert got in (None, data[MIB + 210 * KIB : MIB + 338 * KIB])


@pytest.mark.parametrize("byte", [0, 7, 8, -1])
def test_a_damaged_record_of_pieces_is_never_believed(box: Box, byte: int) -> None:
    """A flipped bit in the mask would call a hole present."""
    file, data = _sparse(box)
    index = box.storage.index
    key = sum_key(file.content, 0)
    with index._env.begin(write=True) as txn:
        raw = bytearray(txn.get(key, db=index._tables["sums"]))
        raw[byte] ^= 1
        txn.put(key, bytes(raw), db=index._tables["sums"])
    assert box.read(file, 200 * KIB, 328 * KIB) is None
    assert [finding.kind for finding in _check(box, deep=False)] == ["sums"]
    box.run(lambda filler: filler.fill(file, 200 * KIB, 128 * KIB, 0))
    assert box.read(file, 200 * KIB, 328 * KIB) == data[200 * KIB : 328 * KIB]
    assert box.storage.damage.files == 1
    assert _check(box) == []


def test_a_sparse_file_moves(make_box: MakeBox) -> None:
    box = make_box(8 * MIB, 8 * MIB)
    file, data = _sparse(box)
    assert trio.run(Mover(box.storage).move, file.content, box.storage.tiers[1])
    box.storage.tidy(float("inf"))
    check_storage(box.storage)
    assert box.read(file, 700 * KIB, 1000 * KIB) == data[700 * KIB : 1000 * KIB]
    assert box.read(file, MIB, MIB + 1) is None
    assert box.storage.drop_file(file.content)
    check_index(box.storage.index)


# Habits


def test_readers_here_and_there_get_no_window_at_the_start() -> None:
    chance, habits, fetched = random.Random(5), Habits(), 0
    for _ in range(400):
        reader = Readahead(MIB, 64 * MIB, habits)
        assert reader.observe(chance.randrange(8) * 128 * KIB, 128 * KIB, MIB).window_bytes <= MIB
        fetched += reader.fetched_bytes
    assert not habits.go_straight_on
    assert habits.stray_bytes == 128 * KIB
    assert fetched <= 1.1 * 400 * 128 * KIB


def test_readers_who_go_straight_on_again_are_believed_soon() -> None:
    habits = Habits()
    for _ in range(100):
        Readahead(MIB, 64 * MIB, habits).observe(512 * KIB, 128 * KIB, MIB)
    for number in range(13):
        assert habits.go_straight_on == (number >= 12)
        reader = Readahead(MIB, 64 * MIB, habits)
        for offset in range(0, MIB, 128 * KIB):
            reader.observe(offset, 128 * KIB, MIB)
        assert reader.fetched_bytes <= MIB + 128 * KIB
    assert habits.stray_bytes == 0


def test_a_handler_that_sees_half_of_the_requests_takes_a_scan_for_a_scan() -> None:
    habits = Habits()
    for number in range(50):
        reader = Readahead(MIB, 64 * MIB, habits)
        for offset in range(number % 2 * 128 * KIB, 4 * MIB, 256 * KIB):
            reader.observe(offset, 128 * KIB, 4 * MIB)
        other = Readahead(MIB, 64 * MIB, habits)
        other.observe(512 * KIB, 512 * KIB, MIB)
    assert habits.go_straight_on


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_a_few_pieces_of_a_file_are_no_scan(pieces: int) -> None:
    chance, habits, fetched, asked = random.Random(pieces), Habits(), 0, 0
    for _ in range(300):
        reader = Readahead(MIB, 64 * MIB, habits)
        for piece in chance.sample(range(0, 64, 2), pieces):
            reader.observe(piece * 128 * KIB, 128 * KIB, 8 * MIB)
        fetched += reader.fetched_bytes
        asked += reader.asked_bytes
    assert fetched <= 1.5 * asked, "some lie so near that they look like a scan"


def test_span_of_a_short_last_block() -> None:
    size = MIB + 5
    assert block_span(size, 1) == Span(MIB, size)
    assert Span(MIB, size).is_block(size)
    assert not Span(MIB, MIB + PIECE_BYTES).is_block(2 * MIB)
