"""The filler's second source: the workers that own a file, before the under-store.

For the filler's threads. What is asked of whom is decided by pure code (`routing.py`, `health.py`, `hedging.py`); here
it is carried out. A piece is given out only after it was compared with the sums that its sender has stored; a reader
that loses one worker in the middle goes on with the next where he was.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forebay.cacheruntime.cluster.hedging import Hedger
from forebay.cacheruntime.cluster.membership import DRAINING, Known, Membership
from forebay.cacheruntime.cluster.overload import Overload
from forebay.cacheruntime.cluster.peer_client import STALL_S, Exchange, PeerClient, WrongBytes, body_of
from forebay.cacheruntime.cluster.peer_wire import PeerBroken
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Placement, WorkerId, slice_of
from forebay.cacheruntime.cluster.routing import Attempt, Mode, Router
from forebay.cacheruntime.errors import (
    AccessDenied,
    ForebayError,
    NotAttached,
    SourceNotFound,
    SourceStale,
    SourceUnavailable,
    by_name,
)
from forebay.cacheruntime.histogram import Histogram
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.fetch import SourceFile, Taken
from forebay.proto import peer_pb2 as pb

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

HEADER_S = 2.0
"""A worker on a busy machine may say its first word so late; who is given up too soon costs a second GET."""

FETCH_S = 45.0
"""For an owner who fetches; his store's own deadline is shorter."""

_FURTHER = 3
"""Workers behind the owners that may stand in for them."""

_FINAL = (SourceStale, SourceNotFound)
"""What an owner says of the source that another would not say otherwise."""


@dataclass
class PeerTraffic:
    """With one other worker, since this one started."""

    requests: int = 0
    bytes: int = 0
    errors: int = 0
    wrong: int = 0
    """Replies whose bytes were not what their sums said."""
    times: Histogram = field(default_factory=Histogram)
    """From a request to its first header."""


class _Missing(Exception):
    """A peer has it not, and will not fetch it."""


@dataclass
class _UnderWay:
    """A request that was sent, and has not been answered yet."""

    client: PeerClient
    content: ContentId
    exchange: Exchange
    began: float


