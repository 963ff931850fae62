"""What is in the folder of a party: made ready for TLS (`Material`), and told to people (`show`)."""

import os
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from forebay.cacheruntime.cluster.certs import (
    CA_CERT,
    CERT,
    KEY,
    SERVER_NAME,
    UNREADABLE,
    USES,
    Identity,
    Role,
    host_names,
    identity_of,
    is_issued_by,
    parse_certificates,
    read_certificates,
)
from forebay.cacheruntime.cluster.watched import Contents, Watched
from forebay.cacheruntime.errors import AccessDenied, UsageError

_USE_NAMES = {ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth", ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"}


@dataclass(frozen=True)
class Material:
    """A bundle's files, parsed; they belong together."""

    me: Identity
    ca: bytes
    chain: bytes
    key: bytes = field(repr=False)
    starts_s: float
    ends_s: float
    """Of the certificate or its CA, whichever ends first; seconds since the epoch."""
    server: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True)
class Facts:
    """What `forebay certs show` says of one certificate."""

    file: str
    subject: str
    issuer: str
    party: str
    """`worker NAME`, `client NAME`, `authority`, or why it is neither."""
    hosts: tuple[str, ...]
    starts: datetime
    ends: datetime
    trouble: str
    """What is wrong with it; empty: nothing."""


def watched_material(folder: Path) -> Watched[Material]:
    """The bundle in a folder, as of now.

    Raises:
        UsageError: what `parse` says of it.
    """
    return Watched(folder, (CA_CERT, CERT, KEY), lambda contents: parse(folder, contents, time.time()))


def parse(folder: Path, contents: Contents, now_s: float) -> Material:
    """Make what TLS needs of a bundle's files.

    Args:
        folder: for errors.
        contents: of `ca.crt`, `tls.crt` and `tls.key`.
        now_s: seconds since the epoch.

    Raises:
        UsageError: a file is missing or broken, they do not belong together, have expired, or name no role.
    """
    for name in (CA_CERT, CERT, KEY):
        if contents[name] is None:
            raise UsageError(
                f"{str(folder)!r} has no {name}; a bundle is made by: forebay certs issue DIR NAME --worker"
            )
    ca_text, cert_text, key_text = (contents[name] or b"" for name in (CA_CERT, CERT, KEY))
    authorities = parse_certificates(folder / CA_CERT, ca_text)
    chain = parse_certificates(folder / CERT, cert_text)
    me, ends = _verified(folder, authorities, chain, key_text)
    if ends.timestamp() <= now_s:
        raise UsageError(f"{CERT} or {CA_CERT} in {str(folder)!r} has expired; see: forebay certs show {folder}")
    ca = b"".join(each.public_bytes(Encoding.PEM) for each in authorities)
    whole = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
    starts_s = chain[0].not_valid_before_utc.timestamp()
    server = _context(ssl.PROTOCOL_TLS_SERVER, ca, whole, key_text)
    client = _context(ssl.PROTOCOL_TLS_CLIENT, ca, whole, key_text)
    return Material(me, ca, whole, key_text, starts_s, ends.timestamp(), server, client)


def show(folder: Path, now: datetime) -> list[Facts]:
    """The certificates of an authority's or a bundle's folder, `ca.crt` first.

    Raises:
        UsageError: there are none, or they cannot be read.
    """
    found = {name: folder / name for name in (CA_CERT, CERT) if (folder / name).exists()}
    if not found:
        raise UsageError(f"{str(folder)!r} has neither {CA_CERT} nor {CERT}; make them with: forebay certs init DIR")
    try:
        return [
            Facts(
                file=name,
                subject=each.subject.rfc4514_string(),
                issuer=each.issuer.rfc4514_string(),
                party=_party(each),
                hosts=host_names(each),
                starts=each.not_valid_before_utc,
                ends=each.not_valid_after_utc,
                trouble=_dates(each, now) or (_whole(folder, now) if name == CERT and not number else ""),
            )
            for name, path in found.items()
            for number, each in enumerate(read_certificates(path))
        ]
    except UNREADABLE:
        raise UsageError(f"a certificate in {str(folder)!r} cannot be read") from None


def _verified(
    folder: Path, authorities: list[x509.Certificate], chain: list[x509.Certificate], key_text: bytes
) -> tuple[Identity, datetime]:
    """Whose bundle it is, and when it ends, if its files belong together."""
    leaf = chain[0]
    try:
        key = load_pem_private_key(key_text, None)
    except UNREADABLE:
        raise UsageError(f"{str(folder / KEY)!r} holds no private key in PEM without a pass phrase") from None
    if not isinstance(key, EllipticCurvePrivateKey | RSAPrivateKey):
        raise UsageError(f"{str(folder / KEY)!r} is neither ECDSA nor RSA; gRPC takes no others")
    issuers = [authority for authority in authorities if any(is_issued_by(each, authority) for each in chain)]
    try:
        belongs = key.public_key() == leaf.public_key()
        me, hosts = identity_of(leaf), host_names(leaf)
        lacking = [use for use in USES[me.role] if use not in (_uses(leaf) or (use,))]
    except AccessDenied as error:
        raise UsageError(f"{CERT} in {str(folder)!r}: {error}") from None
    except UNREADABLE:
        raise UsageError(f"{CERT} in {str(folder)!r} cannot be read") from None
    if not belongs:
        raise UsageError(f"{KEY} and {CERT} in {str(folder)!r} do not belong together")
    if not issuers:
        raise UsageError(f"{CERT} in {str(folder)!r} was not issued by an authority in {CA_CERT}")
    if lacking:
        missing = " and ".join(_USE_NAMES[use] for use in lacking)
        raise UsageError(f"{CERT} in {str(folder)!r} is {me}, but its extended key usage lacks {missing}")
    if me.role is Role.WORKER and SERVER_NAME not in hosts:
        raise UsageError(f"{CERT} in {str(folder)!r} is {me}, but has not the DNS name {SERVER_NAME}")
    return me, min(leaf.not_valid_after_utc, max(issuer.not_valid_after_utc for issuer in issuers))


def _context(protocol: int, ca: bytes, chain: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would not be verified against the CA of now
    # OpenSSL takes files only, and those in the folder may have changed since they were read.
    memory = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(chain + b"\n" + key)
        context.load_verify_locations(cadata=ca.decode())
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    except ssl.SSLError as error:
        raise UsageError(f"OpenSSL does not take {CA_CERT}, {CERT} and {KEY}: {error.reason}") from None
    finally:
        os.close(memory)
    return context


def _uses(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    """What it may be used for; empty: for anything."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _party(certificate: x509.Certificate) -> str:
    with suppress(x509.ExtensionNotFound):
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "authority"
    try:
        return str(identity_of(certificate))
    except AccessDenied as error:
        return str(error)


def _dates(certificate: x509.Certificate, now: datetime) -> str:
    if certificate.not_valid_after_utc <= now:
        return "expired"
    return "not valid yet" if certificate.not_valid_before_utc > now else ""


def _whole(folder: Path, now: datetime) -> str:
    """Why the bundle cannot be used; empty: it can."""
    files = {name: folder / name for name in (CA_CERT, CERT, KEY)}
    try:
        contents = {name: path.read_bytes() if path.exists() else None for name, path in files.items()}
        parse(folder, contents, now.timestamp())
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except UsageError as error:
        return str(error)
    return ""
