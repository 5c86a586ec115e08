"""One HTTP/2 connection to an upstream.

It hides the end of connections from Restate: on GOAWAY, live streams finish and unprocessed ones are sent elsewhere.
Idle connections are closed before Google's front end closes them (after some four minutes). A PING finds a dead peer,
but only while streams are live: too many PINGs are answered with ENHANCE_YOUR_CALM. Where all requests since the peer
was last heard were cancelled, the connection is closed after the silence that a PING would follow.

A connection that is closing, for any reason, has no free stream.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import Http2Protocol, MakeEngine
from proxy.errors import UpstreamConnectionLost, UpstreamNotHttp2
from proxy.http2.engine import Stream, StreamReceiver
from proxy.http2.events import ErrorCode, Fields, StreamId, error_code_name
from proxy.observe.observer import UpstreamObserver
from proxy.routes import Origin
from proxy.upstream.cancels import Cancels

__all__ = ["ConnectionOwner", "Timing", "UpstreamConnection"]

_NOT_OBSERVED: Final = UpstreamObserver()

_PING_PAYLOAD: Final = b"sidecar\x00"

# A connection that ends within this time without having served a request has failed, as one that cannot be opened.
_YOUNG_SECONDS: Final = 1.0

# They are odd and below 2³¹ (RFC 9113, 5.1.1). A connection this old is replaced long before they run out.
_FIRST_STREAM_ID: Final = 1
_LAST_STREAM_ID: Final = (1 << 29) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a connection is tested with a PING, and when it is closed. All in seconds."""

    ping_interval_seconds: float = 30.0
    """Silence on a connection with live streams before a PING is sent."""
    ping_timeout_seconds: float = 15.0
    """Silence after a PING before the connection is closed. A peer that sends but does not read is closed after an
    interval and a timeout."""
    idle_timeout_seconds: float = 180.0
    """How long a connection without streams is kept: less than Google's front end keeps it."""
    cancels_per_minute: int = 300
    """How many requests that clients cancel are reset on a connection in a minute; see `cancels`."""


class ConnectionOwner:
    """Owns connections, and is told when they change."""

    __slots__ = ()

    def connection_changed(self, connection: UpstreamConnection) -> None:
        """Streams may have become free, or the connection takes no more of them."""
        raise NotImplementedError


