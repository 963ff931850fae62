"""A private certificate authority, and what a certificate says about who has it.

A *bundle* is the folder of one party: ``ca.crt`` (whom to believe), ``tls.crt`` (the certificate, intermediates behind
it) and ``tls.key``: the names that Kubernetes' TLS secrets and cert-manager use. Workers have ``tokens.pub`` beside
them, clients ``token`` (`tokens.py`).

Who somebody is stands in the certificate, as a URI among the subject alternative names:
``spiffe://forebay/worker/NAME`` or ``spiffe://forebay/client/NAME``. A worker has the DNS name
``worker.forebay.internal`` too: that is what those who connect to it verify, whatever its address is, for gRPC in
Python can verify nothing but a host name. A CA of one's own has to write both (docs/how-to/secure-a-cluster.md).

Keys are ECDSA P-256: BoringSSL, which gRPC has inside, refuses Ed25519 in certificates.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from forebay.cacheruntime.durable import write_durably
from forebay.cacheruntime.errors import AccessDenied, UsageError

CA_CERT, CA_KEY = "ca.crt", "ca.key"
CERT, KEY = "tls.crt", "tls.key"
TOKEN_KEYS = "tokens.pub"
"""By which a worker verifies tokens; it is put into the bundles of workers."""

SERVER_NAME = "worker.forebay.internal"
"""In every worker's certificate; `.internal` is reserved for private use (ICANN, 2024), so nobody else has it."""

CA_DAYS = 3650
DAYS = 365
"""Of a certificate without `--days`; what Kubernetes gives its own (kubeadm)."""

_BACKDATED = timedelta(minutes=5)
"""Of the start of a certificate: clocks differ, and what was issued just now shall be valid everywhere."""

_ID = "spiffe://forebay/"
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,63}")
"""As SPIFFE's path segments (SPIFFE-ID, section 2.2); a common name holds 64 characters."""
_HOST = re.compile(r"(?=.{1,253}$)(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)*", re.ASCII)


UNREADABLE = (
    ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What `cryptography` raises for certificates and keys that are broken, strange or have a pass phrase (TypeError)."""


class Role(Enum):
    """What a party may do: a worker everything, a client what its token says."""

    WORKER = "worker"
    CLIENT = "client"


USES = {
    Role.WORKER: (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    Role.CLIENT: (ExtendedKeyUsageOID.CLIENT_AUTH,),
}
"""What a certificate has to be allowed, where it names uses at all. Workers connect to one another: they need both."""


@dataclass(frozen=True)
class Identity:
    """Who is at the other end."""

    role: Role
    name: str
    """From the certificate; the address in plain text, where nobody has a name."""
    expires_s: float
    """When the certificate ends, seconds since the epoch."""

    def __str__(self) -> str:
        return f"{self.role.value} {self.name!r}"


def create_authority(folder: Path, now: datetime, days: int = CA_DAYS, force: bool = False) -> None:
    """Make a CA: `ca.crt` and `ca.key` in a folder, which is made where it is missing.

    Args:
        folder: keep it where no worker and no client is.
        now: from when on it is valid.
        days: how long.
        force: replace what is there; all that it has issued is void then.

    Raises:
        UsageError: it exists already, or cannot be written.
    """
    refuse_to_replace([folder / CA_KEY, folder / CA_CERT], force)
    key = ec.generate_private_key(ec.SECP256R1())
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"Forebay CA {key_id.digest.hex()[:8]}")  # two authorities never share a name
    certificate = (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(key_id, critical=False)
        .sign(key, hashes.SHA256())
    )
    make_folder(folder)
    write_secret(folder / CA_KEY, _key_text(key))
    write_secret(folder / CA_CERT, _text(certificate))


def issue(
    authority: Path,
    out: Path,
    identity: tuple[Role, str],
    now: datetime,
    hosts: Sequence[str] = (),
    days: int = DAYS,
    force: bool = False,
) -> None:
    """Make the bundle of one party.

    Args:
        authority: folder of `create_authority`.
        out: the bundle's folder.
        identity: role and name.
        now: from when on it is valid.
        hosts: names and addresses by which other programs may verify a worker; ours do not need them.
        days: how long.
        force: replace a bundle that is there; running processes take the new one at their next connection.

    Raises:
        UsageError: a bad name or host, no authority there, a bundle that exists, more days than the authority has.
    """
    role, name = identity
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name!r} is not 1 to 63 letters, digits, '.', '_' and '-'")
    if hosts and role is not Role.WORKER:
        raise UsageError("--host is for workers: nobody connects to a client")
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{_ID}{role.value}/{name}")]
    if role is Role.WORKER:
        alternatives.append(x509.DNSName(SERVER_NAME))
    alternatives += (_host(host) for host in hosts if host != SERVER_NAME)
    ca, ca_key = _load_authority(authority)
    left = (ca.not_valid_after_utc - now).days
    if days > left:
        raise UsageError(f"the authority in {authority} ends in {left} days: no certificate of {days} days; see --days")
    refuse_to_replace([out / KEY, out / CERT, out / CA_CERT], force)
    key = ec.generate_private_key(ec.SECP256R1())
    uses = USES[role]
    certificate = (
        _builder(_name(name), ca.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    make_folder(out)
    write_secret(out / CA_CERT, _text(ca))
    write_secret(out / KEY, _key_text(key))
    write_secret(out / CERT, _text(certificate))
    if role is Role.WORKER and (authority / TOKEN_KEYS).exists():
        write_secret(out / TOKEN_KEYS, (authority / TOKEN_KEYS).read_text())


def identity_of(certificate: x509.Certificate) -> Identity:
    """Who has a certificate; that it is genuine has been verified before.

    Raises:
        AccessDenied: it does not say, or says several things.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(_ID)]
    except x509.ExtensionNotFound:
        found = []
    except UNREADABLE:
        raise AccessDenied("the names in the certificate cannot be read") from None
    if len(found) != 1:
        raise AccessDenied(
            f"the certificate names {len(found) or 'no'} roles: among its subject alternative names has to be one URI"
            f" {_ID}worker/NAME or {_ID}client/NAME"
        )
    role, _, name = found[0].removeprefix(_ID).partition("/")
    if role not in (each.value for each in Role) or not _NAME.fullmatch(name):
        raise AccessDenied(f"the certificate's URI {found[0]!r} is not {_ID}worker/NAME or {_ID}client/NAME")
    return Identity(Role(role), name, certificate.not_valid_after_utc.timestamp())


