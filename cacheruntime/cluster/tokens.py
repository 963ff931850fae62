"""Tokens: what a client may do, with which datasets, and until when.

A token is a JWT (RFC 7519), signed with Ed25519 (``EdDSA``, RFC 8037) by the key that `forebay certs init` or
`forebay token init` has made: ``tokens.key`` beside the authority, ``tokens.pub`` in the bundle of each worker. Its
claims:

    iss       "forebay"
    iat, exp  seconds since the epoch: when it was made, when it ends
    jti       a random name, by which logs may speak of it
    sub       the client that may use it, as its certificate names it; absent: any client
    datasets  patterns of dataset names, as `selection.glob_regex` has them: ``*`` within a name, ``**`` anything
    verbs     of `Verb`

The header's ``kid`` tells the key, so that ``tokens.pub`` may hold several: a new key signs while tokens of the former
one still run. Taking a key out of ``tokens.pub`` ends all tokens that it has signed; nothing else revokes one, so their
lives are short.

A token is worth nothing without a client's certificate. Workers need none.
"""

import hashlib
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from forebay.cacheruntime.cluster.certs import (
    TOKEN_KEYS,
    UNREADABLE,
    Identity,
    Role,
    make_folder,
    refuse_to_replace,
    write_secret,
)
from forebay.cacheruntime.cluster.watched import Contents, Watched
from forebay.cacheruntime.errors import AccessDenied, UsageError
from forebay.cacheruntime.selection import glob_regex

PRIVATE, PUBLIC = "tokens.key", TOKEN_KEYS

TTL_S = 12 * 3600.0
"""Without `--ttl`: a working day; training jobs that last longer get their tokens from what starts them."""
MAX_TTL_S = 366 * 86400.0
SKEW_S = 60
"""Clocks of worker and issuer may differ by this much; what NTP keeps is far below."""

_AS_BYTES = ("utf-8", "surrogatepass")
_ISSUER = "forebay"
_LARGEST = 8 << 10
"""Characters of a token: gRPC's default bound for all metadata of a call."""
_KEPT = 1024
"""Tokens whose signature need not be verified again (60 us each)."""

_LAST_S = 2.0**40
"""In 36,000 years; a time behind it is no time."""

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


class Verb(Enum):
    """What one may do with a dataset. None of them includes another."""

    READ = "read"
    """Bytes of its files."""
    LIST = "list"
    """Names and attributes; a mount needs it beside `read`."""
    WARM = "warm"
    """Have it fetched ahead."""
    ADMIN = "admin"
    """Pin, evict, sync, forget."""


@dataclass(frozen=True)
class Grant:
    """What somebody may do."""

    who: str
    datasets: tuple[str, ...]
    verbs: frozenset[Verb]
    client: str | None = None
    """Only this one may use it; None: whoever has it."""
    ends_s: float = float("inf")

    def allows(self, verb: Verb, dataset: str) -> bool:
        """Whether it covers a verb on the dataset of that name."""
        return verb in self.verbs and any(_matches(pattern, dataset) for pattern in self.datasets)


