"""HTTP/1.1 requests for the tests of the listener."""

from __future__ import annotations

import asyncio

from tests.unit.downstream.stage import Listening

GET = b"GET /svc/x?y=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\n"


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def lives(it: Listening, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Complete one more exchange on this connection."""
    writer.write(GET)
    (await it.relay.request()).answer(b"!", (b"content-length", b"1"))
    await head_of(reader)
    assert await reader.readexactly(1) == b"!"


async def read_until_gone(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
