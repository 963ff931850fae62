"""The smallest S3: one bucket whose objects are made up as they are read: no memory, little time."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from source_tree import MIB, payload

_PATTERN = payload("range server", 4 * MIB) * 2
_HALF = len(_PATTERN) // 2


class RangeServer:
    """`count` objects of `size` bytes, each with other bytes, named 0, 1, 2...

    Resources: `close` ends it.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.gets: list[tuple[str, int, int]] = []
        """(name, start, end) of each GET of bytes."""
        self.refuses_listings = self.refuses_gets = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True  # connections that the client keeps open
        self._thread = threading.Thread(target=self._server.serve_forever, name="range server")
        self._thread.start()
        host, port = self._server.server_address[:2]
        self.args = ("--option", f"endpoint=http://{host!s}:{port}", "--option", "access_key_id=key",
                     "--option", "secret_access_key=secret", "--option", "region=us-east-1")  # fmt: skip
        self.source = "s3://bucket"

    @property
    def has_sent_once(self) -> bool:
        """Whether no byte has left it twice."""
        spans = sorted(self.gets)
        return all(one[0] != other[0] or one[2] <= other[1] for one, other in pairwise(spans))

    def digest(self, number: int) -> str:
        """SHA-256 of an object, in hex."""
        found = hashlib.sha256()
        for start in range(0, self.size, MIB):
            found.update(_bytes(number, start, min(start + MIB, self.size)))
        return found.hexdigest()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = re.fullmatch(r"/bucket/(\d+)", handler.path)
        if self.refuses_listings if name is None else self.refuses_gets:
            _send(handler, 403, {}, b"")
            return
        if name is None:
            _send(handler, 200, {"Content-Type": "application/xml"}, self._listing().encode())
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        assert span is not None
        start, end = int(span[1]), min(int(span[2]) + 1, self.size)
        self.gets.append((name[1], start, end))
        headers = {
            "Content-Length": str(end - start),
            "Content-Range": f"bytes {start}-{end - 1}/{self.size}",
            "ETag": f'"{name[1]}"',
            "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        }
        _send(handler, 206, headers, b"")
        for at in range(start, end, MIB):
            handler.wfile.write(_bytes(int(name[1]), at, min(at + MIB, end)))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _listing(self) -> str:
        items = "".join(
            f"<Contents><Key>{number}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{number}&quot;</ETag><Size>{self.size}</Size></Contents>"
            for number in sorted(range(self.count), key=str)
        )
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix></Prefix>'
            f"<KeyCount>{self.count}</KeyCount><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        )


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that breaks off is none of a test's business."""


def _bytes(number: int, start: int, end: int) -> memoryview:
    """At most 1 MiB of an object: the pattern, begun elsewhere in each object and each MiB."""
    base = (number * 4099 + start // MIB * 65537 + start % MIB) % _HALF
    assert start // MIB == (end - 1) // MIB
    return memoryview(_PATTERN)[base : base + end - start]


def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
