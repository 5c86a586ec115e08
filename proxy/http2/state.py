"""What one connection and its streams have agreed on so far, as `receiving` and `sending` see it.

A library keeps it (see `h2_engine`): which stream is in which state, which setting is in force, how far each window is
open. These are its questions and commands; neither side of them does IO or decides what a frame means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from proxy.http2.events import Fields, StreamId
from proxy.http2.outgoing import Lane, Rotation, Wire
from proxy.http2.stream_history import StreamHistory

__all__ = ["Connection", "Stream", "StreamT"]


class Stream(Lane, Protocol):
    """One stream that is not over in both directions."""

    muted: bool
    """We reset it, or are about to: its events interest nobody any more."""
    missing: int | None
    """Octets of content the peer announced and did not send yet; None where nothing was announced."""
    to_head: bool
    """The request was HEAD (client only)."""

    @property
    def receives(self) -> bool:
        """Whether the peer's half is open."""

    @property
    def sends(self) -> bool:
        """Whether our half is open, and no end or reset is queued on it."""

    @property
    def has_head(self) -> bool:
        """Whether the peer's request head or final response head is here."""

    @property
    def has_sent_head(self) -> bool:
        """Whether our request head or final response head was queued."""

    def head_arrived(self) -> None:
        """A request head or final response head came."""

    def head_sent(self) -> None:
        """A request head or final response head was queued."""

    def consume(self, octets: int) -> bool:
        """Take so many octets off the receive window; False if that is more than it holds."""

    def widen(self, increment: int) -> bool:
        """Add to the send window; False if it would pass 2³¹−1 (RFC 9113, 6.9.1)."""


StreamT = TypeVar("StreamT", bound=Stream)


class Connection(Wire[StreamT], Protocol[StreamT]):
    """One connection. `consume`, `widen` and `apply_settings` raise ConnectionFault where the peer is wrong."""

    history: StreamHistory
    rotation: Rotation[StreamT]
    parts: list[bytes | memoryview]
    """Frames queued, to be joined and sent."""
    peer_max_streams: int
    """The peer's SETTINGS_MAX_CONCURRENT_STREAMS, or what is assumed without."""
    highest_outbound_stream_id: StreamId
    """The last stream we opened; 0 before the first."""
    outbound_flow_control_window: int
    """What the peer takes on the connection."""
    max_outbound_frame_size: int
    """The greatest frame payload the peer takes."""

    @property
    def streams(self) -> Mapping[StreamId, StreamT]:
        """Every stream that is not over in both directions."""

    def write(self, frame: bytes, /) -> None:
        """Queue a frame."""

    def write_section(self, stream_id: StreamId, fields: Fields, *, end_stream: bool) -> None:
        """Encode and queue a field section; sections must leave in the order in which they are encoded."""

    def decode(self, block: bytes, /) -> Fields | None:
        """Return a field section, or None if it is over the limit; raises CompressionFault."""

    def open_stream(self, stream_id: StreamId) -> StreamT:
        """Add a stream, ours or the peer's."""

    def skip_stream(self, stream_id: StreamId) -> None:
        """Note that the peer opened a stream which we reset at once."""

    def end_arrived(self, stream: StreamT) -> None:
        """The peer's half is finished; forget the stream if ours is, too."""

    def end_sent(self, stream: StreamT) -> None:
        """Our half is finished; forget the stream if the peer's is, too."""

    def reset(self, stream: StreamT, code: int) -> None:
        """Queue RST_STREAM and forget the stream, with all that is queued on it."""

    def reset_arrived(self, stream: StreamT) -> None:
        """Forget a stream that the peer reset."""

    def was_opened(self, stream_id: StreamId) -> bool:
        """Whether there is or was such a stream."""

    def forget_all(self) -> None:
        """Forget all streams: the connection is over."""

    def consume(self, octets: int) -> None:
        """Take so many octets off the connection's receive window."""

    def credit(self, octets: int) -> None:
        """Give octets back to the connection's receive window."""

    def credit_stream(self, stream: StreamT, octets: int) -> None:
        """Give octets back to a stream's receive window, unless the peer has nothing more to send on it."""

    def widen(self, increment: int) -> None:
        """Add to the connection's send window."""

    def apply_settings(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Apply the peer's settings in their order; unknown ones are ignored (RFC 9113, 6.5.2 and 6.5.3)."""

    def settings_acknowledged(self) -> bool:
        """Our settings are in force with the peer, too; False if none were waiting for that."""
