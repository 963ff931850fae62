"""Read-ahead of one reader of one file: pure windows that double while the reader goes straight on.

The scheme is the kernel's own (mm/readahead.c: a window that doubles, its next part asked for before the reader gets
there), at the scale of object stores, with four additions:

* two windows, for a reader that goes back and forth between two regions (a merge, a table with two columns);
* places that were read once are remembered, but get no window before the reader goes on from there;
* what was fetched ahead and left unread is a debt: until four times as much was read straight on, no further scan gets
  a window;
* who begins a file at its start is taken for one who reads on, unless most readers of late began elsewhere.
"""

from dataclasses import dataclass

from forebay.cacheruntime.blocks import BLOCK_BYTES, around
from forebay.cacheruntime.config import KIB

WINDOWS = 2
"""Scans of one reader that have a window."""

_PLACES = 4
"""Places read once that are remembered: two scans that begin together, and a stray read or two between them."""

_OUT_OF_ORDER = 8
"""The kernel splits its read-ahead (4 MiB) into requests (512 KiB) and may send them in any order. A request that is
this many of its own size off is part of the same scan. For small random reads that is near nothing."""

_SPLIT_BYTES = 512 * KIB
"""Such requests. A smaller one has to follow on a place, or leave out one like it, to begin a scan there: in files of 1
MiB every read of 128 KiB is near every other."""

_TURN = 4
"""Readers who go about it in the other way, until that is what is expected of the next; three times as many after a
long time."""

_DEBT_RATE = 4
"""A reader of 1 MiB here and 1 MiB there would at rate 1 earn with each piece the right to the next mistake."""

_DEBT_MAX_BYTES = 8 << 20
"""However wrong read-ahead went, reading that much straight on brings it back."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What is worth fetching besides the bytes that were asked for."""

    window_bytes: int
    """From the request's offset; at least the request's length. For a miss; it reaches to the end of what is ahead, as
    who misses asks for the window alone."""
    ahead_start: int = 0
    ahead_bytes: int = 0
    """For a hit: fetch these in the background; 0: nothing."""
    expected: bool = False
    """The bytes asked for lie in what was advised before: they are probably on their way."""


class _Scan:
    """A place in the file from which a reader may go straight on."""

    __slots__ = ("ahead_end", "end", "run", "window")

    def __init__(self, end: int, run: int) -> None:
        self.end = end
        """Behind the furthest byte that was asked for."""
        self.run = run
        """Bytes asked for since it began."""
        self.window = 0
        """0 until the reader has gone on from here."""
        self.ahead_end = end
        """Behind the last byte advised."""

    def is_near(self, offset: int, size: int) -> bool:
        if not self.window and size < _SPLIT_BYTES:
            return self.end <= offset <= (self.end + size if self.run else 0)
        slack = _OUT_OF_ORDER * size
        return self.end - max(slack, self.window) <= offset <= self.end + slack

    def distance(self, offset: int) -> int:
        return abs(offset - self.end)

    def unread(self) -> int:
        """Bytes advised ahead that were not asked for."""
        return max(0, self.ahead_end - self.end)


class Habits:
    """How readers go about the files of a mount: straight on, or here and there. Each reader of a file counts once."""

    def __init__(self) -> None:
        self.go_straight_on = True
        """Whether who begins a file at its start is likely to read on: of 128 KiB reads at random in files of 1 MiB
        every eighth is there."""
        self.stray_bytes = 0
        """The largest request here or there since readers were last taken to go straight on."""
        self._score = 0

    def began(self, offset: int, size: int) -> bool:
        """Note a reader's first request of a file; whether it counts as one here or there."""
        if offset and size < _SPLIT_BYTES:
            self.stray_bytes = max(self.stray_bytes, size)
            self._add(-1)
            return True
        if not offset:  # else it is one of several of the kernel's, of which another handler may have had the first
            self._add(1)
        return False

    def went_on(self) -> None:
        """Who was counted as here or there reads straight on."""
        self._add(2)

    def _add(self, by: int) -> None:
        self._score = max(-2 * _TURN, min(self._score + by, 2 * _TURN))
        if abs(self._score) >= _TURN:
            self.go_straight_on = self._score > 0
            if self.go_straight_on:
                self.stray_bytes = 0


