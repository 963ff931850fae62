"""The smallest S3 listing that all sides accept: folders are buckets, the files below them objects.

nginx sends the objects; it passes requests for a bucket itself to this program (`python -m forebay.bench.listing`).
Objects are listed in the order of their keys, 1,000 at a time, in versions 1 and 2 of the protocol (Amazon S3 API
reference: ListObjects, ListObjectsV2). A folder is read once and again when its time stamp has changed.
"""

import os
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE_KEYS = 1000
"""The most that S3 gives at once."""


@dataclass(frozen=True, order=True)
class Entry:
    """A name in a folder; a folder's name ends with a slash, so that entries sort as their keys do."""

    name: str
    size: int = 0
    """Bytes."""
    mtime_s: int = 0

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


Tree = Callable[[str], Sequence[Entry]]
"""The sorted entries of a folder of the bucket: "" is its root, others end with a slash."""


def keys_from(tree: Tree, prefix: str, after: str, delimiter: str) -> Iterator[tuple[str, Entry]]:
    """Keys and common prefixes in order.

    Args:
        tree: the bucket.
        prefix: of all keys.
        after: only what is behind this key or common prefix; "" for all.
        delimiter: "/" for one level, "" for all levels.
    """
    folder = prefix[: prefix.rfind("/") + 1]
    entries = tree(folder)
    start = bisect_left(entries, Entry(max(prefix, after)[len(folder) :] if after.startswith(folder) else ""))
    if after.startswith(folder) and start:
        start -= 1  # the folder that `after` is in, or `after` itself; it is looked at again below
    for entry in entries[start:]:
        key = folder + entry.name
        if not key.startswith(prefix):
            if key > prefix:
                return
            continue
        if entry.is_folder and not delimiter:
            if key > after or after.startswith(key):
                yield from keys_from(tree, key, after, delimiter)
        elif key > after and not (entry.is_folder and after.startswith(key)):
            yield key, entry


def page(tree: Tree, bucket: str, query: dict[str, str]) -> str:
    """The XML for one request.

    Args:
        tree: the bucket.
        bucket: its name.
        query: the request's parameters, decoded.
    """
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after") or query.get("marker") or ""
    limit = min(int(query.get("max-keys", PAGE_KEYS)), PAGE_KEYS)
    found = list(islice(keys_from(tree, prefix, after, delimiter), limit + 1))
    more, found = len(found) > limit, found[:limit]
    code = quote if query.get("encoding-type") == "url" else str
    objects = "".join(_contents(escape(code(key)), entry) for key, entry in found if not entry.is_folder)
    folders = "".join(
        f"<CommonPrefixes><Prefix>{escape(code(key))}</Prefix></CommonPrefixes>"
        for key, entry in found
        if entry.is_folder
    )
    token = "NextContinuationToken" if query.get("list-type") == "2" else "NextMarker"
    ahead = f"<{token}>{escape(found[-1][0])}</{token}>" if more and found else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{escape(bucket)}</Name>'
        f"<Prefix>{escape(code(prefix))}</Prefix><Delimiter>{escape(delimiter)}</Delimiter><MaxKeys>{limit}</MaxKeys>"
        f"<KeyCount>{len(found)}</KeyCount><IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        f"{ahead}{objects}{folders}</ListBucketResult>"
    )


def _contents(key: str, entry: Entry) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(entry.mtime_s))
    # nginx's ETag (ngx_http_set_etag): seconds and size in hexadecimal.
    return (
        f"<Contents><Key>{key}</Key><LastModified>{when}</LastModified>"
        f"<ETag>&quot;{entry.mtime_s:x}-{entry.size:x}&quot;</ETag><Size>{entry.size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


class Folders:
    """The folders of one bucket, each read once for each of its time stamps."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[int, Sequence[Entry]]] = {}

    def entries(self, folder: str) -> Sequence[Entry]:
        """As `Tree`; nothing where there is no such folder."""
        path = self._root / folder
        try:
            stamp = path.stat().st_mtime_ns
            known = self._known.get(folder)
            if known is None or known[0] != stamp:
                known = self._known[folder] = stamp, sorted(self._scan(path))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return known[1]

    @staticmethod
    def _scan(path: Path) -> Iterator[Entry]:
        with os.scandir(path) as found:
            for item in found:
                if item.is_dir():
                    yield Entry(item.name + "/")
                else:
                    stat = item.stat()
                    yield Entry(item.name, stat.st_size, int(stat.st_mtime))


def serve(root: Path, port: int) -> None:
    """Answer on loopback until a signal ends the process."""
    buckets: dict[str, Folders] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            target = urlsplit(self.path)
            bucket = unquote(target.path).strip("/")
            if not bucket or "/" in bucket or not (root / bucket).is_dir():
                self._answer(404, "<Error><Code>NoSuchBucket</Code></Error>")
                return
            query = {name: values[0] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
            if "location" in query:
                self._answer(200, '<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')
                return
            folders = buckets.setdefault(bucket, Folders(root / bucket))
            self._answer(200, page(folders.entries, bucket, query))

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            (root / unquote(urlsplit(self.path).path).strip("/")).mkdir(exist_ok=True)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(200, "")

        def _answer(self, status: int, body: str) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the log would be longer than the listing."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
