"""The kernel's FUSE requests: bytes in, named tuples out.

Source of every layout: Linux `include/uapi/linux/fuse.h`, protocol 7.45 (Linux 6.18). Integers have the
host's byte order, and the kernel lays the structs out without holes, so each format string is the struct,
field by field ("x" is a field that nothing here reads). The replies are in `wire_reply`.

This module is pure: it never touches a file descriptor or a clock. It is longer than 400 lines because it is
three tables of the protocol, opcodes, capabilities and requests, that are read side by side with fuse.h.

How strict. The device hands over exactly one whole message per read(), so a length that differs from the
header's, a fixed struct with bytes before or after it, and a name without its NUL are all `MalformedMessage`:
they mean that the stream is not what we believe it is, and guessing would serve wrong bytes. There are two
exceptions: INIT, the one struct that newer kernels lengthen before any version is agreed on, and the requests
that modify, which a read-only file system refuses without reading beyond their fixed part.

Requests are tuples, hence `Open(1) == Opendir(1)` and `Statfs() == ()`: tell them apart by type, never by
equality or truth.
"""

import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import NamedTuple

PROTOCOL_MAJOR = 7
"""The only major version there has been since 2005."""

PROTOCOL_MINOR = 45
"""The newest minor version whose structs are described here (Linux 6.18)."""

ROOT_NODE = 1
"""The node id of the mount's root (FUSE_ROOT_ID): never looked up, never forgotten."""

MIN_READ_BUFFER_BYTES = 8192
"""FUSE_MIN_READ_BUFFER: read() on the device with less is EINVAL."""

RESENT_UNIQUE_BIT = 1 << 63
"""Set in `Header.unique` of a request that NOTIFY_RESEND put back into the queue (since 7.40)."""


class MalformedMessage(ValueError):
    """A message that does not have the layout its header announces; the text says which and how."""


class Opcode(IntEnum):
    """What a request asks for (`enum fuse_opcode`)."""

    LOOKUP = 1
    FORGET = 2  # has no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # has no reply, except EAGAIN or ENOSYS
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41  # has no reply; answers NOTIFY_RETRIEVE, which Forebay never sends
    BATCH_FORGET = 42  # has no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Capability(IntFlag):
    """What INIT negotiates: `flags` in bits 0 to 31, `flags2` in bits 32 to 63. Unknown bits are kept."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30  # without it the kernel ignores bits 32 to 63
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class Header(NamedTuple):
    """`struct fuse_in_header`: the first 40 bytes of every request."""

    length: int
    """Bytes of the whole message, this header included."""
    opcode: int
    """An `Opcode`, or a number that a newer kernel invented."""
    unique: int
    """What the reply has to repeat, all 64 bits of it: the kernel files a resent request with its top bit."""
    node: int
    """The inode it is about, as the file system numbered it in a reply to LOOKUP; 0 where there is none."""
    uid: int
    gid: int
    pid: int
    """The calling thread, in the mounter's pid namespace; 0 for requests of the kernel's own."""

    @property
    def resent(self) -> bool:
        """Whether somebody may have worked on this request before."""
        return self.unique >= RESENT_UNIQUE_BIT


class Init(NamedTuple):
    """The first request of a connection. With a `major` other than 7 the last two fields are 0, as unread."""

    major: int
    minor: int
    max_readahead: int
    """Bytes."""
    flags: Capability


class Lookup(NamedTuple):
    """Find `name` in the directory `Header.node`; a positive reply gives the kernel one more reference."""

    name: bytes
    """Not empty, without "/" and NUL; any bytes else, and not necessarily UTF-8."""


class Forget(NamedTuple):
    """The kernel gives references to `Header.node` back. No reply."""

    lookups: int
    """How many (nlookup)."""


class BatchForget(NamedTuple):
    """Many `Forget` at once. No reply."""

    nodes: tuple[tuple[int, int], ...]
    """(node, lookups) pairs."""


class Getattr(NamedTuple):
    """stat(); `handle` where the caller holds an open file."""

    handle: int | None


class Modify(NamedTuple):
    """Any request that would change something; `Header.opcode` says which. Answer: EROFS."""


class Readlink(NamedTuple):
    """The target of the symbolic link `Header.node`."""


class Open(NamedTuple):
    """open() of a regular file; `flags` are those of open(2), without O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC."""

    flags: int


class Read(NamedTuple):
    """Bytes `offset` to `offset + size` of the file; fewer are an end of file."""

    handle: int
    offset: int
    size: int
    flags: int
    """Those of open(2), as they are now (fcntl F_SETFL)."""


class Release(NamedTuple):
    """The last close of an open file. The reply's error goes nowhere."""

    handle: int
    flags: int
    """Those of open(2)."""


