"""What changed between two snapshots of a dataset, and the file that tells it to mounts.

Storage format
--------------
``changes-<from>`` in a snapshot's folder says how that snapshot differs from snapshot <from> of the same dataset. The
worker writes it whole before it tells anybody of it, by a rename; it never changes afterwards, except that a later sync
may write it again with the same or later news. It holds the eight bytes `_MAGIC`, then records: `_RECORD` (kind, node
id of the directory, length of the name) and the name. The last record has kind `_END`, and the number of records
before it in the place of the node id. Records are in no order that a reader may rely on.

A name has at most one record: ADDED, REMOVED, or CHANGED when it stands for another node, or for the same one with
another time, size or mode. A directory has at most one record DIRECTORY, with an empty name: names were added, removed
or stand for another node, or its own time, mode or number of subdirectories is another. A directory that was removed or
replaced by a file has REMOVED for each name below it. Only names and attributes count: a change of none of these,
such as of the number of keys that are not shown, is no change.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from forebay.cacheruntime.catalogue import (
    CARRIED_SYNCS_MAX,
    Catalogue,
    CatalogueView,
    Node,
    unpack_record,
)
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.errors import CacheError, CacheFormatError
from forebay.cacheruntime.keys import NodeId
from forebay.cacheruntime.understore.base import Kind

_MAGIC = b"fbchang1"
_RECORD = struct.Struct(">BQH")
_END = 0

_CARRY_BATCH = 10_000
"""Records carried over in one transaction; bounds memory, and how long a refresh of a file waits."""

_ID_BYTES = 8


class ChangeKind(Enum):
    """What became of a name, or (DIRECTORY) that a directory is not what it was."""

    ADDED = 1
    CHANGED = 2
    REMOVED = 3
    DIRECTORY = 4


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two snapshots."""

    parent: NodeId
    """The name's directory, or (DIRECTORY) the directory itself."""
    name: bytes
    """Empty for DIRECTORY."""
    kind: ChangeKind


@dataclass
class Counts:
    """How many names were added, changed and removed, and how many directories differ."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    directories: int = 0

    @property
    def nothing(self) -> bool:
        return not (self.added or self.changed or self.removed or self.directories)

    def count(self, change: Change) -> None:
        if change.kind is ChangeKind.ADDED:
            self.added += 1
        elif change.kind is ChangeKind.CHANGED:
            self.changed += 1
        elif change.kind is ChangeKind.REMOVED:
            self.removed += 1
        else:
            self.directories += 1


def differing(
    old: Iterable[tuple[bytes, bytes]], new: Iterable[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Merge two tables and yield (key, old value, new value) where they differ; None where a table has no such key.

    Args:
        old, new: (key, value) in ascending order of keys, each key once.
    """
    olds, news = iter(old), iter(new)
    left, right = next(olds, None), next(news, None)
    while left is not None and right is not None:
        if left == right:
            left, right = next(olds, None), next(news, None)
        elif left[0] == right[0]:
            yield left[0], left[1], right[1]
            left, right = next(olds, None), next(news, None)
        elif left[0] < right[0]:
            yield left[0], left[1], None
            left = next(olds, None)
        else:
            yield right[0], None, right[1]
            right = next(news, None)
    while left is not None:
        yield left[0], left[1], None
        left = next(olds, None)
    while right is not None:
        yield right[0], None, right[1]
        right = next(news, None)


def compare(old: CatalogueView, new: CatalogueView, carry: Callable[[Node], None]) -> Iterator[Change]:
    """All differences, each once, by one pass over the names and one over the records; memory does not grow.

    Args:
        old, new: two snapshots of one dataset.
        carry: called with each node that readers of `old` may hold and that `new` lacks, with its new count of syncs.
    """
    yield from _compare_names(old, new)
    for key, before, after in differing(old.records(), new.records()):
        number = NodeId(int.from_bytes(key, "big"))
        was = unpack_record(number, before) if before is not None else None
        now = unpack_record(number, after) if after is not None else None
        if was is not None and (now is None or now.carried > was.carried + 1) and was.carried < CARRIED_SYNCS_MAX:
            carry(was._replace(carried=was.carried + 1, subdirectories=0))
        if was is None or now is None:
            continue
        if now.kind is Kind.DIRECTORY:
            if _directory_differs(was, now):
                yield Change(now.node, b"", ChangeKind.DIRECTORY)
        elif _looks(was) != _looks(now) and old.shows(was) and new.shows(now):
            yield Change(now.parent, now.name, ChangeKind.CHANGED)


