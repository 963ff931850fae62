"""What `forebay info` does: it reads catalogue and index, and asks no worker."""

import json as jsonlib
import os
from contextlib import closing
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.blocks import BLOCK_BYTES, PIECE_BYTES, SUM_BYTES, block_count
from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.errors import SourceNotFound, UsageError
from forebay.cacheruntime.index import Cached, Index
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.selection import files_at
from forebay.cacheruntime.snapshot_history import numbers_in
from forebay.cacheruntime.tiers import cached_path
from forebay.cacheruntime.understore.base import Kind
from forebay.cli import inspect_screens
from forebay.cli.commands import cache_config
from forebay.cli.dataset_sources import find_target
from forebay.cli.reach import below
from forebay.fuse import mounting


def mount_over(path: str, config: CacheConfig) -> MountState | None:
    """The mount that a path lies in; never looks at the mount itself."""
    if "://" in path:
        return None
    real = mounting.real_directory(path)
    best = None
    for _, state in register.registered(config.runtime_dir):
        inside = real == state.dir or real.startswith(state.dir + "/")
        if inside and (best is None or len(state.dir) > len(best.dir)):
            best = state
    return best


def info(
    where: str, path: str | None, cache_dir: Path | None, options: list[str], *, checksums: bool, json: bool
) -> None:
    config = cache_config(cache_dir, [])
    state = mount_over(where, config)
    if state is not None:
        config = cache_config(Path(state.cache_dir), [])
        inside = mounting.real_directory(where)[len(state.dir) :].strip("/")
        inside = "/".join(filter(None, (inside, path)))
        dataset, folder, number, url = DatasetId(state.dataset_id), Path(state.catalogue), state.snapshot, state.url
    else:
        inside = path or ""
        found = find_target(where, cache_dir, options)
        config, dataset = found.config, found.dataset_id
        number = found.spec.snapshot if found.spec is not None else 0
        number = number or max(numbers_in(found.folder), default=0)
        folder, url = found.folder / str(number), found.spec.url if found.spec is not None else found.shown
        if not folder.exists():
            raise UsageError(f"{where} was never listed in {config.cache_dir}; mount it or warm it up first")
    with closing(Catalogue(folder)) as catalogue:
        wanted = below(inside, None)
        node = catalogue.resolve(wanted)
        if node is None:
            raise SourceNotFound(f"{url}: there is no {inside!r} in snapshot {number}")
        shown: dict[str, Any] = {
            "path": inside, "source": f"{url}/{inside}" if inside else url, "dataset": dataset, "snapshot": number,
            "kind": node.kind.value, "size_bytes": node.size, "mtime_ns": node.mtime_ns,
        }  # fmt: skip
        with _index(config) as index:
            if node.kind is Kind.FILE:
                shown |= {"version": node.version, "content": node.content.hex()}
                shown |= _file(node, index, config, checksums)
                shown["pinned"] = index is not None and _is_pinned(wanted, index.pins(dataset))
            elif node.kind is Kind.DIRECTORY:
                shown |= _directory(catalogue, wanted, index)
            else:
                shown["target"] = os.fsdecode(node.target)
    print(jsonlib.dumps(shown, indent=2)) if json else inspect_screens.info(shown)


class _index:
    """The index, or None when the cache holds nothing yet; closed at the end."""

    def __init__(self, config: CacheConfig) -> None:
        self._index = Index(config.index_dir) if config.index_dir.exists() else None

    def __enter__(self) -> Index | None:
        return self._index

    def __exit__(self, *_: object) -> None:
        if self._index is not None:
            self._index.close()


def _file(node: Node, index: Index | None, config: CacheConfig, checksums: bool) -> dict[str, Any]:
    small = index is not None and (found := index.find(node.content)) is not None and bool(found.pack)
    blocks = 1 if small else block_count(node.size)
    shown: dict[str, Any] = {"blocks": blocks, "block_bytes": BLOCK_BYTES, "blocks_cached": 0, "cached_bytes": 0}
    cached = index.find(node.content) if index is not None else None
    tier = index.tier_of(cached) if index is not None and cached is not None else None
    if index is None or cached is None or tier is None:
        return shown
    folder = index.tiers()[tier][1]
    media = {str(tier.path): tier.medium.value for tier in config.tiers}
    shown |= {
        "blocks_cached": 1 if cached.pack else cached.whole_blocks(), "cached_bytes": cached.cached_bytes(),
        "complete": cached.complete,
        "tier": {"medium": media.get(str(folder), "?"), "path": str(folder)},
        "file": str(cached_path(folder, node.content, cached.pack)), "offset": cached.offset,
    }  # fmt: skip
    sums = _packed_sum(cached) if cached.pack else _sums(index, node.content, cached)
    shown["checksums"] = {"kind": "XXH3-64", "known": sum(map(len, sums.values()))}
    if checksums:
        shown["checksums"] |= sums
    return shown


def _packed_sum(cached: Cached) -> dict[str, dict[str, str]]:
    return {"blocks": {"0": f"{cached.checksum:016x}"}}


def _sums(index: Index, content: ContentId, cached: Cached) -> dict[str, dict[str, str]]:
    """Those of blocks by their numbers, and of pieces of blocks by their offsets in the file."""
    blocks, pieces = {}, {}
    for span, sums in index.extents(content, cached):
        if len(sums) == SUM_BYTES and span.is_block(cached.size):
            blocks[str(span.block)] = sums.hex()
            continue
        for position, at in enumerate(range(0, len(sums), SUM_BYTES)):
            pieces[str(span.start + position * PIECE_BYTES)] = sums[at : at + SUM_BYTES].hex()
    return {"blocks": blocks, "pieces": pieces}


def _is_pinned(path: bytes, pins: list[bytes]) -> bool:
    return any(not pin or path == pin or path.startswith(pin + b"/") for pin in pins)


def _directory(catalogue: Catalogue, path: bytes, index: Index | None) -> dict[str, Any]:
    files = size = cached_files = cached_bytes = 0
    for _, node in files_at(catalogue, path):
        files, size = files + 1, size + node.size
        cached = index.find(node.content) if index is not None else None
        if cached is not None or not node.size:
            cached_files += 1
            cached_bytes += cached.cached_bytes() if cached is not None else 0
    return {"files": files, "size_bytes": size, "cached_files": cached_files, "cached_bytes": cached_bytes}
