"""Every system call that takes a path to change something, on every kind of path. Standard library only.

``python readonly_matrix.py MOUNT UID`` goes into the mount, becomes that user and prints one JSON object: call ->
kind of path -> errno by name (or ``works``). The kinds follow what the FreeBSD test suite pjdfstest documents for
each call: a prefix that is no directory, names and paths that are too long, loops, closed directories, bad addresses.
"""

import ctypes
import errno
import json
import os
import stat
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
_BAD_ADDRESS = ctypes.c_void_p(1)
LONG = b"n" * 256

Path = bytes | ctypes.c_void_p

PATHS: dict[str, Path] = {
    "file": b"file",
    "directory": b"sub",
    "link": b"link",
    "dangling": b"dangling",
    "absent": b"new",
    "below absent": b"nothing/new",
    "below file": b"file/new",
    "below loop": b"loop/new",
    "in closed": b"closed/inner",
    "long name": LONG,
    "below long name": LONG + b"/new",
    "long path": b"sub/../" * 600 + b"file",
    "bad address": _BAD_ADDRESS,
    "empty": b"",
    "root": b".",
}


def _open(flags: int) -> Callable[[Path], int]:
    def call(path: Path) -> int:
        descriptor = int(_libc.open(path, flags, 0o600))
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor

    return call


CALLS: dict[str, Callable[[Path], int]] = {
    "open to write": _open(os.O_WRONLY),
    "open and create": _open(os.O_WRONLY | os.O_CREAT),
    "open and create anew": _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open and truncate": _open(os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda path: _libc.truncate(path, ctypes.c_long(1)),
    "mkdir": lambda path: _libc.mkdir(path, 0o700),
    "mkfifo": lambda path: _libc.mknod(path, stat.S_IFIFO | 0o600, ctypes.c_ulong(0)),
    "mknod": lambda path: _libc.mknod(path, stat.S_IFREG | 0o600, ctypes.c_ulong(0)),
    "symlink": lambda path: _libc.symlink(b"file", path),
    "link from": lambda path: _libc.link(path, b"new2"),
    "link to": lambda path: _libc.link(b"file", path),
    "rename from": lambda path: _libc.rename(path, b"new2"),
    "rename to": lambda path: _libc.rename(b"file", path),
    "unlink": lambda path: _libc.unlink(path),
    "rmdir": lambda path: _libc.rmdir(path),
    "chmod": lambda path: _libc.chmod(path, 0o700),
    "chown": lambda path: _libc.chown(path, os.getuid(), os.getgid()),
    "lchown": lambda path: _libc.lchown(path, os.getuid(), os.getgid()),
    "utimensat": lambda path: _libc.utimensat(_AT_FDCWD, path, None, _AT_SYMLINK_NOFOLLOW),
    "setxattr": lambda path: _libc.setxattr(path, b"user.x", b"1", 1, 0),
    "removexattr": lambda path: _libc.removexattr(path, b"user.x"),
    "access to write": lambda path: _libc.access(path, os.W_OK),
}


def outcome(call: Callable[[Path], int], path: Path) -> str:
    ctypes.set_errno(0)
    return "works" if call(path) >= 0 else errno.errorcode[ctypes.get_errno()]


def main() -> None:
    os.chdir(sys.argv[1])
    user = int(sys.argv[2])
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    print(
        json.dumps({call: {kind: outcome(CALLS[call], path) for kind, path in PATHS.items()} for call in CALLS}),
    )


if __name__ == "__main__":
    main()
