"""The FUSE codec against byte literals, as a little-endian kernel writes them."""

import contextlib
import math
import stat
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.fuse import wire, wire_reply
from forebay.fuse.wire import Capability, MalformedMessage, Opcode

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the literals are little-endian")

HEADER_REST = (
    b"\x07\x00\x00\x00\x00\x00\x00\x00"  # unique
    b"\x03\x00\x00\x00\x00\x00\x00\x00"  # node
    b"\xe8\x03\x00\x00"  # uid
    b"\xe9\x03\x00\x00"  # gid
    b"\x39\x30\x00\x00"  # pid
    b"\x00\x00"  # total_extlen
    b"\x00\x00"  # padding
)


def message(opcode: int, body: bytes) -> bytes:
    """`body` behind a header that tells its length truly."""
    return (40 + len(body)).to_bytes(4, "little") + opcode.to_bytes(4, "little") + HEADER_REST + body


# opcode, the bytes behind the header, what they mean
EXACT: dict[str, tuple[Opcode, bytes, wire.Request]] = {
    "lookup": (Opcode.LOOKUP, b"train\xff.bin\0", wire.Lookup(b"train\xff.bin")),
    "lookup of one letter": (Opcode.LOOKUP, b"a\0", wire.Lookup(b"a")),
    "forget": (
        Opcode.FORGET,
        b"\x02\x00\x00\x00\x00\x00\x00\x00",  # nlookup
        wire.Forget(2),
    ),
    "batch forget": (
        Opcode.BATCH_FORGET,
        b"\x02\x00\x00\x00"  # count
        b"\x00\x00\x00\x00"  # dummy
        b"\x05\x00\x00\x00\x00\x00\x00\x00"  # [0].nodeid
        b"\x01\x00\x00\x00\x00\x00\x00\x00"  # [0].nlookup
        b"\x06\x00\x00\x00\x00\x00\x00\x00"  # [1].nodeid
        b"\x04\x00\x00\x00\x00\x00\x00\x00",  # [1].nlookup
        wire.BatchForget(((5, 1), (6, 4))),
    ),
    "batch forget of none": (
        Opcode.BATCH_FORGET,
        b"\x00\x00\x00\x00"  # count
        b"\x00\x00\x00\x00",  # dummy
        wire.BatchForget(()),
    ),
    "getattr": (
        Opcode.GETATTR,
        b"\x00\x00\x00\x00"  # getattr_flags
        b"\x00\x00\x00\x00"  # dummy
        b"\x09\x00\x00\x00\x00\x00\x00\x00",  # fh, not valid
        wire.Getattr(None),
    ),
    "getattr of a handle": (
        Opcode.GETATTR,
        b"\x01\x00\x00\x00"  # getattr_flags: FUSE_GETATTR_FH
        b"\x00\x00\x00\x00"  # dummy
        b"\x09\x00\x00\x00\x00\x00\x00\x00",  # fh
        wire.Getattr(9),
    ),
    "readlink": (Opcode.READLINK, b"", wire.Readlink()),
    "open": (
        Opcode.OPEN,
        b"\x00\x80\x00\x00"  # flags: O_LARGEFILE
        b"\x00\x00\x00\x00",  # open_flags
        wire.Open(0x8000),
    ),
    "read": (
        Opcode.READ,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x00\x10\x00\x02\x00\x00\x00"  # offset
        b"\x00\x00\x02\x00"  # size
        b"\x02\x00\x00\x00"  # read_flags
        b"\x11\x11\x11\x11\x11\x11\x11\x11"  # lock_owner
        b"\x00\x40\x00\x00"  # flags: O_DIRECT
        b"\x00\x00\x00\x00",  # padding
        wire.Read(9, (2 << 32) + (1 << 20), 128 << 10, 0x4000),
    ),
    "release": (
        Opcode.RELEASE,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x80\x00\x00"  # flags
        b"\x01\x00\x00\x00"  # release_flags
        b"\x11\x11\x11\x11\x11\x11\x11\x11",  # lock_owner
        wire.Release(9, 0x8000),
    ),
    "flush": (
        Opcode.FLUSH,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x00\x00\x00"  # unused
        b"\x00\x00\x00\x00"  # padding
        b"\x11\x11\x11\x11\x11\x11\x11\x11",  # lock_owner
        wire.Flush(9),
    ),
    "fsync": (
        Opcode.FSYNC,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x01\x00\x00\x00"  # fsync_flags: FUSE_FSYNC_FDATASYNC
        b"\x00\x00\x00\x00",  # padding
        wire.Fsync(9, True),
    ),
    "fsyncdir": (
        Opcode.FSYNCDIR,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x00\x00\x00"  # fsync_flags
        b"\x00\x00\x00\x00",  # padding
        wire.Fsync(9, False),
    ),
    "opendir": (
        Opcode.OPENDIR,
        b"\x00\x00\x01\x00"  # flags: O_DIRECTORY
        b"\x00\x00\x00\x00",  # open_flags
        wire.Opendir(0x10000),
    ),
    "readdir": (
        Opcode.READDIR,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x02\x00\x00\x00\x00\x00\x00\x00"  # offset
        b"\x00\x10\x00\x00"  # size
        b"\x00\x00\x00\x00"  # read_flags
        b"\x00\x00\x00\x00\x00\x00\x00\x00"  # lock_owner
        b"\x00\x00\x00\x00"  # flags
        b"\x00\x00\x00\x00",  # padding
        wire.Readdir(9, 2, 4096),
    ),
    "readdirplus": (
        Opcode.READDIRPLUS,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x00\x00\x00\x00\x00\x00\x00"  # offset
        b"\x00\x10\x00\x00"  # size
        b"\x00\x00\x00\x00"  # read_flags
        b"\x00\x00\x00\x00\x00\x00\x00\x00"  # lock_owner
        b"\x00\x00\x00\x00"  # flags
        b"\x00\x00\x00\x00",  # padding
        wire.Readdirplus(9, 0, 4096),
    ),
    "releasedir": (
        Opcode.RELEASEDIR,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x00\x01\x00"  # flags
        b"\x00\x00\x00\x00"  # release_flags
        b"\x00\x00\x00\x00\x00\x00\x00\x00",  # lock_owner
        wire.Releasedir(9),
    ),
    "statfs": (Opcode.STATFS, b"", wire.Statfs()),
    "getxattr": (
        Opcode.GETXATTR,
        b"\x40\x00\x00\x00"  # size
        b"\x00\x00\x00\x00"  # padding
        b"user.a/b\0",  # name
        wire.Getxattr(b"user.a/b", 64),
    ),
    "listxattr": (
        Opcode.LISTXATTR,
        b"\x00\x00\x00\x00"  # size
        b"\x00\x00\x00\x00",  # padding
        wire.Listxattr(0),
    ),
    "access": (
        Opcode.ACCESS,
        b"\x04\x00\x00\x00"  # mask: R_OK
        b"\x00\x00\x00\x00",  # padding
        wire.Access(4),
    ),
    "interrupt": (
        Opcode.INTERRUPT,
        b"\x06\x00\x00\x00\x00\x00\x00\x00",  # unique
        wire.Interrupt(6),
    ),
    "destroy": (Opcode.DESTROY, b"", wire.Destroy()),
    "lseek": (
        Opcode.LSEEK,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x10\x00\x00\x00\x00\x00\x00"  # offset
        b"\x03\x00\x00\x00"  # whence: SEEK_DATA
        b"\x00\x00\x00\x00",  # padding
        wire.Lseek(9, 4096, 3),
    ),
    "ioctl": (
        Opcode.IOCTL,
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x10\x00\x00\x00"  # flags: FUSE_IOCTL_DIR
        b"\xb0\x46\x05\x40"  # cmd: _IOC(_IOC_WRITE, 'F', 0xB0, 5)
        b"\x00\x10\x00\x00\x00\x00\x00\x00"  # arg: an address of the caller's
        b"\x05\x00\x00\x00"  # in_size
        b"\x00\x00\x00\x00"  # out_size
        b"a\x00b\x00c",
        wire.Ioctl(9, 16, 0x400546B0, b"a\0b\0c", 0),
    ),
    "statx": (
        Opcode.STATX,
        b"\x00\x00\x00\x00"  # getattr_flags
        b"\x00\x00\x00\x00"  # reserved
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh, not valid
        b"\x00\x20\x00\x00"  # sx_flags: AT_STATX_FORCE_SYNC
        b"\xff\x0f\x00\x00",  # sx_mask
        wire.Statx(None, 0x2000, 0xFFF),
    ),
    "statx of a handle": (
        Opcode.STATX,
        b"\x01\x00\x00\x00"  # getattr_flags: FUSE_GETATTR_FH
        b"\x00\x00\x00\x00"  # reserved
        b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
        b"\x00\x00\x00\x00"  # sx_flags
        b"\xff\x0f\x00\x00",  # sx_mask
        wire.Statx(9, 0, 0xFFF),
    ),
}

