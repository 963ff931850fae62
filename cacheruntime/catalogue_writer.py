"""Writing a catalogue; `catalogue.py` describes the format.

Longer than 400 lines, as a page knows every way in which entries come into the tables.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lmdb

from forebay.cacheruntime.catalogue import (
    MAP_BYTES,
    NAME_MAX_BYTES,
    NO_CONTENT,
    SMALL_FILE_BYTES,
    Catalogue,
    Node,
    node_key,
    pack_leaf,
    pack_record,
    summary_path,
    unpack_record,
)
from forebay.cacheruntime.durable import sync_folder, write_durably
from forebay.cacheruntime.keys import ROOT_NODE, FileNames, NodeId, Roots, inode_number, node_id
from forebay.cacheruntime.understore.base import Entry, Kind

_ENCODING = sys.getfilesystemencoding()
"""That of os.fsencode, which costs a call of its own for each of millions of names."""

_IS_UTF8 = _ENCODING == "utf-8"


class CatalogueWriter:
    """The one writer of a snapshot. Methods may be called from different threads, one at a time per thread: LMDB's
    write transaction is the lock."""

    def __init__(self, folder: Path, source: str | Roots) -> None:
        """Make a snapshot in `folder` for the under-store with canonical URL `source`, or for several of them, or go on
        with the one there."""
        roots = source if isinstance(source, Roots) else Roots(source)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._file_names = roots.names()
        # No fsync: a snapshot that a power loss cut short is listed again, as its summary is written last and synced.
        self._env = lmdb.open(str(folder), max_dbs=4, map_size=MAP_BYTES, max_readers=1024, sync=False, metasync=False)
        self._nodes = self._env.open_db(b"nodes")
        self._names = self._env.open_db(b"names")
        self._skipped = self._env.open_db(b"skipped")
        self._meta = self._env.open_db(b"meta")
        self._lock = threading.Lock()
        """Guards the next three."""
        self._vouched = summary_path(folder).exists()
        self._due = False
        """The summary is to be written again when nobody changes anything."""
        self._changing = 0
        named = roots.url.encode("utf-8", "surrogateescape")
        with self._env.begin() as txn:
            if txn.get(b"source", db=self._meta) == named:
                return
        root = Node(
            ROOT_NODE, Kind.DIRECTORY, b"", ROOT_NODE, inode_number(b""), 0, 0, None, NO_CONTENT, "", b"", 0, False
        )
        with self.changing(), self._env.begin(write=True) as txn:
            txn.put(node_key(ROOT_NODE), pack_record(root), db=self._nodes, overwrite=False)
            txn.put(b"source", named, db=self._meta)

    def close(self) -> None:
        self._env.close()

    def reader(self) -> Catalogue:
        """A reader for this process (LMDB must not be opened twice in one)."""
        return Catalogue(self.folder, self._env)

    def add(self, page: list[Entry], whole: Sequence[bytes] = ()) -> None:
        """Record entries. One that is there already is replaced; its older version stays readable by node id.

        Args:
            page: the entries.
            whole: paths of directories of which nothing more will come; what is no directory here is passed over.
        """
        try:
            with self._page() as changes:
                changes.add_fresh(page)
                changes.mark_all_listed(whole)
        except _NotFresh:  # the transaction is undone; now with a look at what is there
            with self._page() as changes:
                changes.add(page)
                changes.mark_all_listed(whole)

    def replace_directory(self, path: bytes, entries: list[Entry]) -> None:
        """Record the entries of one directory, and that a name that is absent now is absent from the source."""
        with self._page() as changes:
            changes.make_directory(path)
            changes.add(entries)
            changes.mark_listed(path)

    def unlist_directories(self) -> None:
        """No directory is known to be whole any more: what was said of them was wrong."""
        with self.changing(), self._env.begin(write=True) as txn:
            records = (unpack_record(NodeId(int.from_bytes(k, "big")), r) for k, r in txn.cursor(db=self._nodes))
            for found in [record for record in records if record.listed]:
                txn.put(node_key(found.node), pack_record(found._replace(listed=False)), db=self._nodes)

    def remove(self, path: bytes) -> None:
        """Take one name out of sight, as its source is gone."""
        with self._page() as changes:
            changes.hide(path)

    def carry(self, nodes: list[Node]) -> None:
        """Record nodes that this snapshot does not show, for readers that hold them from an earlier one."""
        with self.changing(), self._env.begin(write=True) as txn:
            for node in nodes:
                raw = txn.get(node_key(node.node), db=self._nodes)
                # What a refresh has brought into sight meanwhile stays as it is.
                if raw is None or unpack_record(node.node, raw).carried > 0:
                    txn.put(node_key(node.node), pack_record(node), db=self._nodes)

    @contextmanager
    def _page(self) -> "Iterator[_Page]":
        with (
            self.changing(),
            self._env.begin(write=True) as txn,
            _Page(txn, self._nodes, self._names, self._skipped, self._meta, self._file_names) as changes,
        ):
            yield changes

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around changes that belong together: a whole catalogue has no summary meanwhile, as its commits are not
        synced one by one. Each change is in one of its own otherwise.

        Raises:
            OSError: the summary cannot be taken away, and nothing may be changed.
        """
        with self._lock:
            if self._vouched:
                summary_path(self.folder).unlink(missing_ok=True)
                sync_folder(self.folder)
                self._vouched, self._due = False, True
            self._changing += 1
        try:
            yield
        finally:
            with self._lock:
                self._changing -= 1
                if self._due and not self._changing:
                    self._vouch()

    def _vouch(self) -> None:
        """With all that was written on the disk. Without room for it, it is shown all the same, and is no history."""
        self._due = False
        with suppress(OSError, lmdb.Error):
            self._env.sync(True)
            write_durably(summary_path(self.folder), json.dumps(asdict(self.reader().totals())))
            self._vouched = True

    def finish(self, error: str = "") -> None:
        """The listing has ended; with `error`, before it was whole."""
        self._env.sync(True)  # what `complete` vouches for, before that
        with self._env.begin(write=True) as txn:
            txn.put(b"listed", time.time_ns().to_bytes(8, "big"), db=self._meta)
            if error:
                txn.put(b"error", error.encode(), db=self._meta)
            else:
                txn.put(b"complete", b"1", db=self._meta)
                txn.delete(b"error", db=self._meta)  # of an earlier try to list this snapshot
        self._env.sync(True)
        with self._lock:
            self._due = not error
            if self._due and not self._changing:
                self._vouch()


