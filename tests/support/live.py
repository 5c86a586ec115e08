"""The state of a worker that serves nothing, for tests of what shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from proxy.observe.health import RouteHealth
from proxy.observe.history import History
from proxy.observe.live import OpenRoute, OriginState, Queues, TokenState
from proxy.observe.metrics import Metrics
from proxy.observe.view import View
from proxy.routes import AllowLists, Route

__all__ = ["StillState", "view_of"]


@dataclass
class StillState:
    """What `observe.live.Live` promises, with values that a test sets."""

    known: Sequence[Route] = ()
    draining: bool = False
    queued_octets: int = 0
    queued_octets_limit: int = 1 << 20
    tokens: dict[str, TokenState] = field(default_factory=dict)
    waiting: int = 0
    waiting_clients: int = 0
    opening: int = 0
    to_services: int = 0
    held_back: int = 0
    lists: AllowLists | None = None
    opened: Sequence[OpenRoute] = ()
    queues: Queues = field(default_factory=Queues)

    def routes(self) -> Sequence[Route]:
        return self.known

    def allowed(self) -> AllowLists | None:
        return self.lists

    def open_routes(self) -> Iterator[OpenRoute]:
        yield from self.opened

    def token(self, route: Route) -> TokenState | None:
        return self.tokens.get(route.name)

    def origins(self) -> Iterator[OriginState | None]:
        for origin in dict.fromkeys(str(route.origin) for route in self.known):
            yield OriginState(
                origin, self.opening, self.waiting, self.waiting_clients, self.to_services, self.held_back
            )

    def count_queues(self, queues: Queues) -> Iterator[None]:
        queues.client_connections += self.queues.client_connections
        queues.client_octets += self.queues.client_octets
        queues.largest_client_octets = max(queues.largest_client_octets, self.queues.largest_client_octets)
        queues.route_octets.update(self.queues.route_octets)
        queues.route_waiting.update(self.queues.route_waiting)
        yield


def view_of(
    metrics: Metrics,
    live: StillState | None = None,
    health: RouteHealth | None = None,
    history: History | None = None,
) -> View:
    """Return the view of a worker that has counted this; of what is not given, nothing is known."""
    return View(
        metrics=metrics,
        health=health or RouteHealth(metrics),
        history=history or History(metrics),
        live=live or StillState(),
        started_at=0.0,
    )
