"""Replicas: what a worker holds and others own goes first, and takes no room from what is owned."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from cache_box import Box, bytes_of
from fake_store import FakeStore
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Member, Placement, WorkerId, slice_of
from forebay.cacheruntime.config import MIB, FillConfig
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.touch import slot_of
from forebay.cacheruntime.worker import replicas as replicas_module
from forebay.cacheruntime.worker import room as room_module
from forebay.cacheruntime.worker.fetch import SourceFile, Taken
from forebay.cacheruntime.worker.fill import Filler
from forebay.proto import worker_pb2 as pb

MakeBox = Callable[..., Box]
ME = WorkerId("me")


@pytest.fixture(autouse=True)
def kept_free(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiers of a few files are filled to the last byte, but where a test says otherwise."""
    monkeypatch.setattr(room_module, "_KEPT_FREE_SHARE", getattr(request, "param", 0.0))


class Shares:
    """Who owns what, by the real placement; bytes come from the store. Stands in for `PeerSource`."""

    def __init__(self, *others: str) -> None:
        self.placement = Placement([Member(WorkerId(name), 1.0) for name in (ME, *others)])

    def owns(self, content: ContentId, slice_: int, copies: int) -> bool:
        return ME in self.placement.owners(content, slice_, copies or 1)

    def is_replica(self, file: SourceFile, offset: int) -> bool:
        return not self.owns(file.content, slice_of(offset), file.replicas)

    def relays(self, file: SourceFile, offset: int) -> bool:
        return False

    def drain_taken(self) -> Iterator[Taken]:
        return iter(())

    def read(self, file: SourceFile, start: int, length: int) -> Any:
        return file.store.read_range(file.path, start, length, file.version)


def join(box: Box, *others: str) -> Shares:
    """The worker learns who the members are."""
    shares = Shares(*others)
    box.storage.rooms.replicas.follow(shares.owns)
    return shares


def files_of(
    box: Box,
    shares: Shares,
    owned: int,
    replicas: int,
    size: int = MIB,
    prefix: str = "f",
    store: FakeStore | None = None,
) -> tuple[list[SourceFile], list[SourceFile]]:
    """So many files that this worker owns, and that others do."""
    mine: list[SourceFile] = []
    theirs: list[SourceFile] = []
    number = 0
    while len(mine) < owned or len(theirs) < replicas:
        number += 1
        file = replace(box.source(f"{prefix}{number}", bytes_of(size, number), store=store), peers=shares)
        wanted, most = (theirs, replicas) if file.is_replica() else (mine, owned)
        if len(wanted) < most:
            wanted.append(file)
    return mine, theirs


def fill(box: Box, *files: SourceFile) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size, 0)

    box.run(test)


def use(box: Box, policy: str = "", **more: Any) -> None:
    box.storage.set_policy(box.dataset, pb.CachePolicy(policy=policy, **more))


def cached(box: Box, files: list[SourceFile]) -> str:
    return "".join("x" if box.has(file) else "." for file in files)


@pytest.mark.parametrize("policy", ["epoch", "lru", "sieve"])
@pytest.mark.parametrize("size", [MIB, 50_000])
def test_what_is_owned_takes_the_place_of_replicas(make_box: MakeBox, policy: str, size: int) -> None:
    box = make_box(6 * size)
    use(box, policy)
    mine, theirs = files_of(box, join(box, "a", "b"), 6, 6, size)
    fill(box, *theirs)
    assert cached(box, theirs) == "xxxxxx"
    fill(box, *mine)
    assert (cached(box, mine), cached(box, theirs)) == ("xxxxxx", "......")


@pytest.mark.parametrize("policy", ["epoch", "lru", "sieve"])
def test_a_replica_takes_no_room_of_what_is_owned(make_box: MakeBox, policy: str) -> None:
    box = make_box(6 * MIB)
    use(box, policy)
    mine, theirs = files_of(box, join(box, "a", "b"), 4, 6)
    fill(box, *mine, *theirs)
    assert cached(box, mine) == "xxxx"
    assert cached(box, theirs) == ("xx...." if policy == "epoch" else "....xx")


def test_what_is_owned_and_idle_stays_when_a_replica_comes(make_box: MakeBox) -> None:
    box = make_box(4 * MIB)
    shares = join(box, "a")
    mine, old = files_of(box, shares, 2, 2)
    fill(box, *mine, *old)
    box.last_used[box.dataset] = 1.0
    store = FakeStore("fake://other")
    _, fresh = files_of(box, shares, 0, 3, prefix="g", store=store)
    fill(box, *fresh)
    assert (cached(box, mine), cached(box, old), cached(box, fresh)) == ("xx", "..", "xx.")


