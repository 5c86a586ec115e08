"""A listener whose requests are received and answered by the test, in place of the dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from proxy.connection.budget import Account, Budget
from proxy.connection.protocol import Flusher, RequestAcceptor
from proxy.downstream.config import ListenerConfig
from proxy.downstream.listener import Listener
from proxy.downstream.serving import listen
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import ConnectionHandler, Engine, Limits, Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields
from proxy.http2.portable.engine import PortableEngine
from proxy.observe.observer import DownstreamObserver


class ReceivedRequest(StreamReceiver):
    """Records one request, and sends its response. Content is acknowledged at once, or by the test."""

    def __init__(self, stream: Stream, fields: Fields, end_stream: bool, *, acknowledging: bool) -> None:
        self.fields = fields
        self.ended_with_head = end_stream
        self.content = bytearray()
        self.trailers: Fields | None = None
        self.sent_octets = 0
        self.ended = asyncio.Event()
        self.reset: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Done when the stream is reset, with the code."""
        self.reset_by_peer = False
        self._stream = stream
        self._acknowledging = acknowledging
        self._grown = asyncio.Event()
        if end_stream:
            self.ended.set()

    # ---- the request

    def on_request_data(self, data: bytes, end_stream: bool) -> None:
        self.content += data
        self._grown.set()
        if end_stream:
            self.ended.set()
        if self._acknowledging:
            self.acknowledge(len(data))

    def on_request_trailers(self, fields: Fields) -> None:
        self.trailers = fields
        self.ended.set()

    def on_request_reset(self, code: int, by_peer: bool) -> None:
        self.reset_by_peer = by_peer
        self.reset.set_result(code)

    def on_internal_error(self) -> bool:
        self.on_request_reset(ErrorCode.INTERNAL_ERROR, False)
        return True

    def on_response_sent(self, octets: int) -> None:
        self.sent_octets += octets

    # ---- used by tests

    @property
    def plain(self) -> dict[bytes, bytes]:
        return {name: value for name, value, _ in self.fields}

    async def received(self, octets: int) -> None:
        """Wait until so much content was received."""
        while len(self.content) < octets:
            self._grown.clear()
            await self._grown.wait()

    def acknowledge(self, octets: int) -> None:
        self._stream.acknowledge(octets)

    def head(self, status: int = 200, *fields: tuple[bytes, bytes], end: bool = False) -> None:
        lines: Fields = [(b":status", b"%d" % status, False), *((name, value, False) for name, value in fields)]
        self._stream.send_head(lines, end)

    def data(self, data: bytes, *, end: bool = False) -> None:
        self._stream.send_data(data, end)

    def end_with_trailers(self, *fields: tuple[bytes, bytes]) -> None:
        self._stream.send_trailers([(name, value, False) for name, value in fields])

    def answer(self, content: bytes, *fields: tuple[bytes, bytes]) -> None:
        """Send the whole response."""
        self.head(200, *fields)
        self.data(content, end=True)

    def reset_stream(self, code: int) -> None:
        self._stream.reset(code, False)

    def detach(self) -> None:
        """Detach from the stream."""
        self._stream.receiver = None


class RequestQueue(RequestAcceptor):
    """Accepts every request, and passes it to the test."""

    def __init__(self, *, acknowledging: bool) -> None:
        self.requests: asyncio.Queue[ReceivedRequest] = asyncio.Queue()
        self._acknowledging = acknowledging

    def accept(self, stream: Stream, fields: Fields, end_stream: bool, account: Account) -> None:
        taken = ReceivedRequest(stream, fields, end_stream, acknowledging=self._acknowledging)
        stream.receiver = taken
        self.requests.put_nowait(taken)

    async def request(self) -> ReceivedRequest:
        return await self.requests.get()


class Counts(DownstreamObserver):
    """Counts h2c connections, and collects the reasons of refusals."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.refused: list[str] = []

    def downstream_opened(self) -> None:
        self.opened += 1

    def downstream_closed(self) -> None:
        self.closed += 1

    def request_refused(self, reason: str, details: dict[str, Any]) -> None:
        self.refused.append(reason)


@dataclass
class Listening:
    """A listener in this process, on a free port."""

    listener: Listener
    relay: RequestQueue
    counts: Counts
    budget: Budget
    port: int
    end: asyncio.Event
    drain_seconds: float = 5.0
    drained: asyncio.Future[bool] = field(default_factory=asyncio.Future)
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def shutdown(self) -> None:
        await self.end.wait()
        self.drained.set_result(await self.listener.drain(self.drain_seconds))

    async def raw(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and send `data`; the connection is closed at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def listening(
    make: EngineFactory = PortableEngine,
    *,
    limits: Limits | None = None,
    acknowledging: bool = True,
    max_head_octets: int = 64 << 10,
    allowed_hosts: tuple[str, ...] = (),
) -> AsyncIterator[Listening]:
    """Serve during a `with`; at its end, drain within five seconds."""
    relay, counts, budget = RequestQueue(acknowledging=acknowledging), Counts(), Budget(1 << 30)

    def engine(handler: ConnectionHandler) -> Engine:
        return make(client=False, limits=limits or Limits(), handler=handler)

    flusher = Flusher(asyncio.get_running_loop())
    config = ListenerConfig(("127.0.0.1:0",), 1, max_head_octets=max_head_octets)
    sockets = config.create_sockets()
    port = sockets.insecure_sockets[0].getsockname()[1]
    it = Listening(
        Listener(relay, engine, budget, flusher, counts, allowed_hosts=allowed_hosts),
        relay,
        counts,
        budget,
        port,
        asyncio.Event(),
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen(it.listener, config, sockets, it.shutdown))
        try:
            yield it
        finally:
            it.end.set()
            for writer in it.clients:
                writer.close()
    assert counts.opened == counts.closed
    assert budget.queued_octets == 0
