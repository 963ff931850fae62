"""Under-stores for the contract tests: each behind one `Place` that puts and removes files."""

import hashlib
import html
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.understore.base import UnderStore
from forebay.cacheruntime.understore.factory import open_store

QUICK_RETRY = RetryConfig(first_delay_s=0.005, max_delay_s=0.01, deadline_s=0.1, probe_deadline_s=0.05)


@dataclass
class Place:
    """Somewhere to put files, and the source that names it."""

    name: str
    source: str
    options: dict[str, str]
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    opened: list[UnderStore] = field(default_factory=list)

    def open(self, below: str = "", **options: str) -> UnderStore:
        """An under-store of it, or of what is below it; closed at the test's end."""
        store = open_store(self.source + (f"/{below}" if below else ""), {**self.options, **options}, QUICK_RETRY)
        self.opened.append(store)
        return store


@pytest.fixture
def s3_place(s3_endpoint: str, s3_client: Any) -> Iterator[Place]:
    """A fresh bucket, with a prefix."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    options = {"endpoint": s3_endpoint, "access_key_id": "AKTEST", "secret_access_key": "SKTEST-very-secret"}
    place = Place(
        "s3",
        f"s3://{bucket}/root",
        options,
        lambda path, data: s3_client.put_object(Bucket=bucket, Key=f"root/{path}", Body=data) and None,
        lambda path: s3_client.delete_object(Bucket=bucket, Key=f"root/{path}") and None,
    )
    yield place
    _close(place)


@pytest.fixture
def posix_place(tmp_path: Path) -> Iterator[Place]:
    """A folder."""

    def put(path: str, data: bytes) -> None:
        full = tmp_path / path
        full.parent.mkdir(parents=True, exist_ok=True)
        # As a careful writer does: a new file renamed over the old one.
        fresh = full.with_name(".new")
        fresh.write_bytes(data)
        os.replace(fresh, full)

    place = Place("posix", str(tmp_path), {}, put, lambda path: (tmp_path / path).unlink())
    yield place
    _close(place)


@pytest.fixture
def memory_place() -> Iterator[Place]:
    """fsspec's memory file system, for the generic store."""
    import fsspec

    root = f"/t{uuid.uuid4().hex[:12]}"
    fs = fsspec.filesystem("memory")
    place = Place(
        "memory",
        f"memory:/{root}",
        {},
        lambda path, data: fs.pipe_file(f"{root}/{path}", data),
        lambda path: fs.rm_file(f"{root}/{path}"),
    )
    yield place
    _close(place)
    if fs.exists(root):
        fs.rm(root, recursive=True)


class WebServer(ThreadingHTTPServer):
    """Files in memory over HTTP, with index pages; what it honours can be switched off."""

    daemon_threads = False
    block_on_close = False  # kept-alive connections of clients would hold up the end

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WebHandler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.conditions = True
        self.status = 0
        """Instead of the file, when not 0."""
        self.error_body = b""
        self.cut = 0
        """Break off this many bytes before the end of each body."""


class WebHandler(BaseHTTPRequestHandler):
    """HEAD and GET with Range and If-Match (RFC 9110)."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = unquote(urlsplit(self.path).path, errors="surrogateescape").lstrip("/")
        if self.server.status:
            return self._reply(self.server.status, self.server.error_body, body)
        if path in self.server.files:
            return self._file(self.server.files[path], body)
        below = path.rstrip("/") + "/"
        names = {
            f[len(below) :].split("/")[0] + "/" * ("/" in f[len(below) :])
            for f in self.server.files
            if f.startswith(below)
        }
        if not names:
            return self._reply(404, b"no", body)
        links = "".join(f'<a href="{html.escape(quote(n, errors="surrogateescape"))}">x</a>' for n in sorted(names))
        page = (
            f'<html><a href="../">up</a><a href="?C=N;O=D">Name</a><a href="http://example.com/z">z</a>{links}</html>'
        )
        return self._reply(200, page.encode(), body, ("Content-Type", "text/html"))

    def _file(self, data: bytes, body: bool) -> None:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = [("ETag", etag), ("Content-Type", "application/octet-stream")]
        wanted = self.headers.get("If-Match")
        if self.server.conditions and wanted not in (None, etag):
            return self._reply(412, b"", body)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match and self.server.ranges:
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            if first >= len(data):
                return self._reply(416, b"", body)
            headers.append(("Content-Range", f"bytes {first}-{last}/{len(data)}"))
            return self._reply(206, data[first : last + 1], body, *headers)
        return self._reply(200, data, body, *headers)

    def _reply(self, status: int, data: bytes, body: bool, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) - self.server.cut])
            if self.server.cut:
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    """An empty web server on loopback."""
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def http_place(web_server: WebServer) -> Iterator[Place]:
    """A folder of the web server."""
    files = web_server.files
    place = Place(
        "http",
        f"http://127.0.0.1:{web_server.server_port}/root",
        {},
        lambda path, data: files.__setitem__(f"root/{path}", data),
        lambda path: files.__delitem__(f"root/{path}"),
    )
    yield place
    _close(place)


@pytest.fixture(params=["s3", "posix", "memory", "http"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of under-store in turn."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def _close(place: Place) -> None:
    for store in place.opened:
        store.close()
