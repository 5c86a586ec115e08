"""When memory is short, the owner with the most octets gives up first, and others do not notice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, StreamId
from proxy.relay.exchange import Exchange
from tests.support.data_path import World, route
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client
from tests.unit.relay.stage import EXCHANGE_OCTETS, SMALL, WINDOW

LIMIT = 200_000


def shared(
    make: EngineFactory, *, queued_octets: int = LIMIT, limits: Limits = SMALL, service_limits: Limits = SMALL
) -> World:
    """Return a world with two services, in which each stream's content waits in the sidecar up to a small window."""
    return World(
        route("svc"),
        route("other"),
        make=make,
        limits=limits,
        client_limits=SMALL,
        service_limits=service_limits,
        queued_octets=queued_octets,
    )


def answer(world: World, path: str, content: bytes = b"content", *, end: bool = True) -> None:
    """Answer the latest request with this path."""
    service, stream = world.latest(path)
    service.respond(stream)
    service.engine.send_data(stream, content, end_stream=end)
    world.settle()


def exchange(world: World, client: Client, path: str) -> int:
    """Send a request, have the service answer it, and return the status of the response."""
    stream = client.request(path, end=True)
    world.settle()
    if not client.streams[stream].ended:
        answer(world, "/" + path.split("/", 2)[2])
    assert client.streams[stream].ended
    return client.streams[stream].status


def unread(world: World, client: Client, count: int, octets: int = 4 * WINDOW) -> list[StreamId]:
    """Have responses of so many octets sent to a client that reads none of their content."""
    client.acknowledging = False
    streams = [client.request(f"/svc/large{number}", end=True) for number in range(count)]
    world.settle()
    for number, stream in enumerate(streams):
        if client.streams[stream].head is None:
            answer(world, f"/large{number}", bytes(octets))
        assert world.budget.queued_octets < world.budget.limit_octets
    return streams


@each_bare_engine
def test_the_largest_response_of_a_client_that_does_not_read_is_aborted_and_a_new_client_is_served(
    make: EngineFactory,
) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        slow, neighbour = world.client(), world.client()
        streams = unread(world, slow, 12)
        ends = [slow.streams[stream].reset for stream in streams]
        assert ErrorCode.ENHANCE_YOUR_CALM in ends
        for number in range(20):
            assert exchange(world, neighbour, f"/svc/small{number}") == 200
            assert exchange(world, neighbour, f"/other/small{number}") == 200
        # What was not evicted arrives whole.
        slow.acknowledge_all()
        world.settle()
        left = [stream for stream in streams if slow.streams[stream].reset is None]
        assert left
        for stream in left:
            message = slow.streams[stream]
            assert message.ended
            assert message.value(ERROR_FIELD) == b"overloaded" or len(message.content) == 4 * WINDOW
        world.assert_at_rest()


@each_bare_engine
def test_a_complete_response_that_is_not_read_is_aborted_too(make: EngineFactory) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        slow, neighbour = world.client(), world.client()
        streams = unread(world, slow, 12, 2 * WINDOW)
        assert ErrorCode.ENHANCE_YOUR_CALM in [slow.streams[stream].reset for stream in streams]
        assert exchange(world, neighbour, "/svc/x") == 200
        slow.acknowledge_all()
        world.settle()
        world.assert_at_rest()


@each_bare_engine
def test_a_limit_that_is_lowered_below_what_is_held_stops_no_other_client(make: EngineFactory) -> None:
    narrow = replace(SMALL, connection_window_octets=100_000)
    with shared(make, limits=narrow, service_limits=Limits()) as world, structlog.testing.capture_logs():
        slow, neighbour = world.client(), world.client()
        upload = neighbour.request("/other/upload")
        neighbour.engine.send_data(upload, bytes(5_000), end_stream=False)  # more than is kept for another attempt
        world.settle()
        unread(world, slow, 3)
        world.budget.limit_octets = world.budget.queued_octets - 1
        world.budget.change(0)
        for _ in range(200):
            neighbour.engine.send_data(upload, bytes(1_000), end_stream=False)
            world.settle()
        service, stream = world.latest("/upload")
        assert len(service.streams[stream].content) == 205_000
        neighbour.engine.send_data(upload, b"", end_stream=True)
        answer(world, "/upload")
        slow.acknowledge_all()
        world.settle()
        world.assert_at_rest()


