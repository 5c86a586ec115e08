"""Reads the state of dispatcher, token slots and pools for metrics and the status page."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.observe.live import OriginState, TokenState
from proxy.relay.dispatcher import Dispatcher
from proxy.routes import Route

__all__ = ["DispatcherState"]


class DispatcherState:
    """The state of one dispatcher, as `observe.live.Live` describes it."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @property
    def draining(self) -> bool:
        return self._dispatcher.draining

    @property
    def queued_octets(self) -> int:
        return self._dispatcher.budget.queued_octets

    @property
    def queued_octets_limit(self) -> int:
        return self._dispatcher.budget.limit_octets

    def routes(self) -> Sequence[Route]:
        return self._dispatcher.snapshot.table.routes

    def token(self, route: Route) -> TokenState | None:
        context = self._dispatcher.snapshot.contexts.get(route.name)
        token = context.slot.token if context is not None and context.slot is not None else None
        return TokenState(token.principal, token.issued_at, token.expires_at) if token is not None else None

    def origin(self, route: Route) -> OriginState | None:
        context = self._dispatcher.snapshot.contexts.get(route.name)
        if context is None:
            return None
        return OriginState(str(route.origin), context.pool.waiting, context.pool.opening)
