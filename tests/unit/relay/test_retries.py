"""Requests that the upstream has not processed are sent again, with the content that is held for it."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from hyperframe.frame import GoAwayFrame

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import DISCARDED, EXCHANGE_OCTETS, TRAILERS, begun


@each_bare_engine
@pytest.mark.parametrize("trailers", [None, [], TRAILERS])
def test_a_request_that_was_not_processed_is_sent_again_with_its_end(
    make: EngineFactory, trailers: Fields | None
) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        client.engine.send_data(stream, b"journal", end_stream=trailers is None)
        if trailers is not None:
            client.engine.send_trailers(stream, trailers)
        world.settle()
        service.raw(GoAwayFrame(0, last_stream_id=0))
        world.settle()
        again, far = world.latest("/x")
        assert again is not service
        assert again.streams[far].content == b"journal"
        assert again.streams[far].trailers == (trailers or None)
        assert again.streams[far].ended
        again.respond(far, end=True)
        world.settle()
        assert client.streams[stream].status == 200
        world.assert_at_rest()


@each_bare_engine
def test_a_request_that_waits_to_be_sent_again_takes_more_content(make: EngineFactory) -> None:
    may_connect = asyncio.Event()

    async def connecting() -> None:
        await may_connect.wait()

    with World(make=make) as world:
        client, stream, service, far = begun(world)
        world.connecting = connecting
        client.engine.send_data(stream, b"journal", end_stream=False)
        world.settle()
        service.raw(GoAwayFrame(0, last_stream_id=0))
        world.settle()
        client.engine.send_data(stream, bytes(2_000), end_stream=True)
        world.settle()
        may_connect.set()
        world.settle()
        again, far = world.latest("/x")
        assert again.streams[far].content == b"journal" + bytes(2_000)
        assert again.streams[far].ended


@each_bare_engine
def test_a_request_is_tried_three_times(make: EngineFactory) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client, stream, service, far = begun(world, end=True)
        for attempt in range(1, 4):
            assert len(world.arrivals("/x")) == attempt
            service, far = world.latest("/x")
            service.engine.reset(far, ErrorCode.REFUSED_STREAM)
            world.settle()
        assert len(world.arrivals("/x")) == 3
        assert client.streams[stream].status == 503
        assert client.streams[stream].value(b"retry-after") is not None
        world.assert_at_rest()


@each_bare_engine
def test_requests_are_all_answered_by_connections_that_take_one_each(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        streams = [client.request("/svc/x", end=True) for _ in range(8)]
        world.settle()
        for answered in range(8):
            assert len(world.services) == answered + 1, "one connection at a time"
            service = world.services[-1]
            assert len(service.requests) == 8 - answered
            service.raw(GoAwayFrame(0, last_stream_id=1))
            service.respond(1, end=True)
            world.settle()
        assert [client.streams[stream].status for stream in streams] == [200] * 8
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("why", ["time is up", "an error", "nothing is taken"])
def test_a_request_is_not_sent_again_without_end(make: EngineFactory, why: str) -> None:
    go_away = GoAwayFrame(0, last_stream_id=1, error_code=ErrorCode.PROTOCOL_ERROR if why == "an error" else 0)
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        streams = [client.request("/svc/x", end=True) for _ in range(12)]
        world.settle()
        for _ in range(8):
            world.services[-1].raw(GoAwayFrame(0) if why == "nothing is taken" else go_away)
            world.loop.advance(world.pool.wait_timeout_seconds / 4)
            world.settle()
        refused = [stream for stream in streams if client.streams[stream].ended]
        assert {client.streams[stream].value(ERROR_FIELD) for stream in refused} == {b"upstream-refused-stream"}
        # Every connection has taken one, which still waits for its response; the last refusal was one too many.
        connections = 5 if why == "time is up" else 3
        assert len(world.services) == connections
        assert len(refused) == 12 - (0 if why == "nothing is taken" else connections)


@each_bare_engine
@pytest.mark.parametrize("why", ["too large", "interim", "not allowed"])
@pytest.mark.parametrize("more", [DISCARDED, 3 << 20])
def test_a_request_that_cannot_be_sent_again_gets_503(make: EngineFactory, why: str, more: int) -> None:
    octets = {"too large": 1_001, "interim": 10, "not allowed": 1}[why]
    with (
        World(make=make, replay_octets=0 if why == "not allowed" else 1_000) as world,
        structlog.testing.capture_logs(),
    ):
        client, stream, service, far = begun(world)
        client.engine.send_data(stream, bytes(octets), end_stream=False)
        if why == "interim":
            service.respond(far, 103)
        world.settle()
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert len(world.arrivals("/x")) == 1
        assert client.streams[stream].status == 503
        assert client.streams[stream].value(ERROR_FIELD) == b"upstream-refused-stream"
        # The client goes on sending, and is not left waiting for a window: it finishes, or is told to stop.
        client.engine.send_data(stream, bytes(more), end_stream=True)
        world.settle()
        assert client.streams[stream].ended
        assert (client.streams[stream].reset == ErrorCode.NO_ERROR) is (more > DISCARDED)
        assert (client.sent[stream] == octets + more) is (more <= DISCARDED)
        world.assert_at_rest()


@each_bare_engine
def test_a_stream_refused_after_the_response_began_is_not_retried(make: EngineFactory) -> None:
    with World(make=make) as world, structlog.testing.capture_logs() as log:
        client, stream, service, far = begun(world)
        service.respond(far)
        world.settle()
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        assert len(world.arrivals("/x")) == 1
        assert [line["event"] for line in log if line.get("code")] == ["exchange aborted"]
        world.assert_at_rest()


@each_bare_engine
def test_held_content_never_uses_up_the_budget(make: EngineFactory) -> None:
    limits = Limits(stream_window_octets=200_000, connection_window_octets=65_535)
    with World(make=make, limits=limits, queued_octets=50_000 + 8 * EXCHANGE_OCTETS, replay_octets=10_000) as world:
        client = world.client()
        streams = [client.request(f"/svc/{number}") for number in range(8)]
        world.settle()
        for stream in streams:
            client.engine.send_data(stream, bytes(9_000), end_stream=False)
        world.settle()
        # No response has begun, and none will before the requests are complete.
        for stream in streams:
            client.engine.send_data(stream, bytes(100_000), end_stream=True)
        world.settle()
        for number, stream in enumerate(streams):
            service, far = world.latest(f"/{number}")
            assert len(service.streams[far].content) == 109_000
            service.respond(far, end=True)
            world.settle()
            assert client.streams[stream].ended
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("how", ["response", "failure"])
def test_held_content_is_dropped_when_the_response_begins(make: EngineFactory, how: str) -> None:
    with World(make=make, replay_octets=1_000) as world, structlog.testing.capture_logs():
        client, stream, service, far = begun(world)
        head_octets = world.budget.queued_octets
        client.engine.send_data(stream, bytes(500), end_stream=False)
        world.settle()
        assert world.budget.queued_octets == head_octets + 500
        if how == "response":
            service.respond(far)
        else:
            world.wire(service).lose()
        client.engine.send_data(stream, bytes(300), end_stream=False)
        world.settle()
        assert client.streams[stream].head is not None
        assert world.budget.queued_octets == head_octets