def test_those_that_were_read_longest_ago_go_first_whichever_dataset_they_are_of(make_box: MakeBox) -> None:
    box = make_box(4 * MIB)
    shares = join(box, "a")
    mine, theirs = files_of(box, shares, 2, 2)
    _, other = files_of(box, shares, 0, 2, prefix="g", store=FakeStore("fake://other"))
    fill(box, theirs[0], other[0], theirs[1], other[1])
    for file in (theirs[0], other[0]):
        box.storage.touch.set(slot_of(file.content, 0))  # type: ignore[arg-type]
    fill(box, *mine)
    assert (cached(box, theirs), cached(box, other)) == ("x.", "x.")


def test_a_pinned_replica_stays_and_takes_the_place_of_others(make_box: MakeBox) -> None:
    box = make_box(2 * MIB)
    shares = join(box, "a")
    mine, theirs = files_of(box, shares, 2, 3)
    fill(box, *theirs[:2])
    box.storage.pin(box.dataset, theirs[2].path.encode(), ())
    fill(box, theirs[2])
    assert cached(box, theirs) == ".xx"
    fill(box, *mine)
    assert (cached(box, theirs), cached(box, mine)) == ("..x", "x.")


def test_a_full_quota_is_cleared_of_replicas_of_its_own(make_box: MakeBox) -> None:
    box = make_box(10 * MIB)
    use(box, quota_bytes=3 * MIB)
    shares = join(box, "a")
    _, other = files_of(box, shares, 0, 2, prefix="g", store=FakeStore("fake://other"))
    mine, theirs = files_of(box, shares, 3, 3)
    fill(box, *other, *theirs, *mine)
    assert (cached(box, other), cached(box, theirs), cached(box, mine)) == ("xx", "...", "xxx")


def test_after_a_restart_replicas_are_found_again(make_box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "LOADED_AT_ONCE", 2)
    box = make_box(6 * MIB)
    shares = join(box, "a", "b")
    mine, theirs = files_of(box, shares, 6, 6)
    fill(box, *theirs)
    box.restart()
    box.storage.rooms.replicas.follow(shares.owns)
    assert box.storage.rooms.replicas.bytes_of(box.dataset) == 0
    fill(box, *mine)
    assert cached(box, mine) == "xxxxxx"


def test_a_change_of_the_members_makes_others_owners(make_box: MakeBox) -> None:
    box = make_box(8 * MIB)
    alone = join(box)
    files = [replace(box.source(f"f{n}", bytes_of(MIB, n)), peers=alone) for n in range(8)]
    fill(box, *files)
    assert box.storage.rooms.replicas.bytes_of(box.dataset) == 0
    shares = join(box, "a")
    box.storage.tidy()
    theirs = [file for file in files if shares.is_replica(file, 0)]
    assert box.storage.rooms.replicas.bytes_of(box.dataset) == len(theirs) * MIB > 0
    mine, _ = files_of(box, shares, len(theirs), 0, prefix="g")
    fill(box, *mine)
    assert cached(box, mine) == "x" * len(mine)
    assert cached(box, theirs) == "." * len(theirs)
    assert cached(box, [file for file in files if file not in theirs]) == "x" * (8 - len(theirs))


