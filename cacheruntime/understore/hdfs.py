"""HDFS on fsspec's clients: a native one (Arrow over libhdfs, which needs Java; or hdfs-native, which registers itself
for the scheme where it is installed) and the REST one.

Of the native one, reads are our own: over Arrow fsspec opens the file anew for each piece, and fails on the first.

Of the REST one (Apache Hadoop: "WebHDFS REST API") fsspec makes the requests and signs in (simple, Kerberos, tokens).
Not left to it: how long a silent server is waited for (for ever), reads (three requests for each MiB), and errors that
say no more than "RuntimeError".
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests

from forebay.cacheruntime.errors import SourceError, SourceStale, SourceUnavailable, UsageError
from forebay.cacheruntime.understore.address import Address
from forebay.cacheruntime.understore.generic import GenericStore, mapped_any_error
from forebay.cacheruntime.understore.options import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, seconds
from forebay.cacheruntime.understore.retry import Retrier

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIECE_BYTES = 1 << 20
_OWN_OPTIONS = ("connect_timeout", "timeout")

# Words of a name node that is not the active one of its pair, or is starting (StandbyException, SafeModeException).
_NOT_ACTIVE = ("state standby", "in safe mode")


class HdfsStore(GenericStore):
    """The tree below one folder of an HDFS, or one file, through libhdfs."""

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`; the version is compared before the first and after the last byte."""
        fs, _ = self._fs_and_root()
        self._compare(path, version)
        what = f"{path!r} of {self.url}"
        if length:
            file = self._asked(lambda: fs.open(self._full(path), "rb", seekable=True), what)
            with file:
                self._asked(lambda: file.seek(start), what)
                left = length
                while left:
                    wanted = min(left, _PIECE_BYTES)
                    piece = self._asked(lambda wanted=wanted: file.read(wanted), what)  # type: ignore[misc]
                    if not piece:
                        raise SourceStale(f"{what} has not the size that was listed")
                    left -= len(piece)
                    yield piece
        self._compare(path, version)


class _PatientSession(requests.Session):
    """Requests with a time-out where the caller names none, and nothing of this process's environment."""

    def __init__(self, timeouts: tuple[float, float]) -> None:
        super().__init__()
        self._timeouts = timeouts
        self.trust_env = False  # proxies and .netrc of whoever started the worker

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", self._timeouts)
        return super().request(*args, **kwargs)


class WebHdfsStore(GenericStore):
    """The tree below one folder of an HDFS, or one file."""

    def __init__(self, address: Address, source: str, options: Mapping[str, str], retrier: Retrier) -> None:
        self._timeouts = (
            seconds(options, "connect_timeout", CONNECT_TIMEOUT_S),
            seconds(options, "timeout", READ_TIMEOUT_S),
        )
        rest = {name: value for name, value in options.items() if name not in _OWN_OPTIONS}
        super().__init__(address, source, rest, retrier)

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`: one OPEN, streamed; the version is compared before and after."""
        fs, _ = self._fs_and_root()
        self._compare(path, version)
        what = f"{path!r} of {self.url}"
        if length:
            yield from self._opened_range(fs, self._full(path), start, length, what)
        self._compare(path, version)

    def _opened_range(self, fs: Any, full: str, start: int, length: int, what: str) -> Iterator[bytes]:
        # The name node redirects to a data node that has the block; `stream` goes along to it.
        def ask() -> requests.Response:
            url = fs._apply_proxy(fs.url + quote(full, safe="/"))
            query = {**fs.pars, "op": "OPEN", "offset": start, "length": length}
            reply: requests.Response = fs.session.get(url, params=query, stream=True)
            return reply

        reply = self._asked(ask, what)
        try:
            if reply.status_code in (403, 404) or reply.status_code >= 500:
                self._asked(lambda: _raise_remote(reply), what)
            if reply.status_code != 200:  # an offset behind the end is answered by 400
                raise SourceStale(f"{what} has not the size that was listed (HTTP {reply.status_code})")
            left = length
            while left and (piece := self._asked(lambda: reply.raw.read(_PIECE_BYTES), what)):
                left -= len(piece)
                yield piece
            if left and int(reply.headers.get("Content-Length", length)) < length:
                raise SourceStale(f"{what} has not the size that was listed")
            if left:
                raise SourceUnavailable(f"{what}: the reply ended {left} bytes early")
        finally:
            reply.close()

    def _mapped(self, error: Exception, what: str) -> SourceError | UsageError:
        if any(words in str(error) for words in _NOT_ACTIVE):
            return SourceUnavailable(f"{what}: the name node is not active: {' '.join(str(error).split())[:160]}")
        if isinstance(error, requests.exceptions.Timeout):
            return SourceUnavailable(f"{what} cannot be reached (timed out)")
        if isinstance(error, requests.exceptions.SSLError):
            return mapped_any_error(PermissionError("the server's certificate is not trusted"), what)
        broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.JSONDecodeError)
        if isinstance(error, broken) or type(error).__module__.startswith("urllib3"):
            why = "connection refused" if "refused" in str(error) else type(error).__name__
            return SourceUnavailable(f"{what} cannot be reached ({why})")
        return mapped_any_error(error, what)

    def _open(self) -> tuple[Any, str]:
        fs, root = super()._open()
        session = _PatientSession(self._timeouts)
        session.auth, session.cert, session.verify = fs.session.auth, fs.session.cert, fs.session.verify
        fs.session = session
        return fs, root


def _raise_remote(reply: requests.Response) -> None:
    """What the name node says, as fsspec has it."""
    try:
        told = reply.json()["RemoteException"]
    except (ValueError, KeyError):
        reply.raise_for_status()
        return
    kind, message = told.get("exception", ""), told.get("message", "")
    if kind == "FileNotFoundException":
        raise FileNotFoundError(message)
    if kind in ("AccessControlException", "SecurityException"):
        raise PermissionError(message)
    raise OSError(f"{kind}: {message}")
