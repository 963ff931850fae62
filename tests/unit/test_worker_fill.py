"""Filling: one read per block, blocks usable as they come, and what happens when source or tier fail."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from cache_box import RUN_S, Box, bytes_of
from fake_store import HELD_S, FakeStore, Gate, Read

from forebay.cacheruntime.blocks import LEAST_BYTES
from forebay.cacheruntime.cluster.placement import SLICE_BYTES
from forebay.cacheruntime.config import KIB, MIB, FillConfig
from forebay.cacheruntime.errors import ForebayError, SourceStale, SourceTimeout, SourceUnavailable
from forebay.cacheruntime.tiers import file_path
from forebay.cacheruntime.worker import packs as packs_module
from forebay.cacheruntime.worker import writes as writes_module
from forebay.cacheruntime.worker.fetch import SourceFile, Taken
from forebay.cacheruntime.worker.fill import Filler

MakeBox = Callable[..., Box]

_ONE_GET = FillConfig(parallel_gets=1, deadline_s=RUN_S)
"""A window is spread over the GETs that may run at once; with one it comes in parts of 8 MiB."""


async def _all(count: int, one: Callable[[], Any]) -> list[Any]:
    """Run `one` that many times at once; results, or the ForebayError that it raised."""
    results: list[Any] = []

    async def run() -> None:
        try:
            results.append(await one())
        except ForebayError as error:
            results.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(run)
    return results


# Single flight


def test_many_waiters_cost_one_read(box: Box) -> None:
    data = bytes_of(3 * MIB + 5)
    file = box.source("a", data)
    results = box.run(lambda filler: _all(50, lambda: filler.fill(file, MIB, 10, 0)))
    assert results == [None] * 50
    assert box.store.reads == [Read("a", MIB, LEAST_BYTES)]
    assert box.read(file, MIB, MIB + LEAST_BYTES) == data[MIB : MIB + LEAST_BYTES]
    assert box.read(file, 0, 1) is None
    assert box.read(file, MIB, MIB + LEAST_BYTES + 1) is None


def test_many_waiters_of_a_small_file_cost_one_read(box: Box) -> None:
    data = bytes_of(1000)
    file = box.source("a", data)
    results = box.run(lambda filler: _all(50, lambda: filler.fill(file, 10, 10, 0)))
    assert results == [None] * 50
    assert box.store.reads == [Read("a", 0, 1000)]
    assert box.read(file, 0, 1000) == data


def test_overlapping_requests_fetch_each_block_once(make_box: MakeBox) -> None:
    box = make_box(fill=_ONE_GET)
    file = box.source("a", bytes_of(8 * MIB))
    gate = Gate()
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filler.fill, file, 0, MIB, 4 * MIB)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(filler.fill, file, 2 * MIB, 4 * MIB, 0)
            await trio.testing.wait_all_tasks_blocked()
            gate.let_go()

    box.run(test)
    fetched = sorted((r.start, r.start + r.length) for r in box.store.reads)
    assert fetched == [(0, 4 * MIB), (4 * MIB, 6 * MIB)]


def test_what_is_cached_is_not_read_again(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 0, MIB, 0) is None
        assert await filler.fill(file, 0, 2 * MIB, 0) is None
        assert await filler.fill(file, 0, 2 * MIB, 0) is None

    box.run(test)
    assert [r.start for r in box.store.reads] == [0, MIB]


def test_nothing_to_fill(box: Box) -> None:
    empty, file = box.source("e", b""), box.source("a", bytes_of(MIB))

    async def test(filler: Filler) -> None:
        assert await filler.fill(empty, 0, 10, MIB) is None
        assert await filler.fill(file, MIB, 10, MIB) is None
        assert await filler.fill(file, 5, 0, MIB) is None

    box.run(test)
    assert box.store.reads == []


# Streaming and windows


def test_first_block_is_answered_before_the_last_has_come(make_box: MakeBox) -> None:
    box = make_box(fill=_ONE_GET)
    data = bytes_of(8 * MIB)
    file = box.source("a", data)
    gate = Gate(lambda path, position: position >= 7 * MIB)
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 0, 4096, 8 * MIB) is None
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        assert box.read(file, 0, 4096) == data[:4096]
        assert box.read(file, 7 * MIB, 8 * MIB) is None
        gate.let_go()
        assert await filler.fill(file, 7 * MIB, MIB, 0) is None
        assert box.read(file, 0, 8 * MIB) == data

    box.run(test)
    assert box.store.reads == [Read("a", 0, 8 * MIB)]


@pytest.mark.parametrize(
    ("offset", "length", "window", "expected"),
    [
        (0, 1, 0, (0, 1 / 8)),
        (0, 1, MIB, (0, 1)),
        (4096, 4096, MIB, (0, 2)),
        (MIB - 1, 2, 0, (7 / 8, 9 / 8)),
        (MIB + 10, 128 * KIB, 0, (1, 73 / 64)),
        (MIB + 16 * KIB, 128 * KIB, 128 * KIB, (65 / 64, 73 / 64)),
        (3 * MIB, MIB, 4 * MIB, (3, 7)),
        (19 * MIB, MIB, 64 * MIB, (19, 21)),
        (20 * MIB, 100 * MIB, 0, (20, 21)),
        (0, 1, 64 * MIB, (0, 21)),
    ],
)
def test_windows(box: Box, offset: int, length: int, window: int, expected: tuple[float, float]) -> None:
    size = 20 * MIB + 77
    file = box.source("a", bytes_of(size))
    box.run(lambda filler: filler.fill(file, offset, length, window))
    starts = sorted(r.start for r in box.store.reads)
    ends = sorted(r.start + r.length for r in box.store.reads)
    assert (starts[0], ends[-1]) == (expected[0] * MIB, min(expected[1] * MIB, size))
    assert starts[1:] == ends[:-1]
    assert all(r.length <= 8 * MIB for r in box.store.reads)


def test_background_does_not_wait(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    gate = Gate()
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 0, 2 * MIB, 0, background=True) is None
        assert box.read(file, 0, 1) is None
        gate.let_go()
        await filler.fill(file, 0, 2 * MIB, 0)

    box.run(test)
    assert box.has(file)
    assert len(box.store.reads) == 1


def test_no_more_reads_at_once_than_configured(make_box: MakeBox) -> None:
    box = make_box(fill=FillConfig(parallel_gets=6, part_bytes=MIB))
    file = box.source("a", bytes_of(24 * MIB))
    lock, now, most = threading.Lock(), set(), [0]

    def before(path: str, position: int) -> None:
        with lock:
            now.add(threading.get_ident())
            most[0] = max(most[0], len(now))
            if position % MIB == MIB - box.store.piece_bytes:
                now.discard(threading.get_ident())

    box.store.before_piece = before
    box.run(lambda filler: filler.fill(file, 0, 24 * MIB, 0))
    assert 1 <= most[0] <= 6
    assert box.has(file)


# No room


def test_no_room_reads_through(make_box: MakeBox) -> None:
    box = make_box(MIB // 2)
    data = bytes_of(3 * MIB + 10)
    file = box.source("a", data)

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 100, 50, 3 * MIB) == data[100:150]
        assert await filler.fill(file, MIB - 5, 10, 0) == data[MIB - 5 : MIB + 5]
        assert await filler.fill(file, 3 * MIB, 99, 0) == data[3 * MIB :]

    box.run(test)
    assert [r.start for r in box.store.reads] == [0, MIB, 3 * MIB], "what came through is kept for the next request"


def test_no_room_for_a_small_file(make_box: MakeBox) -> None:
    box = make_box(1000)
    data = bytes_of(2000)
    file = box.source("a", data)

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 7, 20, 0) == data[7:27]
        assert await filler.fill(file, 1990, 20, 0) == data[1990:]
        assert await filler.fill(box.source("b", data), 0, 1, 0, through=False) is None

    box.run(test)
    assert box.store.reads == [Read("a", 0, 2000)]


def test_range_of_cached_and_uncached_blocks(make_box: MakeBox) -> None:
    box = make_box(2 * MIB, fill=FillConfig(part_bytes=MIB))
    data = bytes_of(4 * MIB)
    file = box.source("a", data)

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 0, 2 * MIB, 0) is None
        assert await filler.fill(file, MIB + 5, 2 * MIB, 0) == data[MIB + 5 : 3 * MIB + 5]
        assert await filler.fill(file, 0, 4 * MIB, 0) == data

    box.run(test)
    assert box.read(file, 0, 2 * MIB) == data[: 2 * MIB]
    assert sum(read.length for read in box.store.reads) == 4 * MIB


@pytest.mark.parametrize("anew", [True, False])
def test_regression_evicted_while_a_mixed_reply_is_put_together(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """Found by test_fill_model: a reader got zeros (begun anew), or FileNotFoundError ended the worker's call."""
    box = make_box(2 * MIB, fill=FillConfig(part_bytes=MIB))
    data = bytes_of(4 * MIB)
    file = box.source("a", data)

    async def test(filler: Filler) -> bytes | None:
        await filler.fill(file, 0, 2 * MIB, 0)
        real = box.storage.open_block

        def then_evict(*args: Any) -> int | None:
            descriptor = real(*args)
            box.storage.drop_file(file.content)
            if anew:
                box.storage.place_file(box.target(file))
            return descriptor

        monkeypatch.setattr(box.storage, "open_block", then_evict)
        return await filler.fill(file, MIB, 2 * MIB, 0)

    assert box.run(test) in (None, data[MIB : 3 * MIB])


