"""OpenTelemetry traces of requests, where the environment names a collector: a span of each request and of its steps.

Settings are OpenTelemetry's own environment variables, which its SDK reads. The extra `otel` holds what is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from pipeline.host.extras import install_command
from pipeline.serve.access import Visit
from pipeline.terminal import console
from pipeline.version import NAME, version

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_LAST_S = 3.0  # to send what is left when the server stops
_QUIET_S = 60.0  # between two lines about a collector that fails
_MODEL = re.compile(r"^/v2/models/(?!stats$)[^/]+(/versions/[^/]+)?")
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/: the codes that are a server's faults.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
_SERVICE = "inference.GRPCInferenceService"


class Trace:
    """The trace of one request, to which threads add the steps that they have done."""

    def __init__(self, tracer: Any, context: Any, span: Any) -> None:
        self._tracer, self._context, self._span = tracer, context, span
        self._epoch = time.time_ns() - time.perf_counter_ns()

    def describe(self, **facts: str | int) -> None:
        """Add attributes to the request's span."""
        for key, value in facts.items():
            self._span.set_attribute(key.replace("_", ".", 1), value)

    def add(self, name: str, begun: float, ended: float, **facts: str | int) -> None:
        """Add a step that is over. Any thread may call it.

        Args:
            begun, ended: `time.perf_counter()`, s.
            facts: attributes of its span; the first underscore of their names is a dot.
        """
        attributes = {key.replace("_", ".", 1): value for key, value in facts.items()}
        start, end = (self._epoch + round(moment * 1e9) for moment in (begun, ended))
        self._tracer.start_span(name, self._context, attributes=attributes, start_time=start).end(end)


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """Return the trace of the request that this task answers; None where nothing is traced."""
    return _current.get()


class Tracing:
    """Makes the spans, and sends them from a thread of its own."""

    def __init__(self) -> None:
        """Begin, as the environment says.

        Raises:
            ModuleNotFoundError: the extra is not installed.
        """
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        _report_in_a_line()
        named = OTELResourceDetector().detect().attributes
        facts = {"service.version": version(), "process.pid": os.getpid()}
        resource = Resource.create(facts if named.get("service.name") else {**facts, "service.name": NAME})
        # Not the global one: libraries would add spans of their own to it.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(NAME, version())
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def request(self, visit: Visit, headers: Mapping[str, str]) -> Iterator[None]:
        """Trace a request while the body runs, as a part of the client's trace where its headers name one."""
        parent = self._propagator.extract(headers)
        name, attributes = _describe(visit)
        span = self._tracer.start_span(name, parent, kind=self._trace.SpanKind.SERVER, attributes=attributes)
        token = _current.set(Trace(self._tracer, self._trace.set_span_in_context(span, parent), span))
        try:
            yield
        finally:
            _current.reset(token)
            key = "http.response.status_code" if visit.protocol == "http" else "rpc.response.status_code"
            span.set_attribute(key, visit.status)
            if visit.status in _FAULTS or (isinstance(visit.status, int) and (visit.status >= 500 or not visit.status)):
                span.set_status(self._trace.StatusCode.ERROR)
            span.end()

    def close(self) -> None:
        """Send what is left, unless the collector does not take it."""
        # In a thread: for a collector that is gone it tries again and again.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LAST_S)


def open_tracing() -> Tracing | None:
    """Return what traces requests; None where the environment names no collector, with a line where it cannot be."""
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if endpoint is None or exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf" or exporter not in ("", "otlp"):
        other = f"{exporter} as its exporter" if exporter not in ("", "otlp") else f"{protocol} as its protocol"
        console.warning(f"{endpoint}: traces are sent by OTLP as http/protobuf only, not with {other}; there are none")
        return None
    try:
        return Tracing()
    except ModuleNotFoundError as err:
        if not (err.name or "").startswith("opentelemetry"):
            raise
        console.warning(
            f"{endpoint}: {err.name} is not installed, so there are no traces; run: {install_command('otel')}"
        )
        return None


def _describe(visit: Visit) -> tuple[str, dict[str, str]]:
    """Return a span's name and attributes by OpenTelemetry's semantic conventions for HTTP and RPC servers."""
    if visit.protocol == "grpc":
        method = f"{_SERVICE}/{visit.path}"
        return method, {"rpc.system.name": "grpc", "rpc.method": method, "client.address": visit.address}
    facts = {"http.request.method": visit.method, "url.path": visit.path, "client.address": visit.address}
    found = _MODEL.match(visit.path)
    if found is None:
        return visit.method, facts
    route = f"/v2/models/{{model_name}}{'/versions/{model_version}' if found[1] else ''}{visit.path[found.end() :]}"
    return f"{visit.method} {route}", {**facts, "http.route": route}


class _Lines(logging.Handler):
    """What the SDK logs, such as a collector that does not answer, in a line each minute at most."""

    said = -_QUIET_S

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and time.monotonic() - self.said >= _QUIET_S:
            self.said = time.monotonic()
            console.warning(f"OpenTelemetry: {' '.join(record.getMessage().split()):.300}")


def _report_in_a_line() -> None:
    log = logging.getLogger("opentelemetry")
    log.addHandler(_Lines())
    log.propagate = False
