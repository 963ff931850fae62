"""Orders in the worker: what is known of them, who is told, who is gone, and what is fetched ahead."""

import itertools
import random
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from cache_box import Box, bytes_of
from fake_store import FakeStore, Gate
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.catalogue import NO_CONTENT
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.config import KIB, MIB, FillConfig
from forebay.cacheruntime.errors import SourceUnavailable, UsageError
from forebay.cacheruntime.keys import ContentId, Roots, dataset_id
from forebay.cacheruntime.policies.next_use import NextUse
from forebay.cacheruntime.worker.dataset import Dataset, Definition
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.orders import POSITIONS, SILENT_S, Orders, Pace, Reader
from forebay.cacheruntime.worker.prefetch import Prefetcher, Window, limits
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.proto import worker_pb2 as pb


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Told:
    """Keeps what a policy is told."""

    def __init__(self) -> None:
        self.orders: dict[str, dict[int, ContentId]] = {}
        self.positions: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.early: list[tuple[str, int]] = []

    def post(self, reader: str, first: int, contents: Sequence[ContentId]) -> None:
        self.orders.setdefault(reader, {}).update(enumerate(contents, first))

    def advance(self, reader: str, position: int, asked: int) -> None:
        assert (position, asked) > (self.positions.get(reader, -1), self.asked.get(reader, -1))
        self.positions[reader], self.asked[reader] = position, asked

    def read(self, reader: str, position: int) -> None:
        assert self.positions[reader] <= position < self.asked[reader]
        self.early.append((reader, position))

    def leave(self, reader: str) -> None:
        self.orders.pop(reader, None)
        self.positions.pop(reader, None)


class Desk:
    """Orders over a snapshot of a fake store, with a policy that keeps what it is told."""

    def __init__(self, root: Path, store: FakeStore) -> None:
        self.store, self.clock, self.told = store, Clock(), Told()
        writer = CatalogueWriter(root / "catalogue", store.url)
        for page in store.list_tree():
            writer.add(page)
        writer.finish()
        self._writer = writer
        self.catalogue = writer.reader()
        self.snapshot = Snapshot(1, writer, self.catalogue)
        definition = Definition(store.url, {})
        self.dataset = Dataset(dataset_id(store.url), definition, store, Roots(store.url), {1: self.snapshot})
        self.orders = Orders(self.clock)
        self.orders.sink = lambda _: self.told

    def nodes(self, paths: Sequence[str]) -> list[int]:
        found = [self.catalogue.resolve(path.encode()) for path in paths]
        return [node.node for node in found if node is not None]

    async def post(
        self, name: str, nodes: Sequence[int] = (), first: int = 0, position: int = 0, asked: int = 0,
        holder: object | None = None,
    ) -> int:  # fmt: skip
        return await self.orders.post(self.dataset, self.snapshot, name, nodes, first, position, asked, holder)

    def reader(self) -> Reader:
        (found,) = self.orders.readers()
        return found

    def reader_named(self, name: str) -> Reader:
        return next(reader for reader in self.orders.readers() if reader.name == name)


def fill_store(count: int, size: int = 10 * KIB) -> FakeStore:
    store = FakeStore()
    for number in range(count):
        store.put(f"d{number % 3}/{number:05}", bytes_of(size, number))
    return store


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        with trio.fail_after(20):
            return await test()

    return trio.run(main)


# What is known of an order


def test_a_policy_is_told_of_contents_and_progress(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fill_store(600))
    paths = sorted(desk.store.files)
    nodes = desk.nodes(paths)

    async def test() -> None:
        assert await desk.post("r", nodes) == 600
        assert await desk.post("r", [], 0, 20) == 600
        assert await desk.post("r", nodes[:5], 600, 20, 30) == 605  # the next epoch

    run(test)
    contents = [node.content for path in paths if (node := desk.catalogue.resolve(path.encode()))]
    assert desk.told.orders == {"r": dict(enumerate(contents + contents[:5]))}
    assert desk.told.positions == {"r": 20}
    assert (desk.reader().position, desk.reader().asked) == (20, 30)
    desk.orders.leave("r")
    assert desk.told.orders == {} == desk.told.positions
    assert desk.snapshot.users == 0


