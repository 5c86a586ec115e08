"""What was received, frame by frame, and what it means; `proxy.http2.policy` has the consequences of faults.

A receiver is called last in the handling of a frame: it may give commands, to its own stream and to any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct, iter_unpack
from typing import Any, Final

from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from proxy.http2.engine import UNLIMITED, Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy import refusals
from proxy.http2.policy.faults import ConnectionFault, StreamFault
from proxy.http2.policy.fields import check_request, check_response, check_trailers, section_octets
from proxy.http2.policy.stream_history import AFTER_THE_END
from proxy.http2.portable.library import LIBRARY
from proxy.http2.portable.sending import PortableStream, SendingEngine

__all__ = ["LIBRARY", "PortableEngine"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

_HEADER: Final = Struct(">HBBBL")  # the length's upper 16 and lower 8 bits, kind, flags, stream
_LENGTHS: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_ON_STREAMS: Final = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION))
_ON_CONNECTIONS: Final = frozenset((SETTINGS, PING, GOAWAY))
_MOST_SETTINGS: Final = 32  # of one frame: each may touch every stream. libnghttp2 draws the line here, too


class FrameReader:
    """Cuts the octets of one connection into frames. HEADERS and their CONTINUATION frames are one."""

    def __init__(self, *, expects_preface: bool, limits: Limits) -> None:
        self._max_frame_octets = limits.max_frame_octets
        self._most_fragments = 1 + limits.max_continuations
        # A section over the limit is decoded, so that its stream can be answered.
        self._most_octets = max(2 * limits.max_field_section_octets, limits.max_frame_octets)
        self._buffer = bytearray()
        self._preface = PREFACE if expects_preface else b""
        self._settings_seen = False
        # Of the field block that has begun and not ended: its stream (0 without one), flags of HEADERS, fragments.
        self._block_stream = self._block_flags = 0
        self._fragments: list[bytes] = []

    def frames(self, data: bytes) -> Iterator[tuple[int, int, StreamId, bytes]]:
        """Yield kind, flags, stream and payload of each frame that is complete now; raises ConnectionFault.

        HEADERS have neither padding nor priority, and their whole field block. A frame that is too long is a fault
        before it is all here.
        """
        buffer = self._buffer
        buffer += data
        if self._preface:
            octets = min(len(buffer), len(self._preface))
            _must(buffer[:octets] == self._preface[:octets], "no client preface: not HTTP/2")
            self._preface = self._preface[octets:]
            del buffer[:octets]
        while len(buffer) >= 9:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(buffer)
            length, stream_id = high << 8 | low, stream_id & 0x7FFF_FFFF
            _must(length <= self._max_frame_octets, "a frame is too long", ErrorCode.FRAME_SIZE_ERROR)
            if len(buffer) < 9 + length:
                break
            self._check(kind, flags, stream_id, length)
            payload = bytes(buffer[9 : 9 + length])
            del buffer[: 9 + length]
            if kind not in (HEADERS, CONTINUATION):
                yield kind, flags, stream_id, payload
            elif self._completes_block(kind, flags, stream_id, payload):
                block, self._fragments = b"".join(self._fragments), []
                yield HEADERS, self._block_flags, stream_id, block

    def unfinished_block(self) -> StreamId:
        """Return the stream of the field block that has begun and not ended, 0 without one."""
        if self._block_stream or self._preface or len(self._buffer) < 9 or self._buffer[3] != HEADERS:
            return self._block_stream
        return int.from_bytes(self._buffer[5:9], "big") & 0x7FFF_FFFF

    def _check(self, kind: int, flags: int, stream_id: StreamId, length: int) -> None:
        _must(length == _LENGTHS.get(kind, length), "a frame has a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        _must(kind not in (_ON_CONNECTIONS if stream_id else _ON_STREAMS), "a frame on the wrong stream")
        _must(kind != PUSH_PROMISE, "a push, which we do not allow")
        self._settings_seen = self._settings_seen or (kind == SETTINGS and not flags & ACK)
        _must(self._settings_seen, "the first frame is not SETTINGS")
        in_block = self._block_stream == (stream_id if kind == CONTINUATION else 0)
        _must(in_block, "a field block interrupted, or CONTINUATION without HEADERS")

    def _completes_block(self, kind: int, flags: int, stream_id: StreamId, payload: bytes) -> bool:
        if kind == HEADERS:
            payload = _unpadded(payload) if flags & PADDED else payload
            if flags & WITH_PRIORITY:
                _must(len(payload) >= 5, "HEADERS are too short for their priority")
                payload = payload[5:]
            self._block_flags = flags
        self._fragments.append(payload)
        within = len(self._fragments) <= self._most_fragments and sum(map(len, self._fragments)) <= self._most_octets
        _must(within, "a field section in too many frames, or far above max_field_section", ErrorCode.ENHANCE_YOUR_CALM)
        self._block_stream = 0 if flags & END_HEADERS else stream_id
        return not self._block_stream


class PortableEngine(SendingEngine):
    """One side of one connection on h2; the contract is `proxy.http2.engine`."""

    def __init__(self, *, client: bool, limits: Limits, **others: Any) -> None:
        super().__init__(client=client, limits=limits, **others)
        self._reader = FrameReader(expects_preface=not client, limits=limits)
        self.h2.receive_data(b"" if client else PREFACE)

    def unfinished_block(self) -> StreamId:
        return self._reader.unfinished_block()

    def receive(self, data: bytes) -> None:
        if self.failed or not data:
            return
        try:
            self.guard.credit_read()
            for kind, flags, stream_id, payload in self._reader.frames(data):
                if kind not in (DATA, RST_STREAM, SETTINGS):  # which have charges of their own
                    self.guard.charge_control_frame()
                try:
                    if (on_frame := _ON_FRAME.get(kind)) is not None:  # otherwise PRIORITY, or unknown
                        on_frame(self, flags, stream_id, payload)
                except StreamFault as exc:
                    self._reset_over(exc, stream_id)
        except ConnectionFault as exc:
            self._fail(exc.code, exc.reason)
        except ProtocolError as exc:  # of h2, or of a window of its kind
            self._fail(exc.error_code, f"a rule of HTTP/2 was broken ({type(exc).__name__})")
        except Exception as exc:  # noqa: BLE001  (the contract: it ends this connection and no other)
            self.handler.on_internal_error(None, exc)
            self._fail(ErrorCode.INTERNAL_ERROR, f"internal error: {type(exc).__name__}")

    def _fail(self, code: int, reason: str) -> None:
        self.go_away(code, reason.encode())
        self.failed = True
        self.unfinished = list(self.streams.values())
        for stream in self.unfinished:
            self.forget(stream)
        self.handler.on_failed(int(code), reason)

    def _reset_over(self, fault: StreamFault, stream_id: StreamId) -> None:
        self.handler.on_stream_refused(stream_id, fault.reason)
        self.write(RstStreamFrame(stream_id, fault.code))
        if (stream := self.streams.get(stream_id)) is not None:
            self.forget(stream)
            stream.refusal = fault.reason
            self._report(stream, f"on_{self.incoming}_reset", int(fault.code), False)
        self.guard.charge_reset()

    def _find(self, stream_id: StreamId) -> PortableStream | None:
        """Return a live stream, None for one that is over; raises ConnectionFault for one that never was."""
        stream = self.streams.get(stream_id)
        was_opened = stream is not None or (stream_id <= self.history.highest and stream_id & 1 == 1)
        _must(was_opened, "a frame on a stream that was never opened")
        return stream

    def _on_end(self, stream: PortableStream, end: bool) -> None:
        if end:
            stream.receives = False
            if not stream.sends:
                self.forget(stream)

    def _report(self, stream: PortableStream, what: str, *args: object) -> None:
        if not stream.muted:
            self.tell(stream, what, *args)

    def _on_headers(self, flags: int, stream_id: StreamId, block: bytes) -> None:
        # Before anything else: the compression must stay in step even where the section is of no use.
        fields = self.h2.decode(block)
        octets, end = section_octets(fields), flags & END_STREAM != 0
        if self.history.section(stream_id, end):
            return self._on_request(stream_id, fields, octets, end)
        if (stream := self._find(stream_id)) is None:
            return None
        _must(stream.receives, AFTER_THE_END, ErrorCode.STREAM_CLOSED)
        if octets > self.limits.max_field_section_octets:
            raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, refusals.SECTION_TOO_LARGE)
        if not stream.has_head:
            return self._on_response(stream, fields, end)
        check_trailers(fields, ends=end)
        if stream.missing:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, refusals.CONTENT_LENGTH)
        self._on_end(stream, end)
        return self._report(stream, f"on_{self.incoming}_trailers", fields)

    def _on_request(self, stream_id: StreamId, fields: Fields, octets: int, end: bool) -> None:
        if self.going_away or len(self.streams) >= self.limits.max_concurrent_streams:
            reason = refusals.GOING_AWAY if self.going_away else refusals.TOO_MANY_STREAMS
            raise StreamFault(ErrorCode.REFUSED_STREAM, reason)
        too_large = octets > self.limits.max_field_section_octets
        length = None if too_large else check_request(fields, ends=end)
        self.show(HeadersFrame(stream_id, flags=["END_HEADERS"]))
        stream = self.streams[stream_id] = PortableStream(self, stream_id)
        stream.has_head, stream.missing = True, length
        self.last_processed = stream_id
        self._on_end(stream, end)
        values = {name: value for name, value, _ in fields}
        if too_large:
            stream.method = b"HEAD" if values.get(b":method") == b"HEAD" else b""
            self.tell(stream, "on_request", stream, [], end, to=self.handler)
            return self.guard.charge_reset()
        stream.method, stream.path, stream.head_octets = values[b":method"], values.get(b":path", b""), octets
        stream.has_watched = not self.watched_names.isdisjoint(values)
        self.guard.credit_head()
        return self.tell(stream, "on_request", stream, fields, end, to=self.handler)

    def _on_response(self, stream: PortableStream, fields: Fields, end: bool) -> None:
        head = check_response(fields, to_head=stream.to_head, ends=end)
        values = {name: value for name, value, _ in fields}
        stream.has_watched = not self.watched_names.isdisjoint(values)
        if head.interim:
            stream.interims += 1
            if stream.interims > self.limits.max_interim_heads:
                raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, refusals.TOO_MANY_INTERIM)
            return self._report(stream, "on_interim", fields)
        stream.has_head, stream.missing, stream.status = True, head.content_length, int(values[b":status"])
        self.guard.credit_head()
        self.guard.credit_response()
        self._on_end(stream, end)
        return self._report(stream, "on_response_head", fields, end)

    def _on_data(self, flags: int, stream_id: StreamId, payload: bytes) -> None:
        octets, end = len(payload), flags & END_STREAM != 0
        self.history.content(stream_id, end)
        within = octets <= self.window.current_window_size
        _must(within, "more content than the connection's window", ErrorCode.FLOW_CONTROL_ERROR)
        self.window.window_consumed(octets)
        data = _unpadded(payload) if flags & PADDED else payload
        if not data and not end:
            self.guard.charge_empty_data()
        if (stream := self._find(stream_id)) is None:
            self.guard.charge_late_content(octets)
            return self.give_credit(0, self.window, octets)
        _must(stream.receives, AFTER_THE_END, ErrorCode.STREAM_CLOSED)
        if octets:  # a frame without any may come while the window is negative (RFC 9113, 6.9.1)
            stream.window.window_consumed(octets)
        fault = None if stream.has_head else refusals.STREAM_ORDER
        if stream.missing is not None:
            stream.missing -= len(data)
            if stream.missing < 0 or (end and stream.missing):
                fault = refusals.CONTENT_LENGTH
        if fault is not None:
            self.give_credit(0, self.window, octets)
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, fault)
        if data:
            self.guard.credit_content(octets, 1)
        self._on_end(stream, end)
        if stream.muted:
            return self.give_credit(0, self.window, octets)
        self.owed_octets += len(data)
        self.give_credit(0, self.window, octets - len(data))
        stream.owed_octets += octets
        stream.acknowledge(octets if stream.receiver is None else octets - len(data))
        return self.tell(stream, f"on_{self.incoming}_data", data, end) if data or end else None

    def _on_rst_stream(self, _: int, stream_id: StreamId, payload: bytes) -> None:
        self.history.reset(stream_id)
        if (stream := self._find(stream_id)) is None:
            return self.guard.charge_control_frame()
        self.forget(stream)
        self.tell(stream, f"on_{self.incoming}_reset", int.from_bytes(payload, "big"), True)
        return None if stream.has_sent_head else self.guard.charge_reset()

    def _on_window_update(self, _: int, stream_id: StreamId, payload: bytes) -> None:
        increment = int.from_bytes(payload, "big") & 0x7FFF_FFFF  # hyperframe would refuse the reserved bit
        if not stream_id:
            _must(increment > 0, "WINDOW_UPDATE by nothing")
        elif self._find(stream_id) is None:
            return None
        elif not increment:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, refusals.FLOW_CONTROL)
        if self.show(WindowUpdateFrame(stream_id, increment)):
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, refusals.FLOW_CONTROL)
        return self.turns.unblock(stream_id) if stream_id else self.turns.unblock_all()

    def _on_settings(self, flags: int, _: StreamId, payload: bytes) -> None:
        if flags & ACK:
            _must(not payload, "an acknowledgement of SETTINGS has a payload", ErrorCode.FRAME_SIZE_ERROR)
            self.guard.charge_control_frame()
            shrinks_by = self.stream_window_octets - self.limits.stream_window_octets  # RFC 9113, 6.9.2
            self.stream_window_octets -= shrinks_by
            for stream in self.streams.values() if shrinks_by else ():
                stream.window.window_opened(-shrinks_by)
                stream.window.max_window_size -= shrinks_by
                stream.acknowledge(0)  # what was given back before may be worth a WINDOW_UPDATE of the smaller window
            return
        _must(len(payload) % 6 == 0, "SETTINGS have a wrong length", ErrorCode.FRAME_SIZE_ERROR)
        self.guard.charge_settings()
        _must(len(payload) <= _MOST_SETTINGS * 6, "too many settings in one frame", ErrorCode.ENHANCE_YOUR_CALM)
        for code, value in iter_unpack(">HL", payload):
            if code == SettingCodes.HEADER_TABLE_SIZE:
                self.h2.encoder.resize(value)  # the smallest must be told, too
        # The last of each: h2 adapts every stream to each initial window. And it would keep unknown ones for ever.
        self.show(SettingsFrame(settings={code: value for code, value in iter_unpack(">HL", payload) if 1 < code < 7}))
        self.write(SettingsFrame(flags=["ACK"]))
        remote = self.h2.remote_settings
        self.peer_max_concurrent_streams = remote.get(SettingCodes.MAX_CONCURRENT_STREAMS, UNLIMITED)
        self.peer_max_section_octets = remote.get(SettingCodes.MAX_HEADER_LIST_SIZE, UNLIMITED)
        self.turns.unblock_all()
        self.handler.on_settings()

    def _on_ping(self, flags: int, _: StreamId, payload: bytes) -> None:
        answer = PingFrame(opaque_data=payload, flags=["ACK"])
        return self.handler.on_ping_acknowledged(payload) if flags & ACK else self.write(answer)

    def _on_go_away(self, _: int, __: StreamId, payload: bytes) -> None:
        _must(len(payload) >= 8, "GOAWAY is shorter than eight octets", ErrorCode.FRAME_SIZE_ERROR)
        self.last_taken = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        self.handler.on_go_away(self.last_taken, int.from_bytes(payload[4:8], "big"), payload[8:])


_ON_FRAME: Final = {
    DATA: PortableEngine._on_data,
    HEADERS: PortableEngine._on_headers,
    RST_STREAM: PortableEngine._on_rst_stream,
    SETTINGS: PortableEngine._on_settings,
    PING: PortableEngine._on_ping,
    GOAWAY: PortableEngine._on_go_away,
    WINDOW_UPDATE: PortableEngine._on_window_update,
}


def _unpadded(payload: bytes) -> bytes:
    """Return the payload of a padded frame without its padding (RFC 9113, 6.1); raises ConnectionFault."""
    _must(bool(payload) and payload[0] < len(payload), "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _must(truth: bool, otherwise: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
    if not truth:
        raise ConnectionFault(code, otherwise)
