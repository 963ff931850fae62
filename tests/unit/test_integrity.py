"""Nothing wrong is served: whatever somebody does to the files of a cache is found by its reader, and by a check."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cache_box import Box, bytes_of
from check import check_storage

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.index import Pack, PackNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import pack_path
from forebay.cacheruntime.worker.check import Check, Finding
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.keeper import Keeper
from forebay.cacheruntime.worker.recount import recount
from forebay.cacheruntime.worker.verify import Pace, Verdict
from forebay.cacheruntime.worker.writes import seal_of


def fill(box: Box, *files: SourceFile, end: int | None = None) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size if end is None else end, 0)

    box.run(test)
    box.storage.tidy(float("inf"))


def check(box: Box, *, deep: bool = True, repair: bool = False) -> list[Finding]:
    made = Check(box.storage, deep=deep, repair=repair)
    trio.run(made.run)
    assert made.progress.finished
    return made.progress.findings


def read(box: Box, file: SourceFile, reader: ContentReader) -> bytes:
    """As a handler reads: from the cache, else with what the worker does about it. The number of tries is bounded."""
    for _ in range(4):
        place = reader.find(file.content, 0, file.size)
        if place is not None:
            return os.pread(place.descriptor, file.size, place.base)
        suspect = reader.take_wrong(file.content)

        async def test(filler: Filler, suspect: bool = suspect) -> bytes | None:
            if suspect:
                filler.verifier.suspected.add(file.content)
            return await filler.fill(file, 0, file.size, 0)

        through = box.run(test, checked=False)
        if through is not None and len(through) == file.size:
            return bytes(through)
    raise AssertionError("it never came")


def data_of(box: Box, file: SourceFile) -> bytes:
    return bytes(box.store.files[file.path][0])


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))


def zero_sector(path: Path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at // 512 * 512)
        opened.write(bytes(512))


def truncate(path: Path, at: int) -> None:
    os.truncate(path, at)


def extend(path: Path, at: int) -> None:
    with path.open("ab") as opened:
        opened.write(b"more")


def flip_in_secret(path: Path, at: int) -> None:
    """With the old times put back."""
    before = path.stat()
    flip(path, at)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_zeros(path: Path, at: int) -> None:
    size = path.stat().st_size
    draft = path.with_name("draft")
    draft.write_bytes(bytes(size))
    draft.rename(path)


def give_away(path: Path, at: int) -> None:
    os.chown(path, 65534, 65534)


def open_to_all(path: Path, at: int) -> None:
    path.chmod(0o666)


TAMPERINGS = [flip, flip_in_secret, zero_sector, truncate, extend, replace_by_zeros, give_away, open_to_all]
HARMLESS_IN_A_PACK = {extend}
"""What lies behind its end is not read."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.parametrize("tamper", [pytest.param(t, marks=needs_root if t is give_away else ()) for t in TAMPERINGS])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [2 * MIB + 77, 12 * MIB])
@pytest.mark.parametrize("known", [True, False], ids=["open", "fresh"])
@pytest.mark.semantics("I1")
def test_a_file_of_its_own(box: Box, tamper: Callable[[Path, int], None], whole: bool, size: int, known: bool) -> None:
    file = box.source("a", bytes_of(size))
    fill(box, file, end=None if whole else MIB)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    if known:
        assert reader.find(file.content, 0, MIB) is not None
    tamper(box.tier_file(file.content), MIB // 2)
    place = reader.find(file.content, 0, MIB)
    assert place is None, "before anything was done about it"
    assert reader.whole_file(file.content, size) is None, "it must not be passed through"
    (finding,) = check(box)
    assert finding.kind in ("data", "size", "owner")
    gets = len(box.store.reads)
    assert read(box, file, reader) == data_of(box, file)
    assert len(box.store.reads) > gets, "it was fetched again"
    assert box.storage.damage.files >= 1
    reader.close()
    fill(box, file)
    assert check(box) == []
    check_storage(box.storage)


@pytest.mark.parametrize("tamper", [pytest.param(t, marks=needs_root if t is give_away else ()) for t in TAMPERINGS])
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["open", "fresh"])
@pytest.mark.semantics("I1")
def test_a_pack(box: Box, tamper: Callable[[Path, int], None], sealed: bool, known: bool) -> None:
    files = [box.source(f"s{n}", bytes_of(100_000, n)) for n in range(5)]
    if sealed:
        fill(box, *files)
    else:

        async def test(filler: Filler) -> None:
            for file in files:
                await filler.fill(file, 0, file.size, 0)

        box.run(test)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    if known:
        for file in files:
            assert reader.find(file.content, 0, file.size) is not None
    tamper(pack_path(box.config.tiers[0].path, PackNumber(1)), 250_000)
    findings = check(box)
    assert findings
    for file in files:
        assert read(box, file, reader) == data_of(box, file)
    if tamper not in HARMLESS_IN_A_PACK:
        assert box.storage.damage.files >= 1 or tamper in (give_away, open_to_all)
    reader.close()
    check(box, repair=True)
    assert check(box) == []
    for file in files:
        assert read(box, file, ContentReader(box.storage.index.reader, box.storage.touch)) == data_of(box, file)


