"""The index: what is cached, and where, in one LMDB environment that any process of the user may read.

Storage format
--------------
Folder ``index/`` of the cache folder. The worker alone writes it (`worker/index_writer.py`); every hit reads it
(`Index`). Numbers are big endian. "Checked" values end with four bytes of the XXH3-64 of key and value: a record that
was damaged at rest is no record.

``contents``: content id (16 bytes) -> checked: `_HEAD`, then for a file in a pack `_PLACE`, for a file of its own
    `_SEAL` and, while it is partial, `_PARTIAL` and the block bitmap: bit ``b % 8`` of byte ``b // 8`` says that all of
    block ``b`` is in the tier file. Bytes are only ever added while a record exists. A packed file is always whole.
``sums``: content id + block number (4 bytes), for every block of a file of its own of which something is in the tier
    file. A block that came as a whole -> its XXH3-64 (8 bytes). A block that came in pieces (`blocks.py`) -> checked:
    `_MASK`, in which bit ``p`` says that piece ``p`` is in the tier file, and the XXH3-64 of each of these, in order.
    Of the latter kind some are whole by now; `_PARTIAL` counts the bytes in the others. The checksum of a packed file
    is in its record.
``packs``: pack number (4 bytes) -> checked `_PACK`. Length counts every byte ever appended, live bytes and live files
    those that ``contents`` still knows.
``members``: dataset (8 bytes) + pack (4 bytes, 0: file of its own) + content id -> empty. One for each record of
    ``contents``: it finds what to drop with a pack or a dataset.
``holdings``: dataset (8 bytes) + share (2 bytes) + tier (2 bytes) -> bytes and files held, 8 bytes each. The sums over
    ``contents``.
``shares``: dataset (8 bytes) + XXH3-64 of a path (8 bytes) -> share number (2 bytes) and the path. A share is the part
    of a dataset below a path that has a quota of its own; share 0 is all the rest.
``pins``: dataset (8 bytes) + XXH3-64 of a path (8 bytes) -> the path, pinned by command. What is below it is marked
    `_PINNED`.
``manifest_pins``: the same, of those that the dataset's manifest asks for.
``doomed``: tier (2 bytes) + content id, or + pack number (4 bytes) -> empty. A file that may be left behind by a crash
    is named here before it can come to be so: the next start removes it, unless a record says that it lives there.
``tiers``: tier number (2 bytes) -> its uuid (16 bytes) and folder. The number is what records hold; the uuid is that of
    the folder's marker file, so an exchanged or emptied folder is noticed.
``meta``: ``format``; ``boot``: boot id of the kernel it was written under; ``clean``: there after an orderly stop,
    "synced" when all data was on the disks;
    ``session`` (4 bytes): counts the worker's starts; ``trusted`` (4 bytes): the first session whose records may be
    believed without a look at the data; ``last_pack`` (4 bytes), ``last_tier`` and ``last_share`` (2 bytes): the
    highest numbers ever minted; ``scrubbed``: the content id up to which the scrub has come.

Seals: inode number and change time (ctime) of a tier file or pack when the worker wrote to it last. Whoever writes to
the file by another way, or puts another in its place, changes one of the two; so a file that has its seal is what was
checked. A seal of zeros says that the worker is writing (in the record's session).

Durability: commits are not synced, so `kill -9` loses nothing (the kernel has the pages) and a power loss could tear
the file. An index that was not closed in order *and* comes from another boot is replaced by the last checkpoint
(`worker/ledger.py`), and nothing in it is believed before its checksum was compared.
"""

import contextlib
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NewType

import lmdb
import xxhash

from forebay.cacheruntime.blocks import (
    SUM_BYTES,
    Span,
    block_bytes,
    block_count,
    block_span,
    blocks_of,
    mask_bytes,
    mask_of,
    spans_of,
)
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.keys import ContentId, DatasetId

TierNumber = NewType("TierNumber", int)
"""Names a tier folder in records; minted when the folder is first used, never used again."""

PackNumber = NewType("PackNumber", int)
"""Names a pack; minted by the index, counting up from 1, never used again."""

FORMAT = b"3"

TABLES = (
    "contents",
    "sums",
    "packs",
    "members",
    "holdings",
    "shares",
    "pins",
    "doomed",
    "tiers",
    "meta",
    "manifest_pins",
)

