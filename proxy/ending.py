"""How a worker ends: it drains, and aborts what is left; or another sidecar takes its place, and clients move there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from proxy.admin import AdminPlane
from proxy.downstream.listener import Listener

__all__ = ["Ending", "Requests"]

_log: Final = structlog.get_logger("sidecar")


class Requests(Protocol):
    """The part of the dispatcher that is used here."""

    draining: bool
    """True if new requests are refused."""


class Ending:
    """The end of one worker. `drain_timeout` returns how many seconds live exchanges may take."""

    def __init__(
        self, listener: Listener, requests: Requests, admin: AdminPlane | None, drain_timeout: Callable[[], float]
    ) -> None:
        self.on_draining: Callable[[], object] = lambda: None
        """Called when new requests begin to be refused."""
        self.are_sockets_shared: Callable[[], bool] = lambda: False
        """Returns whether another process listens on the same sockets: it gets the connections not accepted here."""
        self._listener = listener
        self._requests = requests
        self._admin = admin
        self._drain_timeout = drain_timeout
        self._ending = asyncio.Event()
        """Set once the end has begun: draining, or leaving the ports."""
        self._signalled = False
        self._handed_on = False
        self._leaving_ports: asyncio.Task[None] | None = None

    def drain(self) -> None:
        """Begin to drain, and wait no longer for clients without a request; called again, change nothing."""
        self._listener.end_retiring()
        self._ending.set()

    def abort(self) -> None:
        """Drain, and abort all live exchanges now."""
        _log.warning("second signal: aborting live exchanges", live=self._listener.live_exchanges)
        self._listener.abort()
        self._ending.set()

    def on_ending_signal(self) -> None:
        """Begin to drain; at the second signal, abort what is left."""
        if self._signalled:
            self.abort()
        self._signalled = True
        self.drain()

    def on_supervisor_lost(self) -> None:
        """Drain, and give up the admin port at once: the supervisor is gone, and the next one needs the port."""
        self._leave_ports()
        self.drain()

    def hand_on(self) -> None:
        """Leave the ports to another sidecar, which serves now; serve clients that are here until they have left."""
        self._handed_on = True
        self._leave_ports()
        self._ending.set()

    async def wait(self) -> None:
        """Wait until draining was requested and is over."""
        await self._ending.wait()
        started = time.monotonic()
        timeout = self._drain_timeout()
        _log.info("draining", live=self._listener.live_exchanges, timeout_seconds=timeout)
        if self._handed_on:
            # Requests are taken until then: the admin port, which may still have a request, must not say otherwise.
            await self._listener.retire(timeout)
            await self.close()  # the ports have been left
        self._requests.draining = True
        self.on_draining()
        if not self._handed_on and self.are_sockets_shared():
            await self._listener.stop_accepting()
        complete = await self._listener.drain(max(0.0, timeout - (time.monotonic() - started)))
        seconds = round(time.monotonic() - started, 1)
        if complete:
            _log.info("drained", seconds=seconds)
        else:
            _log.warning("drain incomplete: live exchanges aborted", seconds=seconds)

    async def close(self) -> None:
        """Finish what was begun."""
        if self._leaving_ports is not None:
            await self._leaving_ports

    def _leave_ports(self) -> None:
        self._leaving_ports = asyncio.get_running_loop().create_task(self._stop_listening())

    async def _stop_listening(self) -> None:
        if self.are_sockets_shared():
            await self._listener.stop_accepting()
        if self._admin is not None:
            await self._admin.close()
