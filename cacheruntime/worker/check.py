"""`forebay check`: every sentence of the storage formats (index.py, tiers.py), held against what is there.

Looks run in threads, beside everything else that the worker does; what they find is looked at once more in the event
loop, where nothing can change meanwhile, before it counts.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import trio

from forebay.cacheruntime.blocks import block_count
from forebay.cacheruntime.index import (
    Cached,
    Index,
    Pack,
    PackNumber,
    Seal,
    doomed_key,
    member_key,
)
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import is_folder, pack_path
from forebay.cacheruntime.worker.recount import find_differences, recount
from forebay.cacheruntime.worker.space import Item
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.tier import Tier
from forebay.cacheruntime.worker.verify import Pace, packed_entries, verify_file, verify_packed

_T = TypeVar("_T")

_PROGRESS_INTERVAL_S = 0.2

_AT_ONCE = 500
"""Records that are looked at in one go."""


@dataclass(frozen=True)
class Finding:
    """One sentence that is not true."""

    kind: str
    """A word for machines: record, missing, size, owner, data, sums, pack, member, count, orphan, tier, catalogue."""
    what: str
    """Which thing, for people."""
    repaired: bool


@dataclass
class Progress:
    """How far a check has come."""

    files: int = 0
    bytes: int = 0
    """Compared with their checksums."""
    findings: list[Finding] = field(default_factory=list)
    finished: bool = False


class Check:
    """One check of a whole cache."""

    def __init__(self, storage: Storage, *, deep: bool, repair: bool, pace: Pace | None = None) -> None:
        """
        Args:
            storage: of the running worker.
            deep: compare all bytes with their checksums, read from the disk.
            repair: drop what is wrong, so that it is fetched again, and count anew.
            pace: bounds the rate of reading.
        """
        self._storage = storage
        self._deep = deep
        self._repair = repair
        self._pace = pace
        self._thread = trio.CapacityLimiter(1)
        self.scope = trio.CancelScope()
        self.progress = Progress()

    async def run(self) -> None:
        await self._files()
        await self._packs()
        await self._counts()
        for tier in self._storage.tiers:
            await self._tier(tier)
        await self._catalogues(self._storage.config.cache_dir / "datasets")
        self.progress.finished = True

    async def updates(self) -> bool:
        """Wait until there may be something new to show; whether it is over."""
        await trio.sleep(_PROGRESS_INTERVAL_S)
        return self.progress.finished

    async def _files(self) -> None:
        index = self._storage.index.reader
        records = index.contents()
        while batch := await self._in_thread(lambda: self._look_at(records)):
            for content, cached, trouble, size, seal in batch:
                self.progress.files += 1
                self.progress.bytes += size
                if trouble and index.find(content) == cached and content not in self._storage.writes:
                    self._found(*trouble, content, seal)
            await trio.lowlevel.checkpoint()

    def _look_at(
        self, records: Iterator[tuple[ContentId, Cached | None]]
    ) -> list[tuple[ContentId, Cached | None, tuple[str, str] | None, int, Seal | None]]:
        """In a thread: some records, what is wrong with each, how many bytes were read for that, and what the file had
        for a seal before it was read."""
        looked: list[tuple[ContentId, Cached | None, tuple[str, str] | None, int, Seal | None]] = []
        for content, cached in islice(records, _AT_ONCE):
            if cached is None:
                looked.append((content, None, ("record", "its record is damaged"), 0, None))
            elif content in self._storage.writes:
                looked.append((content, cached, None, 0, None))
            else:
                looked.append((content, cached, *self._trouble_of(content, cached)))
        return looked

    def _trouble_of(self, content: ContentId, cached: Cached) -> tuple[tuple[str, str] | None, int, Seal | None]:
        index = self._storage.index.reader
        with index.raw() as txn:
            key = member_key(cached.dataset, cached.pack, content)
            if txn.get(key, db=index.table("members")) is None:
                return ("member", "nothing finds it by its dataset"), 0, None
        if cached.pack:
            pack = index.pack(cached.pack)
            if pack is None:
                return ("pack", f"its pack {cached.pack} has no record"), 0, None
            if cached.offset + cached.size > pack.length or cached.dataset != pack.dataset:
                return ("pack", f"it lies outside of its pack {cached.pack}"), 0, None
            return None, 0, None
        if len(cached.bitmap) != (0 if cached.complete else -(-block_count(cached.size) // 8)):
            return ("record", "its bitmap has another length than its size says"), 0, None
        present = 0
        for span, sums in index.extents(content, cached):
            present += span.size
            if not sums:
                return ("sums", "a block has no checksum, or a damaged one"), 0, None
        if present != cached.cached_bytes():
            return (
                ("sums", f"{present} bytes have a checksum, and its record speaks of {cached.cached_bytes()}"),
                0,
                None,
            )
        path = self._storage.path_of(content, cached)
        if path is None:
            return ("tier", f"its tier {cached.tier} is not part of the cache"), 0, None
        trouble = _of_file(path, cached.size)
        if trouble is not None:
            return trouble, 0, None
        if not self._deep and not self._storage.is_doubtful(content, cached):
            return None, 0, None
        verdict = verify_file(path, cached.size, index.extents(content, cached), self._pace, direct=self._deep)
        if verdict.bad:
            reason = f" ({verdict.error.strerror})" if verdict.error is not None else ""
            return ("data", f"{len(verdict.bad)} blocks are not what was written{reason}"), cached.cached_bytes(), None
        if self._storage.is_doubtful(content, cached):
            trouble = "seal", "somebody else has touched its file; the bytes are right"
            return trouble, cached.cached_bytes(), verdict.seal
        return None, cached.cached_bytes(), None

    async def _packs(self) -> None:
        index = self._storage.index.reader
        for number in await self._in_thread(lambda: _pack_numbers(index)):
            pack = index.pack(number)
            if pack is None:
                if index.has_pack(number):
                    repaired = self._repair
                    if repaired:
                        self._storage.forget_damaged_pack(number)
                    self.progress.findings.append(Finding("record", f"pack {number}: its record is damaged", repaired))
                continue
            await self._pack(pack)

    async def _pack(self, pack: Pack) -> None:
        index, storage = self._storage.index.reader, self._storage
        path = pack_path(storage.tier(pack.tier).config.path, pack.number)
        trouble = await self._in_thread(lambda: _of_file(path, pack.length, at_least=True)) if pack.length else None
        if trouble is not None:
            if index.pack(pack.number) == pack:
                self._found(trouble[0], f"pack {pack.number}: {trouble[1]}", pack.number)
            return
        if not self._deep and not storage.pack_in_doubt(pack):
            return
        contents, entries = await self._in_thread(lambda: packed_entries(index, pack))
        verdict = await self._in_thread(lambda: verify_packed(path, entries, self._pace, direct=self._deep))
        self.progress.bytes += sum(size for _, size, _ in entries)
        now = index.pack(pack.number)
        for position in verdict.bad:
            cached = index.find(contents[position])
            if cached is not None and (cached.pack, cached.offset) == (pack.number, entries[position][0]):
                self._found("data", f"its bytes in pack {pack.number} are not what was written", contents[position])
        if now == pack and storage.pack_in_doubt(pack):
            self.progress.findings.append(
                Finding("seal", f"pack {pack.number}: somebody else has touched it", self._repair)
            )
            if self._repair and index.pack(pack.number) is not None:
                storage.close_pack(pack.number)
                storage.index.seal_pack(pack.number, verdict.seal)

    async def _counts(self) -> None:
        index = self._storage.index.reader
        if self._repair:
            found = await recount(self._storage, self._thread)
            self._storage.tidy()
        else:
            found = await self._in_thread(lambda: find_differences(index))
        for what in found.described():
            self.progress.findings.append(Finding("count", what, self._repair))

    async def _catalogues(self, root: Path) -> None:
        """Each is repaired by listing its source again, which `forebay sync` does."""
        command = [sys.executable, "-m", "forebay.cacheruntime.worker.check_catalogues", str(root)]
        done = await trio.run_process(command, capture_stdout=True, check=False, stderr=None)
        lines = os.fsdecode(done.stdout).splitlines()
        found = [line.removeprefix("wrong ") for line in lines if line.startswith("wrong ")]
        if lines[-1:] != ["done"]:
            found.append(f"the check of catalogues ended while it was {lines[-1] if lines else 'starting'}")
        self.progress.findings += (Finding("catalogue", what, False) for what in found)

    async def _tier(self, tier: Tier) -> None:
        if not is_folder(tier.config.path, tier.uuid):
            self.progress.findings.append(Finding("tier", f"{tier.config.path}: its marker is gone", False))
            return
        for item, path in await self._in_thread(lambda: list(orphans(self._storage.index.reader, tier))):
            if not is_orphan(self._storage.index.reader, tier, item):
                continue
            if self._repair:
                path.unlink(missing_ok=True)
            self.progress.findings.append(Finding("orphan", f"{path}: no record speaks of it", self._repair))

    def _found(self, kind: str, what: str, item: Item, seal: Seal | None = None) -> None:
        """A file or a pack is not as it should be; `seal`: of the file, before its bytes proved right."""
        name = f"{item.hex()}: " if isinstance(item, bytes) else ""
        self.progress.findings.append(Finding(kind, f"{name}{what}", self._repair))
        if not self._repair:
            return
        if seal is not None and isinstance(item, bytes):
            self._storage.index.seal_file(item, seal)
        elif kind == "record" and isinstance(item, bytes) and self._storage.index.reader.is_damaged(item):
            self._storage.forget_damaged(item)
        elif isinstance(item, bytes):
            self._storage.found_wrong(item)
        else:
            self._storage.drop(item)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._thread, abandon_on_cancel=True)


def _of_file(path: Path, size: int, *, at_least: bool = False) -> tuple[str, str] | None:
    """What is wrong with a tier file or pack, by a look at its inode."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return "missing", "its file is gone"
    except OSError as error:
        return "data", f"its file cannot be looked at: {error.strerror}"
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        return "owner", "its file belongs to somebody else, or others may write to it"
    if found.st_size < size if at_least else found.st_size != size:
        return "size", f"its file has {found.st_size} bytes, not {size}"
    return None


