"""Whom to drop when a tier is full: pure decisions over a list of candidates.

Within a dataset that is in use nothing is replaced: training reads every sample once an epoch in random order, where
every replacing policy loses to keeping what is in (CoorDL, VLDB'21). Room is made from datasets that nobody uses.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from forebay.cacheruntime.index import Pack
from forebay.cacheruntime.keys import ContentId, DatasetId


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that can be dropped whole: a file of its own or a pack."""

    thing: ContentId | Pack
    dataset: DatasetId
    bytes: int
    touched: bool
    """Read since the last look."""
    last_used: float
    """When its dataset was last in use, seconds on any one clock."""


def victims(candidates: Iterable[Candidate], need_bytes: int) -> list[Candidate]:
    """The candidates to drop, in order, to free at least `need_bytes`; all of them when they do not suffice.

    Datasets that were used longest ago go first; within one, what was not read since the last look.
    """
    chosen: list[Candidate] = []
    freed = 0
    for candidate in sorted(candidates, key=lambda c: (c.last_used, c.touched)):
        if freed >= need_bytes:
            break
        chosen.append(candidate)
        freed += candidate.bytes
    return chosen