class Authorizer:
    """Says who may do what, on a worker. Its methods may be called in any thread."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: the worker's bundle; None in plain text, where everybody counts as a worker.

        Raises:
            UsageError: `tokens.pub` is there and holds no public key.
        """
        self._keys = Watched(folder, (PUBLIC,), _parse_keys) if folder else None
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Grant] = OrderedDict()
        self._known_by: Mapping[str, Ed25519PublicKey] = {}

    def check(self, identity: Identity, token: str | None, verb: Verb, dataset: str) -> None:
        """Let a party do something, or raise.

        Args:
            identity: from its certificate (`Security.identity_of_call`, `identity_of_connection`).
            token: what it has sent; not looked at for a worker.
            verb: what it wants to do.
            dataset: the name of the dataset it wants to do it with.

        Raises:
            AccessDenied: it says what is missing, and nothing of the token.
        """
        grant = self.grant(identity, token)
        if grant.allows(verb, dataset):
            return
        if not any(_matches(pattern, dataset) for pattern in grant.datasets):
            raise AccessDenied(f"the token of {identity} is not for dataset {dataset!r}")
        raise AccessDenied(f"the token of {identity} is for dataset {dataset!r}, but does not allow {verb.value!r}")

    def check_worker(self, identity: Identity) -> None:
        """
        Raises:
            AccessDenied: the party is no worker, or its certificate has ended since it connected.
        """
        _refuse_expired(identity)
        if identity.role is not Role.WORKER:
            raise AccessDenied(f"{identity} has no certificate of a worker, and only workers may do this")

    def grant(self, identity: Identity, token: str | None) -> Grant:
        """All that a party may do, where one answer depends on it.

        Raises:
            AccessDenied: nothing: its certificate has ended since it connected, no token, or one that is not valid.
        """
        _refuse_expired(identity)
        if identity.role is Role.WORKER:
            return Grant(str(identity), ("**",), frozenset(Verb))
        if not token:
            raise AccessDenied(
                f"{identity} has sent no token: the file `token` in its bundle holds it; see: forebay token create"
            )
        grant = self._verified(token, identity)
        if grant.client is not None and grant.client != identity.name:
            raise AccessDenied(f"the token of {identity} was made for another client")
        return grant

    def _verified(self, token: str, identity: Identity) -> Grant:
        keys = self._keys.get() if self._keys else {}
        if len(token) > _LARGEST:
            raise AccessDenied(f"the token of {identity} is longer than {_LARGEST} characters")
        digest = hashlib.sha256(token.encode(*_AS_BYTES)).digest()
        with self._lock:
            if keys is not self._known_by:
                self._known.clear()
                self._known_by = keys
            known = self._known.get(digest)
            if known is not None and known.ends_s + SKEW_S > time.time():
                self._known.move_to_end(digest)
                return known
        grant = _decode(token, keys, identity)
        with self._lock:
            if keys is self._known_by:
                self._known[digest] = grant
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return grant


def create_keys(folder: Path, rotate: bool = False, force: bool = False) -> None:
    """Make the key that signs tokens, and its public half: `tokens.key` and `tokens.pub`.

    Args:
        folder: the authority's, or any other that is kept as well.
        rotate: make another one; the public half of the former stays in `tokens.pub`, behind the new one, so that its
            tokens last until they end.
        force: make another one and forget the former: all its tokens are void.

    Raises:
        UsageError: it exists already, or cannot be written.
    """
    if not rotate:
        refuse_to_replace([folder / PRIVATE, folder / PUBLIC], force)
    make_folder(folder)
    key = Ed25519PrivateKey.generate()
    former = b""
    if rotate and (folder / PUBLIC).exists():
        former = (folder / PUBLIC).read_bytes()
        _parse_keys({PUBLIC: former})
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_secret(folder / PUBLIC, (public + former).decode())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(folder / PRIVATE, private.decode())


def create_token(
    folder: Path,
    datasets: Sequence[str],
    verbs: Sequence[Verb],
    now_s: float,
    ttl_s: float = TTL_S,
    client: str | None = None,
) -> str:
    """A token, signed with `tokens.key`.

    Args:
        folder: of the key.
        datasets: patterns of names.
        verbs: what it allows.
        now_s: seconds since the epoch.
        ttl_s: how long it lasts.
        client: the only one that may use it, as its certificate names it.

    Raises:
        UsageError: no key there, nothing allowed, too long a life.
    """
    if not datasets or not verbs or "" in datasets:
        raise UsageError("a token needs at least one --dataset NAME and one --verb read, list, warm or admin")
    if wrong := next((each for each in datasets if _pattern(each) is None), None):
        raise UsageError(f"--dataset {wrong!r} is neither a name nor a pattern")
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise UsageError(f"--ttl: a token lasts from one second to {MAX_TTL_S / 86400:.0f} days")
    try:
        key = load_pem_private_key((folder / PRIVATE).read_bytes(), None)
    except FileNotFoundError:
        raise UsageError(f"{str(folder)!r} has no {PRIVATE}; make it with: forebay token init {folder}") from None
    except OSError as error:
        raise UsageError(f"{str(folder / PRIVATE)!r} cannot be read: {error.strerror}") from error
    except UNREADABLE:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{str(folder / PRIVATE)!r} is not a key that `forebay token init` has made")
    claims: dict[str, Any] = {
        "iss": _ISSUER,
        "iat": int(now_s),
        "exp": int(now_s + ttl_s),
        "jti": secrets.token_hex(8),
        "datasets": list(dict.fromkeys(datasets)),
        "verbs": [verb.value for verb in Verb if verb in verbs],
    }
    if client is not None:
        claims["sub"] = client
    token = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": _key_id(key.public_key())})
    if len(token) > _LARGEST:
        raise UsageError(f"a token for {len(datasets)} datasets does not fit into {_LARGEST} characters; use a pattern")
    return token


