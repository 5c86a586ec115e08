from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy import __version__
from proxy.errors import Draining, Failure, Overloaded, TokenTimeout, UpstreamConnectFailed, all_failures
from proxy.observe.exposition import CONTENT_TYPE, Exposition
from proxy.observe.families import FAMILIES, PREFIX
from proxy.observe.health import RouteHealth
from proxy.observe.live import Queues, TokenState
from proxy.observe.metrics import Metrics
from proxy.observe.totals import AMBIENT
from proxy.routes import OTHER, UNMATCHED, Origin, Route
from proxy.tokens.model import Token, TokenKey
from tests.support.live import StillState, view_of
from tests.support.observed import Observed

EXCHANGE = Observed()
KINDS: Final = ("counter", "gauge", "histogram")
KEY = TokenKey(None, (), "https://greeter.run.app")


def route(name: str) -> Route:
    return Route(name=name, origin=Origin("https", "greeter.run.app", 443))


def rendered(metrics: Metrics, live: StillState | None = None, health: RouteHealth | None = None) -> str:
    return "".join(Exposition(view_of(metrics, live, health)).pieces({}))


def samples(metrics: Metrics, live: StillState | None = None, health: RouteHealth | None = None) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(rendered(metrics, live, health)):
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


def test_the_histogram_of_durations_reaches_the_longest_request_of_cloud_run() -> None:
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


def test_the_metrics_of_a_route_are_one_object() -> None:
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
def test_failures_are_counted_by_code(kind: type[Failure]) -> None:
    metrics = Metrics()
    failure = kind("a sentence")
    metrics.route(route("a")).local_reply(EXCHANGE, failure)
    metrics.route(route("a")).aborted(EXCHANGE, failure)
    metrics.mint_failed(KEY, failure, 0.1, False)
    told = samples(metrics)
    assert told[f"request_failures_total{{code={kind.code},route=a}}"] == 2
    assert told[f"token_mint_failures_total{{account=ambient,code={kind.code},source=}}"] == 1
    assert metrics.route(route("a")).failures == 2


def test_status_labels_are_bounded_for_any_response() -> None:
    metrics = Metrics()
    counted = metrics.route(route("a"))
    for number in range(1, 1001):
        counted.started(EXCHANGE)
        counted.ended(EXCHANGE, number, 0)
    told = samples(metrics)
    assert told["requests_total{route=a,status=other}"] == 500
    assert sum(name.startswith("requests_total") for name in told) == 501


def test_mints_are_counted_by_source_account_and_result_and_by_how_long_they_took() -> None:
    metrics = Metrics(credentials_kind=lambda: "metadata")
    metrics.mint_failed(KEY._replace(impersonate="i@p.com"), TokenTimeout("slow"), 5, False)
    metrics.minted(Token(KEY, b"Bearer x", 1.0, None), 0.2, False)
    metrics.minted(Token(KEY, b"Bearer x", 1.0, None, clock_ahead_seconds=12.5), 9, False)
    told = samples(metrics)
    assert told["token_mint_duration_seconds_bucket{account=ambient,le=0.25,result=success,source=metadata}"] == 1
    assert told["token_mint_duration_seconds_count{account=ambient,result=success,source=metadata}"] == 2
    assert told["clock_ahead_seconds{}"] == 12.5
    failed = "account=i@p.com,result=failure,source=metadata"
    assert told[f"token_mint_duration_seconds_count{{{failed}}}"] == 1
    assert told[f"token_mint_duration_seconds_sum{{{failed}}}"] == 5


def test_open_connections_and_all_opened_ones_are_counted() -> None:
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


