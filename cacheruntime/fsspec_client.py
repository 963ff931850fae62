"""``forebay://``: an fsspec file system that reads through the node's cache without FUSE and without a copy.

``fsspec.open("forebay://s3://bucket/key")`` and whatever takes fsspec URLs (pandas, pyarrow, torchdata) read the
same tier files as a mount does; the worker is asked only for what is missing. The URL behind ``forebay://`` is any
source that `forebay mount` takes.
"""

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from forebay.cacheruntime import tracing
from forebay.cacheruntime.config import CacheConfig, ClusterConfig
from forebay.cacheruntime.errors import SourceNotFound, SourceStale, UsageError
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.node_cache import HashedSpec, NodeCache, NodeOptions, node_cache, program_config
from forebay.cacheruntime.readahead import Readahead
from forebay.cacheruntime.understore.credentials import resolve_options
from forebay.proto import worker_pb2 as pb

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER_BYTES = 256 << 10
"""Of the buffered reader around a file: for line-wise reading; larger reads go past it."""


class ForebayFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Read-only view of all that ``forebay://SOURCE-URL`` names.

    Args:
        cache_dir: of the node cache; default as for `forebay mount`.
        options: for the source, as `--option` of `forebay mount`; the usual AWS_* variables are read too.
        worker, tls, insecure: HOST:PORT of workers of a cluster, which read the sources, and how to talk to them;
            default: FOREBAY_WORKER, FOREBAY_TLS, FOREBAY_INSECURE=1, else as the cache folder was used last. URLs may
            be of datasets too then: forebay://dataset://NAME/path.
        tier: as `--tier` of `forebay mount`, for a cache folder that no worker runs on yet; ``none`` keeps nothing.
    """

    protocol = "forebay"
    cachable = True

    def __init__(
        self,
        cache_dir: str | None = None,
        options: Mapping[str, str] | None = None,
        worker: str | None = None,
        tls: str | None = None,
        insecure: bool = False,
        tier: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._config = program_config(NodeOptions(cache_dir, worker, tls, insecure, tier))
        self._options = dict(options or {})
        self._remote: dict[str, HashedSpec] = {}
        if self._config.client_of is not None and self._options:
            raise UsageError("options are for the workers: a client node knows no credentials; leave them out")

    @classmethod
    def _strip_protocol(cls, path: str | list[str]) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        stripped = path.removeprefix("forebay://")
        return stripped.rstrip("/") if not stripped.endswith("://") else stripped

    def unstrip_protocol(self, name: str) -> str:
        return name if name.startswith("forebay://") else f"forebay://{name}"

    @property
    def _node(self) -> NodeCache:
        return node_cache(self._config)

    def _locate(self, path: str) -> tuple[HashedSpec, str]:
        """The source to attach (a bucket, a host, the root) and the path in it."""
        url = self._strip_protocol(path)
        if "://" not in url:
            raise UsageError(f"forebay://{url} names no source; write it like forebay://s3://bucket/key")
        if self._config.client_of is not None:
            return self._locate_remote(url, self._config.client_of)
        root, inner = split_root(url)
        return HashedSpec(root, resolve_options(root, self._options, os.environ)), inner

    def _locate_remote(self, url: str, cluster: ClusterConfig) -> tuple[HashedSpec, str]:
        """The same on a client node: the dataset of the cluster that holds it, which is asked for once."""
        for root, spec in self._remote.items():
            if url == root or url.startswith(f"{root}/"):
                return spec, url[len(root) + 1 :]
        from forebay.cacheruntime.cluster.remote_sources import find_remote

        found = find_remote(url, cluster)
        root = url.removesuffix(found.rest).rstrip("/")
        whole = found.root().spec(root)
        spec = self._remote[root] = HashedSpec(whole.source, whole.options, whole.tree, shown=root)
        return spec, found.rest

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        spec, inner = self._locate(path)
        name = self._strip_protocol(path)
        if not inner:
            return {"name": name, "size": 0, "type": "directory"}
        try:
            return _describe(name, self._ask(spec, inner).entry)
        except SourceNotFound as error:
            try:
                self._ask(spec, inner, children=True)
            except SourceNotFound:
                raise FileNotFoundError(path) from error
            return {"name": name, "size": 0, "type": "directory"}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        spec, inner = self._locate(path)
        name = self._strip_protocol(path)
        try:
            children = self._ask(spec, inner, children=True).children
        except SourceNotFound as error:
            try:
                found = [_describe(name, self._ask(spec, inner).entry)]
            except SourceNotFound:
                raise FileNotFoundError(path) from error
        else:
            root = name.removesuffix(inner)
            root = root if root.endswith("/") else f"{root}/"
            found = [_describe(root + os.fsdecode(child.path), child) for child in children]
        return found if detail else [entry["name"] for entry in found]

    def _ask(self, spec: HashedSpec, inner: str, children: bool = False) -> pb.StatReply:
        raw = os.fsencode(inner)
        return self._node.stat(spec, pb.StatRequest(path=raw, children=children))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BufferedReader:
        if mode != "rb":
            raise UsageError(f"forebay:// is read-only; {path} cannot be opened with mode {mode!r}")
        return io.BufferedReader(self._raw(path), _BUFFER_BYTES)

    def _raw(self, path: str) -> "CachedFile":
        spec, inner = self._locate(path)
        try:
            entry = self._ask(spec, inner).entry
        except SourceNotFound as error:
            raise FileNotFoundError(path) from error
        return CachedFile(self._config, spec, inner, entry)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        with self._raw(path) as raw:
            first, last, _ = slice(start, end).indices(raw.size)
            raw.seek(first)
            data = bytearray(max(0, last - first))
            filled = 0
            while filled < len(data):
                got = raw.readinto(memoryview(data)[filled:])
                if not got:
                    break
                filled += got
            return bytes(data[:filled])

    def created(self, path: str) -> Any:
        raise NotImplementedError("object stores do not tell when a file was created")

    def modified(self, path: str) -> Any:
        from datetime import UTC, datetime

        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)


def split_root(url: str) -> tuple[str, str]:
    """A URL's source root and the path below it: the bucket, the host, or the root of the file system."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return "file:///", rest.strip("/")
    container, _, inner = rest.partition("/")
    if "+" in scheme:  # s3+http://host:port/bucket/key
        bucket, _, inner = inner.partition("/")
        return f"{scheme}://{container}/{bucket}", inner
    return f"{scheme}://{container}", inner


