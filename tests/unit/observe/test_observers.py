"""Observers told by the whole data path, in memory: each event once, in order, and a defect harms nothing else."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import structlog

from proxy.errors import Failure, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, Fields
from proxy.observe.exchange import ExchangeObserver, ObservedExchange, RouteObservers
from proxy.observe.observer import (
    DownstreamObserver,
    MintObserver,
    ObservedKey,
    ObservedToken,
    Observer,
    Observers,
    SettingsObserver,
    UpstreamObserver,
)
from proxy.observe.warnings import Warnings
from proxy.routes import Route
from proxy.tokens.model import Token, TokenKey
from tests.support.data_path import World
from tests.support.observed import Observed
from tests.support.peers.engines import each_bare_engine


class Recorder(ExchangeObserver):
    """Writes down every event of one route."""

    def __init__(self, name: str, told: list[tuple[Any, ...]]) -> None:
        self.name = name
        self.told = told

    def started(self, exchange: ObservedExchange) -> None:
        self.told.append((self.name, "started", exchange.path))

    def caller_token_dropped(self, exchange: ObservedExchange) -> None:
        self.told.append((self.name, "caller token dropped"))

    def dispatched(self, exchange: ObservedExchange) -> None:
        self.told.append((self.name, "dispatched", exchange.attempts, exchange.upstream_path))

    def response_head(self, exchange: ObservedExchange, fields: Fields) -> None:
        self.told.append((self.name, "response head", exchange.status))

    def error_response(self, exchange: ObservedExchange, fields: Fields, content: bytes) -> None:
        self.told.append((self.name, "error response", exchange.status, content))

    def local_reply(self, exchange: ObservedExchange, failure: Failure) -> None:
        self.told.append((self.name, "local reply", exchange.status, failure.code))

    def aborted(self, exchange: ObservedExchange, failure: Failure) -> None:
        self.told.append((self.name, "aborted", exchange.status, failure.code))

    def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
        self.told.append((self.name, "ended", status, seconds))


class Recording(Observer):
    """Writes down everything."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def route(self, route: Route | None) -> ExchangeObserver:
        return Recorder("none" if route is None else route.name, self.told)

    def route_removed(self, route: Route) -> None:
        self.told.append((route.name, "removed"))

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        self.told.append((origin, "opened"))

    def upstream_going_away(self, origin: str, code: int, debug: bytes) -> None:
        self.told.append((origin, "going away", code, debug))

    def upstream_closed(self, origin: str) -> None:
        self.told.append((origin, "closed"))


ORIGIN = "https://svc.example"


@each_bare_engine
def test_observers_are_told_of_an_exchange_from_start_to_end(make: EngineFactory) -> None:
    observer = Recording()
    with World(make=make, observers=[observer]) as world:
        client = world.client()
        own_token = [(b"x-serverless-authorization", b"Bearer own")]
        client.request("/svc/x", fields=own_token, end=True)
        world.settle()
        world.loop.advance(2.0)
        service, stream = world.latest("/x")
        service.respond(stream, 200, end=True)
        world.settle()
        world.assert_at_rest()
    assert observer.told == [
        ("svc", "started", b"/svc/x"),
        ("svc", "caller token dropped"),
        (ORIGIN, "opened"),
        ("svc", "dispatched", 1, (b":path", b"/x", False)),
        ("svc", "response head", 200),
        ("svc", "ended", 200, 2.0),
        (ORIGIN, "closed"),
    ]


@each_bare_engine
@pytest.mark.parametrize("content", [b"no such thing", b""])
@pytest.mark.parametrize("status", [302, 404, 502, 503])
def test_observers_get_the_beginning_of_an_error_response_that_explains_itself(
    make: EngineFactory, status: int, content: bytes
) -> None:
    observer = Recording()
    with World(make=make, observers=[observer]) as world, structlog.testing.capture_logs():
        world.client().request("/svc/x", end=True)
        world.settle()
        service, stream = world.latest("/x")
        service.respond(stream, status, end=not content)
        if content:
            service.engine.send_data(stream, content, end_stream=True)
        world.settle()
    told = [event[1:] for event in observer.told if event[0] == "svc"][2:]
    assert told == [
        ("response head", status),
        ("error response", status, content if status >= 500 else b""),
        ("ended", status, 0.0),
    ]


