"""What the worker does by itself, behind everything else: checkpoints, seals, moves, smaller packs, probes of disks,
the scrub."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path

import lmdb
import trio

from forebay.cacheruntime.config import Medium
from forebay.cacheruntime.index import Cached, Index, Pack
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import probe
from forebay.cacheruntime.worker.check import is_orphan, orphans
from forebay.cacheruntime.worker.compaction import Compactor
from forebay.cacheruntime.worker.disk_health import Health
from forebay.cacheruntime.worker.index_writer import IndexUnwritable
from forebay.cacheruntime.worker.mover import Mover
from forebay.cacheruntime.worker.recount import recount
from forebay.cacheruntime.worker.space import Item
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.tier import Tier
from forebay.cacheruntime.worker.verify import Pace, Verifier, packed_entries, verify_file, verify_packed

log = logging.getLogger(__name__)

_TIDY_S = 0.5
_MOVE_REST_S = 1.0
_PROBE_S, _SICK_PROBE_S = 10.0, 1.0
_AT_ONCE = 256
"""Records or files that are looked at in one go."""

_SCRUB_RETRY_S = 60.0
_SCRUB_REST_S = 3600.0
"""Between the end of one scrub and the start of the next."""


class Keeper:
    """Runs until cancelled; nobody waits for it."""

    def __init__(self, storage: Storage, verifier: Verifier) -> None:
        self._storage = storage
        self._verifier = verifier
        self.mover = Mover(storage)
        self._compactor = Compactor(storage, self.mover.pace, self.mover.thread)
        self.checkpoints = 0
        self.scrubbed_bytes = 0
        self._scrub_thread, self._recount_thread = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        self._scrub_pace = Pace(storage.config.scrub_bytes_s, time.monotonic, time.sleep)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tidy)
            nursery.start_soon(self._checkpoints)
            nursery.start_soon(self._over_and_over, self._recount)
            if len(self._storage.tiers) > 1:
                nursery.start_soon(self._over_and_over, self.mover.step)
            nursery.start_soon(self._over_and_over, self._compactor.step)
            nursery.start_soon(self._clean_up)
            for tier in self._storage.tiers:
                nursery.start_soon(self._probe, tier)
            if self._storage.config.scrub_bytes_s:
                nursery.start_soon(self._scrub)

    async def _tidy(self) -> None:
        while True:
            try:
                self._storage.tidy()
            except OSError as error:
                self._trouble(error)
            await trio.sleep(_TIDY_S)

    async def _over_and_over(self, step: Callable[[], Awaitable[bool]]) -> None:
        """As long as there is something to do; then look again now and then."""
        while True:
            try:
                done = await step()
            except OSError as error:
                self._trouble(error)
                done = False
            if not done:
                await trio.sleep(_MOVE_REST_S)

    async def _recount(self) -> bool:
        if self._storage.recount_due:
            await recount(self._storage, self._recount_thread)
        return False

    async def _checkpoints(self) -> None:
        while True:
            await trio.sleep(self._storage.config.checkpoint_s)
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Make durable what was filled up to now; of tiers in memory nothing is left after a power loss anyway."""
        ledger = self._storage.ledger
        try:
            self._storage.tidy()
            self._storage.index.drop_dead_readers()
            if ledger.is_current:
                return
            checkpoint = ledger.begin()
        except (OSError, lmdb.Error) as error:
            log.warning("no checkpoint could be taken: %s", error)
            return
        folders = [t.config.path for t in self._storage.tiers if t.config.medium is not Medium.MEM and not t.is_down]
        try:
            # Not abandoned when the worker ends: it reads the index, which is closed then.
            unsynced = checkpoint.unsynced
            paths = self._storage.changed_paths(unsynced) if unsynced is not None else None
            await trio.to_thread.run_sync(ledger.take, checkpoint, folders, paths)
            self.checkpoints += 1
        except (OSError, lmdb.Error) as error:
            log.warning("no checkpoint could be taken: %s", error)
            ledger.give_up(checkpoint)

    async def _clean_up(self) -> None:
        """Once, after a start: folders put aside, and after a power loss files that the checkpoint does not know."""
        await trio.to_thread.run_sync(self._storage.empty_trash, abandon_on_cancel=True)
        if self._storage.index.reader.trusted_since != self._storage.index.session:
            return
        index = self._storage.index.reader
        for tier in self._storage.tiers:
            try:
                found = await trio.to_thread.run_sync(_orphans, index, tier, abandon_on_cancel=True)
                for number, (item, path) in enumerate(found):
                    if is_orphan(index, tier, item):
                        path.unlink(missing_ok=True)
                    if number % _AT_ONCE == _AT_ONCE - 1:
                        await trio.lowlevel.checkpoint()
            except OSError as error:
                tier.failed(error)
                continue
            if found:
                log.info("%d files of %s were newer than the last checkpoint: removed", len(found), tier.config.path)

    async def _probe(self, tier: Tier) -> None:
        while True:
            try:
                await trio.to_thread.run_sync(probe, tier.config.path, tier.uuid, abandon_on_cancel=True)
            except FileNotFoundError:
                tier.health.gone()
            except OSError as error:
                tier.failed(error)
            else:
                tier.health.probed_well()
            await trio.sleep(_PROBE_S if tier.health.state is Health.NORMAL else _SICK_PROBE_S)

    async def _scrub(self) -> None:
        """Over and over."""
        while True:
            await trio.sleep(_MOVE_REST_S)
            try:
                await self._scrub_all()
            except OSError as error:
                self._trouble(error)
                await trio.sleep(_SCRUB_RETRY_S)
            else:
                await trio.sleep(_SCRUB_REST_S)

    async def _scrub_all(self) -> None:
        """Packs first, then files of their own in the order of their names."""
        index = self._storage.index
        cursor = index.reader.scrubbed()
        if not cursor:
            for pack in index.reader.packs():
                await self._scrub_pack(pack)
        records = index.reader.contents(ContentId(cursor) if cursor else None)
        while (found := await trio.to_thread.run_sync(_own_files, records, abandon_on_cancel=True)) is not None:
            for content in found:
                await self._scrub_file(content)
                index.note_scrubbed(content)
        index.note_scrubbed(b"")

    def _trouble(self, error: OSError) -> None:
        """Something failed that is tried again: nobody waits for it."""
        if isinstance(error, IndexUnwritable):
            self._storage.index_failed(error)
        else:
            log.warning("work in the background failed, and is tried again: %s", error)

    async def _scrub_pack(self, pack: Pack) -> None:
        storage = self._storage
        if storage.is_open_pack(pack.number):
            return
        if storage.pack_in_doubt(pack):
            await self._verifier.verify_pack(pack.number, self._scrub_pace)
            return
        path = storage.item_path(storage.tier(pack.tier), pack.number)
        contents, entries = packed_entries(storage.index.reader, pack)
        verdict = await trio.to_thread.run_sync(
            lambda: verify_packed(path, entries, self._scrub_pace, direct=True),
            limiter=self._scrub_thread, abandon_on_cancel=True,
        )  # fmt: skip
        self.scrubbed_bytes += sum(size for _, size, _ in entries)
        if storage.index.reader.pack(pack.number) == pack:
            for position in verdict.bad:
                storage.found_wrong(contents[position])

    async def _scrub_file(self, content: ContentId) -> None:
        storage, index = self._storage, self._storage.index.reader
        cached = storage.find(content)
        if cached is None or content in storage.writes:
            return
        path = storage.path_of(content, cached)
        if storage.is_doubtful(content, cached) or path is None:
            self._verifier.verify_soon(content)
            return
        found = path
        verdict = await trio.to_thread.run_sync(
            lambda: verify_file(
                found, cached.size, index.extents(content, cached), self._scrub_pace, direct=True
            ),
            limiter=self._scrub_thread, abandon_on_cancel=True,
        )  # fmt: skip
        self.scrubbed_bytes += cached.cached_bytes()
        if verdict.bad and index.find(content) == cached:
            storage.found_wrong(content, len(verdict.bad))


def _own_files(records: Iterator[tuple[ContentId, Cached | None]]) -> list[ContentId] | None:
    """In a thread: the next few files of their own, past millions in packs; None at the end."""
    looked = list(islice(records, _AT_ONCE))
    return [content for content, cached in looked if cached is not None and not cached.pack] if looked else None


def _orphans(index: Index, tier: Tier) -> list[tuple[Item, Path]]:
    return list(orphans(index, tier))