def test_regression_a_file_that_goes_meanwhile_does_not_leave_its_pack_in_doubt(box: Box) -> None:
    files = [box.source(f"s{n}", bytes_of(100_000, n)) for n in range(5)]
    fill(box, *files)
    flip(pack_path(box.config.tiers[0].path, PackNumber(1)), 250_000)

    async def test(filler: Filler) -> None:
        look = filler.verifier._look_at_pack

        async def looked(pack: Pack, pace: Pace | None) -> tuple[Verdict, list[ContentId]]:
            found = await look(pack, pace)
            assert box.storage.evict([files[0].content]) == (1, 100_000)
            return found

        filler.verifier._look_at_pack = looked  # type: ignore[method-assign]
        await filler.verifier.verify_pack(PackNumber(1))

    box.run(test)
    assert [box.has(file) for file in files] == [False, True, False, True, True]
    assert check(box) == []


@pytest.mark.semantics("I1")
def test_two_files_change_places(box: Box) -> None:
    files = [box.source(n, bytes_of(2 * MIB, ord(n))) for n in "ab"]
    fill(box, *files)
    first, second = (box.tier_file(file.content) for file in files)
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)
    assert [finding.kind for finding in check(box)] == ["data", "data"]
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert [read(box, file, reader) for file in files] == [data_of(box, file) for file in files]
    reader.close()


@pytest.mark.semantics("I1")
def test_an_old_version_is_put_back(box: Box, tmp_path: Path) -> None:
    """A copy from when only the first block was there."""
    file = box.source("a", bytes_of(3 * MIB))
    fill(box, file, end=MIB)
    shutil.copy2(box.tier_file(file.content), tmp_path / "old")
    fill(box, file)
    shutil.copy2(tmp_path / "old", box.tier_file(file.content))
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert reader.find(file.content, 0, file.size) is None
    assert [finding.kind for finding in check(box)] == ["data"]
    assert read(box, file, reader) == data_of(box, file)
    reader.close()


def test_a_copy_of_the_same_bytes_is_taken(box: Box, tmp_path: Path) -> None:
    """As after a restore from a backup: looked at once, not fetched."""
    file = box.source("a", bytes_of(3 * MIB))
    fill(box, file)
    path = box.tier_file(file.content)
    shutil.copy2(path, tmp_path / "copy")
    shutil.move(tmp_path / "copy", path)
    assert [finding.kind for finding in check(box)] == ["seal"]
    gets = len(box.store.reads)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert read(box, file, reader) == data_of(box, file)
    assert len(box.store.reads) == gets
    assert check(box) == []
    reader.close()


def test_files_removed(box: Box) -> None:
    files = [box.source("a", bytes_of(2 * MIB)), box.source("s", bytes_of(1000))]
    fill(box, *files)
    box.tier_file(files[0].content).unlink()
    pack_path(box.config.tiers[0].path, PackNumber(1)).unlink()
    assert sorted(finding.kind for finding in check(box)) == ["missing", "missing"]
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert [read(box, file, reader) for file in files] == [data_of(box, file) for file in files]
    reader.close()
    assert check(box) == []


def test_a_record_that_says_too_much(box: Box) -> None:
    """One bit of the index says that a block is there which is a hole."""
    file = box.source("a", bytes_of(9 * MIB))
    fill(box, file, end=MIB)
    index = box.storage.index
    with index._env.begin(write=True) as txn:
        raw = bytearray(txn.get(file.content, db=index._tables["contents"]))
        raw[-6] ^= 0b100
        txn.put(file.content, bytes(raw), db=index._tables["contents"])
    assert [finding.kind for finding in check(box)][:1] == ["record"]
    reader = ContentReader(index.reader, box.storage.touch)
    assert reader.find(file.content, 2 * MIB, 3 * MIB) is None
    assert read(box, file, reader) == data_of(box, file)
    assert box.storage.recount_due
    trio.run(recount, box.storage, trio.CapacityLimiter(1))
    box.storage.tidy()
    reader.close()
    assert check(box) == []
    assert box.storage.damage.records == 1


def test_a_checksum_that_was_changed(box: Box) -> None:
    file = box.source("a", bytes_of(3 * MIB))
    fill(box, file)
    index = box.storage.index
    with index._env.begin(write=True) as txn:
        txn.put(file.content + bytes(4), bytes(8), db=index._tables["sums"])
    assert [finding.kind for finding in check(box)] == ["data"]
    check(box, repair=True)
    assert check(box) == []
    assert index.reader.find(file.content) is None


