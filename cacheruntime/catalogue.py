"""The catalogue: names and attributes of one dataset snapshot, in one LMDB environment.

Storage format
--------------
Folder ``datasets/<dataset id>/<snapshot number>/`` holds one LMDB environment with four tables. The worker
alone writes it (`catalogue_writer.py`); any number of processes read it (`Catalogue`), also while a listing is still
being written.

``nodes``: node id (8 bytes, big endian) -> `_NODE` followed by the name, the version and the link target, whose
    lengths `_NODE` gives. The root is node 1 with an empty name. A record is never removed while the
    snapshot exists, so a reader that still holds an older version of a file finds it. A sync also carries over the
    records that earlier snapshots had and this one has not: the upper four bits of their flags count the syncs since
    they were last in a listing, and those of more than `CARRIED_SYNCS_MAX` are left behind. A directory's record is
    carried at least as long as those below it, so a carried node has a path. Of directories, exactly those with a
    count of 0 are visible.
``names``: directory's node id (8 bytes, big endian) + name -> node id (8 bytes, big endian). Exactly one entry
    for each visible name; keys sort a directory's names together, in byte order, which is readdir's order.
``skipped``: hash of a key (16 bytes) -> empty; one for each key of the source that is not shown, as it cannot be a
    file name here or a directory has its name. A table, for a key may be listed any number of times.
``meta``: ``complete`` -> b"1" once the listing has ended; ``error`` -> why it broke off; ``files``, ``bytes``,
    ``small_bytes`` -> 8-byte counters over visible files; ``source`` -> the under-store's canonical URL, or that of
    the dataset; ``listed`` -> when the listing ended, 8 bytes of nanoseconds since the epoch.

Beside it, once the listing has ended well: ``summary.json``, the `Totals`. It is written last and synced, and taken
away while a whole catalogue is changed, so who finds none may have half a catalogue before him; and it tells of a
snapshot without opening what may be torn after a power loss.

A name that is absent is known to be absent when the listing is complete, or when its directory's node carries
`_LISTED`: it was listed ahead of the rest, or a listing in key order has gone past it.
"""

import json
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.keys import ROOT_NODE, ContentId, InodeNumber, NodeId
from forebay.cacheruntime.understore.base import Kind

_NODE = struct.Struct(">BBHQqQQ16sIBHH")
"""kind, flags (`_LISTED`, and the count of syncs above `_CARRIED_SHIFT`), permission bits (0xFFFF: unknown), size,
mtime_ns, inode number, parent's node id, content id, number of subdirectories, and the lengths in bytes of name,
version and target."""

_CONTENT_AT = slice(36, 52)
"""Where the content id is in `_NODE`."""

_FILE_HEAD = struct.Struct(">B3xQ24x16s")
"""Kind, size and content id of `_NODE`."""

_LISTED = 1
_CARRIED_SHIFT = 4
_NO_MODE = 0xFFFF
_KINDS = (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)
_KIND_CODE = {kind: code for code, kind in enumerate(_KINDS)}
_FILE, _DIRECTORY, _LINK = (_KIND_CODE[kind] for kind in _KINDS)
_FROM_KEY = struct.Struct(">Q").unpack

UNKNOWN_MODE = _NO_MODE
"""Permission bits in `Catalogue.listing` of what has none in its source."""

Listed = tuple[int, bytes, int, int, int, int, int, int]
"""Node id, name, type bits of st_mode, permission bits or `UNKNOWN_MODE`, size in bytes (of a link: of its target),
mtime_ns, inode number, link count."""

NO_CONTENT = ContentId(bytes(16))

CARRIED_SYNCS_MAX = 8
"""A file that is still open this many syncs after it left the source is served; then its reads end with ESTALE."""

NAME_MAX_BYTES = 255
"""Linux' NAME_MAX; LMDB keys hold 511 bytes, so a directory's id and a name always fit."""

MAP_BYTES = 1 << 38
"""Address space reserved for the environment, not disk: 256 GiB is beyond a billion files."""

SMALL_FILE_BYTES = MIB
"""Files below this count as small when a mount picks its open mode."""


class Node(NamedTuple):
    """One file, directory or link as the catalogue knows it. A tuple: one is made for each name that is looked up."""

    node: NodeId
    kind: Kind
    name: bytes
    parent: NodeId
    inode: InodeNumber
    size: int
    mtime_ns: int
    mode: int | None
    content: ContentId
    version: str
    target: bytes
    subdirectories: int
    listed: bool
    carried: int = 0
    """Syncs since it was last in a listing; 0 while it is."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a snapshot holds."""

    files: int
    bytes: int
    small_bytes: int
    """Bytes in files below SMALL_FILE_BYTES."""
    skipped: int
    """Keys that cannot be file names here, or whose name a directory has."""
    complete: bool
    error: str
    listed_ns: int = 0
    """When the listing ended, nanoseconds since the epoch; 0 while it is under way, or where an old version listed."""


def summary_path(folder: Path) -> Path:
    """Of a snapshot's summary."""
    return folder / "summary.json"


