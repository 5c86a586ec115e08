"""The engine seam: one HTTP/2 connection without IO. `tests/conformance` checks every engine against this contract.

An engine is given octets (`Engine.receive`) and calls back at once, in the order of the frames: its `ConnectionHandler`
for the connection and new requests, and each stream's `StreamReceiver` for the frames of that stream. Commands of
`Engine` and `Stream` queue what is to be sent; `Engine.take` returns it. An engine has no socket and no clock.

What an engine guarantees:

* `receive` never raises. A fault of the peer on one stream resets that stream (`on_…_reset` with `by_peer` False); a
  fault on the connection ends in `on_failed`, with GOAWAY queued. Nothing is reported after that.
* Which fault is one of the stream, and which one of the connection, is in the table of `policy`. Where the table has
  both, the code is the same (RFC 9113, 5.4.1 allows it).
* It validates what it receives (RFC 9113, 8.2 and 8.3: names, values, pseudo-fields, connection-specific fields,
  content-length) and enforces `Limits`, so that a head it reports is well formed.
* It never sends an empty DATA frame but the final one, merges what is queued for a stream into as few frames as
  fit, and never lets a trailer section or a reset overtake data queued before it.
* Receive windows go back only when told: `Stream.acknowledge` and `Engine.acknowledge_connection`. PING and SETTINGS
  are acknowledged by the engine itself.
* A command for a stream that is gone is ignored: the peer may have reset it in the same turn.
* An exception that a `StreamReceiver` raises ends at the engine: `ConnectionHandler.on_internal_error` is told of it,
  and the other streams go on.
* Commands may be given from within a callback, `take` and `receive` may not.

These are classes to derive from, not Protocols: compiled, a method is called through a table of the class, without a
look-up by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from proxy.errors import Failure
from proxy.http2.events import Fields, StreamId

__all__ = ["UNLIMITED", "ConnectionHandler", "Engine", "EngineName", "Limits", "Stream", "StreamReceiver"]

EngineName: TypeAlias = Literal["auto", "nghttp2", "h2"]
"""Of the engine that is asked for: "auto" is "nghttp2" where that is installed, "h2" otherwise."""

UNLIMITED: Final = (1 << 32) - 1
"""The most that a setting of HTTP/2 can express."""


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
    max_interim_heads: int = 100
    """Interim heads (1xx) taken of one response; one more is a fault of its stream."""

    def __post_init__(self) -> None:
        """Raise ValueError for limits that HTTP/2 cannot express (RFC 9113, 6.5.2 and 6.9.1)."""
        settings = self.max_concurrent_streams, self.max_field_section_octets
        windows = self.stream_window_octets, self.connection_window_octets
        if not (
            0 <= min(settings) <= max(settings) <= UNLIMITED
            and 0 <= min(windows) <= max(windows) < 1 << 31
            and 1 << 14 <= self.max_frame_octets < 1 << 24
        ):
            raise ValueError(f"limits outside the range of HTTP/2: {self}")

    @property
    def max_continuations(self) -> int:
        """CONTINUATION frames taken of one field block: 16 more than a section at the limit needs."""
        return 16 + self.max_field_section_octets // self.max_frame_octets


class StreamReceiver:
    """Receives the frames of a stream: of a request (server engine), of a response (client engine), or of both.

    The engine has given the octets of padding back to both windows itself. `on_unprocessed`, `on_connection_lost` and
    `on_internal_error` are called by the owner of the connection.
    """

    __slots__ = ()

    # ---- of a request

    def on_request_data(self, data: bytes, end_stream: bool) -> None:
        """Content without padding; empty only together with `end_stream`. `Stream.acknowledge` is owed for it."""
        raise NotImplementedError

    def on_request_trailers(self, fields: Fields) -> None:
        """The trailer section, possibly empty; it ends the request."""
        raise NotImplementedError

    def on_request_reset(self, code: int, by_peer: bool) -> None:
        """The stream is over in both directions; without `by_peer` because the client broke a rule on it."""
        raise NotImplementedError

    def on_response_sent(self, octets: int) -> None:
        """So many octets of the response's content have left, and the transport takes more."""
        raise NotImplementedError

    # ---- of a response

    def on_interim(self, fields: Fields) -> None:
        """A 1xx head (RFC 9110, 15.2)."""
        raise NotImplementedError

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        """The final head."""
        raise NotImplementedError

    def on_response_data(self, data: bytes, end_stream: bool) -> None:
        """Content without padding; empty only together with `end_stream`. `Stream.acknowledge` is owed for it."""
        raise NotImplementedError

    def on_response_trailers(self, fields: Fields) -> None:
        """The trailer section, possibly empty; it ends the response."""
        raise NotImplementedError

    def on_response_reset(self, code: int, by_peer: bool) -> None:
        """The stream is over in both directions; without `by_peer` because the server broke a rule on it."""
        raise NotImplementedError

    def on_request_sent(self, octets: int) -> None:
        """So many octets of the request's content have left, and the transport takes more."""
        raise NotImplementedError

    def on_unprocessed(self, spent: bool) -> None:
        """The server has provably not processed the request (GOAWAY, RFC 9113, 8.7); the stream is over.

        The connection is `spent` if it has taken other requests, and ends without an error.
        """
        raise NotImplementedError

    def on_connection_lost(self, failure: Failure) -> None:
        """The server's connection is gone, and the stream with it."""
        raise NotImplementedError

    # ---- of either

    def count_held_octets(self) -> int:
        """Return the octets of the request that are held beside those queued on streams."""
        return 0

    def owner(self) -> object:
        """Return who is charged for the stream; None: nobody."""
        return None

    def on_evicted(self, failure: Failure) -> None:
        """Abort what belongs to the stream, because something is scarce and the stream's owner holds most of it."""
        raise NotImplementedError

    def on_internal_error(self) -> bool:
        """Abort what belongs to the stream, because an internal error was raised while it was served.

        Returns False if all was over before, so that what is queued is meant to leave.
        """
        raise NotImplementedError