def test_origins_of_named_routes_and_a_bounded_number_of_others_have_labels_and_the_rest_share_one() -> None:
    metrics = Metrics()
    named = [f"https://named{number}.example" for number in range(300)]
    for number in range(300):
        metrics.route(Route(name=f"n{number}", origin=Origin("https", f"named{number}.example", 443)))
    others = [f"https://other{number}.example" for number in range(300)]
    for origin in (*others, *named, *others):
        metrics.upstream_opened(origin, 100)
        metrics.response_refused(origin, 1, "a rule")
    told = samples(metrics)
    labels = [name for name in told if name.startswith("upstream_connections{")]
    assert len(labels) == 300 + 100 + 1
    assert told[f"upstream_connections{{origin={OTHER}}}"] == 400
    assert told[f"upstream_responses_refused_total{{origin={OTHER},reason=a rule}}"] == 600
    for origin in (*others, *others, *named):
        metrics.upstream_closed(origin)
    told = samples(metrics)
    assert {told[f"upstream_connections{{origin={origin}}}"] for origin in (*named, OTHER)} == {0}
    assert len([name for name in told if name.startswith("upstream_connections{")]) == 301


def test_hosts_without_a_label_add_none_to_what_is_counted_beyond_their_connections() -> None:
    metrics = Metrics()
    for number in range(1_000):
        origin = f"https://other{number}.example"
        metrics.upstream_not_connected(origin, UpstreamConnectFailed("refused"))
        metrics.upstream_opened(origin, 100)
        metrics.upstream_going_away(origin, 0, b"")
        metrics.response_refused(origin, 1, "a rule")
        metrics.upstream_closed(origin)
    for counter in (metrics.connect_failures, metrics.goaways, metrics.responses_refused):
        assert [(labels[0], count) for labels, count in counter.items()] == [(OTHER, 1_000)]


def test_open_routes_share_the_counters_of_one_label_and_add_none_for_deployments() -> None:
    metrics = Metrics()
    origin = Origin("https", "a.run.app", 443)
    ambient = Route(name="https://a.run.app", is_open=True, origin=origin)
    other = replace(ambient, impersonate="i@p.com")
    rest = Route(name="https://b.run.app", is_open=True, origin=Origin("https", "b.run.app", 443), shared_label=OTHER)
    assert metrics.route(ambient) is metrics.route(other)
    metrics.route(rest)
    for route in (ambient, other, rest):
        metrics.minted(replace(token(), key=TokenKey.for_route(route)), 1.0, False)
    assert not metrics.minted_at
    assert {account for _, account in metrics.mints} == {AMBIENT, "i@p.com"}
    assert set(metrics.routes) == {"https://a.run.app", OTHER}
    metrics.route_removed(other)
    assert set(metrics.routes) == {OTHER}


def test_refused_requests_are_counted_by_reason() -> None:
    metrics = Metrics()
    metrics.request_refused("host-differs", {"stream": 1})
    metrics.request_refused("host-differs", {"stream": 1})
    metrics.route(Route(name="a", origin=Origin("https", "a", 443)))
    metrics.response_refused("https://a", 1, "field")
    told = samples(metrics)
    assert told["requests_refused_total{reason=host-differs}"] == 2
    assert told["upstream_responses_refused_total{origin=https://a,reason=field}"] == 1


def test_connections_that_are_cut_off_are_counted_by_code() -> None:
    metrics = Metrics()
    for code in (0xB, 0xB, 0x1, 0xDEAD):
        metrics.downstream_cut_off("127.0.0.1", code, "a reason")
    told = samples(metrics)
    assert told["downstream_connections_cut_off_total{code=ENHANCE_YOUR_CALM}"] == 2
    assert told["downstream_connections_cut_off_total{code=PROTOCOL_ERROR}"] == 1


def test_two_sidecars_in_one_process_do_not_share_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.downstream_opened()
    assert samples(two)["downstream_connections{}"] == 0


def test_the_exposition_names_the_version_and_the_engine() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=")
    told = samples(Metrics("nghttp2 1.52.0"))
    assert told[f"build_info{{engine=nghttp2 1.52.0,version={__version__}}}"] == 1


def test_each_exposition_has_the_current_values() -> None:
    metrics = Metrics()
    metrics.downstream_opened()
    assert samples(metrics)["downstream_connections{}"] == 1
    metrics.downstream_closed()
    told = samples(metrics)
    assert (told["downstream_connections{}"], told["downstream_connections_opened_total{}"]) == (0, 1)


