"""One HTTP/2 connection to an upstream.

It absorbs what must not reach Restate: GOAWAY lets live streams finish and sends the others elsewhere, idle
connections close before Google's front end closes them (some four minutes), and a PING finds a dead peer, but only
while streams are live, because too many of them get ENHANCE_YOUR_CALM.

Whoever takes a free stream may be sure that the connection could send at that moment: one that is closing, for whatever
reason, has none.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.errors import UpstreamConnectionLost, UpstreamNotHttp2
from proxy.http2.engine import Engine
from proxy.http2.events import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Fields,
    GoAwayReceived,
    HeadReceived,
    InterimReceived,
    SettingsReceived,
    StreamId,
    StreamReset,
    TrailersReceived,
)
from proxy.routing import Origin
from proxy.wire import Budget, FrameProtocol, Sink

__all__ = ["Timing", "UpstreamConnection"]

_log: Final = structlog.get_logger("upstream")

_PING_PAYLOAD: Final = b"sidecar\x00"

_DEBUG_OCTETS: Final = 200
"""How much of GOAWAY's debug data is logged."""

# They are odd and below 2³¹ (RFC 9113, 5.1.1). A connection this old is replaced long before they run out.
_LAST_STREAM_ID: Final = (1 << 29) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a connection is probed and when it is given up. All in seconds."""

    ping_interval_seconds: float = 30.0
    """Silence on a connection with live streams before it is probed."""
    ping_timeout_seconds: float = 15.0
    """Silence after a probe before the connection is given up. A peer that takes nothing of what is written, though it
    may talk, is given up after an interval and a timeout."""
    idle_timeout_seconds: float = 180.0
    """How long a connection without streams is kept: less than the front end keeps it."""


class UpstreamConnection(FrameProtocol):
    """A client connection; usable once `settled` is done."""

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        loop: asyncio.AbstractEventLoop,
        *,
        origin: Origin,
        timing: Timing,
        last_stream_id: StreamId = _LAST_STREAM_ID,
    ) -> None:
        super().__init__(engine, budget, loop)
        self.origin = origin
        self.settled: asyncio.Future[None] = loop.create_future()
        """Done when the peer's SETTINGS have come; fails with UpstreamNotHttp2 or UpstreamConnectionLost."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the transport, if there ever was one, is closed."""
        self.reserved = 0
        """Streams promised to requests that are about to open them."""
        self.retiring = False
        """Whether no new streams may be opened."""
        self.on_change: Callable[[UpstreamConnection], None] = lambda _: None
        """Called whenever streams may have become free, and when the connection is gone."""
        self._timing = timing
        self._last_stream_id = last_stream_id
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = loop.time()
        self._pinged_at: float | None = None
        self._stalled_at: float | None = None
        self._stalled_octets = 0

    # ---- streams

    @property
    def free_streams(self) -> int:
        """How many more streams may be opened now; 0 or less when none."""
        transport = self.transport
        if self.retiring or transport is None or transport.is_closing():
            return 0
        return self.engine.free_streams - self.reserved

    def open(self, fields: Fields, end_stream: bool, sink: Sink) -> StreamId:
        """Send a request head on a new stream, whose events go to `sink`; there must be a free one."""
        stream_id = self.engine.send_request(fields, end_stream)
        self._sinks[stream_id] = sink
        if stream_id >= self._last_stream_id:
            self.retiring = True
        if not self._flush_scheduled:
            self.schedule_flush()
        return stream_id

    # ---- events

    def on_head(self, event: HeadReceived) -> None:
        stream_id, fields, end_stream = event
        sink = self._sinks.get(stream_id)
        if sink is not None:
            sink.response_head(fields, end_stream)

    def on_interim(self, event: InterimReceived) -> None:
        sink = self._sinks.get(event.stream_id)
        if sink is not None:
            sink.interim(event.fields)

    def on_data(self, event: DataReceived) -> None:
        stream_id, data, end_stream = event
        self.credit_octets += len(data)
        sink = self._sinks.get(stream_id)
        if sink is not None:
            sink.response_data(data, end_stream)
        elif data:
            self.engine.acknowledge(stream_id, len(data))

    def on_trailers(self, event: TrailersReceived) -> None:
        sink = self._sinks.get(event.stream_id)
        if sink is not None:
            sink.response_trailers(event.fields)

    def on_reset(self, event: StreamReset) -> None:
        sink = self._sinks.get(event.stream_id)
        if sink is None:
            return
        if not event.by_peer:
            # The upstream broke a rule; the code that told it so would blame the caller.
            sink.response_reset(ErrorCode.INTERNAL_ERROR)
        elif event.code == ErrorCode.REFUSED_STREAM:
            sink.unprocessed()
        else:
            sink.response_reset(event.code)
        self.forget(event.stream_id)

    def on_go_away(self, event: GoAwayReceived) -> None:
        self.retiring = True
        if event.code != ErrorCode.NO_ERROR:
            # Google ends every connection after an hour or so, with NO_ERROR; anything else wants to be looked at.
            _log.warning(
                "upstream said GOAWAY",
                origin=str(self.origin),
                code=_error_name(event.code),
                debug=event.debug[:_DEBUG_OCTETS].decode("ascii", "backslashreplace"),
            )
        for stream_id in [id_ for id_ in self._sinks if id_ > event.last_stream_id]:
            self.engine.reset(stream_id, ErrorCode.CANCEL)
            self.tell(stream_id, self._sinks[stream_id].unprocessed)
            self.forget(stream_id)
        self.on_change(self)

    def on_settings(self, event: SettingsReceived) -> None:
        if not self.settled.done():
            self.settled.set_result(None)
            self._tick_idle(self.loop.time())

    def on_failed(self, event: ConnectionFailed) -> None:
        if not self.settled.done():
            self.settled.set_exception(_not_http2(self.origin))
        super().on_failed(event)

    def on_sent(self, stream_id: StreamId, octets: int) -> None:
        sink = self._sinks.get(stream_id)
        if sink is not None:
            sink.request_sent(octets)

    def on_lost(self, reason: str) -> None:
        self.retiring = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.settled.done():
            self.settled.set_exception(
                UpstreamConnectionLost(
                    f"the connection to {self.origin} ended before it was usable ({reason}); check the url of the "
                    "route, and that HTTP/2 is spoken there"
                )
            )
        failure = UpstreamConnectionLost(f"the connection to {self.origin} was lost: {reason}")
        for stream_id, sink in list(self._sinks.items()):
            self.tell(stream_id, sink.upstream_lost, failure)
        self._sinks.clear()
        self.on_change(self)

    def after_flush(self) -> None:
        if self.retiring and not self._sinks and self.engine.open_streams == 0:
            self.retire("no streams are left after GOAWAY")
        else:
            self.on_change(self)

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.transport = transport  # type: ignore[assignment]  # a TLS transport is always a full one
            self.settled.set_exception(_not_http2(self.origin))
            self.abort()
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        super().data_received(data)

    def eof_received(self) -> bool | None:
        # Closing may take a while (TLS, a full buffer); from now on nobody may be sent here.
        self.close("closed by the peer")
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_at, self._stalled_octets = self.loop.time(), self._unwritten_octets()

    def resume_writing(self) -> None:
        self._stalled_at = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.gone.done():
            self.gone.set_result(None)

    def retire(self, reason: str) -> None:
        """Say GOAWAY and close; live streams are lost."""
        if not self.closed:
            self.retiring = True
            self.engine.go_away(ErrorCode.NO_ERROR)
            self.close(reason)

    # ---- time

    def _arm(self, due: float) -> None:
        self._timer = self.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        now = self.loop.time()
        if self.engine.open_streams == 0:
            self._tick_idle(now)
        elif (fault := self._stalled(now) or self._silent(now)) is not None:
            # It would not read a GOAWAY either.
            self.close(fault)
            self.abort()

    def _tick_idle(self, now: float) -> None:
        self._pinged_at = None
        due = self._heard_at + self._timing.idle_timeout_seconds
        if now >= due:
            self.retire("idle")
        else:
            # Streams that are opened meanwhile are looked after in time, too.
            self._arm(min(due, now + self._timing.ping_interval_seconds))

    def _stalled(self, now: float) -> str | None:
        """Return what is wrong if the peer has long taken nothing of what is written to it."""
        if self._stalled_at is None:
            return None
        octets = self._unwritten_octets()
        if octets < self._stalled_octets:
            self._stalled_at, self._stalled_octets = now, octets
        seconds = self._timing.ping_interval_seconds + self._timing.ping_timeout_seconds
        return f"the peer has read nothing for {seconds:g} s" if now >= self._stalled_at + seconds else None

    def _silent(self, now: float) -> str | None:
        """Return what is wrong if a PING has had no answer; else send one if it is time, and come back in time."""
        timing = self._timing
        if self._stalled_at is not None:
            # A PING could not leave, so that no answer proves nothing; `_stalled` watches the peer meanwhile.
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
                self.schedule_flush()
                due = now + timing.ping_timeout_seconds
        self._arm(due)
        return None

    def _unwritten_octets(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport is not None else 0


def _not_http2(origin: Origin) -> UpstreamNotHttp2:
    return UpstreamNotHttp2(
        f"{origin} does not speak HTTP/2 with us; deploy the service with `gcloud run deploy --use-http2`, and check "
        "that nothing before it ends HTTP/2"
    )


def _error_name(code: int) -> str:
    try:
        return ErrorCode(code).name
    except ValueError:
        return hex(code)
