"""Which route a request takes. Pure.

A route's name is its path prefix, one or more segments: `/greeter/discover` belongs to the route `greeter`, and goes to
the route's URL with the prefix replaced by the URL's own base path. The longest prefix wins; a route named `""` takes
what is left.

Where the allow-lists have hosts, there are open routes, too. An authority that is an allowed host comes first; then
named routes but the one named `""`; then a path that begins with an allowed host.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from proxy.errors import RouteNotFound
from proxy.quoting import quoted
from proxy.routes.allow_lists import AllowLists
from proxy.routes.names import SimilarNames
from proxy.routes.open_routes import OpenMatch, OpenRoutes
from proxy.routes.paths import check_path
from proxy.routes.route import Route

__all__ = ["Match", "RouteTable"]

_NOTHING: Final = AllowLists()


class Match(NamedTuple):
    """The route of a request, and the path (with query) that its upstream is asked for."""

    route: Route
    """The route with the longest prefix."""
    path: bytes
    """What the upstream is asked for, with the query."""


class RouteTable:
    """All routes, looked up by path. Routes have distinct names; `ValueError` names one that is there twice."""

    def __init__(self, routes: Iterable[Route], allowed: AllowLists = _NOTHING) -> None:
        self.routes: tuple[Route, ...] = tuple(routes)
        self.open_routes = OpenRoutes(allowed) if allowed.hosts else None
        """What deployments may choose themselves; None if nothing."""
        self._by_prefix: dict[bytes, tuple[Route, bytes]] = {}
        for route in self.routes:
            prefix = f"/{route.name}".encode() if route.name else b""
            if prefix in self._by_prefix:
                raise ValueError(f"two routes are named {quoted(route.name)}")
            self._by_prefix[prefix] = (route, route.base_path.encode())
        self._names: SimilarNames | None = None
        self._depths = sorted({prefix.count(b"/") for prefix in self._by_prefix}, reverse=True)

    def match(self, path: bytes) -> Match:
        """Return the route with the longest prefix of `path`.

        Raises PathRefused for a path that could mean another one once normalised, RouteNotFound where none fits.
        """
        check_path(path)
        bare, mark, query = path.partition(b"?")
        parts = bare.split(b"/")
        for depth in self._depths:
            found = self._by_prefix.get(b"/".join(parts[: depth + 1]))
            if found is not None and len(parts) > depth:
                route, base = found
                rest = b"/".join(parts[depth + 1 :])
                target = base + b"/" + rest if len(parts) > depth + 1 else base or b"/"
                return Match(route, target + mark + query)
        raise RouteNotFound(self._no_route(parts))

    def find(self, authority: bytes, path: bytes) -> Match | OpenMatch:
        """Return where a request goes; `authority` is empty where it must not choose an open route.

        Raises PathRefused and RouteNotFound, as `match` does, and DeploymentRefused for a host that is not allowed.
        """
        open_routes = self.open_routes
        if open_routes is None:
            return self.match(path)
        check_path(path)
        if (found := open_routes.by_authority(authority, path)) is not None:
            return found
        found = open_routes.by_path(path)
        try:
            match = self.match(path)
        except RouteNotFound as exc:
            if found is not None:
                return found
            refusal = open_routes.refusal(authority, path, cloud_run_only=False)
            raise refusal or RouteNotFound(f"{exc}{open_routes.unlisted(authority)}") from None
        if match.route.name:
            return match
        if found is None and (refusal := open_routes.refusal(authority, path, cloud_run_only=True)) is not None:
            raise refusal
        return found or match

    def _no_route(self, parts: list[bytes]) -> str:
        """Return the sentence for a path of these segments, with the names that it may have meant."""
        if self._names is None:
            self._names = SimilarNames([route.name for route in self.routes])
        wanted = [b"/".join(parts[1 : depth + 1]).decode("ascii") for depth in self._depths if depth < len(parts)]
        shown = self._names.nearest(wanted)
        are_all = len(shown) == len(self.routes)
        listed = ", ".join(f"/{name}" for name in (sorted(shown) if are_all else shown)) or "none"
        if are_all:
            return f"no route for this path; the routes are: {listed}"
        which = "the nearest" if self._names.has_like(wanted, shown) else "some"
        return f"no route for this path; of {len(self.routes)} routes {which} are: {listed}"
