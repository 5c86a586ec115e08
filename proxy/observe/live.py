"""State that other rooms keep, and that metrics and status page read when they are requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxy.routes import AllowLists, Route

__all__ = ["Live", "OpenRoute", "OpenUse", "OriginState", "Queues", "TokenState"]


class TokenState(NamedTuple):
    """The token that a route's requests are signed with now. Its value is not among this."""

    principal: str | None
    """The account that it names."""
    issued_at: float | None
    """`iat`, in seconds since the epoch; None if it has none."""
    expires_at: float
    """`exp`, in seconds since the epoch."""


class OpenUse(NamedTuple):
    """How deployments at one host have their requests signed."""

    host: str
    """Name of the host."""
    signed: bool
    """Whether a token is added."""
    audience: str
    """The `aud` of the token."""
    impersonate: str | None
    """Account that the token is made out to; None for the ambient identity."""
    delegates: tuple[str, ...]
    """Accounts between the ambient identity and `impersonate`, nearest first."""
    token: TokenState | None
    """The token that such requests are signed with now."""


class OpenRoute(NamedTuple):
    """What deployments have named: a host with a label of its own in metrics, or all the others together."""

    label: str
    """The origin, or `OTHER`."""
    uses: Sequence[OpenUse]
    """Those that are kept ready; empty if none was used lately."""

    @property
    def has_tokens(self) -> bool:
        """True if no use lacks a token."""
        return bool(self.uses) and all(use.token is not None or not use.signed for use in self.uses)


class OriginState(NamedTuple):
    """The connections to one origin."""

    origin: str
    """Its label in metrics."""
    opening: int = 0
    """Connections that are being opened."""
    waiting: int = 0
    """Requests that wait for a stream."""
    waiting_clients: int = 0
    """Connections of clients from which these requests came."""
    queued_octets: int = 0
    """Octets of requests that the service has not taken yet."""
    cancels_held_back: int = 0
    """Streams of cancelled requests that are reset later, because many were cancelled."""

    def plus(self, other: OriginState) -> OriginState:
        """Return the sum of two states of the same origin."""
        return OriginState(self.origin, *(one + more for one, more in zip(self[1:], other[1:], strict=True)))


@dataclass(slots=True)
class Queues:
    """What waits in a worker, by owner. Octets are those that `queued_octets` limits."""

    client_connections: int = 0
    """Connections of clients for which octets are queued."""
    client_octets: int = 0
    """These octets."""
    largest_client_octets: int = 0
    """Those of the connection with the most."""
    route_octets: Counter[str] = field(default_factory=Counter)
    """Octets of the exchanges that have not ended, of both directions, by the label of the route."""
    route_waiting: Counter[str] = field(default_factory=Counter)
    """Requests that wait for a token, a connection or a stream, by the label of the route."""


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

    def allowed(self) -> AllowLists | None:
        """Return what deployments may choose; None if there are no open routes."""

    def open_routes(self) -> Iterator[OpenRoute]:
        """Yield what deployments have named; there is a limit on their number, and on that of their uses."""

    def token(self, route: Route) -> TokenState | None:
        """Return the token of a route that requests may be signed with now; None if there is none."""

    def origins(self) -> Iterator[OriginState | None]:
        """Yield the origins, one for each label; None now and then in between, so that others may run."""

    def count_queues(self, queues: Queues) -> Iterator[None]:
        """Add what is queued to `queues`; yields now and then, so that others may run."""
