"""One exchange between two connections: when its content leaves, when windows go back, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import structlog
from hyperframe.frame import DataFrame, HeadersFrame

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy.fields import section_octets
from tests.support.allocations import traced_octets
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.memory import Client
from tests.unit.relay.stage import SMALL, TRAILERS, WINDOW, begun

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


@each_bare_engine
def test_octets_of_an_earlier_attempt_that_leave_late_acknowledge_nothing(make: EngineFactory) -> None:
    with World(make=make, replay_octets=10_000) as world:
        client, stream, service, far = begun(world)
        paused = world.wire(service).transport
        paused.stalls_at_next_write = True
        client.engine.send_data(stream, bytes(5_000), end_stream=False)
        world.settle()
        service.engine.reset(far, ErrorCode.REFUSED_STREAM)
        world.settle()
        assert world.wire(client).owed(stream) == 5_000
        paused.resume()
        world.settle()
        assert world.wire(client).owed(stream) == 0
        service, far = world.latest("/x")
        assert len(service.streams[far].content) == 5_000
        client.engine.send_data(stream, b"", end_stream=True)
        service.respond(far, end=True)
        world.settle()
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
        # NO_ERROR would say that nothing is missing.
        assert service.streams[far].reset == (code or ErrorCode.CANCEL)
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.CANCEL, 0x77])
@pytest.mark.parametrize("when", ["no response", "response open", "response ended"])
def test_a_reset_by_the_upstream_reaches_the_client_with_its_code(make: EngineFactory, code: int, when: str) -> None:
    with World(make=make, client_limits=SMALL) as world:
        client, stream, service, far = begun(world)
        client.acknowledging = False
        answered, ended = when != "no response", when == "response ended"
        if answered:
            service.respond(far)
            service.engine.send_data(far, bytes(2 * WINDOW), end_stream=ended)
        service.engine.reset(far, code, after_data=True)
        world.settle()
        if answered:
            assert client.streams[stream].reset is None, "what came before the reset has not all been read"
        client.acknowledge_all()
        world.settle()
        # NO_ERROR would say that nothing is missing: hyper takes it for the end of the response.
        assert client.streams[stream].reset == (code or (None if ended else ErrorCode.INTERNAL_ERROR))
        assert len(client.streams[stream].content) == (2 * WINDOW if answered else 0)
        client.engine.send_data(stream, b"", end_stream=True)
        world.settle()
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
def test_an_upstream_that_breaks_a_rule_has_failed_and_the_client_is_told_which_rule(
    make: EngineFactory, answered: bool
) -> None:
    with World(make=make) as world, structlog.testing.capture_logs() as log:
        client, stream, service, far = begun(world)
        if answered:
            service.respond(far)
            world.settle()
        # Trailers that do not end their stream, or a head without a status.
        service.raw(HeadersFrame(far, b"\x00\x01a\x01b", flags=["END_HEADERS"]))
        world.settle()
        assert service.streams[far].reset == ErrorCode.PROTOCOL_ERROR
        got = client.streams[stream]
        rule = "stream-order" if answered else "pseudo-field"
        assert got.reset == (ErrorCode.INTERNAL_ERROR if answered else None)
        assert got.status == (200 if answered else 502)
        told = f"the response breaks a rule of HTTP/2 ({rule})"
        assert answered or told.encode() in got.content
        (line,) = [line for line in log if line["log_level"] == "warning"]
        assert line["code"] == "upstream-reset"
        assert line["reason"].startswith(told)
        client.engine.send_data(stream, b"", end_stream=True)
        world.settle()
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


@each_bare_engine
def test_content_in_tiny_frames_that_is_held_takes_little_more_memory_than_is_counted(make: EngineFactory) -> None:
    content = bytes(range(256)) * 24
    world, may_connect = waiting(make)
    world.limits = Limits()
    with world:
        client = world.client()
        stream = client.request("/svc/x")
        world.settle()
        frames = b"".join(DataFrame(stream, content[at : at + 4]).serialize() for at in range(0, len(content), 4))
        with traced_octets() as kept:
            world.wire(client).give(frames)
            world.settle()
            assert kept() < 2 * len(content) + 8_192
        assert world.budget.queued_octets >= len(content)
        may_connect.set()
        world.settle()
        service, far = world.latest("/x")
        assert service.streams[far].content == content


@each_bare_engine
def test_trailers_that_are_held_are_charged_until_the_response_begins(make: EngineFactory) -> None:
    trailers: Fields = [(b"x-long", b"%d" % number * 2_000, False) for number in range(8)]
    octets = section_octets(trailers)
    world, may_connect = waiting(make)
    with world:
        client = world.client()
        stream = client.request("/svc/x")
        world.settle()
        before = world.budget.queued_octets
        client.engine.send_trailers(stream, trailers)
        world.settle()
        assert world.budget.queued_octets == before + octets
        may_connect.set()
        world.settle()
        service, far = world.latest("/x")
        assert service.streams[far].trailers == trailers
        assert world.budget.queued_octets == before + octets, "they may have to be sent again"
        service.respond(far)
        world.settle()
        assert world.budget.queued_octets < before
        service.engine.send_data(far, b"", end_stream=True)
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
