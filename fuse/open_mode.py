"""How a file is opened: a pure state machine per inode, and the choice of a mode for a whole mount.

The kernel never mixes cached and passthrough opens of one inode (fs/fuse/iomode.c): the later one would fail with
EIO. So the first open decides, and the others follow until the last one is released.
"""

from dataclasses import dataclass
from enum import Enum

from forebay.cacheruntime.catalogue import SMALL_FILE_BYTES, Totals


class OpenMode(Enum):
    """Of a mount."""

    PASSTHROUGH = "passthrough"
    NO_OPEN = "no-open"
    CACHED = "cached"


SMALL_SHARE = 0.9
"""`auto` picks no-open when at least this share of the bytes is in small files. The two mistakes are not alike: no-open
costs large files up to 40 times in random reads, passthrough costs small files 2.5 times (docs/decisions/0003)."""

PASSTHROUGH_MIN_BYTES = SMALL_FILE_BYTES
"""Smaller files are opened cached with keep-cache: two ioctls cost more than they save, and they lie in packs."""


def choose(totals: Totals, passthrough_possible: bool) -> tuple[OpenMode, str]:
    """The mode for a mount, and why, as `forebay mounts` tells it.

    Args:
        totals: of the snapshot as far as it is listed.
        passthrough_possible: the kernel and our rights allow it.
    """
    so_far = "" if totals.complete else " listed so far"
    share = totals.small_bytes / totals.bytes if totals.bytes else 0.0
    if totals.files and share >= SMALL_SHARE:
        return OpenMode.NO_OPEN, f"{share:.0%} of the bytes{so_far} are in files under 1 MiB"
    if passthrough_possible:
        return OpenMode.PASSTHROUGH, f"{1 - share:.0%} of the bytes{so_far} are in files of 1 MiB and more"
    return OpenMode.CACHED, "passthrough is not possible here"


class Io(Enum):
    """I/O mode of an inode."""

    NONE = 0
    CACHED = 1
    PASSTHROUGH = 2


@dataclass(frozen=True, slots=True)
class InodeState:
    """What all handlers of a mount know about one inode."""

    io: Io = Io.NONE
    backing_id: int = 0
    opens: int = 0


class Grant(Enum):
    """What an OPEN gets."""

    CACHED = 1
    SHARE = 2
    """Passthrough by the backing id that is there: one inode, one id."""
    TRY = 3
    """Passthrough if a backing id can be had, else cached."""


def decide(state: InodeState, eligible: bool) -> Grant:
    """For one more OPEN; `eligible` says that the whole file is cached and passthrough is on."""
    if state.io is Io.CACHED:
        return Grant.CACHED
    if state.io is Io.PASSTHROUGH:
        return Grant.SHARE
    return Grant.TRY if eligible else Grant.CACHED


def opened(state: InodeState, backing_id: int) -> InodeState:
    """After an OPEN that got this backing id (0: cached)."""
    if state.io is Io.NONE:
        return InodeState(Io.PASSTHROUGH if backing_id else Io.CACHED, backing_id, 1)
    return InodeState(state.io, state.backing_id, state.opens + 1)


def released(state: InodeState) -> tuple[InodeState, int]:
    """After a RELEASE: the new state, and the backing id to close (0: none)."""
    if state.opens > 1:
        return InodeState(state.io, state.backing_id, state.opens - 1), 0
    return InodeState(), state.backing_id
