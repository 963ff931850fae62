"""The files of a snapshot by number, read from the node's cache in this process. Needs no PyTorch.

What is cached is read from the tier files by pread(2), at the place that the index gives: no message to anyone, no open
and no close. What is missing is asked of the worker over its fill socket, several files at once, and read then.
"""

import fnmatch
import os
import re
import stat
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.content import ContentReader, Place
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import (
    CacheFormatError,
    NotAttached,
    SourceStale,
    SourceUnavailable,
    UsageError,
    WorkerUnavailable,
)
from forebay.cacheruntime.fill_socket import FillsUnderWay, ReplyKind, outcome_of
from forebay.cacheruntime.keys import ROOT_NODE, ContentId, NodeId
from forebay.cacheruntime.node_cache import NodeCache, NodeOptions, node_cache, program_config
from forebay.cacheruntime.understore.credentials import resolve_options
from forebay.proto import worker_pb2 as pb
from forebay.torch.mapped import Mapped

_LISTING_POLL_S = 0.02

_IN_USE_S = 20.0
"""So often the worker hears that the dataset is in use, for nobody sees hits. A third of core.IN_USE_S."""

_SWEEP_S = 5.0
"""Between looks for evicted files that we still hold open."""

_PATIENCE_S = 60.0
"""A miss waits this long for a worker to come back, as a reader of a mount does."""

_TRIES = 8
"""What was filled may be evicted before we look, but not over and over."""

_READ_BYTES = 1 << 30
"""Of one pread(2), which does 2 GiB at most."""

_TOGETHER = 64
"""Files asked for in one go."""


_OF_PROCESS = ("config", "counts", "_local", "_remote_spec")
"""Attributes of `Files` that each process makes for itself."""

Data = bytes | memoryview
"""Of a file."""


@dataclass
class Counts:
    """What one process has read."""

    hits: int = 0
    misses: int = 0
    """Files that had to be waited for, because not all of them was cached."""
    miss_bytes: int = 0


class _Opened:
    """What one thread of one process has open."""

    def __init__(self, pid: int, cache: NodeCache, catalogue: Catalogue) -> None:
        self.pid = pid
        self.cache = cache
        self.catalogue = catalogue
        self.reader: ContentReader = cache.another_reader()
        self.mapped = Mapped()
        self.calm_until = 0.0
        """When there is housekeeping to do."""
        self.silent_until = 0.0
        """When the worker is to hear from us."""


class _Local(threading.local):
    opened: _Opened | None = None


