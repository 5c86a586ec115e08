"""One HTTP/2 connection on a transport. What is queued is written once in a turn of the loop, or after each read.

Credit (receive windows) follows two rules. A stream's credit is given back when its octets have been written to the
other connection's transport and that transport is not paused: the engine remembers what was written, and reports it
while the transport accepts more. The connection's credit is given back on receipt, so that one stalled stream does not
stop the others. Only while the worker's `Budget` is used up is it withheld, which bounds memory whatever the peers do.

An internal error while one stream is served is reported to the loop and ends that stream's exchange. The other streams,
and the rest of what was read, are served as usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from proxy.connection.budget import Account, Budget, memory_is_short
from proxy.connection.flusher import Flushable, Flusher
from proxy.connection.reads import Reads
from proxy.http2.engine import ConnectionHandler, Engine, Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields, StreamId

__all__ = ["Http2Protocol", "MakeEngine", "RequestAcceptor"]

MakeEngine: TypeAlias = Callable[[ConnectionHandler], Engine]
"""Makes the engine of one connection, which is its handler."""

# Beyond this the transport is paused, and what it holds is not acknowledged.
_WRITE_HIGH_WATER_OCTETS: Final = 256 << 10

# How long a closed connection may take to deliver its last octets.
_CLOSE_SECONDS: Final = 5.0

# How much it may read meanwhile, and drop: twice the receive window, of which all may have been on its way.
_CLOSE_OCTETS: Final = 32 << 20

# One for all connections, so that it stays in the processor's cache.
_READ_BUFFER: Final = bytearray(64 << 10)


class RequestAcceptor:
    """Accepts new requests: the relay's dispatcher."""

    __slots__ = ()

    def accept(self, stream: Stream, fields: Fields, end_stream: bool, account: Account) -> None:
        """Accept a request whose head was received on this stream; set `stream.receiver` for what follows.

        What is held of the request is charged to `account`, that of the client. `fields` is empty for a head over the
        limit (`ConnectionHandler.on_request`).
        """
        raise NotImplementedError


