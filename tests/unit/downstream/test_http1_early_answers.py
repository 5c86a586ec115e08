"""A client that still sends its request gets the whole answer to it, also when the request is refused."""

from __future__ import annotations

import pytest

from tests.support.loops import skip, with_manual_clock
from tests.unit.downstream.http1_requests import POST, lives, read_until_gone
from tests.unit.downstream.stage import listening

REFUSED = POST.replace(b"localhost", b"evil.example") + b"Content-Length: 10000000\r\n"


@with_manual_clock
async def test_a_web_page_that_sends_much_is_told_why_it_is_refused() -> None:
    """Closing a socket with unread data resets it, and the answer may be lost (RFC 9112, 9.6)."""
    async with listening() as it:
        reader, writer = await it.raw(REFUSED + b"Connection: close\r\n\r\n" + bytes(10_000_000))
        await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"allowed_hosts" in answer


@with_manual_clock
async def test_a_connection_serves_on_after_a_refused_request_with_content() -> None:
    async with listening() as it:
        reader, writer = await it.raw(REFUSED.replace(b"10000000", b"3") + b"\r\nab")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")
        await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        writer.write(b"c")
        await lives(it, reader, writer)


@with_manual_clock
async def test_a_client_that_sends_on_after_a_malformed_request_is_not_read_without_end() -> None:
    """The time for it does not pass here: with a fast client, much is read in a second."""
    async with listening() as it:
        _, writer = await it.raw(b"GET / HTTP/1.1\r\nno field\r\n\r\n")

        async def send_on() -> None:
            for _ in range(64):
                writer.write(bytes(1 << 20))
                await writer.drain()

        with pytest.raises(ConnectionError):
            await send_on()
        writer.transport.abort()


@with_manual_clock
@pytest.mark.parametrize("leaves", [False, True])
async def test_a_refused_request_that_does_not_end_ends_its_connection(leaves: bool) -> None:
    async with listening() as it:
        reader, writer = await it.raw(REFUSED + b"\r\nab")
        await reader.readuntil(b"\r\n\r\n")
        if leaves:
            writer.close()
        await skip(1.0)
        await read_until_gone(reader)
        await skip(1.0)
        assert not it.listener.admission.accepted
