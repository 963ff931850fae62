"""GETs by libcurl, against a server that does as it is told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import SourceDenied
from forebay.cacheruntime.understore.base import ReadsMany, WholeFiles
from forebay.cacheruntime.understore.curl import CurlSettings, CurlWholeFiles, Get
from forebay.cacheruntime.understore.factory import open_store

DATA = bytes(range(256)) * 8192  # 2 MiB
BRIEFLY = CurlSettings(read_timeout_s=5)
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


def _wait_all(files: object, count: int) -> dict[object, bytes | None]:
    found: dict[object, bytes | None] = {}
    while len(found) < count:
        for tag, pieces in files.wait(5):  # type: ignore[attr-defined]
            found[tag] = None if pieces is None else b"".join(pieces)
    return found


def test_many_whole_files_at_once(server: Server) -> None:
    def request(path: str, size: int, version: str) -> Get | None:
        if path == "unfit":
            return None
        if path == "unsigned":
            raise SourceDenied("no credentials")
        return Get(f"{server.url}/{path}", size, version)

    files = CurlWholeFiles(BRIEFLY, request, lambda: None)
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


def test_a_wait_is_ended_from_outside() -> None:
    files = CurlWholeFiles(BRIEFLY, lambda path, size, version: None, lambda: None)
    try:
        files.wake()
        assert files.wait(60) == []
    finally:
        files.close()


S3 = {"region": "us-east-1", "access_key_id": "a", "secret_access_key": "b"}


def _one(files: WholeFiles | None, path: str, size: int = 10) -> bytes | None:
    assert files is not None
    try:
        files.start(path, size, '"e1"', path)
        return _wait_all(files, 1)[path]
    finally:
        files.close()


@pytest.mark.parametrize("status", [404, 412, 429, 500, 503])
def test_what_fails_is_left_to_the_other_way(server: Server, status: int) -> None:
    server.statuses.append(status)
    store = open_store("s3://bucket", {**S3, "endpoint": server.url}, BRIEF)
    assert isinstance(store, ReadsMany)
    assert _one(store.whole_files(), "a") is None
    assert _one(store.whole_files(), "a") == DATA[:10]
    store.close()


@pytest.mark.parametrize("cut_at", [0, 3, 9])
def test_what_breaks_off_is_not_taken(server: Server, cut_at: int) -> None:
    server.cut_at = cut_at
    store = open_store("s3://bucket", {**S3, "endpoint": server.url}, BRIEF)
    assert isinstance(store, ReadsMany)
    assert _one(store.whole_files(), "a") is None
    store.close()


def test_a_whole_object_instead_of_a_range_is_not_taken(server: Server) -> None:
    server.ignores_ranges = True
    store = open_store("s3://bucket", {**S3, "endpoint": server.url}, BRIEF)
    assert isinstance(store, ReadsMany)
    assert _one(store.whole_files(), "a") is None
    assert _one(store.whole_files(), "a", len(DATA)) == DATA
    store.close()


def test_urls_are_signed_and_a_store_that_refuses_them_is_asked_otherwise(server: Server) -> None:
    store = open_store("s3://bucket", {**S3, "endpoint": server.url}, BRIEF)
    assert isinstance(store, ReadsMany)
    assert _one(store.whole_files(), "ü +%/a b") == DATA[:10]
    assert server.asked[-1].startswith("/bucket/%C3%BC%20%2B%25/a%20b?X-Amz-Algorithm=AWS4-HMAC-SHA256")
    server.refuses = lambda path, head: "X-Amz-Signature" in path
    assert _one(store.whole_files(), "a") is None
    assert store.whole_files() is None
    assert b"".join(store.read_range("a", 3, 10, '"e1"')) == DATA[3:13]
    store.close()


def test_anonymous_urls_carry_no_signature(server: Server) -> None:
    store = open_store("s3://bucket", {"region": "us-east-1", "anon": "true", "endpoint": server.url}, BRIEF)
    assert isinstance(store, ReadsMany)
    server.refuses = lambda path, head: "authorization" in head or "?" in path
    assert _one(store.whole_files(), "d/a") == DATA[:10]
    assert server.asked == ["/bucket/d/a"]
    store.close()
