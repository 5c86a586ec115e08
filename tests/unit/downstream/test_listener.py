"""Recognising the protocol of a connection, and draining."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy.downstream import serving
from proxy.downstream.deadlines import Deadlines
from proxy.http2.choice import EngineFactory
from tests.support.loops import loop_idle
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import client
from tests.unit.downstream.stage import listening

pytestmark = pytest.mark.asyncio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@each_bare_engine
@pytest.mark.parametrize("size", [1, 5, 23, 24])
async def test_a_fragmented_preface_is_recognised(make: EngineFactory, size: int) -> None:
    async with listening(make) as it:
        reader, writer = await it.raw()
        octets = PREFACE + SETTINGS
        for start in range(0, len(octets), size):
            writer.write(octets[start : start + size])
            await loop_idle()  # the listener has read this piece
        head = await reader.readexactly(9)
        assert head[3] == 0x4  # SETTINGS
        assert it.counts.opened == 1


@each_bare_engine
async def test_a_client_that_left_a_moment_ago_is_no_error(make: EngineFactory) -> None:
    async with listening(make) as it:
        leaving = socket.create_connection(("127.0.0.1", it.port))
        leaving.sendall(PREFACE + SETTINGS)
        while not it.listener.connections():
            await loop_idle()
        leaving.recv(1 << 16)
        # The event loop does not learn of this before the drain: the client's system answers the GOAWAY with RST, and
        # the other direction of the connection cannot be shut down any more.
        leaving.close()
        for connection in it.listener.connections():
            connection.go_away("the sidecar is shutting down")


async def test_a_request_that_begins_like_the_preface_is_http1() -> None:
    async with listening() as it:
        reader, writer = await it.raw(b"P")
        writer.write(b"ATCH /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        (await it.relay.request()).answer(b"")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert not it.listener.connections()
        assert (it.counts.opened, it.counts.closed) == (1, 0)


@pytest.mark.parametrize("said", [b"", b"PRI * HT"])
async def test_a_connection_without_a_protocol_is_closed_after_a_time(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_PREFACE_SECONDS", 0.05)
    async with listening() as it:
        reader, _ = await it.raw(said)
        assert await _until_gone(reader) == b""


async def test_a_head_must_be_complete_within_a_time_and_content_need_not_where_any_rate_is_allowed() -> None:
    async with listening(deadlines=Deadlines(head_seconds=0.05, content_octets_per_second=0)) as it:
        reader, writer = await it.raw(b"GET / HTTP/1.1\r\n")
        _, content = await it.raw(b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n1")
        taken = await it.relay.request()
        writer.write(b"Host: localhost\r\n")
        assert await _until_gone(reader) == b""
        content.write(b"2")
        await taken.ended.wait()


@pytest.mark.parametrize("said", [b"", b"PRI", PREFACE])
@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_connection_that_closes_early_is_cleaned_up(said: bytes, abruptly: bool) -> None:
    async with listening() as it:
        reader, writer = await it.raw(said)
        if abruptly:
            writer.transport.abort()
        else:
            writer.write_eof()
            await _until_gone(reader)
        assert it.listener.live_exchanges == 0


@each_bare_engine
async def test_a_half_closed_connection_carries_no_http2(make: EngineFactory) -> None:
    async with listening(make) as it:
        reader, writer = await it.raw(PREFACE + SETTINGS)
        writer.write_eof()
        await _until_gone(reader)
        assert it.counts.opened == it.counts.closed


@each_bare_engine
async def test_draining_closes_idle_and_silent_connections_at_once(make: EngineFactory) -> None:
    async with listening(make) as it, client("127.0.0.1", it.port) as near:
        reader, _ = await it.raw()
        await near.ping()
        it.end.set()
        assert await it.drained
        assert (await near.went_away).error_code == 0
        assert await _until_gone(reader) == b""
        assert it.listener.drained


@each_bare_engine
async def test_draining_delivers_the_last_frames_to_a_slow_client(make: EngineFactory) -> None:
    """The response is in the transport of a client that reads slowly."""
    async with listening(make) as it, client("127.0.0.1", it.port) as near:
        near.h2.increment_flow_control_window((1 << 30) - 1)
        near.transport.pause_reading()
        stream = near.open("/svc/x", end=True)
        near.h2.increment_flow_control_window(1 << 20, stream)
        near.flush()
        taken = await it.relay.request()
        taken.answer(bytes(1 << 20))
        it.end.set()
        near.transport.resume_reading()
        assert len(await near.body(stream)) == 1 << 20
        assert await it.drained


async def _until_gone(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("connections", [1, 50])
async def test_connections_that_wait_in_the_queue_when_it_stops_accepting_are_answered(connections: int) -> None:
    request = b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    async with listening() as it:
        await it.raw(request)
        (await it.relay.request()).answer(b"")
        waiting = []
        for _ in range(connections):
            # The kernel connects it. The event loop does not run meanwhile, so nobody has accepted it.
            waiting.append(socket.create_connection(("127.0.0.1", it.port)))
            waiting[-1].sendall(request)
        await it.listener.stop_accepting()
        for connection in waiting:
            reader, writer = await asyncio.open_connection(sock=connection)
            it.clients.append(writer)
            (await it.relay.request()).answer(b"")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        with pytest.raises(ConnectionRefusedError):
            await it.raw()


@pytest.mark.asyncio
async def test_the_task_that_has_served_can_wait_with_a_time_limit() -> None:
    """Python 3.11.2 takes a time limit for a cancellation if one was asked for before, and was not taken back."""
    async with listening() as it:
        pass
    assert it.serving is not None
    assert it.serving.cancelling() == 0
