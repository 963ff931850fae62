"""The worker's hands on tiers and index: where a file goes, what is recorded of it, what is dropped.

Everything here changes state at once, with no checkpoint in between, and runs in the worker's event loop; only
`open_file` and `Writes.write` are for threads. Whom to drop is `room.py`'s to say.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from forebay.cacheruntime.blocks import SUM_BYTES, Span
from forebay.cacheruntime.config import CacheConfig, Medium
from forebay.cacheruntime.index import WRITING, Cached, Pack, PackNumber, Seal, TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.tiers import cached_path, file_path, is_folder, open_folder, pack_path
from forebay.cacheruntime.touch import TouchMap
from forebay.cacheruntime.worker.departed import Departed
from forebay.cacheruntime.worker.index_writer import Appended, Changed, IndexUnwritable
from forebay.cacheruntime.worker.ledger import Ledger, close_index, open_index
from forebay.cacheruntime.worker.packs import PACK_BYTES, OpenPack, PackKey, Packs
from forebay.cacheruntime.worker.room import Rooms
from forebay.cacheruntime.worker.space import Item, Space
from forebay.cacheruntime.worker.tier import Tier
from forebay.cacheruntime.worker.writes import ChangedOutside, Writes, seal_of
from forebay.proto import worker_pb2 as pb

log = logging.getLogger(__name__)

DROPPED_AT_ONCE = 64
"""Files of their own, some 100 us each, in which nobody else is served."""

DOUBTFUL = Seal(1, 0)
"""No file has this for a seal."""

QUIET_S = 1.0
"""A pack or a partial file that was not written to for this long gets its seal."""


@dataclass
class Damage:
    """What proved to be wrong since the start, by kind."""

    blocks: int = 0
    """Checksums that did not match, unreadable bytes included."""
    files: int = 0
    """Dropped for it, removed from outside included."""
    records: int = 0
    """Of the index."""


@dataclass(frozen=True)
class Target:
    """A source file, as far as storage is concerned."""

    content: ContentId
    size: int
    dataset: DatasetId
    path: bytes
    """Below the dataset's root."""
    medium: Medium | None = None
    """Only there; None for the fastest with room."""
    replica: bool = False
    """Other workers of the cluster own it, and this one does not."""


@dataclass
class _Run:
    """Small files that go into one pack together."""

    pack: OpenPack | None = None
    key: PackKey | None = None
    end: int = 0
    """Where the next one goes."""
    room: int = 0
    """Bytes for which there is room behind it."""
    medium: Medium | None = None
    """That its files are to come into."""
    positions: list[int] = field(default_factory=list)
    """In the caller's list."""
    entries: list[Appended] = field(default_factory=list)
    pieces: list[memoryview] = field(default_factory=list)


