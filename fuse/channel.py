"""Writing to the FUSE descriptor: replies, notifications, and file slices that never pass through Python."""

import errno
import fcntl
import logging
import os
import struct
from contextlib import suppress

from forebay.fuse import wire_reply
from forebay.fuse.operations import FileSlice, Unreadable

log = logging.getLogger(__name__)

_SPLICE_MIN_BYTES = 64 << 10
"""Below this one copy through user space is cheaper than three system calls of splicing (measured: 50-100 KiB)."""

_PIPE_BYTES = 1 << 20
"""What a pipe holds at most without CAP_SYS_RESOURCE (fs.pipe-max-size)."""

_CLONE = 0x8004E500
"""FUSE_DEV_IOC_CLONE of the kernel's fuse.h."""

_GONE = (errno.ENOENT, errno.ENODEV)
"""Interrupted, or answered by another handler; unmounted."""

_UNKNOWN = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
"""The kernel knows nothing of what a notification is about, so there is nothing to be told."""


def pipe_bytes_allowed() -> int:
    """The largest pipe that this process may have, up to 2 MiB; a spliced message has to fit into one whole."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        for size in (2 * _PIPE_BYTES, _PIPE_BYTES):
            with suppress(OSError):
                return fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
        return fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    finally:
        os.close(reader)
        os.close(writer)


class Channel:
    """One handler's way to the kernel.

    Resources: the descriptor stays the caller's; `close` ends the pipe.
    Concurrency: `notify` may be called from any thread, all else from one.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self._clone = -1
        self._pipe: tuple[int, int] | None = None
        self._pipe_bytes = _PIPE_BYTES
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._buffer = bytearray()

    def close(self) -> None:
        self._drop_pipe()
        if self._clone >= 0:
            os.close(self._clone)

    def use_clone(self) -> None:
        """Go on by a descriptor of our own on the same connection.

        The kernel ends what was read from it, and not answered, with ECONNABORTED when we die. Without RESEND (before
        Linux 6.9) nobody could ever answer that: an error is better than a reader that hangs for ever.
        """
        try:
            self._clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(self._clone, _CLONE, struct.pack("=I", self.device))
        except OSError as error:
            log.warning("what a dying handler has taken will hang, for /dev/fuse gives no clone: %s", error.strerror)
            return
        self.device = self._clone

    def send(self, *parts: bytes | memoryview) -> bool:
        """Write one reply. False when nobody waits for it any more."""
        try:
            if len(parts) == 1:
                os.write(self.device, parts[0])  # the usual case, and cheaper
            else:
                os.writev(self.device, parts)
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return True

    def notify(self, message: bytes) -> bool:
        """Write one notification. False when the kernel knows nothing of what it is about."""
        try:
            os.write(self.device, message)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                log.warning("a notification was refused: %s", error.strerror)
            return False
        return True

    def send_slice(self, unique: int, found: FileSlice) -> None:
        """Answer a READ with bytes of a file.

        Raises:
            Unreadable: the slice cannot be read; nothing was sent.
        """
        self._put(wire_reply.data_header(unique, found.length), found)

    def store(self, node: int, found: FileSlice) -> bool:
        """Put a whole file into the page cache. False when the kernel does not know the node, or it cannot be read."""
        try:
            return self._put(wire_reply.store_header(node, 0, found.length), found)
        except Unreadable:
            return False

    def _put(self, header: bytes, found: FileSlice) -> bool:
        if found.length >= _SPLICE_MIN_BYTES:
            done = self._splice(header, found)
            if done is not None:
                return done
        return self._copy(header, found)

    def _copy(self, header: bytes, found: FileSlice) -> bool:
        if len(self._buffer) < found.length:
            self._buffer = bytearray(found.length)  # kept: fresh memory for each reply costs more than the copy
        data = memoryview(self._buffer)[: found.length]
        try:
            got = os.preadv(found.descriptor, [data], found.position)
        except OSError as error:
            raise Unreadable from error
        if got < found.length:
            raise Unreadable
        return self.send(header, data)

    def _splice(self, header: bytes, found: FileSlice) -> bool | None:
        """Move a slice to the kernel through a pipe. None, with nothing sent, when that cannot be done."""
        if self._pipe is None:
            self._pipe = self._open_pipe()
        if found.length + self._page_bytes > self._pipe_bytes:
            return None
        reader, writer = self._pipe
        os.write(writer, header)
        moved = 0
        try:
            while moved < found.length:
                step = os.splice(found.descriptor, writer, found.length - moved, offset_src=found.position + moved)
                if step == 0:
                    break
                moved += step
        except BlockingIOError:
            pass  # more pages than the pipe has slots
        except OSError as error:
            self._drop_pipe()
            raise Unreadable from error
        if moved < found.length:
            self._drop_pipe()
            return None
        try:
            os.splice(reader, self.device, moved + len(header))
        except OSError as error:
            self._drop_pipe()
            if error.errno in _GONE:
                return False
            if error.errno == errno.EINVAL:
                return None
            raise
        return True

    def _open_pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(PermissionError):  # the user's pipes are over their soft limit: a small one will do
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, pipe_bytes_allowed())
        self._pipe_bytes = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        return reader, writer

    def _drop_pipe(self) -> None:
        """A pipe with something left in it would spoil the next reply."""
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None
