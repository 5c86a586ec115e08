"""A peer in the dispatcher's place: it accepts requests, and answers them as the test says."""

from __future__ import annotations

import asyncio

from proxy.connection.budget import Account
from proxy.connection.protocol import RequestAcceptor
from proxy.http2.engine import Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields

__all__ = ["ReceivedRequest", "RequestQueue"]


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
        """The fields of the head by name."""
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
