"""The way of a miss to the worker and back: frames on a Unix socket of their own.

A miss is what a reader waits for, and a unary gRPC call costs each side half a millisecond in Python, two thirds of
what Forebay added to the store's own answer (docs/decisions/0018). All else goes by gRPC.

Format: a request is ``length, number`` (two little-endian uint32) and a `FillRequest` of that length; with `TAKE_BACK`
for a length, and nothing behind it, the request of that number is taken back. A reply is ``length, number, kind`` (the
last one byte) and a payload. A request that is to be done in the background has no reply. Numbers are the client's,
and unique while a request lasts.

Other calls may come this way too, for clients that fork: a process that has used gRPC must not fork, and data loaders
do. Their length has the bit `CALL` set; the message is the method's name, a zero byte, and its request. The reply's
kind is `ANSWER`, its payload the method's reply. What a client tells of a reader's order (`PostOrder`) lasts as long
as the connection: when that ends, the reader is gone.
"""

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import partial
from itertools import count
from pathlib import Path

import trio

from forebay.cacheruntime.errors import ForebayError, WorkerUnavailable, by_name
from forebay.proto import worker_pb2 as pb

REQUEST = struct.Struct("<II")
REPLY = struct.Struct("<IIB")

REQUEST_BYTES = 1 << 16
"""Longest request: a path and some numbers."""

TAKE_BACK = 0xFFFFFFFF

CALL = 0x80000000
"""Bit of a request's length."""

CALL_BYTES = 4 << 20
"""Longest call: a piece of an order, 8 bytes for each file."""

_RECEIVE_BYTES = 1 << 18


class ReplyKind(IntEnum):
    """What a reply says."""

    CACHED = 0
    """The bytes are in the index; no payload."""
    THROUGH = 1
    """No tier had room: the payload is the bytes."""
    ERROR = 2
    """The payload is ``ClassName: message``."""
    ANSWER = 3
    """The payload is the reply of a call."""


def pack_request(number: int, request: pb.FillRequest) -> bytes:
    message = request.SerializeToString()
    return REQUEST.pack(len(message), number) + message


def pack_call(number: int, method: str, request: bytes) -> bytes:
    message = method.encode() + b"\0" + request
    if len(message) > CALL_BYTES:
        raise ValueError(f"a call of {len(message)} bytes; {CALL_BYTES} is the most")
    return REQUEST.pack(CALL | len(message), number) + message


def outcome_of(kind: int, payload: bytes) -> bytes | None:
    """What a reply stands for: None when the bytes are cached, else the bytes (of a call: of its reply).

    Raises:
        ForebayError: what the worker raised.
    """
    if kind == ReplyKind.CACHED:
        return None
    if kind in (ReplyKind.THROUGH, ReplyKind.ANSWER):
        return payload
    name, _, message = payload.decode("utf-8", "surrogateescape").partition(": ")
    raise by_name(name)(message)


