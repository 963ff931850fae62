"""Traces for OpenTelemetry (extra `otel`): one read across the client, its worker, other workers and the store.

Off unless `start` was called: then nothing of OpenTelemetry is imported, and a span costs a comparison. The SDK reads
its own variables (OTEL_*) from the environment that a process of ours has inherited; whether there are traces at all is
decided at the command line (`config.traces_asked`). Between processes a span travels as the text of W3C Trace Context
(`traceparent`), in `FillRequest`, `ReadRequest` and the metadata of gRPC calls.

Spans: ``forebay.miss`` (client), ``forebay.fill`` (its worker), ``forebay.peer.read`` (each worker that is asked),
``forebay.peer.serve`` (that worker's side), ``forebay.store.get``. In them: ids, paths and URLs, never a credential.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

TRACEPARENT = "traceparent"
"""Key in the metadata of a call."""

_tracer: Any = None
_provider: Any = None


class Span:
    """One that is under way; without traces it does nothing."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Any = None) -> None:
        self._span = span
        self.traceparent = _text_of(span) if span is not None else ""
        """For the other side; '' without traces."""

    def set(self, **attributes: str | int | bool) -> None:
        """Attributes; a name has `forebay.` before it."""
        if self._span is not None:
            self._span.set_attributes({f"forebay.{name}": value for name, value in attributes.items()})

    def end(self, error: BaseException | None = None) -> None:
        """Once; `error`: why it failed."""
        if self._span is None:
            return
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._span.end()


NO_SPAN = Span()


def start(process: str) -> None:
    """Send traces from now on, by OTLP over HTTP; what cannot be is logged, as no read depends on it.

    Args:
        process: `worker`, `handler` or `client`, in the service's name unless OTEL_SERVICE_NAME is set.
    """
    global _provider, _tracer
    if _tracer is not None:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces are sent, as a package is missing (%s): pip install 'forebay[otel]'", error.name)
        return
    known = trace.get_tracer_provider()
    if isinstance(known, TracerProvider):  # the program that reads has its own
        _tracer = known.get_tracer("forebay")
        return
    named = Resource({SERVICE_NAME: f"forebay-{process}"}).merge(OTELResourceDetector().detect())
    _provider = TracerProvider(resource=Resource.create().merge(named))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("forebay")


def stop() -> None:
    """Send what is left, and no more."""
    global _provider, _tracer
    _tracer = None
    if _provider is not None:
        _provider.shutdown()
        _provider = None


def is_on() -> bool:
    return _tracer is not None


def begin(
    name: str, kind: str = "INTERNAL", parent: str = "", *, root: bool = False, **attributes: str | int | bool
) -> Span:
    """A span that is nobody's parent by itself; the caller ends it.

    Args:
        name: of the span.
        kind: INTERNAL, CLIENT or SERVER.
        parent: its parent's `traceparent`; '' for the current one. Without any there is no span unless it is a
            `root`: what is done in the background is part of no trace.
        root: it may begin a trace.
        attributes: see `Span.set`.
    """
    if _tracer is None or not (parent or root or current()):
        return NO_SPAN
    from opentelemetry.trace import SpanKind

    span = Span(_tracer.start_span(name, context=_context_of(parent), kind=SpanKind[kind]))
    span.set(**attributes)
    return span


@contextmanager
def span(
    name: str, kind: str = "INTERNAL", parent: str = "", *, root: bool = False, **attributes: str | int | bool
) -> Iterator[Span]:
    """The current one, in this task or thread and what it starts, until the block ends; see `begin`."""
    made = begin(name, kind, parent, root=root, **attributes)
    if made is NO_SPAN:
        yield made
        return
    from opentelemetry import context, trace

    token = context.attach(trace.set_span_in_context(made._span))
    try:
        yield made
    except BaseException as error:
        made.end(error)
        raise
    else:
        made.end()
    finally:
        context.detach(token)


def current() -> str:
    """The current span's `traceparent`; '' for none."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    return _text_of(trace.get_current_span())


def _text_of(span: Any) -> str:
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}" if found.is_valid else ""


def _context_of(parent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent}) if parent else None
