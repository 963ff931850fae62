"""After damage to its records the index adds up again, while the worker goes on."""

import time
from collections.abc import Callable

import pytest
import trio
from cache_box import Box, bytes_of
from check import check_storage

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.keeper import Keeper
from forebay.cacheruntime.worker.recount import find_differences, recount

MakeBox = Callable[..., Box]


def _fill(box: Box, *files: SourceFile) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size, 0)

    box.run(test, checked=False)


def _files(box: Box, name: str) -> list[SourceFile]:
    large = [box.source(f"{name}l{n}", bytes_of(MIB + n, n)) for n in range(4)]
    return large + [box.source(f"{name}s{n}", bytes_of(1_000 + n, n)) for n in range(8)]


def _damage(box: Box, *files: SourceFile) -> None:
    """Their records, as readers find them."""
    index = box.storage.index
    for file in files:
        with index._env.begin(write=True) as txn:
            raw = bytearray(txn.get(file.content, db=index._tables["contents"]))
            raw[9] ^= 1
            txn.put(file.content, bytes(raw), db=index._tables["contents"])
        assert box.storage.find(file.content) is None


def test_what_changes_meanwhile_is_counted_once(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    """Before the look, between the look and the mending, and between two pieces of that."""
    files, more = _files(box, "a"), _files(box, "b")
    _fill(box, *files)
    _damage(box, files[0], files[1], files[4], files[5])
    storage = box.storage
    assert storage.recount_due
    _fill(box, files[0])
    found = find_differences(storage.index.reader)
    assert len(list(found.described())) >= 2
    _fill(box, *more[:6])
    storage.evict([files[2].content, files[6].content, more[4].content])
    for _ in storage.index.mend(found):
        _fill(box, more[7])
        storage.evict([files[7].content, more[0].content])
    storage.add_up_soon()
    storage.tidy(float("inf"))
    assert list(find_differences(storage.index.reader).described()) == []
    check_storage(storage)
    assert "was damaged" in caplog.text
    caplog.clear()


def test_a_pack_that_goes_meanwhile(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    files = _files(box, "a")
    _fill(box, *files)
    _damage(box, files[4])
    found = find_differences(box.storage.index.reader)
    assert found.live
    box.storage.drop(box.storage.index.reader.packs()[0].number)
    _fill(box, *files[5:])
    for _ in box.storage.index.mend(found):
        pass
    box.storage.add_up_soon()
    box.storage.tidy(float("inf"))
    check_storage(box.storage)
    caplog.clear()


def test_the_keeper_mends_and_others_are_served_meanwhile(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = _files(box, "a")
    _fill(box, *files)
    _damage(box, files[0], files[5])
    turns = [0]
    monkeypatch.setattr("forebay.cacheruntime.worker.recount._AT_ONCE", 1)

    async def test(filler: Filler) -> None:
        async def count() -> None:
            while True:
                await trio.sleep(0.001)
                turns[0] += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            nursery.start_soon(Keeper(box.storage, filler.verifier).run)
            while box.storage.recount_due or list(find_differences(box.storage.index.reader).described()):
                await trio.sleep(0.01)
            box.storage.tidy(float("inf"))
            nursery.cancel_scope.cancel()

    box.run(test)
    assert turns[0] > 5
    caplog.clear()


def test_a_worker_that_stops_does_not_wait_for_the_look(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fill(box, *_files(box, "a"))
    monkeypatch.setattr("forebay.cacheruntime.worker.recount._AT_ONCE", 1)
    monkeypatch.setattr("forebay.cacheruntime.worker.recount._REST_S", 0.1)  # 24 records and as many members

    async def main() -> None:
        with trio.move_on_after(0.15):
            await recount(box.storage, trio.CapacityLimiter(1))

    begun = time.monotonic()
    trio.run(main)
    assert time.monotonic() - begun < 1.5
    assert box.storage.recount_due
