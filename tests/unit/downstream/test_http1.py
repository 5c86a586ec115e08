"""HTTP/1.1 on the listener, octet by octet: requests, responses, and the end of a connection."""

from __future__ import annotations

import asyncio

import pytest

from proxy.downstream import serving
from tests.support.allocations import traced_octets
from tests.unit.downstream.http1_requests import GET, POST, head_of, lives, read_until_gone
from tests.unit.downstream.stage import listening

pytestmark = pytest.mark.asyncio


async def test_a_request_without_content_ends_with_its_head() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET)
        taken = await it.relay.request()
        assert taken.ended_with_head
        assert taken.plain == {
            b":method": b"GET",
            b":scheme": b"http",
            b":authority": b"localhost",
            b":path": b"/svc/x?y=1",
        }
        taken.answer(b"hello", (b"x-a", b"1"))
        assert await head_of(reader) == b"HTTP/1.1 200 OK\r\nx-a: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert await reader.readuntil(b"0\r\n\r\n") == b"5\r\nhello\r\n0\r\n\r\n"
        assert taken.sent_octets in (0, 5)  # the last octets need no report
        await lives(it, reader, writer)


async def test_chunked_content_arrives_without_its_trailers() -> None:
    async with listening() as it:
        chunked = b"Transfer-Encoding: chunked\r\n\r\n"
        reader, writer = await it.raw(POST + chunked + b"3\r\nabc\r\n")
        taken = await it.relay.request()
        await taken.received(3)
        assert not taken.ended.is_set()
        writer.write(b"2\r\nde\r\n0\r\nX-Serverless-Authorization: Bearer spoofed\r\n\r\n")
        await taken.ended.wait()
        assert (bytes(taken.content), taken.trailers) == (b"abcde", None)
        taken.head(200)
        taken.data(b"one")
        taken.end_with_trailers((b"sum", b"1"))
        await head_of(reader)
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n0\r\n\r\n"
        await lives(it, reader, writer)


async def test_a_response_in_many_small_pieces_to_a_slow_client_is_queued_in_few() -> None:
    pieces = [b"%04d" % number for number in range(8_000)]
    async with listening() as it:
        reader, _ = await it.raw(b"GET /g HTTP/1.1\r\nHost: localhost\r\n\r\n")
        taken = await it.relay.request()
        with traced_octets() as kept:
            taken.head(200, (b"content-length", b"32000"))
            for piece in pieces:
                taken.data(piece[:])
            assert it.budget.queued_octets == 32_000
            assert kept() < 2 * 32_000
        taken.data(b"", end=True)
        await head_of(reader)
        assert await reader.readexactly(32_000) == b"".join(pieces)


async def test_expect_100_continue_is_answered_before_the_content() -> None:
    async with listening() as it:
        reader, writer = await it.raw(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        taken = await it.relay.request()
        assert b"expect" not in taken.plain
        assert (await head_of(reader)).startswith(b"HTTP/1.1 100")
        writer.write(b"ok")
        await taken.ended.wait()
        assert taken.content == b"ok"
        taken.head(103, (b"link", b"<x>"))  # has no way over ASGI
        taken.head(204, end=True)
        assert await head_of(reader) == b"HTTP/1.1 204 No Content\r\n\r\n"
        await lives(it, reader, writer)


async def test_the_response_to_head_has_no_content() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET.replace(b"GET", b"HEAD"))
        taken = await it.relay.request()
        assert taken.plain[b":method"] == b"HEAD"
        taken.answer(b"hello", (b"content-length", b"5"))
        assert await head_of(reader) == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
        await lives(it, reader, writer)


async def test_pipelined_requests_are_answered_one_after_the_other() -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET + GET + POST + b"Content-Length: 1\r\n\r\n?")
        for number in range(3):
            taken = await it.relay.request()
            assert it.relay.requests.empty()
            await taken.ended.wait()
            assert bytes(taken.content) == (b"?" if number == 2 else b"")
            taken.answer(b"%d" % number, (b"content-length", b"1"))
            await head_of(reader)
            assert await reader.readexactly(1) == b"%d" % number


@pytest.mark.parametrize("more", [b"", GET], ids=["alone", "pipelined"])
@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_client_that_disconnects_resets_its_request(more: bytes, abruptly: bool) -> None:
    async with listening() as it:
        _, writer = await it.raw(GET + more)
        taken = await it.relay.request()
        if abruptly:
            writer.transport.abort()
        else:
            writer.close()
        assert await taken.reset == 0x8


async def test_an_idle_connection_that_the_client_closes_is_cleaned_up() -> None:
    async with listening() as it:
        reader, writer = await it.raw()
        await lives(it, reader, writer)
        writer.write_eof()
        assert await reader.read() == b""


