"""Serving /metrics for Prometheus, by prometheus_client and from a thread of its own; what it says is in `metrics`."""

import logging
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

import trio

from forebay.cacheruntime.config import CacheConfig, parse_address
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.jobs import JobStore

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.metrics import Status, Traffic

log = logging.getLogger(__name__)


class Metrics:
    """Serves /metrics while somebody wants it. `serve` and `stop` in the worker's loop."""

    def __init__(
        self,
        config: CacheConfig,
        status: "Status",
        traffic: "Traffic",
        jobs: JobStore,
    ) -> None:
        """
        Args:
            config: of the cache.
            status, traffic: of the core.
            jobs: records of warm-ups.
        """
        self._config = config
        self._status = status
        self._traffic = traffic
        self._jobs = jobs
        self._server: tuple[WSGIServer, Thread] | None = None
        self._asked = ""
        self.address = ""
        """HOST:PORT while it serves."""

    async def serve(self, address: str) -> str:
        """Serve there from now on, by this worker and the next ones; empty: no longer. Returns where.

        Raises:
            UsageError: nobody can listen there.
        """
        if address and address in (self._asked, self.address):
            return self.address
        host, port = parse_address(address) if address else ("", 0)
        await self.stop()
        if not address:
            self._config.metrics_path.unlink(missing_ok=True)
            return ""
        # Here, for who serves no metrics starts 50 ms sooner.
        from prometheus_client import CollectorRegistry, start_http_server

        from forebay.cacheruntime.worker.metrics import Numbers

        registry = CollectorRegistry()
        registry.register(Numbers(self._config, self._status, self._traffic, self._jobs))
        try:
            self._server = start_http_server(port, host, registry)
        except OSError as error:
            raise UsageError(f"--metrics: cannot listen on {address} ({error.strerror}); name another port") from error
        self._asked, self.address = address, f"{address.rpartition(':')[0]}:{self._server[0].server_port}"
        self._config.metrics_path.write_text(self.address)
        return self.address

    async def serve_remembered(self) -> None:
        """Go on where the worker before us served; a port that is taken meanwhile is only worth a warning."""
        try:
            await self.serve(self._config.metrics_path.read_text().strip())
        except FileNotFoundError:
            return
        except UsageError as error:
            log.warning("%s", error)

    async def stop(self) -> None:
        """Give the port back."""
        if self._server is not None:
            server, thread = self._server
            self._server, self._asked, self.address = None, "", ""
            await trio.to_thread.run_sync(_shut, server, thread)


def _shut(server: WSGIServer, thread: Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
