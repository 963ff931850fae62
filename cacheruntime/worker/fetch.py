"""One read from an under-store: the part that runs in a thread, from the store's pieces to blocks in a tier file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import xxhash

from forebay.cacheruntime.errors import SourceStale
from forebay.cacheruntime.index import BLOCK_BYTES, block_bytes, block_count
from forebay.cacheruntime.keys import ContentId, DatasetId, content_id
from forebay.cacheruntime.understore.base import UnderStore

Write = Callable[[Sequence[memoryview], int], None]
"""Puts pieces, one behind the other, at an offset of a tier file; raises OSError."""


@dataclass(frozen=True)
class SourceFile:
    """One version of one file of an under-store."""

    dataset: DatasetId
    store: UnderStore
    path: str
    size: int
    version: str
    dataset_path: str = ""
    """Where it is in `dataset`, which may be made of several stores; '' stands for `path`."""

    @cached_property
    def content(self) -> ContentId:
        return content_id(self.store.url, self.path, self.size, self.version)


class Fetched(NamedTuple):
    """A whole block: in the tier file, or in `data` when it goes past the tiers."""

    number: int
    checksum: int
    data: bytes | None


def fetch_whole(file: SourceFile) -> bytes:
    """A small file's bytes.

    Raises:
        SourceError: from the store; SourceStale also when it is shorter than listed.
    """
    pieces = fetch_pieces(file)
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def fetch_pieces(file: SourceFile) -> list[memoryview]:
    """A small file's bytes as the store gave them, which spares a copy; errors as `fetch_whole`."""
    pieces = [memoryview(piece) for piece in file.store.read_range(file.path, 0, file.size, file.version)]
    size = sum(map(len, pieces))
    if size != file.size:
        raise SourceStale(f"{file.store.url}: {file.path!r} has {size} bytes, listed were {file.size}")
    return pieces


def fetch_blocks(file: SourceFile, run: list[int], write: Write | None) -> Iterator[Fetched]:
    """Stream a run of blocks to a tier file, or to memory.

    Args:
        file: which.
        run: consecutive block numbers.
        write: to the tier file; None for memory.

    Yields:
        Each block when it is whole. From a store that cannot pin a version, nothing before the read has ended well.

    Raises:
        ForebayError: from the store. OSError: from writing.
    """
    start = run[0] * BLOCK_BYTES
    length = min((run[-1] + 1) * BLOCK_BYTES, file.size) - start
    assert run[-1] < block_count(file.size)
    held: list[Fetched] = []
    number, filled = run[0], 0
    # Whole aligned blocks make large folios in the page cache, where the pieces of a store would make small ones: these
    # cost a reader of 4 KiB a quarter of its rate. The pieces are gathered by the kernel (pwritev), not copied before.
    pieces: list[memoryview] = []
    hasher = xxhash.xxh3_64()
    for piece in file.store.read_range(file.path, start, length, file.version):
        view = memoryview(piece)
        while view and number <= run[-1]:
            size = block_bytes(file.size, number)
            part = view[: size - filled]
            view = view[len(part) :]
            pieces.append(part)
            hasher.update(part)
            filled += len(part)
            if filled == size:
                done = _store(number, hasher.intdigest(), pieces, write)
                if file.store.pins_version:
                    yield done
                else:
                    held.append(done)
                number, filled, pieces = number + 1, 0, []
                hasher.reset()
    if number <= run[-1]:
        raise SourceStale(f"{file.store.url}: {file.path!r} is shorter than listed ({file.size} bytes)")
    yield from held


def _store(number: int, checksum: int, pieces: list[memoryview], write: Write | None) -> Fetched:
    if write is None:
        return Fetched(number, checksum, b"".join(pieces))
    write(pieces, number * BLOCK_BYTES)
    return Fetched(number, checksum, None)
