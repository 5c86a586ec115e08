"""The socket object does not close again a descriptor that the loop has closed."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
from typing import cast

import pytest

TLS = ssl.create_default_context()


async def hand_over(numbers: list[int], tls: ssl.SSLContext | None, *, reset: bool) -> None:
    """Connect a socket, note its descriptor, and pass it to the loop; with `reset`, the peer has reset it before."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        near.setblocking(False)
        numbers.append(near.fileno())
        far, _ = listening.accept()
        with far:
            if reset:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                far.close()
            await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, sock=near, ssl=tls, server_hostname="localhost" if tls else None
            )


def is_closed_again(number: int) -> bool:
    """Return True if a forgotten socket object closes a descriptor's number after another file has got it."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    opened = os.open(os.devnull, os.O_RDONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    gc.collect()
    try:
        os.close(number)
    except OSError:
        return True
    return False


async def closes_twice(tls: ssl.SSLContext | None, *, reset: bool) -> bool:
    """Return True if a failed call closes its descriptor's number again after another file got that number."""
    numbers: list[int] = []
    try:
        async with asyncio.timeout(None if reset else 0):
            await hand_over(numbers, tls, reset=reset)
        raise AssertionError("it did not fail")
    except (ConnectionError, TimeoutError):
        # asyncio closes in its next turn. The socket object lives on in the traceback.
        await asyncio.sleep(0)
    return is_closed_again(numbers[0])


@pytest.mark.asyncio
async def test_a_descriptor_is_closed_once_if_the_peer_resets_before_the_client_hello() -> None:
    assert not await closes_twice(TLS, reset=True)


@pytest.mark.asyncio
@pytest.mark.parametrize("tls", [TLS, None], ids=["tls", "plain"])
async def test_a_descriptor_is_closed_once_if_the_call_is_cancelled(tls: ssl.SSLContext | None) -> None:
    assert not await closes_twice(tls, reset=False)


class Aborting(asyncio.Protocol):
    """Wants nothing of its connection, and notes its end."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@pytest.mark.asyncio
async def test_a_descriptor_is_closed_once_if_the_protocol_closes_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        near.setblocking(False)
        number = near.fileno()
        far, _ = listening.accept()
        with far:
            _, protocol = await asyncio.get_running_loop().create_connection(Aborting, sock=near)
            await protocol.lost.wait()
            await asyncio.sleep(0)
            del near
            assert not is_closed_again(number)


@pytest.mark.asyncio
async def test_a_socket_is_connected_without_a_look_up_and_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def looked_up(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loop, "getaddrinfo", looked_up)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as near, socket.socket() as late:
        near.setblocking(False)
        late.setblocking(False)
        address = listening.getsockname()
        await loop.sock_connect(near, address)
        assert near.getpeername() == address
        listening.close()
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(late, address)


@pytest.mark.asyncio
async def test_a_socket_whose_connecting_is_cancelled_is_not_watched_any_more() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as near:
        near.setblocking(False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await loop.sock_connect(near, listening.getsockname())
        assert not loop.remove_writer(near)
