"""One snapshot of a dataset as an under-store: names and versions as they were listed, bytes from its stores.

This is what `dataset://NAME@N` shows. A file that its store has no more as it was listed is stale for good.
"""

from collections.abc import Iterator

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.keys import Roots
from forebay.cacheruntime.understore.base import Entry
from forebay.cacheruntime.understore.composite import Child, CompositeStore, Place
from forebay.cacheruntime.worker.catalogue_tree import CatalogueTree


class SnapshotStore(CompositeStore):
    """See `UnderStore`.

    *Resources*: `close` closes neither the dataset's stores nor the catalogue: they belong to the dataset.
    """

    def __init__(self, url: str, whole: CompositeStore, catalogue: Catalogue, below: str) -> None:
        """
        Args:
            url: names dataset, snapshot and path, in messages.
            whole: the dataset's tree.
            catalogue: of the snapshot.
            below: the path in it that is the root here; '' for all.
        """
        super().__init__(url, [Child("", whole)])
        self._whole = whole
        self._below = below
        self._tree = CatalogueTree(url, catalogue, below)

    def roots(self) -> list[tuple[str, str]]:
        """See `CompositeStore.roots`."""
        return Roots("", self._whole.roots()).below(self._below)

    def locate(self, path: str) -> Place:
        """See `CompositeStore.locate`."""
        return self._whole.locate("/".join(filter(None, (self._below, path))))

    @property
    def lists_in_key_order(self) -> bool:
        """No: a catalogue has the names of a directory together."""
        return False

    def probe(self) -> None:
        """See `UnderStore.probe`. The stores are not asked: what is cached needs none."""
        self._tree.probe()

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`."""
        return self._tree.list_tree()

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        return self._tree.list_directory(path)

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        return self._tree.stat(path)

    def close(self) -> None:
        """See `UnderStore.close`."""