def test_a_policy_is_told_of_reads_before_positions_tell(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fill_store(60))
    nodes = desk.nodes(sorted(desk.store.files))
    contents = desk.catalogue.contents(nodes)
    touched = {contents[3], contents[12], contents[25]}

    def take(content: ContentId) -> bool:
        found = content in touched
        touched.discard(content)
        return found

    async def test() -> None:
        await desk.post("r", [*nodes[:10], 12345, *nodes[11:]], 0, 5, 20)
        await desk.post("s", nodes[12:20], 0, 0, 8)
        desk.orders.note_reads(take)
        assert touched == {contents[3], contents[25]}, "of what is asked for and not read, for one reader"
        assert desk.told.early == [], "it has them open still"
        desk.clock.now += 0.1
        desk.orders.note_reads(take)
        assert desk.told.early == [("r", 12)]
        await desk.post("r", [], 0, 14, 30)
        touched.add(contents[12])
        desk.orders.note_reads(take)
        desk.clock.now += 0.1
        desk.orders.note_reads(take)
        assert desk.told.early == [("r", 12), ("r", 25), ("s", 0)]
        assert len(desk.reader_named("r").in_flight) == 30 - 14 - 1
        desk.orders.leave("s")
        await desk.post("r", [], 0, 70, 70)
        desk.orders.note_reads(take)
        assert not desk.reader_named("r").in_flight

    run(test)


def test_another_policy_is_told_of_all_that_is_left(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fill_store(30))
    nodes = desk.nodes(sorted(desk.store.files))
    first, second, policy = Told(), Told(), None
    desk.orders.sink = lambda _: policy

    async def test() -> None:
        nonlocal policy
        await desk.post("r", nodes[:20])
        policy = first
        await desk.post("r", nodes[20:25], 20, 5)
        assert sorted(first.orders["r"]) == list(range(25))
        assert first.positions == {"r": 5}
        policy = second
        await desk.post("r", [], 0, 7)
        assert set(range(7, 25)) <= set(second.orders["r"])
        desk.orders.leave("r")
        assert second.orders == {}

    run(test)


def test_a_node_that_the_snapshot_has_not_keeps_its_position(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fill_store(2))
    (node,) = desk.nodes(["d0/00000"])
    run(lambda: desk.post("r", [12345, node]))
    assert desk.told.orders["r"][0] == NO_CONTENT != desk.told.orders["r"][1]


@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(1, 9))
def test_pieces_in_any_order_and_more_than_once(chance: Any, count: int, most: int) -> None:
    nodes = [chance.randrange(1, 1 << 63) for _ in range(count)]
    cuts = sorted({0, count, *(chance.randrange(count) for _ in range(most))})
    pieces = [(start, nodes[start:end]) for start, end in itertools.pairwise(cuts)]
    chance.shuffle(pieces)
    reader = Reader("r", None, None, None, 0.0)  # type: ignore[arg-type]
    have: set[int] = set()
    for first, piece in [*pieces, *pieces[:1]]:
        reader.put(first, array("Q", piece))
        have.update(range(first, first + len(piece)))
        assert reader.known == next(n for n in range(count + 1) if n not in have)
    assert [reader.node(position) for position in range(count)] == nodes


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80)), max_size=20))
def test_progress_never_goes_back_and_memory_is_given_back(moves: list[tuple[int, int]]) -> None:
    reader = Reader("r", None, None, None, 0.0)  # type: ignore[arg-type]
    reader.put(0, array("Q", range(1, 41)))
    furthest = 0
    for number, (position, asked) in enumerate(moves):
        reader.move(position, asked, float(number))
        furthest = max(furthest, position)
        assert reader.position == furthest <= reader.asked
        assert reader.known == max(40, furthest)
        assert [reader.node(at) for at in range(furthest, 40)] == list(range(furthest + 1, 41))
    if furthest >= 40:
        assert not reader.nodes


