"""Alibaba Cloud's Object Storage Service through oss2, the vendor's client.

Not through ossfs, which is fsspec's face of oss2: its listing drops the ETag, so that a file replaced by one of the
same size within a second looks the same; it makes one `OSError` of a wrong key and of a broken connection; and it
lists directory by directory, where the service gives a thousand keys of any depth at once.

Protocol: Alibaba Cloud OSS API reference, ListObjectsV2, HeadObject, GetObject.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import oss2
import requests
import urllib3

from forebay.cacheruntime.errors import SourceError, SourceNotFound, SourceStale, SourceUnavailable, UsageError
from forebay.cacheruntime.understore.address import Address
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.objectstore import denied, quoted_etag
from forebay.cacheruntime.understore.options import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, flag, seconds
from forebay.cacheruntime.understore.retry import Retrier

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_PIECE_BYTES = 1 << 20
_PAGE_KEYS = 1000  # the most that the service gives at once
_CONNECTIONS = 32  # as aws.py

# Without it the service answers a range beyond the end with the whole object and status 200 (GetObject, Range).
_STRICT_RANGES = {"x-oss-range-behavior": "standard"}

_REGION = re.compile(r"^(?:.*\.)?oss-([a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com$")

_PASSING = frozenset({
    "RequestTimeout", "InternalError", "ServiceBusy", "QpsLimitExceeded", "DownloadTrafficRateLimitExceeded",
})  # fmt: skip


class OssUnderStore:
    """The keys below one prefix of one bucket; or one object, when the prefix is exactly its key.

    *Concurrency*: requests' session pools connections for any number of threads.
    """

    def __init__(self, address: Address, options: Mapping[str, str], retrier: Retrier) -> None:
        self._address = address
        self._retrier = retrier
        self._prefix = f"{address.path}/" if address.path else ""
        self._base_name = address.path.rpartition("/")[2]
        self._words = f"bucket {address.container!r} at {address.endpoint or 'OSS'}"
        self._session = oss2.Session(pool_size=_CONNECTIONS)
        self._bucket = _open_bucket(address, options, self._session)
        self._root_is_file: bool | None = None

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
        """Yes (API reference: ListObjectsV2, "in alphabetical order")."""
        return True

    def probe(self) -> None:
        """See `UnderStore.probe`."""
        reply = self._list_page(self._prefix, max_keys=1)
        if self._prefix and not reply.object_list:
            self._root_entry()

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`. Each page is retried by itself."""
        first = True
        for reply in self._pages(self._prefix):
            if first and self._prefix:
                self._root_is_file = not reply.object_list
                if self._root_is_file:
                    yield [self._retrier.retry_call(self._root_entry)]
                    return
            first = False
            if page := [entry for item in reply.object_list if (entry := self._entry(item))]:
                yield page

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        below = self._prefix + (f"{path}/" if path else "")
        found: list[Entry] = []
        exists = False
        for reply in self._pages(below, delimiter="/"):
            exists = exists or bool(reply.prefix_list or reply.object_list)
            found += [Entry(name[len(self._prefix) : -1], Kind.DIRECTORY) for name in reply.prefix_list]
            found += [e for item in reply.object_list if item.key != below and (e := self._entry(item))]
        if exists:
            return found
        if not path:
            return [self._root_entry()] if self._prefix else []
        raise SourceNotFound(f"directory {path!r} does not exist in {self._words}")

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        if self._is_root_file(path):
            return self._root_entry()
        return self._head(self._prefix + path, path)

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`; the version is the ETag and goes along as If-Match."""
        if length == 0:
            return
        key = self._address.path if self._is_root_file(path) else self._prefix + path
        what = f"{key!r} in {self._words}"
        headers = {**_STRICT_RANGES, **({"If-Match": version} if version else {})}
        wanted = (start, start + length - 1)
        reply = self._asked(lambda: self._bucket.get_object(key, byte_range=wanted, headers=headers), what, True)
        body = reply.resp.response.raw
        try:
            if version and quoted_etag(reply.etag or "") != version:
                raise SourceStale(f"{what} has changed since it was listed")
            if reply.status != 206 or int(reply.headers.get("Content-Length", length)) != length:
                raise SourceStale(f"{what} has not the size that was listed")
            left = length
            while left and (piece := self._asked(lambda: body.read(_PIECE_BYTES), what)):
                left -= len(piece)
                yield piece
            if left:
                raise SourceUnavailable(f"{what}: the reply ended {left} bytes early")
        finally:
            # A body that was read to its end gives its connection back; one that was left must not be used again.
            reply.resp.response.close()

    def close(self) -> None:
        """See `UnderStore.close`."""
        self._session.session.close()

    def _pages(self, prefix: str, delimiter: str = "") -> Iterator[Any]:
        token = ""
        while True:
            reply = self._retrier.retry_call(
                lambda token=token: self._list_page(prefix, delimiter, token)  # type: ignore[misc]
            )
            yield reply
            previous, token = token, reply.next_continuation_token
            if not reply.is_truncated:
                return
            if not token or token == previous:
                raise SourceUnavailable(f"{self._words}: the listing repeats itself and has no end")

    def _list_page(self, prefix: str, delimiter: str = "", token: str = "", max_keys: int = _PAGE_KEYS) -> Any:
        return self._asked(
            lambda: self._bucket.list_objects_v2(
                prefix=prefix, delimiter=delimiter, continuation_token=token, max_keys=max_keys
            ),
            self._words,
        )

    def _entry(self, item: Any) -> Entry | None:
        """A listed object below the root; None for the root's own marker."""
        path = item.key[len(self._prefix) :]
        if not path:
            return None
        mtime_ns = int(item.last_modified) * 10**9
        if path.endswith("/"):
            return Entry(path[:-1] or path, Kind.DIRECTORY, 0, mtime_ns)
        return Entry(path, Kind.FILE, item.size, mtime_ns, quoted_etag(item.etag))

    def _head(self, key: str, path: str) -> Entry:
        reply = self._asked(lambda: self._bucket.head_object(key), f"{key!r} in {self._words}")
        return Entry(
            path, Kind.FILE, reply.content_length, int(reply.last_modified) * 10**9, quoted_etag(reply.etag or "")
        )

    def _root_entry(self) -> Entry:
        """The object whose key is the prefix itself."""
        try:
            return self._head(self._address.path, self._base_name)
        except SourceNotFound as error:
            raise SourceNotFound(f"nothing below {self._address.path!r} in {self._words}; check the prefix") from error

    def _is_root_file(self, path: str) -> bool:
        if not self._prefix or path != self._base_name:
            return False
        if self._root_is_file is None:
            self._root_is_file = not self._list_page(self._prefix, max_keys=1).object_list
        return self._root_is_file

    def _asked(self, call: Callable[[], T], what: str, reading: bool = False) -> T:
        try:
            return call()
        except oss2.exceptions.OssError as error:
            raise _mapped(error, what, reading) from error
        except ParseError as error:
            raise SourceUnavailable(f"{what}: the reply is not OSS's XML, or was cut") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceUnavailable(f"{what}: the connection broke ({type(error).__name__})") from error
        except AttributeError as error:  # oss2's parser, of XML that has not what it looks for
            raise SourceNotFound(f"{what} does not answer like OSS; check the endpoint") from error


def _open_bucket(address: Address, options: Mapping[str, str], session: Any) -> Any:
    key, secret = options.get("key", ""), options.get("secret", "")
    if bool(key) != bool(secret):
        raise UsageError("options key and secret only work together; one is missing")
    if not address.endpoint:
        raise UsageError(
            f"{address.url} needs the option endpoint, such as endpoint=https://oss-cn-hangzhou.aliyuncs.com"
        )
    host = urlsplit(address.endpoint).hostname or ""
    region = options.get("region") or (found[1] if (found := _REGION.match(host)) else None)
    if flag(options, "anon", False) or not key:
        auth: Any = oss2.AnonymousAuth()
    else:
        # Version 4 where the region is known, without which it cannot be made; accounts since 2025 need it.
        signature = oss2.AUTH_VERSION_4 if region else oss2.AUTH_VERSION_1
        if token := options.get("token"):
            auth = oss2.StsAuth(key, secret, token, auth_version=signature)
        else:
            auth = oss2.make_auth(key, secret, signature)
    timeouts = seconds(options, "connect_timeout", CONNECT_TIMEOUT_S), seconds(options, "timeout", READ_TIMEOUT_S)
    if bundle := options.get("ca_bundle"):
        session.session.verify = bundle
    # Proxies and .netrc are the environment's, which is another's than the user's here.
    session.session.trust_env = False
    try:
        return oss2.Bucket(
            auth, address.endpoint, address.container, session=session, connect_timeout=timeouts, enable_crc=False,
            region=region, is_cname=flag(options, "cname", False), app_name="forebay",
        )  # fmt: skip
    except oss2.exceptions.ClientError as error:
        raise UsageError(f"{address.url} cannot be opened: {error.body}") from error


def _mapped(error: Any, what: str, reading: bool) -> SourceError:
    """An oss2 exception as ours, in one line."""
    if isinstance(error, oss2.exceptions.RequestError):
        return SourceUnavailable(f"{what} cannot be reached ({_transport_reason(error.exception)})")
    status, code = error.status, error.details.get("Code", "") if isinstance(error.details, dict) else ""
    reason = f"HTTP {status} {code}".rstrip()
    if status in (412, 416):
        return SourceStale(f"{what} has changed since it was listed ({reason})")
    if status == 404:
        if reading and code != "NoSuchBucket":
            return SourceStale(f"{what} is gone since it was listed ({reason})")
        return SourceNotFound(f"{what} does not exist ({reason})")
    if status == 429 or status >= 500 or code in _PASSING:
        return SourceUnavailable(f"{what}: the store is busy or failing ({reason})")
    if status in (400, 401, 403):
        return denied(what, code, reason)
    return SourceError(f"{what} cannot be read ({reason})")


def _transport_reason(error: Exception) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted; name its CA with --option ca_bundle=FILE"
    if isinstance(error, requests.exceptions.Timeout):
        return "timed out"
    text = str(error)
    for sign, words in (("refused", "connection refused"), ("resolve", "its name cannot be resolved")):
        if sign in text:
            return words
    return "the connection broke"
