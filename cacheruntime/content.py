"""Reading cached bytes: from a content id to an open descriptor and a position, without asking the worker.

Used by FUSE handlers and the fsspec client alike.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from forebay.cacheruntime.index import Cached, Index, PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import cached_path, file_path
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


class _Opened:
    """One descriptor, shared by all files of a pack."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class ContentReader:
    """Finds cached bytes. Not safe for use from several threads at once.

    A descriptor that is open stays good when its file is evicted, so a place that was found once is found again
    without a look at the index. `sweep` gives back the disk space that such descriptors hold.
    """

    def __init__(self, index: Index, touch: TouchMap) -> None:
        self._index = index
        self._touch = touch
        self._folders: dict[TierNumber, Path] = {}
        self._opened: OrderedDict[_Key, _Opened] = OrderedDict()
        self._complete: OrderedDict[ContentId, tuple[_Opened, int, int]] = OrderedDict()

    def find(self, content: ContentId, start: int, end: int) -> Place | None:
        """Where [start, end) of a file is, or None when not all of it is cached. `end` is at most the file's size."""
        known = self._complete.get(content)
        if known is not None:
            opened, base, slot = known
            self._touch.set(slot)
            return Place(opened.descriptor, base, slot)
        found = self._find_open(content, start, end)
        if found is None:
            return None
        cached, opened = found
        slot = slot_of(content, cached.pack)
        self._touch.set(slot)
        if cached.complete:
            self._complete[content] = (opened, cached.offset, slot)
            if len(self._complete) > 64 * _OPEN_FILES:
                self._complete.popitem(last=False)
        return Place(opened.descriptor, cached.offset, slot)

    def is_whole(self, content: ContentId) -> bool:
        """Whether the last `find` of it saw the whole file cached."""
        return content in self._complete

    def cached(self, content: ContentId) -> Cached | None:
        """The index's record."""
        return self._index.find(content)

    def folder(self, tier: TierNumber) -> Path | None:
        """Folder of a tier."""
        if tier not in self._folders:
            self._folders = {number: path for number, (_, path) in self._index.tiers().items()}
        return self._folders.get(tier)

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
        except FileNotFoundError:
            return None
        # Descriptor, then record, then link count: see _find_open.
        still = self._index.find(content) == cached
        status = os.fstat(descriptor)
        if not still or not status.st_nlink or status.st_size != size:
            os.close(descriptor)
            return None
        self._touch.set(slot_of(content, cached.pack))
        return descriptor

    def sweep(self) -> None:
        """Close descriptors of files that were evicted, so that their space is free again."""
        for key, opened in list(self._opened.items()):
            if os.fstat(opened.descriptor).st_nlink == 0:
                self._forget(key, opened)

    def abandon(self) -> None:
        """Close the index too; for a forked child, which must not use it."""
        self.close()
        self._index.close()

    def close(self) -> None:
        for key, opened in list(self._opened.items()):
            self._forget(key, opened)

    def _find_open(self, content: ContentId, start: int, end: int) -> tuple[Cached, _Opened] | None:
        """The record and a descriptor of the very file it speaks of.

        A file may be evicted and begun anew under the same name at any time. Eviction unlinks first and drops the
        record then, so a record that is read after the descriptor was opened speaks of that file if it is still
        linked afterwards: hence the order descriptor, record, link count.
        """
        while True:
            cached = self._index.find(content)
            if cached is None or not cached.has(start, end):
                return None
            key: _Key = cached.pack or content
            opened = self._opened.get(key)
            if opened is None:
                if not self._open(key, content, cached):
                    return None
                continue  # and look again, now that it is open
            if os.fstat(opened.descriptor).st_nlink:
                self._opened.move_to_end(key)
                return cached, opened
            self._forget(key, opened)

    def _open(self, key: _Key, content: ContentId, cached: Cached) -> bool:
        folder = self.folder(cached.tier)
        if folder is None:
            return False
        try:
            self._opened[key] = _Opened(cached_path(folder, content, cached.pack))
        except FileNotFoundError:
            return False  # evicted between the look at the index and now
        while len(self._opened) > _OPEN_FILES:
            oldest, closing = next(iter(self._opened.items()))
            self._forget(oldest, closing)
        return True

    def _forget(self, key: _Key, opened: _Opened) -> None:
        del self._opened[key]
        for content in [c for c, (known, _, _) in self._complete.items() if known is opened]:
            del self._complete[content]
        os.close(opened.descriptor)
