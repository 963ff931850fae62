"""The open table: the one piece of state that the handlers of a mount change, shared and safe from crashes.

Storage format: an LMDB environment in the mount's runtime folder. ``inodes``: node id (8 bytes) -> `_STATE`;
``opens``: node id + handle (8 bytes each) -> empty, one for each open that was not released. A handle is the number
of the OPEN request that made it, so a resent OPEN finds what a handler that died had begun, and counts once.

Each change is one write transaction that spans the decision and the ioctl, so handlers exclude each other by inode
(and by mount, which costs less than a finer lock would).
"""

import struct
from collections.abc import Callable
from pathlib import Path

import lmdb

from forebay.fuse.open_mode import Grant, InodeState, Io, decide, opened, released

_STATE = struct.Struct(">BIQ")
_MAP_BYTES = 1 << 30

MAX_BACKING_IDS = 8192
"""Backing files are held by the kernel, seen by no limit of the process: beyond this, opens are cached ones."""


class OpenTable:
    """Resources: `close` unmaps it; the state stays for the mount's other handlers."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._env = lmdb.open(str(folder), max_dbs=2, map_size=_MAP_BYTES, sync=False, metasync=False)
        self._inodes = self._env.open_db(b"inodes")
        self._opens = self._env.open_db(b"opens")

    def close(self) -> None:
        self._env.close()

    def open(self, node: int, handle: int, eligible: Callable[[], bool], grant: Callable[[], int]) -> int:
        """Count an OPEN and decide its mode.

        Args:
            node, handle: of the open.
            eligible: whether passthrough may be tried; asked only when it matters.
            grant: makes a backing id (0: could not).

        Returns:
            The backing id, 0 for a cached open.
        """
        key, open_key = _key(node), _key(node) + _key(handle)
        with self._env.begin(write=True) as txn:
            state = _unpack(txn.get(key, db=self._inodes))
            if txn.get(open_key, db=self._opens) is not None:
                return state.backing_id
            room = txn.stat(self._inodes)["entries"] < MAX_BACKING_IDS
            choice = decide(state, state.io is Io.NONE and room and eligible())
            backing_id = {Grant.CACHED: lambda: 0, Grant.SHARE: lambda: state.backing_id, Grant.TRY: grant}[choice]()
            txn.put(key, _pack(opened(state, backing_id)), db=self._inodes)
            txn.put(open_key, b"", db=self._opens)
            return backing_id

    def release(self, node: int, handle: int, close_backing: Callable[[int], None]) -> None:
        """Take an open back; unknown ones were taken back already."""
        key, open_key = _key(node), _key(node) + _key(handle)
        with self._env.begin(write=True) as txn:
            if not txn.delete(open_key, db=self._opens):
                return
            state, unused = released(_unpack(txn.get(key, db=self._inodes)))
            if state.io is Io.NONE:
                txn.delete(key, db=self._inodes)
            else:
                txn.put(key, _pack(state), db=self._inodes)
            if unused:
                close_backing(unused)

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
