"""The door of a real gRPC server: rules, tokens, certificates, limits."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from parties import Parties

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.certs import Identity, Role
from forebay.cacheruntime.cluster.guard import OPEN, WORKERS, Guard, Rule, on_dataset
from forebay.cacheruntime.cluster.limits import ClientLimit, server_options
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.cluster.tokens import Authorizer, Verb, create_token
from forebay.cacheruntime.config import LimitConfig
from forebay.cacheruntime.errors import AccessDenied, ForebayError, LimitReached

WAIT_S = 10.0
LIMITS = LimitConfig(message_bytes=1 << 16)
RULES = {
    "/t/Identify": OPEN,
    "/t/Offer": WORKERS,
    "/t/Read": on_dataset(Verb.READ, bytes.decode),
    "/t/Stream": on_dataset(Verb.READ, bytes.decode),
    "/t/Upload": WORKERS,
    "/t/Status": Rule(Verb.LIST),
    "/t/Echo": OPEN,
    "/t/Names": OPEN,
    "/t/Misruled": on_dataset(Verb.READ, bytes.decode),
}


class Methods(grpc.GenericRpcHandler):
    """What got through."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = details.method
        if method == "/t/Absent":
            return None

        def unary(request: bytes, _: grpc.ServicerContext) -> bytes:
            self.calls.append(method)
            return 100 * request if method == "/t/Names" else request

        def stream(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
            self.calls.append(method)
            yield from (request, request)

        def upload(requests: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
            self.calls.append(method)
            return b"".join(requests)

        if method in ("/t/Upload", "/t/Misruled"):
            return grpc.stream_unary_rpc_method_handler(upload)
        return grpc.unary_stream_rpc_method_handler(stream) if method == "/t/Stream" else (
            grpc.unary_unary_rpc_method_handler(unary)
        )  # fmt: skip


class Door:
    def __init__(self, parties: Parties | None) -> None:
        self.methods = Methods()
        worker = parties.worker() if parties else Security(None)
        guard = Guard(worker, Authorizer(worker.folder), RULES)
        self._server = grpc.server(
            ThreadPoolExecutor(8), handlers=[self.methods], interceptors=[guard], options=server_options(LIMITS)
        )
        self._port = worker.bind(self._server, "127.0.0.1:0")
        self._server.start()
        self._channels: list[grpc.Channel] = []

    def channel(self, party: Security) -> grpc.Channel:
        self._channels.append(party.open_channel(f"127.0.0.1:{self._port}"))
        return self._channels[-1]

    def call(self, party: Security, method: str, request: bytes = b"") -> bytes:
        try:
            return bytes(self.channel(party).unary_unary(f"/t/{method}")(request, timeout=WAIT_S))
        except grpc.RpcError as error:
            raise rpc.to_error(error) from error

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._server.stop(0).wait(WAIT_S)


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties.create(tmp_path / "ca")


@pytest.fixture
def door(parties: Parties) -> Iterator[Door]:
    made = Door(parties)
    yield made
    made.close()


@pytest.mark.semantics("K2")
def test_a_client_without_a_token_gets_what_is_open_only(parties: Parties, door: Door) -> None:
    client = parties.client()
    assert door.call(client, "Identify", b"x") == b"x"
    for method, message in (
        ("Offer", "only workers may do this"),
        ("Read", "has sent no token"),
        ("Status", "has sent no token"),
        ("Unruled", "/t/Unruled is open to nobody"),
    ):
        with pytest.raises(AccessDenied, match=message):
            door.call(client, method, b"imagenet")
    assert door.methods.calls == ["/t/Identify"]
    with pytest.raises(ForebayError, match="UNIMPLEMENTED"):
        door.call(client, "Absent")


@pytest.mark.semantics("K2")
def test_a_client_with_a_token_gets_what_it_says(parties: Parties, door: Door) -> None:
    client = parties.client()
    token = create_token(parties.folder, ["imagenet"], [Verb.READ], time.time())
    (parties.folder / "c" / "token").write_text(token)
    assert door.call(client, "Read", b"imagenet") == b"imagenet"
    assert door.call(client, "Status") == b"", "which rows it sees is the method's affair"
    assert list(door.channel(client).unary_stream("/t/Stream")(b"imagenet", timeout=WAIT_S)) == [b"imagenet"] * 2
    with pytest.raises(AccessDenied, match="is not for dataset 'other'"):
        door.call(client, "Read", b"other")
    with pytest.raises(AccessDenied, match="only workers"):
        door.call(client, "Offer")
    with pytest.raises(grpc.RpcError, match="is not for dataset 'other'") as caught:
        list(door.channel(client).unary_stream("/t/Stream")(b"other", timeout=WAIT_S))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert door.methods.calls == ["/t/Read", "/t/Status", "/t/Stream"]


def test_workers_may_do_what_has_a_rule(parties: Parties, door: Door) -> None:
    worker = Security(parties.folder / "w")
    for method in ("Identify", "Offer", "Read", "Status"):
        assert door.call(worker, method, b"any") == b"any"
    upload = door.channel(worker).stream_unary("/t/Upload")
    assert upload(iter([b"a", b"b"]), timeout=WAIT_S) == b"ab"
    with pytest.raises(AccessDenied, match="open to nobody"):
        door.call(worker, "Unruled")


def test_a_rule_that_cannot_be_applied_lets_nobody_in(parties: Parties, door: Door) -> None:
    """A stream of requests names no dataset before the method runs; and a request may be no name at all."""
    client = parties.client()
    token = create_token(parties.folder, ["**"], [Verb.READ], time.time())
    (parties.folder / "c" / "token").write_text(token)
    for party in (client, Security(parties.folder / "w")):
        with pytest.raises(grpc.RpcError, match="/t/Misruled is open to nobody"):
            door.channel(party).stream_unary("/t/Misruled")(iter([b"imagenet"]), timeout=WAIT_S)
    with pytest.raises(ForebayError, match="INVALID_ARGUMENT: what came with /t/Read cannot be read"):
        door.call(client, "Read", b"\xff\xfe")
    assert door.methods.calls == []


def test_plain_text_lets_everybody_in() -> None:
    door = Door(None)
    try:
        assert door.call(Security(None), "Offer", b"x") == b"x"
    finally:
        door.close()


@pytest.mark.semantics("K6")
def test_messages_have_a_bound(parties: Parties, door: Door) -> None:
    worker = Security(parties.folder / "w")
    assert len(door.call(worker, "Echo", b"x" * (LIMITS.message_bytes - 100))) == LIMITS.message_bytes - 100
    with pytest.raises(ForebayError, match="RESOURCE_EXHAUSTED"):
        door.call(worker, "Echo", b"x" * (LIMITS.message_bytes + 1))


def test_what_a_worker_says_is_as_long_as_it_is(parties: Parties, door: Door) -> None:
    """The names of a directory are one message."""
    worker = Security(parties.folder / "w")
    assert len(door.call(worker, "Names", b"x" * 10_000)) == 1_000_000


@pytest.mark.semantics("K6")
def test_a_client_has_so_many_and_others_have_theirs() -> None:
    limit = ClientLimit("fills", 2)
    one, two = (Identity(Role.CLIENT, name, 0) for name in ("one", "two"))
    namesake = Identity(Role.WORKER, "one", 0)
    with limit.held(one), limit.held(one):
        for _ in range(3):
            with pytest.raises(LimitReached, match="client 'one' has 2 fills under way, which is the limit") as caught:
                limit.take(one)
            assert caught.value.TRANSIENT
        with limit.held(two), limit.held(namesake):
            assert limit.counts() == {"client one": 2, "client two": 1, "worker one": 1}
    with pytest.raises(ZeroDivisionError), limit.held(one):
        raise ZeroDivisionError
    assert limit.counts() == {}


def test_limits_hold_for_threads() -> None:
    limit = ClientLimit("streams", 5)
    who = Identity(Role.CLIENT, "c", 0)
    refused, together, most = [], [0], [0]
    lock = threading.Lock()

    def use(_: int) -> None:
        for _ in range(200):
            try:
                with limit.held(who):
                    _count(lock, together, most, 1)
                    _count(lock, together, most, -1)
            except LimitReached:
                refused.append(1)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(use, range(12)))
    assert most[0] <= 5
    assert limit.counts() == {}


def test_refusals_have_status_codes_for_programs_of_others(parties: Parties) -> None:
    worker = parties.worker()
    errors: dict[str, Callable[[], ForebayError]] = {
        "/t/denied": lambda: AccessDenied("no: not you"),
        "/t/limit": lambda: LimitReached("too many"),
    }

    class Raises(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def serve(_: bytes, context: grpc.ServicerContext) -> bytes:
                rpc.abort(context, errors[details.method]())

            return grpc.unary_unary_rpc_method_handler(serve)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Raises()])
    port = worker.bind(server, "127.0.0.1:0")
    server.start()
    channel = worker.open_channel(f"127.0.0.1:{port}")
    codes = {"/t/denied": grpc.StatusCode.PERMISSION_DENIED, "/t/limit": grpc.StatusCode.RESOURCE_EXHAUSTED}
    for method, code in codes.items():
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=WAIT_S)
        assert caught.value.code() is code
        expected, found = errors[method](), rpc.to_error(caught.value)
        assert (type(found), str(found)) == (type(expected), str(expected))
    channel.close()
    server.stop(0).wait(WAIT_S)


def _count(lock: threading.Lock, together: list[int], most: list[int], change: int) -> None:
    with lock:
        together[0] += change
        most[0] = max(most[0], together[0])
