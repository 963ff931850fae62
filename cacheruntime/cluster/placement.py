"""Which workers a piece of data belongs to: weighted rendezvous hashing (Thaler and Ravishankar, 1998).

A piece is a slice of one content: 64 MiB of a file. Each member of the cluster draws a time for it, exponential with
its weight as the rate (Schindelhauer and Schomaker's logarithmic method, 2005), from hashes of the piece and of the
member's id; the earliest is its first owner. So a member's share is its weight's, and what the others have drawn is the
same whether it is there or not: who comes takes its share from the rest, who leaves gives its own to the rest, nothing
else moves, and no two members have to agree on anything but who is there.

How even it is: slices fall to equal members as by chance, so the fullest of a thousand has 1 + 3.2 / sqrt(slices for
each) of the mean. 1.15 takes 460 slices for each, which is 29 GiB of large files.

Pure: no clock, no I/O, no lock.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NewType

import numpy as np
import numpy.typing as npt
import xxhash

from forebay.cacheruntime.keys import ContentId

WorkerId = NewType("WorkerId", str)
"""Made once for each cache folder, and kept in it; never used for another. Not an address: these change."""

SLICE_BYTES = 64 << 20
"""What is placed as one. Files that live in packs are smaller, and so never cut. Smaller slices would spread a file
better, and cost its reader more connections; larger ones leave the fullest worker further above the mean."""

_CACHED_RANKS = 4096
"""Rankings kept: those of the slices that are being read, with some 300 bytes for each."""

_LEAST_RATE = 1e-300
"""No time may come to be infinite."""

_Words = npt.NDArray[np.uint64]
_Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that owns a share."""

    id: WorkerId
    weight: float
    """Its capacity in bytes, or in any unit that is the same for all; 0: it owns nothing."""


def slice_of(offset: int) -> int:
    """The slice that the byte at `offset` of a file lies in."""
    return offset // SLICE_BYTES


class Placement:
    """One view of who is there. Immutable; the order in which members are given does not matter."""

    def __init__(self, members: Iterable[Member]) -> None:
        """
        Raises:
            ValueError: two members have one id, or a weight is negative or not finite.
        """
        self.members = tuple(sorted(members, key=lambda member: member.id))
        """By id."""
        self.weights = {member.id: member.weight for member in self.members}
        if len(self.weights) != len(self.members):
            raise ValueError("two members have the same id: is a cache folder a copy of another one?")
        for member in self.members:
            if not 0 <= member.weight < math.inf:
                raise ValueError(f"member {member.id} has the weight {member.weight}; allowed are 0 and above")
        owners = [member for member in self.members if member.weight > 0]
        self._ids = tuple(member.id for member in owners)
        self._hashes: _Words = np.array([xxhash.xxh3_64_intdigest(id_.encode()) for id_ in self._ids], dtype=np.uint64)
        largest = max((member.weight for member in owners), default=1.0)
        rates = [max(member.weight / largest, _LEAST_RATE) for member in owners]
        self._rates: _Reals = np.array(rates, dtype=np.float64)
        self._cached = lru_cache(_CACHED_RANKS)(self._rank)

    def __len__(self) -> int:
        """Members that own a share."""
        return len(self._ids)

    def rank(self, content: ContentId, slice_: int, most: int) -> tuple[WorkerId, ...]:
        """The first members in the order of a slice, its first owner in front.

        About 7 us for 4 members and 14 us for 1,000, and 0.1 us for a slice that was asked for lately.

        Args:
            content: what it is a slice of.
            slice_: its number (`slice_of`).
            most: so many members at most.
        """
        return self._cached(content, slice_, most)

    def owners(self, content: ContentId, slice_: int, replicas: int) -> tuple[WorkerId, ...]:
        """Who is to keep a slice of which there are `replicas` copies."""
        return self._cached(content, slice_, max(replicas, 1))

    def _rank(self, content: ContentId, slice_: int, most: int) -> tuple[WorkerId, ...]:
        key = xxhash.xxh3_64_intdigest(content + slice_.to_bytes(8, "little"))
        times = -np.log(_uniform(self._hashes ^ np.uint64(key))) / self._rates
        if most < len(times) // 4:
            first: Any = np.argpartition(times, most)[:most]
            first = first[np.argsort(times[first])]
        else:
            first = np.argsort(times, kind="stable")[:most]
        ids = self._ids
        return tuple([ids[index] for index in first.tolist()])


_HALF = 2.0**-54
_SHIFT_11, _SHIFT_27, _SHIFT_30, _SHIFT_31 = (np.uint64(bits) for bits in (11, 27, 30, 31))
_FACTOR_1, _FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _uniform(words: _Words) -> _Reals:
    """Numbers in (0, 1) from words that may be alike, by the finalizer of SplitMix64 (Steele and others, 2014)."""
    words = (words ^ (words >> _SHIFT_30)) * _FACTOR_1
    words = (words ^ (words >> _SHIFT_27)) * _FACTOR_2
    words ^= words >> _SHIFT_31
    return (words >> _SHIFT_11).astype(np.float64) * 2.0**-53 + _HALF
