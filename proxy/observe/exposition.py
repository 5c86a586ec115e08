"""What is counted, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.observe.background import dropped_lines
from proxy.observe.counters import Durations
from proxy.observe.metrics import Metrics

__all__ = ["Exposition"]


class Exposition(Collector):
    """The metrics of one sidecar and its process, in a registry of their own."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """Return body and content type of what Prometheus scrapes."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics, as prometheus_client asks for them."""
        info = GaugeMetricFamily(_name("build_info"), "The version that runs", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield from self._routes()
        yield from self._mints()
        yield from self._connections()
        yield from self._refusals()
        name = _name("log_lines_dropped")
        yield CounterMetricFamily(name, "Log lines dropped because their reader did not keep up", dropped_lines())

    def _routes(self) -> Iterator[Metric]:
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
        caller_tokens = CounterMetricFamily(
            _name("caller_tokens_dropped"), "Requests that came with a Google token of their own", labels=["route"]
        )
        for name, route in self._metrics.routes.items():
            caller_tokens.add_metric([name], route.caller_tokens)
            in_flight.add_metric([name], route.in_flight)
            for status, count in route.by_status().items():
                requests.add_metric([name, status], count)
            for code, count in route.by_code().items():
                failures.add_metric([name, code], count)
            _add(durations, [name], route.durations)
        yield from (in_flight, requests, durations, failures, caller_tokens)

    def _mints(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily(_name("token_mint_duration_seconds"), "Minting of the ID tokens received")
        _add(durations, [], self._metrics.mints)
        yield GaugeMetricFamily(
            _name("clock_ahead_seconds"),
            "How far this machine's clock is ahead of Google's, as of the last mint; 0 if right or unknown",
            self._metrics.clock_ahead_seconds,
        )
        failures = CounterMetricFamily(_name("token_mint_failures"), "Mints without a token", labels=["code"])
        for code, count in self._metrics.mint_failures.items():
            failures.add_metric([code], count)
        yield from (durations, failures)

    def _refusals(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            _name("requests_refused"), "Requests without a route that broke a rule of HTTP", labels=["reason"]
        )
        for reason, count in self._metrics.requests_refused.items():
            requests.add_metric([reason], count)
        responses = CounterMetricFamily(
            _name("upstream_responses_refused"), "Responses that broke a rule of HTTP/2", labels=["origin", "reason"]
        )
        for (origin, reason), count in self._metrics.responses_refused.items():
            responses.add_metric([origin, reason], count)
        yield from (requests, responses)

    def _connections(self) -> Iterator[Metric]:
        upstream = GaugeMetricFamily(_name("upstream_connections"), "Connections to services", labels=["origin"])
        opened = CounterMetricFamily(
            _name("upstream_connections_opened"), "Connections to services ever opened", labels=["origin"]
        )
        for origin, connections in self._metrics.upstream_connections.items():
            upstream.add_metric([origin], connections.now)
            opened.add_metric([origin], connections.ever)
        yield from (upstream, opened)
        downstream = self._metrics.downstream_connections
        yield GaugeMetricFamily(_name("downstream_connections"), "Connections of clients", downstream.now)
        name = _name("downstream_connections_opened")
        yield CounterMetricFamily(name, "Connections of clients ever opened", downstream.ever)


def _add(family: HistogramMetricFamily, labels: list[str], durations: Durations) -> None:
    bounds = [*map(str, map(float, durations.bounds)), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(durations.counts), strict=True)), durations.seconds)


def _name(what: str) -> str:
    return f"cloudrun_sidecar_{what}"
