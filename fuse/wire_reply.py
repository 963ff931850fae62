"""Replies, directory entries and notifications for the kernel: values in, bytes out.

Source of every layout: Linux `include/uapi/linux/fuse.h`, protocol 7.45. Each function returns one whole
message for one write() of the device, but for those named `_header`: their payload goes behind them in the
same writev() or splice(). The kernel takes a message whole or not at all, and refuses one whose length differs
from the length in its header (EINVAL).

This module is pure: it never touches a file descriptor or a clock.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache
from typing import NamedTuple

from forebay.fuse.wire import PROTOCOL_MAJOR, PROTOCOL_MINOR, Capability


class OpenFlag(IntFlag):
    """How the kernel is to treat an open file (`FOPEN_*`). FUSE.md says which may go together."""

    DIRECT_IO = 1 << 0  # no page cache: each read() of the application is a READ
    KEEP_CACHE = 1 << 1  # keep the pages of earlier opens; with PASSTHROUGH: EIO
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3  # cache the READDIR replies; wrong on Linux 6.9 to 6.12
    STREAM = 1 << 4
    NOFLUSH = 1 << 5  # no FLUSH on close()
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7  # read from the backing file of `backing_id`


class Notification(IntEnum):
    """What a message without a request says (`enum fuse_notify_code`)."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8


NO_CAPABILITY = Capability(0)

EXPIRE_ONLY = 1 << 0
"""FUSE_EXPIRE_ONLY, for `notify_inval_entry`: look the name up again at its next use."""

_VALID_MAX_S = 1 << 32
"""136 years: "for ever" that still fits the kernel's jiffies arithmetic. Any longer validity is cut to it."""

_SECTOR_BYTES = 512
"""The unit of st_blocks, whatever st_blksize says (stat(2))."""

_NS_PER_S = 1_000_000_000
_U64 = (1 << 64) - 1

_ATTR = "QQQQQQIIIIIIIIII"  # struct fuse_attr
_HEADER = struct.Struct("=IiQ")  # struct fuse_out_header: len, error, unique
_ENTRY_OUT = struct.Struct("=QQQQII" + _ATTR)
_ENTRY = struct.Struct("=IiQ QQQQII" + _ATTR)
_NEGATIVE_ENTRY = struct.Struct("=IiQ QQQQII 88x")
_ATTRIBUTES = struct.Struct("=IiQ QI4x" + _ATTR)
_OPEN = struct.Struct("=IiQ QIi")
_STATFS = struct.Struct("=IiQ QQQQQIII4x24x")
_XATTR_SIZE = struct.Struct("=IiQ I4x")
_LSEEK = struct.Struct("=IiQ q")
_IOCTL = struct.Struct("=IiQ i12x")
_INIT = struct.Struct("=IiQ IIIIHHIIHHIIH22x")
_DIRENT = struct.Struct("=QQII")
_DIRENTPLUS = struct.Struct("=QQQQII" + _ATTR + "QQII")
_INVAL_INODE = struct.Struct("=IiQ Qqq")
_INVAL_ENTRY = struct.Struct("=IiQ QII")
_DELETE = struct.Struct("=IiQ QQI4x")
_STORE = struct.Struct("=IiQ QQI4x")

_DIRENT_PADDING = tuple(bytes(-length % 8) for length in range(8))

DATA_HEADER_BYTES = _HEADER.size