def host_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """DNS names and addresses.

    Raises:
        One of UNREADABLE: its names cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority has signed it; its dates are not looked at."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def read_certificates(path: Path) -> list[x509.Certificate]:
    """One or more, as PEM.

    Raises:
        UsageError: not to be read, or no certificate in it.
    """
    try:
        return parse_certificates(path, path.read_bytes())
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def parse_certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    """The same of what was read from `path`.

    Raises:
        UsageError: no certificate in it.
    """
    try:
        return x509.load_pem_x509_certificates(content)
    except UNREADABLE:
        raise UsageError(f"{str(path)!r} holds no certificate in PEM") from None


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, if there is none.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder {str(folder)!r} cannot be made: {error.strerror}") from error


def refuse_to_replace(paths: Sequence[Path], force: bool) -> None:
    """
    Raises:
        UsageError: one of the files exists, and nobody has said that it may be replaced.
    """
    there = next((path for path in paths if os.path.lexists(path)), None)
    if there is not None and not force:
        raise UsageError(f"{str(there)!r} exists already; --force replaces it")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_durably(path, text)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _load_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not (folder / CA_KEY).exists():
        raise UsageError(f"{str(folder)!r} is no authority: no {CA_KEY} there; make one with: forebay certs init DIR")
    ca = read_certificates(folder / CA_CERT)[0]
    try:
        key = load_pem_private_key((folder / CA_KEY).read_bytes(), None)
    except OSError as error:
        raise UsageError(f"{str(folder / CA_KEY)!r} cannot be read: {error.strerror}") from error
    except UNREADABLE:
        raise UsageError(f"{str(folder / CA_KEY)!r} is not a key that `forebay certs init` has made") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise UsageError(f"{CA_KEY} and {CA_CERT} in {str(folder)!r} do not belong together")
    return ca, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    try:
        end = now + timedelta(days=days)
    except OverflowError:
        end = datetime.max.replace(tzinfo=UTC)
    if days <= 0 or end.year > 2400:
        raise UsageError(f"--days {days}: at least 1, and no more than 100,000")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        if _HOST.fullmatch(host):
            return x509.DNSName(host)
        raise UsageError(f"--host {host!r} is neither a DNS name nor an address") from None


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
