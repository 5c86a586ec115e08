"""Frames through the real sidecar, between a client and a server that the test drives frame by frame."""

from __future__ import annotations

import asyncio

import h2.events
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import HeadersFrame

from tests.support.chain import StartChain
from tests.support.peers.sockets import Peer, Reset

MEBI = 1 << 20


@pytest.mark.asyncio
async def test_a_response_begins_and_ends_before_its_request_does(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/invoke/S/h")
        peer, upstream_stream, _, ended = await upstream.request()
        assert not ended
        peer.respond(upstream_stream, 200)
        await peer.send(upstream_stream, b"early", end=True)
        assert (await client.head(stream))[b":status"] == b"200"
        assert await client.body(stream) == b"early"
        await client.send(stream, b"late", end=True)
        assert await peer.body(upstream_stream) == b"late"


@pytest.mark.asyncio
async def test_a_request_ends_before_its_response_begins(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        await client.send(stream, b"all", end=True)
        peer, upstream_stream, _, _ = await upstream.request()
        assert await peer.body(upstream_stream) == b"all"
        peer.respond(upstream_stream, 201, [(b"x-restate-server", b"sdk")])
        await peer.send(upstream_stream, b"done", end=True)
        assert await client.head(stream) == {b":status": b"201", b"x-restate-server": b"sdk"}
        assert await client.body(stream) == b"done"


@pytest.mark.asyncio
async def test_messages_are_forwarded_both_ways_while_both_halves_are_open(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream)
        for number in range(50):
            await client.send(stream, b"question %d" % number)
            assert await peer.data(upstream_stream) == b"question %d" % number
            await peer.send(upstream_stream, b"answer %d" % number)
            assert await client.data(stream) == b"answer %d" % number


@pytest.mark.asyncio
async def test_interim_heads_and_trailers_are_forwarded(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream, 103, [(b"link", b"</a>")])
        event = await client.event(stream)
        assert isinstance(event, h2.events.InformationalResponseReceived)
        await client.send(stream, b"content")
        client.trailers(stream, [(b"x-checksum", b"1"), (b"x-serverless-authorization", b"Bearer spoofed")])
        assert await peer.rest(upstream_stream) == (b"content", [(b"x-checksum", b"1")])
        peer.respond(upstream_stream)
        await peer.send(upstream_stream, b"reply")
        peer.trailers(upstream_stream, [(b"grpc-status", b"0")])
        assert await client.rest(stream) == (b"reply", [(b"grpc-status", b"0")])


@pytest.mark.asyncio
async def test_empty_trailers_become_the_end_of_data_both_ways(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        await client.send(stream, b"journal")
        # What Restate up to 1.7.0 ends its requests with: HEADERS with no field at all.
        client.raw(HeadersFrame(stream, b"", flags=["END_HEADERS", "END_STREAM"]))
        peer, upstream_stream, _, _ = await upstream.request()
        assert await peer.rest(upstream_stream) == (b"journal", None)
        peer.respond(upstream_stream)
        await peer.send(upstream_stream, b"reply")
        peer.raw(HeadersFrame(upstream_stream, b"", flags=["END_HEADERS", "END_STREAM"]))
        assert await client.rest(stream) == (b"reply", None)


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [0x2, 0x8, 0xB, 0x77])
async def test_a_reset_from_downstream_reaches_upstream_with_its_code_and_after_the_data(
    chain: StartChain, code: int
) -> None:
    async with chain() as (_, upstream, client):
        client.open("/svc/first", end=True)
        peer, _, _, _ = await upstream.request()
        stream = client.open("/svc/x")
        client.h2.send_data(stream, b"last words")
        client.reset(stream, code)
        upstream_stream, _, _ = await peer.request()
        assert await peer.data(upstream_stream) == b"last words"
        with pytest.raises(Reset) as reset:
            await peer.body(upstream_stream)
        assert reset.value.code == code


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [0x0, 0x2, 0x8, 0x77])
async def test_a_reset_from_upstream_reaches_downstream_with_its_code_before_and_after_the_head(
    chain: StartChain, code: int
) -> None:
    # NO_ERROR would say that nothing is missing.
    forwarded = code or ErrorCodes.INTERNAL_ERROR
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/before")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.reset(upstream_stream, code)
        with pytest.raises(Reset) as reset:
            await client.head(stream)
        assert reset.value.code == forwarded

        stream = client.open("/svc/after")
        upstream_stream, _, _ = await peer.request()
        peer.respond(upstream_stream)
        peer.h2.send_data(upstream_stream, b"half of it")
        peer.reset(upstream_stream, code)
        await client.head(stream)
        assert await client.data(stream) == b"half of it"
        with pytest.raises(Reset) as reset:
            await client.body(stream)
        assert reset.value.code == forwarded


@pytest.mark.asyncio
async def test_no_error_after_a_complete_response_is_success(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream)
        await peer.send(upstream_stream, b"enough", end=True)
        peer.reset(upstream_stream, 0)
        await client.head(stream)
        assert await client.body(stream) == b"enough"
        # A little of the rest is discarded and credited, and no stream is reset.
        await client.send(stream, bytes(32 << 10), end=True)
        assert await client.ping() == b"12345678"
        assert not any(isinstance(event, h2.events.StreamReset) for event in client.seen)


@pytest.mark.asyncio
async def test_a_lost_upstream_is_a_reset_after_the_head_and_503_before_it(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        begun, waiting = client.open("/svc/begun"), client.open("/svc/waiting")
        peer, upstream_stream, _, _ = await upstream.request()
        await peer.request()
        peer.respond(upstream_stream)
        await peer.send(upstream_stream, b"half")
        await client.head(begun)
        assert await client.data(begun) == b"half"
        peer.transport.abort()
        with pytest.raises(Reset) as reset:
            await client.body(begun)
        assert reset.value.code == 0x2
        head = await client.head(waiting)
        assert head[b":status"] == b"503"
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-connection-lost"
        assert 1 <= int(head[b"retry-after"]) <= 5


@pytest.mark.asyncio
async def test_a_lost_client_resets_its_streams_upstream(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        client.transport.abort()
        with pytest.raises(Reset) as reset:
            await peer.body(upstream_stream)
        assert reset.value.code == 0x8


@pytest.mark.asyncio
async def test_a_slow_reader_of_64_mebioctets_each_way_keeps_memory_within_the_windows(chain: StartChain) -> None:
    """Neither side gives credit until told to; the sidecar must hold windows' worth, and answer PING meanwhile."""
    total = 64 * MEBI
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: 256 << 10}
    async with chain(upstream={"acknowledging": False, "settings": settings}) as (running, upstream, client):
        client.acknowledging = False
        stream = client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream)
        await client.head(stream)
        before = running.resident_octets
        async with asyncio.TaskGroup() as group:
            group.create_task(client.send(stream, bytes(total), end=True))
            group.create_task(peer.send(upstream_stream, bytes(total), end=True))
            highest = 0
            received = {client: 0, peer: 0}
            for reader, id_ in ((client, stream), (peer, upstream_stream)):
                # Both directions are stuck now, or will be soon: no credit was given.
                assert await reader.ping() == b"12345678"
                group.create_task(_drain(reader, id_, received))
            while any(octets < total for octets in received.values()):
                assert await client.ping() == b"12345678"
                assert await peer.ping() == b"12345678"
                highest = max(highest, running.resident_octets - before)
        assert received == {client: total, peer: total}
        # Each way: a stream window queued, as much in socket and transport buffers, and the allocator's slack.
        assert highest < 16 * MEBI


async def _drain(reader: Peer, stream: int, received: dict[Peer, int]) -> None:
    while True:
        event = await reader.event(stream)
        if isinstance(event, h2.events.DataReceived):
            received[reader] += len(event.data)
            reader.acknowledge(stream)
        elif isinstance(event, h2.events.StreamEnded):
            return


@pytest.mark.asyncio
async def test_a_stuck_stream_does_not_block_the_others(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stuck = client.open("/svc/stuck")
        peer, _, _, _ = await upstream.request()
        peer.acknowledging = False
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(client.send(stuck, bytes(8 * MEBI)))
            for number in range(20):
                stream = client.open(f"/svc/{number}", end=True)
                upstream_stream, _, _ = await peer.request()
                peer.respond(upstream_stream)
                await peer.send(upstream_stream, bytes(100_000), end=True)
                await client.head(stream)
                assert len(await client.body(stream)) == 100_000
            assert not sending.done()
            assert await client.ping() == b"12345678"
            sending.cancel()


@pytest.mark.asyncio
async def test_small_messages_that_wait_for_a_window_leave_as_one_frame(chain: StartChain) -> None:
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
    async with chain(upstream={"settings": settings}) as (_, upstream, client):
        stream = client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        for _ in range(200):
            client.h2.send_data(stream, b"tiny")
        client.h2.end_stream(stream)
        client.flush()
        await client.ping()
        peer.h2.increment_flow_control_window(65_535, upstream_stream)
        peer.flush()
        assert await peer.body(upstream_stream) == b"tiny" * 200
        assert len([size for size in peer.data_frames[upstream_stream] if size]) == 1


@pytest.mark.asyncio
async def test_empty_data_frames_are_not_passed_on(chain: StartChain) -> None:
    async with chain() as (_, upstream, client):
        stream = client.open("/svc/x")
        peer, upstream_stream, _, _ = await upstream.request()
        for _ in range(20):
            client.h2.send_data(stream, b"")
        client.h2.send_data(stream, b"content")
        client.h2.end_stream(stream)
        client.flush()
        assert await peer.body(upstream_stream) == b"content"
        assert 0 not in peer.data_frames[upstream_stream][:-1]


@pytest.mark.asyncio
async def test_path_query_and_fields_are_forwarded_octet_by_octet(chain: StartChain) -> None:
    fields = [
        (b"content-type", b"application/vnd.restate.invocation.v6"),
        (b"accept", b"application/vnd.restate.invocation.v6"),
        (b"authorization", b"Bearer the-caller's"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"x-restate-invocation-id", b"inv_1"),
        (b"x-odd", b"tab\tand \xff octets"),
    ]
    async with chain() as (_, upstream, client):
        client.open("/svc/invoke/Greeter/greet?x=%2F..&y", fields=fields, end=True)
        _, _, head, ended = await upstream.request()
        assert ended
        assert head[:4] == [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", b"127.0.0.1:%d" % upstream.port),
            (b":path", b"/invoke/Greeter/greet?x=%2F..&y"),
        ]
        assert head[4:-1] == fields
        assert head[-1][0] == b"via"
