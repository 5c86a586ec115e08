"""One HTTP/2 connection on a transport: what both sides share. Bytes in, events out, one flush a loop turn.

Credit (receive windows) follows two rules. A stream's credit goes back when its octets have left in the other
connection's outgoing bytes and that transport is not paused: `take` reports what left, and the reports wait while the
transport is paused. The connection's credit goes back on receipt, so that a stream that is stuck cannot starve the
others; only when the worker's `Budget` is used up does it wait, which bounds memory whatever the peers do.

A defect of ours that shows while one stream is served is reported to the loop and ends that stream's exchange; the
other streams, and the rest of what was read, are served as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Final, cast

from proxy.http2.engine import Engine
from proxy.http2.events import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    Fields,
    GoAwayReceived,
    HeadReceived,
    InterimReceived,
    PingAcknowledged,
    Sent,
    SettingsReceived,
    StreamId,
    StreamReset,
    TrailersReceived,
)
from proxy.wire.budget import Budget
from proxy.wire.sides import Channel, Sink

__all__ = ["FrameProtocol"]

# What a module imported is looked up by name at every use, what it made is not.
_DATA: Final[type] = DataReceived
_HEAD: Final[type] = HeadReceived

# Beyond this the transport is paused, and what it holds is not acknowledged.
_WRITE_HIGH_WATER_OCTETS: Final = 256 << 10

# How long a closed connection may take to deliver its last octets.
_CLOSE_SECONDS: Final = 5.0


class FrameProtocol(Channel):
    """An engine on a transport. Subclasses say what the events mean.

    Everything is synchronous. Commands may be given at any time; what they queue leaves in one write at the end of the
    loop turn, unless the transport is paused.

    It has the methods of `asyncio.Protocol`, and is one by structure only: a compiled class has no interpreted base.
    """

    def __init__(self, engine: Engine, budget: Budget, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.budget = budget
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._sinks: dict[StreamId, Sink] = {}
        self._paused = False
        self._flush_scheduled = False
        self._unreported: list[Sent] = []
        self.credit_octets = 0
        """Octets of content whose connection credit goes back at the end of this read; `on_data` adds to them."""
        self._counted_octets = 0
        self._abort_timer: asyncio.TimerHandle | None = None
        self.on_refused: Callable[[StreamId, str], None] | None = None
        """Told of streams that were reset because the peer broke a rule (see `Engine.take_refused`)."""

    def as_protocol(self) -> asyncio.Protocol:
        """Return this, for transports' type checkers; see the class."""
        return cast(asyncio.Protocol, self)

    # ---- commands, for the carriers

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        """Queue content of a stream."""
        self.engine.send_data(stream_id, data, end_stream)
        if not self._flush_scheduled:
            self.schedule_flush()

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        """Queue a trailer section behind the stream's content."""
        self.engine.send_trailers(stream_id, fields)
        self.schedule_flush()

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        """Queue a reset; see `Engine.reset`."""
        self.engine.reset(stream_id, code, after_data=after_data)
        self.schedule_flush()

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        """Give the stream's sender its window back."""
        self.engine.acknowledge(stream_id, octets)
        if not self._flush_scheduled and self.engine.wants_to_send:
            self.schedule_flush()

    def forget(self, stream_id: StreamId) -> None:
        """Report nothing more of this stream; what is queued still leaves."""
        self._sinks.pop(stream_id, None)

    # ---- what subclasses say

    @abstractmethod
    def on_head(self, event: HeadReceived) -> None:
        """A request or final response head has come."""

    @abstractmethod
    def on_interim(self, event: InterimReceived) -> None:
        """A 1xx head has come."""

    @abstractmethod
    def on_data(self, event: DataReceived) -> None:
        """Content has come; add its octets to `credit_octets`."""

    @abstractmethod
    def on_trailers(self, event: TrailersReceived) -> None:
        """A trailer section has come."""

    @abstractmethod
    def on_reset(self, event: StreamReset) -> None:
        """A stream is over."""

    @abstractmethod
    def on_go_away(self, event: GoAwayReceived) -> None:
        """The peer takes no new streams."""

    @abstractmethod
    def on_sent(self, stream_id: StreamId, octets: int) -> None:
        """Content of the stream has left, and the transport takes more."""

    @abstractmethod
    def on_lost(self, reason: str) -> None:
        """The connection is gone, however it ended; called once."""

    def on_ping_acknowledged(self, event: PingAcknowledged) -> None:
        """The peer answered a PING."""

    def on_settings(self, event: SettingsReceived) -> None:
        """The peer's settings were applied."""

    def on_failed(self, event: ConnectionFailed) -> None:
        """The peer broke the connection's rules: tell it, and close."""
        self.close(event.reason)

    def after_flush(self) -> None:
        """All that could leave has left."""

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_OCTETS)
        self.schedule_flush()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return  # the peer has not read yet that it is over, and TLS hands on what it had read
        for event in self.engine.receive(data):
            try:
                self._on(event)
            except Exception as exc:  # see the module
                stream_id = getattr(event, "stream_id", None)
                if stream_id is None:
                    raise
                self._break_off(stream_id, exc)
        refused = self.engine.take_refused()
        if refused and self.on_refused is not None:
            for refused_id, reason in refused:
                self.on_refused(refused_id, reason)
        if self.credit_octets and not self.closed:
            self._give_credit()
        if not self._flush_scheduled:
            self.schedule_flush()

    def eof_received(self) -> bool | None:
        return False  # the transport closes itself: a half-closed TCP connection carries no HTTP/2

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        reports, self._unreported = self._unreported, []
        self._report_sent(reports)
        self.schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        self._end(f"{type(exc).__name__}: {exc}" if exc else "closed by the peer")

    # ---- flushing and closing

    def schedule_flush(self) -> None:
        """Have everything queued leave at the end of this loop turn."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what the engine has, unless the transport is paused."""
        self._flush_scheduled = False
        transport = self.transport
        if self.closed or transport is None or transport.is_closing():
            return
        sent: list[Sent] = []
        if not self._paused:
            data, sent = self.engine.take()
            if data:
                transport.write(data)
        queued = self.engine.queued_octets
        if queued != self._counted_octets:
            self.budget.change(queued - self._counted_octets)
            self._counted_octets = queued
        if self._paused:
            self._unreported += sent
        else:
            self._report_sent(sent)
        self.after_flush()

    def close(self, reason: str) -> None:
        """Send what is queued and close; `on_lost` says `reason` to whoever still waits."""
        transport = self.transport
        if self.closed or transport is None:
            return
        if not transport.is_closing():
            data, _ = self.engine.take()
            if data:
                transport.write(data)
            if transport.can_write_eof():
                # To close a socket of which something is unread (a window update is enough) resets the connection, and
                # what is still on its way is lost. So the peer closes first, having read it all.
                transport.write_eof()
            else:
                transport.close()
            # A peer that does not read would keep the transport, and what it holds, for ever.
            self._abort_timer = self.loop.call_later(_CLOSE_SECONDS, transport.abort)
        self._end(reason)

    def abort(self) -> None:
        """Drop the transport at once, with whatever it still holds."""
        if self.transport is not None:
            self.transport.abort()

    # ---- inside

    def _on(self, event: Event) -> None:
        """Have the subclass do what is to be done about an event; the frequent ones are asked for first."""
        kind = type(event)
        if kind is _DATA:
            self.on_data(cast(DataReceived, event))
        elif kind is _HEAD:
            self.on_head(cast(HeadReceived, event))
        elif isinstance(event, TrailersReceived):
            self.on_trailers(event)
        elif isinstance(event, StreamReset):
            self.on_reset(event)
        elif isinstance(event, InterimReceived):
            self.on_interim(event)
        elif isinstance(event, PingAcknowledged):
            self.on_ping_acknowledged(event)
        elif isinstance(event, SettingsReceived):
            self.on_settings(event)
        elif isinstance(event, GoAwayReceived):
            self.on_go_away(event)
        elif isinstance(event, ConnectionFailed):
            self.on_failed(event)

    def tell(self, stream_id: StreamId, what: Callable[..., None], *args: object) -> None:
        """Call a sink's method outside of an event of its stream; a defect in there stays with the stream."""
        try:
            what(*args)
        except Exception as exc:  # noqa: BLE001 - see the module
            self._break_off(stream_id, exc)

    def _report_sent(self, reports: list[Sent]) -> None:
        for stream_id, octets in reports:
            try:
                self.on_sent(stream_id, octets)
            except Exception as exc:  # noqa: BLE001 - see the module
                self._break_off(stream_id, exc)

    def _break_off(self, stream_id: StreamId, exc: Exception) -> None:
        """Report a defect and end the exchange in which it showed."""
        self._report_defect(exc)
        sink = self._sinks.pop(stream_id, None)
        # Without a sink the exchange is over, and what is queued was meant to leave.
        self.reset(stream_id, ErrorCode.INTERNAL_ERROR, after_data=sink is None)
        if sink is not None:
            try:
                sink.broken()
            except Exception as again:  # noqa: BLE001 - nothing more can be done
                self._report_defect(again)

    def _report_defect(self, exc: Exception) -> None:
        self.loop.call_exception_handler(
            {"message": "a defect showed while a stream was served", "exception": exc, "protocol": self}
        )

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.budget.leave(self._give_credit)
        self.budget.change(-self._counted_octets)
        self._counted_octets = 0
        self._unreported.clear()
        self.on_lost(reason)

    def _give_credit(self) -> None:
        if self.budget.used_up:
            self.budget.wait(self._give_credit)
            return
        octets, self.credit_octets = self.credit_octets, 0
        self.engine.acknowledge_connection(octets)
        if self.engine.wants_to_send:
            self.schedule_flush()
