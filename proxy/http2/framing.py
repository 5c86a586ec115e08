"""Frames on the wire (RFC 9113, 4 and 6): cutting received bytes into frames, and building the frames we send.

Pure and free of any library. `FrameReader` looks at a frame's length before it waits for its payload, so that a peer
cannot make us buffer more than one legal frame, and joins HEADERS with their CONTINUATION frames under two limits
(octets and frames), so that a field block that never ends is noticed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

from proxy.http2.events import ErrorCode, StreamId

__all__ = [
    "ACK",
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADERS",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITISED",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "SETTINGS_ACK",
    "WINDOW_UPDATE",
    "ConnectionFault",
    "Frame",
    "FrameReader",
    "data_header",
    "go_away",
    "headers",
    "ping",
    "rst_stream",
    "settings",
    "settings_pairs",
    "unpadded",
    "window_update",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends before its first frame (RFC 9113, 3.4)."""

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

Frame = tuple[int, int, StreamId, bytes]
"""Type, flags, stream and payload. HEADERS come whole: without padding and priority, CONTINUATION joined."""

_HEADER: Final = Struct(">HBBBL")
_LONG: Final = Struct(">L")
_LONGS: Final = Struct(">LL")
_SETTING: Final = Struct(">HL")
_MAX_STREAM_ID: Final = (1 << 31) - 1
_SPARE_CONTINUATIONS: Final = 16
"""CONTINUATION frames a field block may use beyond the full ones its greatest size needs."""


class ConnectionFault(Exception):
    """The peer broke a rule of the connection (RFC 9113, 5.4.1). The reason never quotes what the peer sent."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrameReader:
    """Cuts a byte stream into frames, however it was split on the way."""

    __slots__ = (
        "_fragments",
        "_held",
        "_max_block",
        "_max_frame",
        "_needed",
        "_opening_flags",
        "_opening_stream",
        "_preface",
        "_started",
    )

    def __init__(self, *, server: bool, max_frame_octets: int, max_block_octets: int) -> None:
        """Expect the client preface first if `server`; refuse longer frames and field blocks than said."""
        self._preface = PREFACE if server else b""
        self._max_frame = max_frame_octets
        self._max_block = max_block_octets
        self._held = bytearray()
        self._needed = 1
        self._started = False
        self._opening_stream: StreamId = 0
        self._opening_flags = 0
        self._fragments: list[bytes] = []

    def frames(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that is complete with these bytes; raises ConnectionFault where the peer went wrong.

        The first frame is checked to be SETTINGS (RFC 9113, 3.4).
        """
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        position = self._after_preface(data) if self._preface else 0
        total = len(data)
        while total - position >= 9:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, position)
            length = high << 8 | low
            if length > self._max_frame:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame is longer than SETTINGS_MAX_FRAME_SIZE")
            end = position + 9 + length
            if end > total:
                self._needed = 9 + length
                break
            payload = data[position + 9 : end]
            position = end
            frame = self._framed(kind, flags, stream_id & _MAX_STREAM_ID, payload)
            if frame is not None:
                yield frame
        else:
            self._needed = 9
        if position < total:
            self._held += data[position:] if position else data

    def _after_preface(self, data: bytes) -> int:
        expected = self._preface[: len(data)]
        if not data.startswith(expected):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the client preface is missing: this is not HTTP/2")
        self._preface = self._preface[len(expected) :]
        return len(expected)

    def _framed(self, kind: int, flags: int, stream_id: StreamId, payload: bytes) -> Frame | None:
        """Return the frame to report, or None while a field block is incomplete."""
        if not self._started:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._started = True
        if self._opening_stream:
            return self._continued(kind, flags, stream_id, payload)
        if kind == HEADERS:
            if not stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
            block = _field_block(flags, payload)
            if flags & END_HEADERS:
                return kind, flags, stream_id, block
            self._opening_stream = stream_id
            self._opening_flags = flags
            self._fragments.append(block)
            return None
        if kind == CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS before it")
        return kind, flags, stream_id, payload

    def _continued(self, kind: int, flags: int, stream_id: StreamId, payload: bytes) -> Frame | None:
        if kind != CONTINUATION or stream_id != self._opening_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a field block is interrupted by another frame")
        fragments = self._fragments
        fragments.append(payload)
        if len(fragments) > _SPARE_CONTINUATIONS + self._max_block // self._max_frame:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a field block has too many CONTINUATION frames")
        if sum(map(len, fragments)) > self._max_block:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a field block is too long")
        if not flags & END_HEADERS:
            return None
        block = b"".join(fragments)
        fragments.clear()
        self._opening_stream = 0
        return HEADERS, self._opening_flags | END_HEADERS, stream_id, block


