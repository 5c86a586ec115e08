"""What a received frame means: the receiving half of the engine on h2; `proxy.http2.policy` has the consequences.

A receiver is called last in the handling of a frame: it may give commands, to its own stream and to any other.
"""

from __future__ import annotations

from typing import Final

from h2.events import StreamReset
from hyperframe.frame import RstStreamFrame

from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy import refusals
from proxy.http2.policy.faults import ConnectionFault, StreamFault
from proxy.http2.policy.fields import check_request, check_response, check_trailers, section_octets
from proxy.http2.policy.stream_history import AFTER_THE_END
from proxy.http2.portable import frames
from proxy.http2.portable.frames import must
from proxy.http2.portable.library import ANY_REQUEST, ANY_RESPONSE, ANY_TRAILERS, LIBRARY, ProtocolError
from proxy.http2.portable.sending import PortableStream, SendingEngine

__all__ = ["LIBRARY", "PortableEngine"]

_MOST_SETTINGS: Final = 32  # of one frame: each may touch every stream. libnghttp2 draws the line here, too


class PortableEngine(SendingEngine):
    """One side of one connection on h2; the contract is `proxy.http2.engine`."""

    def receive(self, data: bytes) -> None:
        if self.failed or not data:
            return
        try:
            self.guard.credit_read()
            for kind, flags, stream_id, payload in self.reader.frames(data):
                try:
                    _ON_FRAME.get(kind, PortableEngine._on_other)(self, flags, stream_id, payload)
                except StreamFault as exc:
                    self._reset_over(exc, stream_id)
        except ConnectionFault as exc:
            self._fail(exc.code, exc.reason)
        except ProtocolError as exc:
            self.library.h2.clear_outbound_data_buffer()  # the GOAWAY of h2, which names another stream
            self._fail(exc.error_code, f"a rule of HTTP/2 was broken ({type(exc).__name__})")
        except Exception as exc:  # noqa: BLE001  (the contract: it ends this connection and no other)
            self.handler.on_internal_error(None, exc)
            self._fail(ErrorCode.INTERNAL_ERROR, f"internal error: {type(exc).__name__}")

    def _fail(self, code: int, reason: str) -> None:
        self.go_away(code, reason.encode())
        self.unfinished += self.streams.values()
        for stream in list(self.streams.values()):
            self.forget(stream)
        self.failed = True
        self.handler.on_failed(int(code), reason)

    def _reset_over(self, fault: StreamFault, stream_id: StreamId) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:  # which h2 and the handler have not been shown
            self.library.write(RstStreamFrame(stream_id, fault.code))
        else:
            self.reset_now(stream, fault.code)
        self.handler.on_stream_refused(stream_id, fault.reason)
        if stream is not None and not stream.muted:
            self.tell(stream, "on_response_reset" if self.client else "on_request_reset", int(fault.code), False)
        self.guard.charge_reset()

    def _must_have_been(self, stream_id: StreamId) -> None:
        """Raise ConnectionFault for a frame on a stream that is gone, unless there was such a stream."""
        was_opened = stream_id <= self.history.highest and stream_id & 1 == 1
        must(was_opened, ErrorCode.PROTOCOL_ERROR, "a frame on a stream that was never opened")

    # ---- field sections

    def _on_headers(self, flags: int, stream_id: StreamId, block: bytes) -> None:
        # Before anything else: the compression must stay in step even where the section is of no use.
        fields, too_large = self.library.decode(block)
        end = flags & frames.END_STREAM != 0
        opens = self.history.section(stream_id, end)
        self.guard.charge_control_frame()
        stream = self.streams.get(stream_id)
        if not opens and stream is None:
            return self._must_have_been(stream_id)
        if opens and (self.going_away or len(self.streams) >= self.limits.max_concurrent_streams):
            reason = refusals.GOING_AWAY if self.going_away else refusals.TOO_MANY_STREAMS
            raise StreamFault(ErrorCode.REFUSED_STREAM, reason)
        must(stream is None or stream.receives, ErrorCode.STREAM_CLOSED, AFTER_THE_END)
        if stream is None:
            return self._on_request(stream_id, fields, end, too_large=too_large)
        if too_large:
            raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
        return (self._on_trailers if stream.has_head else self._on_response)(stream, fields, end)

    def _on_request(self, stream_id: StreamId, fields: Fields, end: bool, *, too_large: bool) -> None:
        length = None if too_large else check_request(fields, ends=end)
        self.library.show_section(stream_id, ANY_REQUEST, end_stream=end)
        stream = self.streams[stream_id] = PortableStream(self, stream_id)
        stream.has_head, stream.missing = True, length
        method = _value_of(fields, b":method")
        self.last_processed = stream_id
        self._on_end(stream, end)
        try:
            if too_large:
                stream.method = method if method == b"HEAD" else b""
                self.handler.on_large_request(stream, end, refusals.SECTION_TOO_LARGE)
            else:
                stream.method, stream.path = method, _value_of(fields, b":path")
                stream.head_octets = section_octets(fields)
                stream.has_watched = not self.watched_names.isdisjoint([line[0] for line in fields])
                self.guard.credit_head()
                self.handler.on_request(stream, fields, end)
        except Exception as exc:  # noqa: BLE001  (the contract: it ends this stream and no other)
            self.handler.on_internal_error(stream, exc)
        if too_large:
            self.guard.charge_reset()

    def _on_response(self, stream: PortableStream, fields: Fields, end: bool) -> None:
        head = check_response(fields, to_head=stream.to_head, ends=end)
        stream.has_watched = not self.watched_names.isdisjoint([line[0] for line in fields])
        if head.interim:
            stream.interims += 1
            if stream.interims > self.limits.max_interim_heads:
                raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, refusals.TOO_MANY_INTERIM)
        else:
            self.library.show_section(stream.id, ANY_RESPONSE, end_stream=end)
            stream.has_head, stream.missing = True, head.content_length
            stream.status = int(_value_of(fields, b":status"))
            self.guard.credit_head()
            self.guard.credit_response()
            self._on_end(stream, end)
        if not stream.muted:
            self.tell(stream, *(("on_interim", fields) if head.interim else ("on_response_head", fields, end)))

    def _on_trailers(self, stream: PortableStream, fields: Fields, end: bool) -> None:
        check_trailers(fields, ends=end)
        if stream.missing:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, refusals.CONTENT_LENGTH)
        self.library.show_section(stream.id, ANY_TRAILERS, end_stream=True)
        self._on_end(stream, end)
        if not stream.muted:
            self.tell(stream, "on_response_trailers" if self.client else "on_request_trailers", fields)

    def _on_end(self, stream: PortableStream, end: bool) -> None:
        if end:
            stream.receives = False
            if not stream.sends:
                self.forget(stream)

    # ---- content

    def _on_data(self, flags: int, stream_id: StreamId, payload: bytes) -> None:
        octets, end = len(payload), flags & frames.END_STREAM != 0
        self.history.content(stream_id, end)
        within = octets <= self.library.h2.inbound_flow_control_window - self.unseen_octets
        must(within, ErrorCode.FLOW_CONTROL_ERROR, "more content than the connection's window")
        data = frames.unpadded(payload) if flags & frames.PADDED else payload
        if not data and not end:
            self.guard.charge_empty_data()
        stream = self.streams.get(stream_id)
        must(stream is None or stream.receives, ErrorCode.STREAM_CLOSED, AFTER_THE_END)
        fault = None
        if stream is not None and not stream.has_head:
            fault = refusals.STREAM_ORDER
        elif stream is not None and stream.missing is not None:
            stream.missing -= len(data)
            if stream.missing < 0 or (end and stream.missing):
                fault = refusals.CONTENT_LENGTH
        if stream is None or fault is not None:  # then h2 is not shown it
            self.give_connection_credit(0, unseen=octets)
            if fault is not None:
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, fault)
            return self._must_have_been(stream_id)
        self.library.show(frames.DATA, flags, stream_id, payload)
        if data:
            self.guard.credit_content(octets, 1)
        self._on_end(stream, end)
        return self._on_content(stream, data, octets - len(data), end)

    def _on_content(self, stream: PortableStream, data: bytes, padding: int, end: bool) -> None:
        if stream.muted:
            self.give_connection_credit(len(data) + padding)
            return
        self.owed_octets += len(data)
        self.give_connection_credit(padding)
        self.give_credit(stream, padding if stream.receiver else len(data) + padding)
        if stream.receiver and (data or end):
            stream.owed_octets += len(data)
            self.tell(stream, "on_response_data" if self.client else "on_request_data", data, end)

    # ---- the rest

    def _on_rst_stream(self, _: int, stream_id: StreamId, payload: bytes) -> None:
        self.history.reset(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._must_have_been(stream_id)
            return self.guard.charge_control_frame()
        self.library.show(frames.RST_STREAM, 0, stream_id, payload)
        self.forget(stream)
        self.tell(
            stream, "on_response_reset" if self.client else "on_request_reset", int.from_bytes(payload, "big"), True
        )
        return None if stream.has_sent_head else self.guard.charge_reset()

    def _on_window_update(self, _: int, stream_id: StreamId, payload: bytes) -> None:
        self.guard.charge_control_frame()
        increment = int.from_bytes(payload, "big") & 0x7FFF_FFFF  # hyperframe would refuse the reserved bit
        stream = self.streams.get(stream_id)
        if stream_id and stream is None:
            return self._must_have_been(stream_id)
        if stream is None:
            must(increment > 0, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        elif not increment:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, refusals.FLOW_CONTROL)
        happened = self.library.show(frames.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))
        if stream is None:
            return self.turns.unblock_all()
        if any(isinstance(event, StreamReset) for event in happened):
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL)
        return self.turns.unblock(stream_id)

    def _on_settings(self, flags: int, _: StreamId, payload: bytes) -> None:
        if flags & frames.ACK:
            must(not payload, ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has a payload")
            self.guard.charge_control_frame()
            self.library.show(frames.SETTINGS, flags, 0, payload)
            return
        must(len(payload) % 6 == 0, ErrorCode.FRAME_SIZE_ERROR, "SETTINGS have a wrong length")
        self.guard.charge_settings()
        must(len(payload) <= _MOST_SETTINGS * 6, ErrorCode.ENHANCE_YOUR_CALM, "too many settings in one frame")
        self.peer_max_streams, self.peer_max_section_octets = self.library.apply_settings(payload)
        self.turns.unblock_all()
        self.handler.on_settings()

    def _on_ping(self, flags: int, _: StreamId, payload: bytes) -> None:
        self.guard.charge_control_frame()
        if flags & frames.ACK:
            self.handler.on_ping_acknowledged(payload)
        else:
            self.library.show(frames.PING, flags, 0, payload)

    def _on_go_away(self, _: int, __: StreamId, payload: bytes) -> None:
        """Not shown to h2, which would refuse every frame after it."""
        must(len(payload) >= 8, ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than eight octets")
        self.guard.charge_control_frame()
        self.peer_going_away = True
        last = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        self.handler.on_go_away(last, int.from_bytes(payload[4:8], "big"), payload[8:])

    def _on_other(self, _: int, __: StreamId, ___: bytes) -> None:
        """PRIORITY, and what we do not know."""
        self.guard.charge_control_frame()


_ON_FRAME: Final = {
    frames.DATA: PortableEngine._on_data,
    frames.HEADERS: PortableEngine._on_headers,
    frames.RST_STREAM: PortableEngine._on_rst_stream,
    frames.SETTINGS: PortableEngine._on_settings,
    frames.PING: PortableEngine._on_ping,
    frames.GOAWAY: PortableEngine._on_go_away,
    frames.WINDOW_UPDATE: PortableEngine._on_window_update,
}


def _value_of(fields: Fields, wanted: bytes) -> bytes:
    return next((value for name, value, _ in fields if name == wanted), b"")