class PeerSource:
    """See `fetch.Peers`. Safe to use from many threads."""

    def __init__(
        self,
        router: Router,
        membership: Membership,
        make_client: Callable[[Known], PeerClient],
        *,
        replicas: int,
        alone_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            router: decides; guarded by a lock here.
            membership: with the view.
            make_client: for a worker.
            replicas: owners of each piece.
            alone_s: without an under-store, the workers are asked again for this long.
            clock: seconds.
        """
        self._router = router
        self._membership = membership
        self._make_client = make_client
        self._replicas = replicas
        self._alone_s = alone_s
        self._clock = clock
        self._lock = threading.Lock()
        self._hedger = Hedger()
        self._overload = Overload()
        self._clients: dict[WorkerId, PeerClient] = {}
        self._due: set[WorkerId] = set()
        """To be probed: the next answer of theirs counts, or that none comes."""
        self._taken: deque[Taken] = deque()
        self.traffic: dict[WorkerId, PeerTraffic] = {}
        """By worker; read in the event loop, and exact enough for that."""

    # For the event loop

    @property
    def placement(self) -> Placement:
        """Of the view."""
        return self._router.placement

    def see(self) -> None:
        """The view has changed."""
        view = self._membership.view
        with self._lock:
            draining = [known.member for known in view.workers.values() if known.state == DRAINING]
            self._router.set_view(Placement(view.members), self._clock(), draining)
            self._router.health.keep(list(view.workers))
            for worker, client in list(self._clients.items()):
                known = view.workers.get(worker)
                if known is None:
                    del self._clients[worker]
                    client.close()
                else:
                    client.moved(known)

    def seen(self, worker: WorkerId, alive: bool) -> None:
        """A worker has said who it is, or has not answered: what brings back one that was set aside."""
        now = self._clock()
        with self._lock:
            self._due.update(self._router.health.take_probes(now))
            if worker in self._due:
                self._due.discard(worker)
                self._router.health.record(worker, alive, now, now)

    def usable(self, worker: WorkerId) -> bool:
        """Whether it is asked."""
        with self._lock:
            return self._router.health.usable(worker)

    def owns(self, file: SourceFile, offset: int = 0) -> bool:
        """Whether this worker is one of the owners of a file, or of the slice at `offset`."""
        me = self._membership.view.me
        with self._lock:
            return me in self._router.placement.owners(file.content, slice_of(offset), self._replicas)

    def order(self, file: SourceFile, offset: int) -> list[WorkerId]:
        """The workers that a slice belongs to, in order, without those that are set aside; this one may be among
        them."""
        with self._lock:
            ranked = self._router.placement.rank(file.content, slice_of(offset), self._replicas + _FURTHER)
            return [worker for worker in ranked if self._router.health.usable(worker)]

    def served(self, content: ContentId, slice_: int, size: int) -> int:
        """Count what was served to a reader; how far it should spread, for the header: 0 for not at all."""
        with self._lock:
            spread = self._overload.record(content, lambda: self._router.position(content, slice_), size, self._clock())
        return spread if spread > 1 else 0

    def relays(self, file: SourceFile) -> bool:
        """See `fetch.Peers`."""
        with self._lock:
            route = self._router.route(file.content, 0, self._replicas, file.hops, self._clock())
        return any(attempt.mode is Mode.FETCH for attempt in route.attempts)

    def drain_taken(self) -> Iterator[Taken]:
        """What reads took since the last call."""
        while self._taken:
            yield self._taken.popleft()

    @property
    def hedges(self) -> tuple[int, int]:
        """Requests so far, and those among them that were hedges."""
        return self._hedger.budget.requests, self._hedger.budget.hedges

    # For threads

    def read(self, file: SourceFile, start: int, length: int) -> "Iterator[Buffer]":
        """See `fetch.Peers`."""
        end = start + length
        while start < end:
            upto = min(end, (slice_of(start) + 1) * SLICE_BYTES)
            for piece in self._slice(file, start, upto):
                start += len(memoryview(piece))
                yield piece

    def _slice(self, file: SourceFile, start: int, end: int) -> "Iterator[Buffer]":
        """One slice, or a part of it."""
        give_up = self._clock() + self._alone_s
        delay_s = 0.1
        trouble = PeerBroken("none of them has it")
        while True:
            with self._lock:
                route = self._router.route(file.content, slice_of(start), self._replicas, file.hops, self._clock())
            attempts = deque(route.attempts)
            while attempts and start < end:
                try:
                    for piece in self._from_peers(file, start, end, attempts):
                        start += len(piece)
                        yield piece
                except _Missing:
                    continue
                except AccessDenied as error:
                    if not attempts and not route.store:
                        raise
                    log.warning("%r: %s; the next source is asked", file.path, error)
                except PeerBroken as error:
                    trouble = error
                    log.info("%r: %s; the next source is asked", file.path, error)
            if start >= end:
                return
            if route.store:
                yield from self._from_store(file, start, end)
                return
            if self._clock() > give_up:
                raise SourceUnavailable(
                    f"no worker of the cluster has given {file.path!r} for {self._alone_s:g} s ({trouble})"
                )
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, 2.0)

    def _from_store(self, file: SourceFile, start: int, end: int) -> "Iterator[Buffer]":
        began, got, done = time.monotonic_ns(), 0, False
        try:
            for piece in file.store.read_range(file.path, start, end - start, file.version):
                got += len(memoryview(piece))
                yield piece
            done = True
        finally:
            self._taken.append(
                Taken(file.dataset, None, got, time.monotonic_ns() - began, not done and got < end - start)
            )

    def _from_peers(self, file: SourceFile, start: int, end: int, attempts: deque[Attempt]) -> Iterator[memoryview]:
        """Bytes of the first peer that answers; takes from `attempts` whom it has asked.

        Raises:
            _Missing: it has them not. PeerBroken: it broke off. AccessDenied: it is not for us. ForebayError: what it
                says of the source.
        """
        under_way, header = self._first_header(file, start, end, attempts)
        client = under_way.client
        traffic = self._traffic(client)
        got, began, clean = 0, time.monotonic_ns(), False
        try:
            for piece in self._stream(under_way, header, start, end):
                got += len(piece)
                yield piece
            clean = True
            under_way.exchange.finished()
        except WrongBytes as error:
            traffic.wrong += 1
            traffic.errors += 1
            log.warning("worker %s sent wrong bytes of %r: %s", client.known.id, file.path, error)
            self._outcome(client, False, under_way.began)
            self._tell(client, file, start, end)
            raise
        except PeerBroken:
            traffic.errors += 1
            self._outcome(client, False, under_way.began)
            raise
        except NotAttached as error:
            raise PeerBroken(str(error)) from error
        except ForebayError as error:
            if isinstance(error, _FINAL):
                raise
            traffic.errors += 1
            if isinstance(error, AccessDenied):
                raise
            raise PeerBroken(f"worker {client.known.id}: {error}") from error
        finally:
            under_way.exchange.close()
            traffic.bytes += got
            if got or clean:
                self._taken.append(Taken(file.dataset, client.known.id, got, time.monotonic_ns() - began, not clean))

    def _stream(self, under_way: _UnderWay, header: pb.ReadHeader, start: int, end: int) -> Iterator[memoryview]:
        """All of a want, beginning with the header that came first."""
        exchange = under_way.exchange
        give_up = self._clock() + FETCH_S
        while True:
            if header.spread:
                with self._lock:
                    self._router.note_spread(under_way.content, header.spread, self._clock())
            if header.state == pb.MISSING:
                exchange.finished()
                raise _Missing
            if header.state == pb.FAILED:
                exchange.finished()
                name, _, message = header.error.partition(": ")
                raise by_name(name)(message)
            if header.state == pb.HIT:
                if header.offset != start or not 0 < header.length <= end - start:
                    raise PeerBroken(f"bytes at {header.offset} came where those at {start} should")
                for piece in body_of(exchange, header):
                    start += len(piece)
                    yield piece
                if start >= end:
                    return
                give_up = self._clock() + FETCH_S
            elif self._clock() > give_up:
                raise PeerBroken(f"worker {under_way.client.known.id} said for {FETCH_S:g} s that it comes")
            header = exchange.header(STALL_S)

    def _first_header(
        self, file: SourceFile, start: int, end: int, attempts: deque[Attempt]
    ) -> tuple[_UnderWay, pb.ReadHeader]:
        """Ask one peer, and the next as well when the first is late; the first header wins.

        Raises:
            PeerBroken: none that could be asked has answered.
        """
        waiting: list[_UnderWay] = []
        with self._lock:
            self._hedger.begin()
            delay_s, limit_s = self._hedger.delay_s, max(self._hedger.limit_s, HEADER_S)
        trouble: PeerBroken = PeerBroken("there is nobody to ask")
        hedged = False
        try:
            while True:
                if not waiting:
                    if not attempts:
                        raise trouble
                    try:
                        waiting.append(self._begin(file, start, end, attempts.popleft()))
                    except PeerBroken as error:
                        trouble = error
                        continue
                late = self._clock() - waiting[0].began
                for under_way in list(waiting):
                    left_s = (delay_s if not hedged and attempts else limit_s) - late
                    if not under_way.exchange.wait(max(min(left_s, 0.05 if len(waiting) > 1 else left_s), 0.0)):
                        continue
                    try:
                        header = under_way.exchange.header(limit_s)
                    except PeerBroken as error:
                        trouble = error
                        waiting.remove(under_way)
                        self._broken(under_way)
                        continue
                    self._answered(under_way)
                    waiting.remove(under_way)
                    return under_way, header
                if waiting and self._clock() - waiting[-1].began > limit_s:
                    trouble = PeerBroken(f"worker {waiting[0].client.known.id} has not answered in {limit_s:g} s")
                    for under_way in waiting:
                        self._broken(under_way)
                    waiting.clear()
                elif waiting and not hedged and attempts and self._clock() - waiting[0].began >= delay_s:
                    hedged = True  # or not allowed to be: the question is asked once
                    with self._lock:
                        allowed = self._hedger.may_hedge()
                    if allowed:
                        try:
                            waiting.append(self._begin(file, start, end, attempts.popleft()))
                        except PeerBroken as error:
                            trouble = error
        finally:
            for under_way in waiting:  # overtaken
                if self._clock() - under_way.began > limit_s:
                    self._broken(under_way)
                under_way.exchange.close()

    def _begin(self, file: SourceFile, start: int, end: int, attempt: Attempt, suspect: bool = False) -> _UnderWay:
        """Raises: PeerBroken, the peer is not known any more or cannot be reached."""
        client = self._client(attempt.peer)
        want = pb.Want(
            content=file.content, path=os.fsencode(file.asked_path or file.path), size=file.size, version=file.version,
            offset=start, length=end - start, suspect=suspect,
        )  # fmt: skip
        mode = pb.FETCH if attempt.mode is Mode.FETCH else pb.ONLY_CACHED
        request = pb.ReadRequest(dataset_id=file.asked_of or file.dataset, wants=[want], mode=mode, hops=file.hops + 1)
        began = self._clock()
        self._traffic(client).requests += 1
        try:
            return _UnderWay(client, file.content, client.begin(request), began)
        except PeerBroken:
            self._traffic(client).errors += 1
            self._outcome(client, False, began)
            raise

    def _tell(self, client: PeerClient, file: SourceFile, start: int, end: int) -> None:
        """Have a worker look at what it has of a file; nobody waits for that."""
        try:
            self._begin(file, start, end, Attempt(client.known.id, Mode.ONLY_CACHED), suspect=True).exchange.close()
        except PeerBroken as error:
            log.info("worker %s could not be told of wrong bytes: %s", client.known.id, error)

    def _client(self, worker: WorkerId) -> PeerClient:
        known = self._membership.view.workers.get(worker)
        if known is None:
            raise PeerBroken(f"worker {worker} has left the cluster")
        with self._lock:
            client = self._clients.get(worker)
            if client is None:
                client = self._clients[worker] = self._make_client(known)
            return client

    def _answered(self, under_way: _UnderWay) -> None:
        now = self._clock()
        with self._lock:
            self._hedger.header(now - under_way.began)
            self._router.health.record(under_way.client.known.id, True, under_way.began, now)
        self._traffic(under_way.client).times.add(int((now - under_way.began) * 1e9))

    def _broken(self, under_way: _UnderWay) -> None:
        self._traffic(under_way.client).errors += 1
        self._outcome(under_way.client, False, under_way.began)
        under_way.exchange.close()

    def _outcome(self, client: PeerClient, good: bool, began: float) -> None:
        with self._lock:
            self._router.health.record(client.known.id, good, began, self._clock())

    def _traffic(self, client: PeerClient) -> PeerTraffic:
        return self.traffic.setdefault(client.known.id, PeerTraffic())
