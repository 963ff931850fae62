"""What cannot be done is said in one line that names the thing and the cure, and leaves nothing behind."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Done, Forebay
from fuse_mounts import detach, mounts_below
from source_tree import MIB

pytestmark = [pytest.mark.slow]

KEY, SECRET, TOKEN = "AKIDNOTSECRET", "SECRETdoNotShowMe/123", "TOKENdoNotShowMe=="
CREDENTIALS = ("-o", f"access_key_id={KEY}", "-o", f"secret_access_key={SECRET}", "-o", f"session_token={TOKEN}")


def _refused(done: Done, *parts: str) -> None:
    """One line, with all parts in it (a part 'a|b': one of these)."""
    lines = done.err.splitlines()
    assert len(lines) == 1, done
    assert lines[0].startswith("forebay: ")
    assert "Traceback" not in done.out
    for part in parts:
        assert any(choice in lines[0] for choice in part.split("|")), f"no {part!r} in: {lines[0]}"
    assert SECRET not in done.err + done.out
    assert TOKEN not in done.err + done.out


def _nothing(forebay: Forebay) -> None:
    assert forebay.leftovers() == []
    sockets = list(forebay.runtime_dir.glob("*.sock")) if forebay.runtime_dir.exists() else []
    assert sockets == []


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A source that is in order."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"content")
    return f"file://{tmp_path}/source"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes small tmpfs file systems, by mount options."""
    made: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        detach(str(folder))


# The source


