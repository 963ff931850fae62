"""Writing to tier files: one writer at a time, and nobody else unnoticed."""

import errno
import os
import threading
from collections.abc import Sequence

from forebay.cacheruntime.index import Seal
from forebay.cacheruntime.keys import ContentId

_IOV_MAX = os.sysconf("SC_IOV_MAX")


class ChangedOutside(OSError):
    """Somebody else has written to a file of the cache."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "a file of the cache was changed by somebody else")


def seal_of(status: os.stat_result) -> Seal:
    """What a file has for a seal now."""
    return Seal(status.st_ino, status.st_ctime_ns)


class Writes:
    """The files of their own that are being written, and the seals that they had after our last write.

    The kernel lets only one write to a file go on at once, and makes the others spin: with 16 threads on one tier file
    that was up to a sixth of the worker's time. A lock here lets them sleep. Files share locks: a clash costs a short
    wait. `write` is for threads, all else for the event loop.
    """

    def __init__(self) -> None:
        self._locks = tuple(threading.Lock() for _ in range(64))
        self._seals: dict[ContentId, Seal] = {}

    def __contains__(self, content: ContentId) -> bool:
        return content in self._seals

    def all(self) -> list[ContentId]:
        return list(self._seals)

    def begin(self, content: ContentId, seal: Seal) -> None:
        """From now on; the file looks like that."""
        self._seals[content] = seal

    def seal(self, content: ContentId) -> Seal | None:
        """As it was left by the last write."""
        return self._seals.get(content)

    def end(self, content: ContentId) -> None:
        self._seals.pop(content, None)

    def write(self, content: ContentId, descriptor: int, pieces: Sequence[memoryview], offset: int) -> None:
        """Write pieces, one behind the other.

        Raises:
            ChangedOutside: the file is not as we left it. OSError: from writing.
        """
        with self._locks[content[0] % len(self._locks)]:
            expected = self._seals.get(content)
            if expected is None or seal_of(os.fstat(descriptor)) != expected:
                raise ChangedOutside
            try:
                write_all(descriptor, pieces, offset)
            finally:
                # The loop may have ended it meanwhile: then the file was dropped.
                if content in self._seals:
                    self._seals[content] = seal_of(os.fstat(descriptor))


def write_all(descriptor: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write all pieces, one behind the other, at `offset` (a full disk may take only a part without an error)."""
    left = list(pieces)
    while left:
        written = os.pwritev(descriptor, left[:_IOV_MAX], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
