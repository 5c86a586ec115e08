"""Frames through the real sidecar, between a client and a server that the test drives frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import h2.events
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import HeadersFrame

from proxy.emulator import Certificates
from tests.support.h2_peer import Peer, Reset, Server, client, server, server_context
from tests.support.sidecar import Sidecar, sidecar

Routes = Callable[..., Path]

MEBI = 1 << 20


@asynccontextmanager
async def between(
    certificates: Certificates, routes: Routes, *, extra: str = "", **upstream: object
) -> AsyncIterator[tuple[Sidecar, Server, Peer]]:
    tls = server_context(*certificates.server_files("127.0.0.1"))
    async with server(tls, **upstream) as far:
        config = routes(extra, svc=f"https://127.0.0.1:{far.port}")
        async with (
            sidecar("--config", config, "--upstream-ca", certificates.ca_file) as running,
            client(*running.address) as near,
        ):
            yield running, far, near


@pytest.mark.asyncio
async def test_a_response_begins_and_ends_before_its_request_does(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/invoke/S/h")
        peer, far_stream, _, ended = await far.request()
        assert not ended
        peer.respond(far_stream, 200)
        await peer.send(far_stream, b"early", end=True)
        assert (await near.head(stream))[b":status"] == b"200"
        assert await near.body(stream) == b"early"
        await near.send(stream, b"late", end=True)
        assert await peer.body(far_stream) == b"late"


@pytest.mark.asyncio
async def test_a_request_ends_before_its_response_begins(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/x")
        await near.send(stream, b"all", end=True)
        peer, far_stream, _, _ = await far.request()
        assert await peer.body(far_stream) == b"all"
        peer.respond(far_stream, 201, [(b"x-restate-server", b"sdk")])
        await peer.send(far_stream, b"done", end=True)
        assert await near.head(stream) == {b":status": b"201", b"x-restate-server": b"sdk"}
        assert await near.body(stream) == b"done"


@pytest.mark.asyncio
async def test_messages_cross_both_ways_while_both_halves_are_open(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        peer.respond(far_stream)
        for number in range(50):
            await near.send(stream, b"question %d" % number)
            assert await peer.data(far_stream) == b"question %d" % number
            await peer.send(far_stream, b"answer %d" % number)
            assert await near.data(stream) == b"answer %d" % number


@pytest.mark.asyncio
async def test_interim_heads_and_trailers_cross_over(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        peer.respond(far_stream, 103, [(b"link", b"</a>")])
        event = await near.event(stream)
        assert isinstance(event, h2.events.InformationalResponseReceived)
        await near.send(stream, b"content")
        near.trailers(stream, [(b"x-checksum", b"1"), (b"x-serverless-authorization", b"Bearer spoofed")])
        assert await peer.rest(far_stream) == (b"content", [(b"x-checksum", b"1")])
        peer.respond(far_stream)
        await peer.send(far_stream, b"reply")
        peer.trailers(far_stream, [(b"grpc-status", b"0")])
        assert await near.rest(stream) == (b"reply", [(b"grpc-status", b"0")])


@pytest.mark.asyncio
async def test_empty_trailers_become_the_end_of_data_both_ways(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/x")
        await near.send(stream, b"journal")
        # What Restate up to 1.7.0 ends its requests with: HEADERS with no field at all.
        near.raw(HeadersFrame(stream, b"", flags=["END_HEADERS", "END_STREAM"]))
        peer, far_stream, _, _ = await far.request()
        assert await peer.rest(far_stream) == (b"journal", None)
        peer.respond(far_stream)
        await peer.send(far_stream, b"reply")
        peer.raw(HeadersFrame(far_stream, b"", flags=["END_HEADERS", "END_STREAM"]))
        assert await near.rest(stream) == (b"reply", None)


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [0x2, 0x8, 0xB, 0x77])
async def test_a_reset_from_downstream_reaches_upstream_with_its_code_and_after_the_data(
    certificates: Certificates, routes: Routes, code: int
) -> None:
    async with between(certificates, routes) as (_, far, near):
        near.open("/svc/first", end=True)
        peer, _, _, _ = await far.request()
        stream = near.open("/svc/x")
        near.h2.send_data(stream, b"last words")
        near.reset(stream, code)
        far_stream, _, _ = await peer.request()
        assert await peer.data(far_stream) == b"last words"
        with pytest.raises(Reset) as reset:
            await peer.body(far_stream)
        assert reset.value.code == code


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [0x0, 0x2, 0x8, 0x77])
async def test_a_reset_from_upstream_reaches_downstream_with_its_code_before_and_after_the_head(
    certificates: Certificates, routes: Routes, code: int
) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/before")
        peer, far_stream, _, _ = await far.request()
        peer.reset(far_stream, code)
        with pytest.raises(Reset) as reset:
            await near.head(stream)
        assert reset.value.code == code

        stream = near.open("/svc/after")
        far_stream, _, _ = await peer.request()
        peer.respond(far_stream)
        peer.h2.send_data(far_stream, b"half of it")
        peer.reset(far_stream, code)
        await near.head(stream)
        assert await near.data(stream) == b"half of it"
        with pytest.raises(Reset) as reset:
            await near.body(stream)
        assert reset.value.code == code


@pytest.mark.asyncio
async def test_no_error_after_a_complete_response_is_success(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        peer.respond(far_stream)
        await peer.send(far_stream, b"enough", end=True)
        peer.reset(far_stream, 0)
        await near.head(stream)
        assert await near.body(stream) == b"enough"
        # A little of the rest is swallowed, credit and all, and nobody is reset.
        await near.send(stream, bytes(32 << 10), end=True)
        assert await near.ping() == b"12345678"
        assert not any(isinstance(event, h2.events.StreamReset) for event in near.seen)


@pytest.mark.asyncio
async def test_a_lost_upstream_is_a_reset_after_the_head_and_503_before_it(
    certificates: Certificates, routes: Routes
) -> None:
    async with between(certificates, routes) as (_, far, near):
        begun, waiting = near.open("/svc/begun"), near.open("/svc/waiting")
        peer, far_stream, _, _ = await far.request()
        await peer.request()
        peer.respond(far_stream)
        await peer.send(far_stream, b"half")
        await near.head(begun)
        assert await near.data(begun) == b"half"
        peer.transport.abort()
        with pytest.raises(Reset) as reset:
            await near.body(begun)
        assert reset.value.code == 0x2
        head = await near.head(waiting)
        assert head[b":status"] == b"503"
        assert head[b"x-cloudrun-sidecar-error"] == b"upstream-connection-lost"
        assert 1 <= int(head[b"retry-after"]) <= 5


@pytest.mark.asyncio
async def test_a_lost_client_resets_its_streams_upstream(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        near.transport.abort()
        with pytest.raises(Reset) as reset:
            await peer.body(far_stream)
        assert reset.value.code == 0x8


@pytest.mark.asyncio
async def test_64_mebioctets_each_way_with_a_slow_reader_stay_within_the_windows(
    certificates: Certificates, routes: Routes
) -> None:
    """Neither side gives credit until told to; the sidecar must hold windows' worth, and answer PING meanwhile."""
    total = 64 * MEBI
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: 256 << 10}
    async with between(certificates, routes, acknowledging=False, settings=settings) as (running, far, near):
        near.acknowledging = False
        stream = near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        peer.respond(far_stream)
        await near.head(stream)
        before = running.resident_octets
        async with asyncio.TaskGroup() as group:
            group.create_task(near.send(stream, bytes(total), end=True))
            group.create_task(peer.send(far_stream, bytes(total), end=True))
            highest = 0
            received = {near: 0, peer: 0}
            for reader, id_ in ((near, stream), (peer, far_stream)):
                # Both directions are stuck now, or will be soon: nobody has given credit.
                assert await reader.ping() == b"12345678"
                group.create_task(_drain(reader, id_, received))
            while any(octets < total for octets in received.values()):
                assert await near.ping() == b"12345678"
                assert await peer.ping() == b"12345678"
                highest = max(highest, running.resident_octets - before)
        assert received == {near: total, peer: total}
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
async def test_one_stuck_stream_does_not_hold_up_the_others(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stuck = near.open("/svc/stuck")
        peer, _, _, _ = await far.request()
        peer.acknowledging = False
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(near.send(stuck, bytes(8 * MEBI)))
            for number in range(20):
                stream = near.open(f"/svc/{number}", end=True)
                far_stream, _, _ = await peer.request()
                peer.respond(far_stream)
                await peer.send(far_stream, bytes(100_000), end=True)
                await near.head(stream)
                assert len(await near.body(stream)) == 100_000
            assert not sending.done()
            assert await near.ping() == b"12345678"
            sending.cancel()


@pytest.mark.asyncio
async def test_small_messages_that_wait_for_a_window_leave_as_one_frame(
    certificates: Certificates, routes: Routes
) -> None:
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
    async with between(certificates, routes, settings=settings) as (_, far, near):
        stream = near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        for _ in range(200):
            near.h2.send_data(stream, b"tiny")
        near.h2.end_stream(stream)
        near.flush()
        await near.ping()
        peer.h2.increment_flow_control_window(65_535, far_stream)
        peer.flush()
        assert await peer.body(far_stream) == b"tiny" * 200
        assert len([size for size in peer.data_frames[far_stream] if size]) == 1


@pytest.mark.asyncio
async def test_empty_data_frames_are_not_passed_on(certificates: Certificates, routes: Routes) -> None:
    async with between(certificates, routes) as (_, far, near):
        stream = near.open("/svc/x")
        peer, far_stream, _, _ = await far.request()
        for _ in range(20):
            near.h2.send_data(stream, b"")
        near.h2.send_data(stream, b"content")
        near.h2.end_stream(stream)
        near.flush()
        assert await peer.body(far_stream) == b"content"
        assert 0 not in peer.data_frames[far_stream][:-1]


@pytest.mark.asyncio
async def test_path_query_and_fields_cross_to_the_octet(certificates: Certificates, routes: Routes) -> None:
    fields = [
        (b"content-type", b"application/vnd.restate.invocation.v6"),
        (b"accept", b"application/vnd.restate.invocation.v6"),
        (b"authorization", b"Bearer the-caller's"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"x-restate-invocation-id", b"inv_1"),
        (b"x-odd", b"tab\tand \xff octets"),
    ]
    async with between(certificates, routes) as (_, far, near):
        near.open("/svc/invoke/Greeter/greet?x=%2F..&y", fields=fields, end=True)
        _, _, head, ended = await far.request()
        assert ended
        assert head[:4] == [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", b"127.0.0.1:%d" % far.port),
            (b":path", b"/invoke/Greeter/greet?x=%2F..&y"),
        ]
        assert head[4:-1] == fields
        assert head[-1][0] == b"via"
