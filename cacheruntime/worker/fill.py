"""Filling the cache from under-stores: single flight per block, parallel ranged GETs, blocks usable as they arrive.

All state lives in the worker's event loop; threads fetch and write, and report each finished block to the loop.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import trio
import xxhash

from forebay.cacheruntime.config import MIB, FillConfig
from forebay.cacheruntime.errors import ForebayError, SourceStale, SourceTimeout, SourceUnavailable
from forebay.cacheruntime.index import BLOCK_BYTES, Cached, block_count
from forebay.cacheruntime.keys import ContentId, DatasetId, content_id
from forebay.cacheruntime.understore.base import UnderStore
from forebay.cacheruntime.worker.storage import PackPlace, Storage, write_all

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_DEMAND_SLOTS = 4
"""GETs that read-ahead leaves free for readers who wait now."""

_THROUGH_BYTES = 64 * MIB
"""Bytes that had no room in any tier stay in memory for a while: the reader's next request is next to this one."""


@dataclass(frozen=True)
class SourceFile:
    """One version of one file of an under-store."""

    dataset: DatasetId
    store: UnderStore
    path: str
    size: int
    version: str

    @property
    def content(self) -> ContentId:
        return content_id(self.store.url, self.path, self.size, self.version)


_AHEAD_COMMIT_BLOCKS = 4
"""Blocks that nobody waits for yet are recorded together: a wake-up of the loop and a transaction cost more than
hashing the block."""


class _Fetched(NamedTuple):
    """A whole block: in the tier file, or in `data` when it goes past the tiers."""

    number: int
    checksum: int
    data: bytes | None


@dataclass
class _Block:
    """A block on its way. One of `data` (no tier had room), `error` or neither (in the cache) is set with `done`."""

    done: trio.Event = field(default_factory=trio.Event)
    data: bytes | None = None
    error: ForebayError | None = None


@dataclass
class Traffic:
    """What came from under-stores for one dataset since the worker started."""

    gets: int = 0
    bytes: int = 0


