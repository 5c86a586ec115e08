"""Responses and lost connections while the request is open."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.events import ErrorCode
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import DISCARDED, SMALL, TRAILERS, WINDOW, begun


@each_bare_engine
def test_an_early_response_lets_the_client_finish_its_request(make: EngineFactory) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream = client.request("/nowhere")
        client.engine.send_data(stream, bytes(DISCARDED), end_stream=False)
        world.settle()
        assert client.streams[stream].status == 404
        assert client.streams[stream].ended
        assert client.sent[stream] == DISCARDED
        client.engine.send_trailers(stream, TRAILERS)
        world.settle()
        assert client.streams[stream].reset is None
        world.assert_at_rest()


@each_bare_engine
def test_a_connection_lost_before_the_response_is_a_local_reply_and_the_rest_is_discarded(
    make: EngineFactory,
) -> None:
    with World(make=make, queued_octets=4 << 20) as world, structlog.testing.capture_logs():
        client, stream, service, _ = begun(world)
        service.acknowledging = False
        client.engine.send_data(stream, bytes(9 << 20), end_stream=False)
        world.settle()
        assert client.sent[stream] < 3 << 20
        world.wire(service).lose(ConnectionResetError())
        world.settle()
        assert client.streams[stream].value(ERROR_FIELD) == b"upstream-connection-lost"
        assert client.streams[stream].ended
        assert client.streams[stream].reset == ErrorCode.NO_ERROR
        # A window at the service, another in the sidecar, which is given back when the service is gone.
        assert client.sent[stream] <= (3 << 20) + DISCARDED
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("ended", [True, False])
def test_a_connection_lost_after_the_response_began_is_a_reset_after_its_content(
    make: EngineFactory, ended: bool
) -> None:
    with World(make=make, client_limits=SMALL, access_log=True) as world, structlog.testing.capture_logs() as log:
        client, stream, service, far = begun(world, end=ended)
        client.acknowledging = False
        service.respond(far)
        service.engine.send_data(far, bytes(2 * WINDOW), end_stream=False)
        world.settle()
        world.wire(service).lose()
        world.settle()
        assert client.streams[stream].reset is None, "what came before has not all been read"
        client.acknowledge_all()
        world.settle()
        assert len(client.streams[stream].content) == 2 * WINDOW
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        for event in ("exchange aborted", "exchange"):
            assert [line["code"] for line in log if line["event"] == event] == ["upstream-connection-lost"]
        assert world.metrics.routes["svc"].failures == 1
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("how", ["lost", "not wanted"])
def test_a_complete_response_stays_a_success_when_the_upstream_is_lost(make: EngineFactory, how: str) -> None:
    with World(make=make, access_log=True) as world, structlog.testing.capture_logs() as log:
        client, stream, service, far = begun(world)
        service.acknowledging = False
        client.engine.send_data(stream, bytes(1 << 20), end_stream=False)
        service.respond(far)
        service.engine.send_data(far, b"done", end_stream=True)
        world.settle()
        if how == "lost":
            world.wire(service).lose()
        else:
            service.engine.reset(far, ErrorCode.NO_ERROR)
        world.settle()
        client.engine.send_data(stream, bytes(DISCARDED), end_stream=True)
        world.settle()
        assert client.streams[stream].ended
        assert client.streams[stream].reset is None
        assert client.sent[stream] == (1 << 20) + DISCARDED
        (line,) = [line for line in log if line["event"] == "exchange"]
        assert (line["status"], line["code"]) == (200, None)
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("how", ["lost", "not wanted", "no route"])
def test_an_unwanted_upload_is_reset_after_the_whole_response(make: EngineFactory, how: str) -> None:
    with World(make=make, client_limits=SMALL) as world, structlog.testing.capture_logs():
        client = world.client()
        client.acknowledging = False
        stream = client.request("/nowhere" if how == "no route" else "/svc/x")
        world.settle()
        if how != "no route":
            service, far = world.latest("/x")
            service.respond(far)
            service.engine.send_data(far, bytes(2 * WINDOW), end_stream=True)
            world.settle()
            if how == "lost":
                world.wire(service).lose()
            else:
                service.engine.reset(far, ErrorCode.NO_ERROR)
            world.settle()
        client.engine.send_data(stream, bytes(50 << 20), end_stream=False)
        world.settle()
        # A window, what is given back, and the rest of what was read at once with it: at most another window.
        assert DISCARDED < client.sent[stream] <= (2 << 20) + DISCARDED
        if how != "no route":
            assert client.streams[stream].reset is None, "the response has not all been read"
            client.acknowledge_all()
            world.settle()
            assert len(client.streams[stream].content) == 2 * WINDOW
        assert client.streams[stream].ended
        assert client.streams[stream].reset == ErrorCode.NO_ERROR
        assert client.sent[stream] <= (2 << 20) + DISCARDED
        world.assert_at_rest()
