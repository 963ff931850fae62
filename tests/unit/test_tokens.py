"""Tokens: what they allow, and every way in which one is refused. No refusal says anything of the token itself."""

import base64
import hashlib
import hmac
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from forebay_command import wait_until
from parties import Parties

from forebay.cacheruntime.cluster import tokens
from forebay.cacheruntime.cluster.certs import Identity, Role
from forebay.cacheruntime.cluster.tokens import PRIVATE, PUBLIC, Authorizer, Verb, create_token
from forebay.cacheruntime.errors import AccessDenied, UsageError

CLIENT = Identity(Role.CLIENT, "c", 2.0**40)
WORKER = Identity(Role.WORKER, "w", 2.0**40)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    return Parties.create(tmp_path / "ca").folder


@pytest.fixture
def authorizer(ca: Path) -> Authorizer:
    return Authorizer(ca)


def make(ca: Path, *datasets: str, verbs: tuple[Verb, ...] = (Verb.READ,), age_s: float = 0, **more: Any) -> str:
    return create_token(ca, datasets or ("imagenet",), verbs, time.time() - age_s, **more)


def refusal(authorizer: Authorizer, token: str | None, verb: Verb = Verb.READ, dataset: str = "imagenet") -> str:
    with pytest.raises(AccessDenied) as caught:
        authorizer.check(CLIENT, token, verb, dataset)
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None, "a traceback would show the token's parts"
    for part in (token or "").split("."):
        assert len(part) < 5 or part not in str(error)
    return str(error)


