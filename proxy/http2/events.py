"""Types that every room uses: stream ids, field sections, error codes."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

StreamId: TypeAlias = int
"""1 … 2³¹−1; odd, because only clients open streams here (RFC 9113, 5.1.1)."""

FieldLine: TypeAlias = tuple[bytes, bytes, bool]
"""One field line: lower-case name, value, True if it is never indexed (RFC 7541, 6.2.3)."""

Fields: TypeAlias = list[FieldLine]
"""A field section in the order of its lines, pseudo-fields first."""


class ErrorCode(IntEnum):
    """Error codes of RFC 9113, section 7. Codes outside this list cross the proxy as plain integers."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def error_code_name(code: int) -> str:
    """Return the name that RFC 9113 gives to an error code; the number in hexadecimal where it gives none."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return hex(code)
