"""Timing, and the bare client: what the demo and the cold lines read with."""

import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import xxhash
from obstore.store import S3Store

from forebay.bench.reader import READ_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

Moved = Callable[[int], None]
"""Told the bytes of each read."""

Keep = Callable[["Buffer", int], object]
"""Given bytes and their offset."""


class Reader:
    """Reads whole files with `read(2)` into one buffer, so that the program costs as little as it can."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_BYTES)

    def read(self, path: Path, moved: Moved | None = None) -> int:
        """Read a file from its begin to its end; its bytes."""
        total = 0
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while size := os.readv(descriptor, (self._buffer,)):
                total += size
                if moved is not None:
                    moved(size)
        finally:
            os.close(descriptor)
        return total

    def digest(self, path: Path, moved: Moved | None = None) -> int:
        """Read a file and give the XXH3-64 of what came."""
        hasher = xxhash.xxh3_64()
        view = memoryview(self._buffer)

        def seen(size: int) -> None:
            hasher.update(view[:size])
            if moved is not None:
                moved(size)

        self.read(path, seen)
        value: int = hasher.intdigest()
        return value


def fetch_ranges(
    store: S3Store,
    key: str,
    size: int,
    part_bytes: int,
    parallel: int,
    moved: Moved | None = None,
    keep: Keep | None = None,
) -> int:
    """The bare client: an object in ranges, `parallel` of them under way at once; its bytes."""

    def fetch(start: int) -> int:
        data = obstore.get_range(store, key, start=start, length=min(part_bytes, size - start))
        if keep is not None:
            keep(data, start)
        got = len(data)
        if moved is not None:
            moved(got)
        return got

    starts = range(0, size, part_bytes)
    if parallel == 1:
        return sum(map(fetch, starts))
    with ThreadPoolExecutor(parallel) as pool:
        return sum(pool.map(fetch, starts))


def warm_memory(size_bytes: int) -> None:
    """Touch that much memory and free it at once, so that what is measured next gets pages that are there.

    In a virtual machine free pages may have gone back to the host, and the first touch of one costs a fault there: ten
    times the copy. Hosts are given back blocks of 2 MiB (free page reporting), so huge pages are what to touch: with
    small ones the kernel takes what lies between such blocks. A cold read of 256 MiB afterwards: 0.29 GB/s after small
    pages, 0.65 after huge ones (medians of 8, alternating).
    """
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, size_bytes, mmap.PAGESIZE):
            memory[offset] = 1


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
