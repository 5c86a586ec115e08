"""Reads the state of dispatcher, token slots and pools for metrics and the status page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from proxy.connection.budget import Budget
from proxy.observe.live import OriginState, TokenState
from proxy.relay.dispatcher import Dispatcher
from proxy.routes import Route

__all__ = ["DispatcherState"]


class DispatcherState:
    """The state of one dispatcher and its budget, as `observe.live.Live` describes it.

    `clock` is wall-clock time in seconds.
    """

    def __init__(self, dispatcher: Dispatcher, budget: Budget, *, clock: Callable[[], float] = time.time) -> None:
        self._dispatcher = dispatcher
        self._budget = budget
        self._clock = clock

    @property
    def draining(self) -> bool:
        return self._dispatcher.draining

    @property
    def queued_octets(self) -> int:
        return self._budget.queued_octets

    @property
    def queued_octets_limit(self) -> int:
        return self._budget.limit_octets

    def routes(self) -> Sequence[Route]:
        return self._dispatcher.snapshot.table.routes

    def token(self, route: Route) -> TokenState | None:
        context = self._dispatcher.snapshot.contexts.get(route.name)
        slot = context.slot if context is not None else None
        if slot is None or slot.token is None or slot.usable_seconds(self._clock()) <= 0:
            return None
        return TokenState(slot.token.principal, slot.token.issued_at, slot.token.expires_at)

    def origin(self, route: Route) -> OriginState | None:
        context = self._dispatcher.snapshot.contexts.get(route.name)
        if context is None:
            return None
        return OriginState(str(route.origin), context.pool.waiting, context.pool.opening)