def unpadded(payload: bytes) -> bytes:
    """Return what a PADDED payload holds between its length octet and its padding (RFC 9113, 6.1)."""
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame has no pad length")
    end = len(payload) - payload[0]
    if end < 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1:end]


def _field_block(flags: int, payload: bytes) -> bytes:
    """Return the field block fragment of a HEADERS payload (RFC 9113, 6.2); priority is obsolete and skipped."""
    if flags & PADDED:
        payload = unpadded(payload)
    if flags & PRIORITISED:
        if len(payload) < 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS are too short for their priority")
        payload = payload[5:]
    return payload


def settings_pairs(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yield (identifier, value) in the order sent (RFC 9113, 6.5.3)."""
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS are not a multiple of six octets")
    yield from _SETTING.iter_unpack(payload)


# ---- frames we send

SETTINGS_ACK: Final = _HEADER.pack(0, 0, SETTINGS, ACK, 0)
"""The frame that acknowledges the peer's SETTINGS."""


def data_header(stream_id: StreamId, octets: int, *, end_stream: bool) -> bytes:
    """Return the nine octets before a DATA frame's content."""
    return _HEADER.pack(octets >> 8, octets & 0xFF, DATA, END_STREAM if end_stream else 0, stream_id)


def headers(stream_id: StreamId, block: bytes, *, end_stream: bool, max_frame_octets: int) -> bytes:
    """Return a field block as HEADERS and, where it is longer than a frame, CONTINUATION."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_octets:
        octets = len(block)
        return _HEADER.pack(octets >> 8, octets & 0xFF, HEADERS, flags | END_HEADERS, stream_id) + block
    parts: list[bytes] = []
    kind = HEADERS
    for start in range(0, len(block), max_frame_octets):
        fragment = block[start : start + max_frame_octets]
        octets = len(fragment)
        if start + octets == len(block):
            flags |= END_HEADERS
        parts += (_HEADER.pack(octets >> 8, octets & 0xFF, kind, flags, stream_id), fragment)
        kind, flags = CONTINUATION, 0
    return b"".join(parts)


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    """Return SETTINGS with these (identifier, value) pairs."""
    body = b"".join([_SETTING.pack(identifier, value) for identifier, value in pairs])
    return _HEADER.pack(0, len(body), SETTINGS, 0, 0) + body


def rst_stream(stream_id: StreamId, code: int) -> bytes:
    """Return RST_STREAM."""
    return _HEADER.pack(0, 4, RST_STREAM, 0, stream_id) + _LONG.pack(code)


def window_update(stream_id: StreamId, increment: int) -> bytes:
    """Return WINDOW_UPDATE; stream 0 is the connection."""
    return _HEADER.pack(0, 4, WINDOW_UPDATE, 0, stream_id) + _LONG.pack(increment)


def ping(payload: bytes, *, ack: bool) -> bytes:
    """Return PING with eight octets."""
    return _HEADER.pack(0, 8, PING, ACK if ack else 0, 0) + payload


def go_away(last_stream_id: StreamId, code: int, debug: bytes) -> bytes:
    """Return GOAWAY."""
    octets = 8 + len(debug)
    return _HEADER.pack(octets >> 8, octets & 0xFF, GOAWAY, 0, 0) + _LONGS.pack(last_stream_id, code) + debug
