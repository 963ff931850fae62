"""gRPC channels to other workers, one for each address, made when they are first used."""

import threading
from typing import Any

import grpc

from forebay.cacheruntime import rpc, tracing
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.security import ReloadingChannel, Security
from forebay.proto import peer_pb2_grpc

_OPTIONS = (
    *rpc.OPTIONS,
    # A worker that was away is to be found again soon: gRPC's own backoff goes up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class _Traced(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Puts the current span into the metadata of calls."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_with_span(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_with_span(details), request)


def _with_span(details: Any) -> Any:
    current = tracing.current()
    if not current:
        return details
    return details._replace(metadata=[*(details.metadata or ()), (tracing.TRACEPARENT, current)])


class Channels:
    """Safe to use from many threads.

    Resources: `close` ends all of them.
    """

    def __init__(self, security: Security) -> None:
        """Args: security: of this node."""
        self._security = security
        self._lock = threading.Lock()
        self._channels: dict[Address, ReloadingChannel] = {}

    def get(self, address: Address) -> grpc.Channel:
        """The channel for the next call; not to be kept."""
        with self._lock:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = ReloadingChannel(self._security, address, _OPTIONS)
        found = channel.get()
        return grpc.intercept_channel(found, _Traced()) if tracing.is_on() else found

    def stub(self, address: Address) -> Any:
        """Of the Peer service, for the next call."""
        return peer_pb2_grpc.PeerStub(self.get(address))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()