def _describe(name: str, entry: pb.StatEntry) -> dict[str, Any]:
    return {
        "name": name,
        "size": entry.size,
        "type": entry.kind if entry.kind != "symlink" else "link",
        "mtime": entry.mtime_ns / 1e9,
        "ETag": entry.version,
    }


class CachedFile(io.RawIOBase):
    """One version of one file; reads go straight from the tier file into the caller's buffer.

    Safe to use from several threads as far as io.RawIOBase is: position-changing calls need the caller's order.
    """

    def __init__(self, config: CacheConfig, spec: HashedSpec, path: str, entry: pb.StatEntry) -> None:
        super().__init__()
        self._config, self._spec, self._path, self._entry = config, spec, path, entry
        self.size: int = entry.size
        self.name = path
        self._content: ContentId = spec.roots.names().content(
            path.encode("utf-8", "surrogateescape"), entry.size, entry.version.encode("utf-8", "surrogateescape")
        )
        self._position = 0
        fill = self._config.fill
        self._readahead = Readahead(fill.window_min_bytes, fill.window_max_bytes)

    @property
    def _cache(self) -> NodeCache:
        return node_cache(self._config)  # a file that was opened before a fork goes on in the child

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.size - self._position, self._config.fill.window_max_bytes)
        if wanted <= 0:
            return 0
        got = self._read_at(view[:wanted], self._position)
        self._position += got
        return got

    def _read_at(self, view: memoryview, offset: int) -> int:
        end = offset + len(view)
        for _ in range(3):  # what was filled may be evicted before we look, but not over and over
            cache = self._cache
            with cache.lock:
                place = cache.reader.find(self._content, offset, end)
                # Our own descriptor: the reader may close its one as soon as the lock is free.
                descriptor = os.dup(place.descriptor) if place is not None else -1
                advice = self._readahead.observe(offset, len(view), self.size)
                whole = cache.reader.is_whole(self._content)
            if place is not None:
                try:
                    got = os.preadv(descriptor, [view], place.base + offset)
                finally:
                    os.close(descriptor)
                if not whole and advice.ahead_bytes:
                    self._fill(advice.ahead_start, advice.ahead_bytes, advice.ahead_bytes, background=True)
                return got
            data = self._fill(offset, len(view), advice.window_bytes)
            if data is not None:
                view[: len(data)] = data
                return len(data)
        raise SourceStale(f"{self._spec.source}/{self._path}: cached bytes went away as often as they came")

    def _fill(self, offset: int, length: int, window: int, *, background: bool = False) -> bytes | None:
        ref = pb.FileRef(path=os.fsencode(self._path), size=self.size, version=self._entry.version)
        suspect = self._cache.reader.take_wrong(self._content)
        request = pb.FillRequest(
            file=ref, offset=offset, length=length, window=window, background=background, suspect=suspect
        )
        if background:
            return self._cache.fill(self._spec, request)
        with tracing.span("forebay.miss", "CLIENT", root=True, path=self._path, offset=offset, length=length) as span:
            request.traceparent = span.traceparent
            return self._cache.fill(self._spec, request)
