"""Telling the worker which files will be read next, for programs that know it: whole epochs, as node ids.

The order goes to the worker over a connection of its own to the fill socket, and lasts as long as that. Nothing here
waits for a reply, and nothing that goes wrong disturbs the reader: what is not known ahead is read all the same. No
thread, so that a process may fork while it has one.
"""

import logging
import os
import secrets
import socket
import time
import weakref
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import NotAttached
from forebay.cacheruntime.fill_socket import REPLY, ReplyKind, pack_call
from forebay.proto import worker_pb2 as pb

log = logging.getLogger(__name__)

_PIECE = 1 << 16
"""Node ids in one message: half a megabyte."""

_PROGRESS_S = 0.05
"""Progress is told so often at most; the window of what is fetched ahead reckons with it."""

_CONNECT_S = 0.5
"""Between two tries to reach a worker that is gone: who misses something starts the next one."""

_SEND_S = 5.0
"""A worker that takes nothing for so long is stopped or hangs."""

_RECEIVE_BYTES = 1 << 16

_posters: "weakref.WeakSet[OrderPoster]" = weakref.WeakSet()


class OrderPoster:
    """One reader's order and progress.

    Concurrency: one thread. In a forked child it does nothing: the order is the parent's.
    Resources: `close` tells the worker that the reader is gone; so does the process' end.
    """

    def __init__(
        self,
        path: Path,
        spec: SourceSpec,
        dataset_id: str,
        snapshot: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            path: of the worker's fill socket.
            spec: to attach the source again to a worker that is new.
            dataset_id, snapshot: what is read.
            clock: seconds.
        """
        self._path = path
        self._spec = spec
        self._dataset_id = dataset_id
        self._snapshot = snapshot
        self._clock = clock
        self.name = secrets.token_hex(8)
        self._nodes: array[int] = array("Q")
        self._start = 0
        """Position of the first of `_nodes`, which is the first that is not read."""
        self._position = self._asked = 0
        self._posted = 0
        """All before it was sent to this worker."""
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._waiting: dict[int, str] = {}
        """Calls without a reply yet: number -> method."""
        self._number = 0
        self._known = 0
        self._attaching = False
        self._next_try = self._next_progress = 0.0
        self._refused = False
        self._pid = os.getpid()
        _posters.add(self)

    @property
    def end(self) -> int:
        """Position behind the last file of the order."""
        return self._start + len(self._nodes)

    def post(self, nodes: "array[int]") -> None:
        """These files come next, behind all that were posted before."""
        self._nodes += nodes
        self._tell(self._clock())

    def advance(self, position: int, asked: int) -> None:
        """The reader has come further.

        Args:
            position: all before it are read.
            asked: all before it are read, or being asked for.
        """
        self._position, self._asked = max(self._position, position), max(self._asked, asked)
        now = self._clock()
        if now >= self._next_progress:
            self._next_progress = now + _PROGRESS_S
            self._tell(now)

    def close(self) -> None:
        """The reader is gone."""
        if self._socket is not None and os.getpid() == self._pid:
            with suppress(OSError):
                request = pb.PostOrderRequest(
                    dataset_id=self._dataset_id,
                    reader=self.name,
                    snapshot=self._snapshot,
                    position=self._position,
                    done=True,
                )
                self._socket.sendall(pack_call(0, "PostOrder", request.SerializeToString()))
        self.let_go()
        self._refused = True

    def let_go(self) -> None:
        """Close our end of the connection; in a forked child the parent's stays."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, now: float) -> None:
        """Send what the worker does not know, as far as that is possible now."""
        if self._refused or os.getpid() != self._pid:
            return
        drop = min(self._position, self.end) - self._start
        if drop >= max(_PIECE, len(self._nodes) // 8):
            del self._nodes[:drop]
            self._start += drop
        try:
            if self._socket is None:
                if now < self._next_try:
                    return
                self._next_try = now + _CONNECT_S
                self._connect()
            self._take_replies()
            if self._attaching:
                return
            if not self._waiting and self._known < self._posted:
                self._posted = max(self._known, self._start)  # this worker has forgotten some of it
            self._send_order()
        except OSError as error:
            log.debug("the order of reader %s is not posted now: %s", self.name, error)
            self.let_go()

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(_SEND_S)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        self._received.clear()
        self._waiting.clear()
        self._attaching = False
        self._posted = self._known = max(self._start, self._position)

    def _send_order(self) -> None:
        self._posted = max(self._posted, self._start, min(self._position, self.end))
        pieces = range(self._posted, self.end, _PIECE)
        for first in pieces:
            self._send_request(self._nodes[first - self._start : first - self._start + _PIECE], first)
        self._posted = self.end
        if not pieces:
            self._send_request(array("Q"), 0)

    def _send_request(self, nodes: "array[int]", first: int) -> None:
        request = pb.PostOrderRequest(
            dataset_id=self._dataset_id,
            reader=self.name,
            snapshot=self._snapshot,
            nodes=nodes,
            first=first,
            position=self._position,
            asked=self._asked,
        )
        self._send("PostOrder", request.SerializeToString())

    def _send(self, method: str, request: bytes) -> None:
        assert self._socket is not None
        self._number = self._number % 0x7FFFFFFF + 1
        self._waiting[self._number] = method
        self._socket.sendall(pack_call(self._number, method, request))

    def _take_replies(self) -> None:
        assert self._socket is not None
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while received := self._socket.recv(_RECEIVE_BYTES):
                self._received += received
            raise ConnectionResetError("the worker closed the connection")
        self._socket.settimeout(_SEND_S)
        while len(self._received) >= REPLY.size:
            length, number, kind = REPLY.unpack_from(self._received)
            if len(self._received) < REPLY.size + length:
                break
            payload = bytes(self._received[REPLY.size : REPLY.size + length])
            del self._received[: REPLY.size + length]
            self._take(self._waiting.pop(number, ""), kind, payload)

    def _take(self, method: str, kind: int, payload: bytes) -> None:
        if kind == ReplyKind.ERROR and payload.startswith(NotAttached.__name__.encode() + b":"):
            if not self._attaching:
                self._attaching = True
                request = self._spec.attach_request(list_tree=True, snapshot=self._snapshot)
                self._send("Attach", request.SerializeToString())
        elif kind == ReplyKind.ERROR:
            log.warning("the cache worker takes no order: %s", payload.decode("utf-8", "replace"))
            self._refused = True
            self.let_go()
            raise ConnectionAbortedError("the order was refused")
        elif method == "Attach":
            self._attaching = False
            self._posted = self._known = self._position
        elif method == "PostOrder":
            self._known = max(self._known if self._waiting else 0, pb.PostOrderReply.FromString(payload).known)


def _let_go_inherited() -> None:
    """In a forked child: a connection that only the child still holds would outlive its reader."""
    for poster in _posters:
        poster.let_go()


os.register_at_fork(after_in_child=_let_go_inherited)
