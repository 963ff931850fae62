"""An under-store in memory that can wait, fail, go stale or serve short, as a test tells it to."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forebay.cacheruntime.errors import SourceNotFound, SourceStale
from forebay.cacheruntime.understore.base import Entry, Kind

HELD_S = 20.0
"""A read that a test forgot to let go fails after this."""


@dataclass(frozen=True)
class Read:
    """One `read_range`."""

    path: str
    start: int
    length: int


class FakeStore:
    """See `understore.base.UnderStore`."""

    def __init__(self, url: str = "fake://store", *, pins_version: bool = True, piece_bytes: int = 1 << 16) -> None:
        self.url = url
        self.pins_version = pins_version
        self.lists_in_key_order = True
        self.piece_bytes = piece_bytes
        self.files: dict[str, tuple[bytes, str]] = {}
        self.reads: list[Read] = []
        self.faults: list[Exception] = []
        """Each is raised by one read, before its first byte."""
        self.breaks: list[tuple[int, Exception]] = []
        """Each breaks one read off after so many bytes."""
        self.short: dict[str, int] = {}
        """Path -> bytes that the file turns out to have."""
        self.before_piece: Callable[[str, int], None] = lambda path, position: None
        """Called in the reading thread before the piece at that position of the file is given out."""
        self.closed = False
        self._lock = threading.Lock()

    def put(self, path: str, data: bytes, version: str = "v1") -> Entry:
        self.files[path] = (data, version)
        return self.stat(path)

    def probe(self) -> None:
        pass

    def list_tree(self) -> Iterator[list[Entry]]:
        for path in sorted(self.files):
            yield [self.stat(path)]

    def list_directory(self, path: str) -> list[Entry]:
        prefix = path + "/" if path else ""
        found: dict[str, Entry] = {}
        for each in self.files:
            if each.startswith(prefix):
                name, slash, _ = each[len(prefix) :].partition("/")
                below = prefix + name
                found[below] = Entry(below, Kind.DIRECTORY) if slash else self.stat(each)
        if path and not found:
            raise SourceNotFound(f"{self.url}: no {path!r}")
        return list(found.values())

    def stat(self, path: str) -> Entry:
        if path not in self.files:
            raise SourceNotFound(f"{self.url}: no {path!r}")
        data, version = self.files[path]
        return Entry(path, Kind.FILE, len(data), version=version)

    def read_range(self, path: str, start: int, length: int, version: str) -> Iterator[bytes]:
        with self._lock:
            self.reads.append(Read(path, start, length))
            fault = self.faults.pop(0) if self.faults else None
            left, error = self.breaks.pop(0) if self.breaks else (-1, None)
        if fault is not None:
            raise fault
        self._check(path, version)
        data = self.files[path][0][: self.short.get(path)]
        end = min(start + length, len(data))
        for position in range(start, end, self.piece_bytes):
            self.before_piece(path, position)
            if self.pins_version:
                self._check(path, version)
            piece = data[position : min(position + self.piece_bytes, end)]
            if error is not None and left < len(piece):
                yield piece[:left]
                raise error
            left -= len(piece)
            yield piece
        self._check(path, version)

    def _check(self, path: str, version: str) -> None:
        if path not in self.files or self.files[path][1] != version:
            raise SourceStale(f"{self.url}: {path!r} is no longer version {version}")

    def close(self) -> None:
        self.closed = True


class Gate:
    """Holds a store's pieces back until the test lets them go. Put it into `FakeStore.before_piece`."""

    def __init__(self, holds: Callable[[str, int], bool] = lambda path, position: True) -> None:
        self._holds = holds
        self._open = threading.Event()
        self.reached = threading.Event()
        """Some piece is being held."""

    def __call__(self, path: str, position: int) -> None:
        if self._holds(path, position) and not self._open.is_set():
            self.reached.set()
            if not self._open.wait(HELD_S):
                raise AssertionError(f"{path} at {position} was held for ever")

    def let_go(self) -> None:
        self._open.set()