class UpstreamConnection(Http2Protocol):
    """A client connection; usable once `ready` is done."""

    __slots__ = (
        "_go_away_error",
        "_heard_at",
        "_is_closing",
        "_last_stream_id",
        "_observer",
        "_pinged_at",
        "_ready_at",
        "_stalled_at",
        "_stalled_octets",
        "_timer",
        "_timing",
        "_unheard",
        "cancels",
        "fruitless",
        "origin",
        "owner",
        "ready",
        "reserved",
        "retiring",
    )

    def __init__(
        self,
        make_engine: MakeEngine,
        budget: Budget,
        flusher: Flusher,
        *,
        origin: Origin,
        timing: Timing,
        observer: UpstreamObserver = _NOT_OBSERVED,
        last_stream_id: StreamId = _LAST_STREAM_ID,
    ) -> None:
        Http2Protocol.__init__(self, make_engine, budget, flusher)
        self.origin = origin
        self.ready: asyncio.Future[None] = self.loop.create_future()
        """Done when the peer's SETTINGS have come; UpstreamNotHttp2, UpstreamConnectionLost or SSLError if it fails."""
        self.reserved = 0
        """Streams promised to requests that are about to open them."""
        self.retiring = False
        """Whether no new streams may be opened."""
        self.fruitless = False
        """True if the peer ended it within a second, before the first request had its whole response."""
        self.owner: ConnectionOwner | None = None
        """Told whenever streams may have become free, and when the connection has ended."""
        self.cancels = Cancels(self.engine, self.loop, timing.cancels_per_minute)
        """Resets the streams of cancelled requests."""
        self._timing = timing
        self._observer = observer
        self._last_stream_id = last_stream_id
        # The transport's bound method: it is asked for each exchange.
        self._is_closing: Callable[[], bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = self._ready_at = self.loop.time()
        self._unheard = False  # whether a request was sent since anything was read
        self._pinged_at: float | None = None
        self._stalled_at: float | None = None
        self._go_away_error = ""  # what the peer's GOAWAY says of the end of the connection, if anything
        self._stalled_octets = 0

    # ---- streams

    def count_free_streams(self) -> int:
        """Return how many more streams may be opened now; 0 or less when none."""
        is_closing = self._is_closing
        if self.retiring or is_closing is None or is_closing():
            return 0
        return self.engine.count_free_streams() - self.reserved

    def open(self, fields: Fields, end_stream: bool, receiver: StreamReceiver) -> Stream:
        """Send a request head on a new stream, of which `receiver` is told; there must be a free one."""
        stream = self.engine.open(fields, end_stream, receiver)
        self._unheard = True
        if stream.id >= self._last_stream_id:
            self.retiring = True
        return stream

    # ---- called by the engine

    def on_go_away(self, last_stream_id: StreamId, code: int, debug: bytes) -> None:
        """Open no more streams here, and have unprocessed requests sent on another connection."""
        self.retiring = True
        self.fruitless = last_stream_id == 0 and self._is_young()
        if code:
            self._go_away_error = f", after GOAWAY with {error_code_name(code)}"
        self._observer.upstream_going_away(str(self.origin), code, debug)
        for stream in self.engine.live_streams():
            if stream.id > last_stream_id:
                receiver, stream.receiver = stream.receiver, None
                stream.reset_now(ErrorCode.CANCEL)
                if receiver is not None:
                    try:
                        receiver.on_unprocessed(last_stream_id > 0 and not code)
                    except Exception as exc:  # noqa: BLE001 - the other streams must be told, too
                        stream.receiver = receiver
                        self.on_internal_error(stream, exc)
        self._changed()

    def on_settings(self) -> None:
        """The connection is usable."""
        if not self.ready.done():
            self.ready.set_result(None)
            self._ready_at = self.loop.time()
            self._tick_idle(self._ready_at)

    def on_failed(self, code: int, reason: str) -> None:
        """The peer broke a rule. Before the connection was usable, the peer does not speak HTTP/2."""
        if not self.ready.done():
            self.ready.set_exception(_not_http2(self.origin))
        Http2Protocol.on_failed(self, code, reason)

    def on_stream_lost(self, receiver: StreamReceiver, reason: str) -> None:
        """Tell the exchange of a live stream."""
        why = reason + self._go_away_error
        receiver.on_connection_lost(UpstreamConnectionLost(f"the connection to {self.origin} was lost: {why}"))

    def on_lost(self, reason: str) -> None:
        """The connection is not usable any more."""
        self.retiring = True
        self.cancels.close()
        if (live := self.engine.live_streams()) and live[0].id == _FIRST_STREAM_ID and self._is_young():
            self.fruitless = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(
                UpstreamConnectionLost(
                    f"the connection to {self.origin} ended before it was usable ({reason}); check the url of the "
                    "route, and that HTTP/2 is spoken there"
                )
            )
        self._changed()

    def after_turn(self) -> None:
        """Close after GOAWAY once no stream is open; otherwise streams may have become free."""
        if self.retiring and self.engine.count_open_streams() == 0:
            self.retire("no streams are left")
        else:
            self._changed()

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start, if HTTP/2 was negotiated."""
        self._is_closing = transport.is_closing
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.transport = transport  # type: ignore[assignment]  # a TLS transport is always a full one
            self.ready.set_exception(_not_http2(self.origin))
            self.abort()
            return
        Http2Protocol.connection_made(self, transport)

    def _has_read(self) -> None:
        self._heard_at = self._flusher.now()
        self._unheard = False
        Http2Protocol._has_read(self)

    def eof_received(self) -> bool | None:
        """Close at once: a transport may close slowly (TLS, a full buffer), and takes no requests meanwhile.

        What was read before is served: it may be the rest of a response.
        """
        self.serve_all()
        return Http2Protocol.eof_received(self)

    def pause_writing(self) -> None:
        """Pause, and watch whether the peer reads."""
        Http2Protocol.pause_writing(self)
        self._stalled_at, self._stalled_octets = self.loop.time(), self._unwritten_octets()

    def resume_writing(self) -> None:
        """Write again."""
        self._stalled_at = None
        Http2Protocol.resume_writing(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Serve what was read before, and end the connection: the transport is closed."""
        self.serve_all()
        if isinstance(exc, ssl.SSLError) and not self.ready.done():
            # With TLS 1.3, a server refuses a client when the client's handshake is done.
            self.ready.set_exception(exc)
        Http2Protocol.connection_lost(self, exc)

    def drain(self) -> None:
        """Open no more streams, and close when no stream is live."""
        self.retiring = True
        self.after_turn()

    def retire(self, reason: str) -> None:
        """Send GOAWAY and close; live streams are lost."""
        if not self.closed:
            self.retiring = True
            self.engine.go_away(0, b"")
            self.close(reason)

    # ---- time

    def _tick(self) -> None:
        now = self.loop.time()
        if self.engine.count_open_streams() == 0:
            self._tick_idle(now)
        elif (fault := self._stalled(now) or self._silent(now)) is not None:
            # The peer would not read a GOAWAY either.
            self.close(fault)
            self.abort()

    def _tick_idle(self, now: float) -> None:
        self._pinged_at = None
        # All requests on a dead connection may have been cancelled before the answer to a PING was due.
        timing = self._timing
        due = self._heard_at + (timing.ping_interval_seconds if self._unheard else timing.idle_timeout_seconds)
        if now >= due:
            self.retire("idle")
        else:
            # Streams that are opened meanwhile are watched in time, too.
            self._timer = self.loop.call_at(min(due, now + timing.ping_interval_seconds), self._tick)

    def _stalled(self, now: float) -> str | None:
        """Return what is wrong if the peer has not read for too long."""
        if self._stalled_at is None:
            return None
        octets = self._unwritten_octets()
        if octets < self._stalled_octets:
            self._stalled_at, self._stalled_octets = now, octets
        seconds = self._timing.ping_interval_seconds + self._timing.ping_timeout_seconds
        return f"the peer has read nothing for {seconds:g} s" if now >= self._stalled_at + seconds else None

    def _silent(self, now: float) -> str | None:
        """Return what is wrong if a PING was not answered; otherwise send one when it is time, and set the timer."""
        timing = self._timing
        if self._stalled_at is not None:
            # A PING could not be written, so a missing answer proves nothing; `_stalled` watches the peer meanwhile.
            self._pinged_at = None
            due = now + timing.ping_timeout_seconds
        elif self._pinged_at is not None and self._heard_at < self._pinged_at:
            due = self._pinged_at + timing.ping_timeout_seconds
            if now >= due:
                return f"no answer to a PING within {timing.ping_timeout_seconds:g} s"
        else:
            self._pinged_at = None
            due = self._heard_at + timing.ping_interval_seconds
            if now >= due:
                self._pinged_at = now
                self.engine.ping(_PING_PAYLOAD)
                due = now + timing.ping_timeout_seconds
        self._timer = self.loop.call_at(due, self._tick)
        return None

    # ---- inside

    def _is_young(self) -> bool:
        return self.loop.time() < self._ready_at + _YOUNG_SECONDS

    def _unwritten_octets(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def _changed(self) -> None:
        if self.owner is not None:
            self.owner.connection_changed(self)


def _not_http2(origin: Origin) -> UpstreamNotHttp2:
    return UpstreamNotHttp2(
        f"{origin} does not speak HTTP/2 with us; deploy the service with `gcloud run deploy --use-http2`, and check "
        "that nothing before it ends HTTP/2"
    )