@pytest.mark.parametrize(("before", "after"), [((), ("a", "b", "c", "d")), (("a", "b", "c", "d"), ())])
def test_a_pack_counts_as_what_most_of_it_is(
    make_box: MakeBox, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    box = make_box(8 * MIB)
    shares = join(box, *before)
    if before:
        _, files = files_of(box, shares, 0, 40, 1000)
    else:
        files, _ = files_of(box, shares, 40, 0, 1000)
    fill(box, *files)
    (pack,) = box.storage.index.reader.packs()
    assert pack.replica == bool(before)
    join(box, *after)
    box.storage.tidy()
    (pack,) = box.storage.index.reader.packs()
    assert pack.replica == bool(after)
    assert box.storage.rooms.replicas.bytes_of(box.dataset) == (40_000 if after else 0)


def test_a_large_file_is_owned_if_a_slice_of_it_is_that_is_here(make_box: MakeBox) -> None:
    box = make_box(4 * MIB)
    shares = join(box, "a")
    size = 2 * SLICE_BYTES
    for number in range(100):
        file = replace(box.source(f"l{number}", b"", store=None), size=size, peers=shares)
        if file.is_replica(0) and not file.is_replica(SLICE_BYTES):
            break
    box.store.put(file.path, bytes(size), "v1")
    replicas = box.storage.rooms.replicas

    async def first(filler: Filler) -> None:
        await filler.fill(file, 0, MIB, 0)

    async def second(filler: Filler) -> None:
        await filler.fill(file, SLICE_BYTES, MIB, 0)

    box.run(first)
    assert replicas.is_replica(file.content)
    assert replicas.bytes_of(box.dataset) == MIB
    box.run(second)
    assert not replicas.is_replica(file.content)
    assert replicas.bytes_of(box.dataset) == 0


def test_a_path_with_more_copies_is_owned_by_more(make_box: MakeBox) -> None:
    box = make_box(8 * MIB)
    use(
        box,
        quota_bytes=8 * MIB,
        paths=[pb.PathRule(path=b"hot", replicas=2), pb.PathRule(path=b"", quota_bytes=7 * MIB)],
    )
    shares = join(box, "a")
    files = [replace(box.source(f"hot/{n}", bytes_of(MIB, n)), peers=shares, replicas=2) for n in range(8)]
    fill(box, *files)
    assert cached(box, files) == "xxxxxxx.", "the quota of the path above holds"
    assert box.storage.rooms.replicas.bytes_of(box.dataset) == 0
    box.restart()
    use(box, quota_bytes=8 * MIB, paths=[pb.PathRule(path=b"hot", replicas=2)])
    box.storage.rooms.replicas.follow(shares.owns)
    box.storage.tidy()
    assert box.storage.rooms.replicas.bytes_of(box.dataset) == 0


@pytest.mark.parametrize("kept_free", [0.25], indirect=True)
def test_replicas_that_somebody_reads_are_in_nobodys_way(make_box: MakeBox) -> None:
    """Their room comes back when they are closed: so there is always some that they do not take."""
    box = make_box(8 * MIB)
    mine, theirs = files_of(box, join(box, "a"), 3, 8)
    fill(box, *theirs)
    assert cached(box, theirs) == "xxxxxx..", "a quarter is kept free"
    opened = [os.open(box.tier_file(file.content), os.O_RDONLY) for file in theirs[:6]]
    try:
        fill(box, *mine[:2])
        assert cached(box, mine) == "xx."
        assert cached(box, theirs).count("x") == 4
    finally:
        for descriptor in opened:
            os.close(descriptor)
    box.storage.tidy()
    fill(box, mine[2])
    assert cached(box, mine) == "xxx"


def test_a_node_alone_has_none(make_box: MakeBox) -> None:
    box = make_box(3 * MIB)
    files = [box.source(f"f{n}", bytes_of(MIB, n)) for n in range(5)]
    fill(box, *files)
    assert cached(box, files) == "xxx.."
    assert not box.storage.rooms.replicas.is_following


@given(
    policy=st.sampled_from(["epoch", "lru", "sieve"]),
    sizes=st.sampled_from([(10_000, 10_000), (2000, 2000), (10_000, 2000)]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.booleans()), max_size=12),
)
def test_no_owned_file_gives_way_or_is_refused_for_a_replica(
    make_box: MakeBox, policy: str, sizes: tuple[int, int], steps: list[tuple[bool, int, bool]]
) -> None:
    box = make_box(40_000, fill=FillConfig(small_file_bytes=5000))
    use(box, policy)
    shares = join(box, "a", "b")
    mine, _ = files_of(box, shares, 6, 0, sizes[0], "m")
    _, theirs = files_of(box, shares, 0, 6, sizes[1], "t")
    replicas = box.storage.rooms.replicas
    (tier,) = box.storage.tiers

    async def test(filler: Filler) -> None:
        for is_mine, number, read in steps:
            file = (mine if is_mine else theirs)[number]
            here = [one for one in mine if box.has(one)]
            fits = tier.room_bytes() + replicas.bytes_of(box.dataset) >= file.size
            await filler.fill(file, 0, file.size, 0)
            lost = [one for one in here if not box.has(one)]
            if not is_mine:
                assert not lost
            elif fits:
                assert box.has(file)
                assert not lost
            found = box.storage.index.reader.find(file.content)
            if read and found is not None:
                box.storage.touch.set(slot_of(file.content, found.pack))

    box.run(test)