@each_bare_engine
def test_a_client_that_holds_more_than_its_share_is_refused_while_memory_is_short(make: EngineFactory) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        slow, neighbour = world.client(), world.client()
        unread(world, slow, 3)
        assert world.budget.is_crowded()
        assert not world.budget.is_used_up()
        refused = slow.request("/other/x", end=True)
        world.settle()
        assert slow.streams[refused].status == 503
        assert slow.streams[refused].value(ERROR_FIELD) == b"overloaded"
        assert exchange(world, neighbour, "/other/y") == 200
        slow.acknowledge_all()
        world.settle()
        assert exchange(world, slow, "/other/z") == 200
        world.assert_at_rest()


@each_bare_engine
def test_a_service_that_takes_no_content_is_refused_new_requests_and_other_services_are_not(
    make: EngineFactory,
) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        clients = [world.client() for _ in range(12)]
        uploads = {}
        for number, client in enumerate(clients):
            uploads[client.request(f"/svc/{number}"), number] = client
            world.settle()
            for service in world.services:
                service.acknowledging = False
        for (stream, _), client in uploads.items():
            if client.streams[stream].head is None:
                client.engine.send_data(stream, bytes(4 * WINDOW), end_stream=True)
                world.settle()
            assert world.budget.queued_octets < LIMIT
        assert world.budget.is_crowded()
        answers = [client.streams[stream].value(ERROR_FIELD) for (stream, _), client in uploads.items()]
        assert b"overloaded" in answers
        refused = clients[0].request("/svc/more", end=True)
        world.settle()
        assert clients[0].streams[refused].value(ERROR_FIELD) == b"overloaded"
        assert exchange(world, clients[0], "/other/x") == 200
        for service in world.services:
            service.acknowledge_all()
        world.settle()
        for (stream, number), client in uploads.items():
            if not client.streams[stream].ended:
                answer(world, f"/{number}")
            assert client.streams[stream].ended
        world.assert_at_rest()


@each_bare_engine
def test_a_waiting_request_is_aborted_if_it_alone_uses_up_the_memory(make: EngineFactory) -> None:
    with shared(make, queued_octets=WINDOW) as world, structlog.testing.capture_logs():
        may_connect = asyncio.Event()

        async def connecting() -> None:
            await may_connect.wait()

        world.connecting = connecting
        greedy, neighbour = world.client(), world.client()
        first = greedy.request("/svc/x")
        greedy.engine.send_data(first, bytes(WINDOW), end_stream=True)
        world.settle()
        assert greedy.streams[first].value(ERROR_FIELD) == b"overloaded"
        assert greedy.streams[first].status == 503
        second = neighbour.request("/svc/y", end=True)
        world.settle()
        may_connect.set()
        world.settle()
        answer(world, "/y")
        assert neighbour.streams[second].status == 200
        assert not world.arrivals("/x")
        world.assert_at_rest()


@each_bare_engine
def test_an_open_request_that_is_evicted_while_it_waits_is_answered_and_waits_no_more(make: EngineFactory) -> None:
    with shared(make, queued_octets=WINDOW) as world, structlog.testing.capture_logs() as lines:
        may_connect = asyncio.Event()

        async def connecting() -> None:
            await may_connect.wait()

        world.connecting = connecting
        client = world.client()
        stream = client.request("/svc/x")
        client.engine.send_data(stream, bytes(WINDOW), end_stream=False)
        world.settle()
        assert client.streams[stream].status == 503
        assert world.dispatcher.waiting.count == 0
        may_connect.set()
        world.settle()
        client.engine.send_data(stream, b"", end_stream=True)
        world.settle()
        assert client.streams[stream].ended
        assert client.streams[stream].reset is None
        assert [line["code"] for line in lines if "code" in line] == ["overloaded"]
        assert not world.arrivals("/x")
        world.assert_at_rest()


LARGE = 16 << 10
"""What an exchange must hold to give way before others of its address."""


@each_bare_engine
def test_many_requests_that_wait_are_not_lost_with_a_response_that_their_client_is_slow_to_read(
    make: EngineFactory,
) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        waiting = [client.request(f"/svc/wait{number}", end=True) for number in range(50)]
        stream = client.request("/svc/large", end=True)
        world.settle()
        service, far = world.latest("/large")
        wire = world.wire(client)
        wire.transport.stalls_at_next_write = True
        service.respond(far)
        service.engine.send_data(far, bytes(40_000), end_stream=True)
        world.step()
        world.step()
        assert wire.transport.get_write_buffer_size() > LARGE
        wire.protocol.give_up(1 << 20, LARGE)
        assert not wire.protocol.closed
        wire.transport.resume()
        world.settle()
        assert client.streams[stream].ended
        assert not any(client.streams[other].ended for other in waiting)


