"""Readers that go through a directory are noticed, kept ahead of, and let go."""

import random
from itertools import pairwise

import pytest

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.keys import ROOT_NODE, ContentId, InodeNumber, NodeId
from forebay.cacheruntime.understore.base import Kind
from forebay.fuse.directory_runs import DirectoryRuns

COUNT = 2000


def _file(number: int) -> Node:
    return Node(
        NodeId(number), Kind.FILE, b"%06d" % number, ROOT_NODE, InodeNumber(number), 100, 0, None,
        ContentId(bytes(16)), "", b"", 0, False,
    )  # fmt: skip


class Directory:
    """Files 10, 11, ... in order, a page cache, and a reader whose requests are those that miss it."""

    def __init__(self) -> None:
        self.asked = 0
        self.cached: set[int] = set()
        self.pushed: list[int] = []
        self.runs = DirectoryRuns(self._siblings)

    def _siblings(self, after: NodeId, count: int) -> list[Node]:
        self.asked += 1
        return [_file(n) for n in range(after + 1, min(after + 1 + count, 10 + COUNT))]

    def read(self, number: int) -> bool:
        """Whether it was there already."""
        if number in self.cached:
            return True
        self.cached.add(number)
        for node in self.runs.observe(_file(number)):
            self.pushed.append(node.node)
            self.cached.add(node.node)
        return False


def test_a_reader_in_order_asks_for_little() -> None:
    directory = Directory()
    missed = [n for n in range(10, 10 + COUNT) if not directory.read(n)]
    assert len(missed) < COUNT / 40
    assert len(set(directory.pushed)) == len(directory.pushed), "nothing is pushed twice"
    assert directory.pushed == sorted(directory.pushed)


def test_windows_grow_and_stay_ahead() -> None:
    directory = Directory()
    for n in range(10, 1000):
        directory.read(n)
        if n > 30:
            assert max(directory.pushed) > n, "the next window begins in the middle of the last one"
    gaps = [b - a for a, b in pairwise(directory.pushed)]
    assert max(gaps) <= 2


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_every_few_files_is_a_run_too(stride: int) -> None:
    """As one of several loaders that share a directory."""
    directory = Directory()
    missed = [n for n in range(10, 10 + COUNT, stride) if not directory.read(n)]
    assert len(missed) < COUNT / stride / 4


def test_random_readers_cost_little() -> None:
    directory = Directory()
    order = list(range(10, 10 + COUNT))
    random.Random(7).shuffle(order)
    for n in order:
        directory.runs.observe(_file(n))
    assert directory.asked < COUNT / 10
    assert len(directory.pushed) == 0


def test_a_run_that_ends_in_random_reads_is_let_go_and_found_again() -> None:
    directory = Directory()
    for n in range(10, 200):
        directory.read(n)
    before = len(directory.pushed)
    chance = random.Random(3)
    for _ in range(300):
        directory.runs.observe(_file(chance.randrange(1000, 1900)))
    assert len(directory.pushed) == before
    for n in range(400, 600):
        directory.read(n)
    assert len(directory.pushed) > before


def test_the_end_of_the_directory() -> None:
    directory = Directory()
    for n in range(10 + COUNT - 8, 10 + COUNT):
        directory.read(n)
    assert all(n < 10 + COUNT for n in directory.pushed)


def test_directories_are_apart_and_bounded() -> None:
    directory = Directory()
    for n in range(10, 500):
        node = _file(n)
        other = node._replace(parent=NodeId(10_000 + n))
        assert directory.runs.observe(other) == []