exact = pytest.mark.parametrize(("opcode", "body", "expected"), EXACT.values(), ids=EXACT.keys())


class TestRequests:
    @exact
    def test_whole(self, opcode: Opcode, body: bytes, expected: wire.Request) -> None:
        header, request = wire.parse(message(opcode, body))
        assert header == wire.Header(40 + len(body), opcode, 7, 3, 1000, 1001, 12345)
        assert type(request) is type(expected)
        assert request == expected

    @exact
    def test_one_byte_short(self, opcode: Opcode, body: bytes, expected: wire.Request) -> None:
        with pytest.raises(MalformedMessage):  # shorter than the header says
            wire.parse(message(opcode, body)[:-1])
        if body:
            with pytest.raises(MalformedMessage, match=opcode.name):  # shorter than its struct
                wire.parse(message(opcode, body[:-1]))

    @exact
    @pytest.mark.parametrize("rest", [b"\0", b"\x01", b"\0" * 8])
    def test_trailing_bytes(self, opcode: Opcode, body: bytes, expected: wire.Request, rest: bytes) -> None:
        with pytest.raises(MalformedMessage):  # longer than the header says
            wire.parse(message(opcode, body) + rest)
        with pytest.raises(MalformedMessage, match=opcode.name):  # longer than its struct
            wire.parse(message(opcode, body + rest))

    @pytest.mark.parametrize("name", [b"", b"\0", b"name", b"a/b\0", b"/\0", b"a\0b\0", b"\0a\0"])
    def test_names_that_are_none(self, name: bytes) -> None:
        with pytest.raises(MalformedMessage, match="LOOKUP"):
            wire.parse(message(Opcode.LOOKUP, name))

    @pytest.mark.parametrize("name", [b"", b"\0", b"name", b"a\0b\0"])
    def test_attribute_names_that_are_none(self, name: bytes) -> None:
        with pytest.raises(MalformedMessage, match="GETXATTR"):
            wire.parse(message(Opcode.GETXATTR, bytes(8) + name))

    def test_a_batch_of_more_than_there_is(self) -> None:
        with pytest.raises(MalformedMessage, match="4294967295 nodes need"):
            wire.parse(message(Opcode.BATCH_FORGET, b"\xff\xff\xff\xff" + bytes(4) + bytes(16)))

    @pytest.mark.parametrize("length", [0, 1, 39])
    def test_less_than_a_header(self, length: int) -> None:
        with pytest.raises(MalformedMessage, match="a header alone has 40"):
            wire.parse(message(Opcode.STATFS, b"")[:length])

    @pytest.mark.parametrize("opcode", [Opcode.POLL, Opcode.SETLK, Opcode.BMAP, 4096, 99])
    def test_unsupported_whatever_follows(self, opcode: int) -> None:
        _, request = wire.parse(message(opcode, b"whatever"))
        assert type(request) is wire.Unsupported
        assert request == wire.Unsupported(opcode)

    def test_a_resent_request(self) -> None:
        first, _ = wire.parse(message(Opcode.STATFS, b""))
        again, _ = wire.parse(
            b"\x28\x00\x00\x00"  # length
            b"\x11\x00\x00\x00"  # opcode: STATFS
            b"\x07\x00\x00\x00\x00\x00\x00\x80"  # unique, with the top bit
            + HEADER_REST[8:]
        )
        assert not first.resent
        assert again.resent
        assert again.unique == first.unique | wire.RESENT_UNIQUE_BIT


