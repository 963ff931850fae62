"""What the `kernel` engine answers to each request: one method for each, between wire codec and file system."""

import errno
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from forebay.cacheruntime.counters import SAMPLED
from forebay.fuse import wire, wire_reply
from forebay.fuse.channel import Channel
from forebay.fuse.negotiate import Agreement, CounterOffer, Wish, negotiate
from forebay.fuse.open_table import Attempt
from forebay.fuse.operations import FileEntry, Operations, Refused, Unreadable
from forebay.fuse.order import names_of_order
from forebay.fuse.wire_reply import OpenFlag

_CACHE_DIR_WORKS = not (6, 9) <= tuple(int(n) for n in os.uname().release.split(".")[:2]) <= (6, 12)
"""Linux 6.9 to 6.12 return wrong listings from the kernel's directory cache (gcsfuse issue 2792)."""


class Requests:
    """Answers requests. Each method may raise Refused, and NotReady as `Operations` says."""

    def __init__(
        self, channel: Channel, operations: Operations, incarnation: int, agreement_path: Path, wish: Wish
    ) -> None:
        """
        Args:
            channel: where replies go.
            operations: the file system.
            incarnation: of this handler; makes its handles its own.
            agreement_path: where the outcome of INIT is kept for successors; read when it is there already.
            wish: for INIT.
        """
        self._send = channel.send
        self._channel = channel
        self._operations = operations
        self._next_handle = incarnation << 32
        self._agreement_path = agreement_path
        self._wish = wish
        self.agreement: Agreement | None = None
        """What is in force; None before INIT."""
        if agreement_path.exists():
            self.agreement = Agreement.from_json(agreement_path.read_text())
        self.agreed: Callable[[], None] = lambda: None
        """Set by the engine: INIT is answered."""
        self.answered: Callable[[int, int], None] = lambda nanoseconds, size: None
        """Set by the engine: told of one READ from the cache in `SAMPLED`."""
        self._reads = 0
        self._methods: dict[type, Callable[[wire.Header, wire.Request, bool], None]] = {
            wire.Init: self._init, wire.Lookup: self._lookup, wire.Getattr: self._getattr,
            wire.Readlink: self._readlink, wire.Open: self._open, wire.Read: self._read, wire.Release: self._release,
            wire.Opendir: self._opendir, wire.Readdir: self._readdir, wire.Readdirplus: self._readdir,
            wire.Releasedir: self._empty, wire.Statfs: self._statfs, wire.Getxattr: self._getxattr,
            wire.Listxattr: self._listxattr, wire.Lseek: self._lseek, wire.Ioctl: self._ioctl,
            wire.Fsync: self._empty, wire.Forget: self._forget, wire.BatchForget: self._forget,
            wire.Modify: self._modify, wire.Destroy: self._empty,
        }  # fmt: skip

    def answer(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        """Send the reply to a request; `again` marks a try after a wait."""
        method = self._methods.get(type(request))
        if method is None:
            raise Refused(errno.ENOSYS)
        method(header, request, again)

    def _init(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Init)
        outcome = negotiate(request, self._wish)
        if isinstance(outcome, CounterOffer):
            self._send(wire_reply.reply_init(header.unique, outcome.reply))
            return
        self.agreement = outcome
        draft = self._agreement_path.with_suffix(".new")
        draft.write_text(outcome.to_json())
        draft.rename(self._agreement_path)
        self._send(wire_reply.reply_init(header.unique, outcome.reply))
        self.agreed()

    @property
    def _no_open(self) -> bool:
        return self.agreement is not None and self.agreement.no_open

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
        if self._no_open:
            raise Refused(errno.ENOSYS)
        self._next_handle += 1
        attempt = Attempt(self._next_handle, header.unique & ~wire.RESENT_UNIQUE_BIT, header.resent)
        opened = self._operations.open(header.node, request.flags, attempt)
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
            return
        self._reads += 1
        timed = not (again or self._reads % SAMPLED)
        began = time.monotonic_ns() if timed else 0
        try:
            self._channel.send_slice(header.unique, found)
        except Unreadable:
            self._operations.unreadable(header.node, request.handle, request.offset, request.size)
            return
        if timed:
            self.answered(time.monotonic_ns() - began, found.length)

    def _opendir(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        final = self._operations.opendir(header.node)
        if final and self._no_open:
            raise Refused(errno.ENOSYS)
        flags = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR if final and _CACHE_DIR_WORKS else OpenFlag(0)
        self._send(wire_reply.reply_open(header.unique, 0, flags))

    def _readdir(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Readdir | wire.Readdirplus)
        entries = self._operations.readdir(header.node, request.offset)
        packed = _pack_entries(entries, request.size, isinstance(request, wire.Readdirplus))
        self._send(wire_reply.data_header(header.unique, len(packed)), packed)

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

    def _ioctl(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        assert isinstance(request, wire.Ioctl)
        order = names_of_order(request.command, request.payload)
        if order is None:
            raise Refused(errno.ENOTTY)
        taken = self._operations.expect(header.node, *order)
        self._send(wire_reply.reply_ioctl(header.unique, taken))

    def _modify(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        raise Refused(errno.EROFS)

    def _empty(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        self._send(wire_reply.reply_empty(header.unique))

    def _forget(self, header: wire.Header, request: wire.Request, again: bool) -> None:
        """No reply, and nothing to forget: node ids are not minted by lookups."""


def _pack_entries(entries: Iterable[FileEntry], size: int, plus: bool) -> bytes:
    packed: list[bytes] = []
    room = size
    for node, attributes, name, entry_valid_s, attr_valid_s, cookie in entries:
        if plus:
            one = wire_reply.pack_direntplus(node, attributes, entry_valid_s, attr_valid_s, cookie, name)
        else:
            one = wire_reply.pack_dirent(attributes.ino, cookie, attributes.directory_entry_type, name)
        room -= len(one)
        if room < 0:
            break
        packed.append(one)
    return b"".join(packed)
