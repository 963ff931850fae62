"""The index: records, what survives which end, and numbers that are never used again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from check import check_index

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.index import Cached, Index, IndexWriter, PackNumber, TierNumber, block_count
from forebay.cacheruntime.keys import ContentId, DatasetId

A, B = ContentId(b"a" * 16), ContentId(b"b" * 16)
ONE, TWO = DatasetId("01" * 8), DatasetId("02" * 8)


@pytest.fixture
def open_index(tmp_path: Path) -> Iterator[Callable[..., IndexWriter]]:
    made: list[IndexWriter] = []

    def make(boot: str = "boot") -> IndexWriter:
        made.append(IndexWriter(tmp_path / "index", boot))
        return made[-1]

    yield make
    check_index(made[-1], on_disk=False)
    made[-1].close()


@pytest.fixture
def index(open_index: Callable[..., IndexWriter]) -> IndexWriter:
    return open_index()


def _tier(index: IndexWriter, number: int = 1) -> TierNumber:
    return index.adopt_tier(bytes([number]) * 16, Path(f"/tier{number}"))


def test_block_count() -> None:
    assert [block_count(size) for size in (0, 1, MIB, MIB + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize("size", [1, MIB - 1, MIB, MIB + 1, 9 * MIB, 20 * MIB + 5])
def test_blocks_one_by_one(index: IndexWriter, size: int) -> None:
    tier = _tier(index)
    cached: Cached | None = index.start_file(A, size, tier, ONE)
    blocks = list(range(block_count(size)))
    for done, block in enumerate(reversed(blocks)):
        assert cached is not None
        assert not cached.complete
        assert not cached.has(0, size)
        cached = index.add_blocks(A, {block: block + 100})
        check_index(index, on_disk=False)
        start, end = block * MIB, min(block * MIB + MIB, size)
        assert cached is not None
        assert cached.has(start, end)
        assert cached.has(end - 1, end)
        assert cached.has(start, size)
        assert done + 1 == len(blocks) or not cached.has(start - 1, end)
        assert index.reader.find(A) == cached
    assert cached is not None
    assert cached.complete
    assert cached.cached_bytes() == size
    assert [index.reader.checksum(A, block) for block in (*blocks, len(blocks))] == [b + 100 for b in blocks] + [None]


def test_a_block_that_is_there_is_not_counted_again(index: IndexWriter) -> None:
    index.start_file(A, 3 * MIB, _tier(index), ONE)
    for _ in range(2):
        index.add_blocks(A, {1: 7})
    assert index.reader.checksum(A, 1) == 7
    assert index.reader.holdings()[0].bytes == MIB
    assert index.add_blocks(B, {0: 7}) is None


def test_empty_file(index: IndexWriter) -> None:
    cached = index.start_file(A, 0, _tier(index), ONE)
    assert cached.complete
    assert cached.has(0, 0)
    index.drop_file(A)
    assert index.reader.holdings() == []


def test_drop_forgets_all(index: IndexWriter) -> None:
    tier = _tier(index)
    index.start_file(A, 2 * MIB, tier, ONE)
    index.add_blocks(A, {1: 5})
    dropped = index.drop_file(A)
    assert dropped is not None
    assert dropped.cached_bytes() == MIB
    assert index.drop_file(A) is None
    assert index.reader.holdings() == []
    assert list(index.reader.members(ONE, tier)) == []
    assert index.reader.checksum(A, 1) is None


def test_packs(index: IndexWriter) -> None:
    tier = _tier(index)
    number = index.new_pack(tier, ONE)
    other = index.new_pack(tier, ONE)
    (pack, empty) = index.reader.packs()
    assert (pack.number, empty.number, pack.length) == (number, other, 0)
    index.add_packed(A, 10, pack, 90, 1)
    index.add_packed(B, 20, pack, 0, 2)
    assert [p.length for p in index.reader.packs()] == [100, 0]
    assert sorted(index.reader.members(ONE, tier)) == [(number, A), (number, B)]
    assert index.drop_pack(pack) == 2
    assert index.reader.packs() == [empty]
    assert index.new_pack(tier, TWO) == 3


def test_drop_tier(index: IndexWriter) -> None:
    one, two = _tier(index, 1), _tier(index, 2)
    index.start_file(A, 5, one, ONE)
    index.add_blocks(A, {0: 5})
    index.new_pack(one, TWO)
    index.add_packed(B, 5, index.reader.packs()[0], 0, 5)
    other = ContentId(b"c" * 16)
    index.start_file(other, 5, two, ONE)
    index.drop_tier(one)
    assert (index.reader.find(A), index.reader.find(B), index.reader.packs()) == (None, None, [])
    assert index.reader.find(other) is not None
    assert list(index.reader.tiers()) == [two]


def test_tiers_are_known_by_uuid(index: IndexWriter) -> None:
    assert [_tier(index, n) for n in (1, 2, 1)] == [1, 2, 1]
    moved = index.adopt_tier(bytes([1]) * 16, Path("/moved"))
    assert index.reader.tiers()[moved] == (bytes([1]) * 16, Path("/moved"))


def test_regression_tier_numbers_are_never_used_again(
    index: IndexWriter, open_index: Callable[..., IndexWriter]
) -> None:
    """Readers keep the folder of a number: with the number of a dropped tier they looked into its old folder."""
    last = [_tier(index, n) for n in (1, 2)][-1]
    index.drop_tier(last)
    assert _tier(index, 3) == last + 1
    index.drop_tier(TierNumber(last + 1))
    index.close()
    again = open_index()
    assert _tier(again, 4) == last + 2


def _some(index: IndexWriter) -> Cached | None:
    index.start_file(A, 2 * MIB, _tier(index), ONE)
    index.new_pack(TierNumber(1), ONE)
    return index.add_blocks(A, {0: 9})


@pytest.mark.parametrize(
    ("clean", "boot", "kept"),
    [(True, "boot", True), (True, "other", True), (False, "boot", True), (False, "other", False)],
)
@pytest.mark.semantics("D5")
def test_what_survives(open_index: Callable[..., IndexWriter], clean: bool, boot: str, kept: bool) -> None:
    first = open_index("boot")
    assert first.trusted
    cached = _some(first)
    if clean:
        first.close()
    else:
        first._env.close()  # as kill -9 leaves it
    second = open_index(boot)
    assert second.trusted == kept
    assert second.reader.find(A) == (cached if kept else None)
    assert len(second.reader.tiers()) == kept
    assert second.new_pack(_tier(second), ONE) == (2 if kept else 1)
    second._env.close()
    assert open_index(boot).trusted, "an unclean stop in the same boot"


def test_reader_in_this_process_sees_each_commit(index: IndexWriter) -> None:
    assert index.reader.find(A) is None
    assert _some(index) == index.reader.find(A)


def test_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match="holds no readable cache index"):
        Index(tmp_path / "none")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"nonsense" * 4096)
    with pytest.raises(CacheFormatError, match=r"cache index .* cannot be opened .* remove that folder"):
        IndexWriter(tmp_path / "bad", "boot")


def test_other_format(index: IndexWriter, open_index: Callable[..., IndexWriter], tmp_path: Path) -> None:
    with index._env.begin(write=True) as txn:
        txn.put(b"format", b"0", db=index._tables["meta"])
    index.close()
    with pytest.raises(CacheFormatError, match=r"is of format 0, this version writes 1"):
        open_index()
    (tmp_path / "index" / "data.mdb").unlink()
    open_index()


def test_regression_a_record_over_a_record(index: IndexWriter) -> None:
    """Reachable when `small_file_bytes` is raised between two runs: a partial file of its own then comes as packed."""
    tier = _tier(index)
    index.start_file(A, 2 * MIB, tier, ONE)
    index.add_blocks(A, {0: 1})
    number = index.new_pack(tier, ONE)
    try:
        index.add_packed(A, 2 * MIB, next(p for p in index.reader.packs() if p.number == number), 0, 2)
        check_index(index, on_disk=False)
    finally:
        with index._env.begin(write=True) as txn:
            for name in ("contents", "members", "holdings", "sums", "packs"):
                txn.drop(index._tables[name], delete=False)


def test_check_finds_what_is_wrong(index: IndexWriter) -> None:
    """The checker itself: each table spoilt in turn."""
    _some(index)
    spoilt = [
        ("sums", bytes(A) + bytes(4), None),
        ("sums", bytes(A) + b"\0\0\0\1", bytes(8)),
        ("members", b"x" * 30, b""),
        ("holdings", bytes.fromhex(ONE) + b"\0\1", bytes(16)),
        ("tiers", b"\0\1", None),
        ("contents", bytes(A), None),
        ("meta", b"last_pack", None),
    ]
    for name, key, value in spoilt:
        table = index._tables[name]
        with index._env.begin(write=True) as txn:
            before = txn.get(key, db=table)
            txn.put(key, value, db=table) if value is not None else txn.delete(key, db=table)
        with pytest.raises(AssertionError):
            check_index(index, on_disk=False)
        with index._env.begin(write=True) as txn:
            txn.put(key, before, db=table) if before is not None else txn.delete(key, db=table)
    check_index(index, on_disk=False)
    assert PackNumber(1) in {p.number for p in index.reader.packs()}
