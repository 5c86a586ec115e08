"""Heads larger than the upstream takes, and interim heads without end."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode
from tests.support.data_path import World
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.events import GoAwayReceived
from tests.unit.relay.stage import Signed, begun

TAKEN = Limits(max_field_section_octets=16 << 10)


def world_of(make: EngineFactory) -> World:
    """Return a world whose services take heads of 16 KiB, like Google's front end."""
    return World(make=make, service_limits=TAKEN)


@each_bare_engine
def test_a_head_larger_than_the_upstream_takes_is_answered_431_and_not_sent(make: EngineFactory) -> None:
    with world_of(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        first = client.request("/svc/first", end=True)
        world.settle()
        service, far = world.latest("/first")
        service.respond(far, end=True)
        large = client.request("/svc/large", fields=[(b"x-large", b"v" * (16 << 10))])
        world.settle()
        assert client.streams[first].status == 200
        assert client.streams[large].status == 431
        assert client.streams[large].value(ERROR_FIELD) == b"head-too-large"
        assert not world.arrivals("/large")
        (line,) = [line for line in log if line["event"] == "request failed"]
        assert (line["code"], line["log_level"]) == ("head-too-large", "warning")
        assert "takes 16384 (its SETTINGS_MAX_HEADER_LIST_SIZE)" in line["reason"]
        client.engine.send_data(large, b"", end_stream=True)
        world.settle()
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize(("spare", "status"), [(0, 200), (-1, 431)])
def test_a_head_of_exactly_the_size_that_the_upstream_takes_is_sent(
    make: EngineFactory, spare: int, status: int
) -> None:
    with world_of(make) as world, structlog.testing.capture_logs():
        _, _, service, far = begun(world, path="/measured", end=True)
        octets = sum(len(name) + len(value) + 32 for name, value, _ in service.streams[far].head or [])
        client = world.client()
        rest = TAKEN.max_field_section_octets - octets - len(b"x-rest") - 32 - spare
        stream = client.request("/svc/measured", fields=[(b"x-rest", b"v" * rest)], end=True)
        world.settle()
        for service, far in world.arrivals("/measured"):
            service.respond(far, end=True)
        world.settle()
        assert client.streams[stream].status == status


@each_bare_engine
def test_the_token_counts_too(make: EngineFactory) -> None:
    with Signed(make) as world, structlog.testing.capture_logs():
        world.service_limits = Limits(max_field_section_octets=300)
        client = world.client()
        stream = client.request("/svc/x", fields=[(b"x-rest", b"v" * 10)], end=True)
        world.settle()
        assert client.streams[stream].status == 431
        assert world.mints
        assert not world.arrivals("/x")


@each_bare_engine
def test_an_upstream_that_sends_interim_heads_without_end_is_reset(make: EngineFactory) -> None:
    with World(make=make, limits=Limits(max_interim_heads=3)) as world, structlog.testing.capture_logs():
        client, stream, service, far = begun(world, end=True)
        for _ in range(3):
            service.respond(far, 103)
        world.settle()
        assert len(client.streams[stream].interim) == 3
        service.respond(far, 103)
        world.settle()
        assert len(client.streams[stream].interim) == 3
        assert b"too-many-interim-heads" in client.streams[stream].content
        assert service.streams[far].reset == ErrorCode.ENHANCE_YOUR_CALM
        assert world.metrics.responses_refused == {("https://svc.example", "too-many-interim-heads"): 1}
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_head_larger_than_we_take_is_answered_431_and_its_connection_goes_on(
    make: EngineFactory, method: str
) -> None:
    with World(make=make, limits=TAKEN) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        large = client.request("/svc/large", method=method, fields=[(b"x-large", b"v" * (30 << 10))])
        other = client.request("/svc/other", fields=[(b"x-large", b"v" * 1_000)], end=True)
        world.settle()
        service, far = world.latest("/other")
        service.respond(far, end=True)
        client.engine.send_data(large, bytes(10_000), end_stream=True)
        world.settle()
        answered = client.streams[large]
        assert (answered.status, answered.value(ERROR_FIELD)) == (431, b"head-too-large")
        assert bool(answered.content) == (method == "POST")
        assert client.streams[other].status == 200
        assert client.failed is None
        assert not world.arrivals("/large")
        (line,) = [line for line in log if line["event"] == "request failed"]
        assert (line["code"], line["log_level"]) == ("head-too-large", "warning")
        assert "larger than max_field_section" in line["reason"]
        world.assert_at_rest()


@each_bare_engine
def test_a_head_several_times_as_large_as_we_take_ends_the_connection(make: EngineFactory) -> None:
    with World(make=make, limits=TAKEN) as world, structlog.testing.capture_logs():
        client = world.client()
        large = client.request("/svc/large", fields=[(b"x-large", b"v" * (8 << 10))] * 10, end=True)
        world.settle()
        assert client.streams[large].head is None
        (code,) = [event.code for event in client.events if isinstance(event, GoAwayReceived)]
        assert code == ErrorCode.ENHANCE_YOUR_CALM
        assert not world.arrivals("/large")
