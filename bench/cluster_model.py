"""A cluster without hosts or networks: a clock of its own, and the decisions that real nodes make.

Every node has its own `Router`, `Health`, `Hedger` and, if it serves, `Overload`; what is modelled is only what lies
between them. A worker sends headers one after the other, 0.1 ms for each, and bytes one after the other, 1 ms for each
block; a message takes 0.2 ms and a little by chance; now and then a process pauses. A worker may be killed (connections
are refused), stopped (it answers when it goes on), slow, or out of reach of some.

One event for most requests: when a header will come is known when the request is sent, so its timers are set only if
they will be needed. What a stopped worker has promised still comes: the model has no limits for bytes, only for
headers.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from forebay.cacheruntime.cluster.health import Health
from forebay.cacheruntime.cluster.hedging import Hedger
from forebay.cacheruntime.cluster.overload import Overload
from forebay.cacheruntime.cluster.placement import WorkerId
from forebay.cacheruntime.cluster.routing import Mode, Router
from forebay.cacheruntime.keys import ContentId

BLOCK_BYTES = 1 << 20
"""What one request asks for."""

HEADER_S = 0.0001
"""That a worker works on one request before it has answered it."""

_SEND_S = 0.001
"""Of a block: 1 GB/s."""

_WIRE_S = 0.0002
_PAUSED, _PAUSE_S = 0.005, 0.01
"""One request in 200 meets a process that pauses, for 10 ms on average."""

_GET_S = 0.03
"""Of the under-store."""

_FOREVER = float("inf")


class Block(NamedTuple):
    """A megabyte of a file."""

    content: ContentId
    number: int

    @property
    def slice_(self) -> int:
        return self.number >> 6


@dataclass
class Tally:
    """What happened since it was begun."""

    reads: int = 0
    failed: int = 0
    asked: int = 0
    """Reads, and fetches of workers, that asked a peer at all."""
    hedges: int = 0
    failovers: int = 0
    """Further requests after one that was refused, given up, or answered with "not cached"."""
    probes: int = 0
    gets: int = 0
    repeated: int = 0
    """GETs of a block that some worker had fetched before."""
    set_aside: int = 0
    waits: list[float] = field(default_factory=list)
    """Of reads, in seconds."""
    sent: Counter[WorkerId] = field(default_factory=Counter)
    """Blocks, by each worker."""
    bursts: Counter[tuple[WorkerId, int]] = field(default_factory=Counter)
    """Requests and probes sent to a worker in each tenth of a second."""

    def wait_s(self, share: float) -> float:
        """The wait that this share of all reads did not exceed."""
        waits = sorted(self.waits)
        return waits[min(int(share * len(waits)), len(waits) - 1)] if waits else 0.0


class World:
    """The clock, the network and the under-store."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.tally = Tally()
        self.nodes: dict[WorkerId, Node] = {}
        self.cut: Callable[[WorkerId, WorkerId], bool] = lambda source, target: False
        """Whether nothing gets through from the one to the other."""
        self.fetched: set[Block] = set()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = 0

    def at(self, when: float, what: Callable[[], object]) -> None:
        """Do something later."""
        self._numbers += 1
        heapq.heappush(self._events, (when, self._numbers, what))

    def run(self, until: float) -> None:
        """Let time pass."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, what = heapq.heappop(events)
            what()
        self.now = until

    def wire_s(self) -> float:
        """One message's way."""
        rng = self.rng
        pause = rng.expovariate(1 / _PAUSE_S) if rng.random() < _PAUSED else 0.0
        return _WIRE_S + rng.expovariate(1 / _WIRE_S) + pause


