"""Reading from other workers by exchanges that do as they are told: hints to spread, requests that are overtaken."""

import random
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from forebay.cacheruntime.cluster.health import Health
from forebay.cacheruntime.cluster.membership import SERVING, Address, Known, View
from forebay.cacheruntime.cluster.peer_wire import PeerBroken
from forebay.cacheruntime.cluster.placement import WorkerId
from forebay.cacheruntime.cluster.routing import Router
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.peer_source import PeerSource
from forebay.proto import peer_pb2 as pb

IDS = [WorkerId(f"w{number}") for number in range(8)]
STORE = SimpleNamespace(url="s3://b")


class FakeExchange:
    """Gives one header when `ready`, and the bytes that it announces."""

    def __init__(self, request: pb.ReadRequest, header: pb.ReadHeader | None, ready: threading.Event) -> None:
        self.request = request
        self._header = header
        self._ready = ready
        self.closed = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        return self._ready.wait(timeout_s)

    def header(self, timeout_s: float) -> pb.ReadHeader:
        if not self._ready.wait(timeout_s):
            raise PeerBroken("no answer in time")
        if self._header is None:
            raise PeerBroken("the other side closed the connection")
        header, self._header = self._header, None
        if header.state == pb.COMING:
            self._header = hit(self.request.wants[0])
        return header

    def body(self, size: int, stall_s: float) -> memoryview:
        return memoryview(bytes(size))

    def finished(self) -> None:
        self.closed.set()

    def close(self) -> None:
        self.closed.set()


def hit(want: pb.Want, **more: Any) -> pb.ReadHeader:
    sums = [xxhash.xxh3_64_intdigest(bytes(min(MIB, want.length - at))) for at in range(0, want.length, MIB)]
    return pb.ReadHeader(state=pb.HIT, offset=want.offset, length=want.length, unit=MIB, sums=sums, **more)


Script = Callable[[WorkerId, pb.Want], tuple[pb.ReadHeader | None, bool]]
"""What a peer answers to a want, and whether at once."""


class Cluster:
    """A client node's source, and what it asks."""

    def __init__(self, script: Script) -> None:
        self.asked: list[tuple[WorkerId, FakeExchange]] = []
        self.later = threading.Event()
        self._script = script
        self._at_once = threading.Event()
        self._at_once.set()
        workers = {id_: Known(id_, Address(f"{id_}:1"), 1, 1, SERVING) for id_ in IDS}
        view = View(None, workers, tuple(known.member for known in workers.values()))
        rng = random.Random(3)
        self.router = Router(WorkerId("me"), Health(rng), rng, has_store=False)
        self.source = PeerSource(
            self.router, SimpleNamespace(view=view), self._client, replicas=1, alone_s=0.0,  # type: ignore[arg-type]
        )  # fmt: skip
        self.source.see()

    def _client(self, known: Known) -> Any:
        def begin(request: pb.ReadRequest) -> FakeExchange:
            header, at_once = self._script(known.id, request.wants[0])
            made = FakeExchange(request, header, self._at_once if at_once else self.later)
            self.asked.append((known.id, made))
            return made

        return SimpleNamespace(known=known, begin=begin, take_turn=lambda wait_s: None, close=lambda: None)

    def peers(self) -> list[WorkerId]:
        return [peer for peer, _ in self.asked]

    def read(self, size: int, name: str = "f") -> int:
        file = SourceFile(DatasetId("d"), STORE, name, size, "v")  # type: ignore[arg-type]
        return sum(len(memoryview(piece)) for piece in self.source.read(file, 0, size))

    def order(self, size: int, name: str = "f") -> list[WorkerId]:
        file = SourceFile(DatasetId("d"), STORE, name, size, "v")  # type: ignore[arg-type]
        return list(self.router.placement.rank(file.content, 0, len(IDS)))


def spreading(state: int, spread: int = 8) -> Script:
    """The first who is asked says `spread`."""
    first: list[WorkerId] = []

    def script(peer: WorkerId, want: pb.Want) -> tuple[pb.ReadHeader, bool]:
        first.append(peer)
        hint = spread if peer == first[0] else 0
        return (hit(want, spread=hint) if state == pb.HIT else pb.ReadHeader(state=state, spread=hint)), True

    return script


@pytest.mark.parametrize(("state", "size"), [(pb.COMING, 1000), (pb.COMING, 3 * MIB), (pb.HIT, 3 * MIB)])
def test_a_reader_that_is_told_to_spread_asks_another_peer_at_once(state: int, size: int) -> None:
    cluster = Cluster(spreading(state))
    assert cluster.read(size) == size
    owner = cluster.order(size)[0]
    first, second = cluster.asked
    assert first[0] == owner
    assert second[0] != owner
    assert first[1].closed.is_set()
    assert cluster.read(size) == size
    assert cluster.peers()[2:] == [second[0]]
    assert cluster.source.usable(owner)
    assert cluster.source.traffic[owner].errors == 0


def test_what_is_on_its_way_is_taken() -> None:
    cluster = Cluster(spreading(pb.HIT))
    assert cluster.read(MIB) == MIB
    assert len(cluster.asked) == 1
    cluster.read(MIB)
    assert cluster.peers()[1] != cluster.peers()[0]


def test_a_hint_that_is_no_news_changes_nothing() -> None:
    cluster = Cluster(lambda _, __: (pb.ReadHeader(state=pb.COMING, spread=8), True))
    cluster.read(3 * MIB)
    assert len(cluster.asked) == 2


def late(slow: set[WorkerId], header: bool) -> Script:
    def script(peer: WorkerId, want: pb.Want) -> tuple[pb.ReadHeader | None, bool]:
        return (hit(want) if header or peer not in slow else None), peer not in slow

    return script


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def overtaken(cluster: Cluster, slow: set[WorkerId]) -> FakeExchange:
    """Read until the request to a slow peer was overtaken by a hedge."""
    for number in range(50):  # hedges have to be earned
        cluster.read(1000, str(number))
    slow.add(cluster.order(MIB)[0])
    cluster.asked.clear()
    cluster.source.traffic.clear()
    assert cluster.read(MIB) == MIB
    (peer, exchange), (other, _) = cluster.asked
    assert peer in slow
    assert other not in slow
    assert cluster.source.hedges[1] == 1
    return exchange


def test_who_was_overtaken_is_timed_by_its_header() -> None:
    slow: set[WorkerId] = set()
    cluster = Cluster(late(slow, header=True))
    exchange = overtaken(cluster, slow)
    (peer,) = slow
    assert not exchange.closed.is_set()
    assert not sum(cluster.source.traffic[peer].times.counts)
    cluster.later.set()
    until(exchange.closed.is_set)
    assert sum(cluster.source.traffic[peer].times.counts) == 1
    assert cluster.source.traffic[peer].errors == 0


def test_who_was_overtaken_and_breaks_off_has_failed() -> None:
    slow: set[WorkerId] = set()
    cluster = Cluster(late(slow, header=False))
    exchange = overtaken(cluster, slow)
    (peer,) = slow
    cluster.later.set()
    until(exchange.closed.is_set)
    assert cluster.source.traffic[peer].errors == 1


@pytest.mark.slow
def test_who_was_overtaken_and_says_nothing_has_failed_when_its_time_is_over() -> None:
    slow: set[WorkerId] = set()
    cluster = Cluster(late(slow, header=True))
    exchange = overtaken(cluster, slow)
    (peer,) = slow
    began = time.monotonic()
    until(exchange.closed.is_set)
    assert time.monotonic() - began > 0.5
    assert cluster.source.traffic[peer].errors == 1
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "overtaken"])
