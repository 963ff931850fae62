"""Names, attributes and errno are those of a read-only file system."""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow, pytest.mark.sides("ways")]

MANY = 3000
MTIME_NS = 1_600_000_000_123_456_789
BIG = 3 * MIB + 5


@dataclass(frozen=True)
class Shown:
    """A mounted tree, and where it comes from."""

    mount: Path
    source: Path
    side: Any


def _make(root: Path) -> None:
    for folder in ("sub/one/deep", "sub/two", "many"):
        (root / folder).mkdir(parents=True)
    (root / "file").write_bytes(b"hello\n")
    (root / "program").write_bytes(b"#!/bin/sh\necho ran\n")
    (root / "big").write_bytes(payload("big", BIG))
    (root / "link").symlink_to("file")
    for name, mode in (("file", 0o640), ("program", 0o775), ("big", 0o444), ("sub", 0o777), ("sub/two", 0o700)):
        (root / name).chmod(mode)
    for number in range(MANY):
        (root / "many" / f"entry-{number:05d}-{'n' * (number % 50)}").write_bytes(b"")
    os.utime(root / "file", ns=(MTIME_NS, MTIME_NS))
    os.utime(root / "sub/two", ns=(MTIME_NS, MTIME_NS))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("metadata") / "source"
    root.mkdir()
    _make(root)
    return root


@pytest.fixture(scope="module")
def shown(shared_forebay: Forebay, source: Path, side: Any) -> Shown:
    mount = shared_forebay.mount(f"file://{source}", "--owner", "1234:5678", "--umask", "027", *side.args)
    return Shown(mount, source, side)


def _everything(mount: Path) -> list[str]:
    return [os.path.join(base, name) for base, folders, files in os.walk(mount) for name in folders + files]


@pytest.mark.semantics("N4")
def test_modes_owner_and_umask(shown: Shown) -> None:
    for name in ("file", "program", "big", "sub", "sub/two"):
        found, original = os.lstat(shown.mount / name), os.lstat(shown.source / name)
        assert found.st_mode == original.st_mode & ~0o027, name
        assert (found.st_uid, found.st_gid) == (1234, 5678)
    assert stat.S_ISLNK(os.lstat(shown.mount / "link").st_mode)
    assert os.lstat(shown.mount).st_uid == 1234


@pytest.mark.semantics("N5", "N9")
def test_sizes_times_and_types(shown: Shown) -> None:
    for path in ("file", "big", "program", "link", "sub/two"):
        found, original = os.lstat(shown.mount / path), os.lstat(shown.source / path)
        if not stat.S_ISDIR(original.st_mode):
            assert found.st_size == original.st_size, path
        if not stat.S_ISLNK(original.st_mode):
            assert found.st_mtime_ns == original.st_mtime_ns, path
    assert os.lstat(shown.mount / "big").st_blocks * 512 >= BIG
    assert os.readlink(shown.mount / "link") == "file"
    assert (shown.mount / "link").read_bytes() == b"hello\n"


@pytest.mark.semantics("N6")
def test_links_of_folders_count_their_subfolders(shown: Shown) -> None:
    expected = {".": 2 + 2, "sub": 2 + 2, "sub/one": 2 + 1, "sub/one/deep": 2, "sub/two": 2, "many": 2}
    assert {path: os.stat(shown.mount / path).st_nlink for path in expected} == expected
    assert os.stat(shown.mount / "file").st_nlink == 1


def test_inode_numbers_are_unique_and_agree_with_the_listing(shown: Shown) -> None:
    numbers = {path: os.lstat(path).st_ino for path in [str(shown.mount), *_everything(shown.mount)]}
    assert len(set(numbers.values())) == len(numbers)
    assert 0 not in numbers.values()
    with os.scandir(shown.mount / "sub") as entries:
        assert {entry.inode() for entry in entries} == {numbers[f"{shown.mount}/sub/{n}"] for n in ("one", "two")}


