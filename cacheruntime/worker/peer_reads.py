"""What a worker answers when another node wants bytes: out of its tiers, or out of the source when asked to fetch.

A request is answered in a thread of its transport (`peer_server.py`): what is cached without a word to the event loop,
the rest by the filler, block after block as they come. Nothing here forwards a request to another worker; what the
filler itself may ask of others is said in `cluster/peer_source.py`.
"""

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import trio
import xxhash

from forebay.cacheruntime import rpc, tracing
from forebay.cacheruntime.blocks import BLOCK_BYTES, PIECE_BYTES, SUM_BYTES, blocks_of
from forebay.cacheruntime.cluster.certs import Identity
from forebay.cacheruntime.cluster.limits import ClientLimit, Share
from forebay.cacheruntime.cluster.peer_wire import KEEP_ALIVE_S
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.errors import ForebayError, LimitReached, UsageError, WorkerUnavailable
from forebay.cacheruntime.index import Cached, Index
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.touch import TouchMap
from forebay.cacheruntime.worker.memory import Lease
from forebay.cacheruntime.worker.verify import read_verified
from forebay.proto import peer_pb2 as pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

log = logging.getLogger(__name__)

MOST_WANTS = 4096

LARGEST_BYTES = 1 << 43
"""Of a file: 8 TiB. A larger size is a claim that would be believed until a GET fails: ext4 has no file above 16 TiB,
and a bitmap of what is cached takes a megabyte by then."""

_EVICTED_TRIES = 3
"""Of a block that is evicted again before it could be sent."""


class Payload(NamedTuple):
    """Bytes that follow a header: of a file, or `data`. Whoever has sent them calls `done`."""

    descriptor: int
    position: int
    length: int
    data: bytes | None
    done: Callable[[], None]


class NotOurs(Exception):
    """It is being fetched by a worker that may be waiting for this one."""


Answer = tuple[pb.ReadHeader, Payload | None]


@dataclass
class _Asked:
    """One want that the tiers do not have, from `offset` on."""

    number: int
    want: pb.Want
    offset: int
    tries: int = 0


class _Come(NamedTuple):
    """What the event loop reports."""

    asked: _Asked
    end: int
    """Bytes up to here are cached, or in `data`."""
    data: bytes | None = None
    error: str = ""
    missing: bool = False
    lease: Lease | None = None
    last: bool = False
    """Nothing more comes of this want, unless it is begun again."""


@dataclass
class _Fills:
    """The event loop's part of one request."""

    request: pb.ReadRequest
    share: Share
    trace: str
    """`traceparent` of its span."""
    running: int = 0
    """Counted by whoever answers: begun, and their last report not taken yet."""
    come: "queue.SimpleQueue[_Come]" = field(default_factory=queue.SimpleQueue)
    stopped: bool = False
    """Whoever asked has gone: what was begun comes to its end, nothing more is begun."""

    # In the event loop

    def report(self, come: _Come) -> None:
        if not self.stopped:
            self.come.put(come)
        elif come.lease is not None:
            come.lease.release()

    def stop(self) -> None:
        self.stopped = True
        while not self.come.empty():
            come = self.come.get_nowait()
            if come.lease is not None:
                come.lease.release()


