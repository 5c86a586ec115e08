"""Traces: one client span for each exchange, sent to an OTLP receiver over HTTP. Only `tracing` imports this.

A span has the attributes of OpenTelemetry's conventions for HTTP clients, the name of the route and the invocation of
Restate. Its parent is the span in the request's `traceparent`, which is forwarded as it came: the spans of the service
are children of Restate's span, too, and stand beside this one.

A span is made when its exchange ends. The spans wait in a bounded queue for a thread of OpenTelemetry that sends them;
if it does not keep up, they are dropped. The event loop never waits for it, and the end of the process for a second at
most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import threading
import time
import warnings
from typing import Any, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy import __version__
from proxy.errors import Failure
from proxy.http2.events import Fields
from proxy.observe.counters import bounded_code_name
from proxy.observe.exchange import ExchangeObserver, ObservedExchange
from proxy.observe.explanation import ends_exchange
from proxy.observe.observer import Observer
from proxy.observe.request_context import INVOCATION_ID, request_context
from proxy.observe.throttle import Throttle
from proxy.quoting import NOT_SHOWN, one_line
from proxy.routes import Route
from proxy.signals import threads_without_signals

__all__ = ["Traces", "make_traces"]

_log: Final = structlog.get_logger("tracing")

_SERVICE: Final = "cloudrun-sidecar"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.27.0"

_FLUSH_SECONDS: Final = 1.0
"""How long the last spans may take at the end."""

_QUEUE: Final = "opentelemetry.sdk._shared_internal"
"""The logger of what hands spans to the exporter."""

_QUIET_SECONDS: Final = 60.0
"""Between two log lines about the same problem."""

# Those that the conventions list; others are not to become attributes, of which there must be few.
_METHODS: Final = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}

_MOST_CHARACTERS: Final = 500
"""Of what OpenTelemetry says of a problem; a receiver's answer may be in it."""

_QUERY: Final = re.compile(r"\?[^\s\"')]+")
"""Of the receiver's URL. Some receivers have their key there, and an error of a connection names the whole URL."""

_propagator: Final = TraceContextTextMapPropagator()


class Traces(Observer):
    """Makes the spans. `close` sends those that wait."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_SERVICE, __version__, _SCHEMA)
        self._opened: dict[str, tuple[int, float]] = {}
        """How many connections to each origin are open, and when the last was opened, on the monotonic clock."""

    def route(self, route: Route | None) -> ExchangeObserver:
        """Return what makes the spans of one route."""
        return _RouteTraces(route, self._tracer, self._opened)

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        """Note the time: requests that wait for a stream have waited for this."""
        count, _ = self._opened.get(origin, (0, 0.0))
        self._opened[origin] = count + 1, time.monotonic()

    def upstream_closed(self, origin: str) -> None:
        """Forget the origin with its last connection."""
        count, at = self._opened.pop(origin)
        if count > 1:
            self._opened[origin] = count - 1, at

    async def close(self) -> None:
        """Send the spans that wait; those that are not sent within a second are lost."""
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def send() -> None:
            self._provider.shutdown()  # It waits for up to 30 s.
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(sent.set)

        with threads_without_signals():
            threading.Thread(target=send, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await sent.wait()
        except TimeoutError:
            _log.warning("the last spans are lost: the receiver did not take them in time", seconds=_FLUSH_SECONDS)


def make_traces() -> Traces:
    """Return the observer, with an exporter that is set up by OpenTelemetry's environment variables."""
    log = logging.getLogger("opentelemetry")
    log.handlers = [_Problems(logging.WARNING)]
    log.propagate = False
    resource = Resource.create({"service.version": __version__, "process.pid": os.getpid()})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": _SERVICE}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # `requests`, which this imports, warns of versions that it has not been tried with.
    with warnings.catch_warnings(), threads_without_signals():
        warnings.simplefilter("ignore")
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)


class _Noted:
    """What is kept of one exchange until its span is made."""

    __slots__ = ("events", "reset")

    def __init__(self) -> None:
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.reset: tuple[str, int] | None = None


