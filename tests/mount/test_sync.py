"""`forebay sync`, the command: what it says, and what it does to the register of mounts."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay

pytestmark = [pytest.mark.slow, pytest.mark.mount]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "same").write_bytes(b"1")
    (folder / "changed").write_bytes(b"1")
    (folder / "gone").write_bytes(b"1")
    return folder


def _snapshots(forebay: Forebay) -> dict[str, int]:
    return {row["dir"]: row["snapshot"] for row in forebay.run("mounts", "--json").json()}


@pytest.mark.semantics("C8")
def test_sync_says_what_changed(forebay: Forebay, source: Path) -> None:
    folder = forebay.mount(f"file://{source}")
    assert forebay.run("sync", folder).out == "snapshot 1: nothing has changed\n"
    (source / "changed").write_bytes(b"12")
    (source / "gone").unlink()
    (source / "new").write_bytes(b"1")
    (source / "d" / "new").write_bytes(b"1")
    done = forebay.run("sync", folder)
    assert (done.out, done.err) == ("snapshot 1 -> 3: 2 added, 1 changed, 1 removed\n", "")
    assert _snapshots(forebay) == {str(folder): 3}
    (source / "gone").write_bytes(b"1")
    assert forebay.run("sync", folder, "--json").json() == {
        "dir": str(folder),
        "dataset": forebay.run("mounts", "--json").json()[0]["dataset"],
        "snapshot": 4,
        "previous": 3,
        "added": 1,
        "changed": 0,
        "removed": 0,
        "switched": [str(folder)],
    }
    forebay.umount(folder)


def test_all_mounts_of_the_source_are_switched(forebay: Forebay, source: Path) -> None:
    folders = [forebay.mount(f"file://{source}") for _ in range(2)]
    (source / "new").write_bytes(b"1")
    done = forebay.run("sync", folders[0], "--json").json()
    assert done["switched"] == sorted(map(str, folders), key=done["switched"].index)
    assert set(_snapshots(forebay).values()) == {done["snapshot"]}
    for folder in folders:
        forebay.umount(folder)


@pytest.mark.semantics("C9")
def test_sync_that_fails(forebay: Forebay, source: Path, tmp_path: Path) -> None:
    forebay.expect_log("broke off")
    folder = forebay.mount(f"file://{source}")
    shutil.move(source, tmp_path / "away")
    done = forebay.run("sync", folder, code=1)
    assert done.err.startswith(f"forebay: file://{source} could not be listed again: ")
    assert done.err.rstrip().endswith("snapshot 1 stays")
    assert len(done.err.splitlines()) == 1
    assert _snapshots(forebay) == {str(folder): 1}
    assert sorted(path.name for path in folder.iterdir()) == ["changed", "d", "gone"]
    forebay.umount(folder)


def test_sync_of_what_is_not_mounted(forebay: Forebay, tmp_path: Path) -> None:
    done = forebay.run("sync", tmp_path, code=1)
    assert done.err == f"forebay: no source is mounted on {tmp_path}; see what is with: forebay mounts\n"
    assert forebay.processes() == {}


def test_sync_after_the_worker_was_killed_asks_for_the_options(
    forebay: Forebay, s3_client: Any, s3_options: tuple[str, ...]
) -> None:
    """Nobody but the mount's handler and the user knows them: they are on no disk."""
    s3_client.create_bucket(Bucket="sync")
    s3_client.put_object(Bucket="sync", Key="a", Body=b"1")
    folder = forebay.mount("s3://sync", *s3_options)
    os.kill(forebay.pids(folder)["worker"], signal.SIGKILL)
    s3_client.put_object(Bucket="sync", Key="b", Body=b"1")
    done = forebay.run("sync", folder, code=2)
    assert "give the --option KEY=VALUE that it was mounted with" in done.err
    assert len(done.err.splitlines()) == 1
    done = forebay.run("sync", folder, *s3_options)
    assert done.out == "snapshot 1 -> 2: 1 added, 0 changed, 0 removed\n"
    forebay.umount(folder)


def test_sync_after_the_worker_was_killed(forebay: Forebay, source: Path) -> None:
    """A new worker is told of the source by the command."""

    folder = forebay.mount(f"file://{source}")
    os.kill(forebay.pids(folder)["worker"], signal.SIGKILL)
    (source / "new").write_bytes(b"1")
    assert forebay.run("sync", folder).out == "snapshot 1 -> 2: 1 added, 0 changed, 0 removed\n"
    forebay.umount(folder)