_HEAD = struct.Struct(">BHHQ8sI")
"""flags, tier (0 in a pack), share, size in bytes, dataset, session."""
_PLACE = struct.Struct(">IQQ")
"""pack number, offset in the pack, XXH3-64."""
_SEAL = struct.Struct(">QQ")
"""inode number, ctime in ns."""
_PARTIAL = struct.Struct(">Q")
"""bytes in blocks that are not whole."""
_MASK = struct.Struct(">Q")
"""pieces of a block."""
_PACK = struct.Struct(">BHHQQQ8sIQQ")
"""flags, tier, share, length, live bytes, live files, dataset, session, inode number, ctime in ns."""
_HELD = struct.Struct(">QQ")
_COMPLETE = 1
_PACKED = 2
_PINNED = 4
_REPLICA = 8
_CHECK_BYTES = 4

MAP_BYTES = 1 << 37
"""Address space, not disk: 128 GiB is beyond 300 million records."""


class Seal(NamedTuple):
    """State of a file that nobody has changed since; see above."""

    inode: int
    ctime_ns: int


WRITING = Seal(0, 0)


class Cached(NamedTuple):
    """Where a file's bytes are."""

    tier: TierNumber
    """0 for a file in a pack: the pack's record has it."""
    size: int
    """Of the source file, in bytes."""
    complete: bool
    pack: PackNumber
    """0 for a file of its own."""
    offset: int
    """Of the first byte in the pack, or 0."""
    dataset: DatasetId
    bitmap: bytes
    """Of whole blocks; empty once complete."""
    share: int = 0
    session: int = 0
    """Of the worker that has written or verified it last."""
    seal: Seal = WRITING
    """Of a file of its own."""
    checksum: int = 0
    """XXH3-64 of a packed file."""
    pinned: bool = False
    partial_bytes: int = 0
    """In blocks that are not whole; `Index.pieces` knows which."""

    def has_block(self, number: int) -> bool:
        """Whether all of a block is cached."""
        return self.complete or bool(self.bitmap[number >> 3] & (1 << (number & 7)))

    def has(self, start: int, end: int) -> bool:
        """Whether [start, end) lies in blocks of which all is cached; `end` is at most the size. See `Index.has`."""
        if self.complete or start >= end:
            return True
        bitmap = self.bitmap
        return all(bitmap[block >> 3] & (1 << (block & 7)) for block in blocks_of(start, end))

    def whole_blocks(self) -> int:
        """How many blocks are cached as a whole."""
        return block_count(self.size) if self.complete else int.from_bytes(self.bitmap, "little").bit_count()

    def cached_bytes(self) -> int:
        """How many bytes of the file are present."""
        if self.complete:
            return self.size
        count, last = self.whole_blocks(), block_count(self.size) - 1
        if not count or not self.has_block(last):
            return count * block_bytes(self.size, 0) + self.partial_bytes
        return (count - 1) * block_bytes(self.size, 0) + block_bytes(self.size, last) + self.partial_bytes


class Pieces(NamedTuple):
    """What is there of a block that came in pieces."""

    mask: int
    sums: bytes
    """Of each, in order."""


class Extent(NamedTuple):
    """Bytes that are cached, with what they are compared with."""

    span: Span
    sums: bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """What one share of a dataset has in one tier."""

    dataset: DatasetId
    share: int
    tier: TierNumber
    bytes: int
    files: int


class Pack(NamedTuple):
    """One pack file."""

    number: PackNumber
    tier: TierNumber
    share: int
    length: int
    live_bytes: int
    live_files: int
    dataset: DatasetId
    session: int
    seal: Seal
    pinned: bool
    replica: bool = False
    """Its files belong to other workers of a cluster (`worker/replicas.py`)."""

    @property
    def is_thin(self) -> bool:
        """Whether less than half of it is still of use."""
        return 2 * self.live_bytes < self.length


def pack_key(number: PackNumber) -> bytes:
    return number.to_bytes(4, "big")


def sum_key(content: ContentId, block: int) -> bytes:
    return content + block.to_bytes(4, "big")


def member_key(dataset: DatasetId, pack: PackNumber, content: ContentId) -> bytes:
    return bytes.fromhex(dataset) + pack.to_bytes(4, "big") + content


