"""Fetching ahead of readers that have posted their order: a window of each reader's next files, most urgent first.

The window of a reader is as long as it must be to hide the store's latency at the reader's pace, and no longer than
what the tiers hold with certainty until it is read (`Limits`): what is evicted before its use would be fetched twice.
Each position of an order is looked at once at most, so nothing is fetched twice for it either.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from forebay.cacheruntime.catalogue import NO_CONTENT, Node
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.keys import NodeId
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.orders import Orders, Reader
from forebay.cacheruntime.worker.storage import Storage

log = logging.getLogger(__name__)

_FETCHES = 32
"""Files asked for at once: twice the GETs that may be under way, so that none of their slots is ever free."""

_FILES_AHEAD, _BYTES_AHEAD = 1024, 256 * MIB
"""Fetched and not asked for yet, of one reader, at most."""

_FETCHED_SHARE, _SPANNED_SHARE = 0.1, 0.5
"""Of the tiers' quotas, all readers together: what is fetched ahead, and what lies between where a reader is and the
end of its window, cached before or not. What is to stay until it is read must be far from being all. A policy that goes
by orders keeps it, however far it is."""

_POSITIONS_MIN, _POSITIONS_MAX = 16, 4096
"""Length of a window behind the next step. Longer ones bring nothing: 4096 files are two seconds of a fast reader."""

_POSITIONS_FIRST = 256
"""While a reader's pace is not known."""

_LATENCIES = 4
"""So many times the usual time of a fetch is looked ahead: stores take longer now and then."""

_REST_S = 1.0
"""A reader's files are not fetched ahead for so long after a fetch failed."""

_NO_ROOM_S = 0.1
"""The same after one found no room: readers let go of evicted files as often."""

_LOOKED_AT_ONCE = 64
"""Positions looked at between two checkpoints, 5 us each."""

_MARGIN_MOST, _MARGIN_FADES = 8.0, 0.97
"""How much longer than usual a window gets, at most, by being too short, and what is left of that after each step."""

_SURELY_CACHED, _STRIDE = 1024, 16
"""After so many files in a row that were cached, only one of so many is looked at, until one is not cached."""

_DIRECTORIES = 4096


@dataclass(frozen=True)
class Limits:
    """Of one reader's window."""

    positions: int
    files: int
    """Fetched ahead and not asked for yet; so are `fetched_bytes`."""
    fetched_bytes: int
    spanned_bytes: int
    """From the reader's position to the end of the window, cached before or not."""


def limits(
    files_per_s: float, step: int, latency_s: float, room_bytes: int, readers: int, *, kept: bool, margin: float = 1.0
) -> Limits:
    """How far ahead of a reader it is worth fetching: what is there and not read yet takes the room of others.

    Args:
        files_per_s: its pace; 0: unknown.
        step: files that it asks for at once; the next ones have to be there all together.
        latency_s: of a fetch.
        room_bytes: of all tiers.
        readers: that share them.
        kept: whether the policy goes by its order, and so keeps what it will read soon.
        margin: so many times as far behind the next step as usual.
    """
    behind = max(files_per_s * _LATENCIES * latency_s, _POSITIONS_MIN)
    wanted = step + int(margin * behind) if files_per_s else _POSITIONS_FIRST
    return Limits(
        min(wanted, _POSITIONS_MAX),
        _FILES_AHEAD,
        min(_BYTES_AHEAD, int(_FETCHED_SHARE * room_bytes / readers)),
        room_bytes if kept else int(_SPANNED_SHARE * room_bytes / readers),
    )


class Looked(NamedTuple):
    """A position of an order that the window has passed."""

    position: int
    size: int
    """Bytes that will be read."""


