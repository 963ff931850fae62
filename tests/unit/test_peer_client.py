"""Reading from another worker: how many requests at once, and what is done when the data port cannot be reached."""

import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from forebay.cacheruntime.cluster import peer_client, peer_wire
from forebay.cacheruntime.cluster.certs import Identity, Role
from forebay.cacheruntime.cluster.limits import ClientLimit
from forebay.cacheruntime.cluster.membership import Address, Known
from forebay.cacheruntime.cluster.peer_client import AT_ONCE, READ_METHOD, NoTurn, PeerClient
from forebay.cacheruntime.cluster.peer_wire import PeerBroken
from forebay.cacheruntime.cluster.placement import WorkerId
from forebay.cacheruntime.worker.peer_server import DataPort
from forebay.proto import peer_pb2 as pb


def client(port: int, channel: Any = None) -> PeerClient:
    known = Known(WorkerId("w"), Address("127.0.0.1:7070"), port, 1, "serving")
    return PeerClient(known, lambda _: channel, None, lambda: "")


def test_requests_to_one_worker_have_a_bound_and_give_their_turns_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = client(listening.getsockname()[1])
        under_way = []
        for _ in range(AT_ONCE):
            peer.take_turn(0)
            under_way.append(peer.begin(pb.ReadRequest()))
        with pytest.raises(NoTurn):
            peer.take_turn(0)
        under_way[0].finished()
        under_way[0].close()  # again: one turn is given back all the same
        under_way[1].close()
        for _ in range(2):
            peer.take_turn(0)
        with pytest.raises(NoTurn):
            peer.take_turn(0)
        for exchange in under_way:
            exchange.close()
        peer.close()


@pytest.mark.parametrize("cause", [TimeoutError(), ConnectionRefusedError(), OSError(113, "No route to host")])
def test_a_data_port_behind_a_firewall_is_gone_round(monkeypatch: pytest.MonkeyPatch, cause: OSError) -> None:
    methods: list[str] = []

    def unary_stream(method: str) -> Any:
        methods.append(method)
        return lambda message: SimpleNamespace(cancel=lambda: None, __iter__=None)

    def connect(*_: object) -> None:
        raise PeerBroken("cannot be reached") from cause

    monkeypatch.setattr(peer_wire, "connect", connect)
    monkeypatch.setattr(peer_client._GrpcExchange, "_receive", lambda self: None)
    peer = client(1, SimpleNamespace(unary_stream=unary_stream))
    for _ in range(AT_ONCE + 1):
        peer.take_turn(0)
        peer.begin(pb.ReadRequest()).close()
    assert methods == [READ_METHOD] * (AT_ONCE + 1)


def test_a_turn_is_given_back_when_nobody_can_be_asked() -> None:
    peer = client(0, SimpleNamespace(unary_stream=_closed))
    for _ in range(AT_ONCE + 1):
        peer.take_turn(0)
        with pytest.raises(PeerBroken):
            peer.begin(pb.ReadRequest())


def _closed(_: str) -> Any:
    raise ValueError("Cannot invoke RPC on closed channel!")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_the_data_port_on_all_addresses_is_there_for_both_families() -> None:
    """As gRPC's is."""
    seen = threading.Event()

    class Gate:
        def wrap(self, connection: socket.socket) -> Any:
            seen.set()
            raise OSError("enough")

    data = DataPort(None, Gate(), "::", 0)  # type: ignore[arg-type]
    try:
        with socket.create_connection(("127.0.0.1", data.port), 5):
            assert seen.wait(5)
    finally:
        data.close()


def test_a_data_port_that_closes_lets_what_is_under_way_come_to_its_end() -> None:
    began, go_on = threading.Event(), threading.Event()

    class Gate:
        streams = connections = ClientLimit("things", 9)

        def wrap(self, connection: socket.socket) -> Any:
            return connection, Identity(Role.WORKER, "w", 0)

        def check_read(self, *_: object) -> None: ...

    class Reads:
        def answer(self, *_: object) -> Any:
            began.set()
            go_on.wait(5)
            yield pb.ReadHeader(state=pb.MISSING), None

    data = DataPort(Reads(), Gate(), "127.0.0.1", 0)  # type: ignore[arg-type]
    idle = socket.create_connection(("127.0.0.1", data.port), 5)
    peer = client(data.port)
    peer.take_turn(0)
    exchange = peer.begin(pb.ReadRequest())
    assert began.wait(5)
    closing = threading.Thread(target=data.close, args=(5.0,))
    closing.start()
    assert idle.recv(1) == b""
    go_on.set()
    assert exchange.header(5).state == pb.MISSING
    closing.join(5)
    assert not closing.is_alive()
    exchange.close()
    idle.close()
