"""The packs that still take files: one for each dataset, share, tier, and for what is pinned or a replica."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.index import WRITING, Pack, PackNumber, Seal, TierNumber
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.tiers import pack_path
from forebay.cacheruntime.worker.index_writer import Appended, IndexWriter
from forebay.cacheruntime.worker.tier import Tier
from forebay.cacheruntime.worker.writes import ChangedOutside, seal_of, write_all

PACK_BYTES = 256 * MIB
"""A pack is closed at about this size: large enough to be one long sequential read, small enough to evict whole."""

PACK_FILES = 1 << 15
"""And with so many files, as all others wait while they are forgotten: 0.13 s."""

PackKey = tuple[DatasetId, int, bool, TierNumber, bool]
"""Dataset, share, pinned, tier, replica."""


@dataclass
class OpenPack:
    """A pack that still takes files."""

    number: PackNumber
    tier: Tier
    descriptor: int
    end: int
    """Next free offset."""
    files: int
    """That were put there since it was opened, and those that lived there then."""
    seal: Seal
    """As our last write left it."""
    sealed: bool
    """The index says so too."""
    written_at: float = 0.0

    def is_full(self, size: int) -> bool:
        """Whether a file of that size does not go in any more."""
        return self.end + size > PACK_BYTES or self.files >= PACK_FILES

    @property
    def is_changed(self) -> bool:
        """Whether somebody else has written to it."""
        return seal_of(os.fstat(self.descriptor)) != self.seal


class Packs:
    """For the worker's event loop. Resources: `close_all`."""

    def __init__(self, index: IndexWriter, vanished: Callable[[Pack], object]) -> None:
        """Args: index: to record in; vanished: told of a pack whose file somebody has removed."""
        self._index = index
        self._vanished = vanished
        self._opened: dict[PackKey, OpenPack] = {}

    def opened(self, number: PackNumber) -> OpenPack | None:
        """A pack by its number, if it still takes files."""
        return next((pack for pack in self._opened.values() if pack.number == number), None)

    def has(self, key: PackKey, pack: OpenPack) -> bool:
        """Whether a pack is still the one that takes files; else its descriptor is closed."""
        return self._opened.get(key) is pack

    def ready(self, key: PackKey, tier: Tier, size: int, besides: PackNumber | None = None) -> OpenPack:
        """The pack that takes a file of that size next, ready to be written to.

        Args:
            key, tier: of which kind, and where.
            size: in bytes.
            besides: not this one, which is not open.

        Raises:
            OSError: it cannot be made.
        """
        pack = self._opened.get(key)
        if pack is not None and (pack.is_full(size) or pack.is_changed):
            self._close(key)  # if it was changed, its files are in doubt from here on
            pack = None
        if pack is None:
            pack = self._reopen(key, tier, size, besides) or self._make(key, tier)
        if pack.sealed:
            self._index.seal_pack(pack.number, WRITING)
            pack.sealed = False
        return pack

    def append(
        self, key: PackKey, pack: OpenPack, pieces: Sequence[memoryview], entries: Sequence[Appended], end: int
    ) -> bool:
        """Write files one behind the other to the end of a pack, up to `end`, and record them.

        False: they are written, and not recorded, for the pack's record is gone.

        Raises:
            OSError: nothing is recorded.
        """
        if not self.has(key, pack):
            raise ChangedOutside  # it was dropped for those who came behind
        # Into the page cache, without a thread: a copy of a few MiB is shorter than the way there and back.
        write_all(pack.descriptor, pieces, pack.end)
        pack.seal, pack.written_at = seal_of(os.fstat(pack.descriptor)), time.monotonic()
        added = self._index.add_packed(pack.number, entries)
        pack.end, pack.files = end, pack.files + len(entries)
        return added

    def _reopen(self, key: PackKey, tier: Tier, size: int, besides: PackNumber | None) -> OpenPack | None:
        """The last pack of a kind if it takes more, after a restart."""
        kin = [pack for pack in self._index.reader.packs() if _key(pack) == key and pack.number != besides]
        last = max(kin, key=lambda pack: pack.number, default=None)
        if last is None or last.session < self._index.reader.trusted_since:
            return None
        if last.length + size > PACK_BYTES or last.live_files >= PACK_FILES:
            return None
        try:
            descriptor = os.open(pack_path(tier.config.path, last.number), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self._vanished(last)
            return None
        if seal_of(os.fstat(descriptor)) != last.seal:
            os.close(descriptor)  # the worker was killed while it wrote, or somebody changed it
            return None
        pack = OpenPack(last.number, tier, descriptor, last.length, last.live_files, last.seal, True)
        self._opened[key] = pack
        return pack

    def _make(self, key: PackKey, tier: Tier) -> OpenPack:
        dataset, share, pinned, _, replica = key
        number = self._index.new_pack(tier.number, dataset, share, pinned, replica)
        path = pack_path(tier.config.path, number)
        try:
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            empty = self._index.reader.pack(number)
            if empty is not None:
                self._index.drop_pack(empty, doom=False)
            raise
        pack = self._opened[key] = OpenPack(number, tier, descriptor, 0, 0, seal_of(os.fstat(descriptor)), False)
        return pack

    def close(self, number: PackNumber) -> None:
        """A pack takes no more files."""
        for key in [key for key, pack in self._opened.items() if pack.number == number]:
            self._close(key)

    def close_of(self, dataset: DatasetId) -> None:
        """As `close`, of all that a dataset has: their marks may have changed."""
        for key in [key for key in self._opened if key[0] == dataset]:
            self._close(key)

    def seal_quiet(self, since: float) -> None:
        """Packs that were not written to since a time (time.monotonic) get their seal."""
        for key, pack in list(self._opened.items()):
            if not pack.sealed and pack.written_at <= since:
                if pack.is_changed:
                    self._close(key)
                else:
                    self._seal(pack)

    def forget(self, number: PackNumber) -> None:
        """A pack is dropped."""
        for key, pack in list(self._opened.items()):
            if pack.number == number:
                os.close(self._opened.pop(key).descriptor)

    def close_all(self) -> None:
        """Without seals: `seal_quiet` gives them."""
        for pack in self._opened.values():
            os.close(pack.descriptor)
        self._opened.clear()

    def _close(self, key: PackKey) -> None:
        pack = self._opened.pop(key)
        self._seal(pack)
        os.close(pack.descriptor)

    def _seal(self, pack: OpenPack) -> None:
        if not pack.sealed:
            self._index.seal_pack(pack.number, pack.seal)
            pack.sealed = True


def _key(pack: Pack) -> PackKey:
    return pack.dataset, pack.share, pack.pinned, pack.tier, pack.replica
