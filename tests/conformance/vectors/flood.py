"""Floods, and after how many reads each ends the connection (`policy.flood`)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FLOODS", "Flood"]


class Flood(NamedTuple):
    """A server's peer that repeats one thing on a connection with one stream open and answered."""

    name: str
    repeated: tuple[str, ...]
    """Frames that come in one read, again and again; see `test_vectors.FRAMES`."""
    passes: int | None
    """How many reads pass; the next one ends the connection. None: it goes on for ever."""


FLOODS = [
    # An account has 2,000 and a read is credited 16: the first read of N frames costs N, each that follows N − 16.
    Flood("a PING a read", ("PING",), None),
    Flood("16 PINGs a read", ("PING",) * 16, None),
    Flood("116 PINGs a read", ("PING",) * 116, 19),
    Flood("900 PINGs a read", ("PING",) * 900, 2),
    Flood("116 window updates a read", ("WINDOW_UPDATE",) * 116, 19),
    Flood("116 PRIORITY frames a read", ("PRIORITY",) * 116, 19),
    Flood("116 frames of unknown types a read", ("UNKNOWN",) * 116, 19),
    Flood("4 empty DATA frames a read", ("EMPTY_DATA",) * 4, None),
    Flood("29 empty DATA frames a read", ("EMPTY_DATA",) * 29, 19),
    Flood("SETTINGS in every read", ("SETTINGS",), 496),
    Flood("6 SETTINGS a read", ("SETTINGS",) * 6, 19),
    # A frame of content is credited 4, and 4 more for each KiB.
    Flood("20 PINGs with a frame of content a read", ("CONTENT", *("PING",) * 20), None),
    Flood("120 PINGs with a frame of content a read", ("CONTENT", *("PING",) * 120), 19),
]
