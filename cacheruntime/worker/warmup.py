"""Warming up: whole files into the cache, many at a time, with progress."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.config import MIB, Medium
from forebay.cacheruntime.errors import ForebayError, SourceNotFound, SourceStale
from forebay.cacheruntime.jobs import JobProgress, JobRequest
from forebay.cacheruntime.selection import Selection
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.pins import pin
from forebay.cacheruntime.worker.small_files import MOST_AT_ONCE, SmallFiles
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.spread import PIECES_UNDER_WAY, Spread, slices
from forebay.cacheruntime.worker.storage import Storage

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

_FAILURES_SHOWN = 20
"""With the progress; all of them are in the job's log of failures."""

_BATCH = 512
"""Files taken from the catalogue in one go: about 2 ms of a thread."""

DEFAULT_LARGE_JOBS, DEFAULT_SMALL_JOBS = 8, 256
"""A store in the region takes 20 ms for a small file, and what came waits a few for its turn to be written: 256 at once
make 10,000 a second. Large files fill the worker's slots with fewer."""

_WINDOWS = 2
"""Of one file under way: while the last GETs of one come in, those of the next have begun."""

_RATE_STEP_S = 0.25
"""A limited warm-up asks for what it may have in this time at once."""


@dataclass
class Progress:
    """How far a warm-up has come; fields as in proto's WarmupProgress."""

    files_total: int = 0
    files_done: int = 0
    files_failed: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    files_uncached: int = 0
    failures: list[str] = field(default_factory=list)
    listing: bool = True
    finished: bool = False
    bytes_fetched: int = 0
    files_verified: int = 0
    files_damaged: int = 0
    elapsed_s: float = 0.0

    def record(self) -> JobProgress:
        """For the job's record."""
        return JobProgress(**{name: getattr(self, name) for name in JobProgress.__dataclass_fields__})


class RateLimit:
    """Bytes for each second, in the order of asking."""

    def __init__(self, bytes_s: int) -> None:
        """Args: bytes_s: 0 for no limit."""
        self._bytes_s = bytes_s
        self._next = trio.current_time()

    async def take(self, size: int) -> None:
        """Wait until these bytes may be asked for."""
        if not self._bytes_s:
            return
        start = max(self._next, trio.current_time())
        self._next = start + size / self._bytes_s
        await trio.sleep_until(start)


