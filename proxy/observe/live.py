"""State that other rooms keep anyway, and metrics and status page read when they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from proxy.routes import Route

__all__ = ["Live", "OriginState", "TokenState"]


class TokenState(NamedTuple):
    """The token that a route's requests are signed with now. Its value is not among this."""

    principal: str | None
    """The account that it names."""
    issued_at: float | None
    """`iat`, in seconds since the epoch; None if it has none."""
    expires_at: float
    """`exp`, in seconds since the epoch."""


class OriginState(NamedTuple):
    """The connections to one origin."""

    origin: str
    """Its text."""
    waiting: int
    """Requests that wait for a stream."""
    opening: int
    """Connections that are being opened."""


class Live(Protocol):
    """What can be asked of a worker."""

    @property
    def draining(self) -> bool:
        """True if new requests are refused because the sidecar is shutting down."""

    @property
    def queued_octets(self) -> int:
        """Octets queued for readers that are slower than their senders."""

    @property
    def queued_octets_limit(self) -> int:
        """How many there may be (`queued_octets`)."""

    def routes(self) -> Sequence[Route]:
        """Return the routes for new requests."""

    def token(self, route: Route) -> TokenState | None:
        """Return the token of a route that requests may be signed with now; None if there is none."""

    def origin(self, route: Route) -> OriginState | None:
        """Return the state of the route's connections; None if the route is gone."""
