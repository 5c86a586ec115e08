"""Receivers that turn what they are told about one stream into events."""

from __future__ import annotations

from proxy.errors import Failure
from proxy.http2.engine import StreamReceiver
from proxy.http2.events import Fields, StreamId
from tests.support.peers.events import (
    ConnectionLost,
    DataReceived,
    Event,
    HeadReceived,
    InterimReceived,
    InternalError,
    StreamReset,
    TrailersReceived,
    Unprocessed,
)

__all__ = ["EventReceiver", "RecordingReceiver"]


class EventReceiver(StreamReceiver):
    """A receiver of requests and of responses whose subclass takes the events."""

    def __init__(self, stream_id: StreamId = 0) -> None:
        self.stream_id = stream_id
        """Goes into the events; 0 until the stream is known."""

    def note(self, event: Event) -> None:
        """Take an event of the stream."""
        raise NotImplementedError

    def note_sent(self, octets: int) -> None:
        """Take how many octets of content have left."""
        raise NotImplementedError

    def on_request_data(self, data: bytes, end_stream: bool) -> None:
        self.note(DataReceived(self.stream_id, data, end_stream))

    def on_request_trailers(self, fields: Fields) -> None:
        self.note(TrailersReceived(self.stream_id, fields))

    def on_request_reset(self, code: int, by_peer: bool) -> None:
        self.note(StreamReset(self.stream_id, code, by_peer))

    def on_response_sent(self, octets: int) -> None:
        self.note_sent(octets)

    def on_interim(self, fields: Fields) -> None:
        self.note(InterimReceived(self.stream_id, fields))

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        self.note(HeadReceived(self.stream_id, fields, end_stream))

    on_response_data = on_request_data
    on_response_trailers = on_request_trailers
    on_response_reset = on_request_reset
    on_request_sent = on_response_sent

    def on_unprocessed(self, spent: bool) -> None:
        self.note(Unprocessed(self.stream_id))

    def on_connection_lost(self, failure: Failure) -> None:
        self.note(ConnectionLost(self.stream_id, failure))

    def on_internal_error(self) -> bool:
        self.note(InternalError(self.stream_id))
        return True


class RecordingReceiver(EventReceiver):
    """Keeps the events of its stream."""

    def __init__(self, stream_id: StreamId = 0) -> None:
        super().__init__(stream_id)
        self.events: list[Event] = []
        self.sent_octets = 0

    def note(self, event: Event) -> None:
        self.events.append(event)

    def note_sent(self, octets: int) -> None:
        self.sent_octets += octets

    @property
    def kinds(self) -> list[type[Event]]:
        """The classes of the events, in order."""
        return [type(event) for event in self.events]

    @property
    def failure(self) -> Failure:
        """Why the connection was lost."""
        (lost,) = [event for event in self.events if isinstance(event, ConnectionLost)]
        return lost.failure

    @property
    def ends(self) -> int:
        """How often it was told that the stream is over, regular ends left out."""
        return sum(kind in (StreamReset, Unprocessed, ConnectionLost, InternalError) for kind in self.kinds)
