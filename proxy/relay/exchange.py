"""One exchange: a request and its response, forwarded between two streams.

Each stream tells its exchange what it received, by direct call, and the exchange commands the other stream. Nothing
waits here: until token and upstream stream are available, content of the request is held. That is at most one stream
window, because nothing is acknowledged before it was sent. `start` sends it when the dispatcher has found both.

The state alone decides which step may come next: the table in `states` is asked before anything is done.
A small request is held until the response begins, and sent again if the upstream provably did not process it.

A reset from either side ends the exchange and is forwarded with its code. RST_STREAM(NO_ERROR) after a complete
response only says that the rest of the request is not wanted (RFC 9113, 8.1): some of it is discarded, because most
requests end soon; if more follows, the client gets the same reset, after the whole response. NO_ERROR amid a message is
forwarded as another code: hyper, and so Restate, takes it for the end of the message.

An upstream failure, such as a response that breaks a rule of HTTP/2, becomes a local reply before the response head;
after it, a reset, never a clean end. An internal error is a reset at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from proxy.connection.protocol import RequestAcceptor
from proxy.errors import Failure, Internal, UpstreamRefusedStream
from proxy.http2.engine import Stream
from proxy.http2.events import ErrorCode, FieldLine, Fields
from proxy.observe.exchange import RouteObservers
from proxy.observe.explanation import explain_broken_rule
from proxy.relay.context import RouteContext
from proxy.relay.request_content import RequestContent
from proxy.relay.signing import end_to_end_response, end_to_end_trailers
from proxy.relay.states import ILLEGAL as _ILLEGAL
from proxy.relay.states import MOVES as _MOVES
from proxy.relay.states import Action, IllegalMove, Move, State, packed
from proxy.restate import RequestKind

if TYPE_CHECKING:
    from proxy.tokens.model import Token
    from proxy.upstream.connection import UpstreamConnection

__all__ = ["Exchange", "ExchangeOwner"]

# The moves, actions and states of most exchanges, as numbers of C where this is compiled.
_REQUEST_DATA: Final = int(Move.REQUEST_DATA)
_REQUEST_END: Final = int(Move.REQUEST_END)
_START: Final = int(Move.START)
_COMMIT: Final = int(Move.COMMIT)
_RESPONSE_HEAD: Final = int(Move.RESPONSE_HEAD)
_RESPONSE_DATA: Final = int(Move.RESPONSE_DATA)
_RESPONSE_END: Final = int(Move.RESPONSE_END)
_FORWARD: Final = int(Action.FORWARD)
_HOLD: Final = int(Action.HOLD)
_REPLAYABLE_ENDED: Final = int(State.REPLAYABLE_ENDED)
_OVER: Final = int(State.OVER)

_OTHER: Final = RequestKind.OTHER
_TABLE: Final = packed()


class ExchangeOwner(RequestAcceptor):
    """Sends exchanges on their way, and is told what happens to them: the dispatcher."""

    __slots__ = ("replay_octets",)

    def __init__(self, replay_octets: int) -> None:
        self.replay_octets = replay_octets
        """How much of a request is held at most, for sending it again. It may be changed."""

    def dispatch(self, exchange: Exchange) -> None:
        """Start the exchange, now or later, or fail it; called again when the request has to be sent again."""
        raise NotImplementedError

    def may_resend(self, exchange: Exchange, spent: bool) -> bool:
        """Return True if the request, which was not processed, may be sent again; for `spent` see `on_unprocessed`."""
        raise NotImplementedError

    def response_head(self, exchange: Exchange, fields: Fields) -> Fields:
        """Take note of a final head, and return what is sent downstream in its place."""
        raise NotImplementedError

    def error_answered(self, exchange: Exchange, content: bytes) -> None:
        """Tell observers of the response with `error_head` and this beginning of its content."""
        raise NotImplementedError

    def local_reply(self, exchange: Exchange, failure: Failure) -> tuple[Fields, bytes]:
        """Return head and content of the answer to a failure."""
        raise NotImplementedError

    def ended(self, exchange: Exchange) -> None:
        """The exchange is over."""
        raise NotImplementedError


class Exchange(RequestContent):
    """A request and its response; see the module."""

    __slots__ = (
        "_connection",
        "_ended",
        "_owner",
        "_state",
        "cancel_start",
        "context",
        "error_head",
        "failure_code",
        "head_at",
        "kind",
        "method",
        "observers",
        "path",
        "response_octets",
        "started_at",
        "status",
        "token",
        "upstream",
        "upstream_path",
    )

    def begin(self, owner: ExchangeOwner, observers: RouteObservers, end_stream: bool, started_at: float) -> None:
        """Begin, after `begin_content`. (`__init__` with arguments costs a fourteenth of all that is done here.)"""
        self._owner = owner
        self.observers = observers
        """Those of its route, once it has one."""
        self._state = 1 if end_stream else 0
        self._ended = False
        self.response_octets = 0
        """Octets of content that came from upstream, or are in the local reply."""
        self.head_at = 0.0
        """When the final head came, in seconds on the loop's clock; 0 before."""
        self.upstream: Stream | None = None
        """None before it is opened, and when it has ended."""
        self._connection: UpstreamConnection | None = None  # on which the request was started last
        self.started_at = started_at
        """Seconds on the loop's clock."""
        self.method = b""
        """Of the request; empty until it is dispatched."""
        self.path = b""
        """Of the request, with its query; empty until it is dispatched."""
        self.context: RouteContext | None = None
        """What is kept about the exchange's route; None while there is none."""
        self.upstream_path: FieldLine | None = None
        """The `:path` line to send upstream."""
        self.kind = _OTHER
        """What the request is to the client; `OTHER` until it is dispatched."""
        self.token: Token | None = None
        """The token that this request was given."""
        self.status = 0
        """Of the response that went downstream; 0 while there is none."""
        self.failure_code = ""
        """Of the failure that was answered, or reset the stream."""
        self.error_head: Fields | None = None
        """Of a response that is to be logged when its content begins, or the exchange ends."""
        self.cancel_start: Callable[[], object] | None = None
        """Cancels the task that will call `start`."""

    @property
    def state(self) -> State:
        """What has happened so far."""
        return State(self._state)

    @property
    def response_done(self) -> bool:
        """True while the response has ended and the request has not."""
        return self._state in (State.RESPONSE_DONE, State.DISCARDING)

    @property
    def principal(self) -> str | None:
        """Account of the token that the request was sent with; None if it had none."""
        return None if self.token is None else self.token.principal

    def on(self, move: int) -> int:
        """Enter the next state and return the `Action`; IllegalMove leaves the state as it was."""
        entry = _TABLE[self._state * _MOVES + move]
        if entry == _ILLEGAL:
            raise IllegalMove(f"{Move(move).name} in {State(self._state).name}")
        self._state = entry >> 4
        return entry & 0xF

    # ---- downstream

    def on_request_data(self, data: bytes, end_stream: bool) -> None:
        """Forward content of the request, or hold it."""
        action = self.on(_REQUEST_END if end_stream else _REQUEST_DATA)
        if action <= _HOLD:
            octets = len(data)
            self.request_octets += octets
            if octets and self._holding:
                self.hold(data)
                if self.upstream is not None:
                    self._commit_if_large()
            if self.upstream is not None:
                self.upstream.send_data(data, end_stream)
        elif not end_stream and not self.discard(len(data)):
            # It is too much: reset after the response (RFC 9113, 8.1).
            self.on(Move.DISCARDED_ENOUGH)
            self.downstream.reset(ErrorCode.NO_ERROR, True)
        if self._state == _OVER:
            self._end()

    def on_request_trailers(self, fields: Fields) -> None:
        """Forward the trailer section that ends the request, or hold it."""
        self.on(_REQUEST_END)
        trailers = end_to_end_trailers(fields)
        if self._holding:
            self.hold_trailers(trailers)
        if self.upstream is not None:
            self.upstream.send_trailers(trailers)
        if self._state == _OVER:
            self._end()

    def on_request_reset(self, code: int, by_peer: bool) -> None:
        """Reset the upstream stream. A rule that the client broke is not the upstream's business: CANCEL tells it."""
        self.on(Move.REQUEST_RESET)
        self.observers.stream_reset(self, "downstream" if by_peer else "sidecar", code)
        if not self.status and self.account.on_cancel is not None:
            self.account.on_cancel()
        if self.upstream is not None and self._connection is not None:
            upstream, self.upstream = self.upstream, None
            # Now, or when the connection has not had too many resets.
            self._connection.cancels.cancel(upstream, code if by_peer and code else ErrorCode.CANCEL, self.account)
        self._end()

    def on_response_sent(self, octets: int) -> None:
        """Give the window of the response back."""
        if self.upstream is not None:
            self.upstream.acknowledge(octets)

    # ---- upstream

    def on_interim(self, fields: Fields) -> None:
        """Forward a 1xx head."""
        self.on(Move.INTERIM)
        self.drop_held()
        self.downstream.send_head(self._crossing(fields), False)

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        """Forward the final head."""
        self.on(_RESPONSE_HEAD)
        if self._holding:
            self.drop_held()
        self.downstream.send_head(self._owner.response_head(self, self._crossing(fields)), end_stream)
        if end_stream:
            self.on(_RESPONSE_END)
            if self._state == _OVER:
                self._end()

    def on_response_data(self, data: bytes, end_stream: bool) -> None:
        """Forward content of the response."""
        self.on(_RESPONSE_END if end_stream else _RESPONSE_DATA)
        self.response_octets += len(data)
        if self.error_head is not None:
            self._owner.error_answered(self, data)
        self.downstream.send_data(data, end_stream)
        if self._state == _OVER:
            self._end()

    def on_response_trailers(self, fields: Fields) -> None:
        """Forward the trailer section that ends the response."""
        self.on(_RESPONSE_END)
        self.downstream.send_trailers(end_to_end_trailers(fields))
        if self._state == _OVER:
            self._end()

    def on_response_reset(self, code: int, by_peer: bool) -> None:
        """Reset the downstream stream. A rule that the upstream broke on its stream is a failure of the upstream."""
        if not by_peer and self.upstream is not None:
            self.on_connection_lost(explain_broken_rule(self.upstream.refusal))
            return
        unwanted = code == ErrorCode.NO_ERROR and self.response_done
        if not unwanted:
            self.observers.stream_reset(self, "upstream", code)
        if code == ErrorCode.REFUSED_STREAM:
            self.on_unprocessed(False)
            return
        self._forget_upstream()
        if self.on(Move.UNWANTED if unwanted else Move.RESPONSE_RESET) == _FORWARD:
            self.downstream.reset(code or ErrorCode.INTERNAL_ERROR, True)
        self._end_or_discard()

    def on_unprocessed(self, spent: bool) -> None:
        """Send the request again if that can be done."""
        self._forget_upstream()
        action = self.on(Move.UNPROCESSED if self._owner.may_resend(self, spent) else Move.FAILED)
        if action == Action.RESEND:
            self._sent_octets = 0
            self._owner.dispatch(self)
        else:
            self._failed(action, UpstreamRefusedStream("the request was refused unprocessed, and cannot be sent again"))

    def on_connection_lost(self, failure: Failure) -> None:
        """The upstream stream has ended, with its connection or because of a fault on it."""
        self._forget_upstream()
        self.fail(failure)

    # ---- the owner

    def start(self, connection: UpstreamConnection, fields: Fields) -> None:
        """Send the request on a new stream: its head, what is held of its content, and its end if that has come."""
        self.on(_START)
        self.attempts += 1
        trailers = self._trailers
        ended = self._state == _REPLAYABLE_ENDED
        bare = ended and trailers is None and not self._held_octets
        self._connection = connection
        self.upstream = upstream = connection.open(fields, bare, self)
        if self._first_held is not None:
            upstream.send_data(self._first_held, False)
            for data in self._more_held or ():
                upstream.send_data(data, False)
        if trailers is not None:
            upstream.send_trailers(trailers)
        elif ended and not bare:
            upstream.send_data(b"", True)
        self._commit_if_large()

    def fail(self, failure: Failure) -> None:
        """End the exchange: with a local reply while the response has not begun, else with a reset."""
        self._failed(self.on(Move.FAILED), failure)

    def on_evicted(self, failure: Failure) -> None:
        """Give way, because something is scarce and the owner of this exchange holds most of it."""
        if self.upstream is not None:
            self.upstream.reset_now(ErrorCode.CANCEL)
            self._forget_upstream()
        self._failed(self.on(Move.EVICTED), failure, True)

    def _failed(self, action: int, failure: Failure, evicted: bool = False) -> None:
        self.drop_held()
        self._stop_waiting()
        if action == Action.REPLY:
            self.failure_code = failure.code
            fields, body = self._owner.local_reply(self, failure)
            self.downstream.send_head(fields, not body)
            if body:
                self.response_octets += len(body)
                self.downstream.send_data(body, True)
        elif action == Action.RESET:
            self.failure_code = failure.code
            if evicted:
                self.downstream.reset_now(ErrorCode.ENHANCE_YOUR_CALM)
            else:
                self.downstream.reset(ErrorCode.INTERNAL_ERROR, True)
            self.observers.aborted(self, failure)
        self._end_or_discard()

    def on_internal_error(self) -> bool:
        """Abort after an internal error: reset both streams and end the exchange in any state."""
        if self._ended:
            return False
        self.on(Move.INTERNAL_ERROR)
        self.failure_code = Internal.code
        try:
            self.downstream.reset(ErrorCode.INTERNAL_ERROR, False)
            if self.upstream is not None:
                self.upstream.reset(ErrorCode.INTERNAL_ERROR, False)
            self.observers.aborted(self, Internal("internal error of the sidecar; the log says where"))
        finally:
            self._end()
        return True

    # ---- inside

    def _commit_if_large(self) -> None:
        """Stop holding a request that has grown too large to be sent again; until now it was replayable."""
        if self.drop_held_beyond(self._owner.replay_octets):
            self.on(_COMMIT)

    def _crossing(self, fields: Fields) -> Fields:
        """Return the lines of a response head that are forwarded."""
        upstream = self.upstream
        return end_to_end_response(fields) if upstream is None or upstream.has_watched else fields

    def _forget_upstream(self) -> None:
        """The upstream stream has ended."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None  # noqa: S101 - it has just told this exchange of its end
        upstream.receiver = None

    def _end_or_discard(self) -> None:
        """The upstream stream has ended: the exchange is over, or the rest of the request is discarded."""
        if self._state == _OVER:
            self._end()
        else:
            self.acknowledge_up_to(self.request_octets)

    def _end(self) -> None:
        self._ended = True
        self.downstream.receiver = None
        if self.upstream is not None:
            self.upstream.receiver = None
        self._stop_waiting()
        self.release()
        self._owner.ended(self)

    def _stop_waiting(self) -> None:
        if self.cancel_start is not None:
            self.cancel_start()
            self.cancel_start = None
