"""The storage under faults of its own house: an index that takes nothing, disks that keep what was dropped, races."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
import trio
from cache_box import Box, bytes_of, whole_blocks
from check import check_storage
from test_integrity import check, data_of, fill, flip

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.index import Index
from forebay.cacheruntime.touch import TouchMap
from forebay.cacheruntime.worker import departed
from forebay.cacheruntime.worker import packs as packs_module
from forebay.cacheruntime.worker.check import Check
from forebay.cacheruntime.worker.departed import Departed
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.keeper import Keeper
from forebay.cacheruntime.worker.mover import DROPPED_AT_ONCE, Mover
from forebay.cacheruntime.worker.storage import Storage, checksum_of

MakeBox = Callable[..., Box]


def take_in(box: Box, *files: SourceFile) -> list[bytes | None]:
    async def test(filler: Filler) -> list[bytes | None]:
        return [await filler.fill(file, 0, file.size, 0) for file in files]

    found: list[bytes | None] = box.run(test, checked=False)
    return found


def one_block(box: Box, file: SourceFile, block: int) -> None:
    """Put one block of a file into its tier, as a fill that goes on."""
    storage = box.storage
    cached = storage.find(file.content) or storage.place_file(box.target(file))
    assert cached is not None
    assert storage.reserve(file.content, cached, [MIB]) == 1
    data = data_of(box, file)[block * MIB :][:MIB]
    descriptor = storage.open_file(file.content, cached)
    storage.writes.write(file.content, descriptor, [memoryview(data)], block * MIB)
    sums = whole_blocks(file.size, {block: checksum_of(data)})
    assert storage.commit_spans(file.content, cached, os.fstat(descriptor).st_ino, sums)
    os.close(descriptor)


class FullDisk:
    """An environment whose write transactions fail from the n-th on, as on a file system without room."""

    def __init__(self, env: Any, good: int) -> None:
        self._env = env
        self.good = good

    def begin(self, *args: Any, write: bool = False, **named: Any) -> Any:
        if write:
            self.good -= 1
            if self.good < 0:
                raise lmdb.DiskError("mdb_txn_commit: No space left on device")
        return self._env.begin(*args, write=write, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def all_rooms_reopened(storage: Storage) -> None:
    for tier in storage.tiers:
        tier._full_until = 0.0


@pytest.mark.parametrize("good", range(12))
@pytest.mark.semantics("D13")
def test_an_index_that_takes_no_change_means_reading_through(make_box: MakeBox, good: int) -> None:
    box = make_box(16 * MIB)
    storage = box.storage
    files = [box.source(f"{n}", bytes_of(size, n)) for n, size in enumerate((7_000, 3 * MIB, 9_000, 2 * MIB + 5))]
    real, storage.index._env = storage.index._env, FullDisk(storage.index._env, good)
    for file, through in zip(files, take_in(box, *files), strict=True):
        assert through in (None, data_of(box, file))
        assert through is not None or box.read(file, 0, file.size) == data_of(box, file)
    for file in files:
        storage.drop_file(file.content)

    async def keep() -> None:
        with trio.move_on_after(0.7):
            await Keeper(storage, Filler(storage, box.config.fill, nursery).verifier).run()

    async def main() -> None:
        nonlocal nursery
        async with trio.open_nursery() as nursery:
            await keep()

    nursery: Any = None
    trio.run(main)
    storage.index._env = real
    all_rooms_reopened(storage)
    fill(box, *files)
    check_storage(storage)
    assert all(box.read(file, 0, file.size) == data_of(box, file) for file in files)


def test_a_checkpoint_that_cannot_begin_a_log_goes_on_with_the_old_one(make_box: MakeBox) -> None:
    box = make_box()
    index = box.storage.index
    folder, index._folder = index._folder, Path("/nowhere/at/all")
    with pytest.raises(OSError):
        box.storage.ledger.begin()
    index._folder = folder
    assert Path(f"/proc/self/fd/{index._log}").resolve().parent == folder.resolve(), "nobody else's descriptor"
    assert index.has_changed


def test_checkpoints_of_an_idle_worker_leave_nothing(make_box: MakeBox) -> None:
    box = make_box()
    fill(box, box.source("a", bytes_of(MIB)))

    async def checkpoints() -> None:
        async with trio.open_nursery() as nursery:
            keeper = Keeper(box.storage, Filler(box.storage, box.config.fill, nursery).verifier)
            for _ in range(5):
                await keeper.checkpoint()

    trio.run(checkpoints)
    assert len(list(box.config.index_dir.glob("changed.*"))) == 1
    assert box.storage.index.is_checkpointed
    trusted = box.storage.index.reader.trusted_since
    box.restart(boot="after a stop in order")
    assert box.storage.index.reader.trusted_since == trusted


def test_what_is_changed_while_it_is_verified_gets_no_seal(make_box: MakeBox) -> None:
    box = make_box()
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file)
    path = box.tier_file(file.content)
    path.touch()  # in doubt, but right

    class Slow(Check):
        def _look_at(self, records: Any) -> Any:
            looked = super()._look_at(records)
            if looked:
                flip(path, 1000)
            return looked

    made = Slow(box.storage, deep=False, repair=True)
    trio.run(made.run)
    assert [finding.kind for finding in made.progress.findings][:1] == ["seal"]
    assert "data" in [finding.kind for finding in check(box, repair=True)]


def test_a_file_left_in_a_tier_that_failed_is_not_read_for_the_new_one(make_box: MakeBox) -> None:
    box = make_box(16 * MIB, 16 * MIB)
    file = box.source("a", bytes_of(3 * MIB))
    index = Index(box.config.index_dir, box.storage.index._env)
    reader = ContentReader(index, TouchMap(box.config.cache_dir / "touch"))
    one_block(box, file, 0)
    assert reader.find(file.content, 0, MIB) is not None
    path = box.tier_file(file.content)
    os.link(path, path.with_name("kept"))  # a disk that went read-only keeps it just so
    box.storage.drop_file(file.content)
    for _ in range(3):
        box.storage.tiers[0].health.gone()
    one_block(box, file, 1)
    place = reader.find(file.content, MIB, 2 * MIB)
    assert place is not None
    assert os.pread(place.descriptor, MIB, MIB) == data_of(box, file)[MIB : 2 * MIB]
    path.with_name("kept").unlink()


def test_a_file_changed_before_its_last_block_is_recorded_is_given_back_once(make_box: MakeBox) -> None:
    box = make_box(16 * MIB)
    file = box.source("a", bytes_of(2 * MIB))
    one_block(box, file, 0)
    storage, cached = box.storage, box.storage.find(file.content)
    assert cached is not None
    assert storage.reserve(file.content, cached, [MIB]) == 1
    descriptor = storage.open_file(file.content, cached)
    data = data_of(box, file)[MIB:]
    storage.writes.write(file.content, descriptor, [memoryview(data)], MIB)
    box.tier_file(file.content).chmod(0o640)
    sums = whole_blocks(file.size, {1: checksum_of(data)})
    assert not storage.commit_spans(file.content, cached, os.fstat(descriptor).st_ino, sums)
    os.close(descriptor)
    storage.give_back(cached, MIB)  # as `Filler` does with what is left of a part
    storage.tidy()
    assert storage.tiers[0].used_bytes == 0
    assert sum(storage.space(file.dataset).used.values()) == 0


def test_departed_files_hold_no_descriptor_too_many(
    make_box: MakeBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make_box()
    tier, files = box.storage.tiers[0], Departed()
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.unlink(tier, tmp_path / "folder", 0)
    assert len(os.listdir("/proc/self/fd")) == before

    monkeypatch.setattr(departed, "_MOST", 2)
    tier.take(5)
    opened = []
    for name in "abcde":
        (tmp_path / name).write_bytes(b"?")
        opened.append((tmp_path / name).open("rb"))
        files.unlink(tier, tmp_path / name, 1)
    assert (files.pending_bytes(tier), tier.used_bytes) == (2, 2)
    for each in opened:
        each.close()
    files.look()
    assert (files.pending_bytes(tier), tier.used_bytes) == (0, 0)


@pytest.mark.parametrize("ends", ["killed", "stopped"])
def test_what_was_evicted_while_it_was_open_counts_with_the_next_worker_too(make_box: MakeBox, ends: str) -> None:
    box = make_box()
    own = box.source("own", bytes_of(2 * MIB))
    small = [box.source(f"{n}", bytes_of(5_000, n)) for n in range(2)]
    files = [own, *small]
    fill(box, *files)
    held = own.size + sum(file.size for file in small)
    reader = ContentReader(box.storage.index.reader, TouchMap(box.config.cache_dir / "touch"))
    places = [reader.find(file.content, 0, file.size) for file in files]
    box.storage.evict(file.content for file in files)
    for _ in range(2):
        box.kill() if ends == "killed" else box.restart()
        box.storage.tidy()
        assert box.storage.tiers[0].used_bytes == held
        assert sum(box.storage.space(box.dataset).used.values()) == own.size, "the others left their pack"
    for file, place in zip(files, places, strict=True):
        assert place is not None
        assert os.pread(place.descriptor, file.size, place.base) == data_of(box, file), "whoever has it open reads on"
    fill(box, own)
    assert box.storage.tiers[0].used_bytes == held + own.size
    again = ContentReader(box.storage.index.reader, box.storage.touch)
    place = again.find(own.content, 0, own.size)
    assert place is not None
    first = places[0]
    assert first is not None
    assert os.fstat(place.descriptor).st_ino != os.fstat(first.descriptor).st_ino
    reader.sweep()
    box.storage.tidy()
    assert box.storage.tiers[0].used_bytes == own.size
    assert sum(box.storage.space(box.dataset).used.values()) == own.size
    assert list((box.storage.tiers[0].config.path / "departed").iterdir()) == []
    again.close()
    check_storage(box.storage)


def test_a_file_that_is_written_to_when_it_is_evicted_is_known_as_dropped(make_box: MakeBox) -> None:
    box = make_box()
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file, end=MIB)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert reader.find(file.content, 0, MIB) is not None
    cached = box.storage.find(file.content)
    assert cached is not None
    assert box.storage.begin_writing(file.content, cached)
    descriptor = box.storage.open_file(file.content, cached)
    box.storage.drop_file(file.content)
    os.pwrite(descriptor, bytes(MIB), MIB)
    os.close(descriptor)
    assert box.storage.place_file(box.target(file)) is not None
    assert reader.find(file.content, 0, MIB) is None, "the new one has nothing yet"
    reader.sweep()
    assert reader._opened == {}
    reader.close()
    box.storage.drop_file(file.content)


def test_whoever_opens_a_file_that_is_being_evicted_does_not_end_the_worker(tmp_path: Path) -> None:
    """He breaks the lease by which it is seen whether anybody has it open: by default that sends SIGIO, which kills."""
    path = tmp_path / "file"
    path.write_bytes(b"?")
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGIO, signal.SIGURG)}
    ended = threading.Event()

    def open_and_close() -> None:
        while not ended.is_set():
            os.close(os.open(path, os.O_RDONLY))

    thread = threading.Thread(target=open_and_close)
    descriptor = os.open(path, os.O_RDONLY)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while len(came) < 3 and time.monotonic() < deadline:
            departed._is_ours_alone(descriptor)
    finally:
        ended.set()
        thread.join()
        os.close(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert set(came) == {signal.SIGURG}


def test_the_scrub_puts_packs_in_doubt_right(make_box: MakeBox) -> None:
    """After a power loss: readers need not compare each file for ever, and what is wrong goes."""
    box = make_box()
    files = [box.source(f"{n}", bytes_of(5_000, n)) for n in range(20)]
    fill(box, *files)

    async def keep(what: Callable[[Keeper], Any]) -> None:
        async with trio.open_nursery() as nursery:
            await what(Keeper(box.storage, Filler(box.storage, box.config.fill, nursery).verifier))

    trio.run(keep, Keeper.checkpoint)
    box.kill(boot="after a power loss")
    pack = box.storage.index.reader.packs()[0]
    assert box.storage.pack_in_doubt(pack)
    wrong = box.storage.index.reader.find(files[3].content)
    path = box.storage.path_of(files[3].content, wrong) if wrong is not None else None
    assert wrong is not None
    assert path is not None
    flip(path, wrong.offset + 7)
    trio.run(keep, Keeper._scrub_all)
    assert not box.storage.pack_in_doubt(box.storage.index.reader.packs()[0])
    assert not box.has(files[3])
    records = [box.storage.index.reader.find(file.content) for file in files]
    trusted = box.storage.index.reader.trusted_since
    assert all(record is None or record.session >= trusted for record in records)
    check_storage(box.storage)


def test_suspicions_of_files_that_are_gone_are_forgotten(make_box: MakeBox) -> None:
    box = make_box()
    file = box.source("a", bytes_of(5_000))

    async def test(filler: Filler) -> None:
        filler.verifier.suspected.add(file.content)
        await filler.fill(file, 0, file.size, 0)
        assert not filler.verifier.suspected

    box.run(test)


def test_many_evictions_let_others_in_between(make_box: MakeBox) -> None:
    box = make_box(8 * MIB, 1)
    box.storage.space(box.dataset).use_policy("sieve")
    files = [box.source(f"{n}", bytes_of(40_000, n)) for n in range(200)]
    fill(box, *files)
    box.last_used[box.dataset] = 1.0
    mover = Mover(box.storage)
    held = sum(box.has(file) for file in files)
    box.storage.tiers[0].put_at = mover._clock()
    box.storage.tiers[0].config = box.storage.tiers[0].config.__class__(
        box.config.tiers[0].medium, box.config.tiers[0].path, 8 * MIB, high=0.5, low=0.1
    )
    assert trio.run(mover.step)
    assert held - sum(box.has(file) for file in files) == DROPPED_AT_ONCE
    while trio.run(mover.step):
        pass
    assert box.storage.tiers[0].used_bytes <= 0.1 * 8 * MIB
    check_storage(box.storage)


def some_small(box: Box) -> tuple[list[SourceFile], list[Any]]:
    files = [box.source(f"{n}", bytes_of(5_000, n)) for n in range(6)]
    data = [data_of(box, file) for file in files]
    return files, [(box.target(f), [memoryview(d)], checksum_of(d)) for f, d in zip(files, data, strict=True)]


@pytest.mark.parametrize("good", range(4))
def test_many_small_files_and_an_index_that_takes_no_change(make_box: MakeBox, good: int) -> None:
    box = make_box()
    storage = box.storage
    files, wanted = some_small(box)
    real, storage.index._env = storage.index._env, FullDisk(storage.index._env, good)
    kept = storage.keep_small_files(wanted)
    storage.index._env = real
    assert kept == [box.has(file) for file in files]
    check_storage(storage)
    all_rooms_reopened(storage)
    assert all(storage.keep_small_files([each for each, is_kept in zip(wanted, kept, strict=True) if not is_kept]))
    assert all(box.read(file, 0, file.size) == data_of(box, file) for file in files)
    check_storage(storage)


def test_a_pack_that_is_dropped_before_it_is_written_to_takes_nothing(make_box: MakeBox) -> None:
    box = make_box()
    storage = box.storage
    files, wanted = some_small(box)
    assert storage.keep_small_files(wanted[:1]) == [True]
    pack = storage.index.reader.packs()[0]
    find_tier, calls = storage.rooms.tier_for, iter(range(10))

    def tier_for(*args: Any, **named: Any) -> Any:
        if next(calls) == 2:
            storage.drop_pack(pack)  # for room
        return find_tier(*args, **named)

    storage.rooms.tier_for = tier_for  # type: ignore[method-assign]
    victim = os.open(box.config.cache_dir / "somebody else's", os.O_RDWR | os.O_CREAT)
    kept = storage.keep_small_files(wanted[1:])
    assert kept == [box.has(file) for file in files[1:]]
    assert os.fstat(victim).st_size == 0
    os.close(victim)
    check_storage(storage)


def test_packs_hold_no_more_files_than_can_be_dropped_at_once(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs_module, "PACK_FILES", 4)
    box = make_box()
    files = [box.source(f"{n}", bytes_of(1_000, n)) for n in range(6)]
    fill(box, *files)
    box.restart()
    fill(box, *[box.source(f"{n}", bytes_of(1_000, n)) for n in range(6, 10)])
    assert [pack.live_files for pack in box.storage.index.reader.packs()] == [4, 4, 2]


def test_a_dataset_is_dropped_piece_by_piece(make_box: MakeBox) -> None:
    box = make_box()
    packed = [box.source(f"{n}", bytes_of(1_000, n)) for n in range(3)]
    fill(box, *packed)
    box.storage.space(box.dataset).use_policy("sieve")
    fill(box, *[box.source(f"own {n}", bytes_of(1_000, n)) for n in range(130)])
    assert len(list(box.storage.dropping(box.dataset))) == 1 + 130 // 64
    assert box.storage.held_bytes(box.dataset) == 0
    assert box.storage.tiers[0].used_bytes == 0
    check_storage(box.storage)


def test_sums_are_not_built_anew_while_blocks_of_a_dropped_file_are_on_their_way(make_box: MakeBox) -> None:
    box = make_box()
    storage = box.storage
    file = box.source("a", bytes_of(2 * MIB))
    one_block(box, file, 0)
    cached = storage.find(file.content)
    assert cached is not None
    assert storage.reserve(file.content, cached, [MIB]) == 1
    storage.drop_file(file.content)
    storage.add_up_soon()
    storage.tidy()
    storage.give_back(cached, MIB)
    storage.tidy()
    assert not storage._pending.add_up
    assert storage.tiers[0].used_bytes == 0
    assert sum(storage.space(file.dataset).used.values()) == 0


def test_a_dataset_that_has_nothing_in_a_tier_is_not_searched_for_victims_there(make_box: MakeBox) -> None:
    box = make_box(16 * MIB, 16 * MIB)
    space = box.storage.space(box.dataset)
    space.use_policy("sieve")
    fill(box, *[box.source(f"{n}", bytes_of(1_000, n)) for n in range(5)])
    first, second = box.storage.tiers
    assert len(list(box.storage.rooms.victims(space, first))) == 5
    looked = []
    find_victims = space.policy.victims
    space.policy.victims = lambda coming=None: looked.append(1) or find_victims(coming)  # type: ignore[method-assign]
    assert list(box.storage.rooms.victims(space, second)) == []
    assert not looked


def test_a_stop_and_a_start_without_room_for_the_index_end_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path)
    box.storage.index._env = FullDisk(box.storage.index._env, 0)
    box.storage.close()
    assert "not closed in order" in caplog.text
    caplog.clear()
    real = lmdb.open
    monkeypatch.setattr(
        lmdb, "open", lambda *a, **k: real(*a, **k) if k.get("readonly") else FullDisk(real(*a, **k), 0)
    )
    with pytest.raises(CacheFormatError, match="make room there"):
        Storage(box.config, "boot")
