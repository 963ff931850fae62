"""Making packs smaller in the background: the files that still live in a mostly dead pack are appended to another one.

Whoever reads them waits for nothing: each batch is in the new place in the transaction that takes it from the old one,
and a descriptor of the old pack stays good. A kill between two batches leaves two packs, each with what it has; the
next start goes on. The old one goes when a checkpoint knows the new place: a power loss before finds the files there.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio
import xxhash

from forebay.cacheruntime.config import MIB, Medium
from forebay.cacheruntime.index import Pack, PackNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.verify import Pace, packed_entries

_QUIET_S = 2.0
"""An eviction by command may not be over yet while files of a pack have been dropped within this time."""

_AGAIN_S = 60.0
"""Until another try with a pack for which there was no room, or whose disk failed."""

_BATCH_BYTES = MIB
_BATCH_FILES = 64
"""Appended in one go, while all others wait: some 3 ms."""

_Entry = tuple[ContentId, int, int, int]
"""Content, offset, size, XXH3-64."""


class Compactor:
    """Packs that `Storage.thin` names, one at a time. For the worker's event loop."""

    def __init__(
        self,
        storage: Storage,
        pace: Pace,
        thread: trio.CapacityLimiter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: storage; pace: bounds the rate of reading; thread: to read in; clock: seconds."""
        self._storage = storage
        self._pace = pace
        self._thread = thread
        self._clock = clock
        self._again_at: dict[PackNumber, float] = {}
        self._emptied: dict[PackNumber, tuple[int, int]] = {}
        """Packs that may go: the checkpoints begun by then, and the files that were left, whose records are damaged."""

    async def step(self) -> bool:
        """Compact or remove one pack, if there is one; False: there is not."""
        now = self._clock()
        for number, since in list(self._storage.thin.items()):
            pack = self._storage.index.reader.pack(number)
            if pack is None or not pack.is_thin:
                for known in (self._storage.thin, self._again_at, self._emptied):
                    known.pop(number, None)
            elif number in self._emptied:
                if self._may_go(pack) and self._storage.drop_pack(pack):
                    return True
            elif now - since >= _QUIET_S and now >= self._again_at.get(number, now):
                if await self._compact(pack):
                    return True
                self._again_at[number] = self._clock() + _AGAIN_S
        return False

    def _may_go(self, pack: Pack) -> bool:
        begun, left = self._emptied[pack.number]
        if pack.live_files != left:
            del self._emptied[pack.number]  # it was open again meanwhile
            return False
        in_memory = self._storage.tier(pack.tier).config.medium is Medium.MEM
        return in_memory or self._storage.ledger.taken > begun

    async def _compact(self, pack: Pack) -> bool:
        """False: some of its files are still there."""
        tier = self._storage.tier(pack.tier)
        if tier.room_bytes() < pack.live_bytes:
            return False
        self._storage.close_pack(pack.number)
        reader = self._storage.index.reader
        contents, places = await trio.to_thread.run_sync(packed_entries, reader, pack, limiter=self._thread)
        entries = [(content, *place) for content, place in zip(contents, places, strict=True)]
        path = self._storage.item_path(tier, pack.number)
        while entries:
            batch = _next_batch(entries)
            try:
                read = await trio.to_thread.run_sync(partial(_read, path, batch, self._pace), limiter=self._thread)
            except FileNotFoundError:
                return False  # it was dropped, or moved to another tier
            except OSError as error:
                tier.failed(error)
                return False
            for content in [content for content, data in read if data is None]:
                cached = reader.find(content)
                if cached is not None and cached.pack == pack.number:
                    self._storage.found_wrong(content)
            if not self._storage.repack(pack, [(content, data) for content, data in read if data is not None]):
                return False
        now = reader.pack(pack.number)
        if now is not None and (not now.live_files or not contents):
            self._emptied[pack.number] = self._storage.ledger.begun, now.live_files
            return True
        return False  # files were appended before it was closed


def _next_batch(entries: list[_Entry]) -> list[_Entry]:
    """Take it from the head of a list."""
    size = count = 0
    for _, _, each, _ in entries[:_BATCH_FILES]:
        if count and size + each > _BATCH_BYTES:
            break
        size += each
        count += 1
    batch = entries[:count]
    del entries[:count]
    return batch


def _read(path: Path, entries: list[_Entry], pace: Pace) -> list[tuple[ContentId, bytes | None]]:
    """In a thread: files of a pack; None for one whose bytes are not what was written.

    Raises:
        OSError: from the disk.
    """
    found: list[tuple[ContentId, bytes | None]] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for content, offset, size, checksum in entries:
            pace.passes(size)
            data = os.pread(descriptor, size, offset)
            found.append((content, data if xxhash.xxh3_64_intdigest(data) == checksum else None))
    finally:
        os.close(descriptor)
    return found
