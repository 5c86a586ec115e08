"""Route, token, upstream stream: how every exchange is sent on its way.

On the hot path `dispatch` finds the route, reads the token from the route's slot, takes a pooled connection and starts
the carrier, all in one call. What is missing is fetched by one task for that exchange (`waiting`). A signed route's
carrier is started with a token or not at all (fail closed).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from proxy import errors
from proxy.errors import Draining, Failure, MethodRefused, Overloaded, TokenFromCaller
from proxy.http2.events import Fields, StreamId
from proxy.http2.fields import end_to_end, end_to_end_response, for_upstream, has_token, request_line, values_of
from proxy.relay import via
from proxy.relay.carrier import Carrier
from proxy.relay.upstream_errors import log_error_answer, says_more_in_content, stops_work
from proxy.relay.waiting import Pool, Tokens, Waiting
from proxy.restate import is_discovery, missing_retry_after
from proxy.routing import UNMATCHED, Route, RouteTable
from proxy.telemetry import Metrics, Repeats, RouteMetrics
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.slot import Slot
from proxy.wire import Budget, Channel, Exchanges, StreamSource

__all__ = ["Forwarder", "Post"]

_log: Final = structlog.get_logger("relay")
_access: Final = structlog.get_logger("access")

# 0.03 µs instead of 0.12.
_STATUSES: Final = {str(status).encode(): status for status in range(100, 600)}

_COMMON_METHODS: Final = frozenset((b"GET", b"POST"))
# Compared without regard to case, as a lenient service would.
_REFUSED_METHODS: Final = {
    b"CONNECT": "CONNECT is not forwarded: name the upstream as a route, and call its path",
    b"TRACE": "TRACE is not forwarded: its answer would repeat the request, credentials included",
}


def _remedy_of_caller_token(route: Route) -> str:
    adds = "the sidecar adds its own" if route.signed else "the route adds none (gcp_id_token = false)"
    return (
        f"the request has a Google token already (X-Serverless-Authorization), which never passes; {adds}. Register "
        "the same URL without Restate's --gcp-id-token, --gcp-impersonate-service-account and --gcp-audience (in the "
        "admin API: without auth), and without that field in --extra-header: restate deployments register --force URL"
    )


@dataclass(frozen=True, slots=True)
class Post:
    """What the forwarder keeps ready for a route."""

    route: Route
    key: TokenKey
    slot: Slot | None
    line: StreamSource
    scheme: bytes
    metrics: RouteMetrics


class Forwarder(Exchanges):
    """Sends exchanges on their way; one for each worker."""

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
        chance: Callable[[], float],
        replay_octets: int,
        name: bytes,
        access_log: bool = False,
        add_retry_after: bool = True,
    ) -> None:
        self.replay_octets = replay_octets
        self.budget = budget
        self.draining = False
        """Whether new exchanges are refused."""
        self._routes = routes
        self._tokens = tokens
        self._loop = loop
        self._clock = clock
        self._chance = chance
        self._access_log = access_log
        self._add_retry_after = add_retry_after
        self._name = name
        self._via = {version: via.via_line(version, name) for version in (b"2.0", b"1.1", b"1.0")}
        self._caller_tokens_told: set[str] = set()
        self.waiting = Waiting(self, tokens, pool, loop)
        """Those that could not be started at once."""
        self._repeats = Repeats()
        self._unmatched = metrics.route(UNMATCHED)
        self._posts = {route.name: self._post(route, pool, metrics) for route in routes.routes}

    def _post(self, route: Route, pool: Pool, metrics: Metrics) -> Post:
        key = TokenKey(route.impersonate, route.delegates, route.audience)
        return Post(
            route=route,
            key=key,
            slot=self._tokens.slot(key) if route.signed else None,
            line=pool.line(route.origin),
            scheme=route.origin.scheme.encode(),
            metrics=metrics.route(route.label),
        )

    # ---- for downstream

    def carrier(self, downstream: Channel, stream_id: StreamId, /) -> Carrier:
        """Return the carrier of a new exchange; tell it the request's head next."""
        return Carrier(self, downstream, stream_id, self._loop.time(), self._unmatched)

    # ---- for carriers

    def dispatch(self, carrier: Carrier) -> None:
        """Start the carrier now if token and connection are there, else in a task; fail it if it has no way."""
        try:
            post = self._find(carrier)
        except Failure as failure:
            carrier.fail(failure)
            return
        slot = post.slot
        token = None
        if slot is not None:
            # Also where it is sent again: the token that it went out with may have been rejected meanwhile.
            token = slot.current(self._clock()) if not carrier.discovery else self._minted_before(carrier)
        if token is not None or slot is None:
            connection = post.line.ready()
            if connection is not None:
                self.launch(carrier, post, connection, token)
                return
        self.waiting.add(carrier, post, token)

    def launch(self, carrier: Carrier, post: Post, connection: Channel, token: Token | None) -> None:
        """Start the carrier on this connection, which has a free stream. RuntimeError where its token is missing."""
        if token is None and post.route.signed:
            raise RuntimeError("a request that must have a token was to be sent without")
        carrier.token = token
        authorization = token.authorization if token is not None else None
        carrier.start(
            connection,
            for_upstream(
                carrier.fields, carrier.method, post.scheme, post.route.authority, carrier.upstream_path, authorization
            ),
        )

    def made_up(self, carrier: Carrier, failure: Failure) -> tuple[Fields, bytes]:
        """Return head and content of the answer to this failure."""
        answer = errors.answer(failure, discovery=carrier.discovery, chance=self._chance())
        carrier.status = answer.status
        self._count(carrier, failure, "request failed")
        fields: Fields = [(b":status", str(answer.status).encode(), False)]
        fields += [(key, value, False) for key, value in answer.fields]
        return fields, b"" if carrier.method == b"HEAD" else answer.body

    def broke_off(self, carrier: Carrier, failure: Failure) -> None:
        """Count and log a failure that came too late for an answer."""
        self._count(carrier, failure, "exchange broken off")

    def response_began(self, carrier: Carrier, fields: Fields) -> Fields:
        """Return the head to send downstream; a 401 drops the token that Cloud Run did not take."""
        code = fields[0][1]
        carrier.status = status = _STATUSES.get(code) or int(code)
        if status < 300:
            return fields
        # To look through every head of a success would take 0.3 µs; what a proxy says to its client is in a 407.
        fields = end_to_end_response(fields)
        if carrier.route is None or not stops_work(status):
            return fields
        if status == 401 and carrier.token is not None:
            self._tokens.reject(carrier.token)
        carrier.error_head = fields
        if not says_more_in_content(status):
            self.error_answered(carrier, b"")
        # Cloud Run says 429 and 503 while it has no instance: that must not use up an invocation's attempts.
        added = missing_retry_after(status, fields, self._chance()) if self._add_retry_after else None
        return fields if added is None else [*fields, added]

    def error_answered(self, carrier: Carrier, content: bytes) -> None:
        """Log what the answer with `carrier.error_head` and this beginning of its content means."""
        head, carrier.error_head = carrier.error_head, None
        route = carrier.route
        if head is None or route is None:
            return
        repeats = self._repeats.fields((route.name, str(carrier.status)), self._loop.time())
        if repeats is not None:
            log_error_answer(route, carrier, head, content, self._clock(), repeats)

    def ended(self, carrier: Carrier) -> None:
        """Count the exchange."""
        if carrier.error_head is not None:
            self.error_answered(carrier, b"")
        seconds = self._loop.time() - carrier.started_at
        carrier.metrics.ended(carrier.status, seconds)
        if self._access_log:
            _access.info(
                "exchange",
                route=carrier.route.name if carrier.route is not None else None,
                method=carrier.method.decode("latin-1"),
                path=carrier.path.partition(b"?")[0].decode("latin-1"),
                status=carrier.status,
                milliseconds=round(seconds * 1000, 1),
                code=carrier.code or None,
            )

    # ---- inside

    def _find(self, carrier: Carrier) -> Post:
        """Return what is kept for the exchange's route. Raises a leaf of RequestRefused, or Draining."""
        if carrier.route is None:
            head = carrier.fields
            method, path = request_line(head)
            carrier.method, carrier.path = method, path
            carrier.discovery = is_discovery(method, path)
            try:
                if self.draining:
                    raise Draining("the sidecar is shutting down; another one, or the next, will take the request")
                if self.budget.used_up:
                    raise Overloaded("as many octets are queued as may be (queued_octets); slow readers hold them")
                if method not in _COMMON_METHODS and (refusal := _REFUSED_METHODS.get(method.upper())) is not None:
                    raise MethodRefused(refusal)
                carrier.route, carrier.upstream_path = route, _ = self._routes.match(path)
            except Failure:
                self._unmatched.started()
                raise
            post = self._posts[route.name]
            carrier.metrics = post.metrics
            post.metrics.started()
            carrier.fields = fields = end_to_end(head)
            if len(fields) + 4 != len(head):  # more than pseudo-fields is missing: something that is rarely there
                self._inspect(carrier, head, post)
            fields.append(self._via[carrier.http_version])
            return post
        return self._posts[carrier.route.name]

    def _inspect(self, carrier: Carrier, head: Fields, post: Post) -> None:
        """Look at what does not cross over. Raises LoopDetected, or TokenFromCaller for a discovery."""
        passed = values_of(head, b"via")
        if passed:
            via.check(passed, self._name)
            carrier.fields += [(b"via", value, False) for value in passed]
        if has_token(head):
            if carrier.discovery:
                raise TokenFromCaller(_remedy_of_caller_token(post.route))
            post.metrics.caller_tokens += 1
            if post.route.name not in self._caller_tokens_told:
                self._caller_tokens_told.add(post.route.name)
                _log.warning(
                    "dropping the caller's own Google token",
                    route=post.route.name,
                    remedy=_remedy_of_caller_token(post.route),
                )

    def _minted_before(self, carrier: Carrier) -> Token | None:
        """Return the token that was minted for this discovery, if it was not processed then."""
        token = carrier.token
        return token if token is not None and token.local_expiry > self._clock() else None

    def _count(self, carrier: Carrier, failure: Failure, what: str) -> None:
        carrier.metrics.failed(failure.code)
        name = carrier.route.name if carrier.route is not None else ""
        # An outage must not fill the disk.
        repeats = self._repeats.fields((name, failure.code), self._loop.time())
        if repeats is not None:
            write = _log.error if failure.severity == "error" else _log.warning
            write(what, route=name, code=failure.code, status=carrier.status, reason=str(failure), **repeats)