@dataclass(eq=False)
class Window:
    """What is ahead of one reader. Pure."""

    cursor: int = 0
    """Next position to look at."""
    asked: int = 0
    """The reader's, when it was looked at last."""
    rests_until: float = 0.0
    looked: "deque[Looked]" = field(default_factory=deque)
    """Positions from the reader's on, up to the cursor."""
    ahead: "deque[Looked]" = field(default_factory=deque)
    """Those of them that were not cached, from the first that the reader has not asked for."""
    spanned_bytes: int = 0
    fetched_bytes: int = 0
    """Of `ahead`."""
    margin: float = 1.0
    """See `limits`: doubled when something came too late, for stores and machines have worse times than the usual."""
    late_at: int = -1
    """What was asked for then; a step is late once."""
    was_full: bool = False
    """Room, not its length, has kept the window from going on since the last step."""
    cached_in_a_row: int = 0
    again: "deque[int]" = field(default_factory=deque)
    """Positions whose files found no room; at most as many as fetches may be under way."""

    def follow(self, position: int, asked: int) -> None:
        """The reader has come that far. What it asks for by itself need not be looked at."""
        if asked > self.asked:
            self.margin = max(1.0, _MARGIN_FADES * self.margin)
            if self.cursor < asked and self.asked:
                self.was_late(asked)
            self.asked, self.was_full = asked, False
        self.cursor = max(self.cursor, asked)
        while self.looked and self.looked[0].position < position:
            self.spanned_bytes -= self.looked.popleft().size
        while self.ahead and self.ahead[0].position < asked:
            self.fetched_bytes -= self.ahead.popleft().size

    def was_late(self, asked: int) -> None:
        """Its reader has asked for something that is not there yet."""
        if asked > self.late_at and not self.was_full:
            self.late_at = asked
            self.margin = min(_MARGIN_MOST, 2 * self.margin)

    def is_open(self, reader: Reader, most: Limits, now: float) -> bool:
        """Whether there is a position to look at within the limits."""
        if self.again:
            return now >= self.rests_until
        if self.cursor >= min(reader.known, reader.asked + most.positions, reader.position + _POSITIONS_MAX):
            return False
        if self.fetched_bytes >= most.fetched_bytes or self.spanned_bytes >= most.spanned_bytes:
            self.was_full = True
            return False
        return len(self.ahead) < most.files and now >= self.rests_until

    def passed(self, size: int, fetched: bool) -> None:
        """The position at the cursor was looked at."""
        self.cached_in_a_row = 0 if fetched else self.cached_in_a_row + 1
        looked = Looked(self.cursor, size)
        self.looked.append(looked)
        self.spanned_bytes += size
        if fetched:
            self.ahead.append(looked)
            self.fetched_bytes += size
        # In what is cached whole, looking at each would cost more than the reading does.
        self.cursor += 1 if self.cached_in_a_row < _SURELY_CACHED else _STRIDE

    def go_back(self, asked: int) -> bool:
        """To what was left out before the cursor, as the file there proves not to be cached; False: nothing was."""
        if self.cached_in_a_row < _SURELY_CACHED:
            return False
        self.cursor = max(asked, self.cursor - _STRIDE + 1)
        self.cached_in_a_row = 0
        return True

    def urgency_s(self, reader: Reader) -> float:
        """Seconds until the reader comes to the cursor, as far as its pace is known."""
        return (self.cursor - reader.asked) / max(reader.pace.files_per_s, 1.0)


