"""Log lines on stderr, and metrics for Prometheus. No secret gets into either (`redact` is only the net below).

Lines are rendered by structlog alone. What libraries say through `logging` at WARNING and above becomes such lines too;
below that nothing of theirs is let through, for google-auth and others log requests and answers at DEBUG.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from itertools import accumulate
from typing import Any, Final, Literal

import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from structlog.typing import Processor

from proxy import __version__
from proxy.errors import leaves

__all__ = ["Metrics", "RouteMetrics", "configure_logging", "redact"]

REDACTED: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(
    r"(?:^|[_.-])(?:authorization|token|jwt|assertion|password|secret|private[_-]?key|api[_-]?key|cookie)$",
    re.IGNORECASE,
)

# A bearer credential (but not the challenge in a `www-authenticate`), a JWT (a base64url JSON object before the first
# dot), a Google access token, a private key.
_SECRET_TEXT: Final = re.compile(
    r"(?i:\bbearer(?:\s|%20)+(?!(?:realm|scope|error\w*)=))[^\s\"',;]+"
    r"|e(?:yJ|yA|wo|w0|wk)[A-Za-z0-9_-]{9,}\.[A-Za-z0-9_-]{9,}(?:\.[A-Za-z0-9_-]*)?"
    r"|\bya29\.[A-Za-z0-9_.-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)


# ---- log lines


def configure_logging(
    level: Literal["debug", "info", "warning", "error"], log_format: Literal["auto", "console", "json"]
) -> None:
    """Send lines of `level` and above to stderr, for the whole process; may be called again.

    Loggers are made by `structlog.get_logger("the room")`, before or after; the room's name stands in their lines.

    `json` gives one object a line, with `time` (ISO 8601, UTC), `severity` and `message` as Cloud Logging reads them;
    `console` is for people, in colour on a terminal only; `auto` is `console` on a terminal and `json` elsewhere.
    """
    terminal = sys.stderr.isatty()
    console = log_format == "console" or (log_format == "auto" and terminal)
    rendering: list[Processor] = [_for_cloud_logging, structlog.processors.JSONRenderer()]
    if console:
        # Plain tracebacks: the pretty ones that structlog takes where it finds `rich` print local variables.
        plain = structlog.dev.plain_traceback
        rendering = [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    structlog.configure(
        processors=[
            _name_room,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Forward) for handler in root.handlers):
        root.addHandler(_Forward(logging.WARNING))


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the event without values of telling keys and without anything that looks like a credential.

    Values that are no plain data are replaced by their masked `repr`, so that no renderer sees more than this did.
    """
    for key, value in event.items():
        event[key] = REDACTED if _SECRET_KEY.search(key) else _masked(value)
    return event


def _masked(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _SECRET_TEXT.sub(REDACTED, value)
    if isinstance(value, bytes | bytearray):
        return _SECRET_TEXT.sub(REDACTED, value.decode("utf-8", "backslashreplace"))
    if isinstance(value, Mapping):
        return {str(key): REDACTED if _SECRET_KEY.search(str(key)) else _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item) for item in value]
    return _SECRET_TEXT.sub(REDACTED, repr(value))