class Http2Protocol(Flushable):
    """An engine on a transport. Subclasses decide what happens to requests, and when the connection ends.

    Everything is synchronous. Commands may be given at any time. What they queue is written at the end of the turn,
    or of the read that is being served, unless the transport is paused.

    It has the methods of `asyncio.Protocol` without deriving from it: a compiled class has no interpreted base.
    """

    __slots__ = (
        "__weakref__",
        "_abort_timer",
        "_counted_octets",
        "_dropped_octets",
        "_flusher",
        "_paused",
        "_reading_paused",
        "_reads",
        "_serve_scheduled",
        "account",
        "budget",
        "closed",
        "engine",
        "gone",
        "loop",
        "on_cut_off",
        "on_refused",
        "transport",
    )

    def __init__(self, make_engine: MakeEngine, budget: Budget, flusher: Flusher) -> None:
        self.flush_scheduled = False
        self.budget = budget
        """Of the worker."""
        self.account = budget.open_account(self.give_up)
        """What this connection holds: queued content, frames, and what its transport has not sent."""
        self.loop = flusher.loop
        self.transport: asyncio.Transport | None = None
        """None until it is connected."""
        self.closed = False
        """Whether nothing is served any more; the transport may still have octets to send."""
        self.gone: asyncio.Future[None] = self.loop.create_future()
        """Done when the transport, if there was one, is closed."""
        self._flusher = flusher
        self._paused = False
        self._counted_octets = 0
        self._abort_timer: asyncio.TimerHandle | None = None
        self._dropped_octets = 0  # since it was closed
        self._reading_paused = False
        self._serve_scheduled = False
        self.on_refused: Callable[[StreamId, str], None] | None = None
        """Called with each stream that was reset because the peer broke a rule, and the reason (`policy.refusals`)."""
        self.on_cut_off: Callable[[int, str], None] | None = None
        """Called when this connection is ended because of what its peer does, with the error code and the reason."""
        self.engine = make_engine(self)
        """Its side of the connection."""
        self._reads = Reads(self.engine)

    def as_protocol(self) -> asyncio.Protocol:
        """Return this object, typed as a transport wants it; see the class."""
        return cast(asyncio.Protocol, self)

    # ---- for subclasses

    def on_stream_lost(self, receiver: StreamReceiver, reason: str) -> None:
        """Tell the receiver of a live stream that the connection is gone."""
        raise NotImplementedError

    def on_lost(self, reason: str) -> None:
        """The connection has ended, for any reason, and all receivers have been told; called once."""
        raise NotImplementedError

    def after_turn(self) -> None:
        """Everything that was read has been served, and everything that could be written has been."""

    # ---- called by the engine

    def schedule_flush(self) -> None:
        """Write everything that is queued, at the end of this loop turn at the latest."""
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._flusher.add(self)

    def on_stream_refused(self, stream_id: StreamId, reason: str) -> None:
        """Call `on_refused`."""
        if self.on_refused is not None:
            self.on_refused(stream_id, reason)

    def on_failed(self, code: int, reason: str) -> None:
        """The peer broke the connection's rules: tell it, and close."""
        if self.on_cut_off is not None:
            self.on_cut_off(code, reason)
        self.close(reason)

    def on_internal_error(self, stream: Stream | None, exc: Exception) -> None:
        """Report an internal error, and abort the exchange in which it happened."""
        self.report_error(exc)
        if stream is None:
            return
        receiver, stream.receiver = stream.receiver, None
        aborts = False
        if receiver is not None:
            try:
                aborts = receiver.on_internal_error()
            except Exception as again:  # noqa: BLE001 - nothing more can be done
                self.report_error(again)
                aborts = True
        # If the exchange had ended already, what it queued is still sent.
        stream.reset(ErrorCode.INTERNAL_ERROR, not aborts)

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start: the engine has its preface and SETTINGS to send."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_OCTETS)
        self.schedule_flush()

    def get_buffer(self, size_hint: int) -> bytearray:
        """Return the buffer to read into. It is shared: its content is served before the next read."""
        return _READ_BUFFER

    def buffer_updated(self, octets: int) -> None:
        """Serve the octets that were read into the buffer."""
        self._serve(_READ_BUFFER, octets)

    def data_received(self, data: bytes) -> None:
        """Serve the octets that were read; for event loops that do not ask for a buffer."""
        self._serve(bytearray(data), len(data))

    def _serve(self, buffer: bytearray, octets: int) -> None:
        if self.closed:
            # The peer has not yet seen our close, and TLS still delivers what it had read.
            self._dropped_octets += octets
            if self._dropped_octets > _CLOSE_OCTETS:
                self.abort()
            return
        self._flusher.begin_read()
        try:
            self._reads.take(buffer, octets)
            self._has_read()
        finally:
            self._flusher.end_read(octets)

    def _has_read(self) -> None:
        if self.closed:
            return
        engine = self.engine
        if self._reads.left or self._reading_paused:
            self._continue_reading()
        if engine.owed_octets:
            self.give_credit()
        if not self.flush_scheduled:
            if engine.wants_to_send() or engine.count_queued_octets() != self._counted_octets:
                self.schedule_flush()
            else:
                self.after_turn()

    def _continue_reading(self) -> None:
        """Serve what is left in the next loop turn, and read nothing more until then."""
        left = len(self._reads.left) > 0
        if left and not self._serve_scheduled:
            self._serve_scheduled = True
            self.loop.call_soon(self._serve_left)
        if left != self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = left
            if left:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def serve_all(self) -> None:
        """Serve all that was read, however long it takes."""
        while self._reads.left and not self.closed:
            self._reads.serve()

    def _serve_left(self) -> None:
        self._serve_scheduled = False
        if not self.closed:
            self._reads.serve()
            self._has_read()

    def eof_received(self) -> bool | None:
        """Close: a half-closed TCP connection cannot carry HTTP/2."""
        self.close("closed by the peer")
        return False

    def pause_writing(self) -> None:
        """Take no more from the engine, and do not acknowledge what was taken."""
        self._paused = True

    def resume_writing(self) -> None:
        """Acknowledge what was taken, and flush again."""
        self._paused = False
        self.engine.report_sent()
        self.schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection: the transport is closed."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        # The system's words, without Python's class and number.
        reason = getattr(exc, "strerror", None) or f"{type(exc).__name__}: {exc}"
        self._end(reason if exc else "closed by the peer")
        if not self.gone.done():
            self.gone.set_result(None)

    # ---- flushing and closing

    def flush(self) -> None:
        """Write what the engine has queued, unless the transport is paused."""
        self.flush_scheduled = False
        transport = self.transport
        if self.closed or transport is None or transport.is_closing():
            return
        engine = self.engine
        if not self._paused:
            data = engine.take()
            if data:
                transport.write(data)
                if engine.wants_to_send():
                    self.schedule_flush()
        self._count_queued_octets()
        if not self._paused:
            engine.report_sent()
        self.after_turn()

    def close(self, reason: str) -> None:
        """Write what is queued and close; receivers of live streams are told `reason`."""
        transport = self.transport
        if self.closed or transport is None:
            return
        if not transport.is_closing():
            data = self.engine.take()
            if data:
                transport.write(data)
            if transport.can_write_eof():
                # Closing a socket with unread octets (a window update is enough) resets the connection; octets still
                # on their way are lost. So only this direction is shut down; the peer closes after it has read all.
                try:
                    transport.write_eof()
                except OSError:  # ENOTCONN: the peer has gone, and asyncio's own loop does not expect it
                    transport.abort()
            else:
                transport.close()
            # A peer that does not read would keep the transport and its buffer for ever.
            self._abort_timer = self.loop.call_later(_CLOSE_SECONDS, transport.abort)
        self._end(reason)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # ---- inside

    def report_error(self, exc: Exception) -> None:
        self.loop.call_exception_handler(
            {"message": "internal error while a stream was served", "exception": exc, "protocol": self}
        )

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._reads.left.clear()
        self.budget.leave(self.give_credit)
        self.account.change(-self._counted_octets)
        self._counted_octets = 0
        for stream in self.engine.live_streams():
            receiver, stream.receiver = stream.receiver, None
            if receiver is not None:
                try:
                    self.on_stream_lost(receiver, reason)
                except Exception as exc:  # noqa: BLE001 - the other streams must be told, too
                    stream.receiver = receiver
                    self.on_internal_error(stream, exc)
        self.budget.close_account(self.account)
        self.on_lost(reason)
        # This connection and its engine refer to each other: what is queued would wait for the garbage collector.
        for stream in self.engine.live_streams():
            stream.reset_now(ErrorCode.CANCEL)

    def held_octets(self, stream: Stream) -> int:
        """Return how many octets are charged to this connection for a live stream."""
        return stream.count_queued_octets()

    def give_up(self, octets: int, least_octets: int) -> None:
        """Abort the exchanges for which most octets are held, `least_octets` or more, until so many are free.

        If that is not enough, and what is left is mostly what the peer does not read, the connection ends.
        """
        for stream in sorted(self.engine.live_streams(), key=self.held_octets, reverse=True):
            held = self.held_octets(stream)
            if octets <= 0 or held < least_octets:
                break
            octets -= held
            receiver = stream.receiver
            if receiver is None:
                stream.reset_now(ErrorCode.ENHANCE_YOUR_CALM)
                continue
            try:
                receiver.on_evicted(memory_is_short())
            except Exception as exc:  # noqa: BLE001 - the octets must be freed all the same
                self.on_internal_error(stream, exc)
        self._count_queued_octets()
        if octets > 0 and self._paused and 2 * self._counted_octets >= self.account.octets:
            self.on_failed(ErrorCode.ENHANCE_YOUR_CALM, "too much is queued for a peer that does not read")
            self.abort()

    def _count_queued_octets(self) -> None:
        """Charge what waits in the engine, and in a transport that its peer does not empty."""
        queued_octets = self.engine.count_queued_octets()
        if self._paused and self.transport is not None:
            queued_octets += self.engine.count_frame_octets() + self.transport.get_write_buffer_size()
        if queued_octets != self._counted_octets:
            self.account.change(queued_octets - self._counted_octets)
            self._counted_octets = queued_octets

    def give_credit(self) -> None:
        """Give the connection's window back, now or as soon as the budget has room."""
        if self.budget.is_used_up():
            self.budget.wait(self.give_credit)
        else:
            self.engine.acknowledge_connection()
