"""Directories that are fetched as a whole, and what that may cost."""

import random
from collections.abc import Callable

import pytest

from forebay.cacheruntime.catalogue import NO_CONTENT, Node
from forebay.cacheruntime.keys import NodeId
from forebay.cacheruntime.understore.base import Kind
from forebay.fuse.sweeps import _AGAIN, _AT_ONCE, _EARNED, _FAILURES, _START, _SURE, _WITNESS, Sweeps


def _node(number: int, parent: int) -> Node:
    name = b"%07d" % number
    return Node(NodeId(number), Kind.FILE, name, NodeId(parent), number, 1, 0, None, NO_CONTENT, "", b"", 0, False)


class _Source:
    """Directories of small files, and a reader who waits for each file that is not ready: `Means` of the sweeps."""

    def __init__(self, *sizes: int, cached: bool = False) -> None:
        self.files: dict[int, list[Node]] = {}
        first = 1000
        for directory, size in enumerate(sizes, 1):
            self.files[directory] = [_node(first + n, directory) for n in range(size)]
            first += size
        self.pushes = cached
        """Whether there is a page cache to put them into."""
        self.cached = {node.node for files in self.files.values() for node in files} if cached else set()
        self.memory: set[int] = set()
        self.under_way: list[tuple[Node, Callable[[bool], None]]] = []
        self.fetched: list[int] = []
        self.pushed: list[int] = []
        self.fails = False
        self.sweeps = Sweeps(self)

    def siblings(self, after: NodeId, count: int) -> list[Node]:
        if after in self.files:
            return self.files[after][:count]
        for files in self.files.values():
            if files and files[0].node <= after <= files[-1].node:
                return files[after - files[0].node + 1 :][:count]
        return []

    def is_cached(self, node: Node) -> bool:
        return node.node in self.cached

    def is_ready(self, node: Node) -> bool:
        return node.node in self.memory if self.pushes else node.node in self.cached

    def fetch(self, node: Node, done: Callable[[bool], None]) -> None:
        assert node.node not in self.cached
        self.under_way.append((node, done))
        assert len(self.under_way) <= _AT_ONCE
        self.fetched.append(node.node)

    def push(self, node: Node) -> bool:
        if self.fails:
            return False
        self.pushed.append(node.node)
        self.memory.add(node.node)
        return True

    def arrive(self, most: int = _AT_ONCE) -> None:
        coming, self.under_way = self.under_way[:most], self.under_way[most:]
        for node, done in coming:
            if not self.fails:
                self.cached.add(node.node)
            done(not self.fails)

    def read(self, node: Node) -> bool:
        """Whether it was cached; one in memory is read without a request."""
        hit = node.node in self.cached
        if node.node not in self.memory:
            self.sweeps.observe(node)
            self.cached.add(node.node)
            self.memory.add(node.node)
        return hit

    def drain(self) -> None:
        while self.under_way:
            self.arrive()


def _shuffled(files: list[Node], seed: int) -> list[Node]:
    return random.Random(seed).sample(files, len(files))


@pytest.mark.parametrize("count", [50, 400, 5000])
def test_most_of_an_epoch_is_there_before_it_is_asked_for(count: int) -> None:
    source = _Source(count)
    hits = 0
    for node in _shuffled(source.files[1], count):
        hits += source.read(node)
        source.arrive()
    assert hits > 0.6 * count
    assert len(source.fetched) == len(set(source.fetched)), "nothing is fetched twice"
    source.drain()
    assert len(source.cached) == count


def test_all_that_is_left_is_fetched_wherever_the_reader_began() -> None:
    source = _Source(100)
    for node in _shuffled(source.files[1], 3)[:60]:
        source.read(node)
        source.drain()
    assert len(source.cached) == 100


