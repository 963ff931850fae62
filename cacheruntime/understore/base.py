"""The border to under-stores: what a worker asks of S3, GCS, HDFS, NAS, HTTP and the rest.

Every method blocks and may be called from several threads at once; the worker calls them from a bounded pool.
Implementations try once and raise `SourceUnavailable` for what may pass; `retry.RetryingStore` tries again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # collections.abc.Buffer from Python 3.12
    from typing_extensions import Buffer


class Kind(Enum):
    """What a path is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


@dataclass(slots=True, unsafe_hash=True)
class Entry:
    """One file, directory or link of an under-store. Nobody changes one; yet it is not frozen, which would make each
    of the millions of a listing cost 0.7 us instead of 0.2."""

    path: str
    """Below the store's root, no leading or trailing slash; bytes that are not UTF-8 as surrogate escapes."""
    kind: Kind
    size: int = 0
    """In bytes; 0 for directories; the target's length for links."""
    mtime_ns: int = 0
    """Last change, nanoseconds since the epoch; 0 where the store does not tell."""
    version: str = ""
    """What If-Match compares: the ETag where there is one, else a token made of mtime (and inode). Files only."""
    target: str = ""
    """Where a symbolic link points."""
    mode: int | None = None
    """Permission bits where the store has them, else None."""


class UnderStore(Protocol):
    """A read-only view of one root in one under-store."""

    @property
    def url(self) -> str:
        """Canonical URL of the root with everything that decides content (endpoint included), no credentials.

        Two stores with the same `url` serve the same bytes: it is hashed into content ids.
        """

    @property
    def pins_version(self) -> bool:
        """Whether every piece that `read_range` gives out is certain to be of the version asked for.

        True where the store itself compares (If-Match). False where only a look before and after can tell: then
        nothing of a read may be kept before its iterator has ended well.
        """

    @property
    def lists_in_key_order(self) -> bool:
        """Whether `list_tree` promises the byte order of keys: UTF-8, with a slash behind what is a directory.

        Then a directory is known to be whole once its listing has gone past it (`listing_order.py`).
        """

    def probe(self) -> None:
        """Find out that the root exists and may be listed.

        Raises:
            SourceNotFound, SourceDenied, SourceUnavailable: with a message that names the thing and the cure.
        """

    def list_tree(self) -> Iterator[list[Entry]]:
        """List everything below the root, in pages of any size.

        Every page comes as soon as the store has sent it. Directories that have no entry of their own (as in
        object stores) are implied by their files and not listed. A root that is itself a file gives one entry
        whose path is its base name.
        """

    def list_directory(self, path: str) -> list[Entry]:
        """List one directory ('' is the root), not what is below its subdirectories.

        Subdirectories are listed also where the store has only files below them.

        Raises:
            SourceNotFound: no such directory.
        """

    def stat(self, path: str) -> Entry:
        """Describe one file as it is now (SourceNotFound when there is none)."""

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """Stream `length` bytes from offset `start`, in pieces of any size, of exactly that version.

        Raises:
            SourceStale: the file is not that version (any more), found before, while or after reading (see
                `pins_version`).
            SourceUnavailable: broken off; pieces already given out are good.
        """

    def close(self) -> None:
        """Give back connections. Idempotent."""


class WholeFiles(Protocol):
    """Reads many files at once, each whole, in one thread. It tries once, and does not say why it failed: `read_range`
    does, asked for the same.

    *Concurrency*: one thread at a time; `wake` is for others. *Resources*: `close` ends what is under way.
    """

    def start(self, path: str, size: int, version: str, tag: object) -> None:
        """Begin with a file of `size` bytes, more than none; `tag` comes back from `wait`."""

    def wait(self, most_s: float) -> "Sequence[tuple[object, Sequence[Buffer] | None]]":
        """Wait until something has ended, at most so long.

        Returns:
            Tags, each with all the bytes of exactly that version; None: it failed.
        """

    def wake(self) -> None:
        """Have a `wait` return."""

    def close(self) -> None:
        """Give back connections."""


@runtime_checkable
class ReadsMany(Protocol):
    """An under-store that has a cheaper way for many small files than one `read_range` for each."""

    def whole_files(self) -> WholeFiles | None:
        """A new one, for the caller to close; None: there is no such way here."""
