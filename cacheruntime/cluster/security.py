"""How parties of a cluster know one another: mutual TLS from the files of a bundle (`certs.py`), or plain text.

Both ports of a worker, gRPC and data, verify the same: that the certificate of who connects comes from the CA in
``ca.crt``, and that of who is connected to also has the name of a worker. The address plays no part, for addresses come
and go; a client's certificate has neither that name nor the right to serve. Who the other one is, is read from the
verified certificate.

Files are looked at for each new connection. Connections that exist go on; their calls are refused once the certificate
that they were made with has ended (`tokens.Authorizer`).
"""

import ipaddress
import logging
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote

import grpc
from cryptography import x509

from forebay.cacheruntime.cluster.bundle import Material, watched_material
from forebay.cacheruntime.cluster.certs import (
    SERVER_NAME,
    UNREADABLE,
    Identity,
    Role,
    identity_of,
)
from forebay.cacheruntime.cluster.watched import Contents, Watched
from forebay.cacheruntime.config import parse_address
from forebay.cacheruntime.errors import AccessDenied, ForebayError, UsageError

TOKEN = "token"
"""File of a client's token in its bundle."""
INSECURE = "insecure"
"""The name by which plain text is asked for."""

_WARN_EVERY_S = 86400.0
_WARN_SHARE = 0.1
"""The certificate's end is warned of when less than this share of its life is left; renewal by cert-manager is due with
a third left, so nobody is warned where that works."""

_LONGEST_CALL_S = 3600.0
"""A channel that was replaced this long ago has no calls of ours any more: deadlines are minutes."""

_TOKEN = re.compile(rb"[A-Za-z0-9_.-]*")
"""Base64url and dots (RFC 7515); other characters might not be allowed in the metadata of a call."""

_log = logging.getLogger(__name__)

Options = Sequence[tuple[str, Any]]


class TlsConnection(Protocol):
    """`ssl.SSLSocket`, `ssl.SSLObject` and `trio.SSLStream`, all after their handshake."""

    def getpeercert(self, binary_form: Literal[True]) -> bytes | None: ...


class Security:
    """TLS for one party, or plain text. Its methods may be called in any thread; most look at files (a `stat` each)."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: a bundle; None: plain text, without any verification (see `from_setting`).

        Raises:
            UsageError: the bundle is not one, or has expired.
        """
        self.folder = folder
        self._tls = watched_material(folder) if folder else None
        self._token = Watched(folder, (TOKEN,), _parse_token) if folder else None
        self._warned_at = -math.inf

    @classmethod
    def from_setting(cls, setting: str) -> "Security":
        """From `insecure` or the folder of a bundle, as `setting` gives it.

        Raises:
            UsageError: as of the constructor.
        """
        return cls(None if setting == INSECURE else Path(os.path.abspath(setting)))

    @property
    def setting(self) -> str:
        """For another process: `from_setting` makes the same of it. Holds no secret."""
        return str(self.folder) if self.folder else INSECURE

    @property
    def is_insecure(self) -> bool:
        return self._tls is None

    @property
    def generation(self) -> int:
        """Grows when the bundle has been replaced: channels and pooled connections are to be made anew then."""
        if self._tls is None:
            return 0
        self._tls.get()
        return self._tls.generation

    @property
    def me(self) -> Identity | None:
        """Who this party is; None in plain text."""
        tls = self._material()
        return tls.me if tls else None

    def expires_in_s(self) -> float | None:
        """Seconds until the certificate or its CA ends, negative behind that; None in plain text. For metrics."""
        tls = self._material()
        return tls.ends_s - time.time() if tls else None

    # The data port

    def server_context(self) -> ssl.SSLContext | None:
        """For the next connection to be accepted: TLS 1.3, a certificate is demanded; None: plain text.

        In TLS 1.3 the client's handshake ends before the server has verified its certificate: who is refused learns of
        it by his first read.
        """
        tls = self._material()
        return tls.server if tls else None

    def client_context(self) -> ssl.SSLContext | None:
        """For the next connection to a worker, with `certs.SERVER_NAME` as server_hostname; None: plain text."""
        tls = self._material()
        return tls.client if tls else None

    def identity_of_connection(self, connection: TlsConnection | None, address: str) -> Identity:
        """Who is at the other end of a connection of the data port.

        Args:
            connection: after its handshake; None in plain text.
            address: of the other end, without the port.

        Raises:
            AccessDenied: its certificate names no role.
        """
        if self.is_insecure:
            return _nameless(address)
        der = connection.getpeercert(True) if connection else None
        if not der:
            raise AccessDenied(f"{address} has shown no certificate")
        return _identity_in(x509.load_der_x509_certificate, der)

    # gRPC

    def bind(self, server: grpc.Server, address: str) -> int:
        """Have a server listen on HOST:PORT, and return the port.

        Raises:
            ForebayError: nobody can listen there.
        """
        try:
            tls = self._material()
            if tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._server_credentials(tls))
        except RuntimeError as error:
            why = str(error).partition(";")[0]  # gRPC goes on with advice for those who debug it
            raise ForebayError(f"cannot listen on {address} ({why}); name another address") from error
        return int(port)

    def open_channel(self, target: str, options: Options = ()) -> grpc.Channel:
        """A channel to the worker at HOST:PORT. It keeps the certificate of now; see `ReloadingChannel`.

        A client's token goes along with every call.

        Resources: the caller closes it.
        """
        tls = self._material()
        if tls is None:
            return grpc.insecure_channel(target, options)
        credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.chain)
        if tls.me.role is Role.CLIENT:
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.metadata_call_credentials(_SendsToken(self.token), "forebay-token")
            )
        return grpc.secure_channel(target, credentials, (("grpc.ssl_target_name_override", SERVER_NAME), *options))

    def identity_of_call(self, context: grpc.ServicerContext) -> Identity:
        """Who makes a call.

        Raises:
            AccessDenied: its certificate names no role.
        """
        if self.is_insecure:
            return _nameless(_host_of_peer(context.peer()))
        pem = (context.auth_context() or {}).get("x509_pem_cert", ())
        if not pem:
            raise AccessDenied(f"{_host_of_peer(context.peer())} has shown no certificate")
        return _identity_in(x509.load_pem_x509_certificate, pem[0])

    def token(self) -> str | None:
        """This party's own token, from the file `token` of its bundle."""
        return self._token.get() if self._token else None

    # What plain text must not do

    def listen_address(self, text: str) -> tuple[str, int]:
        """Host and port of `--listen`. Without a host: all addresses with TLS, loopback in plain text.

        Raises:
            UsageError: not of the form HOST:PORT.
        """
        return parse_address(text, "127.0.0.1" if self.is_insecure else "0.0.0.0")

    def may_send_credentials(self, host: str) -> bool:
        """Whether an under-store's credentials may go to a host (a name or address, without a port): with TLS, or on
        this machine. Names but `localhost` may lead anywhere, so they count as elsewhere."""
        return not self.is_insecure or is_loopback(host)

    def _material(self) -> Material | None:
        if self._tls is None:
            return None
        tls = self._tls.get()
        self._warn_of_the_end(tls)
        return tls

    def _server_credentials(self, first: Material) -> grpc.ServerCredentials:
        """They ask for each connection whether there is something new."""
        given = [first]

        def fetch() -> Any:
            tls = self._material()
            if tls is None or tls is given[0]:
                return None  # as before
            given[0] = tls
            return _for_grpc_server(tls)

        return grpc.dynamic_ssl_server_credentials(_for_grpc_server(first), fetch, require_client_authentication=True)

    def _warn_of_the_end(self, tls: Material) -> None:
        left_s = tls.ends_s - time.time()
        if left_s > _WARN_SHARE * (tls.ends_s - tls.starts_s) or time.monotonic() < self._warned_at + _WARN_EVERY_S:
            return
        self._warned_at = time.monotonic()
        end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(tls.ends_s))
        _log.warning(
            "the certificate in %s %s %s: put another into its place, nothing has to be restarted",
            self.folder, "ends at" if left_s > 0 else "has ended at", end,
        )  # fmt: skip


