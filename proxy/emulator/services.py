"""Several Cloud Run services behind one address: the front end finds the service by the host of a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from proxy.emulator import front_end
from proxy.emulator.cloud_run import CloudRun
from proxy.emulator.front_end import Application, Receive, Scope, Send
from proxy.emulator.verdicts import Verdict

__all__ = ["Services"]


class Services:
    """ASGI application that passes each request to the service whose host it names; 404 for any other host.

    Raises ValueError if two services have a host in common, or if there are none.
    """

    def __init__(self, services: Sequence[CloudRun]) -> None:
        names = Counter(name for service in services for name in service.names)
        shared = [name for name, count in names.items() if count > 1]
        if shared or not services:
            raise ValueError(f"Two services have the host {shared[0]}" if shared else "There are no services")
        self.services = tuple(services)
        """The services, in the order in which they were given."""
        self.unknown_hosts: Counter[Verdict] = Counter()
        """The number of requests that belong to no service, by verdict."""

    @property
    def names(self) -> frozenset[str]:
        """The host names of all services."""
        return frozenset().union(*(service.names for service in self.services))

    @property
    def field_section_octets(self) -> int:
        """Size of a request's fields, the same for all services."""
        return self.services[0].field_section_octets

    @field_section_octets.setter
    def field_section_octets(self, octets: int) -> None:
        for service in self.services:
            service.field_section_octets = octets

    @property
    def verdicts(self) -> Counter[Verdict]:
        """The number of requests by verdict, of all services and of none."""
        return sum((service.verdicts for service in self.services), Counter(self.unknown_hosts))

    def record(self, method: str, path: str, verdict: Verdict) -> None:
        """Count a request that belongs to no service."""
        self.unknown_hosts[verdict] += 1

    def now(self) -> float:
        """Return the time of the emulated Google, in seconds since the epoch."""
        return self.services[0].now()

    def service_of(self, host: str | None) -> CloudRun | None:
        """Return the service with this host name; None if there is none."""
        return next((service for service in self.services if host in service.names), None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        service = self.service_of(front_end.host_of(scope["headers"]))
        if service is not None:
            await service(scope, receive, send)
            return
        send = front_end.with_own_fields(send, self.now(), front_end.Trace.of(scope["headers"]))
        verdict = front_end.check(scope, self.field_section_octets)
        verdict = verdict if verdict in (Verdict.TOO_LARGE, Verdict.METHOD) else Verdict.UNKNOWN_HOST
        self.record(scope.get("method", "WEBSOCKET"), scope["path"], verdict)
        await front_end.refuse(verdict.status or 404, scope, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and stop every application once, however many services it is behind."""
        apps = {id(service.app): service.app for service in self.services}
        lifespans = [_Lifespan(app, {**scope, "state": {}}) for app in apps.values()]
        for _ in range(2):
            phase = (await receive())["type"]
            failures = await asyncio.gather(*(lifespan.enter(phase) for lifespan in lifespans))
            failed = [message for message in failures if message is not None]
            if failed:
                await send({"type": f"{phase}.failed", "message": failed[0]})
                return
            await send({"type": f"{phase}.complete"})


class _Lifespan:
    """The lifespan of one application; an application that does not support it has none."""

    def __init__(self, app: Application, scope: Scope) -> None:
        self._received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._sent: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(_run(app, scope, self._received.get, self._sent.put))

    async def enter(self, phase: str) -> str | None:
        """Pass on `lifespan.startup` or `lifespan.shutdown`; return why it failed, or None."""
        self._received.put_nowait({"type": phase})
        answer = asyncio.get_running_loop().create_task(self._sent.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            # Not supported: ASGI lets an application raise, and go on without a lifespan.
            self._task.exception()
            return None
        message = answer.result()
        return str(message.get("message", "")) if message["type"] == f"{phase}.failed" else None


async def _run(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