def test_quota_holds_while_many_fill_at_once(make_box: MakeBox) -> None:
    box = make_box(5 * MIB + 100, fill=FillConfig(part_bytes=MIB))
    files = [box.source(str(n), bytes_of(3 * MIB if n % 2 else 400 * KIB, n)) for n in range(8)]
    tier = box.storage.tiers[0]
    over: list[int] = []

    def before(path: str, position: int) -> None:
        if tier.used_bytes > tier.config.quota_bytes:
            over.append(tier.used_bytes)

    box.store.before_piece = before

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(_reads_right, filler, file)

    async def _reads_right(filler: Filler, file: SourceFile) -> None:
        data = box.store.files[file.path][0]
        got = await filler.fill(file, 0, file.size, 0)
        assert (got if got is not None else box.read(file, 0, file.size)) == data

    box.run(test)
    assert over == []
    assert 4 * MIB < tier.used_bytes <= tier.config.quota_bytes


def test_second_tier_takes_what_the_first_has_no_room_for(make_box: MakeBox) -> None:
    box = make_box(2 * MIB, 8 * MIB)
    small, large = box.source("s", bytes_of(1000)), box.source("l", bytes_of(4 * MIB))

    async def test(filler: Filler) -> None:
        await filler.fill(small, 0, 1, 0)
        await filler.fill(large, 0, 1, 4 * MIB)
        await filler.fill(large, 3 * MIB, 1, 0)

    box.run(test)
    held = {(h.tier, h.bytes) for h in box.storage.index.reader.holdings()}
    assert held == {(box.storage.tiers[0].number, 1000), (box.storage.tiers[1].number, 4 * MIB)}


