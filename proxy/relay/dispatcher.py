"""Route, token, upstream stream: how every exchange is sent on its way.

On the hot path `dispatch` finds the route, reads the token from the route's slot, takes a pooled connection and starts
the exchange, all in one call. What is missing is fetched by one task for that exchange (`waiting`). A signed route's
exchange is started with a token or not at all (fail closed).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from proxy.connection.budget import Budget
from proxy.errors import Draining, Failure, MethodRefused, Overloaded, TokenFromCaller
from proxy.http2.engine import Stream
from proxy.http2.events import Fields
from proxy.observe import Metrics, Repeats
from proxy.relay import via
from proxy.relay.context import Destination, RouteContext
from proxy.relay.exchange import Exchange, ExchangeOwner
from proxy.relay.signing import end_to_end, has_token, method_line, signed_head, values_of
from proxy.relay.upstream_errors import log_error_answer, says_more_in_content
from proxy.relay.waiting import Pool, Tokens, Waiting
from proxy.restate import classify, local_reply, missing_retry_after, stops_work
from proxy.routes import UNMATCHED, Route, RouteTable
from proxy.tokens.model import Token, TokenKey
from proxy.upstream.connection import UpstreamConnection

__all__ = ["Dispatcher"]

_log: Final = structlog.get_logger("relay")
_access: Final = structlog.get_logger("access")

# What callers send must not decide how much memory we use.
_MOST_KEPT_PATHS: Final = 1_024
_MOST_KEPT_OCTETS: Final = 256

# Compared without regard to case, as a lenient service would.
_REFUSED_METHODS: Final = {
    b"CONNECT": "CONNECT is not forwarded: name the upstream as a route, and call its path",
    b"TRACE": "TRACE is not forwarded: its answer would repeat the request, credentials included",
}

_GET: Final = b"GET"
_POST: Final = b"POST"
_HTTP_2: Final = b"2.0"
_PSEUDO_FIELDS: Final = 4


class Dispatcher(ExchangeOwner):
    """Sends exchanges on their way; one for each worker."""

    __slots__ = (
        "_access_log",
        "_add_retry_after",
        "_caller_tokens_told",
        "_clock",
        "_contexts",
        "_loop",
        "_name",
        "_random_fraction",
        "_repeats",
        "_routes",
        "_tokens",
        "_unmatched",
        "_via_http2",
        "destinations",
        "draining",
        "waiting",
    )

    def __init__(
        self,
        routes: RouteTable,
        tokens: Tokens,
        pool: Pool,
        metrics: Metrics,
        budget: Budget,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        random_fraction: Callable[[], float],
        replay_octets: int,
        name: bytes,
        access_log: bool = False,
        add_retry_after: bool = True,
    ) -> None:
        ExchangeOwner.__init__(self, budget, replay_octets)
        self.draining = False
        """Whether new exchanges are refused."""
        self._routes = routes
        self._tokens = tokens
        self._loop = loop
        self._clock = clock
        self._random_fraction = random_fraction
        self._access_log = access_log
        self._add_retry_after = add_retry_after
        self._name = name
        self._via_http2 = via.via_line(_HTTP_2, name)
        self._caller_tokens_told: set[str] = set()
        self.waiting = Waiting(tokens, pool, loop, self.start)
        """Those that could not be started at once."""
        self._repeats = Repeats()
        self.destinations: dict[bytes, Destination] = {}
        """What was found for paths, a bounded number of them."""
        self._unmatched = metrics.route(UNMATCHED)
        self._contexts = {route.name: _context(route, tokens, pool, metrics) for route in routes.routes}

    # ---- for connections

    def accept(self, stream: Stream, fields: Fields, end_stream: bool) -> None:
        """Begin the exchange of a request whose head has come on this stream."""
        exchange = Exchange.__new__(Exchange)
        exchange.begin(self, stream, fields, end_stream, self._loop.time())
        stream.receiver = exchange
        self.dispatch(exchange)

    # ---- for exchanges

    def dispatch(self, exchange: Exchange) -> None:
        """Start the exchange now if token and connection are there, else in a task; fail it if it has no way."""
        context = exchange.context
        if context is None:
            try:
                context = self._find(exchange)
            except Failure as failure:
                exchange.fail(failure)
                return
        slot = context.slot
        token = None
        if slot is not None:
            # Also where it is sent again: the token that it went out with may have been rejected meanwhile.
            token = self._minted_before(exchange) if exchange.kind.interactive else slot.usable_token(self._clock())
        if token is not None or slot is None:
            connection = context.pool.ready()
            if connection is not None:
                self.start(exchange, context, connection, token)
                return
        self.waiting.add(exchange, context, token)

    def start(
        self, exchange: Exchange, context: RouteContext, connection: UpstreamConnection, token: Token | None
    ) -> None:
        """Start the exchange on this connection, which has a free stream. RuntimeError where its token is missing."""
        line = None
        if token is not None:
            line = context.token_line(token)
        elif context.slot is not None:
            raise RuntimeError("a request that must have a token was to be sent without")
        path = exchange.upstream_path
        if path is None:
            raise RuntimeError("a request that has no route was to be sent")
        exchange.token = token
        exchange.start(
            connection,
            signed_head(
                exchange.fields,
                method_line(exchange.method),
                context.scheme,
                context.authority,
                path,
                line,
            ),
        )

    def local_reply(self, exchange: Exchange, failure: Failure) -> tuple[Fields, bytes]:
        """Return head and content of the answer to this failure."""
        reply = local_reply(failure, exchange.kind, self._random_fraction())
        exchange.status = reply.status
        self._count(exchange, failure, "request failed")
        fields: Fields = [(b":status", str(reply.status).encode(), False)]
        fields += [(key, value, False) for key, value in reply.fields]
        return fields, b"" if exchange.method == b"HEAD" else reply.body

    def aborted(self, exchange: Exchange, failure: Failure) -> None:
        """Count and log a failure that came too late for an answer."""
        self._count(exchange, failure, "exchange aborted")

    def response_head(self, exchange: Exchange, fields: Fields) -> Fields:
        """Return the head to send downstream; a 401 drops the token that Cloud Run did not take."""
        upstream = exchange.upstream
        if upstream is not None:
            exchange.status = status = upstream.status
            if status >= 300:
                return self._error_head(exchange, status, fields)
        return fields

    def error_answered(self, exchange: Exchange, content: bytes) -> None:
        """Log what the answer with `exchange.error_head` and this beginning of its content means."""
        head, exchange.error_head = exchange.error_head, None
        context = exchange.context
        if head is None or context is None:
            return
        repeats = self._repeats.fields((context.route.name, str(exchange.status)), self._loop.time())
        if repeats is not None:
            log_error_answer(context.route, exchange, head, content, self._clock(), repeats)

    def ended(self, exchange: Exchange) -> None:
        """Count the exchange."""
        if exchange.error_head is not None:
            self.error_answered(exchange, b"")
        context = exchange.context
        metrics = self._unmatched if context is None else context.metrics
        seconds = self._loop.time() - exchange.started_at
        metrics.ended(exchange.status, seconds)
        if self._access_log:
            self._log_access(exchange, context.route.name if context is not None else None, seconds)

    # ---- inside

    def _find(self, exchange: Exchange) -> RouteContext:
        """Return what is kept for the exchange's route. Raises a leaf of RequestRefused, or Draining."""
        stream = exchange.downstream
        exchange.method = method = stream.method
        exchange.path = path = stream.path
        destination = self.destinations.get(path)
        if destination is not None and method == _POST:
            exchange.kind = destination.post_kind
        elif destination is not None and method == _GET:
            exchange.kind = destination.get_kind
        else:
            exchange.kind = classify(method, path)
        try:
            if self.draining:
                raise Draining("the sidecar is shutting down; another one, or the next, will take the request")
            if self.budget.is_used_up():
                raise Overloaded("as many octets are queued as may be (queued_octets); slow readers hold them")
            if method != _POST and method != _GET and (refusal := _REFUSED_METHODS.get(method.upper())) is not None:
                raise MethodRefused(refusal)
            if destination is None:
                destination = self.destination(path)
        except Failure:
            self._unmatched.started()
            raise
        context = destination.context
        exchange.context = context
        exchange.upstream_path = destination.path
        context.metrics.started()
        head = exchange.fields
        if stream.has_watched:
            exchange.fields = end_to_end(head)
            self._inspect(exchange, head, context)
        else:
            exchange.fields = head[_PSEUDO_FIELDS:]  # all four of them: without `:authority` there is a `host`
        version = stream.http_version()
        exchange.fields.append(self._via_http2 if version == _HTTP_2 else via.via_line(version, self._name))
        return context

    def destination(self, path: bytes) -> Destination:
        """Return where a path leads, and keep it: paths repeat, and so their lines are known again upstream."""
        route, upstream_path = self._routes.match(path)
        line = (b":path", upstream_path, False)
        found = Destination(self._contexts[route.name], line, classify(_GET, path), classify(_POST, path))
        if len(path) <= _MOST_KEPT_OCTETS:
            if len(self.destinations) >= _MOST_KEPT_PATHS:
                self.destinations.clear()
            self.destinations[path] = found
        return found

    def _inspect(self, exchange: Exchange, head: Fields, context: RouteContext) -> None:
        """Look at what does not cross over. Raises LoopDetected, or TokenFromCaller where a person waits."""
        passed = values_of(head, b"via")
        if passed:
            via.check(passed, self._name)
            exchange.fields += [(b"via", value, False) for value in passed]
        if has_token(head):
            if exchange.kind.interactive:
                raise TokenFromCaller(_remedy_of_caller_token(context.route))
            context.metrics.caller_tokens += 1
            if context.route.name not in self._caller_tokens_told:
                self._caller_tokens_told.add(context.route.name)
                _log.warning(
                    "dropping the caller's own Google token",
                    route=context.route.name,
                    remedy=_remedy_of_caller_token(context.route),
                )

    def _minted_before(self, exchange: Exchange) -> Token | None:
        """Return the token that was minted for this interactive request, if it was not processed then."""
        token = exchange.token
        return token if token is not None and token.local_expiry > self._clock() else None

    def _error_head(self, exchange: Exchange, status: int, fields: Fields) -> Fields:
        """Return the head to send downstream in place of one that is no success."""
        if status == 401 and exchange.token is not None:
            self._tokens.reject(exchange.token)
        if stops_work(status):
            exchange.error_head = fields
            if not says_more_in_content(status):
                self.error_answered(exchange, b"")
        # Cloud Run says 429 and 503 while it has no instance: that must not use up an invocation's attempts.
        added = missing_retry_after(status, fields, self._random_fraction()) if self._add_retry_after else None
        return fields if added is None else [*fields, added]

    def _log_access(self, exchange: Exchange, route: str | None, seconds: float) -> None:
        _access.info(
            "exchange",
            route=route,
            method=exchange.method.decode("latin-1"),
            path=exchange.path.partition(b"?")[0].decode("latin-1"),
            status=exchange.status or None,
            milliseconds=round(seconds * 1000, 1),
            code=exchange.failure_code or None,
        )

    def _count(self, exchange: Exchange, failure: Failure, what: str) -> None:
        context = exchange.context
        metrics = self._unmatched if context is None else context.metrics
        metrics.failed(failure.code)
        route = context.route.name if context is not None else ""
        # An outage must not fill the disk.
        repeats = self._repeats.fields((route, failure.code), self._loop.time())
        if repeats is not None:
            write = _log.error if failure.severity == "error" else _log.warning
            write(what, route=route, code=failure.code, status=exchange.status or None, reason=str(failure), **repeats)


def _context(route: Route, tokens: Tokens, pool: Pool, metrics: Metrics) -> RouteContext:
    key = TokenKey.for_route(route)
    return RouteContext(
        route,
        key,
        tokens.slot(key) if route.signed else None,
        pool.origin_pool(route.origin),
        metrics.route(route.label),
    )


def _remedy_of_caller_token(route: Route) -> str:
    adds = "the sidecar adds its own" if route.signed else "the route adds none (gcp_id_token = false)"
    return (
        f"the request has a Google token already (X-Serverless-Authorization), which never passes; {adds}. Register "
        "the same URL without Restate's --gcp-id-token, --gcp-impersonate-service-account and --gcp-audience (in the "
        "admin API: without auth), and without that field in --extra-header: restate deployments register --force URL"
    )
