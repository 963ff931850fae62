"""Who gets room, and who has to go for it: policies, pins, quotas and watermarks over all datasets of a cache.

The order in which room is made: what nobody uses, of the dataset that was used longest ago; then, where its policy
replaces files, of the dataset that wants it; then of others in use whose policies do. What is pinned, or is being
written, stays. Nothing waits here: dropping is an unlink.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from forebay.cacheruntime.blocks import BLOCK_BYTES
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.index import PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.touch import slot_of
from forebay.cacheruntime.worker.space import Item, Space
from forebay.cacheruntime.worker.tier import Tier, in_order

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.storage import Storage, Target

AHEAD_BYTES = 64 * MIB
"""Room is made for so much of a large file when it is placed, and for the rest of it as it comes."""

_LOADED_AT_ONCE = 40_000
"""Files that a policy is told of in one go, some 5 us each: all others wait meanwhile."""

_PASSED_OVER = 1000
"""Items in a row that may not go, some 5 us each, after which a search is broken off: the next one goes on there."""

_DEPARTED_S = 0.02
"""Files that were evicted while they were open are looked at this often at most, a system call each."""

_HELD_SHARE = 1 / 64
"""Of a tier: so much of what was evicted may be open somewhere before it is waited for. Else a reader that does not run
for a while, with one file open, keeps all others from getting room."""

_LOOK_S = 1.0
"""Touch bits are looked at this often at most."""

_READS_S = 0.01
"""And so often those of files that readers with an order are asking for, some hundred of each reader."""


class Rooms:
    """The decisions; `Storage` carries them out. For the event loop."""

    def __init__(self, storage: "Storage", clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._looked_at = -_LOOK_S
        self._departed_at = -_DEPARTED_S
        self._reads_at = -_READS_S
        self.note_reads: Callable[[Callable[[ContentId], bool]], None] = lambda take: None
        """Tells policies what was read of posted orders, see `Orders.note_reads`; set by the core."""

    # What policies are told

    def inserted(self, space: Space, item: Item, size: int) -> None:
        if space.is_loaded:
            space.items[_slot(item)] = item
            space.policy.inserted(item, size)

    def removed(self, space: Space, item: Item) -> None:
        if space.is_loaded:
            if space.items.get(_slot(item)) == item:
                del space.items[_slot(item)]
            space.touched.discard(item)
            space.policy.removed(item)

    def load(self, space: Space) -> None:
        """Tell a dataset's policy what is cached of it, once: nobody waits for that before it is asked."""
        if space.is_loaded:
            return
        space.is_loaded, space.items = True, {}
        reader = self._storage.index.reader
        for pack in reader.packs():
            if pack.dataset == space.dataset and pack.length:
                self.inserted(space, pack.number, pack.length)
        space.to_load = reader.members(space.dataset, PackNumber(0))
        self._load_more(space, _LOADED_AT_ONCE)

    def load_more(self) -> None:
        """To be called now and then: goes on with datasets of very many files, a piece at a time."""
        for space in self._storage.spaces:
            if space.to_load is not None:
                self._load_more(space, _LOADED_AT_ONCE // 4)

    def _load_more(self, space: Space, count: int) -> None:
        assert space.to_load is not None
        reader, left = self._storage.index.reader, count
        for _, content in islice(space.to_load, count):
            left -= 1
            cached = reader.find(content)
            if cached is not None:
                self.inserted(space, content, cached.cached_bytes())
        if left:
            space.to_load = None

    def note_touches(self, space: Space) -> None:
        """Tell policies what was read since the last look."""
        self.load(space)
        now = self._clock()
        if now - self._reads_at >= _READS_S:
            self._reads_at = now
            self.note_reads(self.take_touch)
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        loaded = [space for space in self._storage.spaces if space.is_loaded]
        for slot in self._storage.touch.touched():
            for known in loaded:
                item = known.items.get(slot)
                if item is not None:
                    self._storage.touch.take(slot)
                    known.policy.accessed(item)
                    known.touched.add(item)

    def take_touch(self, content: ContentId) -> bool:
        """Whether a file of its own was read since the last look; policies are told."""
        slot = _slot(content)
        if not self._storage.touch.take(slot):
            return False
        for space in self._storage.spaces:
            if space.is_loaded and (item := space.items.get(slot)) is not None:
                space.policy.accessed(item)
                space.touched.add(item)
        return True

    # Room for what comes

    def tier_for(self, target: "Target", share: int, *, whole: bool = False) -> Tier | None:
        """The tier that takes a file, after making room where that may be.

        Args:
            target: the file.
            share: that it belongs to.
            whole: only with room for all of it; else where one block fits.
        """
        space = self._storage.space(target.dataset)
        least = target.size if whole else min(target.size, BLOCK_BYTES)
        wanted = target.size if whole else min(target.size, AHEAD_BYTES)
        tiers = in_order(self._storage.tiers, target.medium)
        quota = space.room_bytes(share)
        if quota is None or quota >= wanted:
            for tier in tiers:
                if tier.room_bytes() >= target.size:
                    return tier
        self.make(wanted, space, share, target.content, tiers)
        quota = space.room_bytes(share)
        if quota is not None and quota < least:
            return None
        best = next((tier for tier in tiers if tier.room_bytes() >= wanted), None)
        best = best or max(tiers, key=Tier.room_bytes, default=None)
        return best if best is not None and best.room_bytes() >= least else None

    def make(self, need: int, space: Space, share: int, coming: ContentId, tiers: list[Tier]) -> None:
        """Drop what may go until a dataset's quota, and one of the tiers, has room for `need` bytes."""
        storage = self._storage
        now = self._clock()
        if now - self._departed_at >= _DEPARTED_S:
            self._departed_at = now
            storage.departed.look()
        if all(tier.paused for tier in tiers):
            return  # to drop something would bring nothing
        quota = space.room_bytes(share)
        if quota is not None and quota < need:
            if not self._gives(space, coming, need - quota):
                return
            of_share = share if space.quotas.get(share) else None
            coming_free = storage.departed.pending_of(space)
            pending = coming_free.get(share, 0) if of_share is not None else sum(coming_free.values())
            if need - quota > pending:
                self._drop(self._choose(space, need - quota - pending, None, coming, of_share))
            quota = space.room_bytes(share)
            if quota is not None and quota < need:
                return
        missing = {tier.number: self._missing(tier, need) for tier in tiers if not tier.paused}
        if not missing or min(missing.values()) <= 0:
            return
        usable = [tier for tier in tiers if tier.number in missing]
        for tier in usable:
            chosen = self._choose_idle(tier, missing[tier.number])
            if chosen is not None:
                self._drop(chosen)
                return
        others = [other for other in storage.spaces if other is not space and storage.idle(other.dataset) is None]
        others.sort(key=lambda other: -sum(other.used.values()))
        for giver in [space, *others]:
            if self._gives(giver, coming if giver is space else None, min(missing.values())):
                for tier in usable:
                    chosen = self._choose(giver, missing[tier.number], tier, coming)
                    if chosen:
                        self._drop(chosen)
                        return

    def _gives(self, space: Space, coming: ContentId | None, missing: int) -> bool:
        if not space.policy.replaces:
            return False
        self.note_touches(space)
        return coming is None or space.policy.admits(coming, missing)

    def _missing(self, tier: Tier, need: int) -> int:
        """What is to be dropped in a tier; what was dropped already and is still open somewhere will come."""
        pending = self._storage.departed.pending_bytes(tier)
        return need - tier.room_bytes() - (pending if pending > _HELD_SHARE * tier.config.quota_bytes else 0)

    def _choose_idle(self, tier: Tier, missing: int) -> list[Item] | None:
        """What of unused datasets would do; None when all of it would not suffice."""
        chosen: list[Item] = []
        for space in self.idle_spaces():
            for item, size in self.victims(space, tier):
                chosen.append(item)
                missing -= size
                if missing <= 0:
                    return chosen
        return None

    def idle_spaces(self) -> list[Space]:
        """Datasets that nobody uses, those that were used longest ago first."""
        idle = self._storage.idle
        unused = [(used, space) for space in self._storage.spaces if (used := idle(space.dataset)) is not None]
        return [space for _, space in sorted(unused, key=lambda pair: pair[0])]

    def _choose(
        self, space: Space, missing: int, tier: Tier | None, coming: ContentId, share: int | None = None
    ) -> list[Item]:
        chosen: list[Item] = []
        for item, size in self.victims(space, tier, coming, share):
            chosen.append(item)
            missing -= size
            if missing <= 0:
                break
        return chosen

    def victims(
        self, space: Space, tier: Tier | None, coming: ContentId | None = None, share: int | None = None
    ) -> Iterator[tuple[Item, int]]:
        """What of a dataset may go, in its policy's order, with the bytes that frees.

        Bounded: behind very many that may not go (pinned, in another tier) it gives up for this time, and the next call
        goes on from there, until it has been through.

        Args:
            space: the dataset.
            tier: only what is there; None for all.
            coming: never this one.
            share: only of this share; None for all.
        """
        self.note_touches(space)
        if tier is not None and not any(
            held.dataset == space.dataset and held.tier == tier.number for held in self._storage.index.reader.holdings()
        ):
            return  # rather than look at all of a million files, some seconds, for each fill
        key = (tier.number if tier is not None else None, share)
        walk = space.walks.pop(key, None)
        is_long = walk is not None
        walk = walk or space.policy.victims(coming)
        passed = 0
        try:
            for item in walk:
                where, of_share, size = self._place(item)
                if size and item != coming and (tier is None or where == tier.number) and share in (None, of_share):
                    passed = 0
                    yield item, size
                    continue
                passed += 1
                if passed >= _PASSED_OVER:
                    is_long = True
                    return
            is_long = False
        finally:
            if is_long:
                space.walks[key] = walk

    def _place(self, item: Item) -> tuple[TierNumber, int, int]:
        """Tier, share and bytes of what may go; 0 bytes: it may not."""
        reader = self._storage.index.reader
        if isinstance(item, bytes):
            cached = reader.find(item)
            if cached is not None and not cached.pack and not cached.pinned and item not in self._storage.writes:
                return cached.tier, cached.share, cached.cached_bytes()
        else:
            pack = reader.pack(item)
            if pack is not None and not pack.pinned:
                return pack.tier, pack.share, pack.length
        return TierNumber(0), 0, 0

    def _drop(self, items: Iterable[Item]) -> None:
        for item in items:
            self._storage.drop(item)


def _slot(item: Item) -> int:
    return slot_of(item, PackNumber(0)) if isinstance(item, bytes) else slot_of(ContentId(b""), item)
