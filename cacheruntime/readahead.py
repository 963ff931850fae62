"""Read-ahead of one reader of one file: a pure window that doubles while the reader goes straight on.

The scheme is the kernel's own (mm/readahead.c: a window that doubles, its next part asked for before the reader gets
there), at the scale of object stores.
"""

from dataclasses import dataclass

_SLACK_BYTES = 2 << 20
"""The kernel sends the parts of its own read-ahead a little out of order; this far off still counts as straight on."""


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


class Readahead:
    """State of one reader. Losing it costs a small window, nothing else."""

    __slots__ = ("_ahead_end", "_end", "_max", "_min", "_window")

    def __init__(self, min_bytes: int, max_bytes: int) -> None:
        self._min = min_bytes
        self._max = max_bytes
        self._end = 0
        self._window = 0
        self._ahead_end = 0

    def observe(self, offset: int, size: int, file_size: int) -> Advice:
        """Note a request and advise.

        Args:
            offset, size: of the request, bytes.
            file_size: bytes.
        """
        straight = self._end - _SLACK_BYTES - self._window <= offset <= self._end + _SLACK_BYTES
        end = min(offset + size, file_size)
        if not straight:
            # One small read far away may be an index or a footer; only its own blocks are fetched.
            self._end, self._window, self._ahead_end = end, 0, end
            return Advice(size)
        expected = bool(self._window) and end <= self._ahead_end
        self._end = max(self._end, end)
        if not self._window:
            # From the start of the block, so that a small read which looks straight by chance costs one block, not two.
            self._window = self._min
            stop = min(max(end, offset - offset % self._min + self._min), file_size)
            self._ahead_end = max(self._ahead_end, stop)
            return Advice(max(size, stop - offset))
        if self._ahead_end >= file_size or self._ahead_end - self._end > self._window // 2:
            return Advice(max(size, min(self._window, self._ahead_end - offset)), expected=expected)
        self._window = min(2 * max(self._window, size), self._max)
        start = max(self._ahead_end, self._end)
        stop = min(self._end + self._window, file_size)
        self._ahead_end = max(self._ahead_end, stop)
        return Advice(max(size, stop - offset), start, max(0, stop - start), expected)
