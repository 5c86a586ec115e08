"""What the relay asks of those around it: the two connections of an exchange, the budget, and the forwarder.

They are Protocols, because the rooms on both sides do not import this one, nor this one them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from proxy.errors import Failure
from proxy.http2.events import Fields, StreamId

if TYPE_CHECKING:
    from proxy.relay.carrier import Carrier

__all__ = ["Downstream", "OctetBudget", "Office", "Upstream"]


class Downstream(Protocol):
    """The connection an exchange came from, as the relay sees it."""

    def send_head(self, stream_id: StreamId, fields: Fields, end_stream: bool) -> None:
        """Send an interim or final response head."""

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        """Send response content; `Carrier.response_sent` follows when it has left."""

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        """Send the response's trailer section and end it."""

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        """Reset the stream."""

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        """Invite so many more octets of the request."""

    def forget(self, stream_id: StreamId) -> None:
        """Report nothing more of this stream."""


class Upstream(Protocol):
    """The connection an exchange goes to, as the relay sees it."""

    def open(self, fields: Fields, end_stream: bool, sink: Carrier) -> StreamId:
        """Send a request head on a new stream."""

    def send_data(self, stream_id: StreamId, data: bytes, end_stream: bool) -> None:
        """Send request content; `Carrier.request_sent` follows when it has left."""

    def send_trailers(self, stream_id: StreamId, fields: Fields) -> None:
        """Send the request's trailer section and end it."""

    def reset(self, stream_id: StreamId, code: int, *, after_data: bool = False) -> None:
        """Reset the stream."""

    def acknowledge(self, stream_id: StreamId, octets: int) -> None:
        """Invite so many more octets of the response."""

    def forget(self, stream_id: StreamId) -> None:
        """Report nothing more of this stream."""


class OctetBudget(Protocol):
    """Where octets that are held are counted."""

    @property
    def used_up(self) -> bool:
        """Whether no more should be invited."""

    @property
    def crowded(self) -> bool:
        """Whether nothing should be held that need not be."""

    def change(self, octets: int) -> None:
        """So many more (or fewer) octets are held."""


class Office(Protocol):
    """What a carrier asks of the forwarder."""

    budget: OctetBudget

    replay_octets: int
    """How many request octets are held for sending again."""

    def dispatch(self, carrier: Carrier) -> None:
        """Find route, token and connection, now or in a task, and `start` or `fail` the carrier."""

    def made_up(self, carrier: Carrier, failure: Failure) -> tuple[Fields, bytes]:
        """Return head and content of the answer to this failure."""

    def broke_off(self, carrier: Carrier, failure: Failure) -> None:
        """The failure came too late to be answered: the stream was reset."""

    def response_began(self, carrier: Carrier, fields: Fields) -> None:
        """The upstream answered; look at the status."""

    def ended(self, carrier: Carrier) -> None:
        """The exchange is over."""
