"""Moving what is cached to where it belongs: when this worker is to leave, and when others have come or were lost.

Nothing is sent by this worker. It tells the owners what to load (`spread.py`), and they read it from here, where they
find it by their own routing: a member that drains is asked before the under-store, and so is a former owner while the
cluster is unsettled. What they have no room for stays where it is, and is lost with this worker.

The files are those of the newest snapshots: what older ones had is not moved. It goes behind readers, and at a rate.
"""

import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime.blocks import BLOCK_BYTES, block_count
from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Member, Placement, slice_of
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

_BATCH = 4096
"""Files looked at in one go: some ten milliseconds of a thread, which nothing can interrupt."""

_SEEN_S = 5.0
"""Until all others have asked who we are, and know that we leave."""

_SETTLING_S = 10.0
"""After a change of the members: others may come or go with it."""

REBALANCE_BYTES_S = 64 * MIB
"""Of one worker, when others have come. A reader of a piece that has not moved yet finds it here all the same."""


_Says = Callable[[SourceFile, int], bool]
"""Of a file and an offset in one of its slices."""


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
        self._settled = Placement(())
        """By which everything here is where it belongs, as far as it had room."""
        self.left_bytes = 0
        """That a drain has still to look at."""
        self.moved_bytes = 0
        """That others have loaded because they own it now."""
        self.lost_bytes = 0
        """Of the last drain: that found no room with them, or could not be moved."""
        self._following = trio.CancelScope()
        """Of a move that is under way because others have come."""

    async def run(self) -> None:
        """Follow the members until cancelled."""
        # By which view older things were placed is not known: they stay. What a new worker brings in while the others
        # appear one by one goes to its owners then.
        if not any(holding.bytes for holding in self._core.storage.index.reader.holdings()):
            self._settled = Placement([Member(self._node.id, 1.0)])
        while True:
            changed = self._node.membership.changed
            # Not `source.placement`: whoever waits for the same event may be behind us.
            now = Placement(self._node.membership.view.members)
            if self._node.is_draining or now.members == self._settled.members:
                await changed.wait()
                continue
            with trio.move_on_after(_SETTLING_S) as waiting:
                await changed.wait()
            if not waiting.cancelled_caught:
                continue  # it has changed again
            with trio.CancelScope() as self._following:
                await self._move(partial(self._is_due, self._settled, now), partial(self._is_short, self._settled, now))
            self._settled = now  # or a drain has begun, which moves all
            log.info("this worker has its share among %d members", len(now.members))

    def _is_due(self, before: Placement, now: Placement, file: SourceFile, offset: int) -> bool:
        """Whether this worker has others load a piece that it holds, after a change of the members."""
        copies, slice_ = self._node.source.copies(file), slice_of(offset)
        old, new = before.owners(file.content, slice_, copies), now.owners(file.content, slice_, copies)
        return self._node.id in old and self._node.id not in new

    def _is_short(self, before: Placement, now: Placement, file: SourceFile, offset: int) -> bool:
        """Whether this worker, which goes on owning a piece, sees to it that those have it who own it now, too."""
        copies, slice_ = self._node.source.copies(file), slice_of(offset)
        old, new = before.owners(file.content, slice_, copies), now.owners(file.content, slice_, copies)
        remaining = [worker for worker in new if worker in old]
        return remaining[:1] == [self._node.id] and len(remaining) < len(new)

    async def drain(self) -> None:
        """Have the others load all that is here."""
        self._following.cancel()
        self.left_bytes, self.lost_bytes = sum(size for size, _ in self._held()), 0
        await trio.sleep(_SEEN_S)
        self.lost_bytes = await self._move(lambda file, offset: True, lambda file, offset: False, rate_bytes_s=0)

    async def _move(self, is_due: _Says, is_short: _Says, rate_bytes_s: int = REBALANCE_BYTES_S) -> int:
        """Have the owners load what is here and `is_due`, and the other owners what `is_short`.

        Returns:
            Bytes of the former that found no room with them.
        """
        lost = 0
        limit = RateLimit(rate_bytes_s)
        self.left_bytes = sum(size for size, _ in self._held())
        for dataset in list(self._core.datasets.all.values()):
            try:
                lost += await self._move_dataset(dataset, is_due, is_short, limit)
            except* ForebayError as group:
                lost += self._core.storage.held_bytes(dataset.id)
                log.warning("what is cached of %s could not be moved: %s", dataset.store.url, _first(group))
        self.left_bytes = 0
        return lost

    async def _move_dataset(self, dataset: Dataset, is_due: _Says, is_short: _Says, limit: RateLimit) -> int:
        """Returns the bytes that found no room.

        Raises:
            ExceptionGroup: of ForebayError: its files are not known.
        """
        lost = 0
        index = self._core.storage.index.reader
        pieces = trio.Semaphore(PIECES_UNDER_WAY)
        async with trio.open_nursery() as nursery, aclosing(self._cached_files(dataset, index)) as files:
            spread = Spread(self._node, dataset.id, nursery, medium="", skip_existing=False)

            async def one(file: SourceFile, offset: int, length: int) -> None:
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

            async for path, node in files:
                cached = index.find(node.content)
                if cached is None:
                    continue
                file = dataset.file(path, node.size, node.version)
                for offset, length in cached_parts(cached) if not cached.pack else [(0, cached.size)]:
                    if is_due(file, offset):
                        await pieces.acquire()
                        nursery.start_soon(one, file, offset, length)
                    elif is_short(file, offset):
                        await self._node.copies.add(file, offset)
        return lost

    def _held(self) -> list[tuple[int, int]]:
        return [held for dataset in self._core.datasets.all for held in self._core.storage.held_of(dataset).values()]

    async def _cached_files(self, dataset: Dataset, index: Index) -> AsyncGenerator[tuple[str, Node], None]:
        """The files of the newest snapshot of which something is here.

        Raises:
            ForebayError: there is none, and the source cannot be listed; after those that were listed.
        """
        if not self._core.storage.held_bytes(dataset.id) and not dataset.owners:
            return
        snapshot = self._core.datasets.snapshot_of(dataset, False, stored=True)
        with snapshot.held():
            await snapshot.ended.wait()
            files = Selection([], []).files(snapshot.catalogue)
            while (batch := await trio.to_thread.run_sync(_found, files, index)) is not None:
                for path, node in batch:
                    yield os.fsdecode(path), node
            if snapshot.failure is not None:
                raise snapshot.failure


def _found(files: Iterator[tuple[bytes, Node]], index: Index) -> list[tuple[bytes, Node]] | None:
    """Of the next files, those of which something is here; None: there are no more."""
    batch = list(islice(files, _BATCH))
    return [found for found in batch if index.find(found[1].content) is not None] if batch else None


def _first(error: BaseException) -> BaseException:
    """Of a group."""
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