def key_of(ca: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key((ca / PRIVATE).read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def signed(ca: Path, claims: dict[str, Any], **header: Any) -> str:
    kid = jwt.get_unverified_header(make(ca))["kid"]
    return jwt.encode(claims, key_of(ca), algorithm="EdDSA", headers={"kid": kid} | header)


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    known = {"iss": "forebay", "iat": now, "exp": now + 60, "datasets": ["imagenet"], "verbs": ["read"]} | more
    return {name: value for name, value in known.items() if value is not None}


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.semantics("K2")
def test_a_token_allows_what_it_says_and_nothing_else(ca: Path, authorizer: Authorizer) -> None:
    token = make(ca, "imagenet", "team-*", "s3://bucket/**", verbs=(Verb.READ, Verb.LIST))
    for dataset in ("imagenet", "team-a", "team-", "s3://bucket/a/b"):
        authorizer.check(CLIENT, token, Verb.READ, dataset)
        authorizer.check(CLIENT, token, Verb.LIST, dataset)
        for verb in (Verb.WARM, Verb.ADMIN):
            assert f"but does not allow {verb.value!r}" in refusal(authorizer, token, verb, dataset)
    for dataset in ("imagenet2", "Imagenet", "team-a/b", "s3://other/a", "s3://bucket-2/a", "", "imagenet\n", "\udcff"):
        assert "is not for dataset" in refusal(authorizer, token, Verb.READ, dataset)


def test_a_pattern_is_a_pattern_only_where_it_says_so(ca: Path, authorizer: Authorizer) -> None:
    everything = make(ca, "**", verbs=tuple(Verb))
    for verb in Verb:
        authorizer.check(CLIENT, everything, verb, "s3://any/thing")
    assert "is not for dataset" in refusal(authorizer, make(ca, "a.c"), dataset="abc")
    authorizer.check(CLIENT, make(ca, "*"), Verb.READ, "any")
    authorizer.check(CLIENT, make(ca, "data[1"), Verb.READ, "data[1")


def test_workers_need_none_and_clients_do(ca: Path, authorizer: Authorizer) -> None:
    for token in (None, "nonsense"):
        authorizer.check(WORKER, token, Verb.ADMIN, "any")
    authorizer.check_worker(WORKER)
    with pytest.raises(AccessDenied, match="client 'c' has no certificate of a worker"):
        authorizer.check_worker(CLIENT)
    for none in (None, ""):
        assert "client 'c' has sent no token" in refusal(authorizer, none)
    Authorizer(None).check(WORKER, None, Verb.ADMIN, "plain text")


def test_who_connected_before_his_certificate_ended(authorizer: Authorizer) -> None:
    for role in Role:
        late = Identity(role, "x", time.time() - 1)
        with pytest.raises(AccessDenied, match="has expired since it connected"):
            authorizer.check(late, None, Verb.READ, "imagenet")
        with pytest.raises(AccessDenied, match="has expired since it connected"):
            authorizer.check_worker(late)


def test_a_token_for_one_client(ca: Path, authorizer: Authorizer) -> None:
    authorizer.check(CLIENT, make(ca, client="c"), Verb.READ, "imagenet")
    assert "was made for another client" in refusal(authorizer, make(ca, client="d"))


def test_time(ca: Path, authorizer: Authorizer) -> None:
    authorizer.check(CLIENT, make(ca, ttl_s=60, age_s=100), Verb.READ, "imagenet")  # within the skew of clocks
    authorizer.check(CLIENT, make(ca, age_s=-30), Verb.READ, "imagenet")
    assert "has expired" in refusal(authorizer, make(ca, ttl_s=60, age_s=130))
    assert "not valid yet; a clock is wrong" in refusal(authorizer, make(ca, age_s=-120))


@pytest.mark.slow
def test_a_token_that_was_verified_before_ends_too(ca: Path, authorizer: Authorizer) -> None:
    token = make(ca, ttl_s=1, age_s=tokens.SKEW_S - 1)
    authorizer.check(CLIENT, token, Verb.READ, "imagenet")

    def has_ended() -> bool:
        try:
            authorizer.check(CLIENT, token, Verb.READ, "imagenet")
        except AccessDenied:
            return True
        return False

    wait_until(has_ended, "the token ends")
    assert "has expired" in refusal(authorizer, token)


def test_what_was_changed_is_not_signed(ca: Path, authorizer: Authorizer) -> None:
    token = make(ca)
    authorizer.check(CLIENT, token, Verb.READ, "imagenet")
    header, body, signature = token.split(".")
    wider = json.loads(base64.urlsafe_b64decode(body + "==")) | {"datasets": ["**"], "verbs": ["admin"]}
    assert "signature that is wrong" in refusal(authorizer, f"{header}.{part(wider)}.{signature}")
    other = signature[:-10] + ("A" if signature[-10] != "A" else "B") + signature[-9:]
    assert "signature that is wrong" in refusal(authorizer, f"{header}.{body}.{other}")
    for broken in (f"{header}.{body}.", f"{header}.{body}", f"{header}..{signature}", ".", "..", "a.b.c", token + "."):
        refusal(authorizer, broken)


def test_no_algorithm_but_ours(ca: Path, authorizer: Authorizer) -> None:
    kid = jwt.get_unverified_header(make(ca))["kid"]
    for name in ("none", "None", "NONE", "", None, "HS256", "ES256", "RS256"):
        head = part({"alg": name, "typ": "JWT", "kid": kid})
        refusal(authorizer, f"{head}.{part(claims())}.")
        # The public key is known to all: as a secret of HMAC it must be worth nothing.
        text = f"{head}.{part(claims())}"
        for secret in ((ca / PUBLIC).read_bytes(), (ca / PUBLIC).read_bytes().strip()):
            code = hmac.digest(secret, text.encode(), hashlib.sha256)
            refusal(authorizer, f"{text}.{base64.urlsafe_b64encode(code).rstrip(b'=').decode()}")


def test_keys_of_others(tmp_path: Path, ca: Path, authorizer: Authorizer) -> None:
    other = Parties.create(tmp_path / "other").folder
    assert "was not signed by a key in this worker's tokens.pub" in refusal(authorizer, make(other))
    kid = jwt.get_unverified_header(make(ca))["kid"]
    forged = jwt.encode(claims(), key_of(other), algorithm="EdDSA", headers={"kid": kid})
    assert "signature that is wrong" in refusal(authorizer, forged)
    for kid in ("", None, 5, ["x"], {}):
        refusal(authorizer, jwt_with_header(ca, kid))
    embedded = jwt.encode(
        claims(), key_of(other), algorithm="EdDSA", headers={"jwk": {"kty": "OKP"}, "jku": "http://x"}
    )
    refusal(authorizer, embedded)


def jwt_with_header(ca: Path, kid: Any) -> str:
    head = f"{part({'alg': 'EdDSA', 'typ': 'JWT', 'kid': kid})}.{part(claims())}"
    signature = base64.urlsafe_b64encode(key_of(ca).sign(head.encode())).rstrip(b"=").decode()
    return f"{head}.{signature}"


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "other"},
        {"iss": None},
        {"exp": None},
        {"iat": None},
        {"datasets": None},
        {"verbs": None},
        {"datasets": "imagenet"},
        {"datasets": [1]},
        {"datasets": {"imagenet": 1}},
        {"verbs": "read"},
        {"verbs": []},
        {"datasets": []},
        {"verbs": ["READ", "root"]},
        {"exp": "soon"},
        {"exp": 1e400},
        {"exp": []},
        {"iat": {}},
        {"sub": 5},
        {"nbf": int(time.time()) + 3600},
        {"aud": "somebody else"},
    ],
)
def test_signed_but_not_a_token_of_ours(ca: Path, authorizer: Authorizer, changed: dict[str, Any]) -> None:
    refusal(authorizer, signed(ca, claims(**changed)))