def holding_key(dataset: DatasetId, share: int, tier: TierNumber) -> bytes:
    return bytes.fromhex(dataset) + share.to_bytes(2, "big") + tier.to_bytes(2, "big")


def path_key(dataset: DatasetId, path: bytes) -> bytes:
    """Of `shares` and both tables of pins."""
    return bytes.fromhex(dataset) + xxhash.xxh3_64_digest(path)


def doomed_key(tier: TierNumber, thing: ContentId | PackNumber) -> bytes:
    name = thing if isinstance(thing, bytes) else thing.to_bytes(4, "big")
    return tier.to_bytes(2, "big") + name


def checked(key: bytes, value: bytes) -> bytes:
    """A value with its check."""
    return value + xxhash.xxh3_64_digest(key + value)[:_CHECK_BYTES]


def is_sound(key: bytes, raw: bytes) -> bool:
    """Whether a checked value is what was written."""
    return xxhash.xxh3_64_digest(key + raw[:-_CHECK_BYTES])[:_CHECK_BYTES] == raw[-_CHECK_BYTES:]


def unpack_cached(key: bytes, raw: bytes) -> Cached | None:
    """A record of `contents`; None when it is damaged."""
    if not is_sound(key, raw):
        return None
    flags, tier, share, size, dataset, session = _HEAD.unpack_from(raw)
    name = DatasetId(dataset.hex())
    if flags & _PACKED:
        pack, offset, checksum = _PLACE.unpack_from(raw, _HEAD.size)
        return Cached(
            TierNumber(0), size, True, PackNumber(pack), offset, name, b"", share, session, WRITING, checksum,
            bool(flags & _PINNED),
        )  # fmt: skip
    seal, rest = Seal(*_SEAL.unpack_from(raw, _HEAD.size)), _HEAD.size + _SEAL.size
    complete, partial, bitmap = bool(flags & _COMPLETE), 0, b""
    if not complete:
        (partial,) = _PARTIAL.unpack_from(raw, rest)
        bitmap = raw[rest + _PARTIAL.size : -_CHECK_BYTES]
    return Cached(
        TierNumber(tier), size, complete, PackNumber(0), 0, name, bitmap, share, session, seal, 0,
        bool(flags & _PINNED), partial,
    )  # fmt: skip


def pack_cached(key: bytes, cached: Cached) -> bytes:
    """The value for a key of `contents`."""
    flags = _PINNED * cached.pinned + _COMPLETE * cached.complete + (_PACKED if cached.pack else 0)
    head = _HEAD.pack(flags, cached.tier, cached.share, cached.size, bytes.fromhex(cached.dataset), cached.session)
    if cached.pack:
        return checked(key, head + _PLACE.pack(cached.pack, cached.offset, cached.checksum))
    partial = b"" if cached.complete else _PARTIAL.pack(cached.partial_bytes)
    return checked(key, head + _SEAL.pack(*cached.seal) + partial + cached.bitmap)


def unpack_pieces(key: bytes, raw: bytes) -> Pieces | None:
    """A record of `sums`, of a block that came in pieces; None: it did not, or the record is damaged."""
    if len(raw) <= SUM_BYTES or not is_sound(key, raw):
        return None
    return Pieces(_MASK.unpack_from(raw)[0], raw[_MASK.size : -_CHECK_BYTES])


def pack_pieces(key: bytes, pieces: Pieces) -> bytes:
    """The value for a key of `sums`."""
    return checked(key, _MASK.pack(pieces.mask) + pieces.sums)


def join_pieces(one: Pieces, other: Pieces) -> Pieces:
    """Both, of one block; what both have is taken from the first."""
    found = dict(_each(other)) | dict(_each(one))
    return Pieces(one.mask | other.mask, b"".join(found[number] for number in sorted(found)))


def _each(pieces: Pieces) -> Iterator[tuple[int, bytes]]:
    """Piece number and checksum."""
    numbers = (number for number in range(pieces.mask.bit_length()) if pieces.mask >> number & 1)
    for position, number in enumerate(numbers):
        yield number, pieces.sums[position * SUM_BYTES : (position + 1) * SUM_BYTES]


