"""The worker's faces towards other nodes: the data port, and gRPC.

The data port has a thread for each connection: it waits for the other side and for the disk, and the kernel moves the
bytes (sendfile; through TLS, they pass by here). How many connections there may be, of one party and in all, is
bounded.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from google.protobuf.message import DecodeError

from forebay.cacheruntime.cluster import peer_wire
from forebay.cacheruntime.cluster.certs import Identity
from forebay.cacheruntime.cluster.directory import join_address
from forebay.cacheruntime.cluster.peer_wire import Channel, PeerBroken
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.errors import ForebayError, UsageError
from forebay.cacheruntime.worker.peer_gate import PeerGate
from forebay.cacheruntime.worker.peer_reads import Payload, PeerReads
from forebay.proto import peer_pb2 as pb

log = logging.getLogger(__name__)

CONNECTIONS = 1024

_HANDSHAKE_S = 5.0
_SEND_S = 30.0
"""A reader that takes nothing for so long is stopped or gone."""

_IDLE_S = 600.0

_CLOSE_LOOK_S = 0.02
_ACCEPT_AGAIN_S = 0.2
"""After there were no descriptors: some may be closed by then."""


class DataPort:
    """Serves `PeerReads` on a TCP port.

    Resources: `close` ends it and its connections.
    """

    def __init__(self, reads: PeerReads, gate: PeerGate, host: str, port: int) -> None:
        """Args: host, port: where to listen; 0 for any.

        Raises:
            ForebayError: the address cannot be used.
        """
        self._reads = reads
        self._gate = gate
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._busy: set[socket.socket] = set()
        """Of these: with a request under way."""
        self._closed = False
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            every = host == "::" and socket.has_dualstack_ipv6()  # as gRPC takes it
            self._listening = socket.create_server((host, port), family=family, backlog=256, dualstack_ipv6=every)
        except OSError as error:
            where = join_address(host, port) if port else host
            raise UsageError(f"cannot listen on {where}: {error.strerror or error}; name another address") from error
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, name="peers", daemon=True).start()

    def close(self, grace_s: float = 0.0) -> None:
        """End it. Requests that are under way may come to their end within that time; blocks as long."""
        with self._lock:
            self._closed = True
            idle = self._connections - self._busy
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        _shut(idle)
        give_up = time.monotonic() + grace_s
        while self._busy and time.monotonic() < give_up:
            time.sleep(_CLOSE_LOOK_S)
        with self._lock:
            rest = set(self._connections)
        _shut(rest)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, address = self._listening.accept()
            except OSError:
                if self._closed:
                    return
                log.exception("the data port cannot accept")
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            with self._lock:
                full = len(self._connections) >= CONNECTIONS or self._closed
                if not full:
                    self._connections.add(connection)
            if full:
                log.warning("connection from %s refused: %d are open, the most that there may be", address, CONNECTIONS)
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), name="peer", daemon=True).start()
            except RuntimeError as error:
                log.warning("connection from %s refused: %s", address, error)
                with self._lock:
                    self._connections.discard(connection)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        wrapped = connection
        try:
            connection.settimeout(_HANDSHAKE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped, identity = self._gate.wrap(connection)
            with self._gate.connections.held(identity):
                self._answer_all(connection, Channel(wrapped), identity)
        except (PeerBroken, OSError) as error:
            log.debug("a connection of the data port ended: %s", error)
        except (ForebayError, DecodeError) as error:
            log.warning("a client of the data port is cut off: %s", error)
        except Exception:
            log.exception("a connection of the data port failed")
        finally:
            wrapped.close()
            with self._lock:
                self._busy.discard(connection)
                self._connections.discard(connection)

    def _answer_all(self, connection: socket.socket, channel: Channel, identity: Identity) -> None:
        while channel.wait(_IDLE_S):
            with self._lock:
                if self._closed:
                    return
                self._busy.add(connection)
            message = channel.receive(peer_wire.REQUEST_BYTES, _SEND_S)
            request = pb.ReadRequest.FromString(message)
            if channel.has_left() and not any(want.suspect for want in request.wants):
                return  # this worker stood still for so long that another was asked: a fetch would be one too many
            try:
                self._gate.check_read(identity, request)
                self._gate.streams.take(identity)
            except ForebayError as error:
                refuse(channel.send, request, error)
                self._is_idle(connection)
                continue
            answers = self._reads.answer(request, identity)
            try:
                for header, payload in answers:
                    self._send(channel, header, payload)
            finally:
                answers.close()
                self._gate.streams.give_back(identity)
            self._is_idle(connection)

    def _is_idle(self, connection: socket.socket) -> None:
        with self._lock:
            self._busy.discard(connection)
            if self._closed:
                _shut({connection})

    def _send(self, channel: Channel, header: pb.ReadHeader, payload: Payload | None) -> None:
        try:
            channel.send(header.SerializeToString(), _SEND_S, more=payload is not None and payload.length > 0)
            if payload is None:
                return
            if payload.data is not None:
                channel.send_bytes(payload.data, _SEND_S)
            elif channel.is_plain:
                channel.send_file(payload.descriptor, payload.position, payload.length, _SEND_S)
            else:
                for piece in pieces_of(payload):
                    channel.send_bytes(piece, _SEND_S)
        finally:
            if payload is not None:
                payload.done()


def _shut(connections: set[socket.socket]) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def refuse(send: Callable[[bytes, float], None], request: pb.ReadRequest, error: ForebayError) -> None:
    """Answer each want of a request with an error."""
    text = f"{type(error).__name__}: {error}"
    for number in range(len(request.wants)):
        send(pb.ReadHeader(want=number, state=pb.FAILED, error=text).SerializeToString(), _SEND_S)


def pieces_of(payload: Payload) -> Iterator[bytes]:
    """A payload in pieces of 1 MiB at most. Raises: PeerBroken, the file is shorter than it says."""
    if payload.data is not None:
        yield payload.data
        return
    position, end = payload.position, payload.position + payload.length
    while position < end:
        piece = os.pread(payload.descriptor, min(MIB, end - position), position)
        if not piece:
            raise PeerBroken("the file is shorter than the index says")
        yield piece
        position += len(piece)
