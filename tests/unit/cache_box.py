"""A cache in a temporary folder for tests: storage, filler and a fake store, checked at the end."""

import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from check import check_storage
from fake_store import FakeStore
from hypothesis import HealthCheck, settings

from forebay.cacheruntime.blocks import Span, block_span
from forebay.cacheruntime.config import CacheConfig, FillConfig, Medium, TierConfig
from forebay.cacheruntime.keys import ContentId, DatasetId, dataset_id
from forebay.cacheruntime.tiers import file_path
from forebay.cacheruntime.worker.compaction import Compactor
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.storage import Storage, Target
from forebay.cacheruntime.worker.verify import Pace

BOOT = "5a7dbb1c-boot"
RUN_S = 30.0
"""A test that takes longer hangs."""

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the model tests put their folders: thousands of commits and syncs need no disk."""

settings.register_profile(
    "quick",
    deadline=None,
    max_examples=40,
    stateful_step_count=25,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("soak", deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))


def bytes_of(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, so that a block in the wrong place shows."""
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def whole_blocks(size: int, checksums: Mapping[int, int]) -> dict[Span, bytes]:
    """Blocks of a file of `size` bytes with their checksums, as `IndexWriter.add_spans` takes them."""
    return {block_span(size, number): value.to_bytes(8, "big") for number, value in checksums.items()}


def compactor_of(storage: Storage, later_s: float = 10.0) -> Compactor:
    """One that believes that it is so much later: what was evicted by command is long over."""
    pace = Pace(0, time.monotonic, time.sleep)
    return Compactor(storage, pace, trio.CapacityLimiter(1), lambda: time.monotonic() + later_s)


class Box:
    """One cache folder with its worker's storage."""

    def __init__(
        self,
        root: Path,
        *quotas: int,
        fill: FillConfig | None = None,
        boot: str = BOOT,
        media: tuple[Medium, ...] = (Medium.MEM, Medium.SSD, Medium.HDD),
    ) -> None:
        """Tiers tier0, tier1... in `root` with these quotas in bytes (one of 1 GiB when none is given)."""
        tiers = tuple(
            TierConfig(media[number % len(media)], root / f"tier{number}", quota)
            for number, quota in enumerate(quotas or (1 << 30,))
        )
        fill = fill or FillConfig(deadline_s=RUN_S)
        self.config = CacheConfig(root / "cache", tiers, root / "run", free_reserve_ratio=0.0, fill=fill)
        self.config.cache_dir.mkdir(parents=True, exist_ok=True)
        self.store = FakeStore()
        self.last_used: dict[DatasetId, float] = {}
        """Datasets that nobody uses, and since when."""
        self._open(boot)
        self.filler: Filler

    def _open(self, boot: str) -> None:
        self.storage = Storage(self.config, boot)
        self.storage.idle = lambda dataset: self.last_used.get(dataset)

    def kill(self, boot: str = BOOT) -> None:
        """Let go of everything as `kill -9` would, and start again; with another boot id, as after a power loss."""
        self.storage._packs.close_all()
        self.storage.departed.close()
        self.storage.index._env.close()
        self.storage.ledger.close()
        self.storage.touch.close()
        self._open(boot)

    def target(self, file: SourceFile) -> Target:
        return Target(file.content, file.size, file.dataset, os.fsencode(file.path))

    @property
    def dataset(self) -> DatasetId:
        return dataset_id(self.store.url)

    def source(self, path: str, data: bytes, version: str = "v1", store: FakeStore | None = None) -> SourceFile:
        """Put a file into the store."""
        store = store or self.store
        store.put(path, data, version)
        return SourceFile(dataset_id(store.url), store, path, len(data), version)

    def restart(self, boot: str = BOOT, **changes: Any) -> None:
        """Stop the storage in order and open it again."""
        self.storage.close()
        self.config = replace(self.config, **changes)
        self._open(boot)

    def run(self, test: Callable[[Filler], Awaitable[Any]], *, clock: Any = None, checked: bool = True) -> Any:
        """Run an async test with a filler; afterwards nothing may be in flight, and (if `checked`) all must agree."""

        async def main() -> Any:
            with trio.fail_after(RUN_S):
                async with trio.open_nursery() as nursery:
                    self.filler = Filler(self.storage, self.config.fill, nursery)
                    result = await test(self.filler)
            assert self.filler._flights == {}, "a block is in flight for ever"
            return result

        result = trio.run(main, clock=clock)
        if checked:
            check_storage(self.storage)
        return result

    def read(self, file: SourceFile, start: int, end: int) -> bytes | None:
        """What a reader gets from the cache without the worker, or None for a miss."""
        cached = self.storage.index.reader.find(file.content)
        if cached is None or not self.storage.index.reader.has(file.content, cached, start, end):
            return None
        path = self.storage.path_of(file.content, cached)
        assert path is not None
        with open(path, "rb") as opened:
            opened.seek(cached.offset + start)
            return opened.read(end - start)

    def has(self, file: SourceFile) -> bool:
        cached = self.storage.index.reader.find(file.content)
        return cached is not None and cached.complete

    def tier_file(self, content: ContentId) -> Path:
        cached = self.storage.index.reader.find(content)
        assert cached is not None
        return file_path(self.storage.tier(cached.tier).config.path, content)
