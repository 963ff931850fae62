"""What the storage format of the index promises, sentence by sentence, asserted over a real index and its tiers.

Called at the end of every test that touches storage. Raises AssertionError with what is wrong.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from forebay.cacheruntime import blocks as blocks_module
from forebay.cacheruntime import index as index_module
from forebay.cacheruntime.blocks import block_count
from forebay.cacheruntime.index import WRITING, Cached, Index, Seal, unpack_cached
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import file_path, pack_path
from forebay.cacheruntime.worker.index_writer import IndexWriter
from forebay.cacheruntime.worker.storage import Storage


def check_storage(storage: Storage) -> None:
    """The index is right, the tiers hold what it says, and with nothing in flight no byte is reserved."""
    check_index(storage.index)
    held: Counter[int] = Counter()
    for holding in storage.index.reader.holdings():
        held[holding.tier] += holding.bytes
    for pack in storage.index.reader.packs():
        held[pack.tier] += pack.length - pack.live_bytes
    for tier in storage.tiers:
        storage.departed.look()
        open_still = storage.departed.pending_bytes(tier)
        assert tier.used_bytes == held[tier.number] + open_still, f"tier {tier.number}: counted and held bytes differ"
        named = {gone.path for gone in storage.departed._gone.get(tier.number, (tier, []))[1] if gone.path is not None}
        assert set((tier.config.path / "departed").iterdir()) == named, "only what is still open somewhere"
        assert tier.used_bytes <= tier.config.quota_bytes, f"tier {tier.number} is over its quota"


def check_index(index: Index | IndexWriter, *, on_disk: bool = True) -> None:
    """Check every sentence of the format; with `on_disk` also the tier folders."""
    reader = index.reader if isinstance(index, IndexWriter) else index
    tables = _dump(reader)
    assert set(tables) == set(index_module.TABLES)
    assert tables["meta"][b"format"] == index_module.FORMAT
    assert tables["meta"][b"boot"]
    contents = {ContentId(key): _record(key, raw) for key, raw in tables["contents"].items()}
    _check_records(contents)
    _check_sums(contents, tables["sums"])
    _check_packs(reader, contents, tables["meta"])
    _check_members(contents, tables["members"])
    _check_paths(tables)
    _check_holdings(reader, contents)
    _check_tiers(reader, contents, tables["meta"])
    if on_disk:
        _check_disk(reader, contents)


def _dump(reader: Index) -> dict[str, dict[bytes, bytes]]:
    with reader.raw() as txn:
        return {name: dict(txn.cursor(db=reader.table(name))) for name in index_module.TABLES}


def _record(key: bytes, raw: bytes) -> Cached:
    flags = raw[0]
    record = unpack_cached(key, raw)
    assert record is not None, "the value ends with its check"
    assert bool(flags & 2) == bool(record.pack), "_PACKED says whether there is a pack"
    assert flags & ~7 == 0, f"unknown flags {flags:#x}"
    return record


def _check_paths(tables: dict[str, dict[bytes, bytes]]) -> None:
    for table, at in (("shares", 2), ("pins", 0), ("manifest_pins", 0)):
        for key, value in tables[table].items():
            assert key[8:] == xxhash.xxh3_64_digest(value[at:]), f"{table}: the key is the path's hash"


def whole_blocks(record: Cached) -> list[int]:
    """The blocks that a record calls whole."""
    if record.pack:
        return [0]
    blocks = range(block_count(record.size))
    return [b for b in blocks if record.complete or record.bitmap[b // 8] & (1 << b % 8)]


def block_size(record: Cached, block: int) -> int:
    """In bytes; only the last block of a file is short. All of a packed file is its block 0."""
    if record.pack:
        return record.size
    return min(blocks_module.BLOCK_BYTES, record.size - block * blocks_module.BLOCK_BYTES)


def _pieces(key: bytes, value: bytes) -> dict[int, bytes]:
    """Piece number -> checksum, of a block that came in pieces."""
    assert value[-4:] == xxhash.xxh3_64_digest(key + value[:-4])[:4], "the value ends with its check"
    mask = int.from_bytes(value[:8], "big")
    numbers = [number for number in range(64) if mask >> number & 1]
    assert len(value) == 8 + 8 * len(numbers) + 4, "one checksum for each piece that is there"
    return {number: value[8 + 8 * at : 16 + 8 * at] for at, number in enumerate(numbers)}


def _piece_span(record: Cached, block: int, piece: int) -> tuple[int, int]:
    start = block * blocks_module.BLOCK_BYTES + piece * blocks_module.PIECE_BYTES
    return start, min(start + blocks_module.PIECE_BYTES, record.size)


def _check_records(contents: dict[ContentId, Cached]) -> None:
    for content, record in contents.items():
        assert len(content) == 16
        blocks = block_count(record.size)
        if record.pack:
            assert record.complete, "a packed file is always whole"
            assert record.tier == 0, "the pack's record has the tier"
        else:
            assert record.offset == 0
        if record.complete:
            assert record.bitmap == b"", "the bitmap is there while the file is partial"
        else:
            assert len(record.bitmap) == -(-blocks // 8)
            bits = int.from_bytes(record.bitmap, "little")
            assert bits < (1 << blocks) - 1, "a partial file lacks a block, and has none behind its end"
        assert not (record.complete and record.partial_bytes)
        sizes = sum(block_size(record, block) for block in whole_blocks(record))
        assert record.cached_bytes() == sizes + record.partial_bytes


def _check_sums(contents: dict[ContentId, Cached], sums: dict[bytes, bytes]) -> None:
    own = {c: record for c, record in contents.items() if not record.pack}
    expected = {c + b.to_bytes(4, "big") for c, record in own.items() for b in whole_blocks(record)}
    partial: Counter[ContentId] = Counter()
    assert expected <= set(sums), "a checksum for each block that is there"
    for key, value in sums.items():
        content, block = ContentId(key[:-4]), int.from_bytes(key[-4:], "big")
        assert content in own, "and none of what is not"
        assert block < block_count(own[content].size)
        if len(value) == 8:
            assert key in expected, "a block with one checksum is whole"
            continue
        record = own[content]
        spans = [_piece_span(record, block, piece) for piece in _pieces(key, value)]
        assert all(start < end for start, end in spans), "no piece behind the end"
        held = sum(end - start for start, end in spans)
        assert held
        assert (held == block_size(record, block)) == (key in expected), "a block with all its pieces is whole"
        partial[content] += 0 if key in expected else held
    for content, record in own.items():
        assert record.partial_bytes == partial[content], "_PARTIAL counts the bytes in blocks that are not whole"


def _check_packs(reader: Index, contents: dict[ContentId, Cached], meta: dict[bytes, bytes]) -> None:
    packs = {pack.number: pack for pack in reader.packs()}
    assert max(packs, default=0) <= int.from_bytes(meta.get(b"last_pack", b""), "big")
    assert 0 not in packs
    taken: dict[int, list[tuple[int, int]]] = {}
    for record in contents.values():
        if record.pack:
            pack = packs[record.pack]
            assert (pack.share, pack.dataset) == (record.share, record.dataset), "one dataset and share to a pack"
            assert record.offset + record.size <= pack.length, "length counts every byte ever appended"
            taken.setdefault(record.pack, []).append((record.offset, record.offset + record.size))
    for number, pack in packs.items():
        ranges = taken.get(number, [])
        assert pack.live_files == len(ranges), "live files are those that contents knows"
        assert pack.live_bytes == sum(end - start for start, end in ranges), "and so are live bytes"
    for ranges in taken.values():
        ranges.sort()
        for (_, end), (start, _) in pairwise(ranges):
            assert end <= start, "files of a pack do not overlap"


def _check_members(contents: dict[ContentId, Cached], members: dict[bytes, bytes]) -> None:
    expected = {bytes.fromhex(r.dataset) + r.pack.to_bytes(4, "big") + c for c, r in contents.items()}
    assert set(members) == expected, "one member for each record"
    assert set(members.values()) <= {b""}


def _check_holdings(reader: Index, contents: dict[ContentId, Cached]) -> None:
    expected: dict[Any, list[int]] = {}
    for record in contents.values():
        held = expected.setdefault((record.dataset, record.share, reader.tier_of(record)), [0, 0])
        held[0] += record.cached_bytes()
        held[1] += 1
    found = {(h.dataset, h.share, h.tier): [h.bytes, h.files] for h in reader.holdings()}
    assert found == expected, "holdings are the sums over contents"


def _check_tiers(reader: Index, contents: dict[ContentId, Cached], meta: dict[bytes, bytes]) -> None:
    tiers = reader.tiers()
    assert max(tiers, default=0) <= int.from_bytes(meta.get(b"last_tier", b""), "big")
    used = {record.tier for record in contents.values() if not record.pack} | {pack.tier for pack in reader.packs()}
    assert used <= set(tiers), "a record's tier is known"
    assert len({uuid for uuid, _ in tiers.values()}) == len(tiers)


def _check_disk(reader: Index, contents: dict[ContentId, Cached]) -> None:
    for number, (uuid, folder) in reader.tiers().items():
        marker = (folder / "forebay-tier").read_text().splitlines()
        assert bytes.fromhex(marker[0]) == uuid, "the uuid is that of the folder's marker file"
        own = {file_path(folder, c) for c, r in contents.items() if r.tier == number and not r.pack}
        assert set((folder / "files").glob("*/*")) == own, "one tier file for each record, and no other"
        packs = {pack_path(folder, p.number): p for p in reader.packs() if p.tier == number}
        assert set((folder / "packs").iterdir()) <= set(packs), "no pack file that the index does not know"
        for path, pack in packs.items():
            assert not pack.length or path.stat().st_size >= pack.length
    folders = {number: folder for number, (_, folder) in reader.tiers().items()}
    for content, record in contents.items():
        tier = reader.tier_of(record)
        assert tier is not None
        _check_bytes(reader, content, record, folders[tier])
    for pack in reader.packs():
        if pack.seal != WRITING:
            assert _seal(pack_path(folders[pack.tier], pack.number)) == pack.seal, "a seal is that of the file"


def _seal(path: Path) -> Seal:
    found = path.stat()
    return Seal(found.st_ino, found.st_ctime_ns)


def _check_bytes(reader: Index, content: ContentId, record: Cached, folder: Path) -> None:
    path = pack_path(folder, record.pack) if record.pack else file_path(folder, content)
    with open(path, "rb") as opened:
        if not record.pack:
            assert path.stat().st_size == record.size, "the source's full size from the start"
            assert record.seal in (WRITING, _seal(path)), "a seal is that of the file"
        for start, end, expected in _checksums(reader, content, record):
            opened.seek(record.offset + start)
            found = xxhash.xxh3_64_digest(opened.read(end - start))
            assert found == expected, f"{content.hex()} [{start}, {end}): a hole or wrong bytes"


def _checksums(reader: Index, content: ContentId, record: Cached) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and checksum of all that is there."""
    if record.pack:
        yield 0, record.size, record.checksum.to_bytes(8, "big")
        return
    with reader.raw() as txn:
        sums = {key: value for key, value in txn.cursor(db=reader.table("sums")) if key.startswith(content)}
    for key, value in sums.items():
        block = int.from_bytes(key[-4:], "big")
        if len(value) == 8:
            yield (
                block * blocks_module.BLOCK_BYTES,
                block * blocks_module.BLOCK_BYTES + block_size(record, block),
                value,
            )
        else:
            for piece, checksum in _pieces(key, value).items():
                yield *_piece_span(record, block, piece), checksum
