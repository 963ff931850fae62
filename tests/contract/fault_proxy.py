"""A proxy between a store and its server that makes the faults of networks and busy services, on demand."""

import http.client
import socket
import struct
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FaultProxy(ThreadingHTTPServer):
    """Passes HTTP on to one server; `faults` are used up, one for each request.

    "503" and "500" answer so, "403" and "401" refuse, "reset" drops the connection, "short" breaks off the body half
    way. A HEAD has no body: "short" waits for the next request that has one. An empty word lets one pass.
    """

    daemon_threads = True  # a kept-alive connection of a client would hold up the end
    block_on_close = False

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.faults: deque[str] = deque()
        self.requests: list[str] = []
        """Methods and targets that came, for those who count them."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no fault of the proxy's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultProxy

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        fault = ""
        if self.server.faults and not (self.server.faults[0] == "short" and self.command == "HEAD"):
            fault = self.server.faults.popleft()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault.isdigit():
            self._reply(int(fault), [("Content-Type", "text/plain")], b"" if self.command == "HEAD" else b"fault", 5)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "transfer-encoding"):
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
            length = len(data)
            if self.command == "HEAD":
                length = int(answer.headers.get("Content-Length", -1))
            self._reply(answer.status, headers, data[: len(data) // 2] if fault == "short" else data, length)
            self.close_connection |= fault == "short"
        finally:
            upstream.close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _reply(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if length >= 0:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class SilentServer:
    """Takes connections and says nothing, as a machine behind a firewall that drops does."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def stop(self) -> None:
        self._socket.close()


def wait_for_port(port: int, deadline_s: float) -> None:
    """Return when something listens there (TimeoutError)."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise TimeoutError(f"nothing listens on port {port}") from error
            time.sleep(0.02)