class PeerReads:
    """Answers reads of other nodes. Safe to use from many threads."""

    def __init__(
        self,
        node: "ClusterNode",
        index: Index,
        touch: TouchMap,
        token: trio.lowlevel.TrioToken,
        limit: ClientLimit,
    ) -> None:
        """Args: limit: of wants that are fetched for one party at once."""
        self._node = node
        self._limit = limit
        self._index = index
        self._token = token
        self._reader = ContentReader(index, touch)
        self._lock = threading.Lock()

    def answer(self, request: pb.ReadRequest, identity: Identity) -> Generator[Answer, None, None]:
        """Headers and what follows them, until each want is answered.

        Each payload is to be sent, and its `done` called, before the next is taken. Closing the iterator stops it.

        Args:
            request: what is wanted.
            identity: who wants it.

        Raises:
            UsageError: it wants too much.
        """
        span = tracing.begin(
            "forebay.peer.serve", "SERVER", request.traceparent, dataset=request.dataset_id, wants=len(request.wants),
            mode=pb.ReadMode.Name(request.mode) if request.mode in pb.ReadMode.values() else "", hops=request.hops,
        )  # fmt: skip
        try:
            yield from self._answers(request, identity, span.traceparent)
        finally:
            span.end()

    def _answers(self, request: pb.ReadRequest, identity: Identity, trace: str) -> Iterator[Answer]:
        if len(request.wants) > MOST_WANTS:
            raise UsageError(f"{len(request.wants)} wants in one request; {MOST_WANTS} are the most")
        asked: list[_Asked] = []
        for number, want in enumerate(request.wants):
            if want.offset % PIECE_BYTES or want.offset + want.length > want.size or not (want.length or not want.size):
                yield _failed(number, UsageError("a read begins at a multiple of 16 KiB, inside the file"))
                continue
            if want.size > LARGEST_BYTES:
                yield _failed(number, UsageError(f"a file of {want.size} bytes; {LARGEST_BYTES} are the most"))
                continue
            offset = want.offset
            if want.suspect:
                self._suspect(request.dataset_id, want)
            else:
                for answer in self._cached(request.dataset_id, number, want, offset):
                    yield answer
                    offset += answer[0].length
            if offset == want.offset + want.length and (want.length or offset):
                continue
            if request.mode == pb.ONLY_CACHED:
                yield pb.ReadHeader(want=number, state=pb.MISSING), None
            else:
                asked.append(_Asked(number, want, offset))
        if asked:
            yield from self._fetched(_Fills(request, Share(self._limit, identity), trace), asked)

    def _suspect(self, dataset: str, want: pb.Want) -> None:
        content = ContentId(want.content)
        cached = self._index.find(content)
        if cached is not None and self._node.may_read(dataset, cached.dataset, want):
            rpc.in_loop(self._token, lambda: self._node.suspect(content))

    def _cached(self, dataset: str, number: int, want: pb.Want, offset: int) -> Iterator[Answer]:
        """What of [offset, end of the want) is cached, from its start on."""
        end = want.offset + want.length
        while offset < end:
            found = self._hit(dataset, number, want, offset, end)
            if found is None and end > (upto := _block_end(offset)):
                found = self._hit(dataset, number, want, offset, upto)
            if found is None:
                return
            yield found
            offset += found[0].length

    def _hit(self, dataset: str, number: int, want: pb.Want, offset: int, end: int) -> Answer | None:
        content = ContentId(want.content)
        with self._lock:
            cached = self._index.find(content)
            # A token is good for one dataset: what another one has is not to be had through it.
            if cached is None or cached.size != want.size or not self._node.may_read(dataset, cached.dataset, want):
                return None
            place = self._reader.find(content, offset, end)
            # Blocks come between two looks: the sums are those of a record that is no older than the place.
            cached = self._index.find(content) if place is not None else None
            if place is None or cached is None or not cached.has(offset, end):
                return None
            descriptor = os.dup(place.descriptor)
        unit, sums = self._sums(content, cached, offset, end)
        if not sums:
            data = self._verified(content, cached, descriptor, offset, end)
            os.close(descriptor)
            if data is None:
                return None
            return _with_data(number, offset, data), Payload(-1, 0, len(data), data, lambda: None)
        header = pb.ReadHeader(want=number, offset=offset, length=end - offset, unit=unit, sums=sums)
        header.spread = self._node.spread_of(content, offset, end - offset)
        return header, Payload(descriptor, place.base + offset, end - offset, None, lambda: os.close(descriptor))

    def _sums(self, content: ContentId, cached: Cached, offset: int, end: int) -> tuple[int, list[int]]:
        """The stored sums of [offset, end) and how many bytes each is of; none unless its blocks came as a whole."""
        if cached.pack:
            return max(cached.size, 1), [cached.checksum]
        if offset % BLOCK_BYTES or (end % BLOCK_BYTES and end != cached.size):
            return BLOCK_BYTES, []
        extents = list(self._index.extents(content, cached, blocks_of(offset, end)))
        whole = len(extents) == len(blocks_of(offset, end)) and all(
            len(sums) == SUM_BYTES and span.is_block(cached.size) for span, sums in extents
        )
        return BLOCK_BYTES, [int.from_bytes(sums, "big") for _, sums in extents] if whole else []

    def _verified(self, content: ContentId, cached: Cached, descriptor: int, offset: int, end: int) -> bytes | None:
        """Parts of one block, or a block that came in pieces; None when they are more, or not what was written."""
        if cached.pack or end > _block_end(offset):
            return None
        try:
            extents = self._index.extents(content, cached, blocks_of(offset, end))
            return read_verified(descriptor, extents, offset, end)
        except OSError:
            return None

    def _fetched(self, fills: _Fills, asked: list[_Asked]) -> Iterator[Answer]:
        request = fills.request
        waiting = deque(asked)
        ends = {one.number: one.want.offset + one.want.length for one in asked}
        left = {one.number for one in asked}
        try:
            self._begin_some(fills, waiting)
            yield pb.ReadHeader(want=asked[0].number, state=pb.COMING), None
            while left:
                try:
                    come = fills.come.get(timeout=KEEP_ALIVE_S)
                except queue.Empty:
                    yield pb.ReadHeader(want=min(left), state=pb.COMING), None
                    continue
                one = come.asked
                fills.running -= come.last
                self._begin_some(fills, waiting)
                if come.data is not None and come.end <= one.offset:
                    self._give_back(come)  # asked for again meanwhile, and sent
                    continue
                if come.error or come.missing:
                    left.discard(one.number)
                    state = pb.MISSING if come.missing else pb.FAILED
                    yield pb.ReadHeader(want=one.number, state=state, error=come.error), None
                elif come.data is not None:
                    yield self._through(come)
                    one.offset = come.end
                else:
                    for answer in self._cached(request.dataset_id, one.number, one.want, one.offset):
                        yield answer
                        one.offset += answer[0].length
                        if one.offset >= come.end:
                            break
                    if one.offset < come.end:
                        self._again(fills, one, left)  # evicted between the fill and here
                        continue
                if one.offset >= ends[one.number] and one.number in left and not (come.error or come.missing):
                    left.discard(one.number)
        finally:
            rpc.in_loop(self._token, fills.stop)

    def _give_back(self, come: _Come) -> None:
        if come.lease is not None:
            rpc.in_loop(self._token, come.lease.release)

    def _again(self, fills: _Fills, one: _Asked, left: set[int]) -> None:
        one.tries += 1
        if one.tries > _EVICTED_TRIES:
            gone = WorkerUnavailable("what was fetched was evicted before it could be sent")
            fills.come.put(_Come(one, one.offset, error=_text(gone)))
        else:
            self._begin(fills, one)

    def _begin_some(self, fills: _Fills, waiting: "deque[_Asked]") -> None:
        """As many as the party may have at once; the others when some of these have come."""
        while waiting:
            try:
                fills.share.take()
            except LimitReached as error:
                if fills.running:
                    return
                one = waiting.popleft()
                fills.come.put(_Come(one, one.offset, error=_text(error)))
            else:
                self._start(fills, waiting.popleft())

    def _begin(self, fills: _Fills, one: _Asked) -> None:
        try:
            fills.share.take()
        except LimitReached as error:
            fills.come.put(_Come(one, one.offset, error=_text(error)))
        else:
            self._start(fills, one)

    def _start(self, fills: _Fills, one: _Asked) -> None:
        fills.running += 1
        rpc.in_loop(self._token, lambda: self._node.nursery.start_soon(self._fill, fills, one))

    def _through(self, come: _Come) -> Answer:
        """Bytes that no tier had room for."""
        data = come.data or b""
        offset = come.end - len(data)
        return _with_data(come.asked.number, offset, data), Payload(
            -1, 0, len(data), data, lambda: self._give_back(come)
        )

    # In the event loop

    async def _fill(self, fills: _Fills, one: _Asked) -> None:
        """Have the rest of a want in the cache, and report each block."""
        try:
            with tracing.span("forebay.peer.fill", parent=fills.trace, offset=one.offset):
                last = await self._bring(fills, one)
        finally:
            fills.share.give_back()  # before the report: whoever takes that begins the next one
        fills.report(last._replace(last=True))

    async def _bring(self, fills: _Fills, one: _Asked) -> _Come:
        """Returns the last report."""
        want, end, offset = one.want, one.want.offset + one.want.length, one.offset
        while True:
            upto = min(_block_end(offset), end)
            ahead = end if want.length >= BLOCK_BYTES else upto  # who wants less reads here and there
            lease = self._node.lease()
            kept = False
            try:
                data = await self._node.fill(fills.request, want, offset, upto, ahead, lease)
                kept = bool(data)
            except NotOurs:
                return _Come(one, offset, missing=True)
            except ForebayError as error:
                return _Come(one, offset, error=_text(error))
            except Exception as error:
                log.exception("a read for another node failed")
                return _Come(one, offset, error=_text(ForebayError(f"the cache worker failed: {error!r}")))
            finally:
                if not kept:
                    lease.release()
            come = _Come(one, upto, data or None, lease=lease if data else None)
            offset = upto
            if offset >= end or fills.stopped:
                return come
            fills.report(come)


def _block_end(offset: int) -> int:
    """Of the block in which a byte lies; beyond the file for its last one."""
    return (offset // BLOCK_BYTES + 1) * BLOCK_BYTES


def _with_data(number: int, offset: int, data: bytes) -> pb.ReadHeader:
    return pb.ReadHeader(
        want=number, offset=offset, length=len(data), unit=max(len(data), 1), sums=[xxhash.xxh3_64_intdigest(data)]
    )


def _text(error: ForebayError) -> str:
    return f"{type(error).__name__}: {error}".encode("utf-8", "replace").decode()


def _failed(number: int, error: ForebayError) -> Answer:
    return pb.ReadHeader(want=number, state=pb.FAILED, error=_text(error)), None
