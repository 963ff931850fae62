"""Moving files and packs between tiers in the background: down when a tier is full, up what is read.

A reader never waits for a move: until it has ended, the file is read at its old place. Bytes are compared with their
checksums on the way; a damaged file is dropped instead.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import trio

from forebay.cacheruntime.blocks import SUM_BYTES, Span, is_what_was_written
from forebay.cacheruntime.index import Extent, Seal
from forebay.cacheruntime.tiers import file_path, pack_path
from forebay.cacheruntime.worker.space import Item, Space
from forebay.cacheruntime.worker.storage import DROPPED_AT_ONCE, Storage
from forebay.cacheruntime.worker.tier import Tier
from forebay.cacheruntime.worker.verify import Pace, packed_entries
from forebay.cacheruntime.worker.writes import seal_of, write_all

log = logging.getLogger(__name__)

PRESSED_S = 10.0
"""A tier is under pressure when something was put there within this time."""

_LOOKED_AT_ONCE = 256
"""Files that were read, some 5 us each."""


class TargetFailed(OSError):
    """Of the place that something was moved to."""


class Damaged(Exception):
    """What was to be moved is not what was written."""


class Mover:
    """Decides what moves, and moves it, one at a time. For the worker's event loop."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self.pace = Pace(storage.config.move_bytes_s, time.monotonic, time.sleep)
        self.thread = trio.CapacityLimiter(1)
        self._draining: set[int] = set()
        """Tiers that went over their high watermark, until they are at the low one."""
        self.moved_files = self.moved_bytes = 0
        """Packs count as files."""

    async def step(self) -> bool:
        """Move one thing, if there is one to move; False: there is not."""
        return await self._demote_one() or await self._promote_one()

    async def _demote_one(self) -> bool:
        """From a tier over its high watermark that is being filled, to the next one with room; of what nobody uses,
        what has no place below goes altogether, so that those who come need not wait for room."""
        tiers = self._storage.tiers
        for position, tier in enumerate(tiers):
            if tier.over_high and not tier.is_down and self._clock() - tier.put_at <= PRESSED_S:
                self._draining.add(tier.number)
            if tier.number not in self._draining:
                continue
            below = [lower for lower in tiers[position + 1 :] if lower.config.medium is not tier.config.medium]
            dropped = 0
            for space, idle in self._givers():
                for item, size in self._storage.rooms.victims(space, tier):
                    if tier.over_low_bytes() <= self._storage.departed.pending_bytes(tier):
                        self._draining.discard(tier.number)
                        return False
                    target = next((lower for lower in below if lower.room_bytes() >= size), None)
                    if target is not None:
                        return await self.move(item, target)
                    if idle:
                        if not self._storage.drop(item):
                            return False
                        dropped += 1
                        if dropped >= DROPPED_AT_ONCE:
                            await trio.lowlevel.checkpoint()
                            return True
            self._draining.discard(tier.number)  # there is nothing that may go
        return False

    def _givers(self) -> list[tuple[Space, bool]]:
        """Datasets that may lose a place in a fast tier, and whether nobody uses them."""
        unused = self._storage.rooms.idle_spaces()
        used = [space for space in self._storage.spaces if space not in unused and space.policy.replaces]
        return [(space, True) for space in unused] + [(space, False) for space in used]

    async def _promote_one(self) -> bool:
        """What is read in a slower tier comes into a faster one that has room below its low watermark."""
        tiers = self._storage.tiers
        for position, tier in enumerate(tiers):
            low = int(tier.config.low * tier.config.quota_bytes)
            room = min(low - tier.used_bytes, tier.room_bytes())
            slower = [t for t in tiers[position + 1 :] if t.config.medium is not tier.config.medium and not t.paused]
            if room <= 0 or not slower:
                continue
            numbers = {t.number for t in slower}
            for space in self._storage.spaces:
                if self._storage.idle(space.dataset) is not None:
                    continue
                self._storage.rooms.note_touches(space)
                for looked, item in enumerate(list(space.touched)):
                    if looked % _LOOKED_AT_ONCE == _LOOKED_AT_ONCE - 1:
                        await trio.lowlevel.checkpoint()
                    space.touched.discard(item)
                    where, size = self._place(item)
                    if where in numbers and 0 < size <= room:
                        return await self.move(item, tier)
        return False

    def _place(self, item: Item) -> tuple[int, int]:
        """Tier number and bytes; (0, 0) when it cannot be moved."""
        reader = self._storage.index.reader
        if isinstance(item, bytes):
            cached = reader.find(item)
            if cached is None or cached.pack or item in self._storage.writes:
                return 0, 0
            return cached.tier, cached.cached_bytes()
        pack = reader.pack(item)
        return (pack.tier, pack.length) if pack is not None else (0, 0)

    async def move(self, item: Item, target: Tier) -> bool:
        """Move a file or a pack; False, with nothing changed, when that could not be."""
        self._storage.moving += 1
        try:
            return await (self._move_file(item, target) if isinstance(item, bytes) else self._move_pack(item, target))
        finally:
            self._storage.moving -= 1

    async def _move_file(self, content: Item, target: Tier) -> bool:
        assert isinstance(content, bytes)
        index = self._storage.index
        cached = self._storage.find(content)
        if cached is None or cached.pack or content in self._storage.writes or cached.tier == target.number:
            return False
        if self._storage.is_doubtful(content, cached):
            return False
        size, source = cached.cached_bytes(), self._storage.tier(cached.tier)
        old, new = file_path(source.config.path, content), file_path(target.config.path, content)

        copy = partial(_copy, old, new, cached.size, index.reader.extents(content, cached), self.pace)
        target.take(size)
        seal = await self._copied(content, copy, source, target, size)
        if seal is None:
            return False
        if index.reader.find(content) != cached or content in self._storage.writes:
            self._storage.left_behind(target, content, size)
            return False
        try:
            index.move_file(content, target.number, seal)
        except OSError:
            self._storage.left_behind(target, content, size)
            raise
        self._storage.left_behind(source, content, size)
        self._count(size)
        return True

    async def _move_pack(self, number: Item, target: Tier) -> bool:
        assert isinstance(number, int)
        index = self._storage.index
        pack = index.reader.pack(number)
        if pack is None or pack.tier == target.number or self._storage.pack_in_doubt(pack):
            return False
        self._storage.close_pack(number)
        pack = index.reader.pack(number)
        if pack is None:
            return False
        source = self._storage.tier(pack.tier)
        old, new = pack_path(source.config.path, number), pack_path(target.config.path, number)
        _, entries = packed_entries(index.reader, pack)  # what no file has any more is left out
        files = (Extent(Span(at, at + size), checksum.to_bytes(SUM_BYTES, "big")) for at, size, checksum in entries)
        copy = partial(_copy, old, new, pack.length, files, self.pace)
        target.take(pack.length)
        seal = await self._copied(number, copy, source, target, pack.length)
        if seal is None:
            return False
        now = index.reader.pack(number)
        if now is None or (now.length, now.seal, now.tier) != (pack.length, pack.seal, pack.tier):
            self._storage.left_behind(target, number, pack.length)
            return False
        try:
            index.move_pack(number, target.number, seal)
        except OSError:
            self._storage.left_behind(target, number, pack.length)
            raise
        self._storage.left_behind(source, number, pack.length)
        self._count(pack.length)
        return True

    async def _copied(self, item: Item, copy: Callable[[], Seal], source: Tier, target: Tier, size: int) -> Seal | None:
        """Copy with room taken in the target; None: it failed, and nothing is left of it."""
        try:
            self._storage.index.doom(target.number, item)
        except OSError:
            target.give_back(size)
            raise
        try:
            return await trio.to_thread.run_sync(copy, limiter=self.thread)
        except Damaged:
            self._storage.suspect(item)
        except OSError as error:
            log.warning("a move from %s to %s failed: %s", source.config.path, target.config.path, error)
            (target if isinstance(error, TargetFailed) else source).failed(error)
        self._storage.left_behind(target, item, size)
        return None

    def _count(self, size: int) -> None:
        self.moved_files += 1
        self.moved_bytes += size