# A tier that does not take writes


def _full_disk(after: int) -> Callable[..., None]:
    """write_all of a file system that is full after so many writes."""
    calls = [0]
    real = writes_module.write_all

    def write(descriptor: int, pieces: list[memoryview], offset: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, pieces, offset)

    return write


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_full_disk_reads_through(
    make_box: MakeBox, writes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box = make_box(fill=_ONE_GET)
    data = bytes_of(4 * MIB)
    file = box.source("a", data)
    monkeypatch.setattr(writes_module, "write_all", _full_disk(writes))

    async def test(filler: Filler) -> None:
        got = await filler.fill(file, 0, 4 * MIB, 0)
        assert got == data
        assert await filler.fill(file, 2 * MIB, 100, 0) == data[2 * MIB : 2 * MIB + 100]

    box.run(test)
    assert box.storage.tiers[0].state == "full"
    assert box.storage.tiers[0].used_bytes == writes * MIB, "one write for each block"
    assert "takes no data now: No space left on device" in caplog.text


def test_full_disk_and_a_small_file(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytes_of(4000)
    monkeypatch.setattr(packs_module, "write_all", _full_disk(0))
    file = box.source("a", data)
    assert box.run(lambda filler: filler.fill(file, 1, 4, 0)) == data[1:5]
    assert box.storage.tiers[0].used_bytes == 0
    assert "No space left on device" in caplog.text


def test_tier_file_removed_from_outside_records_no_hole(box: Box) -> None:
    data = bytes_of(4 * MIB)
    file = box.source("a", data)
    gate = Gate(lambda path, position: position >= 2 * MIB)
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        await filler.fill(file, 0, 1, 4 * MIB)
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        box.tier_file(file.content).unlink()
        gate.let_go()
        got = await filler.fill(file, 2 * MIB, 2 * MIB, 0)
        assert got == data[2 * MIB :]

    box.run(test)
    assert box.storage.index.reader.find(file.content) is None
    assert box.run(lambda filler: filler.fill(file, 0, 4 * MIB, 0)) in (None, data)


def test_tier_folder_removed_from_outside_still_reads(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    data = bytes_of(2 * MIB)
    file, small = box.source("a", data), box.source("s", data[:99])
    parts = [box.config.tiers[0].path / part for part in ("files", "packs")]
    for part in parts:
        shutil.rmtree(part)

    async def test(filler: Filler) -> None:
        assert await filler.fill(file, 0, 2 * MIB, 0) == data
        assert await filler.fill(small, 0, 99, 0) == data[:99]
        for part in parts:  # for the check
            part.mkdir()

    box.run(test)
    assert "takes no data now" in caplog.text


def test_regression_whole_tier_file_removed_from_outside_is_fetched_again(box: Box) -> None:
    data = bytes_of(2 * MIB)
    file = box.source("a", data)
    box.run(lambda filler: filler.fill(file, 0, 2 * MIB, 0))
    box.tier_file(file.content).unlink()

    async def test(filler: Filler) -> bytes | None:
        got = await filler.fill(file, 0, 2 * MIB, 0)
        if got is None and not box.tier_file(file.content).exists():
            box.storage.drop_file(file.content)
            return None
        return got or box.read(file, 0, 2 * MIB)

    assert box.run(test) == data


# A source that does not deliver


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("error", [SourceStale("changed"), SourceUnavailable("refused")])
def test_error_reaches_all_waiters_once(make_box: MakeBox, size: int, error: ForebayError) -> None:
    box = make_box(fill=_ONE_GET)
    file = box.source("a", bytes_of(size))
    box.store.faults = [error]
    results = box.run(lambda filler: _all(10, lambda: filler.fill(file, 0, size, 0)))
    assert results == [error] * 10
    assert len(box.store.reads) == 1
    assert box.storage.tiers[0].used_bytes == 0


def test_blocks_before_the_break_stay(make_box: MakeBox) -> None:
    box = make_box(fill=_ONE_GET)
    data = bytes_of(3 * MIB)
    file = box.source("a", data)
    box.store.breaks = [(2 * MIB + 100, SourceUnavailable("broke off"))]

    async def test(filler: Filler) -> None:
        with pytest.raises(SourceUnavailable):
            await filler.fill(file, 0, 3 * MIB, 0)
        assert box.read(file, 0, 2 * MIB) == data[: 2 * MIB]
        assert await filler.fill(file, 0, 3 * MIB, 0) is None

    box.run(test)
    assert [r.start for r in box.store.reads] == [0, 2 * MIB]
    assert box.read(file, 0, 3 * MIB) == data


def test_replaced_while_reading(make_box: MakeBox) -> None:
    box = make_box(fill=_ONE_GET)
    data = bytes_of(4 * MIB)
    file = box.source("a", data)

    def before(path: str, position: int) -> None:
        if position == 2 * MIB:
            box.store.put("a", bytes_of(4 * MIB, 1), "v2")

    box.store.before_piece = before

    async def test(filler: Filler) -> None:
        with pytest.raises(SourceStale):
            await filler.fill(file, 0, 4 * MIB, 0)

    box.run(test)
    assert box.read(file, 0, 2 * MIB) == data[: 2 * MIB]
    assert box.read(file, 2 * MIB, 3 * MIB) is None


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("quota", [1 << 30, 500])
def test_stale_at_the_end_of_a_store_without_pins_keeps_nothing(make_box: MakeBox, size: int, quota: int) -> None:
    box = make_box(quota, fill=_ONE_GET)
    box.store = FakeStore(pins_version=False)
    file = box.source("a", bytes_of(size))

    def before(path: str, position: int) -> None:
        if position + box.store.piece_bytes >= size:
            box.store.put("a", bytes_of(size, 1), "v2")

    box.store.before_piece = before
    results = box.run(lambda filler: _all(3, lambda: filler.fill(file, 0, size, 0)))
    assert [type(r) for r in results] == [SourceStale] * 3
    cached = box.storage.index.reader.find(file.content)
    assert cached is None or cached.cached_bytes() == 0


def test_store_without_pins_answers_after_the_end(box: Box) -> None:
    box.store = FakeStore(pins_version=False)
    data = bytes_of(3 * MIB)
    file = box.source("a", data)
    box.run(lambda filler: filler.fill(file, 0, 1, 3 * MIB))
    assert box.read(file, 0, 3 * MIB) == data


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("missing", [1, 999])
def test_shorter_than_listed_is_stale(box: Box, size: int, missing: int) -> None:
    file = box.source("a", bytes_of(size))
    box.store.short["a"] = size - missing

    async def test(filler: Filler) -> None:
        with pytest.raises(SourceStale, match="listed"):
            await filler.fill(file, size - 10, 10, 0)

    box.run(test)
    assert box.read(file, size - 10, size) is None


@pytest.mark.semantics("E5")
def test_deadline(make_box: MakeBox) -> None:
    box = make_box(fill=FillConfig(deadline_s=3.0))
    data = bytes_of(2 * MIB)
    file = box.source("a", data)
    gate = Gate()
    box.store.before_piece = gate

    clock = trio.testing.MockClock()

    async def waits(filler: Filler) -> None:
        with pytest.raises(SourceTimeout, match="did not arrive within 3 s"):
            await filler.fill(file, 0, 10, 0)
        assert trio.current_time() == pytest.approx(3.0)
        gate.let_go()

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, filler)
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(3.0)

    box.run(test, clock=clock)
    assert box.read(file, 0, LEAST_BYTES) == data[:LEAST_BYTES], "the fetch goes on for whoever asks next"


# Eviction


def test_idle_datasets_make_room(make_box: MakeBox) -> None:
    box = make_box(4 * MIB, fill=FillConfig(window_max_bytes=4 * MIB))
    older, newer, ours = FakeStore("fake://older"), FakeStore("fake://newer"), FakeStore("fake://ours")
    old = box.source("o", bytes_of(1 * MIB, 1), store=older)
    new = box.source("n", bytes_of(2 * MIB, 2), store=newer)
    first, second = (box.source(n, bytes_of(2 * MIB), store=ours) for n in "ab")

    async def test(filler: Filler) -> None:
        await filler.fill(old, 0, MIB, 0)
        await filler.fill(new, 0, 2 * MIB, 0)
        box.last_used.update({old.dataset: 10.0, new.dataset: 20.0})
        await filler.fill(first, 0, 2 * MIB, 0)
        assert (box.has(old), box.has(new), box.has(first)) == (False, True, True)
        await filler.fill(second, 0, 2 * MIB, 0)
        assert (box.has(new), box.has(first), box.has(second)) == (False, True, True)

    box.run(test)


@pytest.mark.semantics("D6")
def test_datasets_in_use_are_never_dropped(make_box: MakeBox) -> None:
    box = make_box(3 * MIB, fill=FillConfig(window_max_bytes=4 * MIB))
    theirs, ours = FakeStore("fake://theirs"), FakeStore("fake://ours")
    kept = [box.source(str(n), bytes_of(size, n), store=theirs) for n, size in enumerate((2 * MIB, 1000, 2000))]
    wanted = box.source("w", bytes_of(3 * MIB), store=ours)

    async def test(filler: Filler) -> None:
        for file in kept:
            await filler.fill(file, 0, file.size, 0)
        assert await filler.fill(wanted, 0, 3 * MIB, 0) is not None
        assert all(box.has(file) for file in kept)

    box.run(test)


def test_packs_of_idle_datasets_make_room(make_box: MakeBox) -> None:
    box = make_box(MIB, fill=FillConfig(window_max_bytes=MIB))
    theirs, ours = FakeStore("fake://theirs"), FakeStore("fake://ours")
    small = [box.source(str(n), bytes_of(300 * KIB, n), store=theirs) for n in range(3)]
    wanted = box.source("w", bytes_of(300 * KIB), store=ours)

    async def test(filler: Filler) -> None:
        for file in small:
            await filler.fill(file, 0, 1, 0)
        box.last_used[small[0].dataset] = 1.0
        assert await filler.fill(wanted, 0, 1, 0) is None
        assert not any(box.has(file) for file in small), "a pack goes whole"
        assert box.has(wanted)

    box.run(test)


def test_evicted_while_being_filled(box: Box) -> None:
    data = bytes_of(4 * MIB)
    file = box.source("a", data)
    gate = Gate(lambda path, position: position >= 2 * MIB)
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        await filler.fill(file, 0, 1, 4 * MIB)
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        box.storage.drop_file(file.content)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again, filler)
            await trio.testing.wait_all_tasks_blocked()
            gate.let_go()

    async def again(filler: Filler) -> None:
        got = await filler.fill(file, 0, 4 * MIB, 0)
        assert got is None or got == data

    box.run(test)
    assert not file_path(box.config.tiers[0].path, file.content).exists() or box.read(file, 0, 1) is not None


def test_regression_a_file_that_is_there_whole_gives_its_room_back_at_once(box: Box) -> None:
    """Also when the thread that has fetched it comes to its end late."""
    ends = threading.Event()

    class Slow(FakeStore):
        def read_range(self, path: str, start: int, length: int, version: str) -> Iterator[bytes]:
            yield from super().read_range(path, start, length, version)
            assert ends.wait(HELD_S)

    file = box.source("a", bytes_of(3 * MIB), store=Slow(box.store.url))

    async def test(filler: Filler) -> None:
        try:
            await filler.fill(file, 0, file.size, 0)
            assert box.storage.evict([file.content]) == (1, file.size)
            tier = box.storage.tiers[0]
            assert (tier.used_bytes, box.storage.departed.pending_bytes(tier)) == (0, 0)
        finally:
            ends.set()

    box.run(test)


def test_regression_inode_number_is_good_while_its_file_is_open(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 gives a freed inode number to the next file. Found as a recorded hole, by evicting during a fill."""
    file = box.source("a", bytes_of(2 * MIB))
    gate = Gate(lambda path, position: position >= MIB)
    box.store.before_piece = gate
    open_file, commit_spans = box.storage.open_file, box.storage.commit_spans
    opened: list[int] = []
    closed_early: list[int] = []

    def opening(*args: Any) -> int:
        opened.append(open_file(*args))
        return opened[-1]

    def committing(content: Any, cached: Any, inode: int, checksums: dict[int, int]) -> bool:
        if not _is_open(opened[0], inode):
            closed_early.extend(checksums)
        return commit_spans(content, cached, inode, checksums)

    monkeypatch.setattr(box.storage, "open_file", opening)
    monkeypatch.setattr(box.storage, "commit_spans", committing)

    async def test(filler: Filler) -> None:
        await filler.fill(file, 0, 1, 2 * MIB)
        inode = box.tier_file(file.content).stat().st_ino
        gate.let_go()
        until = time.monotonic() + 0.2  # the loop stands still meanwhile: the thread ends, or waits for the loop
        while _is_open(opened[0], inode) and time.monotonic() < until:
            pass

    box.run(test)
    assert closed_early == []


def _is_open(descriptor: int, inode: int) -> bool:
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def test_traffic_counts_what_came_from_the_source(box: Box) -> None:
    file, small = box.source("a", bytes_of(2 * MIB)), box.source("s", bytes_of(10))

    async def test(filler: Filler) -> None:
        await filler.fill(file, 0, 2 * MIB, 0)
        await filler.fill(file, 0, 2 * MIB, 0)
        await filler.fill(small, 0, 1, 0)
        traffic = filler.traffic[file.dataset]
        while traffic.gets < 2:  # a GET is counted when it ends, its blocks may be used before
            await trio.sleep(0.001)
        assert (traffic.gets, traffic.bytes) == (2, 2 * MIB + 10)

    box.run(test)


# Who goes first, and how windows are spread


def test_a_window_is_spread_over_the_gets_that_are_free(box: Box) -> None:
    file = box.source("a", bytes_of(40 * MIB))
    box.run(lambda filler: filler.fill(file, 0, 32 * MIB, 0))
    assert sorted(r.start for r in box.store.reads) == [n * 2 * MIB for n in range(16)]


def test_regression_read_ahead_that_a_reader_waits_for_goes_first(make_box: MakeBox) -> None:
    """It kept its place behind the other read-ahead, and its few slots."""
    box = make_box(fill=FillConfig(parallel_gets=5, deadline_s=RUN_S))
    busy, file = box.source("busy", bytes_of(64 * MIB)), box.source("a", bytes_of(64 * MIB, 1))
    gate = Gate(lambda path, position: path == "busy" and position < 8 * MIB)
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        await filler.fill(busy, 0, 64 * MIB, 0, background=True)
        await filler.fill(file, 0, 64 * MIB, 0, background=True)
        await trio.to_thread.run_sync(gate.reached.wait, HELD_S)
        assert await filler.fill(file, 40 * MIB, MIB, 0) is None
        assert [r for r in box.store.reads if r.path == "a"] == [Read("a", 40 * MIB, 8 * MIB)]
        gate.let_go()

    box.run(test)
    assert box.has(busy)
    assert box.has(file)


def test_regression_a_reader_that_leaves_is_not_waited_for(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    gate = Gate()
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        with trio.move_on_after(0.05) as left:
            await filler.fill(file, 0, MIB, 0)
        assert left.cancelled_caught
        gate.let_go()
        assert await filler.fill(file, 0, MIB, 0) is None

    box.run(test)
    assert len(box.store.reads) == 1, "the fetch went on"


# Other workers


class _OthersOwn:
    """A cluster in which others own the first slice of each file; the bytes come from the store all the same."""

    def relays(self, file: SourceFile, offset: int) -> bool:
        return offset < SLICE_BYTES

    def is_replica(self, file: SourceFile, offset: int) -> bool:
        return self.relays(file, offset)

    def drain_taken(self) -> Iterator[Taken]:
        return iter(())

    def read(self, file: SourceFile, start: int, length: int) -> Any:
        return file.read_store(start, length)


def _of_two_slices(box: Box) -> SourceFile:
    return replace(box.source("a", bytes(2 * SLICE_BYTES)), peers=_OthersOwn())


def test_a_get_is_of_one_slice(make_box: MakeBox) -> None:
    box = make_box(fill=_ONE_GET)
    file = _of_two_slices(box)
    box.run(lambda filler: filler.fill(file, SLICE_BYTES - 3 * MIB, 6 * MIB, 0))
    reads = sorted(box.store.reads, key=lambda read: read.start)  # they run side by side
    assert reads == [Read("a", SLICE_BYTES - 3 * MIB, 3 * MIB), Read("a", SLICE_BYTES, 3 * MIB)]


def test_regression_a_request_waits_by_the_slice_that_it_is_for(box: Box) -> None:
    """The first slice spoke for all: an owner of the second began to fetch it again for each who asked."""
    file, gate = _of_two_slices(box), Gate()
    box.store.before_piece = gate

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filler.fill, file, 0, MIB, 0)
            nursery.start_soon(filler.fill, file, SLICE_BYTES, MIB, 0)
            await trio.testing.wait_all_tasks_blocked()
            assert filler.waits_for_peer(file.content, 0, MIB, 1)
            assert not filler.waits_for_peer(file.content, 0, MIB, 0)
            assert not filler.waits_for_peer(file.content, MIB, 2 * MIB, 1), "nobody fetches that"
            assert not filler.waits_for_peer(file.content, SLICE_BYTES, SLICE_BYTES + MIB, 1)
            assert filler.waits_for_peer(file.content, 0, SLICE_BYTES + MIB, 1)
            gate.let_go()

    box.run(test)


# Memory


def test_replies_past_the_tiers_wait_for_memory(make_box: MakeBox) -> None:
    """16 MiB of budget: 4 MiB for replies, one block at a time with its copies; 4 MiB for what is kept."""
    box = make_box(MIB // 2, fill=FillConfig(memory_bytes=16 * MIB, deadline_s=RUN_S))
    files = [box.source(str(n), bytes_of(3 * MIB, n)) for n in range(6)]
    most = [0]

    def before(path: str, position: int) -> None:
        most[0] = max(most[0], box.filler._replies.used_bytes)

    box.store.before_piece = before

    async def reads(filler: Filler, file: SourceFile) -> None:
        data = box.store.files[file.path][0]
        for start in range(0, file.size, MIB):
            assert await filler.fill(file, start, MIB, 3 * MIB) == data[start : start + MIB]
            await filler.fill(file, start + MIB, 2 * MIB, 0, background=True)
            assert filler._kept.kept_bytes <= 4 * MIB

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(reads, filler, file)

    box.run(test)
    assert most[0] == 4 * MIB
    assert box.filler._replies.used_bytes == 0
    assert box.filler._kept.coming_bytes == 0


def test_a_lease_outlives_the_fill(make_box: MakeBox) -> None:
    box = make_box(MIB // 2)
    file = box.source("a", bytes_of(2 * MIB))

    async def test(filler: Filler) -> None:
        lease = filler.lease()
        assert await filler.fill(file, 0, 10, 0, lease=lease) is not None
        assert filler._replies.used_bytes == 4 * LEAST_BYTES
        lease.release()
        assert filler._replies.used_bytes == 0

    box.run(test)


def test_a_reply_past_the_tiers_carries_8_blocks_at_most(make_box: MakeBox) -> None:
    box = make_box(MIB // 2)
    data = bytes_of(20 * MIB)
    file = box.source("a", data)
    assert box.run(lambda filler: filler.fill(file, 5, 20 * MIB, 0)) == data[5 : 8 * MIB]


def test_regression_a_tier_that_fails_midway_keeps_to_8_blocks_too(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found by test_fill_model: what was to go into the tier came through the reply, all of it."""
    box = make_box(fill=_ONE_GET)
    data = bytes_of(20 * MIB)
    file = box.source("a", data)
    monkeypatch.setattr(writes_module, "write_all", _full_disk(10))
    assert box.run(lambda filler: filler.fill(file, 5, 20 * MIB, 0)) == data[5 : 8 * MIB]
    assert "takes no data now" in caplog.text