def test_parents_are_found(shown: Shown) -> None:
    deep = shown.mount / "sub" / "one" / "deep"
    assert os.stat(f"{deep}/..").st_ino == os.stat(shown.mount / "sub" / "one").st_ino
    assert os.stat(f"{deep}/../../..").st_ino == os.stat(shown.mount).st_ino


def test_a_folder_with_many_entries(shown: Shown) -> None:
    expected = set(os.listdir(shown.source / "many"))
    assert len(expected) == MANY
    listed = os.listdir(shown.mount / "many")
    assert (len(listed), set(listed)) == (MANY, expected)
    with os.scandir(shown.mount / "many") as entries:
        assert all(entry.is_file(follow_symlinks=False) for entry in entries)
    assert set(os.listdir(shown.mount / "many")) == expected, "from the kernel's cache"


_libc = ctypes.CDLL(None, use_errno=True)
_SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}.get(os.uname().machine)


def _getdents(descriptor: int, size: int) -> list[tuple[bytes, int, int]]:
    """One getdents64(2): (name, cookie, type)."""
    buffer = ctypes.create_string_buffer(size)
    got = _libc.syscall(_SYS_GETDENTS64, descriptor, buffer, size)
    if got < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    found, at = [], 0
    while at < got:
        _, cookie, length, kind = struct.unpack_from("=QqHB", buffer, at)
        found.append((buffer.raw[at + 19 : at + length].split(b"\0")[0], cookie, kind))
        at += length
    return found


@pytest.mark.skipif(_SYS_GETDENTS64 is None, reason="the number of getdents64 on this machine is not known")
def test_listing_in_small_steps_and_from_any_place(shown: Shown, side: Any) -> None:
    """[N10] As readdir(3) with telldir and seekdir: each name once, and the same rest from each cookie."""
    dots = [] if side.engine == "pyfuse3" else [b".", b".."]
    descriptor = os.open(shown.mount / "many", os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries: list[tuple[bytes, int, int]] = []
        while step := _getdents(descriptor, 300):
            entries += step
        names = [name for name, _, _ in entries]
        assert sorted(names) == sorted([*dots, *map(os.fsencode, os.listdir(shown.source / "many"))])
        assert {kind for name, _, kind in entries if name not in (b".", b"..")} == {stat.S_IFREG >> 12}
        for place in (0, 1, 2, 700, 1500, len(entries) - 2):
            os.lseek(descriptor, entries[place][1], os.SEEK_SET)
            rest: list[bytes] = []
            while step := _getdents(descriptor, 32768):
                rest += [name for name, _, _ in step]
            assert rest == names[place + 1 :], place
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert _getdents(descriptor, 300)[0][0] == names[0]
    finally:
        os.close(descriptor)


@pytest.mark.semantics("N7")
def test_extended_attributes(shown: Shown) -> None:
    path = shown.mount / "big"
    assert os.getxattr(path, "user.forebay.source") == os.fsencode(f"file://{shown.source}/big")
    assert os.getxattr(path, "user.forebay.etag")
    path.read_bytes()
    assert os.getxattr(path, "user.forebay.cached") == b"%d/%d" % (BIG, BIG)
    medium, _, folder = os.getxattr(path, "user.forebay.tier").decode().partition(":")
    assert medium == "SSD"
    assert Path(folder).is_dir()
    assert set(os.listxattr(path)) == {f"user.forebay.{name}" for name in ("source", "etag", "cached", "tier")}
    assert os.getxattr(shown.mount / "many" / "entry-00000-", "user.forebay.cached") == b"0/0"
    assert os.listxattr(shown.mount / "sub") == ["user.forebay.source"]
    assert os.getxattr(shown.mount / "sub", "user.forebay.source") == os.fsencode(f"file://{shown.source}/sub")
    for name in ("user.other", "user.forebay.nothing", "security.capability", "trusted.x"):
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ENODATA}\]"):
            os.getxattr(path, name)


