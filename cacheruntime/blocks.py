"""Files in blocks, and blocks in pieces: arithmetic that is part of the index's format (`index.py`), and no I/O.

A block is what is fetched, recorded and checked as a whole for whoever reads straight on. A block of which readers take
parts here and there is fetched and recorded in pieces.
"""

from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from forebay.cacheruntime.config import KIB, MIB

BLOCK_BYTES = MIB
"""Unit of presence and of checksums; part of the format."""

PIECE_BYTES = 16 * KIB
"""Unit of presence and of checksums in such a block, which has at most 64; part of the format. A read of 128 KiB at any
page costs 1.09 times its bytes then; with pieces of 64 KiB it would be 1.47 times."""

LEAST_BYTES = 128 * KIB
"""A GET for less costs as much as one for that: small reads bring what is around them."""

SUM_BYTES = 8


class Span(NamedTuple):
    """Bytes [start, end) of a file that lie in one block: whole pieces of it, or up to the file's end."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def block(self) -> int:
        return self.start // BLOCK_BYTES

    @property
    def mask(self) -> int:
        """Bit ``p`` for piece ``p`` of the block."""
        return mask_of(self.block, self.start, self.end)

    def is_block(self, size: int) -> bool:
        """Whether it is a whole block of a file of `size` bytes."""
        return self == block_span(size, self.block)


def block_count(size: int) -> int:
    """Blocks of a file of `size` bytes; an empty file has none."""
    return -(-size // BLOCK_BYTES)


def block_bytes(size: int, number: int) -> int:
    """Bytes of a block of a file of `size` bytes."""
    return min(BLOCK_BYTES, size - number * BLOCK_BYTES)


def block_span(size: int, number: int) -> Span:
    """A whole block of a file of `size` bytes."""
    start = number * BLOCK_BYTES
    return Span(start, min(start + BLOCK_BYTES, size))


def blocks_of(start: int, end: int) -> range:
    """Numbers of the blocks that [start, end) touches."""
    return range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1)


def mask_of(number: int, start: int, end: int) -> int:
    """The pieces of a block that [start, end) of the file touches."""
    base = number * BLOCK_BYTES
    first = max(0, start - base) // PIECE_BYTES
    last = -(-min(end - base, BLOCK_BYTES) // PIECE_BYTES)
    return (1 << last) - (1 << first) if last > first else 0


def mask_bytes(size: int, number: int, mask: int) -> int:
    """Bytes in some pieces of a block of a file of `size` bytes."""
    last = -(-block_bytes(size, number) // PIECE_BYTES) - 1
    short = (last + 1) * PIECE_BYTES - block_bytes(size, number) if mask >> last & 1 else 0
    return mask.bit_count() * PIECE_BYTES - short


def spans_of(size: int, number: int, mask: int) -> Iterator[Span]:
    """The runs of some pieces of a block of a file of `size` bytes, in order."""
    base = number * BLOCK_BYTES
    while mask:
        first = (mask & -mask).bit_length() - 1
        run = mask >> first
        last = first + ((run + 1) & -(run + 1)).bit_length() - 1
        yield Span(base + first * PIECE_BYTES, min(base + last * PIECE_BYTES, size))
        mask &= -1 << last


def around(start: int, end: int, size: int) -> tuple[int, int]:
    """What is fetched for a read of [start, end), of a reader who is not expected to go on from there."""
    unit = PIECE_BYTES if end - start >= LEAST_BYTES else LEAST_BYTES
    return start - start % unit, min(-(-end // unit) * unit, size)


def sums_of(data: bytes | memoryview) -> bytes:
    """XXH3-64 of each piece of `data`, one behind the other."""
    view = memoryview(data)
    return b"".join(xxhash.xxh3_64_digest(view[at : at + PIECE_BYTES]) for at in range(0, len(view), PIECE_BYTES))


def is_what_was_written(data: bytes | memoryview, sums: bytes) -> bool:
    """Whether bytes have their checksum, be it one for all or one for each piece; none never matches."""
    if len(sums) == SUM_BYTES:
        return xxhash.xxh3_64_digest(data) == sums
    return bool(sums) and sums_of(data) == sums