class Readahead:
    """State of one reader. Losing it costs a small window, nothing else."""

    __slots__ = ("_debt", "_habits", "_is_stray", "_max", "_min", "_places", "_scans", "asked_bytes", "fetched_bytes")

    def __init__(self, min_bytes: int, max_bytes: int, habits: Habits | None = None) -> None:
        """
        Args:
            min_bytes: of the first window.
            max_bytes: windows double up to this.
            habits: of all readers that are alike.
        """
        self._min = min_bytes
        self._max = max_bytes
        self._habits = habits or Habits()
        self._is_stray = False
        self._scans: list[_Scan] = []  # with a window, the one used last at the end
        self._places = [_Scan(0, 0)]  # the begin of a file is where scans begin
        self._debt = 0
        self.asked_bytes = 0
        """What the reader asked for so far."""
        self.fetched_bytes = 0
        """What that made us fetch, at most: pieces for single reads, whole blocks for scans and what was advised ahead
        of them."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Sizes of the windows, in bytes, the one used last at the end."""
        return tuple(scan.window for scan in self._scans)

    def observe(self, offset: int, size: int, file_size: int) -> Advice:
        """Note a request and advise.

        Args:
            offset, size: of the request, bytes.
            file_size: bytes.
        """
        end = min(offset + size, file_size)
        if not self.asked_bytes:
            self._is_stray = self._habits.began(offset, size)
        self.asked_bytes += end - offset
        scan = self._nearest(offset, size)
        if scan is not None and self._is_stray:
            self._is_stray = False
            self._habits.went_on()
        if scan is None:
            # One small read far away may be an index or a footer; only its own pieces are fetched.
            self._places = [*self._places, _Scan(end, size)][-_PLACES:]
            return self._alone(offset, end, size, file_size)
        expected = bool(scan.window) and end <= scan.ahead_end
        # Blocks up to there are counted; a gap was not fetched.
        counted = _whole_blocks(scan.ahead_end) if scan.window else 0
        if offset > counted or not counted:
            counted = offset - offset % BLOCK_BYTES
        is_begin = not scan.run
        scan.end = max(scan.end, end)
        scan.run += size
        self._debt = max(0, self._debt - size)
        if not scan.window and (self._debt or (is_begin and not self._habits.go_straight_on)):
            scan.ahead_end = max(scan.ahead_end, end)
            return self._alone(offset, end, size, file_size)
        advice = self._advance(scan, offset, size, end, file_size, expected)
        self._merge(scan)
        self.fetched_bytes += max(0, min(_whole_blocks(scan.ahead_end), file_size) - counted)
        return advice

    def _alone(self, offset: int, end: int, size: int, file_size: int) -> Advice:
        """For a request with which nothing else is worth fetching."""
        start, stop = around(offset, end, file_size)
        self.fetched_bytes += stop - start
        return Advice(size)

    def _nearest(self, offset: int, size: int) -> _Scan | None:
        """The scan that a request goes on with, now the one used last; None when it is none's."""
        for kind in (self._scans, self._places):
            near = [scan for scan in kind if scan.is_near(offset, size)]
            if near:
                scan = min(near, key=lambda each: each.distance(offset))
                kind.remove(scan)
                kind.append(scan)
                return scan
        return None

    def _advance(self, scan: _Scan, offset: int, size: int, end: int, file_size: int, expected: bool) -> Advice:
        if not scan.window:
            self._begin(scan)
            # From the start of the block, so that a small read which looks straight by chance costs one block, not two.
            stop = min(max(end, offset - offset % self._min + self._min), file_size)
            scan.ahead_end = max(scan.ahead_end, stop)
            return Advice(max(size, stop - offset))
        if scan.ahead_end >= file_size or scan.ahead_end - scan.end > scan.window * 3 // 4:
            return Advice(max(size, min(scan.window, scan.ahead_end - offset)), expected=expected)
        if scan.window <= 2 * scan.run:
            scan.window = min(2 * max(scan.window, size), self._max)
        start = max(scan.ahead_end, scan.end)
        stop = min(scan.end + scan.window, file_size)
        scan.ahead_end = max(scan.ahead_end, stop)
        return Advice(max(size, stop - offset), start, max(0, stop - start), expected)

    def _begin(self, scan: _Scan) -> None:
        """Give a place a window; the scan that was not used for longest gives its own up."""
        scan.window = self._min
        self._places.remove(scan)
        self._scans.append(scan)
        if len(self._scans) > WINDOWS:
            self._debt = min(self._debt + _DEBT_RATE * self._scans.pop(0).unread(), _DEBT_MAX_BYTES)

    def _merge(self, scan: _Scan) -> None:
        """What lies in a scan's window is the same scan: its requests came out of order."""
        if not scan.window:
            return
        low = scan.end - scan.window
        for other in self._scans[:]:
            if other is not scan and low <= other.end <= scan.ahead_end:
                self._scans.remove(other)
                scan.ahead_end = max(scan.ahead_end, other.ahead_end)
        self._places = [place for place in self._places if not low <= place.end <= scan.ahead_end]


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
