"""Many small objects by libcurl, in one thread, for stores whose URLs can be signed (docs/decisions/0028)."""

import contextlib
import math
import os
import select
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import botocore.httpsession
import pycurl

from forebay.cacheruntime.errors import SourceError
from forebay.cacheruntime.understore.objectstore import REQUEST_TIMEOUT
from forebay.cacheruntime.understore.options import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, seconds
from forebay.cacheruntime.version import VERSION

_RECEIVE_BYTES = 256 << 10
"""libcurl asks the socket for so much at once, and gives it out in pieces of 16 KiB."""

_OTHER_BODY_BYTES = 64 << 10
"""Of what a store says instead of a body, most: its code is in the first few hundred."""

_KEPT_CONNECTIONS = 512
"""libcurl would close those that nothing uses for a moment; there are never more than were under way at once."""

_REDIRECTS = 5

_STEP_S = 1.0
"""libcurl's own timers end a wait earlier; this only bounds one that they do not."""


class Get(NamedTuple):
    """One version of one object."""

    url: str
    """Signed: a secret."""
    length: int
    """In bytes, more than none."""
    version: str
    """The ETag; empty for whichever version is there."""


@dataclass(frozen=True)
class CurlSettings:
    """Of a client."""

    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S
    """Of silence; whole seconds, rounded up."""
    ca_bundle: str = ""
    """File with the CAs to trust; '': those of the system, or botocore's where it has none."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "CurlSettings":
        """From a store's options.

        Raises:
            UsageError: a bad number.
        """
        return cls(
            seconds(options, "connect_timeout", CONNECT_TIMEOUT_S),
            seconds(options, "timeout", READ_TIMEOUT_S),
            options.get("ca_bundle", ""),
        )


@dataclass(eq=False)
class Transfer:
    """One GET under way."""

    get: Get
    tag: object
    """The caller's."""
    curl: pycurl.Curl
    head: list[bytes] = field(default_factory=list)
    """Lines of all heads that came, those of redirects included."""
    body: list[bytes] = field(default_factory=list)
    """What has come since it was taken."""
    ended: bool = False
    error: tuple[int, str] | None = None
    """Of libcurl."""

    @property
    def is_refused(self) -> bool:
        """Whether the store knows the signature not, or takes none in a URL."""
        return self.error is None and int(self.curl.getinfo(pycurl.RESPONSE_CODE)) in (401, 403)

    @property
    def is_good(self) -> bool:
        """Whether what came is the whole of what was asked for, of that version."""
        if self.error is not None or sum(map(len, self.body)) != self.get.length:
            return False
        if int(self.curl.getinfo(pycurl.RESPONSE_CODE)) not in (200, 206):
            return False
        etag, sent = "", ""
        for line in self.head:
            name = line[:14].lower()
            if name.startswith(b"http/"):
                etag = sent = ""  # the head of a redirect was before
            elif name.startswith(b"etag:"):
                etag = line[5:].strip().decode("latin-1")
            elif name.startswith(b"content-range:"):
                sent = line[14:].strip().decode("latin-1")
        if self.get.version and etag and etag != self.get.version:  # some S3 look-alikes ignore If-Match
            return False
        return not sent or sent.startswith(f"bytes 0-{self.get.length - 1}/")


