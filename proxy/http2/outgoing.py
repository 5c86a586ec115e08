"""What waits to be sent on one connection: a queue per stream, and whose turn it is.

The rules (engine.py states them, the tests hold them):

* Chunks are merged: a DATA frame is as full as the windows and the peer's greatest frame allow.
* No DATA frame is empty but one that only ends its stream; where the end is known, the last content carries it.
* One frame a turn, in rotation, so that a narrow connection window is shared and nobody starves.
* A turn costs nothing for streams that have nothing to send, or whose own window is closed: `Rotation` holds only
  streams that can go on, and a window that opens puts its stream back.
* Trailers and resets come after the content before them.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from proxy.http2.events import Fields, StreamId
from proxy.http2.framing import data_header

__all__ = ["Lane", "Outgoing", "Rotation", "Wire"]


class Outgoing:
    """What one stream still has to send: content, then its end, then perhaps a reset."""

    __slots__ = ("after_data", "chunks", "ended", "octets", "reset_code", "scheduled", "trailers")

    def __init__(self) -> None:
        self.chunks: deque[bytes | memoryview] = deque()
        self.octets = 0
        """Content queued and not yet sent."""
        self.ended = False
        """The end was queued behind the content; false again once it has left."""
        self.trailers: Fields | None = None
        """The section that carries the end, where it is not on DATA."""
        self.reset_code: int | None = None
        """A reset is queued behind all this."""
        self.after_data = False
        """The reset waits for all content, not just for what the windows take at once."""
        self.scheduled = False
        """The rotation holds this stream."""

    def cut(self, octets: int, parts: list[bytes | memoryview]) -> None:
        """Move so many octets, no more than are queued, from the queue to `parts`; chunks are sliced, not copied."""
        self.octets -= octets
        chunks = self.chunks
        while octets:
            chunk = chunks[0]
            if len(chunk) <= octets:
                parts.append(chunk)
                chunks.popleft()
                octets -= len(chunk)
            else:
                view = memoryview(chunk)
                parts.append(view[:octets])
                chunks[0] = view[octets:]
                octets = 0


class Lane(Protocol):
    """A stream as the rotation sees it."""

    stream_id: StreamId
    outgoing: Outgoing
    outbound_flow_control_window: int
    """What the peer takes on this stream; negative after it shrank INITIAL_WINDOW_SIZE (RFC 9113, 6.9.2)."""


LaneT = TypeVar("LaneT", bound=Lane)
LaneT_contra = TypeVar("LaneT_contra", bound=Lane, contravariant=True)


class Wire(Protocol[LaneT_contra]):
    """What the rotation calls, in the middle of `pump`, when more than content is due."""

    def drained(self, stream: LaneT_contra, *, ended: bool) -> None:
        """All content has left, and with it the end if `ended`: send what comes behind it."""

    def cut_short(self, stream: LaneT_contra) -> None:
        """A reset that does not wait for the content is due now."""


class Rotation(Generic[LaneT]):
    """Whose turn it is."""

    __slots__ = ("_doomed", "_ending", "_turns", "octets")

    def __init__(self) -> None:
        self.octets = 0
        """Content queued on all streams and neither sent nor dropped."""
        self._turns: deque[LaneT] = deque()
        self._ending: list[LaneT] = []
        self._doomed: list[LaneT] = []

    def push(self, lane: LaneT, data: bytes) -> None:
        """Queue content, which may be empty; call `schedule` when all is queued."""
        if data:
            lane.outgoing.chunks.append(data)
            lane.outgoing.octets += len(data)
            self.octets += len(data)

    def drop(self, lane: LaneT) -> None:
        """Forget everything queued on a stream."""
        outgoing = lane.outgoing
        self.octets -= outgoing.octets
        outgoing.chunks.clear()
        outgoing.octets = 0
        outgoing.ended = False
        outgoing.trailers = outgoing.reset_code = None

    def schedule(self, lane: LaneT) -> None:
        """Take a stream up if it can send now: call this when something was queued or its window opened."""
        outgoing = lane.outgoing
        if outgoing.scheduled:
            return
        if outgoing.octets:
            if lane.outbound_flow_control_window > 0:
                outgoing.scheduled = True
                self._turns.append(lane)
        elif outgoing.ended:
            # A frame without content needs no window (RFC 9113, 6.9.1).
            outgoing.scheduled = True
            self._ending.append(lane)

    def doom(self, lane: LaneT) -> None:
        """Cut this stream short at the end of the next `pump`."""
        self._doomed.append(lane)

    def clear(self) -> None:
        """Let go of every stream."""
        self._turns.clear()
        self._ending.clear()
        self._doomed.clear()
        self.octets = 0

    def can_send(self, window: int) -> bool:
        """Whether `pump` would produce anything. May err towards True."""
        return bool(self._ending or self._doomed or (self._turns and window > 0))

    def pump(
        self,
        wire: Wire[LaneT],
        parts: list[bytes | memoryview],
        sent: dict[StreamId, int],
        *,
        window: int,
        max_frame_octets: int,
    ) -> int:
        """Append all frames that may leave now to `parts` and add up their content by stream in `sent`.

        `wire` appends to the same `parts`. Returns what is left of the connection's window.
        """
        for lane in self._ending:
            lane.outgoing.scheduled = False
            wire.drained(lane, ended=False)
        self._ending.clear()
        turns = self._turns
        while turns and window > 0:
            lane = turns.popleft()
            outgoing = lane.outgoing
            octets = min(outgoing.octets, lane.outbound_flow_control_window, window, max_frame_octets)
            if octets <= 0:
                outgoing.scheduled = False
                continue
            final = octets == outgoing.octets
            ended = final and outgoing.ended and outgoing.trailers is None
            parts.append(data_header(lane.stream_id, octets, end_stream=ended))
            outgoing.cut(octets, parts)
            self.octets -= octets
            window -= octets
            lane.outbound_flow_control_window -= octets
            sent[lane.stream_id] = sent.get(lane.stream_id, 0) + octets
            if lane.outbound_flow_control_window > 0 and not final:
                turns.append(lane)
                continue
            outgoing.scheduled = False
            if final:
                wire.drained(lane, ended=ended)
        for lane in self._doomed:
            wire.cut_short(lane)
        self._doomed.clear()
        return window
