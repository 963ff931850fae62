"""Bytes that are not cached yet: read-ahead windows, waiting, and asking the worker.

What is kept here is only a help: a handler that starts anew begins with small windows.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio

from forebay.cacheruntime import tracing
from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.client import AttachedClient
from forebay.cacheruntime.config import FillConfig
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.counters import CounterRow, Source
from forebay.cacheruntime.errors import SourceStale
from forebay.cacheruntime.fill_socket import FillCall
from forebay.cacheruntime.readahead import Advice, Habits, Readahead
from forebay.fuse.arrivals import Arrivals
from forebay.fuse.mounting import READ_AHEAD_BYTES, READ_AHEAD_SLACK_BYTES
from forebay.proto import worker_pb2 as pb

_PATIENCE_S = 0.06
"""Bytes on their way are waited for this long, the time of a few blocks from a slow store; then the worker is told that
a reader waits, and what it fetches for him goes before read-ahead."""

_SHARED_PATIENCE_S = 1.0
"""While one request of a file has the worker's attention, those behind it wait up to this long without asking."""

_READERS = 1024


async def _nobody_to_tell(_parent: int, _name: bytes) -> None:
    """Without an engine."""


class Misses:
    """One handler's misses. One event loop."""

    def __init__(
        self,
        catalogue: Catalogue,
        content: ContentReader,
        client: AttachedClient,
        fill: FillConfig,
        counters: CounterRow,
    ) -> None:
        """
        Args:
            catalogue, content, client: see there.
            fill: window sizes and the deadline of a miss.
            counters: our row.
        """
        self._catalogue = catalogue
        self._content = content
        self._client = client
        self._config = fill
        self._counters = counters
        self._readers: OrderedDict[tuple[int, int], Readahead] = OrderedDict()
        self._habits = Habits()
        self._read_ahead = 0
        self._arrivals = Arrivals(content.cached, content.has)
        self._asking: dict[int, int] = {}  # node -> requests that wait for the worker's answer
        self._past_tiers: set[int] = set()  # nodes whose bytes came through a reply, as no tier had room
        self.start_soon: Callable[[Callable[[], Coroutine[Any, Any, object]]], None] = lambda _: None
        """Set by the engine: run an async function in the background."""
        self.entry_is_stale: Callable[[int, bytes], Awaitable[None]] = _nobody_to_tell
        """Set by the engine: make the kernel forget a name."""
        self.set_read_ahead: Callable[[int], object] = lambda _: None
        """Set by the handler: bytes that the kernel reads ahead in files that are opened from now on."""

    def show(self, catalogue: Catalogue) -> None:
        """Another snapshot is served from now on."""
        self._catalogue = catalogue

    def forget(self, node: int, handle: int) -> None:
        """The handle was closed."""
        self._readers.pop((node, handle), None)

    def wait_for(
        self, node: Node, handle: int, offset: int, size: int, again: bool
    ) -> Callable[[], Awaitable[bytes | None]]:
        """What brings bytes that are missing: for `NotReady`.

        Args:
            node, handle, offset, size: of the READ.
            again: they were waited for, and are not there.
        """
        if again:
            # The index may have them while their tier file was removed from outside: only the worker finds that out.
            again_asked = self._request(node, offset, size, size)
            return lambda: self._wait_filled(node, again_asked)
        advice = self._observe(node, handle, offset, size)
        if advice.expected:
            if advice.ahead_bytes:
                self._fetch_ahead(node, advice.ahead_start, advice.ahead_bytes)
            return lambda: self._wait_expected(node, offset, size, advice.window_bytes)
        # Sent now, while requests are in their order; waited for in a task.
        request = self._request(node, offset, size, advice.window_bytes)
        span = self._span(request)
        begun = self._client.begin_fill(request)
        return lambda: self._wait_filled(node, request, begun, span=span)

    def read_ahead(self, node: Node, handle: int, offset: int, size: int) -> None:
        """After a hit in a file that is not whole: have what comes next fetched."""
        advice = self._observe(node, handle, offset, size)
        if not advice.ahead_bytes:
            return
        start, length = advice.ahead_start, advice.ahead_bytes
        if self._content.find(node.content, start, start + length) is None:
            self._fetch_ahead(node, start, length)

    def begin(self, node: Node) -> None:
        """Have the begin of a large file fetched, which is going to be read."""
        window = min(node.size, self._config.window_max_bytes)
        self._fetch_ahead(node, 0, window)

    def bring_small(self, node: Node, done: Callable[[bool], None]) -> None:
        """Bring a small file into the cache, behind all readers who wait; then say whether it is there."""

        async def fetch() -> None:
            cached = False
            try:
                request = self._request(node, 0, node.size, node.size)
                request.ahead = True
                await self._client.fill(request, self._config.deadline_s)
                cached = self._content.find(node.content, 0, node.size) is not None
            finally:
                done(cached)

        self.start_soon(fetch)

    def _observe(self, node: Node, handle: int, offset: int, size: int) -> Advice:
        reader = self._reader(node.node, handle)
        fetched = reader.fetched_bytes
        advice = reader.observe(offset, size, node.size)
        habits = self._habits
        read_ahead = READ_AHEAD_BYTES if habits.go_straight_on else habits.stray_bytes + READ_AHEAD_SLACK_BYTES
        if read_ahead != self._read_ahead:
            self._read_ahead = read_ahead
            self.set_read_ahead(read_ahead)
        self._counters.add("cold_bytes", size)
        self._counters.add("cold_fetched_bytes", reader.fetched_bytes - fetched)
        return advice

    def _reader(self, node: int, handle: int) -> Readahead:
        key = (node, handle)
        reader = self._readers.get(key)
        if reader is None:
            reader = Readahead(self._config.window_min_bytes, self._config.window_max_bytes, self._habits)
            self._readers[key] = reader
            if len(self._readers) > _READERS:
                self._readers.popitem(last=False)
        return reader

    async def _wait_expected(self, node: Node, offset: int, length: int, window: int) -> bytes | None:
        began = time.monotonic_ns()
        if await self._arrives_soon(node, offset, offset + length):
            self._counters.observe(Source.AHEAD, time.monotonic_ns() - began, length)
            return None
        return await self._wait_filled(node, self._request(node, offset, length, window), began=began)

    async def _wait_filled(
        self,
        node: Node,
        request: pb.FillRequest,
        begun: FillCall | None = None,
        began: int = 0,
        span: tracing.Span | None = None,
    ) -> bytes | None:
        span = span or self._span(request)
        error: BaseException | None = None
        began = began or time.monotonic_ns()
        self._asking[node.node] = self._asking.get(node.node, 0) + 1
        try:
            data = await self._client.fill(request, self._config.deadline_s, begun)
        except BaseException as failure:
            error = failure
            if isinstance(failure, SourceStale):
                await self.entry_is_stale(node.parent, node.name)  # before the reader knows, or it finds the old name
            raise
        finally:
            span.end(error)
            self._asking[node.node] -= 1
            if not self._asking[node.node]:
                del self._asking[node.node]
        source = Source.STORE if data is None else Source.MEMORY
        self._counters.observe(source, time.monotonic_ns() - began, request.length if data is None else len(data))
        if data is None:
            self._past_tiers.discard(node.node)
        elif len(self._past_tiers) < _READERS:
            self._past_tiers.add(node.node)
        return data

    @staticmethod
    def _span(request: pb.FillRequest) -> tracing.Span:
        """Of a miss that somebody waits for; the request carries it to the worker."""
        span = tracing.begin(
            "forebay.miss",
            "CLIENT",
            root=True,
            path=os.fsdecode(request.file.path),
            offset=request.offset,
            length=request.length,
        )
        request.traceparent = span.traceparent
        return span

    async def _arrives_soon(self, node: Node, start: int, end: int) -> bool:
        """Look for bytes that are on their way, while that is likely to be enough."""
        if node.node in self._past_tiers:
            return False
        latest = trio.current_time() + _SHARED_PATIENCE_S
        while not await self._arrivals.wait(node.content, start, end, _PATIENCE_S):
            if node.node not in self._asking or trio.current_time() > latest:
                return False
        return True

    def _fetch_ahead(self, node: Node, start: int, length: int) -> None:
        """Have a range fetched that nobody waits for yet."""
        request = self._request(node, start, length, length)
        if not self._client.post_fill(request):
            self.start_soon(lambda: self._client.post_fill_later(request))

    def _request(self, node: Node, offset: int, length: int, window: int) -> pb.FillRequest:
        """See `FillRequest` in proto/worker.proto."""
        ref = pb.FileRef(path=self._catalogue.path_of(node.node), size=node.size, version=node.version)
        suspect = self._content.take_wrong(node.content)
        return pb.FillRequest(file=ref, offset=offset, length=length, window=window, suspect=suspect)
