from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.doctor import sending
from proxy.doctor.sending import send_request
from proxy.errors import Internal, UpstreamConnectionLost, UpstreamRefusedStream, UpstreamReset
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields
from proxy.http2.portable.engine import PortableEngine
from proxy.routes import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import Connector
from tests.support.peers.sockets import Peer, Reset, server

HEAD: Fields = [
    (b":method", b"GET", False),
    (b":scheme", b"http", False),
    (b":authority", b"svc", False),
    (b":path", b"/discover", False),
]
LONG = 30.0


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[UpstreamConnection, Peer]]:
    """A connection, and its peer."""
    async with server() as far:
        connector = Connector(
            lambda handler: PortableEngine(client=True, limits=Limits(), handler=handler),
            Budget(1 << 20),
            Flusher(asyncio.get_running_loop()),
            timing=Timing(),
        )
        connection = await connector.connect(Origin("http", "127.0.0.1", far.port))
        try:
            yield connection, await far.accepted()
        finally:
            connection.abort()
            await connection.gone


@pytest.mark.asyncio
async def test_a_response_is_collected_to_its_end_and_its_window_restored() -> None:
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        asked = group.create_task(send_request(near, HEAD, LONG))
        stream, fields, ended = await far.request()
        assert ended
        assert dict(fields)[b":path"] == b"/discover"
        far.respond(stream, 103, [(b"link", b"</x>")])
        far.respond(stream, 200, [(b"content-type", b"text/plain"), (b"x", b"\xe9")])
        await far.send(stream, b"x" * (3 << 20), end=True)
        answer = await asked
        assert (answer.status, answer.fields) == (200, {"content-type": "text/plain", "x": "é"})
        assert answer.body == b"x" * (3 << 20)


@pytest.mark.asyncio
async def test_a_response_may_end_with_its_head_or_with_trailers() -> None:
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        bare = group.create_task(send_request(near, HEAD, LONG))
        stream, _, _ = await far.request()
        far.respond(stream, 403, end=True)
        assert (await bare).status == 403
        trailed = group.create_task(send_request(near, HEAD, LONG))
        stream, _, _ = await far.request()
        far.respond(stream, 200)
        await far.send(stream, b"body")
        far.trailers(stream, [(b"t", b"1")])
        assert (await trailed).body == b"body"


@pytest.mark.parametrize(
    ("code", "words"), [(0x2, "INTERNAL_ERROR"), (0x8, "CANCEL"), (0x0, "NO_ERROR"), (0x4321, "0x4321")]
)
@pytest.mark.asyncio
async def test_a_reset_before_the_response_is_reported_with_its_error_code(code: int, words: str) -> None:
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        asked = group.create_task(_raised(near))
        stream, _, _ = await far.request()
        far.reset(stream, code)
        failure = await asked
        assert isinstance(failure, UpstreamReset)
        assert words in str(failure)


@pytest.mark.asyncio
async def test_a_reset_without_error_after_the_head_ends_the_response() -> None:
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        asked = group.create_task(send_request(near, HEAD, LONG))
        stream, _, _ = await far.request()
        far.respond(stream, 200)
        await far.send(stream, b"body")
        far.reset(stream, 0x0)
        assert (await asked).body == b"body"


@pytest.mark.asyncio
async def test_a_response_that_breaks_a_rule_is_not_called_a_reset_of_the_service() -> None:
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        asked = group.create_task(_raised(near))
        stream, _, _ = await far.request()
        far.respond(stream, 200, [(b"content-length", b"1")])
        await far.send(stream, b"two", end=True)
        failure = await asked
        assert isinstance(failure, UpstreamReset)
        assert str(failure).startswith("the response breaks a rule of HTTP/2 (content-length)")


@pytest.mark.asyncio
async def test_a_refused_stream_and_a_lost_connection_are_different_failures() -> None:
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        refused = group.create_task(_raised(near))
        stream, _, _ = await far.request()
        far.reset(stream, 0x7)
        assert isinstance(await refused, UpstreamRefusedStream)
        lost = group.create_task(_raised(near))
        await far.request()
        await far.close()
        assert isinstance(await lost, UpstreamConnectionLost)


@pytest.mark.asyncio
async def test_a_timeout_cancels_the_stream() -> None:
    async with connected() as (near, far):
        with pytest.raises(TimeoutError):
            await send_request(near, HEAD, 0.05)
        stream, _, _ = await far.request()
        with pytest.raises(Reset) as caught:
            await _events(far, stream)
        assert caught.value.code == ErrorCode.CANCEL


@pytest.mark.asyncio
async def test_a_response_without_end_is_aborted_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MAX_OCTETS", 1 << 20)
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        asked = group.create_task(_raised(near))
        stream, _, _ = await far.request()
        far.respond(stream, 200)
        await far.send(stream, b"x" * (1 << 20))
        assert not asked.done()
        await far.send(stream, b"x" * 1000)
        failure = await asked
        assert isinstance(failure, UpstreamReset)
        assert "1 MiB" in str(failure)
        with pytest.raises(Reset) as caught:
            await _events(far, stream)
        assert caught.value.code == 0x8


@pytest.mark.asyncio
async def test_an_internal_error_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(self: object, fields: Fields, end_stream: bool) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sending._Collector, "on_response_head", stumble)
    async with connected() as (near, far), asyncio.TaskGroup() as group:
        asked = group.create_task(_raised(near))
        stream, _, _ = await far.request()
        far.respond(stream, 200)
        assert isinstance(await asked, Internal)


async def _events(far: Peer, stream: int) -> None:
    while True:
        await far.event(stream)


async def _raised(connection: UpstreamConnection) -> BaseException:
    try:
        await send_request(connection, HEAD, LONG)
    except (Internal, UpstreamReset, UpstreamRefusedStream, UpstreamConnectionLost) as failure:
        return failure
    raise AssertionError("there was an answer")
