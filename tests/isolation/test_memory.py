"""A client or a service makes octets wait: memory stays within its cap, and the neighbours do not notice."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import h2.events
import h2.exceptions
import pytest
from h2.settings import SettingCodes

from tests.isolation.stage import CAP_OCTETS, LARGE_HEADS, stage
from tests.support.peers.sockets import Gone, Peer

MIB = 1 << 20

each_engine = pytest.mark.parametrize("engine", ["h2", "nghttp2"])

# A stream of the sidecar waits with up to 1 MiB; this many streams are more than the cap.
STREAMS = CAP_OCTETS // MIB * 2

EXCHANGE_OCTETS = 4 << 10
"""What is charged for each exchange, beside its head and content."""

OVERLOADED = '"code": "overloaded"'


async def large(peer: Peer, stream: int) -> None:
    """Answer with more than a window."""
    peer.respond(stream, 200)
    await peer.send(stream, bytes(4 * MIB), end=True)


async def larger_than_sockets(peer: Peer, stream: int) -> None:
    """Answer with more than a window and the buffers of a socket."""
    peer.respond(stream, 200)
    await peer.send(stream, bytes(16 * MIB), end=True)


async def hang(peer: Peer, stream: int) -> None:
    """Never answer."""


async def take_nothing(peer: Peer, stream: int) -> None:
    """Never answer, and take no more content than the first window."""
    peer.acknowledging = False


@each_engine
@pytest.mark.asyncio
@pytest.mark.parametrize("window", [0, 65_535])
async def test_large_responses_that_a_client_does_not_read_stay_within_the_cap(
    engine: str, window: int, tmp_path: Path
) -> None:
    async with stage(tmp_path, engine) as at:
        at.service.behaviours["large"] = large
        async with at.client(settings={SettingCodes.INITIAL_WINDOW_SIZE: window}, acknowledging=False) as slow:
            for _ in range(STREAMS):
                slow.open("/bad/large", end=True)
            await at.sidecar.logged(OVERLOADED)
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
async def test_large_responses_in_the_socket_of_a_client_stay_within_the_cap(engine: str, tmp_path: Path) -> None:
    async with stage(tmp_path, engine) as at:
        at.service.behaviours["large"] = large
        async with at.client(settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30}) as slow:
            slow.h2.increment_flow_control_window(1 << 30)
            await slow.ping()
            slow.transport.pause_reading()
            for _ in range(STREAMS):
                slow.open("/bad/large", end=True)
            await at.sidecar.logged(OVERLOADED)
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
async def test_connections_that_hold_less_than_another_do_not_end_its_streams(
    engine: str, address: str, tmp_path: Path
) -> None:
    async with stage(tmp_path, engine) as at, at.client() as calm, AsyncExitStack() as clients:
        at.service.behaviours |= {"large": large, "hang": hang}
        # The connection with the most octets is this one, whose address is 127.0.0.1.
        waiting = [calm.queue("/bad/hang", end=True) for _ in range(CAP_OCTETS // EXCHANGE_OCTETS // 5)]
        calm.flush()
        await calm.ping()
        for _ in range(STREAMS):
            slow = await clients.enter_async_context(
                at.client(settings={SettingCodes.INITIAL_WINDOW_SIZE: 0}, acknowledging=False, address=address)
            )
            slow.open("/bad/large", end=True)
        await at.sidecar.logged(OVERLOADED)
        await at.assert_unharmed()
        await calm.ping()
        assert not [
            event for event in calm.seen if isinstance(event, h2.events.StreamReset | h2.events.ResponseReceived)
        ]
        assert calm.h2.open_outbound_streams == len(waiting)


@each_engine
@pytest.mark.asyncio
async def test_large_responses_that_clients_of_http1_do_not_read(engine: str, tmp_path: Path) -> None:
    async with stage(tmp_path, engine) as at:
        at.service.behaviours["large"] = larger_than_sockets
        with ExitStack() as connections:
            for _ in range(STREAMS):
                slow = connections.enter_context(socket.socket())
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                slow.connect(at.sidecar.address)
                slow.sendall(b"GET /bad/large HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await at.sidecar.logged(OVERLOADED)
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
async def test_what_clients_of_http1_send_ahead_of_their_turn_stays_within_the_cap(engine: str, tmp_path: Path) -> None:
    request = b"GET /bad/hang HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with stage(tmp_path, engine) as at, at.client() as other:
        at.service.behaviours["hang"] = hang
        with ExitStack() as connections:
            for _ in range(3 * CAP_OCTETS // (256 << 10)):
                greedy = connections.enter_context(socket.socket())
                # Closed with RST: an orderly end would wait behind what is not read.
                greedy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                greedy.connect(at.sidecar.address)
                greedy.setblocking(False)
                greedy.send(request + bytes(512 << 10))
                await other.ping()
            (line, *_) = await at.sidecar.logged("closing the connection of a client")
            assert (line["code"], line["reason"]) == (
                "ENHANCE_YOUR_CALM",
                "memory is short (queued_octets), and it sends ahead of its turn",
            )
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
async def test_uploads_to_a_service_that_reads_nothing_stay_within_the_cap(engine: str, tmp_path: Path) -> None:
    async with stage(tmp_path, engine) as at:
        at.service.behaviours["upload"] = take_nothing
        async with at.client() as uploader, asyncio.TaskGroup() as uploads:

            async def upload() -> None:
                stream = uploader.open("/bad/upload")
                # Streams are reset, and in the end the connection is lost.
                with suppress(Gone, h2.exceptions.ProtocolError):
                    await uploader.send(stream, bytes(3 * MIB), end=True)

            for _ in range(STREAMS):
                uploads.create_task(upload())
            await at.sidecar.logged(OVERLOADED)
            await at.assert_unharmed()
            uploader.transport.abort()


@each_engine
@pytest.mark.asyncio
async def test_requests_that_hang_stay_within_the_cap(engine: str, tmp_path: Path) -> None:
    async with stage(tmp_path, engine) as at, AsyncExitStack() as clients:
        at.service.behaviours["hang"] = hang
        # Together half more than the exchanges that fill the cap.
        for _ in range(3):
            greedy = await clients.enter_async_context(at.client())
            for _ in range(CAP_OCTETS // EXCHANGE_OCTETS // 2):
                greedy.queue("/bad/hang", end=True)
            greedy.flush()
            await greedy.ping()
        await at.sidecar.logged(OVERLOADED)
        await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
async def test_large_heads_that_cost_the_client_few_octets_stay_within_the_cap(engine: str, tmp_path: Path) -> None:
    # After the first request HPACK's table has the line: each more costs the client one octet, the sidecar 4,000.
    fields = [(b"x-large", b"v" * 4_000)] * 15
    async with stage(tmp_path, engine, *LARGE_HEADS) as at:
        at.service.behaviours["hang"] = hang
        async with at.client() as greedy:
            await greedy.ping()
            for _ in range(3 * CAP_OCTETS // 60_000):
                greedy.open("/bad/hang", fields=fields)
            await at.sidecar.logged(OVERLOADED)
            await at.assert_unharmed()


@each_engine
@pytest.mark.asyncio
@pytest.mark.parametrize("interim", [0, 90])
async def test_response_heads_that_a_client_does_not_read_stay_within_the_cap(
    engine: str, interim: int, tmp_path: Path
) -> None:
    fields = [(b"x-%d" % number, b"v" * 7_000) for number in range(7)]

    async def heads(peer: Peer, stream: int) -> None:
        for _ in range(interim):
            peer.respond(stream, 103, fields)
        peer.respond(stream, 204, fields, end=True)

    async with stage(tmp_path, engine, *LARGE_HEADS) as at:
        at.service.behaviours["heads"] = heads
        async with at.client() as slow:
            await slow.ping()
            slow.transport.pause_reading()
            for _ in range(3 * CAP_OCTETS // 49_000 // (interim + 1)):
                slow.open("/bad/heads", end=True)
            (line,) = await at.sidecar.logged("closing the connection of a client")
            assert line["code"] == "ENHANCE_YOUR_CALM"
            await at.assert_unharmed()
