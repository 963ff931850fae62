"""Counters of a mount in memory that its handlers and the command line share.

A file in the mount's runtime folder holds one row of 8-byte numbers for each handler slot; a row has one writer. Its
name has the number of fields in it: after an upgrade handlers of two versions may serve a mount for a moment.
"""

import struct
from dataclasses import dataclass, fields
from pathlib import Path

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
    """Whole blocks that these reads asked the worker for, read-ahead included; what was cached already counts too."""

    @property
    def hit_ratio(self) -> float | None:
        """Share of reads and passthrough opens that needed no under-store; None before the first."""
        good = self.hits + self.passthrough_opens
        return good / (good + self.misses) if good + self.misses else None

    @property
    def amplification(self) -> float | None:
        """Bytes fetched for each byte that was asked for, at most; None before the first cold read."""
        return self.cold_fetched_bytes / self.cold_bytes if self.cold_bytes else None


_FIELDS = tuple(field.name for field in fields(Counts))
_OFFSET = {name: position * _NUMBER.size for position, name in enumerate(_FIELDS)}
_ROW_BYTES = len(_FIELDS) * _NUMBER.size


def _path(folder: Path) -> Path:
    return folder / f"counters-{len(_FIELDS)}"


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
        at = self._start + _OFFSET[name]
        _NUMBER.pack_into(self._map, at, _NUMBER.unpack_from(self._map, at)[0] + by)

    def close(self) -> None:
        self._map.close()


def read_counts(folder: Path) -> Counts:
    """The sum over all handlers of a mount; zeros when there is no such mount any more."""
    try:
        raw = _path(folder).read_bytes()
    except OSError:
        return Counts()
    sums = Counts()
    for start in range(0, len(raw) - _ROW_BYTES + 1, _ROW_BYTES):
        for name in _FIELDS:
            setattr(sums, name, getattr(sums, name) + _NUMBER.unpack_from(raw, start + _OFFSET[name])[0])
    return sums
