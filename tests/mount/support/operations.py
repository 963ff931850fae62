"""The operations of the table in docs/SEMANTICS.md: a program that tries each on a mount. Standard library only.

``python operations.py MOUNT`` prints one JSON object, id -> outcome: ``works``, an errno by name, ``SIGBUS``, or
another word that the operation returned. What works also checks what it got: an assertion that fails is
``wrong: ...``. Nothing here may change the mount: each operation leaves no descriptor and no lock.

It is long as it is a list: one short function for each row, in the order of the table.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BIG_BYTES = 3 * (1 << 20) + 5
PAGE = mmap.PAGESIZE
HELLO = b"hello\n"
LONG = "n" * 256
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_RWF_NOWAIT, _RWF_UNKNOWN = 8, 1 << 30
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FICLONE, _FIONREAD = 0x80086601, 0x40086602, 0x40049409, 0x541B
"""Of linux/fs.h and asm-generic/ioctls.h, where a long has 8 bytes."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.readahead.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_size_t]
_libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
_libc.lseek.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int]
_libc.lseek.restype = ctypes.c_int64

Operation = Callable[[Path], object]
OPERATIONS: dict[str, Operation] = {}
CHANGES: set[str] = set()
"""Those that would change something, and must not whatever the mount's flags are."""


def operation(name: str, *, changes: bool = False) -> Callable[[Operation], Operation]:
    """Enter a function under its id in the document."""

    def enter(function: Operation) -> Operation:
        assert name not in OPERATIONS, name
        OPERATIONS[name] = function
        if changes:
            CHANGES.add(name)
        return function

    return enter


def make_source(root: Path) -> None:
    """The tree that the operations expect."""
    (root / "sub" / "void").mkdir(parents=True)
    (root / "closed").mkdir()
    for name, data in (("file", HELLO), ("empty", b""), ("sub/inner", b"inner"), ("program", b"#!/bin/sh\nexit 7\n")):
        (root / name).write_bytes(data)
        (root / name).chmod(0o644)
    (root / "closed" / "inner").write_bytes(b"inner")
    (root / "program").chmod(0o755)
    (root / "big").write_bytes(big_bytes())
    for name, target in (("link", "file"), ("dangling", "nothing"), ("loop", "loop"), ("folder", "sub")):
        (root / name).symlink_to(target)


def big_bytes() -> bytes:
    """Content of `big`: each 8 bytes tell their own offset."""
    whole = b"".join(struct.pack("<Q", at) for at in range(0, BIG_BYTES + 8, 8))
    return whole[:BIG_BYTES]