def test_a_new_worker_says_what_it_does_not_know(tmp_path: Path) -> None:
    """After a restart the first that comes may be mere progress, or a later piece."""
    desk = Desk(tmp_path, fill_store(30))
    nodes = desk.nodes(sorted(desk.store.files))

    async def test() -> None:
        assert await desk.post("r", [], 0, 10, 12) == 10, "less than was posted: post again"
        assert await desk.post("r", nodes[20:], 20, 10, 12) == 10
        assert await desk.post("r", nodes[10:20], 10, 10, 12) == 30

    run(test)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, fill_store(3))

    async def test() -> None:
        with pytest.raises(UsageError, match="without a name"):
            await desk.post("")
        with pytest.raises(UsageError, match=f"{POSITIONS} that are not read yet are the most"):
            await desk.post("r", [1], POSITIONS)
        monkeypatch.setattr("forebay.cacheruntime.worker.orders.READERS", 1)
        with pytest.raises(UsageError, match="1 readers have posted"):
            await desk.post("s")

    run(test)


# Who is gone


def test_a_reader_lasts_as_long_as_its_connection(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fill_store(3))
    first, second = object(), object()

    async def test() -> None:
        await desk.post("r", [1], holder=first)
        await desk.post("r", [2], 1, holder=second)  # it has connected anew
        desk.orders.connection_ended(first)
        desk.clock.now += 10 * SILENT_S
        desk.orders.expire()  # a long validation
        assert desk.orders.reads(desk.dataset.id)
        desk.orders.connection_ended(second)
        assert not desk.orders.active

    run(test)


def test_a_silent_reader_without_a_connection_is_dropped(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fill_store(3))

    async def test() -> None:
        await desk.post("r", [1])
        desk.clock.now += SILENT_S - 1
        desk.orders.expire()
        assert desk.orders.active
        await desk.post("r")
        desk.clock.now += SILENT_S - 1
        desk.orders.expire()
        assert desk.orders.active
        desk.clock.now += 2
        desk.orders.expire()
        assert not desk.orders.active
        assert desk.told.orders == {}

    run(test)


def test_a_reader_that_has_finished_does_not_come_back(tmp_path: Path) -> None:
    """Its last words may overtake what it said before: calls of a mount's handlers are under way at once."""
    desk = Desk(tmp_path, fill_store(3))

    async def test() -> None:
        await desk.post("r", [1, 2, 3])
        desk.orders.finish("r", 3)
        desk.orders.finish("nobody", 3)
        assert await desk.post("r", [4], 3) == 0
        assert not desk.orders.active
        assert desk.told.orders == {}

    run(test)


# Windows


def test_pace_follows_the_last_seconds() -> None:
    pace = Pace()
    assert pace.files_per_s == 0
    for step in range(50):
        pace.moved(step / 10, 100 * step)
    assert pace.files_per_s == pytest.approx(1000, rel=0.01)
    for step in range(1, 120):
        pace.moved(4.9 + step / 10, 4900 + 10 * step)
    assert pace.files_per_s == pytest.approx(100, rel=0.05)


def test_a_step_is_what_is_asked_for_at_once() -> None:
    reader = Reader("r", None, None, None, 0.0)  # type: ignore[arg-type]
    for asked in (0, 32, 32, 64, 96):
        reader.move(0, asked, 0.0)
    assert reader.step == 32
    reader.move(96, 100, 0.0)
    assert reader.step == pytest.approx(0.9 * 32), "the last batch of an epoch is short"