# opcode: the size of the fixed struct in fuse.h
MODIFY = {
    Opcode.SETATTR: 88,
    Opcode.SYMLINK: 0,
    Opcode.MKNOD: 16,
    Opcode.MKDIR: 8,
    Opcode.UNLINK: 0,
    Opcode.RMDIR: 0,
    Opcode.RENAME: 8,
    Opcode.LINK: 8,
    Opcode.WRITE: 40,
    Opcode.SETXATTR: 8,
    Opcode.REMOVEXATTR: 0,
    Opcode.CREATE: 16,
    Opcode.FALLOCATE: 32,
    Opcode.RENAME2: 16,
    Opcode.COPY_FILE_RANGE: 56,
    Opcode.TMPFILE: 16,
    Opcode.COPY_FILE_RANGE_64: 56,
}


@pytest.mark.parametrize(("opcode", "fixed"), MODIFY.items(), ids=lambda value: getattr(value, "name", None))
class TestModify:
    def test_whole_and_with_what_follows(self, opcode: Opcode, fixed: int) -> None:
        for rest in (b"", b"name\0", b"name\0\0\0\0" + bytes(24)):
            _, request = wire.parse(message(opcode, bytes(fixed) + rest))
            assert type(request) is wire.Modify

    def test_one_byte_short(self, opcode: Opcode, fixed: int) -> None:
        if fixed:
            with pytest.raises(MalformedMessage, match=opcode.name):
                wire.parse(message(opcode, bytes(fixed - 1)))


