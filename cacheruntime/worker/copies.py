"""The other copies: the owner that has fetched a piece from the store has the other owners load it, and so does the
first of those that were owners before, when the members have changed (`rebalance.py`).

They pull it from here (`peer_loads.py`), behind their readers, in batches and at a rate. What finds no place in the
queue, or is not cached any more when its turn comes, is left: an owner that is asked for what it lacks gets it from
those before it.
"""

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime.cluster.placement import slice_of
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.rebalance import cached_parts
from forebay.cacheruntime.worker.spread import PIECES_UNDER_WAY, Spread
from forebay.cacheruntime.worker.warmup import RateLimit

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode
    from forebay.cacheruntime.worker.core import Core

log = logging.getLogger(__name__)

COPY_BYTES_S = 128 * MIB
"""That one worker has others load: they have readers too."""

_ROUND_S = 0.5
"""What comes within it goes in one batch. A piece waits for one round more, until its last block is in the index."""

_LATE_S = 15.0
"""Owners that did not answer are asked again after this."""

_MOST = 1 << 16
"""Pieces that wait, with some 500 bytes for each."""

_Key = tuple[ContentId, int]
"""Content and slice."""


class Copies:
    """For the worker's event loop."""

    def __init__(self, core: "Core", node: "ClusterNode") -> None:
        self._core = core
        self._node = node
        self._due: OrderedDict[_Key, SourceFile] = OrderedDict()
        self._late: OrderedDict[_Key, SourceFile] = OrderedDict()

    async def run(self) -> None:
        """Follow what comes from stores, until cancelled."""
        limit = RateLimit(COPY_BYTES_S)
        late_at = trio.current_time() + _LATE_S
        while True:
            await trio.sleep(_ROUND_S)
            due, self._due = self._due, OrderedDict()
            for file, slice_ in self._node.source.take_fetched():
                self._due[file.content, slice_] = file
            if trio.current_time() >= late_at:
                late_at = trio.current_time() + _LATE_S
                due.update(self._late)
                self._late.clear()
            if due:
                try:
                    await self._copy_all(due, limit)
                except ForebayError as error:
                    log.info("what the other owners lack could not be copied: %s", error)

    async def add(self, file: SourceFile, offset: int) -> None:
        """Have the other owners load what is here of the slice at `offset`; returns when there is a place for it."""
        while len(self._due) >= _MOST:
            await trio.sleep(_ROUND_S)
        self._due[file.content, slice_of(offset)] = file

    async def _copy_all(self, due: OrderedDict[_Key, SourceFile], limit: RateLimit) -> None:
        pieces = trio.Semaphore(PIECES_UNDER_WAY)
        spreads: dict[str, Spread] = {}
        async with trio.open_nursery() as nursery:
            for (_, slice_), file in due.items():
                dataset = file.asked_of or file.dataset
                if dataset not in spreads:
                    spreads[dataset] = Spread(self._node, dataset, nursery, medium="", skip_existing=False)
                for offset, length in self._parts(file, slice_):
                    await limit.take(length)
                    await pieces.acquire()
                    nursery.start_soon(self._copy_one, spreads[dataset], file, offset, length, pieces)

    def _parts(self, file: SourceFile, slice_: int) -> list[tuple[int, int]]:
        """What of a slice is cached here."""
        cached = self._core.storage.index.reader.find(file.content)
        if cached is None:
            return []
        if cached.pack:
            return [(0, cached.size)]
        return [(offset, length) for offset, length in cached_parts(cached) if slice_of(offset) == slice_]

    async def _copy_one(
        self, spread: Spread, file: SourceFile, offset: int, length: int, pieces: trio.Semaphore
    ) -> None:
        try:
            if not await spread.copy(file, offset, length):
                self._late[file.content, slice_of(offset)] = file
                if len(self._late) > _MOST:
                    self._late.popitem(last=False)
        finally:
            pieces.release()