@each_bare_engine
def test_observers_are_told_of_a_request_without_a_route(make: EngineFactory) -> None:
    observer = Recording()
    with World(make=make, observers=[observer]) as world, structlog.testing.capture_logs():
        world.client().request("/nowhere", end=True)
        world.settle()
    assert observer.told == [
        ("none", "started", b"/nowhere"),
        ("none", "local reply", 404, "route-not-found"),
        ("none", "ended", 404, 0.0),
    ]


@each_bare_engine
def test_observers_are_told_of_each_attempt(make: EngineFactory) -> None:
    observer = Recording()
    with World(make=make, observers=[observer]) as world:
        world.client().request("/svc/x", end=True)
        world.settle()
        service, stream = world.latest("/x")
        service.engine.reset(stream, ErrorCode.REFUSED_STREAM)
        world.settle()
        service, stream = world.latest("/x")
        service.respond(stream, 200, end=True)
        world.settle()
    attempts = [event[2] for event in observer.told if event[1] == "dispatched"]
    assert attempts == [1, 2]
    assert [event[1] for event in observer.told].count("started") == 1
    assert [event[1] for event in observer.told].count("ended") == 1


@each_bare_engine
def test_a_lost_connection_is_reported_by_each_of_its_exchanges(make: EngineFactory) -> None:
    observer = Recording()
    with World(make=make, observers=[observer]) as world, structlog.testing.capture_logs():
        client = world.client()
        client.request("/svc/early")
        client.request("/svc/late")
        world.settle()
        service, late = world.latest("/late")
        service.respond(late, 200)
        world.settle()
        world.wire(service).lose()
        world.settle()
    failures = [event[1:] for event in observer.told if event[1] in ("local reply", "aborted", "closed")]
    assert sorted(failures) == [
        ("aborted", 200, "upstream-connection-lost"),
        ("closed",),
        ("local reply", 503, "upstream-connection-lost"),
    ]