# What Linux 6.18 sent, read from the device.
INIT_BODY = (
    b"\x07\x00\x00\x00"  # major
    b"\x2d\x00\x00\x00"  # minor
    b"\x00\x00\x02\x00"  # max_readahead
    b"\xfb\xff\xff\x73"  # flags
    b"\xfd\x05\x00\x00" + bytes(44)  # flags2  # unused
)


class TestInit:
    def test_whole(self) -> None:
        _, request = wire.parse(message(Opcode.INIT, INIT_BODY))
        assert request == wire.Init(7, 45, 131072, Capability(0x5FD_73FF_FFFB))
        assert isinstance(request, wire.Init)
        assert Capability.PASSTHROUGH in request.flags
        assert Capability.OVER_IO_URING not in request.flags

    def test_a_newer_kernel_may_add_fields(self) -> None:
        _, request = wire.parse(message(Opcode.INIT, INIT_BODY + bytes(64)))
        assert request == wire.Init(7, 45, 131072, Capability(0x5FD_73FF_FFFB))

    def test_before_flags2(self) -> None:
        body = (
            b"\x07\x00\x00\x00"  # major
            b"\x1f\x00\x00\x00"  # minor
            b"\x00\x00\x02\x00"  # max_readahead
            b"\xfb\xff\xff\x03"  # flags, without INIT_EXT
        )
        _, request = wire.parse(message(Opcode.INIT, body))
        assert request == wire.Init(7, 31, 131072, Capability(0x03FF_FFFB))

    def test_flags2_counts_only_with_init_ext(self) -> None:
        body = INIT_BODY[:15] + b"\x33" + INIT_BODY[16:]
        _, request = wire.parse(message(Opcode.INIT, body))
        assert request == wire.Init(7, 45, 131072, Capability(0x33FF_FFFB))

    @pytest.mark.parametrize("length", [0, 7, 8, 15, 16, 17, 20, 63])
    def test_short(self, length: int) -> None:
        with pytest.raises(MalformedMessage, match="INIT"):
            wire.parse(message(Opcode.INIT, INIT_BODY[:length]))

    @pytest.mark.parametrize("rest", [b"", b"?", bytes(100)])
    def test_of_another_major_only_the_version_is_read(self, rest: bytes) -> None:
        body = (
            b"\x08\x00\x00\x00"  # major
            b"\x02\x00\x00\x00"  # minor
        )
        _, request = wire.parse(message(Opcode.INIT, body + rest))
        assert request == wire.Init(8, 2, 0, Capability(0))


class TestArbitraryBytes:
    @given(st.binary(max_size=300))
    def test_any_message(self, data: bytes) -> None:
        with contextlib.suppress(MalformedMessage):
            wire.parse(data)

    @given(st.integers(0, 60), st.binary(max_size=130))
    def test_any_body(self, opcode: int, body: bytes) -> None:
        try:
            header, _ = wire.parse(message(opcode, body))
        except MalformedMessage:
            return
        assert header.opcode == opcode


