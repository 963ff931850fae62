"""The index: records, what survives which end, and numbers that are never used again."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from cache_box import whole_blocks
from check import check_index

from forebay.cacheruntime.blocks import Span, block_count, block_span
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.index import TABLES, Cached, Index, PackNumber, Seal, TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.index_writer import Appended, IndexWriter
from forebay.cacheruntime.worker.recount import find_differences

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


def sums_in(index: IndexWriter) -> dict[Span, int]:
    cached = index.reader.find(A)
    assert cached is not None
    return {span: int.from_bytes(sums, "big") for span, sums in index.reader.extents(A, cached)}


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
        cached = index.add_spans(A, whole_blocks(size, {block: block + 100}))
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
    assert sums_in(index) == {block_span(size, block): block + 100 for block in blocks}


def test_a_block_that_is_there_is_not_counted_again(index: IndexWriter) -> None:
    index.start_file(A, 3 * MIB, _tier(index), ONE)
    for _ in range(2):
        index.add_spans(A, whole_blocks(3 * MIB, {1: 7}))
    assert sums_in(index) == {block_span(3 * MIB, 1): 7}
    assert index.reader.holdings()[0].bytes == MIB
    assert index.add_spans(B, whole_blocks(MIB, {0: 7})) is None


def test_empty_file(index: IndexWriter) -> None:
    cached = index.start_file(A, 0, _tier(index), ONE)
    assert cached.complete
    assert cached.has(0, 0)
    index.drop_file(A)
    assert index.reader.holdings() == []


def test_drop_forgets_all(index: IndexWriter) -> None:
    tier = _tier(index)
    index.start_file(A, 2 * MIB, tier, ONE)
    index.add_spans(A, whole_blocks(2 * MIB, {1: 5}))
    dropped = index.drop_file(A)
    assert dropped is not None
    assert dropped.cached_bytes() == MIB
    assert index.drop_file(A) is None
    assert index.reader.holdings() == []
    assert list(index.reader.members(ONE)) == []
    with index.reader.raw() as txn:
        assert txn.stat(index.reader.table("sums"))["entries"] == 0


def test_packs(index: IndexWriter) -> None:
    tier = _tier(index)
    number = index.new_pack(tier, ONE)
    other = index.new_pack(tier, ONE)
    (pack, empty) = index.reader.packs()
    assert (pack.number, empty.number, pack.length) == (number, other, 0)
    assert index.add_packed(number, [Appended(A, 10, 90, 1), Appended(B, 20, 0, 2)])
    assert [p.length for p in index.reader.packs()] == [100, 0]
    assert [(p.live_bytes, p.live_files) for p in index.reader.packs()] == [(30, 2), (0, 0)]
    assert sorted(index.reader.members(ONE)) == [(number, A), (number, B)]
    index.forget_packed(B)
    assert [(p.length, p.live_bytes, p.live_files) for p in index.reader.packs()] == [(100, 10, 1), (0, 0, 0)]
    index.add_packed(number, [Appended(B, 20, 0, 2)])
    assert index.drop_pack(pack) == 2
    assert index.reader.packs() == [empty]
    assert index.new_pack(tier, TWO) == 3


def test_drop_tier(index: IndexWriter) -> None:
    one, two = _tier(index, 1), _tier(index, 2)
    index.start_file(A, 5, one, ONE)
    index.add_spans(A, whole_blocks(5, {0: 5}))
    index.new_pack(one, TWO)
    index.add_packed(index.reader.packs()[0].number, [Appended(B, 5, 0, 5)])
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
    return index.add_spans(A, whole_blocks(2 * MIB, {0: 9}))


def test_sessions(open_index: Callable[..., IndexWriter]) -> None:
    first = open_index()
    cached = _some(first)
    assert cached is not None
    assert (first.session, first.reader.trusted_since, cached.session) == (1, 1, 1)
    first.close()
    second = open_index()
    assert (second.session, second.reader.trusted_since) == (2, 1), "after an orderly stop all is believed"
    second.seal_file(A, Seal(1, 2))
    assert second.reader.find(A) == cached._replace(session=2, seal=Seal(1, 2))


def test_distrust(tmp_path: Path) -> None:
    index = IndexWriter(tmp_path / "index", "boot")
    cached = _some(index)
    index.close()
    index = IndexWriter(tmp_path / "index", "boot", distrust=True)
    assert index.reader.find(A) == cached
    assert index.reader.trusted_since == index.session == 2
    index.close()


def test_move(index: IndexWriter) -> None:
    one, two = _tier(index, 1), _tier(index, 2)
    index.start_file(A, 2 * MIB, one, ONE)
    index.add_spans(A, whole_blocks(2 * MIB, {0: 9}))
    number = index.new_pack(one, ONE)
    index.add_packed(number, [Appended(B, 7, 0, 1)])
    index.doom(two, A)
    index.move_file(A, two, Seal(3, 4))
    index.move_pack(number, two, Seal(5, 6))
    found, pack = index.reader.find(A), index.reader.pack(number)
    assert found is not None
    assert pack is not None
    assert (found.tier, found.seal, pack.tier, pack.seal) == (two, Seal(3, 4), two, Seal(5, 6))
    assert [(h.tier, h.bytes, h.files) for h in index.reader.holdings()] == [(two, MIB + 7, 2)]
    assert set(index.doomed()) == {(one, A), (one, number)}, "what lies at the old places goes"
    index.removed(index.doomed())
    assert index.doomed() == []


def test_doomed_files_that_live_are_left_alone(index: IndexWriter) -> None:
    tier = _tier(index)
    index.doom(tier, A)
    index.doom(tier, PackNumber(9))
    assert set(index.doomed()) == {(tier, A), (tier, PackNumber(9))}
    index.start_file(A, 5, tier, ONE)
    assert index.doomed() == [(tier, PackNumber(9))]
    index.drop_file(A)
    assert set(index.doomed()) == {(tier, A), (tier, PackNumber(9))}


def test_shares_and_pins(index: IndexWriter) -> None:
    long = b"x" * 3000
    numbers = [index.share(dataset, path) for dataset, path in ((ONE, b"a"), (ONE, long), (ONE, b"a"), (TWO, b"a"))]
    assert numbers == [1, 2, 1, 3]
    assert index.reader.shares(ONE) == {b"a": 1, long: 2}
    index.pin(ONE, long, True)
    index.pin(ONE, b"b", True)
    index.pin(ONE, b"b", False)
    assert (index.reader.pins(ONE), index.reader.pins(TWO)) == ([long], [])


def test_marks(index: IndexWriter) -> None:
    tier = _tier(index)
    index.start_file(A, 5, tier, ONE)
    number = index.new_pack(tier, ONE)
    index.add_packed(number, [Appended(B, 7, 0, 1)])
    for pinned in (True, False):
        index.mark_pinned([A, B, ContentId(b"?" * 16)], pinned)
        records = [index.reader.find(A), index.reader.find(B), index.reader.pack(number)]
        assert [record is not None and record.pinned for record in records] == [pinned] * 3


def _mended(index: IndexWriter) -> list[str]:
    found = find_differences(index.reader)
    for _ in index.mend(found):
        pass
    return list(found.described())


@pytest.mark.parametrize("at", [0, 5, 20, -1])
def test_a_damaged_record_is_no_record(index: IndexWriter, at: int) -> None:
    cached = _some(index)
    table = index._tables["contents"]
    with index._env.begin(write=True) as txn:
        raw = bytearray(txn.get(A, db=table))
        raw[at] ^= 4
        txn.put(A, bytes(raw), db=table)
    assert cached is not None
    assert index.reader.find(A) is None
    assert index.reader.is_damaged(A)
    assert [found for _, found in index.reader.contents()] == [None]
    assert index.forget_damaged(A)
    assert not index.forget_damaged(A)
    assert _mended(index)
    assert not _mended(index)


def test_a_damaged_pack_is_no_pack(index: IndexWriter) -> None:
    tier = _tier(index)
    number = index.new_pack(tier, ONE)
    index.add_packed(number, [Appended(A, 7, 0, 1)])
    table = index._tables["packs"]
    with index._env.begin(write=True) as txn:
        raw = bytearray(txn.get(number.to_bytes(4, "big"), db=table))
        raw[7] ^= 1
        txn.put(number.to_bytes(4, "big"), bytes(raw), db=table)
    assert index.reader.pack(number) is None
    assert index.reader.has_pack(number)
    assert index.forget_damaged_pack(number) == [A]
    assert index.reader.find(A) is None
    assert _mended(index)


def test_changes_are_remembered_over_a_kill(tmp_path: Path) -> None:
    index = IndexWriter(tmp_path / "index", "boot")
    _some(index)
    changed, logs = index.take_changed()
    assert changed is not None
    assert changed["contents"] == {A}
    index.drop_file(A)
    index._env.close()
    again = IndexWriter(tmp_path / "index", "boot")
    found, all_logs = again.take_changed()
    assert found is not None
    assert found["contents"] == {A}
    assert found["tiers"], "what was taken and not given back counts too, until its log is removed"
    assert set(logs) < set(all_logs)
    again.give_back_changed(found, all_logs)
    assert again.take_changed()[0] == found
    again.close()


def test_reader_in_this_process_sees_each_commit(index: IndexWriter) -> None:
    assert index.reader.find(A) is None
    assert _some(index) == index.reader.find(A)


def test_another_index_in_its_place_is_taken_under_its_readers(tmp_path: Path) -> None:
    """As a worker does that goes on from its last checkpoint."""
    made = [tmp_path / f"made{number}" for number in range(12)]
    for number, folder in enumerate(made):
        writer = IndexWriter(folder, "boot")
        writer.start_file(A, 1000 + number, _tier(writer), ONE)
        writer.close()
    folder = tmp_path / "index"
    made[0].rename(folder)
    reader, ended, wrong = Index(folder), threading.Event(), set[int]()

    def read() -> None:
        while not ended.is_set():
            found = reader.find(A)
            wrong.add(found.size if found is not None else -1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert not reader.renew()
        for number, another in enumerate(made[1:], 1):
            shutil.rmtree(folder)
            assert not reader.renew(), "there is none yet"
            another.rename(folder)
            assert sum(_in_threads(reader.renew)) == 1, "one of them opens it"
            assert reader.generation == number
            found = reader.find(A)
            assert found is not None
            assert found.size == 1000 + number
            assert reader.trusted_since == 1
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong <= set(range(1000, 1012))
    assert f"{folder}/data.mdb (deleted)" not in Path("/proc/self/maps").read_text()
    reader.close()


def _in_threads(work: Callable[[], bool]) -> list[bool]:
    with ThreadPoolExecutor(3) as pool:
        return [future.result() for future in [pool.submit(work) for _ in range(3)]]


def test_an_index_of_another_format_is_not_taken(tmp_path: Path) -> None:
    for name in ("index", "newer"):
        IndexWriter(tmp_path / name, "boot").close()
    with lmdb.open(str(tmp_path / "newer"), max_dbs=len(TABLES)) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"9", db=env.open_db(b"meta", txn))
    reader = Index(tmp_path / "index")
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "newer").rename(tmp_path / "index")
    assert not reader.renew()
    assert reader.find(A) is None, "the old one is still there"
    reader.close()


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
    with pytest.raises(CacheFormatError, match=r"is of format 0, this version writes 3"):
        open_index()
    (tmp_path / "index" / "data.mdb").unlink()
    open_index()


def test_regression_a_record_over_a_record(index: IndexWriter) -> None:
    """Reachable when `small_file_bytes` is raised between two runs: a partial file of its own then comes as packed."""
    tier = _tier(index)
    index.start_file(A, 2 * MIB, tier, ONE)
    index.add_spans(A, whole_blocks(2 * MIB, {0: 1}))
    number = index.new_pack(tier, ONE)
    try:
        index.add_packed(number, [Appended(A, 2 * MIB, 0, 2)])
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
        ("members", b"x" * 28, b""),
        ("holdings", bytes.fromhex(ONE) + b"\0\0\0\1", bytes(16)),
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
