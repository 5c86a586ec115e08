"""Responses that HTTP/1.1 cannot carry as they came."""

from __future__ import annotations

import asyncio

import pytest

from proxy.http2.events import ErrorCode
from tests.unit.downstream.http1_requests import GET, head_of, lives
from tests.unit.downstream.stage import listening

pytestmark = pytest.mark.asyncio


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and content of a response with a content-length."""
    head = await head_of(reader)
    return head, await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


@pytest.mark.parametrize("value", [b"a\vb", b"a\fb", b"\vb", b"b\f"])
async def test_a_field_value_that_http_1_1_cannot_have_is_answered_502_with_the_reason(value: bytes) -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET)
        (await it.relay.request()).answer(b"hello", (b"x-a", value))
        head, content = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"x-cloudrun-sidecar-error: upstream-reset\r\n" in head
        assert b"the response's field x-a has a vertical tab or a form feed" in content
        await lives(it, reader, writer)


async def test_a_response_that_was_refused_is_cancelled_by_the_sidecar() -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET)
        taken = await it.relay.request()
        taken.head(200, (b"x-a", b"\v"))
        taken.data(b"the beginning")
        assert b"vertical tab" in (await answer_of(reader))[1]
        assert (await taken.reset, taken.reset_by_peer) == (ErrorCode.PROTOCOL_ERROR, False)
        await lives(it, reader, writer)


@pytest.mark.parametrize(("status", "kept"), [(200, True), (204, False), (304, True)])
async def test_a_response_without_content_has_a_length_only_where_that_is_allowed(status: int, kept: bool) -> None:
    async with listening() as it:
        reader, writer = await it.raw(GET.replace(b"GET", b"HEAD"))
        taken = await it.relay.request()
        taken.head(status, (b"content-length", b"5"), (b"x-a", b"1"), end=True)
        head = await head_of(reader)
        assert b"x-a: 1\r\n" in head
        assert (b"content-length: 5\r\n" in head) == kept
        await lives(it, reader, writer)
