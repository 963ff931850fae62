"""What single under-stores do beyond the contract: OSS, Azure, Google, HDFS, index pages, claims, folders on a NAS."""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from forebay.bench.listing import Entry as Listed
from forebay.bench.listing import page
from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import (
    SourceError,
    SourceNotFound,
    SourceStale,
    SourceTimeout,
    SourceUnavailable,
    UsageError,
)
from forebay.cacheruntime.understore.base import Kind
from forebay.cacheruntime.understore.credentials import resolve_options
from forebay.cacheruntime.understore.factory import canonical_source, open_store
from forebay.cacheruntime.understore.web import links_below
from tests.contract.conftest import QUICK_RETRY, Place
from tests.contract.fault_proxy import FaultProxy
from tests.contract.test_faults import PATIENT
from tests.contract.test_understore import assert_good_message, files, read, tree
from tests.contract.webhdfs_endpoint import WebHdfsEndpoint


class TestOss:
    def test_an_endpoint_is_needed(self) -> None:
        with pytest.raises(UsageError, match="endpoint=https://oss-cn-hangzhou") as caught:
            open_store("oss://bucket/p", {}, QUICK_RETRY)
        assert_good_message(caught.value, "oss://bucket/p")

    def test_endpoints_of_one_vendor_serve_the_same_bytes(self) -> None:
        inside = canonical_source("oss://b/p", {"endpoint": "https://oss-cn-hangzhou-internal.aliyuncs.com"})
        assert inside == canonical_source("oss://b/p", {"endpoint": "oss-cn-hangzhou.aliyuncs.com"}) == "oss://b/p"

    def test_half_a_pair_of_keys(self) -> None:
        with pytest.raises(UsageError, match="key and secret"):
            open_store("oss://b", {"endpoint": "http://127.0.0.1:1", "key": "k"}, QUICK_RETRY)

    def test_directory_markers(self, oss_place: Place) -> None:
        oss_place.put("empty/", b"")
        oss_place.put("full/", b"")
        oss_place.put("full/x", b"1")
        store = oss_place.open()
        kinds = {path: entry.kind for path, entry in tree(store).items()}
        assert kinds == {"empty": Kind.DIRECTORY, "full": Kind.DIRECTORY, "full/x": Kind.FILE}
        assert store.list_directory("empty") == []
        assert [entry.path for entry in store.list_directory("full")] == ["full/x"]

    def test_the_version_is_the_etag(self, oss_place: Place) -> None:
        oss_place.put("f", b"x")
        store = oss_place.open()
        assert files(store)["f"].version == store.stat("f").version == '"9DD4E461268C8034F5C8564E155C67A6"'

    @pytest.mark.parametrize("region", ["", "cn-hangzhou"])
    def test_both_signatures(self, oss_place: Place, region: str) -> None:
        oss_place.put("f", b"x")
        store = oss_place.open(**({"region": region} if region else {}))
        assert read(store, store.stat("f")) == b"x"

    def test_an_answer_that_is_not_oss(self, pages_place: Place) -> None:
        pages_place.put("f", b"x")
        options = {"endpoint": pages_place.source.removesuffix("/root"), "anon": "true"}
        store = pages_place.keep("oss://root", options)
        with pytest.raises(SourceError) as caught:
            store.probe()
        assert_good_message(caught.value, options["endpoint"])


