"""The check of subjects: all steps in order for each one, many at the same time. A subject is a route, named or open.

One run reports all problems: without credentials the connection is still checked, and without a connection the token is
still minted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy import __version__
from proxy.clock_skew import skew_seconds
from proxy.cloud_run import gcloud
from proxy.cloud_run.findings import RequestInfo
from proxy.cloud_run.response import Response
from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.doctor.connecting import ConnectionCheck
from proxy.doctor.diagnosis import clock_step, discovery_step, private_step
from proxy.doctor.identity import check_credentials, mint
from proxy.doctor.report import RouteReport, Step, StepName, as_problem, as_remedy, failed, skipped
from proxy.doctor.sending import send_request
from proxy.errors import Failure, UpstreamRefusedStream, UpstreamSaturated
from proxy.http2.choice import engine_choice
from proxy.http2.engine import Limits
from proxy.http2.events import Fields
from proxy.network.http_proxy import parse_http_proxy
from proxy.network.resolver import Resolver
from proxy.observe.observer import Observers, UpstreamObserver
from proxy.relay.context import Destination, RouteContext
from proxy.relay.signing import end_to_end, method_line, signed_head
from proxy.relay.snapshot import Snapshot
from proxy.restate import DISCOVERY_ACCEPT
from proxy.routes import Route
from proxy.settings.model import Settings
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import Connector
from proxy.upstream.pool import Pool

__all__ = ["Doctor", "Progress", "Subject"]

Progress = Callable[[str, StepName], None]
"""Called with the name of the subject and the step that begins."""

_MOST_AT_ONCE: Final = 64
"""Subjects. Thousands would find the limits of this machine (open files, CPU for TLS) and of the metadata server."""

_NO_PROGRESS: Final[Progress] = lambda name, step: None  # noqa: E731 - a default


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is checked: the requests of one deployment, as Restate makes them."""

    name: str
    """Name of the route, or host and base path of an open route; what the report calls it."""
    path: str
    """Path of the deployment's URL, without a slash at its end."""
    authority: str = ""
    """The host that requests name as their authority; `""` if the path says where they go."""
    headers: tuple[tuple[str, str], ...] = ()
    """The additional headers of the deployment, names in lower case."""

    @classmethod
    def of_route(cls, route: Route) -> Subject:
        """Return the subject that is a named route."""
        return cls(name=route.name, path=f"/{route.name}" if route.name else "")


