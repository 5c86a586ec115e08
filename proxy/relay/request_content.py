"""The content of a request on its way: what is held for sending it again, and what has been acknowledged of it."""

from __future__ import annotations

from typing import Final

from proxy.connection.budget import Account
from proxy.http2.engine import Stream, StreamReceiver
from proxy.http2.events import Fields
from proxy.http2.policy.fields import section_octets
from proxy.http2.policy.sending import JOINED_OCTETS

__all__ = ["RequestContent"]

_JOINED_OCTETS: Final = JOINED_OCTETS  # a number of C where this is compiled
_SMALL_HEAD_OCTETS: Final = 4 << 10
"""A head up to this size is kept as long as its exchange."""

_EXCHANGE_OCTETS: Final = 4 << 10
"""What an exchange itself takes, with its two streams, whatever its content: 2 to 4 KiB."""

_OBSERVED_FIELDS: Final = frozenset({b"traceparent", b"x-restate-invocation-id"})
_MOST_OBSERVED_OCTETS: Final = 256
"""What log lines and traces take from a request (`observe.request_context`) is kept of a large head, too."""

_MOST_DISCARDED_OCTETS: Final = 64 << 10
"""How much of a request is taken after its response is complete and the rest is not wanted."""


class RequestContent(StreamReceiver):
    """Keeps account of one request's content, in octets; the base of an exchange.

    Content is held until the response begins, so that a request that was not processed can be sent again. It is
    acknowledged to the client once, when it has been sent for the first time.
    """

    __slots__ = (
        "_acknowledged_octets",
        "_discarded_octets",
        "_first_held",
        "_head_octets",
        "_held_octets",
        "_holding",
        "_more_held",
        "_sent_octets",
        "_trailers",
        "account",
        "attempts",
        "downstream",
        "fields",
        "refusals",
        "refused_at",
        "request_octets",
    )

    def begin_content(self, downstream: Stream, fields: Fields, account: Account) -> None:
        """Begin with a request on this stream; it is charged to `account` with its head, and what is held of it."""
        self.downstream = downstream
        """The stream on which the request came."""
        self.fields = fields
        """Of the request's head as it came; once a route is found, the lines of it that go upstream.

        Most of a large head is dropped as soon as the request cannot be sent again.
        """
        self.account = account
        """Of the client."""
        self._head_octets = downstream.head_octets
        account.change(self._head_octets + _EXCHANGE_OCTETS)
        self._holding = True
        self._held_octets = 0
        # Most requests have one piece, for which no list is made.
        self._first_held: bytes | None = None
        self._more_held: list[bytes] | None = None
        self._trailers: Fields | None = None
        self.request_octets = 0
        """Octets of content that have come."""
        self._acknowledged_octets = 0
        self._discarded_octets = 0
        self._sent_octets = 0
        self.attempts = 0
        """How often it was sent."""
        self.refusals = 0
        """How often it was not processed by a connection that was not `spent` (`StreamReceiver.on_unprocessed`)."""
        self.refused_at = 0.0
        """When it was not processed for the first time, in seconds on the loop's clock; 0 before."""

    def hold(self, data: bytes) -> None:
        """Keep a copy for sending the request again; not to be called after `drop_held`."""
        more = self._more_held
        if self._first_held is None:
            self._first_held = data
        elif more is None:
            self._more_held = [data]
        elif len(more[-1]) + len(data) <= _JOINED_OCTETS:
            more[-1] += data
        else:
            more.append(data)
        self._held_octets += len(data)
        self.account.change(len(data))

    def hold_trailers(self, trailers: Fields) -> None:
        """Keep the trailer section that ends the request, too; it is charged with the head."""
        self._trailers = trailers
        octets = section_octets(trailers)
        self._head_octets += octets
        self.account.change(octets)

    def drop_held(self) -> None:
        """Keep nothing any more, except a small head: the request is not sent again."""
        self._holding = False
        self._first_held = self._more_held = self._trailers = None
        if self._held_octets:
            self.account.change(-self._held_octets)
            self._held_octets = 0
        if self._head_octets > _SMALL_HEAD_OCTETS:
            self.fields = [
                line for line in self.fields if line[0] in _OBSERVED_FIELDS and len(line[1]) <= _MOST_OBSERVED_OCTETS
            ]
            self.account.change(-self._head_octets)
            self._head_octets = 0

    def drop_held_beyond(self, most_octets: int) -> bool:
        """Keep nothing any more if more than this is held, or the budget is crowded; return whether it was dropped.

        Held content alone must not use up the budget: the rest of the same requests would then wait for it, and their
        responses, with which it is dropped, may wait for that rest.
        """
        if self._held_octets <= most_octets and not self.account.budget.is_crowded():
            return False
        if not self._held_octets and self._head_octets <= _SMALL_HEAD_OCTETS:
            return False
        self.drop_held()
        return True

    def release(self) -> None:
        """Hold nothing, and charge nothing any more; to be called once."""
        if self._holding:
            self.drop_held()
        self.account.change(-self._head_octets - _EXCHANGE_OCTETS)

    def owner(self) -> Account:
        """Return the account of the client."""
        return self.account

    def count_held_octets(self) -> int:
        """Return the octets of head, content and trailers that are held, with those of the exchange itself."""
        return self._held_octets + self._head_octets + _EXCHANGE_OCTETS

    def discard(self, octets: int) -> bool:
        """Acknowledge content that is not wanted; return False, and do nothing, once there is too much of it."""
        self._discarded_octets += octets
        if self._discarded_octets > _MOST_DISCARDED_OCTETS:
            return False
        self.downstream.acknowledge(octets)
        return True

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