def test_cached_attribute_before_and_after(shown: Shown) -> None:
    path = shown.mount / "program"
    size = len(b"#!/bin/sh\necho ran\n")
    assert os.getxattr(path, "user.forebay.cached") in (b"0/%d" % size, b"%d/%d" % (size, size))
    path.read_bytes()
    assert os.getxattr(path, "user.forebay.cached") == b"%d/%d" % (size, size)


@pytest.mark.semantics("N8")
def test_statvfs(shown: Shown) -> None:
    found = os.statvfs(shown.mount)
    files = [path for path in shown.source.rglob("*") if path.is_file() and not path.is_symlink()]
    assert found.f_blocks * found.f_frsize >= sum(path.stat().st_size for path in files)
    assert found.f_files >= len(files)
    assert (found.f_bfree, found.f_bavail, found.f_ffree, found.f_namemax) == (0, 0, 0, 255)
    assert found.f_flag & os.ST_RDONLY


WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda m: os.open(m / "file", os.O_WRONLY),
    "open for both": lambda m: os.open(m / "file", os.O_RDWR),
    "open to append": lambda m: os.open(m / "file", os.O_WRONLY | os.O_APPEND),
    "open and truncate": lambda m: os.open(m / "file", os.O_WRONLY | os.O_TRUNC),
    "create": lambda m: os.open(m / "new", os.O_CREAT | os.O_WRONLY),
    "truncate": lambda m: os.truncate(m / "file", 0),
    "mkdir": lambda m: os.mkdir(m / "new"),
    "rmdir": lambda m: os.rmdir(m / "sub/two"),
    "unlink": lambda m: os.unlink(m / "file"),
    "rename": lambda m: os.rename(m / "file", m / "new"),
    "link": lambda m: os.link(m / "file", m / "new"),
    "symlink": lambda m: os.symlink("file", m / "new"),
    "mknod": lambda m: os.mknod(m / "new"),
    "chmod": lambda m: os.chmod(m / "file", 0o777),
    "chown": lambda m: os.chown(m / "file", 0, 0),
    "utime": lambda m: os.utime(m / "file", (1, 1)),
    "setxattr": lambda m: os.setxattr(m / "file", "user.x", b"1"),
    "removexattr": lambda m: os.removexattr(m / "file", "user.forebay.etag"),
}


@pytest.mark.semantics("E1", "L1")
@pytest.mark.parametrize("what", WRITES)
def test_writing_is_refused(shown: Shown, what: str) -> None:
    with pytest.raises(OSError) as caught:
        WRITES[what](shown.mount)
    assert caught.value.errno == errno.EROFS


REFUSED: dict[str, tuple[int, Callable[[Path], object]]] = {
    "stat of nothing": (errno.ENOENT, lambda m: os.stat(m / "nothing")),
    "open of nothing": (errno.ENOENT, lambda m: os.open(m / "sub/nothing/at/all", os.O_RDONLY)),
    "nothing again": (errno.ENOENT, lambda m: os.stat(m / "nothing")),
    "below a file": (errno.ENOTDIR, lambda m: os.stat(m / "file/x")),
    "list a file": (errno.ENOTDIR, lambda m: os.listdir(m / "file")),
    "a name of 256": (errno.ENAMETOOLONG, lambda m: os.stat(m / ("n" * 256))),
    "write to a folder": (errno.EISDIR, lambda m: os.open(m / "sub", os.O_WRONLY)),
    "a link, not followed": (errno.ELOOP, lambda m: os.open(m / "link", os.O_RDONLY | os.O_NOFOLLOW)),
    "readlink of a file": (errno.EINVAL, lambda m: os.readlink(m / "file")),
}


