"""A proxy between a store and its server that makes the faults of networks and busy services, on demand."""

import asyncio
import socket
import threading
import time
from collections import deque

from http_proxy import Exchange, Fault, HttpProxy

_START_S = 10.0


class FaultProxy:
    """Passes HTTP on to one server; `faults` are used up, one for each request.

    "503" and "500" answer so, "403" and "401" refuse, "reset" drops the connection, "short" breaks off the body half
    way. What has no body is no request for "short". An empty word lets one pass.
    """

    def __init__(self, upstream: str) -> None:
        self.faults: deque[str] = deque()
        self._proxy = HttpProxy(upstream.removeprefix("http://"), self._decide)
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._listening.wait(_START_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[str]:
        """Methods and targets that came, for those who count them."""
        return [f"{one.method} {one.target}" for one in self._proxy.exchanges]

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._proxy.serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._end.wait()
        server.close()

    def _decide(self, exchange: Exchange, size: int | None) -> Fault:
        short = bool(self.faults) and self.faults[0] == "short"
        if not self.faults or short != (size is not None):
            return Fault()
        word = self.faults.popleft()
        return Fault(body="half") if short else Fault(instead=word)


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
