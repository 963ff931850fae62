"""GETs by libcurl, against a server that does as it is told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import ForebayError, SourceDenied, SourceStale, SourceUnavailable
from forebay.cacheruntime.understore.base import ReadsMany
from forebay.cacheruntime.understore.curl import CurlClient, CurlSettings, Get
from forebay.cacheruntime.understore.factory import open_store

DATA = bytes(range(256)) * 8192  # 2 MiB
SECRET = "X-Amz-Signature=0123456789abcdef"
BRIEF = RetryConfig(first_delay_s=0.005, max_delay_s=0.01, deadline_s=0.3, probe_deadline_s=0.3)


class Server:
    """Serves DATA at every path, whole or in part."""

    def __init__(self) -> None:
        self.etag = '"e1"'
        self.statuses: list[int] = []
        """Each is given once instead of a range."""
        self.cut_at: int | None = None
        """The reply breaks off behind so many bytes."""
        self.ignores_ranges = False
        self.held: threading.Event | None = None
        """The second half of a reply waits for it."""
        self.refuses: Callable[[str, dict[str, str]], bool] = lambda path, head: False
        self.asked: list[str] = []
        self.connections = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def do_GET(self) -> None:
                head = {name.lower(): value for name, value in self.headers.items()}
                server.asked.append(self.path)
                status = server.statuses.pop(0) if server.statuses else 0
                if server.refuses(self.path, head):
                    status = 403
                if status:
                    self._send(status, b"<Error><Code>Told</Code></Error>")
                    return
                start, _, last = head["range"].removeprefix("bytes=").partition("-")
                end = min(int(last) + 1, len(DATA))
                if server.ignores_ranges:
                    self._send(200, DATA)
                else:
                    self._send(206, DATA[int(start) : end], f"bytes {start}-{end - 1}/{len(DATA)}")

            def _send(self, status: int, body: bytes, content_range: str = "") -> None:
                self.send_response(status)
                self.send_header("ETag", server.etag)
                self.send_header("Content-Length", str(len(body)))
                if content_range:
                    self.send_header("Content-Range", content_range)
                self.end_headers()
                half = len(body) // 2
                self.wfile.write(body[:half][: server.cut_at])
                if server.held is not None:
                    self.wfile.flush()
                    server.held.wait(20)
                self.wfile.write(body[half : server.cut_at])
                if server.cut_at is not None:
                    self.close_connection = True

            def log_message(self, *words: object) -> None:
                """Nothing."""

        class Http(ThreadingHTTPServer):
            request_queue_size = 128

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as server:
        yield server


@pytest.fixture
def client() -> Iterator[CurlClient]:
    client = CurlClient(CurlSettings(read_timeout_s=5))
    yield client
    client.close()


def get(server: Server, start: int = 0, length: int = len(DATA), version: str = '"e1"') -> Get:
    return Get(f"{server.url}/object?{SECRET}", start, length, version)


def read(client: CurlClient, wanted: Get) -> bytes:
    return b"".join(client.read(wanted, "'object'"))


@pytest.mark.parametrize(("start", "length"), [(0, len(DATA)), (0, 1), (1, 70_000), (len(DATA) - 3, 3)])
def test_ranges_have_their_bytes(server: Server, client: CurlClient, start: int, length: int) -> None:
    for version in ('"e1"', ""):
        assert read(client, get(server, start, length, version)) == DATA[start : start + length]


def test_one_after_the_other_on_one_connection(server: Server, client: CurlClient) -> None:
    for _ in range(5):
        assert read(client, get(server, 10, 20)) == DATA[10:30]
    assert server.connections == 1


def test_what_has_come_is_given_out_before_the_rest(server: Server, client: CurlClient) -> None:
    server.held = threading.Event()
    stream = client.read(get(server), "'object'")
    came = next(stream)
    server.held.set()
    assert came + b"".join(stream) == DATA


def _other_version(server: Server) -> None:
    server.etag = '"e2"'


def _shorter(server: Server) -> None:
    server.cut_at = 100_000


def _ignores(server: Server) -> None:
    server.ignores_ranges = True


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_other_version, SourceStale, "has changed"),
        (_shorter, SourceUnavailable, "broke"),
        (_ignores, SourceUnavailable, "more than what was asked for"),
        (lambda server: server.statuses.append(412), SourceStale, "HTTP 412 Told"),
        (lambda server: server.statuses.append(416), SourceStale, "HTTP 416"),
        (lambda server: server.statuses.append(404), SourceStale, "is gone"),
        (lambda server: server.statuses.append(403), SourceDenied, "access denied (HTTP 403 Told)"),
        (lambda server: server.statuses.append(503), SourceUnavailable, "HTTP 503"),
        (lambda server: server.statuses.append(429), SourceUnavailable, "HTTP 429"),
    ],
)
def test_what_goes_wrong_is_named(
    server: Server, client: CurlClient, change: Callable[[Server], None], error: type[ForebayError], words: str
) -> None:
    change(server)
    came: list[bytes] = []
    with pytest.raises(error) as caught:
        came.extend(client.read(get(server, 5, 900_000), "'object'"))
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert DATA[5:].startswith(b"".join(came))
    server.statuses, server.etag, server.cut_at, server.ignores_ranges = [], '"e1"', None, False
    assert read(client, get(server, 5, 1000)) == DATA[5:1005], "the next read is not spoilt"


def test_an_object_that_ends_before_the_range(server: Server, client: CurlClient) -> None:
    with pytest.raises(SourceStale):
        read(client, get(server, len(DATA) - 10, 20))


def test_nobody_listens(client: CurlClient) -> None:
    with Server().running() as gone:
        wanted = get(gone)
    with pytest.raises(SourceUnavailable, match="connection refused"):
        read(client, wanted)


def test_a_reader_that_leaves_early(server: Server, client: CurlClient) -> None:
    stream = client.read(get(server), "'object'")
    assert DATA.startswith(next(stream))
    stream.close()
    assert read(client, get(server, 0, 10)) == DATA[:10]


def _wait_all(files: object, count: int) -> dict[object, bytes | None]:
    found: dict[object, bytes | None] = {}
    while len(found) < count:
        for tag, pieces in files.wait(5):  # type: ignore[attr-defined]
            found[tag] = None if pieces is None else b"".join(pieces)
    return found


def test_many_whole_files_at_once(server: Server, client: CurlClient) -> None:
    def request(path: str, size: int, version: str) -> Get | None:
        if path == "unfit":
            return None
        if path == "unsigned":
            raise SourceDenied("no credentials")
        return Get(f"{server.url}/{path}", 0, size, version)

    files = client.whole_files(request)
    try:
        for number in range(40):
            files.start(f"f{number}", 1000 + number, '"e1"', number)
        files.start("stale", 10, '"e0"', "stale")
        files.start("longer", len(DATA) + 1, '"e1"', "longer")
        files.start("unfit", 10, '"e1"', "unfit")
        files.start("unsigned", 10, '"e1"', "unsigned")
        found = _wait_all(files, 44)
        for number in range(40):
            assert found[number] == DATA[: 1000 + number]
        assert [found[tag] for tag in ("stale", "longer", "unfit", "unsigned")] == [None] * 4
        made = server.connections
        for number in range(40):
            files.start(f"f{number}", 10, '"e1"', number)
        assert set(_wait_all(files, 40).values()) == {DATA[:10]}
        assert server.connections <= made, "connections are kept"
    finally:
        files.close()


def test_a_wait_is_ended_from_outside(client: CurlClient) -> None:
    files = client.whole_files(lambda path, size, version: None)
    try:
        files.wake()
        assert files.wait(60) == []
    finally:
        files.close()


S3 = {"region": "us-east-1", "access_key_id": "a", "secret_access_key": "b"}


def test_urls_are_signed_and_a_store_that_refuses_them_is_asked_otherwise(server: Server) -> None:
    store = open_store("s3://bucket", {**S3, "endpoint": server.url}, BRIEF)
    assert isinstance(store, ReadsMany)
    assert b"".join(store.read_range("ü +%/a b", 3, 10, '"e1"')) == DATA[3:13]
    assert server.asked[-1].startswith("/bucket/%C3%BC%20%2B%25/a%20b?X-Amz-Algorithm=AWS4-HMAC-SHA256")
    files = store.whole_files()
    assert files is not None
    files.close()
    server.refuses = lambda path, head: "X-Amz-Signature" in path
    assert b"".join(store.read_range("a", 3, 10, '"e1"')) == DATA[3:13]
    assert "?" not in server.asked[-1]
    assert store.whole_files() is None
    asked = len(server.asked)
    assert b"".join(store.read_range("a", 3, 10, '"e1"')) == DATA[3:13]
    assert len(server.asked) == asked + 1, "it is not tried again"
    store.close()


def test_anonymous_urls_carry_no_signature(server: Server) -> None:
    store = open_store("s3://bucket", {"region": "us-east-1", "anon": "true", "endpoint": server.url}, BRIEF)
    server.refuses = lambda path, head: "authorization" in head or "?" in path
    assert b"".join(store.read_range("d/a", 0, 10, '"e1"')) == DATA[:10]
    assert server.asked == ["/bucket/d/a"]
    store.close()