def everything() -> tuple[Metrics, StillState, RouteHealth]:
    """Metrics in which each family has a sample."""
    metrics = Metrics("nghttp2 1.52.0", credentials_kind=lambda: "metadata")
    health = RouteHealth(metrics)
    one = route("a")
    for observer in (metrics.route(one), health.route(one)):
        observer.started(EXCHANGE)
        observer.caller_token_dropped(EXCHANGE)
        observer.local_reply(EXCHANGE, TokenTimeout("slow"))
        observer.stream_reset(EXCHANGE, "upstream", 2)
        observer.measured(EXCHANGE, 1, 2, 0.1)
        observer.ended(EXCHANGE, 503, 0.2)
    metrics.minted(token(), 0.2, False)
    metrics.mint_failed(TokenKey.for_route(one), TokenTimeout("slow"), 5.0, False)
    metrics.upstream_opened(str(one.origin), 100)
    metrics.upstream_going_away(str(one.origin), 0, b"")
    metrics.upstream_not_connected(str(one.origin), UpstreamConnectFailed("refused"))
    metrics.response_refused(str(one.origin), 1, "field")
    metrics.caller_unverified("unsigned")
    metrics.connection_refused("unused")
    metrics.downstream_cut_off("127.0.0.1", 0xB, "a reason")
    metrics.request_refused("host-differs", {})
    return metrics, StillState([one], tokens={"a": TokenState("i@p.com", 1.0, 3601.0)}), health


def token() -> Token:
    key = TokenKey.for_route(route("a"))
    return Token(key=key, authorization=b"Bearer x", expires_at=3601.0, principal=None, clock_ahead_seconds=12.5)


def test_every_family_of_the_table_is_exposed_with_its_labels_and_no_other_is() -> None:
    exposed = {}
    for family in text_string_to_metric_families(rendered(*everything())):
        name = family.name.removeprefix(PREFIX) + ("_total" if family.type == "counter" else "")
        labels = {tuple(key for key in sample.labels if key != "le") for sample in family.samples}
        exposed[name] = (family.type, labels, family.documentation)
    assert exposed == {family.name: (family.kind, {family.labels}, family.meaning) for family in FAMILIES}


def test_the_page_has_the_table_of_metrics() -> None:
    readme = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", readme, re.MULTILINE)
    documented = {name: (kind, labels, text) for name, kind, labels, text in table if kind in KINDS}
    assert documented == {
        family.name: (family.kind, ", ".join(f"`{label}`" for label in family.labels), family.meaning)
        for family in FAMILIES
    }


def test_names_follow_the_rules_of_prometheus() -> None:
    """The rules of `promtool check metrics` (promlint), as far as they concern names, types and help texts."""
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name)
        assert family.meaning
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert not re.search(r"_(counter|gauge|histogram|summary|count|sum|bucket)(_|$)", family.name)
        assert not re.search(
            r"(^|_)(milliseconds?|ms|minutes?|hours?|days?|percent|kilobytes?|kib|mib|octets)(_|$)", family.name
        )
        if family.kind == "histogram":
            assert family.name.endswith("_seconds")
        assert not set(family.labels) & {"le", "quantile", "job", "instance"}
        for label in family.labels:
            assert re.fullmatch(r"[a-z][a-z_]*", label)


def test_octets_resets_and_the_time_to_the_first_octet_are_counted_by_route() -> None:
    metrics = Metrics()
    counted = metrics.route(route("a"))
    counted.measured(EXCHANGE, 10, 1 << 40, 0.02)
    counted.measured(EXCHANGE, 1, 1, -1.0)
    for by, code in (("downstream", 8), ("downstream", 8), ("upstream", 0xFFFF), ("upstream", 0x10000)):
        counted.stream_reset(EXCHANGE, by, code)
    counted.aborted(EXCHANGE, Draining("over"))
    counted.aborted(EXCHANGE, Overloaded("memory is short"))
    told = samples(metrics)
    assert told["request_bytes_total{route=a}"] == 11
    assert told["response_bytes_total{route=a}"] == (1 << 40) + 1
    assert told["time_to_first_octet_seconds_count{route=a}"] == 1
    assert told["stream_resets_total{by=downstream,code=CANCEL,route=a}"] == 2
    assert told["stream_resets_total{by=upstream,code=other,route=a}"] == 2
    assert told["stream_resets_total{by=sidecar,code=INTERNAL_ERROR,route=a}"] == 1
    assert told["stream_resets_total{by=sidecar,code=ENHANCE_YOUR_CALM,route=a}"] == 1