class _Refuses(BaseHTTPRequestHandler):
    """An S3 endpoint that knows no key."""

    code, status = "InvalidAccessKeyId", 403

    def do_GET(self) -> None:
        text = (
            f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>The AWS Access Key Id you provided does"
            f" not exist in our records.</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
        ).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def refusing_endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_unreachable_endpoint(forebay: Forebay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    mount = forebay.mount_point()
    began = time.monotonic()
    endpoint = f"http://127.0.0.1:{port}"
    done = forebay.run("mount", "s3://bucket/x", mount, "-o", f"endpoint={endpoint}", *CREDENTIALS, code=1)
    assert time.monotonic() - began < 15
    _refused(done, str(port), "endpoint|reach|connect")
    _nothing(forebay)


@pytest.mark.soak
def test_endpoint_that_never_answers(forebay: Forebay) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        port = silent.getsockname()[1]
        mount = forebay.mount_point()
        began = time.monotonic()
        endpoint = f"http://127.0.0.1:{port}"
        done = forebay.run("mount", "s3://bucket/x", mount, "-o", f"endpoint={endpoint}", *CREDENTIALS, code=1)
        assert time.monotonic() - began < 15
    _refused(done, str(port), "endpoint|answer|reach|connect")
    _nothing(forebay)


def test_wrong_key(forebay: Forebay, refusing_endpoint: str) -> None:
    mount = forebay.mount_point()
    began = time.monotonic()
    done = forebay.run("mount", "s3://bucket/x", mount, "-o", f"endpoint={refusing_endpoint}", *CREDENTIALS, code=1)
    assert time.monotonic() - began < 8, "a permanent error is not tried again"
    _refused(done, "bucket", "key|credential", "check|option|AWS_")
    _nothing(forebay)
    _no_secret_in_files(forebay)


def test_missing_bucket(forebay: Forebay, s3_options: tuple[str, ...]) -> None:
    done = forebay.run("mount", "s3://there-is-no-such-bucket/x", forebay.mount_point(), *s3_options, code=1)
    _refused(done, "there-is-no-such-bucket", "bucket")
    _nothing(forebay)


SOURCES = {
    "missing folder": ("file://{root}/nothing", 1, ("{root}/nothing", "no such|not exist|there is no")),
    "unknown scheme": ("gopher://host/x", None, ("gopher", "scheme|s3")),
    "no scheme and missing": ("{root}/nothing", 1, ("{root}/nothing",)),
    "no bucket": ("s3://", None, ("s3://", "bucket")),
}


@pytest.mark.parametrize("case", SOURCES)
def test_source(forebay: Forebay, case: str) -> None:
    address, code, parts = SOURCES[case]
    root = str(forebay.root)
    done = forebay.run("mount", address.replace("{root}", root), forebay.mount_point(), code=code)
    assert done.code in (1, 2)
    _refused(done, *(part.replace("{root}", root) for part in parts))
    _nothing(forebay)


# Arguments

ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "option without =": (("-o", "endpoint"), ("endpoint", "KEY=VALUE")),
    "option without key": (("-o", "=x"), ("KEY=VALUE",)),
    "owner, no such user": (("--owner", "nobodyknows:1"), ("nobodyknows", "UID:GID")),
    "owner, no numbers": (("--owner", ":"), ("--owner", "UID:GID")),
    "owner, negative": (("--owner", "-1:-1"), ("--owner", "UID:GID")),
    "owner, too large": (("--owner", "99999999999:0"), ("99999999999", "UID:GID|4294967295")),
    "umask": (("--umask", "9z"), ("9z", "022")),
    "umask too large": (("--umask", "7777"), ("7777", "022|777")),
    "engine": (("--engine", "warp"), ("warp", "kernel, pyfuse3")),
    "open mode": (("--open-mode", "ajar"), ("ajar", "passthrough, no-open, cached")),
    "pyfuse3 has no passthrough": (("--engine", "pyfuse3", "--open-mode", "passthrough"), ("pyfuse3", "cached")),
    "tier without size": (("--tier", "SSD:/x"), ("SSD:/x", "MEDIUM:FOLDER:SIZE")),
    "tier of no medium": (("--tier", "TAPE:{root}/x:1GiB"), ("TAPE", "MEM, SSD, HDD")),
    "tier of zero size": (("--tier", "SSD:{root}/x:0"), ("0", "4GiB")),
    "tier of negative size": (("--tier", "SSD:{root}/x:-5GiB"), ("-5GiB", "4GiB")),
    "tier of odd unit": (("--tier", "SSD:{root}/x:5 parsec"), ("parsec", "4GiB")),
    "tiers twice": (("--tier", "SSD:{root}/x:1GiB", "--tier", "HDD:{root}/x:2GiB"), ("same folder|twice|{root}/x",)),
    "a tier in a tier": (("--tier", "SSD:{root}/x:1GiB", "--tier", "HDD:{root}/x/y:2GiB"), ("{root}/x",)),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_argument(forebay: Forebay, source: str, case: str) -> None:
    args, parts = ARGUMENTS[case]
    root = str(forebay.root)
    done = forebay.run("mount", source, forebay.mount_point(), *(a.replace("{root}", root) for a in args), code=None)
    assert done.code == 2, done
    _refused(done, *(part.replace("{root}", root) for part in parts))
    _nothing(forebay)
    assert not (forebay.root / "x").exists()


# The mount point


def test_mount_point_is_missing(forebay: Forebay, source: str) -> None:
    done = forebay.run("mount", source, forebay.root / "nowhere", code=1)
    _refused(done, f"{forebay.root}/nowhere", "mkdir")
    _nothing(forebay)
    assert not (forebay.root / "nowhere").exists()


def test_mount_point_is_not_empty(forebay: Forebay, source: str) -> None:
    mount = forebay.mount_point()
    (mount / "something").write_bytes(b"x")
    _refused(forebay.run("mount", source, mount, code=1), str(mount), "not empty", "empty folder")
    _nothing(forebay)
    assert (mount / "something").read_bytes() == b"x"


def test_mount_point_is_a_file(forebay: Forebay, source: str) -> None:
    path = forebay.root / "file"
    path.write_bytes(b"x")
    _refused(forebay.run("mount", source, path, code=1), str(path), "is a file", "folder")
    _nothing(forebay)


def test_already_mounted(forebay: Forebay, source: str) -> None:
    mount = forebay.mount(source)
    _refused(forebay.run("mount", source, mount, code=1), str(mount), "already mounted", "umount")
    assert (mount / "file").read_bytes() == b"content"
    link = forebay.root / "link"
    link.symlink_to(mount)
    _refused(forebay.run("mount", source, link, code=1), str(link), "already mounted|not empty")
    assert len(mounts_below(forebay.root)) == 1
    forebay.umount(mount)
    _nothing(forebay)


def test_foreign_mount(forebay: Forebay, source: str, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=1m")
    (disk / "file").write_bytes(b"x")
    _refused(forebay.run("umount", disk, code=1), str(disk), "tmpfs", "umount")
    assert (disk / "file").read_bytes() == b"x"
    _refused(forebay.run("mount", source, disk, code=1), str(disk), "mounted|not empty")
    _nothing(forebay)


@pytest.mark.parametrize("what", ["folder", "nothing"])
def test_umount_of_what_is_not_mounted(forebay: Forebay, what: str) -> None:
    path = forebay.mount_point() if what == "folder" else forebay.root / "nothing"
    _refused(forebay.run("umount", path, code=1), str(path), "not mounted", "forebay mounts")
    _nothing(forebay)


# The cache


def test_tier_is_a_file(forebay: Forebay, source: str) -> None:
    path = forebay.root / "file"
    path.write_bytes(b"x")
    done = forebay.run("mount", source, forebay.mount_point(), "--tier", f"SSD:{path}:1GiB", code=1)
    _refused(done, str(path), "a file", "folder")
    _nothing(forebay)


def test_tier_below_a_file(forebay: Forebay, source: str) -> None:
    path = forebay.root / "file"
    path.write_bytes(b"x")
    done = forebay.run("mount", source, forebay.mount_point(), "--tier", f"SSD:{path}/sub:1GiB", code=1)
    _refused(done, str(path), "a file", "folder")
    _nothing(forebay)


def test_tier_below_a_read_only_mount(forebay: Forebay, source: str, small_disk: Callable[[str], Path]) -> None:
    path = small_disk("size=1m,ro") / "tier"
    done = forebay.run("mount", source, forebay.mount_point(), "--tier", f"SSD:{path}:1GiB", code=1)
    _refused(done, str(path), "read-only", "another folder")
    _nothing(forebay)


@pytest.mark.parametrize("which", ["tier", "cache"])
def test_full_disk(forebay: Forebay, source: str, small_disk: Callable[[str], Path], which: str) -> None:
    disk = small_disk("size=256k")
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    args = ("--tier", f"SSD:{disk}/tier:1GiB") if which == "tier" else ("--cache-dir", f"{disk}/cache")
    done = forebay.run("mount", source, forebay.mount_point(), *args, code=1)
    _refused(done, str(disk), "full|No space", "another|room")
    _nothing(forebay)


def test_disk_too_small_for_the_index(forebay: Forebay, source: str, small_disk: Callable[[str], Path]) -> None:
    """Room for the folder and the lock, none for the rest."""
    disk = small_disk("size=64k")
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        for _ in range(12):
            filler.write(bytes(4096))
    done = forebay.run("mount", source, forebay.mount_point(), "--cache-dir", f"{disk}/cache", code=1)
    _refused(done, str(disk), "full|No space", "another|room")
    _nothing(forebay)


def test_cache_dir_is_a_file(forebay: Forebay, source: str) -> None:
    path = forebay.root / "file"
    path.write_bytes(b"x")
    done = forebay.run("mount", source, forebay.mount_point(), "--cache-dir", str(path), code=1)
    _refused(done, str(path), "--cache-dir|folder")
    _nothing(forebay)


def test_cache_dir_is_read_only(forebay: Forebay, source: str, small_disk: Callable[[str], Path]) -> None:
    path = small_disk("size=1m,ro") / "cache"
    done = forebay.run("mount", source, forebay.mount_point(), "--cache-dir", str(path), code=1)
    _refused(done, str(path), "ead-only", "--cache-dir|another")
    _nothing(forebay)


def test_tiers_other_than_the_running_worker_has(forebay: Forebay, source: str) -> None:
    mount = forebay.mount(source, "--tier", f"SSD:{forebay.root}/t1:1GiB")
    done = forebay.run("mount", source, forebay.mount_point(), "--tier", f"SSD:{forebay.root}/t2:1GiB", code=2)
    _refused(done, f"{forebay.root}/t1", "--tier|--cache-dir")
    assert (mount / "file").read_bytes() == b"content"
    forebay.umount(mount)
    _nothing(forebay)


@pytest.mark.soak
def test_tier_of_another_cache(forebay: Forebay, source: str) -> None:
    tier = f"SSD:{forebay.root}/tier:1GiB"
    forebay.umount(forebay.mount(source, "--tier", tier))
    args = ("--tier", tier, "--cache-dir", f"{forebay.root}/cache2")
    done = forebay.run("mount", source, forebay.mount_point(), *args, code=1)
    _refused(done, f"{forebay.root}/tier", str(forebay.cache_dir), "--cache-dir")
    _nothing(forebay)


# Other commands


def test_warmup_of_a_missing_path(forebay: Forebay, source: str) -> None:
    mount = forebay.mount(source)
    _refused(forebay.run("warmup", mount, "no/such/path", code=1), "no/such/path")
    _refused(forebay.run("warmup", mount, "../source", code=2), "../source", "below")
    forebay.umount(mount)
    _nothing(forebay)


def test_warmup_of_a_missing_source(forebay: Forebay) -> None:
    _refused(forebay.run("warmup", f"file://{forebay.root}/nothing", code=1), f"{forebay.root}/nothing")
    _nothing(forebay)


def test_status_of_an_unknown_source(forebay: Forebay) -> None:
    _refused(forebay.run("status", "s3://never-seen/x", code=1), "s3://never-seen/x", "mount")
    _nothing(forebay)


# Secrets


def _no_secret_in_files(forebay: Forebay) -> None:
    for folder in (forebay.cache_dir, forebay.runtime_dir):
        for path in folder.rglob("*"):
            if path.is_file():
                data = path.read_bytes() if path.stat().st_size < 64 * MIB else b""
                for secret in (SECRET, TOKEN):
                    assert secret.encode() not in data, f"{path} holds a secret"


@pytest.mark.semantics("D8")
@pytest.mark.parametrize("given", [pytest.param("by option", marks=pytest.mark.soak), "by environment"])
def test_secrets_are_nowhere(forebay: Forebay, bucket: Any, given: str) -> None:
    """Not in arguments, environments, logs, state, nor in what commands print."""
    bucket.put("file", b"content")
    environ = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}
    mount = forebay.mount_point()
    args = ["mount", bucket.source, mount, "-o", f"endpoint={bucket.link.url}"]
    by_option = given == "by option"
    done = forebay.run(*args, *(CREDENTIALS if by_option else ()), environ=None if by_option else environ)
    assert (mount / "file").read_bytes() == b"content"
    shown = done.out + done.err
    for command in (("mounts", "--json"), ("mounts",), ("status", "--json"), ("status",), ("doctor",)):
        ended = forebay.run(*command, environ=environ if given == "by environment" else None, code=None)
        shown += ended.out + ended.err
    for secret in (SECRET, TOKEN):
        assert secret not in shown
        exposed = [
            f"{part} of {command}"
            for pid, command in forebay.processes().items()
            for part in ("cmdline", "environ")
            if secret.encode() in Path(f"/proc/{pid}/{part}").read_bytes()
        ]
        assert not exposed
    _no_secret_in_files(forebay)


def test_secrets_are_not_in_errors(forebay: Forebay, bucket: Any) -> None:
    """Nor in what a reader's failure leaves in the logs."""
    forebay.expect_log("file")
    bucket.put("file", b"content")
    mount = forebay.mount(bucket.source, "-o", f"endpoint={bucket.link.url}", *CREDENTIALS)
    bucket.put("file", b"other content")
    with suppress(OSError):
        (mount / "file").read_bytes()
    forebay.run("warmup", mount, "file", code=None)
    _no_secret_in_files(forebay)
    assert os.listdir(mount) == ["file"]
