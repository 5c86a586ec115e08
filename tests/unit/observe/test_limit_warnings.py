"""Refusals for which a setting is the limit are warnings that name it; others are lines at the level `debug`."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from proxy.errors import RouteNotFound, TokenTimeout, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.observe.access_log import AccessLog
from proxy.observe.explanation import remedy_of_code
from proxy.observe.warnings import Warnings
from proxy.routes import AllowLists, OpenRoutes, Origin, Route
from proxy.tokens.model import Token, TokenKey
from tests.support.data_path import World
from tests.support.observed import Observed
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import begun


def test_a_request_larger_than_max_field_section_is_a_warning_once_a_second() -> None:
    now = 0.0
    warnings = Warnings(monotonic=lambda: now)
    with capture_logs() as log:
        for stream in (1, 3):
            warnings.request_refused("section-too-large", {"protocol": "HTTP/2", "stream": stream})
        now = 1.5
        warnings.request_refused("section-too-large", {"protocol": "HTTP/2", "stream": 5})
        warnings.request_refused("field", {"protocol": "HTTP/2", "stream": 7})
    first, second, other = log
    assert (first["event"], first["log_level"], first["stream"]) == ("request refused", "warning", 1)
    assert "larger than max_field_section" in first["remedy"]
    assert (second["stream"], second["repeats_dropped"]) == (5, 1)
    assert (other["log_level"], "remedy" in other) == ("debug", False)


def test_clients_that_name_ever_new_hosts_do_not_fill_the_log() -> None:
    now = 0.0
    warnings = Warnings(monotonic=lambda: now)
    allowed = OpenRoutes(AllowLists(("*-123456789012.europe-west1.run.app",)))

    def happen(number: int) -> None:
        route = allowed.route(f"s{number}-123456789012.europe-west1.run.app", ())
        origin, observer, failure = str(route.origin), warnings.route(route), UpstreamConnectFailed("refused")
        observer.caller_token_dropped(Observed())
        observer.local_reply(Observed(status=503), failure)
        observer.aborted(Observed(status=200), failure)
        observer.error_response(Observed(status=403), [], b"")
        asked = TokenKey.for_route(route)
        warnings.mint_failed(asked, TokenTimeout("late"), 1.0, True)
        warnings.minted(Token(key=asked, authorization=b"", expires_at=0.0, principal=None), 1.0, True)
        warnings.upstream_not_connected(origin, failure)
        warnings.upstream_going_away(origin, 11, b"")

    with capture_logs() as log:
        for number in range(1_000):
            happen(number)
        first = len(log)
        now = 1.0
        for number in range(1_000):
            happen(number)
    assert first <= 3 * 51
    assert len(log) <= 2 * first
    assert sum(line.get("repeats_dropped", 0) for line in log) == 8_000 - first
    names = {"request failed", "token mint failed", "token minted", "upstream not connected", "upstream said GOAWAY"}
    assert names <= {line["event"] for line in log}


def test_a_mint_that_fails_again_and_again_is_one_line_a_second() -> None:
    now = 0.0
    warnings = Warnings(monotonic=lambda: now)
    route = Route(name="greeter", origin=Origin("https", "greeter.run.app", 443))
    other = Route(name="orders", origin=Origin("https", "orders.run.app", 443))
    with capture_logs() as log:
        for each in (route, route, route, other):
            warnings.mint_failed(TokenKey.for_route(each), TokenTimeout("late"), 1.0, True)
        # The mint of an invocation is told beside that of a discovery.
        warnings.mint_failed(TokenKey.for_route(other), TokenTimeout("late"), 1.0, False)
        now = 1.0
        warnings.mint_failed(TokenKey.for_route(route), TokenTimeout("late"), 1.0, True)
    found = [(line["audience"], line["fresh"], line.get("repeats_dropped")) for line in log]
    greeter, orders = "https://greeter.run.app", "https://orders.run.app"
    assert found == [(greeter, True, None), (orders, True, None), (orders, False, None), (greeter, True, 2)]


def test_a_failed_mint_and_a_failed_connection_say_what_to_do_without_a_request() -> None:
    warnings = Warnings()
    with capture_logs() as log:
        warnings.mint_failed(
            TokenKey.for_route(Route(name="greeter", origin=Origin("https", "greeter.run.app", 443))),
            TokenTimeout("late"),
            1.0,
            False,
        )
        warnings.upstream_not_connected("https://greeter.run.app", UpstreamConnectFailed("refused", remedy="try again"))
    assert [line["remedy"] for line in log] == [remedy_of_code("token-timeout"), "Try again."]


def test_a_request_without_a_route_has_no_name_of_one_in_any_line() -> None:
    with capture_logs() as log:
        for observer in (Warnings().route(None), AccessLog().route(None)):
            assert observer is not None
            observer.local_reply(Observed(status=404), RouteNotFound("no route"))
            observer.ended(Observed(status=404), 404, 0.1)
    assert [(line["event"], line["route"]) for line in log] == [("request failed", None), ("exchange", None)]


@each_bare_engine
def test_the_content_of_a_local_reply_is_counted(make: EngineFactory) -> None:
    with World(make=make, access_log=True) as world, capture_logs() as log:
        client = world.client()
        stream = client.request("/nowhere/x", end=True)
        world.settle()
        content = client.streams[stream].content
    (line,) = [line for line in log if line["event"] == "exchange"]
    assert line["response_octets"] == len(content) > 0


@each_bare_engine
@pytest.mark.parametrize(
    ("fields", "interim", "setting"), [([(b"x", b"v" * 5_000)], 0, "max_field_section"), ([], 3, "max_interim_heads")]
)
def test_a_response_beyond_a_limit_is_a_warning_that_names_the_setting(
    make: EngineFactory, fields: list[tuple[bytes, bytes]], interim: int, setting: str
) -> None:
    limits = Limits(max_field_section_octets=4_000, max_interim_heads=2)
    with World(make=make, limits=limits) as world, capture_logs() as log:
        _, _, service, far = begun(world, end=True)
        for _ in range(interim):
            service.respond(far, 103)
        service.respond(far, fields=fields, end=True)
        world.settle()
    (line,) = [line for line in log if line["event"] == "request failed"]
    assert (line["log_level"], line["code"]) == ("warning", "upstream-reset")
    assert setting in line["remedy"]
