"""The examination of routes: all steps in order for each, all routes at the same time.

A route without credentials is still looked at from outside, and one that cannot be reached still shows whether there
is a token for it: who mends a set-up wants to know everything at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from proxy import __version__
from proxy.clock_skew import skew_seconds
from proxy.cloud_run.findings import RequestInfo
from proxy.cloud_run.response import Response
from proxy.connection.budget import Budget
from proxy.connection.protocol import Flusher
from proxy.doctor.connecting import ConnectionCheck
from proxy.doctor.diagnosis import clock_step, discovery_step, private_step
from proxy.doctor.identity import check_credentials, mint
from proxy.doctor.report import Outcome, RouteReport, Step, StepName, as_sentence, skipped
from proxy.doctor.sending import send_request
from proxy.errors import Failure, UpstreamSaturated
from proxy.http2.choice import engine_choice
from proxy.http2.engine import Limits
from proxy.http2.events import Fields
from proxy.network.resolver import Resolver
from proxy.relay.signing import method_line, signed_head, token_line
from proxy.restate import DISCOVERY_ACCEPT
from proxy.routes import Route
from proxy.settings import Settings
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import Connector

__all__ = ["Doctor", "Progress"]

Progress = Callable[[Route, StepName], None]
"""Is told which step of a route begins."""

_QUIET: Final[Progress] = lambda route, step: None  # noqa: E731 - a default that says nothing


class Doctor:
    """Examines routes with the settings and the environment that the sidecar would have.

    `answer_timeout_seconds` is how long the service may take over one answer; a cold start takes its time. Raises
    EngineUnavailable. An async context manager; it is used up at its end.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        answer_timeout_seconds: float = 30.0,
        progress: Progress = _QUIET,
    ) -> None:
        limits = Limits(max_field_section_octets=settings.max_field_section)
        make = engine_choice(settings.http2_engine).make
        self._google = GoogleMint(environment=environment, clock=clock)
        self._tokens = TokenSource(self._google, clock=clock, mint_timeout_seconds=settings.mint_timeout)
        resolver = Resolver()
        self._connector = Connector(
            lambda handler: make(client=True, limits=limits, handler=handler),
            Budget(settings.queued_octets),
            Flusher(asyncio.get_running_loop()),
            timing=Timing(),
            upstream_ca=settings.upstream_ca,
            connect_timeout_seconds=settings.connect_timeout,
            resolver=resolver,
        )
        self._connection_check = ConnectionCheck(
            self._connector, resolver, settings.upstream_ca, settings.connect_timeout
        )
        self._environment = environment
        self._clock = clock
        self._mint_timeout_seconds = settings.mint_timeout
        self._answer_timeout_seconds = answer_timeout_seconds
        self._progress = progress

    async def __aenter__(self) -> Doctor:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._google.close)
            closing.push_async_callback(self._tokens.close)

    async def check_routes(self, routes: Sequence[Route], tell: Callable[[RouteReport], None]) -> list[RouteReport]:
        """Return the reports in the order of `routes`; `tell` gets each as soon as it and all before it are there."""
        reports = []
        async with asyncio.TaskGroup() as group:
            for task in [group.create_task(self.check_route(route)) for route in routes]:
                reports.append(await task)
                tell(reports[-1])
        return reports

    async def token(self, route: Route) -> Token:
        """Return a new token for a route that has one; raises a leaf of TokenFailure."""
        return await self._tokens.mint_uncached(TokenKey.for_route(route))

    async def check_route(self, route: Route) -> RouteReport:
        """Return what was found; nothing that is wrong with a route is raised."""
        identity, token = await self._identify(route)
        self._progress(route, "dns")
        reached = await self._connection_check.reach(route.origin, self._clock())
        asked: tuple[Step, ...]
        if reached.connection is None:
            asked = _not_asked("not reached: there is no connection")
        else:
            requests = _RouteRequests(self._connector, reached.connection, route, self._answer_timeout_seconds)
            try:
                asked = await self._ask(requests, token)
            finally:
                await requests.leave()
        return RouteReport(
            route=route.name,
            url=f"{route.origin}{route.base_path}",
            audience=route.audience if route.signed else None,
            steps=(*identity, *reached.steps, *asked),
        )

    async def _identify(self, route: Route) -> tuple[tuple[Step, Step], Token | None]:
        if not route.signed:
            why = "not needed: the route adds no token (gcp_id_token = false)"
            return (skipped("credentials", why), skipped("token", why)), None
        self._progress(route, "credentials")
        credentials = await check_credentials(self._google, self._environment, self._mint_timeout_seconds)
        if credentials.who is None:
            return (credentials.step, skipped("token", "not reached: there are no credentials")), None
        self._progress(route, "token")
        step, token = await mint(self._tokens, route, credentials.who, self._clock())
        return (credentials.step, step), token

    async def _ask(self, requests: _RouteRequests, token: Token | None) -> tuple[Step, Step, Step]:
        route = requests.route
        skew: float | None = None
        if route.signed:
            self._progress(route, "private")
            response = await requests.get(None)
            if isinstance(response, Response):
                skew = skew_seconds(response.fields.get("date"), self._clock())
                private = private_step(response, RequestInfo(route=route))
            else:
                private = skipped("private", f"cannot be told: {response.text} to an unsigned request")
        else:
            private = skipped("private", "not asked: the route adds no token")
        if route.signed and token is None:
            return private, clock_step(skew), skipped("discovery", "not reached: there is no token")
        self._progress(route, "discovery")
        response = await requests.get(token)
        if not isinstance(response, Response):
            return private, clock_step(skew), response
        if skew is None:
            skew = skew_seconds(response.fields.get("date"), self._clock())
        principal = token.principal if token is not None else None
        request = RequestInfo(route=route, principal=principal, skew_seconds=skew)
        return private, clock_step(skew), discovery_step(response, request)