def _pack_numbers(index: Index) -> list[PackNumber]:
    with index.raw() as txn, txn.cursor(db=index.table("packs")) as cursor:
        return [PackNumber(int.from_bytes(key, "big")) for key, _ in cursor]


def orphans(index: Index, tier: Tier) -> Iterator[tuple[Item, Path]]:
    """Files of a tier folder that no record speaks of. What has no name of ours is left alone."""
    for parent in _folders(tier.config.path / "files"):
        for path in parent.iterdir():
            name = _hex(path.name, 32)
            if name is not None and is_orphan(index, tier, ContentId(name)):
                yield ContentId(name), path
    for path in (tier.config.path / "packs").iterdir():
        name = _hex(path.name, 8)
        if name is not None and is_orphan(index, tier, PackNumber(int.from_bytes(name, "big"))):
            yield PackNumber(int.from_bytes(name, "big")), path


def is_orphan(index: Index, tier: Tier, item: Item) -> bool:
    """Whether no record says that it lives in this tier, and none is about to."""
    with index.raw() as txn:
        if txn.get(doomed_key(tier.number, item), db=index.table("doomed")) is not None:
            return False  # being made, or being removed
    if isinstance(item, bytes):
        cached = index.find(item)
        return not index.is_damaged(item) and (cached is None or bool(cached.pack) or cached.tier != tier.number)
    pack = index.pack(item)
    return not index.has_pack(item) if pack is None else pack.tier != tier.number


def _folders(path: Path) -> Iterator[Path]:
    yield from (found for found in path.iterdir() if found.is_dir())


def _hex(name: str, digits: int) -> bytes | None:
    try:
        return bytes.fromhex(name) if len(name) == digits else None
    except ValueError:
        return None
