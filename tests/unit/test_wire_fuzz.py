"""The FUSE codec fed with what a kernel might send and with what none would: it reads it or says MalformedMessage.

The layouts below are written down from linux/fuse.h a second time, field by field, as (bytes, name), so that a
message can be made with any values and then damaged at places that matter. `rest` is what follows the struct.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from forebay.fuse import wire, wire_reply
from forebay.fuse.negotiate import Agreement, CounterOffer, UnsupportedKernel, Wish, negotiate
from forebay.fuse.wire import Capability, MalformedMessage, Opcode

FEW = settings(max_examples=-(-settings().max_examples // 4))
"""For each of the 41 opcodes."""
MANY = settings(max_examples=10 * settings().max_examples)
"""For all of them together."""

Fields = tuple[tuple[int, str], ...]
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, ord("/")} & set(name))
NONE = st.just(b"")

_FH: Fields = ((8, "fh"),)
_RELEASE: Fields = (*_FH, (4, "flags"), (4, "release_flags"), (8, "lock_owner"))
_FSYNC: Fields = (*_FH, (4, "fsync_flags"), (4, "padding"))
_READ: Fields = (
    *_FH, (8, "offset"), (4, "size"), (4, "read_flags"), (8, "lock_owner"), (4, "flags"), (4, "padding"),
)  # fmt: skip
_INIT: Fields = ((4, "major"), (4, "minor"), (4, "max_readahead"), (4, "flags"), (4, "flags2"), (44, "unused"))


@dataclass(frozen=True)
class Layout:
    """Of one request."""

    fields: Fields = ()
    rest: st.SearchStrategy[bytes] = NONE
    exact: bool = True
    """Whether one byte more or less behind the struct makes it malformed."""

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.fields)


def _named(*fields: tuple[int, str], exact: bool = True) -> Layout:
    return Layout(fields, NAMES.map(lambda name: name + b"\0"), exact)


def _changing(size: int) -> Layout:
    """Answered by EROFS, whatever names and values follow: they are not looked at."""
    return Layout(((size, "struct"),) if size else (), st.binary(max_size=40), exact=False)


LAYOUTS: dict[Opcode, Layout] = {
    Opcode.LOOKUP: _named(),
    Opcode.FORGET: Layout(((8, "nlookup"),)),
    Opcode.GETATTR: Layout(((4, "getattr_flags"), (4, "dummy"), *_FH)),
    Opcode.READLINK: Layout(),
    Opcode.OPEN: Layout(((4, "flags"), (4, "open_flags"))),
    Opcode.READ: Layout(_READ),
    Opcode.STATFS: Layout(),
    Opcode.RELEASE: Layout(_RELEASE),
    Opcode.FSYNC: Layout(_FSYNC),
    Opcode.GETXATTR: _named((4, "size"), (4, "padding")),
    Opcode.LISTXATTR: Layout(((4, "size"), (4, "padding"))),
    Opcode.FLUSH: Layout((*_FH, (4, "unused"), (4, "padding"), (8, "lock_owner"))),
    Opcode.INIT: Layout(_INIT, st.binary(max_size=40), exact=False),
    Opcode.OPENDIR: Layout(((4, "flags"), (4, "open_flags"))),
    Opcode.READDIR: Layout(_READ),
    Opcode.RELEASEDIR: Layout(_RELEASE),
    Opcode.FSYNCDIR: Layout(_FSYNC),
    Opcode.ACCESS: Layout(((4, "mask"), (4, "padding"))),
    Opcode.INTERRUPT: Layout(((8, "unique"),)),
    Opcode.DESTROY: Layout(),
    Opcode.BATCH_FORGET: Layout(((4, "count"), (4, "dummy"))),
    Opcode.IOCTL: Layout(
        (*_FH, (4, "flags"), (4, "cmd"), (8, "arg"), (4, "in_size"), (4, "out_size")), st.binary(max_size=40)
    ),
    Opcode.READDIRPLUS: Layout(_READ),
    Opcode.LSEEK: Layout((*_FH, (8, "offset"), (4, "whence"), (4, "padding"))),
    Opcode.STATX: Layout(
        ((4, "getattr_flags"), (4, "reserved"), *_FH, (4, "sx_flags"), (4, "sx_mask"))
    ),
    Opcode.SETATTR: _changing(88), Opcode.SYMLINK: _changing(0), Opcode.MKNOD: _changing(16),
    Opcode.MKDIR: _changing(8), Opcode.UNLINK: _changing(0), Opcode.RMDIR: _changing(0),
    Opcode.RENAME: _changing(8), Opcode.LINK: _changing(8), Opcode.WRITE: _changing(40),
    Opcode.SETXATTR: _changing(8), Opcode.REMOVEXATTR: _changing(0), Opcode.CREATE: _changing(16),
    Opcode.FALLOCATE: _changing(32), Opcode.RENAME2: _changing(16), Opcode.COPY_FILE_RANGE: _changing(56),
    Opcode.TMPFILE: _changing(16), Opcode.COPY_FILE_RANGE_64: _changing(56),
}  # fmt: skip
UNSUPPORTED = sorted(set(Opcode) - set(LAYOUTS))


class Message(NamedTuple):
    """A message that a kernel might send."""

    opcode: int
    head: tuple[int, int, int, int, int]
    """unique, node, uid, gid, pid."""
    values: dict[str, int]
    rest: bytes
    pairs: tuple[tuple[int, int], ...] = ()

    def body(self) -> bytes:
        fields = LAYOUTS[Opcode(self.opcode)].fields
        packed = b"".join(self.values[name].to_bytes(size, "little") for size, name in fields)
        return packed + b"".join(struct.pack("<QQ", *pair) for pair in self.pairs) + self.rest

    def whole(self) -> bytes:
        return framed(self.opcode, self.head, self.body())


def framed(opcode: int, head: tuple[int, int, int, int, int], body: bytes) -> bytes:
    """`body` behind a header that tells its length truly."""
    return struct.pack("<IIQQIIII", 40 + len(body), opcode, *head, 0) + body


def edges(size: int) -> list[int]:
    """Values of a field of that many bytes where something might go over or under."""
    top = (1 << 8 * size) - 1
    return sorted({0, 1, 2, 3, 7, 39, 40, 41, 4096, top >> 1, (top >> 1) + 1, top - 1, top})


def unsigned(size: int) -> st.SearchStrategy[int]:
    """A field of that many bytes."""
    return st.sampled_from(edges(size)) | st.integers(0, (1 << 8 * size) - 1)


HEADS = st.tuples(unsigned(8), unsigned(8), unsigned(4), unsigned(4), unsigned(4))


@st.composite
def messages(draw: st.DrawFn, opcodes: Sequence[Opcode] = tuple(sorted(LAYOUTS))) -> Message:
    """Any request of these opcodes with any values."""
    opcode = draw(st.sampled_from(opcodes))
    layout = LAYOUTS[opcode]
    values = {name: draw(unsigned(size)) for size, name in layout.fields}
    pairs: tuple[tuple[int, int], ...] = ()
    if opcode is Opcode.BATCH_FORGET:
        pairs = tuple(draw(st.lists(st.tuples(unsigned(8), unsigned(8)), max_size=5)))
        values["count"] = len(pairs)
    if opcode is Opcode.INIT:
        values["major"] = draw(st.sampled_from((7, 7, 7, 6, 8)))
    rest = draw(layout.rest)
    if opcode is Opcode.IOCTL:
        values["in_size"] = len(rest)
    return Message(opcode, draw(HEADS), values, rest, pairs)


def _meaning(message: Message) -> object:
    """What the codec should have read, from the values and fuse.h alone."""
    v = message.values
    text = message.rest[:-1]
    handle = v["fh"] if v.get("getattr_flags", 0) & 1 else None
    expected: dict[Opcode, object] = {
        Opcode.LOOKUP: lambda: wire.Lookup(text),
        Opcode.FORGET: lambda: wire.Forget(v["nlookup"]),
        Opcode.GETATTR: lambda: wire.Getattr(handle),
        Opcode.READLINK: lambda: wire.Readlink(),
        Opcode.OPEN: lambda: wire.Open(v["flags"]),
        Opcode.READ: lambda: wire.Read(v["fh"], v["offset"], v["size"], v["flags"]),
        Opcode.STATFS: lambda: wire.Statfs(),
        Opcode.RELEASE: lambda: wire.Release(v["fh"], v["flags"]),
        Opcode.FSYNC: lambda: wire.Fsync(v["fh"], bool(v["fsync_flags"] & 1)),
        Opcode.FSYNCDIR: lambda: wire.Fsync(v["fh"], bool(v["fsync_flags"] & 1)),
        Opcode.GETXATTR: lambda: wire.Getxattr(text, v["size"]),
        Opcode.LISTXATTR: lambda: wire.Listxattr(v["size"]),
        Opcode.FLUSH: lambda: wire.Flush(v["fh"]),
        Opcode.OPENDIR: lambda: wire.Opendir(v["flags"]),
        Opcode.READDIR: lambda: wire.Readdir(v["fh"], v["offset"], v["size"]),
        Opcode.READDIRPLUS: lambda: wire.Readdirplus(v["fh"], v["offset"], v["size"]),
        Opcode.RELEASEDIR: lambda: wire.Releasedir(v["fh"]),
        Opcode.ACCESS: lambda: wire.Access(v["mask"]),
        Opcode.INTERRUPT: lambda: wire.Interrupt(v["unique"]),
        Opcode.DESTROY: lambda: wire.Destroy(),
        Opcode.BATCH_FORGET: lambda: wire.BatchForget(message.pairs),
        Opcode.IOCTL: lambda: wire.Ioctl(v["fh"], v["flags"], v["cmd"], message.rest, v["out_size"]),
        Opcode.LSEEK: lambda: wire.Lseek(v["fh"], v["offset"] - (v["offset"] >> 63 << 64), v["whence"]),
        Opcode.STATX: lambda: wire.Statx(handle, v["sx_flags"], v["sx_mask"]),
        Opcode.INIT: lambda: _init(v),
    }
    make = expected.get(Opcode(message.opcode), wire.Modify)
    assert callable(make)
    return make()


def _init(v: dict[str, int]) -> wire.Init:
    if v["major"] != 7:
        return wire.Init(v["major"], v["minor"], 0, Capability(0))
    high = v["flags2"] << 32 if v["flags"] & 1 << 30 else 0
    return wire.Init(7, v["minor"], v["max_readahead"], Capability(v["flags"] | high))


def test_every_opcode_is_laid_out_here_or_unsupported() -> None:
    assert UNSUPPORTED == [
        Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.BMAP, Opcode.POLL, Opcode.NOTIFY_REPLY,
        Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING, Opcode.SYNCFS,
    ]  # fmt: skip


each_opcode = pytest.mark.parametrize("opcode", sorted(LAYOUTS), ids=lambda opcode: opcode.name)


class TestWholeMessages:
    @each_opcode
    @given(data=st.data())
    @FEW
    def test_each_value_is_found_again(self, opcode: Opcode, data: st.DataObject) -> None:
        self._is_found(data.draw(messages([opcode])))

    @each_opcode
    def test_each_field_at_its_edges(self, opcode: Opcode) -> None:
        layout = LAYOUTS[opcode]
        rest = b"name\0" if layout.exact and layout.rest is not NONE else b""
        plain = Message(opcode, (1, 2, 3, 4, 5), {name: 7 for _, name in layout.fields}, rest)
        if opcode is Opcode.IOCTL:
            plain = plain._replace(values=plain.values | {"in_size": len(rest)})
        if opcode is Opcode.BATCH_FORGET:
            plain = plain._replace(values={"count": 3, "dummy": 0}, pairs=((1, 2), (0, 2**64 - 1), (2**63, 5)))
        self._is_found(plain)
        for size, name in layout.fields:
            for value in edges(min(size, 8)) if name not in ("count", "in_size") else ():
                self._is_found(plain._replace(values=plain.values | {name: value}))
        for place, size in enumerate((8, 8, 4, 4, 4)):
            for value in edges(size):
                head = (*plain.head[:place], value, *plain.head[place + 1 :])
                self._is_found(plain._replace(head=head))

    @staticmethod
    def _is_found(message: Message) -> None:
        header, request = wire.parse(message.whole())
        assert header == wire.Header(len(message.whole()), message.opcode, *message.head)
        meaning = _meaning(message)
        assert type(request) is type(meaning)
        assert request == meaning
        assert header.resent is bool(message.head[0] >> 63)

    @given(st.sampled_from(UNSUPPORTED) | st.integers(54, 2**32 - 1), HEADS, st.binary(max_size=100))
    def test_what_is_not_supported(self, opcode: int, head: tuple[int, int, int, int, int], body: bytes) -> None:
        header, request = wire.parse(framed(opcode, head, body))
        assert header.opcode == opcode
        assert type(request) is wire.Unsupported
        assert request.opcode == opcode


class TestDamagedMessages:
    @each_opcode
    @given(data=st.data())
    @FEW
    def test_one_byte_short(self, opcode: Opcode, data: st.DataObject) -> None:
        message = data.draw(messages([opcode]))
        whole, layout = message.whole(), LAYOUTS[Opcode(message.opcode)]
        with pytest.raises(MalformedMessage):
            wire.parse(whole[:-1])  # shorter than its header says
        body = message.body()
        if layout.exact and body:
            with pytest.raises(MalformedMessage, match=Opcode(message.opcode).name):
                wire.parse(framed(message.opcode, message.head, body[:-1]))

    @pytest.mark.parametrize("opcode", sorted(o for o, layout in LAYOUTS.items() if not layout.exact and layout.size))
    @given(data=st.data())
    @FEW
    def test_one_byte_short_of_the_struct_where_anything_may_follow(self, opcode: Opcode, data: st.DataObject) -> None:
        message = data.draw(messages([opcode]))
        cut = framed(message.opcode, message.head, message.body()[: LAYOUTS[Opcode(message.opcode)].size - 1])
        if message.values.get("major", 7) != 7:
            assert wire.parse(cut)[1] == _meaning(message)  # of another major version only that is read
            return
        with pytest.raises(MalformedMessage, match=Opcode(message.opcode).name):
            wire.parse(cut)

    @each_opcode
    @given(data=st.data(), byte=st.integers(0, 255))
    @FEW
    def test_one_byte_long(self, opcode: Opcode, data: st.DataObject, byte: int) -> None:
        message, more = data.draw(messages([opcode])), bytes([byte])
        with pytest.raises(MalformedMessage):
            wire.parse(message.whole() + more)  # longer than its header says
        longer = framed(message.opcode, message.head, message.body() + more)
        if LAYOUTS[Opcode(message.opcode)].exact:
            with pytest.raises(MalformedMessage, match=Opcode(message.opcode).name):
                wire.parse(longer)
        else:
            assert type(wire.parse(longer)[1]) is type(_meaning(message))

    @given(messages(), st.data())
    @MANY
    def test_bits_flipped_bytes_cut_and_pieces_doubled(self, message: Message, data: st.DataObject) -> None:
        """Any damage is read as something, or is a MalformedMessage: no other exception and no endless work."""
        damaged = bytearray(message.whole())
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(damaged)))
            how = data.draw(st.sampled_from(("flip", "cut", "double", "insert", "number")))
            if how == "flip" and at < len(damaged):
                damaged[at] ^= 1 << data.draw(st.integers(0, 7))
            elif how == "cut":
                del damaged[at : at + data.draw(st.integers(1, 40))]
            elif how == "double":
                damaged[at:at] = damaged[at : at + data.draw(st.integers(1, 40))]
            elif how == "insert":
                damaged[at:at] = data.draw(st.binary(max_size=20))
            elif how == "number":
                place = at - at % 4
                damaged[place : place + 4] = data.draw(unsigned(4)).to_bytes(4, "little")
        if data.draw(st.booleans()) and len(damaged) >= 4:  # so that more than the length is looked at
            damaged[:4] = len(damaged).to_bytes(4, "little")
        assert self._reads_or_refuses(bytes(damaged)) < 2000, "a line for a log"

    @given(st.integers(0, 60), HEADS, st.binary(max_size=150))
    @MANY
    def test_any_bytes_behind_a_true_header(
        self, opcode: int, head: tuple[int, int, int, int, int], body: bytes
    ) -> None:
        assert self._reads_or_refuses(framed(opcode, head, body)) < 2000, "a line for a log"

    @given(st.binary(max_size=300))
    @MANY
    def test_any_bytes(self, data: bytes) -> None:
        self._reads_or_refuses(data)

    @staticmethod
    def _reads_or_refuses(data: bytes) -> int:
        """The length of what it said against it; 0 where it was read."""
        try:
            header, request = wire.parse(data)
        except MalformedMessage as error:
            return len(str(error))
        assert header.length == len(data)
        assert isinstance(request, wire.Request)
        if isinstance(request, wire.Lookup | wire.Getxattr):
            assert request.name
            assert 0 not in request.name
        if isinstance(request, wire.BatchForget):
            assert len(request.nodes) == int.from_bytes(data[40:44], "little")
        return 0


class TestNegotiation:
    """Whatever INIT says, there is an agreement that this kernel can keep, or a clear refusal."""

    @given(messages([Opcode.INIT]), st.booleans(), st.booleans())
    def test_any_init(self, message: Message, passthrough: bool, no_open: bool) -> None:
        _, offered = wire.parse(message.whole())
        assert isinstance(offered, wire.Init)
        assume(not (passthrough and no_open))
        wish = Wish(page_bytes=4096, passthrough=passthrough, no_open=no_open)
        try:
            outcome = negotiate(offered, wish)
        except UnsupportedKernel:
            assert (offered.major, offered.minor) < (7, 45)
            return
        reply = wire_reply.reply_init(1, outcome.reply)
        assert len(reply) == 80 == int.from_bytes(reply[:4], "little")
        if isinstance(outcome, CounterOffer):
            assert offered.major > 7
            return
        assert outcome.reply.flags & ~offered.flags & ~Capability.INIT_EXT == 0, "agreed to what was not offered"
        assert Agreement.from_json(outcome.to_json()) == outcome


ATTRIBUTES = st.builds(
    wire_reply.Attributes,
    ino=st.integers(1, 2**64 - 1),
    size=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**63) * 10**9, (2**63 - 1) * 10**9),
    mode=st.integers(0, 2**16 - 1),
    nlink=st.integers(0, 2**32 - 1),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    blksize=st.sampled_from((512, 4096, 1 << 20)),
)
SECONDS = st.floats(allow_nan=False)


class TestReplies:
    """Each reply tells its own length, and a reader of the kernel's structs finds the values again."""

    @given(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1), ATTRIBUTES, SECONDS, SECONDS)
    @example(1, 1, wire_reply.Attributes(1, 0, -1, 0), float("inf"), float("-inf"))
    def test_entry(
        self, unique: int, node: int, attributes: wire_reply.Attributes, entry_s: float, attr_s: float
    ) -> None:
        reply = wire_reply.reply_entry(unique, node, attributes, entry_s, attr_s)
        assert struct.unpack_from("<IiQQ", reply) == (len(reply), 0, unique, node)
        valid_s, attr_valid_s, valid_ns, attr_valid_ns = struct.unpack_from("<QQII", reply, 32)
        assert max(valid_ns, attr_valid_ns) < 10**9
        assert max(valid_s, attr_valid_s) <= 2**32
        ino, size, _, _, seconds, _, _, nanoseconds, _, mode, nlink, uid, gid = struct.unpack_from(
            "<QQQqqqIIIIIII", reply, 56
        )
        found = (ino, size, seconds * 10**9 + nanoseconds, mode, nlink, uid, gid)
        assert found == (
            attributes.ino, attributes.size, attributes.mtime_ns, attributes.mode, attributes.nlink, attributes.uid,
            attributes.gid,
        )  # fmt: skip

    @given(st.lists(st.tuples(NAMES, st.integers(1, 2**64 - 1), st.integers(0, 2**63 - 1), ATTRIBUTES), max_size=8))
    def test_directories(self, entries: list[tuple[bytes, int, int, wire_reply.Attributes]]) -> None:
        """Walked as fuse_parse_dirfile and _dirplusfile do, in steps of the padded lengths."""
        plain = b"".join(wire_reply.pack_dirent(a.ino, at, a.directory_entry_type, n) for n, _, at, a in entries)
        plus = b"".join(wire_reply.pack_direntplus(node, a, 1, 1, at, n) for n, node, at, a in entries)
        assert _walk(plain, 0) == [(n, at, a.ino) for n, _, at, a in entries]
        assert _walk(plus, 128) == [(n, at, a.ino) for n, _, at, a in entries]

    @given(st.integers(0, 2**64 - 1), NAMES)
    def test_notifications(self, node: int, name: bytes) -> None:
        for message in (
            wire_reply.notify_inval_entry(node, name), wire_reply.notify_delete(node, node, name),
            wire_reply.notify_store(node, 0, name), wire_reply.notify_inval_inode(node),
        ):  # fmt: skip
            length, code, unique = struct.unpack_from("<IiQ", message)
            assert (length, unique) == (len(message), 0)
            assert wire_reply.Notification(code)
            assert struct.unpack_from("<Q", message, 16) == (node,)


def _walk(packed: bytes, before: int) -> list[tuple[bytes, int, int]]:
    found, at = [], 0
    while at < len(packed):
        ino, offset, length, _ = struct.unpack_from("<QQII", packed, at + before)
        start = at + before + 24
        found.append((packed[start : start + length], offset, ino))
        at += before + (24 + length + 7) // 8 * 8
    assert at == len(packed)
    return found


@pytest.mark.soak
class TestDamagedMessagesForLong(TestDamagedMessages):
    """`make soak` has a profile with more examples."""
