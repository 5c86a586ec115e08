"""The composition root: every object of a worker is built here, once, and ends here.

One worker runs in this process; several are processes of their own, each with its own pool and tokens, that share the
listening sockets. Ending looks the same from outside: the first SIGTERM, SIGINT or SIGQUIT drains (new requests are
answered 503, live streams finish, at most `drain_timeout`), a second one cuts.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import structlog

from proxy import __version__
from proxy.admin import AdminPlane
from proxy.compiled import changed_sources
from proxy.connection.budget import Budget
from proxy.connection.protocol import Flusher, MakeEngine
from proxy.downstream.binding import ListenFailed, bind_tcp
from proxy.downstream.config import ListenerConfig, Sockets
from proxy.downstream.listener import Listener
from proxy.downstream.orders import Order, Orders
from proxy.downstream.serving import listen
from proxy.downstream.signals import ENDING_SIGNALS, HANDLED_SIGNALS, RELOAD_SIGNAL, block_signals, ignore_signals
from proxy.errors import Failure
from proxy.exit_codes import ExitCode
from proxy.http2.choice import EngineFactory, EngineUnavailable, engine_choice
from proxy.http2.engine import Limits
from proxy.network.loop import loop_factory
from proxy.relay.dispatcher import Dispatcher
from proxy.relay.signing import WATCHED_IN_REQUESTS, WATCHED_IN_RESPONSES
from proxy.relay.via import sidecar_name
from proxy.settings.plain import PlainSettings
from proxy.telemetry import Metrics, background_output, configure_logging
from proxy.tokens.google import GoogleMint
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import Timing
from proxy.upstream.connector import Connector
from proxy.upstream.pool import Pool

__all__ = ["Sidecar", "serve"]

_log: Final = structlog.get_logger("sidecar")

_ORDERS_POLL_SECONDS: Final = 0.1

_MOST_SHOWN_ROUTES: Final = 100
"""In the line that says where it listens."""

_LINGER_SECONDS: Final = 1.0
"""How long upstream connections may take to close at the end."""


class Sidecar:
    """One worker: built on its event loop, started, drained, closed."""

    def __init__(self, settings: PlainSettings, loop: asyncio.AbstractEventLoop, name: bytes) -> None:
        self.settings = settings
        self.started = False
        """Whether requests are taken; for probes."""
        self.metrics = Metrics()
        routes = settings.route_table()
        budget = Budget(settings.queued_octets)
        choice = engine_choice(settings.http2_engine)
        self.engine = choice.library
        """Name and version of what speaks HTTP/2."""
        limits = Limits(
            max_concurrent_streams=settings.max_concurrent_streams,
            stream_window_octets=settings.stream_window,
            max_field_section_octets=settings.max_field_section,
        )
        server = _engines(choice.make, limits, WATCHED_IN_REQUESTS, client=False)
        client = _engines(choice.make, limits, WATCHED_IN_RESPONSES, client=True)
        flusher = Flusher(loop)
        self._mint = GoogleMint()
        self._tokens = TokenSource(
            self._mint,
            observer=_MintCounts(self.metrics),
            watched=self._mint,
            mint_timeout_seconds=settings.mint_timeout,
        )
        connector = Connector(
            client,
            budget,
            flusher,
            timing=Timing(
                ping_interval_seconds=settings.ping_interval,
                ping_timeout_seconds=settings.ping_timeout,
                idle_timeout_seconds=settings.upstream_idle_timeout,
            ),
            upstream_ca=settings.upstream_ca,
            connect_timeout_seconds=settings.connect_timeout,
        )
        self._pool = Pool(
            connector.connect,
            self.metrics,
            max_connections=settings.max_upstream_connections,
            wait_timeout_seconds=settings.stream_wait_timeout,
            delay=connector.delay,
        )
        self._dispatcher = Dispatcher(
            routes,
            self._tokens,
            self._pool,
            self.metrics,
            budget,
            loop=loop,
            clock=time.time,
            random_fraction=random.random,
            replay_octets=settings.replay_octets,
            access_log=settings.access_log,
            name=name,
            add_retry_after=settings.add_retry_after,
        )
        self.listener = Listener(
            self._dispatcher, server, budget, flusher, self.metrics, allowed_hosts=settings.allowed_hosts
        )
        self._admin: AdminPlane | None = None
        if settings.admin != "off":
            self._admin = AdminPlane(settings.admin, self, self.metrics, routes.routes, reuse_port=settings.workers > 1)
        self._ending = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused; for probes."""
        return self._dispatcher.draining

    async def start(self) -> None:
        """Open the admin plane. Raises ListenFailed."""
        if self._admin is not None:
            try:
                await self._admin.start()
            except OSError as exc:
                raise ListenFailed(f"{self.settings.admin} (admin)", exc) from exc
        self.started = True

    def drain(self) -> None:
        """Begin to drain; called again, change nothing."""
        self._ending.set()

    def cut(self) -> None:
        """Drain, and wait for nothing any more."""
        _log.warning("cutting what is live: told to end twice", live=self.listener.live)
        self.listener.hurry()
        self._ending.set()

    def end(self) -> None:
        """Begin to drain; called again, cut what is left."""
        if self._ending.is_set():
            self.cut()
        else:
            self.drain()

    async def ended(self) -> None:
        """Wait until the end was asked for and everything is drained, or cut."""
        await self._ending.wait()
        self._dispatcher.draining = True
        _log.info("draining", live=self.listener.live, timeout_seconds=self.settings.drain_timeout)
        started = time.monotonic()
        complete = await self.listener.drain(self.settings.drain_timeout)
        seconds = round(time.monotonic() - started, 1)
        if complete:
            _log.info("drained", seconds=seconds)
        else:
            _log.warning("not drained in time: what was live has been cut", seconds=seconds)

    async def close(self) -> None:
        """Release everything; safe after a failed start."""
        async with AsyncExitStack() as closing:  # from the last to the first, all of them whatever happens
            if self._admin is not None:
                closing.push_async_callback(self._admin.close)
            closing.push_async_callback(self._mint.close)
            closing.push_async_callback(self._tokens.close)
            closing.push_async_callback(partial(self._pool.close, linger_seconds=_LINGER_SECONDS))
            closing.push_async_callback(self._dispatcher.waiting.close)

    async def run(self, config: ListenerConfig, sockets: Sockets, orders: Orders | None) -> None:
        """Start, serve until told to end, and close. With `orders` those decide what a second signal would."""
        loop = asyncio.get_running_loop()
        for number in HANDLED_SIGNALS:
            if number in ENDING_SIGNALS:
                loop.add_signal_handler(number, self.end if orders is None else self.drain)
            elif number == RELOAD_SIGNAL:
                loop.add_signal_handler(number, _cannot_reload)
            else:
                loop.add_signal_handler(number, _ignore)
        # Those that came during the start have stayed pending.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.close)
            if orders is not None:
                watch = loop.create_task(self._obey(orders))
                closing.callback(watch.cancel)
            await self.start()
            self._say_where(sockets, orders)
            # What was made so far lives as long as the process: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            await listen(self.listener, config, sockets, self.ended)

    def _say_where(self, sockets: Sockets, orders: Orders | None) -> None:
        _log.info(
            "listening",
            version=__version__,
            listen=[_shown(bound.getsockname()) for bound in sockets.insecure_sockets],
            admin=self._admin.address if self._admin is not None else "off",
            engine=self.engine,
            # Log collectors cut lines of some 100 KiB; /routes of the admin port has them all.
            routes={
                route.name: f"{route.origin}{route.base_path}" for route in self.settings.routes[:_MOST_SHOWN_ROUTES]
            },
            **({"more_routes": more} if (more := len(self.settings.routes) - _MOST_SHOWN_ROUTES) > 0 else {}),
            **({"worker": os.getpid()} if orders is not None else {}),
        )

    async def _obey(self, orders: Orders) -> None:
        # Memory of another process has nothing to await.
        while orders.latest is Order.SERVE:  # noqa: ASYNC110
            await asyncio.sleep(_ORDERS_POLL_SECONDS)
        self.drain()
        while orders.latest is not Order.CUT:  # noqa: ASYNC110
            await asyncio.sleep(_ORDERS_POLL_SECONDS)
        self.cut()


