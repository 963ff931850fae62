"""From whom a worker gets a block that it does not have: an ordered list of peers, and then the under-store.

The order of a slice (`placement.py`) without those who are set aside (`health.py`) says it all. Whoever lacks a block
asks the owners before itself in `FETCH` mode: they get it themselves if need be, one GET for all who ask. The first
owner has nobody before it, and goes to the under-store. While the cluster is unsettled (somebody came, left, was set
aside or brought back within the last minutes) it first asks those who may have the data from before, in `ONLY_CACHED`
mode.

Requests cannot go round in circles, however views differ: each carries how often it was passed on (`hops`), and from
`MAX_HOPS` on a worker asks nobody in `FETCH` mode. `ONLY_CACHED` is never passed on. For the same reason nobody may
wait for a fetch that may itself be waiting for him: who serves a request with `hops` h lets it wait for a fetch that
goes to the under-store, or for one that was begun for hops >= h, and begins another one else; and `ONLY_CACHED` waits
for the former only.

Three hops, since there are four parties to a hot file: the reader, the replica that it asks, one of the first few
replicas whom the others ask, and the owner. With one, each of 64 replicas of a file that nobody has would get every
block from the under-store; with two, from the owner, which would send 64 copies and little else.

Pure: the clock is passed in, in seconds of any monotonic clock; no I/O, no lock.
"""

import enum
import random
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from forebay.cacheruntime.cluster.health import Health
from forebay.cacheruntime.cluster.overload import MOST_SPREAD
from forebay.cacheruntime.cluster.placement import Member, Placement, WorkerId
from forebay.cacheruntime.keys import ContentId

MAX_HOPS = 3
"""A request that was passed on so often is not passed on in `FETCH` mode again."""

_FETCHES = 2
"""Peers asked in FETCH mode at least, before the under-store: the owner and, when it fails, the next in the order,
which all nodes that miss the owner have in common."""

_FETCHES_WITHOUT_STORE = 4
"""The same for a node that has no under-store to fall back on."""

_BRANCHES = 8
"""Copies of a hot file that are made from its owner; the rest are made from these."""

_FORMER = 3
"""Peers asked in ONLY_CACHED mode at most: half a millisecond each, against tens for a GET."""

_FORMER_VIEWS = 4
"""Views remembered: a rolling restart has two for each worker, and what is in the oldest of these was there for
long."""

UNSETTLED_S = 300.0
"""After a change of the cluster: about as long as the background takes to move what is asked for."""

_HINT_S = 30.0
"""A hint to spread holds so long, less up to half of it by chance: those who were told together do not come back
together."""

_HINTS = 4096
"""Contents with a hint that are remembered."""


class Mode(enum.Enum):
    """What a peer is asked for."""

    FETCH = "fetch"
    """The bytes, wherever it gets them from."""
    ONLY_CACHED = "only-cached"
    """The bytes if it has them."""


class Attempt(NamedTuple):
    """One peer to ask."""

    peer: WorkerId
    mode: Mode


class Route(NamedTuple):
    """Where the bytes may come from, in order."""

    attempts: tuple[Attempt, ...]
    """Peers; the node itself is not among them."""
    store: bool
    """Whether the under-store comes last; if not, what no peer gives is an error."""


