"""h2c connections, with a real client and every engine."""

from __future__ import annotations

import h2.events
import pytest
from h2.settings import SettingCodes

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import Gone, Reset, client
from tests.unit.downstream.stage import listening

pytestmark = [pytest.mark.asyncio, each_bare_engine]

HOST = "127.0.0.1"


async def test_a_request_reaches_the_acceptor_and_its_response_the_client(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x", fields=[(b"a", b"1")])
        taken = await it.relay.request()
        assert (taken.plain[b":path"], taken.plain[b"a"], taken.ended_with_head) == (b"/svc/x", b"1", False)
        await near.send(stream, b"question")
        near.trailers(stream, [(b"sum", b"2")])
        await taken.ended.wait()
        assert (bytes(taken.content), taken.trailers) == (b"question", [(b"sum", b"2", False)])
        taken.head(201, (b"b", b"3"))
        taken.data(b"answer")
        taken.end_with_trailers((b"c", b"4"))
        assert await near.head(stream) == {b":status": b"201", b"b": b"3"}
        assert await near.rest(stream) == (b"answer", [(b"c", b"4")])
        assert taken.sent_octets == len(b"answer")
        assert it.listener.live_exchanges == 0
        assert not taken.reset.done()


async def test_settings_offer_the_streams_and_windows_that_restate_needs(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        await near.ping()
        settings = near.h2.remote_settings
        assert settings[SettingCodes.MAX_CONCURRENT_STREAMS] >= 128
        assert settings[SettingCodes.INITIAL_WINDOW_SIZE] >= 1 << 18
        assert near.h2.outbound_flow_control_window >= 1 << 20


async def test_a_connection_that_is_lost_lets_go_of_its_transport_and_of_what_that_holds(make: EngineFactory) -> None:
    async with listening(make) as it:
        async with client(HOST, it.port) as near:
            await near.ping()
            (connection,) = it.listener.connections()
            assert connection.transport is not None
        await connection.gone
        assert connection.transport is None


async def test_resets_are_forwarded_with_their_code_in_both_directions(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x")
        taken = await it.relay.request()
        near.reset(stream, 0x8)
        assert await taken.reset == 0x8
        assert taken.reset_by_peer
        stream = near.open("/svc/x")
        taken = await it.relay.request()
        taken.head()
        taken.reset_stream(0xB)
        await near.head(stream)
        with pytest.raises(Reset) as reset:
            await near.body(stream)
        assert reset.value.code == 0xB


async def test_a_stream_error_of_the_client_resets_the_stream_on_both_sides(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x", fields=[(b"content-length", b"1")])
        taken = await it.relay.request()
        await near.send(stream, b"too much")
        assert await taken.reset == 0x1
        assert not taken.reset_by_peer
        with pytest.raises(Reset) as reset:
            await near.body(stream)
        assert reset.value.code == 0x1


async def test_data_for_a_stream_without_receiver_returns_its_window(make: EngineFactory) -> None:
    limits = Limits(stream_window_octets=65_535)
    async with listening(make, limits=limits) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x")
        taken = await it.relay.request()
        taken.detach()
        await near.send(stream, bytes(200_000))
        near.trailers(stream, [(b"sum", b"2")])
        await near.ping()
        assert not taken.content
        assert taken.trailers is None


async def test_ping_is_answered_while_a_stream_has_no_window(make: EngineFactory) -> None:
    limits = Limits(stream_window_octets=65_535)
    async with listening(make, limits=limits, acknowledging=False) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x")
        taken = await it.relay.request()
        await near.send(stream, bytes(65_535))
        await taken.received(65_535)
        assert near.h2.local_flow_control_window(stream) == 0
        assert await near.ping(b"stuck???") == b"stuck???"
        other = near.open("/svc/y", end=True)
        (await it.relay.request()).answer(b"well")
        await near.head(other)
        assert await near.body(other) == b"well"
        taken.acknowledge(65_535)
        await near.send(stream, b"on", end=True)
        await taken.ended.wait()


async def test_a_lost_connection_resets_its_requests(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        near.open("/svc/x")
        near.open("/svc/y")
        taken = [await it.relay.request(), await it.relay.request()]
        near.transport.abort()
        assert [await each.reset for each in taken] == [0x8, 0x8]
        assert it.listener.live_exchanges == 0


async def test_a_half_closed_http2_connection_is_closed(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        near.open("/svc/x")
        taken = await it.relay.request()
        near.transport.write_eof()
        assert await taken.reset == 0x8
        await near.closed


async def test_after_go_away_of_the_client_live_streams_finish_and_the_connection_closes(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x", end=True)
        taken = await it.relay.request()
        near.go_away(0)
        await near.ping()
        taken.answer(b"still")
        await near.head(stream)
        assert await near.body(stream) == b"still"
        await near.closed


async def test_a_connection_error_is_sent_as_go_away_and_closes_the_connection(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        near.open("/svc/x")
        taken = await it.relay.request()
        near.transport.write(b"\x00\x00\x01\x00\x00\x00\x00\x00\x00?")  # DATA on stream 0
        assert await taken.reset == 0x8
        assert (await near.went_away).error_code == 0x1
        await near.closed


async def test_a_flood_of_resets_ends_the_connection(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        for _ in range(2_000):
            near.reset(near.open("/svc/x"), 0x8)
        assert (await near.went_away).error_code == 0xB


async def test_go_away_is_sent_only_after_the_last_stream_has_ended(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        stream = near.open("/svc/x", end=True)
        taken = await it.relay.request()
        it.end.set()
        await near.ping()
        assert not near.went_away.done()
        taken.answer(b"done")
        assert await near.body(stream) == b"done"
        assert (await near.went_away).error_code == 0
        assert await it.drained


async def test_after_the_drain_timeout_live_streams_are_reset_on_both_sides(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        it.drain_seconds = 0.6
        stream = near.open("/svc/x", end=True)
        taken = await it.relay.request()
        it.end.set()
        with pytest.raises(Reset) as reset:
            await near.body(stream)
        assert reset.value.code == 0x2, "some clients take CANCEL for the end of a response"
        assert await taken.reset == 0x8
        assert not await it.drained


async def test_abort_resets_live_streams_at_once(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as near:
        it.drain_seconds = 60.0
        stream = near.open("/svc/x", end=True)
        await it.relay.request()
        it.end.set()
        await near.ping()
        it.listener.abort()
        with pytest.raises((Reset, Gone)):
            await near.body(stream)
        assert not await it.drained


async def test_connections_are_counted(make: EngineFactory) -> None:
    async with listening(make) as it, client(HOST, it.port) as one, client(HOST, it.port) as other:
        await one.ping()
        await other.ping()
        assert (it.counts.opened, it.counts.closed) == (2, 0)
        assert not [event for event in one.seen if isinstance(event, h2.events.ConnectionTerminated)]