class Transfers:
    """GETs under way in one thread, over connections that are kept.

    *Concurrency*: one thread at a time; `wake` is for others. *Resources*: `close` ends what is under way.
    """

    def __init__(self, settings: CurlSettings) -> None:
        self._settings = settings
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, _KEPT_CONNECTIONS)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._time)
        self._idle: list[pycurl.Curl] = []
        self._under_way: dict[pycurl.Curl, Transfer] = {}
        self._epoll = select.epoll()
        self._watched: set[int] = set()
        self._due: float | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def start(self, get: Get, tag: object = None) -> Transfer:
        """Begin a GET; `step` carries it on."""
        curl = self._idle.pop() if self._idle else _new_curl(self._settings)
        transfer = self._under_way[curl] = Transfer(get, tag, curl)
        curl.setopt(pycurl.URL, get.url)
        curl.setopt(pycurl.RANGE, f"0-{get.length - 1}")
        curl.setopt(pycurl.HTTPHEADER, [f"If-Match: {get.version}"] if get.version else [])
        curl.setopt(pycurl.MAXFILESIZE, max(get.length, _OTHER_BODY_BYTES))
        curl.setopt(pycurl.HEADERFUNCTION, transfer.head.append)
        curl.setopt(pycurl.WRITEFUNCTION, transfer.body.append)
        self._multi.add_handle(curl)
        return transfer

    def step(self, most_s: float) -> list[Transfer]:
        """Wait for something to come, at most so long; returns what has ended."""
        wait_s = most_s if self._due is None else min(most_s, max(0.0, self._due - time.monotonic()))
        for number, events in self._epoll.poll(wait_s):
            if number == self._wake:
                os.eventfd_read(self._wake)
                continue
            bits = (pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0) | (
                pycurl.CSELECT_OUT if events & select.EPOLLOUT else 0
            )
            self._multi.socket_action(number, bits)
        if self._due is not None and self._due <= time.monotonic():
            self._due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        return self._ended()

    def wake(self) -> None:
        """Have a `step` that waits return; from any thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        for curl in [*self._under_way, *self._idle]:
            if curl in self._under_way:
                self._multi.remove_handle(curl)
            curl.close()
        self._under_way.clear()
        self._idle.clear()
        self._multi.close()
        self._epoll.close()
        os.close(self._wake)

    def release(self, transfer: Transfer) -> None:
        """A transfer that has ended was looked at: its handle may be used again."""
        self._idle.append(transfer.curl)

    def _ended(self) -> list[Transfer]:
        found = []
        more = True
        while more:
            left, good, bad = self._multi.info_read()
            for curl, error in [*((curl, None) for curl in good), *((curl, (n, words)) for curl, n, words in bad)]:
                self._multi.remove_handle(curl)
                transfer = self._under_way.pop(curl)
                transfer.ended, transfer.error = True, error
                found.append(transfer)
            more = left > 0
        return found

    def _watch(self, what: int, number: int, multi: object, data: object) -> None:
        """libcurl wants to know of a socket."""
        if what == pycurl.POLL_REMOVE:
            if number in self._watched:
                self._watched.discard(number)
                with contextlib.suppress(OSError):  # it may be closed already
                    self._epoll.unregister(number)
            return
        mask = (select.EPOLLIN if what & pycurl.POLL_IN else 0) | (select.EPOLLOUT if what & pycurl.POLL_OUT else 0)
        if number in self._watched:
            self._epoll.modify(number, mask)
        else:
            self._watched.add(number)
            self._epoll.register(number, mask)

    def _time(self, wait_ms: int) -> None:
        """libcurl wants to be called then."""
        self._due = None if wait_ms < 0 else time.monotonic() + wait_ms / 1000


class CurlWholeFiles:
    """See `WholeFiles`."""

    def __init__(
        self, settings: CurlSettings, request: Callable[[str, int, str], Get | None], refused: Callable[[], None]
    ) -> None:
        """
        Args:
            settings: of the connections.
            request: from path, size and version; None, or raises SourceError: it is not to be had this way.
            refused: told, in the thread that waits, that the store has refused one.
        """
        self._transfers = Transfers(settings)
        self._request = request
        self._refused = refused
        self._unfit: list[object] = []

    def start(self, path: str, size: int, version: str, tag: object) -> None:
        """See `WholeFiles.start`."""
        try:
            get = self._request(path, size, version)
        except SourceError:
            get = None
        if get is None:
            self._unfit.append(tag)
        else:
            self._transfers.start(get, tag)

    def wait(self, most_s: float) -> list[tuple[object, list[bytes] | None]]:
        """See `WholeFiles.wait`."""
        found: list[tuple[object, list[bytes] | None]] = [(tag, None) for tag in self._unfit]
        self._unfit.clear()
        for transfer in self._transfers.step(0 if found else most_s):
            if transfer.is_refused:
                self._refused()
            found.append((transfer.tag, transfer.body if transfer.is_good else None))
            self._transfers.release(transfer)
        return found

    def wake(self) -> None:
        """See `WholeFiles.wake`."""
        self._transfers.wake()

    def close(self) -> None:
        """See `WholeFiles.close`."""
        self._transfers.close()


def _new_curl(settings: CurlSettings) -> pycurl.Curl:
    curl = pycurl.Curl()
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.USERAGENT, f"forebay/{VERSION}")
    # One connection for each request under way: HTTP/2 would put all on one.
    curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    curl.setopt(pycurl.BUFFERSIZE, _RECEIVE_BYTES)
    curl.setopt(pycurl.TCP_KEEPALIVE, 1)
    curl.setopt(pycurl.CONNECTTIMEOUT_MS, math.ceil(settings.connect_timeout_s * 1000))
    curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
    curl.setopt(pycurl.LOW_SPEED_TIME, math.ceil(settings.read_timeout_s))
    curl.setopt(pycurl.TIMEOUT_MS, int(REQUEST_TIMEOUT.total_seconds() * 1000))
    curl.setopt(pycurl.FOLLOWLOCATION, 1)
    curl.setopt(pycurl.MAXREDIRS, _REDIRECTS)
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    system = ssl.get_default_verify_paths()
    curl.setopt(pycurl.CAINFO, settings.ca_bundle or system.cafile or botocore.httpsession.get_cert_path(True))
    if system.capath:
        curl.setopt(pycurl.CAPATH, system.capath)
    return curl
