"""Datasets by name, at work: several stores under one tree, snapshots by number, views, syncs."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from forebay_command import Forebay, wait_until

from tests.mount.conftest import Bucket, Folder

pytestmark = [pytest.mark.slow, pytest.mark.mount]

KEY, SECRET = "AKTEST", "SKTEST-very-secret"
ENVIRON = {"STORE_KEYS_ID": KEY, "STORE_KEYS_SECRET": SECRET}


def manifest(name: str, mounts: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "data.forebay.io/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": name},
        "spec": {"mounts": mounts, **spec},
    }


def apply(forebay: Forebay, *manifests: dict[str, Any], code: int = 0) -> Any:
    file = forebay.root / "manifests.yaml"
    file.write_text("\n---\n".join(json.dumps(each) for each in manifests))
    return forebay.run("apply", "-f", file, code=code)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def both(forebay: Forebay, folder: Folder, bucket: Bucket) -> dict[str, Any]:
    """A folder and a bucket under one tree; the bucket's keys are secrets."""
    forebay.environ |= ENVIRON
    folder.put("labels.csv", b"a,b\n")
    folder.put("meta/info", b"info")
    bucket.put("n01/1.jpg", b"jpg 1")
    bucket.put("n01/2.jpg", b"jpg 2")

    def secret(name: str, key: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": "store-keys", "key": key}}}

    return manifest(
        "both",
        [
            {"mountPoint": f"local://{folder.root}", "path": "/train/labels"},
            {
                "mountPoint": bucket.source,
                "name": "images",
                "options": {"alluxio.underfs.s3.endpoint": bucket.link.url},
                "encryptOptions": [secret("aws.accessKeyId", "id"), secret("aws.secretKey", "secret")],
            },
        ],
    )


SHOWN = {
    "train/labels/labels.csv": b"a,b\n",
    "train/labels/meta/info": b"info",
    "images/n01/1.jpg": b"jpg 1",
    "images/n01/2.jpg": b"jpg 2",
}


@pytest.mark.semantics("S1")
def test_two_stores_under_one_tree(forebay: Forebay, both: dict[str, Any], folder: Folder, bucket: Bucket) -> None:
    assert apply(forebay, both).out == "dataset/both created\n"
    assert apply(forebay, both).out == "dataset/both unchanged\n"
    at = forebay.mount("both")
    assert tree(at) == SHOWN
    assert sorted(path.name for path in at.iterdir()) == ["images", "train"]

    def source(path: str) -> str:
        return os.getxattr(at / path, "user.forebay.source").decode()

    assert source("images/n01/1.jpg") == f"s3+{bucket.link.url}/{bucket.name}/root/n01/1.jpg"
    assert source("train/labels") == f"file://{folder.root}"
    assert source("train") == "dataset://default/both/train"
    (row,) = forebay.run("mounts", "--json").json()
    assert (row["source"], row["url"]) == ("dataset://both", "dataset://default/both")
    state = "".join(path.read_text() for path in forebay.state_dir.rglob("*.json"))
    assert "alluxio.underfs.s3.endpoint" in state
    for path in forebay.root.rglob("*"):
        if path.is_file() and at not in path.parents and path.stat().st_size < 1 << 20:
            assert SECRET.encode() not in path.read_bytes(), path
    described = forebay.run("describe", "both").out
    assert "phase      Bound" in described
    assert "secret store-keys, key secret" in described
    assert SECRET not in described
    table = forebay.run("get").out.splitlines()
    assert table[0].split() == ["NAME", "SOURCES", "FILES", "SIZE", "CACHED", "%", "SNAPSHOT", "PHASE", "AGE"]
    assert "4  18 B    18 B  100%" in table[1]
    assert forebay.run("status", "both", "--json").json()["datasets"][0]["source_files"] == 4
    # What is cached is a hit for who mounts one of the stores by its URL.
    plain = forebay.mount(bucket.source, *bucket.args)
    bucket.link.hold_after(0)
    assert (plain / "n01" / "2.jpg").read_bytes() == b"jpg 2"
    bucket.link.release()
    forebay.umount(plain)
    forebay.umount(at)


def test_a_secret_that_is_missing_is_named(forebay: Forebay, both: dict[str, Any]) -> None:
    apply(forebay, both)
    for name in ENVIRON:
        del forebay.environ[name]
    done = forebay.run("mount", "both", forebay.mount_point(), code=2)
    assert done.err.startswith(
        "forebay: dataset both: option aws.accessKeyId: key id of secret store-keys is not there: "
    )
    assert "STORE_KEYS_ID" in done.err
    assert f"{forebay.state_dir}/secrets/store-keys/id" in done.err
    secrets = forebay.state_dir / "secrets" / "store-keys"
    secrets.mkdir(parents=True)
    (secrets / "id").write_text(KEY + "\n")
    (secrets / "secret").write_text(SECRET)
    at = forebay.mount("both")
    assert tree(at) == SHOWN
    forebay.umount(at)


@pytest.mark.semantics("S2")
def test_snapshots_by_number(forebay: Forebay, both: dict[str, Any], folder: Folder, bucket: Bucket) -> None:
    apply(forebay, both)
    at = forebay.mount("both")
    assert tree(at) == SHOWN
    folder.put("meta/new", b"new")
    bucket.put("n01/1.jpg", b"another")
    bucket.remove("n01/2.jpg")
    with open(at / "images" / "n01" / "1.jpg", "rb") as opened:
        assert opened.read(1) == b"j"
        done = forebay.run("sync", "both", "--show")
        assert done.out == (
            "snapshot 1 -> 2: 1 added, 1 changed, 1 removed\n"
            "+ train/labels/meta/new\n~ images/n01/1.jpg\n- images/n01/2.jpg\n"
        )
        opened.seek(0)
        assert opened.read() == b"jpg 1", "what is open stays"
    now = {k: v for k, v in SHOWN.items() if not k.endswith("2.jpg")}
    now |= {"train/labels/meta/new": b"new", "images/n01/1.jpg": b"another"}
    assert tree(at) == now
    old = forebay.mount("both@1")
    assert set(tree_names(old)) == set(SHOWN)
    assert (old / "images/n01/1.jpg").read_bytes() == b"jpg 1", "cached, so it reads as it was"
    diff = forebay.run("diff", "both", "1", "2", "--json").json()
    assert diff["counts"] == {"added": 1, "changed": 1, "removed": 1}
    assert diff["names"]["removed"] == ["images/n01/2.jpg"]
    assert forebay.run("diff", "both", "2", "1").out.endswith("snapshot 2 -> 1: 1 added, 1 changed, 1 removed\n")
    assert forebay.run("diff", "both", "1", "9", code=1).err == (
        "forebay: dataset://both has no snapshot 9; there are 1, 2\n"
    )
    # A sync leaves a pinned mount alone.
    folder.put("third", b"3")
    synced = forebay.run("sync", at, "--json").json()
    assert (synced["snapshot"], synced["previous"], synced["switched"]) == (3, 2, [str(at)])
    assert set(tree_names(old)) == set(SHOWN)
    rows = forebay.run("snapshots", "both", "--json").json()["snapshots"]
    assert [(row["number"], row["files"], row["mounts"]) for row in rows] == [
        (1, 4, [str(old)]),
        (2, 4, []),
        (3, 5, [str(at)]),
    ]
    # One that is in use stays.
    time.sleep(0.1)
    removed = forebay.run("snapshots", "both", "--gc", "--keep", "1", "--json").json()
    assert 1 not in removed["removed"]
    assert 3 not in removed["removed"]
    forebay.umount(old)
    done = forebay.run("mount", "both@7", forebay.mount_point(), code=1)
    assert "dataset://default/both has no snapshot 7; there are 1, " in done.err
    forebay.umount(at)
    # With nothing mounted and the worker gone all but the newest may go.
    removed = forebay.run("snapshots", "both", "--gc", "--keep", "1", "--json").json()
    assert [row["number"] for row in removed["snapshots"]] == [3]


def tree_names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_export(forebay: Forebay, both: dict[str, Any], bucket: Bucket) -> None:
    apply(forebay, both)
    assert forebay.run("sync", "both").out == "snapshot 1: listed for the first time\n"
    bucket.put("n02/3.jpg", b"3")
    forebay.run("sync", "both")
    file = forebay.root / "listing.parquet"
    assert forebay.run("export", "both", file).out == f"{file}: snapshot 2 of dataset://both, 11 rows\n"
    forebay.run("export", "both@1", file)
    table = pq.read_table(file)
    rows = {row["path"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(rows, key=lambda path: path.split("/"))
    assert {path for path, row in rows.items() if row["kind"] == "file"} == set(SHOWN)
    assert rows["images"]["kind"] == "directory"
    one = rows["images/n01/1.jpg"]
    assert (one["size"], one["source"]) == (5, f"s3+{bucket.link.url}/{bucket.name}/root/n01/1.jpg")
    assert one["version"].strip('"')
    assert one["mtime"].year >= 2024
    assert table.schema.metadata[b"forebay.snapshot"] == b"1"
    assert "no file in a folder" in forebay.run("export", "both", forebay.root / "no" / "f.parquet", code=2).err
    assert not [path for path in forebay.root.iterdir() if path.name.startswith(".listing")]


@pytest.mark.semantics("S5")
@pytest.mark.semantics("S7")
def test_views(forebay: Forebay, both: dict[str, Any], folder: Folder, bucket: Bucket) -> None:
    view = manifest(
        "view",
        [
            {"mountPoint": "dataset://both/images", "path": "/now"},
            {"mountPoint": "dataset://both@1/train", "path": "/old"},
        ],
    )
    assert "there is no dataset both" in apply(forebay, view, code=2).err
    assert forebay.run("get", "-o", "name").out == ""
    apply(forebay, both, view)
    whole = forebay.mount("both")
    assert tree(whole) == SHOWN
    folder.put("new", b"new")
    folder.put("labels.csv", b"c,d\n")
    assert forebay.run("sync", "both").out.startswith("snapshot 1 -> 2: ")
    bucket.link.hold_after(0)
    forebay.umount(whole)
    bucket.link.release()
    at = forebay.mount("view")
    bucket.link.hold_after(0)
    assert tree(at) == {
        "now/n01/1.jpg": b"jpg 1", "now/n01/2.jpg": b"jpg 2",
        "old/labels/labels.csv": b"a,b\n", "old/labels/meta/info": b"info",
    }, "all of it was cached by way of the other dataset"  # fmt: skip
    bucket.link.release()
    # The handlers bring the snapshot's dataset to a new worker too.
    os.kill(forebay.pids(at)["worker"], signal.SIGKILL)
    part = forebay.mount("dataset://both/train/labels/meta")
    assert tree(part) == {"info": b"info"}
    assert forebay.run("sync", "view").out == "snapshot 1: nothing has changed\n"
    for name, why in (("both", f"dataset both is mounted on {part}"), ("view", f"dataset view is mounted on {at}")):
        assert why in forebay.run("delete", name, code=2).err
    forebay.umount(part)
    assert forebay.run("delete", "both", code=2).err == (
        "forebay: dataset both is referred to by view; delete or change these first\n"
    )
    forebay.umount(at)
    # The other's snapshot 1 is pinned by the reference.
    rows = forebay.run("snapshots", "both", "--gc", "--keep", "1", "--json").json()
    assert [(row["number"], row["pinned"]) for row in rows["snapshots"]] == [(1, True), (2, False)]
    done = forebay.run("delete", "view", "both", "--purge")
    assert done.out.endswith("dataset/both deleted\n")
    assert forebay.run("get").out == "no dataset yet; add one with: forebay apply -f FILE\n"
    assert list((forebay.cache_dir / "datasets").iterdir()) == []


@pytest.mark.semantics("S4")
def test_syncs_on_an_interval(forebay: Forebay, both: dict[str, Any], folder: Folder) -> None:
    forebay.expect_log("the sync on the interval failed|broke off")
    apply(forebay, both | {"spec": both["spec"] | {"syncPolicy": {"interval": "1s", "onMount": False}}})
    at = [forebay.mount("both") for _ in range(2)]
    folder.put("one", b"1")
    for mount in at:
        wait_until(lambda mount=mount: (mount / "train/labels/one").exists(), "the new file is shown")
    # Whatever is killed, it goes on.
    pids = forebay.pids(at[0])
    for pid in (*pids["handlers"], pids["worker"]):
        os.kill(pid, signal.SIGKILL)
    folder.put("two", b"2")
    for mount in at:
        wait_until(lambda mount=mount: (mount / "train/labels/two").exists(), "the next file is shown")
    # A source that is away is asked less often, and nothing is lost.
    away = folder.root.rename(folder.root.with_name("away"))
    log = forebay.cache_dir / "mounts.log"
    wait_until(lambda: "the sync on the interval failed" in log.read_text(), "the failure is logged")
    assert (at[0] / "train/labels/two").exists()
    away.rename(folder.root)
    folder.put("three", b"3")
    for mount in at:
        wait_until(lambda mount=mount: (mount / "train/labels/three").exists(), "it is synced again")
    syncs = [line for line in log.read_text().splitlines() if "synced: 1 added" in line]
    assert len(syncs) == 3, "one of the mounts does it for both"
    for mount in at:
        forebay.umount(mount)


def test_a_pin_in_the_manifest(forebay: Forebay, folder: Folder) -> None:
    folder.put("a", b"1")
    made = manifest("plain", [{"mountPoint": f"file://{folder.root}", "name": "plain", "path": "/"}])
    apply(forebay, made)
    forebay.run("sync", "plain")
    folder.put("b", b"2")
    apply(forebay, made | {"spec": made["spec"] | {"snapshot": 1, "syncPolicy": {"interval": "1s"}}})
    at = forebay.mount("plain")
    assert tree(at) == {"a": b"1"}
    assert forebay.run("sync", "plain").out == "snapshot 1 -> 2: 1 added, 0 changed, 0 removed\n"
    assert tree(at) == {"a": b"1"}
    newest = forebay.mount("plain@2")
    assert tree(newest) == {"a": b"1", "b": b"2"}
    for mount in (at, newest):
        forebay.umount(mount)


def test_a_mount_goes_on_when_the_mounts_in_the_manifest_are_changed(forebay: Forebay, folder: Folder) -> None:
    folder.put("a", b"1")
    apply(forebay, manifest("plain", [{"mountPoint": f"file://{folder.root}", "path": "/one"}]))
    at = forebay.mount("plain")
    done = apply(forebay, manifest("plain", [{"mountPoint": f"file://{folder.root}", "path": "/two"}]))
    assert done.out == "dataset/plain configured\n"
    assert f"{at} goes on as it was before the mounts in the manifest were changed; mount it again" in done.err
    assert tree(at) == {"one/a": b"1"}
    assert f"note: {at} shows plain as it was" in forebay.run("sync", "plain").out
    other = forebay.mount("plain")
    assert tree(other) == {"two/a": b"1"}
    for mount in (at, other):
        forebay.umount(mount)


def test_a_path_of_that_name_goes_first(forebay: Forebay, folder: Folder, tmp_path: Path) -> None:
    folder.put("a", b"1")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "of-the-folder").write_bytes(b"2")
    apply(forebay, manifest("plain", [{"mountPoint": f"file://{folder.root}"}]))
    at = forebay.mount("dataset://plain")
    assert tree(at) == {"a": b"1"}
    forebay.umount(at)
    done = forebay.run("mount", "nobody", forebay.mount_point(), code=1)
    assert "nobody" in done.err
    assert "there is no dataset nobody; there are: plain" in forebay.run("get", "nobody", code=2).err
    assert "--option is for URLs" in forebay.run("mount", "plain", forebay.mount_point(), "-o", "a=b", code=2).err


def test_warming_and_pinning_by_name(forebay: Forebay, both: dict[str, Any], folder: Folder, bucket: Bucket) -> None:
    view = manifest("view", [{"mountPoint": "dataset://both/images", "path": "/"}])
    apply(forebay, both, view)
    assert "4 of 4 files" in forebay.run("warmup", "both", "--verify").out
    (job,) = forebay.run("jobs", "--json").json()
    assert (job["source"], job["state"], job["files_verified"]) == ("dataset://default/both", "done", 4)
    shown = forebay.run("info", "both", "images/n01/1.jpg", "--json").json()
    assert (shown["cached_bytes"], shown["pinned"]) == (5, False)
    # What a view shows belongs to the dataset that it views: so do its pins.
    forebay.run("pin", "view", "n01")
    assert forebay.run("evict", "both", "--json").json() == {"files": 2, "bytes": 8, "pinned": 2}
    assert forebay.run("pin", "both", "--list", "--json").json() == {"pins": ["images/n01"]}
    at = forebay.mount("both")
    assert tree(at) == SHOWN
    assert forebay.run("unpin", at / "images" / "n01").out == "nothing is pinned\n"
    assert forebay.run("jobs", "resume", "1").out.startswith("4 of 4 files")
    assert forebay.run("evict", at, "--json").json()["pinned"] == 0
    forebay.umount(at)
