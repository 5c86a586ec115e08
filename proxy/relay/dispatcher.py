"""The dispatcher: finds route, token and upstream stream for each exchange, and starts it.

On the hot path `dispatch` finds the route in the current snapshot, reads the token from the route's slot, takes a
pooled connection and starts the exchange, all in one call. What is missing is fetched by one task for that exchange
(`waiting`). A signed route's exchange is started with a token or not at all (fail closed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from proxy.connection.budget import Account
from proxy.connection.flusher import Flusher
from proxy.errors import (
    CallerUnverified,
    DeploymentRefused,
    Draining,
    Failure,
    HeadTooLarge,
    MethodRefused,
    Overloaded,
    TokenFromCaller,
)
from proxy.http2.engine import Stream
from proxy.http2.events import Fields
from proxy.http2.policy.fields import section_octets
from proxy.observe.observer import Observers
from proxy.relay import via
from proxy.relay.context import RouteContext
from proxy.relay.exchange import Exchange, ExchangeOwner
from proxy.relay.signing import (
    deployment_lines,
    end_to_end,
    has_token,
    method_line,
    signed_head,
)
from proxy.relay.snapshot import Snapshot
from proxy.relay.waiting import Waiting
from proxy.request_identity import Unverified, Verifier
from proxy.restate import RequestKind, caller_token_remedy, classify, local_reply, missing_retry_after
from proxy.routes import OTHER, Route, RouteTable
from proxy.routes.open_routes import named_route_refusal
from proxy.tokens.model import Token
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.pool import Pool

__all__ = ["Dispatcher"]

# Compared without case, as a lenient service would do.
_REFUSED_METHODS: Final = {
    b"CONNECT": "CONNECT is not forwarded: name the upstream as a route, and call its path",
    b"TRACE": "TRACE is not forwarded: its answer would repeat the request, credentials included",
}

# The only kind for which a person waits. (To ask each request's kind costs a look-up of the attribute.)
(_INTERACTIVE,) = [kind for kind in RequestKind if kind.interactive]

_MOST_REFUSALS: Final = 3
_HTTP_2: Final = b"2.0"
_PSEUDO_FIELDS: Final = 4
_MOST_ADDED_OCTETS: Final = 8 << 10
"""A head grows by less than this between the streams: token, `via`, base path."""


class Dispatcher(ExchangeOwner):
    """Starts exchanges; one for each worker."""

    __slots__ = (
        "_clock",
        "_flusher",
        "_name",
        "_observers",
        "_pool",
        "_random_fraction",
        "_retired",
        "_tokens",
        "_unmatched",
        "_via_http2",
        "add_retry_after",
        "draining",
        "snapshot",
        "verifier",
        "waiting",
    )

    def __init__(
        self,
        routes: RouteTable,
        tokens: TokenSource,
        pool: Pool,
        observers: Observers,
        *,
        flusher: Flusher,
        clock: Callable[[], float],
        random_fraction: Callable[[], float],
        replay_octets: int,
        name: bytes,
        add_retry_after: bool = True,
        verifier: Verifier | None = None,
    ) -> None:
        ExchangeOwner.__init__(self, replay_octets)
        self.draining = False
        """Whether new exchanges are refused."""
        self.snapshot = Snapshot(routes, tokens, pool, observers, self._release_evicted)
        """The routes for new exchanges; `swap` replaces it."""
        self._retired: set[RouteContext] = set()
        """Of earlier snapshots, those with exchanges under way."""
        self._tokens = tokens
        self._pool = pool
        self._observers = observers
        self._unmatched = observers.exchanges(None)
        self._flusher = flusher
        self._clock = clock
        self._random_fraction = random_fraction
        self.add_retry_after = add_retry_after
        """Whether a 429 or 503 without `retry-after` gets one. It may be changed."""
        self.verifier = verifier
        """Refuses requests that no known Restate has signed; None lets all pass. It may be changed."""
        self._name = name
        self._via_http2 = via.via_line(_HTTP_2, name)
        self.waiting = Waiting(tokens, pool, flusher.loop, self.start)
        """Exchanges that could not be started at once."""

    def swap(self, routes: RouteTable, new_observers: bool = False) -> None:
        """Replace the snapshot by one of these routes: new exchanges take their route from it.

        Routes that stay as they are keep their context, unless `new_observers` says that others are to observe them.
        An exchange under way keeps the context that it began with. Token slots and origin pools that no snapshot and no
        exchange uses any more are closed in the next loop turn, or when the last of those exchanges has ended.
        """
        before = self.snapshot
        self.snapshot = after = Snapshot(
            routes, self._tokens, self._pool, self._observers, self._release_evicted, before, not new_observers
        )
        if new_observers:
            self._unmatched = self._observers.exchanges(None)
        for context in before.all_contexts():
            if after.contexts.get(context.route.name) is context:
                continue
            context.retired = True
            if context.exchanges:
                self._retired.add(context)
        self._flusher.loop.call_soon(self._release, before.all_routes())

    # ---- for connections

    def accept(self, stream: Stream, fields: Fields, end_stream: bool, account: Account) -> None:
        """Begin the exchange of a request whose head was received on this stream."""
        exchange = Exchange.__new__(Exchange)
        exchange.begin_content(stream, fields, account)
        exchange.begin(self, self._unmatched, end_stream, self._flusher.now())
        stream.receiver = exchange
        if fields:
            self.dispatch(exchange)
            return
        exchange.method = stream.method
        exchange.observers.started(exchange)
        exchange.fail(HeadTooLarge("the head of this request is larger than max_field_section; raise it if need be"))

    # ---- for exchanges

    def dispatch(self, exchange: Exchange) -> None:
        """Start the exchange now if token and connection are available, else in a task; fail it if it has no route."""
        context = exchange.context
        if context is None:
            try:
                context = self._find(exchange)
            except Failure as failure:
                exchange.fail(failure)
                return
            if exchange.account.held_back:
                self.waiting.hold_back(exchange, self.dispatch)
                return
        slot = context.slot
        token = None
        if slot is not None:
            # Also when it is sent again: its first token may have been rejected meanwhile.
            if exchange.kind is not _INTERACTIVE:
                token = slot.usable_token(self._clock())
            elif exchange.token is not None and exchange.token.local_expiry > self._clock():
                token = exchange.token  # minted for this very request, which was not processed then
        if token is not None or slot is None:
            connection = context.pool.ready()
            if connection is not None:
                self.start(exchange, context, connection, token)
                return
        self.waiting.add(exchange, context, token)

    def start(
        self, exchange: Exchange, context: RouteContext, connection: UpstreamConnection, token: Token | None
    ) -> None:
        """Start the exchange on this connection, which has a free stream. RuntimeError where its token is missing.

        A head that is larger than the upstream takes is answered 431 instead.
        """
        line = None
        if token is not None:
            line = context.token_line(token)
        elif context.slot is not None:
            raise RuntimeError("a signed route's request must not be sent without a token")
        path = exchange.upstream_path
        if path is None:
            raise RuntimeError("a request without a route must not be sent")
        exchange.token = token
        head = signed_head(exchange.fields, method_line(exchange.method), context.scheme, context.authority, path, line)
        most_octets = connection.engine.peer_max_section_octets
        if exchange.downstream.head_octets + _MOST_ADDED_OCTETS > most_octets and section_octets(head) > most_octets:
            text = (
                f"the head of this request has {section_octets(head)} octets as it is sent, and {context.route.origin} "
                f"takes {most_octets} (its SETTINGS_MAX_HEADER_LIST_SIZE): send fewer or shorter header fields"
            )
            exchange.fail(HeadTooLarge(text))
            return
        exchange.start(connection, head)
        context.observers.dispatched(exchange)

    def may_resend(self, exchange: Exchange, spent: bool) -> bool:
        """Return True if a request that was not processed may be sent again.

        A service that ends connections after a few requests each processes some of those that wait at any time: they
        are sent again as long as they might have waited for a stream. What is refused otherwise is sent three times.
        """
        now = self._flusher.now()
        exchange.refused_at = exchange.refused_at or now
        if spent:
            return now < exchange.refused_at + self._pool.wait_timeout_seconds
        exchange.refusals += 1
        return exchange.refusals < _MOST_REFUSALS

    def local_reply(self, exchange: Exchange, failure: Failure) -> tuple[Fields, bytes]:
        """Return head and content of the local reply to this failure."""
        reply = local_reply(failure, exchange.kind, self._random_fraction())
        exchange.status = reply.status
        exchange.observers.local_reply(exchange, failure)
        fields: Fields = [(b":status", str(reply.status).encode(), False)]
        fields += [(key, value, False) for key, value in reply.fields]
        return fields, b"" if exchange.method == b"HEAD" else reply.body

    def response_head(self, exchange: Exchange, fields: Fields) -> Fields:
        """Return the head to send downstream; on a 401 the token that Cloud Run refused is dropped."""
        upstream = exchange.upstream
        context = exchange.context
        if upstream is not None and context is not None:
            exchange.status = status = upstream.status
            exchange.head_at = self._flusher.now()
            context.observers.response_head(exchange, fields)
            if status >= 300:
                return self._error_head(exchange, status, fields)
        return fields

    def error_answered(self, exchange: Exchange, content: bytes) -> None:
        """Tell the observers of the response with `exchange.error_head` and this beginning of its content."""
        head, exchange.error_head = exchange.error_head, None
        context = exchange.context
        if head is not None and context is not None:
            context.observers.error_response(exchange, head, content)

    def ended(self, exchange: Exchange) -> None:
        """Tell the observers, and release the context if its snapshot was replaced."""
        context = exchange.context
        observers = exchange.observers
        seconds = self._flusher.now() - exchange.started_at
        if context is not None:
            context.exchanges -= 1
            if context.retired and context.exchanges == 0:
                self._retired.discard(context)
                # Not now: the connection that this closes may be the one that is calling.
                self._flusher.loop.call_soon(self._release, (context.route,))
            if exchange.error_head is not None:
                self.error_answered(exchange, b"")
            head_at = exchange.head_at
            observers.measured(
                exchange,
                exchange.request_octets,
                exchange.response_octets,
                head_at - exchange.started_at if head_at else -1.0,
            )
        observers.ended(exchange, exchange.status, seconds)

    # ---- inside

    def _find(self, exchange: Exchange) -> RouteContext:
        """Return the context of the exchange's route. Raises a kind of RequestRefused, Draining or Overloaded.

        Nothing else is told to a caller that is not verified: neither which routes there are, nor that it drains.
        """
        stream = exchange.downstream
        exchange.method = method = stream.method
        exchange.path = path = stream.path
        head = exchange.fields
        version = stream.http_version()
        over_http2 = version == _HTTP_2
        snapshot = self.snapshot
        # A browser can reach a listener by HTTP/1.1 under any name that leads here: only HTTP/2 goes by authority.
        destination = snapshot.known(path, head, over_http2)
        is_post = method == b"POST"
        is_get = not is_post and method == b"GET"
        if destination is not None and is_post:
            exchange.kind = destination.post_kind
        elif destination is not None and is_get:
            exchange.kind = destination.get_kind
        else:
            exchange.kind = classify(method, path)
        try:
            self._verify(head, path)
            if self.draining:
                raise Draining("the sidecar is shutting down; another one, or the next, will take the request")
            if exchange.account.exceeds_share():
                raise Overloaded("memory is short (queued_octets), and this client holds more than its share of it")
            if not (is_post or is_get) and (refusal := _REFUSED_METHODS.get(method.upper())) is not None:
                raise MethodRefused(refusal)
            if destination is None:
                destination = snapshot.destination(path, head, over_http2)
        except Exception:
            exchange.observers.started(exchange)
            raise
        context = destination.context
        exchange.context = context
        exchange.observers = context.observers
        exchange.upstream_path = destination.path
        context.exchanges += 1
        context.observers.started(exchange)
        if context.pool.exceeds_share():
            raise Overloaded("memory is short (queued_octets), and this service holds more than its share of it")
        if context.is_open:
            context.used = True
        if stream.has_watched or exchange.kind is _INTERACTIVE:
            exchange.fields = end_to_end(head)
            self._inspect(exchange, head, context)
        else:
            exchange.fields = head[_PSEUDO_FIELDS:]  # all four of them: without `:authority` there is a `host`
        exchange.fields.append(self._via_http2 if over_http2 else via.via_line(version, self._name))
        return context

    def _verify(self, head: Fields, path: bytes) -> None:
        """Raise CallerUnverified, and tell the observers, if a known Restate should have signed the request."""
        verifier = self.verifier
        if verifier is None:
            return
        try:
            verifier.verify(head, path, self._clock())
        except Unverified as exc:
            self._observers.caller_unverified(exc.reason)
            raise CallerUnverified(str(exc)) from exc

    def _inspect(self, exchange: Exchange, head: Fields, context: RouteContext) -> None:
        """Inspect fields that are not forwarded.

        Raises LoopDetected; where a person waits, TokenFromCaller, and DeploymentRefused on a named route.
        """
        passed = [line for line in head if line[0] == b"via"]
        if passed:
            via.check([value for _, value, _ in passed], self._name)
            exchange.fields += passed
        if has_token(head):
            if exchange.kind is _INTERACTIVE:
                raise TokenFromCaller(caller_token_remedy(signed=context.route.signed))
            context.observers.caller_token_dropped(exchange)
        if exchange.kind is _INTERACTIVE and not context.is_open and (lines := deployment_lines(head)):
            raise DeploymentRefused(named_route_refusal(lines))

    def _error_head(self, exchange: Exchange, status: int, fields: Fields) -> Fields:
        """Return the head to send downstream in place of one that is no success."""
        if status == 401 and exchange.token is not None:
            self._tokens.reject(exchange.token)
        exchange.error_head = fields
        if status < 500:  # The front end of Cloud Run says in the content of the others what is wrong.
            self.error_answered(exchange, b"")
        # Cloud Run says 429 and 503 while it has no instance: that must not use up an invocation's attempts.
        added = missing_retry_after(status, fields, self._random_fraction()) if self.add_retry_after else None
        return fields if added is None else [*fields, added]

    def _release(self, candidates: Iterable[Route]) -> None:
        """Close slots and pools that nothing uses any more; forget those of the routes of which nothing is left."""
        used = [*self.snapshot.all_contexts(), *self._retired]
        self.waiting.retain(
            {context.key for context in used if context.slot is not None}, {context.route.origin for context in used}
        )
        labels = {context.route.label for context in used} | {route.label for route in self.snapshot.all_routes()}
        for route in candidates:
            if route.label not in labels and route.label != OTHER:
                self._observers.route_removed(route)

    def _release_evicted(self) -> None:
        """Close slots and pools of open routes that were dropped; not now, but when the caller has returned."""
        self._flusher.loop.call_soon(self._release, ())
