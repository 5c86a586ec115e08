"""While memory is short, what stands still for too long is ended, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from proxy.downstream.connection import DownstreamConnection
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, StreamId
from proxy.relay.stalls import Stalls
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client
from tests.unit.relay.stage import SMALL, WINDOW, begun

SECONDS = 60.0
LIMIT = 5 * WINDOW
"""Three streams that wait with a window each are more than half of it."""


@contextmanager
def watched(make: EngineFactory, limits: Limits = SMALL, queued_octets: int = LIMIT) -> Iterator[World]:
    """Run a world in which stalls are looked for."""
    world = World(make=make, limits=limits, client_limits=limits, service_limits=limits, queued_octets=queued_octets)

    def connections() -> list[DownstreamConnection]:
        return [wire.protocol for wire in world.wires if isinstance(wire.protocol, DownstreamConnection)]

    stalls = Stalls(world.budget, world.clients, connections, SECONDS)
    with world, structlog.testing.capture_logs():
        stalls.start(world.loop)
        try:
            yield world
        finally:
            world.run(stalls.close())
            world.assert_in_order()


def spend(world: World, seconds: float) -> None:
    """Let time pass."""
    for _ in range(int(seconds)):
        world.loop.advance(1.0)
        world.settle()


def unread(world: World, client: Client, count: int, octets: int, *, end: bool = True) -> list[StreamId]:
    """Have responses sent of which the client reads no more than its windows take."""
    client.acknowledging = False
    streams = []
    for number in range(count):
        streams.append(client.request(f"/svc/large{number}", end=True))
        world.settle()
        service, far = world.latest(f"/large{number}")
        service.respond(far)
        service.engine.send_data(far, bytes(octets), end_stream=end)
        world.settle()
    return streams


@each_bare_engine
def test_a_response_that_stands_still_is_ended_while_memory_is_short_and_until_there_is_room(
    make: EngineFactory,
) -> None:
    with watched(make) as world:
        client = world.client()
        streams = unread(world, client, 3, 4 * WINDOW)
        assert world.budget.is_crowded()
        spend(world, 40)
        assert all(client.streams[stream].reset is None for stream in streams)
        spend(world, 50)
        assert [client.streams[stream].reset for stream in streams] == [ErrorCode.ENHANCE_YOUR_CALM, None, None]
        assert not world.budget.is_crowded()
        # There is room: nothing is ended, however long it stands still.
        spend(world, 1_000)
        assert [client.streams[stream].reset for stream in streams[1:]] == [None, None]


@each_bare_engine
def test_a_response_that_moves_slowly_and_a_silent_one_are_not_ended(make: EngineFactory) -> None:
    with watched(make) as world:
        silent, _, service, far = begun(world)
        service.respond(far)
        world.settle()
        client = world.client()
        streams = unread(world, client, 3, 100 * WINDOW, end=False)
        for _ in range(40):
            spend(world, 10)
            for stream in streams:
                client.engine.acknowledge(stream, 21_000)
                client.unacknowledged[stream] -= 21_000
            world.settle()
            assert world.budget.is_crowded()
        assert [client.streams[stream].reset for stream in streams] == [None] * 3
        assert all(message.reset is None for message in silent.streams.values())


@each_bare_engine
def test_uploads_that_a_service_does_not_take_are_ended(make: EngineFactory) -> None:
    with watched(make) as world:
        client = world.client()
        streams = []
        for number in range(3):
            streams.append(client.request(f"/svc/upload{number}"))
            world.settle()
            world.latest(f"/upload{number}")[0].acknowledging = False
            client.engine.send_data(streams[-1], bytes(2 * WINDOW), end_stream=True)
            world.settle()
        assert world.budget.is_crowded()
        spend(world, 90)
        assert not world.budget.is_crowded()
        ended = [stream for stream in streams if client.streams[stream].head is not None]
        assert ended == streams[:1]
        assert client.streams[ended[0]].status == 503


@each_bare_engine
def test_the_end_of_a_response_that_its_client_does_not_read_is_dropped(make: EngineFactory) -> None:
    with watched(make) as world:
        client = world.client()
        streams = unread(world, client, 3, 2 * WINDOW)
        assert world.budget.is_crowded()
        spend(world, 90)
        assert not world.budget.is_crowded()
        assert client.streams[streams[0]].reset == ErrorCode.ENHANCE_YOUR_CALM
        assert client.streams[streams[-1]].reset is None


@each_bare_engine
def test_a_client_that_reads_nothing_is_ended_with_its_connection(make: EngineFactory) -> None:
    large = Limits(stream_window_octets=4 << 20)
    with watched(make, large, 1 << 20) as world:
        client, neighbour = world.client(), world.client()
        wire = world.wire(client)
        told: list[tuple[int, str]] = []
        wire.protocol.on_cut_off = lambda code, reason: told.append((code, reason))
        stream = client.request("/svc/large", end=True)
        world.settle()
        wire.unread = True
        service, far = world.latest("/large")
        service.respond(far)
        service.engine.send_data(far, bytes(900_000), end_stream=True)
        world.settle()
        assert world.budget.is_crowded()
        spend(world, 59)
        assert not wire.protocol.closed
        spend(world, 17)
        assert wire.protocol.closed
        assert wire.transport.aborted
        reason = "the client has read nothing for 60 s, and memory is short"
        assert told == [(ErrorCode.ENHANCE_YOUR_CALM, reason)]
        assert not world.budget.is_crowded()
        assert not world.wire(neighbour).protocol.closed
        assert not client.streams[stream].ended


@each_bare_engine
def test_an_internal_error_does_not_end_the_looking(make: EngineFactory) -> None:
    with watched(make) as world:
        client = world.client()
        streams = unread(world, client, 3, 4 * WINDOW)
        connections, world.wires[:] = list(world.wires), [None, *world.wires]  # type: ignore[list-item]
        world.loop.advance(16.0)
        world.loop.advance(0.0)
        (error,) = world.loop.uncaught
        assert error["message"] == "internal error while stalls were looked for"
        world.loop.uncaught.clear()
        world.wires[:] = connections
        spend(world, 100)
        assert client.streams[streams[0]].reset == ErrorCode.ENHANCE_YOUR_CALM
