"""What a received frame means: the receiving half of the engine on h2; `proxy.http2.policy` has the consequences.

A receiver is called last in the handling of a frame: it may give commands, to its own stream and to any other.
"""

from __future__ import annotations

from typing import Final

from h2.events import StreamReset
from hyperframe.frame import RstStreamFrame

from proxy.http2.engine import ConnectionHandler, Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy import refusals
from proxy.http2.policy.faults import ConnectionFault
from proxy.http2.policy.fields import Malformed, check_request, check_response, check_trailers
from proxy.http2.policy.stream_history import AFTER_THE_END
from proxy.http2.portable import frames
from proxy.http2.portable.frames import FrameReader, must
from proxy.http2.portable.library import ANY_REQUEST, ANY_RESPONSE, ANY_TRAILERS, LIBRARY, ProtocolError
from proxy.http2.portable.sending import PortableStream, SendingEngine

__all__ = ["LIBRARY", "PortableEngine"]

_MOST_SETTINGS: Final = 32  # of one frame: each may touch every stream. libnghttp2 draws the line here, too


class PortableEngine(SendingEngine):
    """One side of one connection on h2; the contract is `proxy.http2.engine`."""

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits,
        handler: ConnectionHandler,
        watched_names: frozenset[bytes] = frozenset(),
    ) -> None:
        super().__init__(client=client, limits=limits, handler=handler, watched_names=watched_names)
        self._watched_names = watched_names
        self._reader = FrameReader(expects_preface=not client, limits=limits)
        self._on_frame = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.RST_STREAM: self._on_rst_stream,
            frames.SETTINGS: self._on_settings,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_go_away,
            frames.WINDOW_UPDATE: self._on_window_update,
        }

    def receive(self, data: bytes) -> None:
        if self.failed or not data:
            return
        self.guard.credit_read()
        try:
            for kind, flags, stream_id, payload in self._reader.frames(data):
                self._on_frame.get(kind, self._on_other)(flags, stream_id, payload)
        except ConnectionFault as exc:
            self._fail(exc.code, str(exc))
        except ProtocolError as exc:
            self.library.h2.clear_outbound_data_buffer()  # the GOAWAY of h2, which names another stream
            self._fail(exc.error_code, f"a rule of HTTP/2 was broken ({type(exc).__name__})")
        except Exception as exc:  # noqa: BLE001  (the contract: it ends this connection and no other)
            self.handler.on_internal_error(None, exc)
            self._fail(ErrorCode.INTERNAL_ERROR, f"internal error: {type(exc).__name__}")

    # ---- faults

    def _fail(self, code: int, reason: str) -> None:
        self.go_away(code, reason.encode())
        self.unfinished = list(self.streams.values())
        for stream in list(self.streams.values()):
            self.forget(stream)
        self.failed = True
        self.handler.on_failed(int(code), reason)

    def _charge(self, within: bool) -> None:
        must(within, ErrorCode.ENHANCE_YOUR_CALM, "too many resets, or too many frames to no effect")

    def _fault(self, stream: PortableStream, code: ErrorCode, reason: str, *, by_h2: bool = False) -> None:
        """Reset a stream on which the peer broke a rule, unless h2 has done so."""
        if by_h2:
            self.forget(stream)
        else:
            self.reset_now(stream, code)
        self.handler.on_stream_refused(stream.id, reason)
        if not stream.muted:
            self._report_reset(stream, code, by_peer=False)
        self._charge(self.guard.charge_reset())

    def _refuse(self, stream_id: StreamId, code: ErrorCode, reason: str) -> None:
        """Reset a stream that nobody has heard of, h2 included."""
        self.library.write(RstStreamFrame(stream_id, code))
        self.handler.on_stream_refused(stream_id, reason)
        self._charge(self.guard.charge_reset())

    def _on_late_frame(self, stream_id: StreamId, *, is_charged: bool) -> None:
        """HEADERS or DATA came that have crossed our RST_STREAM (`policy.stream_history`): discard them."""
        self._must_have_been(stream_id)
        if is_charged:
            self._charge(self.guard.charge_control_frame())

    def _must_have_been(self, stream_id: StreamId) -> None:
        was_opened = stream_id <= self.highest_id and stream_id & 1 == 1
        must(was_opened, ErrorCode.PROTOCOL_ERROR, "a frame on a stream that was never opened")

    # ---- field sections

    def _on_headers(self, flags: int, stream_id: StreamId, block: bytes) -> None:
        # Before anything else: the compression must stay in step even where the section is of no use.
        fields = self.library.decode(block)
        end = flags & frames.END_STREAM != 0
        self.history.section(stream_id, end=end)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_section(stream, fields, end=end)
        elif not self.client and stream_id > self.highest_id:
            self._on_request(stream_id, fields, end=end)
        else:
            self._on_late_frame(stream_id, is_charged=True)

    def _on_request(self, stream_id: StreamId, fields: Fields | None, *, end: bool) -> None:
        must(stream_id & 1 == 1, ErrorCode.PROTOCOL_ERROR, "a client opened a stream with an even number")
        self.highest_id = stream_id
        if self.going_away or len(self.streams) >= self.limits.max_concurrent_streams:
            reason = refusals.GOING_AWAY if self.going_away else refusals.TOO_MANY_STREAMS
            return self._refuse(stream_id, ErrorCode.REFUSED_STREAM, reason)
        if fields is None:
            return self._refuse(stream_id, ErrorCode.ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
        try:
            length = check_request(fields, ends=end)
        except Malformed as exc:
            return self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, exc.reason)
        self.library.show_section(stream_id, ANY_REQUEST, end_stream=end)
        stream = self.streams[stream_id] = PortableStream(self, stream_id)
        stream.has_head, stream.missing = True, length
        stream.method, stream.path = _value_of(fields, b":method"), _value_of(fields, b":path")
        self._watch(stream, fields)
        self.last_processed = stream_id
        self.guard.credit_head()
        self._on_end(stream, end)
        return self.tell(stream, self.handler.on_request, stream, fields, end)

    def _watch(self, stream: PortableStream, fields: Fields) -> None:
        stream.has_watched = not self._watched_names.isdisjoint([line[0] for line in fields])

    def _on_section(self, stream: PortableStream, fields: Fields | None, *, end: bool) -> None:
        must(stream.receives, ErrorCode.STREAM_CLOSED, AFTER_THE_END)
        if fields is None:
            return self._fault(stream, ErrorCode.ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
        try:
            return (self._on_trailers if stream.has_head else self._on_response)(stream, fields, end)
        except Malformed as exc:
            return self._fault(stream, ErrorCode.PROTOCOL_ERROR, exc.reason)

    def _on_response(self, stream: PortableStream, fields: Fields, end: bool) -> None:
        head = check_response(fields, to_head=stream.to_head, ends=end)
        receiver = None if stream.muted else stream.receiver
        self._watch(stream, fields)
        if head.interim:
            self._charge(self.guard.charge_control_frame())
            if receiver is not None:
                self.tell(stream, receiver.on_interim, fields)
            return
        self.library.show_section(stream.id, ANY_RESPONSE, end_stream=end)
        stream.has_head, stream.missing = True, head.content_length
        stream.status = int(_value_of(fields, b":status"))
        self.guard.credit_head()
        self.guard.credit_response()
        self._on_end(stream, end)
        if receiver is not None:
            self.tell(stream, receiver.on_response_head, fields, end)

    def _on_trailers(self, stream: PortableStream, fields: Fields, end: bool) -> None:
        check_trailers(fields, ends=end)
        if stream.missing:
            raise Malformed("content that was announced did not come", refusals.CONTENT_LENGTH)
        self.library.show_section(stream.id, ANY_TRAILERS, end_stream=True)
        self._on_end(stream, end)
        receiver = stream.receiver
        if receiver is not None and not stream.muted:
            self.tell(stream, receiver.on_response_trailers if self.client else receiver.on_request_trailers, fields)

    def _on_end(self, stream: PortableStream, end: bool) -> None:
        if end:
            stream.receives = False
            if not stream.sends:
                self.forget(stream)

    # ---- content

    def _on_data(self, flags: int, stream_id: StreamId, payload: bytes) -> None:
        octets, end = len(payload), flags & frames.END_STREAM != 0
        self.history.content(stream_id, end=end)
        within = octets <= self.connection_window()
        must(within, ErrorCode.FLOW_CONTROL_ERROR, "more content than the connection's window")
        data = frames.unpadded(payload) if flags & frames.PADDED else payload
        stream = self.streams.get(stream_id)
        if stream is None:
            self.give_connection_credit(0, unseen=octets)
            return self._on_late_frame(stream_id, is_charged=not octets)
        if (fault := self._data_fault(stream, len(data), end)) is not None:
            self.give_connection_credit(0, unseen=octets)
            return self._fault(stream, *fault)
        self.library.show(frames.DATA, flags, stream_id, payload)
        if data:
            self.guard.credit_content(octets)
        elif not end:
            self._charge(self.guard.charge_empty_data())
        return self._on_content(stream, data, octets - len(data), end)

    def _data_fault(self, stream: PortableStream, octets: int, end: bool) -> tuple[ErrorCode, str] | None:
        must(stream.receives, ErrorCode.STREAM_CLOSED, AFTER_THE_END)
        if not stream.has_head:
            return ErrorCode.PROTOCOL_ERROR, refusals.STREAM_ORDER
        if stream.missing is not None:
            stream.missing -= octets
            if stream.missing < 0 or (end and stream.missing):
                return ErrorCode.PROTOCOL_ERROR, refusals.CONTENT_LENGTH
        return None

    def _on_content(self, stream: PortableStream, data: bytes, padding: int, end: bool) -> None:
        receiver = stream.receiver
        self._on_end(stream, end)
        if stream.muted:
            self.give_connection_credit(len(data) + padding)
            return
        self.owed_octets += len(data)
        self.give_connection_credit(padding)
        if receiver is None:
            self.give_credit(stream, len(data) + padding)
            return
        stream.owed_octets += len(data)
        self.give_credit(stream, padding)
        if data or end:
            self.tell(stream, receiver.on_response_data if self.client else receiver.on_request_data, data, end)

    # ---- the rest

    def _on_rst_stream(self, _: int, stream_id: StreamId, payload: bytes) -> None:
        self.history.reset(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._must_have_been(stream_id)
            return self._charge(self.guard.charge_control_frame())
        self.library.show(frames.RST_STREAM, 0, stream_id, payload)
        self.forget(stream)
        self._report_reset(stream, int.from_bytes(payload, "big"), by_peer=True)
        return self._charge(stream.has_sent_head or self.guard.charge_reset())

    def _report_reset(self, stream: PortableStream, code: int, *, by_peer: bool) -> None:
        if (receiver := stream.receiver) is not None:
            on_reset = receiver.on_response_reset if self.client else receiver.on_request_reset
            self.tell(stream, on_reset, int(code), by_peer)

    def _on_window_update(self, _: int, stream_id: StreamId, payload: bytes) -> None:
        self._charge(self.guard.charge_control_frame())
        increment = int.from_bytes(payload, "big") & 0x7FFF_FFFF  # hyperframe would refuse the reserved bit
        stream = self.streams.get(stream_id)
        if stream_id and stream is None:
            return self._must_have_been(stream_id)
        if not increment:
            must(stream is not None, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        if stream is not None and not increment:
            return self._fault(stream, ErrorCode.PROTOCOL_ERROR, refusals.FLOW_CONTROL)
        happened = self.library.show(frames.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))
        if stream is None:
            return self.turns.unblock_all()
        if any(isinstance(event, StreamReset) for event in happened):
            return self._fault(stream, ErrorCode.FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL, by_h2=True)
        return self.turns.unblock(stream_id)

    def _on_settings(self, flags: int, _: StreamId, payload: bytes) -> None:
        if flags & frames.ACK:
            must(not payload, ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has a payload")
            self._charge(self.guard.charge_control_frame())
            self.library.show(frames.SETTINGS, flags, 0, payload)
            return
        must(len(payload) % 6 == 0, ErrorCode.FRAME_SIZE_ERROR, "SETTINGS have a wrong length")
        self._charge(self.guard.charge_settings() and len(payload) <= _MOST_SETTINGS * 6)
        self.peer_max_streams = self.library.apply_settings(payload)
        self.turns.unblock_all()
        self.handler.on_settings()

    def _on_ping(self, flags: int, _: StreamId, payload: bytes) -> None:
        self._charge(self.guard.charge_control_frame())
        if flags & frames.ACK:
            self.handler.on_ping_acknowledged(payload)
        else:
            self.library.show(frames.PING, flags, 0, payload)

    def _on_go_away(self, _: int, __: StreamId, payload: bytes) -> None:
        """Not shown to h2, which would refuse every frame after it."""
        must(len(payload) >= 8, ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than eight octets")
        self._charge(self.guard.charge_control_frame())
        self.peer_going_away = True
        last = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        self.handler.on_go_away(last, int.from_bytes(payload[4:8], "big"), payload[8:])

    def _on_other(self, _: int, __: StreamId, ___: bytes) -> None:
        """PRIORITY, and what we do not know."""
        self._charge(self.guard.charge_control_frame())


def _value_of(fields: Fields, wanted: bytes) -> bytes:
    return next((value for name, value, _ in fields if name == wanted), b"")
