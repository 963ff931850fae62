"""Who gets room in the tiers: policies, pins, quotas, watermarks, moves between tiers, and disks that fail."""

import errno
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import trio
from cache_box import Box, bytes_of
from check import check_storage
from fake_store import FakeStore

from forebay.cacheruntime.config import KIB, MIB, FillConfig, Medium, TierConfig
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.keys import ContentId, dataset_id
from forebay.cacheruntime.tiers import probe
from forebay.cacheruntime.touch import slot_of
from forebay.cacheruntime.worker import room as room_module
from forebay.cacheruntime.worker.check import Check
from forebay.cacheruntime.worker.disk_health import DOWN_AFTER_S, ERRORS, WINDOW_S, DiskHealth, Health
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.mover import Mover
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.writes import seal_of
from forebay.proto import worker_pb2 as pb

MakeBox = Callable[..., Box]


def fill(box: Box, *files: SourceFile, medium: Medium | None = None) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size, 0, medium=medium)

    box.run(test)


def touch(box: Box, *files: SourceFile) -> None:
    for file in files:
        cached = box.storage.index.reader.find(file.content)
        assert cached is not None
        box.storage.touch.set(slot_of(file.content, cached.pack))
    box.storage.rooms._looked_at = -1.0


def large(box: Box, count: int, store: FakeStore | None = None, prefix: str = "") -> list[SourceFile]:
    return [box.source(f"{prefix}f{n}", bytes_of(MIB, n), store=store) for n in range(count)]


def cached(box: Box, files: list[SourceFile]) -> str:
    return "".join("x" if box.has(file) else "." for file in files)


def use(box: Box, policy: str = "", quota: int = 0, paths: list[pb.PathRule] | None = None) -> None:
    box.storage.set_policy(box.dataset, pb.CachePolicy(policy=policy, quota_bytes=quota, paths=paths or []))


# Policies


