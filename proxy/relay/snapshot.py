"""The snapshot: what one reading of the settings says about routes, ready for use.

Routes, their contexts, token slots and origin pools are one object. It is never changed but replaced as a whole
(`Dispatcher.swap`): an exchange keeps the context that it began with, and what no snapshot and no exchange uses any
more is closed. Two snapshots that have an origin or a token key in common share its pool or its slot, so that a swap
neither opens connections nor mints tokens for what stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from proxy.http2.events import Fields
from proxy.observe.observer import Observers
from proxy.relay.context import Destination, RouteContext
from proxy.relay.open_contexts import OpenContexts
from proxy.relay.signing import deployment_lines, request_authority
from proxy.routes import Match, Route, RouteTable
from proxy.tokens.model import TokenKey
from proxy.tokens.source import TokenSource
from proxy.upstream.pool import Pool

__all__ = ["Snapshot"]

# What clients send must not decide how much memory is used.
_MOST_KEPT_PATHS: Final = 1_024
_MOST_KEPT_OCTETS: Final = 256


class Snapshot:
    """Routes by path, with everything that their exchanges need.

    With `reuse`, routes that are the same in `before` take their context from it: making 5,000 of them takes 0.2 s.
    Open routes of `before` that are still allowed stay ready. `on_evicted` is that of `OpenContexts`.
    """

    __slots__ = (
        "_last",
        "_last_path",
        "_observed",
        "_pools",
        "_tokens",
        "contexts",
        "destinations",
        "open_contexts",
        "table",
    )

    def __init__(
        self,
        table: RouteTable,
        tokens: TokenSource,
        pools: Pool,
        observed: Observers,
        on_evicted: Callable[[], object],
        before: Snapshot | None = None,
        reuse: bool = True,
    ) -> None:
        self.table = table
        self._tokens = tokens
        self._pools = pools
        self._observed = observed
        self.contexts: dict[str, RouteContext] = {}
        """Those of named routes, by name."""
        for route in table.routes:
            context = before.contexts.get(route.name) if before is not None and reuse else None
            same = context is not None and context.route == route
            self.contexts[route.name] = context if context is not None and same else self._context(route)
        self.destinations: dict[bytes, Destination] = {}
        """What was found for paths of named routes; a bounded number of them."""
        self._last_path: bytes | None = None
        self._last: Destination | None = None
        self.open_contexts: OpenContexts | None = None
        """What is kept for open routes; None if there are none."""
        if table.open_routes is not None:
            self.open_contexts = OpenContexts(table.open_routes, self._context, on_evicted)
            if before is not None and before.open_contexts is not None:
                self.open_contexts.adopt(before.open_contexts)

    def all_contexts(self) -> list[RouteContext]:
        """Return the contexts of named routes, and those that there are of open ones."""
        named = list(self.contexts.values())
        return named if self.open_contexts is None else [*named, *self.open_contexts.contexts.values()]

    def all_routes(self) -> list[Route]:
        """Return the named routes, and one of each host of open routes that has a label of its own in metrics."""
        named = list(self.table.routes)
        return named if self.open_contexts is None else [*named, *self.open_contexts.labelled.values()]

    def known(self, path: bytes, head: Fields, by_authority: bool) -> Destination | None:
        """Return what was found before for a request; `by_authority` allows that its authority names an open route."""
        open_contexts = self.open_contexts
        if open_contexts is None:
            # A connection has one object for a path that repeats: no look-up by its octets.
            if path is not self._last_path:
                known = self.destinations.get(path)
                if known is None:
                    return None
                self._last_path, self._last = path, known
            return self._last
        authority = request_authority(head) if by_authority else b""
        if not open_contexts.is_allowed(authority):
            authority = b""
            found = self.destinations.get(path)
            if found is not None:
                return found
        return open_contexts.destinations.get((authority, path, deployment_lines(head)))

    def destination(self, path: bytes, head: Fields, by_authority: bool) -> Destination:
        """Return where a request leads, and keep it: paths repeat, and so do their lines in the upstream's HPACK table.

        Raises PathRefused, RouteNotFound or DeploymentRefused, as `RouteTable.find` and `OpenRoutes.route` do.
        """
        authority = request_authority(head) if by_authority else b""
        match = self.table.find(authority, path)
        if isinstance(match, Match):
            return self._keep(path, match)
        open_contexts = self.open_contexts
        if open_contexts is None:
            raise AssertionError("an open route was found, and there are none")
        if not open_contexts.is_allowed(authority):
            authority = b""
        return open_contexts.destination(authority, path, deployment_lines(head), match)

    def _keep(self, path: bytes, match: Match) -> Destination:
        found = Destination(self.contexts[match.route.name], path, match.path)
        if len(path) <= _MOST_KEPT_OCTETS:
            if len(self.destinations) >= _MOST_KEPT_PATHS:
                self.destinations.clear()
            self.destinations[path] = found
        return found

    def _context(self, route: Route) -> RouteContext:
        key = TokenKey.for_route(route)
        slot = self._tokens.slot(key) if route.signed else None
        pool = self._pools.origin_pool(route.origin)
        return RouteContext(route, key, slot, pool, self._observed.exchanges(route))