@pytest.mark.semantics("E2")
@pytest.mark.parametrize("what", REFUSED)
def test_errno(shown: Shown, what: str) -> None:
    number, call = REFUSED[what]
    with pytest.raises(OSError) as caught:
        call(shown.mount)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def test_reading_a_folder_is_refused(shown: Shown) -> None:
    descriptor = os.open(shown.mount / "sub", os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            os.read(descriptor, 1)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("path", ["file", "big"])
def test_the_only_hole_is_at_the_end(shown: Shown, path: str) -> None:
    size = os.stat(shown.source / path).st_size
    descriptor = os.open(shown.mount / path, os.O_RDONLY)
    try:
        for offset in (0, 3, size - 1):
            assert os.lseek(descriptor, offset, os.SEEK_DATA) == offset
            assert os.lseek(descriptor, offset, os.SEEK_HOLE) == size
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (size, size + 1):
                with pytest.raises(OSError, match=rf"^\[Errno {errno.ENXIO}\]"):
                    os.lseek(descriptor, offset, whence)
        assert os.lseek(descriptor, -2, os.SEEK_END) == size - 2
        assert os.pread(descriptor, 100, size) == b""
        assert os.pread(descriptor, 100, size + 10_000) == b""
    finally:
        os.close(descriptor)


def test_a_program_runs_from_the_mount(shown: Shown) -> None:
    assert subprocess.run([shown.mount / "program"], capture_output=True, check=True, timeout=20).stdout == b"ran\n"


@pytest.mark.sides("kernel", soak="ways")
@pytest.mark.semantics("N3")
def test_inode_numbers_outlive_the_mount(forebay: Forebay, source: Path, side: Any) -> None:
    mount = forebay.mount(f"file://{source}", *side.args)
    before = {path: os.lstat(path).st_ino for path in _everything(mount)}
    forebay.umount(mount)
    forebay.mount(f"file://{source}", *side.args, at=mount)
    assert {path: os.lstat(path).st_ino for path in _everything(mount)} == before
    assert len(before) > MANY


_AS_NOBODY = "import os, sys; os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534); print(open('file').read())"


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.parametrize("allowed", [False, True])
def test_other_users(forebay: Forebay, folder: Any, side: Any, allowed: bool) -> None:
    """Only with --allow-other may they look, and then the modes hold."""
    folder.put("file", b"open")
    folder.put("closed", b"secret")
    os.chmod(folder.root / "file", 0o644)
    os.chmod(folder.root / "closed", 0o600)
    mount = forebay.mount(folder.source, *side.args, *(["--allow-other"] if allowed else []))
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", _AS_NOBODY, mount], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.stdout == "open\n") is allowed, done
    if allowed:
        script = _AS_NOBODY.replace("'file'", "'closed'")
        done = subprocess.run(
            [sys.executable, "-S", "-E", "-c", script, mount], capture_output=True, text=True, timeout=20, check=False
        )
    assert "PermissionError" in done.stderr


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("N4")
def test_attributes_of_objects(forebay: Forebay, bucket: Any, side: Any) -> None:
    """An object has no mode: files are 0666 and folders 0777, less the umask; folders are made of the keys."""
    bucket.put("a/b/object", b"12345")
    mount = forebay.mount(bucket.source, *bucket.args, *side.args)
    found = os.stat(mount / "a/b/object")
    assert (stat.S_IMODE(found.st_mode), found.st_size, found.st_nlink) == (0o644, 5, 1)
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    above = os.stat(mount / "a")
    assert (stat.S_IMODE(above.st_mode), above.st_nlink) == (0o755, 3)
    # The canonical URL: with an endpoint of its own, a bucket is another source than AWS's bucket of that name.
    assert os.getxattr(mount / "a/b/object", "user.forebay.source").endswith(f"/{bucket.name}/root/a/b/object".encode())
    assert os.getxattr(mount / "a/b/object", "user.forebay.etag").strip(b'"') == b"827ccb0eea8a706c4c34a16891f84e7b"
