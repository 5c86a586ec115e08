"""What an engine reports about one connection, as values that a test can compare.

Receivers and handlers are called; `tests.support.peers.receivers` and `engines` turn the calls into events, in their
order. Events of different kinds are never equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from proxy.errors import Failure
from proxy.http2.events import Fields, StreamId

__all__ = [
    "ConnectionFailed",
    "ConnectionLost",
    "DataReceived",
    "Event",
    "GoAwayReceived",
    "HeadReceived",
    "InterimReceived",
    "InternalError",
    "PingAcknowledged",
    "Sent",
    "SettingsReceived",
    "StreamReset",
    "TrailersReceived",
    "Unprocessed",
]


@dataclass(frozen=True, slots=True)
class HeadReceived:
    """`ConnectionHandler.on_request` (server) or `StreamReceiver.on_response_head` (client)."""

    stream_id: StreamId
    fields: Fields
    end_stream: bool


@dataclass(frozen=True, slots=True)
class InterimReceived:
    """`StreamReceiver.on_interim`."""

    stream_id: StreamId
    fields: Fields


@dataclass(frozen=True, slots=True)
class DataReceived:
    """`StreamReceiver.on_request_data` or `on_response_data`."""

    stream_id: StreamId
    data: bytes
    end_stream: bool


@dataclass(frozen=True, slots=True)
class TrailersReceived:
    """`StreamReceiver.on_request_trailers` or `on_response_trailers`."""

    stream_id: StreamId
    fields: Fields


@dataclass(frozen=True, slots=True)
class StreamReset:
    """`StreamReceiver.on_request_reset` or `on_response_reset`."""

    stream_id: StreamId
    code: int
    by_peer: bool


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """`ConnectionHandler.on_go_away`."""

    last_stream_id: StreamId
    code: int
    debug: bytes


@dataclass(frozen=True, slots=True)
class PingAcknowledged:
    """`ConnectionHandler.on_ping_acknowledged`."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """`ConnectionHandler.on_settings`."""


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """`ConnectionHandler.on_failed`; always the last event of a connection."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unprocessed:
    """`StreamReceiver.on_unprocessed`."""

    stream_id: StreamId


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """`StreamReceiver.on_connection_lost`."""

    stream_id: StreamId
    failure: Failure


@dataclass(frozen=True, slots=True)
class InternalError:
    """`StreamReceiver.on_internal_error`."""

    stream_id: StreamId


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
    | Unprocessed
    | ConnectionLost
    | InternalError
)


class Sent(NamedTuple):
    """`StreamReceiver.on_request_sent` or `on_response_sent`: octets of content that have left with one `take`."""

    stream_id: StreamId
    octets: int
