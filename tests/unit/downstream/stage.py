"""The stage of the tests of the listener: a real one on a free port, whose requests the test answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.downstream.ages import ConnectionAges
from proxy.downstream.config import ListenerConfig
from proxy.downstream.deadlines import Deadlines
from proxy.downstream.listener import Listener
from proxy.downstream.serving import listen
from proxy.downstream.tls import Handshakes, TlsContext, TlsFiles
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import ConnectionHandler, Engine, Limits
from proxy.http2.portable.engine import PortableEngine
from proxy.observe.observer import DownstreamObserver
from tests.support.peers.acceptor import RequestQueue


class Counts(DownstreamObserver):
    """Counts connections, and collects the reasons of refusals."""

    def __init__(self) -> None:
        self.opened = self.closed = 0
        self.refused: list[str] = []
        self.connections_refused: list[str] = []
        self.cut_off: list[tuple[int, str]] = []

    def downstream_opened(self) -> None:
        self.opened += 1

    def downstream_closed(self) -> None:
        self.closed += 1

    def connection_refused(self, reason: str) -> None:
        self.connections_refused.append(reason)

    def downstream_cut_off(self, client: str, code: int, reason: str) -> None:
        self.cut_off.append((code, reason))

    def request_refused(self, reason: str, details: dict[str, Any]) -> None:
        self.refused.append(reason)


@dataclass
class Listening:
    """A listener in this process, on a free port."""

    listener: Listener
    relay: RequestQueue
    counts: Counts
    budget: Budget
    port: int
    end: asyncio.Event
    drain_seconds: float = 5.0
    drained: asyncio.Future[bool] = field(default_factory=asyncio.Future)
    serving: asyncio.Task[None] | None = None
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def shutdown(self) -> None:
        await self.end.wait()
        self.drained.set_result(await self.listener.drain(self.drain_seconds))

    async def raw(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and send `data`; the connection is closed at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def listening(
    make: EngineFactory = PortableEngine,
    *,
    limits: Limits | None = None,
    acknowledging: bool = True,
    max_head_octets: int = 64 << 10,
    allowed_hosts: tuple[str, ...] = (),
    most_connections: int = 4_096,
    cancels_per_minute: int = 12_000,
    deadlines: Deadlines | None = None,
    ages: ConnectionAges | None = None,
    tls: TlsFiles | None = None,
) -> AsyncIterator[Listening]:
    """Serve during a `with`, over TLS if there is a certificate; at its end, drain within five seconds."""
    relay, counts, budget = RequestQueue(acknowledging=acknowledging), Counts(), Budget(1 << 30)

    def engine(handler: ConnectionHandler) -> Engine:
        return make(client=False, limits=limits or Limits(), handler=handler)

    flusher = Flusher(asyncio.get_running_loop())
    address = ("127.0.0.1:0",)
    plain, over_tls = ((), address) if tls is not None else (address, ())
    config = ListenerConfig(plain, 1, max_head_octets=max_head_octets, tls_addresses=over_tls)
    sockets = config.create_sockets()
    port = sockets.insecure_sockets[0].getsockname()[1]
    it = Listening(
        Listener(
            relay,
            engine,
            budget,
            flusher,
            counts,
            allowed_hosts=allowed_hosts,
            most_connections=most_connections,
            cancels_per_minute=cancels_per_minute,
            deadlines=deadlines,
            ages=ages,
        ),
        relay,
        counts,
        budget,
        port,
        asyncio.Event(),
    )
    handshakes = None
    if tls is not None:
        handshakes = Handshakes(
            asyncio.get_running_loop(),
            TlsContext(tls),
            admits=it.listener.admission.admits_handshake,
            on_failed=it.listener.handshake_failed,
        )
    async with asyncio.TaskGroup() as tasks:
        it.serving = tasks.create_task(listen(it.listener, config, sockets, it.shutdown, handshakes))
        try:
            yield it
        finally:
            it.end.set()
            for writer in it.clients:
                writer.close()
    assert counts.opened == counts.closed
    assert budget.queued_octets == 0
