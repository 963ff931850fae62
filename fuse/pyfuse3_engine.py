"""The `pyfuse3` engine: the same file system on libfuse's binding.

It is the reference for ours, and the way out when ours is at fault. What the binding cannot do is missing: no
passthrough, no no-open, reads up to 128 KiB, and no successor for a process that dies.
"""

import errno
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

from forebay.cacheruntime.catalogue_changes import ChangeKind, changes_path, read_changes
from forebay.cacheruntime.counters import CounterRow
from forebay.cacheruntime.errors import ForebayError
from forebay.fuse.file_system import FileSystem
from forebay.fuse.open_table import Attempt
from forebay.fuse.operations import TRIES, FileEntry, FileSlice, NotReady, Refused, errno_of
from forebay.fuse.switch import Follower, Switch
from forebay.fuse.wire_reply import Attributes

if TYPE_CHECKING:
    from forebay.fuse.handler import Handler

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_TICK_S = 0.1
_SWEEP_TICKS = 50


class Handlers(pyfuse3.Operations):  # type: ignore[misc]
    """pyfuse3's request handlers over our operations."""

    supports_dot_lookup = True

    def __init__(self, file_system: FileSystem, counters: CounterRow) -> None:
        super().__init__()
        self._fs = file_system
        self._counters = counters
        self._unique = 0
        self._nodes: dict[int, int] = {}
        self._next_handle = 1

    async def _settle(self, operation: Callable[..., _T], *args: Any) -> _T:
        """Try an operation until nothing is missing any more."""
        self._counters.add("requests")
        while True:
            try:
                return operation(*args)
            except NotReady as not_ready:
                await self._wait(not_ready)
            except Refused as refused:
                raise pyfuse3.FUSEError(refused.errno) from refused

    async def _wait(self, not_ready: NotReady) -> bytes | None:
        try:
            return await not_ready.wait()
        except Refused as refused:
            raise pyfuse3.FUSEError(refused.errno) from refused
        except ForebayError as error:
            self._counters.add("errors")
            log.warning("%s", error)
            raise pyfuse3.FUSEError(errno_of(error)) from error

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        entry = await self._settle(self._fs.lookup, parent_inode, name)
        if entry is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return _entry(entry)

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        attributes, valid_s = await self._settle(self._fs.getattr, inode)
        return _attributes(inode, attributes, valid_s, valid_s)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return await self._settle(self._fs.readlink, inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        handle = self._next_handle
        self._next_handle += 1
        await self._settle(self._fs.open, inode, flags, Attempt(handle, handle, False))
        self._nodes[handle] = inode
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    async def release(self, fh: int) -> None:
        self._fs.release(self._nodes.pop(fh), fh)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._counters.add("requests")
        again = False
        for _ in range(TRIES):
            try:
                found = self._fs.read(self._nodes[fh], fh, off, size, again=again)
                data = _bytes_of(found) if found else b""
                if data is None:
                    self._fs.unreadable(self._nodes[fh], fh, off, size)
                return data
            except NotReady as not_ready:
                data = await self._wait(not_ready)
                if data is not None:
                    return data
                again = True
            except Refused as refused:
                raise pyfuse3.FUSEError(refused.errno) from refused
        raise pyfuse3.FUSEError(errno.EIO)  # what was brought in went away again, over and over

    async def opendir(self, inode: int, ctx: Any) -> int:
        await self._settle(self._fs.opendir, inode)
        handle = self._next_handle
        self._next_handle += 1
        self._nodes[handle] = inode
        return handle

    async def releasedir(self, fh: int) -> None:
        self._nodes.pop(fh)

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        await self._settle(self._fs.opendir, self._nodes[fh])
        for entry in self._fs.readdir(self._nodes[fh], start_id):
            if entry.name in (b".", b".."):
                continue  # libfuse has readdirplus count a lookup for each entry; these two must not be
            if not pyfuse3.readdir_reply(token, entry.name, _entry(entry), entry.cookie):
                break

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        capacity = self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = -(-capacity.bytes // 4096)
        data.f_files = capacity.files
        data.f_namemax = 255
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        return await self._settle(self._fs.getxattr, inode, name)

    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        return await self._settle(self._fs.listxattr, inode)


async def _refuse(*_args: Any, **_more: Any) -> Any:
    raise pyfuse3.FUSEError(errno.EROFS)


for _change in (
    "setattr", "mkdir", "rmdir", "unlink", "rename", "link", "symlink", "mknod", "create", "write", "setxattr",
    "removexattr",
):  # fmt: skip
    setattr(Handlers, _change, _refuse)  # where the mount was made writable behind our back


def _entry(entry: FileEntry) -> pyfuse3.EntryAttributes:
    return _attributes(entry.node, entry.attributes, entry.entry_valid_s, entry.attr_valid_s)


def _attributes(node: int, attributes: Attributes, entry_s: float, attr_s: float) -> pyfuse3.EntryAttributes:
    shown = pyfuse3.EntryAttributes()
    shown.st_ino = node  # the binding has one number for both; stat() shows the node id on this engine
    shown.st_mode = attributes.mode
    shown.st_nlink = attributes.nlink
    shown.st_uid = attributes.uid
    shown.st_gid = attributes.gid
    shown.st_size = attributes.size
    shown.st_blksize = attributes.blksize
    shown.st_blocks = attributes.blocks
    shown.st_atime_ns = shown.st_mtime_ns = shown.st_ctime_ns = attributes.mtime_ns
    shown.entry_timeout = entry_s
    shown.attr_timeout = attr_s
    return shown


async def serve(handler: "Handler") -> None:
    """Answer requests until the mount is gone."""
    os.set_blocking(handler.device, True)
    # libfuse takes a connection that is mounted already by this name (fuse(8), "mountpoint /dev/fd/N").
    options = {"fsname=forebay", "ro"}
    pyfuse3.init(Handlers(handler.file_system, handler.counters), f"/dev/fd/{handler.device}", options)
    handler.ready()
    async with trio.open_nursery() as nursery:

        def start_soon(work: Callable[[], Any]) -> None:
            async def quietly() -> None:
                try:
                    await work()
                except ForebayError as error:
                    log.info("in the background: %s", error)

            nursery.start_soon(quietly)

        def entry_is_stale(parent: int, name: bytes) -> None:
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)

        def announce(switch: Switch) -> None:
            for change in read_changes(changes_path(Path(switch.catalogue), switch.previous)):
                if change.kind is ChangeKind.DIRECTORY:
                    with suppress(FileNotFoundError):  # the kernel does not know it
                        pyfuse3.invalidate_inode(change.parent, attr_only=False)
                else:
                    entry_is_stale(change.parent, change.name)

        follower = Follower(handler.folder, handler.place, handler.show, announce, start_soon, trio.to_thread.run_sync)

        async def tick() -> None:
            for number in count():
                await trio.sleep(_TICK_S)
                handler.place.beat(0.0)
                follower.tick()
                if number % _SWEEP_TICKS == 0:
                    handler.file_system.sweep()

        nursery.start_soon(tick)
        nursery.start_soon(handler.keep_supervised)
        nursery.start_soon(handler.keep_synced)
        handler.file_system.misses.start_soon = start_soon

        async def forget(parent: int, name: bytes) -> None:
            def notify() -> None:
                with suppress(FileNotFoundError):
                    pyfuse3.invalidate_entry(parent, name)

            with trio.move_on_after(1.0):
                await trio.to_thread.run_sync(notify, abandon_on_cancel=True)

        handler.file_system.misses.entry_is_stale = forget
        try:
            await pyfuse3.main()
        finally:
            pyfuse3.close(unmount=False)
        nursery.cancel_scope.cancel()


def _bytes_of(found: FileSlice) -> bytes | None:
    """None when they cannot be read."""
    try:
        data = os.pread(found.descriptor, found.length, found.position)
    except OSError:
        return None
    return data if len(data) == found.length else None
