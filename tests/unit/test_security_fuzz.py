"""Certificates and tokens from strangers: whatever they are, they are taken or refused in one line, and never more."""

import base64
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parties import Parties, now

from forebay.cacheruntime.cluster import bundle, certs
from forebay.cacheruntime.cluster.certs import CA_CERT, CERT, KEY, UNREADABLE, Identity, Role, identity_of
from forebay.cacheruntime.cluster.tokens import PRIVATE, Authorizer, Verb, create_token
from forebay.cacheruntime.errors import AccessDenied, UsageError

ANY_TIME = settings(deadline=None)
"""A loaded machine is no fault."""
CLIENT = Identity(Role.CLIENT, "c", 2.0**40)

Edit = tuple[int, int, bytes]
EDITS = st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)
"""At, bytes to take away, bytes to put there."""
NAMES = st.one_of(
    st.text("abc/.%\0 ", max_size=8).map("spiffe://forebay/worker/{}".format),
    st.text("abcdefghijklmnopqrstuvwxyz:/.", max_size=40),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@functools.cache
def parties() -> Parties:
    made = Parties.create(Path(tempfile.mkdtemp(prefix="forebay-fuzz-")) / "ca")
    made.issue("w")
    return made


@pytest.fixture(scope="module", autouse=True)
def _removed() -> Iterator[None]:
    yield
    shutil.rmtree(parties().folder.parent)
    parties.cache_clear()


@functools.cache
def authorizer() -> Authorizer:
    return Authorizer(parties().folder)


@functools.cache
def key() -> Ed25519PrivateKey:
    made = load_pem_private_key((parties().folder / PRIVATE).read_bytes(), None)
    assert isinstance(made, Ed25519PrivateKey)
    return made


@functools.cache
def token() -> str:
    return create_token(parties().folder, ["imagenet"], [Verb.READ], time.time(), 3600)


@functools.cache
def header() -> dict[str, Any]:
    raw = token().split(".")[0]
    decoded = json.loads(base64.urlsafe_b64decode(raw + "=="))
    assert isinstance(decoded, dict)
    return decoded


def changed(original: bytes, edits: list[Edit]) -> bytes:
    for at, gone, put in edits:
        start = at % (len(original) + 1)
        original = original[:start] + put + original[start + gone :]
    return original


def is_allowed(text: str, verb: Verb = Verb.READ, dataset: str = "imagenet") -> bool:
    return refusal(lambda: authorizer().check(CLIENT, text, verb, dataset)) is None


def refusal(call: Callable[[], object]) -> str | None:
    """The line in which a call refuses; None: it does not. Anything else that is raised fails the test."""
    try:
        call()
    except (AccessDenied, UsageError) as error:
        line = str(error)
    else:
        return None
    assert "\n" not in line
    return line


def sign(head: object, body: object) -> str:
    text = ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in (head, body))
    return f"{text}.{base64.urlsafe_b64encode(key().sign(text.encode())).rstrip(b'=').decode()}"


@ANY_TIME
@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}(\.[A-Za-z0-9_-]{0,40}){0,4}", fullmatch=True))
@example("\udcff.\ud800.x")
@example("eyJhbGciOiJub25lIn0..")
def test_no_text_is_a_token(text: str) -> None:
    assert not is_allowed(text)


@ANY_TIME
@given(EDITS)
def test_a_changed_token_is_none(edits: list[Edit]) -> None:
    text = changed(token().encode(), edits).decode("latin-1")
    if _decoded(text) != _decoded(token()):  # the last characters of base64 have bits that count for nothing
        assert not is_allowed(text)


@ANY_TIME
@given(st.dictionaries(st.sampled_from(["iss", "iat", "exp", "nbf", "sub", "aud", "jti", "datasets", "verbs"]), JSON))
@example({"exp": 1e400})
@example({"exp": 10**400})
@example({"datasets": ["["]})
@example({"datasets": ["[]-a]", "[!", "[^]", "\0", "\udcff"]})
def test_claims_of_any_kind_that_are_signed(claims: dict[str, Any]) -> None:
    """An issuer may be at fault, too: nobody gets more than `imagenet` and `read`, and nothing breaks."""
    known = {"iss": "forebay", "iat": time.time(), "exp": time.time() + 60, "datasets": ["imagenet"], "verbs": ["read"]}
    text = sign(header(), known | claims)
    is_allowed(text)
    if "verbs" not in claims:
        assert not is_allowed(text, Verb.ADMIN)
    if "datasets" not in claims:
        assert not is_allowed(text, dataset="other")


@ANY_TIME
@given(st.dictionaries(st.sampled_from(["alg", "typ", "kid", "b64", "crit", "zip", "jwk"]), JSON), JSON)
def test_headers_of_any_kind(head: dict[str, Any], body: object) -> None:
    is_allowed(sign(header() | head, body))
    is_allowed(sign(body, head))


@ANY_TIME
@given(EDITS)
def test_a_changed_certificate_is_read_or_refused(edits: list[Edit]) -> None:
    (certificate,) = certs.read_certificates(parties().folder / "w" / CERT)
    der = changed(certificate.public_bytes(Encoding.DER), edits)
    try:
        parsed = x509.load_der_x509_certificate(der)
    except UNREADABLE:
        return
    refusal(lambda: identity_of(parsed))
    assert isinstance(certs.is_issued_by(parsed, certs.read_certificates(parties().folder / CA_CERT)[0]), bool)


@ANY_TIME
@given(st.lists(NAMES, max_size=3), st.lists(st.text("ab./:", min_size=1, max_size=20), max_size=2))
def test_names_of_any_kind(uris: list[str], others: list[str]) -> None:
    """Only `spiffe://forebay/worker/NAME`, once, makes a worker."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(each) for each in others]
    made = _certificate(tuple(names))
    if refusal(lambda: identity_of(made)) is None:
        found = identity_of(made)
        assert [uri for uri in uris if uri.startswith("spiffe://forebay/")] == [f"spiffe://forebay/worker/{found.name}"]
        assert "/" not in found.name


@ANY_TIME
@given(st.sampled_from([CA_CERT, CERT, KEY]), EDITS)
def test_a_changed_bundle_is_taken_or_refused(name: str, edits: list[Edit]) -> None:
    folder = parties().folder / "w"
    contents: dict[str, bytes | None] = {each: (folder / each).read_bytes() for each in (CA_CERT, CERT, KEY)}
    contents[name] = changed(contents[name] or b"", edits)
    if refusal(lambda: bundle.parse(folder, contents, time.time())) is None:
        assert str(bundle.parse(folder, contents, time.time()).me) == "worker 'w'"


def _certificate(names: tuple[x509.GeneralName, ...]) -> x509.Certificate:
    secret = _ec_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now())
        .not_valid_after(now() + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(secret, hashes.SHA256())


@functools.cache
def _ec_key() -> ec.EllipticCurvePrivateKey:
    made = load_pem_private_key((parties().folder / "w" / KEY).read_bytes(), None)
    assert isinstance(made, ec.EllipticCurvePrivateKey)
    return made


def _decoded(text: str) -> list[bytes] | None:
    decode: Callable[[str], bytes] = lambda part: base64.urlsafe_b64decode(part + "==")  # noqa: E731
    try:
        return [decode(part) for part in text.split(".")]
    except ValueError:
        return None
