"""Power loss: the cache lies on an ext4 of its own in a file, and a copy of that file, taken at some moment, is the
disk as the next start finds it: with what was synced, and without what the kernel still had in memory."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cache_box import Box, bytes_of, compactor_of
from check import check_storage

from forebay.cacheruntime.catalogue import Catalogue, read_summary
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.config import MIB, Medium
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.snapshot_history import stored_snapshots
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.worker.check import Check
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.keeper import Keeper
from forebay.cacheruntime.worker.mover import Mover

_MEDIA = (Medium.SSD, Medium.HDD)

_HEADS_BYTES = 2 * 4096
"""Of an LMDB file: the two pages that say where all others are."""

_WAIT_WRITE_WAIT = 1 | 2 | 4
"""Of sync_file_range(2)."""

_TOOLS = ("mkfs.ext4", "mount", "umount", "losetup")


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator["Disk"]:
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in _TOOLS):
        pytest.skip("needs root and the tools of ext4 and loop devices")
    made = Disk(tmp_path)
    if not made.mount(made.image):
        pytest.skip("loop devices cannot be mounted here")
    yield made
    made.umount()


class Disk:
    """An ext4 in a file. The kernel writes to it when it is told to, or when 30 s have gone."""

    def __init__(self, root: Path) -> None:
        self.root = root / "disk"
        self.root.mkdir()
        self.image = root / "image"
        self.image.touch()
        os.truncate(self.image, 160 << 20)
        made = _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", self.image)
        assert not made.returncode, made.stderr

    def mount(self, image: Path) -> bool:
        return not _run("mount", "-o", "loop,commit=300", image, self.root).returncode

    def umount(self) -> None:
        if _run("umount", self.root).returncode:
            _run("umount", "-l", self.root)  # a test that failed has files open there

    def cut_power(self, name: str) -> Path:
        """The disk as it is at this moment."""
        copy = self.image.with_name(name)
        shutil.copyfile(self.image, copy)
        return copy


def _fill(box: Box, *files: SourceFile) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size, 0)

    box.run(test)


def _checkpoint(box: Box) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            filler = Filler(box.storage, box.config.fill, nursery)
            await Keeper(box.storage, filler.verifier).checkpoint()

    trio.run(main)


def _clean_up(box: Box) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            filler = Filler(box.storage, box.config.fill, nursery)
            await Keeper(box.storage, filler.verifier)._clean_up()

    trio.run(main)


def _files(box: Box, name: str) -> list[SourceFile]:
    seed = sum(name.encode())
    large = [box.source(f"{name}l{n}", bytes_of(2 * MIB + n, seed + n)) for n in range(2)]
    return large + [box.source(f"{name}s{n}", bytes_of(20_000 + n, seed + n)) for n in range(5)]


@pytest.mark.slow
@pytest.mark.semantics("D5")
def test_power_loss(disk: Disk) -> None:
    moments: list[tuple[Path, set[str]]] = []
    box = Box(disk.root, 60 * MIB, 60 * MIB, boot="first boot", media=_MEDIA)
    box.last_used = {}
    first, second, third = (_files(box, name) for name in "abc")
    safe: set[str] = set()

    def cut(name: str) -> None:
        moments.append((disk.cut_power(name), set(safe)))

    _fill(box, *first)
    cut("before any checkpoint")
    _checkpoint(box)
    safe |= {file.path for file in first}
    cut("after the first")
    _fill(box, *second)
    cut("with newer fills")
    box.storage.drop_file(first[0].content)
    safe.discard(first[0].path)
    box.storage.tidy(float("inf"))
    _fill(box, first[0])
    cut("dropped and begun anew")
    _checkpoint(box)
    safe |= {file.path for file in first + second}
    trio.run(Mover(box.storage).move, first[1].content, box.storage.tiers[1])
    trio.run(Mover(box.storage).move, PackNumber(1), box.storage.tiers[1])
    safe -= {
        file.path for file in first + second if file.size < MIB
    }  # the pack's old place is gone, its new one not safe
    safe.discard(first[1].path)
    cut("moved")
    _checkpoint(box)
    safe |= {file.path for file in first + second}
    cut("moved, and a checkpoint")
    _fill(box, *third)
    box.storage.evict(file.content for file in second)
    safe -= {file.path for file in second}
    cut("evicted")
    box.storage.evict([first[2].content])  # more than half of what is in its pack
    safe.discard(first[2].path)
    _checkpoint(box)
    safe |= {file.path for file in third}
    compactor = compactor_of(box.storage)
    assert trio.run(compactor.step)
    cut("a pack is compacted")
    assert not trio.run(compactor.step)
    _checkpoint(box)
    assert trio.run(compactor.step)
    cut("and the old one is gone")
    box.storage.close()
    disk.umount()
    for image, kept in moments:
        assert disk.mount(image), image
        try:
            _after(disk, kept)
        finally:
            disk.umount()


def _write_out(path: Path, length: int) -> None:
    """Have the kernel write the head of a file to the disk, and nothing else of it: it writes in any order."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = ctypes.CDLL(None, use_errno=True).sync_file_range(
            descriptor, ctypes.c_int64(0), ctypes.c_int64(length), _WAIT_WRITE_WAIT
        )
        assert not done, os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)


