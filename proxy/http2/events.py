"""What an engine reports about one connection, and the names that go with it.

Events are named tuples: immutable, cheap to make from C, and dispatched by exact type. An engine returns them in the
order in which the frames arrived; one call of `Engine.receive` returns all events of one socket read.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

StreamId: TypeAlias = int
"""1 … 2³¹−1; odd, because only clients open streams here (RFC 9113, 5.1.1)."""

Field: TypeAlias = tuple[bytes, bytes, bool]
"""One field line: lower-case name, value, and whether it is never indexed (RFC 7541, 6.2.3)."""

Fields: TypeAlias = list[Field]
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


class HeadReceived(NamedTuple):
    """The head of a request (server) or of a final response (client)."""

    stream_id: StreamId
    fields: Fields
    end_stream: bool


class InterimReceived(NamedTuple):
    """A 1xx response head (client only; RFC 9110, 15.2)."""

    stream_id: StreamId
    fields: Fields


class DataReceived(NamedTuple):
    """Content without its padding; empty only together with `end_stream`.

    The engine has given the padding's octets back to both windows itself. The content's octets are owed to the
    stream's window (`Engine.acknowledge`) and to the connection's (`Engine.acknowledge_connection`).
    """

    stream_id: StreamId
    data: bytes
    end_stream: bool


class TrailersReceived(NamedTuple):
    """A trailer section, possibly empty; it always ends its direction of the stream."""

    stream_id: StreamId
    fields: Fields


class StreamReset(NamedTuple):
    """The stream is over in both directions; nothing more can be sent on it.

    `by_peer` is False where the engine itself reset the stream because the peer broke a rule on it.
    """

    stream_id: StreamId
    code: int
    by_peer: bool


class GoAwayReceived(NamedTuple):
    """The peer takes no new streams (RFC 9113, 6.8). Streams above `last_stream_id` were not processed.

    No `StreamReset` follows for those; the connection's owner decides. Others go on.
    """

    last_stream_id: StreamId
    code: int
    debug: bytes


class PingAcknowledged(NamedTuple):
    """The peer has answered our PING with this payload of eight octets."""

    payload: bytes


class SettingsReceived(NamedTuple):
    """The peer's SETTINGS were applied; `Engine.peer_max_concurrent_streams` may have changed."""


class ConnectionFailed(NamedTuple):
    """The peer broke a rule of the connection: always the last event of a connection.

    The engine has queued its GOAWAY: flush once, then close. Events before it in the same list are valid.
    """

    code: int
    reason: str


Event: TypeAlias = (
    HeadReceived
    | InterimReceived
    | DataReceived
    | TrailersReceived
    | StreamReset
    | GoAwayReceived
    | PingAcknowledged
    | SettingsReceived
    | ConnectionFailed
)


class Sent(NamedTuple):
    """So many octets of a stream's queued content have left in the bytes just taken (see `Engine.take`)."""

    stream_id: StreamId
    octets: int