class _RouteRequests:
    """Requests to one route, on one connection while it lasts."""

    def __init__(
        self, connector: Connector, connection: UpstreamConnection, route: Route, timeout_seconds: float
    ) -> None:
        self.route = route
        self._connector = connector
        self._connection = connection
        self._timeout_seconds = timeout_seconds

    async def get(self, token: Token | None) -> Response | Step:
        """Return the answer to a discovery, with this token or none; a failed step `discovery` where none came."""
        try:
            if self._connection.count_free_streams() <= 0:
                await self.leave()
                self._connection = await self._connector.connect(self.route.origin)
            if self._connection.count_free_streams() <= 0:
                raise UpstreamSaturated(f"{self.route.origin} lets no stream be opened; try again, it may be starting")
            return await send_request(self._connection, self._head(token), self._timeout_seconds)
        except TimeoutError:
            return _no_answer(
                f"no answer within {self._timeout_seconds:g} s",
                "Is the container starting slowly, or stuck? Look at its logs; --timeout waits longer.",
            )
        except Failure as failure:
            return _no_answer("no answer came", as_sentence(str(failure)))

    async def leave(self) -> None:
        """End the connection: say so, and do not wait for the peer to agree."""
        self._connection.retire("examined")
        self._connection.abort()
        await self._connection.gone

    def _head(self, token: Token | None) -> Fields:
        route = self.route
        return signed_head(
            [
                (b"accept", DISCOVERY_ACCEPT, False),
                (b"user-agent", f"cloudrun-sidecar/{__version__} (check)".encode(), False),
            ],
            method_line(b"GET"),
            (b":scheme", route.origin.scheme.encode(), False),
            (b":authority", route.authority, False),
            (b":path", f"{route.base_path}/discover".encode(), False),
            token_line(token.authorization) if token is not None else None,
        )


def _not_asked(why: str) -> tuple[Step, Step, Step]:
    return skipped("private", why), skipped("clock", why), skipped("discovery", why)


def _no_answer(text: str, remedy: str) -> Step:
    return Step(name="discovery", outcome=Outcome.FAILED, code="no-answer", text=text, remedy=remedy)