@dataclass
class _Pending:
    """Work for the next `tidy`."""

    unlinked: list[tuple[TierNumber, Item]] = field(default_factory=list)
    add_up: bool = False


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
        self.damage = Damage()
        uuids = [open_folder(tier, config.cache_dir) for tier in config.tiers]
        self.index = open_index(config, boot_id)
        self.ledger = Ledger(config, self.index)
        self.touch = TouchMap(config.cache_dir / "touch")
        self.writes = Writes()
        self.departed = Departed()
        self.moving = 0
        """Moves under way."""
        self.recount_due = False
        """The index was damaged: what it adds up may be wrong (`recount.py`)."""
        self.thin: dict[PackNumber, float] = {}
        """Packs that may be mostly dead, and when a file of them was dropped last (time.monotonic)."""
        self.trash: list[Path] = []
        """Folders to be removed in the background."""
        self._pending = _Pending()
        self._reserved = 0
        """Bytes of blocks on their way, of dropped files too."""
        self._packs = Packs(self.index, self._pack_vanished)
        self._spaces: dict[DatasetId, Space] = {}
        self.tiers = self._adopt(uuids)
        self._by_number = {tier.number: tier for tier in self.tiers}
        for tier in self.tiers:
            if self.departed.adopt(tier, self.space):
                self.touch.depart()
        self._remove_doomed()
        for pack in self.index.reader.packs():
            if not pack.live_files:
                self.drop_pack(pack)  # its file may never have been made
            elif pack.is_thin:
                self.thin[pack.number] = time.monotonic()
        self.rooms = Rooms(self)
        self.idle: Callable[[DatasetId], float | None] = lambda _: 0.0
        """When a dataset was last used (seconds), or None while it is in use; set by the core."""

    def _adopt(self, uuids: list[bytes]) -> list[Tier]:
        present = set(uuids)
        for number, (uuid, folder) in self.index.reader.tiers().items():
            if uuid not in present:
                log.info("tier folder %s is no longer part of this cache: removing what was in it", folder)
                self.index.drop_tier(number)
                if is_folder(folder, uuid):
                    self._empty(folder)
        tiers = []
        on_disk = self._on_disk()
        for (dataset, share), size in self._held().items():
            self.space(dataset).take(share, size)
        for config, uuid in zip(self.config.tiers, uuids, strict=True):
            known = uuid in {known for known, _ in self.index.reader.tiers().values()}
            number = self.index.adopt_tier(uuid, config.path)
            if not known:
                self._empty(config.path)  # files that no index speaks for
            tiers.append(Tier(config, number, uuid, on_disk.get(number, 0), self.config.free_reserve_ratio))
            self.trash += (config.path / "trash").glob("*")
        return tiers

    def _empty(self, folder: Path) -> None:
        """Out of the way at once; what is in it is removed in the background."""
        for part in ("files", "packs"):
            if any((folder / part).iterdir()):
                (folder / "trash").mkdir(exist_ok=True, mode=0o700)
                target = folder / "trash" / f"{part}-{time.time_ns():x}"
                (folder / part).rename(target)
                (folder / part).mkdir(mode=0o700)
                self.trash.append(target)

    def _remove_doomed(self) -> None:
        doomed = self.index.doomed()
        for number, thing in doomed:
            if number in self._by_number:
                tier = self._by_number[number]
                path = self.item_path(tier, thing)
                with contextlib.suppress(FileNotFoundError):
                    size = os.stat(path).st_blocks * 512
                    tier.used_bytes += size
                    self.departed.unlink(tier, path, size)
        self.index.removed(doomed)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be sealed is verified after the next start
            self.tidy(time.monotonic() + QUIET_S)
        self._packs.close_all()
        self.departed.close()
        self.touch.close()
        self.ledger.close()
        close_index(self.config, self.index)

    def changed_paths(self, changed: Changed) -> list[Path]:
        """Tier files and packs of records that have changed, tiers in memory left out."""
        found: list[tuple[Tier, Item]] = []
        for key in changed["contents"]:
            cached = self.index.reader.find(ContentId(key))
            if cached is not None and not cached.pack:
                found.append((self._by_number[cached.tier], ContentId(key)))
        for key in changed["packs"]:
            pack = self.index.reader.pack(PackNumber(int.from_bytes(key, "big")))
            if pack is not None:
                found.append((self._by_number[pack.tier], pack.number))
        return [self.item_path(tier, item) for tier, item in found if tier.config.medium is not Medium.MEM]

    def tier(self, number: TierNumber) -> Tier:
        return self._by_number[number]

    def space(self, dataset: DatasetId) -> Space:
        found = self._spaces.get(dataset)
        if found is None:
            found = self._spaces[dataset] = Space(dataset)
            found.pins = self.index.reader.pins_by("pins", dataset)
            found.manifest_pins = self.index.reader.pins_by("manifest_pins", dataset)
            found.shares = self.index.reader.shares(dataset)
        return found

    @property
    def spaces(self) -> list[Space]:
        return list(self._spaces.values())

    def set_policy(self, dataset: DatasetId, wanted: pb.CachePolicy) -> tuple[list[bytes], list[bytes]]:
        """How a dataset shares the tiers from now on; what is cached stays, and counts where it was counted.

        Returns:
            Paths that are pinned from now on, below which what is cached is to be marked; and those that an earlier
            manifest has pinned and this one has not: they are the caller's to unpin.

        Raises:
            UsageError: there is no such policy.
        """
        space = self.space(dataset)
        space.use_policy(wanted.policy)
        space.quota_bytes = wanted.quota_bytes
        space.quotas = {self._share(space, rule.path): rule.quota_bytes for rule in wanted.paths if rule.quota_bytes}
        space.replicas = wanted.replicas
        space.replicas_by_path = {rule.path: rule.replicas for rule in wanted.paths if rule.replicas}
        for path in space.replicas_by_path:
            self._share(space, path)  # by which the records of its files tell how many copies there are to be
        pinned = [rule.path for rule in wanted.paths if rule.pinned]
        fresh = [path for path in pinned if path not in space.manifest_pins]
        for path in fresh:
            self.pin(dataset, path, (), by_manifest=True)
        return fresh, [path for path in space.manifest_pins if path not in pinned]

    def _share(self, space: Space, path: bytes) -> int:
        if path not in space.shares:
            space.shares[path] = self.index.share(space.dataset, path)
        return space.shares[path]

    # Looking

    def find(self, content: ContentId) -> Cached | None:
        """The record of a file whose bytes are there and can be read; what is wrong with it otherwise is put right.

        Whether the bytes are what was written is another question: `is_doubtful`.
        """
        cached, is_damaged = self.index.reader.look(content)
        if cached is None:
            if is_damaged:
                self.forget_damaged(content)
            return None
        tier = self._tier_of(cached)
        if tier is None or tier.is_down:
            return None
        try:
            os.stat(cached_path(tier.config.path, content, cached.pack))
        except FileNotFoundError:
            log.warning("%s of tier %s was removed from outside: fetching it again", content.hex(), tier.config.path)
            self._drop_damaged(content, cached)
            return None
        except OSError as error:
            tier.failed(error)
            return None
        return cached

    def is_doubtful(self, content: ContentId, cached: Cached) -> bool:
        """Whether the file's bytes have to be compared with their checksums before they are believed."""
        if content in self.writes:
            return False
        tier = self._tier_of(cached)
        if tier is None:
            return True
        if cached.pack:
            pack = self.index.reader.pack(cached.pack)
            return pack is None or self.pack_in_doubt(pack)
        if cached.session < self.index.reader.trusted_since:
            return True
        return _differs(file_path(tier.config.path, content), cached.seal)

    def pack_in_doubt(self, pack: Pack) -> bool:
        """As `is_doubtful`, of a pack."""
        opened = self._packs.opened(pack.number)
        if pack.session < self.index.reader.trusted_since:
            return True
        seal = opened.seal if opened is not None else pack.seal
        return _differs(pack_path(self.tier(pack.tier).config.path, pack.number), seal)

    def _tier_of(self, cached: Cached) -> Tier | None:
        number = self.index.reader.tier_of(cached)
        return self._by_number.get(number) if number is not None else None

    def path_of(self, content: ContentId, cached: Cached) -> Path | None:
        """The file that holds a record's bytes."""
        tier = self._tier_of(cached)
        return cached_path(tier.config.path, content, cached.pack) if tier is not None else None

    def open_block(self, content: ContentId, start: int, size: int) -> int | None:
        """A descriptor of a file of its own that has [start, start + size), for the caller to close; None on a miss."""
        cached = self.index.reader.find(content)
        if cached is None or cached.pack or not self.index.reader.has(content, cached, start, start + size):
            return None
        try:
            return os.open(file_path(self.tier(cached.tier).config.path, content), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.drop_file(content)
            return None

    # Putting

    def has_room(self, target: Target) -> bool:
        """Whether some tier takes a file of which nothing is cached, after making room where that may be."""
        return self.rooms.tier_for(target, self.space(target.dataset).share_of(target.path), whole=True) is not None

    def place_file(self, target: Target) -> Cached | None:
        """Make the tier file of a source file, for blocks to come: in the fastest tier that has room for all of it,
        else where most of it fits; None when not even one block fits anywhere."""
        space = self.space(target.dataset)
        share = space.share_of(target.path)
        tier = self.rooms.tier_for(target, share)
        if tier is None:
            return None
        replaced = self.index.reader.find(target.content)
        if replaced is not None and not self.drop_file(target.content):  # in a tier that is down
            return None
        path = file_path(tier.config.path, target.content)
        try:
            self.index.doom(tier.number, target.content)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, target.size)
                seal = seal_of(os.fstat(descriptor))
            finally:
                os.close(descriptor)
            cached = self.index.start_file(
                target.content, target.size, tier.number, target.dataset,
                share=share, pinned=space.is_pinned(target.path), seal=seal,
            )  # fmt: skip
        except OSError as error:
            self.write_failed(tier, error)
            return None
        if target.size:
            self.writes.begin(target.content, seal)
        self.rooms.inserted(space, target.content, target.size)
        return cached

    def begin_writing(self, content: ContentId, cached: Cached) -> bool:
        """Blocks are about to be added to a file. False: it is not what it should be, or that cannot be recorded."""
        if content in self.writes:
            return True
        if self.is_doubtful(content, cached):
            return False
        try:
            self.index.seal_file(content, WRITING)
        except IndexUnwritable as error:
            self.index_failed(error)
            return False
        self.writes.begin(content, cached.seal)
        return True

    def reserve(self, content: ContentId, cached: Cached, sizes: list[int], *, replica: bool = False) -> int:
        """Take room in a file's tier for as many spans of these sizes, from the first, as there is room for.

        Args: replica: they are of a slice that this worker does not own.
        """
        tier, space = self.tier(cached.tier), self.space(cached.dataset)
        replica = replica and not cached.pinned
        self.rooms.make(sum(sizes), space, cached.share, content, [tier], replica=replica)
        quota, room = space.room_bytes(cached.share), self.rooms.room_bytes(tier, replica)
        room = room if quota is None else min(room, quota)
        fitting = taken = 0
        for size in sizes:
            if taken + size > room:
                break
            taken += size
            fitting += 1
        self._reserved += taken
        self._take(tier, space, cached.share, taken)
        return fitting

    def give_back(self, cached: Cached, size: int) -> None:
        """Of `reserve`, what did not come."""
        self._reserved -= size
        self.tier(cached.tier).give_back(size)
        self.space(cached.dataset).give_back(cached.share, size)

    @staticmethod
    def _take(tier: Tier, space: Space, share: int, size: int) -> None:
        tier.take(size)
        space.take(share, size)

    def open_file(self, content: ContentId, cached: Cached) -> int:
        """A descriptor for writing blocks, for the caller to close; may be called from a thread.

        Raises:
            FileNotFoundError: somebody else removed the tier file.
        """
        return os.open(file_path(self.tier(cached.tier).config.path, content), os.O_RDWR | os.O_CLOEXEC)

    def commit_spans(self, content: ContentId, cached: Cached, inode: int, sums: Mapping[Span, bytes]) -> bool:
        """Record bytes, with their checksums (`IndexWriter.add_spans`), that were written to the tier file with that
        inode number.

        False, with nothing recorded, when that file is no longer the one that the index means: it was dropped, removed
        from outside and made anew, or changed by somebody else; the bytes went away with it. Or the index takes
        nothing. What was reserved for them is the caller's to give back.
        """
        try:
            now = seal_of(os.stat(file_path(self.tier(cached.tier).config.path, content)))
        except OSError:
            return False
        if now.inode != inode:
            return False
        try:
            known = self.index.add_spans(content, sums, now)
        except IndexUnwritable as error:
            self.index_failed(error)
            return False
        if known is None:
            return False
        if known.complete and content in self.writes:
            left = self.writes.seal(content)
            self.writes.end(content)
            if left != now:
                self._drop_damaged(content, known)  # gives back these bytes too, and so will the caller
                again = sum(span.size for span in sums)
                self._take(self.tier(known.tier), self.space(known.dataset), known.share, again)
                return False
        self._reserved -= sum(span.size for span in sums)
        self.rooms.replicas.grew(content, known)
        return True

    def keep_small(self, target: Target, data: bytes, checksum: int) -> bool:
        """Put a whole small file into its dataset's pack; False when no tier has room or takes it.

        Where the dataset's policy replaces files, each has one of its own: a pack leaves whole.
        """
        return self.keep_small_files([(target, [memoryview(data)], checksum)])[0]

    def keep_small_files(self, files: Sequence[tuple[Target, Sequence[memoryview], int]]) -> list[bool]:
        """As `keep_small` for many, each with its pieces and checksum: one write and one transaction for those that
        follow one another in a pack. About 2 ms for each MiB."""
        kept: list[bool] = []
        run = _Run()
        for target, pieces, checksum in files:
            space = self.space(target.dataset)
            if space.policy.replaces:
                kept.append(self._keep_alone(target, b"".join(pieces), checksum))
                continue
            share = space.share_of(target.path)
            tier = self._tier_of_next(target, space, share, run) if self.drop_file(target.content) else None
            if tier is None:
                kept.append(False)
                continue
            key = (space.dataset, share, space.is_pinned(target.path), tier.number, target.replica)
            if run.pack is not None and (run.key != key or run.end + target.size > PACK_BYTES):
                self._append_run(run, kept)
                run = _Run()
            if run.pack is None:
                try:
                    run.pack = self._packs.ready(key, tier, target.size)
                except OSError as error:
                    self.write_failed(tier, error)
                    kept.append(False)
                    continue
                run.key, run.end, run.medium = key, run.pack.end, target.medium
                quota = space.room_bytes(share)
                run.room = tier.room_bytes() if quota is None else min(tier.room_bytes(), quota)
            run.room -= target.size
            self._take(tier, space, share, target.size)
            run.positions.append(len(kept))
            run.entries.append(Appended(target.content, target.size, run.end, checksum))
            run.pieces += pieces
            run.end += target.size
            kept.append(True)
        self._append_run(run, kept)
        return kept

    def _tier_of_next(self, target: Target, space: Space, share: int, run: "_Run") -> Tier | None:
        """Where a small file goes: with the one before it, as long as there is known to be room."""
        is_kin = run.key is not None and run.key[:2] == (space.dataset, share) and run.medium is target.medium
        if run.pack is not None and is_kin and target.size <= run.room:
            return run.pack.tier
        return self.rooms.tier_for(target, share, whole=True)

    def _append_run(self, run: "_Run", kept: list[bool]) -> None:
        """Write the files of a run into its pack; marks those in `kept` that did not get there."""
        pack = run.pack
        if pack is None or run.key is None:
            return
        dataset, share, _, number, _ = run.key
        size = run.end - run.entries[0].offset
        try:
            added = self._packs.append(run.key, pack, run.pieces, run.entries, run.end)
        except OSError as error:
            self.tier(number).give_back(size)
            self.space(dataset).give_back(share, size)
            self.write_failed(self.tier(number), error)
        else:
            if added:
                self.rooms.inserted(self.space(dataset), pack.number, pack.end)
                return
            self.space(dataset).give_back(share, size)  # the record was damaged; the bytes go with the pack
        for position in run.positions:
            kept[position] = False

    def _keep_alone(self, target: Target, data: bytes, checksum: int) -> bool:
        cached = self.place_file(target)
        if cached is None:
            return False
        if not data:
            return True
        if not self.reserve(target.content, cached, [len(data)], replica=target.replica):
            self.drop_file(target.content)
            return False
        try:
            descriptor = self.open_file(target.content, cached)
            try:
                self.writes.write(target.content, descriptor, [memoryview(data)], 0)
                inode = os.fstat(descriptor).st_ino
            finally:
                os.close(descriptor)
        except OSError as error:
            self.give_back(cached, len(data))
            self.drop_file(target.content)
            self.write_failed(self.tier(cached.tier), error)
            return False
        sums = checksum.to_bytes(SUM_BYTES, "big")
        if not self.commit_spans(target.content, cached, inode, {Span(0, len(data)): sums}):
            self.give_back(cached, len(data))
            self.drop_file(target.content)
            return False
        return True

    def _pack_vanished(self, pack: Pack) -> None:
        self.damage.files += 1
        self.drop_pack(pack)

    def mark_replica(self, number: PackNumber, replica: bool) -> bool:
        """A pack counts as what most of its files are; False: that cannot be recorded."""
        try:
            self._packs.close(number)
            self.index.mark_replica(number, replica)
        except IndexUnwritable as error:
            self.index_failed(error)
            return False
        return True

    def repack(self, pack: Pack, files: Iterable[tuple[ContentId, bytes]]) -> bool:
        """Append files of a pack, with their bytes, to others, which have them from then on; what is not in it any more
        is passed over. False: the tier or the index takes nothing, and the rest stays where it is."""
        tier = self.tier(pack.tier)
        found = [(content, data, self.index.reader.find(content)) for content, data in files]
        for pinned in (False, True):
            here = [
                (content, data, cached)
                for content, data, cached in found
                if cached is not None and cached.pack == pack.number and cached.pinned == pinned
            ]
            size = sum(len(data) for _, data, _ in here)
            if not here:
                continue
            if tier.room_bytes() < size:
                return False
            key = (pack.dataset, pack.share, pinned, pack.tier, pack.replica)
            try:
                target = self._packs.ready(key, tier, size, pack.number)
                entries, end = [], target.end
                for content, data, cached in here:
                    entries.append(Appended(content, len(data), end, cached.checksum))
                    end += len(data)
                added = self._packs.append(key, target, [memoryview(data) for _, data, _ in here], entries, end)
            except OSError as error:
                self.write_failed(tier, error)
                return False
            tier.take(size)  # as soon as it is there; nothing else was done meanwhile
            if not added:
                return False
            self.rooms.inserted(self.space(pack.dataset), target.number, target.end)
        return True

    def close_pack(self, number: PackNumber) -> None:
        """A pack takes no more files."""
        self._packs.close(number)

    def write_failed(self, tier: Tier, error: OSError) -> None:
        """A tier did not take a write: readers are served without it."""
        if isinstance(error, IndexUnwritable):
            self.index_failed(error)
            return
        log.warning("tier %s:%s takes no data now: %s", tier.config.medium.value, tier.config.path, error.strerror)
        if isinstance(error, ChangedOutside):
            self.damage.files += 1
        elif isinstance(error, FileNotFoundError) and not is_folder(tier.config.path, tier.uuid):
            tier.health.gone()
        else:
            tier.failed(error)

    def index_failed(self, error: IndexUnwritable) -> None:
        """Nothing can be recorded for a while: readers are served without the tiers."""
        if not all(tier.paused for tier in self.tiers):
            log.warning("%s: nothing is put into the cache for now", error.strerror)
        for tier in self.tiers:
            tier.pause()

    # Dropping

    def drop_file(self, content: ContentId) -> bool:
        """Unlink a tier file and forget it; descriptors that are open keep their bytes. One in a pack is forgotten.

        False, with everything as it was: the index takes no changes.
        """
        cached = self.index.reader.find(content)
        if cached is None:
            return True
        try:
            self.index.forget_packed(content) if cached.pack else self.index.drop_file(content)
        except IndexUnwritable as error:
            self.index_failed(error)
            return False
        self.writes.end(content)
        space, held = self.space(cached.dataset), cached.cached_bytes()
        if cached.pack:
            space.give_back(cached.share, held)
            pack = self.index.reader.pack(cached.pack)
            if pack is not None and not pack.live_files:
                self.drop_pack(pack)
            elif pack is not None and pack.is_thin:
                self.thin[pack.number] = time.monotonic()
            return True
        self.rooms.removed(space, content)
        self._unlink(self.tier(cached.tier), content, held, space, cached.share, held)
        return True

    def drop_pack(self, pack: Pack) -> bool:
        """Unlink a pack and forget all files in it; False as in `drop_file`."""
        try:
            self.index.drop_pack(pack)
        except IndexUnwritable as error:
            self.index_failed(error)
            return False
        self._packs.forget(pack.number)
        space = self.space(pack.dataset)
        if hasattr(self, "rooms"):
            self.rooms.removed(space, pack.number)
        self._unlink(self.tier(pack.tier), pack.number, pack.length, space, pack.share, pack.live_bytes)
        return True

    def drop(self, item: Item) -> bool:
        """A file of its own or a pack; False as in `drop_file`."""
        if isinstance(item, bytes):
            return self.drop_file(item)
        pack = self.index.reader.pack(item)
        return pack is None or self.drop_pack(pack)

    def _unlink(
        self, tier: Tier, item: Item, size: int, owner: Space | None = None, share: int = 0, held: int = 0
    ) -> None:
        try:
            if not self.departed.unlink(tier, self.item_path(tier, item), size, owner, share, held):
                self.touch.depart()
        except OSError as error:
            tier.failed(error)  # it stays doomed
            return
        self._pending.unlinked.append((tier.number, item))

    @staticmethod
    def item_path(tier: Tier, item: Item) -> Path:
        """Where a file of its own or a pack is, or would be."""
        return file_path(tier.config.path, item) if isinstance(item, bytes) else pack_path(tier.config.path, item)

    def left_behind(self, tier: Tier, item: Item, size: int) -> None:
        """A move has ended: the file at its old place goes."""
        self._unlink(tier, item, size)

    def _drop_damaged(self, content: ContentId, cached: Cached) -> None:
        self.damage.files += 1
        pack = self.index.reader.pack(cached.pack) if cached.pack else None
        tier = self._tier_of(cached)
        if pack is not None and tier is not None and not pack_path(tier.config.path, pack.number).exists():
            self.drop_pack(pack)
        elif not self.drop_file(content) and not cached.pack and tier is not None:
            # Its record stays for now; without its file nothing is read by it.
            with contextlib.suppress(OSError):
                file_path(tier.config.path, content).unlink()

    def suspect(self, item: Item) -> None:
        """Bytes of it proved wrong: whoever wants it next has it verified."""
        try:
            if isinstance(item, bytes):
                self.index.seal_file(item, DOUBTFUL)
            else:
                self.index.seal_pack(item, DOUBTFUL)
        except IndexUnwritable as error:
            self.index_failed(error)

    def found_wrong(self, content: ContentId, blocks: int = 1) -> None:
        """Bytes of a file are not what was written: it is fetched again when somebody wants it."""
        cached = self.index.reader.find(content)
        log.warning("%s is damaged: dropped", content.hex())
        self.damage.blocks += blocks
        if cached is not None:
            self._drop_damaged(content, cached)

    def is_open_pack(self, number: PackNumber) -> bool:
        """Whether a pack still takes files."""
        return self._packs.opened(number) is not None

    def forget_damaged(self, content: ContentId) -> None:
        """Remove a record that is not sound."""
        try:
            forgotten = self.index.forget_damaged(content)
        except IndexUnwritable as error:
            self.index_failed(error)
        else:
            if forgotten:
                self._forgot_damaged(content)

    def forget_damaged_pack(self, number: PackNumber) -> None:
        """As `forget_damaged`."""
        self.close_pack(number)
        self.index.forget_damaged_pack(number)
        self.damage.records += 1
        self.recount_due = True
        for tier in self.tiers:
            pack_path(tier.config.path, number).unlink(missing_ok=True)

    def _forgot_damaged(self, content: ContentId) -> None:
        log.warning("the record of %s was damaged: it is fetched again", content.hex())
        self.damage.records += 1
        self.recount_due = True
        for tier in self.tiers:
            file_path(tier.config.path, content).unlink(missing_ok=True)

    # Pins and eviction by command

    def pins(self, dataset: DatasetId) -> list[bytes]:
        """Paths, by command and by manifest."""
        space = self.space(dataset)
        return sorted({*space.pins, *space.manifest_pins})

    def pin(self, dataset: DatasetId, path: bytes, contents: Iterable[ContentId], *, by_manifest: bool = False) -> None:
        """Keep what is below a path, now and in future; `contents` is what of it may be cached already."""
        space = self.space(dataset)
        table, known = ("manifest_pins", space.manifest_pins) if by_manifest else ("pins", space.pins)
        if path not in known:
            known.append(path)
        self.index.pin(dataset, path, True, table)
        self.mark_pinned(dataset, contents)

    def mark_pinned(self, dataset: DatasetId, contents: Iterable[ContentId]) -> None:
        """What pins cover."""
        self.index.mark_pinned(contents, True)
        self._packs.close_of(dataset)

    def unpin(
        self, dataset: DatasetId, path: bytes, contents: Iterable[ContentId], *, by_manifest: bool = False
    ) -> bool:
        """The opposite; False when it was not pinned. What other pins cover is to be marked again by the caller.

        Args:
            dataset, path, contents: as `pin`.
            by_manifest: the manifest does not ask for it any more; else by command, whoever has pinned it.
        """
        space = self.space(dataset)
        found = False
        for table, known in (("manifest_pins", space.manifest_pins), ("pins", space.pins)):
            if path in known and (table == "manifest_pins" or not by_manifest):
                known.remove(path)
                self.index.pin(dataset, path, False, table)
                found = True
        if found:
            self.index.mark_pinned(contents, False)
            self._packs.close_of(dataset)
        return found

    def evict(self, contents: Iterable[ContentId], *, pinned: bool = False) -> tuple[int, int]:
        """Drop files by command.

        Args:
            contents: of which.
            pinned: also those.

        Returns:
            Files and bytes that are not cached any more.
        """
        files = size = 0
        for content in contents:
            cached = self.index.reader.find(content)
            if cached is None or (cached.pinned and not pinned):
                continue
            if self.drop_file(content):
                files += 1
                size += cached.cached_bytes()
        return files, size

    def held_bytes(self, dataset: DatasetId) -> int:
        """What is cached of a dataset."""
        return sum(holding.bytes for holding in self.index.reader.holdings() if holding.dataset == dataset)

    def dropping(self, dataset: DatasetId) -> Iterator[None]:
        """Remove all that is cached of a dataset, also what is pinned; open readers keep theirs.

        Piece by piece: a million files take a minute, in which others want to be served.
        """
        for pack in self.index.reader.packs():
            if pack.dataset == dataset:
                self.drop(pack.number)
                yield
        for count, (_, content) in enumerate(self.index.reader.members(dataset)):
            self.drop_file(content)
            if count % DROPPED_AT_ONCE == DROPPED_AT_ONCE - 1:
                yield

    # Behind the scenes

    def tidy(self, now: float | None = None) -> None:
        """To be called about once a second: seals what has been quiet, and gives back what was closed.

        Raises:
            OSError: the index takes no changes now; the rest is done another time.
        """
        now = time.monotonic() if now is None else now
        self.departed.look()
        self.rooms.load_more()
        self._packs.seal_quiet(now - QUIET_S)
        if self._pending.unlinked:
            self.index.removed(self._pending.unlinked)
            self._pending.unlinked = []
        if self._pending.add_up and self._reserved <= 0 and not self.writes.all() and not self.moving:
            self._pending.add_up = False
            self._add_up()

    def add_up_soon(self) -> None:
        """The index's sums were put right: take them over when nothing is under way that they do not count."""
        self._pending.add_up = True

    def _add_up(self) -> None:
        on_disk, held = self._on_disk(), self._held()
        for tier in self.tiers:
            tier.used_bytes = on_disk.get(tier.number, 0) + self.departed.pending_bytes(tier)
        for space in self.spaces:
            space.used = {share: size for (dataset, share), size in held.items() if dataset == space.dataset}
            for share, size in self.departed.pending_of(space).items():
                space.take(share, size)

    def held_of(self, dataset: DatasetId) -> dict[TierNumber, tuple[int, int]]:
        """Bytes and files of a dataset in each tier."""
        found: dict[TierNumber, tuple[int, int]] = {}
        for holding in self.index.reader.holdings():
            if holding.dataset == dataset:
                size, files = found.get(holding.tier, (0, 0))
                found[holding.tier] = size + holding.bytes, files + holding.files
        return found

    def _on_disk(self) -> dict[TierNumber, int]:
        """Bytes in each tier by the index, dead ones in packs included."""
        found: dict[TierNumber, int] = {}
        for holding in self.index.reader.holdings():
            found[holding.tier] = found.get(holding.tier, 0) + holding.bytes
        for pack in self.index.reader.packs():
            found[pack.tier] = found.get(pack.tier, 0) + pack.length - pack.live_bytes
        return found

    def _held(self) -> dict[tuple[DatasetId, int], int]:
        """Bytes of each share of each dataset by the index."""
        found: dict[tuple[DatasetId, int], int] = {}
        for holding in self.index.reader.holdings():
            key = (holding.dataset, holding.share)
            found[key] = found.get(key, 0) + holding.bytes
        return found

    def settle(self, content: ContentId) -> None:
        """Nobody writes to a partial file any more: it gets its seal, or goes when it was changed by somebody else."""
        left = self.writes.seal(content)
        cached = self.index.reader.find(content)
        if left is None or cached is None or cached.pack:
            self.writes.end(content)
            return
        try:
            now = seal_of(os.stat(file_path(self.tier(cached.tier).config.path, content)))
        except OSError:
            now = WRITING
        self.writes.end(content)
        if now == left:
            try:
                self.index.seal_file(content, now)
            except IndexUnwritable as error:
                self.index_failed(error)  # without a seal it is verified before it is read
        else:
            self._drop_damaged(content, cached)

    def empty_trash(self) -> None:
        """In a thread: remove what a start has put aside."""
        while self.trash:
            shutil.rmtree(self.trash.pop(), ignore_errors=True)


def _differs(path: Path, seal: Seal) -> bool:
    """Whether a file does not have its seal."""
    try:
        return seal_of(os.stat(path)) != seal
    except OSError:
        return True


def checksum_of(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)
