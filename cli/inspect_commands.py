"""What `forebay info` does: it reads catalogue and index, and asks no worker."""

import json as jsonlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.errors import SourceNotFound, UsageError
from forebay.cacheruntime.index import BLOCK_BYTES, Index, block_count
from forebay.cacheruntime.keys import DatasetId
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
    present = list(_present(cached.size, blocks, cached.has))
    folder = index.tiers()[tier][1]
    media = {str(tier.path): tier.medium.value for tier in config.tiers}
    shown |= {
        "blocks_cached": len(present), "cached_bytes": cached.cached_bytes(), "complete": cached.complete,
        "tier": {"medium": media.get(str(folder), "?"), "path": str(folder)},
        "file": str(cached_path(folder, node.content, cached.pack)), "offset": cached.offset,
    }  # fmt: skip
    sums = {block: cached.checksum if cached.pack else index.checksum(node.content, block) for block in present}
    shown["checksums"] = {"kind": "XXH3-64", "known": sum(value is not None for value in sums.values())}
    if checksums:
        shown["checksums"]["blocks"] = {str(block): f"{value:016x}" for block, value in sums.items() if value}
    return shown


def _is_pinned(path: bytes, pins: list[bytes]) -> bool:
    return any(not pin or path == pin or path.startswith(pin + b"/") for pin in pins)


def _present(size: int, blocks: int, has: Any) -> Iterator[int]:
    for block in range(blocks):
        start = block * BLOCK_BYTES
        if has(start, min(start + BLOCK_BYTES, size) if blocks > 1 else size):
            yield block


def _directory(catalogue: Catalogue, path: bytes, index: Index | None) -> dict[str, Any]:
    files = size = cached_files = cached_bytes = 0
    for _, node in files_at(catalogue, path):
        files, size = files + 1, size + node.size
        cached = index.find(node.content) if index is not None else None
        if cached is not None or not node.size:
            cached_files += 1
            cached_bytes += cached.cached_bytes() if cached is not None else 0
    return {"files": files, "size_bytes": size, "cached_files": cached_files, "cached_bytes": cached_bytes}
