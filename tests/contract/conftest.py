"""Under-stores for the contract tests: each behind one `Place` that puts and removes files."""

import base64
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
from tests.contract.emulators import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    azure_make_container,
    gcs_make_bucket,
    gcs_put,
    gcs_remove,
    has_azurite,
    running_azurite,
    running_gcs,
)
from tests.contract.fault_proxy import FaultProxy
from tests.contract.oss_endpoint import ACCESS_KEY, OssEndpoint
from tests.contract.page_server import PageServer
from tests.contract.webhdfs_endpoint import USER, WebHdfsEndpoint

PLACES = ["s3", "oss", "gs", "az", "webhdfs", "hdfs", "posix", "pvc", "memory", "http", "pages"]
NETWORK_PLACES = ["s3", "oss", "gs", "az", "webhdfs", "pages"]

QUICK_RETRY = RetryConfig(first_delay_s=0.005, max_delay_s=0.01, deadline_s=0.1, probe_deadline_s=0.05)


@dataclass
class Place:
    """Somewhere to put files, and the source that names it."""

    name: str
    source: str
    options: dict[str, str]
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    ordered: bool = False
    """Its store promises the order of keys."""
    proxy: FaultProxy | None = None
    """Between it and its store, where they talk HTTP."""
    at: Callable[[str], tuple[str, dict[str, str]]] | None = None
    """Source and options of the same at another URL of a server."""
    refused: tuple[str, dict[str, str]] | None = None
    """Source and options with which its server refuses us."""
    no_bucket: tuple[str, dict[str, str]] | None = None
    """Source and options of a bucket that does not exist, where there are any."""
    many: int = 10_000
    """Names for the test of many; fewer where each costs a request."""
    opened: list[UnderStore] = field(default_factory=list)

    def open(self, below: str = "", **options: str) -> UnderStore:
        """An under-store of it, or of what is below it; closed at the test's end."""
        return self.keep(self.source + (f"/{below}" if below else ""), {**self.options, **options})

    def keep(self, source: str, options: dict[str, str], retry: RetryConfig = QUICK_RETRY) -> UnderStore:
        """An under-store of that; closed at the test's end."""
        store = open_store(source, options, retry)
        self.opened.append(store)
        return store


@pytest.fixture
def proxy() -> Iterator[Callable[[str], FaultProxy]]:
    """Makes proxies to servers."""
    made: list[FaultProxy] = []

    def make(upstream: str) -> FaultProxy:
        made.append(FaultProxy(upstream))
        return made[-1]

    yield make
    for each in made:
        each.stop()


Proxied = Callable[[str], FaultProxy]


@pytest.fixture
def s3_place(s3_endpoint: str, s3_client: Any, proxy: Proxied) -> Iterator[Place]:
    """A fresh bucket of moto, with a prefix."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    between = proxy(s3_endpoint)
    keys = {"access_key_id": "AKTEST", "secret_access_key": "SKTEST-very-secret"}
    place = Place(
        "s3",
        f"s3://{bucket}/root",
        {"endpoint": between.url, **keys},
        lambda path, data: s3_client.put_object(Bucket=bucket, Key=f"root/{path}", Body=data) and None,
        lambda path: s3_client.delete_object(Bucket=bucket, Key=f"root/{path}") and None,
        ordered=True,
        proxy=between,
        at=lambda url: (f"s3://{bucket}/root", {"endpoint": url, **keys}),
        no_bucket=("s3://no-such-bucket/p", {"endpoint": between.url, **keys}),
        many=1005,
    )
    yield place
    _close(place)


@pytest.fixture
def oss_place(proxy: Proxied) -> Iterator[Place]:
    """A bucket of our small OSS endpoint (`oss_endpoint.py`)."""
    endpoint = OssEndpoint()
    endpoint.buckets["bucket"] = {}
    between = proxy(endpoint.url)
    keys = {"key": ACCESS_KEY, "secret": "very-secret"}
    place = Place(
        "oss",
        "oss://bucket/root",
        {"endpoint": between.url, **keys},
        lambda path, data: endpoint.put("bucket", f"root/{path}", data),
        lambda path: endpoint.buckets["bucket"].pop(f"root/{path}") and None,
        ordered=True,
        proxy=between,
        at=lambda url: ("oss://bucket/root", {"endpoint": url, **keys}),
        refused=("oss://bucket/root", {"endpoint": between.url, "key": "WRONG", "secret": "very-secret"}),
        no_bucket=("oss://no-such-bucket/p", {"endpoint": between.url, **keys}),
    )
    yield place
    _close(place)
    endpoint.stop()


@pytest.fixture(scope="session")
def gcs_endpoint() -> Iterator[str]:
    """fake-gcs-server."""
    with running_gcs() as url:
        yield url


@pytest.fixture
def gs_place(gcs_endpoint: str, proxy: Proxied) -> Iterator[Place]:
    """A bucket of fake-gcs-server."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    gcs_make_bucket(gcs_endpoint, bucket)
    between = proxy(gcs_endpoint)
    place = Place(
        "gs",
        f"gs://{bucket}/root",
        {"endpoint": between.url, "anon": "true"},
        lambda path, data: gcs_put(gcs_endpoint, bucket, f"root/{path}", data),
        lambda path: gcs_remove(gcs_endpoint, bucket, f"root/{path}"),
        ordered=True,
        proxy=between,
        at=lambda url: (f"gs://{bucket}/root", {"endpoint": url, "anon": "true"}),
        many=1500,  # and no bucket that is missing: to list that, fake-gcs-server answers 500
    )
    yield place
    _close(place)


