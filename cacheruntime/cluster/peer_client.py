"""Reading from another worker: one exchange is one request and its answers, over a connection of the peer's pool.

For threads. The data port is tried first; where nobody can connect to it, gRPC carries the same frames.
"""

import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import grpc
import numpy as np
import xxhash

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster import peer_wire
from forebay.cacheruntime.cluster.directory import split_address
from forebay.cacheruntime.cluster.membership import Address, Known
from forebay.cacheruntime.cluster.peer_wire import Channel, PeerBroken, parse_header
from forebay.cacheruntime.config import MIB
from forebay.proto import peer_pb2 as pb

log = logging.getLogger(__name__)

CONNECT_S = 1.5
SEND_S = 5.0
STALL_S = 3 * peer_wire.KEEP_ALIVE_S
"""Nothing for so long, where COMING is said every second: the other side is stopped, or cut off."""

AT_ONCE = 32
"""Requests under way to one worker: half of what it allows one party, which two nodes behind one address may be."""

_IDLE = 16
"""Connections that are kept for the next request, to each of perhaps hundreds of workers."""

_GRPC_FOR_S = 30.0
"""After the data port could not be reached, gRPC is used for this long."""

READ_METHOD = "/forebay.cache.v1.PeerData/Read"


class WrongBytes(PeerBroken):
    """What came is not what its sums say: damaged on the way, or where it was kept."""


class NoTurn(PeerBroken):
    """As much as may be is under way to that worker. It is not to blame."""


class Exchange(Protocol):
    """One request under way."""

    def wait(self, timeout_s: float) -> bool:
        """Whether the next frame, or the end, comes within that time."""

    def header(self, timeout_s: float) -> pb.ReadHeader:
        """The next one. Raises: PeerBroken."""

    def body(self, size: int, stall_s: float) -> memoryview:
        """The next `size` bytes of what the last header announced. Raises: PeerBroken."""

    def finished(self) -> None:
        """All was read: the connection may be used again."""

    def close(self) -> None:
        """No more of it is wanted."""


class _SocketExchange:
    """Over the data port."""

    def __init__(self, channel: Channel, ended: Callable[[Channel | None], None]) -> None:
        """Args: ended: called once, with the channel if it can be used again."""
        self._channel = channel
        self._ended = ended
        self._open = True

    def wait(self, timeout_s: float) -> bool:
        return self._channel.wait(timeout_s)

    def header(self, timeout_s: float) -> pb.ReadHeader:
        return parse_header(self._channel.receive(peer_wire.HEADER_BYTES, timeout_s))

    def body(self, size: int, stall_s: float) -> memoryview:
        target = np.empty(size, np.uint8).data  # bytearray would write zeros first
        self._channel.receive_into(target, stall_s)
        return target

    def finished(self) -> None:
        if self._open:
            self._open = False
            self._ended(self._channel)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._channel.close()
            self._ended(None)


class _GrpcExchange:
    """Over a gRPC stream of raw messages; a thread puts them into a queue, so that there can be a time-out."""

    def __init__(self, call: Any, ended: Callable[[Channel | None], None]) -> None:
        """Args: ended: called once."""
        self._call = call
        self._ended = ended
        self._open = True
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(4)
        self._next: bytes | BaseException | None = b""
        self._has_next = False
        self._rest = memoryview(b"")
        threading.Thread(target=self._receive, name="peer-grpc", daemon=True).start()

    def _receive(self) -> None:
        try:
            for message in self._call:
                self._queue.put(message)
            self._queue.put(None)
        except grpc.RpcError as error:
            self._queue.put(error)

    def wait(self, timeout_s: float) -> bool:
        if not self._has_next and not self._rest:
            try:
                self._next = self._queue.get(timeout=max(timeout_s, 0.0))
            except queue.Empty:
                return False
            self._has_next = True
        return True

    def _message(self, timeout_s: float) -> bytes:
        if not self.wait(timeout_s):
            raise PeerBroken("no answer in time")
        self._has_next = False
        if self._next is None:
            raise PeerBroken("the stream ended in the middle of a reply")
        if isinstance(self._next, grpc.RpcError):
            raise PeerBroken(str(rpc.to_error(self._next))) from self._next
        assert isinstance(self._next, bytes)
        return self._next

    def header(self, timeout_s: float) -> pb.ReadHeader:
        return parse_header(self._message(timeout_s))

    def body(self, size: int, stall_s: float) -> memoryview:
        if not self._rest:
            self._rest = memoryview(self._message(stall_s))
        if len(self._rest) >= size:
            taken, self._rest = self._rest[:size], self._rest[size:]
            return taken
        target = bytearray(self._rest)
        self._rest = memoryview(b"")
        while len(target) < size:
            more = memoryview(self._message(stall_s))
            missing = size - len(target)
            target += more[:missing]
            self._rest = more[missing:]
        return memoryview(target)

    def finished(self) -> None:
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._ended(None)
        self._call.cancel()
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()


