"""What readers will read next: the orders that they post, how far each has come, and who is gone.

An order is a sequence of node ids of one snapshot; its positions count on over epochs. It is told to the dataset's
cache policy (`OrderSink`), which evicts by it, and drives the fetching ahead (`prefetch.py`).

Nothing of this is on disk: a reader learns from the reply how much of its order is known, and posts again to a worker
that is new. A reader that posts over a connection of its own is gone when that ends, whoever ends it; one that calls by
gRPC, when it was silent for `SILENT_S`.
"""

import itertools
import logging
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from forebay.cacheruntime.catalogue import NO_CONTENT
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.snapshot import Snapshot

log = logging.getLogger(__name__)

SILENT_S = 300.0
"""A validation between two epochs may take minutes; an order that is kept too long costs some hits."""

READERS = 4096
"""Of a worker: a node has some dozens of jobs, each with some dozens of loading processes."""

POSITIONS = 1 << 26
"""Longest order that is kept, in files not read yet: 512 MiB of memory for all readers of a node."""

_TRIM = 1 << 16
"""What was read is dropped by so many at once: moving the rest costs time."""

_RESOLVED_AT_ONCE = 256
"""Node ids looked up between two checkpoints: a third of a millisecond, in which nobody else is served."""

_IN_FLIGHT = 4096
"""Files of one reader, asked for and not known to be read, whose touch bits are looked at."""

_READING_S = 0.02
"""From a touch until a file counts as read: while its reader has it open, evicting it gives no room."""

_STEP_FADES = 0.9
"""Of the longest step so much is left after another: batches are alike, but the last of an epoch."""

_UNKNOWN = 0
"""Stands for a node that has not been posted yet, while what comes behind it has. No node has that number."""


class OrderSink(Protocol):
    """Who is told of orders: the cache policy `next-use`."""

    def post(self, reader: str, first: int, contents: Sequence[ContentId]) -> None:
        """These are a reader's files from position `first` on. Pieces come in any order, some more than once."""

    def advance(self, reader: str, position: int, asked: int) -> None:
        """All before `position` were read, all before `asked` are read or being asked for."""

    def read(self, reader: str, position: int) -> None:
        """What is at this position was read, ahead of what is before it."""

    def leave(self, reader: str) -> None:
        """The reader is gone."""


@dataclass(frozen=True)
class SeveralSinks:
    """All of them; equal to another that has the same."""

    sinks: tuple[OrderSink, ...]

    def post(self, reader: str, first: int, contents: Sequence[ContentId]) -> None:
        """See `OrderSink`."""
        for sink in self.sinks:
            sink.post(reader, first, contents)

    def advance(self, reader: str, position: int, asked: int) -> None:
        """See `OrderSink`."""
        for sink in self.sinks:
            sink.advance(reader, position, asked)

    def read(self, reader: str, position: int) -> None:
        """See `OrderSink`."""
        for sink in self.sinks:
            sink.read(reader, position)

    def leave(self, reader: str) -> None:
        """See `OrderSink`."""
        for sink in self.sinks:
            sink.leave(reader)


class Pace:
    """How fast a reader goes: files a second, the last few seconds counting most. Pure."""

    _FADE_S = 2.0

    def __init__(self) -> None:
        self._files = self._seconds = 0.0
        self._last: tuple[float, int] | None = None

    def moved(self, now: float, position: int) -> None:
        """The reader is there at that time."""
        if self._last is not None and now > self._last[0]:
            elapsed, files = now - self._last[0], position - self._last[1]
            keep = max(0.0, 1.0 - elapsed / self._FADE_S)
            self._files, self._seconds = keep * self._files + files, keep * self._seconds + elapsed
        if self._last is None or now > self._last[0]:
            self._last = now, position

    @property
    def files_per_s(self) -> float:
        """0 while nothing is known."""
        return self._files / self._seconds if self._seconds else 0.0


