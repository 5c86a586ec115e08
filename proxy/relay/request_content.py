"""The content of a request on its way: what is held for sending it again, and what has been acknowledged of it."""

from __future__ import annotations

from proxy.connection.budget import Budget
from proxy.http2.engine import Stream, StreamReceiver

__all__ = ["RequestContent"]


class RequestContent(StreamReceiver):
    """Keeps account of one request's content, in octets; the base of an exchange.

    Content is held until the response begins, so that a request that was not processed can be sent again. It is
    acknowledged to the client once, when it has been sent for the first time.
    """

    __slots__ = (
        "_acknowledged_octets",
        "_budget",
        "_held",
        "_held_octets",
        "_received_octets",
        "_sent_octets",
        "downstream",
    )

    def begin_content(self, downstream: Stream, budget: Budget) -> None:
        """Begin with a request on this stream; what is held is charged to `budget`."""
        self.downstream = downstream
        """The stream on which the request came."""
        self._budget = budget
        self._held: list[bytes] | None = []
        self._held_octets = 0
        self._received_octets = 0
        self._acknowledged_octets = 0
        self._sent_octets = 0

    def hold(self, data: bytes) -> None:
        """Keep a copy for sending the request again."""
        held = self._held
        if held is not None:
            held.append(data)
            self._held_octets += len(data)
            self._budget.change(len(data))

    def drop_held(self) -> None:
        """Keep nothing any more: the request is not sent again."""
        self._held = None
        if self._held_octets:
            self._budget.change(-self._held_octets)
            self._held_octets = 0

    def acknowledge_up_to(self, octets: int) -> None:
        """Acknowledge so many octets of the request in all; those acknowledged already are not again."""
        fresh = octets - self._acknowledged_octets
        if fresh > 0:
            self._acknowledged_octets = octets
            self.downstream.acknowledge(fresh)

    def on_request_sent(self, octets: int) -> None:
        """Give the window of the request back; what leaves again was acknowledged before."""
        self._sent_octets += octets
        self.acknowledge_up_to(self._sent_octets)
