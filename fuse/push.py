"""Putting small files into the kernel's page cache ahead of their reader (FUSE_NOTIFY_STORE), while there is time.

Fed by orders that readers post and by readers that go through a directory. It never gets ahead by more than a budget,
and stops when memory is short or when what it put there is gone before it is read.

In a thread of its own: the kernel makes it wait for a page that a READ is under way for, and whoever waits there cannot
answer that READ.
"""

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.counters import CounterRow
from forebay.fuse.operations import FileSlice

BUDGET_BYTES = 256 << 20
"""Waiting to be put ahead; what is posted beyond this is not taken."""

_FETCHES = 16
"""Files that are brought into the cache at once for this."""

_MEMORY_FACTOR = 4
"""So many times the budget must be available: then what is put there is far from the end of the kernel's LRU list."""

_MEMORY_CHECK_S = 0.5
_REST_S = 10.0
"""Without putting anything ahead, after too much of it was lost."""

_LOST_SHARE, _LOST_LEAST = 0.1, 16
_SAMPLE = 1024
"""What was lost counts against the last so many files put ahead; older ones fade."""

_DISK_AHEAD = 16
"""Files that the disk is told of before their turn."""

_LEAP = 3
"""Files behind the one that a reader asks for which are left to it, to get ahead of it again."""

_SEEN_SLOTS = 1 << 21
_FORGOTTEN = 16
_RECENT = 4096


class _Batch:
    """Files that were posted together: they are read in this order."""

    __slots__ = ("is_order", "reached")

    def __init__(self, is_order: bool) -> None:
        self.is_order = is_order
        self.reached = -1
        """The last of them that its reader asked for before we had put it ahead."""


class _Queued(NamedTuple):
    node: Node
    batch: _Batch
    position: int


