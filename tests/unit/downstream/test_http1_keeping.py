"""How long connections of HTTP/1.1 stay, on a clock that the test moves."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.unit.downstream.http1_requests import GET, head_of, lives, read_until_gone
from tests.unit.downstream.stage import listening

KEPT_SECONDS = 720.0
"""Longer than Restate is silent, or keeps an idle connection."""


@with_manual_clock
async def test_a_connection_is_kept_for_twelve_minutes_after_each_response() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET[:20])
        await loop_idle()  # a part of a head was read, and has to be followed by the rest in time
        writer.write(GET[20:])
        (await it.relay.request()).answer(b"", (b"content-length", b"0"))
        await head_of(reader)
        await skip(KEPT_SECONDS - 1)
        await lives(it, reader, writer)
        await skip(KEPT_SECONDS - 1)
        assert not reader.at_eof()
        await skip(2.0)
        assert await reader.read() == b""


@with_manual_clock
async def test_a_response_may_take_longer_than_an_idle_connection_is_kept() -> None:
    async with listening() as it:
        reader, writer = await it.raw()
        await lives(it, reader, writer)
        writer.write(GET)
        taken = await it.relay.request()
        for _ in range(3):
            await skip(KEPT_SECONDS)
        taken.answer(b"late", (b"content-length", b"4"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(4) == b"late"


@with_manual_clock
@pytest.mark.parametrize("said", [b"", b"PRI * HT"])
async def test_a_connection_that_does_not_say_its_protocol_is_closed(said: bytes) -> None:
    async with listening() as it:
        reader, _ = await it.raw(said)
        await loop_idle()
        await skip(9.0)
        assert not reader.at_eof()
        await skip(2.0)
        assert await read_until_gone(reader) == b""
        assert not it.listener.admission.accepted


@with_manual_clock
@pytest.mark.parametrize(
    "said", [b"", b"PRI * HT", b"GET /", GET, GET + GET], ids=["", "preface", "head", "request", "two"]
)
async def test_a_client_that_resets_its_connection_is_no_error(said: bytes) -> None:
    async with listening() as it:
        _, writer = await it.raw(said)
        await loop_idle()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await loop_idle()
        assert not it.listener.admission.accepted


@with_manual_clock
@pytest.mark.parametrize(("version", "begun"), [(b"1.0", False), (b"1.0", True), (b"1.1", True)])
async def test_a_client_with_a_closed_half_is_not_probed_where_that_would_break_its_response(
    version: bytes, begun: bool
) -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET.replace(b"1.1", version))
        writer.write_eof()
        taken = await it.relay.request()
        if begun:
            taken.head(200, (b"content-length", b"4"))
        for _ in range(5):
            await skip(10.0)
        if not begun:
            taken.head(200, (b"content-length", b"4"))
        taken.data(b"late", end=True)
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.endswith(b"\r\n\r\nlate")


@with_manual_clock
async def test_a_part_of_the_next_head_ends_no_response_that_takes_long() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET)
        taken = await it.relay.request()
        writer.write(GET[:20])
        await loop_idle()
        await skip(KEPT_SECONDS)
        taken.answer(b"", (b"content-length", b"0"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")
        writer.write(GET[20:])
        (await it.relay.request()).answer(b"", (b"content-length", b"0"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")
