"""The index against a dict, by random operations, restarts and crashes included."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_box import MEMORY
from check import check_index
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay.cacheruntime.blocks import PIECE_BYTES, Span, block_bytes, block_count, block_span, mask_bytes
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.index import TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.index_writer import Appended, IndexWriter

_CONTENTS = [ContentId(bytes([n]) * 16) for n in range(6)]
_DATASETS = [DatasetId(f"{n:02x}" * 8) for n in range(1, 3)]
_SIZES = st.sampled_from([0, 1, MIB - 1, MIB, MIB + 1, 8 * MIB, 9 * MIB + 3])


@dataclass
class Model:
    """What a record should say."""

    size: int
    tier: int
    dataset: str
    blocks: dict[int, bytes] = field(default_factory=dict)
    """Those that came as a whole."""
    pieces: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """Block and piece -> checksum, of the others."""
    pack: int = 0

    def has_block(self, block: int) -> bool:
        count = -(-block_bytes(self.size, block) // PIECE_BYTES)
        return block in self.blocks or all((block, piece) in self.pieces for piece in range(count))


class IndexMachine(RuleBasedStateMachine):
    """Files and packs; see `forebay.cacheruntime.index`."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.boot = 0
        self.minted = 0
        self.minted_sums = 0
        self.last_pack = 0
        self.files: dict[ContentId, Model] = {}
        self.packs: dict[int, tuple[int, str, int]] = {}
        self.tiers: list[int] = []
        self._open()

    def _open(self) -> None:
        self.index = IndexWriter(Path(self.folder.name) / "index", f"boot{self.boot}")

    @initialize()
    def two_tiers(self) -> None:
        self.new_tier()
        self.new_tier()

    @rule()
    @precondition(lambda self: len(self.tiers) < 3)
    def new_tier(self) -> None:
        self.minted += 1
        self.tiers.append(self.index.adopt_tier(self.minted.to_bytes(16, "big"), Path(f"/t{self.minted}")))

    @rule(content=st.sampled_from(_CONTENTS), size=_SIZES, pick=st.integers(0, 9), dataset=st.sampled_from(_DATASETS))
    @precondition(lambda self: self.tiers)
    def start_file(self, content: ContentId, size: int, pick: int, dataset: DatasetId) -> None:
        if content in self.files:
            return
        tier = self.tiers[pick % len(self.tiers)]
        self.index.start_file(content, size, TierNumber(tier), dataset)
        self.files[content] = Model(size, tier, dataset)

    @rule(
        content=st.sampled_from(_CONTENTS),
        picked=st.dictionaries(st.integers(0, 99), st.binary(min_size=8, max_size=8), max_size=5),
    )
    def add_blocks(self, content: ContentId, picked: dict[int, bytes]) -> None:
        known = self.files.get(content)
        if known is None:
            assert self.index.add_spans(content, {}) is None
        elif known.size and not known.pack:
            sums = {block_span(known.size, pick % block_count(known.size)): value for pick, value in picked.items()}
            cached = self.index.add_spans(content, sums)
            assert cached == self.index.reader.find(content)
            for span, value in sums.items():
                if not known.has_block(span.block):
                    known.blocks[span.block] = value
                    known.pieces = {key: known for key, known in known.pieces.items() if key[0] != span.block}

    @rule(
        content=st.sampled_from(_CONTENTS),
        picked=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 63), st.integers(1, 64)), max_size=5),
    )
    def add_pieces(self, content: ContentId, picked: list[tuple[int, int, int]]) -> None:
        known = self.files.get(content)
        if known is None or not known.size or known.pack:
            return
        for block, first, count in picked:
            block %= block_count(known.size)
            pieces = range(-(-block_bytes(known.size, block) // PIECE_BYTES))[first:][:count]
            if not pieces:
                continue
            start = block * MIB + pieces[0] * PIECE_BYTES
            span = Span(start, min(start + len(pieces) * PIECE_BYTES, known.size))
            self.minted_sums += 1
            values = [(self.minted_sums * 64 + piece).to_bytes(8, "big") for piece in pieces]
            if span.is_block(known.size) and len(values) > 1:
                continue  # comes with one checksum
            cached = self.index.add_spans(content, {span: b"".join(values)})
            assert cached == self.index.reader.find(content)
            if known.has_block(block):
                continue
            if span.is_block(known.size):
                known.blocks[block] = values[0]
            for piece, value in zip(pieces, values, strict=True):
                known.pieces.setdefault((block, piece), value)

    @rule(pick=st.integers(0, 9), dataset=st.sampled_from(_DATASETS))
    @precondition(lambda self: self.tiers)
    def new_pack(self, pick: int, dataset: DatasetId) -> None:
        tier = self.tiers[pick % len(self.tiers)]
        self.last_pack += 1
        assert self.index.new_pack(TierNumber(tier), dataset) == self.last_pack
        self.packs[self.last_pack] = (tier, dataset, 0)

    @rule(content=st.sampled_from(_CONTENTS), size=st.integers(1, 999), gap=st.integers(0, 9), pick=st.integers(0, 9))
    @precondition(lambda self: self.packs)
    def add_packed(self, content: ContentId, size: int, gap: int, pick: int) -> None:
        if content in self.files:
            return
        number = sorted(self.packs)[pick % len(self.packs)]
        tier, dataset, length = self.packs[number]
        pack = next(p for p in self.index.reader.packs() if p.number == number)
        self.index.add_packed(pack.number, [Appended(content, size, length + gap, size * 3)])
        self.packs[number] = (tier, dataset, length + gap + size)
        self.files[content] = Model(size, tier, dataset, {0: (size * 3).to_bytes(8, "big")}, {}, number)

    @rule(content=st.sampled_from(_CONTENTS))
    def drop_file(self, content: ContentId) -> None:
        known = self.files.get(content)
        if known is None or not known.pack:
            dropped = self.index.drop_file(content)
            assert (dropped is None) == (known is None)
            self.files.pop(content, None)

    @rule(pick=st.integers(0, 9))
    @precondition(lambda self: self.packs)
    def drop_pack(self, pick: int) -> None:
        number = sorted(self.packs)[pick % len(self.packs)]
        pack = next(p for p in self.index.reader.packs() if p.number == number)
        inside = [content for content, known in self.files.items() if known.pack == number]
        assert self.index.drop_pack(pack) == len(inside)
        for content in inside:
            del self.files[content]
        del self.packs[number]

    @rule(pick=st.integers(0, 9))
    @precondition(lambda self: self.tiers)
    def drop_tier(self, pick: int) -> None:
        tier = self.tiers.pop(pick % len(self.tiers))
        self.index.drop_tier(TierNumber(tier))
        self.files = {content: known for content, known in self.files.items() if known.tier != tier}
        self.packs = {number: pack for number, pack in self.packs.items() if pack[0] != tier}

    @rule(clean=st.booleans(), same_boot=st.booleans())
    def restart(self, clean: bool, same_boot: bool) -> None:
        if clean:
            self.index.close()
        else:
            self.index._env.close()
        self.boot += not same_boot
        self._open()

    @invariant()
    def records_agree(self) -> None:
        reader = self.index.reader
        for content in _CONTENTS:
            cached, known = reader.find(content), self.files.get(content)
            assert (cached is None) == (known is None)
            if cached is None or known is None:
                continue
            assert (cached.size, reader.tier_of(cached), cached.dataset, cached.pack) == (
                known.size, known.tier, known.dataset, known.pack,
            )  # fmt: skip
            count = 1 if known.pack else block_count(known.size)
            assert cached.complete == all(known.has_block(block) for block in range(count))
            present = 0
            for block in range(count):
                start, end = block * MIB, min((block + 1) * MIB, known.size)
                assert cached.has(start, end) == reader.has(content, cached, start, end) == known.has_block(block)
                here = [piece for piece in range(64) if (block, piece) in known.pieces]
                there = here and not known.has_block(block) and reader.pieces(content, block)
                if there:
                    assert there.mask == sum(1 << piece for piece in here)
                    assert there.sums == b"".join(known.pieces[block, piece] for piece in here)
                present += (
                    end - start if known.has_block(block) else mask_bytes(known.size, block, there.mask if there else 0)
                )
                for piece in range(-(-(end - start) // PIECE_BYTES)):
                    at = start + piece * PIECE_BYTES
                    is_here = known.has_block(block) or piece in here
                    assert reader.has(content, cached, at, min(at + PIECE_BYTES, end)) == is_here
            assert cached.cached_bytes() == present
            assert reader.has(content, cached, 0, known.size) == cached.complete

    @invariant()
    def tables_agree(self) -> None:
        reader = self.index.reader
        assert {p.number: (p.tier, p.dataset, p.length) for p in reader.packs()} == self.packs
        assert sorted(reader.tiers()) == sorted(self.tiers)
        expected: dict[Any, set[Any]] = {}
        for content, known in self.files.items():
            expected.setdefault(known.dataset, set()).add((known.pack, content))
        for dataset in _DATASETS:
            assert set(reader.members(dataset)) == expected.get(dataset, set())
        check_index(self.index, on_disk=False)

    def teardown(self) -> None:
        self.index.close()
        self.folder.cleanup()


TestIndex = IndexMachine.TestCase
