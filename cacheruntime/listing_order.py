"""How far a listing in key order is, and which directories it has passed.

Stores that list their keys in the byte order of their UTF-8 give all that is below a directory together: no other key
can stand between two that begin with ``a/``. ``a-b`` stands before all of them and ``a0`` behind, for "-" < "/" < "0".
So a directory is whole as soon as a key comes that is not below it.
"""

import logging
import sys
from collections.abc import Iterable, Iterator

from forebay.cacheruntime.understore.base import Entry, Kind

log = logging.getLogger(__name__)

_ENCODING = sys.getfilesystemencoding()  # as os.fsencode, without a call for each name


class ListingOrder:
    """Follows one listing. One thread lists; others may ask `stands_in` and `is_behind`, which look at `key` alone."""

    def __init__(self, where: str) -> None:
        """Args: where: the store in words, for the log."""
        self.key = b""
        """The last key that came, below the root; empty before the first."""
        self.kept = True
        """No key came that should have come before."""
        self._where = where
        self._directory = b""
        self._passed: list[bytes] = []

    def follow(self, pages: Iterable[list[Entry]]) -> Iterator[list[Entry]]:
        """The pages as they are."""
        for page in pages:
            self._advance(page)
            yield page

    def take_passed(self) -> list[bytes]:
        """Paths of directories of which all has come, each once; nothing once the order was not kept.

        Odd keys give paths that no directory has: ``a//b`` gives ``a/``.
        """
        passed, self._passed = self._passed, []
        return passed

    def stands_in(self, path: bytes) -> bool:
        """Whether the last key is an entry of that directory itself ('' is the root)."""
        return self.key != b"" and _directory_of(self.key) == path

    def is_behind(self, path: bytes) -> bool:
        """Whether the listing has left that directory behind, if it ever came to it."""
        below = path + b"/"
        return path != b"" and self.key > below and not self.key.startswith(below)

    def _advance(self, page: list[Entry]) -> None:
        if not self.kept:
            return
        key = self.key
        for entry in page:
            last, key = key, _key(entry)
            if key < last and not entry.size and key + b"/" >= last:
                key += b"/"  # a directory's marker that lost its slash on the way (obstore), and has nothing below it
            if key < last:
                # Some look-alike of S3. What was taken for whole need not be so.
                log.warning("%s does not list its keys in order: %r came behind %r", self._where, key, last)
                self.kept = False
                self._passed = []
                break
            directory = _directory_of(key)
            if directory != self._directory:
                self._leave(directory)
        self.key = key

    def _leave(self, entered: bytes) -> None:
        inside = entered + b"/"
        left = self._directory
        while left and not inside.startswith(left + b"/"):
            self._passed.append(left)
            left = _directory_of(left)
        self._directory = entered


def _key(entry: Entry) -> bytes:
    path = entry.path.encode(_ENCODING, "surrogateescape")
    # A directory's marker: its key ends with a slash, which the key "/" has kept.
    return path + b"/" if entry.kind is Kind.DIRECTORY and path != b"/" else path


def _directory_of(key: bytes) -> bytes:
    return key.rpartition(b"/")[0]
