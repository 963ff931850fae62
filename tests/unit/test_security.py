"""Who may connect to whom: real handshakes over loopback, on both ports; files that change meanwhile."""

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import trio
import trio.testing
from cryptography import x509
from parties import Parties, Serve, now, raw_channel, raw_context

from forebay.cacheruntime.cluster import certs
from forebay.cacheruntime.cluster.certs import CA_CERT, CERT, KEY, SERVER_NAME, Role
from forebay.cacheruntime.cluster.security import ReloadingChannel, Security, token_of_call
from forebay.cacheruntime.errors import AccessDenied, ForebayError, UsageError

WAIT_S = 10.0
PATH = "/forebay.test/Who"


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties.create(tmp_path / "ca")


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends after a handshake over loopback and one byte each way (TLS 1.3 tells refused clients by their first
    read); what either end raises."""
    listening = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listening.getsockname(), WAIT_S)
    far, _ = listening.accept()
    listening.close()
    far.settimeout(WAIT_S)

    def serve() -> ssl.SSLSocket:
        with closed_on_error(far):
            secured = server.wrap_socket(far, server_side=True)
            with closed_on_error(secured):
                secured.sendall(secured.recv(1))
            return secured

    with ThreadPoolExecutor(1) as threads:
        serving = threads.submit(serve)
        with closed_on_error(near):
            try:
                secured = client.wrap_socket(near, server_hostname=SERVER_NAME)
                with closed_on_error(secured):
                    secured.sendall(b"x")
                    assert secured.recv(1) == b"x"
            except (OSError, AssertionError) as error:
                near.close()
                if (reason := serving.exception(WAIT_S)) is not None and not isinstance(reason, ConnectionError):
                    raise reason from error
                raise
        return serving.result(WAIT_S), secured


@contextmanager
def closed_on_error(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def contexts(server: Security, client: Security) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    serving, connecting = server.server_context(), client.client_context()
    assert serving is not None
    assert connecting is not None
    return serving, connecting


def connect(server: Security, client: Security) -> str:
    """Who the server takes the client for."""
    far, near = shake(*contexts(server, client))
    with far, near:
        assert far.version() == "TLSv1.3"
        assert client.identity_of_connection(near, "127.0.0.1").role is Role.WORKER
        return str(server.identity_of_connection(far, "127.0.0.1"))


# The data port


def test_parties_of_one_authority_know_one_another(parties: Parties) -> None:
    assert connect(parties.worker("a"), parties.worker("b")) == "worker 'b'"
    assert connect(parties.worker("a"), parties.client("c")) == "client 'c'"


def test_trio_streams_too(parties: Parties) -> None:
    worker, client = parties.worker(), parties.client()
    serving, connecting = contexts(worker, client)

    async def main() -> None:
        near, far = trio.testing.memory_stream_pair()
        client_end = trio.SSLStream(near, connecting, server_hostname=SERVER_NAME)
        worker_end = trio.SSLStream(far, serving, server_side=True)
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client_end.do_handshake)
                nursery.start_soon(worker_end.do_handshake)
        assert str(worker.identity_of_connection(worker_end, "m")) == "client 'c'"
        assert str(client.identity_of_connection(client_end, "m")) == "worker 'w'"

    trio.run(main)


def test_another_authority_is_not_believed(tmp_path: Path, parties: Parties) -> None:
    other = Parties.create(tmp_path / "other")
    mine, theirs = parties.worker(), other.worker()
    with pytest.raises(ssl.SSLError, match=r"alert unknown ca|unknown CA|certificate verify failed"):
        shake(*contexts(mine, theirs))
    # A stranger who has our ca.crt, which is no secret, but not our signature.
    stranger = raw_context(ssl.PROTOCOL_TLS_CLIENT, other.folder / "w", ca=parties.folder)
    serving, connecting = contexts(mine, mine)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(serving, stranger)
    with pytest.raises(ssl.SSLError):
        shake(raw_context(ssl.PROTOCOL_TLS_SERVER, other.folder / "w"), connecting)


def test_no_certificate_no_connection(parties: Parties) -> None:
    worker = parties.worker()
    serving = worker.server_context()
    assert serving is not None
    nobody = raw_context(ssl.PROTOCOL_TLS_CLIENT, parties.folder / "w", show=False)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(serving, nobody)
    with pytest.raises(AccessDenied, match=r"10\.0\.0\.9 has shown no certificate"):
        worker.identity_of_connection(None, "10.0.0.9")


def test_expired_certificates_are_refused_by_both_ends(parties: Parties) -> None:
    worker = parties.worker()
    serving, connecting = contexts(worker, worker)
    old = parties.issue("old", at=now() - timedelta(days=60), days=30)
    with pytest.raises(UsageError, match="has expired; see: forebay certs show"):
        Security(old)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        shake(serving, raw_context(ssl.PROTOCOL_TLS_CLIENT, old))
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.expired|certificate has expired"):
        shake(raw_context(ssl.PROTOCOL_TLS_SERVER, old), connecting)


@pytest.mark.semantics("K1")
def test_a_client_cannot_pass_for_a_worker(parties: Parties) -> None:
    connecting = parties.client("c").client_context()
    assert connecting is not None
    with pytest.raises(ssl.SSLError):
        shake(raw_context(ssl.PROTOCOL_TLS_SERVER, parties.folder / "c"), connecting)
    # Even where an authority of one's own allows clients to serve, they have not the name.
    names = [x509.UniformResourceIdentifier("spiffe://forebay/client/own"), x509.DNSName("node-1")]
    folder = parties.foreign("own", names)
    with pytest.raises(ssl.SSLError):
        shake(raw_context(ssl.PROTOCOL_TLS_SERVER, folder), connecting)


def test_tls_1_2_is_refused(parties: Parties) -> None:
    worker = parties.worker()
    old = raw_context(ssl.PROTOCOL_TLS_CLIENT, parties.folder / "w")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    serving = worker.server_context()
    assert serving is not None
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        shake(serving, old)


def test_a_certificate_without_a_role_is_nobody(parties: Parties) -> None:
    worker = parties.worker()
    folder = parties.foreign("own", [x509.DNSName(SERVER_NAME)])
    serving = worker.server_context()
    assert serving is not None
    far, near = shake(serving, raw_context(ssl.PROTOCOL_TLS_CLIENT, folder))
    with far, near, pytest.raises(AccessDenied, match="names no roles"):
        worker.identity_of_connection(far, "127.0.0.1")


# gRPC


@contextmanager
def serving(security: Security, serve: Callable[[bytes, grpc.ServicerContext], bytes]) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Serve(serve)])
    port = security.bind(server, "127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(WAIT_S)


def who(security: Security) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    return lambda _, context: str(security.identity_of_call(context)).encode()


def ask(channel: grpc.Channel) -> bytes:
    try:
        return bytes(channel.unary_unary(PATH)(b"", timeout=WAIT_S))
    finally:
        channel.close()


def test_grpc_knows_who_calls(parties: Parties) -> None:
    worker, client = parties.worker(), parties.client()
    with serving(worker, who(worker)) as port:
        assert ask(worker.open_channel(f"127.0.0.1:{port}")) == b"worker 'w'"
        assert ask(client.open_channel(f"localhost:{port}")) == b"client 'c'"


@pytest.mark.slow
@pytest.mark.semantics("K1")
def test_grpc_refuses_strangers(tmp_path: Path, parties: Parties) -> None:
    worker = parties.worker()
    other = Parties.create(tmp_path / "other")
    mixed = other.issue("mixed")
    (mixed / CA_CERT).write_bytes((parties.folder / CA_CERT).read_bytes())
    old = parties.issue("old", at=now() - timedelta(days=60), days=30)
    called = []

    def serve(_: bytes, context: grpc.ServicerContext) -> bytes:
        called.append(context.peer())
        return b""

    with serving(worker, serve) as port:
        target = f"127.0.0.1:{port}"
        strangers = {
            "another authority": other.worker().open_channel(target),
            "signed by another authority": raw_channel(port, mixed),
            "no certificate": raw_channel(port, parties.folder / "w", show=False),
            "expired": raw_channel(port, old),
            "plain text": Security(None).open_channel(target),
        }
        for name, channel in strangers.items():
            with pytest.raises(grpc.RpcError) as caught:
                ask(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, name
        assert not called
        assert ask(raw_channel(port, parties.folder / "w")) == b""
        assert called


@pytest.mark.slow
def test_grpc_clients_take_workers_only_for_workers(parties: Parties) -> None:
    client = parties.client()
    names = [x509.UniformResourceIdentifier("spiffe://forebay/client/own"), x509.DNSName("localhost")]
    for bundle in (parties.folder / "c", parties.foreign("own", names)):
        server = grpc.server(ThreadPoolExecutor(1), handlers=[Serve(lambda *_: b"")])
        pair = ((bundle / KEY).read_bytes(), (bundle / CERT).read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        with pytest.raises(grpc.RpcError) as caught:
            ask(client.open_channel(f"localhost:{port}"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.stop(0).wait(WAIT_S)


def test_a_clients_token_goes_along_and_is_read_anew(parties: Parties) -> None:
    worker, client = parties.worker(), parties.client()
    with serving(worker, lambda _, context: repr(token_of_call(context)).encode()) as port:
        channel = client.open_channel(f"127.0.0.1:{port}")
        method = channel.unary_unary(PATH)
        answers = [method(b"", timeout=WAIT_S)]
        for text in ("aa.bb.cc\n", "dd.ee.ff", "no\ntoken", "\x00"):
            (parties.folder / "c" / "token").write_text(text)
            answers.append(method(b"", timeout=WAIT_S))
        assert answers == [b"None", b"'aa.bb.cc'", b"'dd.ee.ff'", b"'dd.ee.ff'", b"'dd.ee.ff'"]
        channel.close()
        (parties.folder / "w" / "token").write_text("aa.bb.cc")
        assert ask(worker.open_channel(f"127.0.0.1:{port}")) == b"None", "workers need none"


def test_a_port_that_is_taken_is_one_line(parties: Parties) -> None:
    worker = parties.worker()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = grpc.server(ThreadPoolExecutor(1), options=(("grpc.so_reuseport", 0),))
        with pytest.raises(ForebayError, match="cannot listen on 127"):
            worker.bind(server, f"127.0.0.1:{taken.getsockname()[1]}")


# Files that change


@pytest.mark.slow
def test_new_connections_have_the_new_certificate(parties: Parties) -> None:
    worker, client = parties.worker(), parties.client()
    serving_before, _ = contexts(worker, client)
    assert worker.server_context() is serving_before, "made once"
    with serving(worker, who(worker)) as port:
        channel = ReloadingChannel(client, f"127.0.0.1:{port}")
        first = channel.get()
        assert channel.get() is first
        assert first.unary_unary(PATH)(b"", timeout=WAIT_S) == b"client 'c'"
        for name in ("again", "renamed"):
            parties.issue(name, Role.CLIENT, out=parties.folder / "c")
            assert channel.get() is not first
        assert channel.get().unary_unary(PATH)(b"", timeout=WAIT_S) == b"client 'renamed'"
        assert first.unary_unary(PATH)(b"", timeout=WAIT_S) == b"client 'c'", "calls under way go on"
        channel.close()
    parties.issue("w2", out=parties.folder / "w")
    assert worker.server_context() is not serving_before
    assert str(worker.me) == "worker 'w2'"
    assert connect(worker, client) == "client 'renamed'"
    assert (worker.generation, client.generation) == (1, 2)


@pytest.mark.slow
def test_an_authority_that_is_replaced_is_believed_no_more(tmp_path: Path, parties: Parties) -> None:
    worker = parties.worker()
    former = parties.folder / "former"
    parties.issue("former", out=former)
    other = Parties.create(tmp_path / "other")
    with serving(worker, who(worker)) as port:
        assert ask(raw_channel(port, former)) == b"worker 'former'"
        other.issue("w", out=parties.folder / "w")
        with pytest.raises(grpc.RpcError):
            ask(raw_channel(port, former))
        assert ask(raw_channel(port, parties.folder / "w")) == b"worker 'w'"
    serving_now, _ = contexts(worker, worker)
    with pytest.raises(ssl.SSLError):
        shake(serving_now, raw_context(ssl.PROTOCOL_TLS_CLIENT, former, ca=other.folder))


@pytest.mark.slow
@pytest.mark.semantics("K3")
@pytest.mark.parametrize("half", ["nothing", "cut", "other key", "other ca", "gone", "expired", "no role"])
def test_half_of_a_bundle_breaks_nothing(
    tmp_path: Path, parties: Parties, half: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker, client = parties.worker(), parties.client()
    other = Parties.create(tmp_path / "other")
    folder = parties.folder / "w"
    if half == "nothing":
        (folder / CERT).write_text("")
    elif half == "cut":
        text = (folder / CERT).read_text()
        (folder / CERT).write_text(text[: len(text) // 2])
    elif half == "other key":
        (folder / KEY).write_bytes((other.issue("x") / KEY).read_bytes())
    elif half == "other ca":
        (folder / CA_CERT).write_bytes((other.folder / CA_CERT).read_bytes())
    elif half == "gone":
        (folder / KEY).unlink()
    elif half == "expired":
        parties.issue("w", at=now() - timedelta(days=60), days=30)
    else:
        bare = parties.foreign("bare", [])
        for name in (CERT, KEY):
            (folder / name).write_bytes((bare / name).read_bytes())
    with serving(worker, who(worker)) as port:
        for _ in range(3):
            assert connect(worker, client) == "client 'c'"
            assert ask(client.open_channel(f"127.0.0.1:{port}")) == b"client 'c'"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "said once"
    assert "what was there before is used on" in warnings[0]
    with pytest.raises(UsageError):
        Security(folder)
    parties.issue("mended", out=folder)
    assert str(worker.me) == "worker 'mended'"


@pytest.mark.slow
@pytest.mark.semantics("K3")
def test_bundles_are_replaced_under_load(parties: Parties) -> None:
    """Callers on both ports while worker and client get another certificate every few milliseconds: nothing fails."""
    worker, client = parties.worker(), parties.client()
    done = threading.Event()
    calls = [0] * 4

    def over_grpc(number: int, port: int) -> None:
        channel = ReloadingChannel(client, f"127.0.0.1:{port}")
        while not done.is_set():
            assert channel.get().unary_unary(PATH)(b"", timeout=WAIT_S) == b"client 'c'"
            calls[number] += 1
        channel.close()

    def over_tls(number: int) -> None:
        while not done.is_set():
            assert connect(worker, client) == "client 'c'"
            calls[number] += 1

    with serving(worker, who(worker)) as port, ThreadPoolExecutor(4) as threads:
        running = [threads.submit(over_grpc, number, port) for number in (0, 1)]
        running += [threads.submit(over_tls, number) for number in (2, 3)]
        try:
            for _ in range(15):
                parties.issue("c", Role.CLIENT)
                certs.issue(parties.folder, parties.folder / "w", (Role.WORKER, "w"), now(), force=True)
                time.sleep(0.01)
                assert not any(each.done() for each in running)
        finally:
            done.set()
        for each in running:
            each.result(WAIT_S)
    assert min(calls) > 0
    assert worker.generation > 5
    assert client.generation > 5


def test_the_end_of_a_certificate_is_foreseen(parties: Parties, caplog: pytest.LogCaptureFixture) -> None:
    fresh = Security(parties.issue("fresh", days=30))
    left_s = fresh.expires_in_s()
    assert left_s is not None
    assert 30 * 86400 - 60 < left_s <= 30 * 86400
    assert fresh.server_context() is not None
    assert not caplog.records
    worn = Security(parties.issue("worn", at=now() - timedelta(days=28), days=30))
    for _ in range(3):
        worn.server_context()
    assert len(caplog.records) == 1, "once a day"
    assert "ends at" in caplog.text
    assert "nothing has to be restarted" in caplog.text


# Plain text


def test_plain_text_is_asked_for_by_name(tmp_path: Path) -> None:
    plain = Security.from_setting("insecure")
    assert plain.is_insecure
    assert plain.setting == "insecure"
    assert (plain.server_context(), plain.client_context(), plain.me, plain.expires_in_s()) == (None,) * 4
    for nothing in ("", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(UsageError, match=r"has no ca\.crt"):
            Security.from_setting(nothing)


@pytest.mark.semantics("K4")
def test_plain_text_listens_on_loopback_unless_a_host_is_named(parties: Parties) -> None:
    plain, worker = Security(None), parties.worker()
    assert Security.from_setting(worker.setting).me == worker.me
    assert plain.listen_address("7070") == ("127.0.0.1", 7070)
    assert plain.listen_address("0.0.0.0:7070") == ("0.0.0.0", 7070)
    assert worker.listen_address("7070") == ("0.0.0.0", 7070)
    assert worker.listen_address("[::1]:7070") == ("::1", 7070)


def test_plain_text_knows_addresses_only() -> None:
    plain = Security(None)
    assert plain.identity_of_connection(None, "10.0.0.7").name == "10.0.0.7"
    with serving(plain, who(plain)) as port:
        assert ask(plain.open_channel(f"127.0.0.1:{port}")) == b"worker '127.0.0.1'"


@pytest.mark.parametrize(
    ("host", "may"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("unix:/run/x", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("node-1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
    ],
)
@pytest.mark.semantics("K4")
def test_credentials_never_leave_this_machine_in_plain_text(parties: Parties, host: str, may: bool) -> None:
    assert Security(None).may_send_credentials(host) is may
    assert parties.worker().may_send_credentials(host)


def test_a_key_with_a_pass_phrase_does_not_ask_for_it(parties: Parties) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    folder = parties.issue("w")
    key = load_pem_private_key((folder / KEY).read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (folder / KEY).write_bytes(locked)
    with pytest.raises(UsageError, match="no private key in PEM without a pass phrase"):
        Security(folder)


@pytest.mark.slow
@pytest.mark.semantics("K3")
def test_an_authority_is_exchanged_in_three_rounds(tmp_path: Path, parties: Parties) -> None:
    """As in docs/how-to/secure-a-cluster.md, one bundle after the other: at no step is anybody refused."""
    other = Parties.create(tmp_path / "other")
    bundles = [parties.issue("w1"), parties.issue("w2")]
    former, fresh = ((each.folder / CA_CERT).read_bytes() for each in (parties, other))
    one, two = (Security(bundle) for bundle in bundles)

    def all_connect() -> None:
        for server, client in ((one, two), (two, one)):
            assert connect(server, client) == str(client.me)

    for bundle in bundles:
        (bundle / CA_CERT).write_bytes(former + fresh)
        all_connect()
    for bundle in bundles:
        made = other.issue(bundle.name)
        for name in (KEY, CERT):
            os.replace(made / name, bundle / name)
            all_connect()
    for bundle in bundles:
        (bundle / CA_CERT).write_bytes(fresh)
        all_connect()
    assert (one.generation, two.generation) == (3, 3)
    with pytest.raises(ssl.SSLError):
        connect(one, parties.worker("late"))


def test_no_session_outlives_an_authority(parties: Parties) -> None:
    """A resumed session would be believed without its certificate being looked at again."""
    serving, _ = contexts(parties.worker(), parties.worker())
    far, near = shake(serving, raw_context(ssl.PROTOCOL_TLS_CLIENT, parties.folder / "w"))
    with far, near:
        assert near.session is None or not near.session.has_ticket