class Flush(NamedTuple):
    """One close() of perhaps many on a handle."""

    handle: int


class Fsync(NamedTuple):
    """fsync() of a file or a directory."""

    handle: int
    data_only: bool


class Opendir(NamedTuple):
    """open() of a directory."""

    flags: int


class Readdir(NamedTuple):
    """Directory entries that come after `offset`, packed into at most `size` bytes."""

    handle: int
    offset: int
    """0 at first, then the offset that the last entry received was packed with."""
    size: int


class Readdirplus(NamedTuple):
    """`Readdir` with a LOOKUP of each name in the reply: each entry gives the kernel one more reference."""

    handle: int
    offset: int
    size: int


class Releasedir(NamedTuple):
    """The last close of a directory."""

    handle: int


class Statfs(NamedTuple):
    """statvfs()."""


class Getxattr(NamedTuple):
    """An extended attribute; `size` 0 asks for its length only."""

    name: bytes
    """With its namespace, e.g. "user.checksum". It may contain "/"."""
    size: int


class Listxattr(NamedTuple):
    """The names of the extended attributes, each with a NUL; `size` 0 asks for their length only."""

    size: int


class Access(NamedTuple):
    """access(2); never sent to a mount with default_permissions."""

    mask: int


class Interrupt(NamedTuple):
    """The caller of the request `unique` got a signal. No reply to this, but still one to that request."""

    unique: int


class Destroy(NamedTuple):
    """The mount is gone. Sent only where the mounter may be trusted to answer (fuseblk, virtiofs)."""


class Lseek(NamedTuple):
    """SEEK_DATA or SEEK_HOLE; the kernel does the other kinds itself."""

    handle: int
    offset: int
    whence: int


class Ioctl(NamedTuple):
    """ioctl(2) of a command whose number says how much goes in and out ("restricted", the only kind for us)."""

    handle: int
    flags: int
    command: int
    payload: bytes
    """What goes in."""
    out_size: int
    """Bytes that may come out."""


class Statx(NamedTuple):
    """statx() of a caller who wants a birth time. ENOSYS makes the kernel use GETATTR from then on."""

    handle: int | None
    flags: int
    mask: int


class Unsupported(NamedTuple):
    """A request Forebay does not know, also one of a kernel newer than this module. Answer: ENOSYS."""

    opcode: int


Request = (
    Init
    | Lookup
    | Forget
    | BatchForget
    | Getattr
    | Modify
    | Readlink
    | Open
    | Read
    | Release
    | Flush
    | Fsync
    | Opendir
    | Readdir
    | Readdirplus
    | Releasedir
    | Statfs
    | Getxattr
    | Listxattr
    | Access
    | Interrupt
    | Destroy
    | Lseek
    | Ioctl
    | Statx
    | Unsupported
)

# total_extlen and padding are skipped: extensions follow only requests that create something.
_HEADER = struct.Struct("=IIQQIII4x")
HEADER_BYTES = _HEADER.size

