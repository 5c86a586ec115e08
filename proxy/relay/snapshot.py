"""The snapshot: what one reading of the settings says about routes, ready for use.

Routes, their contexts, token slots and origin pools are one object. It is never changed but replaced as a whole
(`Dispatcher.swap`): an exchange keeps the context that it began with, and what no snapshot and no exchange uses any
more is closed. Two snapshots that have an origin or a token key in common share its pool or its slot, so that a swap
neither opens connections nor mints tokens for what stays.
"""

from __future__ import annotations

from typing import Final, Protocol

from proxy.http2.events import FieldLine
from proxy.observe.exchange import RouteObservers
from proxy.relay.context import Destination, RouteContext
from proxy.restate import classify
from proxy.routes import Origin, Route, RouteTable
from proxy.tokens.model import TokenKey
from proxy.tokens.slot import Slot
from proxy.upstream.origin_pool import OriginPool

__all__ = ["Observed", "Pools", "Slots", "Snapshot"]

# What clients send must not decide how much memory is used.
_MOST_KEPT_PATHS: Final = 1_024
_MOST_KEPT_OCTETS: Final = 256

_GET: Final = b"GET"
_POST: Final = b"POST"


class Slots(Protocol):
    """Where token slots come from."""

    def slot(self, key: TokenKey) -> Slot:
        """Return the slot of this key, always the same object while it is kept."""


class Pools(Protocol):
    """Where origin pools come from."""

    def origin_pool(self, origin: Origin) -> OriginPool:
        """Return the pool of this origin, always the same object while it is kept."""


class Observed(Protocol):
    """Where observers come from."""

    def exchanges(self, route: Route | None) -> RouteObservers:
        """Return who is told of the exchanges of this route; of those without a route for None."""


class Snapshot:
    """Routes by path, with everything that their exchanges need."""

    __slots__ = ("contexts", "destinations", "table")

    def __init__(self, table: RouteTable, tokens: Slots, pools: Pools, observed: Observed) -> None:
        self.table = table
        self.contexts: dict[str, RouteContext] = {}
        """By the route's name."""
        for route in table.routes:
            key = TokenKey.for_route(route)
            slot = tokens.slot(key) if route.signed else None
            pool = pools.origin_pool(route.origin)
            self.contexts[route.name] = RouteContext(route, key, slot, pool, observed.exchanges(route))
        self.destinations: dict[bytes, Destination] = {}
        """What was found for paths; a bounded number of them."""

    def destination(self, path: bytes) -> Destination:
        """Return where a path leads, and keep it: paths repeat, and so do their lines in the upstream's HPACK table.

        Raises PathRefused or RouteNotFound, as `RouteTable.match` does.
        """
        route, upstream_path = self.table.match(path)
        line: FieldLine = (b":path", upstream_path, False)
        found = Destination(self.contexts[route.name], line, classify(_GET, path), classify(_POST, path))
        if len(path) <= _MOST_KEPT_OCTETS:
            if len(self.destinations) >= _MOST_KEPT_PATHS:
                self.destinations.clear()
            self.destinations[path] = found
        return found