class PeerClient:
    """One other worker, for all threads of this process.

    Resources: `close` ends its connections.
    """

    def __init__(
        self,
        known: Known,
        grpc_channel: Callable[[Address], grpc.Channel],
        wrap: Callable[[Any], Any] | None,
        token: Callable[[], str],
    ) -> None:
        """
        Args:
            known: which worker.
            grpc_channel: to an address, for the way round.
            wrap: makes a TLS socket of a plain one; None for plain text.
            token: to be sent with each request.
        """
        self.known = known
        self._grpc_channel = grpc_channel
        self._wrap = wrap
        self._token = token
        self._idle: list[Channel] = []
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._grpc_until = 0.0

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def moved(self, known: Known) -> None:
        """It is the same worker, started anew or elsewhere."""
        if (known.address, known.data_port) != (self.known.address, self.known.data_port):
            self.known = known
            self._grpc_until = 0.0
            self.close()

    def take_turn(self, wait_s: float) -> None:
        """Wait until one more request may be sent, by the `begin` that follows.

        Raises:
            NoTurn: not within that time. Who has a turn with another worker must not wait: that one may wait for this.
        """
        if not self._turns.acquire(timeout=wait_s):
            raise NoTurn(f"{AT_ONCE} requests to worker {self.known.id} are under way, the most that there may be")

    def begin(self, request: pb.ReadRequest) -> Exchange:
        """Send a request, after `take_turn`: the turn ends with the exchange. Raises: PeerBroken."""
        try:
            return self._begin(request)
        except BaseException:
            self._turns.release()
            raise

    def _begin(self, request: pb.ReadRequest) -> Exchange:
        request.token = self._token()
        message = request.SerializeToString()
        while (channel := self._take_idle()) is not None:
            if channel.wait(0):  # nothing should come now: its other side has closed it
                channel.close()
                continue
            with suppress(PeerBroken):
                return self._sent(channel, message)
        if not self.known.data_port or time.monotonic() < self._grpc_until:
            return self._by_grpc(message)
        host, _ = split_address(self.known.address)
        try:
            channel = peer_wire.connect(host, self.known.data_port, CONNECT_S, self._wrap)
        except PeerBroken as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise
            # It was started anew on another port, or only that port is shut, by a firewall that says so or one that
            # drops what comes; or it is away, as gRPC will find out too.
            log.info("the data port of %s: %s; gRPC is used for a while", self.known.address, error)
            self._grpc_until = time.monotonic() + _GRPC_FOR_S
            return self._by_grpc(message)
        return self._sent(channel, message)

    def _sent(self, channel: Channel, message: bytes) -> Exchange:
        try:
            channel.send(message, SEND_S)
        except PeerBroken:
            channel.close()
            raise
        return _SocketExchange(channel, self._ended)

    def _by_grpc(self, message: bytes) -> Exchange:
        try:
            method = self._grpc_channel(self.known.address).unary_stream(READ_METHOD)
            return _GrpcExchange(method(message), self._ended)
        except ValueError as error:  # the channel was closed meanwhile
            raise PeerBroken(str(error)) from error

    def _take_idle(self) -> Channel | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _ended(self, channel: Channel | None) -> None:
        """An exchange has ended; its channel, if it can be used again."""
        self._turns.release()
        if channel is None:
            return
        with self._lock:
            if len(self._idle) < _IDLE:
                self._idle.append(channel)
                return
        channel.close()


def body_of(exchange: Exchange, header: pb.ReadHeader, stall_s: float = STALL_S) -> Iterator[memoryview]:
    """The bytes that a header announces, in pieces of 1 MiB or what one sum is of; each compared with its sum.

    Raises:
        PeerBroken: they do not come. WrongBytes: they are not what the sums say.
    """
    unit = header.unit
    if not 0 < unit <= MIB or len(header.sums) != -(-header.length // unit):
        raise PeerBroken(f"{len(header.sums)} sums for {header.length} bytes in units of {unit}")
    at_once = max(unit, MIB // unit * unit)
    position = 0
    while position < header.length:
        piece = exchange.body(min(at_once, header.length - position), stall_s)
        for start in range(0, len(piece), unit):
            known = header.sums[(position + start) // unit]
            if xxhash.xxh3_64_intdigest(piece[start : start + unit]) != known:
                raise WrongBytes(f"bytes from {header.offset + position + start} on are not what was stored")
        yield piece
        position += len(piece)
