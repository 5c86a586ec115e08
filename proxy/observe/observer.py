"""What may be observed beside exchanges: mints, connections and reloads; and how several observers are told as one.

A new kind of observer (metrics, log lines, traces) is one file with a subclass of `Observer`, and one line in
`proxy.worker`, which makes the list of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Protocol

import structlog

from proxy.errors import Failure
from proxy.observe.exchange import ExchangeObserver, RouteObservers
from proxy.routes import Route

__all__ = [
    "DownstreamObserver",
    "MintObserver",
    "ObservedKey",
    "ObservedToken",
    "Observer",
    "Observers",
    "SettingsObserver",
    "UpstreamObserver",
]

_log: Final = structlog.get_logger("observe")


class ObservedKey(Protocol):
    """What a token is minted for."""

    @property
    def audience(self) -> str:
        """The `aud` claim."""

    @property
    def impersonate(self) -> str | None:
        """Account that is impersonated; None for the ambient identity."""

    @property
    def delegates(self) -> tuple[str, ...]:
        """Accounts between the ambient identity and `impersonate`, nearest first."""


class ObservedToken(Protocol):
    """What observers may read of a token: not its value."""

    @property
    def key(self) -> ObservedKey:
        """What it was minted for."""

    @property
    def principal(self) -> str | None:
        """Account that it is made out to; None if it does not say."""

    @property
    def expires_at(self) -> float:
        """Its `exp` claim, in seconds since the epoch."""

    @property
    def local_expiry(self) -> float:
        """The time of this machine's clock when it expires, in seconds since the epoch."""

    @property
    def clock_ahead_seconds(self) -> float:
        """How far this machine's clock was ahead of Google's at the mint; 0 if right or unknown."""


class MintObserver:
    """Observes the minting of tokens. `uncached` tells a mint for one discovery alone, whose token is not cached."""

    def minted(self, token: ObservedToken, seconds: float, uncached: bool) -> None:
        """A token was received after so many seconds."""

    def mint_failed(self, key: ObservedKey, failure: Failure, seconds: float, uncached: bool) -> None:
        """A mint failed after so many seconds."""


class UpstreamObserver:
    """Observes connections to upstreams. `origin` is the text of the upstream's origin."""

    def upstream_opened(self, origin: str, max_concurrent_streams: int) -> None:
        """A connection is usable; `upstream_closed` follows exactly once."""

    def upstream_closed(self, origin: str) -> None:
        """It is gone."""

    def upstream_retired(self, origin: str) -> None:
        """It takes no more streams."""

    def upstream_not_connected(self, origin: str, failure: Failure) -> None:
        """An attempt to connect failed while other connections may still serve the requests that wait."""

    def upstream_going_away(self, origin: str, code: int, debug: bytes) -> None:
        """The upstream sent GOAWAY. NO_ERROR is usual: Google ends every connection after an hour or so."""

    def response_refused(self, origin: str, stream_id: int, reason: str) -> None:
        """A response broke a rule of HTTP/2; there are few reasons."""


class DownstreamObserver:
    """Observes connections of clients."""

    def downstream_opened(self) -> None:
        """A client's connection is served, by HTTP/2 or HTTP/1.1; `downstream_closed` follows exactly once."""

    def downstream_closed(self) -> None:
        """It is gone."""

    def connection_refused(self, reason: str) -> None:
        """A connection was closed because there were too many, or for want of a request.

        `reason` is `open-files` or `max-connections`; for one that gave way to another, `unused`, `idle` or
        `most-connections`; for one whose first request did not come in time, `no-request`.
        """

    def downstream_cut_off(self, client: str, code: int, reason: str) -> None:
        """A client's HTTP/2 connection is ended because of what the client does; `code` is the error code it is told.

        `client` is its address. There are few reasons.
        """

    def handshake_failed(self, client: str, reason: str) -> None:
        """The TLS handshake of a client failed, for a reason in the words of OpenSSL; `client` is its address."""

    def request_refused(self, reason: str, details: dict[str, Any]) -> None:
        """A request broke a rule of HTTP before it had a route.

        There are few reasons. `details` say on which protocol and stream, and quote nothing of the request.
        """

    def caller_unverified(self, reason: str) -> None:
        """A request was refused because no known Restate has signed it. There are few reasons."""


class SettingsObserver:
    """Observes reloads of the settings."""

    def settings_reloaded(self, need_restart: tuple[str, ...]) -> None:
        """Settings were read again, and are in force but for those in `need_restart`, which keep their old values."""

    def settings_refused(self, problems: tuple[str, ...]) -> None:
        """Settings cannot be used or read: those in force stay. Each problem is a sentence with its place."""


class Observer(MintObserver, UpstreamObserver, DownstreamObserver, SettingsObserver):
    """One kind of observation. Each event does nothing unless it is overridden."""

    def route(self, route: Route | None) -> ExchangeObserver | None:
        """Return the observer of this route's exchanges; None if there is none.

        Asked once for a route of a snapshot. `route` is None for exchanges that have no route.
        """
        return None

    def route_removed(self, route: Route) -> None:
        """No route of this name is left, nor any exchange that began with it."""

    async def close(self) -> None:
        """Finish what is under way, within about a second: the process is ending."""


_EVENTS: Final = [name for name in dir(Observer) if not name.startswith("_") and name not in ("close", "route")]


class Observers(Observer):
    """Tells every observer of a list. A defect in one is logged, and the others are told all the same."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        # A method for each event, which tells it to all.
        for event in _EVENTS:
            setattr(self, event, partial(self._tell, event))

    async def close(self) -> None:
        """Close all."""
        for observer in self._observers:
            await observer.close()

    def exchanges(self, route: Route | None) -> RouteObservers:
        """Return who is told of the exchanges of this route."""
        each = (observer.route(route) for observer in self._observers)
        return RouteObservers(one for one in each if one is not None)

    def _tell(self, event: str, *about: object) -> None:
        for observer in self._observers:
            try:
                getattr(observer, event)(*about)
            except Exception as exc:  # noqa: BLE001 - observing must not harm what is observed
                _log.error("internal error in an observer", observer=type(observer).__name__, exc_info=exc)