class _MintCounts:
    """Tells the metrics what the token source reports."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def minted(self, token: Token, seconds: float) -> None:
        self._metrics.token_minted(seconds, token.clock_ahead_seconds)

    def mint_failed(self, key: TokenKey, failure: Failure, seconds: float) -> None:
        self._metrics.mint_failed(failure.code)


def serve(text: str) -> int:
    """Run the sidecar of these settings, which are as `Settings.to_json` gives them, until it is told to end.

    Returns the `ExitCode`; where it is not 0, the reason is on standard error.
    """
    settings = PlainSettings.from_json(text)
    config = ListenerConfig(settings.listen, settings.workers, text, max_head_octets=settings.max_field_section)
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            return _serve(settings, config)
        except (ListenFailed, EngineUnavailable) as exc:
            return _refused(exc)


def _refused(exc: ListenFailed | EngineUnavailable) -> ExitCode:
    """Say why there is nothing to serve, and return the exit code."""
    sys.stderr.write(f"cloudrun-sidecar: {exc}\n")
    return ExitCode.FAILED if isinstance(exc, ListenFailed) and exc.transient else ExitCode.SETTINGS_UNUSABLE


def _serve(settings: PlainSettings, config: ListenerConfig) -> int:
    choice = engine_choice(settings.http2_engine)
    if choice.reason:
        _log.warning("portable HTTP/2 engine in use", reason=choice.reason)
    if changed := changed_sources():
        _log.warning("compiled modules are not those of their sources: build them again (make setup)", changed=changed)
    if settings.workers > 1:
        # Not where one serves alone: what starts others is 0.8 MiB.
        from proxy.downstream.workers import run_workers

        _try_admin(settings.admin)
        return run_workers(config, worker, drain_seconds=settings.drain_timeout)
    sockets = config.create_sockets()
    try:
        _run_worker(settings, config, sockets, None)
    finally:
        config.release(sockets)
    return ExitCode.OK


def worker(config: ListenerConfig, sockets: Sockets, shutdown_event: Orders) -> None:
    """Run one worker in a process of its own by order of its parent (`run_workers`)."""
    settings = PlainSettings.from_json(config.payload)
    with background_output():
        configure_logging(settings.log_level, settings.log_format)
        try:
            _run_worker(settings, config, sockets, shutdown_event)
        except ListenFailed as exc:
            sys.exit(_refused(exc))


def _run_worker(settings: PlainSettings, config: ListenerConfig, sockets: Sockets, orders: Orders | None) -> None:
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.get_loop().set_exception_handler(_report)
            runner.run(_run(settings, config, sockets, orders))
    finally:
        ignore_signals()


async def _run(settings: PlainSettings, config: ListenerConfig, sockets: Sockets, orders: Orders | None) -> None:
    name = sidecar_name(config.sidecar_octets)
    try:
        await Sidecar(settings, asyncio.get_running_loop(), name).run(config, sockets, orders)
    finally:
        # The loop gives the signals their defaults back when it closes; one more SIGTERM would spoil the exit code.
        block_signals()


def _engines(make: EngineFactory, limits: Limits, watched_names: frozenset[bytes], *, client: bool) -> MakeEngine:
    return lambda handler: make(client=client, limits=limits, handler=handler, watched_names=watched_names)


def _cannot_reload() -> None:
    _log.warning("SIGHUP changes nothing: settings are read at the start; restart to apply new ones")


def _ignore() -> None:
    """Handle a signal that means nothing here, and would end the process without a handler."""


def _try_admin(admin: str) -> None:
    """Raise ListenFailed where the workers could not share the admin port: each of them would say so."""
    if admin == "off" or admin.startswith("unix:"):
        return
    host, _, port = admin.rpartition(":")
    try:
        with bind_tcp(host.strip("[]"), int(port), reuse_port=True) as bound:
            bound.listen()
    except OSError as exc:
        raise ListenFailed(f"{admin} (admin)", exc) from exc


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught: the kind of error and where, not its text, which may hold what must not be logged."""
    exception = context.get("exception")
    where = exception.__traceback__ if exception is not None else None
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    _log.error(
        "unexpected error",
        what=context.get("message"),
        error=type(exception).__name__ if exception is not None else None,
        at=f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else None,
    )


def _shown(name: Any) -> str:
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
