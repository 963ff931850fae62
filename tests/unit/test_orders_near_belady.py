"""How near jobs that post their orders come to offline Belady, by the worker's own policy, orders and prefetcher.

In virtual time. Only what moves bytes is a stand-in: a store that takes some milliseconds for a file, and a shelf that
holds so many files. Readers are batches at a steady pace, each in an order that is posted as `forebay.torch` does it.
"""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from fake_store import FakeStore
from test_worker_orders import Desk
from trio.testing import MockClock

import forebay.torch.orders
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.policies.next_use import NextUse
from forebay.cacheruntime.worker.orders import Orders
from forebay.cacheruntime.worker.prefetch import Prefetcher
from forebay.torch.orders import EpochOrder

_BELADY = {2: {0.10: 0.31, 0.25: 0.50, 0.50: 0.73, 0.75: 0.88}, 4: {0.10: 0.36, 0.25: 0.56, 0.50: 0.77, 0.75: 0.90}}
"""Jobs -> cache as a share of the data -> hit ratio of offline Belady."""

_FILES = 2000
_READS = 6000
"""That are counted at least, in whole epochs, behind one that is not."""

_BATCH = 10
_FILES_PER_S = 200.0
"""Of all jobs together."""

_LATENCY_S = 0.02
_GETS = 16


class Shelf:
    """Stands for storage, rooms and filler: whole files of one size, in or not."""

    def __init__(self, policy: NextUse[ContentId], orders: Orders, room: int) -> None:
        self.policy, self.orders, self.room = policy, orders, room
        self.cached: set[ContentId] = set()
        self.touched: set[ContentId] = set()
        self.coming: dict[ContentId, trio.Event] = {}
        self.gets = trio.Semaphore(_GETS)
        self.fetched = 0
        # As the prefetcher knows them:
        self.window_bytes = 1
        self.tiers = [SimpleNamespace(config=SimpleNamespace(quota_bytes=room))]
        self.rooms = self
        self.index = SimpleNamespace(reader=self)

    def find(self, content: ContentId) -> Any:
        return SimpleNamespace(has=lambda first, end: True) if content in self.cached else None

    def is_doubtful(self, content: ContentId, cached: Any) -> bool:
        return False

    def take_touch(self, content: ContentId) -> bool:
        if content not in self.touched:
            return False
        self.touched.remove(content)
        self.policy.accessed(content)
        return True

    def takes(self, content: ContentId) -> bool:
        """As `Rooms.make`, whoever has to go for it goes."""
        self.orders.note_reads(self.take_touch)
        if len(self.cached) >= self.room:
            if not self.policy.admits(content, 1):
                return False
            victim = next(self.policy.victims(content))
            self.cached.remove(victim)
            self.policy.removed(victim)
        return True

    async def fill(self, file: Any, first: int, length: int, window: int, *, through: bool) -> None:
        content = file.content
        coming = self.coming.get(content)
        if coming is not None:
            await coming.wait()
            return
        if not through and not self.takes(content):
            return
        coming = self.coming[content] = trio.Event()
        async with self.gets:
            await trio.sleep(_LATENCY_S)
        self.fetched += 1
        if self.takes(content):
            self.cached.add(content)
            self.policy.inserted(content, 1)
        del self.coming[content]
        coming.set()


class Posts:
    """Stands for `OrderPoster`: what it was told, for the test to pass on."""

    def __init__(self, *_: Any) -> None:
        self.nodes, self.first = array("Q"), 0
        self.position = self.asked = self.end = 0

    def post(self, nodes: "array[int]") -> None:
        self.nodes += nodes
        self.end += len(nodes)

    def advance(self, position: int, asked: int) -> None:
        self.position, self.asked = max(self.position, position), max(self.asked, asked)

    async def pass_on(self, desk: Desk, name: str) -> None:
        nodes, self.nodes = self.nodes, array("Q")
        await desk.post(name, nodes, self.end - len(nodes), self.position, self.asked)


