"""Reading cached bytes: from a content id to an open descriptor and a position, without asking the worker.

Used by FUSE handlers, the fsspec client and forebay.torch alike.

Nothing is given out that is not known to be what was written: a tier file or pack has the seal that the index says
(`index.py`), or the worker is writing it at this time, or (in a pack) the file's bytes are compared with its checksum
here. Else the answer is as if it were not cached: the worker, when asked for it, puts it right.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import xxhash

from forebay.cacheruntime.index import WRITING, Cached, Index, PackNumber, Seal, TierNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import cached_path, file_path, is_dropped
from forebay.cacheruntime.touch import TouchMap, slot_of

_OPEN_FILES = 1024
"""Descriptors kept open; far below the usual limit of a process."""


class Place(NamedTuple):
    """Where bytes of a file can be read: `descriptor` is good until the reader's next call."""

    descriptor: int
    base: int
    """Position of the file's first byte."""
    slot: int


_Key = ContentId | PackNumber
"""Of an open descriptor: a pack's number for all files in it, else the content. Cheaper to look up than a path."""


_SWEEP_S = 0.1
"""Descriptors are looked at this often at most after the worker has said that something was evicted, and the index,
whether it is still the one that the worker writes, when something is missing in it."""

_TRIES = 16
"""Looks for a file that is dropped and made anew all the time, or that somebody has given the mark of a dropped one."""

_WRONG = 1024
"""Files found damaged that are remembered until they are asked for again."""


class _Opened:
    """One descriptor, shared by all files of a pack."""

    __slots__ = ("descriptor", "seal", "tier")

    def __init__(self, path: Path, tier: TierNumber) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.tier = tier
        """That a record of a file of its own has; 0: a pack."""
        self.seal = WRITING
        """That the file had when the index vouched for it."""


