"""One trace across a client, its worker, the owner's worker and the store, sent by OTLP over HTTP."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from range_server import RangeServer
from source_tree import MIB

from forebay.cacheruntime import tracing
from forebay.cacheruntime.config import traces_asked
from forebay.proto import worker_pb2 as pb

pytestmark = [pytest.mark.slow]


class Collector:
    """Takes traces in. `close` ends it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        """Each with the name of its service."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = [each.value.string_value for each in part.resource.attributes if each.key == "service.name"]
                    outer.spans += [(names[0], span) for scope in part.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def traces(self) -> dict[bytes, dict[str, list[Any]]]:
        """By trace id: spans by name."""
        found: dict[bytes, dict[str, list[Any]]] = {}
        for service, span in list(self.spans):
            found.setdefault(span.trace_id, {}).setdefault(f"{service} {span.name}", []).append(span)
        return found


def said(span: Any) -> dict[str, Any]:
    """Its attributes."""
    return {
        each.key.removeprefix("forebay."): getattr(each.value, each.value.WhichOneof("value"))
        for each in span.attributes
    }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    yield made
    tracing.stop()
    made.close()


BY_A_PEER = [
    "forebay.store.get", "forebay.fetch", "forebay.peer.fill", "forebay.peer.serve", "forebay.peer.read",
    "forebay.fetch", "forebay.fill", "forebay.miss",
]  # fmt: skip
"""A GET that an owner makes for another worker's reader, from the store up."""


def chains(collector: Collector) -> Iterator[list[Any]]:
    """Each GET of the store with the spans above it that have arrived."""
    for trace in collector.traces().values():
        spans = {span.span_id: span for named in trace.values() for span in named}
        for get in trace.get("forebay-worker forebay.store.get", []):
            chain = [get]
            while above := spans.get(chain[-1].parent_span_id):
                chain.append(above)
            yield chain


def by_a_peer(collector: Collector) -> list[Any] | None:
    """The first whole chain from a GET to a reader of another worker (some blocks the reader's worker owns itself)."""
    return next((chain for chain in chains(collector) if [span.name for span in chain] == BY_A_PEER), None)


def sources(collector: Collector) -> set[str]:
    """Where the bytes of the fills came from."""
    fills = [span for trace in collector.traces().values() for span in trace.get("forebay-worker forebay.fill", [])]
    return {said(span)["source"] for span in fills}


@pytest.mark.parametrize("size", [70_000, 2 * MIB])
def test_one_trace_from_the_reader_to_the_store(tmp_path: Path, collector: Collector, size: int) -> None:
    server = RangeServer(16, size)  # that one worker owns all of so many is out of the question
    options = dict(text.split("=", 1) for text in server.args[1::2])
    cluster = Loopback(tmp_path, 2, options, traces=True)
    try:
        cluster.attach(server.source)
        tracing.start("client")
        for number in range(16):
            assert len(cluster.members[0].read(server.source, str(number))) == size
        tracing.stop()
        until(lambda: by_a_peer(collector) is not None)  # the workers send their spans each for itself
        above = by_a_peer(collector)
        assert above is not None
        assert len({span.trace_id for span in above}) == 1
        assert not above[-1].parent_span_id
        get, length = above[0], min(size, MIB)
        assert said(get)["bytes"] == length
        assert "secret" not in str(said(get))
        asked, fill = above[4], above[6]
        owner = (cluster.members[1].config.cache_dir / "worker-id").read_text().strip()
        assert said(asked) | {"path": ""} == {
            "peer": owner, "mode": "fetch", "hedge": False, "hops": 1, "path": "", "offset": 0, "length": length,
            "bytes": length, "outcome": "bytes",
        }  # fmt: skip
        assert said(fill)["source"] == "peer"
        until(lambda: sources(collector) - {"tier"} == {"peer", "store"})
    finally:
        cluster.close()
        server.close()


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_the_environment_asks_for_traces(environ: dict[str, str], asked: bool) -> None:
    assert traces_asked(environ) is asked


def test_without_them_nothing_is_imported_or_sent(tmp_path: Path) -> None:
    assert not tracing.is_on()
    request = pb.FillRequest()
    with tracing.span("x", root=True) as span:
        assert span is tracing.NO_SPAN
        request.traceparent = span.traceparent
        assert tracing.current() == ""
    assert request.SerializeToString() == b""
    cluster = Loopback(tmp_path, 1, {})
    try:
        assert "opentelemetry" not in Path(f"/proc/{cluster.members[0].pid}/maps").read_text()
    finally:
        cluster.close()
