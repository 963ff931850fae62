"""Names that differ between two snapshots, by their paths."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_changes import Change, ChangeKind, changes_path, compare, read_changes
from forebay.cacheruntime.keys import NodeId

_PATHS = 65_536
"""Directories whose paths are remembered: changes of one directory come together."""


class NamedChange(NamedTuple):
    """One name that differs."""

    kind: ChangeKind
    """ADDED, CHANGED or REMOVED."""
    path: bytes


def changed_names(old: Catalogue, new: Catalogue) -> Iterator[NamedChange]:
    """By a pass over both catalogues, in no order."""
    with old.view() as was, new.view() as now:
        yield from _named(compare(was, now, lambda _: None), new, old)


def recorded_names(folder: Path, before: int, old: Path | None) -> Iterator[NamedChange]:
    """What a sync has written down.

    Args:
        folder: of the snapshot it made.
        before: number of the one it was compared with.
        old: the folder of that one, if it is still there.

    Raises:
        FileNotFoundError: nothing was written down.
    """
    new_catalogue = Catalogue(folder)
    old_catalogue = Catalogue(old) if old is not None and old.exists() else None
    try:
        yield from _named(read_changes(changes_path(folder, before)), new_catalogue, old_catalogue)
    finally:
        new_catalogue.close()
        if old_catalogue is not None:
            old_catalogue.close()


def _named(changes: Iterable[Change], new: Catalogue, old: Catalogue | None) -> Iterator[NamedChange]:
    @lru_cache(_PATHS)
    def path_of(node: NodeId) -> bytes:
        try:
            return new.path_of(node)
        except KeyError:
            return old.path_of(node) if old is not None else b"?"

    for change in changes:
        if change.kind is not ChangeKind.DIRECTORY:
            above = path_of(change.parent)
            yield NamedChange(change.kind, above + b"/" + change.name if above else change.name)
