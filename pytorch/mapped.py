"""Views of tier files that are mapped into this process."""

import mmap
import os
from collections import OrderedDict
from typing import NamedTuple

from forebay.cacheruntime.tiers import is_dropped

_MAPPINGS = 256
"""Address space for packs of 256 MiB: 64 GiB of 128 TiB."""

_MAPPED_MIN_BYTES = 1 << 20
"""Of a file: to map one, fault its pages in and unmap it again costs more than to read 100 KiB of it."""


class _Mapping(NamedTuple):
    descriptor: int
    """Our own, to see whether the file is still there."""
    whole: memoryview
    """As long as a view of it is left, its pages stay mapped."""


class Mapped:
    """Maps files once and gives views of them. One thread.

    A view stays good when its file is evicted, as a descriptor does: cache files lose no bytes while they exist. What
    takes bytes away from outside (a truncated file, a broken disk) ends the process with SIGBUS.
    """

    def __init__(self) -> None:
        self._maps: OrderedDict[tuple[int, int], _Mapping] = OrderedDict()
        """By device and inode number, which no other file gets while it is mapped."""

    def view(self, descriptor: int, start: int, length: int) -> memoryview | None:
        """That range of a file; None when it has not so many bytes, or is so small that a copy costs less."""
        status = os.fstat(descriptor)
        if start + length > status.st_size or status.st_size < _MAPPED_MIN_BYTES:
            return None
        key = status.st_dev, status.st_ino
        known = self._maps.get(key)
        if known is None or len(known.whole) < start + length:  # a pack grows
            self._forget(key)
            whole = memoryview(mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ))
            known = self._maps[key] = _Mapping(os.dup(descriptor), whole)
            if len(self._maps) > _MAPPINGS:
                self._forget(next(iter(self._maps)))
        return known.whole[start : start + length]

    def sweep(self) -> None:
        """Let go of files that were evicted: their space is free once no view of them is left."""
        for key, mapping in list(self._maps.items()):
            if is_dropped(os.fstat(mapping.descriptor)):
                self._forget(key)

    def _forget(self, key: tuple[int, int]) -> None:
        known = self._maps.pop(key, None)
        if known is not None:
            os.close(known.descriptor)
