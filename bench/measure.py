"""Timing: one reader for all sides, sides that take turns, medians with their spread."""

import mmap
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import obstore
import xxhash
from obstore.store import S3Store

READ_BYTES = 1 << 20
"""Of one read(2), as the usual loaders do; also the largest FUSE request."""

Moved = Callable[[int], None]
"""Told the bytes of each read."""


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


def random_reads(path: Path, count: int, block_bytes: int, seed: int) -> float:
    """Operations per second of `pread` at aligned random offsets, the same ones for the same seed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        blocks = os.fstat(descriptor).st_size // block_bytes
        chance = random.Random(seed)
        offsets = [chance.randrange(blocks) * block_bytes for _ in range(count)]
        buffer = (bytearray(block_bytes),)
        preadv = os.preadv
        started = time.perf_counter()
        for offset in offsets:
            preadv(descriptor, buffer, offset)
        return count / (time.perf_counter() - started)
    finally:
        os.close(descriptor)


def fetch_ranges(
    store: S3Store, key: str, size: int, part_bytes: int, parallel: int, moved: Moved | None = None
) -> int:
    """The bare client: an object in ranges, `parallel` of them under way at once; its bytes."""

    def fetch(start: int) -> int:
        got = len(obstore.get_range(store, key, start=start, length=min(part_bytes, size - start)))
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

    In a virtual machine free pages may have gone back to the host, and the first touch of one costs a fault there.
    A precaution: in the one trial made, plain writes of new files were as fast without it (6 and 6, 256 MiB each).
    """
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for offset in range(0, size_bytes, mmap.PAGESIZE):
            memory[offset] = 1


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Series:
    """What one side gave, a number for each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def alternate(sides: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, Series]:
    """Let the sides take turns, a different one first in each round.

    Args:
        sides: each gives its number for a round (counted from 0); higher is better.
        rounds: how often each is asked.
    """
    names = list(sides)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(sides[name](number))
    return {name: Series(tuple(got)) for name, got in values.items()}


def ratio(ours: Series, theirs: Series) -> Series:
    """Round by round, since what disturbs a round disturbs both sides of it."""
    return Series(tuple(a / b for a, b in zip(ours.values, theirs.values, strict=True)))


def epoch(read: Callable[[Path], object], paths: Iterable[Path]) -> float:
    """Files per second of one pass."""
    order = list(paths)
    started = time.perf_counter()
    for path in order:
        read(path)
    return len(order) / (time.perf_counter() - started)