@pytest.mark.slow
def test_a_whole_catalogue_that_is_changed(disk: Disk) -> None:
    """Its commits are not synced: what the disk has in that moment is not taken for a snapshot."""

    def entries(version: str) -> list[Entry]:
        return [Entry(f"d{n % 50}/f{n}", Kind.FILE, n, 1, version) for n in range(5000)]

    def whole() -> list[int]:
        return [snapshot.number for snapshot in stored_snapshots(disk.root, {}) if snapshot.complete]

    writer = CatalogueWriter(disk.root / "1", "fake://source")
    writer.add(entries("1"))
    writer.finish()
    moments = [(disk.cut_power("whole"), "1")]
    with writer.changing():
        writer.remove(b"d1/f1")
        writer.add(entries("2"))
        _write_out(disk.root / "1" / "data.mdb", _HEADS_BYTES)
        moments.append((disk.cut_power("being changed"), ""))
        assert whole() == []
    moments.append((disk.cut_power("changed"), "2"))
    writer.close()
    writer = CatalogueWriter(disk.root / "1", "fake://source")
    _write_out(disk.root / "1" / "data.mdb", _HEADS_BYTES)
    moments.append((disk.cut_power("opened again"), "2"))
    writer.close()
    disk.umount()
    for image, version in moments:
        assert disk.mount(image), image
        try:
            assert whole() == ([1] if version else []), image
            if version:
                catalogue = Catalogue(disk.root / "1")
                found = {node.version for node in catalogue.files_below(ROOT_NODE)}
                assert found == {version}
                assert catalogue.totals() == read_summary(disk.root / "1")
                catalogue.close()
        finally:
            disk.umount()


def _after(disk: Disk, kept: set[str]) -> None:
    box = Box(disk.root, 60 * MIB, 60 * MIB, boot="another boot", media=_MEDIA)
    files = [file for name in "abc" for file in _files(box, name)]
    _clean_up(box)
    made = Check(box.storage, deep=True, repair=False)
    trio.run(made.run)
    found = {finding.kind for finding in made.progress.findings}
    assert found <= {"seal", "missing", "data", "size"}, "no orphan, and the index adds up"
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    for file in files:
        reads = len(box.store.reads)
        for _ in range(4):
            place = reader.find(file.content, 0, file.size)
            if place is not None:
                break
            box.run(lambda filler, file=file: filler.fill(file, 0, file.size, 0), checked=False)  # type: ignore[misc]
        assert place is not None
        assert os.pread(place.descriptor, file.size, place.base) == box.store.files[file.path][0]
        if file.path in kept:
            assert len(box.store.reads) == reads, f"{file.path} was safe"
    reader.close()
    box.storage.tidy(float("inf"))
    repair = Check(box.storage, deep=True, repair=True)
    trio.run(repair.run)
    check_storage(box.storage)
    box.storage.close()