ATTRIBUTES = wire_reply.Attributes(
    ino=77, size=1025, mtime_ns=1_600_000_000_000_000_123, mode=stat.S_IFREG | 0o644, nlink=1, uid=5, gid=6
)
ATTR = (
    b"\x4d\x00\x00\x00\x00\x00\x00\x00"  # ino
    b"\x01\x04\x00\x00\x00\x00\x00\x00"  # size
    b"\x03\x00\x00\x00\x00\x00\x00\x00"  # blocks
    b"\x00\x10\x5e\x5f\x00\x00\x00\x00"  # atime
    b"\x00\x10\x5e\x5f\x00\x00\x00\x00"  # mtime
    b"\x00\x10\x5e\x5f\x00\x00\x00\x00"  # ctime
    b"\x7b\x00\x00\x00"  # atimensec
    b"\x7b\x00\x00\x00"  # mtimensec
    b"\x7b\x00\x00\x00"  # ctimensec
    b"\xa4\x81\x00\x00"  # mode
    b"\x01\x00\x00\x00"  # nlink
    b"\x05\x00\x00\x00"  # uid
    b"\x06\x00\x00\x00"  # gid
    b"\x00\x00\x00\x00"  # rdev
    b"\x00\x10\x00\x00"  # blksize
    b"\x00\x00\x00\x00"  # flags
)
ENTRY_OUT = (
    b"\x02\x00\x00\x00\x00\x00\x00\x00"  # nodeid
    b"\x04\x00\x00\x00\x00\x00\x00\x00"  # generation
    b"\x3c\x00\x00\x00\x00\x00\x00\x00"  # entry_valid
    b"\x01\x00\x00\x00\x00\x00\x00\x00"  # attr_valid
    b"\x00\x00\x00\x00"  # entry_valid_nsec
    b"\x00\x65\xcd\x1d" + ATTR  # attr_valid_nsec
)
UNIQUE = b"\x07\x00\x00\x00\x00\x00\x00\x00"
SUCCESS = b"\x00\x00\x00\x00" + UNIQUE


