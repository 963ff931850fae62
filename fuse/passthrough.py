"""Passthrough: telling the kernel, by ioctl on the FUSE descriptor, which file to read by itself."""

import fcntl
import logging
import os
import struct
from typing import Protocol

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.counters import CounterRow

log = logging.getLogger(__name__)

BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502
"""FUSE_DEV_IOC_BACKING_OPEN and _CLOSE of the kernel's fuse.h."""


def register(device: int, descriptor: int) -> int:
    """The backing id of an open regular file.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, ELOOP on a stack of file systems, EOPNOTSUPP, ...
    """
    request = bytearray(struct.pack("=iIQ", descriptor, 0, 0))
    # Only a mutable buffer makes ioctl() give the return value, which is the id.
    return int(fcntl.ioctl(device, BACKING_OPEN, request, True))


def unregister(device: int, backing_id: int) -> None:
    """Take an id back.

    Raises:
        OSError: ENOENT when there is no such id.
    """
    fcntl.ioctl(device, BACKING_CLOSE, struct.pack("=I", backing_id))


class Backing(Protocol):
    """Passthrough, as far as an engine has it."""

    def open_backing(self, descriptor: int) -> int:
        """Register a file with the kernel; its id, or 0 when that cannot be."""

    def close_backing(self, backing_id: int) -> None:
        """Take a registration back."""


class KernelBacking:
    """Passthrough for one handler. The first failure switches it off."""

    def __init__(self, device: int, counters: CounterRow) -> None:
        self._device = device
        self._counters = counters
        self.refused = ""
        """Why it is off, or empty."""

    def open_backing(self, descriptor: int) -> int:
        if self.refused:
            return 0
        try:
            return register(self._device, descriptor)
        except OSError as error:
            self.refused = error.strerror or str(error)
            self._counters.add("passthrough_refused")
            log.warning("passthrough is off for this mount: %s", self.refused)
            return 0

    def close_backing(self, backing_id: int) -> None:
        try:
            unregister(self._device, backing_id)
        except OSError as error:
            log.warning("backing id %d could not be closed: %s", backing_id, error.strerror)


class WholeFile:
    """Implements `open_table.Passthrough` for one source file: passed through once it is wholly cached."""

    def __init__(self, node: Node, content: ContentReader, backing: Backing, counters: CounterRow) -> None:
        self._node = node
        self._content = content
        self._backing = backing
        self._counters = counters

    def grant(self) -> int:
        descriptor = self._content.whole_file(self._node.content, self._node.size)
        if descriptor is None:
            return 0
        try:
            backing_id = self._backing.open_backing(descriptor)
        finally:
            os.close(descriptor)
        if backing_id:
            self._counters.add("passthrough_opens")
            self._counters.add("passthrough_granted_bytes", self._node.size)
        return backing_id

    def revoke(self, backing_id: int) -> None:
        self._backing.close_backing(backing_id)
