"""A catalogue read as a tree of entries, as an under-store lists one: for views of a snapshot and for other nodes."""

import os
from collections.abc import Iterator

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.errors import SourceNotFound
from forebay.cacheruntime.keys import NodeId
from forebay.cacheruntime.understore.base import Entry, Kind

_PAGE_ENTRIES = 1000


class CatalogueTree:
    """What is below one path of a snapshot. Errors as `UnderStore` has them."""

    def __init__(self, name: str, catalogue: Catalogue, below: str) -> None:
        """
        Args:
            name: of the snapshot, in messages.
            catalogue: of the snapshot.
            below: the path in it that is the root here; '' for all.
        """
        self._name = name
        self._catalogue = catalogue
        self._root = os.fsencode(below)

    def probe(self) -> None:
        """Raises: SourceNotFound, there is no such path."""
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
            raise SourceNotFound(f"{self._name}: {path!r} is no directory")
        above = f"{path}/" if path else ""
        return [_entry(node, above + os.fsdecode(node.name)) for node in self._catalogue.children(found.node)]

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        found = self._node(path)
        if found.kind is Kind.DIRECTORY:
            raise SourceNotFound(f"{self._name}: {path!r} is a directory")
        return _entry(found, path)

    def _node(self, path: str) -> Node:
        whole = b"/".join(filter(None, (self._root, os.fsencode(path))))
        found = self._catalogue.resolve(whole)
        if found is None:
            raise SourceNotFound(f"{self._name}: there is no {os.fsdecode(whole)!r}")
        return found


def _entry(node: Node, path: str) -> Entry:
    target = os.fsdecode(node.target)
    return Entry(path, node.kind, node.size, node.mtime_ns, node.version, target, node.mode)
