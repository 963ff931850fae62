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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forebay.cacheruntime import tracing
from forebay.cacheruntime.blocks import BLOCK_BYTES
from forebay.cacheruntime.cluster.hedging import Hedger
from forebay.cacheruntime.cluster.membership import DRAINING, Known, Membership
from forebay.cacheruntime.cluster.overload import Overload
from forebay.cacheruntime.cluster.peer_client import STALL_S, PeerClient, WrongBytes, body_of
from forebay.cacheruntime.cluster.peer_wire import PeerBroken
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Placement, WorkerId, slice_of
from forebay.cacheruntime.cluster.routing import Attempt, Mode, Route, Router
from forebay.cacheruntime.errors import (
    AccessDenied,
    ForebayError,
    NotAttached,
    SourceError,
    SourceNotFound,
    SourceStale,
    SourceUnavailable,
    by_name,
)
from forebay.cacheruntime.histogram import Histogram
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.worker.fetch import SourceFile, Taken
from forebay.cacheruntime.worker.overtaken import Overtaken, UnderWay
from forebay.proto import peer_pb2 as pb

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

HEADER_S = 2.0
"""A worker on a busy machine may say its first word so late; who is given up too soon costs a second GET."""

_SILENT_S, _SILENT_TAIL = 0.25, 3.0
"""The same for one that has said nothing since it left a question unanswered: so long, or so many of what almost all
headers take, whichever is longer."""

_LOOK_S = 0.1
"""Who is waited for may turn out to be silent meanwhile, and others may have heard of him."""

FETCH_S = 45.0
"""For an owner who fetches; his store's own deadline is shorter."""

_FURTHER = 3
"""Workers behind the owners that may stand in for them."""

_FETCHED = 1 << 16
"""Pieces that came from the store and were not asked for yet: those of a second or two."""

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


class _Elsewhere(Exception):
    """Others are to be asked for it from now on."""


