"""Telling a mount which files will be read next, so that they are in memory when their reader comes.

For data loaders, which know the order of an epoch before they read it:

    from forebay.fuse.order import ahead

    for name in ahead("/data/imagenet", names):
        read(os.path.join("/data/imagenet", name))

Works from any process that may open the folder, also in a container that sees nothing but the mount: the order travels
as an ioctl on the directory. On a folder that is no Forebay mount nothing happens. Standard library only.
"""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

_COMMAND_TYPE, _COMMAND_NUMBER = ord("F"), 0xB0
_IOC_WRITE = 1
"""Of the kernel's asm-generic/ioctl.h: data goes in."""

MESSAGE_BYTES = 8000
"""Names of one call; an ioctl's number has 14 bits for the size, and the handler reads 8 KiB at a time."""

_NOT_OURS = (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def _command(size: int) -> int:
    return _IOC_WRITE << 30 | size << 16 | _COMMAND_TYPE << 8 | _COMMAND_NUMBER


def names_of_order(command: int, payload: bytes) -> list[bytes] | None:
    """The names in an ioctl's input, or None when it is another command."""
    if command != _command(len(payload)):
        return None
    return [name for name in payload.split(b"\0") if name]


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
        try:
            accepted: int = fcntl.ioctl(directory, _command(len(message)), message, True)
        except OSError as error:
            if error.errno in _NOT_OURS:
                return taken
            raise
        taken += accepted
        if accepted < message.count(0):
            return taken
    return taken


def _messages(names: Iterable[str | bytes]) -> Iterator[bytearray]:
    message = bytearray()
    for name in names:
        one = os.fsencode(name) + b"\0"
        if len(one) > MESSAGE_BYTES:
            raise ValueError(f"a name of {len(one)} bytes; {MESSAGE_BYTES} is the most")
        if len(message) + len(one) > MESSAGE_BYTES:
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
    try:
        source = iter(names)
        coming = list(islice(source, window))
        post(descriptor, coming)
        while coming:
            half = max(len(coming) // 2, 1)
            yield from coming[:half]
            fresh = list(islice(source, half))
            post(descriptor, fresh)
            coming = coming[half:] + fresh
    finally:
        os.close(descriptor)
