"""A small endpoint that speaks the Object Storage Service's protocol, for the contract tests of oss://.

Alibaba Cloud OSS API reference: ListObjects, ListObjectsV2, HeadObject, GetObject, and errors as XML. Access keys must
be known; signatures are accepted unchecked. The order is that of UTF-8 bytes, as in the service.
"""

import hashlib
import re
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import gmtime, strftime, time
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

ACCESS_KEY = "AKOSS"


class OssEndpoint(ThreadingHTTPServer):
    """Buckets in memory, path style, as oss2 asks for where the endpoint is an address."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, tuple[bytes, float]]] = {}
        """Key -> bytes and time of the last change."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.buckets[bucket][key] = data, time()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: OssEndpoint

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        bucket, _, key = unquote(target.path).removeprefix("/").partition("/")
        sent = self.headers.get("Authorization", "")
        identity = re.match(r"OSS ([^:]+):|OSS4-HMAC-SHA256 Credential=([^/]+)/", sent)
        if sent and (not identity or (identity[1] or identity[2]) != ACCESS_KEY):
            return self._error(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist.")
        if not sent:
            return self._error(403, "AccessDenied", "You have no right to access this object.")
        if bucket not in self.server.buckets:
            return self._error(404, "NoSuchBucket", "The specified bucket does not exist.")
        objects = self.server.buckets[bucket]
        if not key:
            query = {name: values[0] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
            return self._xml(200, _listing(bucket, objects, query))
        if key not in objects:
            return self._error(404, "NoSuchKey", "The specified key does not exist.")
        return self._object(*objects[key])

    do_HEAD = do_GET

    def _object(self, data: bytes, changed: float) -> None:
        etag = _etag(data)
        headers = {"ETag": etag, "Last-Modified": formatdate(changed, usegmt=True), "x-oss-object-type": "Normal"}
        if self.headers.get("If-Match", etag) != etag:
            return self._error(412, "PreconditionFailed", "At least one of the pre-conditions did not hold.")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, data, headers)
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        if first >= len(data) or (last >= len(data) and not self._strict):
            if self._strict:
                return self._error(416, "InvalidRange", "The requested range cannot be satisfied")
            return self._send(200, data, headers)  # GetObject: a range beyond the end gives the whole object
        part = data[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return self._send(206, part, headers)

    @property
    def _strict(self) -> bool:
        return self.headers.get("x-oss-range-behavior") == "standard"

    def _error(self, status: int, code: str, message: str) -> None:
        self._xml(status, f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>")

    def _xml(self, status: int, text: str) -> None:
        self._send(
            status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode(), {"Content-Type": "application/xml"}
        )

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "x-oss-request-id": "1", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest().upper()}"'


def _listing(bucket: str, objects: dict[str, tuple[bytes, float]], query: dict[str, str]) -> str:
    second = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "") if second else query.get("marker", "")
    limit = min(int(query.get("max-keys", 100)), 1000)
    code = quote if query.get("encoding-type") == "url" else str
    found: dict[str, str] = {}
    more = False
    for key in sorted(objects, key=str.encode):
        name = key
        if delimiter and delimiter in key[len(prefix) :]:
            name = key[: key.index(delimiter, len(prefix)) + len(delimiter)]
        if not key.startswith(prefix) or name.encode() <= after.encode() or name in found:
            continue
        if len(found) == limit:
            more = True
            break
        data, changed = objects[key]
        when = strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(changed))
        found[name] = (
            f"<CommonPrefixes><Prefix>{escape(code(name))}</Prefix></CommonPrefixes>"
            if name != key
            else f"<Contents><Key>{escape(code(key))}</Key><LastModified>{when}</LastModified>"
            f"<ETag>{escape(_etag(data), {chr(34): '&quot;'})}</ETag><Type>Normal</Type><Size>{len(data)}</Size>"
            "<StorageClass>Standard</StorageClass></Contents>"
        )
    last = escape(code(list(found)[-1])) if found else ""
    mark = "NextContinuationToken" if second else "NextMarker"
    return (
        f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(code(prefix))}</Prefix><MaxKeys>{limit}</MaxKeys>"
        f"<Delimiter>{delimiter}</Delimiter>{'<EncodingType>url</EncodingType>' if code is quote else ''}"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{f'<{mark}>{last}</{mark}>' if more else ''}"
        f"<KeyCount>{len(found)}</KeyCount>{''.join(found.values())}</ListBucketResult>"
    )
