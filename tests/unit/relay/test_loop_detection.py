"""Requests that come back to a sidecar, and the `via` field that shows it."""

from __future__ import annotations

import pytest
import structlog

from proxy.errors import ERROR_FIELD
from proxy.http2.choice import EngineFactory
from tests.support.data_path import NAME, World
from tests.support.peers.engines import each_bare_engine
from tests.unit.relay.stage import Signed, get


def via_of(world: World, path: str) -> list[bytes]:
    """Return the `via` values with which the latest request for a path has arrived."""
    service, far = world.latest(path)
    return [value for name, value, _ in service.streams[far].head or [] if name == b"via"]


@each_bare_engine
def test_the_via_field_of_this_sidecar_is_added_after_the_existing_ones(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        get(world, client, "/svc/x")
        assert via_of(world, "/x") == [b"2.0 " + NAME]
        client.request("/svc/y", fields=[(b"via", b"1.0 fred, 1.1 google"), (b"via", b"1.1 p (a proxy)")], end=True)
        world.settle()
        assert via_of(world, "/y") == [b"1.0 fred, 1.1 google", b"1.1 p (a proxy)", b"2.0 " + NAME]


@each_bare_engine
def test_the_never_indexed_mark_of_a_via_field_is_kept(make: EngineFactory) -> None:
    with World(make=make) as world:
        client = world.client()
        line = (b"via", b"1.1 secret-proxy", True)
        head = [(b":method", b"GET", False), (b":scheme", b"http", False), (b":path", b"/svc/x", False)]
        client.engine.send_request([*head, (b"host", b"sidecar", False), line], end_stream=True)
        world.settle()
        service, far = world.latest("/x")
        assert line in (service.streams[far].head or [])


@each_bare_engine
@pytest.mark.parametrize(
    "via",
    [
        [b"2.0 " + NAME],
        [b"1.1 " + NAME],
        [b"2.0 " + NAME + b", 1.1 google"],
        [b"1.1 fred", b"HTTP/2.0 " + NAME + b" (a comment)"],
        [b"2.0 " + NAME, b"2.0 cloudrun-sidecar-fedcba9876543210"],
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/svc/discover"), ("POST", "/svc/invoke/Greeter/greet")])
def test_a_request_that_returns_to_its_sidecar_is_answered_508_and_not_forwarded(
    make: EngineFactory, via: list[bytes], method: str, path: str
) -> None:
    with Signed(make) as world, structlog.testing.capture_logs() as log:
        client = world.client()
        stream = client.request(path, method=method, fields=[(b"via", value) for value in via], end=True)
        world.settle()
        assert client.streams[stream].status == 508
        assert client.streams[stream].value(ERROR_FIELD) == b"loop-detected"
        assert b"leads back to the sidecar itself" in client.streams[stream].content
        assert [line["code"] for line in log if line["event"] == "request failed"] == ["loop-detected"]
        assert not world.mints
        assert not world.services
        assert world.metrics.routes["svc"].by_status() == {"508": 1}
        world.assert_at_rest()


@each_bare_engine
@pytest.mark.parametrize(("others", "status"), [(4, 200), (5, 508), (500, 508)])
def test_a_request_passes_through_a_few_other_sidecars_and_not_through_more(
    make: EngineFactory, others: int, status: int
) -> None:
    with World(make=make) as world, structlog.testing.capture_logs():
        client = world.client()
        passed = b", ".join(b"2.0 cloudrun-sidecar-%016x" % number for number in range(others))
        stream = client.request("/svc/x", fields=[(b"via", passed)], end=True)
        world.settle()
        if status == 200:
            service, far = world.latest("/x")
            service.respond(far, end=True)
            world.settle()
        assert client.streams[stream].status == status
        world.assert_at_rest()
