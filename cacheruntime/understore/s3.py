"""Amazon S3 and everything that speaks its protocol.

Several clients share the work. botocore lists, describes and probes: obstore refuses a whole listing page when one key
of it has an empty, '.' or '..' segment or a control character, and strips the slash by which directory markers are
known. obstore reads data; many small objects at once are read by libcurl, from URLs that obstore signs, unless the
store refuses these. A key that obstore cannot address is read by botocore.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from obstore.exceptions import BaseError
from obstore.store import S3Store

from forebay.cacheruntime.errors import (
    SourceNotFound,
    SourceStale,
    SourceUnavailable,
    UsageError,
)
from forebay.cacheruntime.understore.address import Address
from forebay.cacheruntime.understore.aws import (
    bucket_region,
    credential_provider,
    make_client,
    make_session,
    mapped_boto_error,
    not_s3,
)
from forebay.cacheruntime.understore.base import Entry, Kind, WholeFiles
from forebay.cacheruntime.understore.curl import CurlSettings, CurlWholeFiles, Get
from forebay.cacheruntime.understore.objectstore import (
    NO_RETRIES,
    PIECE_BYTES,
    addressable,
    client_config,
    mapped_error,
    mtime_ns,
    read_with_obstore,
)
from forebay.cacheruntime.understore.options import flag
from forebay.cacheruntime.understore.retry import Retrier
from forebay.cacheruntime.understore.s3_listing import read_objects_ahead

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_SIGNED_FOR = timedelta(hours=1)
"""A URL is used at once; but clocks differ."""

_NO_KEY = {"access_key_id": "anonymous", "secret_access_key": "anonymous"}


class S3UnderStore:
    """The keys below one prefix of one bucket; or one object, when the prefix is exactly its key.

    *Concurrency*: both clients may be called from any thread; what is made on first use is made under a lock.
    """

    def __init__(self, address: Address, options: Mapping[str, str], retrier: Retrier) -> None:
        self._address = address
        self._options = dict(options)
        self._retrier = retrier
        self._prefix = f"{address.path}/" if address.path else ""
        self._base_name = address.path.rpartition("/")[2]
        self._where = address.endpoint or "AWS S3"
        self._bucket_words = f"bucket {address.container!r} at {self._where}"
        # Option values are judged now, while someone is there to read the message.
        client_config(options, address.endpoint)
        self._payer = {"RequestPayer": "requester"} if flag(options, "request_payer", False) else {}
        self._is_anonymous = flag(options, "anon", False)
        for name in ("path_style", "imds"):
            flag(options, name, False)
        if bool(options.get("access_key_id")) != bool(options.get("secret_access_key")):
            raise UsageError("options access_key_id and secret_access_key only work together; one is missing")
        self._lock = threading.Lock()
        self._session: Any = None
        self._client_made: Any = None
        self._data_made: S3Store | None = None
        self._signer_made: S3Store | None = None
        self._curl = CurlSettings.of(options)
        self._takes_signed_urls = True
        """Until it refuses one: a policy may want the signature in a header (`s3:authType`)."""
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
        """Yes, but for directory buckets (Amazon S3 API reference: ListObjectsV2)."""
        return not self._address.container.endswith("--x-s3")

    def probe(self) -> None:
        """See `UnderStore.probe`."""
        reply = self._list_page(MaxKeys=1, Prefix=self._prefix)
        if self._prefix and not reply.get("Contents"):
            self._root_entry()

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`. Each page is retried by itself.

        Raises:
            SourceNotFound: a prefix with nothing below it, which is not an object either.
        """
        first = True
        for reply in self._pages(Prefix=self._prefix):
            contents = reply.get("Contents", [])
            if first and self._prefix:
                self._root_is_file = not contents
            if first and not contents and self._prefix:
                yield [self._retrier.retry_call(self._root_entry)]
                return
            first = False
            if page := [entry for item in contents if (entry := self._entry(item["Key"], item))]:
                yield page

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        below = self._prefix + (f"{path}/" if path else "")
        found: list[Entry] = []
        exists = False
        for reply in self._pages(Prefix=below, Delimiter="/"):
            names = [common["Prefix"] for common in reply.get("CommonPrefixes", [])]
            contents = reply.get("Contents", [])
            exists = exists or bool(names or contents)
            found += [Entry(name[len(self._prefix) : -1], Kind.DIRECTORY) for name in names]
            # The directory's own marker proves that it is there and is not in it.
            found += [e for item in contents if item["Key"] != below and (e := self._entry(item["Key"], item))]
        if exists:
            return found
        if not path:
            return [self._root_entry()] if self._prefix else []
        raise SourceNotFound(f"directory {path!r} does not exist in {self._bucket_words}")

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        if self._is_root_file(path):
            return self._root_entry()
        return self._head(self._prefix + path, path)

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`; the version is the ETag and goes along as If-Match."""
        if length == 0:
            return iter(())
        key = self._address.path if self._is_root_file(path) else self._prefix + path
        if not addressable(key):
            return self._read_with_botocore(key, start, length, version)
        return read_with_obstore(self._data(), key, start, length, version, self._bucket_words)

    def whole_files(self) -> WholeFiles | None:
        """See `ReadsMany`."""
        if not self._takes_signed_urls:
            return None
        return CurlWholeFiles(self._curl, self._whole, self._refuses_signed_urls)

    def _whole(self, path: str, size: int, version: str) -> Get | None:
        key = self._prefix + path
        return None if self._is_root_file(path) or not addressable(key) else Get(self._signed(key), size, version)

    def _refuses_signed_urls(self) -> None:
        self._takes_signed_urls = False

    def _signed(self, key: str) -> str:
        """The URL of an object, with what lets whoever has it read it."""
        try:
            url = obstore.sign(self._signer_made or self._make_signer(), "GET", key, _SIGNED_FOR)
        except (BaseError, OSError, ValueError) as error:
            raise mapped_error(error, f"{key!r} at {self._bucket_words}", reading=True) from error
        return url.partition("?")[0] if self._is_anonymous else url

    def _make_signer(self) -> S3Store:
        """obstore signs nothing without a key; of an anonymous reader's URLs only what is before the signature goes."""
        if not self._is_anonymous:
            self._signer_made = self._data()
            return self._signer_made
        region = self._find_region(self._client())
        with self._lock:
            self._signer_made = self._signer_made or self._make_data(region, _NO_KEY)
            return self._signer_made

    def close(self) -> None:
        """See `UnderStore.close`; obstore's connections end by themselves when idle."""
        with self._lock:
            if self._client_made is not None:
                self._client_made.close()
            self._client_made = self._data_made = self._signer_made = self._session = None

    def _pages(self, **wanted: Any) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            more = {"ContinuationToken": token} if token else {}
            reply = self._retrier.retry_call(lambda more=more: self._list_page(**wanted, **more))  # type: ignore[misc]
            yield reply
            previous, token = token, reply.get("NextContinuationToken")
            if not reply.get("IsTruncated"):
                return
            if not token or token == previous:
                raise SourceUnavailable(f"{self._bucket_words}: the listing repeats itself and has no end")

    def _list_page(self, **wanted: Any) -> dict[str, Any]:
        # Without MaxKeys the service decides, 1000 as a rule. botocore asks for url-encoded keys and decodes them.
        client = self._client()
        wanted = {"Bucket": self._address.container, **wanted, **self._payer}
        reply: dict[str, Any] = self._asked(lambda: client.list_objects_v2(**wanted), self._bucket_words)
        if not reply.keys() & {"Name", "KeyCount", "IsTruncated"}:
            # Any HTML page parses as an empty listing; a sync would take it for the deletion of everything.
            raise not_s3(self._bucket_words, self._where)
        return reply

    def _asked(self, call: Callable[[], T], what: str, *, reading: bool = False) -> T:
        try:
            return call()
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            raise mapped_boto_error(error, what, self._where, reading=reading) from error

    def _entry(self, key: str, item: Mapping[str, Any]) -> Entry | None:
        """A listed object below the root; None for the root's own marker.

        Keys that cannot be file names come out as they are: the catalogue leaves them out and counts them.
        """
        path = key[len(self._prefix) :]
        if not path:
            return None
        if path.endswith("/"):
            return Entry(path[:-1] or path, Kind.DIRECTORY, 0, mtime_ns(item["LastModified"]))
        return Entry(path, Kind.FILE, item["Size"], mtime_ns(item["LastModified"]), item.get("ETag", ""))

    def _head(self, key: str, path: str) -> Entry:
        client = self._client()
        what = f"{key!r} in {self._bucket_words}"
        reply = self._asked(lambda: client.head_object(Bucket=self._address.container, Key=key, **self._payer), what)
        return Entry(path, Kind.FILE, reply["ContentLength"], mtime_ns(reply["LastModified"]), reply.get("ETag", ""))

    def _root_entry(self) -> Entry:
        """The object whose key is the prefix itself."""
        try:
            return self._head(self._address.path, self._base_name)
        except SourceNotFound as error:
            raise SourceNotFound(
                f"nothing below {self._address.path!r} in {self._bucket_words}; check the prefix"
            ) from error

    def _is_root_file(self, path: str) -> bool:
        """Whether that path is the root itself; the one name that could be is asked about once."""
        if not self._prefix or path != self._base_name:
            return False
        if self._root_is_file is None:
            self._root_is_file = not self._list_page(MaxKeys=1, Prefix=self._prefix).get("Contents")
        return self._root_is_file

    def _read_with_botocore(self, key: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        client = self._client()
        what = f"{key!r} in {self._bucket_words}"
        condition = {"IfMatch": version} if version else {}
        wanted = {"Bucket": self._address.container, "Key": key, "Range": f"bytes={start}-{start + length - 1}"}
        reply = self._asked(lambda: client.get_object(**wanted, **condition, **self._payer), what, reading=True)
        body = reply["Body"]
        left = length
        try:
            if reply["ContentLength"] != length:
                raise SourceStale(f"{what} has not the size that was listed")
            while left and (piece := self._asked(lambda: body.read(PIECE_BYTES), what)):
                left -= len(piece)
                yield piece
        finally:
            body.close()
        if left:
            raise SourceUnavailable(f"{what}: the reply ended {left} bytes early")

    def _client(self) -> Any:
        with self._lock:
            if self._client_made is None:
                session = self._asked(lambda: make_session(self._options), self._bucket_words)
                self._client_made = self._asked(
                    lambda: make_client(session, self._options, self._address.endpoint), self._bucket_words
                )
                read_objects_ahead(self._client_made)
                self._session = session
            return self._client_made

    def _data(self) -> S3Store:
        if self._data_made is not None:
            return self._data_made
        client = self._client()
        region = self._find_region(client)
        with self._lock:
            if self._data_made is None:
                self._data_made = self._make_data(region)
            return self._data_made

    def _find_region(self, client: Any) -> str:
        """Where the bucket is: botocore follows AWS's redirects to other regions, obstore must be told."""
        region = str(client.meta.region_name)
        if self._address.endpoint:
            return region
        try:
            reply = client.head_bucket(Bucket=self._address.container)
        except ClientError as error:  # also a refusal names the region
            return bucket_region(error.response) or region
        except BotoCoreError as error:
            raise mapped_boto_error(error, self._bucket_words, self._where, reading=True) from error
        return bucket_region(reply) or region

    def _make_data(self, region: str, key: Mapping[str, str] | None = None) -> S3Store:
        """Args: key: instead of the credentials that were given."""
        endpoint = self._address.endpoint
        virtual = not flag(self._options, "path_style", bool(endpoint))
        config: dict[str, Any] = {"region": region, "virtual_hosted_style_request": virtual}
        if endpoint:
            scheme, _, host = endpoint.partition("://")
            # obstore expects the bucket in the endpoint for virtual-hosted requests, botocore puts it there itself.
            config["endpoint"] = f"{scheme}://{self._address.container}.{host}" if virtual else endpoint
        if self._payer:
            config["request_payer"] = True
        provider = None
        if key is not None:
            config.update(key)
        elif self._is_anonymous:
            config["skip_signature"] = True
        else:
            provider = self._asked(lambda: credential_provider(self._session, self._bucket_words), self._bucket_words)
        client = client_config(self._options, endpoint)
        try:
            return S3Store(
                self._address.container,
                config=config,  # type: ignore[arg-type]
                client_options=client,
                retry_config=NO_RETRIES,
                credential_provider=provider,
            )
        except (BaseError, ValueError) as error:
            raise UsageError(
                f"{self._bucket_words}: obstore refuses the options: {str(error).splitlines()[0]}"
            ) from error
