"""One exchange carried across, between engines: what leaves when, and whose window goes back when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import structlog
from hyperframe.frame import GoAwayFrame, HeadersFrame

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client, Service

WINDOW = 40_000
DISCARDED = 64 << 10
SMALL = Limits(stream_window_octets=WINDOW)
TRAILERS: Fields = [(b"x-checksum", b"1", False)]


def begun(world: World, *, end: bool = False, path: str = "/x") -> tuple[Client, StreamId, Service, StreamId]:
    """Return both ends of an exchange whose request head has arrived."""
    client = world.client()
    stream = client.request(f"/svc{path}", end=end)
    world.settle()
    return client, stream, *world.latest(path)


# ---- windows


@each_bare_engine
def test_the_request_window_returns_only_when_the_upstream_takes_the_octets(make: EngineFactory) -> None:
    with World(make=make, limits=SMALL, service_limits=SMALL) as world:
        client, stream, service, far = begun(world)
        service.acknowledging = False
        client.engine.send_data(stream, bytes(200_000), end_stream=False)
        world.settle()
        # One window has arrived, another waits in the sidecar, and nothing more was invited.
        assert len(service.streams[far].content) == WINDOW
        assert client.sent[stream] == 2 * WINDOW
        assert world.wire(client).owed(stream) == WINDOW
        service.acknowledge(far)
        world.settle()
        assert client.sent[stream] == 3 * WINDOW


@each_bare_engine
def test_the_response_window_returns_only_when_the_client_takes_the_octets(make: EngineFactory) -> None:
    with World(make=make, limits=SMALL, client_limits=SMALL) as world:
        client, stream, service, far = begun(world, end=True)
        client.acknowledging = False
        service.respond(far)
        service.engine.send_data(far, bytes(200_000), end_stream=True)
        world.settle()
        assert len(client.streams[stream].content) == WINDOW
        assert service.sent[far] == 2 * WINDOW
        client.acknowledge_all()
        world.settle()
        assert len(client.streams[stream].content) == 200_000
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("upwards", [True, False])
def test_no_window_returns_while_the_other_transport_is_paused(make: EngineFactory, upwards: bool) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        service.respond(far)
        world.settle()
        source, id_ = (client, stream) if upwards else (service, far)
        paused = world.wire(service if upwards else client).transport
        paused.stalls_at_next_write = True
        source.engine.send_data(id_, bytes(5_000), end_stream=False)
        world.settle()
        assert paused.written > 5_000
        assert world.wire(source).owed(id_) == 5_000
        paused.resume()
        world.settle()
        assert world.wire(source).owed(id_) == 0


@each_bare_engine
def test_octets_that_are_sent_again_are_acknowledged_once(make: EngineFactory) -> None:
    with World(make=make, replay_octets=10_000) as world:
        client, stream, service, far = begun(world)
        client.engine.send_data(stream, bytes(5_000), end_stream=False)
        world.settle()
        wire = world.wire(client)
        assert wire.owed(stream) == 0
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        client.engine.send_data(stream, bytes(300), end_stream=False)
        world.settle()
        assert wire.owed(stream) == 0, "what is sent again was acknowledged before"
        client.engine.send_data(stream, bytes(20), end_stream=True)
        world.settle()
        service, far = world.latest("/x")
        assert len(world.arrivals("/x")) == 2
        assert len(service.streams[far].content) == 5_320
        service.respond(far, end=True)
        world.settle()
        world.assert_at_rest()


# ---- sending again


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
@pytest.mark.parametrize("why", ["too large", "interim", "not allowed"])
@pytest.mark.parametrize("more", [DISCARDED, 3 << 20])
def test_what_cannot_be_sent_again_is_answered_with_503(make: EngineFactory, why: str, more: int) -> None:
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
    with World(make=make, limits=limits, queued_octets=50_000, replay_octets=10_000) as world:
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


# ---- answers and failures while the request is open


@each_bare_engine
def test_an_early_answer_lets_the_client_finish(make: EngineFactory) -> None:
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
    with World(make=make, client_limits=SMALL) as world, structlog.testing.capture_logs() as log:
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
        assert [line["code"] for line in log if line["event"] == "exchange aborted"] == ["upstream-connection-lost"]
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


# ---- resets


@each_bare_engine
@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL, 0x77])
@pytest.mark.parametrize("when", ["no response", "response open", "response ended"])
def test_a_reset_by_the_client_reaches_the_upstream_with_its_code(make: EngineFactory, code: int, when: str) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        client.engine.send_data(stream, b"content", end_stream=False)
        world.settle()
        if when != "no response":
            service.respond(far, end=when == "response ended")
            world.settle()
        client.engine.reset(stream, code)
        world.settle()
        assert service.streams[far].content == b"content"
        assert service.streams[far].reset == code
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL, 0x77])
@pytest.mark.parametrize("answered", [True, False])
def test_a_reset_by_the_upstream_reaches_the_client_with_its_code(
    make: EngineFactory, code: int, answered: bool
) -> None:
    with World(make=make, client_limits=SMALL) as world:
        client, stream, service, far = begun(world)
        client.acknowledging = False
        if answered:
            service.respond(far)
            service.engine.send_data(far, bytes(2 * WINDOW), end_stream=False)
        service.engine.reset(far, code, after_data=True)
        world.settle()
        if answered:
            assert client.streams[stream].reset is None, "what came before the reset has not all been read"
        client.acknowledge_all()
        world.settle()
        assert client.streams[stream].reset == code
        assert len(client.streams[stream].content) == (2 * WINDOW if answered else 0)
        world.assert_at_rest()


@each_bare_engine
def test_a_client_that_breaks_a_rule_does_not_have_its_code_sent_upstream(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        # Trailers that do not end their stream.
        client.raw(HeadersFrame(stream, b"\x00\x01a\x01b", flags=["END_HEADERS"]))
        world.settle()
        assert client.streams[stream].reset == ErrorCode.PROTOCOL_ERROR
        assert service.streams[far].reset == ErrorCode.CANCEL
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("answered", [True, False])
def test_an_upstream_that_breaks_a_rule_does_not_have_its_code_sent_to_the_client(
    make: EngineFactory, answered: bool
) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        if answered:
            service.respond(far)
            world.settle()
        # Trailers that do not end their stream, or a head without a status.
        service.raw(HeadersFrame(far, b"\x00\x01a\x01b", flags=["END_HEADERS"]))
        world.settle()
        assert service.streams[far].reset == ErrorCode.PROTOCOL_ERROR
        assert client.streams[stream].reset == ErrorCode.INTERNAL_ERROR
        world.assert_at_rest()


# ---- ends and sections


@each_bare_engine
def test_interim_heads_trailers_and_both_ends_are_forwarded_in_order(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        service.respond(far, 103, fields=[(b"link", b"</a>")])
        service.respond(far, 100)
        world.settle()
        assert [fields[0][1] for fields in client.streams[stream].interim] == [b"103", b"100"]
        spoofed: Fields = [
            (b"x-serverless-authorization", b"Bearer spoofed", False),
            (b"x_serverless_authorization", b"Bearer spoofed", False),
        ]
        client.engine.send_data(stream, b"question", end_stream=False)
        client.engine.send_trailers(stream, [*spoofed, *TRAILERS, *spoofed])
        service.respond(far, 201)
        service.engine.send_data(far, b"answer", end_stream=False)
        service.engine.send_trailers(far, TRAILERS)
        world.settle()
        assert service.streams[far].content == b"question"
        assert client.streams[stream].content == b"answer"
        assert service.streams[far].trailers == client.streams[stream].trailers == TRAILERS
        world.assert_at_rest()


@each_bare_engine
def test_a_response_may_end_with_trailers_while_its_request_goes_on(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        service.respond(far)
        service.engine.send_trailers(far, TRAILERS)
        world.settle()
        assert client.streams[stream].trailers == TRAILERS
        client.engine.send_data(stream, b"the rest", end_stream=True)
        world.settle()
        assert service.streams[far].content == b"the rest"
        assert service.streams[far].ended
        assert client.streams[stream].reset is service.streams[far].reset is None
        world.assert_at_rest()


@each_bare_engine
def test_trailers_of_nothing_but_spoofed_tokens_become_a_plain_end(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        client.engine.send_trailers(stream, [(b"x-serverless_authorization", b"Bearer spoofed", False)])
        world.settle()
        assert service.streams[far].trailers is None
        assert service.streams[far].ended


@each_bare_engine
def test_empty_trailers_become_a_plain_end_both_ways(make: EngineFactory) -> None:
    with World(make=make) as world:
        client, stream, service, far = begun(world)
        client.raw(HeadersFrame(stream, b"", flags=["END_HEADERS", "END_STREAM"]))
        service.respond(far)
        world.settle()
        service.raw(HeadersFrame(far, b"", flags=["END_HEADERS", "END_STREAM"]))
        world.settle()
        for message in (service.streams[far], client.streams[stream]):
            assert message.ended
            assert message.trailers is None
        world.assert_at_rest()


@each_bare_engine
def test_a_head_request_is_answered_without_content(make: EngineFactory) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        stream, unknown = (client.request(path, method="HEAD", end=True) for path in ("/svc/x", "/nowhere"))
        world.settle()
        service, far = world.latest("/x")
        service.respond(far, fields=[(b"content-length", b"1000")], end=True)
        world.settle()
        assert client.streams[stream].value(b"content-length") == b"1000"
        assert client.streams[unknown].status == 404
        assert int(client.streams[unknown].value(b"content-length") or 0) > 0
        for id_ in (stream, unknown):
            assert client.streams[id_].ended
            assert client.streams[id_].content == b""
            assert client.streams[id_].reset is None
        world.assert_at_rest()


# ---- while there is no connection yet


def waiting(make: EngineFactory, **given: int) -> tuple[World, asyncio.Event]:
    """Return a world whose connections wait for an event."""
    world = World(make=make, limits=SMALL, **given)  # type: ignore[arg-type]  # numbers of octets
    may_connect = asyncio.Event()

    async def connecting() -> None:
        await may_connect.wait()

    world.connecting = connecting
    return world, may_connect


@each_bare_engine
def test_a_request_that_waits_is_held_up_to_its_window(make: EngineFactory) -> None:
    world, may_connect = waiting(make)
    with world:
        client = world.client()
        stream = client.request("/svc/x")
        world.settle()
        head_octets = world.budget.queued_octets
        client.engine.send_data(stream, bytes(3 * WINDOW), end_stream=True)
        world.settle()
        assert client.sent[stream] == WINDOW
        assert world.budget.queued_octets == head_octets + WINDOW
        may_connect.set()
        world.settle()
        service, far = world.latest("/x")
        assert len(service.streams[far].content) == 3 * WINDOW
        service.respond(far, end=True)
        world.settle()
        world.assert_at_rest()


CANCELS: dict[str, Callable[[World, Client, StreamId], None]] = {
    "reset": lambda _, client, stream: client.engine.reset(stream, ErrorCode.CANCEL),
    "lost": lambda world, client, _: world.wire(client).lose(),
}


@each_bare_engine
@pytest.mark.parametrize("how", CANCELS)
def test_a_client_that_disconnects_while_its_request_waits_leaves_nothing_behind(make: EngineFactory, how: str) -> None:
    world, may_connect = waiting(make)
    with world:
        client = world.client()
        stream = client.request("/svc/x")
        client.engine.send_data(stream, bytes(WINDOW), end_stream=False)
        world.settle()
        CANCELS[how](world, client, stream)
        world.settle()
        world.assert_at_rest()
        may_connect.set()
        world.settle()
        assert not world.arrivals("/x")
        world.assert_at_rest()
