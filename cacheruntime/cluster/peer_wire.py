"""The data port between nodes: frames on a TCP connection, in plain text or TLS.

A gRPC byte stream in Python costs both sides several times the CPU of a socket (docs/decisions/0029), so bytes have a
port of their own.

Format: a request is ``length`` (little-endian uint32) and a `ReadRequest` of that length. Replies are ``length`` and a
`ReadHeader`, then as many bytes as the header announces. A request has ended when each of its wants was answered in
full, with MISSING or with FAILED; only then may the next request follow on the same connection. Who does not want the
rest closes the connection.
"""

import math
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import ForebayError
from forebay.proto import peer_pb2 as pb

FRAME = struct.Struct("<I")

REQUEST_BYTES = MIB
"""Longest request: a batch of names."""

HEADER_BYTES = 1 << 16
"""Longest header: the sums of 64 MiB in pieces of 64 KiB take 8 KiB."""

KEEP_ALIVE_S = 1.0
"""A worker that has nothing to send says COMING so often."""


class PeerBroken(ForebayError):
    """The other side broke off, sent what is none of ours, or was silent for too long."""

    TRANSIENT = True


class Channel:
    """Frames over one socket; for one thread, which blocks in the kernel: there the time-outs are, too.

    Resources: `close` ends the connection.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Args: connection: connected; a TLS one after its handshake."""
        connection.settimeout(None)
        self.socket = connection
        self._timeouts: dict[int, float] = {}

    def close(self) -> None:
        self.socket.close()

    @property
    def is_plain(self) -> bool:
        """Whether the kernel may send a file by itself."""
        return not isinstance(self.socket, ssl.SSLSocket)

    def wait(self, timeout_s: float) -> bool:
        """Whether something comes, or the end, within that time."""
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        return bool(pending) or bool(_poll(self.socket, timeout_s))

    def has_left(self) -> bool:
        """Whether the other side has closed the connection, though what it sent before may still be there."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def send(self, message: bytes, timeout_s: float, *, more: bool = False) -> None:
        """Send a frame.

        Args:
            message: of the frame.
            timeout_s: for the other side to take nothing.
            more: bytes follow at once, so it need not be woken for this alone.

        Raises:
            PeerBroken.
        """
        flags = socket.MSG_MORE if more and self.is_plain else 0
        self._send(FRAME.pack(len(message)) + message, timeout_s, flags)

    def send_bytes(self, data: bytes | memoryview, timeout_s: float) -> None:
        """Raises: PeerBroken, also when the other side takes nothing for that long."""
        self._send(data, timeout_s)

    def _send(self, data: bytes | memoryview, timeout_s: float, flags: int = 0) -> None:
        try:
            self._limit(socket.SO_SNDTIMEO, timeout_s)
            self.socket.sendall(data, flags)
        except (OSError, ValueError) as error:
            raise PeerBroken(f"the connection broke off while sending ({_why(error)})") from error

    def send_file(self, descriptor: int, position: int, length: int, timeout_s: float) -> None:
        """Have the kernel send a part of a file, on a connection in plain text.

        Raises:
            PeerBroken: also when the other side takes nothing for that long, or the file is shorter.
        """
        end = position + length
        try:
            self._limit(socket.SO_SNDTIMEO, timeout_s)
            while position < end:
                sent = os.sendfile(self.socket.fileno(), descriptor, position, end - position)
                if not sent:
                    raise PeerBroken("the file is shorter than the index says")
                position += sent
        except OSError as error:
            raise PeerBroken(f"the connection broke off while sending ({_why(error)})") from error

    def receive(self, most: int, timeout_s: float) -> bytes:
        """The next frame's message.

        Args:
            most: bytes that it may have.
            timeout_s: for all of it to come: who sends a byte now and then holds nothing for long.

        Raises:
            PeerBroken: also when it is longer.
        """
        give_up = time.monotonic() + timeout_s
        head = bytearray(FRAME.size)
        self.receive_into(memoryview(head), timeout_s, give_up)
        (length,) = FRAME.unpack(head)
        if length > most:
            raise PeerBroken(f"a frame of {length} bytes; {most} is the most")
        message = bytearray(length)
        self.receive_into(memoryview(message), timeout_s, give_up)
        return bytes(message)

    def receive_into(self, target: memoryview, timeout_s: float, give_up: float = math.inf) -> None:
        """Fill `target` with what comes next.

        Args:
            target: all of it.
            timeout_s: for nothing to come.
            give_up: when all has to be there, by `time.monotonic`.

        Raises:
            PeerBroken: also when it does not come in time.
        """
        flags = socket.MSG_WAITALL if self.is_plain else 0
        have = 0
        try:
            self._limit(socket.SO_RCVTIMEO, timeout_s)
            while have < len(target):
                got = self.socket.recv_into(target[have:], 0, flags)
                if not got:
                    raise PeerBroken("the other side closed the connection")
                have += got
                if have < len(target) and time.monotonic() > give_up:
                    raise PeerBroken("the other side sends too slowly")
        except (OSError, ValueError) as error:
            raise PeerBroken(f"the connection broke off while receiving ({_why(error)})") from error

    def _limit(self, option: int, timeout_s: float) -> None:
        if self._timeouts.get(option) != timeout_s:
            whole = int(timeout_s)
            value = struct.pack("@ll", whole, int((timeout_s - whole) * 1e6))
            self.socket.setsockopt(socket.SOL_SOCKET, option, value)
            self._timeouts[option] = timeout_s


def _why(error: Exception) -> object:
    return "no answer in time" if isinstance(error, BlockingIOError | ssl.SSLWantReadError) else error


def _poll(connection: socket.socket, timeout_s: float) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return poll.poll(max(timeout_s, 0) * 1000)


def connect(
    host: str, port: int, timeout_s: float, wrap: Callable[[socket.socket], socket.socket] | None = None
) -> Channel:
    """Connect to a data port.

    Args:
        host, port: where.
        timeout_s: for the connection and its handshake.
        wrap: makes a TLS socket of a plain one; None for plain text.

    Raises:
        PeerBroken: nobody listens there, or the handshake failed.
    """
    connection: socket.socket | None = None
    try:
        connection = socket.create_connection((host, port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Channel(wrap(connection) if wrap is not None else connection)
    except OSError as error:
        if connection is not None:
            connection.close()
        raise PeerBroken(f"{host}:{port} cannot be reached ({error})") from error


def parse_header(message: bytes) -> pb.ReadHeader:
    """Raises: PeerBroken, it is none."""
    try:
        return pb.ReadHeader.FromString(message)
    except Exception as error:  # protobuf's DecodeError has changed its module before
        raise PeerBroken("what came is no header") from error
