"""Object stores through obstore (Rust): the data path of S3, and all of Google Cloud Storage and Azure.

obstore receives and decrypts outside the interpreter lock, on its own threads. Its errors are long dumps;
`mapped_error` makes them one line of ours.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore

from forebay.cacheruntime.errors import (
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceStale,
    SourceUnavailable,
    UsageError,
)
from forebay.cacheruntime.understore.address import Address
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.options import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, flag, seconds
from forebay.cacheruntime.understore.retry import Retrier

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig
    from typing_extensions import Buffer

PIECE_BYTES = 256 << 10
"""obstore gathers network reads (16 KiB and up) to pieces of this size by copying; each has its price in Python."""

_PAGE_ENTRIES = 1000  # what all three services send per listing request

# One request with its whole body, however slow the link: 8 MiB in 300 s is 28 KB/s. Silence ends it much sooner.
REQUEST_TIMEOUT = timedelta(seconds=300)

NO_RETRIES: "RetryConfig" = {"max_retries": 0, "retry_timeout": timedelta(0)}
"""RetryingStore does it: obstore's would neither resume a body nor keep to our deadline."""

UNTRUSTED = "the server's certificate is not trusted; name its CA with --option ca_bundle=FILE"


def client_config(options: Mapping[str, str], endpoint: str) -> "ClientConfig":
    """obstore's HTTP client settings from a store's options.

    Raises:
        UsageError: a bad number, or a CA file that cannot be read.
    """
    config: ClientConfig = {
        "allow_http": endpoint.startswith("http://") or flag(options, "allow_http", False),
        "connect_timeout": timedelta(seconds=seconds(options, "connect_timeout", CONNECT_TIMEOUT_S)),
        "read_timeout": timedelta(seconds=seconds(options, "timeout", READ_TIMEOUT_S)),
        "timeout": REQUEST_TIMEOUT,
    }
    if bundle := options.get("ca_bundle"):
        try:
            config["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise UsageError(f"option ca_bundle={bundle!r} cannot be read ({error.strerror})") from error
    return config


def quoted_etag(etag: str | None) -> str:
    """An ETag as If-Match takes it; empty if there is none. Azure's listings, and oss2, leave its quotes out."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag or ""


def addressable(key: str) -> bool:
    """Whether obstore can name that key: it parses paths, and drops or refuses what it finds odd.

    It refuses control characters and the segments '', '.' and '..', and silently strips slashes at both ends.
    """
    return not any(part in ("", ".", "..") for part in key.split("/")) and not re.search(r"[\x00-\x1f\x7f]", key)


def read_with_obstore(
    store: "ObjectStore", key: str, start: int, length: int, version: str, where: str
) -> "Iterator[Buffer]":
    """Stream a range of one version of one object.

    Args:
        start: in bytes from the object's begin.
        length: in bytes; with 0 nothing is asked and nothing comes.
        version: the ETag as the store gives it, quotes included; empty for whichever version is there.
        where: the store in words, for messages.

    Raises:
        SourceStale: another version, gone, or shorter than `start + length`.
        SourceUnavailable: broken off; what came is good.
    """
    if length == 0:
        return
    wanted: GetOptions = {"range": (start, start + length)}
    if version:
        wanted["if_match"] = version
    left = length
    try:
        result = obstore.get(store, key, options=wanted)
        if result.range[1] - result.range[0] != length:
            raise SourceStale(f"{key!r} at {where} ends at byte {result.range[1]}, before the {start + length} it had")
        sent = result.meta["e_tag"]
        if version and sent and sent != version:  # some S3 look-alikes ignore If-Match
            raise SourceStale(f"{key!r} at {where} has changed since it was listed")
        # A piece or less comes in one call instead of four: half of what Python does for a small file.
        pieces = [result.bytes()] if length <= PIECE_BYTES else result.stream(min_chunk_size=PIECE_BYTES)
        for piece in pieces:
            left -= len(piece)
            yield piece
    except (BaseError, OSError, ValueError) as error:
        raise mapped_error(error, f"{key!r} at {where}", reading=True) from error
    if left:
        raise SourceUnavailable(f"{key!r} at {where}: the reply ended {left} bytes early")


def mapped_error(error: Exception, what: str, *, reading: bool = False) -> SourceError:
    """obstore's exception as ours, in one line, without its XML bodies and debug dumps.

    Args:
        what: the thing in words.
        reading: a version of an object was asked for that had been listed, so "not found" means "changed".
    """
    text = str(error)
    status_match = re.search(r"status code: (\d{3})", text)
    status = int(status_match[1]) if status_match else 0
    code = _error_code(text)
    reason = f"HTTP {status} {code}".rstrip() if status else _first_line(text)
    # Azure answers a range beyond the end with the whole object; obstore then finds the range impossible.
    beyond_end = re.search(r"Wanted range starting at|InvalidRangeRequest|InvalidRange\b", text) is not None
    if isinstance(error, PreconditionError) or (beyond_end and reading):
        status = 412
    elif isinstance(error, FileNotFoundError):
        status = 404
    elif isinstance(error, (PermissionDeniedError, UnauthenticatedError)) and not status:
        status = 403
    if (refused := _refusal(status, code, reason, what, reading)) is not None:
        return refused
    if isinstance(error, (InvalidPathError, ValueError)):
        return SourceNotFound(f"{what} has a name that this store cannot address ({reason})")
    if re.search(r"[Uu]nknownIssuer|invalid peer certificate|CertificateUnknown", text):
        return SourceDenied(f"{what}: {UNTRUSTED}")
    return SourceUnavailable(f"{what} cannot be reached: {_transport_reason(text)}")


def _refusal(status: int, code: str, reason: str, what: str, reading: bool) -> SourceError | None:
    """What a status says; None: nothing that is known here."""
    if status in (412, 416):
        return SourceStale(f"{what} has changed since it was listed ({reason})")
    if status == 404:
        if reading and code != "NoSuchBucket":
            return SourceStale(f"{what} is gone since it was listed ({reason})")
        return SourceNotFound(f"{what} does not exist ({reason})")
    if status == 429 or status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return SourceUnavailable(f"{what}: the store is busy or failing ({reason})")
    if status in (400, 401, 403):
        return denied(what, code, reason)
    return None


def _error_code(text: str) -> str:
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found[1] if found else ""


def denied(what: str, code: str, reason: str) -> SourceDenied:
    """Access refused, with the cure for the code that the service gave."""
    cures = {
        "InvalidObjectState": "the object is archived (Glacier or a like class); restore it first",
        "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
        "ExpiredToken": "the credentials have expired; log in again and mount anew",
        "InvalidAccessKeyId": "the store knows no such access key; check it and the endpoint",
        "SignatureDoesNotMatch": "the secret access key does not fit the access key; check it",
    }
    cure = cures.get(code, "check the credentials and that they allow listing and reading")
    return SourceDenied(f"{what}: access denied ({reason}): {cure}")


def _first_line(text: str) -> str:
    """obstore's first line up to the URL's reply; never what follows "Debug source", which may quote headers."""
    return re.sub(r"\s+", " ", text.partition("\n")[0].partition("<?xml")[0]).strip()[:200]


def _transport_reason(text: str) -> str:
    """The innermost cause, which obstore has only in its debug dump."""
    for pattern, words in (
        (r"dns error", "its name cannot be resolved"),
        (r"ConnectionRefused|Connection refused", "connection refused"),
        (r"NetworkUnreachable|HostUnreachable", "no route to it"),
        (r"TimedOut|timed out|Timeout", "timed out"),
        (r"ConnectionReset|IncompleteMessage|UnexpectedEof|BrokenPipe|Body|Decode", "the connection broke"),
    ):
        if re.search(pattern, text):
            return words
    return _first_line(text)


class ObjectUnderStore:
    """A prefix of a Google Cloud Storage bucket or an Azure container.

    Unlike S3's, its listing is obstore's, for want of a light client: a listing that meets a key with an empty,
    '.' or '..' segment or a control character fails as a whole and says so.
    """

    def __init__(self, address: Address, options: Mapping[str, str], retrier: Retrier) -> None:
        self._address = address
        self._retrier = retrier
        self._where = address.url
        self._prefix = f"{address.path}/" if address.path else ""
        try:
            self._store: ObjectStore = _gcs(address, options) if address.scheme == "gs" else _azure(address, options)
        except (BaseError, ValueError, OSError) as error:
            raise UsageError(f"{address.url} cannot be opened: {_first_line(str(error))}") from error

    @property
    def url(self) -> str:
        """See `UnderStore.url`."""
        return self._address.url

    @property
    def pins_version(self) -> bool:
        """Yes: reads carry If-Match."""
        return True

    @property
    def lists_in_key_order(self) -> bool:
        """Yes: both services list by name. Azure's accounts with real folders do it otherwise, which is noticed."""
        return True

    def probe(self) -> None:
        """See `UnderStore.probe`."""
        for _ in self.list_tree():
            return

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`."""
        # The last entry of each page is held back: what comes behind it tells whether it is a directory's marker.
        held: Mapping[str, Any] | None = None
        nothing = True
        for metas in self._pages():
            page = []
            for meta in metas:
                if held is not None:
                    page.append(self._entry(held, meta["path"]))
                held = meta
            if page:
                nothing = False
                yield page
        if held is not None:
            yield [self._entry(held, "")]
        elif nothing and self._address.path:
            yield [self.stat(self._address.path.rpartition("/")[2])]

    def _pages(self) -> Iterator[Sequence[Mapping[str, Any]]]:
        """What the service lists; after a fault it goes on behind the last key, and the deadline runs anew.

        obstore cannot take up a listing's token again, but it can begin behind a key (`start-after`, `startFrom`).
        """
        patience, last = self._retrier.patience(), None
        while True:
            try:
                for metas in obstore.list(self._store, self._prefix or None, offset=last, chunk_size=_PAGE_ENTRIES):
                    if metas:
                        last = metas[-1]["path"]
                        patience = self._retrier.patience()
                        yield metas
                return
            except (BaseError, OSError, ValueError) as error:
                patience.wait_or_raise(mapped_error(error, self._where))

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        below = self._prefix + (f"{path}/" if path else "")
        try:
            result = obstore.list_with_delimiter(self._store, below or None)
        except (BaseError, OSError, ValueError) as error:
            raise mapped_error(error, f"{path!r} at {self._where}") from error
        names = [name.rstrip("/").removeprefix(self._prefix) for name in result["common_prefixes"]]
        found = [Entry(name, Kind.DIRECTORY) for name in names]
        # A marker object of a listed directory comes once more as a file of its name: obstore strips its slash.
        found += [
            self._entry(meta, "")
            for meta in result["objects"]
            if meta["path"].removeprefix(self._prefix) not in names and meta["path"] != below.rstrip("/")
        ]
        if not found and path:
            raise SourceNotFound(f"directory {path!r} does not exist at {self._where}")
        if not found and self._address.path:
            return [self.stat(self._address.path.rpartition("/")[2])]  # the root may itself be a file
        return found

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        try:
            return self._entry(obstore.head(self._store, self._key(path)), "")
        except (BaseError, OSError, ValueError) as error:
            missing = mapped_error(error, f"{path!r} at {self._where}")
            if not isinstance(missing, SourceNotFound) or path != self._address.path.rpartition("/")[2]:
                raise missing from error
        # The root may itself be a file, known by its base name.
        try:
            meta = obstore.head(self._store, self._address.path)
        except (BaseError, OSError, ValueError) as error:
            raise mapped_error(error, self._where) from error
        return Entry(path, Kind.FILE, meta["size"], mtime_ns(meta["last_modified"]), quoted_etag(meta["e_tag"]))

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`."""
        key = self._key(path)
        if path == self._address.path.rpartition("/")[2]:
            root = self._address.path
            try:
                obstore.head(self._store, key)
            except (BaseError, OSError, ValueError) as error:
                if isinstance(mapped_error(error, path), SourceNotFound):
                    key = root
        yield from read_with_obstore(self._store, key, start, length, version, self._where)

    def close(self) -> None:
        """obstore closes its idle connections by itself."""

    def _key(self, path: str) -> str:
        return self._prefix + path

    def _entry(self, meta: Mapping[str, Any], next_path: str) -> Entry:
        """One object; empty and followed by something below it, it is a directory marker without its slash."""
        path = str(meta["path"]).removeprefix(self._prefix)
        if meta["size"] == 0 and next_path.startswith(f"{meta['path']}/"):
            return Entry(path, Kind.DIRECTORY, 0, mtime_ns(meta["last_modified"]))
        return Entry(path, Kind.FILE, meta["size"], mtime_ns(meta["last_modified"]), quoted_etag(meta["e_tag"]))


def mtime_ns(moment: datetime) -> int:
    """Whole seconds as nanoseconds: listings have fractions on some stores and HEAD never has."""
    return int(moment.timestamp()) * 1_000_000_000


def _gcs(address: Address, options: Mapping[str, str]) -> GCSStore:
    names = ("application_credentials", "service_account", "service_account_key", "bearer_token")
    config: dict[str, Any] = {name: options[name] for name in names if options.get(name)}
    if address.endpoint:
        config["base_url"] = address.endpoint
    if flag(options, "anon", False):
        config["skip_signature"] = True
    client = client_config(options, address.endpoint)
    return GCSStore(address.container, config=config, client_options=client, retry_config=NO_RETRIES)  # type: ignore[arg-type]


def _azure(address: Address, options: Mapping[str, str]) -> AzureStore:
    names = ("account_key", "sas_key", "token", "client_id", "client_secret", "tenant_id", "federated_token_file",
             "authority_host", "msi_endpoint")  # fmt: skip
    config: dict[str, Any] = {name: options[name] for name in names if options.get(name)}
    if address.account:
        config["account_name"] = address.account
    if address.endpoint:
        config["endpoint"] = address.endpoint
    for name, setting in (
        ("anon", "skip_signature"),
        ("use_azure_cli", "use_azure_cli"),
        ("use_emulator", "use_emulator"),
    ):
        if flag(options, name, False):
            config[setting] = True
    client = client_config(options, address.endpoint)
    return AzureStore(address.container, config=config, client_options=client, retry_config=NO_RETRIES)  # type: ignore[arg-type]