class ReloadingChannel:
    """A gRPC channel to one worker that is made anew when the bundle has been replaced."""

    def __init__(self, security: Security, target: str, options: Options = ()) -> None:
        """
        Args:
            security: of this party.
            target: HOST:PORT.
            options: of the channel.

        Resources: `close` it.
        """
        self._security = security
        self._target = target
        self._options = options
        self._lock = threading.Lock()
        self._generation = security.generation
        self._channel = security.open_channel(target, options)
        self._former: list[tuple[float, grpc.Channel]] = []
        self._closed = False

    def get(self) -> grpc.Channel:
        """The channel for the next call; not to be kept."""
        with self._lock:
            generation = self._security.generation
            if generation != self._generation and not self._closed:
                self._retire(time.monotonic())
                self._channel = self._security.open_channel(self._target, self._options)
                self._generation = generation
            return self._channel

    def close(self) -> None:
        """End all calls."""
        with self._lock:
            self._closed = True
            for _, channel in self._former:
                channel.close()
            self._channel.close()

    def _retire(self, now_s: float) -> None:
        """Calls under way stay on the channel that they have: closing it would end them."""
        while self._former and self._former[0][0] < now_s - _LONGEST_CALL_S:
            self._former.pop(0)[1].close()
        self._former.append((now_s, self._channel))


class _SendsToken(grpc.AuthMetadataPlugin):  # type: ignore[misc]
    """gRPC puts it on TLS only: credentials of calls are refused on a channel in plain text."""

    def __init__(self, token: Callable[[], str | None]) -> None:
        self._token = token

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        token = self._token()
        callback((("authorization", f"Bearer {token}"),) if token else (), None)


def token_of_call(context: grpc.ServicerContext) -> str | None:
    """The token that came with a call (`authorization: Bearer ...`), unverified."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


def is_loopback(host: str) -> bool:
    """Whether a name or address (without a port) is this machine for certain; a path of a Unix socket is."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _for_grpc_server(tls: Material) -> Any:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.chain)], tls.ca)


@lru_cache(maxsize=1024)
def _identity_in(load: Callable[[bytes], x509.Certificate], certificate: bytes) -> Identity:
    """Kept: it is asked for with every call."""
    try:
        return identity_of(load(certificate))
    except UNREADABLE:
        raise AccessDenied("the certificate cannot be read") from None


def _nameless(address: str) -> Identity:
    """Anybody in plain text may do everything; limits go by address."""
    return Identity(Role.WORKER, address, math.inf)


def _host_of_peer(peer: str) -> str:
    """Of `ipv4:10.0.0.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:...`."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind


def _parse_token(contents: Contents) -> str | None:
    raw = (contents[TOKEN] or b"").strip()
    if not _TOKEN.fullmatch(raw):
        raise UsageError(f"the file {TOKEN!r} in a client's bundle holds something else than a token")
    return raw.decode() or None