class Measurements(Observer):
    """Writes down what is measured, and resets."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def route(self, route: Route | None) -> ExchangeObserver:
        told = self.told

        class Measuring(ExchangeObserver):
            def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
                told.append(("reset", by, code))

            def measured(
                self, exchange: ObservedExchange, request_octets: int, response_octets: int, head_seconds: float
            ) -> None:
                assert (exchange.request_octets, exchange.response_octets) == (request_octets, response_octets)
                told.append(("measured", request_octets, response_octets, head_seconds))

        return Measuring()


@each_bare_engine
def test_octets_and_the_time_to_the_first_octet_are_measured(make: EngineFactory) -> None:
    observer = Measurements()
    with World(make=make, observers=[observer]) as world:
        client = world.client()
        request = client.request("/svc/x")
        client.engine.send_data(request, b"12345", end_stream=True)
        world.settle()
        world.loop.advance(2.0)
        service, stream = world.latest("/x")
        service.respond(stream, 200)
        world.settle()
        world.loop.advance(3.0)
        service.engine.send_data(stream, b"123", end_stream=False)
        service.engine.send_data(stream, b"4567", end_stream=True)
        world.settle()
    assert observer.told == [("measured", 5, 7, 2.0)]


@each_bare_engine
def test_resets_are_reported_with_their_side(make: EngineFactory) -> None:
    observer = Measurements()
    with World(make=make, observers=[observer]) as world:
        client = world.client()
        cancelled = client.request("/svc/cancelled")
        client.request("/svc/reset")
        world.settle()
        client.engine.reset(cancelled, ErrorCode.CANCEL)
        service, stream = world.latest("/reset")
        service.engine.reset(stream, ErrorCode.ENHANCE_YOUR_CALM)
        world.settle()
    assert sorted(observer.told) == [
        ("measured", 0, 0, -1.0),
        ("measured", 0, 0, -1.0),
        ("reset", "downstream", ErrorCode.CANCEL),
        ("reset", "upstream", ErrorCode.ENHANCE_YOUR_CALM),
    ]


@each_bare_engine
@pytest.mark.parametrize("code", [ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.NO_ERROR])
def test_goaway_is_reported_with_its_code(make: EngineFactory, code: ErrorCode) -> None:
    observer = Recording()
    with World(make=make, observers=[observer]) as world, structlog.testing.capture_logs() as lines:
        world.client().request("/svc/x", end=True)
        world.settle()
        service, stream = world.latest("/x")
        service.engine.go_away(code, b"calm")
        service.respond(stream, 200, end=True)
        world.settle()
    assert (ORIGIN, "going away", code, b"calm") in observer.told
    levels = [line["log_level"] for line in lines if line["event"] == "upstream said GOAWAY"]
    assert levels == ["warning" if code else "debug"]


class Defective(ExchangeObserver):
    """Raises at every event."""

    def _raise(self, *_: object) -> None:
        raise ZeroDivisionError

    started = dispatched = response_head = error_response = local_reply = aborted = measured = ended = _raise  # type: ignore[assignment]
    caller_token_dropped = stream_reset = _raise  # type: ignore[assignment]


class AllDefective(Observer):
    def route(self, route: Route | None) -> ExchangeObserver:
        return Defective()

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        raise ZeroDivisionError


@each_bare_engine
def test_a_defect_in_an_observer_is_logged_and_harms_neither_exchanges_nor_other_observers(make: EngineFactory) -> None:
    after = Recording()
    with (
        World(make=make, observers=[AllDefective(), after]) as world,
        structlog.testing.capture_logs() as log,
    ):
        client = world.client()
        one = client.request("/svc/x", end=True)
        other = client.request("/nowhere", end=True)
        world.settle()
        service, stream = world.latest("/x")
        service.respond(stream, 503, end=True)
        world.settle()
        assert client.streams[one].status == 503
        assert client.streams[other].status == 404
        world.assert_at_rest()
        assert world.metrics.routes["svc"].total == 1
    assert ("svc", "ended", 503, 0.0) in after.told
    assert (ORIGIN, "opened") in after.told
    defects = [line for line in log if line["event"] == "internal error in an observer"]
    assert {line["observer"] for line in defects} == {"Defective", "AllDefective"}


def test_observers_are_called_only_for_the_events_that_they_override() -> None:
    told: list[str] = []

    class Ends(ExchangeObserver):
        def ended(self, exchange: ObservedExchange, status: int, seconds: float) -> None:
            told.append("ended")

    class Starts(ExchangeObserver):
        def started(self, exchange: ObservedExchange) -> None:
            told.append("started")

    observers = RouteObservers([Ends(), Starts(), ExchangeObserver()])
    observers.started(Observed())
    observers.response_head(Observed(), [])
    observers.ended(Observed(), 200, 0.0)
    assert told == ["started", "ended"]


def test_several_observers_are_called_in_their_order() -> None:
    class Connections(Observer):
        def __init__(self) -> None:
            self.opened = 0

        def downstream_opened(self) -> None:
            self.opened += 1

    recording, connections = Recording(), Connections()
    observers = Observers([connections, recording])
    observers.downstream_opened()
    observers.exchanges(None).started(Observed(path=b"/x"))
    assert connections.opened == 1
    assert recording.told == [("none", "started", b"/x")]


def test_every_observer_is_told_of_mints() -> None:
    class Mints(Observer):
        def __init__(self) -> None:
            self.told: list[object] = []

        def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
            self.told.append((token.key.audience, token.principal, seconds, uncached))

        def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
            self.told.append((key.audience, failure.code, seconds, uncached))

    mints = Mints()
    observers = Observers([Warnings(), mints])
    key = TokenKey(None, (), "https://svc.example")
    with structlog.testing.capture_logs() as log:
        observers.minted(Token(key, b"Bearer secret", 1_900_000_000.0, "a@b.com"), 0.5, True)
        observers.mint_failed(key, UpstreamConnectFailed("refused"), 1.5, False)
    assert mints.told == [
        ("https://svc.example", "a@b.com", 0.5, True),
        ("https://svc.example", "upstream-connect-failed", 1.5, False),
    ]
    assert [line["event"] for line in log] == ["token minted", "token mint failed"]
    assert "secret" not in str(log)


def test_every_event_is_told_with_what_it_is_about() -> None:
    told: list[tuple[object, ...]] = []

    class Everything(Observer):
        def __getattribute__(self, event: str) -> Any:
            return lambda *about: told.append((event, *about))

    observers = Observers([Everything()])
    kinds = (MintObserver, UpstreamObserver, DownstreamObserver, SettingsObserver)
    events = [event for kind in kinds for event in vars(kind) if not event.startswith("_")]
    for event in (*events, "route_removed"):
        about = range(len(inspect.signature(getattr(Observer, event)).parameters) - 1)
        getattr(observers, event)(*about)
        assert told.pop() == (event, *about)
    assert not told