def test_a_window_is_as_long_as_latency_and_pace_want() -> None:
    def positions(files_per_s: float, step: int, latency_s: float) -> int:
        return limits(files_per_s, step, latency_s, 1 << 40, 1, kept=False).positions

    assert positions(0, 0, 0.02) == 256
    assert positions(10, 1, 0.02) == 1 + 16
    assert positions(200, 32, 0.02) == 32 + 16
    assert positions(2000, 100, 0.02) == 100 + 160
    assert positions(2000, 400, 0.2) == 400 + 1600
    assert positions(1e6, 1000, 1) == 4096
    assert limits(2000, 100, 0.02, 1 << 40, 1, kept=False, margin=3).positions == 100 + 3 * 160
    small = limits(2000, 32, 0.02, 80 * MIB, 2, kept=False)
    assert (small.fetched_bytes, small.spanned_bytes) == (4 * MIB, 20 * MIB)
    assert limits(2000, 32, 0.02, 80 * MIB, 2, kept=True).spanned_bytes == 80 * MIB, "the policy keeps what is near"
    assert limits(2000, 32, 0.02, 1 << 40, 2, kept=False).fetched_bytes == 256 * MIB


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 99), st.booleans()), max_size=80))
def test_a_window_counts_what_is_in_it(steps: list[tuple[int, int, int, bool]]) -> None:
    window, position, furthest = Window(), 0, 0
    seen: dict[int, tuple[int, bool]] = {}
    for move, more, size, fetched in steps:
        position += move
        furthest = max(furthest, position + more)
        window.follow(position, furthest)
        assert window.cursor >= furthest
        seen[window.cursor] = size, fetched
        window.passed(size, fetched)
        assert window.spanned_bytes == sum(size for at, (size, _) in seen.items() if at >= position)
        ahead = [size for at, (size, fetched) in seen.items() if fetched and at >= furthest]
        assert window.fetched_bytes == sum(ahead)
        assert len(window.ahead) == len(ahead)


def test_a_window_that_was_too_short_gets_longer_for_a_while() -> None:
    window = Window()
    window.follow(0, 32)
    assert window.margin == 1, "the first step has nothing ahead of it"
    window.was_late(32)
    window.was_late(32)
    assert window.margin == 2, "once for a step"
    window.follow(32, 64)
    assert window.margin == pytest.approx(2 * 2 * 0.97), "it was not looked so far ahead"
    window.was_late(64)
    for asked in range(96, 3200, 32):
        window.cursor = asked
        window.follow(asked, asked)
    assert window.margin == 1
    for asked in range(3200, 4000, 32):
        window.was_late(asked)
    assert window.margin == 8


def test_what_is_cached_whole_is_only_sampled() -> None:
    window = Window()
    for _ in range(1024):
        window.passed(10, False)
    assert window.cursor == 1023 + 16
    window.passed(10, False)
    assert window.cursor == 1023 + 32
    assert window.go_back(0), "one is not cached: those before it are looked at after all"
    assert window.cursor == 1023 + 17
    assert not window.go_back(0)
    window.passed(10, True)
    assert window.cursor == 1023 + 18
    window.follow(10_000, 10_000)
    assert (window.spanned_bytes, window.fetched_bytes, len(window.ahead)) == (0, 0, 0)


# Fetching ahead


def prefetched(box: Box, desk: Desk, test: Callable[[Prefetcher], Awaitable[None]]) -> None:
    """Run a test beside a prefetcher."""

    async def main(filler: Filler) -> None:
        prefetcher = Prefetcher(desk.orders, filler, box.storage, desk.clock)
        desk.orders.moved = prefetcher.wake
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetcher.run)
            await test(prefetcher)
            nursery.cancel_scope.cancel()

    box.run(main)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await trio.sleep(0.001)


async def at_rest(prefetcher: Prefetcher) -> None:
    """Nothing is under way any more, and nothing more is begun."""
    await trio.testing.wait_all_tasks_blocked()
    while prefetcher._under_way:
        await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()


def desk_of(box: Box, root: Path, count: int, size: int = 10 * KIB) -> tuple[Desk, list[str]]:
    for number in range(count):
        box.store.put(f"d{number % 3}/{number:05}", bytes_of(size, number))
    desk = Desk(root, box.store)
    return desk, sorted(box.store.files)


def test_the_next_files_are_fetched_and_no_others(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 400)
    order = [paths[(7 * n) % 400] for n in range(400)]

    async def test(prefetcher: Prefetcher) -> None:
        await desk.post("r", desk.nodes(order))
        await until(lambda: prefetcher.fetched_files == 256)  # its pace is not known yet
        assert {read.path for read in box.store.reads} == set(order[:256])
        desk.clock.now += 1
        await desk.post("r", [], 0, 10, 50)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert prefetcher.fetched_files == 256, "50 files a second need no longer window"
        desk.clock.now += 1
        await desk.post("r", [], 0, 10, 350)
        await until(lambda: prefetcher.fetched_files == 306)

    prefetched(box, desk, test)
    fetched = [read.path for read in box.store.reads]
    assert len(fetched) == len(set(fetched)), "each once"
    assert set(fetched) == {*order[:256], *order[350:]}, "and not what it asks for by itself"


