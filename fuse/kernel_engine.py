"""The `kernel` engine: speaks the FUSE protocol itself, on a descriptor that the supervisor keeps.

One trio task reads requests. An operation that can be answered at once is answered there and then; one that raises
NotReady goes on in a task of its own. Replies that are file slices go from the tier file to the kernel by splice and
never pass through Python.
"""

import errno
import fcntl
import logging
import math
import os
import signal
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

from forebay.cacheruntime.errors import CacheError, ForebayError, SourceDenied, SourceNotFound
from forebay.fuse import wire, wire_reply
from forebay.fuse.counters import CounterRow
from forebay.fuse.negotiate import Agreement, CounterOffer, Wish, negotiate
from forebay.fuse.operations import FileEntry, FileSlice, NotReady, Operations, Refused
from forebay.fuse.wire_reply import OpenFlag

log = logging.getLogger(__name__)

BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502
"""FUSE_DEV_IOCBACKING_OPEN and _CLOSE of the kernel's fuse.h."""

_SPLICE_MIN_BYTES = 64 << 10
"""Below this one copy through user space is cheaper than three system calls of splicing (measured: 50-100 KiB)."""

_PIPE_BYTES = 1 << 20
"""What a pipe holds at most without CAP_SYS_RESOURCE (fs.pipe-max-size)."""

MAX_REQUEST_BYTES = 512 << 10
"""A spliced reply has to fit into the pipe whole, header included. Two spliced replies of 512 KiB cost less than one
copied reply of 1 MiB: 0.38 against 0.51 s of CPU for each GiB (docs/decisions/0004)."""

_BATCH = 32
"""Requests answered before other tasks get their turn."""

_SWEEP_INTERVAL_S = 5.0

_TRIES = 8
"""An operation waits for one thing after another, but what was brought in may be gone again: not for ever."""


_CACHE_DIR_WORKS = not (6, 9) <= tuple(int(n) for n in os.uname().release.split(".")[:2]) <= (6, 12)
"""Linux 6.9 to 6.12 return wrong listings from the kernel's directory cache (gcsfuse issue 2792)."""

_STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def wants_to_stop(pid: int) -> bool:
    """Whether a process has a signal pending that asks it to stop.

    INTERRUPT comes for every signal. A read that ends with EINTR for SIGCHLD or a profiler's timer breaks programs
    that know no EINTR on files, so only the signals of people and service managers end a wait.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False  # of another pid namespace, or gone
    masks = {name: int(mask, 16) for name, _, mask in (line.partition(":\t") for line in lines) if name in _MASKS}
    pending = (masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)) & ~masks.get("SigBlk", 0)
    return any(pending & (1 << (number - 1)) for number in _STOP_SIGNALS)


_MASKS = ("SigPnd", "ShdPnd", "SigBlk")


class KernelBacking:
    """Passthrough by ioctl on the FUSE descriptor. The first failure that is not about one file switches it off."""

    def __init__(self, device: int) -> None:
        self._device = device
        self.refused = ""
        """Why it is off, or empty."""

    def open_backing(self, descriptor: int) -> int:
        if self.refused:
            return 0
        request = bytearray(struct.pack("=iIQ", descriptor, 0, 0))
        try:
            # Only a mutable buffer makes ioctl() give the return value, which is the id.
            return int(fcntl.ioctl(self._device, BACKING_OPEN, request, True))
        except OSError as error:
            self.refused = error.strerror or str(error)
            log.warning("passthrough is off for this mount: %s", self.refused)
            return 0

    def close_backing(self, backing_id: int) -> None:
        try:
            fcntl.ioctl(self._device, BACKING_CLOSE, struct.pack("=I", backing_id))
        except OSError as error:
            log.warning("backing id %d could not be closed: %s", backing_id, error.strerror)


class KernelEngine:
    """A session on one FUSE connection.

    Resources: the descriptor stays the caller's. Cancellation: safe; requests that were not answered stay with the
    kernel, and a successor asks for them again.
    """

    def __init__(
        self, device: int, operations: Operations, counters: CounterRow, agreement_path: Path, wish: Wish
    ) -> None:
        """
        Args:
            device: the /dev/fuse descriptor, non-blocking.
            operations: the file system.
            counters: our row.
            agreement_path: where the outcome of INIT is kept for successors.
            wish: for INIT.
        """
        self._device = device
        self._operations = operations
        self._counters = counters
        self._agreement_path = agreement_path
        self._wish = wish
        self._agreement: Agreement | None = None
        self._waiting: dict[int, tuple[int, trio.CancelScope]] = {}
        """Requests that wait, by number: the reader's process id, and what ends the wait."""
        self._nursery: trio.Nursery | None = None
        self._pipe: tuple[int, int] | None = None
        self._pipe_bytes = _PIPE_BYTES
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._buffer = bytearray()
        self._handlers: dict[type, Callable[[wire.Header, wire.Request, bool], None]] = {
            wire.Init: self._init, wire.Lookup: self._lookup, wire.Getattr: self._getattr,
            wire.Readlink: self._readlink, wire.Open: self._open, wire.Read: self._read, wire.Release: self._release,
            wire.Opendir: self._opendir, wire.Readdir: self._readdir, wire.Readdirplus: self._readdir,
            wire.Releasedir: self._empty, wire.Statfs: self._statfs, wire.Getxattr: self._getxattr,
            wire.Listxattr: self._listxattr, wire.Lseek: self._lseek, wire.Interrupt: self._interrupt,
            wire.Fsync: self._empty, wire.Forget: self._forget,
            wire.BatchForget: self._forget, wire.Modify: self._modify, wire.Destroy: self._empty,
        }  # fmt: skip

    @property
    def agreement(self) -> Agreement | None:
        """What is in force; None before INIT."""
        return self._agreement

    async def serve(self, ready: Callable[[], None], sweep: Callable[[], None]) -> None:
        """Answer requests until the mount is gone.

        Args:
            ready: called once INIT is answered.
            sweep: called every few seconds.
        """
        self._take_over()
        if self._agreement is not None:
            ready()
        else:
            self._when_ready = ready
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._sweep, sweep)
                await self._read_requests()
                nursery.cancel_scope.cancel()
        finally:
            if self._pipe is not None:
                os.close(self._pipe[0])
                os.close(self._pipe[1])
                self._pipe = None

    def start_soon(self, work: Callable[[], object]) -> None:
        """Run a best-effort async function in the background."""

        async def quietly() -> None:
            try:
                await work()  # type: ignore[misc]
            except ForebayError as error:
                log.info("in the background: %s", error)

        if self._nursery is not None:
            self._nursery.start_soon(quietly)

    def forget_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel look a name up again."""

        async def notify() -> None:
            # In a thread, for the kernel may make it wait for a directory lock whose holder waits for our reply.
            await trio.to_thread.run_sync(self._notify, wire_reply.notify_inval_entry(parent, name))

        self.start_soon(notify)

    def _notify(self, message: bytes) -> None:
        try:
            os.write(self._device, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
                log.warning("a notification was refused: %s", error.strerror)

    # The loop

    def _take_over(self) -> None:
        """After a predecessor's death: know what it agreed on, and ask for what it did not answer."""
        try:
            self._agreement = Agreement.from_json(self._agreement_path.read_text())
        except FileNotFoundError:
            return
        if self._agreement.resend:
            self._notify(wire_reply.notify_resend())

    async def _read_requests(self) -> None:
        size = wire.MIN_READ_BUFFER_BYTES if self._agreement is None else self._agreement.read_buffer_bytes
        device, parse, handlers = self._device, wire.parse, self._handlers
        while True:
            await trio.lowlevel.wait_readable(device)
            for _ in range(_BATCH):
                try:
                    message = os.read(device, size)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return
                    if error.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted as we took it
                        continue
                    raise
                try:
                    header, request = parse(message)
                except wire.MalformedMessage as error:
                    log.error("the kernel sent what we cannot read: %s", error)
                    continue
                self._counters.add("requests")
                handler = handlers.get(type(request))
                if handler is None:
                    self._send(wire_reply.reply_error(header.unique, errno.ENOSYS))
                    continue
                self._answer(handler, header, request)

    def _answer(
        self, handler: Callable[[wire.Header, wire.Request, bool], None], header: wire.Header, request: wire.Request
    ) -> None:
        try:
            handler(header, request, False)
        except Refused as refused:
            self._send(wire_reply.reply_error(header.unique, refused.errno))
        except NotReady as not_ready:
            assert self._nursery is not None
            self._nursery.start_soon(self._answer_later, handler, header, request, not_ready)
        except Exception as error:  # noqa: BLE001 (see _fail)
            self._fail(header, request, error)

    async def _answer_later(
        self,
        handler: Callable[[wire.Header, wire.Request, bool], None],
        header: wire.Header,
        request: wire.Request,
        not_ready: NotReady,
    ) -> None:
        unique = header.unique & ~wire.RESENT_UNIQUE_BIT
        with trio.CancelScope() as scope:
            self._waiting[unique] = (header.pid, scope)
            try:
                for _ in range(_TRIES):
                    data = await not_ready.wait()
                    if data is not None:
                        self._send(wire_reply.reply_data(header.unique, data))
                        return
                    try:
                        handler(header, request, True)
                        return
                    except NotReady as still:
                        not_ready = still
                raise CacheError("what was brought in went away again, over and over")
            except Refused as refused:
                self._send(wire_reply.reply_error(header.unique, refused.errno))
            except Exception as error:  # noqa: BLE001 (see _fail)
                self._fail(header, request, error)
            finally:
                self._waiting.pop(unique, None)
        if scope.cancelled_caught:
            self._send(wire_reply.reply_error(header.unique, errno.EINTR))

    def _fail(self, header: wire.Header, request: wire.Request, error: Exception) -> None:
        """Every request gets exactly one reply, whatever went wrong: a missing one would hang its reader for ever."""
        self._counters.add("errors")
        name = type(request).__name__
        if isinstance(error, ForebayError):
            log.warning("%s of node %d for process %d failed: %s", name, header.node, header.pid, error)
            self._send(wire_reply.reply_error(header.unique, errno_of(error)))
        else:
            log.error("%s of node %d for process %d failed", name, header.node, header.pid, exc_info=error)
            self._send(wire_reply.reply_error(header.unique, errno.EIO))

    async def _sweep(self, sweep: Callable[[], None]) -> None:
        while True:
            await trio.sleep(_SWEEP_INTERVAL_S)
            sweep()

    def _send(self, *parts: bytes | memoryview) -> bool:
        """Write one reply. False when nobody waits for it any more."""
        try:
            os.writev(self._device, parts)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):  # interrupted or answered by a successor; unmounted
                return False
            raise
        return True

    # One method for each request

    def _init(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Init)
        outcome = negotiate(request, self._wish)
        if isinstance(outcome, CounterOffer):
            self._send(wire_reply.reply_init(header.unique, outcome.reply))
            return
        self._agreement = outcome
        draft = self._agreement_path.with_suffix(".new")
        draft.write_text(outcome.to_json())
        draft.rename(self._agreement_path)
        self._send(wire_reply.reply_init(header.unique, outcome.reply))
        self._when_ready()

    def _lookup(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Lookup)
        entry = self._operations.lookup(header.node, request.name)
        if entry is None:
            valid_s = self._operations.negative_valid_s()
            self._send(wire_reply.reply_negative_entry(header.unique, valid_s))
            return
        self._send(
            wire_reply.reply_entry(header.unique, entry.node, entry.attributes, entry.entry_valid_s, entry.attr_valid_s)
        )

    def _getattr(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        attributes, valid_s = self._operations.getattr(header.node)
        self._send(wire_reply.reply_attributes(header.unique, attributes, valid_s))

    def _readlink(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        self._send(wire_reply.reply_data(header.unique, self._operations.readlink(header.node)))

    def _open(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Open)
        if self._agreement is not None and self._agreement.no_open:
            raise Refused(errno.ENOSYS)
        unique = header.unique & ~wire.RESENT_UNIQUE_BIT
        opened = self._operations.open(header.node, request.flags, unique)
        # NOFLUSH: there is nothing to flush, and close() must not wait for a handler. A node never changes its
        # content, so what the kernel has of it stays good.
        flags = OpenFlag.NOFLUSH | (OpenFlag.PASSTHROUGH if opened.backing_id else OpenFlag.KEEP_CACHE)
        if not self._send(wire_reply.reply_open(header.unique, opened.handle, flags, opened.backing_id)):
            self._operations.release(header.node, opened.handle)

    def _release(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Release)
        self._operations.release(header.node, request.handle)
        self._send(wire_reply.reply_empty(header.unique))

    def _read(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Read)
        found = self._operations.read(header.node, request.handle, request.offset, request.size, again=again)
        if found is None:
            self._send(wire_reply.reply_empty(header.unique))
        elif found.length >= _SPLICE_MIN_BYTES and self._splice(header.unique, found):
            return
        else:
            self._copy(header.unique, found)

    def _copy(self, unique: int, found: FileSlice) -> None:
        if len(self._buffer) < found.length:
            self._buffer = bytearray(found.length)  # kept: fresh memory for each reply costs more than the copy
        data = memoryview(self._buffer)[: found.length]
        if os.preadv(found.descriptor, [data], found.position) < found.length:
            log.error("a tier file is shorter than its index says (descriptor %d)", found.descriptor)
            raise Refused(errno.EIO)
        self._send(wire_reply.data_header(unique, found.length), data)

    def _splice(self, unique: int, found: FileSlice) -> bool:
        """Move a slice to the kernel through a pipe. False, with nothing sent, when that cannot be done."""
        if found.length + self._page_bytes > self._pipe_bytes:
            return False
        if self._pipe is None:
            self._pipe = self._open_pipe()
            return self._splice(unique, found)
        reader, writer = self._pipe
        os.write(writer, wire_reply.data_header(unique, found.length))
        moved = 0
        try:
            while moved < found.length:
                step = os.splice(found.descriptor, writer, found.length - moved, offset_src=found.position + moved)
                if step == 0:
                    break
                moved += step
        except BlockingIOError:
            pass
        if moved < found.length:
            self._drop_pipe()
            return False
        try:
            os.splice(reader, self._device, moved + wire_reply.DATA_HEADER_BYTES)
        except OSError as error:
            self._drop_pipe()
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return True
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def _open_pipe(self) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(PermissionError):  # the user's pipes are over their soft limit: a small one will do
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._pipe_bytes = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        return reader, writer

    def _drop_pipe(self) -> None:
        """A pipe with something left in it would spoil the next reply."""
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None

    def _opendir(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        final = self._operations.opendir(header.node)
        if final and self._agreement is not None and self._agreement.no_open:
            raise Refused(errno.ENOSYS)
        flags = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR if final and _CACHE_DIR_WORKS else OpenFlag(0)
        self._send(wire_reply.reply_open(header.unique, 0, flags))

    def _readdir(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Readdir | wire.Readdirplus)
        plus = isinstance(request, wire.Readdirplus)
        self._send(wire_reply.reply_data(header.unique, self._pack_entries(
            self._operations.readdir(header.node, request.offset), request.size, plus
        )))  # fmt: skip

    @staticmethod
    def _pack_entries(entries: Iterable[tuple[int, FileEntry]], size: int, plus: bool) -> bytes:
        packed = bytearray()
        for cookie, entry in entries:
            if plus:
                one = wire_reply.pack_direntplus(
                    entry.node, entry.attributes, entry.entry_valid_s, entry.attr_valid_s, cookie, entry.name
                )
            else:
                attributes = entry.attributes
                one = wire_reply.pack_dirent(attributes.ino, cookie, attributes.directory_entry_type, entry.name)
            if len(packed) + len(one) > size:
                break
            packed += one
        return bytes(packed)

    def _statfs(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        capacity = self._operations.statfs()
        blocks = math.ceil(capacity.bytes / 4096)
        self._send(wire_reply.reply_statfs(header.unique, blocks=blocks, files=capacity.files))

    def _getxattr(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Getxattr)
        self._send_xattr(header.unique, request.size, self._operations.getxattr(header.node, request.name))

    def _listxattr(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Listxattr)
        names = b"".join(name + b"\0" for name in self._operations.listxattr(header.node))
        self._send_xattr(header.unique, request.size, names)

    def _send_xattr(self, unique: int, size: int, value: bytes) -> None:
        if size == 0:
            self._send(wire_reply.reply_xattr_size(unique, len(value)))
        elif len(value) > size:
            raise Refused(errno.ERANGE)
        else:
            self._send(wire_reply.reply_data(unique, value))

    def _lseek(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Lseek)
        offset = self._operations.lseek(header.node, request.offset, request.whence)
        self._send(wire_reply.reply_lseek(header.unique, offset))

    def _interrupt(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        """A reader got a signal while it waits. INTERRUPT itself has no reply."""
        assert isinstance(request, wire.Interrupt)
        waiting = self._waiting.get(request.unique & ~wire.RESENT_UNIQUE_BIT)
        if waiting is not None and wants_to_stop(waiting[0]):
            waiting[1].cancel()

    def _modify(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        raise Refused(errno.EROFS)

    def _empty(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        self._send(wire_reply.reply_empty(header.unique))

    def _forget(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        """No reply, and nothing to forget: node ids are not minted by lookups."""


_OTHER_ERRNO: dict[type[ForebayError], int] = {SourceDenied: errno.EACCES, SourceNotFound: errno.ESTALE}
"""A file that is in the catalogue and gone from the source is stale, for open() succeeded: read(2) knows no ENOENT."""


def errno_of(error: ForebayError) -> int:
    """The errno that a reader sees for an error of ours."""
    return _OTHER_ERRNO.get(type(error), error.ERRNO)
