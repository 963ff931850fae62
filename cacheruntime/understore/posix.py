"""Folders of this machine: local disks, NFS, Lustre and other mounted file systems.

Not through fsspec: its local file system follows links (so a tree with a link upwards never ends), fails on dangling
ones, and has no inode in what it tells.
"""

import errno
import logging
import os
import stat as modes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from forebay.cacheruntime.errors import (
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceStale,
    SourceTimeout,
    SourceUnavailable,
)
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.retry import Retrier
from forebay.cacheruntime.understore.scanner import pages_of_scanner

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

ALONE_ENTRIES = 20_000
"""A tree of more is scanned by a second process (`scanner.py`), whose start takes as long as a tenth of them."""

_PAGE_ENTRIES = 1000
_PIECE_BYTES = 1 << 20

# Of the network file system or the moment, not of the path: worth another try.
_PASSING = frozenset({
    errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNRESET, errno.EREMOTEIO, errno.ENOTCONN,
    errno.ESTALE,
})  # fmt: skip

_TYPE_BITS, _PERMISSION_BITS = 0o170000, 0o7777  # stat.S_IFMT and S_IMODE, without a call

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

log = logging.getLogger(__name__)


class PosixStore:
    """The tree below one folder, or one file."""

    def __init__(self, root: str, url: str, retrier: Retrier) -> None:
        self._root = root
        self._url = url
        self._retrier = retrier

    @property
    def url(self) -> str:
        """See `UnderStore.url`."""
        return self._url

    @property
    def pins_version(self) -> bool:
        """No: a file can be written to while it is read; a look before and after tells."""
        return False

    @property
    def lists_in_key_order(self) -> bool:
        """No: directory by directory."""
        return False

    def probe(self) -> None:
        """See `UnderStore.probe`."""
        try:
            if modes.S_ISDIR(os.stat(self._root).st_mode):
                with os.scandir(self._root):
                    return
            os.close(os.open(self._root, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            raise _mapped(error, self._root) from error

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`. Directories are listed too; sockets, pipes and devices are left out.

        A folder that may not be read, or that vanishes meanwhile, is left out with a warning: one such folder in a
        home or project tree must not make the rest unusable.
        """
        try:
            root = os.stat(self._root)  # the root alone is followed when it is a link
        except OSError as error:
            raise _mapped(error, self._root) from error
        if not modes.S_ISDIR(root.st_mode):
            yield [self.stat(os.path.basename(self._root))]
            return
        pending = [""]
        listed = 0
        while pending:
            for page in self._pages(pending.pop(), pending):
                listed += len(page)
                yield page
            if listed >= ALONE_ENTRIES and pending and len(os.sched_getaffinity(0)) > 1:
                yield from pages_of_scanner(self._root, pending, self._retrier.config.deadline_s)
                return

    def walk(self, pending: list[str]) -> Iterator[list[Entry]]:
        """List what is below some folders, depth first; `pending` has their paths and is used up."""
        while pending:
            yield from self._pages(pending.pop(), pending)

    def _pages(self, folder: str, pending: list[str]) -> Iterator[list[Entry]]:
        inside = f"{folder}/" if folder else ""
        full = self._full(folder)
        page: list[Entry] = []
        try:
            with self._retrier.retry_call(lambda: _opened(full)) as items:
                for item in items:
                    entry = _entry(item, inside + item.name)
                    if entry is None:
                        continue
                    page.append(entry)
                    if entry.kind is Kind.DIRECTORY:
                        pending.append(entry.path)
                    if len(page) >= _PAGE_ENTRIES:
                        yield page
                        page = []
        except OSError as error:
            # Half a folder would look like deletions, and what was given out cannot be taken back.
            raise _mapped(error, full) from error
        except SourceError as error:
            if not folder or error.TRANSIENT or isinstance(error, SourceTimeout):
                raise
            log.warning("left out of the listing: %s", error)
        if page:
            yield page

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        if not path and not os.path.isdir(self._root):
            return [self.stat(os.path.basename(self._root))]
        try:
            with self._reached(path, inside=True) as folder, os.scandir(folder) as items:
                found = [_entry(item, f"{path}/{item.name}" if path else item.name) for item in items]
        except OSError as error:
            raise _mapped(error, self._full(path)) from error
        return [entry for entry in found if entry is not None]

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`; a link is described, not followed."""
        full = self._full(path)
        try:
            with self._reached(path) as reached:
                # A root that is a link to a file is followed like one to a folder.
                status = os.stat(reached, follow_symlinks=full == self._root)
                entry = _described(path, status, lambda: os.readlink(reached))
        except OSError as error:
            raise _mapped(error, full) from error
        if entry is None:
            raise SourceNotFound(f"{full!r} is neither a file nor a directory nor a link")
        return entry

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`.

        The version is compared before the first and after the last byte, on the descriptor that is read: a rename
        over the path changes neither the open file nor what is read from it. A writer who changes bytes and puts
        size, inode and both times back cannot be seen; no local reader could see him.
        """
        full = self._full(path)
        # A link is an entry of its own; a file that became one is another version, so it is not followed.
        follow = 0 if full == self._root else os.O_NOFOLLOW
        try:
            with self._reached(path) as reached:
                descriptor = os.open(reached, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | follow)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise SourceStale(f"{full!r} is gone since it was listed") from error
            if error.errno == errno.ESTALE:
                raise SourceStale(f"{full!r} has been replaced on its server") from error
            raise _mapped(error, full) from error
        try:
            _compare(descriptor, version, full)
            offset, end = start, start + length
            while offset < end:
                piece = os.pread(descriptor, min(end - offset, _PIECE_BYTES), offset)
                if not piece:
                    raise SourceStale(f"{full!r} ends at byte {offset}, before the {end} that were listed")
                offset += len(piece)
                yield piece
            _compare(descriptor, version, full)
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise SourceStale(f"{full!r} has been replaced on its server") from error
            raise _mapped(error, full) from error
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def _reached(self, path: str, *, inside: bool = False) -> Iterator[str]:
        """A name of a path for one system call, by way of folders only: what a link points to is not in the tree.

        Args:
            path: below the root.
            inside: it is a folder too.

        Raises:
            OSError: a folder on the way is none.
        """
        full = self._full(path)
        if full == self._root:
            yield full
            return
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        *above, name = [*parts, "."] if inside else parts
        folder = os.open(self._root, _FOLDER)
        try:
            for part in above:
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield f"/proc/self/fd/{folder}/{name}"
        finally:
            os.close(folder)

    def _full(self, path: str) -> str:
        if not path:
            return self._root
        if path == os.path.basename(self._root) and not os.path.isdir(self._root):
            return self._root
        return f"{self._root.rstrip('/')}/{path}"


def _compare(descriptor: int, version: str, full: str) -> None:
    status = os.fstat(descriptor)
    if version and (not modes.S_ISREG(status.st_mode) or _version(status) != version):
        raise SourceStale(f"{full!r} has changed since it was listed")


def _version(status: os.stat_result) -> str:
    """Times of content and of inode, inode number and size, in hex.

    The inode shows a file renamed over another with its times kept (rsync, mv); the inode's own time (ctime) shows
    content written with the modification time put back (cp -p, tar, touch -r), which no user call can put back.
    """
    return f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def _opened(folder: str) -> "AbstractContextManager[Iterator[os.DirEntry[str]]]":
    try:
        return os.scandir(folder)
    except OSError as error:
        raise _mapped(error, folder) from error


def _entry(item: "os.DirEntry[str]", path: str) -> Entry | None:
    """One name of a folder; None for what is no file, directory or link, or is gone already."""
    try:
        status = item.stat(follow_symlinks=False)
        mode = status.st_mode
        if mode & _TYPE_BITS == modes.S_IFREG:  # as `_described`: of millions, nearly all are files
            size, mtime_ns = status.st_size, status.st_mtime_ns
            version = f"{mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_ino:x}-{size:x}"
            return Entry(path, Kind.FILE, size, mtime_ns, version, "", mode & _PERMISSION_BITS)
        return _described(path, status, lambda: os.readlink(item.path))
    except FileNotFoundError:
        return None  # deleted between the folder's reply and this call


def _described(path: str, status: os.stat_result, read_target: Callable[[], str]) -> Entry | None:
    permissions = modes.S_IMODE(status.st_mode)
    if modes.S_ISREG(status.st_mode):
        return Entry(path, Kind.FILE, status.st_size, status.st_mtime_ns, _version(status), mode=permissions)
    if modes.S_ISDIR(status.st_mode):
        return Entry(path, Kind.DIRECTORY, 0, status.st_mtime_ns, mode=permissions)
    if modes.S_ISLNK(status.st_mode):
        target = read_target()
        # Absolute targets are given as they are: what they mean is the reader's machine's affair.
        size = len(os.fsencode(target))
        return Entry(path, Kind.SYMLINK, size, status.st_mtime_ns, target=target, mode=permissions)
    return None


def _mapped(error: OSError, full: str) -> SourceError:
    why = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return SourceNotFound(f"{full!r} does not exist ({why})")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourceDenied(f"{full!r} may not be read ({why}); the worker runs as user id {os.geteuid()}")
    if error.errno in _PASSING:
        return SourceUnavailable(f"{full!r} cannot be read just now ({why})")
    return SourceError(f"{full!r} cannot be read ({why})")