class Pusher:
    """The queue of files to be put ahead, and what is known of the page cache.

    Concurrency: `run` is for a thread of its own, all else for the engine's.
    """

    def __init__(
        self,
        store: Callable[[int, FileSlice], bool],
        locate: Callable[[Node], FileSlice | None],
        fetch: Callable[[Node, Callable[[bool], None]], None],
        counters: CounterRow,
        available_bytes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            store: puts a file into the page cache; False when the kernel does not know the node. This and the next
                two are called in the thread.
            locate: where a file's bytes are, None while they are not cached.
            fetch: brings a file into the cache in the background, then says whether it is there.
            counters: our row.
            available_bytes: memory that could be used without pushing anything of worth out.
            clock: seconds.
        """
        self._store = store
        self._locate = locate
        self._fetch = fetch
        self._counters = counters
        self._available = available_bytes
        self._clock = clock
        self._changed = threading.Condition()
        """Guards the queue."""
        self._queue: deque[_Queued] = deque()
        self._places: dict[int, _Queued] = {}
        """Node -> where it is queued."""
        self._queued_bytes = 0
        self._ordered = 0
        """How many in the queue are there by an order."""
        self._advised = 0
        """How many at the head of the queue the disk was told of."""
        self._fetching = 0
        self._closed = False
        self._paused_until = 0.0
        self._check_at = 0.0
        self._pushed = self._lost = 0
        self._recent: OrderedDict[int, bool] = OrderedDict()
        """Nodes that were put ahead and may not have been read yet."""
        self._seen = bytearray(_SEEN_SLOTS)
        """Whether the kernel was given a file before, by hash of the node. A collision costs a push."""
        self._seen_again = 0

    def post(self, nodes: Iterable[Node]) -> int:
        """Take files, in order, up to the budget; how many."""
        taken, batch = 0, _Batch(True)
        with self._changed:
            for node in nodes:
                if self._queued_bytes + node.size > BUDGET_BYTES:
                    break
                if node.size and not self._seen[node.node % _SEEN_SLOTS]:
                    self._put(_Queued(node, batch, taken))
                taken += 1
        return taken

    def offer(self, node: Node) -> bool:
        """Take a file that somebody may read some time; False when there is enough to do, or this is no time for it."""
        with self._changed:
            if self._clock() < self._paused_until or self._queued_bytes + node.size > BUDGET_BYTES // 4:
                return False
            self._put(_Queued(node, _Batch(False), 0))
        return True

    def is_done_with(self, node: Node) -> bool:
        """Nothing is to be done for a file: the kernel was given it, or it is queued."""
        return bool(self._seen[node.node % _SEEN_SLOTS]) or not node.size or node.node in self._places

    def was_read(self, node: Node) -> None:
        """The kernel asks for a small file from its start: so it does not have it."""
        slot = node.node % _SEEN_SLOTS
        queued = self._places.get(node.node)
        if queued is not None:
            queued.batch.reached = max(queued.batch.reached, queued.position)
        if self._recent.pop(node.node, False):
            self._lost += 1
            self._counters.add("pushes_lost")
        elif self._seen[slot]:
            self._seen_again += 1
            if self._seen_again >= _FORGOTTEN:
                # More data than page cache, or it was dropped: what the kernel was given long ago says nothing.
                self._seen = bytearray(_SEEN_SLOTS)
                self._seen_again = 0
        self._seen[slot] = 1

    @property
    def has_order(self) -> bool:
        """It is known what will be read next."""
        return self._ordered > 0 or self._fetching > 0

    def run(self) -> None:
        """Put files ahead until `close`."""
        while True:
            with self._changed:
                while not self._closed and (not self._queue or self._fetching >= _FETCHES):
                    self._changed.wait()
                if self._closed:
                    return
                if not self._allowed():
                    self._queue.clear()
                    self._places.clear()
                    self._advised = self._ordered = 0
                    self._queued_bytes = 0
                    continue
                queued = self._queue.popleft()
                self._queued_bytes -= queued.node.size
                self._ordered -= queued.batch.is_order
                self._advised = max(0, self._advised - 1)
                coming = list(islice(self._queue, self._advised, _DISK_AHEAD))
                self._advised += len(coming)
            for later in coming:
                self._read_ahead(later.node)
            # What its reader is about to ask for comes too late: both would do the work. Worse, the kernel has us wait
            # until that request is answered, and then both are at the next file again.
            if queued.position > queued.batch.reached + _LEAP or queued.batch.reached < 0:
                self._push(queued)
            self._places.pop(queued.node.node, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _put(self, queued: _Queued, *, first: bool = False) -> None:
        (self._queue.appendleft if first else self._queue.append)(queued)
        self._places[queued.node.node] = queued
        self._queued_bytes += queued.node.size
        self._ordered += queued.batch.is_order
        self._changed.notify()

    def _push(self, queued: _Queued) -> None:
        node = queued.node
        slot = node.node % _SEEN_SLOTS
        if self._seen[slot]:
            return  # its reader was faster
        found = self._locate(node)
        if found is None:
            self._bring(queued)
        elif self._store(node.node, found):
            self._seen[slot] = 1
            self._recent[node.node] = True
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
            self._pushed += 1
            self._counters.add("pushes")
            self._counters.add("pushed_bytes", node.size)

    def _read_ahead(self, node: Node) -> None:
        """Have the disk begin with a file whose turn comes soon: one at a time would leave it idle between them."""
        found = None if self._seen[node.node % _SEEN_SLOTS] else self._locate(node)
        if found is not None:
            os.posix_fadvise(found.descriptor, found.position, found.length, os.POSIX_FADV_WILLNEED)

    def _bring(self, queued: _Queued) -> None:
        def arrived(cached: bool) -> None:
            with self._changed:
                self._fetching -= 1
                self._changed.notify()
                if cached:
                    self._put(queued, first=True)

        with self._changed:
            self._fetching += 1
        self._fetch(queued.node, arrived)

    def _allowed(self) -> bool:
        now = self._clock()
        if now < self._paused_until:
            return False
        if now >= self._check_at:
            self._check_at = now + _MEMORY_CHECK_S
            if self._available() < _MEMORY_FACTOR * BUDGET_BYTES:
                self._pause(now)
                return False
        if self._lost >= _LOST_LEAST and self._lost > _LOST_SHARE * self._pushed:
            self._pushed = self._lost = 0
            self._pause(now)
            return False
        if self._pushed >= _SAMPLE:
            self._pushed, self._lost = self._pushed // 2, self._lost // 2
        return True

    def _pause(self, now: float) -> None:
        self._paused_until = now + _REST_S
        self._counters.add("push_pauses")