class Prefetcher:
    """Fetches ahead of all readers of `orders`, behind all who wait for bytes. One event loop; `run` is a task."""

    def __init__(
        self, orders: Orders, filler: Filler, storage: Storage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._orders = orders
        self._filler = filler
        self._storage = storage
        self._clock = clock
        self._windows: dict[Reader, Window] = {}
        self._paths: dict[tuple[str, int, NodeId], bytes] = {}
        self._wake = trio.Event()
        self._under_way = 0
        self.latency_s = 0.05
        """Of a fetch: that of the last few."""
        self.fetched_files = self.fetched_bytes = 0
        """Since the worker started."""

    def wake(self) -> None:
        """Something of the orders has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Fetch ahead until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                while self._under_way < _FETCHES and (ahead := self._most_urgent()) is not None:
                    self._look(nursery, *ahead)
                    await trio.lowlevel.checkpoint()
                with trio.move_on_after(_REST_S):
                    await self._wake.wait()

    def _most_urgent(self) -> tuple[Reader, Window, Limits] | None:
        readers = list(self._orders.readers())
        if len(self._windows) > len(readers):
            left = self._windows
            self._windows = {reader: left[reader] for reader in readers if reader in left}
        now, room = self._clock(), sum(tier.config.quota_bytes for tier in self._storage.tiers)
        found: tuple[float, Reader, Window, Limits] | None = None
        for reader in readers:
            window = self._windows.setdefault(reader, Window())
            window.follow(reader.position, reader.asked)
            pace, step, kept = reader.pace.files_per_s, int(reader.step), reader.told is not None
            most = limits(pace, step, self.latency_s, room, len(readers), kept=kept, margin=window.margin)
            if window.is_open(reader, most, now):
                urgency_s = window.urgency_s(reader)
                if found is None or urgency_s < found[0]:
                    found = urgency_s, reader, window, most
        return found[1:] if found else None

    def _look(self, nursery: trio.Nursery, reader: Reader, window: Window, most: Limits) -> None:
        """Go on with a window to its next file that is not cached, and begin to fetch that; or as far as it may."""
        catalogue, index, now = reader.snapshot.catalogue, self._storage.index.reader, self._clock()
        for _ in range(_LOOKED_AT_ONCE):
            if window.again:
                position = window.again.popleft()
                node = catalogue.node(NodeId(reader.node(position))) if position >= reader.asked else None
                if node is not None:
                    self._begin(nursery, reader, window, node, position)
                    return
                continue
            if not window.is_open(reader, most, now):
                return
            position = window.cursor
            number = reader.node(position)
            file = catalogue.file(number)
            content, size = file or (NO_CONTENT, 0)
            wanted = min(size, self._filler.window_bytes)
            self._storage.rooms.take_touch(content)  # from here on whoever reads it has asked for it
            cached = index.find(content) if wanted else None
            missing = wanted > 0 and (
                cached is None or not cached.has(0, wanted) or self._storage.is_doubtful(content, cached)
            )
            if missing and window.go_back(reader.asked):
                continue
            window.passed(wanted, missing)
            node = catalogue.node(NodeId(number)) if missing else None
            if node is not None:
                self._begin(nursery, reader, window, node, position)
                return

    def _begin(self, nursery: trio.Nursery, reader: Reader, window: Window, node: Node, position: int) -> None:
        self._under_way += 1
        nursery.start_soon(self._fetch, reader, window, node, position)

    async def _fetch(self, reader: Reader, window: Window, node: Node, position: int) -> None:
        dataset, began = reader.dataset, self._clock()
        wanted = min(node.size, self._filler.window_bytes)
        path = self._path(reader, node)
        try:
            file = dataset.file(path, node.size, node.version)
            await self._filler.fill(file, 0, wanted, wanted, through=False)
            if position < reader.asked:
                window.was_late(reader.asked)
            cached = self._storage.index.reader.find(node.content)
            if cached is not None and cached.has(0, wanted):
                self.latency_s += (self._clock() - began - self.latency_s) / 8
                self.fetched_files += 1
                self.fetched_bytes += wanted
            else:
                # No tier has room: what was evicted for it may still be open in the process that read it last.
                window.rests_until = self._clock() + _NO_ROOM_S
                window.again.append(position)
        except ForebayError as error:
            # Its reader will meet it too, and is told then.
            log.info("%s: %r was not fetched ahead: %s", dataset.store.url, path, error)
            window.rests_until = self._clock() + _REST_S
        finally:
            self._under_way -= 1
            self.wake()

    def _path(self, reader: Reader, node: Node) -> str:
        key = reader.dataset.id, reader.snapshot.number, node.parent
        above = self._paths.get(key)
        if above is None:
            if len(self._paths) >= _DIRECTORIES:
                self._paths.clear()
            above = self._paths[key] = reader.snapshot.catalogue.path_of(node.parent)
        return os.fsdecode(above + b"/" + node.name if above else node.name)
