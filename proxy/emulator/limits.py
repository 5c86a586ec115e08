"""The limits of the front end's HTTP/2 connections, as settings with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["FIELD_SECTION_OCTETS", "INITIAL_WINDOW_OCTETS", "LARGEST", "RANGES", "Limits"]

FIELD_SECTION_OCTETS: Final = 16_384
"""About the limit of Google's front end: names, values and 32 octets for each field (RFC 9113, 6.5.2)."""

INITIAL_WINDOW_OCTETS: Final = 65_535
"""Both windows at the beginning of a connection (RFC 9113, 6.9.2)."""

LARGEST: Final = 2**31 - 1
"""The largest window, and the largest stream id."""

RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "concurrent_streams": (1, LARGEST),
    "field_section_octets": (1024, 1 << 20),
    "stream_window_octets": (1, LARGEST),
    "connection_window_octets": (INITIAL_WINDOW_OCTETS, LARGEST),
    "padding_octets": (0, 255),
}
"""The least and the largest value of each limit that is a whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the front end advertises and does on each HTTP/2 connection."""

    concurrent_streams: int = 100
    """Requests at a time (SETTINGS_MAX_CONCURRENT_STREAMS); one more is refused with REFUSED_STREAM."""
    field_section_octets: int = FIELD_SECTION_OCTETS
    """Size of a request's fields (SETTINGS_MAX_HEADER_LIST_SIZE); a larger request gets 431."""
    stream_window_octets: int = 1_048_576
    """Receive window of each stream (SETTINGS_INITIAL_WINDOW_SIZE); content above it ends the connection."""
    connection_window_octets: int = 1_048_576
    """Receive window of the connection; content above it ends the connection. HTTP/2 allows none below 65,535."""
    padding_octets: int = 8
    """Padding of each DATA frame of a response."""
    pings: bool = True
    """Whether PING frames are sent while content is received, at most one each second."""
    idle_seconds: float = 240.0
    """How long a connection may have no stream."""
    age_seconds: float = 3600.0
    """After this time, new requests need a new connection."""
    notice_seconds: float = 1.0
    """Time between the two GOAWAY frames of a connection's end."""

    @classmethod
    def plain(cls, **more: Any) -> Limits:
        """Return limits with the defaults of HTTP/2: windows of 64 KiB, no padding, no PING."""
        windows = dict.fromkeys(("stream_window_octets", "connection_window_octets"), INITIAL_WINDOW_OCTETS)
        return cls(**{**windows, "padding_octets": 0, "pings": False, **more})
