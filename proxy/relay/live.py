"""Reads the state of dispatcher, token slots and pools for metrics and the status page."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from proxy.connection.budget import Account, Budget
from proxy.http2.engine import Stream
from proxy.observe.live import OpenRoute, OpenUse, OriginState, Queues, TokenState
from proxy.relay.context import RouteContext
from proxy.relay.dispatcher import Dispatcher
from proxy.relay.exchange import Exchange
from proxy.routes import OTHER, AllowLists, Origin, Route
from proxy.tokens.slot import Slot
from proxy.upstream.pool import Pool

__all__ = ["DispatcherState"]

_STEP: Final = 64
"""How many streams or connections are counted at a time; one takes up to a microsecond."""


class DispatcherState:
    """The state of one dispatcher, its budget, pool and clients, as `observe.live.Live` describes it.

    `clients` yields account and live streams of every connection of a client; connections may come and go meanwhile.
    `origin_label` returns the label of an origin in metrics. `clock` is wall-clock time in seconds.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        budget: Budget,
        pool: Pool,
        clients: Callable[[], Iterable[tuple[Account, Iterable[Stream]]]],
        *,
        origin_label: Callable[[str], str] = str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dispatcher = dispatcher
        self._budget = budget
        self._pool = pool
        self._clients = clients
        self._origin_label = origin_label
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

    def allowed(self) -> AllowLists | None:
        open_routes = self._dispatcher.snapshot.table.open_routes
        return None if open_routes is None else open_routes.allowed

    def open_routes(self) -> Iterator[OpenRoute]:
        open_contexts = self._dispatcher.snapshot.open_contexts
        if open_contexts is None:
            return
        by_label: dict[str, list[RouteContext]] = {str(route.origin): [] for route in open_contexts.labelled.values()}
        for context in open_contexts.contexts.values():
            by_label.setdefault(context.route.label, []).append(context)
        for label, contexts in by_label.items():
            yield OpenRoute(label, tuple(self._use(context) for context in contexts))

    def _use(self, context: RouteContext) -> OpenUse:
        route = context.route
        token = self._token(context.slot)
        return OpenUse(route.origin.host, route.signed, route.audience, route.impersonate, route.delegates, token)

    def token(self, route: Route) -> TokenState | None:
        context = self._dispatcher.snapshot.contexts.get(route.name)
        return self._token(context.slot) if context is not None else None

    def _token(self, slot: Slot | None) -> TokenState | None:
        if slot is None or slot.token is None or slot.usable_seconds(self._clock()) <= 0:
            return None
        return TokenState(slot.token.principal, slot.token.issued_at, slot.token.expires_at)

    def origins(self) -> Iterator[OriginState | None]:
        queued: Counter[Origin] = Counter()
        held_back: Counter[Origin] = Counter()
        for number, connection in enumerate(self._pool.connections):
            queued[connection.origin] += connection.account.octets
            held_back[connection.origin] += connection.cancels.held
            if number % _STEP == 0:
                yield None
        others = OriginState(OTHER)
        for number, pool in enumerate(self._pool.origin_pools):
            label = self._origin_label(str(pool.origin))
            known = label != OTHER
            before = OriginState(label) if known else others
            state = OriginState(
                label,
                before.opening + pool.opening,
                before.waiting + pool.waiting,
                before.waiting_clients + (pool.queue.count_owners() if pool.waiting else 0),
                before.queued_octets + queued[pool.origin],
                before.cancels_held_back + held_back[pool.origin],
            )
            if known:
                yield state
            else:
                others = state
                if number % _STEP == 0:
                    yield None
        if others != OriginState(OTHER):
            yield others

    def count_queues(self, queues: Queues) -> Iterator[None]:
        for account, streams in self._clients():
            octets = account.octets
            queues.client_connections += octets > 0
            queues.client_octets += octets
            queues.largest_client_octets = max(queues.largest_client_octets, octets)
            for number, stream in enumerate(streams):
                exchange = stream.receiver
                if isinstance(exchange, Exchange) and exchange.context is not None:
                    _count_exchange(exchange, exchange.context.route.label, queues)
                if number % _STEP == 0:
                    yield
            yield


def _count_exchange(exchange: Exchange, label: str, queues: Queues) -> None:
    octets = exchange.count_held_octets() + exchange.downstream.count_queued_octets()
    if exchange.upstream is not None:
        octets += exchange.upstream.count_queued_octets()
    if octets:
        queues.route_octets[label] += octets
    if exchange.cancel_start is not None:
        queues.route_waiting[label] += 1
