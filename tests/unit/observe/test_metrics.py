from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy import __version__
from proxy.errors import Failure, all_failures
from proxy.observe.exposition import Exposition
from proxy.observe.metrics import Metrics
from proxy.routes import UNMATCHED, Origin, Route
from proxy.tokens.model import Token, TokenKey
from tests.support.observed import Observed

EXCHANGE = Observed()
KEY = TokenKey(None, (), "https://greeter.run.app")


def route(name: str) -> Route:
    return Route(name=name, origin=Origin("https", "greeter.run.app", 443))


def samples(metrics: Metrics) -> dict[str, float]:
    body, _ = Exposition(metrics).render()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('cloudrun_sidecar_')}{{{labels}}}"] = sample.value
    return found


def test_exchanges_are_counted_in_and_out_by_route_and_status() -> None:
    metrics = Metrics()
    greeter = metrics.route(route("greeter"))
    for _ in range(3):
        greeter.started(EXCHANGE)
    greeter.ended(EXCHANGE, 200, 0.02)
    greeter.ended(EXCHANGE, 0, 40)
    told = samples(metrics)
    assert told["requests_in_flight{route=greeter}"] == 1
    assert told["requests_total{route=greeter,status=200}"] == 1
    assert told["requests_total{route=greeter,status=reset}"] == 1
    assert (greeter.in_flight, greeter.total, greeter.failures) == (1, 2, 0)


def test_durations_are_a_histogram_up_to_the_longest_request_of_cloud_run() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.02, 3600, 4000):
        metrics.route(route("a")).started(EXCHANGE)
        metrics.route(route("a")).ended(EXCHANGE, 200, seconds)
    told = samples(metrics)
    name = "request_duration_seconds"
    assert told[f"{name}_bucket{{le=0.005,route=a}}"] == 2
    assert told[f"{name}_bucket{{le=0.025,route=a}}"] == 3
    assert told[f"{name}_bucket{{le=3600.0,route=a}}"] == 4
    assert told[f"{name}_bucket{{le=+Inf,route=a}}"] == told[f"{name}_count{{route=a}}"] == 5
    assert told[f"{name}_sum{{route=a}}"] == pytest.approx(7600.026)


def test_a_route_is_asked_for_by_name_and_is_always_the_same() -> None:
    metrics = Metrics()
    assert metrics.route(route("a")) is metrics.route(route("a"))
    assert metrics.route(route("a")) is not metrics.route(route("b"))
    metrics.route(route("")).started(EXCHANGE)
    metrics.route(None).started(EXCHANGE)
    told = samples(metrics)
    assert told["requests_in_flight{route=/}"] == told[f"requests_in_flight{{route={UNMATCHED}}}"] == 1


def test_counters_of_a_removed_route_are_forgotten() -> None:
    metrics = Metrics()
    metrics.route(route("a")).started(EXCHANGE)
    metrics.route(route("b")).started(EXCHANGE)
    metrics.route_removed(route("a"))
    told = samples(metrics)
    assert "requests_in_flight{route=a}" not in told
    assert told["requests_in_flight{route=b}"] == 1


@pytest.mark.parametrize("kind", all_failures())
def test_failures_are_counted_by_every_code_there_is(kind: type[Failure]) -> None:
    metrics = Metrics()
    failure = kind("a sentence")
    metrics.route(route("a")).local_reply(EXCHANGE, failure)
    metrics.route(route("a")).aborted(EXCHANGE, failure)
    metrics.mint_failed(KEY, failure, 0.1, False)
    told = samples(metrics)
    assert told[f"request_failures_total{{code={kind.code},route=a}}"] == 2
    assert told[f"token_mint_failures_total{{code={kind.code}}}"] == 1
    assert metrics.route(route("a")).failures == 2


def test_labels_of_statuses_stay_bounded_whatever_upstreams_answer() -> None:
    metrics = Metrics()
    counted = metrics.route(route("a"))
    for number in range(1, 1001):
        counted.started(EXCHANGE)
        counted.ended(EXCHANGE, number, 0)
    told = samples(metrics)
    assert told["requests_total{route=a,status=other}"] == 500
    assert sum(name.startswith("requests_total") for name in told) == 501


def test_mints_are_counted_by_how_long_they_took() -> None:
    metrics = Metrics()
    metrics.minted(Token(KEY, b"Bearer x", 1.0, None), 0.2, False)
    metrics.minted(Token(KEY, b"Bearer x", 1.0, None, clock_ahead_seconds=12.5), 9, False)
    told = samples(metrics)
    assert told["token_mint_duration_seconds_bucket{le=0.25}"] == 1
    assert told["token_mint_duration_seconds_count{}"] == 2
    assert told["clock_ahead_seconds{}"] == 12.5


def test_connections_are_counted_open_and_ever_opened() -> None:
    metrics = Metrics()
    for origin in ("https://a", "https://a", "https://b"):
        metrics.upstream_opened(origin, 100)
    metrics.upstream_closed("https://a")
    metrics.downstream_opened()
    metrics.downstream_opened()
    metrics.downstream_closed()
    told = samples(metrics)
    assert told["upstream_connections{origin=https://a}"] == 1
    assert told["upstream_connections_opened_total{origin=https://a}"] == 2
    assert told["upstream_connections{origin=https://b}"] == 1
    assert told["downstream_connections{}"] == 1
    assert told["downstream_connections_opened_total{}"] == 2


def test_what_breaks_a_rule_of_http_is_counted_by_reason() -> None:
    metrics = Metrics()
    metrics.request_refused("host-differs", {"stream": 1})
    metrics.request_refused("host-differs", {"stream": 1})
    metrics.response_refused("https://a", 1, "field")
    told = samples(metrics)
    assert told["requests_refused_total{reason=host-differs}"] == 2
    assert told["upstream_responses_refused_total{origin=https://a,reason=field}"] == 1


def test_two_sidecars_in_one_process_do_not_share_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.downstream_opened()
    assert samples(two)["downstream_connections{}"] == 0


def test_the_exposition_names_the_version_and_the_process() -> None:
    body, content_type = Exposition(Metrics()).render()
    assert content_type.startswith("text/plain; version=")
    assert f'cloudrun_sidecar_build_info{{version="{__version__}"}} 1.0'.encode() in body
    assert b"process_resident_memory_bytes" in body


def test_asking_again_tells_what_happened_meanwhile_and_nothing_twice() -> None:
    metrics = Metrics()
    metrics.downstream_opened()
    assert samples(metrics)["downstream_connections{}"] == 1
    metrics.downstream_closed()
    told = samples(metrics)
    assert (told["downstream_connections{}"], told["downstream_connections_opened_total{}"]) == (0, 1)


def test_names_follow_the_rules_of_prometheus() -> None:
    metrics = Metrics()
    metrics.route(route("a")).started(EXCHANGE)
    body, _ = Exposition(metrics).render()
    for family in text_string_to_metric_families(body.decode()):
        if family.name.startswith("process_"):
            continue
        assert re.fullmatch(r"cloudrun_sidecar_[a-z_]+", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