class _NotFresh(Exception):
    """A page holds something that is recorded already, or twice."""


class _Page:
    """Entries being added in one write transaction."""

    def __init__(self, txn: Any, nodes: Any, names: Any, skipped: Any, meta: Any, file_names: FileNames) -> None:
        self._txn, self._nodes, self._names, self._skipped, self._meta = txn, nodes, names, skipped, meta
        self._known: set[bytes] = {b""}
        self._newest: dict[bytes, int] = {}
        self._counts: dict[bytes, int] = {}
        self._file_names = file_names
        self._parents: dict[bytes, tuple[NodeId, bytes]] = {}
        """Directories that are recorded, with their node ids, plain and as keys."""
        self._files = self._bytes = self._small_bytes = 0

    def __enter__(self) -> "_Page":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._write_newest()
            self._write_counts()

    def add(self, page: list[Entry]) -> None:
        for entry in page:
            path = os.fsencode(entry.path)
            if not is_file_path(path):
                self._skip(path)
                continue
            if entry.kind is Kind.DIRECTORY:
                self.make_directory(path, entry.mtime_ns, entry.mode)
                continue
            self._add_leaf(path, entry)

    def add_fresh(self, page: list[Entry]) -> None:
        """As `add`, for entries of which none is recorded yet: in bulk, in half the time.

        Raises:
            _NotFresh: some are; the transaction must be given up.
        """
        # One loop with all in it: a call more for each of millions of entries would take a tenth of its time.
        names: list[tuple[bytes, bytes]] = []
        records: list[tuple[bytes, bytes]] = []
        known, newest, of_file, pack = self._parents, self._newest, self._file_names.of_file, pack_leaf
        files = size_sum = small = 0
        for entry in page:
            path = entry.path.encode(_ENCODING, "surrogateescape")
            directory, _, name = path.rpartition(b"/")
            parent = known.get(directory)
            kind = entry.kind
            if kind is not Kind.FILE or parent is None or not _is_name(name):
                if not is_file_path(path):
                    self._skip(path)
                    continue
                if kind is Kind.DIRECTORY:
                    self.make_directory(path, entry.mtime_ns, entry.mode)
                    continue
                if parent is None:
                    self.make_directory(directory)
                    found = node_id(directory, b"")
                    parent = known[directory] = found, node_key(found)
            size, mtime_ns = entry.size, entry.mtime_ns
            if kind is Kind.FILE:
                version, target = entry.version.encode("utf-8", "surrogateescape"), b""
                in_utf8 = path if _IS_UTF8 else entry.path.encode("utf-8", "surrogateescape")
                content, number, inode = of_file(path, in_utf8, size, version)
                files += 1
                size_sum += size
                if size < SMALL_FILE_BYTES:
                    small += size
            else:
                version, target, content = b"", os.fsencode(entry.target), NO_CONTENT
                number, inode = node_id(path, b"link" + target), inode_number(path)
            key = number.to_bytes(8, "big")
            link = kind is Kind.SYMLINK
            record = pack(link, entry.mode, size, mtime_ns, inode, parent[0], content, name, version, target)
            names.append((parent[1] + name, key))
            records.append((key, record))
            if mtime_ns > newest.get(directory, 0):
                newest[directory] = mtime_ns
        self._files += files
        self._bytes += size_sum
        self._small_bytes += small
        self._put_fresh(self._names, names)
        self._put_fresh(self._nodes, records)

    def _put_fresh(self, table: Any, items: list[tuple[bytes, bytes]]) -> None:
        items.sort()  # neighbours in a table share its pages
        with self._txn.cursor(db=table) as cursor:
            _, added = cursor.putmulti(items, overwrite=False)
        if added != len(items):
            raise _NotFresh

    def _add_leaf(self, path: bytes, entry: Entry) -> None:
        directory, _, name = path.rpartition(b"/")
        self.make_directory(directory)
        content = NO_CONTENT
        if entry.kind is Kind.FILE:
            utf8, version = (text.encode("utf-8", "surrogateescape") for text in (entry.path, entry.version))
            content = self._file_names.content(utf8, entry.size, version)
        target = os.fsencode(entry.target)
        number = node_id(path, content if entry.kind is Kind.FILE else b"link" + target)
        parent = node_id(directory, b"")
        name_key = node_key(parent) + name
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
        self._txn.put(name_key, node_key(number), db=self._names)
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
            name_key = node_key(parent) + name
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
                NO_CONTENT,
                "",
                b"",
                0,
                False,
            )
            self._put(found)
            self._txn.put(name_key, node_key(number), db=self._names)
            above = self._get(parent)
            if above is not None:
                self._put(above._replace(subdirectories=above.subdirectories + 1))
        elif (mtime_ns, mode) != (found.mtime_ns, found.mode) and (mtime_ns or mode is not None):
            self._put(found._replace(mtime_ns=max(mtime_ns, found.mtime_ns), mode=mode))
        self._known.add(path)

    def mark_all_listed(self, paths: Sequence[bytes]) -> None:
        for path in paths:
            self.mark_listed(path)

    def mark_listed(self, path: bytes) -> None:
        found = self._get(node_id(path, b""))
        if found is not None:
            self._put(found._replace(listed=True))

    def hide(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        name_key = node_key(node_id(directory, b"")) + name
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
                self._put(found._replace(mtime_ns=newest))

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
        for name, value in ((b"files", self._files), (b"bytes", self._bytes), (b"small_bytes", self._small_bytes)):
            self._count(name, value)
        for key, by in self._counts.items():
            value = int.from_bytes(self._txn.get(key, db=self._meta) or b"", "big") + by
            self._txn.put(key, value.to_bytes(8, "big"), db=self._meta)

    def _get(self, number: NodeId) -> Node | None:
        raw = self._txn.get(node_key(number), db=self._nodes)
        return unpack_record(number, raw) if raw else None

    def _get_by_key(self, key: bytes | None) -> Node | None:
        return self._get(NodeId(int.from_bytes(key, "big"))) if key else None

    def _put(self, node: Node) -> None:
        self._txn.put(node_key(node.node), pack_record(node), db=self._nodes)


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= NAME_MAX_BYTES and b"\0" not in name and name != b"." and name != b".."


def is_file_path(path: bytes) -> bool:
    """Whether every part of the path can be a file name on Linux."""
    if not path or b"\0" in path:
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= NAME_MAX_BYTES for part in path.split(b"/"))