class Stream:
    """One stream of an engine. Commands on a stream that is over do nothing."""

    __slots__ = ("has_watched", "head_octets", "id", "method", "owed_octets", "path", "receiver", "refusal", "status")

    def __init__(self) -> None:
        self.id: StreamId = 0
        self.method = b""
        """Of the request that has come (server only)."""
        self.path = b""
        """Of the request that has come, with its query (server only); empty for CONNECT."""
        self.status = 0
        """Of the final response that has come (client only); 0 while there is none."""
        self.refusal: str | None = None
        """The rule that the peer has broken on it (`policy.refusals`); None if there is none."""
        self.has_watched = False
        """True if the latest head received has a line whose name is in the engine's `watched_names`."""
        self.head_octets = 0
        """Size of the request head that has come (server only), counted as in RFC 9113, 6.5.2."""
        self.receiver: StreamReceiver | None = None
        """Receives the stream's frames. None: content is dropped and given back to the stream's window at once."""
        self.owed_octets = 0
        """Octets of content reported and not acknowledged."""

    def http_version(self) -> bytes:
        """Return the version in which the request came, as `via` names it (RFC 9110, 7.6.3)."""
        return b"2.0"

    def send_head(self, fields: Fields, end_stream: bool) -> None:
        """Queue a response head (server only); with a 1xx `:status` it is an interim one and `end_stream` is False."""
        raise NotImplementedError

    def send_data(self, data: bytes, end_stream: bool) -> None:
        """Queue content; the engine keeps `data` until the peer's windows take it."""
        raise NotImplementedError

    def send_trailers(self, fields: Fields) -> None:
        """Queue a trailer section behind the content; an empty one becomes DATA with END_STREAM."""
        raise NotImplementedError

    def reset(self, code: int, after_data: bool) -> None:
        """Queue RST_STREAM behind what of the stream's queue the windows take at the next `take`; drop the rest.

        With `after_data` nothing is dropped: the reset waits until all that was queued for the stream has left.
        Nothing more is reported for the stream in either case, except its reset if the peer is first.
        """
        raise NotImplementedError

    def reset_now(self, code: int) -> None:
        """Drop what is queued for the stream, whatever the windows would take of it, and queue RST_STREAM."""
        raise NotImplementedError

    def count_queued_octets(self) -> int:
        """Return the octets of content and trailers that were queued on this stream and have not left or been dropped.

        Those of trailers are counted as in RFC 9113, 6.5.2.
        """
        raise NotImplementedError

    def acknowledge(self, octets: int) -> None:
        """Give so much receive window back to the sender (RFC 9113, 6.9); nothing once the peer has ended its half."""
        raise NotImplementedError


class ConnectionHandler:
    """The owner of an engine: receives what concerns the connection."""

    __slots__ = ("flush_scheduled",)

    def __init__(self) -> None:
        self.flush_scheduled = False
        """True if `Engine.take` will be called soon; then the engine does not call `schedule_flush`."""

    def schedule_flush(self) -> None:
        """Something has been queued that `Engine.take` may hand out."""
        raise NotImplementedError

    def on_request(self, stream: Stream, fields: Fields, end_stream: bool) -> None:
        """A request head has come on a new stream (server only); set `stream.receiver` for what follows.

        Of one over `Limits.max_field_section_octets` there are no fields, and `stream.method` is HEAD or empty: answer
        it.
        """
        raise NotImplementedError

    def on_stream_refused(self, stream_id: StreamId, reason: str) -> None:
        """A stream was reset, or never begun, because the peer broke a rule; `reason`: see `policy.refusals`."""

    def on_settings(self) -> None:
        """The peer's SETTINGS were applied; `Engine.peer_max_concurrent_streams` may have changed."""

    def on_go_away(self, last_stream_id: StreamId, code: int, debug: bytes) -> None:
        """The peer takes no new streams (RFC 9113, 6.8); those above `last_stream_id` were not processed.

        No reset is reported for those: the handler decides what becomes of them (`Engine.live_streams`). Their reset
        sends nothing: the peer ignores frames on them, or takes RST_STREAM on an idle stream for a violation (5.1).
        Others go on.
        """

    def on_ping_acknowledged(self, payload: bytes) -> None:
        """The peer has answered our PING with this payload of eight octets."""

    def on_failed(self, code: int, reason: str) -> None:
        """The peer broke a rule of the connection: nothing follows. GOAWAY is queued; flush once, then close."""
        raise NotImplementedError

    def on_internal_error(self, stream: Stream | None, exc: Exception) -> None:
        """A `StreamReceiver`, or `on_request`, raised while it was told about this stream.

        `stream.receiver` is the one that raised, even if it had set that to None. Without a stream, the handler
        itself or the engine raised; `on_failed` follows.
        """
        raise NotImplementedError


