"""The catalogue: names and attributes of one dataset snapshot, in one LMDB environment.

Storage format
--------------
Folder ``datasets/<dataset id>/<snapshot number>/`` holds one LMDB environment with four tables. The worker
alone writes it (`CatalogueWriter`); any number of processes read it (`Catalogue`), also while a listing is still
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
    ``small_bytes`` -> 8-byte counters over visible files; ``source`` -> the under-store's canonical URL.

A name that is absent is known to be absent when the listing is complete, or when its directory's node carries
`_LISTED` (it was listed ahead of the rest).
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lmdb

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.keys import ROOT_NODE, ContentId, InodeNumber, NodeId, content_id, inode_number, node_id
from forebay.cacheruntime.understore.base import Entry, Kind

_NODE = struct.Struct(">BBHQqQQ16sIBHH")
"""kind, flags (`_LISTED`, and the count of syncs above `_CARRIED_SHIFT`), permission bits (0xFFFF: unknown), size,
mtime_ns, inode number, parent's node id, content id, number of subdirectories, and the lengths in bytes of name,
version and target."""

_LISTED = 1
_CARRIED_SHIFT = 4
_NO_MODE = 0xFFFF
_KINDS = (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)
_KIND_CODE = {kind: code for code, kind in enumerate(_KINDS)}
_NO_CONTENT = ContentId(bytes(16))

CARRIED_SYNCS_MAX = 8
"""A file that is still open this many syncs after it left the source is served; then its reads end with ESTALE."""

NAME_MAX_BYTES = 255
"""Linux' NAME_MAX; LMDB keys hold 511 bytes, so a directory's id and a name always fit."""

_MAP_BYTES = 1 << 38
"""Address space reserved for the environment, not disk: 256 GiB is beyond a billion files."""

SMALL_FILE_BYTES = MIB
"""Files below this count as small when a mount picks its open mode."""


@dataclass(frozen=True, slots=True)
class Node:
    """One file, directory or link as the catalogue knows it."""

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


def _pack(node: Node) -> bytes:
    version = node.version.encode("utf-8", "surrogateescape")
    flags = (_LISTED if node.listed else 0) | node.carried << _CARRIED_SHIFT
    head = _NODE.pack(
        _KIND_CODE[node.kind], flags, _NO_MODE if node.mode is None else node.mode,
        node.size, node.mtime_ns, node.inode, node.parent, node.content, node.subdirectories,
        len(node.name), len(version), len(node.target),
    )  # fmt: skip
    return head + node.name + version + node.target


def _unpack(number: NodeId, raw: bytes) -> Node:
    kind, flags, mode, size, mtime_ns, inode, parent, content, subdirectories, n, v, t = _NODE.unpack_from(raw)
    at = _NODE.size
    return Node(
        number, _KINDS[kind], raw[at : at + n], NodeId(parent), InodeNumber(inode), size, mtime_ns,
        None if mode == _NO_MODE else mode, ContentId(content),
        raw[at + n : at + n + v].decode("utf-8", "surrogateescape"), raw[at + n + v : at + n + v + t],
        subdirectories, bool(flags & _LISTED), flags >> _CARRIED_SHIFT,
    )  # fmt: skip


def _key(number: int) -> bytes:
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
                str(folder), readonly=True, max_dbs=4, map_size=_MAP_BYTES, max_readers=1024, readahead=False
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
            raw = txn.get(_key(number), db=self._nodes)
        return _unpack(number, raw) if raw else None

    def child(self, directory: NodeId, name: bytes) -> Node | None:
        """The visible node of that name, or None (see `is_settled` for what None means)."""
        with self._env.begin() as txn:
            key = txn.get(_key(directory) + name, db=self._names)
            raw = txn.get(key, db=self._nodes) if key else None
        return _unpack(NodeId(int.from_bytes(key, "big")), raw) if key and raw else None

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
        prefix = _key(directory)
        start = prefix
        skip = b""
        if after is not None:
            last = self.node(after)
            if last is None:
                return
            start = skip = prefix + last.name
        with self._env.begin() as txn, txn.cursor(db=self._names) as cursor:
            more = cursor.set_range(start)
            while more:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                if key != skip:
                    number = cursor.value()
                    raw = txn.get(number, db=self._nodes)
                    assert raw is not None  # the format: a name always has its node
                    yield _unpack(NodeId(int.from_bytes(number, "big")), raw)
                more = cursor.next()

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

    def resolve(self, path: bytes) -> Node | None:
        """The visible node at a path below the root."""
        found = self.node(ROOT_NODE)
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
        raw = self._txn.get(_key(number), db=self._nodes)
        return _unpack(number, raw) if raw else None

    def shows(self, node: Node) -> bool:
        """Whether the node's name stands for just that node."""
        return bool(self._txn.get(_key(node.parent) + node.name, db=self._names) == _key(node.node))