async def test_a_pipelined_request_is_kept_while_the_one_before_it_waits() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET + POST[:9])
        taken = await it.relay.request()
        writer.write(POST[9:] + b"Content-Length: 4\r\n\r\nab")
        await it.raw()  # a turn of the loop in which that comes
        taken.answer(b"1", (b"content-length", b"1"))
        await head_of(reader)
        assert await reader.readexactly(1) == b"1"
        taken = await it.relay.request()
        writer.write(b"cd")
        await taken.ended.wait()
        assert taken.content == b"abcd"
        writer.close()
        assert await taken.reset == 0x8


async def test_a_client_that_disconnects_within_content_resets_its_request() -> None:
    async with listening() as it:
        _, writer = await it.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab")
        taken = await it.relay.request()
        await taken.received(2)
        writer.close()
        assert await taken.reset == 0x8
        assert not taken.ended.is_set()


async def test_at_most_a_window_of_a_request_is_read() -> None:
    async with listening(acknowledging=False) as it:
        size = 8 << 20
        reader, _ = await it.raw(POST + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        taken = await it.relay.request()
        await taken.received(256 << 10)
        await lives(it, *(await it.raw()))
        assert len(taken.content) < 1 << 20
        seen = 0
        while not taken.ended.is_set():
            octets, seen = len(taken.content) - seen, len(taken.content)
            taken.acknowledge(octets)
            await asyncio.wait_for(taken.received(min(size, seen + 1)), 30)
        assert len(taken.content) == size
        taken.answer(b"")
        await head_of(reader)


async def test_a_disconnect_is_noticed_with_a_full_window_of_a_complete_request() -> None:
    async with listening(acknowledging=False) as it:
        window = 256 << 10
        _, writer = await it.raw(POST + b"Content-Length: %d\r\n\r\n" % (window + 1) + bytes(window))
        taken = await it.relay.request()
        await taken.received(window)
        writer.write(b"!")  # which the read brings that was waiting when the window was full
        await taken.ended.wait()
        writer.close()
        assert await asyncio.wait_for(taken.reset, 60) == 0x8


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_disconnect_is_noticed_while_nothing_of_the_request_is_read(
    abruptly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_PROBE_SECONDS", 0.05)
    async with listening(acknowledging=False) as it:
        window = 256 << 10
        _, writer = await it.raw(POST + b"Content-Length: %d\r\n\r\n" % (8 * window) + bytes(4 * window))
        taken = await it.relay.request()
        await taken.received(window)
        await writer.drain()
        if abruptly:
            writer.transport.abort()
        else:
            writer.close()
        assert await taken.reset == 0x8


async def test_a_disconnect_is_noticed_behind_pipelined_requests_that_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "_PROBE_SECONDS", 0.05)
    async with listening() as it:
        _, writer = await it.raw(GET + GET)
        taken = await it.relay.request()
        # More than is read, and not more than that and the socket take: the end would wait behind the rest.
        writer.write(GET * 8_000)
        await writer.drain()
        writer.transport.abort()
        assert await taken.reset == 0x8


async def test_a_response_may_end_before_its_request() -> None:
    async with listening() as it:
        reader, writer = await it.raw(POST + b"Content-Length: 4\r\n\r\nab")
        taken = await it.relay.request()
        await taken.received(2)
        taken.answer(b"early", (b"content-length", b"5"))
        await head_of(reader)
        assert await reader.readexactly(5) == b"early"
        writer.write(b"cd")
        await lives(it, reader, writer)


async def test_a_connection_closes_if_the_request_does_not_end_after_its_response() -> None:
    async with listening() as it:
        reader, _ = await it.raw(POST + b"Content-Length: 4\r\n\r\nab")
        taken = await it.relay.request()
        await taken.received(2)
        taken.answer(b"early", (b"content-length", b"5"))
        assert (await reader.read()).endswith(b"early")


async def test_a_reset_is_502_before_the_response_and_a_disconnect_within_it() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET)
        (await it.relay.request()).reset_stream(0xFE)
        answer = await head_of(reader)
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"x-cloudrun-sidecar-error: upstream-reset" in answer
        writer.close()
        reader, writer = await it.raw(GET)
        taken = await it.relay.request()
        taken.head()
        taken.data(b"half")
        taken.reset_stream(0x2)
        assert (await reader.read()).endswith(b"4\r\nhalf\r\n")


@pytest.mark.parametrize("method", [b"get", b"Get", b"head", b"M-SEARCH", b"!#$%&'*+.^_`|~"])
async def test_a_method_keeps_its_case(method: bytes) -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET.replace(b"GET", method))
        taken = await it.relay.request()
        assert taken.plain[b":method"] == method
        taken.answer(b"content", (b"content-length", b"7"))
        await head_of(reader)
        assert await reader.readexactly(7) == b"content"


