"""The file system: a catalogue of names, an index of what is cached, and a worker for what is not.

Holds nothing that another handler could not pick up: node ids come from the catalogue, opens are in the open table,
and what is kept in memory (open descriptors, read-ahead windows) is only a help.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

from forebay.cacheruntime.catalogue import NAME_MAX_BYTES, SMALL_FILE_BYTES, UNKNOWN_MODE, Catalogue, Listed, Node
from forebay.cacheruntime.client import AttachedClient
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.counters import CounterRow
from forebay.cacheruntime.keys import ROOT_NODE, NodeId, Roots
from forebay.cacheruntime.understore.base import Kind
from forebay.fuse.directory_runs import DirectoryRuns
from forebay.fuse.misses import Misses
from forebay.fuse.open_mode import PASSTHROUGH_MIN_BYTES, OpenMode
from forebay.fuse.open_table import Attempt, OpenTable
from forebay.fuse.operations import Capacity, FileEntry, FileSlice, NotReady, Opened, Refused
from forebay.fuse.order import Progress
from forebay.fuse.passthrough import Backing, WholeFile
from forebay.fuse.push import Pusher
from forebay.fuse.sweeps import Sweeps
from forebay.fuse.wire_reply import Attributes
from forebay.proto import worker_pb2 as pb

VALID_S = 86400.0
"""A snapshot never changes under its mount; what proves stale is invalidated by name."""

_LISTING_VALID_S = 1.0
"""Sizes and times of directories still move while the listing is under way."""

_LISTING_DEADLINE_S = 600.0
"""A directory of a million keys takes minutes to list; who waits for it may interrupt."""

_ORDER_DEADLINE_S = 10.0
"""What comes later says nothing of what is read next."""

_DOT, _DOT_DOT = 1, 2
"""Cookies of the first two entries of a listing; those of the others are their node ids."""

_NODES = 8192

_SIBLINGS = 4096
"""Names looked at for the next small files of a directory, 3 us each: all others wait meanwhile."""

_XATTR_PREFIX = b"user.forebay."
_FILE_XATTRS = (b"user.forebay.source", b"user.forebay.etag", b"user.forebay.cached", b"user.forebay.tier")


@dataclass(frozen=True)
class Presentation:
    """As whose, and with which rights, files are shown."""

    uid: int
    gid: int
    umask: int


class FileSystem:
    """Implements `operations.Operations`. Used from one thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        content: ContentReader,
        client: AttachedClient,
        roots: Roots,
        presentation: Presentation,
        mode: OpenMode,
        misses: Misses,
        counters: CounterRow,
        open_table: OpenTable,
        tier_names: dict[str, str],
    ) -> None:
        """
        Args:
            catalogue, content, client: see there.
            roots: which store each path belongs to.
            presentation: owner and umask.
            mode: of the mount; resolved, never 'auto'.
            misses: for what is not cached.
            counters: our row.
            open_table: shared with the mount's other handlers.
            tier_names: tier folder -> medium, for the tier attribute.
        """
        self._catalogue = catalogue
        self._content = content
        self._client = client
        self._roots = roots
        self._uid, self._gid = presentation.uid, presentation.gid
        self._keep = ~presentation.umask & 0o7777
        self._mode = mode
        self.misses = misses
        self._counters = counters
        self._open_table = open_table
        self._tier_names = tier_names
        self._nodes: OrderedDict[int, Node] = OrderedDict()
        self._runs = DirectoryRuns(self.siblings)
        self._sweeps = Sweeps(self)
        self.pusher: Pusher | None = None
        """Set by an engine that can put files into the page cache."""
        self.backing: Backing | None = None
        """Set by an engine that can pass files through."""

    # Names and attributes

    def lookup(self, parent: int, name: bytes) -> FileEntry | None:
        if name in (b".", b".."):
            found = self._node(parent)
            return self._entry(self._node(found.parent) if name == b".." else found, name)
        if len(name) > NAME_MAX_BYTES:
            raise Refused(errno.ENAMETOOLONG)
        listed = self._catalogue.entry(NodeId(parent), name)
        if listed is None:
            self._need_listing(parent, name)
            # The listing may have ended, or brought the name, between the two looks.
            listed = self._catalogue.entry(NodeId(parent), name)
        return self._listed(listed) if listed is not None else None

    def negative_valid_s(self) -> float:
        return VALID_S if self._catalogue.complete else _LISTING_VALID_S

    def getattr(self, node: int) -> tuple[Attributes, float]:
        found = self._node(node)
        return self._attributes(found), self._attr_valid_s(found)

    def readlink(self, node: int) -> bytes:
        found = self._node(node)
        if found.kind is not Kind.SYMLINK:
            raise Refused(errno.EINVAL)
        return found.target

    def opendir(self, node: int) -> bool:
        self._need_listing(node)
        return self._catalogue.complete

    def readdir(self, node: int, after: int) -> Iterator[FileEntry]:
        self._need_listing(node)
        found = self._node(node)
        if after < _DOT:
            yield self._entry(found, b".", _DOT)
        if after < _DOT_DOT:
            yield self._entry(self._node(found.parent), b"..", _DOT_DOT)
        for listed in self._catalogue.listing(NodeId(node), NodeId(after) if after > _DOT_DOT else None):
            yield self._listed(listed)

    def statfs(self) -> Capacity:
        totals = self._catalogue.totals()
        return Capacity(totals.bytes, totals.files)

    def getxattr(self, node: int, name: bytes) -> bytes:
        if not name.startswith(_XATTR_PREFIX):
            raise Refused(errno.ENODATA)
        found = self._node(node)
        if name == b"user.forebay.source":
            return self._roots.url_of(self._catalogue.path_of(NodeId(node)))
        if found.kind is not Kind.FILE or name not in _FILE_XATTRS:
            raise Refused(errno.ENODATA)
        if name == b"user.forebay.etag":
            return os.fsencode(found.version)
        cached = self._content.cached(found.content)
        if name == b"user.forebay.cached":
            present = cached.cached_bytes() if cached is not None else 0
            return b"%d/%d" % (present, found.size)
        folder = self._content.tier_folder(cached) if cached is not None else None
        if folder is None:
            raise Refused(errno.ENODATA)
        return os.fsencode(f"{self._tier_names.get(str(folder), '?')}:{folder}")

    def listxattr(self, node: int) -> list[bytes]:
        found = self._node(node)
        if found.kind is not Kind.FILE:
            return [b"user.forebay.source"]
        names = list(_FILE_XATTRS)
        if self._content.cached(found.content) is None:
            names.remove(b"user.forebay.tier")
        return names

    # Data

    def open(self, node: int, flags: int, attempt: Attempt) -> Opened:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused(errno.EROFS)
        found = self._node(node)
        if found.kind is not Kind.FILE:
            raise Refused(errno.EISDIR if found.kind is Kind.DIRECTORY else errno.ELOOP)
        if self._mode is not OpenMode.PASSTHROUGH or found.size < PASSTHROUGH_MIN_BYTES or self.backing is None:
            return Opened(attempt.handle)
        passed = WholeFile(found, self._content, self.backing, self._counters)
        return Opened(attempt.handle, self._open_table.open(node, attempt, passed))

    def release(self, node: int, handle: int) -> None:
        self.misses.forget(node, handle)
        if self._mode is OpenMode.PASSTHROUGH and self.backing is not None:
            found = self._node(node)
            if found.size >= PASSTHROUGH_MIN_BYTES:
                self._open_table.release(node, handle, self.backing.close_backing)

    def read(self, node: int, handle: int, offset: int, size: int, *, again: bool) -> FileSlice | None:
        found = self._node(node)
        if found.kind is not Kind.FILE:
            raise Refused(errno.EISDIR)
        end = min(offset + size, found.size)
        if offset >= end:
            return None
        place = self._content.find(found.content, offset, end)
        if place is None:
            wait = self.misses.wait_for(found, handle, offset, end - offset, again)
            if not again:
                self._counters.add("misses")
                self._counters.add("miss_bytes", end - offset)
                if found.size < SMALL_FILE_BYTES:
                    self._note_small(found)
            raise NotReady(wait)
        if not offset and found.size < SMALL_FILE_BYTES:
            if not again:
                self._note_small(found)
            if self.pusher is not None:
                self.pusher.was_read(found)
                self.pusher.post(self._runs.observe(found))
        if not again:
            self._counters.add("hits")
            self._counters.add("hit_bytes", end - offset)
            if not self._content.is_whole(found.content):
                self.misses.read_ahead(found, handle, offset, end - offset)
        return FileSlice(place.descriptor, place.base + offset, end - offset)

    def unreadable(self, node: int, handle: int, offset: int, size: int) -> NoReturn:
        found = self._node(node)
        self._content.is_wrong(found.content)
        end = min(offset + size, found.size)
        raise NotReady(self.misses.wait_for(found, handle, offset, end - offset, True))

    def expect(self, directory: int, names: list[bytes], progress: Progress | None = None) -> int:
        if self.pusher is None or self._node(directory).kind is not Kind.DIRECTORY:
            raise Refused(errno.ENOTTY)
        files = [self._catalogue.resolve(name, NodeId(directory)) for name in names]
        if progress is not None:
            self._pass_on(files, progress)
        nodes = []
        for found in files:
            if found is None or found.kind is not Kind.FILE:
                continue
            if found.size < SMALL_FILE_BYTES:
                nodes.append(found)
            elif self._content.cached(found.content) is None:
                # A large file is brought into the cache; passthrough reads it from there as fast as from memory.
                self.misses.begin(found)
        taken = self.pusher.post(nodes)
        return len(names) if taken == len(nodes) else taken

    def _pass_on(self, files: list[Node | None], progress: Progress) -> None:
        """Tell the worker of a reader's order; what a name stands for that is not known keeps its position."""
        nodes = [found.node if found is not None else ROOT_NODE for found in files]
        snapshot = self._client.snapshot

        def request(dataset_id: str) -> pb.PostOrderRequest:
            return pb.PostOrderRequest(
                dataset_id=dataset_id, reader=f"mount-{progress.reader.hex()}", snapshot=snapshot, nodes=nodes,
                first=progress.first, position=progress.position, done=progress.done,
            )  # fmt: skip

        self.misses.start_soon(lambda: self._client.call("PostOrder", request, _ORDER_DEADLINE_S))

    def _note_small(self, node: Node) -> None:
        """Somebody begins to read a small file, and nothing better is known of what comes next."""
        if self.pusher is None or not (self.pusher.has_order or self._runs.follows(node.parent)):
            self._sweeps.observe(node)

    # `Means` of the sweeps

    def is_cached(self, node: Node) -> bool:
        return self._content.find(node.content, 0, node.size) is not None

    def is_ready(self, node: Node) -> bool:
        return self.is_cached(node) if self.pusher is None else self.pusher.is_done_with(node)

    def fetch(self, node: Node, done: Callable[[bool], None]) -> None:
        self.misses.bring_small(node, done)

    def push(self, node: Node) -> bool:
        return self.pusher is not None and self.pusher.offer(node)

    def siblings(self, after: NodeId, count: int) -> list[Node]:
        """The next small files of a directory behind a node, or the first of one; empty ones are never asked for."""
        known = self._catalogue.node(after)
        if known is None:
            return []
        if known.kind is Kind.DIRECTORY:
            siblings = self._catalogue.children(after)
        else:
            siblings = self._catalogue.children(known.parent, after)
        near = islice(siblings, _SIBLINGS)
        return list(islice((s for s in near if s.kind is Kind.FILE and 0 < s.size < SMALL_FILE_BYTES), count))

    def show(self, catalogue: Catalogue) -> None:
        """Serve another snapshot from now on. What is open stays: its nodes are in the new catalogue too."""
        self._catalogue = catalogue
        self.misses.show(catalogue)
        self._sweeps.forget()
        self._nodes.clear()

    def lseek(self, node: int, offset: int, whence: int) -> int:
        """Every byte counts as data, cached or not; the one hole is at the end (lseek(2))."""
        found = self._node(node)
        if not 0 <= offset < found.size:
            raise Refused(errno.ENXIO)
        if whence == os.SEEK_DATA:
            return offset
        if whence == os.SEEK_HOLE:
            return found.size
        raise Refused(errno.EINVAL)

    def sweep(self) -> None:
        """Give back what evicted files hold; to be called now and then."""
        self._content.sweep()

    # Behind the scenes

    def _need_listing(self, directory: int, name: bytes = b"") -> None:
        """Raise NotReady unless an absent name of this directory is known to be absent.

        With `name`, waiting brings at least that name, if it exists.
        """
        if self._catalogue.is_settled(NodeId(directory)):
            return
        self._node(directory)

        async def wait() -> None:
            path = self._catalogue.path_of(NodeId(directory))
            await self._client.call(
                "ListDirectory",
                lambda dataset_id: pb.ListDirectoryRequest(dataset_id=dataset_id, path=path, name=name),
                _LISTING_DEADLINE_S,
            )

        raise NotReady(wait)

    def _node(self, number: int) -> Node:
        """A node's record; files are kept, as what a node id names never changes, while directories may grow."""
        known = self._nodes.get(number)
        if known is not None:
            return known
        found = self._catalogue.node(NodeId(number))
        if found is None:
            raise Refused(errno.ESTALE)
        if found.kind is not Kind.DIRECTORY:
            self._nodes[number] = found
            if len(self._nodes) > _NODES:
                self._nodes.popitem(last=False)
        return found

    def _listed(self, listed: Listed) -> FileEntry:
        number, name, kind, mode, size, mtime_ns, inode, links = listed
        shown = Attributes(inode, size, mtime_ns, kind | _mode(kind, mode, self._keep), links, self._uid, self._gid)
        moves = kind == stat.S_IFDIR and not self._catalogue.complete
        return FileEntry(number, shown, name, VALID_S, _LISTING_VALID_S if moves else VALID_S, number)

    def _entry(self, node: Node, name: bytes, cookie: int = 0) -> FileEntry:
        return FileEntry(node.node, self._attributes(node), name, VALID_S, self._attr_valid_s(node), cookie)

    def _attr_valid_s(self, node: Node) -> float:
        if node.kind is Kind.DIRECTORY and not self._catalogue.complete:
            return _LISTING_VALID_S
        return VALID_S

    def _attributes(self, node: Node) -> Attributes:
        kind, size, links = stat.S_IFREG, node.size, 1
        if node.kind is Kind.DIRECTORY:
            kind, links = stat.S_IFDIR, 2 + node.subdirectories
        elif node.kind is Kind.SYMLINK:
            kind, size = stat.S_IFLNK, len(node.target)
        mode = _mode(kind, UNKNOWN_MODE if node.mode is None else node.mode, self._keep)
        return Attributes(node.inode, size, node.mtime_ns, kind | mode, links, self._uid, self._gid)


def _mode(kind: int, mode: int, keep: int) -> int:
    """Permission bits to be shown, of the source's (or UNKNOWN_MODE) and those that the umask leaves."""
    if kind == stat.S_IFLNK:
        return 0o777
    if mode == UNKNOWN_MODE:
        mode = 0o777 if kind == stat.S_IFDIR else 0o666
    return mode & keep
