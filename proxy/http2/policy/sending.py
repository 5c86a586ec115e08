"""In which order content, ends and resets leave on a connection.

* One DATA frame a turn, in rotation, so that streams share a narrow connection window.
* What is queued for a stream is merged: a frame is as full as the windows and the peer's greatest frame allow.
* No DATA frame is empty but one that only ends its stream; where the end is known, the last content carries it.
* Trailers and resets come after the content before them.
* A stream whose window is closed takes no turn until it opens, unless what it has to send needs no window.

===========  =========  ================================  ======  ==================
content      its end    reset                             window  step
===========  =========  ================================  ======  ==================
some                                                      open    CONTENT
all of it    on DATA                                      open    LAST_CONTENT
some                    none, or waits for the content    closed  WAIT
some                    does not wait                     closed  RESET
none         trailers                                     any     TRAILERS
none         on DATA                                      any     END
none         none       any                               any     RESET
===========  =========  ================================  ======  ==================
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, auto
from typing import Final

from proxy.http2.events import Fields, StreamId

__all__ = ["JOINED_OCTETS", "MAX_TAKEN_OCTETS", "RoundRobin", "SendQueue", "Step"]

MAX_TAKEN_OCTETS: Final = 192 << 10
"""How much content one `Engine.take` returns at most, and so the greatest frame, whatever the peer allows.

Otherwise everything that is queued for a peer with large windows that does not read would be copied to the transport.
With what TLS adds, it stays below what the allocator returns to the system at once (`proxy.allocator`).
"""


JOINED_OCTETS: Final = 1 << 10
"""Pieces of content that wait behind one another are joined up to this size.

What waits is counted by its octets, and an object costs some fifty more than it has: two octets in each of many frames
would take thirty times the memory that is counted.
"""


class Step(Enum):
    """What a stream does when it is its turn."""

    CONTENT = auto()
    """Send a DATA frame."""
    LAST_CONTENT = auto()
    """Send a DATA frame with END_STREAM."""
    END = auto()
    """Send an empty DATA frame with END_STREAM."""
    TRAILERS = auto()
    """Send the trailer section with END_STREAM."""
    RESET = auto()
    """Send RST_STREAM and drop what is left."""
    WAIT = auto()
    """Send nothing until the window opens."""


class SendQueue:
    """What one stream has still to send: content, then its end, then perhaps a reset."""

    __slots__ = ("content", "ended", "reset_code", "reset_waits", "trailers")

    def __init__(self) -> None:
        self.content = bytearray()
        self.ended = False
        """The end is queued behind the content; false again once it has left."""
        self.trailers: Fields | None = None
        """The section that carries the end, where it is not on DATA."""
        self.reset_code: int | None = None
        """A reset is queued behind all this."""
        self.reset_waits = False
        """The reset waits for all content, not just for what the windows take at once."""

    def __bool__(self) -> bool:
        return bool(self.content) or self.ended or self.reset_code is not None

    def next_step(self, window: int, max_frame_octets: int) -> tuple[Step, int]:
        """Return what to do now and how many octets of content go with it; asked only while something is queued.

        `window` is what the peer takes on stream and connection; it may be negative (RFC 9113, 6.9.2).
        """
        if not self.content:
            if not self.ended:
                return Step.RESET, 0
            return (Step.END if self.trailers is None else Step.TRAILERS), 0
        octets = min(len(self.content), window, max_frame_octets)
        if octets <= 0:
            at_once = self.reset_code is not None and not self.reset_waits
            return (Step.RESET if at_once else Step.WAIT), 0
        is_last = octets == len(self.content) and self.ended and self.trailers is None
        return (Step.LAST_CONTENT if is_last else Step.CONTENT), octets

    def cut(self, octets: int) -> bytes:
        """Take so many octets off the front of the content."""
        data = bytes(self.content[:octets])
        del self.content[:octets]
        return data


class RoundRobin:
    """The order in which streams with something to send take turns."""

    __slots__ = ("_blocked", "_ready")

    def __init__(self) -> None:
        self._ready: OrderedDict[StreamId, None] = OrderedDict()
        self._blocked: OrderedDict[StreamId, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, stream_id: StreamId) -> None:
        """Queue a stream behind the others, unless it is queued already."""
        self._blocked.pop(stream_id, None)
        self._ready[stream_id] = None

    def next(self) -> StreamId | None:
        """Remove and return the stream whose turn it is; None if no stream is ready."""
        return self._ready.popitem(last=False)[0] if self._ready else None

    def block(self, stream_id: StreamId) -> None:
        """Give a stream no turn until its window opens."""
        self._blocked[stream_id] = None

    def unblock(self, stream_id: StreamId) -> None:
        """The stream's window has opened."""
        if stream_id in self._blocked:
            self.add(stream_id)

    def unblock_all(self) -> None:
        """The connection's window has opened, or every stream's; they go on in the order in which they stopped."""
        self._ready.update(self._blocked)
        self._blocked.clear()

    def remove(self, stream_id: StreamId) -> None:
        """The stream is over."""
        self._ready.pop(stream_id, None)
        self._blocked.pop(stream_id, None)
