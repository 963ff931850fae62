"""What is put into the page cache ahead of its reader, and what is not."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.counters import CounterRow, read_counts
from forebay.cacheruntime.keys import ROOT_NODE, ContentId, InodeNumber, NodeId
from forebay.cacheruntime.memory_limit import available_bytes
from forebay.cacheruntime.understore.base import Kind
from forebay.fuse.operations import FileSlice
from forebay.fuse.push import BUDGET_BYTES, Pusher

MEMORY = 64 * BUDGET_BYTES


def _file(number: int, size: int = 100) -> Node:
    return Node(
        NodeId(number), Kind.FILE, b"x", ROOT_NODE, InodeNumber(number), size, 0, None,
        ContentId(bytes(16)), "", b"", 0, False,
    )  # fmt: skip


class Kernel:
    """The page cache and the tiers, and a pusher whose thread runs until all is done."""

    def __init__(self, folder: Path) -> None:
        self.stored: list[int] = []
        self.unknown: set[int] = set()
        self.uncached: set[int] = set()
        self.fetched: list[int] = []
        self.fetch_fails = False
        self.available = MEMORY
        self.now_s = 0.0
        self.folder = folder
        self.descriptor = os.open(__file__, os.O_RDONLY)
        self.pusher = Pusher(
            self._store, self._locate, self._fetch, CounterRow(folder, 0), lambda: self.available, lambda: self.now_s
        )

    def _store(self, node: int, found: FileSlice) -> bool:
        if node in self.unknown:
            return False
        self.stored.append(node)
        return True

    def _locate(self, node: Node) -> FileSlice | None:
        return None if node.node in self.uncached else FileSlice(self.descriptor, 0, node.size)

    def _fetch(self, node: Node, done: Callable[[bool], None]) -> None:
        self.fetched.append(node.node)
        if not self.fetch_fails:
            self.uncached.discard(node.node)
        done(not self.fetch_fails)

    def post(self, *numbers: int, size: int = 100) -> int:
        return self.pusher.post([_file(n, size) for n in numbers])

    def settle(self) -> list[int]:
        """Let the thread work off the queue; what was stored so far."""
        thread = threading.Thread(target=self.pusher.run)
        thread.start()
        while self.pusher._queue:
            thread.join(0.001)
        self.pusher.close()
        thread.join(10)
        assert not thread.is_alive()
        self.pusher._closed = False
        return self.stored


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    os.close(made.descriptor)


def test_in_order_and_once(kernel: Kernel) -> None:
    assert kernel.post(3, 1, 2) == 3
    assert kernel.settle() == [3, 1, 2]
    assert kernel.post(3, 1, 2, 4) == 4
    assert kernel.settle() == [3, 1, 2, 4]
    counts = read_counts(kernel.folder)
    assert (counts.pushes, counts.pushed_bytes) == (4, 400)


def test_what_was_read_is_not_pushed(kernel: Kernel) -> None:
    kernel.pusher.was_read(_file(1))
    kernel.post(1, 2)
    assert kernel.settle() == [2]


def test_a_reader_that_is_faster_is_overtaken(kernel: Kernel) -> None:
    """What it is about to ask for is left to it; other readers' files are not."""
    kernel.post(*range(10, 30))
    kernel.post(*range(50, 55))
    kernel.pusher.was_read(_file(15))
    assert kernel.settle() == [*range(19, 30), *range(50, 55)]


def test_empty_files_and_unknown_nodes(kernel: Kernel) -> None:
    kernel.unknown = {2}
    kernel.post(1, size=0)
    kernel.post(2, 3)
    assert kernel.settle() == [3]
    kernel.unknown = set()
    kernel.post(2)
    assert kernel.settle() == [3, 2], "looked up meanwhile"


@pytest.mark.semantics("P3")
def test_the_budget(kernel: Kernel) -> None:
    size = BUDGET_BYTES // 10
    assert kernel.post(*range(100, 120), size=size) == 10
    assert kernel.settle() == list(range(100, 110))
    assert kernel.post(*range(200, 203), size=size) == 3


def test_uncached_files_are_fetched_first(kernel: Kernel) -> None:
    kernel.uncached = {1, 3}
    kernel.post(1, 2, 3)
    assert sorted(kernel.settle()) == [1, 2, 3]
    assert kernel.fetched == [1, 3]


def test_a_file_that_cannot_be_fetched_is_left_out(kernel: Kernel) -> None:
    kernel.uncached, kernel.fetch_fails = {1}, True
    kernel.post(1, 2)
    assert kernel.settle() == [2]
    assert kernel.fetched == [1]


@pytest.mark.semantics("P3")
def test_nothing_while_memory_is_short(kernel: Kernel) -> None:
    kernel.available = BUDGET_BYTES
    kernel.post(1, 2)
    assert kernel.settle() == []
    kernel.available = MEMORY
    kernel.post(3)
    assert kernel.settle() == [], "it rests for a while"
    kernel.now_s = 60
    kernel.post(4)
    assert kernel.settle() == [4]
    assert read_counts(kernel.folder).push_pauses == 1


@pytest.mark.semantics("P3")
def test_what_is_pushed_out_again_ends_it_for_a_while(kernel: Kernel) -> None:
    kernel.post(*range(100, 180))
    kernel.settle()
    for number in range(100, 120):
        kernel.pusher.was_read(_file(number))
    kernel.post(500)
    assert 500 not in kernel.settle()
    assert read_counts(kernel.folder).pushes_lost == 20
    kernel.now_s = 60
    kernel.post(501)
    assert 501 in kernel.settle()


def test_a_page_cache_that_lost_all_is_filled_again(kernel: Kernel) -> None:
    """More data than memory: the second epoch is pushed as the first was."""
    for number in range(1000):
        kernel.pusher.was_read(_file(number))
    kernel.post(*range(500, 600))
    assert kernel.settle() == [], "the kernel was given them before"
    for number in range(20):
        kernel.pusher.was_read(_file(number))
    kernel.post(*range(500, 600))
    assert kernel.settle() == list(range(500, 600))


def test_available_memory() -> None:
    assert 1 << 20 < available_bytes() < 1 << 50
