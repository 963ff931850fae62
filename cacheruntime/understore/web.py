"""Files and index pages over HTTP.

fsspec's HTTP file system is used for its session and event-loop thread; what it tells is not enough: its `info` says
"not found" of every failure, its `ls` gives names as they stand in links, and its `cat_file` takes a whole file into
memory when a server ignores ranges.
"""

import html
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
import fsspec
from fsspec.asyn import sync

from forebay.cacheruntime.errors import SourceError, SourceNotFound, SourceStale, SourceUnavailable, UsageError
from forebay.cacheruntime.understore.address import Address
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.generic import GenericStore, mapped_any_error, modified_ns
from forebay.cacheruntime.understore.options import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, seconds
from forebay.cacheruntime.understore.retry import Retrier

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIECE_BYTES = 1 << 20
_STATS_AT_ONCE = 16
"""HEAD requests under way for one index page; a page of a thousand links at 20 ms each takes 1.3 s instead of 20 s."""

_INDEX_BYTES = 64 << 20
"""An index page larger than this is refused: a part of it would look like deletions."""

_OWN_OPTIONS = ("connect_timeout", "timeout")


class WebStore(GenericStore):
    """One file, or the tree of index pages below one URL."""

    def __init__(self, address: Address, source: str, options: Mapping[str, str], retrier: Retrier) -> None:
        self._connect_s = seconds(options, "connect_timeout", CONNECT_TIMEOUT_S)
        self._read_s = seconds(options, "timeout", READ_TIMEOUT_S)
        rest = {name: value for name, value in options.items() if name not in _OWN_OPTIONS}
        super().__init__(address, source, rest, retrier)

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`: the links of an index page that lead below it."""
        if not path and not self._is_directory(self._address.path):
            return [self.stat(self._address.path.rpartition("/")[2])]
        url = self._page_url(path)
        names = links_below(url, self._page(url, path))
        folders = [name[:-1] for name in names if name.endswith("/")]
        files = [name for name in names if not name.endswith("/")]
        prefix = f"{path}/" if path else ""
        found = [Entry(prefix + name, Kind.DIRECTORY) for name in folders]
        with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
            found += [entry for entry in pool.map(self._stat_or_none, [prefix + name for name in files]) if entry]
        return found

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`.

        If-Match goes along where there is a strong ETag, and the validators of the reply itself are compared,
        since simple servers ignore it. Without an ETag there is another look behind the last byte. A server that
        ignores the range is read from the file's begin.
        """
        if length == 0:
            return
        fs, _ = self._fs_and_root()
        what = f"{path!r} of {self.url}"
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        if version.startswith('"'):
            headers["If-Match"] = version
        reply = self._request("GET", self._full(path), headers)
        try:
            if reply.status in (404, 410):
                raise SourceStale(f"{what} is gone since it was listed")
            self._raise_for(reply, what)
            if version and _reply_version(reply) != version:
                raise SourceStale(f"{what} has changed since it was listed")
            skip = 0 if reply.status == 206 else start
            size = _reply_size(reply)
            if size is not None and size < start + length:
                raise SourceStale(f"{what} ends at byte {size}, before the {start + length} that were listed")
            left = length
            while left:
                piece = self._asked(lambda: sync(fs.loop, reply.content.read, _PIECE_BYTES), what)
                if not piece:
                    raise SourceUnavailable(f"{what}: the reply ended {left} bytes early")
                kept = piece[skip : skip + left]
                skip = max(0, skip - len(piece))
                left -= len(kept)
                if kept:
                    yield kept
        finally:
            self._discard(reply)
        if version and not version.startswith('"'):
            self._compare(path, version)

    def close(self) -> None:
        """See `UnderStore.close`."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened and opened[0]._session is not None:
            sync(opened[0].loop, opened[0]._session.close)

    def _stat_or_none(self, path: str) -> Entry | None:
        try:
            return self._retrier.retry_call(lambda: self._entry(path, self._info(path)))
        except SourceNotFound:
            return None  # a dead link on an index page is no file

    def _info(self, path: str) -> Mapping[str, Any]:
        what = f"{path!r} of {self.url}"
        url = self._full(path)
        # identity: the size must be that of the bytes that ranges count.
        reply = self._request("HEAD", url, {"Accept-Encoding": "identity"})
        if reply.status in (403, 405, 501):  # servers that refuse HEAD, such as those of signed URLs
            reply = self._request("GET", url, {"Accept-Encoding": "identity", "Range": "bytes=0-0"})
        try:
            self._raise_for(reply, what)
            return {
                "type": "file",
                "size": _reply_size(reply),
                "ETag": _reply_version(reply),
                "mtime": _modified(reply),
            }
        finally:
            self._discard(reply)

    def _is_directory(self, root: str) -> bool:
        """Whether the root is an index page: HTML that answers below a slash, or by that type at all."""
        if self._root_is_file is None:
            url = self._page_url("") if not urlsplit(root).query else root
            reply = self._request("GET", url, {})
            if reply.status in (404, 410) and url != root:
                self._discard(reply)
                reply = self._request("GET", root, {})
                self._raise_for(reply, self.url)
                self._root_is_file = True
            else:
                self._raise_for(reply, self.url)
                self._root_is_file = reply.content_type != "text/html" or root.endswith((".html", ".htm"))
            self._discard(reply)
        return not self._root_is_file

    def _page(self, url: str, path: str) -> str:
        what = f"index page {path!r} of {self.url}"
        fs, _ = self._fs_and_root()
        reply = self._request("GET", url, {})
        try:
            self._raise_for(reply, what)
            if reply.content_type != "text/html":
                raise SourceNotFound(f"{what} is {reply.content_type}, not a directory's index")
            pieces: list[bytes] = []
            while piece := self._asked(lambda: sync(fs.loop, reply.content.read, _PIECE_BYTES), what):
                pieces.append(piece)
                if sum(map(len, pieces)) > _INDEX_BYTES:
                    raise SourceError(f"{what} is larger than {_INDEX_BYTES} bytes")
            return b"".join(pieces).decode("utf-8", "surrogateescape")
        finally:
            self._discard(reply)

    def _request(self, method: str, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        fs, _ = self._fs_and_root()

        async def send() -> aiohttp.ClientResponse:
            session = await fs.set_session()
            merged = {**fs.kwargs.get("headers", {}), **headers}
            rest = {name: value for name, value in fs.kwargs.items() if name != "headers"}
            reply: aiohttp.ClientResponse = await session.request(
                method, fs.encode_url(url), headers=merged, allow_redirects=True, **rest
            )
            return reply

        reply: aiohttp.ClientResponse = self._asked(lambda: sync(fs.loop, send), self.url)
        return reply

    def _discard(self, reply: aiohttp.ClientResponse) -> None:
        """Drop what was not read; on the loop's own thread, which alone may touch its connections."""
        fs, _ = self._fs_and_root()
        fs.loop.call_soon_threadsafe(reply.close)

    def _raise_for(self, reply: aiohttp.ClientResponse, what: str) -> None:
        if reply.status >= 400:
            error = aiohttp.ClientResponseError(reply.request_info, (), status=reply.status)
            raise mapped_any_error(error, what) from error

    def _mapped(self, error: Exception, what: str) -> SourceError | UsageError:
        if isinstance(error, aiohttp.InvalidURL):
            return UsageError(f"{what} is not a valid URL")
        if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
            host = urlsplit(self._address.path).netloc
            return SourceUnavailable(f"{what}: no answer from {host} ({type(error).__name__})")
        return mapped_any_error(error, what)

    def _full(self, path: str) -> str:
        root = self._address.path
        if not path or (path == unquote(root.rpartition("/")[2]) and not self._is_directory(root)):
            return root
        return f"{root}/{quote(path, errors='surrogateescape')}"

    def _page_url(self, path: str) -> str:
        # With the slash: relative links count from it, and most servers only redirect there without.
        return f"{self._full(path)}/"

    def _open(self) -> tuple[Any, str]:
        parts = urlsplit(self._source)
        client: dict[str, Any] = {
            "timeout": aiohttp.ClientTimeout(sock_connect=self._connect_s, sock_read=self._read_s, total=None)
        }
        if parts.username:
            client["auth"] = aiohttp.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
        given = self._storage_options.pop("client_kwargs", {})
        client |= given if isinstance(given, dict) else {}
        fs = fsspec.filesystem(
            self._address.scheme, skip_instance_cache=True, use_listings_cache=False, client_kwargs=client,
            **self._storage_options,
        )  # fmt: skip
        return fs, self._address.path


def links_below(url: str, page: str) -> list[str]:
    """Names, decoded, of what an index page links to directly below itself; directories end in a slash.

    Left out: links elsewhere, deeper or upwards, and those with a query (Apache's sort links).

    Args:
        url: of the page, with its trailing slash.
        page: its HTML.
    """
    # The page may have been reached under another spelling of its own URL.
    base = urlsplit(url)
    base_path = unquote(base.path, errors="surrogateescape")
    found: dict[str, None] = {}
    for match in re.finditer(r"<a\s[^>]*?href\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))", page, re.I):
        link = html.unescape(match[1] or match[2] or match[3] or "")
        try:
            target = urlsplit(urljoin(url, link))
        except ValueError:
            continue  # an href that is no URL leads to no file
        path = unquote(target.path, errors="surrogateescape")
        if target.query or target.netloc != base.netloc or not path.startswith(base_path):
            continue
        name = path[len(base_path) :]
        if name and "/" not in name[:-1] and name not in ("./", "../", "/"):
            found[name] = None
    return list(found)


def _reply_size(reply: aiohttp.ClientResponse) -> int | None:
    content_range = re.fullmatch(r"bytes \d+-\d+/(\d+)", reply.headers.get("Content-Range", ""))
    if content_range:
        return int(content_range[1])
    length = reply.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Content-Encoding" not in reply.headers else None


def _reply_version(reply: aiohttp.ClientResponse) -> str:
    """The ETag as sent; else the modification time and the size."""
    if etag := reply.headers.get("ETag"):
        return etag
    return f"{modified_ns({'mtime': _modified(reply)}):x}-{_reply_size(reply) or 0:x}"


def _modified(reply: aiohttp.ClientResponse) -> Any:
    try:
        return parsedate_to_datetime(reply.headers.get("Last-Modified", ""))
    except ValueError:
        return None
