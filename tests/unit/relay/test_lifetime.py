"""Exchanges that are over: each ends from within a call of one of its streams, and is gone right after."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import GoAwayFrame

from proxy.errors import TokenTimeout, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode, StreamId
from proxy.relay.exchange import Exchange
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client, Service


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def count_exchanges() -> int:
    """Return how many there are, over or not."""
    return sum(1 for one in gc.get_objects() if type(one) is Exchange)


def ended_by_response(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    client.engine.send_data(stream, b"", end_stream=True)
    world.settle()
    service.respond(far)
    service.engine.send_data(far, b"content", end_stream=True)


def ended_by_response_trailers(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    client.engine.send_data(stream, b"", end_stream=True)
    world.settle()
    service.respond(far)
    service.engine.send_trailers(far, [(b"x-checksum", b"1", False)])


def ended_by_request(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    service.respond(far, end=True)
    world.settle()
    client.engine.send_data(stream, b"", end_stream=True)


def ended_by_request_trailers(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    service.respond(far, end=True)
    world.settle()
    client.engine.send_trailers(stream, [(b"x-checksum", b"1", False)])


def reset_by_client(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    client.engine.reset(stream, ErrorCode.CANCEL)


def reset_by_service(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    service.engine.reset(far, ErrorCode.CANCEL)


def refused_after_the_head(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    service.respond(far)
    world.settle()
    service.engine.reset(far, ErrorCode.REFUSED_STREAM)


def not_processed_after_the_head(
    world: World, client: Client, stream: StreamId, service: Service, far: StreamId
) -> None:
    service.respond(far)
    world.settle()
    service.raw(GoAwayFrame(0, last_stream_id=0))


def client_lost(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    world.wire(client).lose()


def service_lost(world: World, client: Client, stream: StreamId, service: Service, far: StreamId) -> None:
    service.respond(far)
    world.settle()
    world.wire(service).lose()


ENDS: list[Callable[[World, Client, StreamId, Service, StreamId], None]] = [
    ended_by_response,
    ended_by_response_trailers,
    ended_by_request,
    ended_by_request_trailers,
    reset_by_client,
    reset_by_service,
    refused_after_the_head,
    not_processed_after_the_head,
    client_lost,
    service_lost,
]


@each_bare_engine
@pytest.mark.parametrize("end", ENDS)
def test_an_ended_exchange_is_freed_at_once(
    make: EngineFactory, end: Callable[[World, Client, StreamId, Service, StreamId], None]
) -> None:
    before = count_exchanges()
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x")
        client.engine.send_data(stream, b"content", end_stream=False)
        world.settle()
        service, far = world.latest("/x")
        assert count_exchanges() == before + 1
        end(world, client, stream, service, far)
        world.settle()
        assert count_exchanges() == before
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("path", ["/nowhere", "/svc/x"])
def test_an_exchange_with_a_local_reply_is_freed_at_once(make: EngineFactory, path: str) -> None:
    before = count_exchanges()
    with World(make=make) as world:
        world.refusals = [UpstreamConnectFailed("refused")]
        client = world.client()
        streams = [client.request(path, end=True), client.request(path)]
        world.settle()
        assert [client.streams[stream].ended for stream in streams] == [True, True]
        assert count_exchanges() == before + 1, "one request has not ended"
        client.engine.send_data(streams[1], b"", end_stream=True)
        world.settle()
        assert count_exchanges() == before
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("path", ["/svc/x", "/svc/discover"])
def test_an_exchange_without_a_token_is_freed_at_once(make: EngineFactory, path: str) -> None:
    async def mint(key: TokenKey) -> Token:
        raise TokenTimeout("too slow")

    before = count_exchanges()
    with World(route("svc", signed=True), make=make, tokens=lambda clock: TokenSource(mint, clock=clock)) as world:
        client = world.client()
        streams = [client.request(path, method="GET", end=True) for _ in range(3)]
        world.settle()
        assert [client.streams[stream].status for stream in streams] == [503] * 3
        assert count_exchanges() == before
        world.assert_at_rest()


@each_bare_engine
def test_an_exchange_that_is_reset_while_it_waits_is_freed_at_once(make: EngineFactory) -> None:
    before = count_exchanges()
    with World(make=make) as world:
        client = world.client()
        stream = client.request("/svc/x")
        world.wire(client).move()
        assert count_exchanges() == before + 1
        client.engine.reset(stream, ErrorCode.CANCEL)
        world.settle()
        assert count_exchanges() == before
        world.assert_at_rest()
