"""What a connection and an exchange are to each other: a `Channel` carries for a `Sink`, stream by stream.

Rooms know of each other what stands here. These are classes to derive from, and not Protocols, because compiled code
calls their methods without looking a name up: 2 ns instead of 40, some twenty times an exchange.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from mypy_extensions import mypyc_attr

from proxy.errors import Failure
from proxy.http2.events import Fields, StreamId

__all__ = ["Channel", "Exchanges", "Sink", "StreamSource"]


@mypyc_attr(allow_interpreted_subclasses=True)
class Sink(ABC):
    """Who takes what one stream brings: of a request (from downstream), of a response (from upstream), or of both."""

    # ---- of a request

    @property
    def over(self) -> bool:
        """Whether nothing more will come, and nothing more is wanted."""
        raise NotImplementedError

    def request_head(self, fields: Fields, end_stream: bool) -> None:
        """The request's head; comes first."""
        raise NotImplementedError

    def request_data(self, data: bytes, end_stream: bool) -> None:
        """Content; `Channel.acknowledge` is owed for its octets, until the request ends."""
        raise NotImplementedError

    def request_trailers(self, fields: Fields) -> None:
        """The trailer section, which ends the request."""
        raise NotImplementedError

    def request_reset(self, code: int) -> None:
        """The stream is over: the client reset it, or is gone."""
        raise NotImplementedError

    def response_sent(self, octets: int) -> None:
        """So many octets of the response's content have left, and the transport takes more."""
        raise NotImplementedError

    # ---- of a response

    def interim(self, fields: Fields) -> None:
        """A 1xx head."""
        raise NotImplementedError

    def response_head(self, fields: Fields, end_stream: bool) -> None:
        """The final head."""
        raise NotImplementedError

    def response_data(self, data: bytes, end_stream: bool) -> None:
        """Content; `Channel.acknowledge` is owed for its octets, until the response ends."""
        raise NotImplementedError

    def response_trailers(self, fields: Fields) -> None:
        """The trailer section, which ends the response."""
        raise NotImplementedError

    def response_reset(self, code: int) -> None:
        """The stream is over, with this error code."""
        raise NotImplementedError

    def unprocessed(self) -> None:
        """The upstream has provably not processed the request (RFC 9113, 8.7); the stream is over."""
        raise NotImplementedError

    def upstream_lost(self, failure: Failure) -> None:
        """The connection is gone, and the stream with it."""
        raise NotImplementedError

    def request_sent(self, octets: int) -> None:
        """So many octets of the request's content have left, and the transport takes more."""
        raise NotImplementedError

    # ---- of either

    @abstractmethod
    def broken(self) -> None:
        """A defect showed while the stream was served, and it was reset: end the exchange, wherever it stands."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Channel(ABC):
    """How an exchange sends on a stream; a connection is one for all its streams."""

    def open(self, fields: Fields, end_stream: bool, sink: Sink) -> StreamId:
        """Send a request head on a new stream, whose events go to `sink`; there must be a free one. Upstream only."""
        raise NotImplementedError

    def http_version(self) -> bytes:
        """Return the version in which requests come, as `via` names it. Downstream only."""
        return b"2.0"

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        """Send an interim or final response head. Downstream only."""
        raise NotImplementedError

    @abstractmethod
    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        """Send content; `Sink.request_sent` or `Sink.response_sent` follows when it has left."""

    @abstractmethod
    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        """Send the trailer section behind the stream's content, and end our half."""

    @abstractmethod
    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        """Reset the stream; see `Engine.reset`."""

    @abstractmethod
    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        """Invite so many more octets from the stream's sender."""

    @abstractmethod
    def forget(self, stream_id: StreamId) -> None:
        """Report nothing more of this stream; what is queued still leaves."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Exchanges(ABC):
    """Where new exchanges are taken up (the relay)."""

    @abstractmethod
    def carrier(self, downstream: Channel, stream_id: StreamId, /) -> Sink:
        """Return who takes the request of this stream; tell it the head next."""


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamSource(ABC):
    """Where an exchange gets a stream to its upstream."""

    @abstractmethod
    def ready(self) -> Channel | None:
        """Return a connection with a free stream, to be opened before the next await; None if that takes waiting."""
