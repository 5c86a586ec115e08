"""Requests that clients cancel: charged to the client, held back, and reset upstream within a limit."""

from __future__ import annotations

import structlog

from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from proxy.relay.exchange import Exchange
from proxy.upstream.connection import UpstreamConnection
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import begun


def charged(world: World) -> list[int]:
    """Return a list that grows with each cancelled request of the world's first client."""
    charges: list[int] = []
    world.wires[0].protocol.account.on_cancel = lambda: charges.append(1)
    return charges


@each_bare_engine
def test_a_request_that_is_cancelled_before_its_response_is_charged_to_its_client(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        charges = charged(world)
        client.engine.reset(stream, ErrorCode.CANCEL)
        world.settle()
        assert service.streams[far].reset == ErrorCode.CANCEL
        assert len(charges) == 1
        answered = client.request("/svc/answered")
        world.settle()
        service.respond(world.latest("/answered")[1])
        world.settle()
        client.engine.reset(answered, ErrorCode.CANCEL)
        world.settle()
        assert len(charges) == 1
        world.assert_at_rest()


@each_bare_engine
def test_requests_of_a_lost_connection_are_charged_to_it(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, _, _, _ = begun(world)
        charges = charged(world)
        world.wire(client).lose()
        world.settle()
        assert len(charges) == 1


@each_bare_engine
def test_a_request_that_is_held_back_and_cancelled_does_not_reach_the_upstream(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        charges = charged(world)
        world.wires[0].protocol.account.held_back = True
        cancelled = client.request("/svc/cancelled")
        patient = client.request("/svc/patient", end=True)
        world.settle()
        assert not world.arrivals("/patient")
        assert world.dispatcher.waiting.count == 2
        client.engine.reset(cancelled, ErrorCode.CANCEL)
        world.settle()
        assert len(charges) == 1
        world.loop.advance(0.2)
        world.settle()
        assert not world.arrivals("/cancelled")
        service, far = world.latest("/patient")
        service.respond(far, end=True)
        world.settle()
        assert client.streams[patient].status == 200
        world.assert_at_rest()


@each_bare_engine
def test_an_internal_error_of_the_dispatcher_aborts_a_request_that_was_held_back(make: EngineFactory) -> None:
    def fail(exchange: Exchange) -> None:
        raise ValueError

    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        world.wires[0].protocol.account.held_back = True
        stream = client.request("/svc/x", end=True)
        world.settle()
        (held,) = world.wires[0].protocol.engine.live_streams()
        assert isinstance(held.receiver, Exchange)
        assert held.receiver.cancel_start is not None
        held.receiver.cancel_start()
        world.dispatcher.waiting.hold_back(held.receiver, fail)
        world.loop.advance(0.2)
        world.loop.advance(0.2)
        world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert [error["message"] for error in world.loop.uncaught] == ["internal error while a request was dispatched"]
        world.loop.uncaught.clear()


@each_bare_engine
def test_only_some_cancelled_requests_are_reset_at_once_on_one_upstream_connection(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, first, service, far = begun(world)
        (upstream,) = [wire.protocol for wire in world.wires if isinstance(wire.protocol, UpstreamConnection)]
        upstream.cancels.limit.per_minute = 1
        second = client.request("/svc/second")
        world.settle()
        for stream in (first, second):
            client.engine.reset(stream, ErrorCode.CANCEL)
        world.settle()
        assert service.streams[far].reset == ErrorCode.CANCEL
        assert service.streams[world.latest("/second")[1]].reset is None
        assert world.metrics.routes["svc"].in_flight == 0
        third = client.request("/svc/third", end=True)
        world.settle()
        service.respond(world.latest("/third")[1], end=True)
        world.loop.advance(60.0)
        world.settle()
        assert service.streams[world.latest("/second")[1]].reset == ErrorCode.CANCEL
        assert client.streams[third].status == 200
        world.assert_at_rest()
