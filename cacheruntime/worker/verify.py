"""Comparing cached bytes with their checksums: what a reader waits for, and what is found at rest.

The functions run in threads; `Verifier` is for the worker's event loop.
"""

import errno
import logging
import mmap
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import trio
import xxhash

from forebay.cacheruntime.blocks import BLOCK_BYTES, blocks_of, is_what_was_written
from forebay.cacheruntime.index import Cached, Extent, Index, Pack, PackNumber, Seal
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import is_dropped, pack_path
from forebay.cacheruntime.worker.index_writer import IndexUnwritable
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.writes import seal_of

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_PATIENCE_S = 5.0
"""For a file that is verified as a whole: past that, what is missing is read past the tiers. 30 GiB that are in memory,
or 1 GiB from a slow disk."""

AT_ONCE_BYTES = 8 * BLOCK_BYTES
"""Files up to this are verified before a reader goes on; of larger ones only the range that he wants."""


_BELIEVED_AT_ONCE = 256
"""Records, some 5 us each."""


class Verdict(NamedTuple):
    """What became of one file."""

    seal: Seal
    """Of the file as it was looked at."""
    bad: list[int]
    """Blocks (of a file of its own, once for each run of pieces) or positions in `entries` (of a pack) that are not
    what was written."""
    error: OSError | None = None
    """The disk could not read all of it."""


