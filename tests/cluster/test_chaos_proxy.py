"""The proxy before the store does each fault, by rule, and counts right."""

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chaos import Chaos, Seen, gets, gets_per_block
from chaos_proxy import Rule
from source_tree import payload

BODY = payload("chaos", 200_000)


class _Endpoint(BaseHTTPRequestHandler):
    """Answers with BODY or a range of it; a path that ends in /1.0 or /chunked says how."""

    def do_GET(self) -> None:
        body, status = BODY, 200
        if span := self.headers["Range"]:
            start, end = map(int, span.removeprefix("bytes=").split("-"))
            body, status = BODY[start : end + 1], 206
        chunked = self.path.endswith("/chunked")
        self.protocol_version = "HTTP/1.0" if self.path.endswith("/1.0") else "HTTP/1.1"
        self.send_response(status)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))))
        self.end_headers()
        if self.command == "HEAD":
            return
        if chunked:
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:70_000], body[70_000:])) + b"0\r\n\r\n"
        self.wfile.write(body)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.send_response(200, self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found = Chaos(f"127.0.0.1:{server.server_port}", tmp_path_factory.mktemp("chaos"))
    yield found
    found.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def chaos(shared: Chaos) -> Chaos:
    shared.clear()
    return shared


@pytest.fixture
def client(chaos: Chaos) -> Iterator[http.client.HTTPConnection]:
    found = http.client.HTTPConnection(chaos.address, timeout=5)
    yield found
    found.close()


def _get(client: http.client.HTTPConnection, path: str = "/b/k", method: str = "GET", **headers: str) -> bytes:
    client.request(method, path, headers=headers)
    return client.getresponse().read()


def test_what_no_rule_befalls_passes(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    mark = chaos.mark()
    assert _get(client) == BODY
    kept = client.sock
    assert _get(client, Range="bytes=10-99") == BODY[10:100]
    assert _get(client, method="HEAD") == b""
    assert _get(client, "/b/1.0") == BODY
    assert _get(client, "/b/chunked") == BODY
    client.request("PUT", "/b/%20?x=1", body=b"said", headers={"Expect": "100-continue"})
    answer = client.getresponse()
    assert (answer.reason, answer.read()) == ("said", b"")
    assert client.sock is kept
    assert chaos.seen(mark) == [
        Seen("GET", "/b/k", "", 0, -1, 200, len(BODY), ()),
        Seen("GET", "/b/k", "", 10, 100, 206, 90, ()),
        Seen("HEAD", "/b/k", "", 0, -1, 200, 0, ()),
        Seen("GET", "/b/1.0", "", 0, -1, 200, len(BODY), ()),
        Seen("GET", "/b/chunked", "", 0, -1, 200, len(BODY), ()),
        Seen("PUT", "/b/ ", "x=1", 0, -1, 200, 0, ()),
    ]


def test_latency(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(latency_s=0.1))
    chaos.add(Rule(latency_s=0.1))
    begun = time.monotonic()
    assert _get(client) == BODY
    assert 0.2 <= time.monotonic() - begun < 10


def test_a_status_instead(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    number = chaos.add(Rule(instead="503", path="/b/k*", count=2))
    for path, wanted in (("/b/other", 200), ("/b/k", 503), ("/b/kk/k", 503), ("/b/k", 200)):
        client.request("GET", path)
        answer = client.getresponse()
        answer.read()
        assert (answer.status, path) == (wanted, path)
    assert chaos.remove(number) == 2
    assert [one.faults for one in chaos.seen()[-4:]] == [(), ("503",), ("503",), ()]


def test_a_reset(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(instead="reset"))
    with pytest.raises(ConnectionResetError):
        _get(client)


def test_silence(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(instead="silent"))
    client.timeout = 0.2
    with pytest.raises(TimeoutError):
        _get(client)


def test_half_a_body(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(body="half"))
    with pytest.raises(http.client.IncompleteRead) as cut:
        _get(client)
    assert cut.value.partial == BODY[: len(BODY) // 2]


def test_a_stall(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(body="stall"))
    client.timeout = 1
    client.request("GET", "/b/k")
    answer = client.getresponse()
    assert answer.read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    with pytest.raises(TimeoutError):
        answer.read()
    assert chaos.seen()[-1].sent == len(BODY) // 2


@pytest.mark.parametrize(("amount", "wanted"), [(-1, BODY[:-1]), (3, BODY + bytes(3)), (-len(BODY) - 1, b"")])
def test_a_wrong_length(client: http.client.HTTPConnection, chaos: Chaos, amount: int, wanted: bytes) -> None:
    chaos.add(Rule(body="length", amount=amount, count=1))
    assert _get(client) == wanted
    assert _get(client) == BODY


def test_a_flipped_bit(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(body="flip"))
    places = set()
    for _ in range(3):
        found = _get(client)
        (place,) = (n for n, (got, sent) in enumerate(zip(found, BODY, strict=True)) if got != sent)
        assert (found[place] ^ BODY[place]).bit_count() == 1
        places.add(place)
    assert len(places) == 3
    assert chaos.seen()[-1].faults == ("flip",)


def test_a_rate(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(rate=400_000))
    begun = time.monotonic()
    assert _get(client) == BODY
    assert 0.45 < time.monotonic() - begun < 10


def test_a_trickle_goes_byte_by_byte(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(rate=50))
    client.request("GET", "/b/k")
    answer = client.getresponse()
    begun = time.monotonic()
    assert answer.read(10) == BODY[:10]
    assert 0.1 < time.monotonic() - begun < 10


def test_bodies_that_are_not_there_have_no_fault(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    chaos.add(Rule(body="half", method="HEAD"))
    number = chaos.add(Rule(body="half", count=1))
    assert _get(client, method="HEAD") == b""
    with pytest.raises(http.client.IncompleteRead):
        _get(client)
    assert chaos.remove(number) == 1


def test_chance_has_a_seed(client: http.client.HTTPConnection, chaos: Chaos) -> None:
    def run(seed: int) -> list[int]:
        chaos.clear()
        chaos.add(Rule(instead="503", probability=0.3, seed=seed))
        found = []
        for _ in range(40):
            client.request("GET", "/b/k", headers={"Range": "bytes=0-0"})
            answer = client.getresponse()
            answer.read()
            found.append(answer.status)
        return found

    first = run(1)
    assert 3 < first.count(503) < 25
    assert run(1) == first
    assert run(2) != first


def test_rules_are_of_one_part() -> None:
    with pytest.raises(ValueError, match="give latency_s and instead, or body and rate"):
        Rule(latency_s=1, body="half")
    with pytest.raises(ValueError, match="give latency_s and instead, or body and rate"):
        Rule()


def test_gets_are_counted_by_block() -> None:
    seen = [
        Seen("GET", "/b/x", "", 0, 25, 206, 25, ()),
        Seen("GET", "/b/x", "", 20, 30, 206, 10, ()),
        Seen("GET", "/b/y", "", 0, -1, 200, 12, ()),
        Seen("GET", "/b/z", "", 0, -1, 503, 5, ("503",)),
        Seen("GET", "/b/", "list-type=2", 0, -1, 200, 9, ()),
        Seen("HEAD", "/b/x", "", 0, -1, 200, 0, ()),
        Seen("GET", "/other/x", "", 0, -1, 200, 1, ()),
    ]
    found = gets_per_block(gets(seen, "/b/"), 10, {"/b/y": 12})
    assert found == {
        ("/b/x", 0): 1, ("/b/x", 1): 1, ("/b/x", 2): 2, ("/b/y", 0): 1, ("/b/y", 1): 1, ("/b/z", 0): 1,
    }  # fmt: skip
