"""What this worker holds and others own: the first to go when there is need of room for what it owns.

A file of its own is a replica if the placement (`cluster/placement.py`) gives this worker no slice of it that is
cached. That is asked when it is chosen, for it changes when members come and go. Small files are written into packs for
what is owned and packs for replicas (`Pack.replica`); after a change of the members a pack counts as what most of a
sample of its files are by then, and is marked so. Files of one pack are never moved apart for that: of a pack that
counts as owned, less than half may be replicas that stay, and of one that counts as a replica, less than half go that
are owned by now.

The replicas of each tier are kept in the order in which they were read. After a start they are looked for in pieces,
which come in as those read longest ago; what was not looked at yet is no replica to anybody.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from forebay.cacheruntime.blocks import BLOCK_BYTES
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, slice_of
from forebay.cacheruntime.index import Cached, Pack, PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.space import Item, Space, slot_of_item

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.storage import Storage

LOADED_AT_ONCE = 500
"""Files that are looked at in one go, 15 to 30 us each: all others wait meanwhile."""

_SAMPLE = 32
"""Files of a pack by which it is judged."""

_PASSED_OVER = 2000
"""Replicas that may not go (pinned, being written, of another dataset) are passed over up to this."""

_BITMAP_BYTES = SLICE_BYTES // BLOCK_BYTES // 8
"""Of the bitmap of a file's blocks, for one slice."""


class _Replica(NamedTuple):
    size: int
    dataset: DatasetId


Owns = Callable[[ContentId, int, int], bool]
"""Whether this worker is to have a slice (its number), of which so many copies are wanted (0: as many as the cluster is
set to)."""


