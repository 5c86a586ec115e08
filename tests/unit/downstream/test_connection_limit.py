"""The limit of connections: who is closed when there are too many."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from proxy.downstream import listener
from proxy.http2.choice import EngineFactory
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import client
from tests.unit.downstream.stage import listening

pytestmark = pytest.mark.asyncio

REQUEST = b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


async def closed(reader: asyncio.StreamReader) -> bool:
    """Return True once the connection has ended; False if something is received."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


@each_bare_engine
async def test_a_connection_over_the_limit_is_closed_and_used_ones_stay(make: EngineFactory) -> None:
    with capture_logs() as log:
        async with listening(make, most_connections=2) as it, client("127.0.0.1", it.port) as peer:
            peer.open("/svc/x", end=True)
            await it.relay.request()
            await it.raw(REQUEST)
            await it.relay.request()
            for _ in range(3):
                reader, _ = await it.raw(REQUEST)
                assert await closed(reader)
            assert it.counts.connections_refused == ["max-connections"] * 3
            assert not peer.closed.done()
            assert it.relay.requests.empty()
    (line,) = [line for line in log if line["event"].startswith("closing new connections")]
    assert line["event"] == "closing new connections: limit of connections reached (max_connections)"
    assert (line["connections"], line["log_level"]) == (3, "error")


@each_bare_engine
async def test_a_new_connection_is_accepted_after_another_has_closed(make: EngineFactory) -> None:
    async with listening(make, most_connections=1) as it:
        async with client("127.0.0.1", it.port) as first:
            first.open("/svc/x", end=True)
            (await it.relay.request()).answer(b"")
        async with client("127.0.0.1", it.port) as second:
            stream = second.open("/svc/x", end=True)
            (await it.relay.request()).answer(b"one")
            assert (await second.response(stream)).content == b"one"
        assert it.counts.connections_refused == []


@each_bare_engine
async def test_connections_without_a_request_are_closed_for_new_ones_oldest_first(
    make: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_FIRST_REQUEST_SECONDS", 0.0)
    async with listening(make, most_connections=3) as it, client("127.0.0.1", it.port) as used:
        used.open("/svc/x", end=True)
        await it.relay.request()
        silent, _ = await it.raw()
        async with client("127.0.0.1", it.port) as idle:
            await idle.ping()
            reader, _ = await it.raw(REQUEST)
            (await it.relay.request()).answer(b"")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert await closed(silent)
            assert not idle.closed.done()
            reader, _ = await it.raw(REQUEST)
            (await it.relay.request()).answer(b"")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await idle.closed
        assert it.counts.connections_refused == ["unused", "unused"]
        assert not used.closed.done()
        reader, _ = await it.raw(REQUEST)
        assert await closed(reader)
        assert it.counts.connections_refused == ["unused", "unused", "max-connections"]


async def test_a_new_connection_has_a_second_for_its_first_request() -> None:
    async with listening(most_connections=1) as it:
        _, slow = await it.raw()
        reader, _ = await it.raw(REQUEST)
        assert await closed(reader)
        slow.write(REQUEST)
        (await it.relay.request()).answer(b"")
        assert it.counts.connections_refused == ["max-connections"]


async def test_the_limit_may_change() -> None:
    async with listening(most_connections=1) as it:
        await it.raw(REQUEST)
        await it.relay.request()
        it.listener.most_connections = 2
        await it.raw(REQUEST)
        await it.relay.request()
        it.listener.most_connections = 1
        reader, _ = await it.raw(REQUEST)
        assert await closed(reader)
        assert it.counts.connections_refused == ["max-connections"]
