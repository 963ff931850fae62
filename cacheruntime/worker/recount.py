"""Whether what the index adds up is the sum of its records; after damage to a record it may not be.

It is looked at in one read transaction, in a thread, while the worker goes on; what differs there is what has to be
added now, for all that has changed since was added, too.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import trio

from forebay.cacheruntime.index import (
    Index,
    Pack,
    PackNumber,
    holding_key,
    member_key,
    unpack_cached,
    unpack_held,
    unpack_pack,
)
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.storage import Storage

_AT_ONCE = 500
_REST_S = 0.002
"""Records that are looked at in one go, and the rest that others have then: the thread has the interpreter to itself
otherwise, some 5 us a record."""

_Key = TypeVar("_Key", bytes, PackNumber)

Sum = tuple[int, int]
"""Bytes and files."""


@dataclass
class Differences:
    """What has to be added to each sum, and what is in a table without being due there."""

    holdings: dict[bytes, Sum] = field(default_factory=dict)
    """By key of ``holdings``."""
    live: dict[PackNumber, Sum] = field(default_factory=dict)
    missing: list[bytes] = field(default_factory=list)
    """Keys of ``members`` that the records have and the table has not."""
    superfluous: list[bytes] = field(default_factory=list)
    """The opposite."""
    homeless: list[ContentId] = field(default_factory=list)
    """Files in packs that have no sound record."""

    def described(self) -> Iterator[str]:
        """One line for each."""
        for key in self.superfluous:
            yield f"{key[12:].hex()} is listed in dataset {key[:8].hex()} without being there"
        for key in self.holdings:
            yield f"dataset {DatasetId(key[:8].hex())}: its holdings do not add up"
        for number in self.live:
            yield f"pack {number}: its live files do not add up"


def find_differences(index: Index, rest: Callable[[], object] = lambda: None) -> Differences:
    """Look at all records.

    Args:
        index: to read.
        rest: called now and then.
    """
    found = Differences()
    held: dict[bytes, Sum] = {}
    live: dict[PackNumber, Sum] = {}
    with index.raw() as txn:
        contents, members = index.table("contents"), index.table("members")
        packs: dict[PackNumber, Pack] = {}
        for key, raw in _all(txn, index.table("packs"), rest):
            pack = unpack_pack(key, raw)
            if pack is not None:
                packs[pack.number] = pack
        for key, raw in _all(txn, contents, rest):
            cached = unpack_cached(key, raw)
            if cached is None:
                continue
            pack = packs.get(cached.pack)
            if cached.pack and pack is None:
                found.homeless.append(ContentId(key))
                continue
            member = member_key(cached.dataset, cached.pack, ContentId(key))
            if txn.get(member, db=members) is None:
                found.missing.append(member)
            size = cached.cached_bytes()
            tier = pack.tier if pack is not None else cached.tier
            _add(held, holding_key(cached.dataset, cached.share, tier), size)
            if pack is not None:
                _add(live, pack.number, size)
        for key, _ in _all(txn, members, rest):
            content = ContentId(key[12:])
            raw = txn.get(content, db=contents)
            cached = unpack_cached(content, raw) if raw else None
            if raw is None or (cached is not None and member_key(cached.dataset, cached.pack, content) != key):
                found.superfluous.append(key)
        holdings = {key: unpack_held(raw) for key, raw in _all(txn, index.table("holdings"), rest)}
    found.holdings = _missing(held, holdings)
    found.live = _missing(live, {number: (pack.live_bytes, pack.live_files) for number, pack in packs.items()})
    return found


async def recount(storage: Storage, limiter: trio.CapacityLimiter) -> Differences:
    """Find what does not add up, and put it right.

    *Cancellation*: at any checkpoint; the thread ends with it, for it reads the index.

    Raises:
        OSError: the index takes no changes; it is still due.
    """
    storage.recount_due = False

    def rest() -> None:
        trio.from_thread.check_cancelled()
        time.sleep(_REST_S)

    try:
        found = await trio.to_thread.run_sync(partial(find_differences, storage.index.reader, rest), limiter=limiter)
        for _ in storage.index.mend(found):
            await trio.lowlevel.checkpoint()
    except BaseException:
        storage.recount_due = True
        raise
    storage.add_up_soon()
    return found


def _all(txn: Any, table: Any, rest: Callable[[], object]) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor(db=table) as cursor:
        records = iter(cursor)
        while batch := list(islice(records, _AT_ONCE)):
            yield from batch
            rest()


def _add(sums: dict[_Key, Sum], key: _Key, size: int) -> None:
    known = sums.get(key, (0, 0))
    sums[key] = known[0] + size, known[1] + 1


def _missing(wanted: dict[_Key, Sum], there: dict[_Key, Sum]) -> dict[_Key, Sum]:
    found = {}
    for key in wanted.keys() | there.keys():
        right, said = wanted.get(key, (0, 0)), there.get(key, (0, 0))
        if right != said:
            found[key] = right[0] - said[0], right[1] - said[1]
    return found