def outcome_of(function: Operation, mount: Path) -> str:
    """Try one operation."""
    try:
        found = function(mount)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except AssertionError as error:
        return f"wrong: {error}"
    return found if isinstance(found, str) else "works"


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def checked(result: int) -> int:
    """What a libc function returned; its errno is raised."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def is_equal(found: object, expected: object) -> None:
    assert found == expected, f"{found!r:.200} is not {expected!r:.200}"


def just_open(path: Path, flags: int) -> None:
    with opened(path, flags):
        pass


# Opening


@operation("O1", changes=True)
def _(m: Path) -> object:
    return just_open(m / "file", os.O_WRONLY)


@operation("O2", changes=True)
def _(m: Path) -> object:
    return just_open(m / "big", os.O_RDWR)


@operation("O3", changes=True)
def _(m: Path) -> object:
    return just_open(m / "file", os.O_WRONLY | os.O_APPEND)


@operation("O4", changes=True)
def _(m: Path) -> object:
    return just_open(m / "file", os.O_RDONLY | os.O_TRUNC)


@operation("O5", changes=True)
def _(m: Path) -> object:
    return just_open(m / "new", os.O_RDONLY | os.O_CREAT)


@operation("O6", changes=True)
def _(m: Path) -> object:
    return just_open(m / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


@operation("O7")
def _(m: Path) -> object:
    return just_open(m / "file", os.O_RDONLY | os.O_CREAT)


@operation("O8")
def _(m: Path) -> object:
    return just_open(m / "file", os.O_RDONLY | os.O_CREAT | os.O_EXCL)


@operation("O9", changes=True)
def _(m: Path) -> object:
    return just_open(m / "sub", os.O_RDWR | os.O_TMPFILE)


@operation("O10")
def _(m: Path) -> object:
    return just_open(m / "sub", os.O_WRONLY)


@operation("O11")
def _(m: Path) -> object:
    return just_open(m / "sub", os.O_RDONLY | os.O_CREAT)


@operation("O12")
def _(m: Path) -> object:
    return just_open(m / "file", os.O_RDONLY | os.O_DIRECTORY)


@operation("O13")
def _(m: Path) -> object:
    return just_open(m / "link", os.O_RDONLY | os.O_NOFOLLOW)


@operation("O14")
def _(m: Path) -> object:
    with opened(m / "link", os.O_PATH | os.O_NOFOLLOW) as descriptor:
        assert stat.S_ISLNK(os.fstat(descriptor).st_mode)
        return is_equal(os.readlink("", dir_fd=descriptor), "file")


@operation("O15")
def _(m: Path) -> object:
    return just_open(m / "dangling", os.O_RDONLY)


@operation("O16")
def _(m: Path) -> object:
    return just_open(m / "loop", os.O_RDONLY)


@operation("O17", changes=True)
def _(m: Path) -> object:
    return just_open(m / "dangling", os.O_WRONLY | os.O_CREAT)


# Names


@operation("O20")
def _(m: Path) -> object:
    return os.lstat(m / "nothing")


@operation("O21")
def _(m: Path) -> object:
    return os.lstat(m / LONG[:255])


@operation("O22")
def _(m: Path) -> object:
    return os.lstat(m / LONG)


@operation("O23")
def _(m: Path) -> object:
    return os.lstat(f"{m}/{'sub/../' * 1000}file")


@operation("O24")
def _(m: Path) -> object:
    return os.lstat(m / "file" / "x")


@operation("O25")
def _(m: Path) -> object:
    return os.lstat(f"{m}/file/")


@operation("O26")
def _(m: Path) -> object:
    is_equal(os.stat(f"{m}/sub/void/../../file").st_ino, os.stat(m / "file").st_ino)
    return is_equal(os.stat(f"{m}/folder/./inner").st_size, 5)


@operation("O27")
def _(m: Path) -> object:
    return os.readlink(m / "file")


@operation("O28")
def _(m: Path) -> object:
    return os.readlink(m / "sub")


@operation("O29")
def _(m: Path) -> object:
    buffer = ctypes.create_string_buffer(b"....")
    is_equal(checked(_libc.readlink(os.fsencode(m / "link"), buffer, 2)), 2)
    return is_equal(buffer.value, b"fi..")


# Changing names


@operation("O30", changes=True)
def _(m: Path) -> object:
    return os.mkdir(m / "new")


@operation("O31")
def _(m: Path) -> object:
    return os.mkdir(m / "sub")


@operation("O32", changes=True)
def _(m: Path) -> object:
    return os.rmdir(m / "sub/void")


@operation("O33", changes=True)
def _(m: Path) -> object:
    return os.unlink(m / "file")


@operation("O34", changes=True)
def _(m: Path) -> object:
    return os.rename(m / "file", m / "new")


@operation("O35", changes=True)
def _(m: Path) -> object:
    return os.rename(m / "file", m / "empty")


@operation("O36", changes=True)
def _(m: Path) -> object:
    return _rename2(m / "file", m / "empty", _RENAME_EXCHANGE)


@operation("O37", changes=True)
def _(m: Path) -> object:
    return _rename2(m / "file", m / "new", _RENAME_NOREPLACE)


@operation("O38")
def _(m: Path) -> object:
    return os.rename(m / "file", f"/dev/shm/forebay-{os.getpid()}")


@operation("O39", changes=True)
def _(m: Path) -> object:
    return os.link(m / "file", m / "new")


@operation("O40")
def _(m: Path) -> object:
    return os.link(m / "file", m / "empty")


@operation("O41", changes=True)
def _(m: Path) -> object:
    return os.symlink("file", m / "new")


@operation("O42", changes=True)
def _(m: Path) -> object:
    return os.mknod(m / "new", stat.S_IFREG | 0o600)


@operation("O43", changes=True)
def _(m: Path) -> object:
    return os.mkfifo(m / "new")


@operation("O44", changes=True)
def _(m: Path) -> object:
    with socket.socket(socket.AF_UNIX) as one:
        folder = os.open(m / "sub", os.O_PATH)  # the path of a socket has 108 bytes at most
        try:
            return one.bind(f"/proc/self/fd/{folder}/new")
        finally:
            os.close(folder)


def _rename2(old: Path, new: Path, flags: int) -> None:
    checked(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


# Changing attributes


@operation("O50", changes=True)
def _(m: Path) -> object:
    return os.chmod(m / "file", 0o777)


@operation("O51", changes=True)
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return os.fchmod(descriptor, 0o777)


@operation("O52", changes=True)
def _(m: Path) -> object:
    return os.chown(m / "file", 1, 1)


@operation("O53", changes=True)
def _(m: Path) -> object:
    return os.lchown(m / "link", 1, 1)


@operation("O54", changes=True)
def _(m: Path) -> object:
    return os.utime(m / "file", (1, 1))


@operation("O55", changes=True)
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return os.utime(descriptor)


@operation("O56", changes=True)
def _(m: Path) -> object:
    return os.utime(m / "link", (1, 1), follow_symlinks=False)


@operation("O57", changes=True)
def _(m: Path) -> object:
    return os.setxattr(m / "file", "user.x", b"1")


@operation("O58", changes=True)
def _(m: Path) -> object:
    return os.setxattr(m / "file", "user.forebay.etag", b"1", os.XATTR_REPLACE)


@operation("O59", changes=True)
def _(m: Path) -> object:
    return os.removexattr(m / "file", "user.forebay.etag")


@operation("O60", changes=True)
def _(m: Path) -> object:
    return os.removexattr(m / "file", "user.absent")


@operation("O61", changes=True)
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("l", 0x40))


# Changing content


@operation("O70", changes=True)
def _(m: Path) -> object:
    return os.truncate(m / "file", 1)


@operation("O71")
def _(m: Path) -> object:
    return os.truncate(m / "sub", 1)


@operation("O72")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return os.ftruncate(descriptor, 1)


@operation("O73")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return os.write(descriptor, b"x")


@operation("O74")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return checked(_libc.fallocate(descriptor, 0, 0, PAGE))


@operation("O75")
def _(m: Path) -> object:
    with opened(m / "file") as target, opened(m / "big") as source:
        return os.copy_file_range(source, target, PAGE, 0, 0)


@operation("O76")
def _(m: Path) -> object:
    with opened(m / "file") as target, opened(m / "big") as source:
        return os.sendfile(target, source, 0, PAGE)


@operation("O77")
def _(m: Path) -> object:
    with opened(m / "file") as target, opened(m / "big") as source:
        return fcntl.ioctl(target, _FICLONE, source)


@operation("O78")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return mmap.mmap(descriptor, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


@operation("O79")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        address = _libc.mmap(None, ctypes.c_size_t(PAGE), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
        try:
            return checked(
                _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)
            )
        finally:
            _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE))


@operation("O80")
def _(m: Path) -> object:
    with (
        opened(m / "big") as descriptor,
        mmap.mmap(descriptor, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        mapped[:5] = b"mine!"
        return is_equal(os.pread(descriptor, 5, 0), big_bytes()[:5])


# Reading


@operation("O90")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return is_equal(os.pread(descriptor, PAGE + 3, PAGE - 1), big_bytes()[PAGE - 1 : 2 * PAGE + 2])


@operation("O91")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        is_equal(os.pread(descriptor, 100, BIG_BYTES - 3), big_bytes()[-3:])
        for offset in (BIG_BYTES, BIG_BYTES + PAGE, 1 << 50):
            is_equal(os.pread(descriptor, 100, offset), b"")
    return None


@operation("O92")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return checked(_libc.pread(descriptor, ctypes.create_string_buffer(4), 4, -1))


@operation("O93")
def _(m: Path) -> object:
    with opened(m / "sub") as descriptor:
        return os.read(descriptor, 1)


@operation("O94")
def _(m: Path) -> object:
    with opened(m / "empty") as descriptor:
        is_equal(os.read(descriptor, 10), b"")
        return is_equal(os.lseek(descriptor, 0, os.SEEK_END), 0)


@operation("O95")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        is_equal(os.preadv(descriptor, [bytearray(3), one := bytearray(7)], 1), 10)
        return is_equal(bytes(one), big_bytes()[4:11])


@operation("O96")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        os.pread(descriptor, PAGE, 0)
        return os.preadv(descriptor, [bytearray(PAGE)], 0, _RWF_NOWAIT) and None


@operation("O97")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return os.preadv(descriptor, [bytearray(PAGE)], 0, _RWF_UNKNOWN) and None


@operation("O98")
def _(m: Path) -> object:
    return _direct(m, offset=PAGE, size=2 * PAGE)


@operation("O99")
def _(m: Path) -> object:
    return _direct(m, offset=BIG_BYTES - BIG_BYTES % PAGE, size=PAGE)


@operation("O100")
def _(m: Path) -> object:
    return _direct(m, offset=7, size=1000)


@operation("O101")
def _(m: Path) -> object:
    with opened(m / "file", os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, PAGE) as buffer:
        is_equal(os.preadv(descriptor, [buffer], 0), len(HELLO))
        return is_equal(buffer[: len(HELLO)], HELLO)


@operation("O102")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
        with mmap.mmap(-1, PAGE) as buffer:
            is_equal(os.preadv(descriptor, [buffer], 0), PAGE)
            return is_equal(buffer[:], big_bytes()[:PAGE])


@operation("O103")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor, mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        is_equal(len(mapped), BIG_BYTES)
        mapped.madvise(mmap.MADV_WILLNEED)
        mapped.madvise(mmap.MADV_RANDOM)
        is_equal(mapped[BIG_BYTES - 4 :], big_bytes()[-4:])
        mapped.madvise(mmap.MADV_DONTNEED)
        mapped.flush()
        return is_equal(mapped[:], big_bytes())


@operation("O104")
def _(m: Path) -> object:
    """The rest of the last page is zeros, as mmap(2) has it."""
    whole = -(-BIG_BYTES // PAGE) * PAGE
    with opened(m / "big") as descriptor:
        address = _libc.mmap(
            None, ctypes.c_size_t(whole), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0)
        )
        try:
            return is_equal(ctypes.string_at(address + BIG_BYTES, whole - BIG_BYTES), bytes(whole - BIG_BYTES))
        finally:
            _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(whole))


@operation("O105")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        address = _libc.mmap(
            None, ctypes.c_size_t(4 * PAGE), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0)
        )
    child = os.fork()
    if not child:
        ctypes.string_at(address + 2 * PAGE, 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(4 * PAGE))
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "works"


@operation("O106")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        sink = os.memfd_create("sink")
        try:
            is_equal(os.sendfile(sink, descriptor, 3, 2 * PAGE), 2 * PAGE)
            return is_equal(os.pread(sink, 3 * PAGE, 0), big_bytes()[3 : 3 + 2 * PAGE])
        finally:
            os.close(sink)


@operation("O107")
def _(m: Path) -> object:
    reader, writer = os.pipe()
    try:
        with opened(m / "big") as descriptor:
            moved = os.splice(descriptor, writer, PAGE, offset_src=11)
        return is_equal(os.read(reader, PAGE), big_bytes()[11 : 11 + moved])
    finally:
        os.close(reader)
        os.close(writer)


@operation("O108")
def _(m: Path) -> object:
    sink = os.memfd_create("sink")
    try:
        with opened(m / "big") as descriptor:
            copied = os.copy_file_range(descriptor, sink, PAGE, 5, 0)
        return is_equal(os.pread(sink, PAGE, 0), big_bytes()[5 : 5 + copied])
    finally:
        os.close(sink)


@operation("O109")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        for advice in (os.POSIX_FADV_RANDOM, os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(descriptor, 0, 0, advice)
        return checked(_libc.readahead(descriptor, 0, 2 * PAGE)) or None


# Seeking


@operation("O110")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return os.lseek(descriptor, -1, os.SEEK_SET)


@operation("O111")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        is_equal(os.lseek(descriptor, 1 << 40, os.SEEK_SET), 1 << 40)
        is_equal(os.read(descriptor, 1), b"")
        return is_equal(os.lseek(descriptor, -2, os.SEEK_END), len(HELLO) - 2)


@operation("O112")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        for offset in (0, 1, PAGE, BIG_BYTES - 1):
            is_equal(os.lseek(descriptor, offset, os.SEEK_DATA), offset)
            is_equal(os.lseek(descriptor, offset, os.SEEK_HOLE), BIG_BYTES)
    return None


@operation("O113")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return os.lseek(descriptor, BIG_BYTES, os.SEEK_DATA)


@operation("O114")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return os.lseek(descriptor, BIG_BYTES, os.SEEK_HOLE)


@operation("O115")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return checked(_libc.lseek(descriptor, -5, os.SEEK_DATA))


@operation("O116")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return checked(_libc.lseek(descriptor, 0, 99))


@operation("O117")
def _(m: Path) -> object:
    with opened(m / "empty") as descriptor:
        return os.lseek(descriptor, 0, os.SEEK_DATA)


# Directories


@operation("O120")
def _(m: Path) -> object:
    return os.listdir(m / "file")


@operation("O121")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return checked(_libc.syscall(_getdents64(), descriptor, ctypes.create_string_buffer(1000), 1000))


@operation("O122")
def _(m: Path) -> object:
    with opened(m) as descriptor:
        return checked(_libc.syscall(_getdents64(), descriptor, ctypes.create_string_buffer(8), 8))


@operation("O123")
def _(m: Path) -> object:
    is_equal(sorted(os.listdir(m / "sub")), ["inner", "void"])
    return is_equal(os.listdir(m / "sub/void"), [])


@operation("O124")
def _(m: Path) -> object:
    with opened(m / "sub") as descriptor:
        return os.fsync(descriptor)


@operation("O125")
def _(m: Path) -> object:
    with opened(m / "sub") as descriptor:
        os.fchdir(descriptor)
        try:
            return is_equal(os.stat("inner").st_size, 5)
        finally:
            os.chdir("/")


def _getdents64() -> int:
    return {"x86_64": 217, "aarch64": 61, "riscv64": 61}[os.uname().machine]


# Attributes


@operation("O130")
def _(m: Path) -> object:
    return os.getxattr(m / "file", "user.absent")


@operation("O131")
def _(m: Path) -> object:
    return _getxattr(m / "file", b"user.forebay.source", 3) and None


@operation("O132")
def _(m: Path) -> object:
    return is_equal(
        _getxattr(m / "file", b"user.forebay.source", 0), len(os.getxattr(m / "file", "user.forebay.source"))
    )


@operation("O133")
def _(m: Path) -> object:
    return os.getxattr(m / "file", "user." + LONG)


@operation("O134")
def _(m: Path) -> object:
    return os.getxattr(m / "file", "trusted.absent")


@operation("O135")
def _(m: Path) -> object:
    return os.getxattr(m / "file", "security.capability")


@operation("O136")
def _(m: Path) -> object:
    return os.getxattr(m / "file", "system.posix_acl_access")


@operation("O137")
def _(m: Path) -> object:
    return checked(_libc.listxattr(os.fsencode(m / "file"), ctypes.create_string_buffer(3), 3)) and None


@operation("O138")
def _(m: Path) -> object:
    return os.getxattr(m / "link", "user.forebay.source", follow_symlinks=False)


@operation("O139")
def _(m: Path) -> object:
    return _access(m / "file", os.W_OK)


@operation("O140")
def _(m: Path) -> object:
    return _access(m / "sub", os.W_OK)


@operation("O141")
def _(m: Path) -> object:
    return _access(m / "file", os.X_OK)


@operation("O142")
def _(m: Path) -> object:
    for name, mask in (("file", os.R_OK), ("program", os.R_OK | os.X_OK), ("sub", os.R_OK | os.X_OK), ("big", os.F_OK)):
        _access(m / name, mask)
    return None


@operation("O143")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        for found in (os.statvfs(m), os.statvfs(m / "sub/inner"), os.fstatvfs(descriptor)):
            assert found.f_flag & os.ST_RDONLY, "statvfs does not say read-only"
            is_equal((found.f_bavail, found.f_ffree, found.f_namemax), (0, 0, 255))
    return None


@operation("O144")
def _(m: Path) -> object:
    """All basic fields and the birth time asked for, nothing taken from a cache."""
    buffer = ctypes.create_string_buffer(256)
    checked(_libc.statx(_AT_FDCWD, os.fsencode(m / "file"), 0x2000, 0xFFF, buffer))
    mask, _, _, links, _, _, mode = struct.unpack_from("=IIQIIIH", buffer)
    is_equal((mask & 0x7FF, links, stat.S_IMODE(mode)), (0x7FF, 1, 0o644))
    return is_equal(struct.unpack_from("=Q", buffer, 40)[0], len(HELLO))


def _getxattr(path: Path, name: bytes, size: int) -> int:
    return checked(_libc.getxattr(os.fsencode(path), name, ctypes.create_string_buffer(max(size, 1)), size))


def _access(path: Path, mask: int) -> None:
    checked(_libc.access(os.fsencode(path), mask))


# The rest


@operation("O150")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return fcntl.ioctl(descriptor, 0x4600, bytes(8)) and None


@operation("O151")
def _(m: Path) -> object:
    with opened(m / "sub") as descriptor:
        return fcntl.ioctl(descriptor, 0x4600, bytes(8)) and None


@operation("O152")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8)) and None


@operation("O153")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        os.lseek(descriptor, 2, os.SEEK_SET)
        return is_equal(struct.unpack("i", fcntl.ioctl(descriptor, _FIONREAD, bytes(4)))[0], len(HELLO) - 2)


@operation("O154")
def _(m: Path) -> object:
    with opened(m / "file") as first, opened(m / "file") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise AssertionError("two locks that exclude each other")
        return fcntl.flock(first, fcntl.LOCK_UN)


@operation("O155")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fcntl.lockf(descriptor, fcntl.LOCK_UN)


@operation("O156")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        return fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@operation("O157")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        os.fsync(descriptor)
        return os.fdatasync(descriptor)


@operation("O158")
def _(m: Path) -> object:
    with opened(m / "big") as descriptor:
        return checked(_libc.syncfs(descriptor)) or None


@operation("O159")
def _(m: Path) -> object:
    return is_equal(subprocess.run([m / "program"], check=False).returncode, 7)


@operation("O160")
def _(m: Path) -> object:
    return subprocess.run([m / "file"], check=False) and None


@operation("O161")
def _(m: Path) -> object:
    watch = checked(_libc.inotify_init1(os.O_CLOEXEC))
    try:
        return checked(_libc.inotify_add_watch(watch, os.fsencode(m / "file"), 0x20)) and None
    finally:
        os.close(watch)


@operation("O162")
def _(m: Path) -> object:
    with opened(m / "file") as descriptor:
        is_equal(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDONLY)
        other = os.dup(descriptor)
    try:
        return is_equal(os.read(other, 100), HELLO)
    finally:
        os.close(other)


def _direct(mount: Path, offset: int, size: int) -> None:
    """A direct read into a page of our own; what is past the end is not there."""
    expected = big_bytes()[offset : offset + size]
    with opened(mount / "big", os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, size) as buffer:
        is_equal(os.preadv(descriptor, [buffer], offset), len(expected))
        is_equal(buffer[: len(expected)], expected)


def main() -> None:
    mount, wanted = Path(sys.argv[1]), sys.argv[2:]
    for name, function in OPERATIONS.items():
        if not wanted or name in wanted:
            print(json.dumps([name, outcome_of(function, mount)]), flush=True)


if __name__ == "__main__":
    main()