class Router:
    """Decides for one node, by its view of the cluster, its opinion of peers and what it was told of hot files."""

    def __init__(self, me: WorkerId, health: Health, rng: random.Random, *, has_store: bool) -> None:
        """
        Args:
            me: this node, a member or not.
            health: its opinion of peers.
            rng: for the jitter of hints; seeded differently on each node.
            has_store: whether it can reach the under-store itself.
        """
        self.me = me
        self.health = health
        self._rng = rng
        self._has_store = has_store
        self._fetches = _FETCHES if has_store else _FETCHES_WITHOUT_STORE
        self._number = xxhash.xxh3_64_intdigest(me.encode())
        self.placement = Placement(())
        self._draining: tuple[Member, ...] = ()
        self._before_drain: Placement | None = None
        """With those that drain."""
        self._former: deque[tuple[float, Placement]] = deque(maxlen=_FORMER_VIEWS)
        self._changed: float | None = None
        self._hints: OrderedDict[ContentId, tuple[int, float]] = OrderedDict()

    def set_view(self, placement: Placement, now: float, draining: Iterable[Member] = ()) -> None:
        """Who owns shares from now on.

        Args:
            placement: the members that serve.
            now: the time.
            draining: members that own nothing any more, and may have what the others lack.
        """
        drains = tuple(draining)
        if placement.members == self.placement.members and drains == self._draining:
            return
        self._former.appendleft((now + UNSETTLED_S, self.placement))
        self._draining = drains
        self._before_drain = Placement((*placement.members, *drains)) if drains else None
        self.placement = placement
        self._changed = now

    def is_unsettled(self, now: float) -> bool:
        """Whether data may be with others than its owners: members, or opinions of them, changed lately, or one
        drains."""
        if self._draining:
            return True
        changes = (self._changed, self.health.changed)
        return any(changed is not None and now - changed < UNSETTLED_S for changed in changes)

    def note_spread(self, content: ContentId, spread: int, now: float) -> bool:
        """A peer's header said `spread`: ask the first so many in the order for this content, for a while.

        Peers may say different things, so a smaller one counts only when the larger one has expired.

        Returns:
            Whether this is news. Then it is worth to ask for a new route, and to drop the request for one to another
            peer: that of thousands who begin to read a file together, all first ask its owner for bytes.
        """
        known = self._spread(content, now)
        if spread <= 1 or spread < known:
            return False
        self._hints[content] = (min(spread, MOST_SPREAD), now + _HINT_S * self._rng.uniform(0.5, 1.0))
        self._hints.move_to_end(content)
        if len(self._hints) > _HINTS:
            self._hints.popitem(last=False)
        return spread > known

    def position(self, content: ContentId, slice_: int) -> int:
        """This node's place in the order of a slice, from 0, at most `MOST_SPREAD`: for `Overload.record`."""
        order = self.placement.rank(content, slice_, MOST_SPREAD)
        return order.index(self.me) if self.me in order else MOST_SPREAD

    def route(self, content: ContentId, slice_: int, replicas: int, hops: int, now: float) -> Route:
        """Whom to ask for a block that this node does not have.

        Args:
            content: what the block is of.
            slice_: its slice (`slice_of`).
            replicas: owners that are to have a copy.
            hops: how often the request was passed on: 0 for this node's own reader.
            now: the time.
        """
        replicas = max(replicas, 1)
        fetches = max(self._fetches, replicas)
        # Readers are spread over all owners: one that has it not yet gets it from those before it, one GET for all.
        spread = max(self._spread(content, now), replicas) if hops == 0 else 1
        order = self._usable(content, slice_, max(fetches, spread))
        if hops and self.me not in order:
            order = self._above(content, slice_, order)
        if self.me in order:
            asked = order[: order.index(self.me)]
        elif spread > 1:
            # By content too: a single reader is to ask each of the owners for some.
            first = (self._number + _number_of(content)) % min(spread, max(len(order), 1))
            asked = order[first:] + order[:first]
        else:
            asked = order
        if asked:
            mode = Mode.FETCH if hops < MAX_HOPS else Mode.ONLY_CACHED
            return Route(tuple([Attempt(peer, mode) for peer in asked[:fetches]]), self._has_store)
        former = self._may_have(content, slice_, replicas, now) if order and self.is_unsettled(now) else ()
        return Route(tuple([Attempt(peer, Mode.ONLY_CACHED) for peer in former]), self._has_store)

    def _usable(self, content: ContentId, slice_: int, most: int) -> list[WorkerId]:
        """The first in the order of a slice that are not set aside, this node perhaps among them."""
        aside = self.health.aside
        ranked = self.placement.rank(content, slice_, most + len(aside))
        order = [peer for peer in ranked if peer not in aside][:most]
        if not self._has_store and len(order) < most:
            # Nothing comes after them, so a peer that has failed is better than nobody.
            order += [peer for peer in ranked if peer in aside][: most - len(order)]
        return order

    def _above(self, content: ContentId, slice_: int, owners: list[WorkerId]) -> list[WorkerId]:
        """Whom a replica far down in the order asks, and itself: one of the first few, then the owner."""
        order = self._usable(content, slice_, MOST_SPREAD)
        place = order.index(self.me) if self.me in order else 0
        if place <= _BRANCHES:
            return owners
        return [order[1 + place % _BRANCHES], order[0], self.me]

    def _may_have(self, content: ContentId, slice_: int, replicas: int, now: float) -> Iterable[WorkerId]:
        """Others that may have what this node owns: who owned it before, and who is next in the order."""
        found: dict[WorkerId, None] = {}
        if self._before_drain is not None:
            near = self._before_drain.rank(content, slice_, replicas + _FORMER)
            found.update(dict.fromkeys(peer for peer in near if peer not in self.placement.weights))
        for until, former in self._former:
            if now < until:
                found.update(dict.fromkeys(former.owners(content, slice_, replicas)))
        # Several may have come together, and who came has seen no former view.
        found.update(dict.fromkeys(self.placement.rank(content, slice_, replicas + _FORMER)))
        return [peer for peer in found if peer != self.me and self.health.usable(peer)][:_FORMER]

    def _spread(self, content: ContentId, now: float) -> int:
        spread, until = self._hints.get(content, (1, 0.0))
        if spread > 1 and now >= until:
            del self._hints[content]
            return 1
        return spread


def _number_of(content: ContentId) -> int:
    return int.from_bytes(content[:8], "big")
