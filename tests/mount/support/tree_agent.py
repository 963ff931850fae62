"""An application that does on a mounted tree what it is told, one line of JSON after the other.

``python tree_agent.py MOUNT`` answers ``[name, argument...]`` with a result, or with an errno by name. Bytes are
answered as [length, SHA-256 in hex]. Files, mappings and directory streams are kept under keys that the other side
chooses. Standard library only.
"""

import ctypes
import errno
import hashlib
import json
import mmap
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = _libc.readdir.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
for _function in (_libc.readdir, _libc.telldir, _libc.rewinddir, _libc.closedir):
    _function.argtypes = [ctypes.c_void_p]

_NAME_AT = 19
"""Of d_name in struct dirent (glibc with 64-bit offsets)."""


def digest(data: bytes) -> list[object]:
    return [len(data), hashlib.sha256(data).hexdigest()]


class Agent:
    """See the module; each public method is a command."""

    def __init__(self, mount: str) -> None:
        self._mount = mount
        self._files: dict[int, int] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        self._streams: dict[int, int] = {}

    def _path(self, path: str) -> str:
        return os.path.join(self._mount, path) if path else self._mount

    # Names

    def stat(self, path: str) -> list[object]:
        """Type and, for a file, its size; for a link, its target."""
        found = os.lstat(self._path(path))
        if stat.S_ISLNK(found.st_mode):
            return ["link", os.readlink(self._path(path))]
        return ["folder", 0] if stat.S_ISDIR(found.st_mode) else ["file", found.st_size]

    def listed(self, path: str) -> list[list[object]]:
        with os.scandir(self._path(path)) as entries:
            return sorted([e.name, e.is_dir(follow_symlinks=False)] for e in entries)

    def opendir(self, key: int, path: str) -> None:
        stream = _libc.opendir(os.fsencode(self._path(path)))
        if not stream:
            raise OSError(ctypes.get_errno(), "opendir")
        self._streams[key] = stream

    def readdir(self, key: int, count: int) -> list[list[object]]:
        """Up to so many entries, each with the place after it (telldir)."""
        found: list[list[object]] = []
        while len(found) < count:
            ctypes.set_errno(0)
            entry = _libc.readdir(self._streams[key])
            if not entry:
                if ctypes.get_errno():
                    raise OSError(ctypes.get_errno(), "readdir")
                break
            found.append([os.fsdecode(ctypes.string_at(entry + _NAME_AT)), _libc.telldir(self._streams[key])])
        return found

    def seekdir(self, key: int, place: int) -> None:
        _libc.seekdir(self._streams[key], place)

    def rewinddir(self, key: int) -> None:
        _libc.rewinddir(self._streams[key])

    def closedir(self, key: int) -> None:
        _libc.closedir(self._streams.pop(key))

    # Files

    def open(self, key: int, path: str, flags: int) -> int:
        """Returns the size."""
        self._files[key] = os.open(self._path(path), flags | os.O_RDONLY | os.O_CLOEXEC)
        return os.fstat(self._files[key]).st_size

    def close(self, key: int) -> None:
        os.close(self._files.pop(key))

    def pread(self, key: int, offset: int, size: int) -> list[object]:
        """Until the size is there or the file ends: O_DIRECT and signals may give less at once."""
        with mmap.mmap(-1, size) as buffer:
            got = 0
            while got < size:
                with memoryview(buffer) as view, view[got:] as rest:
                    step = os.preadv(self._files[key], [rest], offset + got)
                got += step
                if not step or got % 4096:
                    break
            return digest(buffer[:got])

    def read(self, key: int, size: int) -> list[object]:
        """At the position."""
        return digest(os.read(self._files[key], size))

    def seek(self, key: int, offset: int, whence: int) -> int:
        return os.lseek(self._files[key], offset, whence)

    def sendfile(self, key: int, offset: int, size: int) -> list[object]:
        sink = os.memfd_create("sink")
        try:
            sent = os.sendfile(sink, self._files[key], offset, size)
            return digest(os.pread(sink, sent, 0))
        finally:
            os.close(sink)

    def map(self, key: int, file: int) -> None:
        """All of a file that is not empty."""
        self._mapped[key] = mmap.mmap(self._files[file], 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def mapped(self, key: int, offset: int, size: int) -> list[object]:
        """By write(2) from the mapping: a page that cannot be had is EFAULT there, and no SIGBUS."""
        sink = os.memfd_create("sink")
        try:
            with memoryview(self._mapped[key]) as view:
                at = offset
                while at < min(offset + size, len(view)):
                    with view[at : offset + size] as rest:
                        at += os.write(sink, rest)
            return digest(os.pread(sink, size, 0))
        finally:
            os.close(sink)

    def unmap(self, key: int) -> None:
        self._mapped.pop(key).close()


def main() -> None:
    agent = Agent(sys.argv[1])
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        command: Callable[..., Any] = getattr(agent, name)
        try:
            answer = command(*arguments)
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