def test_who_waits_goes_first(make_box: Callable[..., Box], tmp_path: Path) -> None:
    box = make_box()
    desk, paths = desk_of(box, tmp_path, 200)
    other = box.source("waited-for", bytes_of(1000))
    gate = Gate(lambda path, _: path != "waited-for")
    box.store.before_piece = gate

    async def test(prefetcher: Prefetcher) -> None:
        await desk.post("r", desk.nodes(paths))
        await until(gate.reached.is_set)
        with trio.fail_after(5):
            await prefetcher._filler.fill(other, 0, 1000, 1000)  # every slot of its own is taken, and held
        gate.let_go()
        await until(lambda: prefetcher.fetched_files == 200)

    prefetched(box, desk, test)


def test_the_most_urgent_reader_is_served_first(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 300)
    nodes = desk.nodes(paths)

    async def test(filler: Filler) -> None:
        prefetcher = Prefetcher(desk.orders, filler, box.storage, desk.clock)
        for second in range(5):  # one reads a file a second, the other ten
            desk.clock.now += 1
            await desk.post("slow", nodes[:100] if not second else [], 0, second)
            await desk.post("fast", nodes[100:] if not second else [], 0, 10 * second)
        turns: list[str] = []
        while len(turns) < 22:
            reader, window, _ = prefetcher._most_urgent() or pytest.fail("nothing is urgent")
            window.passed(1, False)
            turns.append(reader.name)
        assert turns.count("slow") == 2
        assert turns.count("fast") == 20

    box.run(test)


def test_what_is_cached_is_not_fetched(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 100)

    async def test(prefetcher: Prefetcher) -> None:
        for path in paths[::2]:
            file = box.source(path, box.store.files[path][0])
            await prefetcher._filler.fill(file, 0, 1, 1)
        await desk.post("r", desk.nodes(paths))
        await until(lambda: prefetcher.fetched_files == 50)

    prefetched(box, desk, test)
    assert len(box.store.reads) == 100


def test_what_follows_a_long_run_of_cached_files_is_fetched(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 1400, 10)

    async def test(prefetcher: Prefetcher) -> None:
        for path in paths[:1300]:
            await prefetcher._filler.fill(box.source(path, box.store.files[path][0]), 0, 1, 1)
        await desk.post("r", desk.nodes(paths))
        for asked in range(0, 1400, 50):
            desk.clock.now += 0.1
            await desk.post("r", [], 0, asked, asked)
            await at_rest(prefetcher)
        assert prefetcher.fetched_files == 100

    prefetched(box, desk, test)
    assert len(box.store.reads) == 1400


@pytest.mark.semantics("P5")
def test_a_window_is_far_from_filling_the_tiers(make_box: Callable[..., Box], tmp_path: Path) -> None:
    box = make_box(4 * MIB)
    desk, paths = desk_of(box, tmp_path, 400, 100 * KIB)

    async def test(prefetcher: Prefetcher) -> None:
        await desk.post("r", desk.nodes(paths))
        await until(lambda: prefetcher.fetched_files == 5)  # a tenth of 4 MiB, and the one that goes beyond
        await trio.testing.wait_all_tasks_blocked(0.01)
        await desk.post("r", [], 0, 2, 2)
        await until(lambda: prefetcher.fetched_files == 7)

    prefetched(box, desk, test)
    assert sorted(read.path for read in box.store.reads) == paths[:7]


def test_no_room_and_faults_give_it_a_rest(make_box: Callable[..., Box], tmp_path: Path) -> None:
    box = make_box(MIB)
    desk, paths = desk_of(box, tmp_path, 100, 100 * KIB)

    async def test(prefetcher: Prefetcher) -> None:
        full = box.source("full", bytes_of(MIB - 1))
        await prefetcher._filler.fill(full, 0, MIB, MIB)
        await desk.post("r", desk.nodes(paths))
        await until(lambda: any(w.rests_until > desk.clock.now for w in prefetcher._windows.values()))
        await desk.post("r", [], 0, 50)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [read.path for read in box.store.reads] == ["full"], "nothing is fetched to be thrown away"

    prefetched(box, desk, test)