class Doctor:
    """Checks routes with the settings and the environment that the sidecar would have.

    `answer_timeout_seconds` is the deadline of one response, cold start included. Raises EngineUnavailable. An async
    context manager that can be entered once.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        answer_timeout_seconds: float = 30.0,
        progress: Progress = _NO_PROGRESS,
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
            upstream_proxy=parse_http_proxy(settings.upstream_proxy) if settings.upstream_proxy is not None else None,
            connect_timeout_seconds=settings.connect_timeout,
            resolver=resolver,
        )
        pool = Pool(self._connector.connect, UpstreamObserver())
        # The one that the dispatcher would have: what is sent here is what the relay would send.
        self._snapshot = Snapshot(settings.route_table(), self._tokens, pool, Observers([]), lambda: None)
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
        try:
            await self._tokens.close()
        finally:
            await self._google.close()

    async def check_all(
        self, subjects: Sequence[Subject], on_report: Callable[[RouteReport], None]
    ) -> list[RouteReport]:
        """Return the reports in the order of `subjects`; `on_report` gets each in that order, as soon as possible."""
        reports = []
        turns = asyncio.Semaphore(_MOST_AT_ONCE)

        async def check(subject: Subject) -> RouteReport:
            async with turns:
                return await self.check(subject)

        async with asyncio.TaskGroup() as group:
            for task in [group.create_task(check(subject)) for subject in subjects]:
                reports.append(await task)
                on_report(reports[-1])
        return reports

    async def token(self, route: Route) -> Token:
        """Return a new token for a signed route; raises a leaf of TokenFailure."""
        return await self._tokens.mint_uncached(TokenKey.for_route(route))

    async def check(self, subject: Subject) -> RouteReport:
        """Return the report of a subject; a problem is reported, not raised.

        Raises a leaf of RequestRefused if no route takes its requests, or if its headers are not allowed.
        """
        lines: Fields = [(name.encode(), value.encode("latin-1"), False) for name, value in subject.headers]
        head: Fields = [(b":authority", subject.authority.encode(), False), *lines]
        destination = self._snapshot.destination(f"{subject.path}/discover".encode(), head, bool(subject.authority))
        route = destination.context.route
        identity, token = await self._identity_steps(destination.context, subject.name)
        self._progress(subject.name, "dns")
        connected = await self._connection_check.connect(route.origin, self._clock())
        requested: tuple[Step, ...]
        if connected.connection is None:
            why = "not reached: there is no connection"
            requested = skipped("private", why), skipped("clock", why), skipped("discovery", why)
        else:
            requests = _RouteRequests(
                self._connector, connected.connection, destination, end_to_end(lines), self._answer_timeout_seconds
            )
            try:
                requested = await self._request_steps(requests, token, subject.name)
            finally:
                await requests.close()
        return RouteReport(
            route=subject.name,
            url=f"{route.origin}{destination.path[1].decode().removesuffix('/discover')}",
            audience=route.audience if route.signed else None,
            steps=(*identity, *connected.steps, *requested),
        )

    async def _identity_steps(self, context: RouteContext, name: str) -> tuple[tuple[Step, Step], Token | None]:
        route = context.route
        if not route.signed:
            said = (
                "the deployment wants no token" if route.is_open else "the route adds no token (gcp_id_token = false)"
            )
            why = f"not needed: {said}"
            return (skipped("credentials", why), skipped("token", why)), None
        self._progress(name, "credentials")
        credentials, info = await check_credentials(self._google, self._environment, self._mint_timeout_seconds)
        if info is None:
            return (credentials, skipped("token", "not reached: there are no credentials")), None
        self._progress(name, "token")
        step, token = await mint(self._tokens, context.key, route, info, self._clock())
        return (credentials, step), token

    async def _request_steps(self, requests: _RouteRequests, token: Token | None, name: str) -> tuple[Step, Step, Step]:
        route = requests.route
        skew: float | None = None
        if route.signed:
            self._progress(name, "private")
            response = await requests.get(None)
            if isinstance(response, Response):
                skew = skew_seconds(response.fields.get("date"), self._clock())
                private = private_step(response, RequestInfo(route=route, path=requests.path))
            else:
                private = skipped("private", f"inconclusive: {response.text} to an unsigned request")
        else:
            private = skipped("private", "not checked: the route adds no token")
        if route.signed and token is None:
            return private, clock_step(skew), skipped("discovery", "not reached: there is no token")
        self._progress(name, "discovery")
        response = await requests.get(token)
        if not isinstance(response, Response):
            return private, clock_step(skew), response
        if skew is None:
            skew = skew_seconds(response.fields.get("date"), self._clock())
        principal = token.principal if token is not None else None
        request = RequestInfo(route=route, path=requests.path, principal=principal, skew_seconds=skew)
        return private, clock_step(skew), discovery_step(response, request)


class _RouteRequests:
    """Requests to one route. They use one connection, and a new one after that has closed."""

    def __init__(
        self,
        connector: Connector,
        connection: UpstreamConnection,
        destination: Destination,
        lines: Fields,
        timeout_seconds: float,
    ) -> None:
        self.route: Route = destination.context.route
        self.path = destination.path[1].decode()
        self._destination = destination
        self._lines = lines
        self._connector = connector
        self._connection = connection
        self._timeout_seconds = timeout_seconds

    async def get(self, token: Token | None) -> Response | Step:
        """Return the response to a discovery with this token or without one; a failed step if no response came."""
        try:
            try:
                return await self._send(token)
            except UpstreamRefusedStream:
                # Nothing was processed: a GOAWAY crossed the request, or an instance was full. The relay sends again.
                return await self._send(token)
        except TimeoutError:
            text = f"no answer within {self._timeout_seconds:g} s"
            remedy = "Is the container starting slowly, or stuck? Look at its logs; --timeout sets a longer deadline."
        except Failure as failure:
            text, remedy = as_problem(failure), as_remedy(failure)
        commands = (gcloud.logs(gcloud.service_of(self.route.origin.host)),)
        return failed("discovery", "no-answer", text, remedy, commands)

    async def _send(self, token: Token | None) -> Response:
        if self._connection.count_free_streams() <= 0:
            await self.close()
            self._connection = await self._connector.connect(self.route.origin)
        if self._connection.count_free_streams() <= 0:
            raise UpstreamSaturated(
                f"{self.route.origin} allows no streams",
                remedy="it may be starting: check again; otherwise see what stands in front of the service",
            )
        return await send_request(self._connection, self._head(token), self._timeout_seconds)

    async def close(self) -> None:
        """Close the connection: send GOAWAY, and do not wait for the peer."""
        self._connection.retire("checked")
        self._connection.abort()
        await self._connection.gone

    def _head(self, token: Token | None) -> Fields:
        context = self._destination.context
        return signed_head(
            [
                (b"accept", DISCOVERY_ACCEPT, False),
                (b"user-agent", f"cloudrun-sidecar/{__version__} (check)".encode(), False),
                *self._lines,
            ],
            method_line(b"GET"),
            context.scheme,
            context.authority,
            self._destination.path,
            context.token_line(token) if token is not None else None,
        )
