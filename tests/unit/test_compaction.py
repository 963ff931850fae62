"""Mostly dead packs are made smaller while they are read, and never count for less than they take."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from cache_box import Box, bytes_of, compactor_of
from check import check_storage

from forebay.cacheruntime.config import MIB, Medium
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.worker import compaction as compaction_module
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.keeper import Keeper
from forebay.cacheruntime.worker.storage import checksum_of

MakeBox = Callable[..., Box]
SIZE = 50_000


def _filled(box: Box, count: int = 10) -> list[SourceFile]:
    files = [box.source(f"s{n:02d}", bytes_of(SIZE, n)) for n in range(count)]

    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size, 0)

    box.run(test)
    return files


def _checkpoint(box: Box) -> None:
    box.storage.ledger.take(box.storage.ledger.begin(), [tier.config.path for tier in box.storage.tiers])


def _used(box: Box) -> int:
    """As counted, which has to be what is on the disk."""
    tier = box.storage.tiers[0]
    on_disk = sum(path.stat().st_size for path in (tier.config.path / "packs").iterdir())
    assert tier.used_bytes == on_disk
    assert sum(sum(space.used.values()) for space in box.storage.spaces) == box.storage.held_bytes(box.dataset)
    return tier.used_bytes


def _right(box: Box, reader: ContentReader, files: list[SourceFile]) -> None:
    for file in files:
        place = reader.find(file.content, 0, file.size)
        assert place is not None, file.path
        assert os.pread(place.descriptor, file.size, place.base) == box.store.files[file.path][0]


@pytest.mark.parametrize("media", [(Medium.SSD,), (Medium.MEM,)])
def test_what_lives_in_a_mostly_dead_pack_gets_another(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, media: tuple[Medium, ...]
) -> None:
    box = make_box(media=media)
    files = _filled(box)
    kept = [files[1], files[4], files[8]]
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    _right(box, reader, files)
    box.storage.evict(file.content for file in files if file not in kept)
    assert _used(box) == 10 * SIZE
    compactor = compactor_of(box.storage)
    monkeypatch.setattr(compaction_module, "_BATCH_FILES", 1)
    repack, sizes = box.storage.repack, []

    def watched(*args: Any) -> bool:
        done = repack(*args)
        sizes.append(_used(box))
        _right(box, reader, kept)
        check_storage(box.storage)
        return done

    monkeypatch.setattr(box.storage, "repack", watched)
    assert trio.run(compactor.step)
    assert sizes == [11 * SIZE, 12 * SIZE, 13 * SIZE]
    if media == (Medium.SSD,):
        assert not trio.run(compactor.step), "until a checkpoint has it"
        assert _used(box) == 13 * SIZE
        _checkpoint(box)
    assert trio.run(compactor.step)
    box.storage.tidy(float("inf"))
    assert box.storage.tiers[0].used_bytes == 13 * SIZE, "a reader has the old one open"
    _right(box, reader, kept)
    reader.sweep()
    box.storage.tidy(float("inf"))
    assert _used(box) == 3 * SIZE
    _right(box, reader, kept)
    assert not trio.run(compactor.step)
    assert box.storage.thin == {}
    reader.close()
    check_storage(box.storage)


def test_not_while_files_are_being_evicted_and_not_half_full_ones(box: Box) -> None:
    files = _filled(box)
    box.storage.evict(file.content for file in files[:5])
    assert not trio.run(compactor_of(box.storage).step), "half of it lives"
    box.storage.evict([files[5].content])
    assert not trio.run(compactor_of(box.storage, 0.0).step)
    assert trio.run(compactor_of(box.storage).step)


def test_a_restart_finds_mostly_dead_packs(box: Box) -> None:
    files = _filled(box)
    box.storage.evict(file.content for file in files[:8])
    box.kill()
    assert trio.run(compactor_of(box.storage).step)
    box.kill()  # the old one is empty, and goes
    assert _used(box) == 2 * SIZE
    assert [box.has(file) for file in files] == [False] * 8 + [True] * 2
    check_storage(box.storage)


def test_without_room_it_stays(make_box: MakeBox) -> None:
    box = make_box(11 * SIZE)
    files = _filled(box)
    box.storage.evict(file.content for file in files[:8])
    box.storage.tiers[0].take(SIZE)
    assert not trio.run(compactor_of(box.storage).step)
    assert box.storage.thin
    box.storage.tiers[0].give_back(SIZE)
    box.storage.evict([files[8].content])
    assert trio.run(compactor_of(box.storage).step)
    check_storage(box.storage)


def test_pinned_files_and_others_part(box: Box) -> None:
    files = _filled(box)
    box.storage.pin(box.dataset, b"s09", [files[9].content])
    box.storage.evict(file.content for file in files[:7])
    compactor = compactor_of(box.storage)
    assert trio.run(compactor.step)
    _checkpoint(box)
    assert trio.run(compactor.step)
    packs = box.storage.index.reader.packs()
    assert sorted((pack.pinned, pack.live_files) for pack in packs) == [(False, 2), (True, 1)]
    check_storage(box.storage)


def test_a_damaged_file_is_dropped_on_the_way(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    files = _filled(box)
    cached = box.storage.index.reader.find(files[8].content)
    assert cached is not None
    path = box.storage.path_of(files[8].content, cached)
    assert path is not None
    with path.open("r+b") as opened:
        opened.seek(cached.offset + 100)
        opened.write(b"?")
    box.storage.evict(file.content for file in files[:7])
    compactor = compactor_of(box.storage)
    assert trio.run(compactor.step)
    assert "is damaged: dropped" in caplog.text
    caplog.clear()
    assert [box.has(file) for file in files[7:]] == [True, False, True]
    _checkpoint(box)
    assert trio.run(compactor.step)
    check_storage(box.storage)


def test_what_was_appended_meanwhile_stays(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack was the newest of its kind: whoever came before the first batch went on with it."""
    files = _filled(box)
    box.storage.evict(file.content for file in files[:8])
    compactor, late = compactor_of(box.storage), box.source("late", bytes_of(SIZE, 77))
    repack = box.storage.repack

    def after(*args: Any) -> bool:
        if not box.has(late):
            data = box.store.files["late"][0]
            assert box.storage.keep_small(box.target(late), data, checksum_of(data))
        return repack(*args)

    monkeypatch.setattr(box.storage, "repack", after)
    assert not trio.run(compactor.step)
    assert [box.has(file) for file in [*files[8:], late]] == [True] * 3
    check_storage(box.storage)
    assert trio.run(compactor_of(box.storage, 100.0).step)
    _checkpoint(box)
    box.kill()
    assert [box.has(file) for file in [*files[8:], late]] == [True] * 3
    assert _used(box) == 3 * SIZE


def test_the_keeper_does_it(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction_module, "_QUIET_S", 0.0)
    files = _filled(box)
    box.storage.evict(file.content for file in files[:8])

    async def test(filler: Filler) -> None:
        keeper = Keeper(box.storage, filler.verifier)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            while _used(box) != 2 * SIZE:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    box.run(test)
    assert _used(box) < MIB
