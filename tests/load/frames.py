"""HTTP/2 frames by hand (RFC 9113, 4.1), for peers that must cost next to nothing. Pure.

Upstream and client of the streaming workloads share a processor; with a whole HTTP/2 library on each of them the proxy
in the middle would mostly wait.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["PREFACE", "Frame", "FrameReader", "acknowledgement", "content", "frame", "settings", "window_update"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4

_HEAD: Final = struct.Struct(">HBBBL")
_HEAD_OCTETS: Final = 9


class Frame(NamedTuple):
    """A frame as received."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class FrameReader:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete; to be exhausted before the next call."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= _HEAD_OCTETS:
            high, low, kind, flags, stream_id = _HEAD.unpack_from(data, at)
            after = at + _HEAD_OCTETS + (high << 8 | low)
            if after > end:
                break
            yield Frame(kind, flags, stream_id & 0x7FFF_FFFF, data[at + _HEAD_OCTETS : after])
            at = after
        self._rest = data[at:]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame's octets."""
    return _HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream_id) + payload


def settings(**values: int) -> bytes:
    """Return a SETTINGS frame with `max_concurrent_streams` and `initial_window_size` as given."""
    codes = {"max_concurrent_streams": MAX_CONCURRENT_STREAMS, "initial_window_size": INITIAL_WINDOW_SIZE}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", codes[name], value) for name, value in values.items()))


def window_update(stream_id: int, octets: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">L", octets))


def acknowledgement(received: Frame) -> bytes:
    """Return what SETTINGS and PING are to be answered with; nothing for other frames and acknowledgements."""
    if received.flags & ACK:
        return b""
    if received.kind == SETTINGS:
        return frame(SETTINGS, ACK, 0)
    if received.kind == PING:
        return frame(PING, ACK, 0, received.payload)
    return b""


def content(received: Frame) -> bytes:
    """Return the payload of DATA or HEADERS without padding and priority (RFC 9113, 6.1 and 6.2)."""
    payload, flags = received.payload, received.flags
    if flags & PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    if received.kind == HEADERS and flags & PRIORITY:
        payload = payload[5:]
    return payload
