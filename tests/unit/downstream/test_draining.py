"""The end of HTTP/1.1 connections: what clients that read slowly get, and how long idle ones are waited for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from proxy.downstream.tls import TlsFiles
from proxy.emulator import Certificates
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.support.peers.sockets import client
from tests.unit.downstream.http1_requests import GET, lives, read_until_gone
from tests.unit.downstream.stage import listening

LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@with_manual_clock
async def test_draining_delivers_the_end_of_an_http_1_1_response_to_a_slow_client() -> None:
    """The exchange is over, and a part of the response in the transport, when the drain begins."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    async with listening() as it:
        loop = asyncio.get_running_loop()
        slow.setblocking(False)
        await loop.sock_connect(slow, ("127.0.0.1", it.port))
        await loop.sock_sendall(slow, GET)
        taken = await it.relay.request()
        (accepted,) = it.listener.admission.accepted
        accepted.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        taken.answer(bytes(60_000))
        await loop_idle()
        assert accepted.transport.get_write_buffer_size() > 0
        assert not it.listener.live_exchanges
        it.end.set()
        for _ in range(4):  # longer than any wait of the drain but its timeout
            await skip(1.0)
        reader, writer = await asyncio.open_connection(sock=slow)
        it.clients.append(writer)
        head, _, content = (await read_until_gone(reader)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert content.endswith(b"\r\n0\r\n\r\n")
        assert await it.drained


@pytest.mark.asyncio
async def test_a_response_over_http_1_1_during_a_drain_says_that_its_connection_ends() -> None:
    async with listening() as it:
        it.drain_seconds = 600.0
        await it.raw(GET)
        live = await it.relay.request()
        kept_reader, kept = await it.raw()
        await lives(it, kept_reader, kept)
        it.end.set()
        await loop_idle()
        new_reader, new = await it.raw()
        for reader, writer in ((kept_reader, kept), (new_reader, new)):
            writer.write(GET)
            (await it.relay.request()).answer(b"refused")
            response = await read_until_gone(reader)
            assert b"\r\nconnection: close\r\n" in response
            assert response.endswith(b"refused\r\n0\r\n\r\n")
        live.answer(b"")
        assert await it.drained


@pytest.mark.asyncio
async def test_clients_without_a_request_are_waited_for_until_that_is_ended() -> None:
    async with listening() as it:
        reader, writer = await it.raw()
        await lives(it, reader, writer)
        leaving = asyncio.get_running_loop().create_task(it.listener.retire(1_000_000.0))
        await loop_idle()
        assert not leaving.done()
        it.listener.end_retiring()
        await leaving


@with_manual_clock
async def test_leaving_ends_with_the_last_client_also_of_those_that_came_meanwhile() -> None:
    async with listening() as it:
        reader, writer = await it.raw()
        await lives(it, reader, writer)
        leaving = asyncio.get_running_loop().create_task(it.listener.retire(1_000_000.0))
        await loop_idle()
        later, _ = await it.raw(GET)
        writer.write(GET)
        for _ in range(2):
            (await it.relay.request()).answer(b"last")
        for each in (reader, later):
            assert b"\r\nconnection: close\r\n" in (await each.read()).lower()
        await loop_idle()
        assert leaving.done()


@with_manual_clock
async def test_a_client_that_comes_while_others_leave_has_half_a_second_for_its_requests() -> None:
    async with listening() as it:
        await lives(it, *await it.raw())
        leaving = asyncio.get_running_loop().create_task(it.listener.retire(1_000_000.0))
        await loop_idle()
        await skip(0.4)
        async with client("127.0.0.1", it.port) as near:
            await near.ping()
            for seconds, offered in ((0.4, True), (0.2, False)):
                await skip(seconds)
                assert (near.h2.remote_settings.max_concurrent_streams > 0) == offered
        it.listener.end_retiring()
        await leaving


@with_manual_clock
@pytest.mark.parametrize("says", [b"", b"no TLS"])
async def test_leaving_waits_for_a_handshake_until_it_has_failed(tmp_path: Path, says: bytes) -> None:
    certificates = Certificates.create(tmp_path)
    async with listening(tls=TlsFiles(*certificates.server_files("localhost"))) as it:
        reader, writer = await it.raw()
        await loop_idle()
        leaving = asyncio.get_running_loop().create_task(it.listener.retire(1_000_000.0))
        await loop_idle()
        assert not leaving.done()
        if says:
            writer.write(says)
        else:
            writer.close()
        await read_until_gone(reader)
        await loop_idle()
        assert leaving.done()


@with_manual_clock
async def test_a_client_that_does_not_leave_is_waited_for_only_so_long() -> None:
    async with listening() as it:
        await lives(it, *await it.raw())
        leaving = asyncio.get_running_loop().create_task(it.listener.retire(60.0))
        await loop_idle()
        await skip(59.0)
        assert not leaving.done()
        await skip(1.0)
        assert leaving.done()


@with_manual_clock
async def test_a_second_signal_ends_the_wait_for_clients_and_their_requests() -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET)
        taken = await it.relay.request()
        leaving = asyncio.get_running_loop().create_task(it.listener.retire(1_000_000.0))
        await loop_idle()
        it.listener.abort()
        await loop_idle()
        assert leaving.done()
        it.end.set()
        await skip(1.0)
        assert await taken.reset == 0x8
        assert (await read_until_gone(reader)).startswith(b"HTTP/1.1 503 ")
        assert not await it.drained