def test_epoch_keeps_what_is_in(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    files = large(box, 5)
    fill(box, *files)
    assert cached(box, files) == "xxx.."


def test_lru(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    use(box, "lru")
    files = large(box, 5)
    fill(box, *files[:3])
    touch(box, files[0])
    fill(box, *files[3:])
    assert cached(box, files) == "x..xx"


def test_sieve_keeps_what_was_read(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    use(box, "sieve")
    files = large(box, 5)
    fill(box, *files[:3])
    touch(box, files[0], files[1])
    fill(box, files[3])
    assert cached(box, files[:4]) == "xx.x"


@pytest.mark.parametrize("policy", ["sieve", "lru", "next-use"])
def test_small_files_of_replacing_policies_leave_one_by_one(make_box: MakeBox, policy: str) -> None:
    box = make_box(10_000)
    use(box, policy)
    files = [box.source(f"s{n}", bytes_of(1000, n)) for n in range(15)]
    fill(box, *files)
    assert cached(box, files).count("x") == 10
    assert box.storage.index.reader.packs() == []


def test_next_use(make_box: MakeBox) -> None:
    box = make_box(2 * MIB)
    use(box, "next-use")
    files = large(box, 4)
    orders = box.storage.space(box.dataset).policy
    orders.post("r", 0, [files[n].content for n in (0, 1, 2, 0, 1, 3)])  # type: ignore[attr-defined]
    for position, number in enumerate((0, 1, 2)):
        fill(box, files[number])
        orders.advance("r", position + 1)  # type: ignore[attr-defined]
    assert cached(box, files) == "x.x.", "of the first two, the one that is read sooner stays"
    fill(box, files[1])
    assert cached(box, files) == "xx..", "what is not read again goes before"


def test_next_use_heeds_what_is_read_of_what_was_asked_for(make_box: MakeBox) -> None:
    """Readers tell of whole batches; the touch bits tell which files of one they have had."""
    box = make_box(3 * MIB)
    use(box, "next-use")
    files = large(box, 5)
    orders = box.storage.space(box.dataset).policy
    orders.post("r", 0, [files[n].content for n in (0, 1, 2, 3, 2, 1, 0)])  # type: ignore[attr-defined]
    fill(box, *files[:3])
    asked: list[ContentId] = []

    def note_reads(take: Callable[[ContentId], bool]) -> None:
        asked.extend(file.content for file in files[:3])
        for position, file in enumerate(files[:3]):
            if take(file.content):
                orders.read("r", position)  # type: ignore[attr-defined]

    touch(box, *files[:3])
    for file in files[:3]:
        assert box.storage.rooms.take_touch(file.content)
        assert not box.storage.rooms.take_touch(file.content), "once"
    box.storage.rooms.note_reads = note_reads
    orders.advance("r", 0, 3)  # type: ignore[attr-defined]
    touch(box, files[0])
    fill(box, files[3])
    assert asked
    assert cached(box, files) == ".xxx.", "the one that was read is needed last; the others are still to be read"


def test_policy_after_a_restart_knows_what_is_cached(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    use(box, "lru")
    files = large(box, 4)
    fill(box, *files[:3])
    box.restart()
    use(box, "lru")
    fill(box, files[3])
    assert cached(box, files).count("x") == 3
    assert box.has(files[3])


def test_unknown_policy(box: Box) -> None:
    with pytest.raises(UsageError, match=r"no cache policy is named 'mru'; allowed are epoch"):
        use(box, "mru")


def test_a_dataset_in_use_is_not_robbed_by_an_epoch_one(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    theirs = FakeStore("fake://theirs")
    mine, others = large(box, 3), large(box, 2, theirs)
    fill(box, *mine, *others)
    assert cached(box, mine) + cached(box, others) == "xxx.."
    box.storage.set_policy(box.dataset, pb.CachePolicy(policy="lru"))
    fill(box, *others)
    assert cached(box, mine).count("x") == 1, "where its policy replaces files, it gives room to newcomers"


# Pins and quotas


@pytest.mark.semantics("D6")
def test_pins_outlast_everything(make_box: MakeBox) -> None:
    box = make_box(4 * MIB)
    use(box, "lru", paths=[pb.PathRule(path=b"keep", pinned=True)])
    kept = large(box, 2, prefix="keep/")
    others = large(box, 6)
    fill(box, *kept, *others)
    assert cached(box, kept) == "xx"
    assert cached(box, others) == "....xx"
    box.restart()
    box.last_used[box.dataset] = 1.0
    fill(box, *large(box, 4, FakeStore("fake://theirs")))
    assert cached(box, kept) == "xx", "also when nobody uses the dataset"


def test_pin_and_unpin_by_command(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    use(box, "lru")
    files = large(box, 4)
    small = box.source("s", bytes_of(1000))
    fill(box, *files[:2], small)
    contents = [files[0].content, small.content]
    box.storage.pin(box.dataset, b"f0", contents)
    assert box.storage.pins(box.dataset) == [b"f0"]
    fill(box, *files[2:])
    assert box.has(files[0])
    assert box.storage.evict(contents) == (0, 0)
    assert box.storage.unpin(box.dataset, b"f0", contents)
    assert not box.storage.unpin(box.dataset, b"f0", contents)
    assert box.storage.evict(contents) == (2, MIB + 1000)


def test_quota_of_a_dataset(make_box: MakeBox) -> None:
    box = make_box(10 * MIB)
    use(box, quota=3 * MIB)
    files = large(box, 5)
    fill(box, *files)
    assert cached(box, files) == "xxx.."
    use(box, "lru", quota=3 * MIB)
    fill(box, *files[3:])
    found = cached(box, files)
    assert (found.count("x"), found[3:]) == (3, "xx")
    box.restart()
    use(box, quota=3 * MIB)
    fill(box, *files)
    assert cached(box, files) == found, "what was there before counts"


def test_quota_of_a_path(make_box: MakeBox) -> None:
    box = make_box(10 * MIB)
    use(box, paths=[pb.PathRule(path=b"logs", quota_bytes=2 * MIB), pb.PathRule(path=b"logs/new", quota_bytes=MIB)])
    logs, new, rest = large(box, 3, prefix="logs/"), large(box, 2, prefix="logs/new/"), large(box, 3)
    small = [box.source(f"logs/new/s{n}", bytes_of(1000, n)) for n in range(2)]
    fill(box, *new, *logs, *rest, *small)
    assert [cached(box, files) for files in (new, logs, rest, small)] == ["x.", "xx.", "xxx", ".."]
    box.restart()
    use(box, paths=[pb.PathRule(path=b"logs/new", quota_bytes=2 * MIB)])
    fill(box, *new, *small)
    assert cached(box, new) == "xx", "a larger quota, with what is there counted"


def test_quota_holds_whatever_the_concurrency(make_box: MakeBox) -> None:
    box = make_box(20 * MIB, fill=FillConfig(parallel_gets=16))
    use(box, "sieve", quota=5 * MIB)
    files = [box.source(f"f{n}", bytes_of(3 * MIB, n)) for n in range(12)]
    most = [0]

    async def watch() -> None:
        while True:
            used = sum(box.storage.space(box.dataset).used.values())
            most[0] = max(most[0], used, box.storage.tiers[0].used_bytes)
            await trio.sleep(0)

    async def test(filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as readers:
                for file in files:
                    readers.start_soon(filler.fill, file, 0, file.size, 0)
            nursery.cancel_scope.cancel()

    box.run(test)
    assert 0 < most[0] <= 5 * MIB


# Tiers


def test_medium(make_box: MakeBox) -> None:
    box = make_box(5 * MIB, 5 * MIB, 5 * MIB)
    files = [*large(box, 2), box.source("s", bytes_of(1000))]
    fill(box, *files, medium=Medium.HDD)
    assert [tier.used_bytes for tier in box.storage.tiers] == [0, 0, 2 * MIB + 1000]
    fill(box, *large(box, 9, FakeStore("fake://theirs")), medium=Medium.SSD)
    assert [tier.used_bytes for tier in box.storage.tiers] == [0, 5 * MIB, 2 * MIB + 1000]


def test_folders_of_one_medium_share_what_comes(make_box: MakeBox, tmp_path: Path) -> None:
    box = make_box()
    box.restart(tiers=tuple(TierConfig(Medium.SSD, tmp_path / str(n), quota * MIB) for n, quota in enumerate((4, 8))))
    fill(box, *large(box, 12))
    assert [tier.used_bytes for tier in box.storage.tiers] == [4 * MIB, 8 * MIB]
    box.storage.evict(file.content for file in large(box, 12))
    fill(box, *large(box, 6))
    assert [tier.used_bytes for tier in box.storage.tiers] == [2 * MIB, 4 * MIB], "in proportion to their sizes"


def _move_all(box: Box) -> int:
    mover = Mover(box.storage)

    async def steps() -> None:
        for _ in range(100):
            if not await mover.step():
                return

    trio.run(steps)
    check_storage(box.storage)
    return mover.moved_files


def _watermarks(box: Box, high: float, low: float) -> None:
    first, *rest = box.config.tiers
    tier = TierConfig(first.medium, first.path, first.quota_bytes, high, low)
    box.restart(tiers=(tier, *rest))


@pytest.mark.semantics("D12")
def test_what_nobody_uses_moves_down(make_box: MakeBox) -> None:
    box = make_box(10 * MIB, 20 * MIB)
    _watermarks(box, 0.8, 0.5)
    idle = [*large(box, 6), box.source("s", bytes_of(1000))]
    busy = large(box, 3, FakeStore("fake://busy"))
    fill(box, *idle, *busy)
    box.last_used[box.dataset] = 1.0
    assert _move_all(box) > 0
    assert box.storage.tiers[0].used_bytes <= 5 * MIB
    assert cached(box, [*idle, *busy]) == "x" * 10
    for file in busy:
        record = box.storage.index.reader.find(file.content)
        assert record is not None
        assert record.tier == box.storage.tiers[0].number
    assert _move_all(box) == 0


def test_what_nobody_uses_goes_when_there_is_no_tier_below(make_box: MakeBox) -> None:
    box = make_box(10 * MIB)
    _watermarks(box, 0.8, 0.5)
    idle, busy = large(box, 6), large(box, 3, FakeStore("fake://busy"))
    fill(box, *idle, *busy)
    box.last_used[box.dataset] = 1.0
    _move_all(box)
    assert box.storage.tiers[0].used_bytes == 5 * MIB
    assert cached(box, busy) == "xxx"


def test_a_dataset_in_use_stays_where_it_is(make_box: MakeBox) -> None:
    box = make_box(10 * MIB, 20 * MIB)
    _watermarks(box, 0.8, 0.5)
    fill(box, *large(box, 10))
    assert _move_all(box) == 0
    use(box, "lru")
    assert _move_all(box) == 5, "where its policy replaces files, the coldest move down"


def test_what_is_read_moves_up(make_box: MakeBox) -> None:
    box = make_box(10 * MIB, 20 * MIB)
    files = [*large(box, 4), box.source("s", bytes_of(1000))]
    fill(box, *files, medium=Medium.SSD)
    box.storage.rooms.load(box.storage.space(box.dataset))
    box.storage.tidy(float("inf"))
    touch(box, files[0], files[2], files[4])
    assert _move_all(box) == 3
    first = box.storage.tiers[0].number
    reader = box.storage.index.reader
    records = [reader.find(file.content) for file in files]
    assert [record is not None and reader.tier_of(record) == first for record in records] == [
        True,
        False,
        True,
        False,
        True,
    ]
    check = Check(box.storage, deep=True, repair=False)
    trio.run(check.run)
    assert check.progress.findings == []


def test_a_damaged_file_is_not_moved(make_box: MakeBox) -> None:
    """Bits that changed without anybody writing: as a disk does it, so that the seal is right."""
    box = make_box(10 * MIB, 20 * MIB)
    file = large(box, 1)[0]
    fill(box, file)
    with box.tier_file(file.content).open("r+b") as opened:
        opened.write(b"?")
    box.storage.index.seal_file(file.content, seal_of(os.stat(box.tier_file(file.content))))
    assert not trio.run(Mover(box.storage).move, file.content, box.storage.tiers[1])
    record = box.storage.index.reader.find(file.content)
    assert record is not None
    assert box.storage.is_doubtful(file.content, record), "whoever wants it has it verified"
    assert box.storage.tiers[1].used_bytes == 0
    fill(box, file)
    assert box.storage.damage.blocks == 1


def test_a_move_to_a_full_disk_leaves_nothing(make_box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box(10 * MIB, 20 * MIB)
    files = [*large(box, 1), box.source("s", bytes_of(1000))]
    fill(box, *files)
    box.storage.tidy(float("inf"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("forebay.cacheruntime.worker.mover.write_all", full)
    for item in (files[0].content, PackNumber(1)):
        assert not trio.run(Mover(box.storage).move, item, box.storage.tiers[1])
    box.storage.tidy()
    check_storage(box.storage)
    assert box.storage.tiers[1].state == "full"
    assert cached(box, files) == "xx"


# Files that are open


def test_one_open_file_does_not_keep_others_from_getting_room(make_box: MakeBox) -> None:
    """A reader that does not run for a while has an evicted file open: another one goes for what comes."""
    size = 10_000
    box = make_box(100 * size)
    use(box, "lru")
    files = [box.source(f"f{n}", bytes_of(size, n)) for n in range(110)]
    fill(box, *files[:100])
    space = box.storage.space(box.dataset)
    box.storage.rooms.load(space)
    first = next(space.policy.victims())
    with box.tier_file(ContentId(first)).open("rb") as opened:  # type: ignore[arg-type]
        fill(box, *files[100:])
        assert len(opened.read()) == size
        assert cached(box, files)[100:] == "x" * 10
        assert cached(box, files).count("x") == 99, "and it counts until it is closed"


def test_evicted_files_count_until_they_are_closed(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    use(box, "lru")
    files = large(box, 5)
    fill(box, *files[:3])
    with box.tier_file(files[0].content).open("rb") as opened:
        fill(box, files[3])
        assert cached(box, files) == ".xx.."
        assert box.storage.tiers[0].used_bytes == 3 * MIB, "nothing else has to go for it"
        fill(box, files[3])
        assert cached(box, files) == ".xx..", "again: its room comes when it is closed"
        assert opened.read() == box.store.files["f0"][0]
    box.storage.tidy()
    fill(box, files[3])
    assert cached(box, files) == ".xxx."


# Disks


def test_health() -> None:
    now = [0.0]
    health = DiskHealth(lambda: now[0])
    for _ in range(ERRORS - 1):
        health.failed()
    assert health.state is Health.NORMAL
    now[0] += WINDOW_S + 1
    health.failed()
    assert health.state is Health.NORMAL, "errors are forgotten"
    for _ in range(ERRORS - 1):
        health.failed()
    assert health.state is Health.UNSTABLE
    health.probed_well()
    now[0] += WINDOW_S / 2
    health.failed()
    health.probed_well()
    now[0] += WINDOW_S - 1
    health.probed_well()
    assert health.state is Health.UNSTABLE, "a minute without any error"
    now[0] += 2
    health.probed_well()
    assert health.state is Health.NORMAL


def test_health_goes_down_and_comes_back() -> None:
    now = [0.0]
    health = DiskHealth(lambda: now[0])
    for _ in range(ERRORS):
        health.failed()
    now[0] += DOWN_AFTER_S
    health.failed()
    assert health.state is Health.DOWN
    health.probed_well()
    now[0] += WINDOW_S
    health.probed_well()
    assert health.state is Health.NORMAL
    health.gone()
    assert health.state is Health.DOWN


def test_a_tier_that_is_down_is_passed_by(make_box: MakeBox) -> None:
    box = make_box(5 * MIB, 5 * MIB)
    files = [*large(box, 2), box.source("s", bytes_of(1000))]
    fill(box, *files)
    box.storage.tidy(float("inf"))
    box.storage.tiers[0].health.gone()
    assert box.storage.tiers[0].state == "down"
    fill(box, *files)
    assert box.storage.tiers[1].used_bytes >= 2 * MIB, "they are in the next tier now"
    box.storage.tiers[0].health = DiskHealth()
    box.storage.tidy()
    check_storage(box.storage)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("here_and_there", [False, True])
def test_what_lies_in_a_tier_that_is_down_is_sent_where_no_other_has_room(
    make_box: MakeBox, size: int, here_and_there: bool
) -> None:
    """A reader who is told to look for it in the index would find it there, and get EIO from the disk."""
    box = make_box(4 * MIB)
    data = bytes_of(size)
    file = box.source("a", data)
    start, end = (0, size) if size < MIB else (MIB + 100, MIB + 100 + 200 * KIB)

    async def read(filler: Filler) -> bytes | None:
        return await filler.fill(file, start, end - start, 0 if here_and_there else 2 * MIB)

    assert box.run(read) is None
    before = len(box.store.reads)
    assert box.run(read) is None
    assert len(box.store.reads) == before
    box.storage.tiers[0].health.gone()
    assert box.run(read) == data[start:end]
    assert len(box.store.reads) > before
    box.storage.tiers[0].health = DiskHealth()
    assert box.run(read) is None, "it can be had there again"
    assert box.read(file, start, end) == data[start:end]


def test_probe_notices_what_is_gone(make_box: MakeBox) -> None:
    box = make_box()
    tier = box.storage.tiers[0]
    probe(tier.config.path, tier.uuid)
    assert not [name for name in os.listdir(tier.config.path) if name.startswith("probe")]
    (tier.config.path / "forebay-tier").rename(tier.config.path / "away")
    with pytest.raises(FileNotFoundError):
        probe(tier.config.path, tier.uuid)
    (tier.config.path / "away").rename(tier.config.path / "forebay-tier")


def test_a_tier_that_is_gone_at_a_write_is_down(make_box: MakeBox) -> None:
    box = make_box(5 * MIB, 5 * MIB)
    first = box.storage.tiers[0]
    first.config.path.rename(first.config.path.with_name("away"))
    file = large(box, 1)[0]

    async def test(filler: Filler) -> bytes | None:
        return await filler.fill(file, 0, file.size, 0)

    box.run(test, checked=False)
    assert first.state == "down" or box.storage.tiers[1].used_bytes == MIB
    first.config.path.with_name("away").rename(first.config.path)


def test_storage_reopens_after_everything(make_box: MakeBox) -> None:
    box = make_box(5 * MIB, 5 * MIB)
    use(box, "lru", quota=8 * MIB, paths=[pb.PathRule(path=b"a", quota_bytes=MIB, pinned=True)])
    fill(box, *large(box, 4), *large(box, 2, prefix="a/"))
    used = {space.dataset: dict(space.used) for space in box.storage.spaces}
    box.restart()
    assert isinstance(box.storage, Storage)
    assert {space.dataset: dict(space.used) for space in box.storage.spaces} == used
    assert dataset_id(box.store.url) in used


@pytest.mark.parametrize("policy", ["epoch", "sieve", "lru", "next-use"])
def test_a_search_for_victims_is_bounded_and_the_next_one_goes_on(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Behind very many files that are pinned there are some that may go."""
    box = make_box(60 * MIB)
    storage, space = box.storage, box.storage.space(box.dataset)
    space.use_policy(policy)
    files = [box.source(f"f{n:03d}", bytes_of(MIB, n)) for n in range(60)]
    fill(box, *files)
    kept = files[:50]
    storage.pin(box.dataset, b"kept", [file.content for file in kept])
    monkeypatch.setattr(room_module, "_PASSED_OVER", 8)
    looks = [0]
    place = storage.rooms.place

    def counted(item: Any) -> Any:
        looks[0] += 1
        return place(item)

    monkeypatch.setattr(storage.rooms, "place", counted)
    found: list[Any] = []
    for _ in range(200):
        looks[0] = 0
        chosen = [item for item, _ in islice(storage.rooms.victims(space, None), 1)]
        assert looks[0] <= 8
        for item in chosen:
            storage.drop(item)
        found += chosen
    assert sorted(found) == sorted(file.content for file in files[50:])
    check_storage(storage)
