"""What the kernel offers in INIT, what Forebay wishes, and what is in force for the connection's life.

Pure: an `Init` and a `Wish` in, an `Agreement` out. The agreement can be written down as JSON, because a
connection has one INIT only: a successor that takes the descriptor over is never told again.

Sources: Linux `include/uapi/linux/fuse.h`, and `process_init_reply` in `fs/fuse/inode.c` for what the kernel
does with a reply.
"""

import dataclasses
import json
from dataclasses import dataclass

from forebay.fuse import wire
from forebay.fuse.wire import Capability
from forebay.fuse.wire_reply import InitReply

OLDEST_MINOR = 31
"""Linux 5.4, the oldest long-term kernel that has MAX_PAGES, NO_OPENDIR_SUPPORT and EXPLICIT_INVAL_DATA."""

_DEFAULT_PAGES = 32
"""Pages of one request where MAX_PAGES is not agreed on (FUSE_DEFAULT_MAX_PAGES_PER_REQ)."""

_MAX_PAGES = 256
"""The kernel's default limit (fs.fuse.max_pages_limit); it cuts larger replies down to it in silence."""

_MAX_WRITE_BYTES = 4096
"""The kernel's own least. The mount is read-only and sees no WRITE, but the kernel refuses every read() of
the device into less than max(8192, headers + max_write) bytes: so small a max_write lets small buffers do."""

_MAX_IOCTL_BYTES = 1 << 14
"""What goes into an ioctl whose number tells its size: the number has 14 bits for it."""

_WRITE_HEADERS_BYTES = 80
"""fuse_in_header and fuse_write_in, 40 bytes each."""

_ALWAYS = (
    Capability.ASYNC_READ  # read-ahead in parallel, and not one request after another
    | Capability.PARALLEL_DIROPS  # lookups in one directory do not wait for each other
    | Capability.CACHE_SYMLINKS  # a snapshot's links never change
    | Capability.EXPLICIT_INVAL_DATA  # nor do its files; what does change, we invalidate
    | Capability.MAX_PAGES
    | Capability.INIT_EXT
    | Capability.SPLICE_WRITE
    | Capability.SPLICE_MOVE
    | Capability.SPLICE_READ
)
"""Agreed on wherever it is offered. Left out on purpose: WRITEBACK_CACHE (excludes PASSTHROUGH),
AUTO_INVAL_DATA (takes precedence over EXPLICIT_INVAL_DATA), READDIRPLUS_AUTO (guesses when a plain READDIR
will do), ATOMIC_O_TRUNC (read-only: the kernel's SETATTR gets EROFS), locks (local ones suffice) and
NO_EXPORT_SUPPORT (forbids name_to_handle_at(2), and brings nothing)."""

_FORMAT = 1
"""Of the JSON text; to be raised when a field changes its meaning."""


class UnsupportedKernel(Exception):
    """The kernel's protocol is too old to serve a mount with; the text says what is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the mount would like to have."""

    page_bytes: int
    """The machine's page size (os.sysconf("SC_PAGE_SIZE")): the kernel counts requests in pages."""

    passthrough: bool = True
    """Reads of complete files go past the daemon. Large files gain most (FUSE.md, "Which mode pays")."""

    no_open: bool = False
    """No OPEN and no RELEASE for the whole mount: best for many small files, and never with passthrough."""

    readdirplus: bool = True
    """Listings carry the attributes, so that `ls -l` and os.scandir() need no LOOKUP for each name."""

    resend: bool = True
    """A successor can have the unanswered requests of a dead handler again (Linux 6.9)."""

    max_stack_depth: int = 1
    """File systems below a passthrough file: 1 for ext4, xfs or tmpfs, 2 for overlayfs. With 2 no overlayfs
    can be put on top of the mount."""

    max_background: int = 64
    """Read-ahead requests in flight. The kernel's 12 leaves a network idle; peers use 50 to 200."""

    congestion_threshold: int = 48
    """Three quarters of `max_background`, as in the kernel's own 12 and 9."""

    max_readahead_bytes: int = 1 << 20
    """Read-ahead of a sequential reader. At INIT the kernel takes at most 128 KiB of it: the rest is to be
    written to read_ahead_kb of the mount's bdi."""

    max_request_bytes: int = 1 << 20
    """The largest READ; 1 MiB is 256 pages of 4 KiB, the most that the kernel takes."""

    def __post_init__(self) -> None:
        if self.page_bytes < 4096 or self.page_bytes & (self.page_bytes - 1):
            raise ValueError(f"page_bytes is {self.page_bytes}: a power of two from 4096 is allowed")
        if self.max_stack_depth not in (1, 2):
            raise ValueError(f"max_stack_depth is {self.max_stack_depth}: 1 or 2 is allowed")
        if not 1 <= self.congestion_threshold <= self.max_background <= 0xFFFF:
            raise ValueError(
                f"congestion_threshold is {self.congestion_threshold}, max_background {self.max_background}:"
                " 1 to 65535 is allowed, and the first not above the second"
            )
        if not 0 <= self.max_readahead_bytes <= 0xFFFF_FFFF:
            raise ValueError(f"max_readahead_bytes is {self.max_readahead_bytes}: 0 to 4 GiB is allowed")
        if self.max_request_bytes < self.page_bytes:
            raise ValueError(f"max_request_bytes is {self.max_request_bytes}: a page of {self.page_bytes} is the least")


