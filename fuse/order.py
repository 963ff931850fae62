"""Telling a mount which files will be read next, so that they are in memory when their reader comes.

For data loaders, which know the order of an epoch before they read it:

    from forebay.fuse.order import ahead

    for name in ahead("/data/imagenet", names):
        read(os.path.join("/data/imagenet", name))

Works from any process that may open the folder, also in a container that sees nothing but the mount: the order travels
as an ioctl on the directory. On a folder that is no Forebay mount nothing happens. Standard library only.

`ahead` also says who reads and how far he has come; the mount passes that on to the cache's worker, whose policy
`next-use` goes by it. That knows a window of names only. Who can tell of whole epochs should use `forebay.torch`.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

_COMMAND_TYPE, _COMMAND_NUMBER, _READER_NUMBER = ord("F"), 0xB0, 0xB1
_IOC_WRITE = 1
"""Of the kernel's asm-generic/ioctl.h: data goes in."""

MESSAGE_BYTES = 8000
"""Names of one call; an ioctl's number has 14 bits for the size, and the handler reads 8 KiB at a time."""

_PROGRESS = struct.Struct("<8sQQI")
"""Ahead of the names, with `_READER_NUMBER`: the fields of `Progress`."""

_DONE = 1

_NOT_OURS = (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Progress(NamedTuple):
    """Whose names come, and how far he is."""

    reader: bytes
    """8 bytes that no other reader has."""
    first: int
    """Position of the first name in his order."""
    position: int
    """All before it are read."""
    done: bool
    """He reads no more."""


def _command(size: int, number: int = _COMMAND_NUMBER) -> int:
    return _IOC_WRITE << 30 | size << 16 | _COMMAND_TYPE << 8 | number


def names_of_order(command: int, payload: bytes) -> tuple[list[bytes], Progress | None] | None:
    """The names in an ioctl's input, with whose they are where that is said; None when it is another command."""
    progress = None
    if command == _command(len(payload), _READER_NUMBER) and len(payload) >= _PROGRESS.size:
        reader, first, position, flags = _PROGRESS.unpack_from(payload)
        progress = Progress(reader, first, position, bool(flags & _DONE))
        payload = payload[_PROGRESS.size :]
    elif command != _command(len(payload)):
        return None
    return [name for name in payload.split(b"\0") if name], progress


def post(directory: int, names: Sequence[str | bytes]) -> int:
    """Say that these files will be read next, in this order.

    Args:
        directory: a descriptor of a folder on the mount.
        names: paths below it.

    Returns:
        How many were taken note of. The mount stops where its memory for this ends; 0 where it is no Forebay mount.

    Raises:
        ValueError: a name that is longer than a message.
    """
    taken = 0
    for message in _messages(names):
        accepted = _send(directory, message, _COMMAND_NUMBER)
        taken += accepted or 0
        if accepted is None or accepted < message.count(0):
            return taken
    return taken


def _send(directory: int, message: bytearray, number: int) -> int | None:
    """How many names were taken note of; None: it is no mount of ours, or one of an older version."""
    try:
        accepted: int = fcntl.ioctl(directory, _command(len(message), number), message, True)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    return accepted


class _Reader:
    """One who goes through an order."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._name = os.urandom(8)
        self._posted = 0
        self._understood = True

    def post(self, names: Sequence[str], position: int, done: bool = False) -> None:
        """As `post`, with the position of who reads."""
        for message in _messages(names, _PROGRESS.size):
            if self._understood:
                self._understood = self._tell(message, position, False)
            if not self._understood:
                _send(self._directory, message, _COMMAND_NUMBER)
            self._posted += message.count(0)
        if done and self._understood:
            self._tell(bytearray(), position, True)

    def _tell(self, names: bytearray, position: int, done: bool) -> bool:
        head = _PROGRESS.pack(self._name, self._posted, position, _DONE if done else 0)
        return _send(self._directory, bytearray(head) + names, _READER_NUMBER) is not None


def _messages(names: Iterable[str | bytes], head_bytes: int = 0) -> Iterator[bytearray]:
    most = MESSAGE_BYTES - head_bytes
    message = bytearray()
    for name in names:
        one = os.fsencode(name) + b"\0"
        if len(one) > most:
            raise ValueError(f"a name of {len(one)} bytes; {most} is the most")
        if len(message) + len(one) > most:
            yield message
            message = bytearray()
        message += one
    if message:
        yield message


def ahead(directory: str | os.PathLike[str], names: Iterable[str], window: int = 256) -> Iterator[str]:
    """The names one after the other, each posted up to `window` names before it is given out.

    Args:
        directory: a folder on the mount.
        names: paths below it, in the order in which they will be read.
        window: files ahead. 256 of 100 KiB are 25 MiB, and a quarter of a second at 1,000 files a second.

    Raises:
        ValueError: a window below 2.
    """
    if window < 2:
        raise ValueError(f"a window of {window} names; 2 is the least")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    reader, given = _Reader(descriptor), 0
    try:
        source = iter(names)
        coming = list(islice(source, window))
        reader.post(coming, 0)
        while coming:
            half = max(len(coming) // 2, 1)
            yield from coming[:half]
            given += half
            fresh = list(islice(source, half))
            reader.post(fresh, given)
            coming = coming[half:] + fresh
    finally:
        reader.post([], given, done=True)
        os.close(descriptor)