@dataclass
class _Ask:
    """What is asked of one worker or another: a part of one file, or several small files."""

    dataset: DatasetId
    """The one that is named."""
    hops: int
    """Of the request."""
    wants: list[pb.Want]
    what: str
    """For people."""


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
            replicas: owners of each piece, where its dataset says nothing.
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
        self._overtaken = Overtaken(self._answered, self._broken, clock)
        self._clients: dict[WorkerId, PeerClient] = {}
        self._due: set[WorkerId] = set()
        """To be probed: the next answer of theirs counts, or that none comes."""
        self._taken: deque[Taken] = deque()
        self._fetched: deque[tuple[SourceFile, int]] = deque(maxlen=_FETCHED)
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

    def seen(self, worker: WorkerId, alive: bool, began: float) -> None:
        """A worker that was asked at `began` has said who it is, or has not answered: what brings back one that was set
        aside."""
        now = self._clock()
        with self._lock:
            self._router.health.hear(worker, alive, began, now)
            self._due.update(self._router.health.take_probes(now))
            if worker in self._due:
                self._due.discard(worker)
                self._router.health.record(worker, alive, now, now)

    def usable(self, worker: WorkerId) -> bool:
        """Whether it is asked."""
        with self._lock:
            return self._router.health.usable(worker)

    def copies(self, file: SourceFile) -> int:
        """How many workers are to have a file. In any thread."""
        return file.replicas or self._replicas

    def owners(self, file: SourceFile, offset: int) -> tuple[WorkerId, ...]:
        """Who is to have a slice, whether it answers or not."""
        return self.placement.owners(file.content, slice_of(offset), self.copies(file))

    def owns(self, file: SourceFile, offset: int = 0) -> bool:
        """Whether this worker is one of the owners of a file, or of the slice at `offset`."""
        return self._membership.view.me in self.owners(file, offset)

    def is_replica(self, file: SourceFile, offset: int) -> bool:
        """See `fetch.Peers`."""
        return self._membership.view.me is not None and not self.owns(file, offset)

    def order(self, file: SourceFile, offset: int) -> list[WorkerId]:
        """The workers that a slice belongs to, in order, without those that are set aside; this one may be among
        them."""
        with self._lock:
            ranked = self._router.placement.rank(file.content, slice_of(offset), self.copies(file) + _FURTHER)
            return [worker for worker in ranked if self._router.health.usable(worker)]

    def take_fetched(self) -> list[tuple[SourceFile, int]]:
        """Files, and the slices of them, that came from the store since the last call, of those that others own too."""
        return [self._fetched.popleft() for _ in range(len(self._fetched))]

    def served(self, content: ContentId, slice_: int, size: int) -> int:
        """Count what was served to a reader; how far it should spread, for the header: 0 for not at all."""
        with self._lock:
            spread = self._overload.record(content, lambda: self._router.position(content, slice_), size, self._clock())
        return spread if spread > 1 else 0

    def first(self, file: SourceFile) -> str | None:
        """See `fetch.Peers`."""
        attempts = self._route(file, 0).attempts
        return attempts[0].peer if attempts else None

    def relays(self, file: SourceFile, offset: int) -> bool:
        """See `fetch.Peers`."""
        return any(attempt.mode is Mode.FETCH for attempt in self._route(file, offset).attempts)

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

    def read_many(self, files: Sequence[SourceFile]) -> Iterator[tuple[int, list[memoryview]]]:
        """See `fetch.Peers`. If the worker is late, the one that is next for the first file is asked for all."""
        ask = _ask([(file, 0, file.size) for file in files])
        try:
            under_way, header = self._first_header(ask, deque(self._route(files[0], 0).attempts))
            began, got = time.monotonic_ns(), 0
            with self._counted(under_way, ask, lambda: got):
                for number, pieces in self._stream_many(under_way, header, files):
                    got += files[number].size
                    took_ns = time.monotonic_ns() - began
                    taken = Taken(files[number].dataset, under_way.client.known.id, files[number].size, took_ns, False)
                    self._taken.append(taken)
                    yield number, pieces
        except (PeerBroken, NotAttached) as error:
            log.info("%s: %s; going on one by one", ask.what, error)

    def _slice(self, file: SourceFile, start: int, end: int) -> "Iterator[Buffer]":
        """One slice, or a part of it."""
        give_up = self._clock() + self._alone_s
        delay_s = 0.1
        trouble = PeerBroken("none of them has it")
        while True:
            route = self._route(file, start)
            attempts, began_at = deque(route.attempts), start
            refused: list[BaseException | None] = []
            while attempts and start < end:
                try:
                    for piece in self._from_peers(file, start, end, attempts):
                        start += len(piece)
                        yield piece
                except _Missing:
                    refused.append(None)
                except _Elsewhere:
                    attempts = deque(self._route(file, start).attempts)
                except AccessDenied as error:
                    refused.append(error)
                    log.warning("%r: %s; the next source is asked", file.path, error)
                except PeerBroken as error:
                    trouble = error
                    refused.append(error.__cause__)
                    log.info("%r: %s; the next source is asked", file.path, error)
            if start >= end:
                return
            if route.store:
                yield from self._from_store(file, start, end)
                return
            if start > began_at:
                give_up = self._clock() + self._alone_s
            reasons = [each for each in refused if isinstance(each, SourceError | AccessDenied) and not each.TRANSIENT]
            if reasons and len(reasons) == len(refused):
                raise reasons[0]  # all say that it cannot be, such as for a token that has ended
            if self._clock() > give_up:
                why = reasons[0] if reasons else trouble
                raise SourceUnavailable(
                    f"no worker of the cluster has given {file.path!r} for {self._alone_s:g} s ({why})"
                )
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, 2.0)

    def _route(self, file: SourceFile, start: int) -> Route:
        """Of the slice at `start`."""
        with self._lock:
            return self._router.route(file.content, slice_of(start), self.copies(file), file.hops, self._clock())

    def _from_store(self, file: SourceFile, start: int, end: int) -> "Iterator[Buffer]":
        began, got, done = time.monotonic_ns(), 0, False
        try:
            for piece in file.read_store(start, end - start):
                got += len(memoryview(piece))
                yield piece
            done = True
        finally:
            self._taken.append(
                Taken(file.dataset, None, got, time.monotonic_ns() - began, not done and got < end - start)
            )
            if got and self.copies(file) > 1 and self.owns(file, start):
                self._fetched.append((file, slice_of(start)))

    def _from_peers(self, file: SourceFile, start: int, end: int, attempts: deque[Attempt]) -> Iterator[memoryview]:
        """Bytes of the first peer that answers; takes from `attempts` whom it has asked.

        Raises:
            _Missing: it has them not. _Elsewhere: it says that others should be asked. PeerBroken: it broke off.
            AccessDenied: it is not for us. ForebayError: what it says of the source.
        """
        ask = _ask([(file, start, end)])
        under_way, header = self._first_header(ask, attempts)
        got, began, clean = 0, time.monotonic_ns(), False
        try:
            with self._counted(under_way, ask, lambda: got):
                if self._is_better_elsewhere(file, under_way.client, header, start, end):
                    raise _Elsewhere
                for piece in self._stream(file, under_way, header, start, end):
                    got += len(piece)
                    yield piece
                clean = True
        finally:
            if got or clean:
                worker = under_way.client.known.id
                self._taken.append(Taken(file.dataset, worker, got, time.monotonic_ns() - began, not clean))

    @contextmanager
    def _counted(self, under_way: UnderWay, ask: _Ask, got: Callable[[], int]) -> Iterator[None]:
        """While an answer is received: what becomes of it is counted, and told to whom it concerns.

        Raises:
            PeerBroken: also for what speaks of the worker and not of the source.
        """
        client = under_way.client
        traffic = self._traffic(client)
        outcome = "broken"
        try:
            yield
            outcome = "bytes"
            under_way.exchange.finished()
        except _Missing:
            outcome = "missing"
            raise
        except _Elsewhere:
            outcome = "elsewhere"
            raise
        except WrongBytes as error:
            outcome = "wrong bytes"
            traffic.wrong += 1
            traffic.errors += 1
            log.warning("worker %s sent wrong bytes of %s: %s", client.known.id, ask.what, error)
            self._outcome(client, False, under_way.began)
            self._tell(client, ask)
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
            under_way.span.set(bytes=got())
            under_way.end(outcome)
            traffic.bytes += got()

    def _is_better_elsewhere(
        self, file: SourceFile, client: PeerClient, header: pb.ReadHeader, start: int, end: int
    ) -> bool:
        """Whether a first header brings the news that readers should spread, and so this one to another peer.

        Of thousands who begin to read a file together, all first ask its owner. What fits into the buffers of a
        connection is taken all the same, as it is on its way.
        """
        if not self._note_spread(file, header) or (header.state == pb.HIT and end - start <= BLOCK_BYTES):
            return False
        first = self._route(file, start).attempts[:1]
        return bool(first) and first[0].peer != client.known.id

    def _note_spread(self, file: SourceFile, header: pb.ReadHeader) -> bool:
        if not header.spread:
            return False
        with self._lock:
            return self._router.note_spread(file.content, header.spread, self._clock())

    def _stream(
        self, file: SourceFile, under_way: UnderWay, header: pb.ReadHeader, start: int, end: int
    ) -> Iterator[memoryview]:
        """All of a want, beginning with the header that came first."""
        exchange = under_way.exchange
        give_up = self._clock() + FETCH_S
        while True:
            self._note_spread(file, header)
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

    def _stream_many(
        self, under_way: UnderWay, header: pb.ReadHeader, files: Sequence[SourceFile]
    ) -> Iterator[tuple[int, list[memoryview]]]:
        """Each file that comes whole, beginning with the header that came first."""
        exchange, left = under_way.exchange, set(range(len(files)))
        come: dict[int, list[memoryview]] = {number: [] for number in left}
        give_up = self._clock() + FETCH_S
        while True:
            number = header.want
            if header.state == pb.COMING:
                if self._clock() > give_up:
                    raise PeerBroken(f"worker {under_way.client.known.id} said for {FETCH_S:g} s that they come")
            elif number not in left:
                raise PeerBroken(f"an answer to want {number}, which waits for none")
            elif header.state == pb.HIT:
                file, start = files[number], sum(map(len, come[number]))
                self._note_spread(file, header)
                if header.offset != start or not 0 < header.length <= file.size - start:
                    raise PeerBroken(f"bytes at {header.offset} came where those at {start} should")
                come[number] += body_of(exchange, header)
                give_up = self._clock() + FETCH_S
                if start + header.length == file.size:
                    left.discard(number)
                    yield number, come.pop(number)
            else:
                left.discard(number)
            if not left:
                return
            header = exchange.header(STALL_S)

    def _first_header(self, ask: _Ask, attempts: deque[Attempt]) -> tuple[UnderWay, pb.ReadHeader]:
        """Ask one peer, and the next as well when the first is late; the first header wins.

        Raises:
            PeerBroken: none that could be asked has answered.
        """
        waiting: list[UnderWay] = []
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
                        waiting.append(self._begin(ask, attempts.popleft()))
                    except PeerBroken as error:
                        trouble = error
                        continue
                for under_way in list(waiting):
                    late_s = self._clock() - under_way.began
                    left_s = (delay_s if not hedged and attempts else limit_s) - late_s
                    if not under_way.exchange.wait(max(min(left_s, _LOOK_S / len(waiting)), 0.0)):
                        if late_s > (most_s := self._most_s(under_way, delay_s, limit_s)):
                            trouble = PeerBroken(f"worker {under_way.client.known.id} has not answered in {most_s:g} s")
                            waiting.remove(under_way)
                            self._broken(under_way)
                        continue
                    waiting.remove(under_way)
                    try:
                        header = under_way.exchange.header(limit_s)
                    except PeerBroken as error:
                        trouble = error
                        self._broken(under_way)
                        continue
                    self._answered(under_way)
                    return under_way, header
                if waiting and not hedged and attempts and self._clock() - waiting[0].began >= delay_s:
                    hedged = True  # or not allowed to be: the question is asked once
                    with self._lock:
                        allowed = self._hedger.may_hedge()
                    if allowed:
                        try:
                            waiting.append(self._begin(ask, attempts.popleft(), wait_s=0, hedge=True))
                        except PeerBroken as error:
                            trouble = error
        finally:
            for under_way in waiting:
                self._overtaken.add(under_way, self._most_s(under_way, delay_s, limit_s))

    def _most_s(self, under_way: UnderWay, delay_s: float, limit_s: float) -> float:
        """How long a header is waited for, by what is known of the peer by now."""
        with self._lock:
            silent = self._router.health.is_silent(under_way.client.known.id)
        return max(_SILENT_S, _SILENT_TAIL * delay_s) if silent else limit_s

    def _begin(self, ask: _Ask, attempt: Attempt, *, wait_s: float = FETCH_S, hedge: bool = False) -> UnderWay:
        """Raises: PeerBroken, the peer is not known any more or cannot be reached, or has no turn for us in `wait_s`:
        0 for who has one with another."""
        client = self._client(attempt.peer)
        client.take_turn(wait_s)
        mode = pb.FETCH if attempt.mode is Mode.FETCH else pb.ONLY_CACHED
        request = pb.ReadRequest(dataset_id=ask.dataset, wants=ask.wants, mode=mode, hops=ask.hops)
        span = tracing.begin(
            "forebay.peer.read", "CLIENT", peer=attempt.peer, mode=attempt.mode.value, hedge=hedge, hops=request.hops,
            path=ask.what, offset=ask.wants[0].offset, length=sum(want.length for want in ask.wants),
        )  # fmt: skip
        request.traceparent = span.traceparent
        began = self._clock()
        self._traffic(client).requests += 1
        try:
            return UnderWay(client, client.begin(request), began, span)
        except PeerBroken as error:
            span.end(error)
            self._traffic(client).errors += 1
            self._outcome(client, False, began)
            raise

    def _tell(self, client: PeerClient, ask: _Ask) -> None:
        """Have a worker look at what it has of what was asked; nobody waits for that."""
        for want in ask.wants:
            want.suspect = True
        try:
            self._begin(ask, Attempt(client.known.id, Mode.ONLY_CACHED), wait_s=0).end("told")
        except PeerBroken as error:
            log.info("worker %s could not be told of wrong bytes: %s", client.known.id, error)

    def _client(self, worker: WorkerId) -> PeerClient:
        with self._lock:  # the view too: `see` must not come between
            known = self._membership.view.workers.get(worker)
            if known is None:
                raise PeerBroken(f"worker {worker} has left the cluster")
            client = self._clients.get(worker)
            if client is None:
                client = self._clients[worker] = self._make_client(known)
            return client

    def _answered(self, under_way: UnderWay) -> None:
        now = self._clock()
        with self._lock:
            self._hedger.header(now - under_way.began)
            self._router.health.record(under_way.client.known.id, True, under_way.began, now)
        self._traffic(under_way.client).times.add(int((now - under_way.began) * 1e9))

    def _broken(self, under_way: UnderWay) -> None:
        self._traffic(under_way.client).errors += 1
        self._outcome(under_way.client, False, under_way.began)
        under_way.end("broken")

    def _outcome(self, client: PeerClient, good: bool, began: float) -> None:
        with self._lock:
            self._router.health.record(client.known.id, good, began, self._clock())

    def _traffic(self, client: PeerClient) -> PeerTraffic:
        return self.traffic.setdefault(client.known.id, PeerTraffic())


def _ask(parts: Sequence[tuple[SourceFile, int, int]]) -> _Ask:
    """Files of one dataset and of the same hops, each with the start and the end of what is wanted."""
    first = parts[0][0]
    wants = [
        pb.Want(
            content=file.content, path=os.fsencode(file.asked_path or file.path), size=file.size, version=file.version,
            offset=start, length=end - start,
        )
        for file, start, end in parts
    ]  # fmt: skip
    what = repr(first.path) if len(parts) == 1 else f"{len(parts)} files, {first.path!r} among them"
    return _Ask(first.asked_of or first.dataset, first.hops + 1, wants, what)
