"""One exchange carried across: the shell around `Exchange`.

A carrier is told what each side did, by direct call from the connection that read it, and tells the other connection
what to do. Nothing in here waits; where the token or the connection is not there yet, the forwarder's task calls
`start` later, and what comes of the request meanwhile is held, at most a stream window of it, because nothing is
acknowledged before it has left.

What has been sent of a small request stays held until the response begins: if the upstream provably did not process it,
it is sent again elsewhere. Octets sent a second time were acknowledged the first time, and are not again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.errors import Failure, Internal, UpstreamRefusedStream
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.fields import end_to_end_response, end_to_end_trailers
from proxy.relay.exchange import Action, Exchange, Move, State
from proxy.wire import Channel, Sink

if TYPE_CHECKING:
    from proxy.relay.forwarder import Forwarder
    from proxy.routing import Route
    from proxy.telemetry import RouteMetrics
    from proxy.tokens.model import Token

__all__ = ["Carrier"]

_MAX_ATTEMPTS: Final = 3

_MOST_DISCARDED_OCTETS: Final = 64 << 10
"""How much of a request is taken after its response is complete and nobody wants the rest."""

# What every exchange needs (see `exchange`: attributes of an Enum are slow).
_REQUEST_DATA: Final = Move.REQUEST_DATA
_REQUEST_END: Final = Move.REQUEST_END
_RESPONSE_HEAD: Final = Move.RESPONSE_HEAD
_RESPONSE_DATA: Final = Move.RESPONSE_DATA
_RESPONSE_END: Final = Move.RESPONSE_END
_PASS: Final = Action.PASS
_OVER: Final = State.OVER


class Carrier(Sink):
    """Takes what both sides of one exchange bring; see the module."""

    __slots__ = (
        "_acknowledged_octets",
        "_discarded_octets",
        "_downstream",
        "_downstream_id",
        "_ended",
        "_exchange",
        "_held",
        "_held_octets",
        "_office",
        "_received_octets",
        "_request_ended",
        "_sent_octets",
        "_trailers",
        "_upstream",
        "_upstream_id",
        "attempts",
        "cancel_start",
        "code",
        "discovery",
        "error_head",
        "fields",
        "method",
        "metrics",
        "path",
        "route",
        "started_at",
        "status",
        "token",
        "upstream_path",
    )

    def __init__(
        self, office: Forwarder, downstream: Channel, downstream_id: StreamId, started_at: float, metrics: RouteMetrics
    ) -> None:
        self._office = office
        self._downstream = downstream
        self._downstream_id = downstream_id
        self._exchange = Exchange()
        self._ended = False
        self._upstream: Channel | None = None
        self._upstream_id: StreamId = 0
        self._held: list[bytes] | None = []
        self._held_octets = 0
        self._request_ended = False
        self._trailers: Fields | None = None
        self._received_octets = 0
        self._acknowledged_octets = 0
        self._sent_octets = 0
        self._discarded_octets = 0
        self.fields: Fields = []
        """Of the request's head as it came; once a route is found, the lines of it that go upstream."""
        self.method = b""
        """Of the request; empty until it is dispatched."""
        self.path = b""
        """Of the request, with its query; empty until it is dispatched."""
        self.metrics = metrics
        """Where the exchange is counted."""
        self.route: Route | None = None
        self.upstream_path = b""
        self.discovery = False
        self.token: Token | None = None
        """The token this request went out with."""
        self.error_head: Fields | None = None
        """Of a response that is to be logged when its content begins, or the exchange ends."""
        self.attempts = 0
        """How often it was started."""
        self.started_at = started_at
        self.status: int | None = None
        """Of the response that went downstream; None while there is none."""
        self.code: str = ""
        """Of the failure that was answered, or reset the stream."""
        self.cancel_start: Callable[[], object] | None = None
        """Stops the task that is going to call `start`."""

    @property
    def over(self) -> bool:
        return self._exchange.over

    @property
    def http_version(self) -> bytes:
        """The version in which the request came, as `via` names it."""
        return self._downstream.http_version()

    # ---- downstream brings

    def request_head(self, fields: Fields, end_stream: bool) -> None:
        """The request's head: the exchange begins."""
        self.fields = fields
        if end_stream:
            self._exchange.on(_REQUEST_END)
            self._request_ended = True
        self._office.dispatch(self)

    def request_data(self, data: bytes, end_stream: bool) -> None:
        """Content of the request."""
        if end_stream:
            self._request_ended = True
        action = self._exchange.on(_REQUEST_END if end_stream else _REQUEST_DATA)
        if action is _PASS:
            self._received_octets += len(data)
            if data and self._held is not None:
                self._hold(self._held, data)
            upstream = self._upstream
            if upstream is not None:
                upstream.send_data(self._upstream_id, data, end_stream)
        elif data and not end_stream:
            self._discard(len(data))
        if end_stream and self._exchange.state is _OVER:
            self._end()

    def request_trailers(self, fields: Fields) -> None:
        """The request's trailer section, which ends it."""
        self._request_ended = True
        self._trailers = trailers = end_to_end_trailers(fields)
        if self._exchange.on(_REQUEST_END) is _PASS and self._upstream is not None:
            self._upstream.send_trailers(self._upstream_id, trailers)
        if self._exchange.state is _OVER:
            self._end()

    def request_reset(self, code: int) -> None:
        """Downstream reset the stream, or is gone."""
        if self._exchange.on(Move.REQUEST_RESET) is _PASS and self._upstream is not None:
            self._upstream.reset(self._upstream_id, code)
        self._end()

    def response_sent(self, octets: int) -> None:
        """Content of the response has left."""
        if self._upstream is not None:
            self._upstream.acknowledge(self._upstream_id, octets)

    # ---- upstream brings

    def interim(self, fields: Fields) -> None:
        """A 1xx head."""
        self._exchange.on(Move.INTERIM)
        self._drop_held()
        self._downstream.send_head(self._downstream_id, end_to_end_response(fields), False)

    def response_head(self, fields: Fields, end_stream: bool) -> None:
        """The final head."""
        self._exchange.on(_RESPONSE_HEAD)
        if self._held is not None:
            self._drop_held()
        self._downstream.send_head(self._downstream_id, self._office.response_began(self, fields), end_stream)
        if end_stream:
            self._response_ended()

    def response_data(self, data: bytes, end_stream: bool) -> None:
        """Content of the response."""
        if self.error_head is not None and data:
            self._office.error_answered(self, data)
        if not end_stream:
            self._exchange.on(_RESPONSE_DATA)
            self._downstream.send_data(self._downstream_id, data, False)
            return
        self._downstream.send_data(self._downstream_id, data, True)
        self._response_ended()

    def response_trailers(self, fields: Fields) -> None:
        """The response's trailer section, which ends it."""
        self._downstream.send_trailers(self._downstream_id, end_to_end_trailers(fields))
        self._response_ended()

    def response_reset(self, code: int) -> None:
        """The upstream reset the stream."""
        self._upstream_gone()
        move = Move.UNWANTED if code == ErrorCode.NO_ERROR else Move.RESPONSE_RESET
        if self._exchange.on(move) is _PASS:
            self._downstream.reset(self._downstream_id, code, after_data=True)
        self._settle()

    def unprocessed(self) -> None:
        """The upstream did not process the request: send it again if all of it is still held."""
        self._upstream_gone()
        if self._exchange.answered or self._held is None or self.attempts >= _MAX_ATTEMPTS:
            self.fail(
                UpstreamRefusedStream("the upstream refused the request unprocessed, and it could not be sent again")
            )
            return
        self._sent_octets = 0
        self._office.dispatch(self)

    def upstream_lost(self, failure: Failure) -> None:
        """The upstream connection is gone."""
        self._upstream_gone()
        self.fail(failure)

    def request_sent(self, octets: int) -> None:
        """Content of the request has left; what leaves again was acknowledged before."""
        self._sent_octets = sent_octets = self._sent_octets + octets
        self._acknowledge_up_to(sent_octets)

    # ---- the forwarder decides

    def start(self, upstream: Channel, fields: Fields) -> None:
        """Send the request: its head, what is held of its content, and its end if that has come."""
        self.attempts += 1
        held = self._held or ()
        ended, trailers = self._request_ended, self._trailers
        bare = ended and trailers is None and not held
        self._upstream_id = stream_id = upstream.open(fields, bare, self)
        self._upstream = upstream
        for data in held:
            upstream.send_data(stream_id, data, False)
        if trailers is not None:
            upstream.send_trailers(stream_id, trailers)
        elif ended and not bare:
            upstream.send_data(stream_id, b"", True)
        self._release()

    def fail(self, failure: Failure) -> None:
        """End the exchange: with an answer while the response has not begun, else as a reset."""
        self._drop_held()
        action = self._exchange.on(Move.FAILED)
        if action is Action.ANSWER:
            self.code = failure.code
            fields, body = self._office.made_up(self, failure)
            self._downstream.send_head(self._downstream_id, fields, not body)
            if body:
                self._downstream.send_data(self._downstream_id, body, True)
        elif action is Action.RESET:
            self.code = failure.code
            self._downstream.reset(self._downstream_id, ErrorCode.INTERNAL_ERROR, after_data=True)
            self._office.broke_off(self, failure)
        self._settle()

    # ---- whoever finds a defect decides

    def broken(self) -> None:
        """A defect of ours showed: reset both streams and be over, whatever has been done by halves."""
        if self._ended:
            return
        if self._exchange.state is not _OVER:
            self._exchange.on(Move.BROKEN)
        self._downstream.reset(self._downstream_id, ErrorCode.INTERNAL_ERROR)
        if self._upstream is not None:
            self._upstream.reset(self._upstream_id, ErrorCode.INTERNAL_ERROR)
        self.code = Internal.code
        self._end()
        self._office.broke_off(self, Internal("a defect of the sidecar; the log says where"))

    # ---- inside

    def _hold(self, held: list[bytes], data: bytes) -> None:
        octets = len(data)
        office = self._office
        held.append(data)
        self._held_octets += octets
        office.budget.change(octets)
        if self._upstream is not None and (self._held_octets > office.replay_octets or office.budget.crowded):
            self._drop_held()

    def _release(self) -> None:
        """Stop holding a request that has grown too large to be sent again.

        What is held for nothing else must not use the budget up: the rest of the same requests would then wait for it,
        and their responses, with which it is dropped, may wait for that rest.
        """
        if self._held_octets > self._office.replay_octets or self._office.budget.crowded:
            self._drop_held()

    def _drop_held(self) -> None:
        self._held = None
        if self._held_octets:
            self._office.budget.change(-self._held_octets)
            self._held_octets = 0

    def _acknowledge_up_to(self, octets: int) -> None:
        """Acknowledge so many octets of the request in all; those acknowledged already are not again.

        A request that has ended needs no window any more.
        """
        fresh = octets - self._acknowledged_octets
        if fresh > 0 and not self._request_ended:
            self._acknowledged_octets = octets
            self._downstream.acknowledge(self._downstream_id, fresh)

    def _discard(self, octets: int) -> None:
        """Drop content that nobody wants; when it is too much, say so behind the response (RFC 9113, 8.1)."""
        self._discarded_octets += octets
        if self._discarded_octets <= _MOST_DISCARDED_OCTETS:
            self._downstream.acknowledge(self._downstream_id, octets)
            return
        self._exchange.on(Move.DISCARDED_ENOUGH)
        self._downstream.reset(self._downstream_id, ErrorCode.NO_ERROR, after_data=True)
        self._end()

    def _response_ended(self) -> None:
        self._exchange.on(_RESPONSE_END)
        if self._exchange.state is _OVER:
            self._end()

    def _upstream_gone(self) -> None:
        self._upstream = None
        self._upstream_id = 0

    def _settle(self) -> None:
        """The upstream stream is gone: either all is over, or the rest of the request is only discarded."""
        if self._exchange.state is _OVER:
            self._end()
        else:
            self._acknowledge_up_to(self._received_octets)

    def _end(self) -> None:
        self._ended = True
        self._downstream.forget(self._downstream_id)
        if self._upstream is not None:
            self._upstream.forget(self._upstream_id)
        if self.cancel_start is not None:
            self.cancel_start()
            self.cancel_start = None
        if self._held is not None:
            self._drop_held()
        self._office.ended(self)
