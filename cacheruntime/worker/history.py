"""The snapshots of a worker's datasets that are history: which stay, which go, and forgetting a dataset."""

import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from forebay.cacheruntime.dataset_source import tree_id
from forebay.cacheruntime.errors import CacheError
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.snapshot_history import Keep, StoredSnapshot, expired, numbers_in, stored_snapshots
from forebay.cacheruntime.worker.dataset import Dataset


class History:
    """See the module. Methods have no checkpoint in between."""

    def __init__(
        self, root: Path, datasets: dict[DatasetId, Dataset], mounts: Callable[[], Iterable[MountState]]
    ) -> None:
        """
        Args:
            root: a folder for each dataset.
            datasets: those that are attached.
            mounts: the live ones of this cache.
        """
        self._root = root
        self._datasets = datasets
        self._mounts = mounts

    def folder(self, name: DatasetId) -> Path:
        return self._root / name

    def stored(self, dataset: Dataset) -> list[StoredSnapshot]:
        opened = {number: snapshot.catalogue for number, snapshot in dataset.snapshots.items()}
        return stored_snapshots(self.folder(dataset.id), opened)

    def collect(self, dataset: Dataset, keep: Keep | None = None) -> list[int]:
        """Remove the snapshots that have no reason to stay; returns their numbers. Closes those that nobody uses.

        Whoever still has one mapped keeps it until he closes it.
        """
        self.close_dropped(dataset)
        keep = keep or dataset.keep
        shown = {state.snapshot for state in self._mounts() if state.dataset_id == dataset.id}
        busy = {n for n, s in dataset.snapshots.items() if s.users or s.young or not s.ended.is_set()}
        newest = dataset.newest
        in_use = shown | busy | self.viewed(dataset)
        removed = expired(self.stored(dataset), keep, in_use, time.time_ns())
        for number, snapshot in list(dataset.snapshots.items()):
            if number in removed or (number not in in_use and snapshot is not newest):
                del dataset.snapshots[number]
                snapshot.writer.close()
        for number in removed:
            shutil.rmtree(self.folder(dataset.id) / str(number), ignore_errors=True)
        return removed

    def collect_by_id(self, name: DatasetId, keep: Keep) -> list[int]:
        """The same for a dataset that need not be attached."""
        known = self._datasets.get(name)
        if known is not None:
            return self.collect(known, keep)
        shown = {state.snapshot for state in self._mounts() if state.dataset_id == name}
        removed = expired(stored_snapshots(self.folder(name), {}), keep, shown, time.time_ns())
        for number in removed:
            shutil.rmtree(self.folder(name) / str(number), ignore_errors=True)
        return removed

    def forget(self, source: str) -> tuple[list[DatasetId], int]:
        """Remove all snapshots of datasets with that name, and of parts of them.

        Returns:
            The ids, and how many snapshots it were.

        Raises:
            CacheError: one is being listed or read.
        """
        names, count = [], 0
        for folder in self._root.iterdir() if self._root.exists() else ():
            with suppress(OSError):
                known_as = (folder / "source").read_text()
                if known_as == source or known_as.startswith(f"{source}/"):
                    names.append(DatasetId(folder.name))
        opened = [s for name in names if name in self._datasets for s in self._datasets[name].snapshots.values()]
        if any(snapshot.users or not snapshot.ended.is_set() for snapshot in opened):
            raise CacheError(f"{source} is being listed or read; try again when that has ended")
        for snapshot in opened:
            snapshot.writer.close()
        for name in names:
            count += len(numbers_in(self.folder(name)))
            self._datasets.pop(name, None)
            shutil.rmtree(self.folder(name), ignore_errors=True)
        return names, count

    def viewed(self, dataset: Dataset) -> set[int]:
        """The snapshots that other datasets have in their trees."""
        stores = (store for other in self._datasets.values() for store in other.definition.stores if store.of_dataset)
        return {store.of_snapshot for store in stores if tree_id(store.of_dataset, list(store.stores)) == dataset.id}

    @staticmethod
    def close_dropped(dataset: Dataset) -> None:
        for snapshot in [s for s in dataset.dropped if not s.users]:
            dataset.dropped.remove(snapshot)
            snapshot.writer.close()
