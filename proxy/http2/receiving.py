"""What a connection makes of the frames it receives (RFC 9113, 5 and 6).

`Receiver` decides: which event a frame becomes, what is a fault of one stream and what of the connection, what is
answered at once (PING, SETTINGS, credit for what nobody will read), and when a peer has become a nuisance. What has
been agreed so far, streams, windows and settings, is kept behind `Connection` and `Stream` (see `state`).

====================================================  ==================================================
the peer                                              consequence
====================================================  ==================================================
breaks a rule of framing, compression, settings       connection ends: GOAWAY with the code of RFC 9113
uses a stream that never was                          connection ends: PROTOCOL_ERROR
opens a stream below one that it has opened           connection ends: PROTOCOL_ERROR
sends HEADERS or DATA after its own end or reset      connection ends: STREAM_CLOSED
overruns the connection's window                      connection ends: FLOW_CONTROL_ERROR
overruns a stream's window, or its own (2³¹−1)        RST_STREAM FLOW_CONTROL_ERROR
sends a malformed section, a wrong content-length     RST_STREAM PROTOCOL_ERROR
sends a section over the limit                        RST_STREAM ENHANCE_YOUR_CALM
opens more streams than offered, or after our GOAWAY  RST_STREAM REFUSED_STREAM, nobody hears of it
sends on a stream that we reset                       nothing; the connection's window is given back
sends too much to no effect                           connection ends: ENHANCE_YOUR_CALM
====================================================  ==================================================
"""

from __future__ import annotations

from typing import Final, Generic

from proxy.http2 import framing, refusals
from proxy.http2.compression import CompressionFault
from proxy.http2.engine import Limits
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
    SettingsReceived,
    StreamId,
    StreamReset,
    TrailersReceived,
)
from proxy.http2.flood import Allowance
from proxy.http2.framing import ConnectionFault
from proxy.http2.heads import Malformed, check_request, check_response, check_trailers
from proxy.http2.state import Connection, StreamT
from proxy.http2.stream_history import AFTER_THE_END

__all__ = ["Receiver"]

_MAX_STREAM_ID: Final = (1 << 31) - 1
_MOST_SETTINGS: Final = 32
"""Entries of one SETTINGS frame: each may touch every stream. libnghttp2 draws the line here, too."""