class Pace:
    """Lets bytes pass at a rate. One thread."""

    def __init__(self, bytes_s: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        """Args: bytes_s: 0 for no bound; clock: seconds; sleep: waits."""
        self._bytes_s = bytes_s
        self._clock = clock
        self._sleep = sleep
        self._due = clock()

    def passes(self, size: int) -> None:
        """Wait until `size` bytes may go on."""
        if not self._bytes_s:
            return
        now = self._clock()
        self._due = max(self._due, now - 0.1) + size / self._bytes_s
        if self._due > now:
            self._sleep(self._due - now)


def verify_file(
    path: Path, size: int, extents: Iterable[Extent], pace: Pace | None = None, direct: bool = False
) -> Verdict:
    """Compare a file of its own with the checksums of what is cached of it.

    Args:
        path: the tier file.
        size: of the source file, in bytes.
        extents: what is to be compared, of `Index.extents`.
        pace: bounds the rate.
        direct: read from the disk, not from memory, where the file system allows it.
    """
    try:
        descriptor = _open(path, direct)
    except OSError as error:
        return Verdict(Seal(0, 0), [0], None if isinstance(error, FileNotFoundError) else error)
    try:
        before = os.fstat(descriptor)
        if not _is_ours(before) or before.st_size != size:
            return Verdict(seal_of(before), [0])
        bad = []
        buffer = mmap.mmap(-1, BLOCK_BYTES)
        for span, sums in extents:
            if pace is not None:
                pace.passes(span.size)
            try:
                data = _read(descriptor, buffer, span.start, span.size)
            except OSError as error:
                return Verdict(seal_of(before), [span.block], error)
            if len(data) != span.size or not is_what_was_written(data, sums):
                bad.append(span.block)
        after = os.fstat(descriptor)
        if not is_dropped(after) and seal_of(after) != seal_of(before):
            return Verdict(seal_of(before), bad or [0])
        return Verdict(seal_of(before), bad)
    finally:
        os.close(descriptor)


def read_verified(descriptor: int, extents: Iterable[Extent], start: int, end: int) -> bytes | None:
    """[start, end) of a file of its own, compared with its checksums; None when it is not right, or not all there.

    Args:
        descriptor: of the tier file.
        extents: of all blocks that the range touches.
        start, end: in bytes.

    Raises:
        OSError: from reading.
    """
    pieces, at = [], start
    for span, sums in extents:
        if span.end <= at or span.start >= end:
            continue
        data = os.pread(descriptor, span.size, span.start)
        if span.start > at or not is_what_was_written(data, sums):
            return None
        pieces.append(data[at - span.start : end - span.start])
        at = span.end
    return b"".join(pieces) if at >= end else None


def verify_packed(
    path: Path, entries: Iterable[tuple[int, int, int]], pace: Pace | None = None, direct: bool = False
) -> Verdict:
    """Compare files of a pack with their checksums.

    Args:
        path: the pack.
        entries: offset, size and checksum of each.
        pace, direct: see `verify_file`.
    """
    try:
        descriptor = _open(path, direct)
    except OSError as error:
        everything = list(range(len(list(entries))))
        return Verdict(Seal(0, 0), everything, None if isinstance(error, FileNotFoundError) else error)
    try:
        before = os.fstat(descriptor)
        bad = []
        trouble: OSError | None = None
        buffer = mmap.mmap(-1, 2 * BLOCK_BYTES)
        for position, (offset, size, checksum) in enumerate(entries):
            if pace is not None:
                pace.passes(size)
            try:
                data = _read(descriptor, buffer, offset, size)
            except OSError as error:
                trouble, data = error, memoryview(b"")
            if not _is_ours(before) or len(data) != size or xxhash.xxh3_64_intdigest(data) != checksum:
                bad.append(position)
        return Verdict(seal_of(before), bad, trouble)
    finally:
        os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    """A file of somebody else's can change at any time."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _open(path: Path, direct: bool) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    if direct:
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags)


def _read(descriptor: int, buffer: mmap.mmap, offset: int, size: int) -> memoryview:
    """[offset, offset + size) of a file, cut off at its end; whole pages around it, as O_DIRECT wants them."""
    start = offset - offset % mmap.PAGESIZE
    end = -(-(offset + size) // mmap.PAGESIZE) * mmap.PAGESIZE
    view = memoryview(buffer)[: end - start]
    filled = 0
    while filled < len(view):
        got = os.preadv(descriptor, [view[filled:]], start + filled)
        filled += got
        if not got or filled % mmap.PAGESIZE:
            break
    return view[offset - start : min(offset - start + size, filled)]


class Verifier:
    """Puts doubtful files right: each is verified once, however many wait."""

    def __init__(self, storage: Storage, nursery: trio.Nursery) -> None:
        self._storage = storage
        self._nursery = nursery
        self._under_way: dict[ContentId | PackNumber, trio.Event] = {}
        self._threads = trio.CapacityLimiter(2)
        self.suspected: set[ContentId] = set()
        """Files that a reader found wrong, until they are verified."""

    def doubtful(self, content: ContentId) -> Cached | None:
        """The record of a file that must not be served as it is; None when it may be, or there is none."""
        cached = self._storage.find(content)
        if cached is None:
            self.suspected.discard(content)  # what is brought now is checked as it comes
            return None
        if not (content in self.suspected or self._storage.is_doubtful(content, cached)):
            return None
        return cached

    async def believe(self, content: ContentId, cached: Cached, start: int, end: int) -> bytes | None:
        """Make a doubtful file fit to be read.

        Returns:
            None: look at the index again, where it is sound now or gone. Else the bytes of [start, end), verified, as
            the rest of the file is still being looked at.
        """
        if cached.pack or cached.size <= AT_ONCE_BYTES:
            await self.verify(content)
            return None
        self.verify_soon(content)
        if self._storage.index.reader.has(content, cached, start, end):
            return await self._range(content, cached, start, end)
        # What is missing can be added when the rest is known to be right; a reader does not wait for that for long.
        with trio.move_on_after(_PATIENCE_S):
            await self._ended(content)
        return None

    async def _ended(self, content: ContentId) -> None:
        while (under_way := self._under_way.get(content)) is not None:
            await under_way.wait()

    def verify_soon(self, content: ContentId) -> None:
        """In the background."""
        if content not in self._under_way:
            self._under_way[content] = trio.Event()
            self._nursery.start_soon(self._verify_registered, content)

    async def verify(self, content: ContentId) -> None:
        """Verify one file: it gets its seal, or is dropped. A packed one only itself; its pack follows."""
        under_way = self._under_way.get(content)
        if under_way is not None:
            await under_way.wait()
            return
        self._under_way[content] = trio.Event()
        await self._verify_registered(content)

    async def _verify_registered(self, content: ContentId) -> None:
        try:
            cached = self._storage.find(content)
            if cached is None or content in self._storage.writes:
                return
            if cached.pack:
                await self._verify_packed(content, cached)
            else:
                await self._verify_own(content, cached)
            self.suspected.discard(content)
        except IndexUnwritable as error:
            self._storage.index_failed(error)
        finally:
            self._under_way.pop(content).set()

    async def _verify_own(self, content: ContentId, cached: Cached) -> None:
        path = self._storage.path_of(content, cached)
        if path is None:
            return
        index = self._storage.index.reader
        verdict = await self._in_thread(lambda: verify_file(path, cached.size, index.extents(content, cached)))
        if index.find(content) != cached:
            return  # dropped, moved or verified meanwhile
        self._note(cached, verdict)
        if verdict.bad:
            self._storage.found_wrong(content, len(verdict.bad))
        else:
            self._storage.index.seal_file(content, verdict.seal)

    async def _verify_packed(self, content: ContentId, cached: Cached) -> None:
        path = self._storage.path_of(content, cached)
        if path is None:
            return
        entry = (cached.offset, cached.size, cached.checksum)
        verdict = await self._in_thread(lambda: verify_packed(path, [entry]))
        if self._storage.index.reader.find(content) != cached:
            return
        self._note(cached, verdict)
        if verdict.bad:
            self._storage.found_wrong(content)
        if cached.pack not in self._under_way:
            self._nursery.start_soon(self.verify_pack, cached.pack)

    async def verify_pack(self, number: PackNumber, pace: Pace | None = None) -> None:
        """Verify all files of a pack: the wrong ones are forgotten, and it gets its seal for the others."""
        if number in self._under_way:
            return
        self._under_way[number] = trio.Event()
        try:
            pack = self._storage.index.reader.pack(number)
            if pack is None or not self._storage.pack_in_doubt(pack):
                return
            verdict, contents = await self._look_at_pack(pack, pace)
            if not self._is_what_it_was(pack):
                return
            for position in verdict.bad:
                cached = self._storage.index.reader.find(contents[position])
                if cached is not None and cached.pack == number:
                    self._storage.found_wrong(contents[position])
            if pack.session < self._storage.index.reader.trusted_since:
                # The files' records say it too, or readers would compare them with their checksums at each read.
                for at in range(0, len(contents), _BELIEVED_AT_ONCE):
                    if self._is_what_it_was(pack):
                        self._storage.index.believe_packed(number, contents[at : at + _BELIEVED_AT_ONCE])
                    await trio.lowlevel.checkpoint()
            if self._is_what_it_was(pack):
                self._storage.close_pack(number)  # it takes no more, and would get the seal of its last write
                self._storage.index.seal_pack(number, verdict.seal)
        except IndexUnwritable as error:
            self._storage.index_failed(error)
        finally:
            self._under_way.pop(number).set()

    def _is_what_it_was(self, pack: Pack) -> bool:
        """Whether a pack has the files that it had, or some of them: one that goes does not undo what was looked at."""
        now = self._storage.index.reader.pack(pack.number)
        return now is not None and (now.tier, now.length) == (pack.tier, pack.length)

    async def _look_at_pack(self, pack: Pack, pace: Pace | None) -> tuple[Verdict, list[ContentId]]:
        path = pack_path(self._storage.tier(pack.tier).config.path, pack.number)
        contents, entries = packed_entries(self._storage.index.reader, pack)
        return await self._in_thread(lambda: verify_packed(path, entries, pace)), contents

    async def _range(self, content: ContentId, cached: Cached, start: int, end: int) -> bytes | None:
        """[start, end) of a file of its own, verified block by block; None when it is not cached or not right."""
        path = self._storage.path_of(content, cached)
        if path is None:
            return None
        index = self._storage.index.reader

        def read() -> bytes | None:
            try:
                descriptor = _open(path, False)
            except OSError:
                return None
            try:
                return read_verified(descriptor, index.extents(content, cached, blocks_of(start, end)), start, end)
            except OSError:
                return None
            finally:
                os.close(descriptor)

        data = await self._in_thread(read)
        if data is None and index.find(content) == cached:
            self._storage.found_wrong(content)
        return data

    def _note(self, cached: Cached, verdict: Verdict) -> None:
        if verdict.error is not None:
            number = self._storage.index.reader.tier_of(cached)
            if number is not None:
                self._storage.tier(number).failed(verdict.error)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)


def packed_entries(index: Index, pack: Pack) -> tuple[list[ContentId], list[tuple[int, int, int]]]:
    """The files of a pack in the order of their offsets, with offset, size and checksum."""
    found = []
    for _, content in index.members(pack.dataset, pack.number):
        cached = index.find(content)
        if cached is not None and cached.pack == pack.number:
            found.append((cached.offset, cached.size, cached.checksum, content))
    found.sort()
    return [content for *_, content in found], [(offset, size, checksum) for offset, size, checksum, _ in found]
