"""The index: what is cached, and where, in one LMDB environment that any process of the user may read.

Storage format
--------------
Folder ``index/`` of the cache folder. The worker alone writes it (`IndexWriter`); every hit reads it (`Index`).

``contents``: content id (16 bytes) -> `_CONTENT`, followed by the block bitmap while the file is partial: bit
    ``b % 8`` of byte ``b // 8`` says that block ``b`` is in the tier file. Blocks are only ever added while a record
    exists. A record that says `_PACKED` has its bytes at ``offset`` of a pack and is always whole.
``sums``: content id + block number (4 bytes, big endian) -> XXH3-64 of the block (8 bytes, big endian). Every
    block that ``contents`` calls present has one; a packed file has block 0 only.
``packs``: pack number (4 bytes, big endian) -> `_PACK`. Length counts every byte ever appended.
``members``: dataset (8 bytes) + tier (2 bytes) + pack (4 bytes, 0: own file) + content id -> empty. One for each
    record of ``contents``: it finds what to drop with a pack or a dataset.
``holdings``: dataset (8 bytes) + tier (2 bytes) -> bytes and files held, 8 bytes each. The sums over ``contents``.
``tiers``: tier number (2 bytes, big endian) -> its uuid (16 bytes) and folder. The number is what records hold; the
    uuid is that of the folder's marker file, so an exchanged or emptied folder is noticed.
``meta``: ``format``; ``boot``: boot id of the kernel it was written under; ``clean``: there after an orderly stop;
    ``last_pack`` (4 bytes, big endian) and ``last_tier`` (2 bytes): the highest numbers ever minted.

Durability: commits are not synced, so `kill -9` loses nothing (the kernel has the pages) and a power loss could tear
the file. Hence an index that was not closed in order *and* comes from another boot is not trusted: the worker starts
with an empty one and removes the tiers' files.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NewType

import lmdb

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.keys import ContentId, DatasetId

TierNumber = NewType("TierNumber", int)
"""Names a tier folder in records; minted when the folder is first used, never used again."""

PackNumber = NewType("PackNumber", int)
"""Names a pack; minted by the index, counting up from 1, never used again."""

BLOCK_BYTES = MIB
"""Unit of presence and of checksums; part of the format."""

FORMAT = b"1"

_CONTENT = struct.Struct(">BHQIQ8s")
"""flags, tier, size in bytes, pack number, offset in the pack, dataset."""
_PACK = struct.Struct(">HQ8s")
"""tier, length in bytes, dataset."""
_HELD = struct.Struct(">QQ")
_COMPLETE = 1
_PACKED = 2

_MAP_BYTES = 1 << 37
"""Address space, not disk: 128 GiB is beyond 300 million records."""


@dataclass(frozen=True, slots=True)
class Cached:
    """Where a file's bytes are."""

    tier: TierNumber
    size: int
    """Of the source file, in bytes."""
    complete: bool
    pack: PackNumber
    """0 for a file of its own."""
    offset: int
    """Of the first byte in the pack, or 0."""
    dataset: DatasetId
    bitmap: bytes
    """Empty once complete."""

    def has(self, start: int, end: int) -> bool:
        """Whether all bytes of [start, end) are cached; `end` is at most the size."""
        if self.complete or start >= end:
            return True
        bitmap = self.bitmap
        return all(
            bitmap[block >> 3] & (1 << (block & 7))
            for block in range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)
        )

    def cached_bytes(self) -> int:
        """How many bytes of the file are present."""
        if self.complete:
            return self.size
        count = int.from_bytes(self.bitmap, "little").bit_count()
        last = block_count(self.size) - 1
        tail = self.size - last * BLOCK_BYTES
        short = BLOCK_BYTES - tail if self.bitmap[last >> 3] & (1 << (last & 7)) else 0
        return count * BLOCK_BYTES - short


@dataclass(frozen=True, slots=True)
class Holding:
    """What one dataset has in one tier."""

    dataset: DatasetId
    tier: TierNumber
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Pack:
    """One pack file."""

    number: PackNumber
    tier: TierNumber
    length: int
    dataset: DatasetId


