"""Clients that are too late: without a request, with half a head, with content that dribbles."""

from __future__ import annotations

import pytest
from hyperframe.frame import ContinuationFrame, HeadersFrame, SettingsFrame

from proxy.downstream.deadlines import ContentClock, Deadlines
from proxy.http2.choice import EngineFactory
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import client
from tests.unit.downstream.http1_requests import GET, POST, head_of, lives
from tests.unit.downstream.stage import listening

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
ENHANCE_YOUR_CALM = 0xB


def test_content_may_come_at_any_time_as_long_as_its_rate_is_kept() -> None:
    clock = ContentClock(Deadlines(head_seconds=30.0, content_octets_per_second=100))
    assert clock.seconds_left() == 30.0
    clock.add(1_000, 25.0)
    assert clock.seconds_left() == 15.0
    clock.add(1, 16.0)
    assert clock.seconds_left() == 0.0
    clock.restart()
    assert clock.seconds_left() == 30.0


def test_without_a_rate_content_may_take_any_time() -> None:
    clock = ContentClock(Deadlines(content_octets_per_second=0))
    clock.add(0, 1e6)
    assert clock.seconds_left() is None


@each_bare_engine
@pytest.mark.asyncio
async def test_a_connection_without_a_request_is_ended_and_one_that_has_had_one_is_not(make: EngineFactory) -> None:
    async with listening(make, deadlines=Deadlines(first_request_seconds=0.4)) as at:
        async with client("127.0.0.1", at.port) as idle, client("127.0.0.1", at.port) as silent:
            stream = idle.open("/svc/x", end=True)
            (await at.relay.request()).answer(b"")
            await idle.response(stream)
            assert (await silent.went_away).error_code == 0
            await silent.closed
            assert await idle.ping()
            assert not idle.went_away.done()
        assert at.counts.connections_refused == ["no-request"]
        assert at.counts.cut_off == []


@each_bare_engine
@pytest.mark.parametrize("said", [b"", GET], ids=["unknown", "HTTP/1.1"])
@with_manual_clock
async def test_a_silent_connection_is_ended_whatever_protocol_the_others_speak(
    make: EngineFactory, said: bytes
) -> None:
    async with listening(make, deadlines=Deadlines(first_request_seconds=8.0)) as at:
        await at.raw(said)
        if said:
            (await at.relay.request()).answer(b"")
        silent, _ = await at.raw(PREFACE)
        await loop_idle()
        for _ in range(9):
            await skip(1.0)
        await silent.read()
        assert at.counts.connections_refused == ["no-request"]


@each_bare_engine
@pytest.mark.parametrize("dribbled", [False, True])
@pytest.mark.asyncio
async def test_a_field_block_that_does_not_end_ends_the_connection(make: EngineFactory, dribbled: bool) -> None:
    async with listening(make, deadlines=Deadlines(head_seconds=0.4)) as at:
        reader, writer = await at.raw(PREFACE + HeadersFrame(1, b"\x83").serialize())
        async with client("127.0.0.1", at.port) as other:
            stream = other.open("/svc/x")
            await at.relay.request()
            if dribbled:
                await other.ping()
                writer.write(ContinuationFrame(1, b"\x86").serialize())
            ended = await reader.read()
            assert ended.endswith(ENHANCE_YOUR_CALM.to_bytes(4, "big"))
            assert at.counts.cut_off == [(ENHANCE_YOUR_CALM, "a field section took 0.4 s (head_timeout)")]
            assert await other.ping()
            assert not other.closed.done()
            other.reset(stream, 8)
            await other.ping()


@pytest.mark.asyncio
async def test_content_of_http1_that_comes_too_slowly_ends_the_connection() -> None:
    head = b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
    async with listening(deadlines=Deadlines(head_seconds=0.2, content_octets_per_second=10)) as at:
        reader, writer = await at.raw(head + b"1")
        slow = await at.relay.request()
        writer.write(b"2")
        await slow.received(2)
        assert await slow.reset == 8
        assert await reader.read() == b""
        assert at.counts.refused == ["too-slow"]


@pytest.mark.asyncio
async def test_the_time_in_which_the_sidecar_does_not_read_is_free() -> None:
    octets = 300 << 10
    head = b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (octets + 1)
    deadlines = Deadlines(head_seconds=0.2, content_octets_per_second=1 << 20)
    async with listening(deadlines=deadlines, acknowledging=False) as at:
        _, writer = await at.raw(head + bytes(octets))
        taken = await at.relay.request()
        await taken.received(256 << 10)
        # Another client is ended for its slowness meanwhile.
        reader, _ = await at.raw(b"GET / HTTP/1.1\r\n")
        assert await reader.read() == b""
        taken.acknowledge(len(taken.content))
        writer.write(b"x")
        await taken.ended.wait()
        taken.answer(b"")
        assert at.counts.refused == ["too-slow"]


@with_manual_clock
async def test_the_time_before_a_request_is_not_that_of_its_content() -> None:
    async with listening() as at:
        reader, writer = await at.raw()
        await lives(at, reader, writer)
        await skip(600.0)  # the connection is kept for twelve minutes
        writer.write(POST + b"Content-Length: 2\r\n\r\n")
        taken = await at.relay.request()
        await skip(1.0)
        writer.write(b"ab")
        await taken.ended.wait()
        taken.answer(b"")
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")


@with_manual_clock
async def test_the_content_of_a_request_has_its_own_time_also_if_it_begins_with_the_end_of_another() -> None:
    head = POST + b"Content-Length: 3\r\n\r\n"
    async with listening(deadlines=Deadlines(head_seconds=30.0, content_octets_per_second=500)) as at:
        _, writer = await at.raw(head + b"a")
        first = await at.relay.request()
        await skip(25.0)
        writer.write(b"b")
        await first.received(2)
        writer.write(b"c" + head + b"de")
        await first.ended.wait()
        first.answer(b"")
        second = await at.relay.request()
        await skip(25.0)
        writer.write(b"f")
        await second.ended.wait()
        second.answer(b"")
        assert at.counts.refused == []


@with_manual_clock
async def test_a_client_that_leaves_while_its_response_is_due_was_not_too_slow() -> None:
    async with listening() as at:
        _, writer = await at.raw(POST + b"Content-Length: 2\r\n\r\n")
        taken = await at.relay.request()
        writer.write(b"ab" + GET)
        await taken.ended.wait()
        await skip(60.0)
        writer.transport.abort()
        while not taken.reset.done():
            await skip(1.0)
        await skip(0.0)
        assert at.counts.refused == []


@with_manual_clock
async def test_a_head_over_http1_that_dribbles_has_no_more_time_than_one_that_stops() -> None:
    async with listening(deadlines=Deadlines(head_seconds=30.0)) as at:
        reader, writer = await at.raw(b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\n")
        await loop_idle()
        for _ in range(3):
            assert not reader.at_eof()
            writer.write(b"a: b\r\n")
            await skip(10.0)
        assert await reader.read() == b""
        assert at.counts.refused == ["too-slow"]
