"""A response that ends before it is complete does not look complete, whatever version of HTTP/1 the client speaks."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.loops import LOOPS
from tests.support.peers.acceptor import ReceivedRequest
from tests.unit.downstream.http1_requests import head_of
from tests.unit.downstream.stage import Listening, listening

GET_1_0 = b"GET /svc/x HTTP/1.0\r\nHost: localhost\r\n\r\n"


def on_each_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[str], None]:
    """Run an asynchronous test on every kind of loop: how a connection ends is the loop's."""

    def run(loop: str) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop], debug=True) as runner:
            runner.run(test())

    run.__name__ = test.__name__
    marked: Callable[[str], None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return marked


async def begun(it: Listening) -> tuple[asyncio.StreamReader, ReceivedRequest]:
    """Let a client with HTTP/1.0 have the beginning of a response, whose end is that of the connection."""
    reader, _ = await it.raw(GET_1_0)
    taken = await it.relay.request()
    taken.head(200)
    taken.data(b"the beginning")
    assert b"connection: close" in (await head_of(reader)).lower()
    assert await reader.readexactly(13) == b"the beginning"
    return reader, taken


@on_each_loop
async def test_a_broken_response_over_http_1_0_ends_with_a_reset_of_the_connection() -> None:
    async with listening() as it:
        reader, taken = await begun(it)
        taken.reset_stream(0x2)
        with pytest.raises(ConnectionResetError):
            await reader.read()


@on_each_loop
async def test_a_response_over_http_1_0_that_the_end_of_the_drain_breaks_is_reset() -> None:
    async with listening() as it:
        it.drain_seconds = 0.6
        reader, _ = await begun(it)
        it.end.set()
        with pytest.raises(ConnectionResetError):
            await reader.read()


@on_each_loop
async def test_a_complete_response_over_http_1_0_ends_in_order() -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET_1_0)
        (await it.relay.request()).answer(b"x" * 300_000)
        await head_of(reader)
        assert len(await reader.read()) == 300_000


@on_each_loop
async def test_a_connection_that_its_client_has_closed_can_still_be_aborted() -> None:
    async with listening() as it:
        _, taken = await begun(it)
        (accepted,) = it.listener.admission.accepted
        it.clients[-1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        it.clients[-1].transport.abort()
        assert await taken.reset == 0x8
        assert accepted.http1 is not None
        assert accepted.http1.end_looks_complete
        accepted.abort()