@pytest.mark.parametrize(("status", "line"), [(200, b"200 OK"), (429, b"429 Too Many Requests"), (299, b"299 Unknown")])
async def test_a_status_line_has_a_reason_phrase(status: int, line: bytes) -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET)
        taken = await it.relay.request()
        taken.head(status, (b"X-Kept", b"1"), (b"content-length", b"0"))
        taken.data(b"", end=True)
        assert await head_of(reader) == b"HTTP/1.1 " + line + b"\r\nX-Kept: 1\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_client_that_closes_its_half_gets_its_response(version: bytes) -> None:
    async with listening() as it:
        reader, writer = await it.raw(POST.replace(b"1.1", version) + b"Content-Length: 2\r\n\r\nab")
        writer.write_eof()
        taken = await it.relay.request()
        await taken.ended.wait()
        taken.head(200, (b"content-length", b"6"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 OK")
        taken.data(b"abc")
        assert await reader.readexactly(3) == b"abc"
        taken.data(b"def", end=True)
        assert await reader.read() == b"def"


async def test_a_client_that_closes_its_half_gets_all_responses_to_pipelined_requests() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET + POST + b"Content-Length: 2\r\n\r\nab" + GET)
        writer.write_eof()
        for content in (b"", b"ab", b""):
            taken = await it.relay.request()
            await taken.ended.wait()
            assert bytes(taken.content) == content
            taken.answer(content + b"!", (b"content-length", b"%d" % (len(content) + 1)))
            await head_of(reader)
            assert await reader.readexactly(len(content) + 1) == content + b"!"
        assert await reader.read() == b""


async def test_a_request_is_refused_if_the_client_closes_its_half_within_it() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET + GET[:20])
        writer.write_eof()
        (await it.relay.request()).answer(b"", (b"content-length", b"0"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 OK")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        assert it.relay.requests.empty()


@pytest.mark.parametrize("more", [b"", GET], ids=["alone", "pipelined"])
async def test_a_client_that_waits_long_with_its_half_closed_is_sent_probes(
    more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_PROBE_SECONDS", 0.01)
    async with listening() as it:
        reader, writer = await it.raw(GET + more)
        writer.write_eof()
        taken = await it.relay.request()
        for _ in range(3):
            assert await head_of(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert not taken.reset.done()
        taken.answer(b"", (b"content-length", b"0"))
        while (response := await head_of(reader)).startswith(b"HTTP/1.1 100 "):
            pass
        assert response.startswith(b"HTTP/1.1 200 OK")
        writer.close()
        if more:
            assert await (await it.relay.request()).reset == 0x8


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_upgrade_has_no_effect(protocol: bytes) -> None:
    async with listening() as it:
        upgrade = (
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        )
        reader, writer = await it.raw(GET[:-2] + upgrade)
        taken = await it.relay.request()
        assert not {b"upgrade", b"connection", b"http2-settings"} & set(taken.plain)
        taken.answer(b"", (b"content-length", b"0"))
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
        await lives(it, reader, writer)


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://localhost/svc/x?y=1", b"/svc/x?y=1"), (b"HTTP://LOCALHOST:80?y", b"/?y"), (b"*", b"*")],
)
async def test_a_target_in_absolute_form_keeps_its_path(target: bytes, path: bytes) -> None:
    async with listening() as it:
        await it.raw(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await it.relay.request()).plain[b":path"] == path


async def test_an_http_1_0_request_is_answered_and_the_connection_closed() -> None:
    async with listening() as it:
        reader, _ = await it.raw(b"GET /svc/x HTTP/1.0\r\n\r\n")
        (await it.relay.request()).answer(b"old")
        assert await reader.read() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nold"


async def test_connection_close_closes_the_connection_after_the_response() -> None:
    async with listening() as it:
        reader, _ = await it.raw(GET[:-2] + b"Connection: close\r\n\r\n")
        (await it.relay.request()).answer(b"last")
        assert (await reader.read()).endswith(b"4\r\nlast\r\n0\r\n\r\n")


async def test_draining_closes_idle_connections_at_once_and_busy_ones_after_their_response() -> None:
    async with listening() as it:
        idle_reader, idle = await it.raw()
        await lives(it, idle_reader, idle)
        reader, _ = await it.raw(GET)
        taken = await it.relay.request()
        it.end.set()
        taken.answer(b"last")
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        assert await idle_reader.read() == b""
        assert await it.drained


async def test_after_the_drain_timeout_live_requests_are_aborted() -> None:
    async with listening() as it:
        it.drain_seconds = 0.6
        reader, _ = await it.raw(GET + GET)
        taken = await it.relay.request()
        taken.head()
        await head_of(reader)
        it.end.set()
        assert b"0\r\n\r\n" not in await read_until_gone(reader)
        assert await taken.reset == 0x8
        assert not await it.drained