class Pages(ThreadingHTTPServer):
    """Listings of a bucket in pages, by bench/listing.py: of Google's XML interface, whose emulator gives one page."""

    block_on_close = False

    def __init__(self, names: list[Listed]) -> None:
        super().__init__(("127.0.0.1", 0), PagesHandler)
        self.names = names
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class PagesHandler(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        data = page(lambda folder: self.server.names if folder == "root/" else (), "bucket", query).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class TestPagesOfListings:
    """A fault among the pages of a long listing costs that page alone."""

    def test_google(self, proxy: Callable[[str], FaultProxy]) -> None:
        server = Pages([Listed(f"{number:05}", 1, 1) for number in range(10_000)])
        between = proxy(f"http://127.0.0.1:{server.server_port}")
        store = open_store("gs://bucket/root", {"endpoint": between.url, "anon": "true"}, PATIENT)
        between.faults.extend(["", "", "503", "", "reset", "", "", "short"])
        pages = list(store.list_tree())
        server.stop()
        assert [entry.path for each in pages for entry in each] == [name.name for name in server.names]
        assert max(map(len, pages)) <= 1000
        assert not between.faults
        assert len(between.requests) <= 10 + 3 + 3

    @pytest.mark.slow
    @pytest.mark.parametrize(("kind", "names"), [("oss", 5000), ("az", 5005)])
    def test_others(self, request: pytest.FixtureRequest, kind: str, names: int) -> None:
        place: Place = request.getfixturevalue(f"{kind}_place")
        for number in range(names):
            place.put(f"{number:05}", b"")
        store = place.keep(place.source, place.options, PATIENT)
        assert place.proxy is not None
        place.proxy.faults.extend(["", "503", "reset", "", "short"])
        listed = [entry.path for each in store.list_tree() for entry in each]
        assert listed == [f"{number:05}" for number in range(names)]
        assert len(place.proxy.faults) < 3


class TestAzure:
    def test_a_listed_version_can_be_read(self, az_place: Place) -> None:
        """Listings give ETags without the quotes that If-Match needs."""
        az_place.put("f", b"0123")
        store = az_place.open()
        entry = files(store)["f"]
        assert entry.version.startswith('"')
        assert read(store, entry) == b"0123"


class TestHdfs:
    def test_without_the_native_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No stand-in: Arrow looks for libhdfs and Java, which this test takes out of its sight."""
        for name in ("JAVA_HOME", "HADOOP_HOME", "ARROW_LIBHDFS_DIR"):
            monkeypatch.setenv(name, "/nowhere")
        store = open_store("hdfs://namenode:8020/data", {}, RetryConfig(deadline_s=30, probe_deadline_s=30))
        with pytest.raises(UsageError, match="webhdfs://") as caught:
            store.probe()
        assert_good_message(caught.value, "hdfs://namenode:8020/data", "JAVA_HOME", "CLASSPATH")

    def test_a_name_node_that_is_not_active_may_become_so(
        self, webhdfs_place: Place, webhdfs_endpoint: WebHdfsEndpoint
    ) -> None:
        webhdfs_place.put("f", b"x")
        store = webhdfs_place.open()
        entry = files(store)["f"]
        webhdfs_endpoint.standby = True
        for ask in (store.probe, lambda: store.stat("f"), lambda: read(store, entry)):
            with pytest.raises(SourceTimeout) as caught:
                ask()
            assert isinstance(caught.value.__cause__, SourceUnavailable)
            assert_good_message(caught.value, "not active")
        webhdfs_endpoint.standby = False
        assert read(store, entry) == b"x"

    def test_the_user_is_no_part_of_the_content(self) -> None:
        assert canonical_source("webhdfs://ann@h:1/d", {}) == canonical_source("webhdfs://bob@h:1/d", {})


NGINX = """<html>\r\n<head><title>Index of /data/</title></head>\r\n<body>\r\n<h1>Index of /data/</h1><hr><pre>\
<a href="../">../</a>\r\n<a href="d%20e/">d e/</a>      27-Nov-2026 20:00       -\r\n\
<a href="a%25b%23c.bin">a%b#c.bin</a>      27-Nov-2026 20:00    1024\r\n\
<a href="%C3%BC">ü</a>      27-Nov-2026 20:00    1\r\n</pre><hr></body>\r\n</html>\r\n"""

APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><head><title>Index of /data</title></head>
<body><h1>Index of /data</h1><table><tr><th><a href="?C=N;O=D">Name</a></th>
<th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td><td>&nbsp;</td></tr>
<tr><td><a href="d%20e/">d e/</a></td><td align="right">2026-11-27 20:00</td></tr>
<tr><td><a href="a%25b%23c.bin">a%b#c.bin</a></td><td align="right">2026-11-27 20:00</td></tr>
<tr><td><a href="%c3%bc">ü</a></td><td align="right">2026-11-27 20:00</td></tr>
<tr><td><a href="x&amp;y">x&amp;y</a></td></tr></table></body></html>"""

ELSEWHERE = """<a href="http://other.example/data/z">z</a> <a href="//other.example/data/z">z</a> <a href="../up">up</a>
<a href="/data/../etc/passwd">p</a> <a href="sub/deep">d</a> <a href="#top">t</a> <a href="javascript:void(0)">j</a>
<a href="http://[bad">b</a> <a name="none">n</a> <A HREF='in'>i</A> <a class=x href=bare>b</a> <a href="in">i</a>"""


class TestPages:
    @pytest.mark.parametrize(
        ("page", "names"),
        [
            (NGINX, ["d e/", "a%b#c.bin", "ü"]),
            (APACHE, ["d e/", "a%b#c.bin", "ü", "x&y"]),
            (ELSEWHERE, ["in", "bare"]),
        ],
        ids=["nginx", "apache", "elsewhere"],
    )
    def test_links(self, page: str, names: list[str]) -> None:
        assert links_below("http://h/data/", page) == names

    def test_sizes_and_times_are_those_of_the_files(self, pages_place: Place, tmp_path: Path) -> None:
        pages_place.put("d/f", b"123")
        found = files(pages_place.open())["d/f"]
        assert (found.size, found.mtime_ns) == (3, (tmp_path / "root/d/f").stat().st_mtime_ns)

    def test_a_dead_link_is_no_file(self, pages_place: Place, tmp_path: Path) -> None:
        pages_place.put("f", b"1")
        (tmp_path / "root/dangling").symlink_to("/no/such")
        assert set(tree(pages_place.open())) == {"f"}


class TestFolders:
    @pytest.mark.parametrize(
        "path", ["../secret", "d/../../secret", "up/secret", "up/root/f", "d/.", ".", "..", "d//f", "/f", "f/", "f\0"]
    )
    def test_no_path_leads_out_of_the_folder(self, tmp_path: Path, path: str) -> None:
        """Not even by a link: what it points to is no part of the tree."""
        (tmp_path / "root/d").mkdir(parents=True)
        for place in ("secret", "root/f", "root/d/f"):
            (tmp_path / place).write_bytes(b"12345")
        (tmp_path / "root/up").symlink_to("..")
        store = open_store(str(tmp_path / "root"), {}, QUICK_RETRY)
        assert bytes(next(iter(store.read_range("d/f", 0, 5, "")))) == b"12345"
        with pytest.raises(SourceError):
            list(store.read_range(path, 0, 5, ""))
        with pytest.raises(SourceNotFound):
            store.stat(path)
        with pytest.raises(SourceNotFound):
            store.list_directory(path)


class TestClaims:
    def test_its_content_is_that_of_the_folder(self, tmp_path: Path) -> None:
        options = {"root": str(tmp_path)}
        assert canonical_source("pvc://claim/sub/", options) == canonical_source(f"{tmp_path}/claim/sub", {})

    def test_the_folder_comes_from_the_environment(self, tmp_path: Path) -> None:
        (tmp_path / "claim").mkdir()
        (tmp_path / "claim/f").write_bytes(b"1")
        found = resolve_options("pvc://claim", {}, {"FOREBAY_PVC_DIR": str(tmp_path)})
        store = open_store("pvc://claim", found, QUICK_RETRY)
        assert set(tree(store)) == {"f"}
        assert resolve_options("/data", {}, {"FOREBAY_PVC_DIR": str(tmp_path)}) == {}

    @pytest.mark.parametrize(
        ("source", "options", "words"),
        [
            ("pvc://claim", {}, "FOREBAY_PVC_DIR"),
            ("pvc://", {"root": "/m"}, "pvc://claim"),
            ("pvc://Claim", {"root": "/m"}, "pvc://claim"),
            ("pvc://../x", {"root": "/m"}, "pvc://claim"),
            ("pvc://claim/../../etc", {"root": "/m"}, "'..'"),
            ("pvc://claim", {"root": "/m", "endpoint": "x"}, "allowed: root"),
        ],
    )
    def test_bad_ones(self, source: str, options: dict[str, str], words: str) -> None:
        with pytest.raises(UsageError) as caught:
            open_store(source, options, QUICK_RETRY)
        assert_good_message(caught.value, words)

    def test_a_claim_that_is_not_there(self, pvc_place: Place) -> None:
        assert pvc_place.no_bucket is not None
        store = pvc_place.keep(*pvc_place.no_bucket)
        with pytest.raises(SourceNotFound) as caught:
            store.probe()
        assert_good_message(caught.value, "other-claim")


class TestNas:
    """Faults of network file systems, made where the system calls are."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], None]]:
        """Have a system call of the store fail some times."""
        from forebay.cacheruntime.understore import posix

        real, left = posix.os, {}
        proxy = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})

        def fail(call: str, number: int, times: int) -> None:
            left[call] = times

            def made(*args: Any, **kwargs: Any) -> Any:
                if left[call]:
                    left[call] -= 1
                    raise OSError(number, os.strerror(number))
                return getattr(real, call)(*args, **kwargs)

            setattr(proxy, call, made)

        monkeypatch.setattr(posix, "os", proxy)
        yield fail
        assert not any(left.values()), f"never came to {left}"

    @pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN])
    @pytest.mark.parametrize("call", ["pread", "open", "fstat"])
    def test_reads_try_again(
        self, posix_place: Place, failing: Callable[[str, int, int], None], call: str, number: int
    ) -> None:
        posix_place.put("f", b"0123456789")
        store = posix_place.open()
        entry = files(store)["f"]
        failing(call, number, 1)
        assert read(store, entry) == b"0123456789"

    @pytest.mark.parametrize("call", ["pread", "fstat", "open"])
    def test_a_file_replaced_on_its_server_is_stale(
        self, posix_place: Place, failing: Callable[[str, int, int], None], call: str
    ) -> None:
        posix_place.put("f", b"0123456789")
        store = posix_place.open()
        entry = files(store)["f"]
        failing(call, errno.ESTALE, 1)
        with pytest.raises(SourceStale) as caught:
            read(store, entry)
        assert_good_message(caught.value, "f")

    @pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
    def test_a_folder_that_fails_breaks_the_listing(
        self, posix_place: Place, failing: Callable[[str, int, int], None], number: int
    ) -> None:
        """Half a tree would look like deletions."""
        posix_place.put("d/f", b"1")
        store = posix_place.open()
        failing("scandir", number, 1)
        assert set(tree(store)) == {"d", "d/f"}  # nothing had been given out yet: it began anew

    def test_names_are_bytes(self, posix_place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        raw = [b"\xff\xfe", b"caf\xe9", b"new\nline", b"tab\t", "ü".encode()]
        for name in raw:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
        caplog.set_level(logging.WARNING)
        store = posix_place.open()
        listed = files(store)
        assert {os.fsencode(path) for path in listed} == set(raw)
        assert all(read(store, entry) == os.fsencode(path) for path, entry in listed.items())
        assert not caplog.records