@dataclass(eq=False)
class Reader:
    """One reader's order."""

    name: str
    dataset: Dataset
    snapshot: Snapshot
    holder: object | None
    """The connection that it lasts as long as; None: until it is silent for too long."""
    seen: float
    """When it last posted, seconds of the monotonic clock."""
    nodes: "array[int]" = field(default_factory=lambda: array("Q"))
    start: int = 0
    """Position of the first of `nodes`."""
    position: int = 0
    """All before it are read."""
    asked: int = 0
    """All before it are read, or their reader asks for them without us."""
    known: int = 0
    """Nothing is missing before it."""
    step: float = 0.0
    """By so much `asked` moves at once: a batch, or what is read between two messages."""
    in_flight: dict[int, ContentId] = field(default_factory=dict)
    """Position -> what is asked for there and not known to be read, as far as it was looked at."""
    in_flight_end: int = 0
    reading: "deque[tuple[float, int]]" = field(default_factory=deque)
    """When it was seen that it reads what is at a position, the first to be seen first."""
    pace: Pace = field(default_factory=Pace)
    told: OrderSink | None = None
    """Who knows the order: a dataset may be given another policy."""

    def put(self, first: int, nodes: "array[int]") -> None:
        """Take a piece of the order in.

        Raises:
            UsageError: the order gets longer than we keep.
        """
        if first < self.start:  # read already
            nodes, first = nodes[self.start - first :], self.start
        end = first + len(nodes)
        if end - self.start > POSITIONS:
            raise UsageError(f"an order of {end - self.start} files; {POSITIONS} that are not read yet are the most")
        gap = end - self.start - len(self.nodes)
        if gap > 0:
            self.nodes.frombytes(bytes(8 * gap))
        self.nodes[first - self.start : end - self.start] = nodes
        if first <= self.known < end:
            self.known = end
        self._pass_known()

    def move(self, position: int, asked: int, now: float) -> None:
        """The reader has come further. It never goes back."""
        self.position = max(self.position, position)
        before, self.asked = self.asked, max(self.asked, asked, self.position)
        if before < self.asked:
            self.step = max(self.asked - before, _STEP_FADES * self.step)
        self.pace.moved(now, self.asked)
        if self.position > self.known:
            self.known = self.position
            self._pass_known()
        read = self.position - self.start
        if read >= min(_TRIM, len(self.nodes)) > 0:
            del self.nodes[:read]
            self.start = self.position

    def node(self, position: int) -> int:
        """The node id at a position from `position` to before `known`."""
        return self.nodes[position - self.start]

    def under_way(self) -> list[tuple[int, ContentId]]:
        """Positions that it is asking for, by what is known, and what is there."""
        for position in list(itertools.takewhile(lambda at: at < self.position, self.in_flight)):
            del self.in_flight[position]
        first = max(self.position, self.in_flight_end)
        end = min(self.asked, self.start + len(self.nodes), self.position + _IN_FLIGHT)
        if first < end:
            contents = self.snapshot.catalogue.contents(self.nodes[first - self.start : end - self.start])
            self.in_flight.update((at, each) for at, each in enumerate(contents, first) if each != NO_CONTENT)
            self.in_flight_end = end
        return list(self.in_flight.items())

    def _pass_known(self) -> None:
        at, nodes = self.known - self.start, self.nodes
        while at < len(nodes) and nodes[at] != _UNKNOWN:
            at += 1
        self.known = self.start + at


