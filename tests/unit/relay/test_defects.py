"""An internal error in any place ends one exchange and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
import structlog
from hyperframe.frame import GoAwayFrame, HeadersFrame

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine, stream_of
from tests.unit.relay.stage import SMALL, WINDOW

Clock = Callable[[], float]


class Defect(Exception):
    """An internal error that a test causes."""


class Chance:
    """Random numbers that raise when told to; one is drawn for each local reply."""

    def __init__(self) -> None:
        self.fails = False

    def __call__(self) -> float:
        if self.fails:
            raise Defect
        return 0.0


@contextmanager
def no_log() -> Iterator[None]:
    """Have every line of the log fail."""

    def fail(*_: object) -> NoReturn:
        raise Defect

    # In place, as loggers may have been bound to the list before.
    processors = structlog.get_config()["processors"]
    kept = processors[:]
    processors[:] = [fail]
    try:
        yield
    finally:
        processors[:] = kept


def defects(world: World) -> list[type[BaseException]]:
    """Return what was reported and forget it, so that the world may be found in order."""
    found = [type(context["exception"]) for context in world.loop.uncaught]
    world.loop.uncaught.clear()
    return found


def minted(authorization: bytes) -> Callable[[Clock], TokenSource]:
    async def mint(key: TokenKey) -> Token:
        return Token(key=key, authorization=authorization, expires_at=1_800_003_600.0, principal=None)

    return lambda clock: TokenSource(mint, clock=clock)


@each_bare_engine
@pytest.mark.parametrize("from_client", [True, False])
def test_a_trailer_whose_name_has_no_letter_is_a_trailer(make: EngineFactory, from_client: bool) -> None:
    # RFC 9110, 5.6.2: digits and punctuation are enough for a name.
    digits = HeadersFrame(1, b"\x00\x01" + b"1" + b"\x01" + b"x", flags=["END_HEADERS", "END_STREAM"])
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x", end=not from_client)
        world.settle()
        service, far = world.latest("/x")
        service.respond(far)
        world.settle()
        (client if from_client else service).raw(digits)
        world.settle()
        seen = service.streams[far] if from_client else client.streams[stream]
        assert seen.trailers == [(b"1", b"x", False)]
        assert seen.ended
        world.assert_in_order()


@each_bare_engine
def test_a_request_that_cannot_be_answered_is_reset_and_the_others_continue(make: EngineFactory) -> None:
    random_fraction = Chance()
    with World(make=make, random_fraction=random_fraction) as world:
        client = world.client()
        neighbour = client.request("/svc/x")
        world.settle()
        random_fraction.fails = True
        lost = [client.request("/nowhere"), client.request("/nowhere", end=True)]
        client.engine.send_data(neighbour, b"content", end_stream=True)
        world.settle()
        assert [client.streams[stream].reset for stream in lost] == [ErrorCode.INTERNAL_ERROR] * 2
        assert defects(world) == [Defect] * 2
        service, far = world.latest("/x")
        assert service.streams[far].content == b"content"
        service.respond(far, end=True)
        world.settle()
        assert client.streams[neighbour].ended
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("answered", [True, False])
def test_a_broken_exchange_is_reset_on_both_sides_and_counted_once(make: EngineFactory, answered: bool) -> None:
    with World(make=make, client_limits=SMALL) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        client.acknowledging = False
        stream = client.request("/svc/x")
        world.settle()
        service, far = world.latest("/x")
        if answered:
            service.respond(far)
            service.engine.send_data(far, bytes(2 * WINDOW), end_stream=True)
            world.settle()
        served = stream_of(world.wire(client).protocol.engine, stream)
        assert served is not None
        exchange = served.receiver
        assert exchange is not None
        assert exchange.on_internal_error()
        assert not exchange.on_internal_error()
        world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert service.streams[far].reset == ErrorCode.INTERNAL_ERROR
        assert [line["code"] for line in log if line["event"] == "exchange aborted"] == ["internal"]
        assert world.metrics.routes["svc"].total == world.metrics.routes["svc"].failures == 1
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("path", ["/nowhere", "/svc/x"])
def test_an_internal_error_that_cannot_be_logged_leaves_nothing_behind(make: EngineFactory, path: str) -> None:
    random_fraction = Chance()
    with World(make=make, random_fraction=random_fraction, replay_octets=0) as world:
        client = world.client()
        stream = client.request(path)
        if path != "/nowhere":
            client.engine.send_data(stream, b"content", end_stream=False)
            world.settle()
            world.wire(world.latest("/x")[0]).lose()
        random_fraction.fails = True
        with no_log():
            world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert set(defects(world)) == {Defect}
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("how", ["go away", "refused", "lost"])
def test_an_internal_error_during_a_connection_loss_affects_its_stream_only(make: EngineFactory, how: str) -> None:
    random_fraction = Chance()
    with World(make=make, random_fraction=random_fraction, replay_octets=0) as world:
        client = world.client()
        streams = [client.request(f"/svc/{number}") for number in range(3)]
        for stream in streams:
            client.engine.send_data(stream, b"content", end_stream=False)
        world.settle()
        service, _ = world.latest("/0")
        random_fraction.fails = True
        if how == "go away":
            service.raw(GoAwayFrame(0, last_stream_id=0))
        elif how == "lost":
            world.wire(service).lose()
        else:
            for _, far in (world.latest(f"/{number}") for number in range(3)):
                service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert [client.streams[stream].reset for stream in streams] == [ErrorCode.INTERNAL_ERROR] * 3
        assert defects(world) == [Defect] * 3
        world.assert_at_rest()


@each_bare_engine
def test_a_response_that_raises_while_it_is_read_is_reset_on_both_sides(make: EngineFactory) -> None:
    with World(route("svc", signed=True), make=make, tokens=minted(b"Bearer minted")) as world:
        client = world.client()
        stream, neighbour = client.request("/svc/x"), client.request("/svc/y")
        world.settle()
        (service, far), (_, other) = world.latest("/x"), world.latest("/y")
        world.wall = None  # type: ignore[assignment]  # the clock breaks: to drop a token, the time must be known
        service.respond(far, 401)
        service.engine.send_data(far, b"content", end_stream=False)
        service.respond(other, 200)
        service.engine.send_data(other, b"content", end_stream=True)
        world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert service.streams[far].reset == ErrorCode.INTERNAL_ERROR
        assert client.streams[neighbour].content == b"content"
        assert defects(world) == [TypeError]
        client.engine.send_data(neighbour, b"", end_stream=True)
        world.settle()
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("path", ["/svc/x", "/svc/discover"])
def test_a_request_that_cannot_be_sent_is_reset_and_not_left_waiting(make: EngineFactory, path: str) -> None:
    with World(route("svc", signed=True), make=make, tokens=minted(b"Bearer of\nbad news")) as world:
        client = world.client()
        stream = client.request(path, method="GET", end=True)
        world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert not world.arrivals(path.removeprefix("/svc"))
        assert defects(world) == [ValueError]
        # The token is in memory now, and the connection is there: nothing needs to be waited for.
        again = client.request("/svc/y")
        world.settle()
        assert client.streams[again].reset == ErrorCode.INTERNAL_ERROR
        assert defects(world) == [ValueError]
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("path", ["/svc/x", "/svc/discover"])
def test_nothing_is_sent_if_an_internal_error_leaves_no_token(make: EngineFactory, path: str) -> None:
    class Tokenless(TokenSource):
        async def token(self, key: TokenKey) -> Token:
            return None  # type: ignore[return-value]  # what must not be

        mint_uncached = token

    async def mint(key: TokenKey) -> Token:
        raise Defect

    with World(route("svc", signed=True), make=make, tokens=lambda clock: Tokenless(mint, clock=clock)) as world:
        client = world.client()
        stream = client.request(path, method="GET", end=True)
        world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert not world.arrivals(path.removeprefix("/svc"))
        assert defects(world) == [RuntimeError]
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("last", ["request", "response"])
def test_an_exchange_that_cannot_be_logged_still_gets_its_response(make: EngineFactory, last: str) -> None:
    narrow = Limits(stream_window_octets=4)
    with World(make=make, access_log=True, client_limits=narrow) as world:
        client = world.client()
        client.acknowledging = False
        streams = [client.request(f"/svc/{number}", end=last == "response") for number in range(2)]
        world.settle()
        for number in range(2):
            service, far = world.latest(f"/{number}")
            service.respond(far)
            service.engine.send_data(far, b"content", end_stream=True)
        if last == "request":
            world.settle()
            for stream in streams:
                client.engine.send_data(stream, b"", end_stream=True)
        with no_log():
            world.settle()
        client.acknowledge_all()
        world.settle()
        assert [client.streams[stream].content for stream in streams] == [b"content"] * 2
        assert all(client.streams[stream].ended for stream in streams)
        assert defects(world) == [Defect] * 2
        world.assert_at_rest()