def unpack_record(key: bytes, raw: bytes) -> Node:
    """A node from its key and value in the table `nodes`."""
    return _unpack(NodeId(int.from_bytes(key, "big")), raw)


class CatalogueWriter:
    """The one writer of a snapshot. Methods may be called from different threads, one at a time per thread: LMDB's
    write transaction is the lock."""

    def __init__(self, folder: Path, source: str) -> None:
        """Make a snapshot in `folder` for the under-store with canonical URL `source`, or go on with the one there."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._source = source
        # No fsync: a snapshot that a power loss cut short is listed again, as `complete` is written last and synced.
        self._env = lmdb.open(str(folder), max_dbs=4, map_size=_MAP_BYTES, max_readers=1024, sync=False, metasync=False)
        self._nodes = self._env.open_db(b"nodes")
        self._names = self._env.open_db(b"names")
        self._skipped = self._env.open_db(b"skipped")
        self._meta = self._env.open_db(b"meta")
        root = Node(
            ROOT_NODE, Kind.DIRECTORY, b"", ROOT_NODE, inode_number(b""), 0, 0, None, _NO_CONTENT, "", b"", 0, False
        )
        with self._env.begin(write=True) as txn:
            txn.put(_key(ROOT_NODE), _pack(root), db=self._nodes, overwrite=False)
            txn.put(b"source", source.encode("utf-8", "surrogateescape"), db=self._meta)

    def close(self) -> None:
        self._env.close()

    def reader(self) -> Catalogue:
        """A reader for this process (LMDB must not be opened twice in one)."""
        return Catalogue(self.folder, self._env)

    def add(self, page: list[Entry]) -> None:
        """Record entries. One that is there already is replaced; its older version stays readable by node id."""
        with self._page() as changes:
            changes.add(page)

    def replace_directory(self, path: bytes, entries: list[Entry]) -> None:
        """Record the entries of one directory, and that a name that is absent now is absent from the source."""
        with self._page() as changes:
            changes.make_directory(path)
            changes.add(entries)
            changes.mark_listed(path)

    def remove(self, path: bytes) -> None:
        """Take one name out of sight, as its source is gone."""
        with self._page() as changes:
            changes.hide(path)

    def carry(self, nodes: list[Node]) -> None:
        """Record nodes that this snapshot does not show, for readers that hold them from an earlier one."""
        with self._env.begin(write=True) as txn:
            for node in nodes:
                raw = txn.get(_key(node.node), db=self._nodes)
                # What a refresh has brought into sight meanwhile stays as it is.
                if raw is None or _unpack(node.node, raw).carried > 0:
                    txn.put(_key(node.node), _pack(node), db=self._nodes)

    @contextmanager
    def _page(self) -> "Iterator[_Page]":
        with (
            self._env.begin(write=True) as txn,
            _Page(txn, self._nodes, self._names, self._skipped, self._meta, self._source) as changes,
        ):
            yield changes

    def finish(self, error: str = "") -> None:
        """The listing has ended; with `error`, before it was whole."""
        with self._env.begin(write=True) as txn:
            if error:
                txn.put(b"error", error.encode(), db=self._meta)
            else:
                txn.put(b"complete", b"1", db=self._meta)
                txn.delete(b"error", db=self._meta)  # of an earlier try to list this snapshot
        self._env.sync(True)


class _Page:
    """Entries being added in one write transaction."""

    def __init__(self, txn: Any, nodes: Any, names: Any, skipped: Any, meta: Any, source: str) -> None:
        self._txn, self._nodes, self._names, self._skipped, self._meta = txn, nodes, names, skipped, meta
        self._source = source
        self._known: set[bytes] = {b""}
        self._newest: dict[bytes, int] = {}
        self._counts: dict[bytes, int] = {}

    def __enter__(self) -> "_Page":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._write_newest()
            self._write_counts()

    def add(self, page: list[Entry]) -> None:
        for entry in page:
            path = os.fsencode(entry.path)
            if not _representable(path):
                self._skip(path)
                continue
            if entry.kind is Kind.DIRECTORY:
                self.make_directory(path, entry.mtime_ns, entry.mode)
                continue
            self._add_leaf(path, entry)

    def _add_leaf(self, path: bytes, entry: Entry) -> None:
        directory, _, name = path.rpartition(b"/")
        self.make_directory(directory)
        content = (
            content_id(self._source, entry.path, entry.size, entry.version) if entry.kind is Kind.FILE else _NO_CONTENT
        )
        target = os.fsencode(entry.target)
        number = node_id(path, content if entry.kind is Kind.FILE else b"link" + target)
        parent = node_id(directory, b"")
        name_key = _key(parent) + name
        shown = self._get_by_key(self._txn.get(name_key, db=self._names))
        if shown and shown.kind is Kind.DIRECTORY:
            self._skip(path)  # 'a' and 'a/b' both exist: the directory is seen, as more hangs on it
            return
        if shown and shown.node == number and shown.mtime_ns == entry.mtime_ns and shown.mode == entry.mode:
            return
        taken = self._get(number)
        if taken and (taken.parent, taken.name) != (parent, name):
            self._skip(path)
            return
        node = Node(
            number, entry.kind, name, parent, inode_number(path), entry.size, entry.mtime_ns, entry.mode,
            content, entry.version, target, 0, False,
        )  # fmt: skip
        self._count_file(shown, -1)
        self._count_file(node, 1)
        self._put(node)
        self._txn.put(name_key, _key(number), db=self._names)
        if entry.mtime_ns > self._newest.get(directory, 0):
            self._newest[directory] = entry.mtime_ns

    def make_directory(self, path: bytes, mtime_ns: int = 0, mode: int | None = None) -> None:
        """Make the directory and those above it, as far as they are missing."""
        missing: list[bytes] = []
        above = path
        while above not in self._known:
            above = above.rpartition(b"/")[0]
            missing.append(above)
        for each in reversed(missing):
            self._make_one(each, 0, None)
        if path not in self._known or mtime_ns or mode is not None:
            self._make_one(path, mtime_ns, mode)

    def _make_one(self, path: bytes, mtime_ns: int, mode: int | None) -> None:
        number = node_id(path, b"")
        found = self._get(number)
        if found is None or found.carried:
            parent_path, _, name = path.rpartition(b"/")
            parent = node_id(parent_path, b"")
            name_key = _key(parent) + name
            shadowed = self._get_by_key(self._txn.get(name_key, db=self._names))
            if shadowed:
                self._count_file(shadowed, -1)
                self._skip(path)
            found = Node(
                number,
                Kind.DIRECTORY,
                name,
                parent,
                inode_number(path),
                0,
                mtime_ns,
                mode,
                _NO_CONTENT,
                "",
                b"",
                0,
                False,
            )
            self._put(found)
            self._txn.put(name_key, _key(number), db=self._names)
            above = self._get(parent)
            if above is not None:
                self._put(replace(above, subdirectories=above.subdirectories + 1))
        elif (mtime_ns, mode) != (found.mtime_ns, found.mode) and (mtime_ns or mode is not None):
            self._put(replace(found, mtime_ns=max(mtime_ns, found.mtime_ns), mode=mode))
        self._known.add(path)

    def mark_listed(self, path: bytes) -> None:
        found = self._get(node_id(path, b""))
        if found is not None:
            self._put(replace(found, listed=True))

    def hide(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        name_key = _key(node_id(directory, b"")) + name
        shown = self._get_by_key(self._txn.get(name_key, db=self._names))
        if shown is not None and shown.kind is not Kind.DIRECTORY:
            self._count_file(shown, -1)
            self._txn.delete(name_key, db=self._names)

    def _write_newest(self) -> None:
        """A directory of an object store has no time of its own: it shows its newest file's, as do those above it."""
        for path, newest in list(self._newest.items()):
            while path:
                path = path.rpartition(b"/")[0]
                if self._newest.get(path, 0) >= newest:
                    break  # what is above it has been or will be raised by its own turn
                self._newest[path] = newest
        for path, newest in self._newest.items():
            found = self._get(node_id(path, b""))
            if found is not None and found.mode is None and found.mtime_ns < newest:
                self._put(replace(found, mtime_ns=newest))

    def _count_file(self, node: Node | None, sign: int) -> None:
        if node is None or node.kind is not Kind.FILE:
            return
        self._count(b"files", sign)
        self._count(b"bytes", sign * node.size)
        if node.size < SMALL_FILE_BYTES:
            self._count(b"small_bytes", sign * node.size)

    def _skip(self, path: bytes) -> None:
        self._txn.put(blake2b(path, digest_size=16).digest(), b"", db=self._skipped)

    def _count(self, key: bytes, by: int) -> None:
        self._counts[key] = self._counts.get(key, 0) + by

    def _write_counts(self) -> None:
        for key, by in self._counts.items():
            value = int.from_bytes(self._txn.get(key, db=self._meta) or b"", "big") + by
            self._txn.put(key, value.to_bytes(8, "big"), db=self._meta)

    def _get(self, number: NodeId) -> Node | None:
        raw = self._txn.get(_key(number), db=self._nodes)
        return _unpack(number, raw) if raw else None

    def _get_by_key(self, key: bytes | None) -> Node | None:
        return self._get(NodeId(int.from_bytes(key, "big"))) if key else None

    def _put(self, node: Node) -> None:
        self._txn.put(_key(node.node), _pack(node), db=self._nodes)


def _representable(path: bytes) -> bool:
    """Whether every part of the path can be a file name on Linux."""
    if not path or b"\0" in path:
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= NAME_MAX_BYTES for part in path.split(b"/"))