class Node:
    """A worker, or a client node that owns nothing."""

    def __init__(self, world: World, id_: WorkerId, *, has_store: bool) -> None:
        self.world = world
        self.id = id_
        rng = random.Random(f"{world.rng.random()} {id_}")
        self.health = Health(rng)
        self.hedger = Hedger()
        self.router = Router(id_, self.health, rng, has_store=has_store)
        self.overload = Overload()
        self.cached: set[Block] = set()
        self.whole: set[ContentId] = set()
        """Files of which it has all."""
        self.flights: dict[Block, list[Flight]] = {}
        self.free_at = 0.0
        """When it has answered all that it was asked."""
        self.sent_at = 0.0
        """When it has sent all that it was asked for."""
        self.stopped_until = 0.0
        self.killed_until = 0.0
        self.slowness = 1.0
        self._probing = False

    def has(self, block: Block) -> bool:
        """Whether it is in its cache."""
        return block in self.cached or block.content in self.whole

    def read(self, block: Block) -> None:
        """A program on this node reads; nothing is kept here, so that every read is one of the cluster."""
        began, tally = self.world.now, self.world.tally
        tally.reads += 1  # a read belongs to the tally in which it began

        def ended(good: bool) -> None:
            tally.failed += not good
            tally.waits.append(self.world.now - began)

        Flight(self, block, 0, ended).go_on()

    def kill(self, seconds: float) -> None:
        """Nobody listens for a while; what was on its way is lost, what is cached is not."""
        self.killed_until = self.world.now + seconds
        flights, self.flights = self.flights, {}
        for flight in [flight for several in flights.values() for flight in several]:
            flight.finish(False)

    def probe_soon(self) -> None:
        """Keep probing who is to be probed."""
        due = self.health.next_probe()
        if due is None or self._probing:
            return
        self._probing = True

        def probe() -> None:
            self._probing = False
            for peer in self.health.take_probes(self.world.now):
                self.world.tally.probes += 1
                _send(self, peer, None, 0, Mode.ONLY_CACHED, None)
            self.probe_soon()

        self.world.at(max(due, self.world.now), probe)

    def judge(self, peer: WorkerId, good: bool, began: float) -> None:
        """The outcome of a request or probe."""
        before = len(self.health.aside)
        self.health.record(peer, good, began, self.world.now)
        self.world.tally.set_aside += len(self.health.aside) > before
        if not good:
            self.probe_soon()

    def send(self, brought: Callable[[bool], None]) -> None:
        """Send the bytes of a block, behind all others."""
        world = self.world
        world.tally.sent[self.id] += 1
        self.sent_at = max(world.now, self.sent_at) + _SEND_S * self.slowness
        world.at(self.sent_at, lambda: brought(True))

    def serve(self, block: Block, hops: int, mode: Mode) -> "Flight | bool":
        """True: it is here; False: it is not; else it comes with this."""
        if self.has(block):
            return True
        flights = self.flights.setdefault(block, [])
        for flight in flights:
            if flight.from_store or (mode is Mode.FETCH and flight.hops >= hops):
                return flight
        if mode is Mode.ONLY_CACHED:
            return False
        flight = Flight(self, block, hops, lambda good: None)
        flights.append(flight)
        flight.go_on()
        return flight


