"""One h2c connection from the client.

It sends no GOAWAY while a stream is live, unless it is told to retire: Restate up to 1.7.12 reacts to any
GOAWAY by aborting every stream of the connection at its next request there. It has no idle timeout: eleven minutes of
silence on a stream are legal, and settings can permit more.

A connection that is told to retire ends in steps, and every stream on it finishes. Each step waits until the
client has acknowledged a PING, and another second: clients acknowledge it before streams that they have queued. ::

    SETTINGS              the client may open no more streams: Restate opens them on another connection
    GOAWAY 2³¹-1          other clients do, too (RFC 9113, 6.8); a Restate that tries no stream here aborts none
    GOAWAY, last stream   later streams are refused; after the last live one the connection closes
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import Http2Protocol, MakeEngine, RequestAcceptor
from proxy.http2.engine import Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields, StreamId

__all__ = ["DownstreamConnection"]

_MOST_CANCELLED: Final = 8
"""A connection may cancel one of so many requests, however many its address cancels."""
_ALL_STEPS: Final = 3
_PING_PAYLOAD: Final = b"retiring"
_ACKNOWLEDGEMENT_SECONDS: Final = 15.0
"""How long a client may take to acknowledge a PING before the next step is taken without that."""
_QUEUED_STREAMS_SECONDS: Final = 1.0
"""Between the acknowledgement and the next step."""


class DownstreamConnection(Http2Protocol):
    """A server connection with HTTP/2 prior knowledge (RFC 9113, 3.3)."""

    __slots__ = (
        "_acceptor",
        "_cancelled",
        "_cut_off",
        "_next_step",
        "_on_change",
        "_peer_sent_go_away",
        "_replaced",
        "_steps_taken",
        "asked_at",
        "requests",
    )

    def __init__(
        self,
        make_engine: MakeEngine,
        budget: Budget,
        flusher: Flusher,
        *,
        acceptor: RequestAcceptor,
        on_change: Callable[[], None],
        replaced: asyncio.Protocol | None = None,
    ) -> None:
        Http2Protocol.__init__(self, make_engine, budget, flusher)
        self.asked_at = 0.0
        """When the last request arrived, as the event loop counts."""
        self._acceptor = acceptor
        self._on_change = on_change
        self._replaced = replaced
        self._peer_sent_go_away = False
        self.requests = 0
        """How many have arrived."""
        self._cancelled = 0
        self._cut_off = False
        self._next_step: asyncio.TimerHandle | None = None
        """Takes the next step to the end; None before the first."""
        self._steps_taken = 0

    @property
    def live_streams(self) -> int:
        """Number of streams whose request or response is not complete."""
        return 0 if self.closed else self.engine.count_open_streams()

    def unwritten_octets(self) -> int:
        """Return how much the transport holds that the client has not read; 0 while the transport takes more."""
        transport = self.transport
        return transport.get_write_buffer_size() if self._paused and transport is not None and not self.closed else 0

    # ---- the engine's side

    def on_request(self, stream: Stream, fields: Fields, end_stream: bool) -> None:
        """Pass a new request to the acceptor."""
        self.asked_at = self._flusher.now()
        self.requests += 1
        self._acceptor.accept(stream, fields, end_stream, self.account)

    def held_octets(self, stream: Stream) -> int:
        """Return what is queued of the response, and what is held of the request."""
        receiver = stream.receiver
        return stream.count_queued_octets() + (receiver.count_held_octets() if receiver is not None else 0)

    def on_go_away(self, last_stream_id: StreamId, code: int, debug: bytes) -> None:
        """Remember to close after the last stream."""
        self._peer_sent_go_away = True

    def on_ping_acknowledged(self, payload: bytes) -> None:
        """Take the next step soon, if this answers the PING of the last one."""
        if self._next_step is not None and payload == _PING_PAYLOAD:
            self._take_step_in(_QUEUED_STREAMS_SECONDS)

    def on_stream_lost(self, receiver: StreamReceiver, reason: str) -> None:
        """Cancel the request."""
        receiver.on_request_reset(ErrorCode.CANCEL, True)

    def on_lost(self, reason: str) -> None:
        """Tell the listener."""
        if self._next_step is not None:
            self._next_step.cancel()
        self._on_change()

    def after_turn(self) -> None:
        """If no stream is live, close after a GOAWAY, or tell the listener."""
        if self.engine.count_open_streams() == 0:
            if self._steps_taken == _ALL_STEPS:
                self.close("the client was asked to leave")
            elif self._peer_sent_go_away:
                self.go_away("the peer sent GOAWAY")
            else:
                self._on_change()

    # ---- the transport's side

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the transport has closed."""
        replaced, self._replaced = self._replaced, None
        if replaced is not None:
            # Hypercorn's StreamWriter waits for this.
            replaced.connection_lost(exc)
        Http2Protocol.connection_lost(self, exc)
        # Engine and connection refer to each other until the garbage collector comes. What a client has not read would
        # stay for so long: TLS keeps it in the transport, to which the replaced protocol refers, too.
        self.transport = None

    # ---- ending

    def on_cancelled(self, overdrawn: bool) -> None:
        """The client has cancelled a request; `overdrawn` says that its address cancels too many.

        Then the connection is ended, if more than an eighth of its own requests were cancelled.
        """
        self._cancelled += 1
        if overdrawn and not (self._cut_off or self.closed) and self._cancelled * _MOST_CANCELLED > self.requests:
            self._cut_off = True
            # The engine may be calling. It refuses new streams from here on.
            self.engine.go_away(ErrorCode.ENHANCE_YOUR_CALM, b"")
            self.loop.call_soon(self.cut_off, "too many requests are cancelled (cancels_per_minute)")

    def cut_off(self, reason: str) -> None:
        """End the connection with ENHANCE_YOUR_CALM; not to be called while the engine calls."""
        if not self.closed:
            if not self._cut_off:
                self.engine.go_away(ErrorCode.ENHANCE_YOUR_CALM, b"")
            self.on_failed(ErrorCode.ENHANCE_YOUR_CALM, reason)

    def retire(self) -> None:
        """Have the client open no more streams here, and close after the last one; see the module."""
        if self._next_step is None and not self.closed:
            self._step()

    def _step(self) -> None:
        self._steps_taken += 1
        if self._steps_taken == 1:
            self.engine.offer_no_streams()
        elif self._steps_taken < _ALL_STEPS:
            self.engine.announce_go_away()
        else:
            self.engine.go_away(0, b"")
        if self._steps_taken < _ALL_STEPS:
            self.engine.ping(_PING_PAYLOAD)
            self._take_step_in(_ACKNOWLEDGEMENT_SECONDS)

    def _take_step_in(self, seconds: float) -> None:
        if self._next_step is not None:
            self._next_step.cancel()
        if self._steps_taken < _ALL_STEPS:
            self._next_step = self.loop.call_later(seconds, self._step)

    def go_away(self, reason: str) -> None:
        """Send GOAWAY and close. Only for a connection without live streams."""
        if not self.closed:
            self.engine.go_away(0, b"")
            self.close(reason)

    def abort_streams(self, reason: str) -> None:
        """Reset every live stream in both directions, send GOAWAY and close."""
        if self.closed:
            return
        for stream in self.engine.live_streams():
            receiver, stream.receiver = stream.receiver, None
            stream.reset(ErrorCode.INTERNAL_ERROR, False)  # hyper 1.7 takes CANCEL for a clean end
            if receiver is not None:
                try:
                    receiver.on_request_reset(ErrorCode.CANCEL, False)
                except Exception as exc:  # noqa: BLE001 - the other streams must be reset, too
                    stream.receiver = receiver
                    self.on_internal_error(stream, exc)
        self.go_away(reason)
