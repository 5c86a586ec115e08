"""The state of a worker that serves nothing, for tests of what shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.observe.live import OriginState, TokenState
from proxy.routes import Route

__all__ = ["StillState"]


@dataclass
class StillState:
    """What `observe.live.Live` promises, with values that a test sets."""

    known: Sequence[Route] = ()
    draining: bool = False
    queued_octets: int = 0
    queued_octets_limit: int = 1 << 20
    tokens: dict[str, TokenState] = field(default_factory=dict)
    waiting: int = 0
    opening: int = 0

    def routes(self) -> Sequence[Route]:
        return self.known

    def token(self, route: Route) -> TokenState | None:
        return self.tokens.get(route.name)

    def origin(self, route: Route) -> OriginState | None:
        return OriginState(str(route.origin), self.waiting, self.opening)
