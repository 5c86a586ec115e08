"""The composition root of one worker: every object of it is built here, once, and ends here.

One worker alone listens itself; several are processes of their own, each with its own pool and tokens, that are handed
their connections by a supervisor. Ending looks the same from outside: the first SIGTERM, SIGINT or SIGQUIT drains (new
requests are answered 503, live streams finish, at most `drain_timeout`), a second one aborts what is live.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from proxy.admin import AdminPlane
from proxy.allocator import return_large_blocks
from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.downstream.binding import ListenFailed
from proxy.downstream.channel import ABORT, ALIVE, DRAIN, DRAINING, HAND_ON, PROBLEMS, SETTINGS, Channel
from proxy.downstream.config import ListenerConfig, Sockets
from proxy.downstream.handover import accept_from
from proxy.downstream.serving import listen
from proxy.ending import Ending
from proxy.http2.choice import engine_choice
from proxy.network.address import OFF, Address
from proxy.network.loop import loop_factory, repeat, report_unexpected
from proxy.network.service_manager import ServiceManager
from proxy.observe.access_log import AccessLog
from proxy.observe.health import RouteHealth
from proxy.observe.lines import configure_logging
from proxy.observe.metrics import Metrics
from proxy.observe.observer import Observer, Observers
from proxy.observe.startup import log_listening
from proxy.observe.tracing import tracing_observers
from proxy.observe.warnings import Warnings
from proxy.relay.dispatcher import Dispatcher
from proxy.relay.live import DispatcherState
from proxy.relay.stalls import Stalls
from proxy.relay.via import sidecar_name
from proxy.reloads import Reloads
from proxy.settings.changes import Changes
from proxy.settings.plain import PlainSettings
from proxy.settings.reading import CommandLine
from proxy.signals import ENDING_SIGNALS, HANDLED_SIGNALS, RELOAD_SIGNAL, block_signals, ignore_signals
from proxy.tokens.google import GoogleMint
from proxy.tokens.source import TokenSource
from proxy.wiring import (
    change_listener,
    connector,
    engines,
    handshakes,
    listener,
    pool,
    timing,
    tls_context,
    tls_files,
    unix_access,
    upstream_proxy,
    verifier,
)

if TYPE_CHECKING:
    from proxy.downstream.takeover import Takeover

__all__ = ["Worker", "run_worker"]

_log: Final = structlog.get_logger("sidecar")

_LINGER_SECONDS: Final = 1.0
"""How long upstream connections may take to close at the end."""


class Worker:
    """Built on its event loop, started, drained, closed."""

    def __init__(
        self,
        settings: PlainSettings,
        loop: asyncio.AbstractEventLoop,
        name: bytes,
        more_observers: Iterable[Observer] = (),
        *,
        admin_socket: socket.socket | None = None,
    ) -> None:
        self.settings = settings
        self.started = False
        """Whether requests are taken; for probes."""
        choice = engine_choice(settings.http2_engine)
        self.engine = choice.library
        """Name and version of what speaks HTTP/2."""
        self._mint = mint = GoogleMint()
        self.metrics = Metrics(self.engine, credentials_kind=lambda: mint.source_kind)
        self.health = RouteHealth(self.metrics)
        self._access_log = log = AccessLog(on=settings.access_log)
        self._observers = observers = Observers(
            [self.metrics, self.health, Warnings(), log, *tracing_observers(os.environ), *more_observers]
        )
        self._budget = budget = Budget(settings.queued_octets, loop.call_soon)
        flusher = Flusher(loop)
        self._tokens = TokenSource(
            mint, observer=observers, credentials=mint, mint_timeout_seconds=settings.mint_timeout
        )
        client = engines(settings, choice.make, client=True)
        self._connector = connector(settings, client, budget, flusher, observers)
        self._pool = pool(settings, self._connector, observers)
        self._dispatcher = Dispatcher(
            settings.route_table(),
            self._tokens,
            self._pool,
            observers,
            flusher=flusher,
            clock=time.time,
            random_fraction=random.random,
            replay_octets=settings.replay_octets,
            name=name,
            add_retry_after=settings.add_retry_after,
            verifier=verifier(settings),
        )
        self.listener = listener(settings, choice.make, self._dispatcher, budget, flusher, observers)
        self._stalls = Stalls(budget, self.listener.clients, self.listener.connections, settings.stall_timeout)
        self._tls = tls_context(settings)
        self._handshakes = handshakes(loop, self._tls, self.listener)
        self._admin = self._admin_plane(admin_socket)
        self.ending = Ending(self.listener, self._dispatcher, self._admin, lambda: self.settings.drain_timeout)
        """How it ends."""

    def _admin_plane(self, bound: socket.socket | None) -> AdminPlane | None:
        """Return the admin plane, on a socket that listens already if there is one; None if it is off."""
        if self.settings.admin == OFF and bound is None:
            return None
        return AdminPlane(
            self.settings.admin if bound is None else str(Address.of_socket(bound.getsockname())),
            self,
            self.metrics,
            self.health,
            DispatcherState(
                self._dispatcher,
                self._budget,
                self._pool,
                self.listener.clients,
                origin_label=self.metrics.origin_label,
            ),
            allowed_hosts=self.settings.allowed_hosts,
            bound=bound,
            unix_access=unix_access(self.settings),
        )

    def apply(self, read: PlainSettings) -> Changes:
        """Put settings in force that were read again, as far as that needs no restart; return what has changed.

        New exchanges and connections go by them; those under way keep what they began with.
        """
        changes = Changes.between(self.settings, read)
        settings = changes.in_force
        other_log = settings.access_log != self.settings.access_log
        self._access_log.on = settings.access_log
        if settings.routes != self.settings.routes or settings.deployments != self.settings.deployments or other_log:
            self._dispatcher.swap(settings.route_table(), other_log)
        self._dispatcher.replay_octets = settings.replay_octets
        self._dispatcher.add_retry_after = settings.add_retry_after
        if "restate_identity_keys" in changes.settings:
            self._dispatcher.verifier = verifier(settings)
        self._budget.limit_octets = settings.queued_octets
        self._budget.change(0)  # wakes connections that wait, if there is room now
        self._tokens.mint_timeout_seconds = settings.mint_timeout
        self._pool.max_connections = settings.max_upstream_connections
        self._pool.wait_timeout_seconds = settings.stream_wait_timeout
        self._pool.max_age_seconds = settings.max_upstream_connection_age
        self._connector.change(
            timing=timing(settings),
            upstream_ca=settings.upstream_ca,
            upstream_proxy=upstream_proxy(settings),
            connect_timeout_seconds=settings.connect_timeout,
        )
        change_listener(self.listener, settings)
        if self._admin is not None:
            self._admin.allowed_hosts = frozenset(settings.allowed_hosts)
        self._stalls.seconds = settings.stall_timeout
        if self._tls is not None and (files := tls_files(settings)) is not None:
            self._tls.change(files)
        if {"log_level", "log_format"} & {*changes.settings}:
            configure_logging(settings.log_level, settings.log_format)
        self.settings = settings
        self._observers.settings_reloaded(changes.need_restart)
        return changes

    def refuse(self, problems: tuple[str, ...]) -> None:
        """Tell the observers that settings were read that cannot be used."""
        self._observers.settings_refused(problems)

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
        self._stalls.start(asyncio.get_running_loop())
        if self._tls is not None:
            self._tls.start()
        self.started = True

    async def close(self) -> None:
        """Release everything; safe after a failed start."""
        async with AsyncExitStack() as closing:  # from the last to the first, all of them whatever happens
            closing.push_async_callback(self._observers.close)
            if self._admin is not None:
                closing.push_async_callback(self._admin.close)
            closing.push_async_callback(self.ending.close)
            if self._tls is not None:
                closing.callback(self._tls.close)
            closing.push_async_callback(self._stalls.close)
            closing.push_async_callback(self._mint.close)
            closing.push_async_callback(self._tokens.close)
            closing.push_async_callback(partial(self._pool.close, linger_seconds=_LINGER_SECONDS))
            closing.push_async_callback(self._dispatcher.waiting.close)

    async def run(
        self,
        config: ListenerConfig,
        accepts: Sockets | Channel,
        reloads: Reloads,
        manager: ServiceManager,
        takeover: Takeover | None,
    ) -> None:
        """Start, serve until a signal or the supervisor ends it, and close.

        With a channel, the supervisor alone decides when to abort and when to reload, and talks to the service manager;
        signals only start draining.
        """
        loop = asyncio.get_running_loop()
        self._handle_signals(loop, reloads, alone=not isinstance(accepts, Channel))
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self.close)
            closing.push_async_callback(reloads.close)
            await self.start()
            if not isinstance(accepts, Channel):
                self._log_listening(config, accepts)
            # What was made so far lives as long as the process: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            reloads.start()
            if isinstance(accepts, Channel):
                peers = self._admin.join(accepts) if self._admin is not None else None
                self.listener.on_closed = accepts.connection_closed
                self.ending.on_draining = partial(accepts.report, DRAINING)
                accept_from(
                    accepts,
                    loop,
                    commands={
                        DRAIN: self.ending.drain,
                        HAND_ON: self.ending.hand_on,
                        ABORT: self.ending.abort,
                        **(peers.commands if peers else {}),
                    },
                    documents={
                        SETTINGS: partial(reloads.take_settings, accepts),
                        PROBLEMS: reloads.take_problems,
                    },
                    files=peers.files if peers else {},
                    orphan=self.ending.on_supervisor_lost,
                    lost=self.listener.admission.lost,
                    on_ready=partial(self._log_listening, config, accepts),
                    handshakes=self._handshakes,
                )
                closing.callback(repeat(loop, accepts.heartbeat_seconds, partial(accepts.report, ALIVE)))
                await listen(self.listener, config, Sockets([], [accepts.socket], []), self.ending.wait)
            else:
                self.ending.on_draining = partial(manager.stopping, "draining")
                self.ending.are_sockets_shared = lambda: config.shared
                if takeover is not None:
                    await asyncio.to_thread(takeover.complete)
                    takeover.start(loop.add_reader, loop.remove_reader, partial(self._hand_on, config))
                manager.ready("serving")
                closing.callback(repeat(loop, manager.watchdog_seconds / 2, manager.alive))
                await listen(self.listener, config, accepts, self.ending.wait, self._handshakes)

    def _handle_signals(self, loop: asyncio.AbstractEventLoop, reloads: Reloads, *, alone: bool) -> None:
        for number in HANDLED_SIGNALS:
            if number in ENDING_SIGNALS:
                loop.add_signal_handler(number, self.ending.on_ending_signal if alone else self.ending.drain)
            elif number == RELOAD_SIGNAL:
                loop.add_signal_handler(number, reloads.request)
            else:
                loop.add_signal_handler(number, _ignore)
        # Those that came during the start have stayed pending.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)

    def _hand_on(self, config: ListenerConfig) -> None:
        config.shared = True
        self.ending.hand_on()

    def _log_listening(self, config: ListenerConfig, accepts: Sockets | Channel) -> None:
        if isinstance(accepts, Channel):
            names, tls = accepts.addresses, accepts.tls_addresses
        else:
            names = [bound.getsockname() for bound in accepts.insecure_sockets]
            tls = tuple(one.getsockname() for one in accepts.insecure_sockets if one.fileno() in config.tls_descriptors)
        log_listening(
            [name for name in names if name not in tls],
            tls,
            admin=self._admin.address if self._admin is not None else OFF,
            engine=self.engine,
            routes=self.settings.routes,
            open_hosts=self.settings.deployments.hosts,
            worker=os.getpid() if isinstance(accepts, Channel) else None,
        )


def run_worker(
    settings: PlainSettings,
    config: ListenerConfig,
    accepts: Sockets | Channel,
    command_line: CommandLine | None = None,
    *,
    admin_socket: socket.socket | None = None,
    manager: ServiceManager | None = None,
    takeover: Takeover | None = None,
) -> None:
    """Run a worker in this process until it is told to end; it accepts from `accepts`.

    Settings are read again from `command_line`; without one, only a supervisor sends new ones. `admin_socket` is a
    listening socket for the admin port instead of the one in the settings. `manager` is told when the worker is ready,
    and when it drains. `takeover` has the sockets handed on. Raises ListenFailed for its admin port, or if it is too
    late to take over. When this returns or raises, `HANDLED_SIGNALS` are ignored.
    """
    if isinstance(accepts, Channel):
        admin_socket = accepts.admin
    return_large_blocks()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.get_loop().set_exception_handler(report_unexpected)
            runner.run(
                _run(settings, config, accepts, command_line, admin_socket, manager or ServiceManager({}), takeover)
            )
    finally:
        ignore_signals()


async def _run(
    settings: PlainSettings,
    config: ListenerConfig,
    accepts: Sockets | Channel,
    command_line: CommandLine | None,
    admin_socket: socket.socket | None,
    manager: ServiceManager,
    takeover: Takeover | None,
) -> None:
    loop = asyncio.get_running_loop()
    name = sidecar_name(config.sidecar_octets)
    try:
        worker = Worker(settings, loop, name, admin_socket=admin_socket)
        await worker.run(config, accepts, Reloads(worker, loop, command_line, manager), manager, takeover)
    finally:
        # The loop gives the signals their defaults back when it closes; one more SIGTERM would spoil the exit code.
        block_signals()


def _ignore() -> None:
    """Do nothing: for a signal that would end the process without a handler, and where there is no supervisor."""
