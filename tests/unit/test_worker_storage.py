"""Storage: where files go, packs, room, eviction, and what a restart finds."""

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from cache_box import Box, bytes_of, whole_blocks
from check import check_storage

from forebay.cacheruntime import index as index_module
from forebay.cacheruntime.config import MIB, FillConfig, Medium, TierConfig
from forebay.cacheruntime.errors import CacheFormatError, TierUnusable
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.tiers import file_path, pack_path
from forebay.cacheruntime.worker import packs as packs_module
from forebay.cacheruntime.worker import writes as writes_module
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.storage import Storage, Target
from forebay.cacheruntime.worker.writes import write_all

MakeBox = Callable[..., Box]
MINE = DatasetId("00" * 8)


def _fill(box: Box, *files: SourceFile) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size, 0)

    box.run(test)


def _small(box: Box, count: int, size: int) -> list[SourceFile]:
    return [box.source(f"s{n}", bytes_of(size, n)) for n in range(count)]


def _target(content: bytes, size: int) -> Target:
    return Target(ContentId(content), size, MINE, b"x")


def _make_room(box: Box, need: int) -> None:
    """For a dataset that has nothing yet, while all others are idle."""
    storage = box.storage
    storage.idle = lambda dataset: None if dataset == MINE else 1.0
    storage.rooms.make(need, storage.space(MINE), 0, ContentId(b"c" * 16), storage.tiers)


def _data(box: Box, file: SourceFile) -> bytes:
    return box.store.files[file.path][0]


def test_small_files_lie_in_one_pack(box: Box) -> None:
    files = _small(box, 5, 1000)
    _fill(box, *files)
    assert [box.read(f, 0, f.size) for f in files] == [_data(box, f) for f in files]
    (pack,) = box.storage.index.reader.packs()
    assert pack.length == 5000
    assert os.listdir(box.config.tiers[0].path / "files") == []


def test_one_dataset_to_a_pack(make_box: MakeBox) -> None:
    box = make_box()
    first, second = box.source("a", b"1" * 10), box.source("a", b"2" * 10, store=type(box.store)("fake://other"))
    _fill(box, first, second)
    assert {p.dataset for p in box.storage.index.reader.packs()} == {first.dataset, second.dataset}


def test_packs_rotate(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs_module, "PACK_BYTES", 1000)
    files = _small(box, 20, 250)
    _fill(box, *files)
    assert [p.length for p in box.storage.index.reader.packs()] == [1000] * 5
    assert [box.read(f, 0, f.size) for f in files] == [_data(box, f) for f in files]


def test_regression_packs_rotate_before_they_are_too_large(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs_module, "PACK_BYTES", 1000)
    _fill(box, *_small(box, 9, 300))
    assert [p.length for p in box.storage.index.reader.packs()] == [900] * 3


def test_an_open_pack_goes_on_after_a_restart(box: Box) -> None:
    files = _small(box, 4, 1000)
    _fill(box, *files[:2])
    box.restart()
    _fill(box, *files[2:])
    assert [p.length for p in box.storage.index.reader.packs()] == [4000]
    assert [box.read(f, 0, f.size) for f in files] == [_data(box, f) for f in files]


def test_pack_file_that_was_removed_is_not_gone_on_with(box: Box) -> None:
    files = _small(box, 2, 1000)
    _fill(box, files[0])
    (pack,) = box.storage.index.reader.packs()
    box.restart()
    pack_path(box.config.tiers[0].path, pack.number).unlink()
    _fill(box, files[1])
    numbers = [found.number for found in box.storage.index.reader.packs()]
    assert numbers == [pack.number + 1]
    assert box.storage.damage.files == 1


def test_dropping_the_open_pack_starts_another(box: Box) -> None:
    files = _small(box, 2, 1000)
    _fill(box, files[0])
    (pack,) = box.storage.index.reader.packs()
    box.storage.drop_pack(pack)
    assert box.storage.tiers[0].used_bytes == 0
    _fill(box, files[1])
    assert [p.number for p in box.storage.index.reader.packs()] == [pack.number + 1]