def test_a_few_files_of_many_directories_cost_a_few_more() -> None:
    source = _Source(*[1000] * 50)
    for directory in range(1, 51):
        for node in _shuffled(source.files[directory], directory)[: _SURE - 1]:
            source.read(node)
    assert not source.fetched
    for directory in range(1, 51):
        source.read(source.files[directory][-1])
        source.drain()
    assert len(source.fetched) <= 50 * _START


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_sample_costs_little_more_than_twice_itself(share: float) -> None:
    source = _Source(100_000)
    sample = _shuffled(source.files[1], 1)[: int(share * 100_000)]
    for node in sample:
        source.read(node)
        source.arrive()
    source.drain()
    assert len(source.fetched) <= _START + len(sample) * (1 + _EARNED * 2 * share)


def test_readers_of_a_cached_directory_have_nothing_fetched() -> None:
    source = _Source(500)
    source.cached = {node.node for node in source.files[1]}
    for node in _shuffled(source.files[1], 2):
        assert source.read(node)
    assert not source.fetched


@pytest.mark.parametrize("count", [50, 400, 5000])
def test_most_of_a_cached_epoch_is_in_memory_before_it_is_asked_for(count: int) -> None:
    source = _Source(count, cached=True)
    asked = 0
    for node in _shuffled(source.files[1], count):
        asked += node.node not in source.memory
        source.read(node)
    assert asked < 0.6 * count
    assert not source.fetched
    assert len(source.pushed) == len(set(source.pushed)), "nothing is put there twice"


def test_a_sample_of_a_cached_directory_has_little_more_than_itself_put_into_memory() -> None:
    source = _Source(100_000, cached=True)
    sample = _shuffled(source.files[1], 1)[:1000]
    for node in sample:
        source.read(node)
    assert len(source.pushed) <= _START + len(sample) * (1 + _EARNED * _WITNESS * 0.02)


def test_what_the_page_cache_is_not_given_now_is_given_later() -> None:
    source = _Source(400, cached=True)
    source.fails = True
    files = _shuffled(source.files[1], 8)
    for node in files[:50]:
        source.read(node)
    assert not source.pushed
    source.fails = False
    for node in files[50:100]:
        source.read(node)
    assert len(source.pushed) > 50


def test_a_sweep_that_brings_nothing_ends_and_is_tried_again_later() -> None:
    source = _Source(10_000)
    source.fails = True
    files = iter(_shuffled(source.files[1], 5))
    for _ in range(_AGAIN):
        source.read(next(files))
        source.drain()
    assert _FAILURES <= len(source.fetched) <= _FAILURES + _AT_ONCE
    source.fails = False
    before = len(source.fetched)
    for _ in range(_AGAIN + _SURE):
        source.read(next(files))
        source.drain()
    assert len(source.fetched) > before + _START


def test_a_directory_that_was_evicted_is_swept_again() -> None:
    source = _Source(300)
    for _ in range(2):
        for node in _shuffled(source.files[1], 6):
            source.read(node)
            source.drain()
        assert len(source.cached) == 300
        source.cached.clear()
        source.memory.clear()
    assert len(source.fetched) > 300


def test_a_file_that_is_asked_for_in_pieces_is_one_file() -> None:
    source = _Source(100)
    for node in _shuffled(source.files[1], 7)[: _SURE - 1]:
        for _ in range(4):
            source.sweeps.observe(node)
    assert not source.fetched


def test_nothing_of_a_snapshot_is_fetched_behind_the_switch_to_the_next() -> None:
    """What was removed eight syncs ago has no path; to ask for it ended the handler."""
    source = _Source(100)
    files = _shuffled(source.files[1], 8)
    for node in files[: _SURE + 20]:
        source.read(node)
    fetched = len(source.fetched)
    assert fetched
    source.sweeps.forget()
    source.drain()
    assert len(source.fetched) == fetched
    for node in files[_SURE + 20 :][:_SURE]:
        source.read(node)
    assert len(source.fetched) == fetched + _START


def test_memory_is_bounded() -> None:
    source = _Source(*[1] * 5000)
    for directory in range(1, 5001):
        source.read(source.files[directory][0])
    assert len(source.sweeps._sweeps) <= 256
