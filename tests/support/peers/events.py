"""What an engine reports about one connection, as values that a test can compare.

The engines call receivers; `tests.support.peers.engines` turns these calls into events, in their order.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from proxy.http2.events import Fields, StreamId

__all__ = [
    "ConnectionFailed",
    "DataReceived",
    "Event",
    "GoAwayReceived",
    "HeadReceived",
    "InterimReceived",
    "PingAcknowledged",
    "Sent",
    "SettingsReceived",
    "StreamReset",
    "TrailersReceived",
]


class HeadReceived(NamedTuple):
    """`ConnectionHandler.on_request` (server) or `StreamReceiver.on_response_head` (client)."""

    stream_id: StreamId
    fields: Fields
    end_stream: bool


class InterimReceived(NamedTuple):
    """`StreamReceiver.on_interim`."""

    stream_id: StreamId
    fields: Fields


class DataReceived(NamedTuple):
    """`StreamReceiver.on_request_data` or `on_response_data`."""

    stream_id: StreamId
    data: bytes
    end_stream: bool


class TrailersReceived(NamedTuple):
    """`StreamReceiver.on_request_trailers` or `on_response_trailers`."""

    stream_id: StreamId
    fields: Fields


class StreamReset(NamedTuple):
    """`StreamReceiver.on_request_reset` or `on_response_reset`."""

    stream_id: StreamId
    code: int
    by_peer: bool


class GoAwayReceived(NamedTuple):
    """`ConnectionHandler.on_go_away`."""

    last_stream_id: StreamId
    code: int
    debug: bytes


class PingAcknowledged(NamedTuple):
    """`ConnectionHandler.on_ping_acknowledged`."""

    payload: bytes


class SettingsReceived(NamedTuple):
    """`ConnectionHandler.on_settings`."""


class ConnectionFailed(NamedTuple):
    """`ConnectionHandler.on_failed`; always the last event of a connection."""

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
    """`StreamReceiver.on_request_sent` or `on_response_sent`: octets of content that have left with one `take`."""

    stream_id: StreamId
    octets: int
