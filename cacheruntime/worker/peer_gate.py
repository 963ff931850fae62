"""Who may come in at a worker's two ports, and with what."""

import socket
import ssl
from collections.abc import Callable

import grpc

from forebay.cacheruntime.cluster.certs import Identity
from forebay.cacheruntime.cluster.guard import OPEN, WORKERS, Rule, on_dataset
from forebay.cacheruntime.cluster.limits import ClientLimit
from forebay.cacheruntime.cluster.peer_client import READ_METHOD
from forebay.cacheruntime.cluster.security import Security, token_of_call
from forebay.cacheruntime.cluster.tokens import Authorizer, Verb
from forebay.cacheruntime.config import LimitConfig
from forebay.proto import peer_pb2 as pb

CONNECTIONS_PER_STREAM = 4

DATASET_SCHEME = "dataset://"

NameOf = Callable[[str], str]
"""From a dataset's id to the name that tokens speak of."""


class PeerGate:
    """The data port's door, and the rules of gRPC's (`guard.py`)."""

    def __init__(
        self,
        security: Security,
        authorizer: Authorizer,
        limits: LimitConfig,
        name_of: NameOf,
        name_asked: Callable[[pb.FindRequest], str],
    ) -> None:
        """
        Args:
            security, authorizer, limits: of this worker.
            name_of: from an id.
            name_asked: of the dataset that somebody looks for.
        """
        self.security = security
        self.authorizer = authorizer
        self.limits = limits
        self.streams = ClientLimit("streams", limits.streams)
        self.connections = ClientLimit("connections", CONNECTIONS_PER_STREAM * limits.streams)
        """Of the data port: most of them idle."""
        self.fills = ClientLimit("fetches", limits.fills)
        self._name_of = name_of
        self._name_asked = name_asked

    def wrap(self, connection: socket.socket) -> tuple[socket.socket, Identity]:
        """A connection after its handshake, and who is at the other end.

        Raises:
            OSError: the handshake failed. AccessDenied: he has no role here.
        """
        host = connection.getpeername()[0]
        context = self.security.server_context()
        if context is None:
            return connection, self.security.identity_of_connection(None, host)
        wrapped = context.wrap_socket(connection, server_side=True)
        try:
            return wrapped, self.security.identity_of_connection(wrapped, host)
        except BaseException:
            wrapped.close()
            raise

    def check_read(self, identity: Identity, request: pb.ReadRequest) -> None:
        """Raises: AccessDenied."""
        self.authorizer.check(identity, request.token or None, Verb.READ, self._name_of(request.dataset_id))

    def lists(self, context: grpc.ServicerContext) -> Callable[[str], bool]:
        """Says of a dataset's name whether the caller may list it.

        Raises:
            AccessDenied: he has no valid token.
        """
        grant = self.authorizer.grant(self.security.identity_of_call(context), token_of_call(context))
        return lambda name: grant.allows(Verb.LIST, name)

    def rules(self) -> dict[str, Rule]:
        """Of every method that the gRPC server has."""
        service = f"/{pb.DESCRIPTOR.services_by_name['Peer'].full_name}"
        by_id = on_dataset(Verb.LIST, lambda request: self._name_of(request.dataset_id))
        return {
            f"{service}/Identify": OPEN,
            f"{service}/Define": WORKERS,
            f"{service}/Find": on_dataset(Verb.LIST, self._name_asked),
            f"{service}/List": by_id,
            f"{service}/Look": by_id,
            f"{service}/Load": on_dataset(Verb.WARM, lambda request: self._name_of(request.dataset_id)),
            f"{service}/Drain": on_dataset(Verb.ADMIN, lambda request: "**"),
            f"{service}/Report": Rule(Verb.LIST),
            READ_METHOD: on_dataset(Verb.READ, lambda raw: self._name_of(pb.ReadRequest.FromString(raw).dataset_id)),
            "/grpc.health.v1.Health/Check": OPEN,
            "/grpc.health.v1.Health/Watch": OPEN,
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": OPEN,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": OPEN,
        }


def client_side(security: Security, server_name: str) -> Callable[[socket.socket], socket.socket] | None:
    """Makes a TLS socket of one that is connected to a worker's data port; None: in plain text."""
    if security.is_insecure:
        return None

    def wrap(connection: socket.socket) -> socket.socket:
        context = security.client_context()
        assert isinstance(context, ssl.SSLContext)
        return context.wrap_socket(connection, server_hostname=server_name)

    return wrap
