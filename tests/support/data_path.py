"""The data path in memory: clients' engines, the sidecar's own connections, dispatcher and pool, and services' engines.

Everything between the two ends is what runs in production. Only the sockets are missing: a `Wire` moves octets when it
is told to, and can be stopped like a socket whose peer does not read. Time stands still unless a test moves it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from proxy.connection.budget import Account, Budget
from proxy.connection.flusher import Flusher
from proxy.connection.protocol import MakeEngine
from proxy.downstream.connection import DownstreamConnection
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits, Stream
from proxy.http2.events import StreamId
from proxy.observe.access_log import AccessLog
from proxy.observe.metrics import Metrics
from proxy.observe.observer import Observer, Observers
from proxy.observe.warnings import Warnings
from proxy.relay.dispatcher import Dispatcher
from proxy.relay.signing import WATCHED_IN_REQUESTS, WATCHED_IN_RESPONSES
from proxy.request_identity import Verifier
from proxy.routes import UNMATCHED, AllowLists, Origin, Route, RouteTable
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.pool import Pool
from tests.support.loops import ManualLoop
from tests.support.peers.engines import assert_credit, owed
from tests.support.peers.memory import Client, EnginePeer, Service
from tests.support.peers.transport import MemoryTransport
from tests.support.slices import serve_in_slices

__all__ = ["NAME", "Wire", "World", "route"]

NAME = b"cloudrun-sidecar-0123456789abcdef"

T = TypeVar("T")


@dataclass
class Wire:
    """One connection of the sidecar's, joined to an end that the test holds."""

    protocol: DownstreamConnection | UpstreamConnection
    transport: MemoryTransport
    end: EnginePeer
    cut: bool = False
    unread: bool = False
    """Whether the end reads nothing: what the sidecar writes stays in its transport."""
    in_slices: ClassVar[bool] = False
    """Whether what is read takes long, so that a few octets are served in each turn; else everything at once."""

    def __post_init__(self) -> None:
        if self.in_slices:
            serve_in_slices(self.protocol)

    def move(self) -> bool:
        """Carry octets over, each way; return whether there were any."""
        stays = self.unread or self.transport.stalled or self.transport.lost
        up = b"" if stays else self.transport.read()
        if up:
            self.end.receive(up)
        down = b"" if self.cut or self.transport.reading_paused else self.end.take()
        if down and not self.transport.is_closing():
            self.give(down)
        return bool(up or down)

    def give(self, data: bytes) -> None:
        """Have it read as uvloop does: to the buffer that it gives; `Pair` and `Stage` hand it what asyncio would."""
        left = memoryview(data)
        try:
            while left:
                buffer = self.protocol.get_buffer(-1)
                octets = min(len(left), len(buffer))
                buffer[:octets] = left[:octets]
                left = left[octets:]
                self.protocol.buffer_updated(octets)
                if not self.in_slices:
                    self.protocol.serve_all()  # however long it has taken
        except Exception as exc:  # noqa: BLE001 - what a real transport does: it reports it, and the connection is lost
            self.transport.fail(exc)

    def owed(self, stream_id: StreamId) -> int:
        """Octets of a stream's content that were received and not given back."""
        return owed(self.protocol.engine, stream_id)

    def lose(self, exc: Exception | None = None) -> None:
        """Have the connection end from the other side."""
        self.cut = True
        self.transport.lose(exc)