class Orders:
    """All orders of a worker. One event loop.

    Set `sink` and `moved` before the first call.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readers: dict[str, Reader] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()
        """Readers that said so, the last few."""
        self.sink: Callable[[Dataset], OrderSink | None] = lambda _: None
        """Who goes by the orders of a dataset's readers; None: nobody."""
        self.moved: Callable[[], None] = lambda: None
        """Called when an order has come, has moved or is gone."""

    @property
    def active(self) -> bool:
        """Whether any reader is here."""
        return bool(self._readers)

    def readers(self) -> Iterable[Reader]:
        return self._readers.values()

    def reads(self, dataset: DatasetId) -> bool:
        """Whether a dataset has a reader with an order, be it by way of a view."""
        return any(
            reader.dataset.id == dataset or dataset in reader.dataset.owners for reader in self._readers.values()
        )

    async def post(
        self, dataset: Dataset, snapshot: Snapshot, name: str, nodes: Sequence[int], first: int,
        position: int, asked: int, holder: object | None = None,
    ) -> int:  # fmt: skip
        """Take in a piece of a reader's order, or its progress.

        Args:
            dataset, snapshot: what it reads.
            name: the reader's.
            nodes: node ids from position `first` on.
            position, asked: see `Reader`.
            holder: the connection that it came by; None: by gRPC.

        Returns:
            The position before which nothing of the order is missing.

        Raises:
            UsageError: too many readers, or too long an order.
        """
        if name in self._finished:
            return 0
        reader = self._readers.get(name)
        if reader is not None and (reader.dataset is not dataset or reader.snapshot is not snapshot):
            self.leave(name)
            reader = None
        if reader is None:
            if not name or len(self._readers) >= READERS:
                raise UsageError("a reader without a name" if not name else f"{READERS} readers have posted orders")
            reader = Reader(name, dataset, snapshot, holder, self._clock(), start=position, known=position)
            snapshot.users += 1
            self._readers[name] = reader
            log.info("reader %s of %s, snapshot %d, has an order", name, dataset.store.url, snapshot.number)
        reader.holder, reader.seen = holder, self._clock()
        piece = array("Q", nodes)
        reader.put(first, piece)
        self._advance(reader, position, asked)
        sink = self.sink(dataset)
        if sink is not None and sink != reader.told:
            reader.told = sink
            first, piece = reader.start, reader.nodes[:]
            sink.advance(name, reader.position, reader.asked)
        for at in range(0, len(piece) if sink is not None else 0, _RESOLVED_AT_ONCE):
            part = piece[at : at + _RESOLVED_AT_ONCE]
            if self._readers.get(name) is not reader or reader.told != sink:
                break  # it left meanwhile, or another is told
            if sink is not None and first + at + len(part) > reader.position:
                sink.post(name, first + at, snapshot.catalogue.contents(part))
            await trio.lowlevel.checkpoint()
        return reader.known

    def finish(self, name: str, position: int) -> None:
        """A reader says that it reads no more, from that position on; what it has said before may yet come."""
        self._finished[name] = None
        if len(self._finished) > READERS:
            self._finished.popitem(last=False)
        reader = self._readers.get(name)
        if reader is not None:
            self._advance(reader, position, position)
            self.leave(name)

    def leave(self, name: str, holder: object | None = None) -> None:
        """A reader is gone.

        Args:
            name: its.
            holder: only if it still belongs to this connection.
        """
        reader = self._readers.get(name)
        if reader is None or (holder is not None and reader.holder is not holder):
            return
        del self._readers[name]
        reader.snapshot.users -= 1
        log.info("reader %s of %s left at position %d", name, reader.dataset.store.url, reader.position)
        if reader.told is not None:
            reader.told.leave(name)
        self.moved()

    def connection_ended(self, holder: object) -> None:
        """Whoever posted over it is gone."""
        for reader in [reader for reader in self._readers.values() if reader.holder is holder]:
            self.leave(reader.name)

    def note_reads(self, take: Callable[[ContentId], bool]) -> None:
        """Tell policies what was read of that which readers ask for; their positions may lag by many batches.

        Args:
            take: whether a file was read since it was asked about last, or since it came up for being fetched ahead.
        """
        now = self._clock()
        for reader in self._readers.values():
            if reader.told is None:
                continue
            for position, content in reader.under_way():
                if take(content):
                    del reader.in_flight[position]
                    reader.reading.append((now, position))
            while reader.reading and reader.reading[0][0] <= now - _READING_S:
                reader.told.read(reader.name, reader.reading.popleft()[1])

    def expire(self) -> None:
        """Drop readers that were silent for too long; to be called now and then."""
        silent = self._clock() - SILENT_S
        for reader in [reader for reader in self._readers.values() if reader.holder is None and reader.seen < silent]:
            self.leave(reader.name)

    def _advance(self, reader: Reader, position: int, asked: int) -> None:
        before = reader.position, reader.asked
        reader.move(position, asked, self._clock())
        if reader.told is not None and (reader.position, reader.asked) != before:
            reader.told.advance(reader.name, reader.position, reader.asked)
        self.moved()