class Job:
    """One training."""

    def __init__(self, desk: Desk, shelf: Shelf, nodes: Sequence[int], seed: int, jobs: int) -> None:
        self.desk, self.shelf, self.nodes, self.seed = desk, shelf, nodes, seed
        self.epochs = -(-_READS // (jobs * _FILES))
        self.batch_s = _BATCH / (_FILES_PER_S / jobs)
        self.waited = self.began_at = self.ended_at = 0

    def order(self, epoch: int) -> list[int]:
        found = list(range(len(self.nodes)))
        random.Random(f"{self.seed} {epoch}").shuffle(found)
        return found

    async def run(self) -> None:
        files: Any = SimpleNamespace(
            config=SimpleNamespace(fill_socket_path=None), spec=None, dataset_id="", snapshot=1,
            node_ids=lambda indices: array("Q", [self.nodes[index] for index in indices]),
        )  # fmt: skip
        told, due = EpochOrder(files), trio.current_time()
        for epoch in range(1 + self.epochs):
            if epoch == 1:
                self.waited, self.began_at = 0, self.shelf.fetched
            indices = self.order(epoch)
            told.begin(indices, self.order(epoch + 1))
            poster: Any = told._poster
            for start in range(0, len(indices), _BATCH):
                batch = indices[start : start + _BATCH]
                told.advance(start, start + len(batch))
                await poster.pass_on(self.desk, str(self.seed))
                await self.read([self.nodes[index] for index in batch])
                due += self.batch_s
                await trio.sleep_until(max(due, trio.current_time()))
        self.ended_at = self.shelf.fetched

    async def read(self, nodes: Sequence[int]) -> None:
        contents = self.desk.catalogue.contents(nodes)
        missing = [content for content in contents if content not in self.shelf.cached]
        self.waited += len(missing)
        self.shelf.touched.update(content for content in contents if content in self.shelf.cached)
        async with trio.open_nursery() as nursery:
            for content in missing:
                nursery.start_soon(self.read_missing, content)

    async def read_missing(self, content: ContentId) -> None:
        await self.shelf.fill(SimpleNamespace(content=content), 0, 1, 1, through=True)
        if content in self.shelf.cached:
            self.shelf.touched.add(content)


def train(root: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, fraction: float) -> tuple[float, float]:
    """The hit ratio (what the store did not have to give), and the share of the reads that waited."""
    store = FakeStore()
    for number in range(_FILES):
        store.put(f"{number:05}", b"1")
    desk = Desk(root, store)
    desk.orders = Orders(trio.current_time)
    policy = NextUse[ContentId]()
    shelf = Shelf(policy, desk.orders, int(fraction * _FILES))
    desk.orders.sink = lambda _: policy
    contents = {path: desk.catalogue.resolve(path.encode()) for path in sorted(store.files)}
    monkeypatch.setattr(desk.dataset, "file", lambda path, *_: contents[path], raising=False)
    monkeypatch.setattr(forebay.torch.orders, "OrderPoster", Posts)
    nodes = desk.nodes(sorted(store.files))
    found = [Job(desk, shelf, nodes, seed, jobs) for seed in range(jobs)]

    async def main() -> None:
        prefetcher = Prefetcher(desk.orders, shelf, shelf, trio.current_time)  # type: ignore[arg-type]
        desk.orders.moved = prefetcher.wake
        async with trio.open_nursery() as background:
            background.start_soon(prefetcher.run)
            async with trio.open_nursery() as nursery:
                for number, job in enumerate(found):
                    await trio.sleep(0.03 * number)
                    nursery.start_soon(job.run)
            background.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    reads = jobs * found[0].epochs * _FILES
    fetched = sum(job.ended_at - job.began_at for job in found) / jobs
    return 1 - fetched / reads, sum(job.waited for job in found) / reads


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "fraction"), [(jobs, fraction) for jobs in _BELADY for fraction in _BELADY[jobs]])
def test_jobs_that_share_hit_as_offline_belady_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, fraction: float
) -> None:
    hits, _ = train(tmp_path, monkeypatch, jobs, fraction)
    assert hits == pytest.approx(_BELADY[jobs][fraction], abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_one_job_waits_for_nothing_and_fetches_no_more_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    hits, waited = train(tmp_path, monkeypatch, 1, fraction)
    assert waited <= 0.01
    assert (1 - hits) / (1 - fraction) <= 1.03
