"""The node's cache as a Python program reads it: one view of a cache folder for each process.

Used by the fsspec client and by `forebay.torch`. LMDB must be opened once in a process, and neither LMDB nor gRPC may
be used across a fork: what a process opens is kept here, and a forked child lets go of it and opens its own.
"""

import atexit
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from forebay.cacheruntime import tracing
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.client import TRIES, WorkerClient
from forebay.cacheruntime.config import (
    CacheConfig,
    default_cache_dir,
    default_runtime_dir,
    parse_tiers,
    traces_asked,
)
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import NotAttached, UsageError
from forebay.cacheruntime.index import Index
from forebay.cacheruntime.socket_client import SocketClient
from forebay.cacheruntime.touch import TouchMap
from forebay.proto import worker_pb2 as pb

_T = TypeVar("_T")


@dataclass(frozen=True)
class NodeOptions:
    """Which cache a program reads through, and whose; None: as `forebay mount` finds it."""

    cache_dir: str | None = None
    worker: str | None = None
    """HOST:PORT of workers of a cluster, with commas: this machine is a client node of it."""
    tls: str | None = None
    """Folder with this party's certificate."""
    insecure: bool = False
    """Talk in plain text."""
    tier: str | None = None
    """MEDIUM:FOLDER:SIZE, several with spaces between them, or none."""


def program_config(options: NodeOptions) -> CacheConfig:
    """The cache of a program that has no command line of ours.

    Raises:
        UsageError: an option is not what it should be.
    """
    from forebay.cacheruntime.cluster.settings import node_cluster

    folder = Path(os.path.abspath(options.cache_dir)) if options.cache_dir else default_cache_dir(os.environ)
    config = CacheConfig(folder, (), default_runtime_dir(os.environ), traces=traces_asked(os.environ))
    cluster = node_cluster(config, os.environ, options.worker, options.tls, options.insecure)
    config = replace(config, cluster=cluster)
    return replace(config, tiers=parse_tiers(options.tier.split())) if options.tier else config.with_remembered_tiers()


class HashedSpec(SourceSpec):
    """A source as dictionary key; sources with other options are other ones."""

    def __hash__(self) -> int:
        return hash((self.source, tuple(sorted(self.options.items()))))


class NodeCache:
    """The cache of one folder as this process reads it: LMDB must be opened once in a process.

    Concurrency: a lock guards the reader's bookkeeping; bytes are read outside it from a descriptor of the caller's.
    """

    def __init__(self, config: CacheConfig) -> None:
        if config.traces:
            tracing.start("client")
        self.config = config
        self.lock = threading.Lock()
        self.client = WorkerClient(config)
        self.socket = SocketClient(config)
        """For programs that fork."""
        self._attached: dict[SourceSpec, str] = {}
        self._opening = threading.Lock()
        self._opened: tuple[Index, TouchMap] | None = None
        self._reader: ContentReader | None = None
        self._catalogues: dict[Path, Catalogue] = {}

    @property
    def reader(self) -> ContentReader:
        """For use under `lock`.

        Raises CacheFormatError until a worker has made the index; `dataset` sees to that.
        """
        if self._reader is None:
            self._reader = self.another_reader()
        return self._reader

    def another_reader(self) -> ContentReader:
        """One for a thread of its own. Raises: as `reader`."""
        with self._opening:
            if self._opened is None:
                self._opened = Index(self.config.index_dir), TouchMap(self.config.cache_dir / "touch")
        return ContentReader(*self._opened)

    def catalogue(self, folder: Path) -> Catalogue:
        """A snapshot's; stays open until the process ends.

        Raises:
            CacheFormatError: there is none in that folder.
        """
        with self.lock:
            if folder not in self._catalogues:
                self._catalogues[folder] = Catalogue(folder)
            return self._catalogues[folder]

    def stat(self, spec: SourceSpec, request: pb.StatRequest) -> pb.StatReply:
        """See `Stat` in proto/worker.proto; the dataset is filled in."""

        def ask(dataset: str) -> pb.StatReply:
            request.dataset_id = dataset
            reply: pb.StatReply = self.client.call("Stat", request)
            return reply

        return self._attached_to(spec, ask)

    def fill(self, spec: SourceSpec, request: pb.FillRequest) -> bytes | None:
        """See `WorkerClient.fill`; the dataset is filled in."""

        def ask(dataset: str) -> bytes | None:
            request.dataset_id = dataset
            return self.client.fill(request)

        return self._attached_to(spec, ask)

    def _attached_to(self, spec: SourceSpec, ask: Callable[[str], _T]) -> _T:
        """Ask about an attached source; attaches when the worker is a new one."""
        for left in reversed(range(TRIES)):
            try:
                return ask(self.dataset(spec))
            except NotAttached:
                with self.lock:
                    self._attached.clear()
                if not left:
                    raise
        raise AssertionError("unreachable")

    def abandon(self) -> None:
        """In a forked child: unmap the parent's index (LMDB leaves the parent's part of it alone)."""
        self.socket.close()
        if self._reader is not None:
            self._reader.close()
        if self._opened is not None:
            self._opened[0].close()
        for catalogue in self._catalogues.values():
            catalogue.close()

    def dataset(self, spec: SourceSpec) -> str:
        """Its id; attaches the source when this process has not done so."""
        known = self._attached.get(spec)
        if known is None:
            self.client.check_cluster()
            known = str(self.client.attach(spec).dataset_id)
            with self.lock:
                self._attached[spec] = known
        return known


_caches: dict[Path, NodeCache] = {}
_caches_lock = threading.Lock()


def node_cache(config: CacheConfig) -> NodeCache:
    """This process's view of a cache folder. A forked child gets its own: neither LMDB nor gRPC survives a fork.

    Raises:
        UsageError: this process uses that folder in another cluster.
    """
    with _caches_lock:
        found = _caches.get(config.cache_dir)
        if found is None:
            found = _caches[config.cache_dir] = NodeCache(config)
        if found.config.cluster != config.cluster:
            raise UsageError(
                f"this program uses the cache {config.cache_dir} with other workers already; give one of them a"
                " cache_dir of its own"
            )
        return found


def _drop_inherited() -> None:
    """In a forked child: let go of what only the parent may use, so that the child can open its own."""
    global _caches_lock
    _caches_lock = threading.Lock()  # another thread of the parent may have held it
    for cache in _caches.values():
        cache.abandon()
    _caches.clear()


os.register_at_fork(after_in_child=_drop_inherited)


def _close_connections() -> None:
    """At the end of a program: gRPC's threads must not come back to an interpreter that is gone (SIGABRT)."""
    for cache in list(_caches.values()):
        cache.client.close()
        cache.socket.close()


atexit.register(_close_connections)
