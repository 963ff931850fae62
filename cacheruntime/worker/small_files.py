"""Many small files at once, for warm-ups: threads of their own fetch them, and all that came is written in one go.

Where a reader waits for one small file, the way there is a task, a thread and a transaction (`fill.py`). For a hundred
thousand files that way is what takes the time. Here a thread takes one file after another; meanwhile one task writes
all that has come since its last turn with one write into the pack and one transaction of the index. Readers who want a
file that is on its way wait for it as for any other.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio
import xxhash

from forebay.cacheruntime.config import MIB, Medium
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.worker.fetch import SourceFile, fetch_pieces
from forebay.cacheruntime.worker.fill import Filler, Whole

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256

_WRITE_BYTES = 2 * MIB
"""Of one write: enough to make its price nothing; others in the loop wait for a few milliseconds."""

Done = Callable[[bool, ForebayError | None], None]
"""Told in the loop: whether the file is in the cache, or why it could not be had."""


@dataclass
class _Fetched:
    """What a thread reports."""

    file: SourceFile
    done: Done
    pieces: list[memoryview] = field(default_factory=list)
    checksum: int = 0
    error: ForebayError | None = None
    took_ns: int = 0


class SmallFiles:
    """Fetches small files for all warm-ups of a worker. One event loop.

    What was begun comes to its end, also when who wanted it has gone: readers may wait for it by then.
    """

    def __init__(self, filler: Filler, nursery: trio.Nursery) -> None:
        """
        Args:
            filler: of the worker; says how much memory files under way may take.
            nursery: runs the threads and the writer.
        """
        self._filler = filler
        self._nursery = nursery
        self._todo: queue.SimpleQueue[_Fetched | None] = queue.SimpleQueue()
        self._landed: deque[_Fetched] = deque()
        self._limiter = trio.CapacityLimiter(MOST_AT_ONCE)
        self._threads = 0
        self._users = 0
        self._under_way = 0
        self._bytes = 0
        self._writing = False
        self._changed = trio.Event()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep the threads that there are: whoever fetches does it in this block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._end_threads()

    def _end_threads(self) -> None:
        if not self._users and not self._under_way:
            for _ in range(self._threads):
                self._todo.put(None)

    async def fetch(self, file: SourceFile, medium: Medium | None, at_once: int, done: Done) -> bool:
        """Have a file fetched as soon as there is a turn for it; returns when it was begun.

        Args:
            file: a small one that is not cached.
            medium: of the tier that it is to come into; None for the fastest with room.
            at_once: how many may be under way.
            done: called once, unless this returns False.

        Returns:
            False: no tier has room for it, or it is cached or on its way already (`Filler.fill` waits for it).
        """
        while self._under_way and (self._under_way >= at_once or self._bytes + file.size > self._filler.bulk_bytes):
            changed = self._changed
            await changed.wait()
        if not self._filler.begin_whole(file, medium):
            return False
        self._under_way += 1
        self._bytes += file.size
        self._todo.put(_Fetched(file, done))
        if self._threads < min(self._under_way, at_once, MOST_AT_ONCE):
            self._threads += 1
            self._nursery.start_soon(self._run_thread)
        return True

    async def _run_thread(self) -> None:
        token = trio.lowlevel.current_trio_token()
        while self._users or self._under_way:
            await trio.to_thread.run_sync(self._work, token, limiter=self._limiter, abandon_on_cancel=True)
        self._threads -= 1

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        """In a thread: one file after another, until a sentinel says to look whether there are more to come."""
        while (item := self._todo.get()) is not None:
            began = time.monotonic_ns()
            try:
                item.pieces = fetch_pieces(item.file)
                item.checksum = _checksum(item.pieces)
            except ForebayError as error:
                item.error = error
            except Exception as error:
                log.exception("a fetch failed")
                item.error = ForebayError(f"the fetch of {item.file.path!r} failed: {error!r}")
            item.took_ns = time.monotonic_ns() - began
            self._landed.append(item)
            if not self._writing:
                try:
                    token.run_sync_soon(self._write_soon, idempotent=True)
                except trio.RunFinishedError:
                    return

    def _write_soon(self) -> None:
        if self._landed and not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        """Write what has landed, until nothing has."""
        while self._landed:
            batch: list[_Fetched] = []
            size = 0
            while self._landed and size < _WRITE_BYTES:
                batch.append(self._landed.popleft())
                size += batch[-1].file.size
            self._write_batch(batch)
            await trio.lowlevel.checkpoint()
        self._writing = False
        self._write_soon()  # a thread may have seen us at work

    def _write_batch(self, batch: list[_Fetched]) -> None:
        wholes = [Whole(item.file, item.pieces, item.checksum, item.error, item.took_ns) for item in batch]
        kept = self._filler.end_wholes(wholes)
        self._under_way -= len(batch)
        self._bytes -= sum(item.file.size for item in batch)
        for item, cached in zip(batch, kept, strict=True):
            item.done(cached, item.error)
        self._end_threads()
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _checksum(pieces: list[memoryview]) -> int:
    if len(pieces) == 1:
        return int(xxhash.xxh3_64_intdigest(pieces[0]))
    hasher = xxhash.xxh3_64()
    for piece in pieces:
        hasher.update(piece)
    return int(hasher.intdigest())