def _compare_names(old: CatalogueView, new: CatalogueView) -> Iterator[Change]:
    """Names come sorted by directory, so a directory's own record follows its last name."""
    directory = b""
    for key, before, after in differing(old.names(), new.names()):
        if directory and not key.startswith(directory):
            yield from _directory_of_names(old, new, directory)
        directory = key[:_ID_BYTES]
        kind = ChangeKind.ADDED if before is None else ChangeKind.REMOVED if after is None else ChangeKind.CHANGED
        yield Change(NodeId(int.from_bytes(directory, "big")), key[_ID_BYTES:], kind)
    if directory:
        yield from _directory_of_names(old, new, directory)


def _directory_of_names(old: CatalogueView, new: CatalogueView, directory: bytes) -> Iterator[Change]:
    """The record of a directory whose names differ, unless the pass over the records gives it."""
    number = NodeId(int.from_bytes(directory, "big"))
    was, now = old.node(number), new.node(number)
    if was is None or now is None or not _directory_differs(was, now):
        yield Change(number, b"", ChangeKind.DIRECTORY)


def _directory_differs(was: Node, now: Node) -> bool:
    """By itself, whatever its names are; also when it came back, as of a removed one anything may be remembered."""
    if now.carried:
        return False
    return bool(was.carried) or (was.mtime_ns, was.mode, was.subdirectories) != (
        now.mtime_ns, now.mode, now.subdirectories,
    )  # fmt: skip


def _looks(node: Node) -> tuple[int, int, int | None]:
    return node.size, node.mtime_ns, node.mode


def changes_path(folder: Path, before: int) -> Path:
    """Of the file that tells how the snapshot in `folder` differs from snapshot number `before`."""
    return folder / f"changes-{before}"


def record_changes(old: Catalogue, before: int, target: CatalogueWriter) -> Counts:
    """Write `changes-<before>` into the target's folder, and carry over what its readers need of `old`.

    Args:
        old: the snapshot with number `before`.
        target: a later snapshot, or one that is shown together with it.

    Raises:
        CacheError: the folder takes no more data.
    """
    pending: list[Node] = []

    def carry(node: Node) -> None:
        pending.append(node)
        if len(pending) >= _CARRY_BATCH:
            target.carry(pending)
            pending.clear()

    with target.changing():
        with old.view() as was, target.reader().view() as now:
            counts = write_changes(changes_path(target.folder, before), compare(was, now, carry))
        target.carry(pending)
    return counts


def write_changes(path: Path, changes: Iterable[Change]) -> Counts:
    """Write changes to a file that appears whole or not at all.

    Raises:
        CacheError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}.draft")
    counts = Counts()
    number = 0
    try:
        with open(draft, "wb", buffering=1 << 18) as out:
            out.write(_MAGIC)
            for change in changes:
                counts.count(change)
                number += 1
                out.write(_RECORD.pack(change.kind.value, change.parent, len(change.name)) + change.name)
            out.write(_RECORD.pack(_END, number, 0))
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise CacheError(f"{path} cannot be written: {error.strerror or error}; make room there") from error
    return counts


def read_changes(path: Path) -> Iterator[Change]:
    """What a file of changes tells, streamed.

    Raises:
        FileNotFoundError: there is none: nothing is known about the way from that snapshot to this one.
        CacheFormatError: it is damaged. What came before is right.
    """
    number = 0
    with open(path, "rb", buffering=1 << 18) as source:
        if source.read(len(_MAGIC)) != _MAGIC:
            raise CacheFormatError(f"{path} is no file of changes")
        while True:
            head = source.read(_RECORD.size)
            if len(head) < _RECORD.size:
                raise CacheFormatError(f"{path} breaks off")
            kind, parent, length = _RECORD.unpack(head)
            if kind == _END:
                if (parent, length, source.read(1)) != (number, 0, b""):
                    raise CacheFormatError(f"{path} does not end as it should")
                return
            name = source.read(length)
            try:
                change = Change(NodeId(parent), name, ChangeKind(kind))
            except ValueError as error:
                raise CacheFormatError(f"{path} holds a record of unknown kind {kind}") from error
            if len(name) != length:
                raise CacheFormatError(f"{path} breaks off")
            number += 1
            yield change
