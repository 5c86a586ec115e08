"""One h2c connection from Restate.

It never says GOAWAY while a stream is live: Restate up to 1.7.6 answers any GOAWAY by aborting every stream of the
connection. It has no idle timeout: eleven minutes of silence on a stream are legal, and longer ones by setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.http2.engine import Engine
from proxy.http2.events import (
    DataReceived,
    ErrorCode,
    Fields,
    GoAwayReceived,
    HeadReceived,
    InterimReceived,
    StreamId,
    StreamReset,
    TrailersReceived,
)
from proxy.wire import Budget, Exchanges, FrameProtocol

__all__ = ["DownstreamConnection"]


class DownstreamConnection(FrameProtocol):
    """A server connection with HTTP/2 prior knowledge (RFC 9113, 3.3)."""

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        loop: asyncio.AbstractEventLoop,
        *,
        exchanges: Exchanges,
        on_change: Callable[[], None],
        displaced: asyncio.Protocol | None = None,
    ) -> None:
        super().__init__(engine, budget, loop)
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the transport is closed."""
        self._exchanges = exchanges
        self._on_change = on_change
        self._displaced = displaced
        self._peer_leaves = False

    @property
    def live_streams(self) -> int:
        """Streams whose request or response has not gone through in full."""
        return 0 if self.closed else self.engine.open_streams

    # ---- for the carriers

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        """Queue an interim or final response head."""
        self.engine.send_head(stream_id, fields, end_stream)
        if not self._flush_scheduled:
            self.schedule_flush()

    # ---- events

    def on_head(self, event: HeadReceived) -> None:
        stream_id, fields, end_stream = event
        sink = self._sinks[stream_id] = self._exchanges.carrier(self, stream_id)
        sink.request_head(fields, end_stream)

    def on_interim(self, event: InterimReceived) -> None:
        raise AssertionError("a server engine reports no interim response")

    def on_data(self, event: DataReceived) -> None:
        stream_id, data, end_stream = event
        self.credit_octets += len(data)
        sink = self._sinks.get(stream_id)
        if sink is not None:
            sink.request_data(data, end_stream)
        elif data:
            self.engine.acknowledge(stream_id, len(data))

    def on_trailers(self, event: TrailersReceived) -> None:
        sink = self._sinks.get(event.stream_id)
        if sink is not None:
            sink.request_trailers(event.fields)

    def on_reset(self, event: StreamReset) -> None:
        sink = self._sinks.get(event.stream_id)
        if sink is not None:
            # A rule that the client broke is not the upstream's fault: the code that tells the client stays here.
            sink.request_reset(event.code if event.by_peer else ErrorCode.CANCEL)
            self.forget(event.stream_id)

    def on_go_away(self, event: GoAwayReceived) -> None:
        self._peer_leaves = True

    def on_sent(self, stream_id: StreamId, octets: int) -> None:
        sink = self._sinks.get(stream_id)
        if sink is not None:
            sink.response_sent(octets)

    def on_lost(self, reason: str) -> None:
        for stream_id, sink in list(self._sinks.items()):
            self.tell(stream_id, sink.request_reset, ErrorCode.CANCEL)
        self._sinks.clear()
        self._on_change()

    def after_flush(self) -> None:
        if self.engine.open_streams == 0:
            if self._peer_leaves:
                self.leave("the peer said GOAWAY")
            else:
                self._on_change()

    # ---- the transport's side

    def eof_received(self) -> bool | None:
        # A client that has shut its side down gets nothing more (see `FrameProtocol`), and if it does not read either,
        # the transport would close only when it is aborted.
        self.close("closed by the peer")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._displaced is not None:
            # The StreamWriter that Hypercorn holds waits for this.
            self._displaced.connection_lost(exc)
        super().connection_lost(exc)
        if not self.gone.done():
            self.gone.set_result(None)

    # ---- ending

    def leave(self, reason: str) -> None:
        """Say GOAWAY and close. Only for a connection without live streams."""
        if not self.closed:
            self.engine.go_away(ErrorCode.NO_ERROR)
            self.close(reason)

    def cut(self, reason: str) -> None:
        """Reset every live stream, both ways, say GOAWAY and close."""
        if self.closed:
            return
        for stream_id, sink in list(self._sinks.items()):
            self.engine.reset(stream_id, ErrorCode.CANCEL)
            self.tell(stream_id, sink.request_reset, ErrorCode.CANCEL)
        self.leave(reason)