def block_count(size: int) -> int:
    """Blocks of a file of `size` bytes; an empty file has none."""
    return -(-size // BLOCK_BYTES)


def _unpack(raw: bytes) -> Cached:
    flags, tier, size, pack, offset, dataset = _CONTENT.unpack_from(raw)
    return Cached(
        TierNumber(tier), size, bool(flags & _COMPLETE), PackNumber(pack), offset,
        DatasetId(dataset.hex()), raw[_CONTENT.size :],
    )  # fmt: skip


def _pack_record(cached: Cached) -> bytes:
    flags = (_COMPLETE if cached.complete else 0) | (_PACKED if cached.pack else 0)
    head = _CONTENT.pack(flags, cached.tier, cached.size, cached.pack, cached.offset, bytes.fromhex(cached.dataset))
    return head + cached.bitmap


_TABLES = ("contents", "sums", "packs", "members", "holdings", "tiers", "meta")


class Index:
    """A reader. Safe to use from several threads; not across a fork.

    Resources: `close` unmaps the file.
    """

    def __init__(self, folder: Path, env: Any = None) -> None:
        """Open the index of a cache; the writing process gets its reader from `IndexWriter.reader`.

        Raises:
            CacheFormatError: there is none, or of another format.
        """
        try:
            self._env = env or lmdb.open(
                str(folder), readonly=True, max_dbs=len(_TABLES), map_size=_MAP_BYTES, max_readers=1024, readahead=False
            )
            self._tables = {name: self._env.open_db(name.encode(), create=False) for name in _TABLES}
        except lmdb.Error as error:
            raise CacheFormatError(f"{folder} holds no readable cache index ({error})") from error
        self._contents = self._tables["contents"]

    def close(self) -> None:
        self._env.close()

    def find(self, content: ContentId) -> Cached | None:
        with self._env.begin() as txn:
            raw = txn.get(content, db=self._contents)
        return _unpack(raw) if raw else None

    def checksum(self, content: ContentId, block: int) -> int | None:
        """XXH3-64 of a block, or None when the block is not there."""
        with self._env.begin() as txn:
            raw = txn.get(content + block.to_bytes(4, "big"), db=self._tables["sums"])
        return int.from_bytes(raw, "big") if raw else None

    def tiers(self) -> dict[TierNumber, tuple[bytes, Path]]:
        """Tier number -> uuid and folder."""
        with self._env.begin() as txn, txn.cursor(db=self._tables["tiers"]) as cursor:
            return {
                TierNumber(int.from_bytes(key, "big")): (
                    value[:16],
                    Path(value[16:].decode("utf-8", "surrogateescape")),
                )
                for key, value in cursor
            }

    def holdings(self) -> list[Holding]:
        with self._env.begin() as txn, txn.cursor(db=self._tables["holdings"]) as cursor:
            return [
                Holding(DatasetId(key[:8].hex()), TierNumber(int.from_bytes(key[8:], "big")), *_HELD.unpack(value))
                for key, value in cursor
            ]

    def packs(self) -> list[Pack]:
        with self._env.begin() as txn, txn.cursor(db=self._tables["packs"]) as cursor:
            return [_unpack_pack(key, value) for key, value in cursor]

    def members(self, dataset: DatasetId, tier: TierNumber) -> Iterator[tuple[PackNumber, ContentId]]:
        """All that a dataset has in a tier. The iterator holds a read transaction."""
        prefix = bytes.fromhex(dataset) + tier.to_bytes(2, "big")
        with self._env.begin() as txn, txn.cursor(db=self._tables["members"]) as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                key = cursor.key()
                yield PackNumber(int.from_bytes(key[10:14], "big")), ContentId(key[14:])
                more = cursor.next()


def _unpack_pack(key: bytes, value: bytes) -> Pack:
    tier, length, dataset = _PACK.unpack(value)
    return Pack(PackNumber(int.from_bytes(key, "big")), TierNumber(tier), length, DatasetId(dataset.hex()))


class IndexWriter:
    """The one writer. Every method is one transaction; none waits for anything but LMDB's own pages."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        """Open or make the index. `trusted` tells afterwards whether what it says may be believed.

        Args:
            folder: the index's folder.
            boot_id: of the running kernel (/proc/sys/kernel/random/boot_id).

        Raises:
            CacheFormatError: it is of another format.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._env = lmdb.open(
                str(folder), max_dbs=len(_TABLES), map_size=_MAP_BYTES, max_readers=1024, sync=False, metasync=False
            )
        except lmdb.Error as error:
            full = "No space left" in str(error)
            cure = "make room there" if full else "remove that folder, for all in it can be fetched again,"
            raise CacheFormatError(
                f"the cache index {folder} cannot be opened ({error}); {cure} or name another --cache-dir"
            ) from error
        self._tables = {name: self._env.open_db(name.encode()) for name in _TABLES}
        meta = self._tables["meta"]
        self._env.reader_check()  # slots of readers that were killed would keep old pages alive
        with self._env.begin(write=True) as txn:
            found = txn.get(b"format", db=meta)
            if found not in (None, FORMAT):
                raise CacheFormatError(
                    f"{folder} is of format {found.decode(errors='replace')}, this version writes {FORMAT.decode()};"
                    " remove the cache folder or use the version that made it"
                )
            self.trusted = (
                found is None or txn.get(b"clean", db=meta) is not None or txn.get(b"boot", db=meta) == boot_id.encode()
            )
            if not self.trusted:
                for name in _TABLES:
                    txn.drop(self._tables[name], delete=False)
            txn.put(b"format", FORMAT, db=meta)
            txn.put(b"boot", boot_id.encode(), db=meta)
            txn.delete(b"clean", db=meta)
        self._env.sync(True)
        self.reader = Index(folder, self._env)

    def close(self) -> None:
        """Mark an orderly stop, durably, and close."""
        self._env.sync(True)  # everything before the mark that vouches for it
        with self._env.begin(write=True) as txn:
            txn.put(b"clean", b"1", db=self._tables["meta"])
        self._env.sync(True)
        self._env.close()

    def adopt_tier(self, uuid: bytes, folder: Path) -> TierNumber:
        """The number of a tier folder, minted when its uuid is new."""
        tiers, meta = self._tables["tiers"], self._tables["meta"]
        with self._env.begin(write=True) as txn:
            for key, value in txn.cursor(db=tiers):
                if value[:16] == uuid:
                    txn.put(key, uuid + bytes(folder), db=tiers)
                    return TierNumber(int.from_bytes(key, "big"))
            # Not the highest there is: a reader may still know the folder of a tier that was dropped.
            number = int.from_bytes(txn.get(b"last_tier", db=meta) or b"", "big") + 1
            txn.put(b"last_tier", number.to_bytes(2, "big"), db=meta)
            txn.put(number.to_bytes(2, "big"), uuid + bytes(folder), db=tiers)
            return TierNumber(number)

    def start_file(self, content: ContentId, size: int, tier: TierNumber, dataset: DatasetId) -> Cached:
        """Record a file of its own with no block yet (an empty file is complete at once)."""
        bitmap = bytes(-(-block_count(size) // 8))
        cached = Cached(tier, size, size == 0, PackNumber(0), 0, dataset, bitmap)
        with self._env.begin(write=True) as txn:
            self._insert(txn, content, cached)
            self._hold(txn, dataset, tier, 0, 1)
        return cached

    def add_blocks(self, content: ContentId, checksums: Mapping[int, int]) -> Cached | None:
        """Record that blocks' bytes are in the tier file.

        Args:
            content: whose.
            checksums: block -> XXH3-64 of its bytes; blocks that are there already are passed over.

        Returns:
            The new state, None when the record is gone.
        """
        with self._env.begin(write=True) as txn:
            raw = txn.get(content, db=self._tables["contents"])
            if raw is None:
                return None
            cached = _unpack(raw)
            if cached.complete:
                return cached
            bitmap = bytearray(cached.bitmap)
            count = block_count(cached.size)
            added = 0
            for block, checksum in checksums.items():
                byte, bit = block >> 3, 1 << (block & 7)
                if bitmap[byte] & bit:
                    continue
                bitmap[byte] |= bit
                added += cached.size - block * BLOCK_BYTES if block == count - 1 else BLOCK_BYTES
                txn.put(content + block.to_bytes(4, "big"), checksum.to_bytes(8, "big"), db=self._tables["sums"])
            complete = int.from_bytes(bitmap, "little").bit_count() == count
            new = replace(cached, complete=complete, bitmap=b"" if complete else bytes(bitmap))
            txn.put(content, _pack_record(new), db=self._tables["contents"])
            self._hold(txn, cached.dataset, cached.tier, added, 0)
            return new

    def new_pack(self, tier: TierNumber, dataset: DatasetId) -> PackNumber:
        """Mint a pack; the number is spent even if the pack stays empty."""
        packs = self._tables["packs"]
        with self._env.begin(write=True) as txn:
            last = int.from_bytes(txn.get(b"last_pack", db=self._tables["meta"]) or b"", "big") + 1
            txn.put(b"last_pack", last.to_bytes(4, "big"), db=self._tables["meta"])
            txn.put(last.to_bytes(4, "big"), _PACK.pack(tier, 0, bytes.fromhex(dataset)), db=packs)
        return PackNumber(last)

    def add_packed(self, content: ContentId, size: int, pack: Pack, offset: int, checksum: int) -> Cached:
        """Record a whole small file whose bytes are at `offset` of a pack; the pack ends at least there."""
        cached = Cached(pack.tier, size, True, pack.number, offset, pack.dataset, b"")
        with self._env.begin(write=True) as txn:
            key = pack.number.to_bytes(4, "big")
            raw = txn.get(key, db=self._tables["packs"])
            length = max(_unpack_pack(key, raw).length if raw else 0, offset + size)
            txn.put(key, _PACK.pack(pack.tier, length, bytes.fromhex(pack.dataset)), db=self._tables["packs"])
            self._insert(txn, content, cached)
            txn.put(content + bytes(4), checksum.to_bytes(8, "big"), db=self._tables["sums"])
            self._hold(txn, pack.dataset, pack.tier, size, 1)
        return cached

    def add_packed_files(self, pack: Pack, files: Sequence[tuple[ContentId, int, int, int]]) -> None:
        """Record whole small files of one pack at once.

        Args:
            pack: ends at least behind the last of them.
            files: content, size, offset and checksum of each.
        """
        with self._env.begin(write=True) as txn:
            key = pack.number.to_bytes(4, "big")
            raw = txn.get(key, db=self._tables["packs"])
            end = max(offset + size for _, size, offset, _ in files)
            length = max(_unpack_pack(key, raw).length if raw else 0, end)
            txn.put(key, _PACK.pack(pack.tier, length, bytes.fromhex(pack.dataset)), db=self._tables["packs"])
            for content, size, offset, checksum in files:
                self._insert(txn, content, Cached(pack.tier, size, True, pack.number, offset, pack.dataset, b""))
                txn.put(content + bytes(4), checksum.to_bytes(8, "big"), db=self._tables["sums"])
            self._hold(txn, pack.dataset, pack.tier, sum(size for _, size, _, _ in files), len(files))

    def drop_file(self, content: ContentId) -> Cached | None:
        """Forget a file of its own; returns what it was. The caller unlinks the tier file first."""
        with self._env.begin(write=True) as txn:
            return self._drop(txn, content)

    def drop_pack(self, pack: Pack) -> int:
        """Forget a pack and every file in it; returns how many. The caller unlinks the pack file first."""
        prefix = bytes.fromhex(pack.dataset) + pack.tier.to_bytes(2, "big") + pack.number.to_bytes(4, "big")
        with self._env.begin(write=True) as txn:
            with txn.cursor(db=self._tables["members"]) as cursor:
                contents = []
                more = cursor.set_range(prefix)
                while more and cursor.key().startswith(prefix):
                    contents.append(ContentId(cursor.key()[14:]))
                    more = cursor.next()
            for content in contents:
                self._drop(txn, content)
            txn.delete(pack.number.to_bytes(4, "big"), db=self._tables["packs"])
        return len(contents)

    def drop_tier(self, tier: TierNumber) -> None:
        """Forget a tier and all that was in it, as its folder is gone."""
        for holding in self.reader.holdings():
            if holding.tier == tier:
                contents = [content for _, content in self.reader.members(holding.dataset, tier)]
                with self._env.begin(write=True) as txn:
                    for content in contents:
                        self._drop(txn, content)
        with self._env.begin(write=True) as txn:
            for pack in self.reader.packs():
                if pack.tier == tier:
                    txn.delete(pack.number.to_bytes(4, "big"), db=self._tables["packs"])
            txn.delete(tier.to_bytes(2, "big"), db=self._tables["tiers"])

    def _insert(self, txn: Any, content: ContentId, cached: Cached) -> None:
        self._drop(txn, content)  # a record in its place, if any: what it held is not held any more
        txn.put(content, _pack_record(cached), db=self._tables["contents"])
        txn.put(_member_key(content, cached), b"", db=self._tables["members"])

    def _drop(self, txn: Any, content: ContentId) -> Cached | None:
        raw = txn.pop(content, db=self._tables["contents"])
        if raw is None:
            return None
        cached = _unpack(raw)
        for block in range(1 if cached.pack else block_count(cached.size)):
            txn.delete(content + block.to_bytes(4, "big"), db=self._tables["sums"])
        txn.delete(_member_key(content, cached), db=self._tables["members"])
        self._hold(txn, cached.dataset, cached.tier, -cached.cached_bytes(), -1)
        return cached

    def _hold(self, txn: Any, dataset: DatasetId, tier: TierNumber, by_bytes: int, by_files: int) -> None:
        key = bytes.fromhex(dataset) + tier.to_bytes(2, "big")
        held = _HELD.unpack(txn.get(key, db=self._tables["holdings"]) or bytes(_HELD.size))
        new = (held[0] + by_bytes, held[1] + by_files)
        if new == (0, 0):
            txn.delete(key, db=self._tables["holdings"])
        else:
            txn.put(key, _HELD.pack(*new), db=self._tables["holdings"])


def _member_key(content: ContentId, cached: Cached) -> bytes:
    return bytes.fromhex(cached.dataset) + cached.tier.to_bytes(2, "big") + cached.pack.to_bytes(4, "big") + content
