"""What is queued on some streams, and the frames that leave with one `take` (`policy.sending`)."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["TAKES", "Queued", "Take"]


class Queued(NamedTuple):
    """What a client has queued on one stream."""

    octets: int = 0
    window: int = 1 << 20
    """What the peer takes on the stream."""
    end: Literal["", "data", "trailers"] = ""
    reset: Literal["", "at once", "after data"] = ""


class Take(NamedTuple):
    """Streams 1, 3, 5, … in this order; the frames of the first `take`, and of the next after the window opened."""

    name: str
    streams: list[Queued]
    frames: list[tuple[int, str, int]]
    """Stream, kind and octets; kind with a "." behind it where the frame has END_STREAM."""
    connection_window: int = 65_535


TAKES = [
    Take("nothing", [Queued()], []),
    Take("content", [Queued(10)], [(1, "Data", 10)]),
    Take("the end on the last content", [Queued(10, end="data")], [(1, "Data.", 10)]),
    Take("an end alone", [Queued(end="data")], [(1, "Data.", 0)]),
    Take("an end alone needs no window", [Queued(window=0, end="data")], [(1, "Data.", 0)]),
    Take("trailers behind content", [Queued(10, end="trailers")], [(1, "Data", 10), (1, "Headers.", 0)]),
    Take("trailers alone need no window", [Queued(window=0, end="trailers")], [(1, "Headers.", 0)]),
    Take(
        "full frames first",
        [Queued(40_000, end="data")],
        [(1, "Data", 16_384), (1, "Data", 16_384), (1, "Data.", 7_232)],
    ),
    Take("a frame that fills exactly", [Queued(16_384, end="data")], [(1, "Data.", 16_384)]),
    Take(
        "one frame a turn",
        [Queued(40_000, end="data"), Queued(5, end="data"), Queued(20_000, end="data")],
        [
            (1, "Data", 16_384),
            (3, "Data.", 5),
            (5, "Data", 16_384),
            (1, "Data", 16_384),
            (5, "Data.", 3_616),
            (1, "Data.", 7_232),
        ],
        connection_window=1 << 20,
    ),
    Take(
        "a narrow connection is shared",
        [Queued(40_000), Queued(40_000)],
        [(1, "Data", 16_384), (3, "Data", 16_384), (1, "Data", 16_384), (3, "Data", 16_383)],
    ),
    Take("a closed window does not stop another stream", [Queued(10, window=0), Queued(10)], [(3, "Data", 10)]),
    Take("a window cuts a frame short", [Queued(10, window=4, end="data")], [(1, "Data", 4)]),
    Take("a reset alone", [Queued(reset="at once")], [(1, "RstStream", 4)]),
    Take("a reset behind content", [Queued(10, reset="at once")], [(1, "Data", 10), (1, "RstStream", 4)]),
    Take("a reset drops what no window takes", [Queued(10, 4, reset="at once")], [(1, "Data", 4), (1, "RstStream", 4)]),
    Take("a reset with no window open", [Queued(10, 0, "data", "at once")], [(1, "RstStream", 4)]),
    Take("a reset that waits", [Queued(10, 4, reset="after data")], [(1, "Data", 4)]),
    Take(
        "a reset behind the end",
        [Queued(10, end="trailers", reset="after data")],
        [(1, "Data", 10), (1, "Headers.", 0), (1, "RstStream", 4)],
    ),
]