class Attributes(NamedTuple):
    """What stat() shows of an inode. There is one time: a snapshot's files have no history of their own."""

    ino: int
    """st_ino; the kernel's node id may be another number."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Nanoseconds since 1970; access and change time are the same."""
    mode: int
    """Type bits (S_IFMT) and permissions."""
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    blksize: int = 4096
    """Preferred size of a read in bytes, a power of two: the kernel keeps its logarithm only."""

    @property
    def blocks(self) -> int:
        """st_blocks: units of 512 bytes, rounded up."""
        return -(-self.size // _SECTOR_BYTES)

    @property
    def directory_entry_type(self) -> int:
        """d_type of readdir(3): the four type bits of the mode."""
        return self.mode >> 12 & 15


@dataclass(frozen=True, slots=True)
class InitReply:
    """`struct fuse_init_out`, as `negotiate` settles it."""

    minor: int = PROTOCOL_MINOR
    major: int = PROTOCOL_MAJOR
    max_readahead: int = 0
    """Bytes; the kernel takes the smaller of this and its own 128 KiB."""
    flags: Capability = NO_CAPABILITY
    max_background: int = 0
    """Asynchronous requests (read-ahead) in flight; 0 keeps the kernel's 12."""
    congestion_threshold: int = 0
    """Requests from which on the mount counts as congested; 0 keeps the kernel's 9."""
    max_write: int = 4096
    """Bytes of a WRITE; the kernel makes it at least 4096."""
    time_gran_ns: int = 1
    max_pages: int = 0
    """Pages of one request; read only with MAX_PAGES among the flags."""
    max_stack_depth: int = 0
    """File systems below a passthrough file, 1 or 2; read only with PASSTHROUGH among the flags."""


def reply_error(unique: int, errno: int) -> bytes:
    """Refuse a request.

    Args:
        unique: `Header.unique` of the request, in this and all replies.
        errno: positive and below 512; the kernel answers write() with EINVAL to others.
    """
    return _HEADER.pack(_HEADER.size, -errno, unique)


def reply_empty(unique: int) -> bytes:
    """Success without a result: ACCESS, FLUSH, RELEASE, FSYNC and their likes."""
    return _HEADER.pack(_HEADER.size, 0, unique)


def reply_data(unique: int, payload: bytes) -> bytes:
    """The bytes of a READ, READLINK (no NUL), READDIR, GETXATTR or LISTXATTR; empty for an end of file."""
    return _HEADER.pack(_HEADER.size + len(payload), 0, unique) + payload


def data_header(unique: int, payload_length: int) -> bytes:
    """What goes in front of `payload_length` bytes that writev() or splice() takes from elsewhere."""
    return _HEADER.pack(_HEADER.size + payload_length, 0, unique)


def reply_entry(
    unique: int,
    node: int,
    attributes: Attributes,
    entry_valid_s: float,
    attr_valid_s: float,
    generation: int = 0,
) -> bytes:
    """A name was found; the kernel now holds one more reference to `node`.

    Args:
        node: any number but 0; 1 is the root.
        entry_valid_s: seconds for which the kernel may answer for this name itself; math.inf for ever.
        attr_valid_s: the same for the attributes.
        generation: tells two files apart that have the same `node` in the life of the file system.
    """
    fields = _entry(node, attributes, entry_valid_s, attr_valid_s, generation)
    return _ENTRY.pack(_ENTRY.size, 0, unique, *fields)


def reply_negative_entry(unique: int, entry_valid_s: float) -> bytes:
    """There is no such name, and the kernel may say so itself for `entry_valid_s` seconds (node 0)."""
    seconds, nanoseconds = _validity(entry_valid_s)
    return _NEGATIVE_ENTRY.pack(_NEGATIVE_ENTRY.size, 0, unique, 0, 0, seconds, 0, nanoseconds, 0)


def reply_attributes(unique: int, attributes: Attributes, valid_s: float) -> bytes:
    """The result of a GETATTR, good for `valid_s` seconds."""
    return _ATTRIBUTES.pack(_ATTRIBUTES.size, 0, unique, *_validity(valid_s), *_attr(attributes))


def reply_open(unique: int, handle: int, flags: int, backing_id: int = 0) -> bytes:
    """The result of an OPEN or OPENDIR.

    Args:
        handle: what READ and RELEASE of this open file will carry.
        flags: of `OpenFlag`.
        backing_id: what the ioctl BACKING_OPEN returned; looked at only with PASSTHROUGH.
    """
    return _OPEN.pack(_OPEN.size, 0, unique, handle, flags, backing_id)


def reply_statfs(
    unique: int,
    *,
    blocks: int,
    files: int,
    free_blocks: int = 0,
    block_bytes: int = 4096,
    name_max: int = 255,
) -> bytes:
    """The result of a STATFS.

    Args:
        blocks: size of the file system in units of `block_bytes`.
        files: number of inodes; none is ever free.
        free_blocks: the default says that nothing can be written.
        name_max: bytes of the longest name.
    """
    free = (free_blocks, free_blocks)  # f_bfree and f_bavail: nothing is kept back for root
    fields = (blocks, *free, files, 0, block_bytes, name_max, block_bytes)
    return _STATFS.pack(_STATFS.size, 0, unique, *fields)


def reply_xattr_size(unique: int, size: int) -> bytes:
    """The length in bytes, to a GETXATTR or LISTXATTR of size 0."""
    return _XATTR_SIZE.pack(_XATTR_SIZE.size, 0, unique, size)


def reply_lseek(unique: int, offset: int) -> bytes:
    """Where the data or the hole begins that LSEEK looked for."""
    return _LSEEK.pack(_LSEEK.size, 0, unique, offset)


def reply_ioctl(unique: int, result: int) -> bytes:
    """What ioctl(2) returns; nothing comes out."""
    return _IOCTL.pack(_IOCTL.size, 0, unique, result)


def reply_init(unique: int, reply: InitReply) -> bytes:
    """The result of an INIT. Unnamed fields stay 0: Forebay never agrees to their capabilities."""
    return _INIT.pack(
        _INIT.size,
        0,
        unique,
        reply.major,
        reply.minor,
        reply.max_readahead,
        reply.flags & 0xFFFF_FFFF,
        reply.max_background,
        reply.congestion_threshold,
        reply.max_write,
        reply.time_gran_ns,
        reply.max_pages,
        0,  # map_alignment
        reply.flags >> 32,  # flags2
        reply.max_stack_depth,
        0,  # request_timeout
    )


def pack_dirent(ino: int, offset: int, entry_type: int, name: bytes) -> bytes:
    """One entry of a READDIR reply; the caller joins as many as fit the request's size.

    Args:
        ino: st_ino; not 0, which readdir(3) would skip.
        offset: where to go on *after* this entry.
        entry_type: `Attributes.directory_entry_type`.
        name: 1 to 255 bytes without "/": the kernel answers EIO for the whole directory otherwise.
    """
    length = len(name)
    return _DIRENT.pack(ino, offset, length, entry_type) + name + _DIRENT_PADDING[length & 7]


def pack_direntplus(
    node: int, attributes: Attributes, entry_valid_s: float, attr_valid_s: float, offset: int, name: bytes
) -> bytes:
    """One entry of a READDIRPLUS reply: `reply_entry` and `pack_dirent` in one.

    The kernel takes one reference to `node`, except for "." and ".." and for a `node` of 0, which says
    nothing about the entry beyond its name, inode number and type.
    """
    length = len(name)
    entry_s, entry_ns = _validity(entry_valid_s)
    attr_s, attr_ns = _validity(attr_valid_s)
    ino, size, mtime_ns, mode, nlink, uid, gid, blksize = attributes
    seconds, ns = divmod(mtime_ns, _NS_PER_S)
    seconds &= _U64
    # `_entry` and `pack_dirent` written out: of all there is this is made most often, for each name that is listed.
    return (
        _DIRENTPLUS.pack(
            node, 0, entry_s, attr_s, entry_ns, attr_ns,
            ino, size, (size + 511) >> 9, seconds, seconds, seconds, ns, ns, ns, mode, nlink, uid, gid, 0, blksize, 0,
            ino, offset, length, mode >> 12 & 15,
        )
        + name
        + _DIRENT_PADDING[length & 7]
    )  # fmt: skip


def dirent_bytes(name: bytes) -> int:
    """The length of `pack_dirent`'s result."""
    return _DIRENT.size + len(name) + -len(name) % 8


def notify_inval_inode(node: int, offset: int = 0, length: int = 0) -> bytes:
    """Drop the attributes and the cached pages of an inode. Waits for pages under a READ: see FUSE.md, Traps.

    Args:
        offset: first byte to drop; negative drops the attributes only.
        length: bytes; 0 for all to the end.

    write() answers ENOENT when the kernel does not know the inode, which is no error.
    """
    return _INVAL_INODE.pack(_INVAL_INODE.size, Notification.INVAL_INODE, 0, node, offset, length)


def notify_inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """Drop a name, positive or negative. Takes the directory's lock: never from a task that serves it.

    Args:
        flags: 0 or `EXPIRE_ONLY`, the latter only where HAS_EXPIRE_ONLY was offered.
    """
    length = _INVAL_ENTRY.size + len(name) + 1
    return _INVAL_ENTRY.pack(length, Notification.INVAL_ENTRY, 0, parent, len(name), flags) + name + b"\0"


def notify_delete(parent: int, child: int, name: bytes) -> bytes:
    """Drop a name and tell inotify that it was deleted; ignored if the name is another inode by now."""
    length = _DELETE.size + len(name) + 1
    return _DELETE.pack(length, Notification.DELETE, 0, parent, child, len(name)) + name + b"\0"


def store_header(node: int, offset: int, length: int) -> bytes:
    """What goes in front of `length` bytes for the page cache, `notify_store` without its data."""
    return _STORE.pack(_STORE.size + length, Notification.STORE, 0, node, offset, length)


def notify_store(node: int, offset: int, data: bytes) -> bytes:
    """Put bytes of a file into the page cache before anybody asks for them.

    The kernel raises the inode's size if `data` ends beyond it. Of an incomplete page only the one at the end
    of the file becomes valid, so `offset` should be a multiple of the page size.
    """
    return store_header(node, offset, len(data)) + data


def notify_resend() -> bytes:
    """Put all requests that were read but not answered back into the queue (needs HAS_RESEND)."""
    return _HEADER.pack(_HEADER.size, Notification.RESEND, 0)


def notify_inc_epoch() -> bytes:
    """Have every cached name looked up again at its next use (since 7.44)."""
    return _HEADER.pack(_HEADER.size, Notification.INC_EPOCH, 0)


@cache
def _validity(valid_s: float) -> tuple[int, int]:
    """Whole seconds and nanoseconds; a negative validity is none."""
    return divmod(int(min(max(valid_s, 0), _VALID_MAX_S) * _NS_PER_S), _NS_PER_S)


def _attr(attributes: Attributes) -> tuple[int, ...]:
    """The fields of `struct fuse_attr`."""
    ino, size, mtime_ns, mode, nlink, uid, gid, blksize = attributes
    seconds, nanoseconds = divmod(mtime_ns, _NS_PER_S)
    seconds &= _U64  # before 1970: the kernel reads the field as signed
    blocks = -(-size // _SECTOR_BYTES)
    times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)  # atime, mtime, ctime
    # Behind blksize: neither a submount nor DAX. Before it: no device files.
    return (ino, size, blocks, *times, mode, nlink, uid, gid, 0, blksize, 0)


def _entry(
    node: int, attributes: Attributes, entry_valid_s: float, attr_valid_s: float, generation: int
) -> tuple[int, ...]:
    """The fields of `struct fuse_entry_out`."""
    entry_s, entry_ns = _validity(entry_valid_s)
    attr_s, attr_ns = _validity(attr_valid_s)
    return node, generation, entry_s, attr_s, entry_ns, attr_ns, *_attr(attributes)
