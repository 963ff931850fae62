"""The open table: the one piece of state that the handlers of a mount change, shared and safe from crashes.

Storage format: an LMDB environment in the mount's runtime folder. ``inodes``: node id (8 bytes) -> `_STATE`;
``opens``: node id + handle (8 bytes each) -> number of the OPEN request that made it (8 bytes, without the bit that
marks a resent one), one for each open that was not released; ``meta``: ``passed`` -> how many inodes are passed
through (8 bytes). The upper half of a handle names the life of the handler (`Roster`) that made it, so no two tries at
one request share a handle.

A request may be tried twice, after a resend: by a handler that died and its successor, or by two that live. Each try
counts under its own handle. Of two that live, the kernel takes one reply and answers the other ENOENT, upon which
that handler takes its own count back. What a dead one had counted is taken back by whoever gets the request again.
(A count stays too many until the mount ends when handler and reader are killed in the same instant.)

Each change is one write transaction that spans the decision and the ioctl, so handlers exclude each other by inode
(and by mount, which costs less than a finer lock would).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lmdb

from forebay.fuse.open_mode import Grant, InodeState, Io, decide, opened, released

_STATE = struct.Struct(">BIQ")
_MAP_BYTES = 1 << 30

MAX_BACKING_IDS = 8192
"""Backing files are held by the kernel, seen by no limit of the process: beyond this, opens are cached ones."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at an OPEN request."""

    handle: int
    """What READ and RELEASE of this open will carry; no other try has it."""
    unique: int
    """Number of the request, the same for all tries at it."""
    resent: bool
    """Somebody may have tried before."""


class Passthrough(Protocol):
    """What passing one file through takes."""

    def grant(self) -> int:
        """A backing id, or 0 when there is none to be had; asked only when it matters."""

    def revoke(self, backing_id: int) -> None:
        """Close a backing id that the last open has left."""


class OpenTable:
    """Resources: `close` unmaps it; the state stays for the mount's other handlers."""

    def __init__(self, folder: Path, is_live: Callable[[int], bool]) -> None:
        """
        Args:
            folder: of the table.
            is_live: whether the life of a handler with that number goes on.
        """
        self._is_live = is_live
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written through the map: 12 us for an open and its release instead of 23. The kernel keeps the pages of a
        # process that is killed, and a machine that goes down takes the mount with it.
        self._env = lmdb.open(str(folder), max_dbs=3, map_size=_MAP_BYTES, sync=False, metasync=False, writemap=True)
        self._inodes = self._env.open_db(b"inodes")
        self._opens = self._env.open_db(b"opens")
        self._meta = self._env.open_db(b"meta")

    def close(self) -> None:
        self._env.close()

    def open(self, node: int, attempt: Attempt, passthrough: Passthrough) -> int:
        """Count an OPEN and decide its mode; returns the backing id, 0 for a cached open."""
        key = _key(node)
        with self._env.begin(write=True) as txn:
            if attempt.resent:
                self._take_back_of_dead(txn, node, attempt, passthrough)
            state = _unpack(txn.get(key, db=self._inodes))
            choice = decide(state, self._passed(txn) < MAX_BACKING_IDS)
            backing_id = state.backing_id if choice is Grant.SHARE else 0
            if choice is Grant.TRY:
                backing_id = passthrough.grant()
                self._count_passed(txn, bool(backing_id))
            txn.put(key, _pack(opened(state, backing_id)), db=self._inodes)
            txn.put(key + _key(attempt.handle), _key(attempt.unique), db=self._opens)
            return backing_id

    def _take_back_of_dead(self, txn: Any, node: int, attempt: Attempt, passthrough: Passthrough) -> None:
        """Earlier tries at this request by handlers that are dead: the kernel never took their replies."""
        prefix, unique = _key(node), _key(attempt.unique)
        with txn.cursor(db=self._opens) as cursor:
            more, dead = cursor.set_range(prefix), []
            while more and cursor.key().startswith(prefix):
                handle = int.from_bytes(cursor.key()[8:], "big")
                if cursor.value() == unique and not self._is_live(handle >> 32):
                    dead.append(handle)
                more = cursor.next()
        for handle in dead:
            self._take_back(txn, node, handle, passthrough.revoke)

    def release(self, node: int, handle: int, close_backing: Callable[[int], None]) -> None:
        """Take an open back; unknown ones were taken back already."""
        with self._env.begin(write=True) as txn:
            self._take_back(txn, node, handle, close_backing)

    def _take_back(self, txn: Any, node: int, handle: int, close_backing: Callable[[int], None]) -> None:
        key = _key(node)
        if not txn.delete(key + _key(handle), db=self._opens):
            return
        state, unused = released(_unpack(txn.get(key, db=self._inodes)))
        if state.io is Io.NONE:
            txn.delete(key, db=self._inodes)
        else:
            txn.put(key, _pack(state), db=self._inodes)
        if unused:
            self._count_passed(txn, -1)
            close_backing(unused)

    @staticmethod
    def gauge(folder: Path) -> int:
        """`passed_through` of a mount, for those who only look; 0 while it has no table."""
        try:
            env = lmdb.open(str(folder), max_dbs=3, map_size=_MAP_BYTES, readonly=True)
        except lmdb.Error:
            return 0
        try:
            with env.begin() as txn:
                return int.from_bytes(txn.get(b"passed", db=env.open_db(b"meta", txn, create=False)) or b"", "big")
        except lmdb.Error:
            return 0
        finally:
            env.close()

    def passed_through(self) -> int:
        """Inodes that are open in passthrough mode now: backing files that the kernel holds for us."""
        with self._env.begin() as txn:
            return self._passed(txn)

    def _passed(self, txn: Any) -> int:
        return int.from_bytes(txn.get(b"passed", db=self._meta) or b"", "big")

    def _count_passed(self, txn: Any, by: int) -> None:
        if by:
            txn.put(b"passed", _key(self._passed(txn) + by), db=self._meta)

    def state(self, node: int) -> InodeState:
        with self._env.begin() as txn:
            return _unpack(txn.get(_key(node), db=self._inodes))


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _pack(state: InodeState) -> bytes:
    return _STATE.pack(state.io.value, state.backing_id, state.opens)


def _unpack(raw: bytes | None) -> InodeState:
    if raw is None:
        return InodeState()
    io, backing_id, opens = _STATE.unpack(raw)
    return InodeState(Io(io), backing_id, opens)