@pytest.mark.semantics("I3")
@pytest.mark.parametrize("kind", ["own", "packed"])
def test_the_scrub_finds_what_nobody_wrote(box: Box, kind: str) -> None:
    """A disk turns a bit: nothing tells of it but the checksum."""
    file = box.source("a", bytes_of(2 * MIB if kind == "own" else 50_000))
    fill(box, file)
    cached = box.storage.index.reader.find(file.content)
    assert cached is not None
    path = box.storage.path_of(file.content, cached)
    assert path is not None
    flip(path, 1000)
    seal = seal_of(path.stat())
    if kind == "own":
        box.storage.index.seal_file(file.content, seal_of(os.stat(box.tier_file(file.content))))
    else:
        box.storage.close_pack(cached.pack)
        box.storage.index.seal_pack(cached.pack, seal)
    assert check(box, deep=False) == []
    assert [finding.kind for finding in check(box, deep=True)] == ["data"]

    async def scrub() -> None:
        async with trio.open_nursery() as nursery:
            keeper = Keeper(box.storage, Filler(box.storage, box.config.fill, nursery).verifier)
            nursery.start_soon(keeper._scrub)
            with trio.fail_after(20):
                while not box.storage.damage.blocks:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    trio.run(scrub)
    assert not box.has(file)


@pytest.mark.semantics("I4")
def test_repair_removes_orphans_and_counts_anew(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file)
    folder = box.config.tiers[0].path
    (folder / "files" / "00").mkdir()
    (folder / "files" / "00" / ("00" * 16)).write_bytes(b"left")
    (folder / "packs" / "000000ff").write_bytes(b"left")
    (folder / "packs" / "notes.txt").write_text("somebody's")
    index = box.storage.index
    with index._env.begin(write=True) as txn:
        for key, _ in list(txn.cursor(db=index._tables["holdings"])):
            txn.put(key, bytes(16), db=index._tables["holdings"])
    assert sorted(finding.kind for finding in check(box, deep=False)) == ["count", "orphan", "orphan"]
    assert all(finding.repaired for finding in check(box, deep=False, repair=True))
    assert check(box) == []
    assert os.listdir(folder / "packs") == ["notes.txt"]
    (folder / "packs" / "notes.txt").unlink()


def test_check_of_a_file_that_is_being_written_waits_for_nobody(box: Box) -> None:
    file = box.source("a", bytes_of(4 * MIB))
    cached = box.storage.place_file(box.target(file))
    assert cached is not None
    assert check(box) == []
    box.storage.settle(file.content)
    assert check(box) == []


def test_bytes_changed_while_the_worker_writes(box: Box) -> None:
    """Between two of our writes: the seal of our last one is not there any more."""
    file = box.source("a", bytes_of(4 * MIB))
    cached = box.storage.place_file(box.target(file))
    assert cached is not None
    flip(box.tier_file(file.content), 3 * MIB)
    fill(box, file)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert read(box, file, reader) == data_of(box, file)
    reader.close()
    assert box.storage.damage.files >= 1


@pytest.mark.semantics("I2")
def test_index_changed_while_no_worker_ran(box: Box) -> None:
    """The last checkpoint takes its place, and every byte is looked at before it is believed."""
    files = [box.source("a", bytes_of(2 * MIB)), box.source("s", bytes_of(1000))]
    fill(box, *files)
    _checkpoint(box)
    box.storage.close()
    index = box.config.index_dir / "data.mdb"
    flip(index, index.stat().st_size // 2)
    box._open("5a7dbb1c-boot")
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    gets = len(box.store.reads)
    assert reader.find(files[0].content, 0, 1) is None
    assert [read(box, file, reader) for file in files] == [data_of(box, file) for file in files]
    assert len(box.store.reads) == gets, "nothing was lost"
    reader.close()
    assert check(box, repair=True) is not None
    assert check(box) == []


@pytest.mark.parametrize("kept_bytes", [0, 100, 8192, 5 * 4096])
def test_regression_an_index_that_a_power_loss_has_cut_off_is_not_mapped(box: Box, kept_bytes: int) -> None:
    """Whoever reads behind the end of a mapped file is killed (SIGBUS): no worker could ever start again."""
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file)
    _checkpoint(box)
    box.storage.index._env.close()
    box.storage.ledger.close()
    os.truncate(box.config.index_dir / "data.mdb", kept_bytes)
    box._open("after a power loss")
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert read(box, file, reader) == data_of(box, file)
    assert len(box.store.reads) == 1
    reader.close()


@pytest.mark.parametrize("what", ["index", "ledger"])
def test_a_folder_that_was_removed(box: Box, what: str) -> None:
    files = [box.source("a", bytes_of(2 * MIB)), box.source("s", bytes_of(1000))]
    fill(box, *files)
    _checkpoint(box)
    box.storage.close()
    shutil.rmtree(box.config.cache_dir / what)
    box._open("5a7dbb1c-boot")
    gets = len(box.store.reads)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    assert [read(box, file, reader) for file in files] == [data_of(box, file) for file in files]
    assert len(box.store.reads) == gets
    reader.close()


def test_both_damaged_is_an_empty_cache(box: Box) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file)
    _checkpoint(box)
    box.storage.close()
    for what in ("index", "ledger"):
        (box.config.cache_dir / what / "data.mdb").write_bytes(b"nonsense" * 10_000)
    box._open("5a7dbb1c-boot")
    assert not box.has(file)
    fill(box, file)
    assert check(box) == []


def _checkpoint(box: Box) -> None:
    box.storage.tidy(float("inf"))
    checkpoint = box.storage.ledger.begin()
    box.storage.ledger.take(checkpoint, [tier.config.path for tier in box.storage.tiers])