@pytest.fixture(scope="session")
def azure_endpoint() -> Iterator[str]:
    """Azurite."""
    if not has_azurite():
        pytest.skip("az:// is tested on Azurite; install it by `make .venv/.azurite` (needs npm)")
    with running_azurite() as url:
        yield url


@pytest.fixture
def az_place(azure_endpoint: str, proxy: Proxied) -> Iterator[Place]:
    """A container of Azurite."""
    import obstore
    from obstore.store import AzureStore

    container = f"c{uuid.uuid4().hex[:12]}"
    azure_make_container(azure_endpoint, container)
    between = proxy(azure_endpoint)
    direct = AzureStore(
        container,
        config={
            "account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY, "endpoint": f"{azure_endpoint}/{AZURE_ACCOUNT}",
        },
        client_options={"allow_http": True},
    )  # fmt: skip
    account = {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
    wrong = base64.b64encode(b"very-secret").decode()

    def at(url: str) -> tuple[str, dict[str, str]]:
        return f"az://{container}/root", {**account, "endpoint": f"{url}/{AZURE_ACCOUNT}"}

    place = Place(
        "az",
        *at(between.url),
        lambda path, data: obstore.put(direct, f"root/{path}", data) and None,
        lambda path: obstore.delete(direct, f"root/{path}"),
        ordered=True,
        proxy=between,
        at=at,
        refused=(f"az://{container}/root", {**at(between.url)[1], "account_key": wrong}),
        no_bucket=("az://no-such-container/p", at(between.url)[1]),
        many=5005,
    )
    yield place
    _close(place)


@pytest.fixture
def webhdfs_endpoint() -> Iterator[WebHdfsEndpoint]:
    """Our small name node and data node."""
    endpoint = WebHdfsEndpoint()
    yield endpoint
    endpoint.stop()


@pytest.fixture
def webhdfs_place(proxy: Proxied, webhdfs_endpoint: WebHdfsEndpoint) -> Iterator[Place]:
    """A folder of our small HDFS (`webhdfs_endpoint.py`)."""
    endpoint = webhdfs_endpoint
    between = proxy(endpoint.url)

    def at(url: str) -> tuple[str, dict[str, str]]:
        return f"webhdfs://{USER}@{url.removeprefix('http://')}/root", {}

    place = Place(
        "webhdfs",
        *at(between.url),
        lambda path, data: endpoint.put(f"/root/{path}", data),
        lambda path: endpoint.files.pop(f"/root/{path}") and None,
        proxy=between,
        at=at,
        refused=(f"webhdfs://mallory@{between.url.removeprefix('http://')}/root", {}),
    )
    yield place
    _close(place)


@pytest.fixture
def hdfs_place(tmp_path: Path) -> Iterator[Place]:
    """fsspec's HDFS file system with its driver replaced: Arrow's local one stands in for libhdfs, which needs Java."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper, HadoopFileSystem
    from fsspec.registry import _registry
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    class StandIn(HadoopFileSystem):  # type: ignore[misc]
        def __init__(self, host: str = "", port: int = 0, user: str = "", **kwargs: Any) -> None:
            ArrowFSWrapper.__init__(self, SubTreeFileSystem(str(tmp_path), LocalFileSystem()), **kwargs)

    fsspec.register_implementation("hdfs", StandIn, clobber=True)
    put, remove = _folder_writer(tmp_path / "root")
    place = Place("hdfs", "hdfs://namenode:8020/root", {}, put, remove)
    yield place
    _close(place)
    _registry.pop("hdfs", None)  # a name registered as a string would not take the place of a class
    fsspec.register_implementation("hdfs", "fsspec.implementations.arrow.HadoopFileSystem", clobber=True)


def _folder_writer(folder: Path) -> tuple[Callable[[str, bytes], None], Callable[[str], None]]:
    def put(path: str, data: bytes) -> None:
        full = folder / path
        full.parent.mkdir(parents=True, exist_ok=True)
        # As a careful writer does: a new file renamed over the old one.
        fresh = full.with_name(".new")
        fresh.write_bytes(data)
        os.replace(fresh, full)

    return put, lambda path: (folder / path).unlink()


@pytest.fixture
def pvc_place(tmp_path: Path) -> Iterator[Place]:
    """The folder of a claim."""
    put, remove = _folder_writer(tmp_path / "pvcs/train-data/sub")
    place = Place(
        "pvc", "pvc://train-data/sub", {"root": str(tmp_path / "pvcs")}, put, remove,
        no_bucket=("pvc://other-claim", {"root": str(tmp_path / "pvcs")}),
    )  # fmt: skip
    yield place
    _close(place)


@pytest.fixture
def pages_place(tmp_path: Path, proxy: Proxied) -> Iterator[Place]:
    """The index pages of Python's http.server."""
    server = PageServer(tmp_path)
    between = proxy(server.url)
    place = Place(
        "pages",
        f"{between.url}/root",
        {},
        lambda path, data: server.put(f"root/{path}", data),
        lambda path: (tmp_path / "root" / path).unlink(),
        proxy=between,
        at=lambda url: (f"{url}/root", {}),
        many=1500,
    )
    yield place
    _close(place)
    server.stop()


@pytest.fixture
def posix_place(tmp_path: Path) -> Iterator[Place]:
    """A folder."""
    put, remove = _folder_writer(tmp_path)
    place = Place("posix", str(tmp_path), {}, put, remove)
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
        cut = self.server.cut  # once: a test changes it as soon as the first bytes are there
        if body:
            self.wfile.write(data[: len(data) - cut])
            if cut:
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


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of under-store in turn."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture(params=NETWORK_PLACES)
def network_place(request: pytest.FixtureRequest) -> Place:
    """Each kind that is reached by HTTP, in turn."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def _close(place: Place) -> None:
    for store in place.opened:
        store.close()
