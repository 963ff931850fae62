"""A source file that changes under its readers: old bytes or ESTALE, never a mix."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow, pytest.mark.sides("ways")]

SIZE = 16 * MIB + 33
OLD = payload("old", SIZE)
CHANGES = {
    "same size": payload("new", SIZE),
    "shorter": payload("new", 9 * MIB + 1),
    "longer": payload("new", SIZE + 5 * MIB),
}
STALE = r"has changed|changed and cannot|ESTALE|listed|stale|no longer|is not the version|there is no"
"""What the logs may say of it."""


def _open_cold(path: Path) -> int:
    """Open and read the first bytes only, with the kernel's read-ahead off."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    assert os.pread(descriptor, 4096, 0) == OLD[:4096]
    return descriptor


def _read_on(descriptor: int) -> list[int]:
    """Read pieces all over; each is old or stale. Returns the offsets of the stale ones."""
    stale = []
    for offset in range(0, SIZE, MIB):
        try:
            piece = os.pread(descriptor, 100_000, offset)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            stale.append(offset)
        else:
            assert piece == OLD[offset : offset + 100_000], f"at {offset}: neither the old bytes nor ESTALE"
    return stale


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.sides("kernel", soak="ways")
@pytest.mark.semantics("C3", "C4", "C5", "E3")
@pytest.mark.parametrize(
    "change", ["same size", *(pytest.param(c, marks=pytest.mark.soak) for c in ("shorter", "longer"))]
)
def test_replaced_while_open(forebay: Forebay, origin: Any, side: Any, change: str) -> None:
    forebay.expect_log(STALE)
    origin.put("folder/file", OLD)
    origin.put("folder/other", b"other")
    mount = forebay.mount(origin.source, *origin.args, *side.args)
    descriptor = _open_cold(mount / "folder/file")
    try:
        origin.put("folder/file", CHANGES[change])
        assert _read_on(descriptor), "all was cached already: the test shows nothing"
        (result,) = forebay.read([{"jobs": [["read", str(mount / "folder/file")]]}])
        assert result.get("sha256") == _sha(CHANGES[change]), result
        _read_on(descriptor)
    finally:
        os.close(descriptor)
    assert os.stat(mount / "folder/file").st_size == len(CHANGES[change])
    assert (mount / "folder/other").read_bytes() == b"other"
    assert sorted(os.listdir(mount / "folder")) == ["file", "other"]


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("C6", "L4")
def test_overwritten_in_place_while_open(forebay: Forebay, folder: Any, side: Any) -> None:
    """A careless writer, who writes into the file instead of renaming a new one over it."""
    forebay.expect_log(STALE)
    folder.put("file", OLD)
    mount = forebay.mount(folder.source, *side.args)
    descriptor = _open_cold(mount / "file")
    try:
        with open(folder.root / "file", "r+b") as file:
            file.write(CHANGES["same size"])
        assert _read_on(descriptor)
        (result,) = forebay.read([{"jobs": [["pread", str(mount / "file")]]}])
        assert result.get("sha256") == _sha(CHANGES["same size"]), result
    finally:
        os.close(descriptor)


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("C4", "C5")
def test_deleted_while_open(forebay: Forebay, origin: Any, side: Any) -> None:
    forebay.expect_log(STALE)
    origin.put("file", OLD)
    origin.put("other", b"other")
    mount = forebay.mount(origin.source, *origin.args, *side.args)
    descriptor = _open_cold(mount / "file")
    try:
        origin.remove("file")
        assert _read_on(descriptor)
    finally:
        os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        os.open(mount / "file", os.O_RDONLY)
    assert os.listdir(mount) == ["other"]


@pytest.mark.sides("kernel", soak="ways")
def test_a_small_file_replaced_before_its_first_read(forebay: Forebay, origin: Any, side: Any) -> None:
    """The first read says so; the next open has the new content."""
    forebay.expect_log(STALE)
    origin.put("file", b"old content")
    mount = forebay.mount(origin.source, *origin.args, *side.args)
    assert os.stat(mount / "file").st_size == 11
    origin.put("file", b"the new content")
    with pytest.raises(OSError, match=rf"^\[Errno {errno.ESTALE}\]"):
        (mount / "file").read_bytes()
    assert (mount / "file").read_bytes() == b"the new content"


@pytest.mark.sides("kernel", soak="ways")
@pytest.mark.semantics("C1", "C7")
def test_what_is_cached_stays_as_it_was_listed(forebay: Forebay, origin: Any, side: Any) -> None:
    """A mount shows one snapshot; the next mount lists again."""
    origin.put("file", b"old content")
    mount = forebay.mount(origin.source, *origin.args, *side.args)
    assert (mount / "file").read_bytes() == b"old content"
    origin.put("file", b"the new content")
    origin.put("added", b"added")
    assert (mount / "file").read_bytes() == b"old content"
    assert os.listdir(mount) == ["file"]
    forebay.umount(mount)
    forebay.mount(origin.source, *origin.args, *side.args, at=mount)
    assert (mount / "file").read_bytes() == b"the new content"
    assert (mount / "added").read_bytes() == b"added"


@pytest.mark.sides("kernel", soak="engines")
def test_replaced_in_the_middle_of_a_fetch(forebay: Forebay, bucket: Any, side: Any) -> None:
    """While four readers wait for bytes on the wire, the object is replaced: each ends with the old ones or ESTALE."""
    forebay.expect_log(STALE)
    bucket.put("file", OLD)
    mount = forebay.mount(bucket.source, *bucket.args, *side.args)
    bucket.link.hold_after(5 * MIB)
    reading = forebay.start_reading(
        [
            {"jobs": [[how, str(mount / "file")]], "seed": n}
            for n, how in enumerate(("read", "pread", "sendfile", "read"))
        ]
    )
    bucket.link.wait_held()
    bucket.put("file", CHANGES["same size"])
    bucket.link.release()
    for result in reading.results():
        assert result.get("sha256") == _sha(OLD) or result.get("errno") == "ESTALE", result
    final = forebay.read([{"jobs": [["read", str(mount / "file")]], "rounds": 2}])
    assert final[-1].get("sha256") == _sha(CHANGES["same size"]) or (
        final[-1].get("sha256") == _sha(OLD) and forebay.dataset(mount)["cached_files"] == 1
    ), final
