"""A small name node and data node that speak WebHDFS, for the contract tests of webhdfs://.

Apache Hadoop, "WebHDFS REST API": GETFILESTATUS, LISTSTATUS and OPEN, which the name node answers with a redirect to a
data node; errors as RemoteException. One port plays both. Times count milliseconds, as in HDFS.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

USER = "trainer"


class WebHdfsEndpoint(ThreadingHTTPServer):
    """Files in memory; directories are implied by them."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, tuple[bytes, int]] = {}
        """Absolute path -> bytes and time of the last change in milliseconds."""
        self.standby = False
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path: str, data: bytes) -> None:
        before = self.files.get(path, (b"", 0))[1]
        self.files[path] = data, max(time.time_ns() // 10**6, before + 1)

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WebHdfsEndpoint

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        kind, path = unquote(target.path)[1:].split("/", 1)
        path = "/" + path.removeprefix("v1").strip("/")
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        if query.get("user.name", USER) != USER:
            return self._refuse(403, "AccessControlException", f"Permission denied: user={query['user.name']}")
        if self.server.standby:
            return self._refuse(
                403, "StandbyException", "Operation category READ is not supported in state standby. Visit https://s.x"
            )
        if kind == "data":
            data = self.server.files[path][0]
            start = int(query["offset"])
            return self._send(200, data[start : start + int(query.get("length", len(data)))])
        return self._name_node(path, query)

    def _name_node(self, path: str, query: dict[str, str]) -> None:
        found = self.server.files.get(path)
        below = path.rstrip("/") + "/"
        names = sorted({name[len(below) :].split("/")[0] for name in self.server.files if name.startswith(below)})
        if found is None and not names:
            return self._refuse(404, "FileNotFoundException", f"File does not exist: {path}")
        if query["op"] == "GETFILESTATUS":
            return self._json({"FileStatus": self._status(path, "")})
        if query["op"] == "LISTSTATUS":
            listed = [self._status(below + name, name) for name in names] if found is None else [self._status(path, "")]
            return self._json({"FileStatuses": {"FileStatus": listed}})
        if query["op"] != "OPEN" or found is None:
            return self._refuse(400, "IllegalArgumentException", f"Invalid operation {query['op']} of {path}")
        if int(query.get("offset", 0)) >= max(len(found[0]), 1):
            return self._refuse(
                400, "IllegalArgumentException", f"Offset={query['offset']} out of the range [0, {len(found[0])})"
            )
        where = f"http://{self.headers['Host']}/data{quote(path)}?offset={query.get('offset', 0)}"
        where += f"&length={query['length']}" if "length" in query else ""
        self.send_response(307)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _status(self, path: str, suffix: str) -> dict[str, object]:
        data, changed = self.server.files.get(path, (b"", 0))
        kind = "FILE" if path in self.server.files else "DIRECTORY"
        return {"pathSuffix": suffix, "type": kind, "length": len(data), "modificationTime": changed, "owner": USER,
                "group": "g", "permission": "644", "replication": 3, "blockSize": 128 << 20, "accessTime": 0,
                "fileId": abs(hash(path)) % 2**31, "childrenNum": 0, "storagePolicy": 0}  # fmt: skip

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _refuse(self, status: int, exception: str, message: str) -> None:
        told = {"RemoteException": {"exception": exception, "javaClassName": f"org.x.{exception}", "message": message}}
        self._send(status, json.dumps(told).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
