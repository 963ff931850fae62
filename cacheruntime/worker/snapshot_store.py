"""One snapshot of a dataset as an under-store: names and versions as they were listed, bytes from its stores.

This is what `dataset://NAME@N` shows. A file that its store has no more as it was listed is stale for good.
"""

import os
from collections.abc import Iterator

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.errors import SourceNotFound
from forebay.cacheruntime.keys import NodeId, Roots
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.composite import Child, CompositeStore, Place

_PAGE_ENTRIES = 1000


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
        self._catalogue = catalogue
        self._below = below
        self._root = os.fsencode(below)

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
        self._node("")

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`."""
        top = self._node("")
        if top.kind is not Kind.DIRECTORY:
            yield [_entry(top, os.fsdecode(top.name))]
            return
        pending: list[tuple[NodeId, str]] = [(top.node, "")]
        page: list[Entry] = []
        while pending:
            directory, path = pending.pop()
            for found in self._catalogue.children(directory):
                name = os.fsdecode(found.name)
                page.append(_entry(found, f"{path}/{name}" if path else name))
                if found.kind is Kind.DIRECTORY:
                    pending.append((found.node, page[-1].path))
            if len(page) >= _PAGE_ENTRIES:
                yield page
                page = []
        yield page

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        found = self._node(path)
        if found.kind is not Kind.DIRECTORY:
            raise SourceNotFound(f"{self.url}: {path!r} is no directory")
        above = f"{path}/" if path else ""
        return [_entry(node, above + os.fsdecode(node.name)) for node in self._catalogue.children(found.node)]

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        found = self._node(path)
        if found.kind is Kind.DIRECTORY:
            raise SourceNotFound(f"{self.url}: {path!r} is a directory")
        return _entry(found, path)

    def close(self) -> None:
        """See `UnderStore.close`."""

    def _node(self, path: str) -> Node:
        whole = b"/".join(filter(None, (self._root, os.fsencode(path))))
        found = self._catalogue.resolve(whole)
        if found is None:
            raise SourceNotFound(f"{self.url}: there is no {os.fsdecode(whole)!r}")
        return found


def _entry(node: Node, path: str) -> Entry:
    target = os.fsdecode(node.target)
    return Entry(path, node.kind, node.size, node.mtime_ns, node.version, target, node.mode)