class Warmup:
    """One warm-up of a snapshot."""

    def __init__(
        self,
        dataset: Dataset,
        snapshot: Snapshot,
        request: JobRequest,
        filler: Filler,
        small: SmallFiles,
        storage: Storage,
        failed: Callable[[str, str], None] = lambda path, error: None,
        stale: Callable[[str], None] = lambda path: None,
        cluster: "ClusterNode | None" = None,
    ) -> None:
        """
        Args:
            dataset, snapshot: of what.
            request: what is wanted.
            filler, small, storage: of the worker.
            failed: told path and reason of each file that could not be had.
            stale: told the path of each file that is another version than listed.
            cluster: have each file brought in by its owners; None: by this worker.
        """
        self.dataset = dataset
        self.snapshot = snapshot
        self._request = request
        self._filler = filler
        self._small = small
        self._storage = storage
        self._failed = failed
        self._stale = stale
        self._cluster = cluster
        globs = [os.fsencode(glob) for glob in request.globs]
        self._selection = Selection([os.fsencode(path) for path in request.paths], globs)
        self._large_at_once = min(request.jobs or DEFAULT_LARGE_JOBS, MOST_AT_ONCE)
        self._small_at_once = min(request.jobs or DEFAULT_SMALL_JOBS, MOST_AT_ONCE)
        self._medium = Medium[request.medium] if request.medium else None
        self._under_way = 0
        self._idle = trio.Event()
        self.progress = Progress()

    async def run(self) -> None:
        """Bring everything in; what fails is counted and the rest goes on.

        Raises:
            SourceNotFound: nothing of what was asked for is in the snapshot.
            ForebayError: the listing broke off.
        """
        await self.snapshot.ended.wait()
        totals = self.snapshot.catalogue.totals()
        if totals.error:
            raise ForebayError(f"the listing of {self.dataset.store.url} broke off: {totals.error}")
        await self._count()
        if self._request.pin:
            await pin(self._storage, self.dataset, self.snapshot, self._selection.paths)  # before anything comes
        if not self._request.metadata_only:
            limit = RateLimit(self._request.rate_bytes_s)
            if self._cluster is not None:
                await self._spread_all(self._cluster, limit)
            else:
                await self._bring_all(limit)
                if self._request.verify:
                    await self._verify_all(limit)
        self.progress.finished = True

    async def _count(self) -> None:
        """Totals, and what is not there."""
        progress, catalogue = self.progress, self.snapshot.catalogue
        totals = catalogue.totals()
        if self._selection.is_all:
            progress.files_total, progress.bytes_total = totals.files, totals.bytes
        else:
            missing = await trio.to_thread.run_sync(self._selection.missing, catalogue)
            async for batch in self._batches():
                progress.files_total += len(batch)
                progress.bytes_total += sum(node.size for _, node in batch)
            if not progress.files_total and (missing or self._request.globs):
                what = repr(os.fsdecode(missing[0])) if missing else f"file like {self._request.globs[0]!r}"
                url, number = self.dataset.store.url, self.snapshot.number
                raise SourceNotFound(f"{url}: there is no {what} in snapshot {number}")
            progress.files_total += len(missing)
            for path in missing:
                self._fail(os.fsdecode(path), f"not in snapshot {self.snapshot.number}")
        progress.listing = False

    async def _batches(self) -> AsyncIterator[list[tuple[bytes, Node]]]:
        """The files that are meant. The catalogue is read in a thread: others are served meanwhile."""
        files = self._selection.files(self.snapshot.catalogue)

        def take(files: Iterator[tuple[bytes, Node]] = files) -> list[tuple[bytes, Node]]:
            return list(islice(files, _BATCH))

        while batch := await trio.to_thread.run_sync(take):
            yield batch

    # Bringing

    async def _bring_all(self, limit: RateLimit) -> None:
        with self._small.used():
            await self._bring_batches(limit)
            while self._under_way:
                self._idle = trio.Event()
                await self._idle.wait()

    async def _bring_batches(self, limit: RateLimit) -> None:
        sender, receiver = trio.open_memory_channel[tuple[str, Node]](0)
        async with trio.open_nursery() as nursery:
            for _ in range(self._large_at_once):
                nursery.start_soon(self._bring_from, receiver.clone(), limit)
            receiver.close()
            async with sender:
                async for batch in self._batches():
                    for path, node in batch:
                        await self._take(os.fsdecode(path), node, sender, limit)

    async def _take(
        self, path: str, node: Node, sender: "trio.MemorySendChannel[tuple[str, Node]]", limit: RateLimit
    ) -> None:
        cached = self._storage.find(node.content)
        skipped = cached is not None and (cached.complete or self._request.skip_existing)
        if skipped or not node.size:
            self.progress.files_done += 1
            self.progress.bytes_done += node.size
            return
        if cached is None and self._filler.is_small(node.size):
            await limit.take(node.size)
            if await self._small.fetch(
                self.dataset.file(path, node.size, node.version, content=node.content),
                self._medium,
                self._small_at_once,
                self._small_done(path, node),
            ):
                self._under_way += 1
                return
        await sender.send((path, node))

    def _small_done(self, path: str, node: Node) -> Callable[[bool, ForebayError | None], None]:
        def done(cached: bool, error: ForebayError | None) -> None:
            if error is not None:
                self._file_failed(path, error)
            else:
                self.progress.files_done += 1
                self.progress.files_uncached += not cached
                self.progress.bytes_done += node.size
                self.progress.bytes_fetched += node.size
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

        return done

    async def _bring_from(self, receiver: "trio.MemoryReceiveChannel[tuple[str, Node]]", limit: RateLimit) -> None:
        async with receiver:
            async for path, node in receiver:
                try:
                    await self._bring(path, node, limit)
                except ForebayError as error:
                    self._file_failed(path, error)
                else:
                    self.progress.files_done += 1

    async def _bring(self, path: str, node: Node, limit: RateLimit) -> None:
        """One file, a few windows at a time; what is cached of it is passed over."""
        step = self._filler.window_bytes
        if self._request.rate_bytes_s:
            step = min(step, max(MIB, int(self._request.rate_bytes_s * _RATE_STEP_S) // MIB * MIB))
        turns = trio.Semaphore(_WINDOWS)
        errors: list[ForebayError] = []

        async def window(offset: int) -> None:
            try:
                await self._bring_window(path, node, offset, min(step, node.size - offset), limit)
            except ForebayError as error:
                errors.append(error)
            finally:
                turns.release()

        async with trio.open_nursery() as nursery:
            for offset in range(0, node.size, step):
                await turns.acquire()
                if errors:
                    break
                nursery.start_soon(window, offset)
        if errors:
            raise errors[0]
        cached = self._storage.index.reader.find(node.content)
        if node.size and (cached is None or not cached.complete):
            self.progress.files_uncached += 1

    async def _bring_window(self, path: str, node: Node, offset: int, length: int, limit: RateLimit) -> None:
        cached = self._storage.index.reader.find(node.content)
        if cached is None or not cached.has(offset, offset + length):
            await limit.take(length)
            await self._filler.fill(
                self.dataset.file(path, node.size, node.version, content=node.content),
                offset,
                length,
                length,
                through=False,
                medium=self._medium,
            )
            self.progress.bytes_fetched += length
        self.progress.bytes_done += length

    # By the owners

    async def _spread_all(self, cluster: "ClusterNode", limit: RateLimit) -> None:
        pieces = trio.Semaphore(PIECES_UNDER_WAY)
        async with trio.open_nursery() as nursery:
            spread = Spread(
                cluster, self.dataset.in_cluster.dataset_id, nursery, medium=self._request.medium,
                skip_existing=self._request.skip_existing,
            )  # fmt: skip
            async for batch in self._batches():
                for path, node in batch:
                    await pieces.acquire()
                    nursery.start_soon(self._spread_file, spread, os.fsdecode(path), node, limit, pieces)

    async def _spread_file(
        self, spread: Spread, path: str, node: Node, limit: RateLimit, pieces: trio.Semaphore
    ) -> None:
        """One file, all its slices at once."""
        file = self.dataset.file(path, node.size, node.version)
        uncached: list[int] = []
        damaged: list[int] = []
        errors: list[ForebayError] = []

        async def bring(offset: int, length: int) -> None:
            try:
                await limit.take(length)
                reply = await spread.bring(file, offset, length, suspect=self._request.verify)
            except ForebayError as error:
                errors.append(error)
                return
            self.progress.bytes_done += length
            self.progress.bytes_fetched += reply.bytes_fetched
            uncached.extend([offset] * reply.uncached)
            damaged.extend([offset] * reply.damaged)

        try:
            if node.size:
                async with trio.open_nursery() as nursery:
                    for offset, length in slices(node.size, small=self._filler.is_small(node.size)):
                        nursery.start_soon(bring, offset, length)
        finally:
            pieces.release()
        self.progress.files_damaged += bool(damaged)
        if errors:
            self._file_failed(path, errors[0])
            return
        self.progress.files_done += 1
        self.progress.files_uncached += bool(uncached)
        self.progress.files_verified += self._request.verify

    # Verifying

    async def _verify_all(self, limit: RateLimit) -> None:
        """Read everything that is cached again; what is damaged is dropped and brought once more."""
        async for batch in self._batches():
            for path, node in batch:
                sound = await self._is_sound(node)
                if sound is False:
                    self.progress.files_damaged += 1
                    sound = await self._mend(os.fsdecode(path), node, limit)
                self.progress.files_verified += sound is True

    async def _is_sound(self, node: Node) -> bool | None:
        """Whether all that is cached of a file is what was fetched; if not, it is dropped. None: nothing is cached."""
        damage = self._storage.damage.files
        if self._storage.find(node.content) is None:
            return None if self._storage.damage.files == damage else False  # it was removed from outside
        await self._filler.verifier.verify(node.content)
        return self._storage.index.reader.find(node.content) is not None

    async def _mend(self, path: str, node: Node, limit: RateLimit) -> bool | None:
        """Bring a damaged file anew; as `_is_sound` afterwards."""
        try:
            await self._bring(path, node, limit)
        except ForebayError as error:
            self.progress.files_done -= 1
            self._file_failed(path, error)
            return None
        sound = await self._is_sound(node)
        if sound is False:
            self.progress.files_done -= 1
            self._fail(path, "its bytes in the tier do not agree with their checksums, twice; check that disk")
        return sound

    # Failures

    def _file_failed(self, path: str, error: ForebayError) -> None:
        if isinstance(error, SourceStale):
            self._stale(path)
        self._fail(path, str(error))

    def _fail(self, path: str, reason: str) -> None:
        self.progress.files_failed += 1
        if len(self.progress.failures) < _FAILURES_SHOWN:
            self.progress.failures.append(f"{path}: {reason}")
        self._failed(path, reason)