def _create(path: Path, size: int) -> int:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(descriptor, size)
    return descriptor


def _copy(old: Path, new: Path, length: int, extents: Iterable[Extent], pace: Pace) -> Seal:
    """Copy pieces of a file to their places in another one; what is between them is a hole there. In a thread.

    Args:
        old, new: from, to.
        length: of the new file.
        extents: what is copied.
        pace: bounds the rate.

    Raises:
        Damaged: a piece is not what was written. OSError: TargetFailed when it is the new place's.
    """
    source = os.open(old, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _Target(new, length) as target:
            for span, sums in extents:
                pace.passes(span.size)
                data = os.pread(source, span.size, span.start)
                if len(data) != span.size or not is_what_was_written(data, sums):
                    raise Damaged
                target.write(data, span.start)
            return target.seal()
    finally:
        os.close(source)


class _Target:
    """The file at the new place; its errors are told from those of the old one."""

    def __init__(self, path: Path, size: int) -> None:
        try:
            self._descriptor = _create(path, size)
        except OSError as error:
            raise TargetFailed(error.errno, error.strerror) from error

    def write(self, data: bytes, offset: int) -> None:
        try:
            write_all(self._descriptor, [memoryview(data)], offset)
        except OSError as error:
            raise TargetFailed(error.errno, error.strerror) from error

    def seal(self) -> Seal:
        return seal_of(os.fstat(self._descriptor))

    def __enter__(self) -> "_Target":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
