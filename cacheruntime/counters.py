"""Counters of a mount in memory that its handlers and the command line share.

A file in the mount's runtime folder holds one row of 8-byte numbers for each handler slot; a row has one writer: the
fields of `Counts`, then for each of `Source` bytes, the sum of times in nanoseconds and the buckets of a histogram. Its
name has the number of numbers in it: after an upgrade handlers of two versions may serve a mount for a moment.
"""

import struct
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path

from forebay.cacheruntime.histogram import BUCKETS, Histogram, bucket_of
from forebay.cacheruntime.shared_memory import map_shared

_ROWS = 64
_NUMBER = struct.Struct("=Q")


@dataclass
class Counts:
    """What a mount has done since it was made. Reads that the kernel serves by itself (page cache, passthrough)
    are seen by nobody; passthrough shows as grants."""

    hits: int = 0
    """READ requests served from the cache."""
    hit_bytes: int = 0
    misses: int = 0
    """READ requests that had to wait for the under-store."""
    miss_bytes: int = 0
    passthrough_opens: int = 0
    passthrough_granted_bytes: int = 0
    """Sizes of the files granted; how much of them was read is not known."""
    passthrough_refused: int = 0
    """Times that the kernel would not register a file, upon which passthrough is off in that handler."""
    pushes: int = 0
    """Small files put into the page cache ahead of their reader."""
    pushed_bytes: int = 0
    pushes_lost: int = 0
    """Of these, how many the reader asked for all the same: memory pressure had pushed them out."""
    push_pauses: int = 0
    """Times that nothing was put ahead for a while, as memory was short."""
    requests: int = 0
    """All FUSE requests."""
    errors: int = 0
    """Requests answered with EIO, ETIMEDOUT or ESTALE."""
    cold_bytes: int = 0
    """Asked for by READ of files that were not wholly cached."""
    cold_fetched_bytes: int = 0
    """Pieces (for single reads) and whole blocks that these reads asked the worker for, read-ahead included; what was
    cached already counts too."""

    @property
    def hit_ratio(self) -> float | None:
        """Share of reads and passthrough opens that needed no under-store; None before the first."""
        good = self.hits + self.passthrough_opens
        return good / (good + self.misses) if good + self.misses else None

    @property
    def amplification(self) -> float | None:
        """Bytes fetched for each byte that was asked for, at most; None before the first cold read."""
        return self.cold_fetched_bytes / self.cold_bytes if self.cold_bytes else None


class Source(Enum):
    """Where the bytes of a READ request came from. What the kernel has in its page cache or reads by itself
    (passthrough) makes no request."""

    TIER = "tier"
    """Cached: the time to answer, of one request in `SAMPLED`."""
    AHEAD = "ahead"
    """Not cached when asked for, but on their way: the time until they came."""
    STORE = "store"
    """Fetched because of this request: the time until they were in the cache."""
    MEMORY = "memory"
    """The same, but no tier had room: they came through a reply."""


SAMPLED = 16
"""Of answers from a tier one in so many is timed: to time each would cost a small read a twentieth of its rate."""


@dataclass
class SourceTimes:
    """Of one source: how long its requests took, and their bytes."""

    bytes: int = 0
    times: Histogram = field(default_factory=Histogram)

    def __add__(self, other: "SourceTimes") -> "SourceTimes":
        return SourceTimes(self.bytes + other.bytes, self.times + other.times)

    def __sub__(self, earlier: "SourceTimes") -> "SourceTimes":
        return SourceTimes(max(self.bytes - earlier.bytes, 0), self.times - earlier.times)


_FIELDS = tuple(field.name for field in fields(Counts))
_OFFSET = {name: position * _NUMBER.size for position, name in enumerate(_FIELDS)}
_SOURCE_NUMBERS = 2 + BUCKETS
_SOURCE_OFFSET = {
    source: (len(_FIELDS) + position * _SOURCE_NUMBERS) * _NUMBER.size for position, source in enumerate(Source)
}
_NUMBERS = len(_FIELDS) + len(Source) * _SOURCE_NUMBERS
_ROW_BYTES = _NUMBERS * _NUMBER.size


def _path(folder: Path) -> Path:
    return folder / f"counters-{_NUMBERS}"


class CounterRow:
    """The row of one handler."""

    def __init__(self, folder: Path, row: int) -> None:
        """
        Args:
            folder: of the mount.
            row: the handler's slot.
        """
        self._map = map_shared(_path(folder), _ROWS * _ROW_BYTES)
        self._start = (row % _ROWS) * _ROW_BYTES

    def add(self, name: str, by: int = 1) -> None:
        self._add(self._start + _OFFSET[name], by)

    def observe(self, source: Source, nanoseconds: int, size: int) -> None:
        """Count one READ request.

        Args:
            source: where its bytes came from.
            nanoseconds: that it took.
            size: in bytes.
        """
        at = self._start + _SOURCE_OFFSET[source]
        self._add(at, size)
        self._add(at + _NUMBER.size, nanoseconds)
        self._add(at + (2 + bucket_of(nanoseconds)) * _NUMBER.size, 1)

    def _add(self, at: int, by: int) -> None:
        _NUMBER.pack_into(self._map, at, _NUMBER.unpack_from(self._map, at)[0] + by)

    def close(self) -> None:
        self._map.close()


def read_sources(folder: Path) -> dict[Source, SourceTimes]:
    """The sum over all handlers of a mount; zeros when there is no such mount any more."""
    raw = _read(folder)
    sums = {source: SourceTimes() for source in Source}
    for start in range(0, len(raw) - _ROW_BYTES + 1, _ROW_BYTES):
        for source, offset in _SOURCE_OFFSET.items():
            size, sum_ns, *counts = struct.unpack_from(f"={_SOURCE_NUMBERS}Q", raw, start + offset)
            sums[source] += SourceTimes(size, Histogram(counts, sum_ns))
    return sums


def _read(folder: Path) -> bytes:
    try:
        return _path(folder).read_bytes()
    except OSError:
        return b""


def read_counts(folder: Path) -> Counts:
    """The sum over all handlers of a mount; zeros when there is no such mount any more."""
    raw = _read(folder)
    sums = Counts()
    for start in range(0, len(raw) - _ROW_BYTES + 1, _ROW_BYTES):
        for name in _FIELDS:
            setattr(sums, name, getattr(sums, name) + _NUMBER.unpack_from(raw, start + _OFFSET[name])[0])
    return sums