class Flight:
    """One node brings one block."""

    def __init__(self, node: Node, block: Block, hops: int, ended: Callable[[bool], None]) -> None:
        self.node = node
        self.block = block
        self.hops = hops
        self.from_store = False
        self.waiters: list[Callable[[bool], None]] = [ended]
        self._route = node.router.route(block.content, block.slice_, 1, hops, node.world.now)
        self._asked = 0
        self._open = 0
        """Requests whose header has not come."""
        self._answered = False
        self._begun = self._hedged = self._done = False

    def go_on(self) -> None:
        """Ask the next source."""
        node, attempts = self.node, self._route.attempts
        if self._asked < len(attempts):
            peer, mode = attempts[self._asked]
            if not self._begun:
                self._begun = True
                node.hedger.begin()
                node.world.tally.asked += 1
            self._asked += 1
            self._open += 1
            _send(node, peer, self.block, self.hops + 1, mode, self)
        elif self._route.store and not self.from_store:
            self.from_store = True
            world = node.world
            world.tally.gets += 1
            world.tally.repeated += self.block in world.fetched
            world.fetched.add(self.block)
            world.at(world.now + _GET_S / 2 + world.rng.expovariate(2 / _GET_S), lambda: self.finish(True))
        elif not self._open and not self.from_store:
            self.finish(False)

    def header(self, answer: "Flight | bool", peer: Node, began: float) -> None:
        """A peer has answered: that it has the block, that it has not, or that it comes with another flight."""
        self._open -= 1
        self.node.hedger.header(self.node.world.now - began)
        if self._answered or self._done:
            return
        if answer is True:
            self._answered = True
            peer.send(self._brought)
        elif answer is False:
            self._without_answer()
        else:
            self._answered = True
            answer.waiters.append(lambda good: peer.send(self._brought) if good else self._brought(False))

    def turn_away(self, peer: WorkerId) -> bool:
        """It was told that the file is hot: ask another peer, unless this is the one to ask anyway."""
        if self._answered or self._done or self.hops:
            return False
        route = self.node.router.route(self.block.content, self.block.slice_, 1, self.hops, self.node.world.now)
        if route.attempts[0].peer == peer:
            return False
        self._route, self._asked = route, 0
        self._open -= 1
        self.go_on()
        return True

    def late(self, position: int) -> None:
        """A header has not come within `delay_s`."""
        if self._answered or self._done or self._hedged or position != self._asked:
            return
        if (self._asked < len(self._route.attempts) or self._route.store) and self.node.hedger.may_hedge():
            self._hedged = True
            self.node.world.tally.hedges += 1
            self.go_on()

    def failed(self) -> None:
        """A request was refused, or its header did not come within `limit_s`."""
        self._open -= 1
        self._without_answer()

    def _without_answer(self) -> None:
        if not self._answered and not self._done and not self._open:
            self.node.world.tally.failovers += self._asked < len(self._route.attempts)
            self.go_on()

    def _brought(self, good: bool) -> None:
        if self._done:
            return
        if good:
            self.finish(True)
        else:
            self._answered = False
            self._without_answer()

    def finish(self, good: bool) -> None:
        """The block is here, or cannot be had."""
        if self._done:
            return
        self._done = True
        node = self.node
        flights = node.flights.get(self.block)
        if flights is not None and self in flights:
            flights.remove(self)
            if not flights:
                del node.flights[self.block]
            if good:
                node.cached.add(self.block)
        for waiter in self.waiters:
            waiter(good)


def _send(node: Node, peer: WorkerId, block: Block | None, hops: int, mode: Mode, flight: Flight | None) -> None:
    """Send a request; what comes of it is told to the flight and to the node's health. No block: a probe."""
    world = node.world
    target, began = world.nodes[peer], world.now
    arrives = began + world.wire_s()
    limit_s = node.hedger.limit_s
    world.tally.bursts[peer, int(began * 10)] += 1
    if target.killed_until > arrives:
        world.at(arrives + _WIRE_S, lambda: _ended(node, peer, False, began, flight))
        return
    if world.cut(node.id, peer):
        answered = _FOREVER
    else:
        arrives = max(arrives, target.stopped_until)
        target.free_at = answered = max(arrives, target.free_at) + HEADER_S * target.slowness
        answered += world.wire_s() * target.slowness

    if answered - began > limit_s:
        world.at(began + limit_s, lambda: _ended(node, peer, False, began, flight))
    if flight is not None and answered - began > node.hedger.delay_s:
        position = flight._asked
        world.at(began + node.hedger.delay_s, lambda: flight.late(position))

    def answer() -> None:
        if target.killed_until > world.now:
            if answered - began <= limit_s:
                _ended(node, peer, False, began, flight)
            return
        if block is not None and flight is not None:
            if hops == 1 and mode is Mode.FETCH:
                place = partial(target.router.position, block.content, block.slice_)
                spread = target.overload.record(block.content, place, BLOCK_BYTES, world.now)
                if node.router.note_spread(block.content, spread, world.now) and flight.turn_away(peer):
                    node.judge(peer, True, began)
                    return
            found = target.serve(block, hops, mode)
            if answered - began <= limit_s:
                flight.header(found, target, began)
        if answered - began <= limit_s:
            node.judge(peer, True, began)

    if answered < _FOREVER:
        world.at(answered, answer)


def _ended(node: Node, peer: WorkerId, good: bool, began: float, flight: Flight | None) -> None:
    node.judge(peer, good, began)
    if flight is not None:
        flight.failed()
