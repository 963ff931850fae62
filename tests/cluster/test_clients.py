"""Client nodes: mounts, fsspec and torch on a host that has nothing but the addresses of the workers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from client_nodes import SECRET_KEY, SECRET_VALUE, Cluster, manifest, s3_mount
from forebay_command import Forebay, wait_until

from tests.unit.parties import Parties

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (os.geteuid() == 0 and os.path.exists("/dev/fuse")), reason="needs root and /dev/fuse"),
]

ENGINES = ["kernel", "pyfuse3"]
FILES = {
    "train/a.bin": bytes(range(256)) * (20 << 10),
    "train/b.txt": b"line one\nline two\n",
    "train/deep/c#%20.bin": os.urandom(3 << 20),
    "empty": b"",
    **{f"small/{number:03}": b"%d" % number * 1000 for number in range(50)},
}


@dataclass
class Bucket:
    client: Any
    name: str
    endpoint: str

    @property
    def source(self) -> str:
        return f"s3://{self.name}/root"

    def put(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"root/{path}", Body=data)


@pytest.fixture
def bucket(s3_client: Any, s3_endpoint: str) -> Bucket:
    found = Bucket(s3_client, f"bucket-{uuid.uuid4().hex[:12]}", s3_endpoint)
    s3_client.create_bucket(Bucket=found.name)
    for path, data in FILES.items():
        found.put(path, data)
    return found


@pytest.fixture
def make() -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []
    # The path of a Unix socket has 107 bytes: pytest's own folder takes too many of them.
    folder = Path(tempfile.mkdtemp(prefix="fbc-", dir="/tmp"))

    def cluster(count: int, security: list[list[str]] | None = None) -> Cluster:
        made.append(Cluster(folder, count, security))
        return made[-1]

    yield cluster
    wrong = [found for each in made for found in each.end()]
    if not wrong:
        shutil.rmtree(folder)
    assert not wrong, f"left behind, or unexpected in a log (see {folder}):\n" + "\n".join(wrong)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(node: Forebay, *args: str | Path) -> str:
    """The one line with which a command fails."""
    done = node.run(*args, code=None)
    assert done.code != 0
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    return str(lines[0])


def program(forebay: Forebay, code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=forebay.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.semantics("R1", "M7", "R5")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_mount_by_name_with_tls_and_a_token(make: Any, bucket: Bucket, tmp_path: Path, engine: str) -> None:
    parties = Parties.create(tmp_path / "ca")
    bundles = [parties.issue(f"w{number}") for number in range(2)]
    cluster = make(2, [["--tls", str(bundle)] for bundle in bundles])
    mount = s3_mount(bucket.source, bucket.endpoint)
    cluster.start(manifest("images", mount), manifest("other", mount))
    bundle = tmp_path / "ca" / "trainer"
    node = cluster.client(str(bundle))
    node.run("certs", "issue", tmp_path / "ca", "trainer", "--client")

    assert "sent no token" in refused(node, "mount", "images", node.mount_point())

    def token(*more: str) -> None:
        node.run("token", "create", "--ca", tmp_path / "ca", "--dataset", "images", "--verb", "read", "--verb", "list",
                 "--out", bundle / "token", "--force", *more)  # fmt: skip

    token()
    assert "is not for dataset 'other'" in refused(node, "mount", "other", node.mount_point())

    at = node.mount("images", "--engine", engine)
    assert tree(at) == FILES
    assert _found_in(node, SECRET_KEY.encode(), SECRET_VALUE.encode()) == []
    node.umount(at)

    strange = Parties.create(tmp_path / "other-ca")
    stranger = cluster.client(str(strange.worker("w9").setting))
    assert refused(stranger, "mount", "images", stranger.mount_point())

    worker = cluster.client(str(parties.issue("w7")))
    assert tree(worker.mount("images")) == FILES  # a worker's certificate needs no token


def _found_in(node: Forebay, *secrets: bytes) -> list[str]:
    """Where secrets are on a node: files, environments and memory files of its processes."""
    found = []
    places = []
    for folder, inside, names in os.walk(node.root):
        inside[:] = [name for name in inside if not os.path.ismount(os.path.join(folder, name))]
        places += [path for name in names if (path := Path(folder, name)).is_file()]
    for pid in node.processes():
        places += [Path(f"/proc/{pid}/environ"), Path(f"/proc/{pid}/cmdline")]
        places += [link for link in Path(f"/proc/{pid}/fd").iterdir() if "memfd" in os.readlink(link)]
    for place in places:
        if any(secret in place.read_bytes() for secret in secrets):
            found.append(str(place))
    assert len(places) > 10
    return found


@pytest.mark.semantics("R5")
def test_an_expired_token_is_an_error_and_no_hang(make: Any, bucket: Bucket, tmp_path: Path) -> None:
    parties = Parties.create(tmp_path / "ca")
    cluster = make(1, [["--tls", str(parties.issue("w0"))]])
    cluster.start(manifest("images", s3_mount(bucket.source, bucket.endpoint)))
    bundle = parties.client().folder
    node = cluster.client(str(bundle))
    node.expect_log("expired")
    create = ("token", "create", "--ca", tmp_path / "ca", "--dataset", "images", "--verb", "read", "--verb", "list")
    node.run(*create, "--out", bundle / "token")
    at = node.mount("images")
    assert (at / "train/b.txt").read_bytes() == FILES["train/b.txt"]
    from forebay.cacheruntime.cluster import tokens

    (bundle / "token").write_text(_old_token(tokens, tmp_path / "ca"))
    began = time.monotonic()
    with pytest.raises(PermissionError):
        (at / "train/a.bin").read_bytes()
    assert time.monotonic() - began < 20
    assert (at / "train/b.txt").read_bytes() == FILES["train/b.txt"]
    assert "expired" in refused(node, "mount", "images", node.mount_point())


def _old_token(tokens: Any, ca: Path) -> str:
    import jwt
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((ca / "tokens.key").read_bytes(), None)
    now = int(time.time())
    fresh = {
        "iss": tokens._ISSUER,
        "iat": now - 7200,
        "exp": now - 3600,
        "datasets": ["images"],
        "verbs": ["read", "list"],
    }
    headers = {"kid": tokens._key_id(key.public_key())}
    return jwt.encode(fresh, key, algorithm="EdDSA", headers=headers)


@pytest.mark.semantics("R1", "R3")
def test_names_snapshots_views_and_urls(make: Any, bucket: Bucket) -> None:
    cluster = make(2)
    cluster.start(manifest("images", s3_mount(bucket.source, bucket.endpoint)))
    node = cluster.client()
    at = node.mount("images")
    assert tree(at) == FILES
    below = {path.removeprefix("train/"): data for path, data in FILES.items() if path.startswith("train/")}
    assert tree(node.mount("dataset://images/train")) == below

    bucket.put("train/new", b"new")
    assert node.run("sync", "images", "--json").json()["added"] == 1
    assert (at / "train/new").read_bytes() == b"new"
    assert tree(node.mount("images@1")) == FILES
    assert (node.mount("dataset://default/images/train") / "new").read_bytes() == b"new"
    assert "no snapshot 77" in refused(node, "mount", "images@77", node.mount_point())
    assert "no dataset 'nothing'" in refused(node, "mount", "nothing", node.mount_point())
    for command in (
        ("status", "images"), ("status",), ("mounts",), ("info", at / "train/b.txt"), ("warmup", "images"),
        ("warmup", "dataset://images/train"), ("warmup", "images@1", "--local"),
        ("snapshots", "images"), ("evict", "images"), ("stats", "--count", "1"),
    ):  # fmt: skip
        node.run(*command)
    assert node.dataset("images")["dataset_id"]
    # The environment is not needed by a cache folder that was used in a cluster.
    for name in ("FOREBAY_WORKER", "FOREBAY_INSECURE"):
        del node.environ[name]
    node.run("sync", at)
    node.run("status", "images")


@pytest.mark.semantics("R1", "R4")
@pytest.mark.parametrize("tier", ["none", None])
def test_programs_without_a_mount(make: Any, bucket: Bucket, tier: str | None) -> None:
    cluster = make(2)
    cluster.start(manifest("images", s3_mount(bucket.source, bucket.endpoint)))
    node = cluster.client()
    workers = node.environ.pop("FOREBAY_WORKER")
    del node.environ["FOREBAY_INSECURE"]
    options = json.dumps({"worker": workers, "insecure": True} | ({"tier": tier} if tier else {}))
    wanted = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}
    code = """
