"""Files whose sizes and bytes follow from their names, so that whoever reads one knows what must be in it.

Standard library only.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

_SEGMENT_BYTES = 1 << 20
_FOLDER_FILES = 100
_MEDIAN_BYTES = 4096


@dataclass(frozen=True)
class FileSet:
    """What files there are. The same set has the same names, and so the same bytes."""

    small: int
    """How many of up to 64 KiB: 4 KiB in the median."""
    large: tuple[int, ...] = ()
    """Sizes in bytes."""
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """Paths, sorted."""
        rng = random.Random(self.seed)
        found = []
        for n in range(self.small):
            size = min(int(rng.lognormvariate(0, 1) * _MEDIAN_BYTES), 64 << 10)
            found.append(f"small/{self.seed}.{n // _FOLDER_FILES:03d}/{n:06d}-{size}")
        found += [f"large/{self.seed}/{n:03d}-{size}" for n, size in enumerate(self.large)]
        return sorted(found)


def size_of(name: str) -> int:
    """In bytes."""
    return int(name.rpartition("-")[2])


@lru_cache(maxsize=2)
def segment(name: str, number: int) -> bytes:
    """One MiB of a file, shorter at its end."""
    size = min(_SEGMENT_BYTES, size_of(name) - number * _SEGMENT_BYTES)
    return random.Random(f"{name}:{number}").randbytes(size)


def content(name: str, start: int, end: int) -> bytes:
    """The bytes of a file from `start` up to `end`, or to its end."""
    end = min(end, size_of(name))
    found = []
    at = start
    while at < end:
        number, offset = divmod(at, _SEGMENT_BYTES)
        piece = segment(name, number)[offset : offset + end - at]
        found.append(piece)
        at += len(piece)
    return b"".join(found)
