"""What every under-store promises (`forebay.cacheruntime.understore.base`), and what each does beyond that."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import (
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceStale,
    SourceTimeout,
    SourceUnavailable,
    UsageError,
)
from forebay.cacheruntime.understore.aws import credential_provider, make_session
from forebay.cacheruntime.understore.base import Entry, Kind, UnderStore
from forebay.cacheruntime.understore.factory import canonical_source, open_store
from tests.contract.conftest import QUICK_RETRY, Place, WebServer

ODD_NAMES = [
    "a b",
    "ü-ñ-日本",
    "x#y",
    "a%b",
    "p%20q",
    "a?b",
    "a+b",
    "q'\"z",
    "n" * 255,
    "back\\slash",
    "s*[]{}",
    "&=;,@:~",
]


def tree(store: UnderStore) -> dict[str, Entry]:
    """All entries by path; a path listed twice fails."""
    entries = [entry for page in store.list_tree() for entry in page]
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}


def files(store: UnderStore) -> dict[str, Entry]:
    return {path: entry for path, entry in tree(store).items() if entry.kind is Kind.FILE}


def read(store: UnderStore, entry: Entry, start: int = 0, length: int | None = None) -> bytes:
    wanted = entry.size - start if length is None else length
    return b"".join(bytes(piece) for piece in store.read_range(entry.path, start, wanted, entry.version))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_good_message(error: BaseException, *named: str) -> None:
    """One line, no dump, no secret, and it names the things."""
    text = str(error)
    assert "\n" not in text
    assert "<?xml" not in text
    assert "Debug source" not in text
    assert "very-secret" not in text
    for thing in named:
        assert thing in text, text


class TestEveryStore:
    """The contract, over all of them."""

    def test_url_is_that_of_the_factory(self, place: Place) -> None:
        assert place.open().url == canonical_source(place.source, place.options)

    def test_lists_what_was_put(self, place: Place) -> None:
        wanted = {"one": b"1", "d/two": b"22", "d/e/f/three": b"333", "zero": b""}
        for path, data in wanted.items():
            place.put(path, data)
        store = place.open()
        store.probe()
        assert {path: entry.size for path, entry in files(store).items()} == {p: len(d) for p, d in wanted.items()}

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names_are_listed_and_read(self, place: Place, name: str) -> None:
        if place.name == "az" and "\\" in name:
            pytest.skip("to Azure a backslash is a slash")
        place.put(f"dir/{name}", b"0123456789")
        place.put(f"sub/{name}/x", b"y")
        store = place.open()
        listed = files(store)
        assert set(listed) == {f"dir/{name}", f"sub/{name}/x"}
        assert read(store, listed[f"dir/{name}"], 2, 5) == b"23456"
        assert store.stat(f"dir/{name}") == listed[f"dir/{name}"]
        assert [entry.path for entry in store.list_directory(f"sub/{name}")] == [f"sub/{name}/x"]

    def test_the_order_of_keys_where_it_is_promised(self, place: Place) -> None:
        beyond_16_bits = "\U00010000" if place.name != "az" else "\ue001"  # Azurite's order is UTF-16's
        for path in ("a/b", "a-b", "a0", "a/b-c", "a/c/d", "a.b/c", "\ue000", beyond_16_bits, "Z"):
            place.put(path, b"1")
        store = place.open()
        paths = [entry.path for page in store.list_tree() for entry in page if entry.kind is Kind.FILE]
        assert store.lists_in_key_order == place.ordered
        if store.lists_in_key_order:
            assert paths == sorted(paths, key=os.fsencode)

    def test_ranges(self, place: Place) -> None:
        data = os.urandom(300_000)
        place.put("f", data)
        store = place.open()
        entry = files(store)["f"]
        for start, length in [(0, 1), (0, 300_000), (299_999, 1), (100_000, 150_001), (123, 0), (300_000, 0)]:
            assert read(store, entry, start, length) == data[start : start + length]

    def test_zero_bytes(self, place: Place) -> None:
        place.put("z", b"")
        store = place.open()
        entry = files(store)["z"]
        assert entry.size == 0
        assert read(store, entry) == b""

    def test_replaced_file_is_stale(self, place: Place) -> None:
        place.put("f", b"old bytes")
        store = place.open()
        entry = files(store)["f"]
        place.put("f", b"new bytes")
        with pytest.raises(SourceStale) as caught:
            read(store, entry)
        assert_good_message(caught.value, "f")
        assert store.stat("f").version != entry.version

    def test_shrunk_file_is_stale(self, place: Place) -> None:
        place.put("f", b"0123456789")
        store = place.open()
        entry = files(store)["f"]
        place.put("f", b"0")
        with pytest.raises(SourceStale):
            read(store, entry, 5, 5)

    def test_range_beyond_the_end_is_stale(self, place: Place) -> None:
        place.put("f", b"0123456789")
        store = place.open()
        entry = files(store)["f"]
        for start, length in [(5, 10), (10, 1), (50, 5)]:
            with pytest.raises(SourceStale):
                read(store, entry, start, length)

    def test_removed_file_is_stale_to_read_and_not_found_to_stat(self, place: Place) -> None:
        place.put("f", b"x")
        place.put("g", b"x")
        store = place.open()
        entry = files(store)["f"]
        place.remove("f")
        with pytest.raises(SourceStale):
            read(store, entry)
        with pytest.raises(SourceNotFound) as caught:
            store.stat("f")
        assert_good_message(caught.value, "f")

    def test_missing_root_is_not_found(self, place: Place) -> None:
        place.put("f", b"x")
        store = place.open("no/such")
        for ask in (store.probe, lambda: list(store.list_tree())):
            with pytest.raises(SourceNotFound) as caught:
                ask()
            assert_good_message(caught.value, "no/such")

    def test_root_that_is_a_file(self, place: Place) -> None:
        place.put("d/file.bin", b"0123456789")
        store = place.open("d/file.bin")
        store.probe()
        listed = tree(store)
        assert list(listed) == ["file.bin"]
        assert listed["file.bin"].size == 10
        # Another instance, as after a restart, that has listed nothing.
        again = place.open("d/file.bin")
        assert read(again, listed["file.bin"], 3, 4) == b"3456"
        assert again.stat("file.bin") == listed["file.bin"]
        assert again.list_directory("") == [listed["file.bin"]]

    def test_list_directory(self, place: Place) -> None:
        for path in ("top", "d/a", "d/b", "d/sub/deep/x", "dd/no"):
            place.put(path, b"12")
        store = place.open()
        assert {(e.path, e.kind) for e in store.list_directory("")} == {
            ("top", Kind.FILE), ("d", Kind.DIRECTORY), ("dd", Kind.DIRECTORY),
        }  # fmt: skip
        found = {e.path: e for e in store.list_directory("d")}
        assert {path: e.kind for path, e in found.items()} == {
            "d/a": Kind.FILE, "d/b": Kind.FILE, "d/sub": Kind.DIRECTORY,
        }  # fmt: skip
        assert found["d/a"] == store.stat("d/a")
        with pytest.raises(SourceNotFound):
            store.list_directory("nothing")

    def test_unchanged_file_keeps_its_version(self, place: Place) -> None:
        place.put("f", b"x")
        first = files(place.open())["f"]
        assert first.version
        assert files(place.open())["f"] == first

    def test_iterator_left_early(self, place: Place) -> None:
        place.put("f", bytes(3 << 20))
        store = place.open()
        pieces = store.read_range("f", 0, 3 << 20, files(store)["f"].version)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert read(store, store.stat("f"), 0, 4) == bytes(4)

    def test_close_twice(self, place: Place) -> None:
        store = place.open()
        store.close()
        store.close()


class TestS3:
    """Beyond the contract."""

    def test_keys_that_obstore_cannot_name(self, s3_place: Place) -> None:
        odd = ["a//b", "a/./b", "a/../b", "/lead", "c\x01d"]
        for key in odd:
            s3_place.put(key, b"0123456789")
        store = s3_place.open()
        listed = files(store)
        assert set(listed) == set(odd)
        for key in odd:
            assert read(store, listed[key], 2, 3) == b"234"
            with pytest.raises(SourceStale):
                list(store.read_range(key, 8, 9, listed[key].version))
            with pytest.raises(SourceStale):
                list(store.read_range(key, 0, 9, '"other"'))

    def test_directory_markers(self, s3_place: Place, s3_client: Any) -> None:
        bucket = s3_place.source.split("/")[2]
        s3_client.put_object(Bucket=bucket, Key="root/", Body=b"")
        s3_place.put("empty/", b"")
        s3_place.put("full/", b"")
        s3_place.put("full/x", b"1")
        store = s3_place.open()
        kinds = {path: entry.kind for path, entry in tree(store).items()}
        assert kinds == {"empty": Kind.DIRECTORY, "full": Kind.DIRECTORY, "full/x": Kind.FILE}
        assert store.list_directory("empty") == []
        assert [entry.path for entry in store.list_directory("full")] == ["full/x"]

    @pytest.mark.slow
    def test_more_keys_than_a_page(self, s3_place: Place) -> None:
        from moto.s3.models import s3_backends

        backend = s3_backends["123456789012"]["aws"]  # over HTTP a thousand puts take eight seconds
        for number in range(1005):
            backend.put_object(s3_place.source.split("/")[2], f"root/{number:04}", b"")
        pages = list(s3_place.open().list_tree())
        assert len(pages) == 2
        assert sum(map(len, pages)) == 1005

    def test_directory_buckets_promise_no_order(self, s3_place: Place) -> None:
        assert not open_store("s3://name--usw2-az1--x-s3", s3_place.options, QUICK_RETRY).lists_in_key_order

    def test_prefix_ends_at_a_slash(self, s3_place: Place) -> None:
        s3_place.put("pre/x", b"1")
        s3_place.put("prefix/y", b"1")
        assert set(tree(s3_place.open("pre"))) == {"x"}

    def test_etag_keeps_its_quotes(self, s3_place: Place) -> None:
        s3_place.put("f", b"x")
        assert s3_place.open().stat("f").version == '"9dd4e461268c8034f5c8564e155c67a6"'

    def test_missing_bucket(self, s3_place: Place) -> None:
        store = open_store("s3://no-such-bucket/p", s3_place.options, QUICK_RETRY)
        with pytest.raises(SourceNotFound) as caught:
            store.probe()
        assert_good_message(caught.value, "no-such-bucket", s3_place.options["endpoint"])
        with pytest.raises(SourceNotFound):
            next(store.read_range("x", 0, 1, ""))
        store.close()

    def test_closed_port(self) -> None:
        endpoint = f"http://127.0.0.1:{closed_port()}"
        options = {"endpoint": endpoint, "access_key_id": "AK", "secret_access_key": "very-secret"}
        store = open_store("s3://bucket/p", options, QUICK_RETRY)
        for ask in (store.probe, lambda: list(store.list_tree()), lambda: list(store.read_range("x", 0, 1, '"e"'))):
            began = time.monotonic()
            with pytest.raises(SourceTimeout) as caught:
                ask()
            assert_good_message(caught.value, endpoint)
            assert isinstance(caught.value.__cause__, SourceUnavailable)
            assert time.monotonic() - began < 2
        store.close()

    @pytest.mark.parametrize(
        ("status", "code", "wanted"),
        [
            (403, "AccessDenied", SourceDenied),
            (403, "InvalidAccessKeyId", SourceDenied),
            (403, "SignatureDoesNotMatch", SourceDenied),
            (403, "InvalidObjectState", SourceDenied),
            (400, "ExpiredToken", SourceDenied),
            (503, "SlowDown", SourceTimeout),
            (500, "InternalError", SourceTimeout),
            (429, "TooManyRequests", SourceTimeout),
        ],
    )
    def test_replies_have_their_classes(
        self, web_server: WebServer, status: int, code: str, wanted: type[SourceError]
    ) -> None:
        web_server.status = status
        web_server.error_body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
        endpoint = f"http://127.0.0.1:{web_server.server_port}"
        options = {"endpoint": endpoint, "access_key_id": "AK", "secret_access_key": "very-secret"}
        store = open_store("s3://bucket/p", options, QUICK_RETRY)
        for ask in (store.probe, lambda: list(store.list_tree()), lambda: list(store.read_range("x", 0, 1, '"e"'))):
            with pytest.raises(wanted) as caught:
                ask()
            assert_good_message(caught.value, endpoint, code)
        store.close()

    def test_broken_off_body_is_unavailable(self, web_server: WebServer) -> None:
        web_server.files["bucket/p/f"] = bytes(100_000)
        web_server.files["bucket/p/\x01"] = bytes(100_000)
        web_server.cut = 10
        options = {"endpoint": f"http://127.0.0.1:{web_server.server_port}", "anon": "true"}
        store = open_store("s3://bucket/p", options, RetryConfig(deadline_s=0.0))
        for name in ("f", "\x01"):
            with pytest.raises(SourceTimeout) as caught:
                list(store.read_range(name, 0, 100_000, ""))
            assert isinstance(caught.value.__cause__, SourceUnavailable)
            assert_good_message(caught.value)
        store.close()

    def test_silent_server_times_out(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            options = {"endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}", "anon": "true", "timeout": "0.05"}
            store = open_store("s3://bucket/p", options, QUICK_RETRY)
            for ask in (store.probe, lambda: list(store.read_range("x", 0, 1, '"e"'))):
                with pytest.raises(SourceTimeout) as caught:
                    ask()
                assert_good_message(caught.value, options["endpoint"])
            store.close()

    def test_no_credentials(self, s3_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Credentials in the worker's own environment belong to whoever started it.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEONE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        nowhere = str(tmp_path / "none")
        options = {"endpoint": s3_place.options["endpoint"], "imds": "false", "config_file": nowhere,
                   "credentials_file": nowhere}  # fmt: skip
        store = open_store(s3_place.source, options, QUICK_RETRY)
        for ask in (store.probe, lambda: list(store.read_range("x", 0, 1, '"e"'))):
            with pytest.raises(SourceDenied) as caught:
                ask()
            assert_good_message(caught.value, "anon=true")
        store.close()

    def test_profile_from_files(self, s3_place: Place, tmp_path: Path) -> None:
        s3_place.put("f", b"xyz")
        (tmp_path / "config").write_text("[profile lab]\nregion = us-east-1\n")
        (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AK\naws_secret_access_key = SK\n")
        options = {"endpoint": s3_place.options["endpoint"], "profile": "lab", "config_file": str(tmp_path / "config"),
                   "credentials_file": str(tmp_path / "credentials")}  # fmt: skip
        store = open_store(s3_place.source, options, QUICK_RETRY)
        assert read(store, store.stat("f")) == b"xyz"
        store.close()
        missing = open_store(s3_place.source, {**options, "profile": "nobody"}, QUICK_RETRY)
        with pytest.raises(UsageError, match="nobody"):
            missing.probe()

    @pytest.mark.parametrize("kind", ["container", "web identity"])
    def test_credentials_of_a_pod(
        self, web_server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """The chain finds what the options say, and not what the worker's own environment says."""
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/never")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/never")
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/never")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NEVER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "NEVER")
        here = f"http://127.0.0.1:{web_server.server_port}"
        nowhere = str(tmp_path / "none")
        options = {"imds": "false", "config_file": nowhere, "credentials_file": nowhere, "region": "us-east-1"}
        if kind == "container":
            web_server.files["creds"] = (
                b'{"AccessKeyId":"POD","SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}'
            )
            options["container_credentials_full_uri"] = f"{here}/creds"
        else:
            (tmp_path / "token").write_text("jwt")
            options |= {"web_identity_token_file": str(tmp_path / "token"), "role_arn": "arn:aws:iam::1:role/pod"}
        session = make_session(options)
        found = session.get_credentials()
        if kind == "container":
            assert credential_provider(session, "bucket")()["access_key_id"] == "POD"
        else:
            # Not fetched: that would ask AWS.
            assert found.method == "assume-role-with-web-identity"

    def test_anonymous(self, s3_place: Place, s3_client: Any) -> None:
        bucket = s3_place.source.split("/")[2]
        s3_client.put_object(Bucket=bucket, Key="root/f", Body=b"xyz", ACL="public-read")
        store = open_store(s3_place.source, {"endpoint": s3_place.options["endpoint"], "anon": "true"}, QUICK_RETRY)
        assert read(store, files(store)["f"]) == b"xyz"
        store.close()

    def test_an_answer_that_is_not_s3(self, web_server: WebServer) -> None:
        web_server.files["bucket/x"] = b""
        options = {"endpoint": f"http://127.0.0.1:{web_server.server_port}", "anon": "true"}
        store = open_store("s3://bucket", options, QUICK_RETRY)
        with pytest.raises(SourceNotFound, match="does not answer like S3") as caught:
            store.probe()
        assert_good_message(caught.value, options["endpoint"])
        store.close()


