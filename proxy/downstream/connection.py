"""One h2c connection from Restate.

It never says GOAWAY while a stream is live: Restate up to 1.7.6 answers any GOAWAY by aborting every stream of the
connection. It has no idle timeout: eleven minutes of silence on a stream are legal, and longer ones by setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.connection.budget import Budget
from proxy.connection.protocol import Flusher, Http2Protocol, MakeEngine, RequestAcceptor
from proxy.http2.engine import Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields, StreamId

__all__ = ["DownstreamConnection"]


class DownstreamConnection(Http2Protocol):
    """A server connection with HTTP/2 prior knowledge (RFC 9113, 3.3)."""

    __slots__ = ("_acceptor", "_displaced", "_on_change", "_peer_leaves", "gone")

    def __init__(
        self,
        make_engine: MakeEngine,
        budget: Budget,
        flusher: Flusher,
        *,
        acceptor: RequestAcceptor,
        on_change: Callable[[], None],
        displaced: asyncio.Protocol | None = None,
    ) -> None:
        Http2Protocol.__init__(self, make_engine, budget, flusher)
        self.gone: asyncio.Future[None] = self.loop.create_future()
        """Done when the transport is closed."""
        self._acceptor = acceptor
        self._on_change = on_change
        self._displaced = displaced
        self._peer_leaves = False

    @property
    def live_streams(self) -> int:
        """Streams whose request or response has not gone through in full."""
        return 0 if self.closed else self.engine.count_open_streams()

    # ---- the engine's side

    def on_request(self, stream: Stream, fields: Fields, end_stream: bool) -> None:
        """Hand a new request in."""
        self._acceptor.accept(stream, fields, end_stream)

    def on_go_away(self, last_stream_id: StreamId, code: int, debug: bytes) -> None:
        """Leave when the last stream is done."""
        self._peer_leaves = True

    def on_stream_lost(self, receiver: StreamReceiver, reason: str) -> None:
        """Have the request cancelled."""
        receiver.on_request_reset(ErrorCode.CANCEL, True)

    def on_lost(self, reason: str) -> None:
        """Tell the listener."""
        self._on_change()

    def after_turn(self) -> None:
        """Leave, or tell the listener, if no stream is live."""
        if self.engine.count_open_streams() == 0:
            if self._peer_leaves:
                self.leave("the peer said GOAWAY")
            else:
                self._on_change()

    # ---- the transport's side

    def eof_received(self) -> bool | None:
        """Close: a client that has shut its side down gets nothing more (see `Http2Protocol`).

        If it does not read either, the transport would close only when it is aborted.
        """
        self.close("closed by the peer")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the transport is gone."""
        if self._displaced is not None:
            # The StreamWriter that Hypercorn holds waits for this.
            self._displaced.connection_lost(exc)
        Http2Protocol.connection_lost(self, exc)
        if not self.gone.done():
            self.gone.set_result(None)

    # ---- ending

    def leave(self, reason: str) -> None:
        """Say GOAWAY and close. Only for a connection without live streams."""
        if not self.closed:
            self.engine.go_away(0, b"")
            self.close(reason)

    def cut(self, reason: str) -> None:
        """Reset every live stream, both ways, say GOAWAY and close."""
        if self.closed:
            return
        for stream in self.engine.live_streams():
            receiver, stream.receiver = stream.receiver, None
            stream.reset(ErrorCode.CANCEL, False)
            if receiver is not None:
                try:
                    receiver.on_request_reset(ErrorCode.CANCEL, True)
                except Exception as exc:  # noqa: BLE001 - the others have to be told, too
                    stream.receiver = receiver
                    self.on_internal_error(stream, exc)
        self.leave(reason)
