"""Files that several processes map: how they are made and mapped."""

import mmap
import os
from pathlib import Path


def map_shared(path: Path, size: int) -> mmap.mmap:
    """Map a file of at least `size` bytes for reading and writing; made, and filled with zeros, where it is missing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
