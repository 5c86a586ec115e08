"""An admin plane that shows a worker with a few routes, one of which is not well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from proxy.admin import AdminPlane
from proxy.errors import TokenTimeout
from proxy.observe.health import RouteHealth
from proxy.observe.history import INTERVALS
from proxy.observe.live import OpenRoute, OpenUse, Queues, TokenState
from proxy.observe.metrics import Metrics
from proxy.routes import OTHER, AllowLists, OpenRoutes, Origin, Route
from proxy.routes.open_routes import IMPERSONATE_FIELD
from proxy.tokens.model import Token, TokenKey
from tests.support.live import StillState
from tests.support.observed import Observed

__all__ = ["EVIL", "HOSTS", "LISTS", "ROUTES", "stage"]

EVIL = "<script>document.title = 'evil'</script>"
INVOKER = "restate-invoker@my-project.iam.gserviceaccount.com"


def _route(name: str, *, host: str = "", **more: object) -> Route:
    host = host or f"{name.replace('/', '-')}-123456789012.europe-west1.run.app"
    return Route(name=name, origin=Origin("https", host, 443), **more)  # type: ignore[arg-type] # free keywords


ROUTES = (
    _route("greeter"),
    _route("team/orders", impersonate=INVOKER, delegates=("relay@my-project.iam.gserviceaccount.com",)),
    _route(
        "payments", impersonate=INVOKER, host="payments.example.com", audience="https://payments.example.com/" + EVIL
    ),
    _route("broken", impersonate="missing@my-project.iam.gserviceaccount.com"),
    _route("open", signed=False),
)


LISTS = AllowLists(
    ("*-123456789012.europe-west1.run.app", "search.example.com"),
    (INVOKER, "other@my-project.iam.gserviceaccount.com"),
    ("search.example.com=https://search-123456789012.europe-west1.run.app/" + EVIL,),
)
HOSTS = tuple(f"{name}-123456789012.europe-west1.run.app" for name in ("cart", "denied"))
"""Of open routes: one is well, one is not."""


def _open(metrics: Metrics, health: RouteHealth, live: StillState, now: float) -> None:
    """Have deployments name hosts."""
    live.lists = LISTS
    token = TokenState(INVOKER, now - 600, now + 3000)
    for host in HOSTS:
        found = OpenRoutes(LISTS).route(host, ((IMPERSONATE_FIELD.encode(), INVOKER.encode()),))
        counted, noted = metrics.route(found), health.route(found)
        for request in range(40):
            counted.started(Observed())
            counted.ended(Observed(), 403 if host == HOSTS[1] else 200, 0.004 * (1 + request % 23))
        if host == HOSTS[1]:
            noted.error_response(Observed(status=403, principal=INVOKER), [], b"")
    audience = LISTS.audiences[0].partition("=")[2]
    delegates = ("relay@my-project.iam.gserviceaccount.com",)
    live.opened = (
        OpenRoute(f"https://{HOSTS[0]}", (OpenUse(HOSTS[0], True, f"https://{HOSTS[0]}", INVOKER, (), token),)),
        OpenRoute(f"https://{HOSTS[1]}", (OpenUse(HOSTS[1], True, f"https://{HOSTS[1]}", INVOKER, (), token),)),
        OpenRoute(
            OTHER,
            (
                OpenUse("search.example.com", True, audience, INVOKER, delegates, None),
                OpenUse("search.example.com", True, "https://search.example.com", None, (), token),
                OpenUse("public-123456789012.europe-west1.run.app", False, "", None, (), None),
            ),
        ),
    )


@dataclass
class Started:
    """A worker that serves."""

    started: bool = True
    draining: bool = False


@asynccontextmanager
async def stage(
    *, with_open: bool = False, tokens: int = 3, problems: tuple[str, ...] = (), need_restart: tuple[str, ...] = ()
) -> AsyncIterator[AdminPlane]:
    """Serve the page of a worker that has had some traffic; `with_open` on open routes, too.

    The tokens of three routes have been minted, and those of the first `tokens` are kept.
    `problems` are those of the last reload, `need_restart` the settings that the one before could not change.
    """
    now = time.time()
    metrics = Metrics("nghttp2 1.52.0", credentials_kind=lambda: "metadata")
    health = RouteHealth(metrics)
    observers = [(metrics.route(route), health.route(route)) for route in ROUTES]
    if need_restart:
        metrics.settings_reloaded(need_restart)
    if problems:
        metrics.settings_refused(problems)
    live = StillState(ROUTES, queued_octets=5 << 20, queued_octets_limit=256 << 20)
    live.queues = Queues(3, 4 << 20, 3 << 20, Counter(greeter=5 << 20), Counter({"team/orders": 7}))
    live.waiting, live.waiting_clients, live.to_services = 7, 2, 1 << 20
    if with_open:
        _open(metrics, health, live, now)
    plane = AdminPlane("127.0.0.1:0", Started(), metrics, health, live)
    for interval in range(INTERVALS):
        for number, (counted, _) in enumerate(observers[:2]):
            for request in range(20 + 7 * ((interval * (number + 3)) % 11)):
                counted.started(Observed())
                counted.ended(Observed(), 500 if (request + interval) % 97 == 0 else 200, 0.004 * (1 + request % 23))
        for _ in plane.history.sample():
            pass
    for route, minutes in zip(ROUTES[:3], (18, 40, 58), strict=True):
        if len(live.tokens) < tokens:
            live.tokens[route.name] = TokenState(INVOKER, now - 60 * minutes, now + 3600 - 60 * minutes)
        key = TokenKey.for_route(route)
        metrics.minted(Token(key=key, authorization=b"Bearer x", expires_at=now, principal=None), 0.2, False)
        metrics.upstream_opened(str(route.origin), 100)
        metrics.upstream_going_away(str(route.origin), 0, b"")
    forbidden = Observed(status=403, principal=INVOKER)
    for _ in range(3):
        observers[2][1].error_response(forbidden, [], b"")
    slow = TokenTimeout("no ID token for the route broken within 5 s; it will be tried again " + EVIL)
    health.mint_failed(TokenKey.for_route(ROUTES[3]), slow, 5.0, False)
    observers[3][1].local_reply(Observed(status=503), slow)
    observers[0][0].started(Observed())
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()
