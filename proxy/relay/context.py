"""What is kept ready for each route and each path, so that a request makes as few objects as possible."""

from __future__ import annotations

from proxy.http2.events import FieldLine
from proxy.observe.exchange import RouteObservers
from proxy.relay.signing import token_line
from proxy.restate import classify
from proxy.routes import Route
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.slot import Slot
from proxy.upstream.origin_pool import OriginPool

__all__ = ["Destination", "RouteContext"]


class RouteContext:
    """One route of a snapshot: its token slot, its origin's pool, its observers, and the field lines that it adds."""

    __slots__ = (
        "_token",
        "_token_line",
        "authority",
        "exchanges",
        "is_open",
        "key",
        "observers",
        "pool",
        "retired",
        "route",
        "scheme",
        "slot",
        "used",
    )

    def __init__(
        self,
        route: Route,
        key: TokenKey,
        slot: Slot | None,
        pool: OriginPool,
        observers: RouteObservers,
    ) -> None:
        self.route = route
        self.key = key
        """Of its tokens."""
        self.slot = slot
        """Of its token; None on a route that is not signed."""
        self.pool = pool
        """Where its connections are."""
        self.observers = observers
        """Who is told of its exchanges."""
        self.is_open = route.is_open
        """Whether a deployment has named it, not the settings."""
        self.used = False
        """Whether an exchange has begun with it since it was looked at last; of an open route only."""
        self.exchanges = 0
        """Exchanges under way that began with this context."""
        self.retired = False
        """Whether the snapshot that it belongs to has been replaced."""
        self.scheme: FieldLine = (b":scheme", route.origin.scheme.encode(), False)
        self.authority: FieldLine = (b":authority", route.authority, False)
        self._token: Token | None = None
        self._token_line: FieldLine | None = None

    def token_line(self, token: Token) -> FieldLine:
        """Return the line that carries this token; the same object for the same token."""
        line = self._token_line
        if token is not self._token or line is None:
            self._token = token
            self._token_line = line = token_line(token.authorization)
        return line


class Destination:
    """Where a path leads: its route, the `:path` line to send there, and what a GET and a POST of it are."""

    __slots__ = ("context", "get_kind", "path", "post_kind")

    def __init__(self, context: RouteContext, path: bytes, upstream_path: bytes) -> None:
        self.context = context
        self.path: FieldLine = (b":path", upstream_path, False)
        self.get_kind = classify(b"GET", path)
        self.post_kind = classify(b"POST", path)
