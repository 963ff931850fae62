"""Many small files at once, for warm-ups: threads of their own fetch them, and all that came is written in one go.

Where a reader waits for one small file, the way there is a task, a thread and a transaction (`fill.py`). For a hundred
thousand files that way is what takes the time. Here a thread takes one file after another, or one thread has many under
way at once where the store can do that (`ReadsMany`), and what another worker of the cluster is asked for goes into one
request with others of the same; meanwhile one task writes all that has come since its last turn with one write into the
pack and one transaction of the index. Readers who want a file that is on its way wait for it as for any other.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
import xxhash

from forebay.cacheruntime.config import MIB, Medium
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.understore.base import ReadsMany, UnderStore, WholeFiles
from forebay.cacheruntime.worker.fetch import SourceFile, fetch_pieces
from forebay.cacheruntime.worker.fill import Filler, Whole

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256

_BATCH, _BATCH_BYTES = 64, 4 * MIB
"""Of one request to another worker at most: a worker that is lost takes little with it."""

_BATCHES = 4
"""Under way to one worker: while one is received, others are sent, or wait for its store."""

_SINGLE = 16
"""Files that another worker is asked for one by one, after a batch did not bring them: a worker cuts off a party with
more than 64 connections (`LimitConfig.streams`), and whoever is cut off comes back with as many."""

_WAIT_S = 1.0
"""Whoever has something for a thread that waits calls it."""

_WRITE_BYTES = 2 * MIB
"""Of one write: enough to make its price nothing; others in the loop wait for a few milliseconds."""

_GATHER_S = 0.004
"""What has landed waits for others that come within this time: a turn for each few costs more than they do."""

Done = Callable[[bool, ForebayError | None], None]
"""Told in the loop: whether the file is in the cache, or why it could not be had."""


@dataclass(eq=False)
class _Fetched:
    """What a thread reports."""

    file: SourceFile
    done: Done
    pieces: list[memoryview] = field(default_factory=list)
    checksum: int = 0
    error: ForebayError | None = None
    began_ns: int = 0
    took_ns: int = 0
    straight: bool = False
    """By a lane: from the store."""
    posted: bool = False
    """Another worker was asked for it."""

    def take(self, pieces: "Sequence[Buffer]") -> None:
        """Its bytes have come."""
        self.pieces = [memoryview(piece) for piece in pieces]
        self.checksum = _checksum(self.pieces)
        self.took_ns = time.monotonic_ns() - self.began_ns


@dataclass
class _Outbox:
    """Files that one worker is to be asked for, and how many requests to it are under way."""

    items: deque[_Fetched] = field(default_factory=deque)
    senders: int = 0

    def batch(self) -> list[_Fetched]:
        """What goes into one request."""
        found: list[_Fetched] = []
        size = 0
        while self.items and len(found) < _BATCH and size < _BATCH_BYTES:
            found.append(self.items.popleft())
            size += found[-1].file.size
        return found


class _Lane:
    """The thread that has many files of one store under way. `run` is the thread, all else for the event loop."""

    def __init__(self, files: WholeFiles) -> None:
        self._files = files
        self._todo: deque[_Fetched] = deque()
        self._under_way: set[_Fetched] = set()
        self._called = False
        self._ends = False

    def put(self, item: _Fetched) -> None:
        """Have a file fetched."""
        self._todo.append(item)
        self._call()

    def end(self) -> None:
        """Nothing more comes."""
        self._ends = True
        self._call()

    def left(self) -> list[_Fetched]:
        """What was not fetched, once the thread has ended."""
        return [*self._under_way, *self._todo]

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._files.wake()

    def run(self, landed: Callable[[list[_Fetched]], None], failed: Callable[[_Fetched], None]) -> None:
        """Fetch until it is to end.

        Args:
            landed: told what has come.
            failed: told of each file that has to be fetched in another way.
        """
        while True:
            self._called = False  # before a look at what is there: what comes later calls again
            while self._todo:
                item = self._todo.popleft()
                self._under_way.add(item)
                item.began_ns = time.monotonic_ns()
                self._files.start(item.file.path, item.file.size, item.file.version, item)
            if self._ends and not self._under_way and not self._todo:
                return
            good = []
            for tag, pieces in self._files.wait(_WAIT_S):
                assert isinstance(tag, _Fetched)
                self._under_way.discard(tag)
                if pieces is None:
                    failed(tag)
                else:
                    tag.take(pieces)
                    good.append(tag)
            if good:
                landed(good)

    def close(self) -> None:
        self._files.close()


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
        self._lanes: dict[UnderStore, _Lane | None] = {}
        self._single = threading.Semaphore(_SINGLE)
        self._outboxes: dict[tuple[str, str, int], _Outbox] = {}
        """By worker, dataset and hops: what goes into one request has these in common."""
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
            for lane in self._lanes.values():
                if lane is not None:
                    lane.end()
            self._lanes.clear()

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
        self._route(_Fetched(file, done))
        return True

    def _route(self, item: _Fetched) -> None:
        """Have it fetched in the way that is cheapest."""
        file = item.file
        worker = file.peers.first(file) if file.peers is not None else None
        if worker is not None and file.size:
            self._post(worker, item)
        elif file.size and (lane := self._lane(file.store)) is not None:
            item.straight = True
            lane.put(item)
        else:
            self._put(item)

    def _post(self, worker: str, item: _Fetched) -> None:
        """Have a worker be asked for it, with others."""
        item.posted = True
        file = item.file
        outbox = self._outboxes.setdefault((worker, file.asked_of or file.dataset, file.hops), _Outbox())
        outbox.items.append(item)
        if outbox.senders < _BATCHES:
            outbox.senders += 1
            self._nursery.start_soon(self._send_all, outbox)

    async def _send_all(self, outbox: _Outbox) -> None:
        token = trio.lowlevel.current_trio_token()
        try:
            await trio.lowlevel.checkpoint()  # others of the same moment come along
            while outbox.items:
                await trio.to_thread.run_sync(
                    self._read_batch, outbox.batch(), token, limiter=self._limiter, abandon_on_cancel=True
                )
        finally:
            outbox.senders -= 1

    def _read_batch(self, batch: list[_Fetched], token: trio.lowlevel.TrioToken) -> None:
        """In a thread: one request. What does not come by it is fetched by itself: that way knows what to do."""
        began_ns = time.monotonic_ns()
        left = dict(enumerate(batch))
        peers = batch[0].file.peers
        assert peers is not None
        try:
            for number, pieces in peers.read_many([item.file for item in batch]):
                item = left.pop(number)
                item.began_ns = began_ns
                item.take(pieces)
                self._landed.append(item)
                self._announce(token)
        except Exception:
            log.exception("many files of another worker at once: going on one by one")
        for item in left.values():
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._put, item)

    def _put(self, item: _Fetched) -> None:
        """Have a thread fetch it."""
        item.straight = False
        self._todo.put(item)
        if self._threads < min(self._under_way, MOST_AT_ONCE):
            self._threads += 1
            self._nursery.start_soon(self._run_thread)

    def _lane(self, store: UnderStore) -> _Lane | None:
        """The one of a store; None: it has no such way."""
        if store not in self._lanes:
            files = store.whole_files() if isinstance(store, ReadsMany) else None
            lane = self._lanes[store] = _Lane(files) if files is not None else None
            if lane is not None:
                self._nursery.start_soon(self._run_lane, store, lane)
        return self._lanes[store]

    async def _run_lane(self, store: UnderStore, lane: _Lane) -> None:
        token = trio.lowlevel.current_trio_token()

        def landed(items: list[_Fetched]) -> None:
            self._landed.extend(items)
            self._announce(token)

        def failed(item: _Fetched) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._put, item)

        def run() -> None:
            try:
                lane.run(landed, failed)
            except Exception:
                log.exception("many files of %s at once: going on one by one", store.url)
            finally:
                lane.close()

        try:
            await trio.to_thread.run_sync(run, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)
        except trio.Cancelled:
            lane.end()
            raise
        if self._lanes.get(store) is lane:
            self._lanes[store] = None  # it broke
        for item in lane.left():
            self._put(item)

    async def _run_thread(self) -> None:
        token = trio.lowlevel.current_trio_token()
        while self._users or self._under_way:
            await trio.to_thread.run_sync(self._work, token, limiter=self._limiter, abandon_on_cancel=True)
        self._threads -= 1

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        """In a thread: one file after another, until a sentinel says to look whether there are more to come."""
        while (item := self._todo.get()) is not None:
            item.began_ns = time.monotonic_ns()
            try:
                with self._single if item.posted else nullcontext():
                    item.take(fetch_pieces(item.file))
            except ForebayError as error:
                item.error = error
            except Exception as error:
                log.exception("a fetch failed")
                item.error = ForebayError(f"the fetch of {item.file.path!r} failed: {error!r}")
            self._landed.append(item)
            self._announce(token)

    def _announce(self, token: trio.lowlevel.TrioToken) -> None:
        """In a thread: something has landed."""
        if not self._writing:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._write_soon, idempotent=True)

    def _write_soon(self) -> None:
        if self._landed and not self._writing:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        """Write what has landed, until nothing has."""
        await trio.sleep(_GATHER_S)
        while self._landed:
            batch: list[_Fetched] = []
            size = 0
            while self._landed and size < _WRITE_BYTES:
                batch.append(self._landed.popleft())
                size += batch[-1].file.size
            self._write_batch(batch)
            await (trio.lowlevel.checkpoint() if size >= _WRITE_BYTES else trio.sleep(_GATHER_S))
        self._writing = False
        self._write_soon()  # a thread may have seen us at work

    def _write_batch(self, batch: list[_Fetched]) -> None:
        wholes = [
            Whole(item.file, item.pieces, item.checksum, item.error, item.took_ns, item.straight) for item in batch
        ]
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
