"""Responses that HTTP/1.1 cannot carry as they came, and requests whose exchange fails."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest

from proxy.http2.events import ErrorCode, Fields
from tests.support.peers.acceptor import RequestQueue
from tests.unit.downstream.http1_requests import GET, POST, head_of, lives
from tests.unit.downstream.stage import listening

pytestmark = pytest.mark.asyncio


class Defect(Exception):
    """A bug of the sidecar."""


def fail(*_: object) -> NoReturn:
    raise Defect


def reported() -> list[object]:
    """Return the list to which the exceptions are added that are reported to the loop."""
    found: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context.get("exception")))
    return found


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and content of a response with a content-length."""
    head = await head_of(reader)
    return head, await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


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


async def test_an_exchange_that_fails_within_a_request_ends_as_an_internal_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with listening() as it:
        errors = reported()
        reader, writer = await it.raw(POST + b"content-length: 6\r\n\r\nabc")
        taken = await it.relay.request()
        await taken.received(3)
        monkeypatch.setattr(taken, "on_request_data", fail)
        writer.write(b"def")
        head, content = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert b"x-cloudrun-sidecar-error: internal\r\n" in head
        assert b"internal error of the sidecar; the log says where" in content
        assert (await taken.reset, taken.reset_by_peer) == (ErrorCode.INTERNAL_ERROR, False)
        assert [type(error) for error in errors] == [Defect]
        await lives(it, reader, writer)


async def test_an_exchange_that_fails_within_its_response_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as it:
        errors = reported()
        reader, _ = await it.raw(GET)
        taken = await it.relay.request()
        monkeypatch.setattr(taken, "on_response_sent", fail)
        taken.head(200)
        taken.data(b"the beginning")
        await head_of(reader)
        assert await reader.read() == b"d\r\nthe beginning\r\n"
        assert (await taken.reset, taken.reset_by_peer) == (ErrorCode.INTERNAL_ERROR, False)
        assert [type(error) for error in errors] == [Defect]


async def test_a_request_that_cannot_be_accepted_is_answered_with_an_internal_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def accept(queue: RequestQueue, stream: Any, fields: Fields, *more: Any) -> None:
        fail()

    async with listening() as it:
        errors = reported()
        with monkeypatch.context() as patched:
            patched.setattr(RequestQueue, "accept", accept)
            reader, writer = await it.raw(GET)
            assert b"internal error of the sidecar" in (await answer_of(reader))[1]
        assert [type(error) for error in errors] == [Defect]
        await lives(it, reader, writer)