class Filler:
    """Brings ranges of source files into the cache.

    Concurrency: used from one trio event loop; a block is fetched once however many ask for it.
    """

    def __init__(
        self,
        storage: Storage,
        config: FillConfig,
        nursery: trio.Nursery,
        idle: Callable[[DatasetId], float | None],
    ) -> None:
        """
        Args:
            storage: where bytes go.
            config: sizes and bounds.
            nursery: runs the fetches; they outlive the request that caused them.
            idle: see `Storage.make_room`.
        """
        self._storage = storage
        self._config = config
        self._nursery = nursery
        self._idle = idle
        self._flights: dict[ContentId, dict[int, _Block]] = {}
        self._through: OrderedDict[tuple[ContentId, int], bytes] = OrderedDict()
        self._through_bytes = 0
        self._threads = trio.CapacityLimiter(config.parallel_gets)
        self._ahead = trio.CapacityLimiter(max(1, config.parallel_gets - _DEMAND_SLOTS))
        self.traffic: dict[DatasetId, Traffic] = {}

    @property
    def window_bytes(self) -> int:
        """The widest window, in bytes."""
        return self._config.window_max_bytes

    async def fill(
        self,
        file: SourceFile,
        offset: int,
        length: int,
        window: int,
        *,
        background: bool = False,
        through: bool = True,
    ) -> bytes | None:
        """Have [offset, offset + length) of a file in the cache.

        Args:
            file: which; small ones are always fetched whole.
            offset, length: in bytes, cut off at the file's end.
            window: bytes from `offset` that are worth fetching along with it.
            background: do not wait.
            through: fetch also what no tier has room for, as a reader waits for the bytes.

        Returns:
            None when the bytes are in the index now; the bytes themselves when no tier had room (with `through`).

        Raises:
            SourceError: why they could not be had; SourceTimeout after the configured deadline.
        """
        end = min(offset + length, file.size)
        if offset >= end:
            return None
        if file.size < self._config.small_file_bytes:
            wanted, last = range(1), 0
        else:
            wanted = range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
            last = min(max(end, offset + window) - 1, file.size - 1) // BLOCK_BYTES
        content = file.content
        flights = self._start(file, content, wanted, last, through)
        if background:
            return None
        pieces: list[bytes] = []
        with trio.move_on_after(self._config.deadline_s) as deadline:
            for number in wanted:
                block = flights.get(number)
                if block is None:
                    continue
                await block.done.wait()
                if block.error is not None:
                    raise block.error
        if deadline.cancelled_caught:
            raise SourceTimeout(f"{file.store.url}: {file.path!r} did not arrive within {self._config.deadline_s:g} s")
        for number in wanted:
            block = flights.get(number)
            piece = block.data if block is not None else self._through.get((content, number))
            if piece is None:
                piece = b""
            pieces.append(piece)
        if not through or not any(pieces):
            return None
        if not all(pieces):
            return await self._mixed(file, content, offset, end, wanted, pieces)
        return b"".join(pieces)[offset - wanted[0] * BLOCK_BYTES : end - wanted[0] * BLOCK_BYTES]

    async def _mixed(
        self, file: SourceFile, content: ContentId, offset: int, end: int, wanted: range, pieces: list[bytes]
    ) -> bytes | None:
        """Some blocks of the range are cached and some had no room: put them together."""
        for position, number in enumerate(wanted):
            if pieces[position]:
                continue
            start = number * BLOCK_BYTES
            # Record and descriptor in one step: later the record may speak of another file of the same name.
            descriptor = self._storage.open_block(content, start, _block_bytes(file.size, number))
            if descriptor is None:
                return await self.fill(file, offset, end - offset, 0)  # evicted meanwhile
            try:
                size = _block_bytes(file.size, number)
                pieces[position] = await trio.to_thread.run_sync(os.pread, descriptor, size, start)
            finally:
                os.close(descriptor)
        base = wanted[0] * BLOCK_BYTES
        return b"".join(pieces)[offset - base : end - base]

    def _start(
        self, file: SourceFile, content: ContentId, wanted: range, last: int, through: bool
    ) -> dict[int, _Block]:
        """Start fetching what is neither cached nor on its way; returns the flights of this file. No checkpoint."""
        flights = self._flights.setdefault(content, {})
        cached = self._storage.find(content)
        missing = [
            number
            for number in range(wanted[0], last + 1)
            if number not in flights
            and not _has_block(cached, file.size, number)
            and (content, number) not in self._through
        ]
        if not missing:
            found = dict(flights)
            if not flights:
                del self._flights[content]
            return found
        if file.size < self._config.small_file_bytes:
            if not through and not self._storage.has_room(file.size):
                self._storage.make_room(self._config.window_max_bytes, self._idle)
                if not self._storage.has_room(file.size):
                    del self._flights[content]
                    return {}
            flights[0] = _Block()
            self._nursery.start_soon(self._fetch_small, file, content)
            return dict(flights)
        if cached is None:
            cached = self._storage.place_file(content, file.size, file.dataset)
            if cached is None:
                self._storage.make_room(min(file.size, self._config.window_max_bytes), self._idle)
                cached = self._storage.place_file(content, file.size, file.dataset)
        demanded = set(wanted)
        for run in _runs(missing, self._config.part_bytes // BLOCK_BYTES):
            fitting = self._reserve(file, cached, run)
            # Reading ahead into memory would only push out what is about to be read.
            rest = [number for number in run[fitting:] if through and number in demanded]
            for part, target in ((run[:fitting], cached), (rest, None)):
                for piece in _runs(part, len(part)):
                    for number in piece:
                        flights[number] = _Block()
                    is_demand = not demanded.isdisjoint(piece)
                    self._nursery.start_soon(self._fetch_part, file, content, piece, target, is_demand)
        found = dict(flights)
        if not flights:
            del self._flights[content]
        return found

    def _reserve(self, file: SourceFile, cached: Cached | None, run: list[int]) -> int:
        """Take room for as many blocks of a run, from its first, as there is room for; returns how many."""
        if cached is None:
            return 0
        tier = self._storage.tier(cached.tier)
        need = sum(_block_bytes(file.size, number) for number in run)
        if tier.room_bytes() < need:
            self._storage.make_room(need, self._idle, tier)
        room = tier.room_bytes()
        fitting = taken = 0
        for number in run:
            size = _block_bytes(file.size, number)
            if taken + size > room:
                break
            taken += size
            fitting += 1
        tier.take(taken)
        return fitting

    async def _fetch_part(
        self, file: SourceFile, content: ContentId, run: list[int], cached: Cached | None, is_demand: bool
    ) -> None:
        """Fetch one run of blocks into the tier file of `cached`, or into memory when that is None."""
        token = trio.lowlevel.current_trio_token()
        left = set(run)
        error: ForebayError | None = None
        disk: OSError | None = None

        def blocks_done(inode: int, done: list[_Fetched]) -> None:
            checksums = {block.number: block.checksum for block in done}
            if cached is None or self._storage.commit_blocks(content, cached, inode, checksums):
                for block in done:
                    left.discard(block.number)
                    self._finish_block(content, block.number, block.data)

        def work() -> None:
            descriptor = self._storage.open_file(content, cached) if cached is not None else None
            inode = os.fstat(descriptor).st_ino if descriptor is not None else 0
            done: list[_Fetched] = []
            try:
                for block in _fetch_blocks(file, run, descriptor):
                    done.append(block)
                    if len(done) >= (1 if is_demand else _AHEAD_COMMIT_BLOCKS):
                        token.run_sync_soon(blocks_done, inode, done)
                        done = []
            finally:
                token.run_sync_soon(blocks_done, inode, done)  # also what came before a fault
                if descriptor is not None:
                    # In the loop, behind blocks_done: while it is open no other file can have its inode number.
                    token.run_sync_soon(os.close, descriptor)

        try:
            await self._in_thread(work, is_demand)
        except OSError as failure:
            disk = failure
        except ForebayError as failure:
            error = failure
        # The thread's end was queued behind its blocks_done calls, so all of them have run.
        self._count(file, sum(_block_bytes(file.size, number) for number in run if number not in left))
        if cached is not None:
            unused = sum(_block_bytes(file.size, number) for number in left)
            self._storage.tier(cached.tier).give_back(unused)
        if left and error is None and cached is not None:
            if isinstance(disk, FileNotFoundError) or disk is None:
                self._storage.drop_file(content)  # its tier file was removed under us
            else:
                self._storage.write_failed(self._storage.tier(cached.tier), disk)
            for rest in _runs(sorted(left), len(left)):
                await self._fetch_part(file, content, rest, None, is_demand)
            return
        self._give_up(content, left, error)

    def _finish_block(self, content: ContentId, number: int, data: bytes | None) -> None:
        block = self._land(content, number)
        if data is not None:
            self._keep_through(content, number, data)
        if block is not None:
            block.data = data
            block.done.set()

    def _give_up(self, content: ContentId, left: set[int], error: ForebayError | None) -> None:
        for number in left:
            block = self._land(content, number)
            if block is not None:
                block.error = error or SourceUnavailable("the fetch ended before the block was whole")
                block.done.set()

    def _land(self, content: ContentId, number: int) -> _Block | None:
        flights = self._flights.get(content)
        if flights is None:
            return None
        block = flights.pop(number, None)
        if not flights:
            del self._flights[content]
        return block

    async def _fetch_small(self, file: SourceFile, content: ContentId) -> None:
        """Fetch a small file whole and append it to its dataset's pack."""
        error: ForebayError | None = None
        data = b""
        try:
            data = await self._in_thread(partial(_fetch_whole, file), True)
        except ForebayError as failure:
            error = failure
        if error is not None:
            self._give_up(content, {0}, error)
            return
        self._count(file, len(data))
        stored = self._append(file, content, data)
        block = self._land(content, 0)
        if not stored:
            self._keep_through(content, 0, data)
        if block is not None:
            block.data = None if stored else data
            block.done.set()

    def _append(self, file: SourceFile, content: ContentId, data: bytes) -> bool:
        place = self._storage.place_packed(file.dataset, len(data))
        if place is None:
            self._storage.make_room(self._config.window_max_bytes, self._idle)
            place = self._storage.place_packed(file.dataset, len(data))
        if place is None:
            return False
        return self._write_packed(place, content, data)

    def _write_packed(self, place: PackPlace, content: ContentId, data: bytes) -> bool:
        try:
            # Into the page cache, without a thread: a copy of less than 1 MiB is shorter than the way there and back.
            write_all(place.descriptor, memoryview(data), place.offset)
        except OSError as error:
            place.tier.give_back(place.size)
            self._storage.write_failed(place.tier, error)
            return False
        finally:
            os.close(place.descriptor)
        self._storage.index.add_packed(content, place.size, place.pack, place.offset, xxhash.xxh3_64_intdigest(data))
        return True

    async def _in_thread(self, work: Callable[[], _T], is_demand: bool) -> _T:
        if is_demand:
            return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)
        async with self._ahead:
            return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)

    def _keep_through(self, content: ContentId, number: int, data: bytes) -> None:
        self._through[content, number] = data
        self._through_bytes += len(data)
        while self._through_bytes > _THROUGH_BYTES:
            _, dropped = self._through.popitem(last=False)
            self._through_bytes -= len(dropped)

    def _count(self, file: SourceFile, size: int) -> None:
        traffic = self.traffic.setdefault(file.dataset, Traffic())
        traffic.gets += 1
        traffic.bytes += size


