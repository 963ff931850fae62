"""One read from an under-store: the part that runs in a thread, from the store's pieces to blocks in a tier file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import xxhash

from forebay.cacheruntime import tracing
from forebay.cacheruntime.blocks import Span, sums_of
from forebay.cacheruntime.errors import SourceStale
from forebay.cacheruntime.keys import ContentId, DatasetId, content_id
from forebay.cacheruntime.understore.address import without_userinfo
from forebay.cacheruntime.understore.base import UnderStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

Write = Callable[[Sequence[memoryview], int], None]
"""Puts pieces, one behind the other, at an offset of a tier file; raises OSError."""


class Taken(NamedTuple):
    """What one read took from one source, to be counted in the event loop."""

    dataset: DatasetId
    peer: str | None
    """Id of the worker; None: the under-store."""
    bytes: int
    took_ns: int
    failed: bool


class Peers(Protocol):
    """The other workers of a cluster, as a source; see `peer_source.py`."""

    def read(self, file: "SourceFile", start: int, length: int) -> "Iterator[Buffer]":
        """Bytes of a file, of its owners, else of its store; each piece verified. Errors as `UnderStore.read_range`."""

    def read_many(self, files: "Sequence[SourceFile]") -> "Iterator[tuple[int, list[memoryview]]]":
        """Small files that one worker is to be asked for, by one request: positions in `files` with all their bytes,
        verified, in any order. What does not come is to be had by `read`."""

    def first(self, file: "SourceFile") -> str | None:
        """Id of the worker that is asked first for a small file; None: nobody is, its store gives it."""

    def drain_taken(self) -> "Iterator[Taken]":
        """What reads took since the last call. In the event loop."""

    def is_replica(self, file: "SourceFile", offset: int) -> bool:
        """Whether the slice at `offset` belongs to others, and this worker has a share of its own."""

    def relays(self, file: "SourceFile", offset: int) -> bool:
        """Whether an owner is asked to fetch the slice at `offset`, rather than its store by this worker."""


@dataclass(frozen=True)
class SourceFile:
    """One version of one file of an under-store."""

    dataset: DatasetId
    store: UnderStore
    path: str
    size: int
    version: str
    dataset_path: str = ""
    """Where it is in `dataset`, which may be made of several stores; '' stands for `path`."""
    asked_of: DatasetId | None = None
    """The dataset through which it is read, which may show only a part of `dataset`."""
    asked_path: str = ""
    """Where it is in that."""
    peers: Peers | None = None
    """Other workers that may have it; None: the node is alone."""
    hops: int = 0
    """Workers that passed the request on to this one; 0: it is this node's own."""
    known_content: ContentId | None = None
    """Its name, where it is known already."""
    replicas: int = 0
    """Workers that are to have it; 0: as many as the cluster is set to."""

    @cached_property
    def content(self) -> ContentId:
        return self.known_content or content_id(self.store.url, self.path, self.size, self.version)

    def is_relayed(self, offset: int) -> bool:
        """Whether another worker is asked to fetch the slice at `offset`."""
        return self.peers is not None and self.peers.relays(self, offset)

    def is_replica(self, offset: int = 0) -> bool:
        """Whether the slice at `offset` is another worker's to keep."""
        return self.peers is not None and self.peers.is_replica(self, offset)

    def read(self, start: int, length: int) -> "Iterator[Buffer]":
        """As `UnderStore.read_range`, from another worker where one has it."""
        return self.peers.read(self, start, length) if self.peers is not None else self.read_store(start, length)

    def read_store(self, start: int, length: int) -> "Iterator[Buffer]":
        """As `UnderStore.read_range`; a GET in the trace."""
        pieces = self.store.read_range(self.path, start, length, self.version)
        return _traced(self, start, length, pieces) if tracing.is_on() else pieces


def _traced(file: SourceFile, start: int, length: int, pieces: "Iterator[Buffer]") -> "Iterator[Buffer]":
    url = without_userinfo(file.store.url)
    span = tracing.begin("forebay.store.get", "CLIENT", url=url, path=file.path, offset=start, length=length)
    got = 0
    error: BaseException | None = None
    try:
        for piece in pieces:
            got += memoryview(piece).nbytes
            yield piece
    except BaseException as failure:
        error = failure
        raise
    finally:
        span.set(bytes=got)
        span.end(error if got < length else None)


class Fetched(NamedTuple):
    """Bytes of one block: in the tier file, or in `data` when they go past the tiers."""

    span: Span
    sums: bytes
    """XXH3-64 of a whole block, or of each piece of one."""
    data: bytes | None


def fetch_whole(file: SourceFile) -> bytes:
    """A small file's bytes.

    Raises:
        SourceError: from the store; SourceStale also when it is shorter than listed.
    """
    pieces = fetch_pieces(file)
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def fetch_pieces(file: SourceFile) -> list[memoryview]:
    """A small file's bytes as the store gave them, which spares a copy; errors as `fetch_whole`."""
    pieces = [memoryview(piece) for piece in file.read(0, file.size)]
    size = sum(map(len, pieces))
    if size != file.size:
        raise SourceStale(f"{file.store.url}: {file.path!r} has {size} bytes, listed were {file.size}")
    return pieces


def fetch_spans(file: SourceFile, run: list[Span], write: Write | None) -> Iterator[Fetched]:
    """Stream a run of blocks, or of pieces of them, to a tier file or to memory.

    Args:
        file: which.
        run: spans that follow one another.
        write: to the tier file; None for memory.

    Yields:
        Each span when it is whole. From a store that cannot pin a version, nothing before the read has ended well.

    Raises:
        ForebayError: from the store. OSError: from writing.
    """
    assert run[-1].end <= file.size
    held: list[Fetched] = []
    position, filled = 0, 0
    # Whole aligned blocks make large folios in the page cache, where the pieces of a store would make small ones: these
    # cost a reader of 4 KiB a quarter of its rate. The pieces are gathered by the kernel (pwritev), not copied before.
    pieces: list[memoryview] = []
    hasher = xxhash.xxh3_64()
    for piece in file.read(run[0].start, run[-1].end - run[0].start):
        view = memoryview(piece)
        while view and position < len(run):
            span = run[position]
            part = view[: span.size - filled]
            view = view[len(part) :]
            pieces.append(part)
            hasher.update(part)
            filled += len(part)
            if filled == span.size:
                done = _store(file, span, hasher.digest(), pieces, write)
                if file.store.pins_version:
                    yield done
                else:
                    held.append(done)
                position, filled, pieces = position + 1, 0, []
                hasher.reset()
    if position < len(run):
        raise SourceStale(f"{file.store.url}: {file.path!r} is shorter than listed ({file.size} bytes)")
    yield from held


def _store(file: SourceFile, span: Span, whole: bytes, pieces: list[memoryview], write: Write | None) -> Fetched:
    sums = whole
    if not span.is_block(file.size):
        sums = sums_of(pieces[0] if len(pieces) == 1 else b"".join(pieces))
    if write is None:
        return Fetched(span, sums, b"".join(pieces))
    write(pieces, span.start)
    return Fetched(span, sums, None)
