"""The admin port, on aiohttp's server.

=================  ==============================================================================
`/livez`           200 while the process answers
`/startupz`        200 once the listener accepts connections, 503 before
`/readyz`          200 while new requests are accepted, 503 before and while draining
`/readyz?routes`   also 503 while a route has no token because it cannot be minted
`/metrics`         metrics for Prometheus
`/routes`          the routes, each with its upstream and identity, in JSON; those that deployments have named, too
`/status`          the state of the workers and of each route, in JSON
`/openapi.json`    the description of all these paths (OpenAPI 3.1)
`/`                the status page, for people
=================  ==============================================================================

Several workers share the listening socket, and each answers for all of them (`peers`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from pkgutil import get_data
from typing import Final, Protocol

import structlog
from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.admin.guard import Connections, Deadlines, host_check
from proxy.admin.page import CONTENT_SECURITY_POLICY, PAGE
from proxy.admin.peers import Peers
from proxy.admin.slices import in_slices, send_in_slices
from proxy.admin.status import JSON, Status, json_list, open_route_settings, route_settings
from proxy.downstream.binding import SocketFile, UnixAccess, bind_tcp, bind_unix
from proxy.downstream.channel import Channel
from proxy.exit_codes import no_thread
from proxy.network.address import Address, parse_address
from proxy.observe.exposition import CONTENT_TYPE, Exposition
from proxy.observe.health import RouteHealth
from proxy.observe.history import INTERVAL_SECONDS, History
from proxy.observe.live import Live
from proxy.observe.metrics import Metrics
from proxy.observe.process import process_metrics
from proxy.observe.view import View
from proxy.observe.worker_state import WorkerState

__all__ = ["OPENAPI", "PATHS", "AdminPlane", "Health"]

_log: Final = structlog.get_logger("admin")

PATHS: Final = ("/", "/livez", "/readyz", "/startupz", "/metrics", "/routes", "/status", "/openapi.json")
"""All paths of the admin port."""

OPENAPI: Final = (get_data("proxy.admin", "openapi.json") or b"").decode()
"""Their description."""

# Answers are computed at once, so a connection that is still open after this is idle.
_SHUTDOWN_SECONDS: Final = 1.0

_BACKLOG: Final = 128

_OWNER_AND_GROUP: Final = UnixAccess()

_NOTHING_LOADED: Final = "default-src 'none'; frame-ancestors 'none'"


class Health(Protocol):
    """The state of the sidecar that probes ask for."""

    @property
    def started(self) -> bool:
        """True once the listener accepts connections; stays True."""

    @property
    def draining(self) -> bool:
        """True if new requests are refused because the sidecar is shutting down."""


class AdminPlane:
    """Serves `PATHS` at one address from `start` to `close`.

    `allowed_hosts` are names that a request on a loopback address may have in `Host`, beside those of this machine.
    With `bound`, it serves on this listening socket, and closes it; the file of a Unix socket stays. `unix_access` is
    for a Unix socket of its own.
    """

    def __init__(
        self,
        address: str,
        health: Health,
        metrics: Metrics,
        routes_health: RouteHealth,
        live: Live,
        *,
        allowed_hosts: Iterable[str] = (),
        deadlines: Deadlines | None = None,
        bound: socket.socket | None = None,
        unix_access: UnixAccess = _OWNER_AND_GROUP,
    ) -> None:
        self._configured = parse_address(address)
        self._health = health
        self.history = History(metrics)
        """The last minutes, recorded from `start` to `close`."""
        self._own = View(metrics=metrics, health=routes_health, history=self.history, live=live, started_at=time.time())
        """The state of this worker."""
        self._state = WorkerState(metrics, routes_health, live, self.history)
        """The same for other workers."""
        self._peers: Peers | None = None
        self.allowed_hosts = frozenset(allowed_hosts)
        """It may be changed."""
        self._deadlines = deadlines or Deadlines()
        self._bound = bound
        self._unix_access = unix_access
        self._file: SocketFile | None = None
        """That of a Unix socket of its own."""
        self._connections = Connections()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._address = ""
        self._reading_process: asyncio.Task[dict[str, float]] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def join(self, channel: Channel) -> Peers:
        """Show all workers of this one's supervisor from now on; `close` ends it."""
        self._peers = Peers(channel, self._state, self._own.live, self._process_metrics)
        self._peers.start()
        return self._peers

    async def start(self) -> None:
        """Listen at the address: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`. Raises OSError."""
        loop = asyncio.get_running_loop()
        runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS, logger=_quiet_logger()
        )
        await runner.setup()
        try:
            if runner.server is None:
                raise RuntimeError("the runner was set up, and has no server")
            listening = await self._listen()
            self._address = str(Address.of_socket(listening.getsockname()))
            make = self._connections.factory(runner.server)
            self._server = await loop.create_server(make, sock=listening, backlog=_BACKLOG)
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._tasks.append(loop.create_task(self._record_history()))
        self._tasks.append(loop.create_task(self._deadlines.run(runner.server)))

    async def close(self) -> None:
        """Stop listening, and close open connections within about a second. May be called in any state, repeatedly."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._peers is not None:
            await self._peers.close()
        if self._server is not None:
            self._server.close()
        await runner.cleanup()
        if self._file is not None:  # asyncio leaves it before Python 3.13
            self._file.remove()

    @property
    def address(self) -> str:
        """The address it listens on, with the real port if port 0 is configured. Raises RuntimeError before `start`."""
        if self._runner is None:
            raise RuntimeError("the admin plane has not been started")
        return self._address

    async def _listen(self) -> socket.socket:
        if self._bound is not None:
            return self._bound
        if self._configured.path:
            unix = bind_unix(self._configured.path, self._unix_access)
            self._file = SocketFile(self._configured.path)
            unix.listen(_BACKLOG)
            return unix
        # Bound like the listener, so that the same name means the same address.
        bound = await asyncio.to_thread(bind_tcp, self._configured.host, self._configured.port)
        try:
            bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
        return bound

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[
                self._connections.middleware,
                self._deadlines.middleware,
                host_check(lambda: self.allowed_hosts),
            ]
        )
        application.router.add_get("/", self._page)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/startupz", self._startupz)
        application.router.add_get("/metrics", self._exposition)
        application.router.add_get("/routes", self._list_routes)
        application.router.add_get("/status", self._show_status)
        application.router.add_get("/openapi.json", self._openapi)
        application.router.add_route("*", "/{unknown:.*}", self._unknown)
        application.on_response_prepare.append(_set_fields)
        return application

    async def _record_history(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                async for _ in in_slices(self.history.sample()):
                    pass
            except Exception as exc:  # noqa: BLE001 - the next interval may be recorded
                _log.error("internal error: an interval of the history is missing", exc_info=exc)

    def _readiness(self) -> tuple[bool, str]:
        if self._health.draining:
            return False, "draining: live exchanges finish, new ones are refused"
        if not self._health.started:
            return False, "starting: not listening yet"
        return (True, "ready: taking requests") if self._peers is None else self._peers.readiness

    async def _livez(self, _request: web.Request) -> web.Response:
        return _probe_answer(True, "alive: answering")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, state = self._readiness()
        if ready and "routes" in request.query:
            async with self._shown() as view:
                failing = "".join([text async for text in in_slices(Status(view).cannot_mint())])
            if failing:
                return _probe_answer(False, f"not ready: routes without a token\n{failing.rstrip()}")
        return _probe_answer(ready, state)

    async def _startupz(self, _request: web.Request) -> web.Response:
        started = self._health.started and (self._peers is None or self._peers.started)
        return _probe_answer(started, "started: listening" if started else "starting: not listening yet")

    async def _exposition(self, request: web.Request) -> web.StreamResponse:
        process = await self._process_metrics()
        async with self._shown() as view:
            return await send_in_slices(request, Exposition(view).pieces({**process, **view.process}), CONTENT_TYPE)

    async def _list_routes(self, request: web.Request) -> web.StreamResponse:
        live = self._own.live
        named = map(route_settings, live.routes())
        if live.allowed() is None:
            return await send_in_slices(request, json_list(named), JSON)
        async with self._shown() as view:
            opened = open_route_settings(view.live)
            return await send_in_slices(request, json_list(chain(named, opened)), JSON)

    async def _show_status(self, request: web.Request) -> web.StreamResponse:
        async with self._shown() as view:
            state, _, reason = self._readiness()[1].partition(": ")
            return await send_in_slices(request, Status(view).pieces(state, reason), JSON)

    @asynccontextmanager
    async def _shown(self) -> AsyncIterator[View]:
        """Yield the state of this worker, or collect that of all workers. Raises HTTPServiceUnavailable."""
        if self._peers is None:
            yield self._own
            return
        async with AsyncExitStack() as stack:
            try:
                combined = await stack.enter_async_context(self._peers.collected())
            except TimeoutError:
                text = "the main process does not collect from its workers\n"
                raise web.HTTPServiceUnavailable(text=text) from None
            yield View.of(combined)

    async def _process_metrics(self) -> dict[str, float]:
        """Return the metrics of the process, none without threads. Concurrent callers share one reading."""
        if self._reading_process is None or self._reading_process.done():
            # In a thread, because it reads files, and every descriptor is one.
            reading = asyncio.to_thread(process_metrics)
            self._reading_process = asyncio.get_running_loop().create_task(reading)
        try:
            return await asyncio.shield(self._reading_process)
        except RuntimeError as exc:
            if not no_thread(exc):
                raise
            return {}

    async def _openapi(self, _request: web.Request) -> web.Response:
        return web.Response(text=OPENAPI, content_type="application/json")

    async def _page(self, _request: web.Request) -> web.Response:
        fields = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return web.Response(text=PAGE, content_type="text/html", headers=fields)

    async def _unknown(self, request: web.Request) -> web.Response:
        if request.path in PATHS:
            return web.Response(status=405, text="only GET and HEAD\n", headers={"Allow": "GET, HEAD"})
        return web.Response(status=404, text=f"no such path; there are {' '.join(PATHS)}\n")


def _quiet_logger() -> logging.Logger:
    """Return a logger for aiohttp that says nothing of what clients do wrong: any client can do it often."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_of_ours)
    return logger


def _of_ours(record: logging.LogRecord) -> bool:
    """Return False for a record about a malformed request, or a client that left before it had its answer."""
    theirs = (HttpProcessingError, web.RequestPayloadError, ClientConnectionResetError)
    return not (record.exc_info and isinstance(record.exc_info[1], theirs))


def _probe_answer(good: bool, state: str) -> web.Response:
    return web.Response(status=200 if good else 503, text=f"{state}\n")


async def _set_fields(_request: web.Request, response: web.StreamResponse) -> None:
    """Remove the server's version; forbid storing, sniffing and scripts."""
    response.headers.popall("Server", None)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Content-Security-Policy", _NOTHING_LOADED)
