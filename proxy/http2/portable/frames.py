"""Frames cut out of what was read, and checked for all that needs no memory of streams (RFC 9113, 4 and 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, StreamId
from proxy.http2.policy.faults import ConnectionFault

__all__ = ["FrameReader", "must", "unpadded"]  # and the numbers of RFC 9113, as `frames.DATA`

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

_LENGTHS: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_ON_STREAMS: Final = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION))
_ON_CONNECTIONS: Final = frozenset((SETTINGS, PING, GOAWAY))
_SPARE_CONTINUATIONS: Final = 16  # CONTINUATION frames of one block beyond those that a section at the limit needs


class FrameReader:
    """Cuts the octets of one connection into frames. HEADERS and their CONTINUATION frames are one."""

    def __init__(self, *, expects_preface: bool, limits: Limits) -> None:
        self._max_frame_octets = limits.max_frame_octets
        self._most_continuations = _SPARE_CONTINUATIONS + limits.max_field_section_octets // limits.max_frame_octets
        # A section over the limit is decoded, so that its stream can be answered.
        self._most_block_octets = max(2 * limits.max_field_section_octets, limits.max_frame_octets)
        self._buffer = bytearray()
        self._preface = PREFACE if expects_preface else b""
        self._settings_seen = False
        self._block: tuple[int, StreamId, bytearray] | None = None  # flags of HEADERS, stream, and what has come
        self._continuations = 0

    def frames(self, data: bytes) -> Iterator[tuple[int, int, StreamId, bytes]]:
        """Yield kind, flags, stream and payload of each frame that is complete now; raises ConnectionFault.

        HEADERS have neither padding nor priority, and their whole field block. A frame that is too long is a fault
        before it is all here.
        """
        buffer = self._buffer
        buffer += data
        if self._preface:
            octets = min(len(buffer), len(self._preface))
            must(buffer[:octets] == self._preface[:octets], ErrorCode.PROTOCOL_ERROR, "no client preface: not HTTP/2")
            self._preface = self._preface[octets:]
            del buffer[:octets]
        start = 0
        while len(buffer) - start >= 9:
            length = int.from_bytes(buffer[start : start + 3], "big")
            kind, flags = buffer[start + 3], buffer[start + 4]
            stream_id = int.from_bytes(buffer[start + 5 : start + 9], "big") & 0x7FFF_FFFF
            must(length <= self._max_frame_octets, ErrorCode.FRAME_SIZE_ERROR, "a frame is too long")
            end = start + 9 + length
            if end > len(buffer):
                break
            self._check(kind, flags, stream_id, length)
            payload = bytes(buffer[start + 9 : end])
            start = end
            if kind not in (HEADERS, CONTINUATION):
                yield kind, flags, stream_id, payload
            elif (block := self._add_to_block(kind, flags, stream_id, payload)) is not None:
                yield HEADERS, block[0], stream_id, bytes(block[2])
        del buffer[:start]

    def unfinished_block(self) -> StreamId:
        """Return the stream of the field block that has begun and not ended, 0 without one."""
        if self._block is not None:
            return self._block[1]
        buffer = self._buffer
        if self._preface or len(buffer) < 9 or buffer[3] != HEADERS:
            return 0
        return int.from_bytes(buffer[5:9], "big") & 0x7FFF_FFFF

    def _check(self, kind: int, flags: int, stream_id: StreamId, length: int) -> None:
        must(length == _LENGTHS.get(kind, length), ErrorCode.FRAME_SIZE_ERROR, "a frame has a wrong length")
        on_wrong_stream = kind in (_ON_CONNECTIONS if stream_id else _ON_STREAMS)
        must(not on_wrong_stream, ErrorCode.PROTOCOL_ERROR, "a frame on the wrong stream")
        must(kind != PUSH_PROMISE, ErrorCode.PROTOCOL_ERROR, "a push, which we do not allow")
        self._settings_seen = self._settings_seen or (kind == SETTINGS and not flags & ACK)
        must(self._settings_seen, ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        expected = None if self._block is None else self._block[1]
        found = stream_id if kind == CONTINUATION else None
        must(found == expected, ErrorCode.PROTOCOL_ERROR, "a field block interrupted, or CONTINUATION without HEADERS")

    def _add_to_block(
        self, kind: int, flags: int, stream_id: StreamId, payload: bytes
    ) -> tuple[int, StreamId, bytearray] | None:
        """Return the field block if it is complete."""
        if kind == HEADERS:
            if flags & PADDED:
                payload = unpadded(payload)
            if flags & WITH_PRIORITY:
                must(len(payload) >= 5, ErrorCode.PROTOCOL_ERROR, "HEADERS are too short for their priority")
                payload = payload[5:]
        block = self._block or (flags, stream_id, bytearray())
        block[2].extend(payload)
        self._continuations = self._continuations + 1 if kind == CONTINUATION else 0
        within = self._continuations <= self._most_continuations and len(block[2]) <= self._most_block_octets
        must(within, ErrorCode.ENHANCE_YOUR_CALM, "too many CONTINUATION frames, or too much in them")
        self._block = None if flags & END_HEADERS else block
        return block if self._block is None else None


def unpadded(payload: bytes) -> bytes:
    """Return the payload of a padded frame without its padding (RFC 9113, 6.1); raises ConnectionFault."""
    must(bool(payload) and payload[0] < len(payload), ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def must(truth: bool, code: ErrorCode, otherwise: str) -> None:
    """Raise ConnectionFault unless it is true."""
    if not truth:
        raise ConnectionFault(code, otherwise)