class TestPosix:
    """Beyond the contract."""

    def test_links_modes_and_special_files(self, posix_place: Place, tmp_path: Path) -> None:
        posix_place.put("real", b"123")
        (tmp_path / "real").chmod(0o640)
        (tmp_path / "to-real").symlink_to("real")
        (tmp_path / "dangling").symlink_to("/no/such/place")
        (tmp_path / "loop").symlink_to(".")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "empty").mkdir()
        listed = tree(posix_place.open())
        assert set(listed) == {"real", "to-real", "dangling", "loop", "empty"}
        assert listed["real"].mode == 0o640
        assert listed["dangling"].target == "/no/such/place"
        assert listed["loop"].kind is Kind.SYMLINK
        assert listed["to-real"].size == 4
        assert listed["empty"].kind is Kind.DIRECTORY

    def test_root_that_is_a_link(self, posix_place: Place, tmp_path: Path) -> None:
        posix_place.put("d/f", b"123")
        (tmp_path / "link").symlink_to("d")
        assert set(tree(posix_place.open("link"))) == {"f"}

    def test_names_that_are_not_utf8(self, posix_place: Place, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_bytes(b"12")
        store = posix_place.open()
        entry = files(store)["\udcff\udcfe"]
        assert read(store, entry) == b"12"

    def test_change_in_place_with_time_put_back(self, posix_place: Place, tmp_path: Path) -> None:
        posix_place.put("f", b"old")
        store = posix_place.open()
        entry = files(store)["f"]
        (tmp_path / "f").write_bytes(b"new")
        os.utime(tmp_path / "f", ns=(entry.mtime_ns, entry.mtime_ns))
        with pytest.raises(SourceStale):
            read(store, entry)

    def test_change_while_reading(self, posix_place: Place, tmp_path: Path) -> None:
        posix_place.put("f", bytes(3 << 20))
        store = posix_place.open()
        pieces = store.read_range("f", 0, 3 << 20, files(store)["f"].version)
        next(pieces)
        with open(tmp_path / "f", "r+b") as file:
            file.write(b"x")
        with pytest.raises(SourceStale):
            list(pieces)

    def test_file_that_became_a_link_or_a_folder(self, posix_place: Place, tmp_path: Path) -> None:
        posix_place.put("f", b"123")
        posix_place.put("g", b"123")
        store = posix_place.open()
        entry = files(store)["f"]
        (tmp_path / "f").unlink()
        (tmp_path / "f").symlink_to("g")
        with pytest.raises(SourceStale):
            read(store, entry)
        (tmp_path / "f").unlink()
        (tmp_path / "f").mkdir()
        with pytest.raises(SourceStale):
            read(store, entry)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_folder_is_left_out(
        self, posix_place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        posix_place.put("d/f", b"1")
        posix_place.put("g", b"1")
        (tmp_path / "d").chmod(0)
        assert set(tree(posix_place.open())) == {"d", "g"}
        assert "left out of the listing" in caplog.text
        (tmp_path / "d").chmod(0o700)


class TestHttp:
    """Beyond the contract."""

    def test_server_without_ranges_and_conditions(self, http_place: Place, web_server: WebServer) -> None:
        data = os.urandom(3 << 20)
        http_place.put("f", data)
        store = http_place.open()
        entry = files(store)["f"]
        web_server.ranges = web_server.conditions = False
        assert read(store, entry, 2_000_000, 1000) == data[2_000_000:2_001_000]
        http_place.put("f", data[::-1])
        with pytest.raises(SourceStale):
            read(store, entry)

    def test_broken_off_body(self, http_place: Place, web_server: WebServer) -> None:
        http_place.put("f", bytes(1000))
        store = http_place.open()
        entry = store.stat("f")
        web_server.cut = 10
        with pytest.raises(SourceTimeout) as caught:
            read(store, entry)
        assert_good_message(caught.value)

    @pytest.mark.parametrize(
        ("status", "wanted"), [(403, SourceDenied), (401, SourceDenied), (503, SourceTimeout), (429, SourceTimeout)]
    )
    def test_statuses(self, http_place: Place, web_server: WebServer, status: int, wanted: type[SourceError]) -> None:
        web_server.status = status
        store = http_place.open()
        for ask in (store.probe, lambda: store.stat("f"), lambda: list(store.read_range("f", 0, 1, '"e"'))):
            with pytest.raises(wanted) as caught:
                ask()
            assert_good_message(caught.value, "127.0.0.1", str(status))

    def test_closed_port(self) -> None:
        host = f"127.0.0.1:{closed_port()}"
        store = open_store(f"http://user:very-secret@{host}/d", {}, QUICK_RETRY)
        assert "very-secret" not in store.url
        for ask in (store.probe, lambda: list(store.list_tree()), lambda: list(store.read_range("x", 0, 1, '"e"'))):
            with pytest.raises(SourceTimeout) as caught:
                ask()
            assert_good_message(caught.value, host)
        store.close()


def test_missing_package_names_it() -> None:
    with pytest.raises(UsageError, match="pip install paramiko"):
        open_store("sftp://host/dir", {}, QUICK_RETRY)


class TestRestarts:
    """RetryingStore over a real store."""

    def test_body_broken_off_once_is_resumed(self, http_place: Place, web_server: WebServer) -> None:
        data = os.urandom(200_000)
        http_place.put("f", data)
        # It is to succeed, so its deadline must outlast a busy machine.
        store = open_store(http_place.source, {}, RetryConfig(first_delay_s=0.005, deadline_s=30))
        http_place.opened.append(store)
        entry = store.stat("f")
        web_server.cut = 60_000

        def pieces() -> Iterator[bytes]:
            for piece in store.read_range("f", 0, len(data), entry.version):
                web_server.cut = 0
                yield bytes(piece)

        assert b"".join(pieces()) == data