# The structs behind the header, with the header skipped in each: unpack() then checks the exact size of the
# whole message at no cost, and a struct.error means the same thing everywhere.
_EMPTY = struct.Struct("=40x")
_FORGET = struct.Struct("=40xQ")
_BATCH_FORGET = struct.Struct("=40xI4x")
_FORGET_ONE = struct.Struct("=QQ")
_GETATTR = struct.Struct("=40xI4xQ")
_OPEN = struct.Struct("=40xI4x")
_READ = struct.Struct("=40xQQI4x8xI4x")  # fh, offset, size, read_flags, lock_owner, flags, padding
_READDIR = struct.Struct("=40xQQI20x")  # the same struct; a directory has no use for the rest
_RELEASE = struct.Struct("=40xQI12x")
_RELEASEDIR = struct.Struct("=40xQ16x")
_FLUSH = struct.Struct("=40xQ16x")
_FSYNC = struct.Struct("=40xQI4x")
_XATTR = struct.Struct("=40xI4x")
_ACCESS = struct.Struct("=40xI4x")
_INTERRUPT = struct.Struct("=40xQ")
_LSEEK = struct.Struct("=40xQqI4x")
_IOCTL = struct.Struct("=40xQII8xII")  # fh, flags, cmd, arg, in_size, out_size
_STATX = struct.Struct("=40xI4xQII")
_INIT_VERSION = struct.Struct("=40xII")
_INIT = struct.Struct("=40xIIII")
_INIT_EXTENDED = struct.Struct("=40xIIIII44x")  # with flags2, since 7.36

_GETATTR_FH = 1 << 0  # FUSE_GETATTR_FH: the handle field is valid
_FSYNC_FDATASYNC = 1 << 0  # FUSE_FSYNC_FDATASYNC

_MODIFY_FIXED_BYTES: dict[int, int] = {
    Opcode.SETATTR: 88,
    Opcode.SYMLINK: 0,
    Opcode.MKNOD: 16,
    Opcode.MKDIR: 8,
    Opcode.UNLINK: 0,
    Opcode.RMDIR: 0,
    Opcode.RENAME: 8,
    Opcode.LINK: 8,
    Opcode.WRITE: 40,
    Opcode.SETXATTR: 8,  # 16 once SETXATTR_EXT is agreed on, which a read-only mount has no reason to
    Opcode.REMOVEXATTR: 0,
    Opcode.CREATE: 16,
    Opcode.FALLOCATE: 32,
    Opcode.RENAME2: 16,
    Opcode.COPY_FILE_RANGE: 56,
    Opcode.TMPFILE: 16,
    Opcode.COPY_FILE_RANGE_64: 56,
}
"""Bytes of the fixed struct behind the header of each request that modifies."""

_MODIFY = Modify()


def parse(message: bytes) -> tuple[Header, Request]:
    """Take one message apart, as one read() of the device returned it.

    Args:
        message: header and body, without any of the read buffer's rest.

    Returns:
        The header and the request. An opcode nobody knows is an `Unsupported`, no error.

    Raises:
        MalformedMessage: the layout is not the one of the opcode.
    """
    length = len(message)
    if length < HEADER_BYTES:
        raise MalformedMessage(f"{length} bytes, and a header alone has {HEADER_BYTES}")
    header = Header._make(_HEADER.unpack_from(message))
    if header.length != length:
        raise MalformedMessage(f"{length} bytes, but the header says {header.length}")
    parser = _PARSERS.get(header.opcode)
    if parser is None:
        return header, Unsupported(header.opcode)
    try:
        return header, parser(message)
    except struct.error as error:
        raise MalformedMessage(f"{Opcode(header.opcode).name} of {length} bytes: {error}") from error


def _init(message: bytes) -> Init:
    major, minor = _INIT_VERSION.unpack_from(message)
    if major != PROTOCOL_MAJOR:
        # "ignore the rest of the INIT message" (fuse.h, version negotiation): it may be laid out otherwise.
        return Init(major, minor, 0, Capability(0))
    if len(message) == _INIT.size:
        _, _, max_readahead, flags = _INIT.unpack(message)
        if flags & Capability.INIT_EXT:
            raise MalformedMessage(f"INIT promises flags2 and ends after {len(message)} bytes, before them")
        return Init(major, minor, max_readahead, Capability(flags))
    # Longer than today's struct is fine: that is how a newer kernel adds fields.
    _, _, max_readahead, flags, flags2 = _INIT_EXTENDED.unpack_from(message)
    if flags & Capability.INIT_EXT:
        flags |= flags2 << 32
    return Init(major, minor, max_readahead, Capability(flags))


def _name(message: bytes, start: int, what: str) -> bytes:
    name = message[start:-1]
    if len(message) <= start + 1 or message[-1] or b"\0" in name:
        raise MalformedMessage(f"{what}: {message[start:]!r} is not one name with one NUL after it")
    return name