def _has_block(cached: Cached | None, size: int, number: int) -> bool:
    start = number * BLOCK_BYTES
    return cached is not None and cached.has(start, min(start + BLOCK_BYTES, size))


def _block_bytes(size: int, number: int) -> int:
    return min(BLOCK_BYTES, size - number * BLOCK_BYTES)


def _runs(numbers: list[int], longest: int) -> Iterator[list[int]]:
    """Consecutive runs of at most `longest` numbers."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or len(run) >= longest):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _fetch_whole(file: SourceFile) -> bytes:
    pieces = [bytes(piece) for piece in file.store.read_range(file.path, 0, file.size, file.version)]
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(data) != file.size:
        raise SourceStale(f"{file.store.url}: {file.path!r} has {len(data)} bytes, listed were {file.size}")
    return data


def _fetch_blocks(file: SourceFile, run: list[int], descriptor: int | None) -> Iterator[_Fetched]:
    """Stream a run of blocks to a descriptor, or to memory without one; runs in a thread.

    Yields:
        Each block when it is whole. From a store that cannot pin a version, nothing before the read has ended well.

    Raises:
        ForebayError: from the store. OSError: from writing.
    """
    start = run[0] * BLOCK_BYTES
    length = min((run[-1] + 1) * BLOCK_BYTES, file.size) - start
    assert run[-1] < block_count(file.size)
    held: list[_Fetched] = []
    number, filled = run[0], 0
    # Whole aligned blocks make large folios in the page cache, where the pieces of a store would make small ones: these
    # cost a reader of 4 KiB a quarter of its rate. It is also one write and one hash instead of two or three.
    block = memoryview(bytearray(BLOCK_BYTES))
    for piece in file.store.read_range(file.path, start, length, file.version):
        view = memoryview(piece)
        while view and number <= run[-1]:
            size = _block_bytes(file.size, number)
            part = view[: size - filled]
            view = view[len(part) :]
            block[filled : filled + len(part)] = part
            filled += len(part)
            if filled == size:
                whole = block[:size]
                if descriptor is not None:
                    write_all(descriptor, whole, number * BLOCK_BYTES)
                data = bytes(whole) if descriptor is None else None
                done = _Fetched(number, xxhash.xxh3_64_intdigest(whole), data)
                if file.store.pins_version:
                    yield done
                else:
                    held.append(done)
                number, filled = number + 1, 0
    if number <= run[-1]:
        raise SourceStale(f"{file.store.url}: {file.path!r} is shorter than listed ({file.size} bytes)")
    yield from held