class Receiver(Generic[StreamT]):
    """Turns bytes into events."""

    def __init__(self, connection: Connection[StreamT], *, client: bool, limits: Limits) -> None:
        self.connection = connection
        self.allowance = Allowance()
        self.failed = False
        """ConnectionFailed was reported; nothing more will be."""
        self.going_away = False
        """We sent GOAWAY (or failed, which implies it): neither side opens streams any more."""
        self.peer_going_away = False
        """The peer sent GOAWAY: we open no more streams."""
        self.last_processed: StreamId = 0
        """The highest stream of the peer's that was reported."""
        self.pings = 0
        """PINGs of ours that the peer has not answered."""
        self._client = client
        self._max_streams = limits.max_concurrent_streams
        self.refused: list[tuple[StreamId, str]] = []
        """Streams that were reset because the peer broke a rule, and why (`refusals`), since the last look."""
        self._events: list[Event] = []
        self._reader = framing.FrameReader(
            server=not client,
            max_frame_octets=limits.max_frame_octets,
            max_block_octets=max(limits.max_field_section_octets, limits.max_frame_octets),
        )
        self._handlers = {
            framing.DATA: self._on_data,
            framing.HEADERS: self._on_headers,
            framing.PRIORITY: self._on_priority,
            framing.RST_STREAM: self._on_rst_stream,
            framing.SETTINGS: self._on_settings,
            framing.PUSH_PROMISE: self._on_push_promise,
            framing.PING: self._on_ping,
            framing.GOAWAY: self._on_go_away,
            framing.WINDOW_UPDATE: self._on_window_update,
        }

    def receive(self, data: bytes) -> list[Event]:
        """Return the events of these bytes; never raises (see `Engine.receive`)."""
        if self.failed or not data:
            return []
        self.allowance.read()
        handlers = self._handlers
        try:
            for kind, flags, stream_id, payload in self._reader.frames(data):
                handler = handlers.get(kind)
                if handler is not None:
                    handler(flags, stream_id, payload)
                else:
                    self._spend(self.allowance.idle_frame())
        except ConnectionFault as exc:
            self._fail(exc.code, exc.reason)
        except CompressionFault as exc:
            self._fail(ErrorCode.COMPRESSION_ERROR, str(exc))
        except Exception as exc:  # noqa: BLE001  (the contract: whatever it is, it ends this connection and no other)
            self._fail(ErrorCode.INTERNAL_ERROR, f"a defect of the engine: {type(exc).__name__}")
        events, self._events = self._events, []
        return events

    def go_away(self, code: int, debug: bytes) -> None:
        """Queue GOAWAY; from now on new streams of the peer's are refused."""
        self.connection.write(framing.go_away(self.last_processed, code, debug))
        self.going_away = True

    # ---- faults

    def _fail(self, code: int, reason: str) -> None:
        self.failed = True
        self.go_away(code, reason.encode())
        self.connection.forget_all()
        self._events.append(ConnectionFailed(int(code), reason))

    def _spend(self, within: bool) -> None:
        if not within:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets, or too many frames to no effect")

    def _fault(self, stream: StreamT, code: ErrorCode, refusal: str) -> None:
        """Reset a stream on which the peer broke a rule."""
        self.refused.append((stream.stream_id, refusal))
        self.connection.reset(stream, code)
        if not stream.muted:
            self._events.append(StreamReset(stream.stream_id, int(code), False))
        self._spend(self.allowance.cancelled())

    def _refuse(self, stream_id: StreamId, code: ErrorCode, refusal: str) -> None:
        """Reset a stream that nobody has heard of."""
        self.refused.append((stream_id, refusal))
        self.connection.write(framing.rst_stream(stream_id, code))
        self.connection.skip_stream(stream_id)
        self._spend(self.allowance.cancelled())

    def _must_have_been(self, stream_id: StreamId) -> None:
        if not self.connection.was_opened(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on a stream that was never opened")

    def _discard(self, stream_id: StreamId, *, content: bool) -> None:
        """HEADERS or DATA came on a stream that is gone, and have crossed our RST_STREAM (see `stream_history`)."""
        self._must_have_been(stream_id)
        if not content:
            self._spend(self.allowance.idle_frame())

    # ---- sections

    def _on_headers(self, flags: int, stream_id: StreamId, block: bytes) -> None:
        end = flags & framing.END_STREAM != 0
        self.connection.history.section(stream_id, end=end)
        # Before anything else: the compression must stay in step even where the section is of no use.
        fields = self.connection.decode(block)
        stream = self.connection.streams.get(stream_id)
        if stream is not None:
            self._on_section(stream, fields, end=end)
        elif self._client or self.connection.was_opened(stream_id):
            self._discard(stream_id, content=False)
        else:
            self._on_request(stream_id, fields, end=end)

    def _on_request(self, stream_id: StreamId, fields: Fields | None, *, end: bool) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client opened a stream with an even number")
        if self.going_away or len(self.connection.streams) >= self._max_streams:
            refusal = refusals.GOING_AWAY if self.going_away else refusals.TOO_MANY_STREAMS
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM, refusal)
            return
        if fields is None:
            self._refuse(stream_id, ErrorCode.ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
            return
        try:
            length = check_request(fields)
        except Malformed as exc:
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, exc.refusal)
            return
        if end and length:
            self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, refusals.CONTENT_LENGTH)
            return
        stream = self.connection.open_stream(stream_id)
        stream.missing = length
        stream.head_arrived()
        self.last_processed = stream_id
        self.allowance.head()
        self._events.append(HeadReceived(stream_id, fields, end))
        if end:
            self.connection.end_arrived(stream)

    def _on_section(self, stream: StreamT, fields: Fields | None, *, end: bool) -> None:
        if not stream.receives:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, AFTER_THE_END)
        if fields is None:
            self._fault(stream, ErrorCode.ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
        else:
            try:
                event = self._trailers(stream, fields, end) if stream.has_head else self._head(stream, fields, end)
            except Malformed as exc:
                self._fault(stream, ErrorCode.PROTOCOL_ERROR, exc.refusal)
                return
            if not stream.muted:
                self._events.append(event)
            if end:
                self.connection.end_arrived(stream)

    def _head(self, stream: StreamT, fields: Fields, end: bool) -> Event:
        head = check_response(fields, to_head=stream.to_head)
        if head.interim:
            if end:
                raise Malformed("an interim response that ends its stream", refusals.STREAM_ORDER)
            self._spend(self.allowance.idle_frame())
            return InterimReceived(stream.stream_id, fields)
        if end and head.content_length:
            raise Malformed("content was announced and none follows", refusals.CONTENT_LENGTH)
        stream.missing = head.content_length
        stream.head_arrived()
        self.allowance.head()
        self.allowance.answered()
        return HeadReceived(stream.stream_id, fields, end)

    def _trailers(self, stream: StreamT, fields: Fields, end: bool) -> Event:
        check_trailers(fields)
        if not end:
            raise Malformed("trailers that do not end their stream", refusals.STREAM_ORDER)
        if stream.missing:
            raise Malformed("content that was announced and did not come", refusals.CONTENT_LENGTH)
        return TrailersReceived(stream.stream_id, fields)

    # ---- content

    def _on_data(self, flags: int, stream_id: StreamId, payload: bytes) -> None:
        octets = len(payload)
        end = flags & framing.END_STREAM != 0
        self.connection.history.content(stream_id, end=end)
        self.connection.consume(octets)
        data = framing.unpadded(payload) if flags & framing.PADDED else payload
        stream = self.connection.streams.get(stream_id)
        if stream is None:
            self.connection.credit(octets)
            self._discard(stream_id, content=octets > 0)
            return
        fault = self._data_fault(stream, octets, len(data), end)
        if fault is not None:
            self.connection.credit(octets)
            self._fault(stream, *fault)
            return
        if data:
            self.allowance.content(octets)
        elif not end:
            self._spend(self.allowance.empty_data())
        if stream.muted:
            self.connection.credit(octets)
        else:
            if octets > len(data):
                self.connection.credit(octets - len(data))
                self.connection.credit_stream(stream, octets - len(data))
            if data or end:
                self._events.append(DataReceived(stream_id, data, end))
        if end:
            self.connection.end_arrived(stream)

    def _data_fault(self, stream: StreamT, octets: int, content: int, end: bool) -> tuple[ErrorCode, str] | None:
        if not stream.receives:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, AFTER_THE_END)
        if not stream.has_head:
            return ErrorCode.PROTOCOL_ERROR, refusals.STREAM_ORDER
        if not stream.consume(octets):
            return ErrorCode.FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL
        if stream.missing is not None:
            stream.missing -= content
            if stream.missing < 0 or (end and stream.missing):
                return ErrorCode.PROTOCOL_ERROR, refusals.CONTENT_LENGTH
        return None

    # ---- the rest

    def _on_rst_stream(self, _flags: int, stream_id: StreamId, payload: bytes) -> None:
        _must_have(len(payload) == 4, ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not four octets")
        self.connection.history.reset(stream_id)
        stream = self.connection.streams.get(stream_id)
        if stream is None:
            self._must_have_been(stream_id)
            self._spend(self.allowance.idle_frame())
            return
        self.connection.reset_arrived(stream)
        self._events.append(StreamReset(stream_id, int.from_bytes(payload, "big"), True))
        if not stream.has_sent_head:
            self._spend(self.allowance.cancelled())

    def _on_window_update(self, _flags: int, stream_id: StreamId, payload: bytes) -> None:
        _must_have(len(payload) == 4, ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not four octets")
        increment = int.from_bytes(payload, "big") & _MAX_STREAM_ID
        self._spend(self.allowance.idle_frame())
        if not stream_id:
            _must_have(increment > 0, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self.connection.widen(increment)
            return
        stream = self.connection.streams.get(stream_id)
        if stream is None:
            self._must_have_been(stream_id)
        elif not increment:
            self._fault(stream, ErrorCode.PROTOCOL_ERROR, refusals.FLOW_CONTROL)
        elif not stream.widen(increment):
            self._fault(stream, ErrorCode.FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL)
        else:
            self.connection.rotation.schedule(stream)

    def _on_settings(self, flags: int, stream_id: StreamId, payload: bytes) -> None:
        _must_have(not stream_id, ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & framing.ACK:
            _must_have(not payload, ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has a payload")
            self._spend(self.connection.settings_acknowledged() or self.allowance.idle_frame())
            return
        self._spend(self.allowance.settings() and len(payload) <= _MOST_SETTINGS * 6)
        self.connection.apply_settings(framing.settings_pairs(payload))
        self.connection.write(framing.SETTINGS_ACK)
        for stream in self.connection.streams.values():
            self.connection.rotation.schedule(stream)
        self._events.append(SettingsReceived())

    def _on_ping(self, flags: int, stream_id: StreamId, payload: bytes) -> None:
        _must_have(not stream_id, ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        _must_have(len(payload) == 8, ErrorCode.FRAME_SIZE_ERROR, "PING is not eight octets")
        if not flags & framing.ACK:
            self._spend(self.allowance.idle_frame())
            self.connection.write(framing.ping(payload, ack=True))
            return
        if self.pings:
            self.pings -= 1
        else:
            self._spend(self.allowance.idle_frame())
        self._events.append(PingAcknowledged(payload))

    def _on_go_away(self, _flags: int, stream_id: StreamId, payload: bytes) -> None:
        _must_have(not stream_id, ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        _must_have(len(payload) >= 8, ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than eight octets")
        self._spend(self.allowance.idle_frame())
        self.peer_going_away = True
        last = int.from_bytes(payload[:4], "big") & _MAX_STREAM_ID
        self._events.append(GoAwayReceived(last, int.from_bytes(payload[4:8], "big"), payload[8:]))

    def _on_priority(self, _flags: int, stream_id: StreamId, payload: bytes) -> None:
        """Ignored (RFC 9113, 5.3.2), but for its form."""
        _must_have(stream_id > 0, ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        _must_have(len(payload) == 5, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not five octets")
        self._spend(self.allowance.idle_frame())

    def _on_push_promise(self, _flags: int, _stream_id: StreamId, _payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a push that we did not allow")


def _must_have(truth: bool, code: ErrorCode, otherwise: str) -> None:
    if not truth:
        raise ConnectionFault(code, otherwise)