@with_manual_clock
@pytest.mark.parametrize("asks", [True, False])
async def test_a_connection_that_was_accepted_just_before_the_end_may_send_its_first_request(asks: bool) -> None:
    async with listening() as it:
        reader, writer = await it.raw()
        await loop_idle()
        it.end.set()
        await loop_idle()
        await skip(0.4)
        assert not it.drained.done()
        if asks:
            writer.write(GET)
            taken = await it.relay.request()
            await loop_idle()
            taken.answer(b"in time")
            assert b"in time" in await reader.readuntil(b"0\r\n\r\n")
        await skip(0.2)
        await read_until_gone(reader)
        assert await it.drained


@with_manual_clock
async def test_the_end_waits_for_no_client_that_is_silent_after_its_last_response() -> None:
    async with listening() as it:
        reader, writer = await it.raw()
        await lives(it, reader, writer)
        await skip(2.0)
        it.end.set()
        await loop_idle()
        assert await reader.read() == b""
        await loop_idle()
        assert it.drained.result()


def _all_octets(connection: socket.socket) -> bytes:
    received = b""
    while octets := connection.recv(1 << 16):
        received += octets
    return received


@with_manual_clock
@pytest.mark.parametrize(
    ("request_", "draining"), [(LAST, False), (GET, True), (LAST, True)], ids=["last", "draining", "last-draining"]
)
async def test_the_last_response_over_tls_is_delivered_to_a_slow_client_before_tls_ends(
    tmp_path: Path, request_: bytes, draining: bool
) -> None:
    certificates = Certificates.create(tmp_path)
    context = ssl.create_default_context(cafile=certificates.ca_file)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    async with listening(tls=TlsFiles(*certificates.server_files("localhost"))) as it:
        it.drain_seconds = 1_000_000.0  # the client reads in a thread, and knows no manual clock
        slow.connect(("127.0.0.1", it.port))
        with await asyncio.to_thread(context.wrap_socket, slow, server_hostname="localhost") as client:
            client.sendall(request_)
            taken = await it.relay.request()
            (accepted,) = it.listener.admission.accepted
            accepted.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            taken.answer(bytes(60_000))
            await loop_idle()
            if draining:
                it.end.set()
            for _ in range(4):  # longer than the end of TLS may take, or any wait of the drain but its timeout
                await skip(1.0)
            reading = asyncio.get_running_loop().run_in_executor(None, _all_octets, client)
            while not reading.done():
                await skip(0.1)
            head, _, content = (await reading).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert content.endswith(b"\r\n0\r\n\r\n")
