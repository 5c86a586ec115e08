"""Whether every route works, and the last failures: an observer for the status page, `/readyz?routes` and a metric.

A route is unwell from a failure that stops work until an exchange on it succeeds: an error response that stops an
invocation or a registration, a reset by the service, a failure of its token or of the way to the service. A response
that breaks off is no success. A request at fault makes no route unwell. A route whose token cannot be minted is unwell
from the failed mint on, requests or not, while no token is left.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from proxy.errors import Draining, Failure, RequestRefused, TokenFailure
from proxy.http2.events import Fields
from proxy.observe.counters import RouteMetrics
from proxy.observe.exchange import ExchangeObserver, ObservedExchange
from proxy.observe.explanation import explain_reset, explain_response, remedy_of
from proxy.observe.metrics import Metrics, TokenIdentity, token_identity
from proxy.observe.observer import ObservedKey, ObservedToken, Observer
from proxy.restate import stops_work
from proxy.routes import UNMATCHED, Route

__all__ = ["LAST_FAILURES", "RouteHealth", "Trouble"]

LAST_FAILURES: Final = 20
"""How many failures are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A failure of a route, or of a request without a route."""

    route: str
    """The route's label."""
    code: str
    """Failure code, or the code of a finding of `check`."""
    status: int | None = None
    """Status that the client got; None if there was no response, or no request."""
    reason: str
    """One sentence: what is wrong."""
    remedy: str
    """What to do about it."""
    commands: tuple[str, ...] = ()
    """Shell commands of the remedy; a word in capitals is a placeholder."""
    at: float
    """When it happened last, in seconds since the epoch."""
    since: float
    """When the failures without a success in between began, in seconds since the epoch."""
    count: int = 1
    """How many there were since then."""
    minting: bool = False
    """True if there was no token for the request."""