class TestReplies:
    def test_error(self) -> None:
        assert wire_reply.reply_error(7, 2) == (
            b"\x10\x00\x00\x00"  # len
            b"\xfe\xff\xff\xff"  # error: -ENOENT
            b"\x07\x00\x00\x00\x00\x00\x00\x00"  # unique
        )

    def test_empty(self) -> None:
        assert wire_reply.reply_empty(7) == b"\x10\x00\x00\x00" + SUCCESS

    def test_a_resent_unique_goes_back_with_all_its_bits(self) -> None:
        assert wire_reply.reply_empty(7 | wire.RESENT_UNIQUE_BIT)[8:] == b"\x07\0\0\0\0\0\0\x80"

    def test_data(self) -> None:
        assert wire_reply.reply_data(7, b"abc") == b"\x13\x00\x00\x00" + SUCCESS + b"abc"
        assert wire_reply.reply_data(7, b"") == wire_reply.reply_empty(7)
        assert wire_reply.data_header(7, 3) + b"abc" == wire_reply.reply_data(7, b"abc")
        assert len(wire_reply.data_header(7, 3)) == wire_reply.DATA_HEADER_BYTES

    def test_entry(self) -> None:
        reply = wire_reply.reply_entry(7, 2, ATTRIBUTES, 60, 1.5, generation=4)
        assert len(ATTR) == 88
        assert len(ENTRY_OUT) == 128
        assert reply == b"\x90\x00\x00\x00" + SUCCESS + ENTRY_OUT

    def test_negative_entry(self) -> None:
        assert (
            wire_reply.reply_negative_entry(7, 0.25)
            == (
                b"\x90\x00\x00\x00" + SUCCESS + b"\x00\x00\x00\x00\x00\x00\x00\x00"  # nodeid: there is none
                b"\x00\x00\x00\x00\x00\x00\x00\x00"  # generation
                b"\x00\x00\x00\x00\x00\x00\x00\x00"  # entry_valid
                b"\x00\x00\x00\x00\x00\x00\x00\x00"  # attr_valid
                b"\x80\xb2\xe6\x0e"  # entry_valid_nsec
                b"\x00\x00\x00\x00"  # attr_valid_nsec
                 + bytes(88)  # attr
            )
        )

    def test_attributes(self) -> None:
        attr_out = (
            b"\x00\x00\x00\x00\x01\x00\x00\x00"  # attr_valid: for ever
            b"\x00\x00\x00\x00"  # attr_valid_nsec
            b"\x00\x00\x00\x00" + ATTR  # dummy
        )
        assert len(attr_out) == 104
        reply = wire_reply.reply_attributes(7, ATTRIBUTES, math.inf)
        assert reply == b"\x78\x00\x00\x00" + SUCCESS + attr_out

    def test_attributes_from_before_1970(self) -> None:
        old = wire_reply.Attributes(ino=1, size=0, mtime_ns=-1, mode=stat.S_IFDIR | 0o755)
        reply = wire_reply.reply_attributes(7, old, -1)
        assert reply[16:32] == bytes(16), "a negative validity is none"
        assert reply[64:72] == b"\xff" * 8  # mtime: -1
        assert reply[84:88] == (999_999_999).to_bytes(4, "little")  # mtimensec

    @pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2)])
    def test_blocks_are_rounded_up(self, size: int, blocks: int) -> None:
        assert wire_reply.Attributes(1, size, 0, 0).blocks == blocks

    def test_open(self) -> None:
        flags = wire_reply.OpenFlag.PASSTHROUGH | wire_reply.OpenFlag.NOFLUSH
        assert (
            wire_reply.reply_open(7, 9, flags, 5)
            == (
                b"\x20\x00\x00\x00" + SUCCESS + b"\x09\x00\x00\x00\x00\x00\x00\x00"  # fh
                b"\xa0\x00\x00\x00"  # open_flags
                b"\x05\x00\x00\x00"  # backing_id
            )
        )

    def test_statfs(self) -> None:
        reply = wire_reply.reply_statfs(7, blocks=1000, files=3, free_blocks=2)
        statfs_out = (
            b"\xe8\x03\x00\x00\x00\x00\x00\x00"  # blocks
            b"\x02\x00\x00\x00\x00\x00\x00\x00"  # bfree
            b"\x02\x00\x00\x00\x00\x00\x00\x00"  # bavail
            b"\x03\x00\x00\x00\x00\x00\x00\x00"  # files
            b"\x00\x00\x00\x00\x00\x00\x00\x00"  # ffree
            b"\x00\x10\x00\x00"  # bsize
            b"\xff\x00\x00\x00"  # namelen
            b"\x00\x10\x00\x00"  # frsize
            b"\x00\x00\x00\x00" + bytes(24)  # padding  # spare
        )
        assert len(statfs_out) == 80
        assert reply == b"\x60\x00\x00\x00" + SUCCESS + statfs_out

    def test_xattr_size(self) -> None:
        assert (
            wire_reply.reply_xattr_size(7, 3)
            == (
                b"\x18\x00\x00\x00" + SUCCESS + b"\x03\x00\x00\x00"  # size
                b"\x00\x00\x00\x00"  # padding
            )
        )

    def test_lseek(self) -> None:
        assert wire_reply.reply_lseek(7, 4096) == (
            b"\x18\x00\x00\x00" + SUCCESS + b"\x00\x10\x00\x00\x00\x00\x00\x00"  # offset
        )

    def test_init(self) -> None:
        reply = wire_reply.InitReply(
            max_readahead=131072,
            flags=Capability.ASYNC_READ | Capability.INIT_EXT | Capability.PASSTHROUGH,
            max_background=64,
            congestion_threshold=48,
            max_pages=256,
            max_stack_depth=1,
        )
        init_out = (
            b"\x07\x00\x00\x00"  # major
            b"\x2d\x00\x00\x00"  # minor
            b"\x00\x00\x02\x00"  # max_readahead
            b"\x01\x00\x00\x40"  # flags
            b"\x40\x00"  # max_background
            b"\x30\x00"  # congestion_threshold
            b"\x00\x10\x00\x00"  # max_write
            b"\x01\x00\x00\x00"  # time_gran
            b"\x00\x01"  # max_pages
            b"\x00\x00"  # map_alignment
            b"\x20\x00\x00\x00"  # flags2
            b"\x01\x00\x00\x00"  # max_stack_depth
            b"\x00\x00" + bytes(22)  # request_timeout  # unused
        )
        assert len(init_out) == 64
        assert wire_reply.reply_init(7, reply) == b"\x50\x00\x00\x00" + SUCCESS + init_out