class Files:
    """The files of one snapshot that match, in the order of their paths' directories and names: the same in every
    process, on every node.

    Safe under fork and spawn: each process opens its own descriptors, maps and connections when it first reads. Any
    number of threads may read.
    """

    def __init__(
        self,
        source: str,
        *,
        options: Mapping[str, str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        snapshot: int = 0,
        pattern: str | None = None,
        suffix: str | Sequence[str] = (),
        views: bool = False,
        cache_policy: str = "",
        worker: str | None = None,
        tls: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        tier: str | None = None,
    ) -> None:
        """List a source, or take up its last listing.

        Args:
            source: URL as `forebay mount` takes it, or the name of a dataset (NAME, NAME@N, dataset://NAME/sub).
            options: for the source, as `--option` of `forebay mount`; the usual AWS_* variables are read too.
            cache_dir: of the node's cache; default as for `forebay mount`.
            snapshot: number of a listing; 0: the newest, or a new one where there is none.
            pattern: only paths that match this (fnmatch; `*` matches slashes too), below the source's root.
            suffix: only names that end like this, or like one of these.
            views: give views of the mapped cache files instead of copies, at half the cost; an error of the disk is a
                SIGBUS then, not an exception. Bytes come where mapping does not pay: of what is not cached yet, and of
                small files that have a tier file of their own, as under the policy next-use.
            cache_policy: of the dataset from now on (epoch, sieve, lru, next-use); empty: as it is.
            worker, tls, insecure: HOST:PORT of workers of a cluster, which have the source, and how to talk to them;
                default: FOREBAY_WORKER, FOREBAY_TLS, FOREBAY_INSECURE=1, else as the cache folder was used last.
            tier: as `--tier` of `forebay mount`, for a cache folder that no worker runs on yet; ``none`` keeps nothing.

        Raises:
            SourceError, UsageError: the source cannot be listed; nothing in it matches.
        """
        self._url = source
        self._options = dict(options or {})
        self._node_options = NodeOptions(
            os.path.abspath(cache_dir) if cache_dir is not None else None,
            worker, os.path.abspath(tls) if tls is not None else None, insecure, tier,
        )  # fmt: skip
        self._snapshot = snapshot
        self._views = views
        self._cache_policy = cache_policy
        self._begin_process()
        self._attach()
        self._nodes = array("Q", _walk(self._listed(), _accepts(pattern, suffix)))
        if not self._nodes:
            raise UsageError(f"{source} holds no file{_wanted(pattern, suffix)}")

    def _begin_process(self) -> None:
        self.config = program_config(self._node_options)
        self.counts = Counts()
        self._remote_spec: SourceSpec | None = None
        self._local = _Local()

    def __getstate__(self) -> dict[str, Any]:
        """For another process. Options are as the user gave them: keys of the environment are found again there."""
        return {name: value for name, value in vars(self).items() if name not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin_process()

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def url(self) -> str:
        """Of the source, as the user gave it."""
        return self._url

    @property
    def snapshot(self) -> int:
        """Number of the listing that is shown."""
        return self._snapshot

    @property
    def dataset_id(self) -> str:
        """As the worker knows it."""
        return self._dataset_id

    @property
    def spec(self) -> SourceSpec:
        """The source, with its credentials resolved in this process.

        Raises:
            UsageError: it is the name of no dataset; options are given for a dataset, which has its own.
        """
        cluster = self.config.client_of
        if cluster is not None:
            if self._options:
                raise UsageError("options are for the workers: a client node knows no credentials; leave them out")
            if self._remote_spec is None:
                from forebay.cacheruntime.cluster.remote_sources import remote_spec

                self._remote_spec = remote_spec(self._url, cluster)
            return self._remote_spec
        named = None
        if "://" not in self._url or self._url.startswith("dataset://"):
            from forebay.dataset_controller.named import named_spec  # its models take 0.1 s to load

            named = named_spec(self._url, os.environ)
        if named is None:
            return SourceSpec(self._url, resolve_options(self._url, self._options, os.environ))
        if self._options:
            raise UsageError(f"options are for URLs; those of dataset {self._url} are in its manifest: forebay apply")
        return named

    def node_ids(self, indices: Sequence[int]) -> "array[int]":
        """Node ids of files, as an order is posted."""
        nodes = self._nodes
        return array("Q", [nodes[index] for index in indices])

    def path(self, index: int) -> str:
        """Path below the source's root."""
        return os.fsdecode(self._open().catalogue.path_of(NodeId(self._nodes[index])))

    def size(self, index: int) -> int:
        """Bytes."""
        return self._node(self._open(), index).size

    def read(self, index: int) -> Data:
        """A whole file.

        Raises:
            IndexError: there are not so many.
            SourceStale: it was changed in the source, and is not cached.
            ForebayError: why else its bytes could not be had.
        """
        opened = self._local.opened
        if opened is None or opened.pid != os.getpid():
            opened = self._open()
        found = opened.catalogue.file(self._nodes[index])
        data = self._cached(opened, *found) if found is not None else None
        if data is None:
            node = self._node(opened, index)
            return self._fetch(opened, [node], self._begin(opened, [node]))[0]
        self.counts.hits += 1
        if time.monotonic() > opened.calm_until:
            self._keep_house(opened)
        return data

    def read_each(self, indices: Sequence[int]) -> Iterator[Data]:
        """Whole files, one after the other; what is missing is on its way from the first one on. Raises: as `read`.

        Who is done with one before he takes the next has its memory used again: with 64 files of 100 KiB held at once,
        making room for them cost five times as much as reading them.
        """
        opened = self._open()
        nodes = [self._node(opened, index) for index in indices]
        for start in range(0, len(nodes), _TOGETHER):
            yield from self._read_together(opened, nodes[start : start + _TOGETHER])
        if time.monotonic() > opened.calm_until:
            self._keep_house(opened)

    # Behind the scenes

    def _read_together(self, opened: _Opened, nodes: Sequence[Node]) -> Iterator[Data]:
        # A touch is for a file that is read now: what is evicted while it waits here for its turn gives no room.
        find = opened.reader.find
        missing = [node for node in nodes if node.size and find(node.content, 0, node.size, touch=False) is None]
        coming = self._begin(opened, missing)
        absent = {node.node for node in missing}
        fetched: dict[int, bytes] | None = None
        try:
            for node in nodes:
                data: Data | None
                if node.node not in absent:
                    data = self._cached(opened, node.content, node.size)
                    self.counts.hits += 1
                else:
                    if fetched is None:
                        under_way, coming = coming, None
                        contents = self._fetch(opened, missing, under_way)
                        fetched = dict(zip((each.node for each in missing), contents, strict=True))
                    data = fetched.get(node.node)
                # None: it was here a moment ago, and was evicted before it was read.
                yield data if data is not None else self._read_pieces(opened, node)
        finally:
            if coming is not None:
                coming.close()

    def _cached(self, opened: _Opened, content: ContentId, size: int) -> Data | None:
        """A whole file, or None when not all of it is cached."""
        if not size:
            return b""
        place = opened.reader.find(content, 0, size)
        if place is None:
            return None
        if self._views and (view := opened.mapped.view(place.descriptor, place.base, size)) is not None:
            return view
        if size > _READ_BYTES:
            return None  # by pieces
        data = _pread(opened.reader, content, place, size)
        opened.reader.release(content)  # in a shuffled epoch nobody comes back to it soon
        return data if data is not None and len(data) == size else None

    def _fetch(self, opened: _Opened, nodes: Sequence[Node], coming: FillsUnderWay | None) -> list[bytes]:
        """Files of which something is missing.

        Args:
            opened: ours.
            nodes: which.
            coming: what was asked for already; None: nothing.
        """
        if not nodes:
            return []
        self.counts.misses += len(nodes)
        self.counts.miss_bytes += sum(node.size for node in nodes)
        replies = self._exchange(opened, [self._request(opened, node) for node in nodes], coming)
        found = []
        for node, (kind, payload) in zip(nodes, replies, strict=True):
            through = outcome_of(kind, payload)
            whole = through is not None and len(through) == node.size
            found.append(through if whole and through is not None else self._read_pieces(opened, node))
        return found

    def _read_pieces(self, opened: _Opened, node: Node) -> bytes:
        """A file piece by piece, each asked for where it is missing."""
        pieces: list[bytes] = []
        offset = 0
        while offset < node.size:
            pieces.append(self._read_piece(opened, node, offset))
            offset += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_piece(self, opened: _Opened, node: Node, offset: int) -> bytes:
        length = min(self.config.fill.window_max_bytes, node.size - offset)
        for _ in range(_TRIES):
            place = opened.reader.find(node.content, offset, offset + length)
            if place is not None and (data := _pread(opened.reader, node.content, place, length, offset)):
                if offset + length == node.size:
                    opened.reader.release(node.content)
                return data
            (reply,) = self._exchange(opened, [self._request(opened, node, offset)], None)
            if through := outcome_of(*reply):
                return through
        path = os.fsdecode(opened.catalogue.path_of(node.node))
        raise SourceStale(f"{self._url}: cached bytes of {path!r} went away as often as they came")

    def _request(self, opened: _Opened, node: Node, offset: int = 0) -> pb.FillRequest:
        path = opened.catalogue.path_of(node.node)
        length = min(self.config.fill.window_max_bytes, node.size - offset)
        ref = pb.FileRef(path=path, size=node.size, version=node.version)
        return pb.FillRequest(
            dataset_id=self._dataset_id,
            file=ref,
            offset=offset,
            length=length,
            window=length,
            suspect=opened.reader.take_wrong(node.content),
        )

    def _begin(self, opened: _Opened, nodes: Sequence[Node]) -> FillsUnderWay | None:
        """Have files fetched. None: there is nothing to fetch, or no worker now."""
        if not nodes:
            return None
        try:
            return opened.cache.socket.begin([self._request(opened, node) for node in nodes])
        except WorkerUnavailable:
            return None

    def _exchange(
        self, opened: _Opened, requests: Sequence[pb.FillRequest], coming: FillsUnderWay | None
    ) -> list[tuple[int, bytes]]:
        """The replies to requests; survives the worker's death."""
        deadline, delay_s = time.monotonic() + _PATIENCE_S, 0.02
        while True:
            try:
                replies = (coming or opened.cache.socket.begin(requests)).replies()
                if not any(_is_not_attached(reply) for reply in replies):
                    return replies
                self._attach()
            except WorkerUnavailable:
                opened.cache.socket.close()
                if time.monotonic() > deadline:
                    raise
                self._attach()
            coming = None
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, 1.0)

    def _keep_house(self, opened: _Opened) -> None:
        """Give back what evicted files hold; tell the worker that the dataset is in use, for nobody sees hits."""
        now = time.monotonic()
        opened.calm_until = now + _SWEEP_S
        opened.reader.sweep()
        opened.mapped.sweep()
        if now < opened.silent_until:
            return
        opened.silent_until = now + _IN_USE_S
        try:
            (reply,) = opened.cache.socket.begin([pb.FillRequest(dataset_id=self._dataset_id)]).replies()
            if _is_not_attached(reply):
                self._attach()
        except WorkerUnavailable:
            opened.cache.socket.close()  # nobody evicts while there is none

    def _node(self, opened: _Opened, index: int) -> Node:
        number = NodeId(self._nodes[index])
        node = opened.catalogue.node(number)
        if node is None:
            raise SourceStale(
                f"snapshot {self._snapshot} of {self._url} knows file {index} no more; make the dataset anew"
            )
        return node

    def _open(self) -> _Opened:
        opened = self._local.opened
        if opened is None or opened.pid != os.getpid():
            cache = node_cache(self.config)
            try:
                catalogue = cache.catalogue(self._catalogue)
            except CacheFormatError:  # the snapshot was removed: it is made again, as far as it can be
                self._attach()
                catalogue = cache.catalogue(self._catalogue)
            opened = self._local.opened = _Opened(os.getpid(), cache, catalogue)
        return opened

    def _attach(self) -> None:
        """Make the source known to the worker, which is started if there is none."""
        reply = node_cache(self.config).socket.attach(
            self.spec, list_tree=True, snapshot=self._snapshot, cache_policy=self._cache_policy
        )
        self._dataset_id = str(reply.dataset_id)
        self._snapshot = int(reply.snapshot)
        self._catalogue = Path(reply.catalogue)

    def _listed(self) -> Catalogue:
        """The catalogue once all of the source is in it."""
        catalogue = node_cache(self.config).catalogue(self._catalogue)
        while not catalogue.complete:
            totals = catalogue.totals()
            if totals.error:
                raise SourceUnavailable(f"the listing of {self._url} broke off: {totals.error}")
            time.sleep(_LISTING_POLL_S)
        return catalogue


def _pread(reader: ContentReader, content: ContentId, place: Place, size: int, offset: int = 0) -> bytes | None:
    """Bytes of a file; None when the disk does not give them: the worker, when asked for them, looks into that."""
    try:
        return os.pread(place.descriptor, size, place.base + offset)
    except OSError:
        reader.is_wrong(content)
        return None


def _is_not_attached(reply: tuple[int, bytes]) -> bool:
    kind, payload = reply
    return kind == ReplyKind.ERROR and payload.startswith(NotAttached.__name__.encode() + b":")


def _accepts(pattern: str | None, suffix: str | Sequence[str]) -> Callable[[bytes, bytes], bool]:
    """Whether a file in that directory of that name is wanted."""
    endings = tuple(os.fsencode(end) for end in ((suffix,) if isinstance(suffix, str) else suffix))
    matches = re.compile(fnmatch.translate(pattern).encode("utf-8", "surrogateescape")).match if pattern else None

    def accepts(directory: bytes, name: bytes) -> bool:
        if endings and not name.endswith(endings):
            return False
        return matches is None or matches(directory + b"/" + name if directory else name) is not None

    return accepts


def _wanted(pattern: str | None, suffix: str | Sequence[str]) -> str:
    parts = [f"matches {pattern!r}"] if pattern else []
    parts += [f"ends with {suffix!r}"] if suffix else []
    return f" that {' and '.join(parts)}" if parts else ""


def _walk(catalogue: Catalogue, accepts: Callable[[bytes, bytes], bool]) -> Iterator[int]:
    """Node ids of the files that are wanted: of each directory first its own, by name, then those below."""
    pending = [(NodeId(ROOT_NODE), b"")]
    while pending:
        directory, path = pending.pop()
        inner = []
        for node, name, kind, *_ in catalogue.listing(directory):
            if kind == stat.S_IFDIR:
                inner.append((NodeId(node), path + b"/" + name if path else name))
            elif kind == stat.S_IFREG and accepts(path, name):
                yield node
        pending += reversed(inner)