class _RouteTraces(ExchangeObserver):
    """Makes the spans of one route."""

    __slots__ = ("_noted", "_opened", "_origin", "_route", "_static", "_tracer")

    def __init__(self, route: Route | None, tracer: Tracer, opened: dict[str, tuple[int, float]]) -> None:
        self._route = route
        self._tracer = tracer
        self._opened = opened
        self._noted: dict[ObservedExchange, _Noted] = {}
        self._origin = str(route.origin) if route is not None else ""
        self._static: dict[str, Any] = {}
        if route is not None:
            self._static = {
                "cloudrun_sidecar.route": route.name,
                "server.address": route.origin.host,
                "server.port": route.origin.port,
                "network.protocol.name": "http",
                "network.protocol.version": "2",
            }

    def token_awaited(self, exchange: ObservedExchange, seconds: float, failure: Failure | None) -> None:
        about: dict[str, Any] = {}
        if self._route is not None:
            about["audience"] = self._route.audience
            if self._route.impersonate is not None:
                about["impersonate"] = self._route.impersonate
        self._note_event(exchange, "mint", seconds, failure, about)

    def connection_awaited(self, exchange: ObservedExchange, seconds: float, failure: Failure | None) -> None:
        _, opened_at = self._opened.get(self._origin, (0, math.inf))
        # A wait without a new connection was for a stream of one that there was.
        name = "connect" if opened_at >= time.monotonic() - seconds else "stream"
        self._note_event(exchange, name, seconds, failure, {"server.address": self._static["server.address"]})

    def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
        if ends_exchange(by, code):
            self._note(exchange).reset = by, code

    def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
        noted = self._noted.pop(exchange, None)
        end = time.time_ns()
        method = exchange.method.decode("latin-1")
        known = method in _METHODS
        span = self._tracer.start_span(
            method if known else "HTTP",
            _parent(exchange.fields),
            SpanKind.CLIENT,
            {"http.request.method": method if known else "_OTHER", **self._static, **self._url(exchange)},
            start_time=end - int(seconds * 1e9),
        )
        if span.is_recording():
            _describe(span, exchange, status, noted)
        span.end(end)

    def _note(self, exchange: ObservedExchange) -> _Noted:
        return self._noted.setdefault(exchange, _Noted())

    def _note_event(
        self, exchange: ObservedExchange, name: str, seconds: float, failure: Failure | None, about: dict[str, Any]
    ) -> None:
        attributes = {**about, "seconds": seconds}
        if failure is not None:
            attributes["error.type"] = failure.code
        self._note(exchange).events.append((name, time.time_ns(), attributes))

    def _url(self, exchange: ObservedExchange) -> dict[str, str]:
        # Without its query, in which callers may have put a secret.
        if exchange.upstream_path is None:
            return {"url.path": exchange.path.partition(b"?")[0].decode("latin-1")}
        return {"url.full": self._origin + exchange.upstream_path[1].partition(b"?")[0].decode("latin-1")}


def _describe(span: Span, exchange: ObservedExchange, status: int, noted: _Noted | None) -> None:
    """Add to the span what is known at the end of its exchange."""
    if (invocation := request_context(exchange).get(INVOCATION_ID)) is not None:
        span.set_attribute("restate.invocation.id", invocation)
    if status:
        span.set_attribute("http.response.status_code", status)
    if exchange.attempts > 1:
        span.set_attribute("http.request.resend_count", exchange.attempts - 1)
    reset = noted.reset if noted is not None else None
    if reset is not None:
        span.set_attribute("cloudrun_sidecar.reset_by", reset[0])
    for name, at, attributes in noted.events if noted is not None else ():
        span.add_event(name, attributes, at)
    error = exchange.failure_code or (bounded_code_name(reset[1]) if reset is not None else "")
    if not error and status >= 400:
        error = str(status)
    if error:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)


def _parent(fields: Fields) -> Context:
    """Return the context with the client's span (W3C Trace Context); an empty one if there is none."""
    traceparents = [value.decode("latin-1") for name, value, _ in fields if name == b"traceparent"]
    if len(traceparents) != 1:
        return Context()
    states = [value.decode("latin-1") for name, value, _ in fields if name == b"tracestate"]
    return _propagator.extract({"traceparent": traceparents[0], "tracestate": ",".join(states)}, Context())


class _Problems(logging.Handler):
    """Makes log lines of what OpenTelemetry logs; of lines that repeat, one a minute."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._throttle = Throttle(_QUIET_SECONDS)
        self._cause = ""

    def emit(self, record: logging.LogRecord) -> None:
        exporting = record.name.startswith("opentelemetry.exporter")
        whole = exporting or not record.args or record.name == _QUEUE
        text = record.getMessage() if whole else _about_settings(record)
        text = one_line(_QUERY.sub(f"?{NOT_SHOWN}", text), _MOST_CHARACTERS)
        if exporting and record.levelno < logging.ERROR:
            self._cause = text  # It will be tried again.
            return
        added = self._throttle.fields((record.name, str(record.msg)), time.monotonic())
        if added is None:
            return
        if exporting:
            added["cause"], self._cause = self._cause or None, ""
        what = "spans are not exported" if exporting else "OpenTelemetry has a problem"
        exc_info = (record.exc_info or None) if whole else None
        _log.warning(what, reason=text, library=record.name, exc_info=exc_info, **added)


def _about_settings(record: logging.LogRecord) -> str:
    """Return the text of a line about settings, without values: these may be credentials (OTEL_EXPORTER_OTLP_HEADERS).

    Of its arguments, only names of variables and numbers are shown; an exception would have the value, too.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    shown = [one if isinstance(one, int | float) or str(one).startswith("OTEL_") else NOT_SHOWN for one in arguments]
    with contextlib.suppress(TypeError, ValueError):
        return str(record.msg) % tuple(shown)
    return str(record.msg)