class ContentReader:
    """Finds cached bytes. Not safe for use from several threads at once.

    A descriptor that is open stays good when its file is evicted, so a place that was found once is found again
    without a look at the index, as long as nobody has changed the file. `sweep` gives back the disk space that such
    descriptors hold.
    """

    def __init__(self, index: Index, touch: TouchMap, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._touch = touch
        self._clock = clock
        self._folders: dict[TierNumber, Path] = {}
        self._opened: OrderedDict[_Key, _Opened] = OrderedDict()
        self._complete: OrderedDict[ContentId, tuple[_Opened, int, int]] = OrderedDict()
        self._whole: ContentId | None = None
        """The last file that was found, if it is wholly cached."""
        self._wrong: dict[ContentId, None] = {}
        self._departures = touch.departures
        self._swept_at = self._renewed_at = 0.0
        self._generation = index.generation

    def find(self, content: ContentId, start: int, end: int, *, touch: bool = True) -> Place | None:
        """Where [start, end) of a file is, or None when not all of it is cached.

        Args:
            content: which.
            start, end: in bytes; at most the file's size.
            touch: it is being read now. False: it is only looked for.
        """
        if self._touch.departures != self._departures:
            self._sweep_soon()
        if self._index.generation != self._generation:
            self._start_anew()
        place = self._find(content, start, end, touch)
        if place is None and self._renew_soon():
            place = self._find(content, start, end, touch)
        return place

    def _find(self, content: ContentId, start: int, end: int, touch: bool) -> Place | None:
        known = self._complete.get(content)
        if known is not None:
            opened, base, slot = known
            if os.fstat(opened.descriptor).st_ctime_ns == opened.seal.ctime_ns:
                if touch:
                    self._touch.set(slot)
                return Place(opened.descriptor, base, slot)
            self._forget(self._key_of(opened), opened)
        found = self._find_open(content, start, end)
        if found is None:
            return None
        cached, opened, sealed = found
        slot = slot_of(content, cached.pack)
        if touch:
            self._touch.set(slot)
        self._whole = content if cached.complete else None
        if cached.complete and sealed:
            self._complete[content] = (opened, cached.offset, slot)
            if len(self._complete) > 64 * _OPEN_FILES:
                self._complete.popitem(last=False)
        return Place(opened.descriptor, cached.offset, slot)

    def is_whole(self, content: ContentId) -> bool:
        """Whether the last `find` of it saw the whole file cached."""
        return content == self._whole or content in self._complete

    def release(self, content: ContentId) -> None:
        """Close a file of its own that will not be read again soon: while it is open, evicting it gives no room."""
        opened = self._opened.pop(content, None)
        if opened is not None:
            self._complete.pop(content, None)
            os.close(opened.descriptor)

    def take_wrong(self, content: ContentId) -> bool:
        """Whether a file's bytes proved wrong since the last call: the worker is to be told when it is asked for
        them."""
        return self._wrong.pop(content, self) is None

    def is_wrong(self, content: ContentId) -> None:
        """The caller could not read what `find` has found."""
        self._wrong[content] = None
        if len(self._wrong) > _WRONG:
            del self._wrong[next(iter(self._wrong))]
        known = self._complete.get(content)
        if known is not None:
            self._forget(self._key_of(known[0]), known[0])

    def cached(self, content: ContentId) -> Cached | None:
        """The index's record."""
        return self._index.find(content)

    def has(self, content: ContentId, cached: Cached, start: int, end: int) -> bool:
        """Whether the index, beside a record of its, calls all of [start, end) cached."""
        return self._index.has(content, cached, start, end)

    def folder(self, tier: TierNumber) -> Path | None:
        """Folder of a tier."""
        if tier not in self._folders:
            self._folders = {number: path for number, (_, path) in self._index.tiers().items()}
        return self._folders.get(tier)

    def tier_folder(self, cached: Cached) -> Path | None:
        """Folder of the tier that a record's bytes are in."""
        tier = self._index.tier_of(cached)
        return self.folder(tier) if tier is not None else None

    def whole_file(self, content: ContentId, size: int) -> int | None:
        """A new descriptor of the tier file when it holds the whole source file and nothing else, else None.

        Resources: the caller closes it.
        """
        cached = self._index.find(content)
        if cached is None or not cached.complete or cached.pack:
            return None
        folder = self.folder(cached.tier)
        if folder is None:
            return None
        try:
            descriptor = os.open(file_path(folder, content), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        # Descriptor, then record, then status: see _find_open.
        still = self._index.find(content) == cached
        status = os.fstat(descriptor)
        if not still or is_dropped(status) or status.st_size != size or not self._is_sealed(cached, status):
            os.close(descriptor)
            return None
        self._touch.set(slot_of(content, cached.pack))
        return descriptor

    def sweep(self) -> None:
        """Close descriptors of files that were evicted, so that their space is free again; take another index that the
        worker has put in the place of ours."""
        self._renew_soon()
        self._departures, self._swept_at = self._touch.departures, self._clock()
        for key, opened in list(self._opened.items()):
            if is_dropped(os.fstat(opened.descriptor)):
                self._forget(key, opened)

    def _sweep_soon(self) -> None:
        if self._clock() - self._swept_at >= _SWEEP_S:
            self.sweep()

    def _renew_soon(self) -> bool:
        """Whether there is another index, which may have what is not found in this one."""
        now = self._clock()
        if now - self._renewed_at < _SWEEP_S:
            return False
        self._renewed_at = now
        self._index.renew()
        if self._index.generation == self._generation:
            return False
        self._start_anew()
        return True

    def _start_anew(self) -> None:
        """Numbers of tiers and packs mean others in another index."""
        self._generation = self._index.generation
        self.close()
        self._folders = {}
        self._whole = None

    def abandon(self) -> None:
        """Close the index too; for a forked child, which must not use it."""
        self.close()
        self._index.close()

    def close(self) -> None:
        for key, opened in list(self._opened.items()):
            self._forget(key, opened)

    def _find_open(self, content: ContentId, start: int, end: int) -> tuple[Cached, _Opened, bool] | None:
        """The record, a descriptor of the very file it speaks of, and whether that has its seal.

        A file may be evicted and begun anew under the same name at any time. It is dropped before anything is made
        anew, so a record that is read after the descriptor was opened speaks of that file if it is not dropped
        afterwards: hence the order descriptor, record, status.
        """
        last = None
        for _ in range(_TRIES):
            cached = self._index.find(content)
            if cached is None or not self._index.has(content, cached, start, end):
                return None
            key: _Key = cached.pack or content
            opened = self._opened.get(key)
            if opened is None:
                if not self._open(key, content, cached):
                    return None
                continue  # and look again, now that it is open
            status = os.fstat(opened.descriptor)
            if self._index.generation != self._generation:
                return None  # another thread took another index, which may know of other pieces than the record
            # A disk that went read-only keeps what was dropped there: linked, and without the blocks that came since.
            if is_dropped(status) or opened.tier != cached.tier:
                self._forget(key, opened)
                continue
            self._opened.move_to_end(key)
            sealed = self._has_seal(cached, opened, status)
            if sealed or self._is_right(content, cached, opened):
                return cached, opened, sealed
            if cached == last:
                return None  # the worker will see what has become of it
            last = cached  # or it was written to, sealed, between our two looks
        return None

    def _has_seal(self, cached: Cached, opened: _Opened, status: os.stat_result) -> bool:
        if not cached.pack:
            sealed = self._is_sealed(cached, status)
        elif cached.session < self._index.trusted_since:
            return False
        else:
            sealed = opened.seal.ctime_ns == status.st_ctime_ns and opened.seal != WRITING
            if not sealed:
                pack = self._index.pack(cached.pack)
                sealed = (
                    pack is not None
                    and pack.session >= self._index.trusted_since
                    and pack.seal == (status.st_ino, status.st_ctime_ns)
                )
        if sealed:
            opened.seal = Seal(status.st_ino, status.st_ctime_ns)
        return sealed

    def _is_sealed(self, cached: Cached, status: os.stat_result) -> bool:
        """Of a file of its own."""
        trusted = cached.session >= self._index.trusted_since
        return trusted and cached.seal == (status.st_ino, status.st_ctime_ns)

    def _is_right(self, content: ContentId, cached: Cached, opened: _Opened) -> bool:
        """Whether the bytes of a file without a seal can be given out all the same."""
        if not cached.pack:
            # The worker, if it runs, is writing to it. One of before was killed while it was.
            return cached.seal == WRITING and cached.session == self._index.session()
        try:
            data = os.pread(opened.descriptor, cached.size, cached.offset)
        except OSError:
            data = b""
        if len(data) == cached.size and xxhash.xxh3_64_intdigest(data) == cached.checksum:
            return True
        self._wrong[content] = None
        return False

    def _open(self, key: _Key, content: ContentId, cached: Cached) -> bool:
        folder = self.tier_folder(cached)
        if folder is None:
            return False
        try:
            self._opened[key] = _Opened(cached_path(folder, content, cached.pack), cached.tier)
        except FileNotFoundError:
            return False  # evicted between the look at the index and now
        except OSError:
            self._wrong[content] = None
            return False
        while len(self._opened) > _OPEN_FILES:
            oldest, closing = next(iter(self._opened.items()))
            self._forget(oldest, closing)
        return True

    def _key_of(self, opened: _Opened) -> _Key | None:
        return next((key for key, known in self._opened.items() if known is opened), None)

    def _forget(self, key: _Key | None, opened: _Opened) -> None:
        if key is None:
            return
        del self._opened[key]
        for content in [c for c, (known, _, _) in self._complete.items() if known is opened]:
            del self._complete[content]
        os.close(opened.descriptor)
