"""What one client of a worker may use at once, so that none takes the worker from the others."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.certs import Identity
from forebay.cacheruntime.config import LimitConfig
from forebay.cacheruntime.errors import LimitReached

_PINGS_EVERY_MS = 5_000
"""Callers see by pings whether this side lives while it has nothing to say (`channels.py`); gRPC's own default, five
minutes, ends a call of theirs after 220 s (measured) with "too many pings"."""

_METADATA_BYTES = 16 << 10
"""Of a call: a token (8 KiB at most) and what gRPC and tracing put beside it."""

_KEEP_ALIVE_MS = 30_000
"""A client that is stopped or cut off takes up threads for no longer than twice this; gRPC's own default is 2 h."""


class ClientLimit:
    """Counts one kind of thing for each identity. Its methods may be called in any thread."""

    def __init__(self, what: str, limit: int) -> None:
        """
        Args:
            what: for the error, in the plural, like 'streams'.
            limit: how many one identity may have at once.
        """
        self._what = what
        self._limit = limit
        self._lock = threading.Lock()
        self._held: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def held(self, identity: Identity) -> Iterator[None]:
        """One more for this identity, until the block ends.

        Raises:
            LimitReached: it has as many as it may have.
        """
        self.take(identity)
        try:
            yield
        finally:
            self.give_back(identity)

    def take(self, identity: Identity) -> None:
        """One more, until `give_back`.

        Raises:
            LimitReached: it has as many as it may have.
        """
        key = (identity.role.value, identity.name)
        with self._lock:
            if self._held[key] >= self._limit:
                raise LimitReached(
                    f"{identity} has {self._limit} {self._what} under way, which is the limit for one client"
                )
            self._held[key] += 1

    def give_back(self, identity: Identity) -> None:
        """One less."""
        key = (identity.role.value, identity.name)
        with self._lock:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    def counts(self) -> dict[str, int]:
        """How many each identity has, for metrics."""
        with self._lock:
            return {f"{role} {name}": count for (role, name), count in self._held.items()}


class Share:
    """What one party may have of one kind of thing; see `ClientLimit`."""

    def __init__(self, limit: ClientLimit, identity: Identity) -> None:
        self._limit = limit
        self._identity = identity

    def take(self) -> None:
        """Raises: LimitReached."""
        self._limit.take(self._identity)

    def give_back(self) -> None:
        self._limit.give_back(self._identity)


def server_options(limits: LimitConfig) -> tuple[tuple[str, int], ...]:
    """Options of the gRPC server that other nodes reach."""
    return (
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", rpc.MESSAGE_BYTES),  # a directory's names are one message
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_EVERY_MS),
        ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEP_ALIVE_MS),
    )