import hashlib, json, sys, fsspec
options, wanted, url = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
fs = fsspec.filesystem("forebay", **options)
for root in ("dataset://images", "dataset://images@1", url):
    for path, digest in wanted.items():
        assert hashlib.sha256(fs.cat_file(f"forebay://{root}/{path}")).hexdigest() == digest, (root, path)
    names = {name.removeprefix(root + "/") for name in fs.find(f"forebay://{root}")}
    assert names == set(wanted), names
    assert fs.isdir(f"forebay://{root}/train")
    with fs.open(f"forebay://{root}/train/a.bin") as file:
        file.seek(1 << 20)
        assert file.read(4) == bytes([0, 1, 2, 3])
try:
    fs.cat_file("forebay://dataset://nothing/x")
except Exception as error:
    assert "no dataset 'nothing'" in str(error), error
from forebay.torch.files import Files
files = Files("images", **options)
got = {files.path(number): hashlib.sha256(files.read(number)).hexdigest() for number in range(len(files))}
assert got == wanted
assert {files.path(n) for n in range(len(Files("dataset://images/train", **options)))}
"""
    cluster.client().run("sync", "images")
    program(node, code, options, json.dumps(wanted), bucket.source)
    if tier == "none":
        kept = [path for path in node.cache_dir.rglob("*") if path.is_file() and path.suffix != ".mdb"]
        assert sum(path.stat().st_blocks * 512 for path in kept) < 1 << 20


@pytest.mark.semantics("R4")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_mount_without_tiers(make: Any, bucket: Bucket, engine: str) -> None:
    cluster = make(1)
    cluster.start(manifest("images", s3_mount(bucket.source, bucket.endpoint)))
    node = cluster.client()
    at = node.mount("images", "--tier", "none", "--engine", engine)
    for _ in range(2):
        assert tree(at) == FILES
    assert node.status()["tiers"] == []
    again = node.mount("images@1")  # remembered
    assert node.status()["tiers"] == []
    assert tree(again) == FILES


@pytest.mark.semantics("R2")
def test_workers_that_go_and_come_back(make: Any, bucket: Bucket) -> None:
    big = {f"big/{number}": os.urandom(4 << 20) for number in range(6)}
    for path, data in big.items():
        bucket.put(path, data)
    cluster = make(2)
    cluster.start(manifest("images", s3_mount(bucket.source, bucket.endpoint)))
    node = cluster.client()
    at = node.mount("images")
    reading = node.start_reading(
        [{"jobs": [["read", str(at / path)] for path in list(big)[:5]], "seed": 1, "rounds": 1}]
    )
    cluster.members[1].kill()
    digests = {each["path"]: each.get("sha256") for each in reading.results()}
    assert digests == {str(at / path): hashlib.sha256(big[path]).hexdigest() for path in list(big)[:5]}

    cluster.members[0].kill()
    assert (at / "big/0").read_bytes() == big["big/0"]
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        (at / "big/5").read_bytes()
    assert caught.value.errno in (5, 110)
    assert time.monotonic() - began < 75
    assert refused(node, "mount", "images", node.mount_point())

    cluster.members[0].start()
    wait_until(lambda: _readable(at / "big/5"), "a worker that came back is read from", 60)
    assert (at / "big/5").read_bytes() == big["big/5"]


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


@pytest.mark.semantics("M7")
def test_a_folder_that_not_every_worker_has(make: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(12):
        (source / f"{number}").write_bytes(b"%d" % number * 5000)
    (source / "link").symlink_to("3")
    cluster = make(2)
    cluster.start()
    cluster.members[0].apply(manifest("folder", {"mountPoint": f"local://{source}"}))
    wait_until(lambda: "attached dataset://default/folder" in cluster.members[0].log(), "it is known")
    node = cluster.client()
    node.expect_log("folder of each machine")
    at = node.mount("folder")
    assert {path: data for path, data in tree(at).items() if path != "link"} == {
        f"{number}": b"%d" % number * 5000 for number in range(12)
    }
    assert os.readlink(at / "link") == "3"
    cluster.members[0].kill()
    assert refused(node, "mount", f"file://{source}", node.mount_point())


def test_one_clear_line_for_what_cannot_be(make: Any, forebay: Forebay) -> None:
    where = forebay.mount_point()
    for args, said in (
        (("mount", "x", where, "--worker", "127.0.0.1:1"), "nodes talk by TLS"),
        (("mount", "x", where, "--worker", "127.0.0.1:1", "--insecure"), "127.0.0.1:1"),
        (("mount", "x", where, "--worker", ",", "--insecure"), "names no worker"),
        (("mount", "x", where, "--insecure"), "name one by --worker"),
        (("mount", "/etc", where, "--worker", "127.0.0.1:1", "--insecure"), "no dataset's name"),
        (("mount", "s3://b", where, "-o", "a=b", "--worker", "127.0.0.1:1", "--insecure"), "knows no credentials"),
        (("mount", "s3://b", where, "--tier", "none", "--tier", "SSD:/x:1GiB"), "no tier at all"),
    ):
        assert said in refused(forebay, *args)
