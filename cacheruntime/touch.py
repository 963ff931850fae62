"""Touch map: one shared byte per cached thing, set by readers on a hit, cleared by the worker as it looks for victims.

A slot is computed from the content id (or pack number), so there is nothing to allocate; two things that share a slot
only make eviction a little less exact. The last byte, behind the slots, counts evictions of open files.
"""

from pathlib import Path
from typing import Any

import numpy as np

from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.shared_memory import map_shared

SLOTS = 1 << 24
"""16 MiB of address space, sparse on disk: one million cached files share a slot with a chance of 6 %."""


def slot_of(content: ContentId, pack: PackNumber) -> int:
    """Eviction takes packs whole, so all files of a pack touch the pack's slot."""
    return (pack * 0x9E3779B1) % SLOTS if pack else int.from_bytes(content[:3], "big")


class TouchMap:
    """The map, open for reading and writing. Safe to use from several threads and processes.

    Resources: `close` unmaps it.
    """

    def __init__(self, path: Path) -> None:
        self._map = map_shared(path, SLOTS + 1)
        self._copy: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def set(self, slot: int) -> None:
        # The test keeps hits from dirtying a page that is dirty with the same value already.
        if not self._map[slot]:
            self._map[slot] = 1

    def take(self, slot: int) -> bool:
        """Whether it was touched since the last `take`."""
        touched = bool(self._map[slot])
        if touched:
            self._map[slot] = 0
        return touched

    def touched(self) -> list[int]:
        """The slots that were touched since they were taken; some milliseconds, however many there are."""
        # A copy: readers go on setting bytes, and numpy refuses an array that changes while it counts.
        if self._copy is None:
            self._copy = np.empty(SLOTS, np.uint8)
        np.copyto(self._copy, np.frombuffer(self._map, np.uint8, SLOTS))
        return [int(slot) for slot in np.flatnonzero(self._copy)]

    def depart(self) -> None:
        """Something was evicted that a reader has open: whoever keeps descriptors is to look at them."""
        self._map[SLOTS] = (self._map[SLOTS] + 1) & 0xFF

    @property
    def departures(self) -> int:
        """Changes with each `depart`, counting round to 255."""
        return self._map[SLOTS]

    def close(self) -> None:
        self._map.close()