class Replicas:
    """For the event loop. Empty, and without any work, on a node that is alone or owns nothing."""

    def __init__(self, storage: "Storage") -> None:
        self._storage = storage
        self._owns: Owns | None = None
        self._tiers: dict[TierNumber, OrderedDict[Item, _Replica]] = {}
        """In the order of reads."""
        self._alone: dict[DatasetId, int] = {}
        """Bytes of those that are files of their own."""
        self._where: dict[Item, TierNumber] = {}
        self._slots: dict[int, Item] = {}
        """By touch slot; of two that share one, the later."""
        self._judged: dict[PackNumber, bool] = {}
        """Packs that were judged by the present view."""
        self._walk: Iterator[Item] | None = None
        """What was not looked at yet."""

    def follow(self, owns: Owns | None) -> None:
        """The members have changed, or are known now: what is cached is looked at anew, a piece at a time."""
        self._owns = owns
        self._judged.clear()
        self._walk = self._all() if owns is not None else None

    @property
    def is_following(self) -> bool:
        """Whether there are others that own anything."""
        return self._owns is not None

    # What is a replica

    def is_replica(self, item: Item) -> bool:
        """Whether something that is cached belongs to others only. What is pinned here does not."""
        if self._owns is None:
            return False
        if isinstance(item, bytes):
            cached = self._storage.index.reader.find(item)
            return cached is not None and not cached.pack and not cached.pinned and not self._owns_some(item, cached)
        pack = self._storage.index.reader.pack(item)
        return pack is not None and not pack.pinned and self._is_replica_pack(pack)

    def _owns_some(self, content: ContentId, cached: Cached) -> bool:
        assert self._owns is not None
        copies = self._storage.space(cached.dataset).replicas_of(cached.share)
        last = slice_of(max(cached.size - 1, 0))
        return any(
            self._owns(content, slice_, copies)
            for slice_ in range(last + 1)
            if not last or cached.complete or cached.partial_bytes or _has_slice(cached, slice_)
        )

    def _is_replica_pack(self, pack: Pack) -> bool:
        assert self._owns is not None
        known = self._judged.get(pack.number)
        if known is not None:
            return known
        copies = self._storage.space(pack.dataset).replicas_of(pack.share)
        sample = list(islice(self._storage.index.reader.members(pack.dataset, pack.number), _SAMPLE))
        owned = sum(self._owns(content, 0, copies) for _, content in sample)
        found = 2 * owned < len(sample) if sample else pack.replica
        if found != pack.replica and not self._storage.mark_replica(pack.number, found):
            return pack.replica
        self._judged[pack.number] = found
        return found

    # What is known of them

    def inserted(self, item: Item, size: int) -> None:
        """Something was put into a tier, or more of it."""
        if self._owns is not None and self.is_replica(item):
            self._add(item, size)

    def grew(self, content: ContentId, cached: Cached) -> None:
        """Bytes of a file of its own were recorded."""
        if content in self._where:
            self._remove(content)
            self.inserted(content, cached.cached_bytes())

    def removed(self, item: Item) -> None:
        """It is not cached any more."""
        self._remove(item)
        if not isinstance(item, bytes):
            self._judged.pop(item, None)

    def touched(self, slot: int) -> bool:
        """What has a touch slot was read; False: it is no replica."""
        item = self._slots.get(slot)
        if item is None:
            return False
        self._tiers[self._where[item]].move_to_end(item)
        return True

    def bytes_of(self, dataset: DatasetId) -> int:
        """Bytes that are known to be replicas; after a start or a change, the longer the more."""
        reader = self._storage.index.reader
        packed = sum(pack.live_bytes for pack in reader.packs() if pack.dataset == dataset and pack.replica)
        return self._alone.get(dataset, 0) + (packed if self._owns is not None else 0)

    def load_more(self) -> None:
        """To be called now and then: looks at what was cached before, a piece at a time."""
        if self._walk is None:
            return
        left = LOADED_AT_ONCE
        for item in islice(self._walk, LOADED_AT_ONCE):
            left -= 1
            if not self.is_replica(item):
                self._remove(item)
            elif item not in self._where:
                self._add(item, self._storage.rooms.place(item)[2], first=True)
        if left:
            self._walk = None

    def _all(self) -> Iterator[Item]:
        reader = self._storage.index.reader
        yield from [pack.number for pack in reader.packs() if pack.length]
        for dataset in {held.dataset for held in reader.holdings()}:
            for _, content in reader.members(dataset, PackNumber(0)):
                yield content

    def _add(self, item: Item, size: int, *, first: bool = False) -> None:
        self._remove(item)
        reader = self._storage.index.reader
        record = reader.find(item) if isinstance(item, bytes) else reader.pack(item)
        if record is None:
            return
        known = self._tiers.setdefault(record.tier, OrderedDict())
        known[item] = _Replica(size, record.dataset)
        if first:
            known.move_to_end(item, last=False)
        self._where[item] = record.tier
        self._slots[slot_of_item(item)] = item
        if isinstance(item, bytes):
            self._alone[record.dataset] = self._alone.get(record.dataset, 0) + size

    def _remove(self, item: Item) -> None:
        tier = self._where.pop(item, None)
        if tier is None:
            return
        known = self._tiers[tier].pop(item)
        if isinstance(item, bytes):
            self._alone[known.dataset] -= known.size
        if self._slots.get(slot_of_item(item)) == item:
            del self._slots[slot_of_item(item)]

    # Who goes

    def choose(
        self,
        missing: int,
        tier: TierNumber | None,
        coming: ContentId,
        space: Space | None = None,
        share: int | None = None,
    ) -> tuple[list[Item], int]:
        """Replicas that would make room, those that were read longest ago first, and the bytes that they free; all
        there are if these do not suffice.

        Args:
            missing: bytes.
            tier: only there; None for all.
            coming: never this one.
            space, share: only of this dataset, and of this share of it.
        """
        chosen, freed = self._choose(missing, tier, coming, space, share)
        if freed < missing and self._walk is not None:
            self.load_more()
            chosen, freed = self._choose(missing, tier, coming, space, share)
        return chosen, freed

    def _choose(
        self, missing: int, tier: TierNumber | None, coming: ContentId, space: Space | None, share: int | None
    ) -> tuple[list[Item], int]:
        chosen: list[Item] = []
        freed = passed = 0
        wrong: list[Item] = []
        for number in [tier] if tier is not None else list(self._tiers):
            for item, known in self._tiers.get(number, {}).items():
                if freed >= missing or passed >= _PASSED_OVER:
                    break
                passed += 1
                if space is not None and known.dataset != space.dataset:
                    continue
                where, of_share, size = self._storage.rooms.place(item)
                if not size or item == coming:
                    continue
                if where != number or not self.is_replica(item):
                    wrong.append(item)
                elif space is None or share is None or space.counts(of_share) == share:
                    chosen.append(item)
                    freed += size
                    passed -= 1
        for item in wrong:
            self._remove(item)
            self.inserted(item, self._storage.rooms.place(item)[2])  # moved to another tier, or owned by now
        return chosen, freed


def _has_slice(cached: Cached, slice_: int) -> bool:
    return any(cached.bitmap[slice_ * _BITMAP_BYTES : (slice_ + 1) * _BITMAP_BYTES])