def _connect(path: Path) -> socket.socket:
    """Raises: WorkerUnavailable, nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise _gone(error.strerror) from error
    return connection


def _gone(why: object) -> WorkerUnavailable:
    return WorkerUnavailable(f"the cache worker does not answer ({why})")


class FillCall:
    """A request under way."""

    __slots__ = ("connection", "kind", "number", "payload", "replied")

    def __init__(self, connection: "FillConnection", number: int) -> None:
        self.connection = connection
        """The one that knows the number."""
        self.number = number
        self.replied = trio.Event()
        self.kind = -1
        """-1: none came, and none will when `replied` is set."""
        self.payload = b""


class FillConnection:
    """A connection for the tasks of one trio loop; requests go out in the order of the calls.

    Resources: `close` ends it, and so does the worker's end; then it is `lost`, and a new one is to be made.
    """

    def __init__(self, path: Path) -> None:
        """Connect; may be called from a thread. `receive` must run from then on.

        Raises:
            WorkerUnavailable: nobody listens there.
        """
        self._socket = _connect(path)
        self._socket.setblocking(False)
        self._unsent = bytearray()
        self._sendable = trio.Event()
        self._calls: dict[int, FillCall] = {}
        self._numbers = count(1)
        self.lost = False

    def close(self) -> None:
        self._lose()

    def post(self, request: pb.FillRequest) -> None:
        """Send a request that has no reply."""
        self._send(pack_request(self._number(), request))

    def begin(self, request: pb.FillRequest) -> FillCall:
        """Send a request, for `finish`."""
        call = FillCall(self, self._number())
        if self.lost:
            call.replied.set()
            return call
        self._calls[call.number] = call
        self._send(pack_request(call.number, request))
        return call

    async def finish(self, call: FillCall, timeout_s: float) -> bytes | None:
        """Wait for the reply to a request of this connection; see `outcome_of`.

        Raises:
            ForebayError: what the worker raised; WorkerUnavailable when it is gone or silent.

        Cancellation: takes the request back.
        """
        try:
            with trio.move_on_after(timeout_s):
                await call.replied.wait()
        finally:
            if self._calls.pop(call.number, None) is not None:
                self._send(REQUEST.pack(TAKE_BACK, call.number))
        if call.kind < 0:
            raise _gone("it is gone" if self.lost else f"not within {timeout_s:.3g} s")
        return outcome_of(call.kind, call.payload)

    async def receive(self) -> None:
        """Take in replies until the connection is lost."""
        buffer = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_rest)
            with suppress(OSError, trio.ClosedResourceError):
                while not self.lost:
                    await trio.lowlevel.wait_readable(self._socket)
                    with suppress(BlockingIOError):
                        received = self._socket.recv(_RECEIVE_BYTES)
                        if not received:
                            break
                        buffer += received
                        self._take(buffer)
            self._lose()
            nursery.cancel_scope.cancel()

    def _take(self, buffer: bytearray) -> None:
        start = 0
        while len(buffer) - start >= REPLY.size:
            length, number, kind = REPLY.unpack_from(buffer, start)
            end = start + REPLY.size + length
            if len(buffer) < end:
                break
            call = self._calls.pop(number, None)
            if call is not None:
                call.payload = bytes(buffer[start + REPLY.size : end])
                call.kind = kind
                call.replied.set()
            start = end
        del buffer[:start]

    def _number(self) -> int:
        return next(self._numbers) & 0xFFFFFFFF

    def _send(self, frame: bytes) -> None:
        if self.lost:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                pass
            except OSError:
                self._lose()
                return
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._sendable.set()

    async def _send_rest(self) -> None:
        """What the socket did not take at once: the worker is busy, or stopped."""
        with suppress(OSError, trio.ClosedResourceError):
            while not self.lost:
                await self._sendable.wait()
                await trio.lowlevel.wait_writable(self._socket)
                with suppress(BlockingIOError):
                    del self._unsent[: self._socket.send(self._unsent)]
                if not self._unsent:
                    self._sendable = trio.Event()

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        with suppress(RuntimeError):  # outside of a loop nobody waits
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.replied.set()


class BlockingFills:
    """For threads: each call has a connection of its own while it lasts; connections are used again."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def fill(self, request: pb.FillRequest) -> bytes | None:
        """Send a request and wait for its reply, if it has one; see `outcome_of`.

        Raises:
            ForebayError: what the worker raised; WorkerUnavailable when it is gone or silent.
        """
        if request.background:
            self._exchange([pack_request(1, request)], 0)
            return None
        return outcome_of(*self._exchange([pack_request(1, request)], 1)[1])

    def begin(self, requests: Sequence[pb.FillRequest]) -> "FillsUnderWay":
        """Send requests that have replies, all at once.

        Raises:
            WorkerUnavailable: it is gone or silent.
        """
        connection = self._send([pack_request(number, request) for number, request in enumerate(requests, 1)])
        return FillsUnderWay(partial(self._receive, connection, len(requests)), connection.close)

    def call(self, method: str, request: bytes) -> bytes:
        """Call a method of proto/worker.proto (see fill_server.py for which): its reply, both serialised.

        Raises:
            ForebayError: what the worker raised; WorkerUnavailable when it is gone or silent.
        """
        return outcome_of(*self._exchange([pack_call(1, method, request)], 1)[1]) or b""

    def _exchange(self, frames: Sequence[bytes], replies: int) -> dict[int, tuple[int, bytes]]:
        return self._receive(self._send(frames), replies)

    def _send(self, frames: Sequence[bytes]) -> socket.socket:
        """The connection on which frames were sent, to be given to `_receive`."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = _connect(self._path)
            connection.settimeout(self._timeout_s)
        try:
            connection.sendall(b"".join(frames))
        except BaseException as error:
            raise self._broken(connection, error) from error
        return connection

    def _receive(self, connection: socket.socket, replies: int) -> dict[int, tuple[int, bytes]]:
        """Take so many replies: kind and payload by number."""
        found = {}
        try:
            for _ in range(replies):
                number, kind, payload = _receive_reply(connection)
                found[number] = kind, payload
        except BaseException as error:
            raise self._broken(connection, error) from error
        with self._lock:
            self._idle.append(connection)
        return found

    @staticmethod
    def _broken(connection: socket.socket, error: BaseException) -> BaseException:
        connection.close()
        return _gone(error.strerror or error) if isinstance(error, OSError) else error


class FillsUnderWay:
    """Requests that were sent. `replies` or `close` must be called, once."""

    def __init__(self, receive: Callable[[], dict[int, tuple[int, bytes]]], close: Callable[[], None]) -> None:
        self._receive = receive
        self.close = close
        """Have them taken back."""

    def replies(self) -> list[tuple[int, bytes]]:
        """Wait for all replies; each for `outcome_of`, in the order of the requests.

        Raises:
            WorkerUnavailable: it is gone or silent; some may have been done.
        """
        found = self._receive()
        return [found[number] for number in sorted(found)]


def _receive_reply(connection: socket.socket) -> tuple[int, int, bytes]:
    length, number, kind = REPLY.unpack(_receive_exactly(connection, REPLY.size))
    return number, kind, bytes(_receive_exactly(connection, length))


def _receive_exactly(connection: socket.socket, size: int) -> bytearray:
    received = bytearray(size)
    view = memoryview(received)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise ConnectionResetError("it closed the connection")
        view = view[got:]
    return received


class FillRequests:
    """Cuts a stream of bytes into requests."""

    def __init__(
        self, take: Callable[[int, bytes | None], None], take_call: Callable[[int, bytes], None] | None = None
    ) -> None:
        """
        Args:
            take: gets number and message of each; None takes a request back.
            take_call: gets number and message of each call; without it a call is none of ours.
        """
        self._take = take
        self._take_call = take_call
        self._buffer = bytearray()

    def feed(self, received: bytes) -> None:
        """Raises: ForebayError, a request is longer than any of ours."""
        buffer = self._buffer
        buffer += received
        start = 0
        while len(buffer) - start >= REQUEST.size:
            length, number = REQUEST.unpack_from(buffer, start)
            if length == TAKE_BACK:
                self._take(number, None)
                start += REQUEST.size
                continue
            is_call, length = length & CALL, length & ~CALL
            if length > (CALL_BYTES if is_call else REQUEST_BYTES) or (is_call and self._take_call is None):
                raise ForebayError(f"a request of {length} bytes is none of ours")
            end = start + REQUEST.size + length
            if len(buffer) < end:
                break
            message = bytes(buffer[start + REQUEST.size : end])
            if is_call and self._take_call is not None:
                self._take_call(number, message)
            else:
                self._take(number, message)
            start = end
        del buffer[:start]