def unpack_pack(key: bytes, raw: bytes) -> Pack | None:
    """A record of `packs`; None when it is damaged."""
    if not is_sound(key, raw):
        return None
    flags, tier, share, length, live_bytes, live_files, dataset, session, inode, ctime_ns = _PACK.unpack_from(raw)
    return Pack(
        PackNumber(int.from_bytes(key, "big")), TierNumber(tier), share, length, live_bytes, live_files,
        DatasetId(dataset.hex()), session, Seal(inode, ctime_ns), bool(flags & _PINNED), bool(flags & _REPLICA),
    )  # fmt: skip


def pack_pack(pack: Pack) -> bytes:
    """The value for a pack's key."""
    return checked(
        pack_key(pack.number),
        _PACK.pack(
            _PINNED * pack.pinned + _REPLICA * pack.replica, pack.tier, pack.share, pack.length, pack.live_bytes,
            pack.live_files, bytes.fromhex(pack.dataset), pack.session, *pack.seal,
        ),
    )  # fmt: skip


def unpack_held(raw: bytes | None) -> tuple[int, int]:
    """Bytes and files of a record of `holdings`; none is (0, 0)."""
    held: tuple[int, int] = _HELD.unpack(raw) if raw else (0, 0)
    return held


def pack_held(held_bytes: int, held_files: int) -> bytes:
    return _HELD.pack(held_bytes, held_files)


class _Opened:
    """One environment and what belongs to it: one look at it gives things that fit together."""

    __slots__ = ("contents", "env", "file", "generation", "tables", "trusted_since")

    def __init__(self, folder: Path, env: Any, file: tuple[int, int], generation: int) -> None:
        """Raises: CacheFormatError, lmdb.Error."""
        self.file = file
        self.generation = generation
        with env.begin() as txn:
            meta = env.open_db(b"meta", txn, create=False)
            if txn.get(b"format", db=meta) != FORMAT:
                raise CacheFormatError(f"the cache index {folder} is of another format than this version reads")
            self.trusted_since = int.from_bytes(txn.get(b"trusted", db=meta) or b"", "big")
        self.env = env
        self.tables = {name: env.open_db(name.encode(), create=False) for name in TABLES}
        self.contents = self.tables["contents"]


