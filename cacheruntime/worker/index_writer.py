"""Writing the index; its format is described in `cacheruntime/index.py`."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import lmdb

from forebay.cacheruntime.blocks import SUM_BYTES, Span, block_bytes, block_count, mask_bytes
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.index import (
    FORMAT,
    MAP_BYTES,
    TABLES,
    WRITING,
    Cached,
    Index,
    Pack,
    PackNumber,
    Pieces,
    Seal,
    TierNumber,
    doomed_key,
    holding_key,
    join_pieces,
    member_key,
    pack_cached,
    pack_held,
    pack_key,
    pack_pack,
    pack_pieces,
    path_key,
    sum_key,
    unpack_cached,
    unpack_held,
    unpack_pack,
    unpack_pieces,
)
from forebay.cacheruntime.keys import ContentId, DatasetId

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.recount import Differences

Changed = dict[str, set[bytes]]
"""Table -> keys."""

_LOG_PREFIX = "changed."

SYNCED = b"synced"
"""Value of ``clean`` in ``meta`` when the tiers' data was on the disks too."""


_MENDED_AT_ONCE = 256

_T = TypeVar("_T")

_NUMBERS = {name: bytes((number,)) for number, name in enumerate(TABLES)}


class Appended(NamedTuple):
    """A small file whose bytes were appended to a pack."""

    content: ContentId
    size: int
    offset: int
    checksum: int


class IndexUnwritable(OSError):
    """The index takes no changes now; everything in it is as it was."""

    def __init__(self, error: lmdb.Error) -> None:
        full = isinstance(error, lmdb.DiskError | lmdb.MapFullError)
        super().__init__(errno.ENOSPC if full else errno.EIO, f"the cache index cannot be written ({error})")


