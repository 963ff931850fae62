"""The filler against a dict of source bytes: random fills and evictions at once, with a source and a disk that fail.

Blocks are 4 KiB here, so that thousands fit into a test.
"""

import errno
import random
import tempfile
from pathlib import Path
from unittest.mock import patch

import trio
from cache_box import Box, bytes_of
from fake_store import FakeStore
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.config import FillConfig
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.errors import SourceStale, SourceUnavailable
from forebay.cacheruntime.worker import writes as writes_module
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler

_BLOCK = 4096
_PIECE = 256
_FILL = FillConfig(
    small_file_bytes=_BLOCK, part_bytes=2 * _BLOCK, window_max_bytes=8 * _BLOCK, parallel_gets=6, deadline_s=20.0
)
_SIZES = st.sampled_from([1, 100, _BLOCK - 1, _BLOCK, _BLOCK + 1, 3 * _BLOCK, 7 * _BLOCK + 77, 12 * _BLOCK])
_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["fill"] * 8 + ["background", "drop", "drop-pack", "idle", "fault", "break"]),
        st.integers(0, 9),
        st.floats(0, 1),
        st.floats(0, 1),
        st.integers(0, 8),
    ),
    min_size=1,
    max_size=40,
)


@given(
    sizes=st.lists(_SIZES, min_size=2, max_size=10),
    quota=st.integers(1, 40),
    pins=st.booleans(),
    disk=st.sampled_from([0.0, 0.0, 0.05]),
    operations=_OPERATIONS,
    seed=st.integers(0, 999),
)
def test_every_cached_byte_is_the_source_s(
    sizes: list[int],
    quota: int,
    pins: bool,
    disk: float,
    operations: list[tuple[str, int, float, float, int]],
    seed: int,
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("forebay.cacheruntime.blocks.BLOCK_BYTES", _BLOCK),
        patch("forebay.cacheruntime.blocks.PIECE_BYTES", _PIECE),
        patch("forebay.cacheruntime.blocks.LEAST_BYTES", 4 * _PIECE),
        patch("forebay.cacheruntime.worker.fill.BLOCK_BYTES", _BLOCK),
        patch("forebay.cacheruntime.worker.fill.LEAST_BYTES", 4 * _PIECE),
        patch("forebay.cacheruntime.worker.packs.PACK_BYTES", 5000),
        patch("forebay.cacheruntime.worker.storage.PACK_BYTES", 5000),
        patch("forebay.cacheruntime.worker.verify.BLOCK_BYTES", _BLOCK),
        patch("forebay.cacheruntime.worker.room.BLOCK_BYTES", _BLOCK),
        patch("forebay.cacheruntime.worker.writes.write_all", _disk(disk, seed)),
        patch("forebay.cacheruntime.worker.packs.write_all", _disk(disk, seed + 1)),
    ):
        _Trial(Path(folder), sizes, quota, pins, operations).run()


def _disk(share: float, seed: int) -> object:
    """A disk that has no room for that share of the writes."""
    chance, real = random.Random(seed), writes_module.write_all

    def write(descriptor: int, pieces: list[memoryview], offset: int) -> None:
        if chance.random() < share:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, pieces, offset)

    return write


class _Trial:
    """One run."""

    def __init__(self, folder: Path, sizes: list[int], quota: int, pins: bool, operations: list[tuple]) -> None:  # type: ignore[type-arg]
        self.box = Box(folder, quota * _BLOCK, 3 * quota * _BLOCK, fill=_FILL)
        self.stores = [FakeStore(f"fake://{n}", pins_version=pins, piece_bytes=1500) for n in range(2)]
        self.files = [
            self.box.source(f"f{n}", bytes_of(size, n), store=self.stores[n % 2]) for n, size in enumerate(sizes)
        ]
        self.operations = operations

    def run(self) -> None:
        self.box.run(self._all)
        reader = ContentReader(self.box.storage.index.reader, self.box.storage.touch)
        try:
            for file in self.files:
                self._check(file)
        finally:
            reader.close()
            self.box.storage.close()

    async def _all(self, filler: Filler) -> None:
        async with trio.open_nursery() as nursery:
            for name, pick, start, length, window in self.operations:
                file = self.files[pick % len(self.files)]
                if name in ("fill", "background"):
                    begin = int(start * (file.size - 1))
                    size = 1 + int(length * (file.size - begin - 1))
                    nursery.start_soon(self._fill, filler, file, begin, size, window * _BLOCK, name == "background")
                else:
                    self._disturb(name, file, window)
                if window % 2:
                    await trio.lowlevel.checkpoint()
                    self._check(file)

    async def _fill(
        self, filler: Filler, file: SourceFile, start: int, length: int, window: int, background: bool
    ) -> None:
        try:
            got = await filler.fill(file, start, length, window, background=background)
        except (SourceStale, SourceUnavailable):
            return
        data = file.store.files[file.path][0][start : start + length]  # type: ignore[attr-defined]
        # Past the tiers the first 8 blocks are enough.
        assert got is None or got == data[: max(8 * _BLOCK - start % _BLOCK, 0)]
        self._check(file)

    def _disturb(self, name: str, file: SourceFile, number: int) -> None:
        storage = self.box.storage
        cached = storage.index.reader.find(file.content)
        store = file.store
        assert isinstance(store, FakeStore)
        if name == "drop" and cached is not None and not cached.pack:
            storage.drop_file(file.content)
        elif name == "drop-pack":
            for pack in storage.index.reader.packs()[:1]:
                storage.drop_pack(pack)
        elif name == "idle":
            if file.dataset in self.box.last_used:
                del self.box.last_used[file.dataset]
            else:
                self.box.last_used[file.dataset] = float(number)
        elif name == "fault":
            store.faults.append(SourceUnavailable("refused"))
        elif name == "break":
            store.breaks.append((number * 1000, SourceUnavailable("broke off")))

    def _check(self, file: SourceFile) -> None:
        for tier in self.box.storage.tiers:
            assert 0 <= tier.used_bytes <= tier.config.quota_bytes
        data = file.store.files[file.path][0]  # type: ignore[attr-defined]
        for start in range(0, file.size, _PIECE):
            end = min(start + _PIECE, file.size)
            assert self.box.read(file, start, end) in (None, data[start:end])
