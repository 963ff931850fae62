"""Datasets of a worker: their under-stores, their snapshots, and the listings that fill these."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import trio

from forebay.cacheruntime.catalogue import Totals
from forebay.cacheruntime.catalogue_changes import compare
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.dataset_source import ClusterView, StoreMount, tree_id
from forebay.cacheruntime.durable import write_durably
from forebay.cacheruntime.errors import CacheError, ForebayError, NotAttached, SourceNotFound, SourceTimeout, UsageError
from forebay.cacheruntime.keys import DatasetId, Roots, dataset_id, node_id
from forebay.cacheruntime.listing_order import ListingOrder
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.snapshot_history import (
    UNCHANGED,
)
from forebay.cacheruntime.understore.base import Entry, UnderStore
from forebay.cacheruntime.understore.composite import Child, CompositeStore, in_order
from forebay.cacheruntime.understore.credentials import redact
from forebay.cacheruntime.understore.factory import canonical_source, open_store
from forebay.cacheruntime.worker.dataset import Dataset, Definition
from forebay.cacheruntime.worker.history import History
from forebay.cacheruntime.worker.snapshot import Snapshot, about_to_come, all_held, writable
from forebay.cacheruntime.worker.snapshot_store import SnapshotStore

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

log = logging.getLogger(__name__)

_PROBE_GRACE_S = 2.0

_GATHERED_ENTRIES = 10_000
"""Written in one transaction at most: nearly all that larger ones gain, in a few megabytes of memory."""
_GATHERED_S = 0.2
"""What is listed is not held back for longer, as somebody may be looking."""


class Datasets:
    """All datasets that were attached since the worker started."""

    def __init__(self, config: CacheConfig, nursery: trio.Nursery, mounts: Callable[[], Iterable[MountState]]) -> None:
        """
        Args:
            config: of the cache.
            nursery: runs the listings.
            mounts: the live ones of this cache.
        """
        self._retry = config.retry
        self._nursery = nursery
        self._mounts = mounts
        self._lock = trio.Lock()
        self._listers = trio.CapacityLimiter(8)
        self._comparers = trio.CapacityLimiter(1)
        self._directories: dict[tuple[DatasetId, bytes], trio.Event] = {}
        self.all: dict[DatasetId, Dataset] = {}
        self.cluster: ClusterNode | None = None
        """Other workers that files may come from."""
        self.history = History(config.cache_dir / "datasets", self.all, mounts)

    def get(self, name: str) -> Dataset:
        """Raises NotAttached, upon which the client attaches again: this worker is a new one."""
        found = self.all.get(DatasetId(name))
        if found is None:
            raise NotAttached(f"dataset {name} is not attached")
        found.last_used = time.monotonic()
        return found

    def last_used(self, name: DatasetId) -> float:
        """When it was last read, by itself or as part of another one (monotonic); 0.0: not since the worker started."""
        return max((d.last_used for d in self.all.values() if d.id == name or name in d.owners), default=0.0)

    async def attach(
        self,
        source: str,
        options: dict[str, str],
        stores: tuple[StoreMount, ...] = (),
        view: ClusterView | None = None,
    ) -> Dataset:
        """Open a source, or take it up again with these options; it has answered when this returns.

        Args:
            source: a URL, or the name of a dataset that has one.
            options: for a URL.
            stores: of a dataset with a name.
            view: on a client node, where it is a part of a dataset of the cluster.

        Raises:
            SourceError, UsageError: as the under-store's `probe` says.
        """
        async with self._lock:
            return await self._attach(Definition(source, options, stores, view), probe=True)

    async def _attach(self, definition: Definition, *, probe: bool) -> Dataset:
        store = await self._open_store(definition)
        name = tree_id(definition.source, list(definition.stores)) if definition.stores else dataset_id(store.url)
        known = self.all.get(name)
        if known is not None and known.definition == definition:
            store.close()
            known.last_used = time.monotonic()
            return known
        try:
            if probe:
                await self._probe(store)
        except BaseException:
            store.close()
            raise
        shown = {each.path or "/": redact(each.options) for each in definition.stores}
        log.info("attached %s as %s with %s", store.url, name, shown or redact(definition.options))
        if known is not None:
            known.store, known.definition = store, definition  # the old one serves the reads that hold it
            return known
        roots = Roots(store.url, store.roots()) if isinstance(store, CompositeStore) else Roots(store.url)
        peers = self.cluster.source if self.cluster is not None else None
        self.all[name] = Dataset(
            name, definition, store, roots, last_used=time.monotonic(), peers=peers, attached=self.all
        )
        self._note_source(self.all[name])
        return self.all[name]

    def _note_source(self, dataset: Dataset) -> None:
        """So that commands can tell what it is, listed or not."""
        self.folder(dataset.id).mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder(dataset.id) / "source").write_text(dataset.store.url)

    async def _open_store(self, definition: Definition) -> UnderStore:
        if self.cluster is not None and not self.cluster.has_store:
            return self._open_remote(definition, self.cluster)
        if definition.view is not None:
            raise UsageError(f"{definition.source} is a view of a cluster's dataset, and this is no client node of one")
        if not definition.stores:
            return await trio.to_thread.run_sync(open_store, definition.source, definition.options, self._retry)
        children: list[Child] = []
        try:
            for each in definition.stores:
                if each.of_dataset:
                    store: UnderStore = await self._open_snapshot(each)
                else:
                    store = await trio.to_thread.run_sync(open_store, each.source, dict(each.options), self._retry)
                children.append(Child(each.path, store, each.owner, each.owner_path))
        except BaseException:
            for child in children:
                child.store.close()
            raise
        return CompositeStore(definition.source, children)

    @staticmethod
    def _open_remote(definition: Definition, cluster: "ClusterNode") -> UnderStore:
        """What a client node has in place of stores."""
        if not definition.stores:
            url = canonical_source(definition.source, definition.options)
            return cluster.open_remote(url, ClusterView(dataset_id(url)), leads=True)
        view = definition.view or ClusterView(tree_id(definition.source, list(definition.stores)))
        places = [(path, url, each) for each in definition.stores for path, url in each.roots()]
        first = min((path for path, _, _ in places), key=in_order)
        return CompositeStore(
            definition.source,
            [
                Child(
                    path, cluster.open_remote(url, replace(view, path=view.below(path)), leads=path == first),
                    each.owner, "/".join(filter(None, (each.owner_path, path[len(each.path) :].strip("/")))),
                )
                for path, url, each in places
            ],
        )  # fmt: skip

    async def _open_snapshot(self, mount: StoreMount) -> SnapshotStore:
        """A snapshot of another dataset, which is attached for that if it is not."""
        base = await self._attach(Definition(mount.of_dataset, {}, mount.stores), probe=False)
        snapshot = self._whole(base, mount.of_snapshot)
        assert isinstance(base.store, CompositeStore)  # it has stores
        url = f"{mount.of_dataset}@{mount.of_snapshot}"
        return SnapshotStore(url, base.store, snapshot.catalogue, mount.of_path)

    async def _probe(self, store: UnderStore) -> None:
        """The store's own deadline bounds when a try begins; a person who waits for `mount` is bounded here."""
        allowed_s = self._retry.probe_deadline_s + _PROBE_GRACE_S
        with trio.move_on_after(allowed_s) as waiting:
            await trio.to_thread.run_sync(store.probe, abandon_on_cancel=True)
        if waiting.cancelled_caught:
            raise SourceTimeout(f"{store.url} did not answer within {allowed_s:g} s; check endpoint and network")

    def folder(self, name: DatasetId) -> Path:
        return self.history.folder(name)

    def snapshot_of(
        self, dataset: Dataset, relist: bool, number: int = 0, *, stored: bool = False, pinned: bool = False
    ) -> Snapshot:
        """The snapshot to read: `number` if given, else the newest, or a new one.

        Args:
            dataset: of which.
            relist: make a new one unless a listing is under way.
            number: go on with this one; 0 for none in particular.
            stored: the newest whole one on disk will do.
            pinned: `number` has to be there, and stays as it is.

        Raises:
            SourceNotFound: there is no snapshot of that number.
        """
        newest = dataset.newest
        if number and pinned:
            snapshot = self._whole(dataset, number)
            snapshot.pinned_at = time.monotonic()
        elif number:
            snapshot = dataset.snapshots.get(number) or self._open(dataset, number)
        elif newest is not None and (not relist or not newest.ended.is_set()):
            snapshot = newest
        else:
            whole = [s.number for s in self.history.stored(dataset) if s.complete] if stored and newest is None else []
            snapshot = self._open(dataset, whole[-1]) if whole else self.next_snapshot(dataset)
        snapshot.asked_for = time.monotonic()
        return snapshot

    def _whole(self, dataset: Dataset, number: int) -> Snapshot:
        whole = [stored.number for stored in self.history.stored(dataset) if stored.complete]
        if number not in whole:
            there = f"there are {', '.join(map(str, whole))}" if whole else "there is none"
            raise SourceNotFound(f"{dataset.store.url} has no snapshot {number}; {there}")
        return dataset.snapshots.get(number) or self._open(dataset, number)

    def list_anew(self, dataset: Dataset) -> None:
        """On a client node: have the workers list the source for the next snapshot. Other nodes always do."""
        if self.cluster is not None and not self.cluster.has_store:
            self.cluster.list_anew(dataset)

    def next_snapshot(self, dataset: Dataset) -> Snapshot:
        """Begin to list the source into a new snapshot, and remove those that nobody needs any more."""
        self.history.collect(dataset)
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
        self.history.close_dropped(dataset)
        shutil.rmtree(snapshot.writer.folder, ignore_errors=True)

    def _next_number(self, dataset: Dataset) -> int:
        """One more than the last, also when that one is gone: a number names one listing for ever."""
        folder = self.folder(dataset.id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        last = folder / "last-snapshot"
        number = (int(last.read_text()) if last.exists() else 0) + 1
        write_durably(last, str(number))
        return number

    def _open(self, dataset: Dataset, number: int) -> Snapshot:
        writer = CatalogueWriter(self.folder(dataset.id) / str(number), dataset.roots)
        snapshot = Snapshot(number, writer, writer.reader())
        dataset.snapshots[number] = snapshot
        self._note_source(dataset)
        if snapshot.catalogue.complete:
            snapshot.first_page.set()
            snapshot.ended.set()
        else:
            self._nursery.start_soon(self._list, dataset, snapshot)
        return snapshot

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
        with snapshot.held():
            snapshot.ended.set()
            written()
            if snapshot.asked_for and snapshot.failure is None:  # a sync looks at its own
                with suppress(OSError, lmdb.Error):  # it is a matter of tidiness
                    await self._note_unchanged(dataset, snapshot)

    async def _note_unchanged(self, dataset: Dataset, snapshot: Snapshot) -> None:
        """Mark a snapshot that shows what the one before it shows: it is no history."""
        before = [s for s in self.history.stored(dataset) if s.complete and s.number < snapshot.number]
        if not before or before[-1].totals is None or not _same_totals(before[-1].totals, snapshot.catalogue.totals()):
            return
        previous = self.opened(dataset, before[-1].number)
        if previous is None:
            return

        def work() -> None:
            with previous.catalogue.view() as old, snapshot.catalogue.view() as new:
                if next(compare(old, new, lambda _: None), None) is None:
                    (snapshot.writer.folder / UNCHANGED).touch()

        with previous.held():
            await trio.to_thread.run_sync(work, limiter=self._comparers, abandon_on_cancel=True)

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
        """A file proved to be another version than listed: show what it is now.

        In the snapshots that mounts show, and in the newest. Older ones are history, and pinned ones stay as they are.
        """

        def work() -> None:
            try:
                entry = dataset.store.stat(path)
            except SourceNotFound:
                entry = None
            except ForebayError as error:
                log.warning("%s: %r changed and cannot be looked at: %s", dataset.store.url, path, error)
                return
            try:
                for snapshot in snapshots:
                    with writable(snapshot):
                        snapshot.writer.remove(os.fsencode(path)) if entry is None else snapshot.writer.add([entry])
            except CacheError as error:
                log.warning("%s: %r changed, which cannot be recorded: %s", dataset.store.url, path, error)

        snapshots = self._corrigible(dataset)
        with all_held(snapshots):
            # Cancelled only when the worker ends, which must not wait for a source that does not answer.
            await trio.to_thread.run_sync(work, limiter=self._listers, abandon_on_cancel=True)

    def _corrigible(self, dataset: Dataset) -> list[Snapshot]:
        shown = {(state.snapshot, state.pinned) for state in self._mounts() if state.dataset_id == dataset.id}
        pinned = (
            self.history.viewed(dataset) | dataset.keep.pinned | {number for number, is_pinned in shown if is_pinned}
        )
        pinned |= {number for number, snapshot in dataset.snapshots.items() if snapshot.being_pinned}
        newest = dataset.newest
        return [
            snapshot
            for number, snapshot in dataset.snapshots.items()
            if number not in pinned and (snapshot is newest or snapshot.young or (number, False) in shown)
        ]


def _same_totals(one: Totals, other: Totals) -> bool:
    return (one.files, one.bytes, one.small_bytes, one.skipped) == (
        other.files, other.bytes, other.small_bytes, other.skipped,
    )  # fmt: skip


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
        if gathered:  # nothing is no first page: who waits for one is to hear of the error
            yield gathered
        raise
    yield gathered