class TestDirectoryEntries:
    def test_dirent(self) -> None:
        assert wire_reply.pack_dirent(77, 3, 8, b"train.bin") == (
            b"\x4d\x00\x00\x00\x00\x00\x00\x00"  # ino
            b"\x03\x00\x00\x00\x00\x00\x00\x00"  # off
            b"\x09\x00\x00\x00"  # namelen
            b"\x08\x00\x00\x00"  # type: DT_REG
            b"train.bin" + bytes(7)  # name  # up to a multiple of 8
        )

    def test_direntplus(self) -> None:
        entry = ENTRY_OUT[:8] + bytes(8) + ENTRY_OUT[16:]  # generation 0
        assert wire_reply.pack_direntplus(2, ATTRIBUTES, 60, 1.5, 3, b"train.bi") == entry + (
            b"\x4d\x00\x00\x00\x00\x00\x00\x00"  # ino
            b"\x03\x00\x00\x00\x00\x00\x00\x00"  # off
            b"\x08\x00\x00\x00"  # namelen
            b"\x08\x00\x00\x00"  # type: DT_REG
            b"train.bi"  # name, which needs no padding
        )

    @pytest.mark.parametrize("length", range(1, 18))
    def test_lengths(self, length: int) -> None:
        name = b"n" * length
        padded = 24 + (length + 7) // 8 * 8
        assert len(wire_reply.pack_dirent(1, 1, 4, name)) == padded == wire_reply.dirent_bytes(name)
        plus = wire_reply.pack_direntplus(2, ATTRIBUTES, 1, 1, 1, name)
        assert len(plus) == 128 + padded


class TestNotifications:
    """All have unique 0, and the code where a reply has its error."""

    def test_inval_inode(self) -> None:
        assert wire_reply.notify_inval_inode(2, -1, 4096) == (
            b"\x28\x00\x00\x00"  # len
            b"\x02\x00\x00\x00"  # code
            b"\x00\x00\x00\x00\x00\x00\x00\x00"  # unique
            b"\x02\x00\x00\x00\x00\x00\x00\x00"  # ino
            b"\xff\xff\xff\xff\xff\xff\xff\xff"  # off
            b"\x00\x10\x00\x00\x00\x00\x00\x00"  # len
        )

    def test_inval_entry(self) -> None:
        assert wire_reply.notify_inval_entry(1, b"abc", wire_reply.EXPIRE_ONLY) == (
            b"\x24\x00\x00\x00"  # len
            b"\x03\x00\x00\x00"  # code
            b"\x00\x00\x00\x00\x00\x00\x00\x00"  # unique
            b"\x01\x00\x00\x00\x00\x00\x00\x00"  # parent
            b"\x03\x00\x00\x00"  # namelen
            b"\x01\x00\x00\x00"  # flags
            b"abc\0"  # name
        )

    def test_delete(self) -> None:
        assert wire_reply.notify_delete(1, 2, b"abc") == (
            b"\x2c\x00\x00\x00"  # len
            b"\x06\x00\x00\x00"  # code
            b"\x00\x00\x00\x00\x00\x00\x00\x00"  # unique
            b"\x01\x00\x00\x00\x00\x00\x00\x00"  # parent
            b"\x02\x00\x00\x00\x00\x00\x00\x00"  # child
            b"\x03\x00\x00\x00"  # namelen
            b"\x00\x00\x00\x00"  # padding
            b"abc\0"  # name
        )

    def test_store(self) -> None:
        assert wire_reply.notify_store(2, 4096, b"abc") == (
            b"\x2b\x00\x00\x00"  # len
            b"\x04\x00\x00\x00"  # code
            b"\x00\x00\x00\x00\x00\x00\x00\x00"  # unique
            b"\x02\x00\x00\x00\x00\x00\x00\x00"  # nodeid
            b"\x00\x10\x00\x00\x00\x00\x00\x00"  # offset
            b"\x03\x00\x00\x00"  # size
            b"\x00\x00\x00\x00"  # padding
            b"abc"  # data
        )
        assert wire_reply.store_header(2, 4096, 3) + b"abc" == wire_reply.notify_store(2, 4096, b"abc")

    def test_resend_and_inc_epoch_are_a_header(self) -> None:
        assert wire_reply.notify_resend() == b"\x10\x00\x00\x00\x07\x00\x00\x00" + bytes(8)
        assert wire_reply.notify_inc_epoch() == b"\x10\x00\x00\x00\x08\x00\x00\x00" + bytes(8)
