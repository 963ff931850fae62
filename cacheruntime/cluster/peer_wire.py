"""The data port between nodes: frames on a TCP connection, in plain text or TLS.

A gRPC byte stream in Python costs both sides several times the CPU of a socket (docs/decisions/0029), so bytes have a
port of their own.

Format: a request is ``length`` (little-endian uint32) and a `ReadRequest` of that length. Replies are ``length`` and a
`ReadHeader`, then as many bytes as the header announces. A request has ended when each of its wants was answered in
full, with MISSING or with FAILED; only then may the next request follow on the same connection. Who does not want the
rest closes the connection.
"""

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
    """Frames over one socket; blocking, for one thread.

    Resources: `close` ends the connection.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Args: connection: connected; a TLS one after its handshake."""
        self.socket = connection
        self._buffer = bytearray()

    def close(self) -> None:
        self.socket.close()

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def is_plain(self) -> bool:
        """Whether the kernel may send a file by itself."""
        return not isinstance(self.socket, ssl.SSLSocket)

    def wait(self, timeout_s: float) -> bool:
        """Whether something comes, or the end, within that time."""
        pending = len(self._buffer) or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending())
        return bool(pending) or bool(_poll(self.socket, timeout_s))

    def send(self, message: bytes, timeout_s: float) -> None:
        """Send a frame. Raises: PeerBroken."""
        self.send_bytes(FRAME.pack(len(message)) + message, timeout_s)

    def send_bytes(self, data: bytes | memoryview, timeout_s: float) -> None:
        """Raises: PeerBroken, also when the other side takes nothing for that long."""
        try:
            self.socket.settimeout(timeout_s)
            self.socket.sendall(data)
        except (OSError, ValueError) as error:
            raise PeerBroken(f"the connection broke off while sending ({error})") from error

    def receive(self, most: int, timeout_s: float) -> bytes:
        """The next frame's message.

        Args:
            most: bytes that it may have.
            timeout_s: for all of it.

        Raises:
            PeerBroken: also when it is longer.
        """
        deadline = time.monotonic() + timeout_s
        (length,) = FRAME.unpack(self._take(FRAME.size, deadline))
        if length > most:
            raise PeerBroken(f"a frame of {length} bytes; {most} is the most")
        return self._take(length, deadline)

    def receive_into(self, target: memoryview, stall_s: float) -> None:
        """Fill `target` with what comes next. Raises: PeerBroken, also when nothing comes for `stall_s`."""
        have = min(len(self._buffer), len(target))
        target[:have] = self._buffer[:have]
        del self._buffer[:have]
        try:
            self.socket.settimeout(stall_s)
            while have < len(target):
                got = self.socket.recv_into(target[have:])
                if not got:
                    raise PeerBroken("the connection ended in the middle of a reply")
                have += got
        except (OSError, ValueError) as error:
            raise PeerBroken(f"the connection broke off while receiving ({error})") from error

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise PeerBroken("no answer in time")
            try:
                self.socket.settimeout(left_s)
                # No more than is missing: the bytes behind a header go straight to where they are wanted.
                got = self.socket.recv(size - len(self._buffer))
            except (OSError, ValueError) as error:
                raise PeerBroken(f"the connection broke off while receiving ({error})") from error
            if not got:
                raise PeerBroken("the other side closed the connection")
            self._buffer += got
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


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