class World:
    """A sidecar's data path between any number of clients and services."""

    def __init__(
        self,
        *routes: Route,
        make: EngineFactory,
        limits: Limits | None = None,
        client_limits: Limits | None = None,
        service_limits: Limits | None = None,
        queued_octets: int = 16 << 20,
        replay_octets: int = 1_000,
        tokens: Callable[[Callable[[], float]], TokenSource] | None = None,
        random_fraction: Callable[[], float] = lambda: 0.0,
        max_connections: int = 8,
        observers: Iterable[Observer] = (),
        access_log: bool = False,
        add_retry_after: bool = True,
        allowed: AllowLists | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.loop = ManualLoop()
        self.make = make
        self.limits = limits or Limits()
        self.client_limits = client_limits or Limits()
        self.service_limits = service_limits or Limits()
        self.budget = Budget(queued_octets, self.loop.call_soon)
        self.metrics = Metrics()
        access = [AccessLog()] if access_log else []
        warnings = Warnings(clock=self.clock, monotonic=self.loop.time)
        self.observed = Observers([self.metrics, warnings, *access, *observers])
        self.wires: list[Wire] = []
        self.services: list[Service] = []
        self.refusals: list[Exception] = []
        """Raised by the next attempts to connect, in this order."""
        self.connecting: Callable[[], Awaitable[None]] | None = None
        """Waited for before a connection is made."""
        self.wall = 1_800_000_000.0
        self.tokens = tokens(self.clock) if tokens is not None else TokenSource(_no_mint, clock=self.clock)
        self.pool = Pool(self._connect, self.observed, max_connections=max_connections)
        self.routes = routes or (route("svc"),)
        self.allowed = allowed or AllowLists()
        self.flusher = Flusher(self.loop)
        self.dispatcher = Dispatcher(
            RouteTable(self.routes, self.allowed),
            self.tokens,
            self.pool,
            self.observed,
            flusher=self.flusher,
            clock=self.clock,
            random_fraction=random_fraction,
            replay_octets=replay_octets,
            name=NAME,
            add_retry_after=add_retry_after,
            verifier=verifier,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clock(self) -> float:
        """Wall-clock seconds, moved by the test."""
        return self.wall

    def client(self, limits: Limits | None = None, *, address: str | None = None) -> Client:
        """Connect another client, from an address of its own unless one is given."""
        connection = DownstreamConnection(
            self._engines(client=False), self.budget, self.flusher, acceptor=self.dispatcher, on_change=lambda: None
        )
        if address is not None:
            self.budget.join(connection.account, address)
        client = Client(self.make, limits or self.client_limits)
        self._join(connection, client)
        self.settle()
        return client

    def clients(self) -> Iterator[tuple[Account, list[Stream]]]:
        """Yield the account and the live streams of each client's connection, as the listener does."""
        connections = [wire.protocol for wire in self.wires if isinstance(wire.protocol, DownstreamConnection)]
        for one in connections:
            if not one.closed:
                yield one.account, one.engine.live_streams()

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        if self.connecting is not None:
            await self.connecting()
        if self.refusals:
            raise self.refusals.pop(0)
        connection = UpstreamConnection(
            self._engines(client=True),
            self.budget,
            self.flusher,
            origin=origin,
            timing=Timing(),
            observer=self.observed,
        )
        service = Service(self.make, self.service_limits)
        self.services.append(service)
        self._join(connection, service)
        await connection.ready
        return connection

    def _engines(self, *, client: bool) -> MakeEngine:
        watched = WATCHED_IN_RESPONSES if client else WATCHED_IN_REQUESTS
        return lambda handler: self.make(client=client, limits=self.limits, handler=handler, watched_names=watched)

    def _join(self, connection: DownstreamConnection | UpstreamConnection, end: EnginePeer) -> None:
        transport = MemoryTransport(self.loop, connection.as_protocol())
        self.wires.append(Wire(connection, transport, end))
        connection.connection_made(transport)

    def wire(self, end: EnginePeer) -> Wire:
        """Return the connection of this end."""
        return next(wire for wire in self.wires if wire.end is end)

    def step(self) -> None:
        """Move octets, and run one turn of the loop."""
        self._move_in_turn()
        self.loop.turn()

    def settle(self) -> None:
        """Move octets until none are on their way, and nothing is ready to run."""
        self.loop.run_ready()
        while self._move_in_turn():
            self.loop.run_ready()

    def _move_in_turn(self) -> bool:
        # A transport calls its protocol in a turn of the loop.
        with self.loop.in_turn():
            return self._move()

    def _move(self) -> bool:
        moved = [wire.move() for wire in self.wires]
        return any(moved)

    def run(self, coroutine: Awaitable[T]) -> T:
        """Wait for something of the sidecar's."""
        return self.loop.run_until_complete(coroutine)

    def latest(self, path: str) -> tuple[Service, StreamId]:
        """Return where the last request with this path has arrived."""
        found = self.arrivals(path)
        assert found, f"no request for {path} has arrived"
        return found[-1]

    def arrivals(self, path: str) -> list[tuple[Service, StreamId]]:
        """Return every arrival of a request with this path, attempt by attempt."""
        return [
            (service, stream_id)
            for service in self.services
            for stream_id in service.requests
            if service.path(stream_id) == path.encode()
        ]

    def assert_in_order(self) -> None:
        """No error went uncaught, and no connection's credit is lost."""
        assert not self.loop.uncaught, self.loop.uncaught
        for wire in self.wires:
            assert wire.end.failed is None, wire.end.failed
            if not wire.protocol.closed:
                assert_credit(wire.protocol.engine)
                assert wire.protocol.engine.owed_octets == 0

    def assert_at_rest(self) -> None:
        """All exchanges are over: nothing is queued, no request waits, all credit is back."""
        self.assert_in_order()
        assert self.budget.queued_octets == 0
        assert self.dispatcher.waiting.count == 0
        for wire in self.wires:
            if not wire.protocol.closed:
                assert wire.protocol.engine.count_open_streams() == 0
        for known in (*(known.label for known in self.routes), UNMATCHED):
            assert known not in self.metrics.routes or self.metrics.routes[known].in_flight == 0

    def close(self) -> None:
        """End everything."""
        self.run(self.dispatcher.waiting.close())
        self.run(self.pool.close())
        if isinstance(self.tokens, TokenSource):
            self.run(self.tokens.close())
        for wire in self.wires:
            wire.transport.abort()
        self.loop.run_ready()
        self.loop.close()


def route(name: str, *, signed: bool = False, port: int = 443) -> Route:
    """Return a route to a service of this name."""
    return Route(name=name, origin=Origin("https", f"{name}.example", port), signed=signed)


async def _no_mint(key: object) -> Any:
    raise AssertionError("nothing here asks for a token")