def read_summary(folder: Path) -> Totals | None:
    """What a snapshot holds; None when its listing has not ended well, or it was being changed."""
    try:
        return Totals(**json.loads(summary_path(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def pack_record(node: Node) -> bytes:
    """The value of a node in the table `nodes`."""
    version = node.version.encode("utf-8", "surrogateescape")
    flags = (_LISTED if node.listed else 0) | node.carried << _CARRIED_SHIFT
    head = _NODE.pack(
        _KIND_CODE[node.kind], flags, _NO_MODE if node.mode is None else node.mode,
        node.size, node.mtime_ns, node.inode, node.parent, node.content, node.subdirectories,
        len(node.name), len(version), len(node.target),
    )  # fmt: skip
    return head + node.name + version + node.target


def pack_leaf(
    link: bool, mode: int | None, size: int, mtime_ns: int, inode: InodeNumber, parent: NodeId, content: ContentId,
    name: bytes, version: bytes, target: bytes,
) -> bytes:  # fmt: skip
    """The value of a visible file or link; as `pack_record`, without the detour over a `Node`."""
    head = _NODE.pack(
        _LINK if link else _FILE, 0, _NO_MODE if mode is None else mode, size, mtime_ns, inode, parent, content, 0,
        len(name), len(version), len(target),
    )  # fmt: skip
    return head + name + version + target


def unpack_record(number: NodeId, raw: bytes) -> Node:
    """A node from its id and its value in the table `nodes`."""
    kind, flags, mode, size, mtime_ns, inode, parent, content, subdirectories, n, v, t = _NODE.unpack_from(raw)
    at = _NODE.size
    return Node(
        number, _KINDS[kind], raw[at : at + n], NodeId(parent), InodeNumber(inode), size, mtime_ns,
        None if mode == _NO_MODE else mode, ContentId(content),
        raw[at + n : at + n + v].decode("utf-8", "surrogateescape"), raw[at + n + v : at + n + v + t],
        subdirectories, bool(flags & _LISTED), flags >> _CARRIED_SHIFT,
    )  # fmt: skip


def _listed(key: bytes, raw: bytes) -> Listed:
    kind, _, mode, size, mtime_ns, inode, _, _, subdirectories, n, _, t = _NODE.unpack_from(raw)
    name = raw[_NODE.size : _NODE.size + n]
    if kind == _DIRECTORY:
        return _FROM_KEY(key)[0], name, stat.S_IFDIR, mode, size, mtime_ns, inode, 2 + subdirectories
    if kind == _LINK:
        return _FROM_KEY(key)[0], name, stat.S_IFLNK, mode, t, mtime_ns, inode, 1
    return _FROM_KEY(key)[0], name, stat.S_IFREG, mode, size, mtime_ns, inode, 1


def node_key(number: int) -> bytes:
    """A node id as the tables hold it."""
    return number.to_bytes(8, "big")


class Catalogue:
    """A reader of one snapshot. Safe to use from several threads.

    Resources: `close` unmaps the file; a snapshot that the worker has deleted stays readable until then.
    """

    def __init__(self, folder: Path, env: Any = None) -> None:
        """Open a snapshot; in the process that writes it, `CatalogueWriter.reader` shares the writer's environment.

        Raises:
            CacheFormatError: the folder holds no catalogue.
        """
        self.folder = folder
        try:
            self._env = env or lmdb.open(
                str(folder), readonly=True, max_dbs=4, map_size=MAP_BYTES, max_readers=1024, readahead=False
            )
            self._nodes = self._env.open_db(b"nodes", create=False)
            self._names = self._env.open_db(b"names", create=False)
            self._skipped = self._env.open_db(b"skipped", create=False)
            self._meta = self._env.open_db(b"meta", create=False)
        except lmdb.Error as error:
            raise CacheFormatError(f"{folder} holds no readable catalogue ({error})") from error
        self._complete = False

    def close(self) -> None:
        self._env.close()

    def node(self, number: NodeId) -> Node | None:
        with self._env.begin() as txn:
            raw = txn.get(node_key(number), db=self._nodes)
        return unpack_record(number, raw) if raw else None

    def file(self, number: int) -> tuple[ContentId, int] | None:
        """Content id and size of a file, at a third of the cost of `node`; None for what is no file."""
        with self._env.begin() as txn:
            raw = txn.get(node_key(number), db=self._nodes)
        if raw is None:
            return None
        kind, size, content = _FILE_HEAD.unpack_from(raw)
        return (content, size) if kind == _FILE else None

    def contents(self, numbers: Iterable[int]) -> list[ContentId]:
        """Content ids of many nodes, `NO_CONTENT` for those that are not there; a third of the cost of `node`."""
        with self._env.begin() as txn:
            raws = (txn.get(node_key(number), db=self._nodes) for number in numbers)
            return [ContentId(raw[_CONTENT_AT]) if raw else NO_CONTENT for raw in raws]

    def child(self, directory: NodeId, name: bytes) -> Node | None:
        """The visible node of that name, or None (see `is_settled` for what None means)."""
        with self._env.begin() as txn:
            key = txn.get(node_key(directory) + name, db=self._names)
            raw = txn.get(key, db=self._nodes) if key else None
        return unpack_record(NodeId(int.from_bytes(key, "big")), raw) if key and raw else None

    def entry(self, directory: NodeId, name: bytes) -> Listed | None:
        """The same as `child`, in the form of `listing`."""
        with self._env.begin() as txn:
            key = txn.get(node_key(directory) + name, db=self._names)
            raw = txn.get(key, db=self._nodes) if key else None
        return _listed(key, raw) if key and raw else None

    def is_settled(self, directory: NodeId) -> bool:
        """True when a name that is absent from this directory is absent from the source's listing too."""
        if self.complete:
            return True
        found = self.node(directory)
        return found is not None and found.listed

    def children(self, directory: NodeId, after: NodeId | None = None) -> Iterator[Node]:
        """The directory's nodes in byte order of their names, from the one behind node `after`.

        The iterator holds a read transaction: use it up or drop it before waiting for anything.
        """
        return (unpack_record(NodeId(int.from_bytes(key, "big")), raw) for key, raw in self._records(directory, after))

    def listing(self, directory: NodeId, after: NodeId | None = None) -> Iterator[Listed]:
        """The same as `children`, in the form of plain numbers, at half the cost."""
        for key, raw in self._records(directory, after):
            yield _listed(key, raw)

    def _records(self, directory: NodeId, after: NodeId | None) -> Iterator[tuple[bytes, bytes]]:
        prefix = node_key(directory)
        start = prefix
        skip = b""
        if after is not None:
            last = self.node(after)
            if last is None:
                return
            start = skip = prefix + last.name
        with self._env.begin() as txn, txn.cursor(db=self._names) as cursor:
            nodes = self._nodes
            if not cursor.set_range(start):
                return
            for key, number in cursor.iternext():
                if not key.startswith(prefix):
                    return
                if key != skip:
                    raw = txn.get(number, db=nodes)
                    assert raw is not None  # the format: a name always has its node
                    yield number, raw

    def path_of(self, number: NodeId) -> bytes:
        """The path below the dataset's root, without slashes at the ends ('' for the root)."""
        parts: list[bytes] = []
        while number != ROOT_NODE:
            found = self.node(number)
            if found is None:
                raise KeyError(number)
            parts.append(found.name)
            number = found.parent
        return b"/".join(reversed(parts))

    def resolve(self, path: bytes, directory: NodeId = ROOT_NODE) -> Node | None:
        """The visible node at a path below a directory, the root if none is given."""
        found = self.node(directory)
        for name in filter(None, path.split(b"/")):
            if found is None:
                return None
            found = self.child(found.node, name)
        return found

    def files_below(self, directory: NodeId) -> Iterator[Node]:
        """All visible files below a directory, depth first in name order, each directory read in one go."""
        pending = [directory]
        while pending:
            inner: list[NodeId] = []
            files: list[Node] = []
            for found in self.children(pending.pop()):
                if found.kind is Kind.DIRECTORY:
                    inner.append(found.node)
                elif found.kind is Kind.FILE:
                    files.append(found)
            yield from files
            pending.extend(reversed(inner))

    @property
    def complete(self) -> bool:
        if not self._complete:
            with self._env.begin() as txn:
                self._complete = txn.get(b"complete", db=self._meta) is not None
        return self._complete

    @contextmanager
    def view(self) -> "Iterator[CatalogueView]":
        """All of it as it is now; what is written meanwhile is not seen."""
        with self._env.begin() as txn:
            yield CatalogueView(txn, self._names, self._nodes)

    def totals(self) -> Totals:
        with self._env.begin() as txn:

            def number(key: bytes) -> int:
                return int.from_bytes(txn.get(key, db=self._meta) or b"", "big")

            return Totals(
                number(b"files"), number(b"bytes"), number(b"small_bytes"),
                txn.stat(self._skipped)["entries"],
                txn.get(b"complete", db=self._meta) is not None,
                (txn.get(b"error", db=self._meta) or b"").decode(),
                number(b"listed"),
            )  # fmt: skip


class CatalogueView:
    """A catalogue as it is at one moment, whole tables included. Made by `Catalogue.view`, for use in its block."""

    def __init__(self, txn: Any, names: Any, nodes: Any) -> None:
        self._txn, self._names, self._nodes = txn, names, nodes

    def names(self) -> Iterator[tuple[bytes, bytes]]:
        """The table `names`, in key order."""
        return iter(self._txn.cursor(db=self._names))

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """The table `nodes`, in key order; `unpack_record` reads the values."""
        return iter(self._txn.cursor(db=self._nodes))

    def node(self, number: NodeId) -> Node | None:
        raw = self._txn.get(node_key(number), db=self._nodes)
        return unpack_record(number, raw) if raw else None

    def shows(self, node: Node) -> bool:
        """Whether the node's name stands for just that node."""
        return bool(self._txn.get(node_key(node.parent) + node.name, db=self._names) == node_key(node.node))