@dataclass(frozen=True, slots=True)
class CounterOffer:
    """The kernel speaks a newer major version: send `reply`, then wait for a second INIT."""

    reply: InitReply


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for the life of a connection. All but three numbers is read off the reply to INIT."""

    reply: InitReply

    page_bytes: int
    """What the kernel counts `reply.max_pages` in."""

    readahead_bytes: int
    """What is to be written to read_ahead_kb, in bytes."""

    kernel_minor: int
    """The kernel's own minor version; `reply.minor` is the one in force."""

    @property
    def passthrough(self) -> bool:
        """OPEN may be answered with a backing id."""
        return Capability.PASSTHROUGH in self.reply.flags

    @property
    def no_open(self) -> bool:
        """OPEN and OPENDIR are to be answered ENOSYS, the first time as ever after."""
        return Capability.NO_OPEN_SUPPORT in self.reply.flags

    @property
    def readdirplus(self) -> bool:
        """Listings come as READDIRPLUS, never as READDIR."""
        return Capability.DO_READDIRPLUS in self.reply.flags

    @property
    def resend(self) -> bool:
        """NOTIFY_RESEND is understood."""
        return Capability.HAS_RESEND in self.reply.flags

    @property
    def splice_write(self) -> bool:
        """Replies may be spliced into the device."""
        return Capability.SPLICE_WRITE in self.reply.flags

    @property
    def splice_move(self) -> bool:
        """SPLICE_F_MOVE may put the spliced pages themselves into the page cache."""
        return Capability.SPLICE_MOVE in self.reply.flags

    @property
    def splice_read(self) -> bool:
        """Requests may be spliced out of the device."""
        return Capability.SPLICE_READ in self.reply.flags

    @property
    def max_read_bytes(self) -> int:
        """No READ is larger; an administrator's fs.fuse.max_pages_limit may make them smaller."""
        pages = self.reply.max_pages if Capability.MAX_PAGES in self.reply.flags else _DEFAULT_PAGES
        return pages * self.page_bytes

    @property
    def max_write(self) -> int:
        """Bytes; no WRITE would be larger."""
        return self.reply.max_write

    @property
    def read_buffer_bytes(self) -> int:
        """A buffer for read() of the device that holds every request; the kernel has a least size of its own."""
        return max(wire.MIN_READ_BUFFER_BYTES, _WRITE_HEADERS_BYTES + max(self.reply.max_write, _MAX_IOCTL_BYTES))

    def to_json(self) -> str:
        """The agreement as one line of text for a successor."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Agreement":
        """Read `to_json`'s text.

        Raises:
            ValueError: it is no agreement, or one of another format.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
            raise ValueError(f"no agreement of format {_FORMAT}: {text!r}")
        reply = fields.pop("reply", None)
        _check_integers(cls, fields, without={"reply"})
        _check_integers(InitReply, reply)
        reply["flags"] = Capability(reply["flags"])
        return cls(reply=InitReply(**reply), **fields)


def negotiate(offered: wire.Init, wish: Wish) -> Agreement | CounterOffer:
    """Settle the terms of a connection.

    Args:
        offered: the kernel's INIT.
        wish: what is taken where it is offered.

    Returns:
        The agreement, or what to say to a kernel that first has to lower its major version.

    Raises:
        UnsupportedKernel: older than 7.31.
    """
    if offered.major > wire.PROTOCOL_MAJOR:
        return CounterOffer(InitReply())
    if (offered.major, offered.minor) < (wire.PROTOCOL_MAJOR, OLDEST_MINOR):
        raise UnsupportedKernel(
            f"the kernel speaks FUSE {offered.major}.{offered.minor}:"
            f" Forebay needs {wire.PROTOCOL_MAJOR}.{OLDEST_MINOR} (Linux 5.4) or newer"
        )
    flags = _flags(offered.flags, wish)
    max_pages = 0
    if Capability.MAX_PAGES in flags:
        max_pages = min(wish.max_request_bytes // wish.page_bytes, _MAX_PAGES)
    reply = InitReply(
        minor=min(offered.minor, wire.PROTOCOL_MINOR),
        max_readahead=min(offered.max_readahead, wish.max_readahead_bytes),
        flags=flags,
        max_background=wish.max_background,
        congestion_threshold=wish.congestion_threshold,
        max_write=_MAX_WRITE_BYTES,
        max_pages=max_pages,
        max_stack_depth=wish.max_stack_depth if Capability.PASSTHROUGH in flags else 0,
    )
    return Agreement(reply, wish.page_bytes, wish.max_readahead_bytes, offered.minor)


def _flags(offered: Capability, wish: Wish) -> Capability:
    """The capabilities to reply: never one that was not offered."""
    wanted = _ALWAYS
    if wish.readdirplus:
        wanted |= Capability.DO_READDIRPLUS
    if wish.resend:
        wanted |= Capability.HAS_RESEND
    if wish.no_open and Capability.NO_OPEN_SUPPORT in offered:
        # From the first ENOSYS on no OPEN comes, hence none that could carry a backing id: no passthrough.
        wanted |= Capability.NO_OPEN_SUPPORT | Capability.NO_OPENDIR_SUPPORT
    elif wish.passthrough:
        wanted |= Capability.PASSTHROUGH
    flags = wanted & offered
    if Capability.INIT_EXT not in flags:
        flags &= Capability(0xFFFF_FFFF)  # the kernel would not read flags2
    return flags


def _check_integers(kind: type, fields: object, without: frozenset[str] | set[str] = frozenset()) -> None:
    """Every field of the dataclass `kind` is there, nothing else is, and all are integers from 0 on."""
    names = {field.name for field in dataclasses.fields(kind)} - without
    if not isinstance(fields, dict) or fields.keys() != names:
        raise ValueError(f"{kind.__name__} has the fields {sorted(names)}: {fields!r}")
    for name, value in fields.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{kind.__name__}.{name} is {value!r}: an integer from 0 on is allowed")
