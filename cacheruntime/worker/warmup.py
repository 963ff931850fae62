"""Warming up: whole files into the cache, several at a time, with progress."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.errors import ForebayError, SourceNotFound
from forebay.cacheruntime.understore.base import Kind
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.storage import Storage

_PROGRESS_INTERVAL_S = 0.2
_FAILURES_SHOWN = 20
_QUEUE = 256
"""Files found but not taken up yet; bounds memory while the walk runs ahead of the fetches."""


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


class Warmup:
    """One warm-up of paths of a snapshot."""

    def __init__(
        self, dataset: Dataset, snapshot: Snapshot, paths: list[bytes], jobs: int, filler: Filler, storage: Storage
    ) -> None:
        self._dataset = dataset
        self.snapshot = snapshot
        self._paths = paths or [b""]
        self._jobs = jobs
        self._filler = filler
        self._storage = storage
        self.progress = Progress()
        self.scope = trio.CancelScope()
        self.failed: ForebayError | None = None

    async def run(self) -> None:
        """Bring everything in; what fails is counted and the rest goes on.

        Raises:
            SourceNotFound: a path is not in the snapshot.
            ForebayError: the listing broke off.
        """
        await self.snapshot.ended.wait()
        totals = self.snapshot.catalogue.totals()
        if totals.error:
            raise ForebayError(f"the listing of {self._dataset.store.url} broke off: {totals.error}")
        self.progress.listing = False
        for path in self._paths:
            found = self.snapshot.catalogue.resolve(path)
            if found is None:
                url, number = self._dataset.store.url, self.snapshot.number
                raise SourceNotFound(f"{url}: there is no {os.fsdecode(path)!r} in snapshot {number}")
        if self._paths == [b""]:
            self.progress.files_total, self.progress.bytes_total = totals.files, totals.bytes
        else:
            for node in self._files():
                self.progress.files_total += 1
                self.progress.bytes_total += node.size
        sender, receiver = trio.open_memory_channel[Node](_QUEUE)
        async with trio.open_nursery() as nursery:
            for _ in range(self._jobs):
                nursery.start_soon(self._work, receiver.clone())
            receiver.close()
            async with sender:
                for node in self._files():
                    await sender.send(node)
        self.progress.finished = True

    def _files(self) -> Iterator[Node]:
        catalogue = self.snapshot.catalogue
        for path in self._paths:
            found = catalogue.resolve(path)
            if found is not None and found.kind is Kind.FILE:
                yield found
            elif found is not None:
                yield from catalogue.files_below(found.node)

    async def _work(self, receiver: trio.MemoryReceiveChannel[Node]) -> None:
        async with receiver:
            async for node in receiver:
                path = os.fsdecode(self.snapshot.catalogue.path_of(node.node))
                try:
                    await self._bring(node, path)
                except ForebayError as error:
                    self.progress.files_failed += 1
                    if len(self.progress.failures) < _FAILURES_SHOWN:
                        self.progress.failures.append(f"{path}: {error}")
                else:
                    self.progress.files_done += 1

    async def _bring(self, node: Node, path: str) -> None:
        file = self._dataset.file(path, node.size, node.version)
        step = self._filler.window_bytes
        for offset in range(0, node.size, step):
            length = min(step, node.size - offset)
            cached = self._storage.index.reader.find(node.content)
            self._dataset.last_used = time.monotonic()  # or what was loaded a minute ago would count as idle
            if cached is None or not cached.has(offset, offset + length):
                await self._filler.fill(file, offset, length, length, through=False)
            self.progress.bytes_done += length
        cached = self._storage.index.reader.find(node.content)
        if node.size and (cached is None or not cached.complete):
            self.progress.files_uncached += 1

    async def updates(self) -> bool:
        """Wait until there is something new to show; False once it is over."""
        await trio.sleep(_PROGRESS_INTERVAL_S)
        return not (self.progress.finished or self.failed is not None)


DEFAULT_JOBS = 8
MOST_JOBS = 256


def jobs_or_default(jobs: int) -> int:
    """Files brought in at once, from what the user asked for (0: no wish)."""
    return min(max(jobs or DEFAULT_JOBS, 1), MOST_JOBS)
