"""What is kept ready for open routes: contexts that are made when a deployment first needs them.

What clients send must not decide how much memory is used, nor how many labels metrics have. So there is a limit on
contexts: above it, those without exchanges give way, first those that were not used lately. Their slots and pools are
closed, unless others use them. And hosts that only a wildcard allows have labels of their own up to a number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.relay.context import Destination, RouteContext
from proxy.routes import OTHER, OpenMatch, OpenRoutes, Route
from proxy.routes.open_routes import FieldLines

__all__ = ["MOST_CONTEXTS", "MOST_WILDCARD_LABELS", "OpenContexts"]

MOST_CONTEXTS: Final = 512
"""Contexts of open routes, as long as so many are not in use at once."""
MOST_WILDCARD_LABELS: Final = 100
"""Hosts with a label of their own among those that only a wildcard allows."""

_MOST_DESTINATIONS: Final = 1_024
_MOST_AUTHORITIES: Final = 256
_MOST_KEPT_OCTETS: Final = 1_024


class OpenContexts:
    """The contexts of open routes.

    `make` makes the context of a route. `on_evicted` is called when some were dropped, so that slots and pools can be
    closed; not before the caller has returned to the event loop.
    """

    __slots__ = ("_authorities", "_make", "_on_evicted", "contexts", "destinations", "labelled", "routes")

    def __init__(
        self, routes: OpenRoutes, make: Callable[[Route], RouteContext], on_evicted: Callable[[], object]
    ) -> None:
        self.routes = routes
        self._make = make
        self._on_evicted = on_evicted
        self.contexts: dict[Route, RouteContext] = {}
        """By route, the oldest first."""
        self.labelled: dict[str, Route] = {}
        """A route of each host that has a label of its own in metrics."""
        self.destinations: dict[tuple[bytes, bytes, FieldLines], Destination] = {}
        """What was found for authority (empty if the path names the host), path and lines; a bounded number of them."""
        self._authorities: dict[bytes, bool] = {}

    def adopt(self, before: OpenContexts) -> None:
        """Take over the labels and contexts of an earlier snapshot as far as the lists still allow them."""
        for host, route in before.labelled.items():
            if self.routes.allowed.allows_host(host):
                self.labelled[host] = route
        for route in before.contexts:
            if self.routes.allows(route):
                self.contexts[route] = self._make(route)

    def is_allowed(self, authority: bytes) -> bool:
        """Return True if this authority is an allowed host."""
        known = self._authorities.get(authority)
        if known is None:
            known = self.routes.host(authority) is not None
            if len(self._authorities) >= _MOST_AUTHORITIES:
                self._authorities.clear()
            if len(authority) <= _MOST_KEPT_OCTETS:
                self._authorities[authority] = known
        return known

    def destination(self, authority: bytes, path: bytes, lines: FieldLines, match: OpenMatch) -> Destination:
        """Return where a request with this match leads, and keep it. Raises DeploymentRefused.

        `authority` is empty if the path names the host.
        """
        route = self.routes.route(match.host, lines, self._shared_label(match.host))
        context = self.contexts.get(route)
        if context is None:
            self._make_room()
            context = self.contexts[route] = self._make(route)
            if route.label != OTHER:
                self.labelled.setdefault(match.host, route)
        found = Destination(context, path, match.path)
        octets = len(path) + sum([len(name) + len(value) for name, value in lines])
        if octets <= _MOST_KEPT_OCTETS:
            if len(self.destinations) >= _MOST_DESTINATIONS:
                self.destinations.clear()
            self.destinations[authority, path, lines] = found
        return found

    def _shared_label(self, host: str) -> str:
        """Return `OTHER` for a host that has no label of its own in metrics, because there are too many; else `""`."""
        exact = self.routes.allowed.hosts
        if host in self.labelled or host in exact:
            return ""
        return "" if sum([known not in exact for known in self.labelled]) < MOST_WILDCARD_LABELS else OTHER

    def _make_room(self) -> None:
        """Drop a quarter of the contexts where there are too many: not those in use, and rather those unused."""
        if len(self.contexts) < MOST_CONTEXTS:
            return
        idle = [context for context in self.contexts.values() if context.exchanges == 0]
        idle.sort(key=lambda context: context.used)  # stable: the oldest first
        for context in self.contexts.values():
            context.used = False
        evicted = idle[: MOST_CONTEXTS // 4]
        for context in evicted:
            del self.contexts[context.route]
        self.destinations.clear()
        if evicted:
            self._on_evicted()