def test_verbs_of_later_versions_are_passed_over(ca: Path, authorizer: Authorizer) -> None:
    authorizer.check(CLIENT, signed(ca, claims(verbs=["read", "teleport"], later=1)), Verb.READ, "imagenet")


def test_keys_can_be_exchanged_and_taken_away(tmp_path: Path, ca: Path) -> None:
    worker = tmp_path / "w"
    worker.mkdir()
    former = make(ca)
    authorizer = Authorizer(worker)
    assert "takes no tokens: its bundle has no tokens.pub" in refusal(authorizer, former)
    (worker / PUBLIC).write_bytes((ca / PUBLIC).read_bytes())
    authorizer.check(CLIENT, former, Verb.READ, "imagenet")
    tokens.create_keys(ca, rotate=True)
    fresh = make(ca)
    assert "was not signed by a key" in refusal(authorizer, fresh)
    (worker / PUBLIC).write_bytes((ca / PUBLIC).read_bytes())
    for token in (former, fresh):
        authorizer.check(CLIENT, token, Verb.READ, "imagenet")
    (worker / PUBLIC).write_text("-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----\n")
    authorizer.check(CLIENT, fresh, Verb.READ, "imagenet")
    tokens.create_keys(ca, force=True)
    (worker / PUBLIC).write_bytes((ca / PUBLIC).read_bytes())
    for token in (former, fresh):
        assert "was not signed by a key" in refusal(authorizer, token)
    os.unlink(worker / PUBLIC)
    assert "takes no tokens" in refusal(authorizer, make(ca))


def test_what_cannot_be_made(tmp_path: Path, ca: Path) -> None:
    for call, message in (
        (lambda: create_token(ca, [], [Verb.READ], 0), "at least one --dataset NAME"),
        (lambda: create_token(ca, [""], [Verb.READ], 0), "at least one --dataset NAME"),
        (lambda: create_token(ca, ["a"], [], 0), "and one --verb"),
        (lambda: create_token(ca, ["[z-a]"], [Verb.READ], 0), "is neither a name nor a pattern"),
        (lambda: create_token(ca, ["a"], [Verb.READ], 0, ttl_s=0.5), "from one second"),
        (lambda: create_token(ca, ["a"], [Verb.READ], 0, ttl_s=1e12), "to 366 days"),
        (lambda: create_token(ca, ["a" * 9000], [Verb.READ], 0), "does not fit into 8192 characters"),
        (lambda: create_token(tmp_path, ["a"], [Verb.READ], 0), "has no tokens.key; make it with: forebay token init"),
        (lambda: tokens.parse_verb("write"), "is not one of read, list, warm, admin"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    (ca / PRIVATE).write_bytes((ca / "ca.key").read_bytes())
    with pytest.raises(UsageError, match="is not a key that `forebay token init` has made"):
        make(ca)
    (ca / PUBLIC).write_text("nothing")
    with pytest.raises(UsageError, match="holds no public key"):
        Authorizer(ca)


def test_an_endless_token_is_not_looked_at(authorizer: Authorizer) -> None:
    assert "longer than 8192 characters" in refusal(authorizer, "a." * 10_000)


def test_few_verified_tokens_are_kept(ca: Path, authorizer: Authorizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_KEPT", 4)
    made = [make(ca, f"d{number}") for number in range(8)]
    for _ in range(2):
        for number, token in enumerate(made):
            authorizer.check(CLIENT, token, Verb.READ, f"d{number}")
            assert "is not for dataset" in refusal(authorizer, token, dataset=f"d{number + 1}")
    assert len(authorizer._known) == 4