class RouteHealth(Observer):
    """Keeps the trouble of each route and the last failures. `clock` is wall-clock time in seconds."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.time) -> None:
        self.last_failures: deque[Trouble] = deque(maxlen=LAST_FAILURES)
        """The newest is the last one."""
        self._metrics = metrics
        self._clock = clock
        self._routes: dict[str, _RouteTrouble] = {}
        self._mints: dict[TokenIdentity, Trouble] = {}
        """Failed mints without a successful one since, by what the token was for."""

    def route(self, route: Route | None) -> ExchangeObserver:
        """Return what notes the failures of one route."""
        counted = self._metrics.route(route)
        before = self._routes.get(route.label) if route is not None else None
        # Open routes with one label are one host, or all the hosts without a label of their own.
        same = before is not None and (before.known == route or before.is_open)
        noted = before.noted if before is not None and same else _Noted(counted)
        observed = _RouteTrouble(route, noted, self.last_failures, self._clock)
        if route is not None:
            self._routes[route.label] = observed
        return observed

    def route_removed(self, route: Route) -> None:
        """Forget the route."""
        self._routes.pop(route.label, None)
        identity = token_identity(route)
        if all(token_identity(other.known) != identity for other in self._routes.values() if other.known):
            self._mints.pop(identity, None)

    def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
        """End the trouble of a mint."""
        self._mints.pop(token_identity(token.key), None)

    def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
        """Note a mint without a token."""
        now = self._clock()
        identity = token_identity(key)
        known = [observed.known for observed in self._routes.values() if observed.known is not None]
        if known and not any(token_identity(route) == identity for route in known if not route.is_open):
            return  # Deployments choose what tokens of open routes are for: there may be any number of them.
        before = self._mints.get(identity)
        self._mints[identity] = Trouble(
            route="",
            code=failure.code,
            reason=str(failure),
            remedy=remedy_of(failure),
            at=now,
            since=before.since if before is not None else now,
            count=before.count + 1 if before is not None else 1,
            minting=True,
        )

    def trouble(self, route: Route, *, has_token: bool = False) -> Trouble | None:
        """Return what is wrong with a route; None if it is well, or nothing is known about it yet.

        A failed mint matters only without a token.
        """
        minting = self.mint_trouble(route, has_token=has_token)
        if minting is not None:
            return minting
        observed = self._routes.get(route.label)
        found = observed.noted.current() if observed is not None else None
        # A token that could not be minted then, and has been since, is no trouble any more.
        return found if found is None or not found.minting or token_identity(route) in self._mints else None

    def open_trouble(self, label: str, *, has_tokens: bool) -> Trouble | None:
        """Return what is wrong with the open routes of this label; None if they are well, or nothing is known yet.

        A failed mint matters only while a token is missing.
        """
        observed = self._routes.get(label)
        found = observed.noted.current() if observed is not None else None
        return None if found is not None and found.minting and has_tokens else found

    def mint_trouble(self, route: Route, *, has_token: bool = False) -> Trouble | None:
        """Return the last failed mint for a route if no mint has succeeded since, and it has no token."""
        if has_token or not route.signed or not self._mints:
            return None
        found = self._mints.get(token_identity(route))
        return replace(found, route=route.label) if found is not None else None


class _Noted:
    """The trouble of one label."""

    __slots__ = ("_counted", "_successes", "_trouble")

    def __init__(self, counted: RouteMetrics) -> None:
        self._counted = counted
        self._trouble: Trouble | None = None
        self._successes = 0
        """How many exchanges had succeeded when the one with the trouble had ended."""

    def current(self) -> Trouble | None:
        """Return the last failure if no exchange has succeeded since."""
        return self._trouble if self._counted.successes <= self._successes else None

    def note(self, trouble: Trouble) -> None:
        """Note a failure that stops work."""
        # One that breaks off after the head of a good response is counted among them by its status.
        good = trouble.status is not None and 200 <= trouble.status < 300
        self._trouble, self._successes = trouble, self._counted.successes + good


class _RouteTrouble(ExchangeObserver):
    """Notes the failures of one route. A success costs nothing: it is seen in the route's counters."""

    __slots__ = ("_clock", "_failures", "_route", "is_open", "known", "noted")

    def __init__(
        self, route: Route | None, noted: _Noted, failures: deque[Trouble], clock: Callable[[], float]
    ) -> None:
        self.known = route
        self.is_open = route is not None and route.is_open
        self.noted = noted
        self._route = route.label if route is not None else UNMATCHED
        self._failures = failures
        self._clock = clock

    def error_response(self, exchange: ObservedExchange, fields: Fields, content: bytes) -> None:
        if self.known is None or not stops_work(exchange.status):
            return
        found = explain_response(self.known, exchange, fields, content, self._clock()).finding
        self._note(
            exchange, code=found.code, reason=found.text, remedy=found.remedy, commands=found.commands, matters=True
        )

    def local_reply(self, exchange: ObservedExchange, failure: Failure) -> None:
        self._failed(exchange, failure)

    def aborted(self, exchange: ObservedExchange, failure: Failure) -> None:
        self._failed(exchange, failure)

    def stream_reset(self, exchange: ObservedExchange, by: str, code: int) -> None:
        failure = explain_reset(exchange, by, code)
        if failure is not None:
            self._failed(exchange, failure)

    def _failed(self, exchange: ObservedExchange, failure: Failure) -> None:
        self._note(
            exchange,
            code=failure.code,
            reason=str(failure),
            remedy=remedy_of(failure),
            matters=not isinstance(failure, RequestRefused | Draining),
            minting=isinstance(failure, TokenFailure),
        )

    def _note(
        self,
        exchange: ObservedExchange,
        *,
        code: str,
        reason: str,
        remedy: str,
        matters: bool,
        commands: tuple[str, ...] = (),
        minting: bool = False,
    ) -> None:
        now = self._clock()
        before = self.noted.current() if matters else None
        trouble = Trouble(
            route=self._route,
            code=code,
            status=exchange.status or None,
            reason=reason,
            remedy=remedy,
            commands=commands,
            at=now,
            since=before.since if before is not None else now,
            count=before.count + 1 if before is not None else 1,
            minting=minting,
        )
        self._failures.append(trouble)
        if matters:
            self.noted.note(trouble)
