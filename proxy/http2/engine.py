"""The engine seam: one HTTP/2 connection without IO.

An engine takes bytes and gives events; it is asked for bytes to send. It never sees a socket, never reads a clock
and makes no callback. There are two kinds of call besides these: commands, which queue something to send, and
questions. `tests/conformance` holds every engine to this contract.

What an engine guarantees:

* `receive` never raises. A fault of the peer on one stream resets that stream (`StreamReset`, `by_peer` False); a
  fault on the connection ends in `ConnectionFailed` with GOAWAY queued. After that it returns no more events.
* HEADERS or DATA after the peer's own END_STREAM or RST_STREAM, or on an id below one that the peer has opened, are a
  fault on the connection; after our RST_STREAM they are discarded (`stream_history` has the table).
* Over two faults on a stream it may end the connection instead (RFC 9113, 5.4.1 lets it), with the same code: DATA
  before a response head, and DATA beyond the stream's window. Over no other.
* It validates what it receives (RFC 9113, 8.2 and 8.3: names, values, pseudo-fields, connection-specific fields,
  content-length) and enforces `Limits`, so that a head it reports is well formed.
* It never sends an empty DATA frame but the final one, merges what is queued for a stream into as few frames as
  fit, and never lets a trailer section or a reset overtake data queued before it.
* Receive windows go back only when told: `acknowledge` (stream) and `acknowledge_connection` (connection). PING and
  SETTINGS are acknowledged by the engine itself.
* A command for a stream that is gone is ignored: the peer may have reset it in the same turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from proxy.http2.events import Event, Fields, Sent, StreamId

EngineName: TypeAlias = Literal["auto", "nghttp2", "h2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection offers to its peer and what it takes from it."""

    max_concurrent_streams: int = 1_024
    """Streams the peer may have open at once; offered in SETTINGS by a server."""
    stream_window_octets: int = 1 << 20
    """Receive window of each stream (SETTINGS_INITIAL_WINDOW_SIZE)."""
    connection_window_octets: int = 16 << 20
    """Receive window of the connection; raised by WINDOW_UPDATE right after the preface."""
    max_field_section_octets: int = 64 << 10
    """Greatest field section taken, counted as in RFC 9113, 6.5.2 (name + value + 32 a line)."""
    max_frame_octets: int = 16_384
    """Greatest frame payload taken (SETTINGS_MAX_FRAME_SIZE)."""


class Engine(Protocol):
    """One side of one connection. The client preface or SETTINGS are queued from the start: take and send them."""

    name: str
    """"h2" or "nghttp2"."""

    # ---- receiving

    def receive(self, data: bytes) -> list[Event]:
        """Return all events of these bytes, in order. Never raises; `b""` is allowed and returns no event."""

    def take_refused(self) -> list[tuple[StreamId, str]]:
        """Return which streams were reset since the last call because the peer broke a rule, and why (`refusals`).

        Most of them were never reported. The list must not be changed.
        """

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        """Give receive window back to this stream's sender (RFC 9113, 6.9). Unknown or finished streams: nothing."""

    def acknowledge_connection(self, octets: int) -> None:
        """Give receive window back to the connection."""

    # ---- sending: everything is queued until `take`

    def send_request(self, fields: Fields, end_stream: bool) -> StreamId:
        """Open a stream (client only) and return its id.

        The caller has checked `free_streams`; raises RuntimeError otherwise.
        """

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        """Queue a response head (server only); with a 1xx `:status` it is an interim one and `end_stream` is False."""

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        """Queue content; the engine keeps `data` until the peer's windows take it."""

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        """Queue a trailer section behind the stream's data; an empty one becomes DATA with END_STREAM."""

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        """Queue RST_STREAM behind what of the stream's queue the windows take at the next `take`; drop the rest.

        With `after_data` nothing is dropped: the reset waits until all that was queued for the stream has left.
        No more events are reported for the stream in either case, except `StreamReset` if the peer is first.
        """

    def ping(self, payload: bytes) -> None:
        """Queue a PING with these eight octets."""

    def go_away(self, code: int, debug: bytes = b"") -> None:
        """Queue GOAWAY with the highest stream processed; live streams go on, new ones are refused."""

    def take(self) -> tuple[bytes, list[Sent]]:
        """Return all bytes to send now, and per stream how many queued octets are among them."""

    # ---- questions

    @property
    def peer_max_concurrent_streams(self) -> int:
        """The peer's current limit; before its SETTINGS came, 100 (RFC 9113, 6.5.2 sets no limit)."""

    @property
    def open_streams(self) -> int:
        """Streams that are not finished in both directions."""

    @property
    def free_streams(self) -> int:
        """How often `send_request` may be called now; 0 after GOAWAY or a failure, or with no stream or id left."""

    @property
    def queued_octets(self) -> int:
        """Content octets of all streams that were queued and have neither left nor been dropped."""

    @property
    def wants_to_send(self) -> bool:
        """Whether `take` would return bytes now. May err towards True."""
