"""Filling the cache from under-stores: no byte is fetched twice, parallel ranged GETs, blocks usable as they arrive.

All state lives in the worker's event loop; threads fetch and write (`fetch.py`), and report each finished block to the
loop. What is fetched next is `fetch_queue.py`'s to say, how much memory it may take is `memory.py`'s. What is left here
is one state machine over blocks, and pieces of blocks, on their way; it is longer than most modules because each way
out of a fetch (in the tier, past it, failed, evicted under it) changes the same few maps.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from forebay.cacheruntime import tracing
from forebay.cacheruntime.blocks import (
    BLOCK_BYTES,
    LEAST_BYTES,
    Span,
    around,
    block_bytes,
    block_span,
    blocks_of,
    mask_of,
    spans_of,
)
from forebay.cacheruntime.cluster.placement import slice_of
from forebay.cacheruntime.config import FillConfig, Medium
from forebay.cacheruntime.errors import ForebayError, SourceTimeout, SourceUnavailable
from forebay.cacheruntime.histogram import Histogram
from forebay.cacheruntime.index import Cached
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.fetch import Fetched, SourceFile, fetch_spans, fetch_whole
from forebay.cacheruntime.worker.fetch_queue import FetchQueue, Part
from forebay.cacheruntime.worker.memory import REPLY_COPIES, Lease, MemoryBudget, machine_budget, shares
from forebay.cacheruntime.worker.storage import Storage, Target, checksum_of
from forebay.cacheruntime.worker.through import KeptBlocks
from forebay.cacheruntime.worker.verify import Verifier
from forebay.cacheruntime.worker.writes import ChangedOutside

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_DEMAND_SLOTS = 4
"""GETs that read-ahead leaves free for readers who wait now."""

_PART_MIN_BLOCKS = 2
"""Of a window that is spread over several GETs: below this the requests cost more than they bring."""

_THROUGH_BLOCKS = 8
"""Blocks that one reply carries at most when no tier has room for them; who asked for more asks again."""


@dataclass
class _Flight:
    """A block, or pieces of one, on the way. One of `data` (no tier had room), `error` or neither (in the cache) is set
    with `done`."""

    span: Span
    part: Part
    """What brings it."""
    done: trio.Event = field(default_factory=trio.Event)
    waiters: int = 0
    data: bytes | None = None
    error: ForebayError | None = None
    mask: int = field(init=False)
    """Of its pieces."""

    def __post_init__(self) -> None:
        self.mask = self.span.mask


@dataclass(frozen=True)
class _Want:
    """What one request asks for."""

    file: SourceFile
    content: ContentId
    offset: int
    end: int
    start: int
    stop: int
    """What is fetched for that: [start, stop), of whole blocks or pieces."""
    reach: int
    """Up to where it is worth fetching."""
    medium: Medium | None
    """Only into a tier of this."""

    @property
    def target(self) -> Target:
        return _target(self.file, self.start, self.medium)

    @property
    def size(self) -> int:
        """Of what is fetched for the request."""
        return self.stop - self.start

    def blocks(self) -> range:
        """That are touched by what is fetched for the request."""
        return blocks_of(self.start, self.stop)

    def mask(self, number: int) -> int:
        """What of a block is fetched for the request."""
        return mask_of(number, self.start, self.stop)

    def cut(self, most: int) -> "_Want":
        """Only the first blocks, and nothing beyond them."""
        stop = min(self.stop, (self.start // BLOCK_BYTES + most) * BLOCK_BYTES)
        return replace(self, end=min(self.end, stop), stop=stop, reach=stop)


class _Landed(NamedTuple):
    """What a fetch thread reports: some bytes, with the last of them, or without, the descriptor to close."""

    part: Part
    inode: int
    block: Fetched | None
    descriptor: int | None


class Whole(NamedTuple):
    """A small file that `SmallFiles` has fetched, or could not."""

    file: SourceFile
    pieces: list[memoryview]
    """All its bytes; none with an error."""
    checksum: int
    error: ForebayError | None
    took_ns: int
    straight: bool
    """From its store, past the other workers of the cluster."""


@dataclass
class Traffic:
    """What came from under-stores for one dataset since the worker started."""

    gets: int = 0
    bytes: int = 0
    errors: int = 0
    peer_reads: int = 0
    peer_bytes: int = 0
    """From other workers."""
    get_times: Histogram = field(default_factory=Histogram)
    """From the start of a GET to its last byte; with tries again."""
    queue_times: Histogram = field(default_factory=Histogram)
    """That fetches waited for a slot."""


class Filler:
    """Brings ranges of source files into the cache.

    Concurrency: used from one trio event loop; a byte is fetched once however many ask for it.
    """

    def __init__(self, storage: Storage, config: FillConfig, nursery: trio.Nursery) -> None:
        """
        Args:
            storage: where bytes go.
            config: sizes and bounds.
            nursery: runs the fetches; they outlive the request that caused them.
        """
        self._storage = storage
        self._config = config
        self._nursery = nursery
        self.verifier = Verifier(storage, nursery)
        self._flights: dict[ContentId, dict[int, list[_Flight]]] = {}
        """By block; those of one block do not overlap."""
        share = shares(config.memory_bytes or machine_budget(), config)
        self.bulk_bytes = share.bulk_bytes
        """Of small files that `SmallFiles` may have under way."""
        self._kept = KeptBlocks(share.through_bytes)
        self._replies = MemoryBudget(share.reply_bytes)
        self._queue = FetchQueue(share.gets, _DEMAND_SLOTS)
        self._threads = trio.CapacityLimiter(self._queue.most)
        self._landed: deque[_Landed] = deque()
        self.traffic: dict[DatasetId, Traffic] = {}

    @property
    def window_bytes(self) -> int:
        """The widest window, in bytes."""
        return self._config.window_max_bytes

    def is_small(self, size: int) -> bool:
        """Whether files of that size, in bytes, are fetched whole and live in packs."""
        return size < self._config.small_file_bytes

    def lease(self) -> Lease:
        """For one `fill` whose reply outlives it; the caller releases it when the reply is sent."""
        return Lease(self._replies)

    async def fill(
        self,
        file: SourceFile,
        offset: int,
        length: int,
        window: int,
        *,
        background: bool = False,
        through: bool = True,
        lease: Lease | None = None,
        medium: Medium | None = None,
    ) -> bytes | None:
        """Have [offset, offset + length) of a file in the cache.

        Args:
            file: which; small ones are always fetched whole.
            offset, length: in bytes, cut off at the file's end.
            window: bytes from `offset` that are worth fetching along with it, in whole blocks. Where that is no more
                than `length` and a reader waits, he is one who reads here and there: only pieces are fetched.
            background: do not wait.
            through: fetch also what no tier has room for, as a reader waits for the bytes.
            lease: holds memory for the reply as long as the caller says; without it, until this returns.
            medium: of the tier that it is to come into, if it is not cached; None for the fastest with room.

        Returns:
            None when the bytes are in the index now; the bytes themselves when no tier had room (with `through`) or
            their file is in doubt and still being verified, or the first 8 blocks of them when they are more.

        Raises:
            SourceError: why they could not be had; SourceTimeout after the configured deadline.
        """
        end = min(offset + length, file.size)
        if offset >= end:
            return None
        here_and_there = window <= length and through and not background
        want = self._want(file, offset, end, 0 if here_and_there else max(window, length), medium)
        doubtful = self.verifier.doubtful(want.content)
        if background:
            if doubtful is not None:
                self.verifier.verify_soon(want.content)
                return None
            # With readers queueing for memory, what is read ahead into it would be pushed out before it is read.
            self._start(want, into_memory=not self._replies.is_short, demand=False)
            return None
        held = lease or self.lease()
        try:
            with trio.move_on_after(self._config.deadline_s) as deadline:
                if doubtful is not None:
                    verified = await self._believe(want, doubtful, held)
                    if verified is not None:
                        return verified
                if through:
                    return await self._bring(want, held)
                self._start(want, into_memory=False, demand=False)
                await self._wait_landed(self._under_way(want))
                return None
        finally:
            if lease is None:
                held.release()
        assert deadline.cancelled_caught
        raise SourceTimeout(f"{file.store.url}: {file.path!r} did not arrive within {self._config.deadline_s:g} s")

    @contextmanager
    def traced(self, file: SourceFile, offset: int, length: int, parent: str) -> Iterator[None]:
        """The span of one `fill`; it says where its bytes come from, as far as that is known when it begins."""
        if not parent or not tracing.is_on():
            yield
            return
        cached = self._storage.find(file.content)
        source = "peer" if file.is_relayed(offset) else "store"
        if cached is not None and cached.has(offset, min(offset + length, file.size)):
            source = "tier"
        with tracing.span(
            "forebay.fill", "SERVER", parent, dataset=file.dataset, path=file.path, source=source,
            offset=offset, length=length,
        ):  # fmt: skip
            yield

    def _want(self, file: SourceFile, offset: int, end: int, window: int, medium: Medium | None) -> _Want:
        """`window` 0: only for the request."""
        size = file.size
        if self._is_small(file):
            return _Want(file, file.content, offset, end, 0, size, size, medium)
        start, stop = around(offset, end, size)
        if not window and (end - offset >= LEAST_BYTES or not self._is_touched(file.content, start, stop)):
            return _Want(file, file.content, offset, end, start, stop, stop, medium)
        touched, reached = blocks_of(offset, end), blocks_of(offset, min(max(end, offset + window), size))
        start, stop = block_span(size, touched[0]).start, block_span(size, touched[-1]).end
        return _Want(file, file.content, offset, end, start, stop, block_span(size, reached[-1]).end, medium)

    def _is_touched(self, content: ContentId, start: int, end: int) -> bool:
        """Whether others than these pieces of their blocks were taken before. The second small read in a block brings
        all of it: it is GETs that cost then."""
        reader, flights = self._storage.index.reader, self._flights.get(content, {})
        cached = reader.find(content)
        for number in blocks_of(start, end):
            taken = 0
            for flight in flights.get(number, ()):
                taken |= flight.mask
            if cached is not None and cached.partial_bytes and (pieces := reader.pieces(content, number)) is not None:
                taken |= pieces.mask
            if taken and mask_of(number, start, end) & ~taken:
                return True
        return False

    async def _believe(self, want: _Want, doubtful: Cached, lease: Lease) -> bytes | None:
        """A file whose bytes are in doubt: verified, or gone, when this returns None."""
        few = want.cut(_THROUGH_BLOCKS)
        await lease.hold(REPLY_COPIES * sum(block_bytes(want.file.size, number) for number in few.blocks()))
        return await self.verifier.believe(want.content, doubtful, few.offset, few.end)

    async def _bring(self, want: _Want, lease: Lease) -> bytes | None:
        """The rest of `fill` for a reader who waits."""
        self._start(want, into_memory=False, demand=True)
        if not all(self._is_coming(want, number) for number in want.blocks()):
            # Bytes that go through the reply take memory: first that, then the GETs.
            want = want.cut(_THROUGH_BLOCKS)
            await lease.hold(REPLY_COPIES * want.size)
            self._start(want, into_memory=True, demand=True)
        flights = self._under_way(want)
        kept = [self._kept.get(want.content, number) for number in want.blocks()]  # now: others may push them out
        await self._wait_landed(flights)
        through = [(flight.span, flight.data) for flight in flights if flight.data is not None]
        through += [known for known in kept if known is not None]
        through = sorted(known for known in through if known[0].start < want.end and known[0].end > want.offset)
        if not through:
            return None
        want = want.cut(_THROUGH_BLOCKS)  # a tier may have failed meanwhile
        await lease.hold(REPLY_COPIES * want.size)
        return await self._together(want, through, lease)

    def _under_way(self, want: _Want) -> list[_Flight]:
        """What brings the bytes of a request."""
        flights = self._flights.get(want.content, {})
        return [
            flight for number in want.blocks() for flight in flights.get(number, ()) if flight.mask & want.mask(number)
        ]

    async def _wait_landed(self, flights: list[_Flight]) -> None:
        """Raises: ForebayError, of the first flight that has one."""
        for flight in flights:
            flight.waiters += 1
        try:
            for flight in flights:
                await flight.done.wait()
                if flight.error is not None:
                    raise flight.error
        finally:
            for flight in flights:
                flight.waiters -= 1

    def _is_coming(self, want: _Want, number: int) -> bool:
        """Whether what is wanted of a block is in the index or on its way to it, after `_start`."""
        mask, small = want.mask(number), self._is_small(want.file)
        for flight in self._flights.get(want.content, {}).get(number, ()):
            if flight.part.target is not None or small:
                mask &= ~flight.mask
        if not mask:
            return True
        cached = self._storage.find(want.content)
        return cached is not None and not self._storage.index.reader.missing(want.content, cached, number, mask)

    def _is_small(self, file: SourceFile) -> bool:
        return self.is_small(file.size)

    async def _together(self, want: _Want, through: list[tuple[Span, bytes]], lease: Lease) -> bytes | None:
        """The bytes of a request, of which some came through memory and the others are cached."""
        found, at = [], want.offset
        for span, data in [*through, (Span(want.end, want.end), b"")]:
            start, end = min(span.start, want.end), min(span.end, want.end)
            if start > at:
                cached = await self._cached_bytes(want.content, at, start)
                if cached is None:
                    return await self.fill(want.file, want.offset, want.end - want.offset, 0, lease=lease)  # evicted
                found.append(cached)
                at = start
            if end > at:
                found.append(data[at - span.start : end - span.start])
                at = end
        return found[0] if len(found) == 1 else b"".join(found)

    async def _cached_bytes(self, content: ContentId, start: int, end: int) -> bytes | None:
        # Record and descriptor in one step: later the record may speak of another file of the same name.
        descriptor = self._storage.open_block(content, start, end - start)
        if descriptor is None:
            return None
        try:
            return await trio.to_thread.run_sync(os.pread, descriptor, end - start, start)
        finally:
            os.close(descriptor)

    def _start(self, want: _Want, *, into_memory: bool, demand: bool) -> None:
        """Start fetching what is neither cached nor on its way. No checkpoint.

        Args:
            want: what is wanted.
            into_memory: also what is wanted for the request and no tier has room for.
            demand: a reader waits.
        """
        content = want.content
        cached = self._storage.find(content)
        missing = self._missing(want, cached, demand)
        if cached is not None and cached.partial_bytes and self._is_damaged(content, missing):
            self._storage.found_wrong(content)
            cached = self._storage.find(content)
            missing = self._missing(want, cached, demand)
        if missing and self._is_small(want.file):
            if into_memory or self._storage.has_room(want.target):
                self._launch(want, [Span(0, want.file.size)], None, demand)
        elif missing:
            self._start_spans(want, cached, missing, into_memory, demand)
        elif cached is None and not demand and not into_memory and content not in self._flights:
            self._place_kept(want)
        self._pump()

    def _missing(self, want: _Want, cached: Cached | None, demand: bool) -> list[Span]:
        """What is to be fetched; with `demand`, what a reader waits for goes before read-ahead from now on."""
        content, size = want.content, want.file.size
        reader, flights = self._storage.index.reader, self._flights.get(content, {})
        missing: list[Span] = []
        numbers, whole = blocks_of(want.start, want.reach), mask_of(0, 0, BLOCK_BYTES)
        for number in numbers:  # windows are wide, and each request looks at all of one
            under_way = flights.get(number, ())
            if not under_way and cached is not None and cached.has_block(number):
                continue
            mask = whole
            if number == numbers[0] or number == numbers[-1]:
                mask = mask_of(number, want.start, want.reach)
            for flight in under_way:
                if demand and not flight.part.demand and flight.mask & want.mask(number):
                    self._queue.promote(flight.part)
                mask &= ~flight.mask
            if not mask:
                continue
            if cached is not None:
                mask = reader.missing(content, cached, number, mask)
            kept = self._kept.get(content, number)
            if kept is not None:
                mask &= ~kept[0].mask
            missing += spans_of(size, number, mask)
        return missing

    def _is_damaged(self, content: ContentId, missing: list[Span]) -> bool:
        """Whether it is only for a damaged record that something is missing."""
        reader = self._storage.index.reader
        return any(reader.are_pieces_damaged(content, number) for number in {span.block for span in missing})

    def _start_spans(
        self, want: _Want, cached: Cached | None, missing: list[Span], into_memory: bool, demand: bool
    ) -> None:
        if cached is None:
            cached = self._storage.place_file(want.target)
        elif not self._storage.begin_writing(want.content, cached):
            cached = None
        longest = self._part_blocks(len(missing))
        for run in _runs(missing, longest):
            sizes = [span.size for span in run]
            fitting = 0
            if cached is not None:
                replica = want.file.is_replica(run[0].start)
                fitting = self._storage.reserve(want.content, cached, sizes, replica=replica)
            # More than was asked for would only push out of memory what is about to be read.
            rest = [span for span in run[fitting:] if into_memory and span.start < want.stop]
            if not demand:
                rest = rest[: self._kept.room_ahead_blocks()]
            for part, target in ((run[:fitting], cached), (rest, None)):
                if part:
                    self._launch(want, part, target, demand and part[0].start < want.stop)
        if want.content not in self._flights:
            self._storage.settle(want.content)  # there was no room for any of it

    def _place_kept(self, want: _Want) -> None:
        """A small file that found no room when it was read may find it now that it is fetched ahead."""
        kept = self._kept.get(want.content, 0) if self._is_small(want.file) else None
        if kept is not None and self._storage.keep_small(want.target, kept[1], checksum_of(kept[1])):
            self._kept.drop(want.content, 0)

    def _part_blocks(self, blocks: int) -> int:
        """Blocks to a GET: few while there are free slots, as round trips are what costs then; many when all are
        taken, as requests cost too."""
        spread = -(-blocks // max(1, self._queue.free))
        return min(max(_PART_MIN_BLOCKS, spread), self._config.part_bytes // BLOCK_BYTES)

    def _launch(self, want: _Want, run: list[Span], target: Cached | None, demand: bool) -> None:
        part = Part(want.file, want.content, run, target, demand, want.medium)
        self._kept.begins(part)
        flights = self._flights.setdefault(want.content, {})
        for span in run:
            flights.setdefault(span.block, []).append(_Flight(span, part))
        self._queue.push(part)

    def _pump(self) -> None:
        while (part := self._queue.start_next()) is not None:
            self._traffic_of(part.file).queue_times.add(time.monotonic_ns() - part.queued_ns)
            self._nursery.start_soon(self._fetch_small if self._is_small(part.file) else self._fetch_part, part)

    async def _fetch_part(self, part: Part) -> None:
        """Fetch one run of blocks or pieces into its tier file, or into memory."""
        error: ForebayError | None = None
        disk: OSError | None = None
        began = time.monotonic_ns()
        try:
            fetch = partial(self._fetch, part, trio.lowlevel.current_trio_token())
            with tracing.span("forebay.fetch", parent=part.trace, blocks=len(part.run)):
                await self._in_thread(fetch)
        except OSError as failure:
            disk = failure
        except ForebayError as failure:
            error = failure
        finally:
            self._queue.ended(part)
            self._kept.ended(part)
        self._collect()  # what the thread reported last
        left = sum(span.size for span in part.left)
        got = sum(span.size for span in part.run) - left
        self._count(part.file, got, time.monotonic_ns() - began, failed=error is not None)
        if part.target is not None:
            self._storage.give_back(part.target, left)
        if part.left and error is None and part.target is not None:
            if isinstance(disk, FileNotFoundError | ChangedOutside) or disk is None:
                self._storage.drop_file(part.content)  # its tier file was removed, or changed, under us
            if disk is not None:
                self._storage.write_failed(self._storage.tier(part.target.tier), disk)
            self._fetch_past_tier(part)
        else:
            self._give_up(part.content, part.left, error)
        if part.target is not None and part.content not in self._flights:
            self._storage.settle(part.content)
        self._pump()

    def _fetch(self, part: Part, token: trio.lowlevel.TrioToken) -> None:
        """In a thread. What is done goes to the loop by way of `_landed`; one wake-up collects all there is."""
        descriptor = self._storage.open_file(part.content, part.target) if part.target is not None else None
        inode = os.fstat(descriptor).st_ino if descriptor is not None else 0
        write = partial(self._storage.writes.write, part.content, descriptor) if descriptor is not None else None
        try:
            # The loop closes the descriptor, behind the blocks: while it is open no other file can have its inode
            # number. With the last block, as a file that is there whole may be evicted, and gives its room back then.
            for block in fetch_spans(part.file, part.run, write):
                last, descriptor = (descriptor, None) if block.span == part.run[-1] else (None, descriptor)
                self._landed.append(_Landed(part, inode, block, last))
                token.run_sync_soon(self._collect, idempotent=True)
        finally:
            if descriptor is not None:
                self._landed.append(_Landed(part, inode, None, descriptor))
                token.run_sync_soon(self._collect, idempotent=True)

    def _collect(self) -> None:
        """Record what threads have reported, one transaction for each file."""
        groups: dict[tuple[ContentId, int], list[_Landed]] = {}
        finished: list[int] = []
        while self._landed:
            landed = self._landed.popleft()
            if landed.descriptor is not None:
                finished.append(landed.descriptor)
            if landed.block is not None:
                groups.setdefault((landed.part.content, landed.inode), []).append(landed)
        for (content, inode), group in groups.items():
            target = group[0].part.target
            sums = {landed.block.span: landed.block.sums for landed in group if landed.block is not None}
            if target is None or self._storage.commit_spans(content, target, inode, sums):
                for landed in group:
                    if landed.block is not None:
                        landed.part.left.discard(landed.block.span)
                        self._finish(content, landed.block.span, landed.block.data)
        for descriptor in finished:
            os.close(descriptor)

    def _fetch_past_tier(self, part: Part) -> None:
        """The tier did not take a part: who waits for a block of it gets it through memory, the rest is left."""
        waited = []
        for span in sorted(part.left):
            flight = self._flight(part.content, span)
            if flight is not None and flight.waiters:
                waited.append(flight)
            elif flight is not None:
                self._land(part.content, span)
                flight.done.set()
        for run in _runs([flight.span for flight in waited], len(waited)):
            again = Part(part.file, part.content, run, None, True)
            for flight in waited:
                if flight.span in again.left:
                    flight.part = again
            self._queue.push(again)

    def _finish(self, content: ContentId, span: Span, data: bytes | None) -> None:
        flight = self._land(content, span)
        if data is not None:
            self._kept.keep(content, span, data)
        if flight is not None:
            flight.data = data
            flight.done.set()

    def _give_up(self, content: ContentId, left: set[Span], error: ForebayError | None) -> None:
        for span in left:
            flight = self._land(content, span)
            if flight is not None:
                flight.error = error or SourceUnavailable("the fetch ended before the block was whole")
                flight.done.set()

    def _flight(self, content: ContentId, span: Span) -> _Flight | None:
        flights = self._flights.get(content, {}).get(span.block, ())
        return next((flight for flight in flights if flight.span == span), None)

    def _land(self, content: ContentId, span: Span) -> _Flight | None:
        flight = self._flight(content, span)
        if flight is not None:
            flights = self._flights[content]
            flights[span.block].remove(flight)
            if not flights[span.block]:
                del flights[span.block]
            if not flights:
                del self._flights[content]
        return flight

    async def _fetch_small(self, part: Part) -> None:
        """Fetch a small file whole and append it to its dataset's pack."""
        file, content = part.file, part.content
        error: ForebayError | None = None
        data = b""
        began = time.monotonic_ns()
        try:
            with tracing.span("forebay.fetch", parent=part.trace, blocks=1):
                data = await self._in_thread(partial(fetch_whole, file))
        except ForebayError as failure:
            error = failure
        finally:
            self._queue.ended(part)
        self._count(file, len(data), time.monotonic_ns() - began, failed=error is not None)
        if error is not None:
            self._give_up(content, set(part.run), error)
        else:
            kept = self._storage.keep_small(_target(part.file, 0, part.medium), data, checksum_of(data))
            self._finish(content, part.run[0], None if kept else data)
        self._pump()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)

    # For `SmallFiles`

    def begin_whole(self, file: SourceFile, medium: Medium | None) -> bool:
        """Take note that a small file is on its way by other hands, until `end_wholes`.

        False: it is cached or on its way already, or there is no room for it.
        """
        part = Part(file, file.content, [Span(0, file.size)], None, False, medium)
        if part.content in self._flights or self._storage.find(part.content) is not None:
            return False
        if not self._storage.has_room(_target(part.file, 0, part.medium)):
            return False
        self._flights[part.content] = {0: [_Flight(part.run[0], part)]}
        return True

    def end_wholes(self, wholes: list[Whole]) -> list[bool]:
        """Put small files into packs, many with one write and one transaction; who waits is told. No checkpoint.

        Returns:
            For each whether it is in the cache now.
        """
        good = []
        for whole in wholes:
            failed = whole.error is not None
            size = 0 if failed else whole.file.size
            self._count(whole.file, size, whole.took_ns, failed=failed, straight=whole.straight)
            if whole.error is not None:
                self._give_up(whole.file.content, {Span(0, whole.file.size)}, whole.error)
            else:
                good.append(whole)
        parts = [self._flights[whole.file.content][0][0].part for whole in good]
        kept = self._storage.keep_small_files(
            [
                (_target(part.file, 0, part.medium), whole.pieces, whole.checksum)
                for part, whole in zip(parts, good, strict=True)
            ]
        )
        for whole, is_kept in zip(good, kept, strict=True):
            self._finish(whole.file.content, Span(0, whole.file.size), None if is_kept else b"".join(whole.pieces))
        cached = {id(whole) for whole, is_kept in zip(good, kept, strict=True) if is_kept}
        return [id(whole) in cached for whole in wholes]

    def waits_for_peer(self, content: ContentId, start: int, end: int, hops: int) -> bool:
        """Whether some of [start, end) is on its way by a worker that may be waiting for this one.

        Args:
            content: of the file.
            start: of the bytes that are waited for.
            end: of them.
            hops: of the request that wants to wait (`cluster/routing.py`).
        """
        flights = self._flights.get(content, {})
        parts = {id(flight.part): flight.part for number in blocks_of(start, end) for flight in flights.get(number, ())}
        return any(part.hops is not None and part.hops < hops for part in parts.values())

    def _count(self, file: SourceFile, size: int, took_ns: int, *, failed: bool, straight: bool = False) -> None:
        if file.peers is not None and not straight:
            for taken in file.peers.drain_taken():
                self._count_one(taken.dataset, taken.bytes, taken.took_ns, taken.failed, taken.peer is not None)
        else:
            self._count_one(file.dataset, size, took_ns, failed, False)

    def _count_one(self, dataset: DatasetId, size: int, took_ns: int, failed: bool, from_peer: bool) -> None:
        traffic = self.traffic.setdefault(dataset, Traffic())
        if from_peer:
            traffic.peer_reads += 1
            traffic.peer_bytes += size
            return
        traffic.gets += 1
        traffic.bytes += size
        traffic.errors += failed
        traffic.get_times.add(took_ns)

    def _traffic_of(self, file: SourceFile) -> Traffic:
        return self.traffic.setdefault(file.dataset, Traffic())


def _runs(spans: list[Span], longest: int) -> Iterator[list[Span]]:
    """Runs of at most `longest` spans that follow one another. Each is of one slice: others may own the next."""
    run: list[Span] = []
    for span in spans:
        if run and (span.start != run[-1].end or len(run) >= longest or slice_of(span.start) != slice_of(run[0].start)):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _target(file: SourceFile, offset: int, medium: Medium | None) -> Target:
    path = os.fsencode(file.dataset_path or file.path)
    return Target(file.content, file.size, file.dataset, path, medium, file.is_replica(offset))
