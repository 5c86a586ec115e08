"""The limit of connections: who is closed when there are too many."""

from __future__ import annotations

import asyncio

import h2.events
import pytest
from structlog.testing import capture_logs

from proxy.downstream import admission
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
async def test_each_of_many_lost_connections_is_counted_and_one_line_logged(make: EngineFactory) -> None:
    with capture_logs() as log:
        async with listening(make) as it:
            for _ in range(3):
                it.listener.admission.lost()
            assert it.counts.connections_refused == ["open-files"] * 3
    (line,) = [line["event"] for line in log if "open files" in line["event"]]
    assert line == "closing new connections: limit of open files reached (ulimit -n, LimitNOFILE)"


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
    monkeypatch.setattr(admission, "_LEAST_SECONDS", 0.0)
    async with listening(make, most_connections=3) as it, client("127.0.0.1", it.port) as used:
        used.open("/svc/x", end=True)
        await it.relay.request()
        silent, _ = await it.raw()
        async with client("127.0.0.1", it.port) as idle:
            await idle.ping()
            await it.raw(REQUEST)
            await it.relay.request()
            assert await closed(silent)
            assert not idle.closed.done()
            await it.raw(REQUEST)
            await it.relay.request()
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
        it.listener.admission.most_connections = 2
        await it.raw(REQUEST)
        await it.relay.request()
        it.listener.admission.most_connections = 1
        reader, _ = await it.raw(REQUEST)
        assert await closed(reader)
        assert it.counts.connections_refused == ["max-connections"]


@each_bare_engine
async def test_idle_connections_give_way_to_new_ones_the_longest_idle_first(
    make: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(admission, "_LOOK_SECONDS", 0.0)
    async with (
        listening(make, most_connections=3) as it,
        client("127.0.0.1", it.port) as live,
        client("127.0.0.1", it.port) as idle,
    ):
        live.open("/svc/x", end=True)
        await it.relay.request()
        stream = idle.open("/svc/x", end=True)
        (await it.relay.request()).answer(b"")
        await idle.response(stream)
        http1, writer = await it.raw(REQUEST)
        (await it.relay.request()).answer(b"", (b"content-length", b"0"))
        await http1.readuntil(b"\r\n\r\n")
        writer.write(REQUEST)
        kept = await it.relay.request()
        await it.raw(REQUEST)
        await it.relay.request()
        await idle.closed
        assert any(isinstance(event, h2.events.ConnectionTerminated) for event in idle.seen), "it got a GOAWAY"
        kept.answer(b"", (b"content-length", b"0"))
        await http1.readuntil(b"\r\n\r\n")
        await it.raw(REQUEST)
        await it.relay.request()
        assert await closed(http1)
        assert it.counts.connections_refused == ["idle", "idle"]
        assert not live.closed.done()
        reader, _ = await it.raw(REQUEST)
        assert await closed(reader)
        assert it.counts.connections_refused == ["idle", "idle", "max-connections"]


@each_bare_engine
async def test_an_address_with_most_connections_gives_way_to_others(
    make: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_LOOK_SECONDS", 0.0)
    async with listening(make, most_connections=5) as it:
        greedy = []
        for _ in range(5):
            greedy.append(await it.raw(REQUEST))
            await it.relay.request()
        for newcomer in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port, local_addr=("127.0.0.2", 0))
            it.clients.append(writer)
            writer.write(REQUEST)
            if newcomer < 2:
                await it.relay.request()
                assert await closed(greedy[-1 - newcomer][0])
            else:
                assert await closed(reader), "it has two, and the other address has three"
        assert it.counts.connections_refused == ["most-connections"] * 2 + ["max-connections"]
