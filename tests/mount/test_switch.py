"""A sync as programs on the mount see it: names, attributes and listings that the kernel has cached, and open files."""

import mmap
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, wait_until
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow]

OLD, NEW = payload("old", 3 * MIB + 5), payload("new", 2 * MIB + 1)


def _look(mount: Path) -> dict[str, tuple[int, int]]:
    """Every path with its size and link count, by way of all that the kernel caches: listings, names, attributes."""
    found = {}
    for folder, folders, files in os.walk(mount):
        for name in [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            found[str(path.relative_to(mount))] = (status.st_size if name in files else 0, status.st_nlink)
    return found


@pytest.mark.sides("ways", soak="modes")
@pytest.mark.semantics("C8", "C10")
def test_everything_that_may_change(forebay: Forebay, folder: Any, side: Any) -> None:
    folder.put("kept/file", b"kept")
    folder.put("changed", OLD)
    folder.put("removed", b"removed" * 1000)
    folder.put("gone/below/file", b"x")
    folder.put("was-file", b"f")
    folder.put("was-folder/file", b"g")
    mount = forebay.mount(folder.source, *side.args)
    before = _look(mount)
    assert before["changed"] == (len(OLD), 1)
    assert not (mount / "added").exists(), "the kernel keeps that there is no such name"
    assert (mount / "changed").read_bytes() == OLD
    descriptors = {name: os.open(mount / name, os.O_RDONLY) for name in ("changed", "removed")}
    with open(mount / "changed", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert os.pread(descriptors["removed"], 7, 0) == b"removed"
    inside = os.open(mount / "gone" / "below", os.O_RDONLY | os.O_DIRECTORY)

    folder.put("changed", NEW)
    folder.remove("removed")
    folder.put("added", b"added")
    folder.remove("gone/below/file")
    (folder.root / "gone/below").rmdir()
    (folder.root / "gone").rmdir()
    folder.remove("was-file")
    folder.put("was-file/inner", b"inner")
    folder.remove("was-folder/file")
    (folder.root / "was-folder").rmdir()
    folder.put("was-folder", b"now a file")
    assert _look(mount) == before, "nothing changes without a sync"
    forebay.run("sync", mount)

    after = _look(mount)
    assert set(after) == {"kept", "kept/file", "changed", "added", "was-file", "was-file/inner", "was-folder"}
    assert (mount / "added").read_bytes() == b"added"
    assert (mount / "changed").read_bytes() == NEW
    assert (mount / "was-folder").read_bytes() == b"now a file"
    assert (mount / "was-file/inner").read_bytes() == b"inner"
    for name in ("removed", "gone", "gone/below/file", "was-folder/file"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            os.stat(mount / name)
    assert os.pread(descriptors["changed"], len(OLD), 0) == OLD
    assert os.pread(descriptors["removed"], 7000, 0) == b"removed" * 1000
    assert mapped[:] == OLD
    assert os.fstat(descriptors["changed"]).st_size == len(OLD)
    assert os.listdir(inside) == []
    mapped.close()
    for descriptor in (*descriptors.values(), inside):
        os.close(descriptor)
    forebay.umount(mount)
    assert forebay.leftovers() == []


@pytest.mark.semantics("C8")
def test_handlers_that_come_later_show_the_new_snapshot(forebay: Forebay, folder: Any) -> None:
    """All handlers are killed after a sync; and in the middle of one."""
    folder.put("file", b"1")
    mount = forebay.mount(folder.source, "--handlers", "2")
    wait_until(lambda: len(forebay.pids(mount)["handlers"]) == 2, "two handlers")
    for number in range(2, 5):
        folder.put("file", b"%d" % number * number)
        process = forebay.start("sync", mount)
        if number == 3:
            for pid in forebay.pids(mount)["handlers"]:
                os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert (mount / "file").read_bytes() == b"%d" % number * number
        if number == 4:
            for pid in forebay.pids(mount)["handlers"]:
                os.kill(pid, signal.SIGKILL)
            assert (mount / "file").read_bytes() == b"4444"
    assert forebay.run("mounts", "--json").json()[0]["snapshot"] == 4
    forebay.umount(mount)


@pytest.mark.semantics("C8")
def test_two_mounts_switch_with_one_sync(forebay: Forebay, folder: Any) -> None:
    """The older one, which shows an older snapshot, too."""
    folder.put("file", b"first")
    first = forebay.mount(folder.source)
    assert (first / "file").read_bytes() == b"first"
    folder.put("file", b"second!")
    second = forebay.mount(folder.source)
    assert ((first / "file").read_bytes(), (second / "file").read_bytes()) == (b"first", b"second!")
    folder.put("file", b"third!!!!")
    forebay.run("sync", second)
    assert ((first / "file").read_bytes(), (second / "file").read_bytes()) == (b"third!!!!", b"third!!!!")
    assert {row["snapshot"] for row in forebay.run("mounts", "--json").json()} == {3}
    forebay.umount(first)
    forebay.umount(second)
    assert forebay.leftovers() == []


@pytest.mark.soak
def test_soak_syncs_under_readers(forebay: Forebay, folder: Any) -> None:
    """Fifty syncs while readers look: a path has one of the contents that it ever had, and the newest after each."""
    forebay.expect_log("has changed since it was listed")
    names = [f"d{n % 5}/f{n}" for n in range(50)]
    for name in names:
        folder.put(name, payload(f"{name} 0", 30_000))
    mount = forebay.mount(folder.source, "--handlers", "2")
    for turn in range(1, 51):
        for name in names[turn % 10 :: 10]:
            folder.put(name, payload(f"{name} {turn}", 30_000 + turn))
        reading = forebay.start_reading(
            [{"jobs": [["read", str(mount / n)] for n in names], "seed": turn, "rounds": 2}]
        )
        forebay.run("sync", mount)
        assert all("sha256" in r or r["errno"] == "ESTALE" for r in reading.results())
        for name in names[turn % 10 :: 10]:
            assert (mount / name).read_bytes() == payload(f"{name} {turn}", 30_000 + turn)
    forebay.umount(mount)
    assert forebay.leftovers() == []
