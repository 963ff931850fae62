"""Datasets of a worker: their under-stores, their snapshots, and the listings that fill these."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import trio

from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.errors import ForebayError, NotAttached, SourceNotFound, SourceTimeout, UsageError
from forebay.cacheruntime.keys import DatasetId, dataset_id, node_id
from forebay.cacheruntime.listing_order import ListingOrder
from forebay.cacheruntime.understore.base import Entry, UnderStore
from forebay.cacheruntime.understore.credentials import redact
from forebay.cacheruntime.understore.factory import open_store
from forebay.cacheruntime.worker.snapshot import Snapshot, about_to_come, all_held, writable

log = logging.getLogger(__name__)

_PROBE_GRACE_S = 2.0

_GATHERED_ENTRIES = 10_000
"""Written in one transaction at most: nearly all that larger ones gain, in a few megabytes of memory."""
_GATHERED_S = 0.2
"""What is listed is not held back for longer, as somebody may be looking."""


@dataclass
class Dataset:
    """One attached source."""

    id: DatasetId
    source: str
    options: dict[str, str]
    store: UnderStore
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    dropped: list[Snapshot] = field(default_factory=list)
    """Removed from sight and disk while tasks of this worker still had them; to be closed."""
    last_used: float = 0.0

    @property
    def newest(self) -> Snapshot | None:
        return self.snapshots[max(self.snapshots)] if self.snapshots else None


class Datasets:
    """All datasets that were attached since the worker started."""

    def __init__(self, config: CacheConfig, nursery: trio.Nursery, in_use: Callable[[], set[Path]]) -> None:
        """
        Args:
            config: of the cache.
            nursery: runs the listings.
            in_use: folders of the snapshots that live mounts read.
        """
        self._root = config.cache_dir / "datasets"
        self._retry = config.retry
        self._nursery = nursery
        self._in_use = in_use
        self._lock = trio.Lock()
        self._listers = trio.CapacityLimiter(8)
        self._directories: dict[tuple[DatasetId, bytes], trio.Event] = {}
        self.all: dict[DatasetId, Dataset] = {}

    def get(self, name: str) -> Dataset:
        """Raises NotAttached, upon which the client attaches again: this worker is a new one."""
        found = self.all.get(DatasetId(name))
        if found is None:
            raise NotAttached(f"dataset {name} is not attached")
        found.last_used = time.monotonic()
        return found

    def last_used(self, name: DatasetId) -> float:
        found = self.all.get(name)
        return found.last_used if found else 0.0

    def folder(self, name: DatasetId) -> Path:
        return self._root / name

    async def attach(self, source: str, options: dict[str, str]) -> Dataset:
        """Open a source, or take it up again with these options; it has answered when this returns.

        Raises:
            SourceError, UsageError: as the under-store's `probe` says.
        """
        async with self._lock:
            store = await trio.to_thread.run_sync(open_store, source, options, self._retry)
            name = dataset_id(store.url)
            known = self.all.get(name)
            if known is not None and known.options == options:
                store.close()
                known.last_used = time.monotonic()
                return known
            try:
                await self._probe(store)
            except BaseException:
                store.close()
                raise
            log.info("attached %s as %s with %s", store.url, name, redact(options))
            if known is not None:
                known.store, known.options = store, options  # the old one serves the reads that hold it
                return known
            self.all[name] = Dataset(name, source, options, store, last_used=time.monotonic())
            return self.all[name]

    async def _probe(self, store: UnderStore) -> None:
        """The store's own deadline bounds when a try begins; a person who waits for `mount` is bounded here."""
        allowed_s = self._retry.probe_deadline_s + _PROBE_GRACE_S
        with trio.move_on_after(allowed_s) as waiting:
            await trio.to_thread.run_sync(store.probe, abandon_on_cancel=True)
        if waiting.cancelled_caught:
            raise SourceTimeout(f"{store.url} did not answer within {allowed_s:g} s; check endpoint and network")

    def snapshot_of(self, dataset: Dataset, relist: bool, number: int = 0) -> Snapshot:
        """The snapshot to read: `number` if given, else the newest, or a new one.

        Args:
            dataset: of which.
            relist: make a new one unless a listing is under way.
            number: go on with this one; 0 for none in particular.
        """
        newest = dataset.newest
        if number:
            snapshot = dataset.snapshots.get(number) or self._open(dataset, number)
        elif newest is not None and (not relist or not newest.ended.is_set()):
            snapshot = newest
        else:
            snapshot = self.next_snapshot(dataset)
        snapshot.asked_for = time.monotonic()
        return snapshot

    def next_snapshot(self, dataset: Dataset) -> Snapshot:
        """Begin to list the source into a new snapshot, and remove those that nobody needs any more."""
        self._remove_old(dataset)
        return self._open(dataset, self._next_number(dataset))

    def opened(self, dataset: Dataset, number: int) -> Snapshot | None:
        """A snapshot that some mount shows; None when its folder is gone."""
        known = dataset.snapshots.get(number)
        if known is None and (self.folder(dataset.id) / str(number)).exists():
            known = self._open(dataset, number)
            known.asked_for = time.monotonic()
        return known

    def chosen(self, dataset: Dataset, number: int) -> Snapshot:
        """A snapshot by its number, the newest for 0.

        Raises:
            UsageError: there is none of that number.
            ForebayError: the dataset was never listed.
        """
        found = self.opened(dataset, number) if number else dataset.newest
        if found is None and number:
            raise UsageError(f"{dataset.store.url} has no snapshot {number} here")
        if found is None:
            raise ForebayError("the dataset has no snapshot: attach it with list set first")
        return found

    def drop(self, dataset: Dataset, snapshot: Snapshot) -> None:
        """Remove a snapshot that no client was told of, though tasks of this worker may be writing to it."""
        del dataset.snapshots[snapshot.number]
        dataset.dropped.append(snapshot)
        self._close_dropped(dataset)
        shutil.rmtree(snapshot.writer.folder, ignore_errors=True)

    @staticmethod
    def _close_dropped(dataset: Dataset) -> None:
        for snapshot in [s for s in dataset.dropped if not s.users]:
            dataset.dropped.remove(snapshot)
            snapshot.writer.close()

    def _next_number(self, dataset: Dataset) -> int:
        """One more than the last, also when that one is gone: a number names one listing for ever."""
        folder = self.folder(dataset.id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        last = folder / "last-snapshot"
        number = (int(last.read_text()) if last.exists() else 0) + 1
        last.write_text(str(number))
        return number

    def _open(self, dataset: Dataset, number: int) -> Snapshot:
        writer = CatalogueWriter(self.folder(dataset.id) / str(number), dataset.store.url)
        snapshot = Snapshot(number, writer, writer.reader())
        dataset.snapshots[number] = snapshot
        (self.folder(dataset.id) / "source").write_text(dataset.store.url)
        if snapshot.catalogue.complete:
            snapshot.first_page.set()
            snapshot.ended.set()
        else:
            self._nursery.start_soon(self._list, dataset, snapshot)
        return snapshot

    def _remove_old(self, dataset: Dataset) -> None:
        """Delete snapshots that no mount reads. Whoever still has one mapped keeps it until it closes it."""
        self._close_dropped(dataset)
        used = self._in_use()
        folder = self.folder(dataset.id)
        for path in folder.iterdir() if folder.exists() else ():
            if not path.name.isdigit() or path in used:
                continue
            opened = dataset.snapshots.get(int(path.name))
            if opened is not None:
                if opened.users or opened.young or not opened.ended.is_set():
                    continue
                del dataset.snapshots[opened.number]
                opened.writer.close()
            shutil.rmtree(path, ignore_errors=True)

    async def _list(self, dataset: Dataset, snapshot: Snapshot) -> None:
        token = trio.lowlevel.current_trio_token()
        order = snapshot.order = ListingOrder(dataset.store.url) if dataset.store.lists_in_key_order else None

        def written() -> None:
            snapshot.first_page.set()
            snapshot.has_moved()

        def work() -> None:
            pages: Iterable[list[Entry]] = dataset.store.list_tree()
            trusted = order is not None
            for page in _gathered(order.follow(pages) if order is not None else pages):
                with writable(snapshot):
                    snapshot.writer.add(page, order.take_passed() if order is not None else ())
                    if order is not None and trusted and not order.kept:
                        trusted = False
                        snapshot.writer.unlist_directories()
                token.run_sync_soon(written)
            with writable(snapshot):
                snapshot.writer.finish()

        try:
            await trio.to_thread.run_sync(work, limiter=self._listers, abandon_on_cancel=True)
        except ForebayError as failure:
            snapshot.failure = failure
            log.warning("listing of %s broke off: %s", dataset.store.url, failure)
            with suppress(lmdb.Error):  # no room even for that
                await trio.to_thread.run_sync(snapshot.writer.finish, str(failure))
        snapshot.ended.set()
        written()

    async def list_directory(self, dataset: Dataset, path: bytes, name: bytes = b"") -> None:
        """Bring one directory into every snapshot whose listing has not ended well.

        With a `name`, only that is asked for first: one file of a directory of a million must not wait for the rest.
        A directory that the background listing is about to bring is waited for.
        """
        pending = [s for s in dataset.snapshots.values() if not s.catalogue.complete]
        with all_held(pending):
            if not pending or (name and await self._find_name(dataset, pending, path + b"/" + name if path else name)):
                return
            node = node_id(path, b"")
            if all(s.catalogue.is_settled(node) or not s.ended.is_set() for s in pending):
                for snapshot in pending:
                    await about_to_come(snapshot, path)
            pending = [s for s in pending if not s.catalogue.is_settled(node)]
            if not pending:
                return
            key = (dataset.id, path)
            if (under_way := self._directories.get(key)) is not None:
                await under_way.wait()
                return
            self._directories[key] = trio.Event()
            try:
                await self._list_directory(dataset, pending, path)
            finally:
                self._directories.pop(key).set()

    async def _find_name(self, dataset: Dataset, pending: list[Snapshot], path: bytes) -> bool:
        def work() -> bool:
            try:
                entry = dataset.store.stat(os.fsdecode(path))
            except SourceNotFound:
                return False  # or a directory, which only a listing shows
            for snapshot in pending:
                snapshot.writer.add([entry])
            return True

        return await trio.to_thread.run_sync(work, limiter=self._listers, abandon_on_cancel=True)

    async def _list_directory(self, dataset: Dataset, pending: list[Snapshot], path: bytes) -> None:
        def work() -> None:
            try:
                entries = dataset.store.list_directory(os.fsdecode(path))
            except SourceNotFound:
                entries = []
            for snapshot in pending:
                snapshot.writer.replace_directory(path, entries)

        await trio.to_thread.run_sync(work, limiter=self._listers, abandon_on_cancel=True)

    async def refresh_file(self, dataset: Dataset, path: str) -> None:
        """A file proved to be another version than listed: show what it is now, in all snapshots."""

        def work() -> None:
            try:
                entry = dataset.store.stat(path)
            except SourceNotFound:
                entry = None
            except ForebayError as error:
                log.warning("%s: %r changed and cannot be looked at: %s", dataset.store.url, path, error)
                return
            for snapshot in snapshots:
                if entry is None:
                    snapshot.writer.remove(os.fsencode(path))
                else:
                    snapshot.writer.add([entry])

        snapshots = list(dataset.snapshots.values())
        with all_held(snapshots):
            # Cancelled only when the worker ends, which must not wait for a source that does not answer.
            await trio.to_thread.run_sync(work, limiter=self._listers, abandon_on_cancel=True)


def _gathered(pages: Iterable[list[Entry]]) -> Iterator[list[Entry]]:
    """Join pages that come fast, for one large transaction costs less than many; the first is given out at once.

    When the pages break off, what came before is given out first.
    """
    gathered: list[Entry] = []
    due = time.monotonic()
    try:
        for page in pages:
            gathered += page
            if len(gathered) >= _GATHERED_ENTRIES or time.monotonic() >= due:
                yield gathered
                gathered = []
                due = time.monotonic() + _GATHERED_S
    except ForebayError:
        yield gathered
        raise
    yield gathered