class Index:
    """A reader. Safe to use from several threads; not across a fork.

    What is damaged in the file reads as absent, so that it is asked for again; the worker finds out why.

    Resources: `close` unmaps the file.
    """

    def __init__(self, folder: Path, env: Any = None) -> None:
        """Open the index of a cache; the writing process gets its reader from `IndexWriter.reader`.

        Raises:
            CacheFormatError: there is none, or of another format.
        """
        self._folder = folder
        self._is_own = env is None
        self._renewing = threading.Lock()
        self._opened = self._open(0, env)

    @property
    def generation(self) -> int:
        """Counts the indexes that were opened in the place of the one before."""
        return self._opened.generation

    def _open(self, generation: int, env: Any = None) -> _Opened:
        made = env
        try:
            while True:
                file = self._file()
                made = made or lmdb.open(
                    str(self._folder), readonly=True, max_dbs=len(TABLES), map_size=MAP_BYTES, max_readers=1024,
                    readahead=False,
                )  # fmt: skip
                if file is not None and file == self._file():
                    return _Opened(self._folder, made, file, generation)
                made.close()  # which of the two is it?
                made = None
        except (lmdb.Error, CacheFormatError) as error:
            if made is not None and env is None:
                made.close()
            if isinstance(error, CacheFormatError):
                raise
            raise CacheFormatError(f"{self._folder} holds no readable cache index ({error})") from error

    def _file(self) -> tuple[int, int] | None:
        """Device and inode number of the file that is there now."""
        try:
            status = os.stat(self._folder / "data.mdb")
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def renew(self) -> bool:
        """Open the index anew if the worker has put another in its place (`worker/ledger.py`); whether it has.

        What other threads read at this time they read in the old one, which is unmapped with the end of the last such
        transaction, as that holds the last reference. The two may be open together: LMDB's rule of one opening in a
        process is for its lock file, and the worker never puts an index beside another one's (`ledger.open_index`).
        """
        if not self._is_own or self._file() in (None, self._opened.file):
            return False
        with self._renewing:
            if self._file() in (None, self._opened.file):
                return False
            try:
                self._opened = self._open(self.generation + 1)
            except CacheFormatError:
                return False  # it is being made, or is a newer version's
            return True

    @property
    def trusted_since(self) -> int:
        """Records of earlier sessions are to be compared with their checksums before they are believed."""
        return self._opened.trusted_since

    def close(self) -> None:
        self._opened.env.close()

    def session(self) -> int:
        """Of the worker that runs, or ran last."""
        return self._number(b"session")

    def _number(self, key: bytes) -> int:
        return int.from_bytes(self._get("meta", key) or b"", "big")

    @contextlib.contextmanager
    def _cursor(self, table: str) -> Iterator[Any]:
        opened = self._opened
        with opened.env.begin() as txn, txn.cursor(db=opened.tables[table]) as cursor:
            yield cursor

    def _get(self, table: str, key: bytes) -> bytes | None:
        opened = self._opened
        with opened.env.begin() as txn:
            found: bytes | None = txn.get(key, db=opened.tables[table])
            return found

    def find(self, content: ContentId) -> Cached | None:
        return self.look(content)[0]

    def look(self, content: ContentId) -> tuple[Cached | None, bool]:
        """The record, and whether there is one that is not sound."""
        opened = self._opened
        try:
            with opened.env.begin() as txn:
                raw = txn.get(content, db=opened.contents)
        except lmdb.Error:
            return None, False
        cached = unpack_cached(content, raw) if raw else None
        return cached, raw is not None and cached is None

    def is_damaged(self, content: ContentId) -> bool:
        """Whether there is a record that is not sound."""
        raw = self._get("contents", content)
        return raw is not None and not is_sound(content, raw)

    def pack(self, number: PackNumber) -> Pack | None:
        key = pack_key(number)
        try:
            raw = self._get("packs", key)
        except lmdb.Error:
            return None
        return unpack_pack(key, raw) if raw else None

    def has_pack(self, number: PackNumber) -> bool:
        """Whether there is a record of a pack, be it sound or not."""
        return self._get("packs", pack_key(number)) is not None

    def scrubbed(self) -> bytes:
        """How far the scrub has come; empty: nowhere."""
        return self._get("meta", b"scrubbed") or b""

    def tier_of(self, cached: Cached) -> TierNumber | None:
        """Where a record's bytes are; None when its pack is gone."""
        if not cached.pack:
            return cached.tier
        pack = self.pack(cached.pack)
        return pack.tier if pack else None

    def has(self, content: ContentId, cached: Cached, start: int, end: int) -> bool:
        """Whether all bytes of [start, end) of a file are cached.

        Args:
            content: the file.
            cached: its record.
            start, end: in bytes; `end` is at most the size.
        """
        if cached.has(start, end):
            return True
        if not cached.partial_bytes:
            return False
        return not any(
            self.missing(content, cached, number, mask_of(number, start, end)) for number in blocks_of(start, end)
        )

    def missing(self, content: ContentId, cached: Cached, number: int, mask: int) -> int:
        """Those of some pieces of a block that are not cached, as a mask."""
        if cached.has_block(number):
            return 0
        pieces = self.pieces(content, number) if cached.partial_bytes else None
        return mask & ~pieces.mask if pieces is not None else mask

    def pieces(self, content: ContentId, number: int) -> Pieces | None:
        """Of a block that came in pieces; None for others, and when the record is damaged."""
        try:
            raw = self._sums(content, number)
        except lmdb.Error:
            return None
        return unpack_pieces(sum_key(content, number), raw)

    def _sums(self, content: ContentId, number: int) -> bytes:
        return self._get("sums", sum_key(content, number)) or b""

    def are_pieces_damaged(self, content: ContentId, number: int) -> bool:
        """Whether there is a record of a block's pieces that is not sound."""
        raw = self._sums(content, number)
        return len(raw) > SUM_BYTES and not is_sound(sum_key(content, number), raw)

    def extents(self, content: ContentId, cached: Cached, numbers: Iterable[int] | None = None) -> Iterator[Extent]:
        """What is cached of a file of its own, in order.

        Args:
            content: the file.
            cached: its record.
            numbers: only of these blocks; None for all.

        Yields:
            Each span with its checksum, or with those of its pieces, for `blocks.is_what_was_written`; with none where
            the record is not what it should be.
        """
        for number in range(block_count(cached.size)) if numbers is None else numbers:
            is_whole = cached.has_block(number)
            if not is_whole and not cached.partial_bytes:
                continue
            raw = self._sums(content, number)
            if len(raw) == SUM_BYTES and is_whole:
                yield Extent(block_span(cached.size, number), raw)
                continue
            if not raw and not is_whole:
                continue
            pieces = unpack_pieces(sum_key(content, number), raw)
            if pieces is None or (
                is_whole and mask_bytes(cached.size, number, pieces.mask) != block_bytes(cached.size, number)
            ):
                yield Extent(block_span(cached.size, number), b"")
                continue
            at = 0
            for span in spans_of(cached.size, number, pieces.mask):
                count = span.mask.bit_count() * SUM_BYTES
                yield Extent(span, pieces.sums[at : at + count])
                at += count

    def tiers(self) -> dict[TierNumber, tuple[bytes, Path]]:
        """Tier number -> uuid and folder."""
        with self._cursor("tiers") as cursor:
            return {
                TierNumber(int.from_bytes(key, "big")): (
                    value[:16],
                    Path(value[16:].decode("utf-8", "surrogateescape")),
                )
                for key, value in cursor
            }

    def holdings(self) -> list[Holding]:
        with self._cursor("holdings") as cursor:
            return [
                Holding(
                    DatasetId(key[:8].hex()), int.from_bytes(key[8:10], "big"),
                    TierNumber(int.from_bytes(key[10:], "big")), *unpack_held(value),
                )
                for key, value in cursor
            ]  # fmt: skip

    def packs(self) -> list[Pack]:
        """All whose records are sound."""
        with self._cursor("packs") as cursor:
            found = [unpack_pack(key, value) for key, value in cursor]
        return [pack for pack in found if pack is not None]

    def shares(self, dataset: DatasetId) -> dict[bytes, int]:
        """Path -> share number."""
        return {value[2:]: int.from_bytes(value[:2], "big") for value in self._below("shares", dataset)}

    def pins(self, dataset: DatasetId) -> list[bytes]:
        """Paths that are pinned, by whom ever."""
        return sorted({*self.pins_by("pins", dataset), *self.pins_by("manifest_pins", dataset)})

    def pins_by(self, table: str, dataset: DatasetId) -> list[bytes]:
        """As `pins`, of one of the two tables."""
        return self._below(table, dataset)

    def _below(self, table: str, dataset: DatasetId) -> list[bytes]:
        prefix = bytes.fromhex(dataset)
        with self._cursor(table) as cursor:
            found = []
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                found.append(cursor.value())
                more = cursor.next()
            return found

    def members(self, dataset: DatasetId, pack: PackNumber | None = None) -> Iterator[tuple[PackNumber, ContentId]]:
        """All that is cached of a dataset, or in one of its packs (0: files of their own)."""
        prefix = bytes.fromhex(dataset) + (b"" if pack is None else pack.to_bytes(4, "big"))
        for key in self._keys("members", prefix):
            yield PackNumber(int.from_bytes(key[8:12], "big")), ContentId(key[12:])

    def contents(self, after: ContentId | None = None) -> Iterator[tuple[ContentId, Cached | None]]:
        """All records in the order of their keys, or those behind one; None for a damaged one.

        Read in pieces: between them the index may change, and nothing is held.
        """
        for key in self._keys("contents", b"", after or b""):
            raw = self._get("contents", key)
            if raw is not None:
                yield ContentId(key), unpack_cached(key, raw)

    def _keys(self, table: str, prefix: bytes, after: bytes = b"") -> Iterator[bytes]:
        """Keys with a prefix, a thousand in one read transaction: one that is open keeps old pages from being used."""
        start = max(prefix, after + b"\0" if after else b"")
        while True:
            found: list[bytes] = []
            with self._cursor(table) as cursor:
                more = cursor.set_range(start)
                while more and len(found) < 1000 and cursor.key().startswith(prefix):
                    found.append(cursor.key())
                    more = cursor.next()
            yield from found
            if len(found) < 1000:
                return
            start = found[-1] + b"\0"

    def raw(self) -> contextlib.AbstractContextManager[Any]:
        """A read transaction; with `table`, for whoever checks the format itself."""
        transaction: contextlib.AbstractContextManager[Any] = self._opened.env.begin()
        return transaction

    def table(self, name: str) -> Any:
        return self._opened.tables[name]
