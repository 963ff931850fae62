"""Certificates for tests: an authority and bundles, also such as `forebay certs` would not make."""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from forebay.cacheruntime.cluster import certs, tokens
from forebay.cacheruntime.cluster.certs import CA_CERT, CA_KEY, CERT, KEY, Role
from forebay.cacheruntime.cluster.security import Security

WORKER_URI = "spiffe://forebay/worker/own"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Parties:
    """An authority in `folder`, and what it has issued below it."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, at: datetime | None = None) -> "Parties":
        certs.create_authority(folder, at or now())
        tokens.create_keys(folder)
        return cls(folder)

    def issue(
        self, name: str, role: Role = Role.WORKER, at: datetime | None = None, days: int = 30, out: Path | None = None
    ) -> Path:
        """A bundle; again for the same name replaces it."""
        folder = out or self.folder / name
        certs.issue(self.folder, folder, (role, name), at or now(), days=days, force=True)
        return folder

    def worker(self, name: str = "w") -> Security:
        return Security(self.issue(name))

    def client(self, name: str = "c") -> Security:
        return Security(self.issue(name, Role.CLIENT))

    def foreign(
        self,
        name: str,
        names: Sequence[x509.GeneralName],
        key: PrivateKey | None = None,
        uses: Sequence[x509.ObjectIdentifier] = (),
    ) -> Path:
        """A bundle as an authority of somebody else's might issue it."""
        own = key or ec.generate_private_key(ec.SECP256R1())
        ca = certs.read_certificates(self.folder / CA_CERT)[0]
        ca_key = load_pem_private_key((self.folder / CA_KEY).read_bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(ca.subject)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - timedelta(hours=1))
            .not_valid_after(now() + timedelta(hours=1))
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        folder = self.folder / name
        folder.mkdir()
        (folder / CA_CERT).write_bytes((self.folder / CA_CERT).read_bytes())
        (folder / CERT).write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
        (folder / KEY).write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return folder


def raw_context(protocol: int, bundle: Path, show: bool = True, ca: Path | None = None) -> ssl.SSLContext:
    """TLS by the ssl module alone, for parties that `Security` would not let be."""
    context = ssl.SSLContext(protocol)
    if protocol == ssl.PROTOCOL_TLS_CLIENT:
        context.load_verify_locations((ca or bundle) / CA_CERT)
    if show:
        context.load_cert_chain(bundle / CERT, bundle / KEY)
    return context


def raw_channel(port: int, bundle: Path, show: bool = True) -> grpc.Channel:
    """gRPC as a stranger would speak it."""
    key, chain = ((bundle / KEY).read_bytes(), (bundle / CERT).read_bytes()) if show else (None, None)
    credentials = grpc.ssl_channel_credentials((bundle / CA_CERT).read_bytes(), key, chain)
    options = (("grpc.ssl_target_name_override", certs.SERVER_NAME),)
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


class Serve(grpc.GenericRpcHandler):
    """Every method is `serve`, on raw bytes."""

    def __init__(self, serve: Callable[[bytes, grpc.ServicerContext], bytes]) -> None:
        self._serve = serve

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._serve)
