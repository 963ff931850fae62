"""Evicting and pinning by command: from paths of a snapshot to what is cached of them."""

import os
from collections.abc import AsyncIterator, Sequence
from itertools import islice

import trio

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.errors import SourceNotFound
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.selection import Selection
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.storage import Storage

_BATCH = 256
"""Files dropped in one go: about 20 ms, then others have their turn."""


async def evict(
    storage: Storage, dataset: Dataset, snapshot: Snapshot, selection: Selection, *, pinned: bool
) -> tuple[int, int, int]:
    """Drop what is cached of some files; what is open somewhere stays readable there.

    Args:
        storage, dataset, snapshot: of the worker.
        selection: which files.
        pinned: also those that are pinned.

    Returns:
        Files and bytes that are not cached any more, and files that stay as they are pinned.

    Raises:
        SourceNotFound: a path is not in the snapshot.
    """
    await snapshot.ended.wait()
    missing = await trio.to_thread.run_sync(selection.missing, snapshot.catalogue)
    if missing:
        url, number = dataset.store.url, snapshot.number
        raise SourceNotFound(f"{url}: there is no {os.fsdecode(missing[0])!r} in snapshot {number}")
    files = size = kept = 0
    async for contents in cached_contents(storage, snapshot.catalogue, selection):
        dropped, dropped_bytes = storage.evict(contents, pinned=pinned)
        files, size, kept = files + dropped, size + dropped_bytes, kept + len(contents) - dropped
    return files, size, kept


async def pin(storage: Storage, dataset: Dataset, snapshot: Snapshot, paths: Sequence[bytes]) -> None:
    """Keep what is below some paths, from now on. A path that the source does not have yet may be pinned too."""
    for path in paths:
        for owner, inside in owners(dataset, path):
            storage.pin(owner, inside, ())
    await _mark(storage, dataset, snapshot, paths)


async def unpin(storage: Storage, dataset: Dataset, snapshot: Snapshot, paths: Sequence[bytes]) -> list[bytes]:
    """The opposite; of all pins without paths. Returns those that were not pinned."""
    unknown = []
    for path in paths or storage.pins(dataset.id):
        found: list[ContentId] = []
        async for contents in cached_contents(storage, snapshot.catalogue, Selection([path])):
            found += contents
        known = [storage.unpin(owner, inside, found) for owner, inside in owners(dataset, path)]
        if True not in known:
            unknown.append(path)
    await _mark(storage, dataset, snapshot, storage.pins(dataset.id))  # what others of them cover stays pinned
    return unknown


async def follow_manifest(
    storage: Storage, dataset: Dataset, snapshot: Snapshot, fresh: Sequence[bytes], gone: Sequence[bytes]
) -> None:
    """A manifest pins paths of which something may be cached already, and does not pin others any more."""
    await snapshot.ended.wait()
    for path in gone:
        found: list[ContentId] = []
        async for contents in cached_contents(storage, snapshot.catalogue, Selection([path])):
            found += contents
        storage.unpin(dataset.id, path, found, by_manifest=True)
    await _mark(storage, dataset, snapshot, storage.pins(dataset.id) if gone else fresh)


async def _mark(storage: Storage, dataset: Dataset, snapshot: Snapshot, paths: Sequence[bytes]) -> None:
    if paths:
        async for contents in cached_contents(storage, snapshot.catalogue, Selection(paths)):
            storage.mark_pinned(owners(dataset, paths[0])[0][0], contents)


def owners(dataset: Dataset, path: bytes) -> list[tuple[DatasetId, bytes]]:
    """The datasets that what is below a path belongs to, and the path in each: a view caches for another dataset."""
    found = [(dataset.id, path)]
    for store in dataset.definition.stores:
        root = os.fsencode(store.path)
        if not store.owner:
            continue
        if not root or path == root or path.startswith(root + b"/"):
            inside = path[len(root) :].strip(b"/")
            whole = b"/".join(filter(None, (os.fsencode(store.owner_path), inside)))
            return [(DatasetId(store.owner), whole)]
        if not path or root.startswith(path + b"/"):
            found.append((DatasetId(store.owner), os.fsencode(store.owner_path)))
    return found


async def cached_contents(
    storage: Storage, catalogue: Catalogue, selection: Selection
) -> AsyncIterator[list[ContentId]]:
    """What is cached, wholly or partly, of some files. The catalogue is read in a thread."""
    files = selection.files(catalogue)
    find = storage.index.reader.find

    def take() -> tuple[int, list[ContentId]]:
        nodes = [node.content for _, node in islice(files, _BATCH)]
        return len(nodes), [content for content in nodes if find(content) is not None]

    while True:
        count, found = await trio.to_thread.run_sync(take)
        if found:
            yield found
        if not count:
            return
