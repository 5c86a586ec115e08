"""Which route a request takes. Pure.

A route's name is its path prefix, one or more segments: `/greeter/discover` belongs to the route `greeter`, and goes to
the route's URL with the prefix replaced by the URL's own base path. The longest prefix wins; a route named `""` takes
what is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from proxy.errors import PathRefused, RouteNotFound
from proxy.quoting import quoted
from proxy.routes.names import SimilarNames
from proxy.routes.paths import AMBIGUOUS_PATH
from proxy.routes.route import Route

__all__ = ["Match", "RouteTable"]


class Match(NamedTuple):
    """The route of a request, and the path (with query) that its upstream is asked for."""

    route: Route
    """The route with the longest prefix."""
    path: bytes
    """What the upstream is asked for, with the query."""


class RouteTable:
    """All routes, looked up by path. Routes have distinct names; `ValueError` names one that is there twice."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: tuple[Route, ...] = tuple(routes)
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
        bare, mark, query = path.partition(b"?")
        if not bare.startswith(b"/") or AMBIGUOUS_PATH.search(bare):
            raise PathRefused(
                "this path is not forwarded: it has dot segments, doubled, backward or encoded slashes, "
                "or octets that a path may not hold"
            )
        parts = bare.split(b"/")
        for depth in self._depths:
            found = self._by_prefix.get(b"/".join(parts[: depth + 1]))
            if found is not None and len(parts) > depth:
                route, base = found
                rest = b"/".join(parts[depth + 1 :])
                target = base + b"/" + rest if len(parts) > depth + 1 else base or b"/"
                return Match(route, target + mark + query)
        raise RouteNotFound(self._no_route(parts))

    def _no_route(self, parts: list[bytes]) -> str:
        """Return the sentence for a path of these segments, with the names that it may have meant."""
        if self._names is None:
            self._names = SimilarNames([route.name for route in self.routes])
        wanted = [b"/".join(parts[1 : depth + 1]).decode("ascii") for depth in self._depths if depth < len(parts)]
        shown = self._names.nearest(wanted)
        listed = ", ".join(f"/{name}" for name in shown) or "none"
        others = len(self.routes) - len(shown)
        if not others:
            return f"no route for this path; the routes are: {listed}"
        return f"no route for this path; of {len(self.routes)} routes the nearest are: {listed}"
