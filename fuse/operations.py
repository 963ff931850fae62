"""What an engine asks of a file system, and the one way in which an answer can wait.

The methods and their meanings follow pyfuse3's request handlers, with one difference: they do not wait. What cannot be
answered from the node's files alone raises `NotReady`, the engine waits outside (in a task of its own, so that
other requests go on) and asks again. So every operation can be repeated, which a resent request needs anyway.
"""

import errno
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

from forebay.cacheruntime.errors import ForebayError, SourceDenied, SourceNotFound
from forebay.fuse.open_table import Attempt
from forebay.fuse.order import Progress
from forebay.fuse.wire_reply import Attributes


class NotReady(Exception):
    """The answer needs something that is not on this machine yet.

    `wait` brings it and returns None, upon which the operation is to be tried again; or it returns the final answer
    itself (bytes of a READ that no tier had room for). It raises ForebayError when it cannot.
    """

    def __init__(self, wait: Callable[[], Awaitable[bytes | None]]) -> None:
        super().__init__()
        self.wait = wait


class Refused(Exception):
    """The operation fails with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class FileEntry(NamedTuple):
    """A name and what it stands for, as LOOKUP and READDIRPLUS give it."""

    node: int
    attributes: Attributes
    name: bytes
    entry_valid_s: float
    attr_valid_s: float
    cookie: int = 0
    """In a listing: where to go on behind it."""


class Opened(NamedTuple):
    """The answer to OPEN."""

    handle: int
    backing_id: int = 0
    """Not 0: the kernel reads that file itself (passthrough)."""


class FileSlice(NamedTuple):
    """Bytes for a READ, still in a file: the engine hands them to the kernel."""

    descriptor: int
    position: int
    length: int


TRIES = 8
"""For one request that goes on being NotReady: after that, what was brought in has gone away over and over."""


class Unreadable(Exception):
    """The bytes of a `FileSlice` cannot be read, for its disk fails or somebody has shortened the file."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What statfs(2) tells."""

    bytes: int
    files: int


class Operations(Protocol):
    """A read-only file system. All methods may raise Refused, and NotReady where the docstring says so."""

    def lookup(self, parent: int, name: bytes) -> FileEntry | None:
        """The entry of that name, None when there is none. NotReady while its directory is not listed."""

    def negative_valid_s(self) -> float:
        """How long the kernel may remember that a name is absent."""

    def getattr(self, node: int) -> tuple[Attributes, float]:
        """Attributes and for how many seconds they hold."""

    def readlink(self, node: int) -> bytes:
        """Target of a symbolic link."""

    def open(self, node: int, flags: int, attempt: Attempt) -> Opened:
        """Open a file."""

    def release(self, node: int, handle: int) -> None:
        """The last user of a handle is gone."""

    def read(self, node: int, handle: int, offset: int, size: int, *, again: bool) -> FileSlice | None:
        """Where the bytes are; None at or past the end. NotReady on a miss; `again` marks the try after one."""

    def unreadable(self, node: int, handle: int, offset: int, size: int) -> NoReturn:
        """What `read` has told could not be read: NotReady, after which to ask again."""

    def opendir(self, node: int) -> bool:
        """Whether the kernel may keep the directory's listing. NotReady while it is not listed."""

    def readdir(self, node: int, after: int) -> Iterator[FileEntry]:
        """Entries; `after` is 0, or the cookie of the one behind which to go on.

        NotReady while the directory is not listed. The iterator must be used up or dropped at once.
        """

    def statfs(self) -> Capacity:
        """How much the dataset holds."""

    def getxattr(self, node: int, name: bytes) -> bytes:
        """Value of an extended attribute."""

    def listxattr(self, node: int) -> list[bytes]:
        """Names of the extended attributes."""

    def expect(self, directory: int, names: list[bytes], progress: Progress | None = None) -> int:
        """These files will be read next, in this order; how many of them were taken note of.

        Args:
            directory: node id.
            names: paths below it.
            progress: who reads them and how far he is, where that is known.
        """

    def lseek(self, node: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE."""


_OTHER_ERRNO: dict[type[ForebayError], int] = {SourceDenied: errno.EACCES, SourceNotFound: errno.ESTALE}
"""A file that is in the catalogue and gone from the source is stale, for open() succeeded: read(2) knows no ENOENT."""


def errno_of(error: ForebayError) -> int:
    """The errno that a reader sees for an error of ours."""
    return _OTHER_ERRNO.get(type(error), error.ERRNO)
