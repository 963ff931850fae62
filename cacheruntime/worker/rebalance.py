"""Moving what is cached to where it belongs: when this worker is to leave, and when others have come.

Nothing is sent by this worker. It tells the owners what to load (`spread.py`), and they read it from here, where they
find it by their own routing: a member that drains is asked before the under-store, and so is a former owner while the
cluster is unsettled. What they have no room for stays where it is, and is lost with this worker.

The files are those of the newest snapshots: what older ones had is not moved. It goes behind readers, and at a rate.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime.blocks import BLOCK_BYTES, block_count
from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Placement, slice_of
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.index import Cached, Index
from forebay.cacheruntime.selection import Selection
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.spread import PIECES_UNDER_WAY, Spread
from forebay.cacheruntime.worker.warmup import RateLimit

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode
    from forebay.cacheruntime.worker.core import Core

log = logging.getLogger(__name__)

_BATCH = 512
_SEEN_S = 5.0
"""Until all others have asked who we are, and know that we leave."""

_SETTLING_S = 10.0
"""After a change of the members: others may come or go with it."""

REBALANCE_BYTES_S = 64 * MIB
"""Of one worker, when others have come. A reader of a piece that has not moved yet finds it here all the same."""


def cached_parts(cached: Cached) -> Iterator[tuple[int, int]]:
    """Offset and length of each run of blocks that is there, none longer than a slice or over its end. Blocks that are
    there in part are left out."""
    start = end = -1
    for block in filter(cached.has_block, range(block_count(cached.size))):
        offset = block * BLOCK_BYTES
        if offset != end or offset % SLICE_BYTES == 0:
            if start >= 0:
                yield start, min(end, cached.size) - start
            start = offset
        end = offset + BLOCK_BYTES
    if start >= 0:
        yield start, min(end, cached.size) - start


class Rebalance:
    """For the worker's event loop."""

    def __init__(self, core: "Core", node: "ClusterNode") -> None:
        self._core = core
        self._node = node
        self._settled = node.source.placement
        """By which everything here is where it belongs, as far as it had room."""
        self.left_bytes = 0
        """That a drain has still to look at."""
        self.moved_bytes = 0
        """That others have loaded because they own it now."""
        self.lost_bytes = 0
        """Of the last drain: that found no room with them."""

    async def run(self) -> None:
        """Follow the members until cancelled."""
        while True:
            changed = self._node.membership.changed
            now = self._node.source.placement
            if self._node.is_draining or now.members == self._settled.members:
                await changed.wait()
                continue
            with trio.move_on_after(_SETTLING_S) as waiting:
                await changed.wait()
            if not waiting.cancelled_caught:
                continue  # it has changed again
            try:
                await self._move(partial(self._owned_by, self._settled), now)
                self._settled = now
            except ForebayError as error:
                log.warning("what belongs to others now could not be moved: %s", error)
                await trio.sleep(_SETTLING_S)

    def _owned_by(self, placement: Placement, file: SourceFile, offset: int) -> bool:
        return self._node.id in placement.owners(file.content, slice_of(offset), self._node.cluster.replicas)

    async def drain(self) -> None:
        """Have the others load all that is here."""
        self.left_bytes, self.lost_bytes = sum(size for size, _ in self._held()), 0
        await trio.sleep(_SEEN_S)
        self.lost_bytes = await self._move(lambda file, offset: True, self._node.source.placement, rate_bytes_s=0)

    async def _move(
        self, mine: Callable[[SourceFile, int], bool], placement: Placement, rate_bytes_s: int = REBALANCE_BYTES_S
    ) -> int:
        """Have the owners load what was `mine` and is here."""
        lost = 0
        limit = RateLimit(rate_bytes_s)
        index = self._core.storage.index.reader
        self.left_bytes = sum(size for size, _ in self._held())
        for dataset in list(self._core.datasets.all.values()):
            pieces = trio.Semaphore(PIECES_UNDER_WAY)
            async with trio.open_nursery() as nursery:
                spread = Spread(self._node, dataset.id, nursery, medium="", skip_existing=False)

                async def one(
                    spread: Spread, file: SourceFile, offset: int, length: int, pieces: trio.Semaphore
                ) -> None:
                    nonlocal lost
                    try:
                        await limit.take(length)
                        reply = await spread.bring(file, offset, length)
                        self.moved_bytes += reply.bytes_fetched
                        lost += length * reply.uncached
                    except ForebayError as error:
                        lost += length
                        log.info("%r could not be moved: %s", file.path, error)
                    finally:
                        self.left_bytes = max(self.left_bytes - length, 0)
                        pieces.release()

                async for path, node in self._cached_files(dataset, index):
                    cached = index.find(node.content)
                    if cached is None:
                        continue
                    file = dataset.file(path, node.size, node.version)
                    for offset, length in cached_parts(cached) if not cached.pack else [(0, cached.size)]:
                        if mine(file, offset) and not self._owned_by(placement, file, offset):
                            await pieces.acquire()
                            nursery.start_soon(one, spread, file, offset, length, pieces)
        self.left_bytes = 0
        return lost

    def _held(self) -> list[tuple[int, int]]:
        return [held for dataset in self._core.datasets.all for held in self._core.storage.held_of(dataset).values()]

    async def _cached_files(self, dataset: Dataset, index: Index) -> AsyncIterator[tuple[str, Node]]:
        """The files of the newest snapshot of which something is here."""
        if not self._core.storage.held_bytes(dataset.id) and not dataset.owners:
            return
        snapshot = self._core.datasets.snapshot_of(dataset, False, stored=True)
        with snapshot.held():
            await snapshot.ended.wait()
            files = _found(snapshot.catalogue, index)
            while batch := await trio.to_thread.run_sync(lambda: list(islice(files, _BATCH))):
                for path, node in batch:
                    yield os.fsdecode(path), node


def _found(catalogue: Catalogue, index: Index) -> Iterator[tuple[bytes, Node]]:
    return (found for found in Selection([], []).files(catalogue) if index.find(found[1].content) is not None)