def test_open_descriptor_outlives_eviction(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    _fill(box, file)
    with open(box.tier_file(file.content), "rb") as opened:
        box.storage.drop_file(file.content)
        assert opened.read() == _data(box, file)
        assert box.storage.tiers[0].used_bytes == 2 * MIB, "on the disk until it is closed"
    box.storage.drop_file(file.content)  # twice is once
    box.storage.tidy()
    assert box.storage.tiers[0].used_bytes == 0


def test_a_restart_finds_all(make_box: MakeBox) -> None:
    box = make_box(8 * MIB, 8 * MIB)
    files = [box.source(n, bytes_of(size)) for n, size in (("a", 3 * MIB), ("b", 7 * MIB), ("c", 77))]
    _fill(box, *files)
    used = [tier.used_bytes for tier in box.storage.tiers]
    assert all(used)
    box.restart(boot="another boot")
    assert [tier.used_bytes for tier in box.storage.tiers] == used
    assert [box.read(f, 0, f.size) for f in files] == [_data(box, f) for f in files]
    check_storage(box.storage)


def test_killed_worker_loses_nothing(box: Box) -> None:
    file = box.source("a", bytes_of(3 * MIB))
    _fill(box, file)
    box.kill()
    assert box.read(file, 0, 3 * MIB) == _data(box, file)


def test_index_of_another_format(box: Box) -> None:
    with box.storage.index._env.begin(write=True) as txn:
        txn.put(b"format", b"99", db=box.storage.index._tables["meta"])
    box.storage.close()
    with pytest.raises(CacheFormatError, match=r"another format"):
        Storage(box.config, "boot")
    box.storage.index._env = None
    import lmdb

    env = lmdb.open(str(box.config.index_dir), max_dbs=8)
    with env.begin(write=True) as txn:
        txn.put(b"format", index_module.FORMAT, db=env.open_db(b"meta", txn))
    env.close()
    box.storage = Storage(box.config, "boot")


def test_index_of_an_earlier_format_is_an_empty_cache(box: Box) -> None:
    """As after an upgrade: all that was cached can be fetched again."""
    file = box.source("a", bytes_of(2 * MIB))
    _fill(box, file)
    path = box.tier_file(file.content)
    with box.storage.index._env.begin(write=True) as txn:
        txn.put(b"format", b"1", db=box.storage.index._tables["meta"])
    box.storage.close()
    box._open("5a7dbb1c-boot")
    assert not box.has(file)
    assert not path.exists()
    assert box.storage.tiers[0].used_bytes == 0
    _fill(box, file)
    assert box.has(file)
    box.storage.empty_trash()


def test_tier_left_out_is_forgotten_and_its_number_is_not_used_again(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box(8 * MIB)
    file = box.source("a", bytes_of(2 * MIB))
    _fill(box, file)
    first = box.storage.tiers[0].number
    box.restart(tiers=(TierConfig(Medium.SSD, tmp_path / "elsewhere", 8 * MIB),))
    assert not box.has(file)
    assert box.storage.tiers[0].number != first, "a reader may still hold the old one's folder"
    _fill(box, file)
    assert box.has(file)


def test_exchanged_tier_folder_is_noticed(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    _fill(box, file)
    folder = box.config.tiers[0].path
    folder.rename(folder.with_name("away"))
    box.restart()
    assert not box.has(file)
    assert box.storage.tiers[0].used_bytes == 0


def test_tier_of_another_cache(box: Box, tmp_path: Path) -> None:
    with pytest.raises(TierUnusable, match="belongs to the cache in"):
        Box(tmp_path / "second").restart(tiers=box.config.tiers)


def test_place_file_prefers_the_first_tier_with_room_for_all(make_box: MakeBox) -> None:
    box = make_box(3 * MIB, 9 * MIB)
    storage = box.storage
    placed = {size: storage.place_file(_target(bytes([size]) * 16, size * MIB)) for size in (2, 3, 5, 9, 20)}
    first, second = (tier.number for tier in storage.tiers)
    found = {size: cached.tier for size, cached in placed.items() if cached}
    assert found == {2: first, 3: first, 5: second, 9: second, 20: second}


def test_place_file_without_room_for_a_block(make_box: MakeBox) -> None:
    box = make_box(MIB - 1)
    assert box.storage.place_file(_target(b"a" * 16, 2 * MIB)) is None


def test_place_file_empties_what_a_crash_left(box: Box) -> None:
    content = ContentId(b"x" * 16)
    path = file_path(box.config.tiers[0].path, content)
    path.parent.mkdir()
    path.write_bytes(b"left" * MIB)
    assert box.storage.place_file(_target(content, 2 * MIB)) is not None
    assert path.read_bytes() == bytes(2 * MIB)


def test_commit_spans_of_a_file_that_is_another_one(box: Box) -> None:
    content = ContentId(b"x" * 16)
    cached = box.storage.place_file(_target(content, 2 * MIB))
    assert cached is not None
    path = file_path(box.config.tiers[0].path, content)
    sums = whole_blocks(2 * MIB, {0: 7})
    assert not box.storage.commit_spans(content, cached, path.stat().st_ino + 1, sums)
    path.rename(path.with_name("away"))
    assert not box.storage.commit_spans(content, cached, 1, sums)
    path.with_name("away").rename(path)
    box.storage.index.drop_file(content)
    assert not box.storage.commit_spans(content, cached, path.stat().st_ino, sums)
    path.unlink()


def test_make_room_leaves_what_would_not_suffice(make_box: MakeBox) -> None:
    box = make_box(4 * MIB)
    file = box.source("a", bytes_of(2 * MIB))
    _fill(box, file)
    _make_room(box, 5 * MIB)
    assert box.has(file)


def test_make_room_prefers_what_was_not_read(make_box: MakeBox) -> None:
    box = make_box(4 * MIB)
    files = [box.source(n, bytes_of(2 * MIB, ord(n))) for n in "ab"]
    _fill(box, *files)
    read, unread = sorted(files, key=lambda f: f.content)  # the order in which the index tells them
    box.storage.touch.set(int.from_bytes(read.content[:3], "big"))
    _make_room(box, MIB)
    assert (box.has(read), box.has(unread)) == (True, False)


def test_regression_a_full_file_system_does_not_cost_all_idle_data(make_box: MakeBox) -> None:
    box = make_box(100 * MIB)
    files = [box.source(str(n), bytes_of(MIB, n)) for n in range(6)]
    _fill(box, *files)
    box.storage.tiers[0].failed(OSError(errno.ENOSPC, "full"))
    for _ in range(6):  # six misses of another dataset in the next ten seconds
        _make_room(box, MIB)
    assert sum(box.has(file) for file in files) >= 5


def test_regression_room_is_made_in_the_tier_that_needs_it(make_box: MakeBox) -> None:
    box = make_box(3 * MIB, 5 * MIB, fill=FillConfig(part_bytes=MIB))
    theirs = type(box.store)("fake://theirs")
    first = box.source("first", bytes_of(2 * MIB))
    idle = box.source("idle", bytes_of(3 * MIB), store=theirs)
    big = box.source("big", bytes_of(4 * MIB))

    async def fill(filler: Filler) -> None:
        for file, end in ((first, 2), (idle, 3), (big, 2)):
            await filler.fill(file, 0, end * MIB, 0)

    box.run(fill)  # to its end: a thread that has a file open still would hold its room
    assert [tier.room_bytes() for tier in box.storage.tiers] == [MIB, 0]
    box.last_used[idle.dataset] = 1.0
    assert box.run(lambda filler: filler.fill(big, 2 * MIB, MIB, 0)) is None


def test_drop_pack_gives_back_what_its_files_held(make_box: MakeBox) -> None:
    box = make_box(10_000)
    files = _small(box, 3, 1000)
    _fill(box, *files)
    assert box.storage.evict([files[0].content]) == (1, 1000)
    assert box.storage.tiers[0].used_bytes == 3000, "its bytes are in the pack, until that goes"
    check_storage(box.storage)
    box.restart()
    assert box.storage.tiers[0].used_bytes == 3000
    box.storage.evict([file.content for file in files])
    assert box.storage.tiers[0].used_bytes == 0, "a pack goes with its last file"


@pytest.mark.parametrize("cuts", [(), (7,), (1, 2, 50, 99), (7, 14, 21)])
def test_write_all_goes_on_after_a_partial_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...]
) -> None:
    data = memoryview(bytes(range(100)))
    monkeypatch.setattr(writes_module.os, "pwritev", lambda fd, parts, at: os.pwrite(fd, b"".join(parts)[:7], at))
    descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        write_all(descriptor, [data[start:end] for start, end in pairwise((0, *cuts, 100))], 5)
    finally:
        os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == bytes(5) + bytes(range(100))


def test_write_all_takes_more_pieces_than_one_call(tmp_path: Path) -> None:
    data = os.urandom(3000)
    descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    try:
        write_all(descriptor, [memoryview(data)[n : n + 1] for n in range(3000)], 0)
    finally:
        os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == data
