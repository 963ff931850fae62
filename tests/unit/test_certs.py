"""The private authority: what it makes, what it refuses, and what certificates say."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from parties import WORKER_URI, Parties, now

from forebay.cacheruntime.cluster import bundle, certs, tokens
from forebay.cacheruntime.cluster.certs import CA_CERT, CA_KEY, CERT, KEY, SERVER_NAME, Role, identity_of
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.errors import AccessDenied, UsageError

WORKER_DNS = x509.DNSName(SERVER_NAME)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties.create(tmp_path / "ca")


def test_a_bundle_has_the_names_of_kubernetes_and_nobody_else_may_read_it(parties: Parties) -> None:
    worker, client = parties.issue("w-1"), parties.issue("c.1", Role.CLIENT)
    assert sorted(path.name for path in worker.iterdir()) == ["ca.crt", "tls.crt", "tls.key", "tokens.pub"]
    assert sorted(path.name for path in client.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
    for path in parties.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE(parties.folder.stat().st_mode) == 0o700


def test_roles_uses_and_hosts_stand_in_the_certificate(parties: Parties) -> None:
    out = parties.folder / "out"
    certs.issue(parties.folder, out, (Role.WORKER, "w"), now(), ["10.1.2.3", "[fd00::1]", "*.cache.svc"])
    (worker,) = certs.read_certificates(out / CERT)
    (client,) = certs.read_certificates(parties.issue("c", Role.CLIENT) / CERT)
    assert str(identity_of(worker)) == "worker 'w'"
    assert certs.host_names(worker) == (SERVER_NAME, "*.cache.svc", "10.1.2.3", "fd00::1")
    assert str(identity_of(client)) == "client 'c'"
    assert certs.host_names(client) == ()
    uses = [set(each.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for each in (worker, client)]
    assert uses == [
        {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH},
        {ExtendedKeyUsageOID.CLIENT_AUTH},
    ]


def test_nothing_is_replaced_unless_it_is_said(parties: Parties) -> None:
    worker = parties.issue("w")
    before = {path: path.read_bytes() for path in parties.folder.rglob("*") if path.is_file()}
    for call in (
        lambda: certs.create_authority(parties.folder, now()),
        lambda: certs.issue(parties.folder, worker, (Role.CLIENT, "w"), now()),
        lambda: tokens.create_keys(parties.folder),
    ):
        with pytest.raises(UsageError, match="exists already; --force replaces it"):
            call()
    assert {path: path.read_bytes() for path in parties.folder.rglob("*") if path.is_file()} == before
    certs.create_authority(parties.folder, now(), force=True)
    assert (parties.folder / CA_KEY).read_bytes() != before[parties.folder / CA_KEY]


@pytest.mark.parametrize(
    ("name", "hosts", "days", "message"),
    [
        ("", (), 1, "is not 1 to 63"),
        ("..", (), 1, "is not 1 to 63"),
        ("a/b", (), 1, "is not 1 to 63"),
        ("a" * 64, (), 1, "is not 1 to 63"),
        ("ü", (), 1, "is not 1 to 63"),
        ("w\n", (), 1, "is not 1 to 63"),
        ("w", ("a b",), 1, "neither a DNS name nor an address"),
        ("w", ("",), 1, "neither a DNS name nor an address"),
        ("w", ("a\0.b",), 1, "neither a DNS name nor an address"),
        ("w", (), 0, "at least 1"),
        ("w", (), 4000, "ends in 36"),
        ("w", (), 10**12, "ends in 36"),
    ],
)
def test_bad_wishes_make_nothing(parties: Parties, name: str, hosts: tuple[str, ...], days: int, message: str) -> None:
    out = parties.folder / "out"
    with pytest.raises(UsageError, match=message):
        certs.issue(parties.folder, out, (Role.WORKER, name), now(), hosts, days)
    assert not out.exists()


def test_a_client_has_no_hosts(parties: Parties) -> None:
    with pytest.raises(UsageError, match="--host is for workers"):
        certs.issue(parties.folder, parties.folder / "c", (Role.CLIENT, "c"), now(), [SERVER_NAME])


def test_no_authority_there_or_half_of_one(tmp_path: Path, parties: Parties) -> None:
    def issue(folder: Path) -> None:
        certs.issue(folder, tmp_path / "out", (Role.WORKER, "w"), now())

    with pytest.raises(UsageError, match=r"is no authority: no ca\.key there"):
        issue(tmp_path)
    other = Parties.create(tmp_path / "other")
    (other.folder / CA_CERT).write_bytes((parties.folder / CA_CERT).read_bytes())
    with pytest.raises(UsageError, match="do not belong together"):
        issue(other.folder)
    (other.folder / CA_KEY).write_text("nothing")
    with pytest.raises(UsageError, match="is not a key that `forebay certs init` has made"):
        issue(other.folder)
    (other.folder / CA_CERT).unlink()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        issue(other.folder)


@pytest.mark.parametrize(
    "names",
    [
        [],
        [WORKER_DNS],
        [uri("spiffe://forebay/worker/a"), uri("spiffe://forebay/client/a")],
        [uri("spiffe://forebay/worker/a"), uri("spiffe://forebay/worker/a")],
        [uri("spiffe://forebay/admin/a")],
        [uri("spiffe://forebay/worker/")],
        [uri("spiffe://forebay/worker/a/b")],
        [uri("spiffe://forebay/worker/a b")],
        [uri("spiffe://forebay/worker/..")],
        [uri("spiffe://other/worker/a")],
        [uri("spiffe://forebay/WORKER/a")],
        [uri("spiffe://forebay.evil/worker/a")],
        [x509.DNSName(WORKER_URI)],
        [x509.RFC822Name(WORKER_URI)],
    ],
)
def test_a_certificate_without_exactly_one_role_is_nobody(parties: Parties, names: list[x509.GeneralName]) -> None:
    folder = parties.foreign("own", names)
    (certificate,) = certs.read_certificates(folder / CERT)
    with pytest.raises(AccessDenied, match="spiffe://forebay/worker/NAME"):
        identity_of(certificate)
    with pytest.raises(UsageError, match="spiffe://forebay/worker/NAME"):
        Security(folder)


def test_certificates_of_an_authority_of_ones_own(parties: Parties) -> None:
    names = [uri("spiffe://example.org/else"), uri(WORKER_URI), x509.DNSName("node-1"), WORKER_DNS]
    me = Security(parties.foreign("all", names, rsa.generate_private_key(65537, 2048))).me
    assert str(me) == "worker 'own'"
    for name, given, key, uses, message in (
        ("dns", names[:3], None, (), f"has not the DNS name {SERVER_NAME}"),
        ("key", names, ed25519.Ed25519PrivateKey.generate(), (), "neither ECDSA nor RSA"),
        ("use", names, None, (ExtendedKeyUsageOID.SERVER_AUTH,), "lacks clientAuth"),
    ):
        with pytest.raises(UsageError, match=message):
            Security(parties.foreign(name, given, key, uses))


def test_show_says_what_is_wrong(tmp_path: Path, parties: Parties) -> None:
    worker = parties.issue("w")
    ca, mine = bundle.show(worker, now())
    assert (ca.file, ca.party, ca.trouble) == (CA_CERT, "authority", "")
    assert (mine.file, mine.party, mine.hosts, mine.trouble) == (CERT, "worker 'w'", (SERVER_NAME,), "")
    assert bundle.show(worker, now() + timedelta(days=31))[1].trouble == "expired"
    assert bundle.show(worker, now() - timedelta(days=1))[1].trouble == "not valid yet"
    other = Parties.create(tmp_path / "other")
    (worker / CA_CERT).write_bytes((other.folder / CA_CERT).read_bytes())
    assert "was not issued by an authority in ca.crt" in bundle.show(worker, now())[1].trouble
    (worker / KEY).write_bytes((other.issue("x") / KEY).read_bytes())
    assert "do not belong together" in bundle.show(worker, now())[1].trouble
    (worker / KEY).unlink()
    assert "has no tls.key" in bundle.show(worker, now())[1].trouble
    (worker / CERT).write_text("nothing")
    with pytest.raises(UsageError, match="holds no certificate in PEM"):
        bundle.show(worker, now())
    with pytest.raises(UsageError, match=r"has neither ca\.crt nor tls\.crt"):
        bundle.show(tmp_path, now())


def test_a_bundle_does_not_show_its_key(parties: Parties) -> None:
    folder = parties.issue("w")
    secret = (folder / KEY).read_text().splitlines()[1]
    contents = {name: (folder / name).read_bytes() for name in (CA_CERT, CERT, KEY)}
    assert secret not in repr(bundle.parse(folder, contents, now().timestamp()))