@each_bare_engine
def test_large_heads_are_charged_and_dropped_once_the_response_begins(make: EngineFactory) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        client = world.client()
        large = [(f"x-field-{number}".encode(), b"v" * 4_000) for number in range(10)]
        large.append((b"traceparent", b"v" * 4_000))
        stream = client.request("/svc/x", fields=large)
        world.settle()
        assert world.budget.queued_octets >= 40_000
        service, far = world.latest("/x")
        service.respond(far)
        world.settle()
        assert world.budget.queued_octets == EXCHANGE_OCTETS
        (live,) = world.wire(client).protocol.engine.live_streams()
        assert isinstance(live.receiver, Exchange)
        assert not live.receiver.fields
        assert service.streams[far].value(b"x-field-9") == b"v" * 4_000
        client.engine.send_data(stream, b"", end_stream=True)
        service.engine.send_data(far, b"", end_stream=True)
        world.settle()
        world.assert_at_rest()


@each_bare_engine
def test_the_access_log_names_trace_and_invocation_of_a_request_whose_large_head_was_dropped(
    make: EngineFactory,
) -> None:
    with World(make=make, access_log=True) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        fields = [
            (b"x-large", b"v" * 8_000),
            (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
            (b"x-restate-invocation-id", b"inv_1abc"),
        ]
        client.request("/svc/x", fields=fields, end=True)
        world.settle()
        answer(world, "/x")
        (line,) = [line for line in log if line["event"] == "exchange"]
        assert (line["trace"], line["invocation_id"]) == ("a" * 32, "inv_1abc")
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize(("head_octets", "status"), [(10, 200), (8_000, 503)])
def test_a_request_without_content_can_be_sent_again_while_memory_is_short_unless_its_head_is_large(
    make: EngineFactory, head_octets: int, status: int
) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        slow, neighbour = world.client(), world.client()
        unread(world, slow, 3)
        assert world.budget.is_crowded()
        stream = neighbour.request("/other/x", fields=[(b"x-field", b"v" * head_octets)], end=True)
        world.settle()
        service, far = world.latest("/x")
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        if status == 200:
            answer(world, "/x")
        assert len(world.arrivals("/x")) == (2 if status == 200 else 1)
        assert neighbour.streams[stream].status == status


@each_bare_engine
def test_many_large_heads_of_one_client_are_aborted_for_a_new_client(make: EngineFactory) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        client, neighbour = world.client(), world.client()
        large = [(f"x-field-{number}".encode(), b"v" * 4_000) for number in range(10)]
        streams = []
        for number in range(20):
            streams.append(client.request(f"/svc/{number}", fields=large))
            world.settle()
            assert world.budget.queued_octets < LIMIT
        assert b"overloaded" in [client.streams[stream].value(ERROR_FIELD) for stream in streams]
        assert exchange(world, neighbour, "/svc/x") == 200


@each_bare_engine
def test_a_client_that_reads_nothing_loses_its_connection_if_its_transport_holds_most(
    make: EngineFactory,
) -> None:
    # Windows are large: what is written waits in the transport, and not in the streams.
    with World(make=make, queued_octets=300_000) as world, structlog.testing.capture_logs():
        slow, neighbour = world.client(), world.client()
        wire = world.wire(slow)
        told: list[int] = []
        wire.protocol.on_cut_off = lambda code, reason: told.append(code)
        stream = slow.request("/svc/large", end=True)
        world.settle()
        wire.unread = True
        service, far = world.latest("/large")
        service.respond(far)
        service.engine.send_data(far, bytes(400_000), end_stream=True)
        world.settle()
        assert wire.protocol.closed
        assert wire.transport.aborted
        assert told == [ErrorCode.ENHANCE_YOUR_CALM]
        assert world.budget.queued_octets < 300_000
        assert not slow.streams[stream].ended
        assert exchange(world, neighbour, "/svc/x") == 200
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("by", ["client", "service"])
def test_the_octets_of_a_lost_connection_are_charged_to_no_account(make: EngineFactory, by: str) -> None:
    with shared(make) as world, structlog.testing.capture_logs():
        client = world.client()
        unread(world, client, 3)
        assert world.budget.queued_octets > 0
        world.wire(client if by == "client" else world.latest("/large0")[0]).lose()
        world.settle()
        client.acknowledge_all()
        world.settle()
        world.assert_at_rest()
