"""The worker's hands on tiers and index: where a file goes, writing blocks and packs, making room.

Methods without `await` change state at once, with no checkpoint in between, and run in the worker's event loop;
`write_*` functions only touch file descriptors and run in threads.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.config import MIB, CacheConfig
from forebay.cacheruntime.eviction import Candidate, victims
from forebay.cacheruntime.index import BLOCK_BYTES, Cached, IndexWriter, Pack, PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.tiers import Tier, cached_path, file_path, is_folder, open_folder, pack_path
from forebay.cacheruntime.touch import TouchMap, slot_of

log = logging.getLogger(__name__)

_IOV_MAX = os.sysconf("SC_IOV_MAX")

PACK_BYTES = 256 * MIB
"""A pack is closed at about this size: large enough to be one long sequential read, small enough to evict whole."""


@dataclass
class _OpenPack:
    """The pack of a dataset in a tier that still takes files."""

    number: PackNumber
    descriptor: int
    end: int
    """Next free offset; ahead of the index while appends are under way."""


@dataclass(frozen=True)
class PackPlace:
    """Reserved room for one small file."""

    tier: Tier
    pack: Pack
    descriptor: int
    offset: int
    size: int


class Storage:
    """Tiers and index of one cache folder.

    Resources: `close` ends it in order; without it (kill -9) nothing is lost but reservations.
    """

    def __init__(self, config: CacheConfig, boot_id: str) -> None:
        """Open what is there.

        Raises:
            TierUnusable, CacheFormatError: with the folder and the cure.
        """
        self.config = config
        uuids = [open_folder(tier, config.cache_dir) for tier in config.tiers]
        self.index = IndexWriter(config.index_dir, boot_id)
        self.touch = TouchMap(config.cache_dir / "touch")
        if not self.index.trusted:
            log.warning("the machine went down without a clean stop: starting with an empty cache")
        self.tiers = self._adopt(uuids)
        self._by_number = {tier.number: tier for tier in self.tiers}
        self._packs: dict[tuple[DatasetId, TierNumber], _OpenPack] = {}

    def _adopt(self, uuids: list[bytes]) -> list[Tier]:
        present = set(uuids)
        for number, (uuid, folder) in self.index.reader.tiers().items():
            if uuid not in present:
                log.info("tier folder %s is no longer part of this cache: removing what was in it", folder)
                self.index.drop_tier(number)
                if is_folder(folder, uuid):
                    _empty(folder)
        tiers = []
        for config, uuid in zip(self.config.tiers, uuids, strict=True):
            known = uuid in {known for known, _ in self.index.reader.tiers().values()}
            number = self.index.adopt_tier(uuid, config.path)
            if not known:
                _empty(config.path)  # files that no index speaks for
            used = sum(holding.bytes for holding in self.index.reader.holdings() if holding.tier == number)
            tiers.append(Tier(config, number, used, self.config.free_reserve_ratio))
        return tiers

    def close(self) -> None:
        for pack in self._packs.values():
            os.close(pack.descriptor)
        self._packs.clear()
        self.touch.close()
        self.index.close()

    def tier(self, number: TierNumber) -> Tier:
        return self._by_number[number]

    def find(self, content: ContentId) -> Cached | None:
        """The record of a file whose bytes are still there; one whose file somebody else removed is dropped."""
        cached = self.index.reader.find(content)
        if cached is None:
            return None
        folder = self.tier(cached.tier).config.path
        if os.path.exists(cached_path(folder, content, cached.pack)):
            return cached
        log.warning("%s of tier %s was removed from outside: fetching it again", content.hex(), folder)
        if cached.pack:
            for pack in self.index.reader.packs():
                if pack.number == cached.pack:
                    self.drop_pack(pack)
        else:
            self.drop_file(content)
        return None

    def open_block(self, content: ContentId, start: int, size: int) -> int | None:
        """A descriptor of a file of its own that has [start, start + size), for the caller to close; None on a miss."""
        cached = self.index.reader.find(content)
        if cached is None or cached.pack or not cached.has(start, start + size):
            return None
        try:
            return os.open(file_path(self.tier(cached.tier).config.path, content), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.drop_file(content)
            return None

    def has_room(self, size: int) -> bool:
        """Whether some tier takes that many more bytes now."""
        return any(tier.room_bytes() >= size for tier in self.tiers)

    def place_file(self, content: ContentId, size: int, dataset: DatasetId) -> Cached | None:
        """Make the tier file of a source file: in the fastest tier that has room for all of it, else where most of
        it fits; None when not even one block fits anywhere."""
        tier = next((t for t in self.tiers if t.room_bytes() >= size), None)
        if tier is None:
            tier = max(self.tiers, key=Tier.room_bytes)
            if tier.room_bytes() < min(size, BLOCK_BYTES):
                return None
        path = file_path(tier.config.path, content)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.write_failed(tier, error)
            return None
        return self.index.start_file(content, size, tier.number, dataset)

    def open_file(self, content: ContentId, cached: Cached) -> int:
        """A descriptor for writing blocks, for the caller to close; may be called from a thread.

        Raises:
            FileNotFoundError: somebody else removed the tier file.
        """
        return os.open(file_path(self.tier(cached.tier).config.path, content), os.O_WRONLY | os.O_CLOEXEC)

    def commit_blocks(self, content: ContentId, cached: Cached, inode: int, checksums: Mapping[int, int]) -> bool:
        """Record blocks (block -> checksum) that were written to the tier file with that inode number.

        False, with nothing recorded, when that file is no longer the one that the index means: it was dropped, or
        removed from outside and made anew, and the blocks' bytes went away with it.
        """
        try:
            now = os.stat(file_path(self.tier(cached.tier).config.path, content))
        except FileNotFoundError:
            return False
        return now.st_ino == inode and self.index.add_blocks(content, checksums) is not None

    def place_packed(self, dataset: DatasetId, size: int) -> PackPlace | None:
        """Reserve room for a small file in the dataset's open pack; None when no tier has room."""
        tier = next((t for t in self.tiers if t.room_bytes() >= size), None)
        if tier is None:
            return None
        key = (dataset, tier.number)
        try:
            pack = self._packs.get(key) or self._open_pack(tier, dataset)
            if pack.end + size > PACK_BYTES:
                os.close(self._packs.pop(key).descriptor)
                pack = self._open_pack(tier, dataset, fresh=True)
        except OSError as error:
            self.write_failed(tier, error)
            return None
        offset, pack.end = pack.end, pack.end + size
        tier.take(size)
        # Appends under way keep their own descriptor: the pack may be closed or evicted meanwhile.
        return PackPlace(tier, Pack(pack.number, tier.number, pack.end, dataset), os.dup(pack.descriptor), offset, size)

    def _open_pack(self, tier: Tier, dataset: DatasetId, *, fresh: bool = False) -> _OpenPack:
        """The dataset's last pack if it takes more (after a restart), else a new one; `fresh`: a new one."""
        found = [p for p in self.index.reader.packs() if (p.tier, p.dataset) == (tier.number, dataset)]
        last = max(found, key=lambda p: p.number, default=None)
        if last is not None and (fresh or last.length >= PACK_BYTES):
            last = None
        if last is not None and pack_path(tier.config.path, last.number).exists():
            number, end = last.number, last.length
        else:
            number, end = self.index.new_pack(tier.number, dataset), 0
        path = pack_path(tier.config.path, number)
        pack = _OpenPack(number, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), end)
        self._packs[dataset, tier.number] = pack
        return pack

    def write_failed(self, tier: Tier, error: OSError) -> None:
        """A tier did not take a write: leave it alone for a while; readers are served without it."""
        log.warning("tier %s:%s takes no data now: %s", tier.config.medium.value, tier.config.path, error.strerror)
        tier.file_system_is_full()

    def make_room(self, need_bytes: int, idle: Callable[[DatasetId], float | None], only: Tier | None = None) -> None:
        """Drop what nobody uses until some tier has room for `need_bytes`.

        Args:
            need_bytes: wanted in one tier.
            idle: when a dataset was last used (seconds), or None while it is in use.
            only: this tier; None for whichever can.
        """
        for tier in [only] if only is not None else self.tiers:
            if tier.paused:
                continue  # dropping files does not mend a tier that fails on writing
            missing = need_bytes - tier.room_bytes()
            if missing <= 0:
                return
            candidates = self._candidates(tier, idle)
            if sum(candidate.bytes for candidate in candidates) < missing:
                continue
            for victim in victims(candidates, missing):
                if isinstance(victim.thing, Pack):
                    self.drop_pack(victim.thing)
                else:
                    self.drop_file(victim.thing)
            return

    def _candidates(self, tier: Tier, idle: Callable[[DatasetId], float | None]) -> list[Candidate]:
        found: list[Candidate] = []
        reader = self.index.reader
        last_used = {h.dataset: used for h in reader.holdings() if (used := idle(h.dataset)) is not None}
        for pack in reader.packs():
            if pack.tier == tier.number and pack.dataset in last_used and pack.length:
                touched = self.touch.take(slot_of(ContentId(b""), pack.number))
                found.append(Candidate(pack, pack.dataset, pack.length, touched, last_used[pack.dataset]))
        for dataset, used in last_used.items():
            for pack_number, content in reader.members(dataset, tier.number):
                cached = None if pack_number else reader.find(content)
                if cached is not None:
                    touched = self.touch.take(slot_of(content, PackNumber(0)))
                    found.append(Candidate(content, dataset, cached.cached_bytes(), touched, used))
        return found

    def drop_file(self, content: ContentId) -> None:
        """Unlink a tier file and forget it; descriptors that are open keep their bytes."""
        cached = self.index.reader.find(content)
        if cached is None:
            return
        tier = self.tier(cached.tier)
        file_path(tier.config.path, content).unlink(missing_ok=True)
        dropped = self.index.drop_file(content)
        if dropped is not None:
            tier.give_back(dropped.cached_bytes())

    def drop_pack(self, pack: Pack) -> None:
        """Unlink a pack and forget all files in it."""
        tier = self.tier(pack.tier)
        opened = self._packs.get((pack.dataset, pack.tier))
        if opened is not None and opened.number == pack.number:
            os.close(self._packs.pop((pack.dataset, pack.tier)).descriptor)
        pack_path(tier.config.path, pack.number).unlink(missing_ok=True)
        held = self._held(tier)
        self.index.drop_pack(pack)
        tier.give_back(held - self._held(tier))

    def drop_dataset(self, dataset: DatasetId) -> int:
        """Remove all that is cached of a dataset; returns how many bytes that were. Open readers keep theirs."""
        held = sum(holding.bytes for holding in self.index.reader.holdings() if holding.dataset == dataset)
        for tier in self.tiers:
            alone = [content for pack, content in self.index.reader.members(dataset, tier.number) if not pack]
            for content in alone:
                self.drop_file(content)
        for pack in [pack for pack in self.index.reader.packs() if pack.dataset == dataset]:
            self.drop_pack(pack)
        return held

    def _held(self, tier: Tier) -> int:
        return sum(holding.bytes for holding in self.index.reader.holdings() if holding.tier == tier.number)


def _empty(folder: Path) -> None:
    for part in ("files", "packs"):
        for found in (folder / part).iterdir():
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def write_all(descriptor: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write all pieces, one behind the other, at `offset` (a full disk may take only a part without an error)."""
    left = list(pieces)
    while left:
        written = os.pwritev(descriptor, left[:_IOV_MAX], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