def _name_room(written_to: _Stderr, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if written_to.room:
        event["room"] = written_to.room
    return event


def _for_cloud_logging(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the fields as Cloud Logging reads them, those that every line has first."""
    level = str(event.pop("level", "info"))
    head = {
        "time": event.pop("timestamp", ""),
        "severity": level.upper(),
        "message": event.pop("event", ""),
    }
    return {**head, **event, **head}


class _Stderr:
    """Where structlog writes: whatever stderr is at the time of the line."""

    def __init__(self, room: str = "") -> None:
        self.room = room

    def msg(self, line: str) -> None:
        # A reader of stderr that went away must not take the exchange down that had something to say.
        with contextlib.suppress(OSError):
            sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = msg


class _Forward(logging.Handler):
    """Makes lines of what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        log = structlog.get_logger()
        log.log(level, record.getMessage(), library=record.name, exc_info=record.exc_info or None)


# ---- metrics

# From a cached answer to Cloud Run's longest request.
_REQUEST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_MINT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_CODES: Final = frozenset(kind.code for kind in leaves())


class _Durations:
    """How long things took: a histogram of seconds, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


class RouteMetrics:
    """What happened on one route. Every call is a few additions: it is made for the data path.

    Plain integers rather than prometheus_client's own objects, which lock: 0.2 µs an exchange instead of 1.6
    (`started` and `ended`, CPython 3.11), where the whole exchange is to cost some 20.
    """

    __slots__ = ("_durations", "_failures", "_statuses", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        """Exchanges that have begun and not ended."""
        self._statuses: dict[int | None, int] = {}
        self._failures: Counter[str] = Counter()
        self._durations = _Durations(_REQUEST_BUCKETS)

    def started(self) -> None:
        """Count an exchange in; `ended` follows exactly once."""
        self.in_flight += 1

    def ended(self, status: int | None, seconds: float) -> None:
        """Count an exchange out: the status of its head, or None where it was reset without one."""
        self.in_flight -= 1
        statuses = self._statuses
        statuses[status] = statuses.get(status, 0) + 1
        self._durations.observe(seconds)

    def failed(self, code: str) -> None:
        """Count a failure by its `Failure.code`; any other word counts as `other`."""
        self._failures[code if code in _CODES else "other"] += 1

    @property
    def total(self) -> int:
        """Exchanges that have ended."""
        return sum(self._statuses.values())

    @property
    def failures(self) -> int:
        """Failures of the sidecar's own making, of all codes."""
        return self._failures.total()

    def add_to(
        self,
        name: str,
        requests: CounterMetricFamily,
        durations: HistogramMetricFamily,
        failures: CounterMetricFamily,
    ) -> None:
        """Add the samples of this route, whose label is `name`."""
        for status, count in self._by_label().items():
            requests.add_metric([name, status], count)
        for code, count in self._failures.items():
            failures.add_metric([name, code], count)
        self._durations.add_to(durations, [name])

    def _by_label(self) -> Counter[str]:
        """Return exchanges by status: a three-digit number, `reset`, or `other`, so that the labels are bounded."""
        found: Counter[str] = Counter()
        for status, count in self._statuses.items():
            label = "reset" if status is None else str(status) if 100 <= status <= 599 else "other"
            found[label] += count
        return found


class Metrics(Collector):
    """Everything that is counted in this process. It is used from the thread of the event loop alone.

    Labels are routes and origins of the settings, statuses, and codes of failures: there are never many.
    """

    def __init__(self) -> None:
        self._routes: dict[str, RouteMetrics] = {}
        self._mints = _Durations(_MINT_BUCKETS)
        self._mint_failures: Counter[str] = Counter()
        self._upstream_open: defaultdict[str, int] = defaultdict(int)
        self._upstream_opened: Counter[str] = Counter()
        self._downstream_open = 0
        self._downstream_opened = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def route(self, name: str) -> RouteMetrics:
        """Return the counters of a route, always the same object for a name. Ask once, not for every exchange."""
        return self._routes.setdefault(name, RouteMetrics())

    def token_minted(self, seconds: float) -> None:
        """Count a token, and how long its minting took."""
        self._mints.observe(seconds)

    def mint_failed(self, code: str) -> None:
        """Count a mint that gave no token, by the `Failure.code` of its reason."""
        self._mint_failures[code if code in _CODES else "other"] += 1

    def upstream_opened(self, origin: str) -> None:
        """Count a connection to `origin` in; `upstream_closed` follows exactly once."""
        self._upstream_open[origin] += 1
        self._upstream_opened[origin] += 1

    def upstream_closed(self, origin: str) -> None:
        """Count a connection to `origin` out."""
        self._upstream_open[origin] -= 1

    def downstream_opened(self) -> None:
        """Count a client's connection in; `downstream_closed` follows exactly once."""
        self._downstream_open += 1
        self._downstream_opened += 1

    def downstream_closed(self) -> None:
        """Count a client's connection out."""
        self._downstream_open -= 1

    def exposition(self) -> tuple[bytes, str]:
        """Return body and content type of what Prometheus scrapes."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics, as prometheus_client asks for them."""
        info = GaugeMetricFamily(_name("build_info"), "The version that runs", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield from self._collect_routes()
        yield from self._collect_mints()
        yield from self._collect_connections()

    def _collect_routes(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(_name("requests_in_flight"), "Exchanges not ended", labels=["route"])
        requests = CounterMetricFamily(
            _name("requests"), "Exchanges ended, by status of the answer", labels=["route", "status"]
        )
        durations = HistogramMetricFamily(
            _name("request_duration_seconds"), "From the head of a request to the end of its exchange", labels=["route"]
        )
        failures = CounterMetricFamily(
            _name("request_failures"), "Failures of the sidecar or of its way upstream", labels=["route", "code"]
        )
        for name, route in self._routes.items():
            in_flight.add_metric([name], route.in_flight)
            route.add_to(name, requests, durations, failures)
        yield from (in_flight, requests, durations, failures)

    def _collect_mints(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(_name("token_mint_duration_seconds"), "Minting of the ID tokens received")
        self._mints.add_to(durations, [])
        failures = CounterMetricFamily(_name("token_mint_failures"), "Mints without a token", labels=["code"])
        for code, count in self._mint_failures.items():
            failures.add_metric([code], count)
        yield from (durations, failures)

    def _collect_connections(self) -> Iterator[Metric]:
        upstream = GaugeMetricFamily(_name("upstream_connections"), "Connections to services", labels=["origin"])
        opened = CounterMetricFamily(
            _name("upstream_connections_opened"), "Connections to services ever opened", labels=["origin"]
        )
        for origin, count in self._upstream_opened.items():
            upstream.add_metric([origin], self._upstream_open[origin])
            opened.add_metric([origin], count)
        yield from (upstream, opened)
        yield GaugeMetricFamily(_name("downstream_connections"), "Connections of clients", self._downstream_open)
        name = _name("downstream_connections_opened")
        yield CounterMetricFamily(name, "Connections of clients ever opened", self._downstream_opened)


def _name(what: str) -> str:
    return f"cloudrun_sidecar_{what}"