class IndexWriter:
    """The one writer. Every method is one transaction; none waits for anything but LMDB's own pages.

    A method that raises `IndexUnwritable` has changed nothing: the file system of the cache folder is full, say.

    What the next checkpoint has to take over (`ledger.py`) is remembered, and written to ``changed.N`` in the index's
    folder for a worker that comes after a kill: for each key the number of its table, its length (a byte each) and
    itself.
    """

    def __init__(self, folder: Path, boot_id: str, *, distrust: bool = False) -> None:
        """Open or make the index.

        Args:
            folder: the index's folder.
            boot_id: of the running kernel (/proc/sys/kernel/random/boot_id).
            distrust: nothing that is in it is to be believed before its checksum was compared.

        Raises:
            CacheFormatError: it is of another format, or damaged.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._env = lmdb.open(
                str(folder), max_dbs=len(TABLES), map_size=MAP_BYTES, max_readers=1024, sync=False, metasync=False
            )
            self._tables = {name: self._env.open_db(name.encode()) for name in TABLES}
        except lmdb.Error as error:
            full = "No space left" in str(error)
            cure = "make room there" if full else "remove that folder, for all in it can be fetched again,"
            raise CacheFormatError(
                f"the cache index {folder} cannot be opened ({error}); {cure} or name another --cache-dir"
            ) from error
        self._folder = folder
        self._logs = sorted(folder.glob(f"{_LOG_PREFIX}*"), key=lambda path: int(path.suffix[1:]))
        self._changed = _read_logs(self._logs)
        self._unlogged: list[bytes] = []
        self._log = -1
        self._log_lost = False
        self._begin_log()
        self._env.reader_check()  # slots of readers that were killed would keep old pages alive
        with self._txn() as txn:
            found = txn.get(b"format", db=self._tables["meta"])
            if found not in (None, FORMAT):
                raise CacheFormatError(
                    f"{folder} is of format {found.decode(errors='replace')}, this version writes {FORMAT.decode()};"
                    " remove the cache folder or use the version that made it"
                )
            self.session = self._mint(txn, b"session", 4)
            if distrust or found is None:
                self._put(txn, "meta", b"trusted", self.session.to_bytes(4, "big"))
            self._put(txn, "meta", b"format", FORMAT)
            self._put(txn, "meta", b"boot", boot_id.encode())
            self._delete(txn, "meta", b"clean")
        self._env.sync(True)
        self.reader = Index(folder, self._env)

    @property
    def is_checkpointed(self) -> bool:
        """Whether the last checkpoint has everything, so that all data that is spoken of is on the disks."""
        return not self.has_changed and len(self._logs) == 1

    def close(self) -> None:
        """Mark an orderly stop, durably, and close."""
        synced = self.is_checkpointed
        self._env.sync(True)  # everything before the mark that vouches for it
        with self._env.begin(write=True) as txn:
            txn.put(b"clean", SYNCED if synced else b"unsynced", db=self._tables["meta"])
        self._env.sync(True)
        self._env.close()
        os.close(self._log)

    def take_changed(self) -> tuple[Changed | None, list[Path]]:
        """The keys that changed since the last call, None when that is not known; and the logs to remove when a
        checkpoint has them.

        Raises:
            OSError: nothing was taken, as no new log could be begun.
        """
        logs, log = list(self._logs), self._log
        self._begin_log()
        # Closed only now: had no new one come, what is written next would go to whoever gets the number.
        os.close(log)
        self._logs = self._logs[len(logs) :]
        changed = None if self._log_lost else self._changed
        self._changed, self._log_lost = {name: set() for name in TABLES}, False
        return changed, logs

    @property
    def has_changed(self) -> bool:
        """Whether there is something for a checkpoint."""
        return self._log_lost or any(self._changed.values())

    def give_back_changed(self, changed: Changed | None, logs: list[Path]) -> None:
        """The checkpoint failed: the next one takes these too."""
        self._log_lost |= changed is None
        for table, keys in (changed or {}).items():
            self._changed[table] |= keys
        self._logs = logs + self._logs

    def drop_dead_readers(self) -> None:
        """Readers that were killed in a transaction keep old pages from being used again: the file would grow."""
        self._env.reader_check()

    def _begin_log(self) -> None:
        last = max((int(path.suffix[1:]) for path in self._folder.glob(f"{_LOG_PREFIX}*")), default=0)
        path = self._folder / f"{_LOG_PREFIX}{last + 1}"
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._logs.append(path)

    def _write_log(self) -> None:
        """Before the commit, so that no change is missing from it; one too many does no harm."""
        try:
            os.write(self._log, b"".join(self._unlogged))
        except OSError:
            self._log_lost = True  # no room: the next checkpoint compares everything
        self._unlogged.clear()

    # Tiers

    def adopt_tier(self, uuid: bytes, folder: Path) -> TierNumber:
        """The number of a tier folder, minted when its uuid is new."""
        with self._txn() as txn:
            for key, value in txn.cursor(db=self._tables["tiers"]):
                if value[:16] == uuid:
                    self._put(txn, "tiers", key, uuid + bytes(folder))
                    return TierNumber(int.from_bytes(key, "big"))
            # Not the highest there is: a reader may still know the folder of a tier that was dropped.
            number = self._mint(txn, b"last_tier", 2)
            self._put(txn, "tiers", number.to_bytes(2, "big"), uuid + bytes(folder))
            return TierNumber(number)

    def drop_tier(self, tier: TierNumber) -> None:
        """Forget a tier and all that was in it, as its folder is gone."""
        for pack in self.reader.packs():
            if pack.tier == tier:
                self.drop_pack(pack, doom=False)
        for dataset in {holding.dataset for holding in self.reader.holdings() if holding.tier == tier}:
            contents = [content for _, content in self.reader.members(dataset, PackNumber(0))]
            with self._txn() as txn:
                for content in contents:
                    cached = self._record(txn, content)
                    if cached is not None and cached.tier == tier:
                        self._drop(txn, content)
        with self._txn() as txn:
            self._delete(txn, "tiers", tier.to_bytes(2, "big"))

    # Files of their own

    def start_file(
        self,
        content: ContentId,
        size: int,
        tier: TierNumber,
        dataset: DatasetId,
        *,
        share: int = 0,
        pinned: bool = False,
        seal: Seal = WRITING,
    ) -> Cached:
        """Record a file of its own with no block yet (an empty file is complete at once, and has the seal)."""
        bitmap = bytes(-(-block_count(size) // 8))
        cached = Cached(
            tier, size, size == 0, PackNumber(0), 0, dataset, bitmap, share, self.session,
            seal if size == 0 else WRITING, 0, pinned,
        )  # fmt: skip
        with self._txn() as txn:
            self._insert(txn, content, cached)
            self._delete(txn, "doomed", doomed_key(tier, content))
        return cached

    def add_spans(self, content: ContentId, sums: Mapping[Span, bytes], seal: Seal | None = None) -> Cached | None:
        """Record that bytes are in the tier file.

        Args:
            content: whose.
            sums: span -> XXH3-64 of a whole block, or of each piece; what is there already is passed over.
            seal: of the file, taken when it is complete.

        Returns:
            The new state, None when the record is gone.
        """
        with self._txn() as txn:
            cached = self._record(txn, content)
            if cached is None or cached.complete:
                return cached
            bitmap = bytearray(cached.bitmap)
            partial = cached.partial_bytes
            for span, values in sums.items():
                number = span.block
                byte, bit = number >> 3, 1 << (number & 7)
                if bitmap[byte] & bit:
                    continue
                before, after = self._add_span(txn, content, cached.size, span, values, look=bool(partial))
                partial += after - before
                if after == block_bytes(cached.size, number):
                    bitmap[byte] |= bit
                    partial -= after
            complete = int.from_bytes(bitmap, "little").bit_count() == block_count(cached.size)
            new = cached._replace(
                complete=complete,
                bitmap=b"" if complete else bytes(bitmap),
                partial_bytes=0 if complete else max(0, partial),
                seal=seal if complete and seal else cached.seal,
            )
            self._put(txn, "contents", content, pack_cached(content, new))
            added = new.cached_bytes() - cached.cached_bytes()
            self._hold(txn, cached.dataset, cached.share, cached.tier, added, 0)
            return new

    def _add_span(
        self, txn: Any, content: ContentId, size: int, span: Span, values: bytes, *, look: bool
    ) -> tuple[int, int]:
        """Bytes of the span's block that were there, and that are now; `look`: some may be."""
        key, number = sum_key(content, span.block), span.block
        raw = txn.get(key, db=self._tables["sums"]) if look else None
        known = (unpack_pieces(key, raw) if raw else None) or Pieces(0, b"")
        before = mask_bytes(size, number, known.mask)
        if len(values) == SUM_BYTES and span.is_block(size):
            self._put(txn, "sums", key, values)
            return before, span.size
        pieces = join_pieces(known, Pieces(span.mask, values))
        self._put(txn, "sums", key, pack_pieces(key, pieces))
        return before, mask_bytes(size, number, pieces.mask)

    def seal_file(self, content: ContentId, seal: Seal) -> None:
        """Nobody writes to a file any more (`WRITING`: the worker begins to), or its checksums were compared."""
        with self._txn() as txn:
            cached = self._record(txn, content)
            if cached is not None:
                new = cached._replace(seal=seal, session=self.session)
                self._put(txn, "contents", content, pack_cached(content, new))

    def drop_file(self, content: ContentId) -> Cached | None:
        """Forget a file of its own, and doom its tier file until `removed`; returns what it was."""
        with self._txn() as txn:
            cached = self._drop(txn, content)
            if cached is not None and not cached.pack:
                self._put(txn, "doomed", doomed_key(cached.tier, content), b"")
            return cached

    def move_file(self, content: ContentId, tier: TierNumber, seal: Seal) -> None:
        """The bytes are in another tier now; the old tier file is doomed."""
        with self._txn() as txn:
            cached = self._record(txn, content)
            assert cached is not None
            held = cached.cached_bytes()
            self._hold(txn, cached.dataset, cached.share, cached.tier, -held, -1)
            self._hold(txn, cached.dataset, cached.share, tier, held, 1)
            new = cached._replace(tier=tier, seal=seal, session=self.session)
            self._put(txn, "contents", content, pack_cached(content, new))
            self._delete(txn, "doomed", doomed_key(tier, content))
            self._put(txn, "doomed", doomed_key(cached.tier, content), b"")

    # Packs

    def new_pack(
        self, tier: TierNumber, dataset: DatasetId, share: int = 0, pinned: bool = False, replica: bool = False
    ) -> PackNumber:
        """Mint a pack; the number is spent even if the pack stays empty."""
        with self._txn() as txn:
            number = PackNumber(self._mint(txn, b"last_pack", 4))
            pack = Pack(number, tier, share, 0, 0, 0, dataset, self.session, WRITING, pinned, replica)
            self._put(txn, "packs", pack_key(number), pack_pack(pack))
        return number

    def mark_replica(self, number: PackNumber, replica: bool) -> None:
        """A pack's files are by now mostly those of others, or of this worker."""
        with self._txn() as txn:
            pack = self._pack(txn, number)
            if pack is not None:
                self._put(txn, "packs", pack_key(number), pack_pack(pack._replace(replica=replica)))

    def add_packed(self, number: PackNumber, entries: Iterable[Appended]) -> bool:
        """Record whole small files whose bytes are in a pack. False, with nothing recorded: the pack is gone."""
        with self._txn() as txn:
            pack = self._pack(txn, number)
            if pack is None:
                return False
            length, held, files = pack.length, 0, 0  # the last two are of files that the sums do not count yet
            for content, size, offset, checksum in entries:
                cached = Cached(
                    TierNumber(0), size, True, number, offset, pack.dataset, b"", pack.share, self.session, WRITING,
                    checksum, pack.pinned,
                )  # fmt: skip
                known = self._record(txn, content)
                if known is not None:  # a record in its place: what it held is not held any more
                    pack, held, files = self._count_packed(txn, pack, held, files), 0, 0
                    if known.pack == number:
                        pack = pack._replace(live_bytes=pack.live_bytes - known.size, live_files=pack.live_files - 1)
                    self._drop(txn, content, of_pack=known.pack != number)
                self._put(txn, "contents", content, pack_cached(content, cached))
                self._put(txn, "members", member_key(pack.dataset, number, content), b"")
                length, held, files = max(length, offset + size), held + size, files + 1
            pack = self._count_packed(txn, pack, held, files)._replace(length=length)
            self._put(txn, "packs", pack_key(number), pack_pack(pack._replace(seal=WRITING, session=self.session)))
        return True

    def _count_packed(self, txn: Any, pack: Pack, held: int, files: int) -> Pack:
        """Add files to the sums, once for many."""
        self._hold(txn, pack.dataset, pack.share, pack.tier, held, files)
        return pack._replace(live_bytes=pack.live_bytes + held, live_files=pack.live_files + files)

    def seal_pack(self, number: PackNumber, seal: Seal) -> None:
        """As `seal_file`."""
        with self._txn() as txn:
            pack = self._pack(txn, number)
            if pack is not None:
                self._put(txn, "packs", pack_key(number), pack_pack(pack._replace(seal=seal, session=self.session)))

    def believe_packed(self, number: PackNumber, contents: Iterable[ContentId]) -> None:
        """Files of a pack were compared with their checksums in this session."""
        with self._txn() as txn:
            for content in contents:
                cached = self._record(txn, content)
                if cached is not None and cached.pack == number:
                    self._put(txn, "contents", content, pack_cached(content, cached._replace(session=self.session)))

    def forget_packed(self, content: ContentId) -> Cached | None:
        """Forget one file of a pack; its bytes stay there, dead, until the pack goes (`compaction.py`)."""
        with self._txn() as txn:
            return self._drop(txn, content)

    def drop_pack(self, pack: Pack, *, doom: bool = True) -> int:
        """Forget a pack and every file in it, and doom its file until `removed`; returns how many files."""
        contents = [content for _, content in self.reader.members(pack.dataset, pack.number)]
        with self._txn() as txn:
            held_bytes = held_files = 0
            for content in contents:
                cached = self._record(txn, content)
                if cached is not None:
                    self._delete(txn, "contents", content)
                    self._delete(txn, "members", member_key(pack.dataset, pack.number, content))
                    held_bytes += cached.size
                    held_files += 1
            self._hold(txn, pack.dataset, pack.share, pack.tier, -held_bytes, -held_files)
            self._delete(txn, "packs", pack_key(pack.number))
            if doom:
                self._put(txn, "doomed", doomed_key(pack.tier, pack.number), b"")
        return len(contents)

    def move_pack(self, number: PackNumber, tier: TierNumber, seal: Seal) -> None:
        """As `move_file`."""
        with self._txn() as txn:
            pack = self._pack(txn, number)
            assert pack is not None
            self._hold(txn, pack.dataset, pack.share, pack.tier, -pack.live_bytes, -pack.live_files)
            self._hold(txn, pack.dataset, pack.share, tier, pack.live_bytes, pack.live_files)
            new = pack._replace(tier=tier, seal=seal, session=self.session)
            self._put(txn, "packs", pack_key(number), pack_pack(new))
            self._delete(txn, "doomed", doomed_key(tier, number))
            self._put(txn, "doomed", doomed_key(pack.tier, number), b"")

    # What a crash may leave behind

    def doom(self, tier: TierNumber, thing: ContentId | PackNumber) -> None:
        """A file is about to be made that no record speaks of yet."""
        with self._txn() as txn:
            self._put(txn, "doomed", doomed_key(tier, thing), b"")

    def removed(self, things: Iterable[tuple[TierNumber, ContentId | PackNumber]]) -> None:
        """Doomed files were removed, or never made."""
        with self._txn() as txn:
            for tier, thing in things:
                self._delete(txn, "doomed", doomed_key(tier, thing))

    def doomed(self) -> list[tuple[TierNumber, ContentId | PackNumber]]:
        """What to remove at a start: doomed files that no record says to live there."""
        found: list[tuple[TierNumber, ContentId | PackNumber]] = []
        with self._env.begin() as txn, txn.cursor(db=self._tables["doomed"]) as cursor:
            keys = [key for key, _ in cursor]
        for key in keys:
            tier = TierNumber(int.from_bytes(key[:2], "big"))
            if len(key) == 2 + 4:
                number = PackNumber(int.from_bytes(key[2:], "big"))
                pack = self.reader.pack(number)
                if pack is None or pack.tier != tier:
                    found.append((tier, number))
            else:
                cached = self.reader.find(ContentId(key[2:]))
                if cached is None or cached.pack or cached.tier != tier:
                    found.append((tier, ContentId(key[2:])))
        return found

    # Shares and pins

    def share(self, dataset: DatasetId, path: bytes) -> int:
        """The number of the share below a path, minted when it is new."""
        key = path_key(dataset, path)
        with self._txn() as txn:
            raw = txn.get(key, db=self._tables["shares"])
            if raw:
                return int.from_bytes(raw[:2], "big")
            number = self._mint(txn, b"last_share", 2)
            self._put(txn, "shares", key, number.to_bytes(2, "big") + path)
            return number

    def pin(self, dataset: DatasetId, path: bytes, pinned: bool, table: str = "pins") -> None:
        """Remember, or forget, that a path is pinned; `table`: by whom."""
        with self._txn() as txn:
            if pinned:
                self._put(txn, table, path_key(dataset, path), path)
            else:
                self._delete(txn, table, path_key(dataset, path))

    def mark_pinned(self, contents: Iterable[ContentId], pinned: bool) -> None:
        """Mark records. A pack with a pinned file is pinned; `pinned` False frees the packs too."""
        with self._txn() as txn:
            for content in contents:
                cached = self._record(txn, content)
                if cached is None:
                    continue
                if cached.pinned != pinned:
                    self._put(txn, "contents", content, pack_cached(content, cached._replace(pinned=pinned)))
                pack = self._pack(txn, cached.pack) if cached.pack else None
                if pack is not None and pack.pinned != pinned:
                    self._put(txn, "packs", pack_key(pack.number), pack_pack(pack._replace(pinned=pinned)))

    def note_scrubbed(self, content: bytes) -> None:
        """The scrub has come so far; empty: it has been through."""
        with self._txn() as txn:
            self._put(txn, "meta", b"scrubbed", content)

    # Repair

    def forget_damaged(self, content: ContentId) -> bool:
        """Remove a record that is not sound, and what can be found of it. Holdings are to be counted anew."""
        with self._txn() as txn:
            raw = txn.get(content, db=self._tables["contents"])
            if raw is None or unpack_cached(content, raw) is not None:
                return False
            self._delete(txn, "contents", content)
            self._delete_sums(txn, content)
            return True

    def forget_damaged_pack(self, number: PackNumber) -> list[ContentId]:
        """Remove the record of a pack that is not sound, and all files in it."""
        key = pack_key(number)
        with self._txn() as txn:
            raw = txn.get(key, db=self._tables["packs"])
            if raw is None or unpack_pack(key, raw) is not None:
                return []
            gone = [k for k, _ in self._from(txn, "members", b"") if k[8:12] == key]
            for member in gone:
                self._delete(txn, "contents", member[12:])
                self._delete(txn, "members", member)
            self._delete(txn, "packs", key)
        return [ContentId(member[12:]) for member in gone]

    def mend(self, found: "Differences") -> Iterator[None]:
        """Put right what was found not to add up, piece by piece; what has changed since then is looked at again."""
        for batch in _batches([*found.homeless, *found.missing, *found.superfluous]):
            with self._txn() as txn:
                for key in batch:
                    content = ContentId(key[-16:])
                    cached = self._record(txn, content)
                    if cached is not None and cached.pack and not self._has_pack(txn, cached.pack):
                        self._delete(txn, "contents", content)
                        self._delete(txn, "members", member_key(cached.dataset, cached.pack, content))
                        cached = None
                    if len(key) == len(content):
                        continue
                    if cached is not None and member_key(cached.dataset, cached.pack, content) == key:
                        self._put(txn, "members", key, b"")
                    elif txn.get(content, db=self._tables["contents"]) is None or cached is not None:
                        self._delete(txn, "members", key)
            yield
        with self._txn() as txn:
            for key, (by_bytes, by_files) in found.holdings.items():
                tier = TierNumber(int.from_bytes(key[10:], "big"))
                self._hold(txn, DatasetId(key[:8].hex()), int.from_bytes(key[8:10], "big"), tier, by_bytes, by_files)
        for numbers in _batches(list(found.live)):
            yield
            with self._txn() as txn:
                for number in numbers:
                    pack = self._pack(txn, number)
                    if pack is not None:
                        live_bytes, live_files = found.live[number]
                        new = pack._replace(
                            live_bytes=max(0, pack.live_bytes + live_bytes),
                            live_files=max(0, pack.live_files + live_files),
                        )
                        self._put(txn, "packs", pack_key(number), pack_pack(new))

    # Inside a transaction

    @contextmanager
    def _txn(self) -> Iterator[Any]:
        try:
            with self._env.begin(write=True) as txn:
                yield txn
                if self._unlogged:
                    self._write_log()
        except lmdb.Error as error:
            raise IndexUnwritable(error) from error

    def _put(self, txn: Any, table: str, key: bytes, value: bytes) -> None:
        txn.put(key, value, db=self._tables[table])
        self._note(table, key)

    def _delete(self, txn: Any, table: str, key: bytes) -> None:
        if txn.delete(key, db=self._tables[table]):
            self._note(table, key)

    def _note(self, table: str, key: bytes) -> None:
        keys = self._changed[table]
        if key not in keys:
            keys.add(key)
            self._unlogged += (_NUMBERS[table], bytes((len(key),)), key)

    def _from(self, txn: Any, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        with txn.cursor(db=self._tables[table]) as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                yield cursor.key(), cursor.value()
                more = cursor.next()

    def _mint(self, txn: Any, name: bytes, length: int) -> int:
        number = int.from_bytes(txn.get(name, db=self._tables["meta"]) or b"", "big") + 1
        self._put(txn, "meta", name, number.to_bytes(length, "big"))
        return number

    def _record(self, txn: Any, content: ContentId) -> Cached | None:
        raw = txn.get(content, db=self._tables["contents"])
        return unpack_cached(content, raw) if raw else None

    def _pack(self, txn: Any, number: PackNumber) -> Pack | None:
        raw = txn.get(pack_key(number), db=self._tables["packs"])
        return unpack_pack(pack_key(number), raw) if raw else None

    def _has_pack(self, txn: Any, number: PackNumber) -> bool:
        return txn.get(pack_key(number), db=self._tables["packs"]) is not None

    def _insert(self, txn: Any, content: ContentId, cached: Cached) -> None:
        """Record a file of its own."""
        self._drop(txn, content)  # a record in its place, if any: what it held is not held any more
        self._put(txn, "contents", content, pack_cached(content, cached))
        self._put(txn, "members", member_key(cached.dataset, cached.pack, content), b"")
        self._hold(txn, cached.dataset, cached.share, cached.tier, cached.cached_bytes(), 1)

    def _drop(
        self, txn: Any, content: ContentId, *, of_pack: bool = True, tier: TierNumber | None = None
    ) -> Cached | None:
        cached = self._record(txn, content)
        if cached is None:
            return None
        self._delete(txn, "contents", content)
        self._delete(txn, "members", member_key(cached.dataset, cached.pack, content))
        if not cached.pack:
            self._delete_sums(txn, content)
            tier = cached.tier
        elif tier is None:
            pack = self._pack(txn, cached.pack)
            if pack is not None:
                tier = pack.tier
                if of_pack:
                    less = pack._replace(live_bytes=pack.live_bytes - cached.size, live_files=pack.live_files - 1)
                    self._put(txn, "packs", pack_key(pack.number), pack_pack(less))
        if tier is not None:
            self._hold(txn, cached.dataset, cached.share, tier, -cached.cached_bytes(), -1)
        return cached

    def _delete_sums(self, txn: Any, content: ContentId) -> None:
        for key in [key for key, _ in self._from(txn, "sums", content) if len(key) == len(content) + 4]:
            self._delete(txn, "sums", key)

    def _hold(self, txn: Any, dataset: DatasetId, share: int, tier: TierNumber, by_bytes: int, by_files: int) -> None:
        key = holding_key(dataset, share, tier)
        held = unpack_held(txn.get(key, db=self._tables["holdings"]))
        # Never below nothing: records that were lost to damage are not subtracted twice.
        new = (max(0, held[0] + by_bytes), max(0, held[1] + by_files))
        if new == (0, 0):
            self._delete(txn, "holdings", key)
        else:
            self._put(txn, "holdings", key, pack_held(*new))


def _batches(items: list[_T]) -> Iterator[list[_T]]:
    """Of as many changes as others can wait for."""
    for start in range(0, len(items), _MENDED_AT_ONCE):
        yield items[start : start + _MENDED_AT_ONCE]


def _read_logs(paths: Iterable[Path]) -> Changed:
    """The keys in some logs. What follows a torn end was never committed."""
    changed: Changed = {name: set() for name in TABLES}
    for path in paths:
        data, position = path.read_bytes(), 0
        while position + 2 <= len(data):
            table, length = data[position], data[position + 1]
            if table >= len(TABLES):
                break
            changed[TABLES[table]].add(data[position + 2 : position + 2 + length])
            position += 2 + length
    return changed