def _lookup(message: bytes) -> Lookup:
    name = _name(message, HEADER_BYTES, "LOOKUP")
    if b"/" in name:
        raise MalformedMessage(f'LOOKUP: {name!r} contains "/"')
    return Lookup(name)


def _batch_forget(message: bytes) -> BatchForget:
    (count,) = _BATCH_FORGET.unpack_from(message)
    length = _BATCH_FORGET.size + count * _FORGET_ONE.size
    if len(message) != length:
        raise MalformedMessage(f"BATCH_FORGET: {len(message)} bytes, but {count} nodes need {length}")
    return BatchForget(tuple(_FORGET_ONE.iter_unpack(message[_BATCH_FORGET.size :])))


def _getattr(message: bytes) -> Getattr:
    flags, handle = _GETATTR.unpack(message)
    return Getattr(handle if flags & _GETATTR_FH else None)


def _modify(message: bytes) -> Modify:
    opcode = _HEADER.unpack_from(message)[1]
    needed = HEADER_BYTES + _MODIFY_FIXED_BYTES[opcode]
    if len(message) < needed:
        raise MalformedMessage(f"{Opcode(opcode).name}: {len(message)} bytes, and it takes at least {needed}")
    return _MODIFY


def _fsync(message: bytes) -> Fsync:
    handle, flags = _FSYNC.unpack(message)
    return Fsync(handle, bool(flags & _FSYNC_FDATASYNC))


def _getxattr(message: bytes) -> Getxattr:
    (size,) = _XATTR.unpack_from(message)
    return Getxattr(_name(message, _XATTR.size, "GETXATTR"), size)


def _ioctl(message: bytes) -> Ioctl:
    handle, flags, command, in_size, out_size = _IOCTL.unpack_from(message)
    if len(message) != _IOCTL.size + in_size:
        raise MalformedMessage(
            f"IOCTL: {len(message)} bytes, but with {in_size} of input it has {_IOCTL.size + in_size}"
        )
    return Ioctl(handle, flags, command, message[_IOCTL.size :], out_size)


def _statx(message: bytes) -> Statx:
    getattr_flags, handle, flags, mask = _STATX.unpack(message)
    return Statx(handle if getattr_flags & _GETATTR_FH else None, flags, mask)


_PARSERS: dict[int, Callable[[bytes], Request]] = {
    Opcode.INIT: _init,
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: lambda message: Forget._make(_FORGET.unpack(message)),
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.GETATTR: _getattr,
    Opcode.READLINK: lambda message: Readlink._make(_EMPTY.unpack(message)),
    Opcode.OPEN: lambda message: Open._make(_OPEN.unpack(message)),
    Opcode.READ: lambda message: Read._make(_READ.unpack(message)),
    Opcode.RELEASE: lambda message: Release._make(_RELEASE.unpack(message)),
    Opcode.FLUSH: lambda message: Flush._make(_FLUSH.unpack(message)),
    Opcode.FSYNC: _fsync,
    Opcode.FSYNCDIR: _fsync,
    Opcode.OPENDIR: lambda message: Opendir._make(_OPEN.unpack(message)),
    Opcode.READDIR: lambda message: Readdir._make(_READDIR.unpack(message)),
    Opcode.READDIRPLUS: lambda message: Readdirplus._make(_READDIR.unpack(message)),
    Opcode.RELEASEDIR: lambda message: Releasedir._make(_RELEASEDIR.unpack(message)),
    Opcode.STATFS: lambda message: Statfs._make(_EMPTY.unpack(message)),
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: lambda message: Listxattr._make(_XATTR.unpack(message)),
    Opcode.ACCESS: lambda message: Access._make(_ACCESS.unpack(message)),
    Opcode.INTERRUPT: lambda message: Interrupt._make(_INTERRUPT.unpack(message)),
    Opcode.DESTROY: lambda message: Destroy._make(_EMPTY.unpack(message)),
    Opcode.IOCTL: _ioctl,
    Opcode.LSEEK: lambda message: Lseek._make(_LSEEK.unpack(message)),
    Opcode.STATX: _statx,
    **dict.fromkeys(_MODIFY_FIXED_BYTES, _modify),
}
"""Every opcode that is not `Unsupported`. Locks, ioctl, poll, bmap, DAX and syncfs are, by absence."""