def test_what_was_read_past_the_tiers_is_placed_from_memory(make_box: Callable[..., Box], tmp_path: Path) -> None:
    box = make_box(MIB)
    desk, paths = desk_of(box, tmp_path, 3, 100 * KIB)

    async def test(prefetcher: Prefetcher) -> None:
        full = box.source("full", bytes_of(MIB - 1))
        await prefetcher._filler.fill(full, 0, MIB, MIB)
        for path in paths:
            file = box.source(path, box.store.files[path][0])
            assert await prefetcher._filler.fill(file, 0, 1, 1) is not None
        for pack in box.storage.index.reader.packs():
            box.storage.drop_pack(pack)
        await desk.post("r", desk.nodes(paths))
        await until(lambda: prefetcher.fetched_files == 2)
        await desk.post("r", [], 0, 2, 2)
        await until(lambda: prefetcher.fetched_files == 3)

    prefetched(box, desk, test)
    assert len(box.store.reads) == 4, "each once"
    assert all(box.has(box.source(path, box.store.files[path][0])) for path in paths)


@pytest.mark.semantics("P5")
def test_a_reader_with_next_use_finds_what_it_will_read(make_box: Callable[..., Box], tmp_path: Path) -> None:
    """Half of the data fit: half of each epoch is fetched, ahead, and nothing twice."""
    box = make_box(3 * MIB, fill=FillConfig(deadline_s=30, memory_bytes=16 * MIB))
    desk, paths = desk_of(box, tmp_path, 200, 30 * KIB)
    box.storage.set_policy(box.dataset, pb.CachePolicy(policy="next-use"))
    policy = box.storage.space(box.dataset).policy
    assert isinstance(policy, NextUse)
    desk.orders.sink = lambda _: policy
    found = []

    async def test(prefetcher: Prefetcher) -> None:
        for epoch in range(3):
            order, first, here = [*paths], 200 * epoch, 0
            random.Random(epoch).shuffle(order)
            reads = len(box.store.reads)
            await desk.post("r", desk.nodes(order), first, first, first)
            for position, path in enumerate(order, first):
                desk.clock.now += 0.01
                await desk.post("r", [], 0, position, position + 1)
                await trio.testing.wait_all_tasks_blocked()
                await until(lambda: not prefetcher._under_way)  # a store that can follow
                file = box.source(path, box.store.files[path][0])
                here += box.has(file)
                await prefetcher._filler.fill(file, 0, 1, 1)
            found.append((here, len(box.store.reads) - reads))

    prefetched(box, desk, test)
    for here, reads in found[1:]:
        assert here >= 0.97 * 200, found
        assert reads <= 100 + 12, found


def test_a_file_that_fails_is_left_to_its_reader(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 40)
    box.store.faults = [SourceUnavailable("down")]

    async def test(prefetcher: Prefetcher) -> None:
        await desk.post("r", desk.nodes(paths))
        await until(lambda: not box.store.faults and not prefetcher._under_way)
        desk.clock.now += 2
        prefetcher.wake()
        await until(lambda: prefetcher.fetched_files == 39)

    prefetched(box, desk, test)
    assert len(box.store.reads) == 40


def test_large_files_get_their_first_window(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 2, 3 * MIB)

    async def test(prefetcher: Prefetcher) -> None:
        await desk.post("r", desk.nodes(paths))
        await until(lambda: prefetcher.fetched_files == 2)

    prefetched(box, desk, test)
    assert all(box.has(box.source(path, box.store.files[path][0])) for path in paths)


def test_a_reader_that_left_is_forgotten(box: Box, tmp_path: Path) -> None:
    desk, paths = desk_of(box, tmp_path, 40)

    async def test(prefetcher: Prefetcher) -> None:
        await desk.post("r", desk.nodes(paths))
        await until(lambda: prefetcher.fetched_files == 40)
        desk.orders.leave("r")
        await until(lambda: not prefetcher._windows)

    prefetched(box, desk, test)