class Engine:
    """One side of one connection. The client preface or SETTINGS are queued from the start: take and send them.

    `watched_names` are names of rare fields whose presence is reported (`Stream.has_watched`).
    """

    __slots__ = ("handler", "owed_octets", "peer_max_concurrent_streams", "peer_max_section_octets")

    def __init__(
        self,
        *,
        client: bool,
        limits: Limits,
        handler: ConnectionHandler,
        watched_names: frozenset[bytes] = frozenset(),
    ) -> None:
        self.handler = handler
        self.owed_octets = 0
        """Octets of content that were reported and not given back to the connection's window."""
        self.peer_max_concurrent_streams = 100
        """The peer's current limit; before its SETTINGS came, 100 (RFC 9113, 6.5.2 sets no limit)."""
        self.peer_max_section_octets = UNLIMITED
        """Greatest field section that the peer wants (SETTINGS_MAX_HEADER_LIST_SIZE); `UNLIMITED` if it names none."""

    # ---- receiving

    def receive(self, data: bytes) -> None:
        """Report all that these octets bring, in order. Never raises; `b""` is allowed and brings nothing."""
        raise NotImplementedError

    def receive_from(self, buffer: bytearray, octets: int) -> None:
        """Do the same with the first octets of a buffer, which is the caller's again afterwards.

        Raises ValueError where the buffer does not have so many.
        """
        if not 0 <= octets <= len(buffer):
            raise ValueError("no buffer has more octets than it can hold")
        self.receive(bytes(memoryview(buffer)[:octets]))

    def acknowledge_connection(self) -> None:
        """Give `owed_octets` back to the connection's window."""
        raise NotImplementedError

    # ---- sending: everything is queued until `take`

    def open(self, fields: Fields, end_stream: bool, receiver: StreamReceiver) -> Stream:
        """Send a request head on a new stream (client only).

        The caller has checked `count_free_streams`; raises RuntimeError otherwise, and ValueError for fields that must
        not be sent.
        """
        raise NotImplementedError

    def ping(self, payload: bytes) -> None:
        """Queue a PING with these eight octets."""
        raise NotImplementedError

    def offer_no_streams(self) -> None:
        """Queue SETTINGS by which the peer may open no streams (server only); those that it opens still are served."""
        raise NotImplementedError

    def announce_go_away(self) -> None:
        """Queue GOAWAY with the highest possible stream: the peer is to open no more of them (RFC 9113, 6.8).

        Those that it opens before it has read that are served.
        """
        raise NotImplementedError

    def go_away(self, code: int, debug: bytes) -> None:
        """Queue GOAWAY with the highest stream processed; live streams go on, new ones are refused."""
        raise NotImplementedError

    def take(self) -> bytes:
        """Return octets to send now; `wants_to_send` tells whether there are more.

        There is not much more content in them than `policy.sending.MAX_TAKEN_OCTETS`, whatever the peer's windows
        allow. Call `report_sent` once the transport has them.
        """
        raise NotImplementedError

    def report_sent(self) -> None:
        """Tell the receivers how much of their content has left since the last call (`on_…_sent`)."""
        raise NotImplementedError

    # ---- questions

    def count_open_streams(self) -> int:
        """Return how many streams are not finished in both directions; 0 after a failure."""
        raise NotImplementedError

    def count_free_streams(self) -> int:
        """Return how often `open` may be called now; 0 after GOAWAY or a failure, or with no stream or id left."""
        raise NotImplementedError

    def count_queued_octets(self) -> int:
        """Return the sum of `Stream.count_queued_octets` of all streams."""
        raise NotImplementedError

    def count_frame_octets(self) -> int:
        """Return the octets of frames, content left out, that are ready to be taken."""
        raise NotImplementedError

    def unfinished_block(self) -> StreamId:
        """Return the stream of the field block of which a part has come, but not its end; 0 without one."""
        raise NotImplementedError

    def wants_to_send(self) -> bool:
        """Return whether `take` would return octets now. May err towards True."""
        raise NotImplementedError

    def live_streams(self) -> list[Stream]:
        """Return the streams that are not finished, by id; after a failure those that were not when it happened."""
        raise NotImplementedError