def parse_verb(text: str) -> Verb:
    """
    Raises:
        UsageError: there is no such verb.
    """
    try:
        return Verb(text)
    except ValueError:
        known = ", ".join(verb.value for verb in Verb)
        raise UsageError(f"--verb {text!r} is not one of {known}; give --verb once for each") from None


def _decode(token: str, keys: Mapping[str, Ed25519PublicKey], identity: Identity) -> Grant:
    """PyJWT's own messages may hold parts of a token, so none of them goes on."""
    if not keys:
        raise AccessDenied(f"this worker takes no tokens: its bundle has no {PUBLIC}")
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        key = keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise AccessDenied(f"the token of {identity} was not signed by a key in this worker's {PUBLIC}")
        claims = jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            issuer=_ISSUER,
            leeway=SKEW_S,
            options={"require": ["exp", "iat", "iss", "datasets", "verbs"]},
        )
    except jwt.ExpiredSignatureError:
        raise AccessDenied(f"the token of {identity} has expired; another one: forebay token create") from None
    except jwt.ImmatureSignatureError:
        raise AccessDenied(f"the token of {identity} is not valid yet; a clock is wrong, here or there") from None
    except jwt.InvalidSignatureError:
        raise AccessDenied(f"the token of {identity} has a signature that is wrong") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise AccessDenied(f"the token of {identity} cannot be read as one of `forebay token create`") from None
    return _grant_of(claims, identity)


def _grant_of(claims: Mapping[str, Any], identity: Identity) -> Grant:
    """Verbs of a later version are passed over."""
    datasets, verbs, client, end = claims["datasets"], claims["verbs"], claims.get("sub"), claims["exp"]
    is_sound = _is_texts(datasets) and _is_texts(verbs) and (client is None or isinstance(client, str))
    if not is_sound or not isinstance(end, int | float) or end > _LAST_S:
        raise AccessDenied(f"the token of {identity} cannot be read as one of `forebay token create`")
    known = frozenset(verb for verb in Verb if verb.value in verbs)
    return Grant(f"token {claims.get('jti')}", tuple(datasets), known, client, end)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _refuse_expired(identity: Identity) -> None:
    if identity.expires_s <= time.time():
        raise AccessDenied(f"the certificate of {identity} has expired since it connected")


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str] | None:
    """None: it is no pattern, like `[z-a]`, and matches itself only."""
    try:
        return re.compile(glob_regex(glob.encode(*_AS_BYTES)).decode(*_AS_BYTES), re.DOTALL)
    except re.error:
        return None


def _matches(glob: str, dataset: str) -> bool:
    if glob == dataset:
        return True
    pattern = _pattern(glob)
    return pattern is not None and pattern.fullmatch(dataset) is not None


def _parse_keys(contents: Contents) -> Mapping[str, Ed25519PublicKey]:
    content = contents[PUBLIC]
    if content is None:
        return {}
    found = {}
    for text in _PEM.findall(content):
        try:
            key = load_pem_public_key(text)
        except UNREADABLE:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise UsageError(f"{PUBLIC} holds something else than public keys of `forebay token init`")
        found[_key_id(key)] = key
    if not found:
        raise UsageError(f"{PUBLIC} holds no public key in PEM")
    return found


def _key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]
