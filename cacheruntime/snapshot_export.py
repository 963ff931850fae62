"""A snapshot's listing as a Parquet file, for people and their tools."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.errors import CacheError
from forebay.cacheruntime.keys import ROOT_NODE, NodeId, Roots
from forebay.cacheruntime.understore.base import Kind

ROW_GROUP = 100_000
"""Rows in memory at a time: about 50 MB of Python objects, and a fit size for readers of Parquet."""

SCHEMA = pa.schema([
    pa.field("path", pa.string(), nullable=False, metadata={"doc": "below the root; U+FFFD for what is not UTF-8"}),
    pa.field("kind", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("mtime", pa.timestamp("ns", tz="UTC")),
    pa.field("version", pa.string(), metadata={"doc": "ETag, or what stands in for it"}),
    pa.field("mode", pa.int32(), metadata={"doc": "permission bits, where the source has them"}),
    pa.field("target", pa.string(), metadata={"doc": "of a symbolic link"}),
    pa.field("source", pa.string(), metadata={"doc": "URL in the under-store"}),
    pa.field("content_id", pa.string(), metadata={"doc": "what the cache calls these bytes, in hex"}),
    pa.field("path_bytes", pa.binary(), metadata={"doc": "the path, where it is not UTF-8"}),
])  # fmt: skip


def export(catalogue: Catalogue, file: Path, roots: Roots, about: dict[str, str]) -> int:
    """Write all visible files, links and directories in path order, as `find` would; returns how many.

    Args:
        catalogue: of a snapshot.
        file: appears whole, or not at all.
        roots: where files come from.
        about: goes into the file's metadata.

    Raises:
        CacheError: the file cannot be written.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    schema = SCHEMA.with_metadata(about)
    rows = 0
    try:
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            group: list[tuple[bytes, Node]] = []
            for found in _walk(catalogue):
                group.append(found)
                if len(group) == ROW_GROUP:
                    writer.write_batch(_batch(group, roots, schema))
                    rows += len(group)
                    group = []
            if group:
                writer.write_batch(_batch(group, roots, schema))
            rows += len(group)
        os.replace(draft, file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CacheError(f"{file} cannot be written: {error.strerror or error}; name another file") from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return rows


def _walk(catalogue: Catalogue, directory: NodeId = ROOT_NODE, above: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Depth first, each directory before what is in it."""
    pending: list[Iterator[tuple[bytes, Node]]] = [_children(catalogue, directory, above)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        yield found
        path, node = found
        if node.kind is Kind.DIRECTORY:
            pending.append(_children(catalogue, node.node, path))


def _children(catalogue: Catalogue, directory: NodeId, above: bytes) -> Iterator[tuple[bytes, Node]]:
    inside = above + b"/" if above else b""
    return ((inside + node.name, node) for node in catalogue.children(directory))


def _batch(rows: list[tuple[bytes, Node]], roots: Roots, schema: Any) -> Any:
    paths = [path.decode("utf-8", "replace") for path, _ in rows]
    files = [node if node.kind is Kind.FILE else None for _, node in rows]
    columns = [
        paths,
        [node.kind.value for _, node in rows],
        [node.size for _, node in rows],
        [node.mtime_ns or None for _, node in rows],
        [_readable(node.version) if node else None for node in files],
        [node.mode for _, node in rows],
        [node.target.decode("utf-8", "replace") if node.kind is Kind.SYMLINK else None for _, node in rows],
        [roots.url_of(path).decode("utf-8", "replace") for path, _ in rows],
        [node.content.hex() if node else None for node in files],
        [path if text.encode() != path else None for (path, _), text in zip(rows, paths, strict=True)],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