def test_expiry_and_last_mint_are_exposed_by_route() -> None:
    now = [1000.0]
    metrics = Metrics(clock=lambda: now[0])
    one, other = route("a"), Route(name="b", origin=Origin("https", "other.run.app", 443))
    unsigned = Route(name="c", origin=one.origin, signed=False)
    for each in (one, other, unsigned):
        metrics.route(each)
    metrics.minted(token(), 0.2, False)
    now[0] = 2000.0
    metrics.minted(token(), 0.2, False)
    told = samples(metrics, StillState([one, other, unsigned], tokens={"a": TokenState(None, None, 3601.0)}))
    assert told["token_expiry_timestamp_seconds{route=a}"] == 3601
    assert told["token_last_mint_timestamp_seconds{route=a}"] == 2000
    assert not {name for name in told if name.startswith("token_") and ("route=b" in name or "route=c" in name)}


def test_the_state_of_the_worker_is_exposed() -> None:
    live = StillState(
        [route("a"), route("b")], draining=True, queued_octets=7, queued_octets_limit=8, waiting=3, opening=2
    )
    live.waiting_clients, live.to_services, live.held_back = 2, 5, 9
    live.queues = Queues(4, 30, 20, Counter(a=12), Counter(b=3))
    metrics = Metrics()
    for each in live.known:
        metrics.route(each)
    told = samples(metrics, live)
    assert told["upstream_clients_waiting{origin=https://greeter.run.app}"] == 2
    assert told["upstream_queued_bytes{origin=https://greeter.run.app}"] == 5
    assert told["upstream_cancels_held_back{origin=https://greeter.run.app}"] == 9
    assert [told[f"route_queued_bytes{{route={name}}}"] for name in "ab"] == [12, 0]
    assert [told[f"requests_waiting{{route={name}}}"] for name in "ab"] == [0, 3]
    clients = ("downstream_connections_queued{}", "downstream_queued_bytes{}", "downstream_queued_bytes_largest{}")
    assert [told[name] for name in clients] == [4, 30, 20]
    assert (told["draining{}"], told["queued_bytes{}"], told["queued_bytes_limit{}"]) == (1, 7, 8)
    assert told["worker_queued_bytes_largest{}"] == 7
    assert told["upstream_requests_waiting{origin=https://greeter.run.app}"] == 3
    assert told["upstream_connections_opening{origin=https://greeter.run.app}"] == 2


def test_counters_of_an_origin_and_an_account_are_removed_with_their_last_route() -> None:
    metrics = Metrics()
    one = Route(name="a", origin=Origin("https", "a.run.app", 443), impersonate="i@p.com")
    same, moved = replace(one, name="b"), Route(name="b", origin=Origin("https", "b.run.app", 443))
    metrics.route(one)
    metrics.route(same)
    metrics.upstream_opened("https://a.run.app", 100)
    metrics.upstream_going_away("https://a.run.app", 0, b"")
    metrics.mint_failed(TokenKey.for_route(one), TokenTimeout("slow"), 5.0, False)
    metrics.minted(replace(token(), key=TokenKey.for_route(one)), 1.0, False)
    metrics.route_removed(one)
    assert metrics.goaways
    assert metrics.mints
    assert metrics.minted_at
    metrics.route(moved)
    assert not metrics.goaways
    assert not metrics.mints
    assert not metrics.minted_at
    assert metrics.upstream_connections["https://a.run.app"].now == 1
    metrics.upstream_closed("https://a.run.app")
    assert not metrics.upstream_connections
    assert list(metrics.routes) == ["b"]
