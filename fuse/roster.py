"""The roster of a mount's handlers: shared memory in which each keeps one row, and the supervisor reads them all.

Storage format: the file ``roster`` in the mount's runtime folder. A header of 8-byte numbers (`_HEADER`), then
`SLOTS` rows of 8-byte numbers (`_FIELDS`). A row has one writer, the handler in that slot; the header has one writer
for each number, named beside it. Numbers are aligned, so a reader sees an old or a new one, never half of each.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.mounts import start_time
from forebay.cacheruntime.shared_memory import map_shared

SLOTS = 64
"""Handlers at once, those on their way out included."""

_NUMBER = struct.Struct("=Q")
_ROW = struct.Struct("=6Q")
_HEADER_BYTES = 64
_HEADER = {
    "incarnation": 0,  # the last one minted; by the supervisor
    "generation": 8,  # of the snapshot that is to be shown; by whoever switches the mount (switch.py)
    "announced": 16,  # the generation whose changes the kernel was told of; by the first handler
}
_FIELDS = ("pid", "start", "incarnation", "beat_ms", "busy_us", "generation")


@dataclass(frozen=True, slots=True)
class Row:
    """One handler."""

    slot: int
    pid: int
    start: int
    """When the process started, as `mounts.start_time` gives it."""
    incarnation: int
    """Names this life of a handler: never used again on this mount. 32 bits."""
    beat_ms: int
    """When it last was seen to go on, on the monotonic clock."""
    busy_us: int
    """Time that it did not wait for requests, since its start."""
    generation: int
    """Of the snapshot that it serves."""

    @property
    def alive(self) -> bool:
        """Whether that very process runs."""
        return bool(self.pid) and start_time(self.pid) == self.start


class Roster:
    """The shared rows. Resources: `close` unmaps it; the file stays."""

    def __init__(self, path: Path) -> None:
        self._map = map_shared(path, _HEADER_BYTES + SLOTS * _ROW.size)

    def close(self) -> None:
        self._map.close()

    def header(self, name: str) -> int:
        """A number of the header."""
        return int(_NUMBER.unpack_from(self._map, _HEADER[name])[0])

    def set_header(self, name: str, value: int) -> None:
        _NUMBER.pack_into(self._map, _HEADER[name], value)

    def mint(self) -> int:
        """The next incarnation; for the supervisor alone."""
        number = self.header("incarnation") + 1
        self.set_header("incarnation", number)
        return number

    def row(self, slot: int) -> Row:
        return Row(slot, *_ROW.unpack_from(self._map, self._at(slot)))

    def rows(self) -> list[Row]:
        """All handlers whose process runs, by slot."""
        return [row for row in map(self.row, range(SLOTS)) if row.alive]

    def free_slot(self) -> int:
        """A slot without a living handler; the lowest."""
        taken = {row.slot for row in self.rows()}
        return next(slot for slot in range(SLOTS) if slot not in taken)

    def is_live(self, incarnation: int) -> bool:
        """Whether that life of a handler goes on."""
        return any(row.incarnation == incarnation for row in self.rows())

    def clear(self, slot: int) -> None:
        """Forget a handler that was killed and still lies about; for the supervisor."""
        _ROW.pack_into(self._map, self._at(slot), *bytes(len(_FIELDS)))

    def enter(self, slot: int, incarnation: int) -> "Place":
        """Take a slot for this process."""
        pid = os.getpid()
        start = start_time(pid) or 0
        values = (pid, start, incarnation, now_ms(), 0, self.header("generation"))
        _ROW.pack_into(self._map, self._at(slot), *values)
        return Place(self, self._map, self._at(slot), slot, incarnation)

    @staticmethod
    def _at(slot: int) -> int:
        return _HEADER_BYTES + slot * _ROW.size


class Place:
    """A handler's own row."""

    def __init__(self, roster: Roster, memory: mmap.mmap, at: int, slot: int, incarnation: int) -> None:
        self.roster = roster
        self.slot = slot
        self.incarnation = incarnation
        self._map = memory
        self._at = {name: at + 8 * position for position, name in enumerate(_FIELDS)}

    def beat(self, busy_s: float) -> None:
        """Say that we go on, and how long we did not wait for requests so far."""
        _NUMBER.pack_into(self._map, self._at["beat_ms"], now_ms())
        _NUMBER.pack_into(self._map, self._at["busy_us"], int(busy_s * 1e6))

    def serve(self, generation: int) -> None:
        """Say which snapshot we serve from now on."""
        _NUMBER.pack_into(self._map, self._at["generation"], generation)

    @property
    def is_first(self) -> bool:
        """Whether no living handler has a lower slot: one of all does what need be done once."""
        return all(row.slot >= self.slot for row in self.roster.rows())


def now_ms() -> int:
    """Milliseconds on the monotonic clock, which all processes share."""
    return time.monotonic_ns() // 1_000_000
