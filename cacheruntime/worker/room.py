"""Who gets room, and who has to go for it: policies, pins, quotas and watermarks over all datasets of a cache.

The order in which room is made: replicas (`replicas.py`) of any dataset, those that were read longest ago first; then
what nobody uses, of the dataset that was used longest ago; then, where its policy replaces files, of the dataset that
wants it; then of others in use whose policies do. What is pinned, or is being written, stays. A replica that comes gets
room in that order too, but of replicas only, and none for its own sake: those of a dataset in use whose policy keeps
what is in stay, for readers in random order gain nothing by an exchange. Nothing waits here: dropping is an unlink.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from forebay.cacheruntime.blocks import BLOCK_BYTES
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.index import PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.replicas import Replicas
from forebay.cacheruntime.worker.space import Item, Space, slot_of_item
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

_KEPT_FREE_SHARE = 1 / 16
"""Of a tier, at most `_KEPT_FREE_BYTES`: what no replica takes, and for what is owned replicas go until so much is free
again. Whoever has read a replica may have it open, so its room comes back a little later than it is needed."""

_KEPT_FREE_BYTES = 1024 * MIB

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
        self.replicas = Replicas(storage)
        self.note_reads: Callable[[Callable[[ContentId], bool]], None] = lambda take: None
        """Tells policies what was read of posted orders, see `Orders.note_reads`; set by the core."""

    # What policies are told

    def inserted(self, space: Space, item: Item, size: int) -> None:
        self.replicas.inserted(item, size)
        if space.is_loaded:
            space.items[slot_of_item(item)] = item
            space.policy.inserted(item, size)

    def removed(self, space: Space, item: Item) -> None:
        self.replicas.removed(item)
        if space.is_loaded:
            if space.items.get(slot_of_item(item)) == item:
                del space.items[slot_of_item(item)]
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
        self.replicas.load_more()
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
        self._look()

    def _look(self) -> None:
        now = self._clock()
        if now - self._reads_at >= _READS_S:
            self._reads_at = now
            self.note_reads(self.take_touch)
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        loaded = [space for space in self._storage.spaces if space.is_loaded]
        for slot in self._storage.touch.touched():
            if self.replicas.touched(slot):
                self._storage.touch.take(slot)
            for known in loaded:
                item = known.items.get(slot)
                if item is not None:
                    self._storage.touch.take(slot)
                    known.policy.accessed(item)
                    known.touched.add(item)

    def take_touch(self, content: ContentId) -> bool:
        """Whether a file of its own was read since the last look; policies are told."""
        slot = slot_of_item(content)
        if not self._storage.touch.take(slot):
            return False
        self.replicas.touched(slot)
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
        replica = target.replica and not space.is_pinned(target.path)
        if quota is None or quota >= wanted:
            for tier in tiers:
                if self.room_bytes(tier, replica) >= target.size:
                    if not replica:
                        self._free_ahead(tier, target)
                    return tier
        self.make(wanted, space, share, target.content, tiers, replica=replica)
        quota = space.room_bytes(share)
        if quota is not None and quota < least:
            return None
        rooms = {tier.number: self.room_bytes(tier, replica) for tier in tiers}
        best = next((tier for tier in tiers if rooms[tier.number] >= wanted), None)
        best = best or max(tiers, key=lambda tier: rooms[tier.number], default=None)
        return best if best is not None and rooms[best.number] >= least else None

    @staticmethod
    def room_bytes(tier: Tier, replica: bool) -> int:
        """What a tier may take of what is owned, or of replicas."""
        return tier.room_bytes() - _kept_free(tier) if replica else tier.room_bytes()

    def _free_ahead(self, tier: Tier, target: "Target") -> None:
        """Before the room that is kept free is used up."""
        if not self.replicas.is_following:
            return
        missing = target.size + _kept_free(tier) - tier.room_bytes() - self._storage.departed.pending_bytes(tier)
        if missing > 0:
            self._look()
            self._drop(self.replicas.choose(missing, tier.number, target.content)[0])

    def make(
        self, need: int, space: Space, share: int, coming: ContentId, tiers: list[Tier], *, replica: bool = False
    ) -> None:
        """Drop what may go until a dataset's quota, and one of the tiers, has room for `need` bytes.

        Args:
            need: bytes.
            space, share: whose they are.
            coming: the file; never dropped itself.
            tiers: that may take it.
            replica: only replicas may go for it.
        """
        storage = self._storage
        now = self._clock()
        if now - self._departed_at >= _DEPARTED_S:
            self._departed_at = now
            storage.departed.look()
        if all(tier.paused for tier in tiers):
            return  # to drop something would bring nothing
        quota = space.room_bytes(share)
        if quota is not None and quota < need:
            self._make_in_quota(need, space, share, coming, replica)
            quota = space.room_bytes(share)
            if quota is not None and quota < need:
                return
        missing = {tier.number: self._missing(tier, need, replica) for tier in tiers if not tier.paused}
        if not missing or min(missing.values()) <= 0:
            return
        usable = [tier for tier in tiers if tier.number in missing]
        others = [other for other in storage.spaces if other is not space and storage.idle(other.dataset) is None]
        others.sort(key=lambda other: -sum(other.used.values()))
        if replica:
            self._drop_for_replica(usable, missing, coming, [space, *others])
            return
        if self._drop_replicas(usable, missing, coming):
            return
        for tier in usable:
            chosen = self._choose_idle(tier, missing[tier.number])
            if chosen is not None:
                self._drop(chosen)
                return
        for giver in [space, *others]:
            if self._gives(giver, coming if giver is space else None, min(missing.values())):
                for tier in usable:
                    chosen = self._choose(giver, missing[tier.number], tier, coming)
                    if chosen:
                        self._drop(chosen)
                        return

    def _make_in_quota(self, need: int, space: Space, share: int, coming: ContentId, replica: bool) -> None:
        counts = space.counts(share)
        of_share = counts if space.quotas.get(counts) else None

        def missing() -> int:
            coming_free = self._storage.departed.pending_of(space)
            pending = sum(size for one, size in coming_free.items() if of_share in (None, space.counts(one)))
            return need - (space.room_bytes(share) or 0) - pending

        if missing() > 0 and self.replicas.is_following and (not replica or self._gives(space, coming, missing())):
            self._look()
            self._drop(self.replicas.choose(missing(), None, coming, space, of_share)[0])
        if missing() > 0 and not replica and self._gives(space, coming, missing()):
            self._drop(self._choose(space, missing(), None, coming, of_share))

    def _drop_replicas(self, usable: list[Tier], missing: dict[TierNumber, int], coming: ContentId) -> bool:
        """Replicas go; whether they suffice in one of the tiers. `missing` tells then what is missing beyond them."""
        if not self.replicas.is_following:
            return False
        self._look()
        found = [(tier, *self.replicas.choose(missing[tier.number], tier.number, coming)) for tier in usable]
        tier, chosen, freed = next(
            (one for one in found if one[2] >= missing[one[0].number]), max(found, key=lambda one: one[2])
        )
        self._drop(chosen)
        missing[tier.number] -= freed
        return missing[tier.number] <= 0

    def _drop_for_replica(
        self, usable: list[Tier], missing: dict[TierNumber, int], coming: ContentId, in_use: list[Space]
    ) -> None:
        """Replicas of those that give go for another one, of the first of `in_use`."""
        least = min(missing.values())
        givers = self.idle_spaces()
        givers += [g for g in in_use if self._gives(g, coming if g is in_use[0] else None, least) and g not in givers]
        self._look()
        for tier in usable:
            left, chosen = missing[tier.number], list[Item]()
            for giver in givers:
                found, freed = self.replicas.choose(left, tier.number, coming, giver)
                chosen += found
                left -= freed
                if left <= 0:
                    self._drop(chosen)
                    return

    def _gives(self, space: Space, coming: ContentId | None, missing: int) -> bool:
        if not space.policy.replaces:
            return False
        self.note_touches(space)
        return coming is None or space.policy.admits(coming, missing)

    def _missing(self, tier: Tier, need: int, replica: bool) -> int:
        """What is to be dropped in a tier; what was dropped already and is still open somewhere will come."""
        pending = self._storage.departed.pending_bytes(tier)
        return (
            need - self.room_bytes(tier, replica) - (pending if pending > _HELD_SHARE * tier.config.quota_bytes else 0)
        )

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
        self,
        space: Space,
        missing: int,
        tier: Tier | None,
        coming: ContentId,
        share: int | None = None,
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
                where, of_share, size = self.place(item)
                if (
                    size
                    and item != coming
                    and (tier is None or where == tier.number)
                    and share in (None, space.counts(of_share))
                ):
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

    def place(self, item: Item) -> tuple[TierNumber, int, int]:
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


def _kept_free(tier: Tier) -> int:
    return min(int(tier.config.quota_bytes * _KEPT_FREE_SHARE), _KEPT_FREE_BYTES)
