"""The relay between a client and a service that send any octets, and what must hold all along.

A case is a list of steps: octets of either side, and what happens beside them. It says nothing of how it was made, so
it is the same case with every engine, and stays the same when the generator changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from proxy.downstream.connection import DownstreamConnection
from proxy.errors import ERROR_FIELD, CredentialsRejected, UpstreamConnectFailed
from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, StreamId
from proxy.observe.counters import bounded_code_name
from proxy.routes import AllowLists, Origin
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from proxy.upstream.connection import Timing, UpstreamConnection
from tests.fuzz.traffic import GOAWAY, HEADERS, RST_STREAM
from tests.fuzz.twins import Wire as FrameReader
from tests.support.data_path import Wire, World, route
from tests.support.peers.memory import EnginePeer
from tests.support.peers.transport import MemoryTransport

__all__ = ["KINDS", "OPEN_HOST", "Relay", "Step"]

TOKEN: Final = b"Bearer minted"
LIMITS: Final = Limits(stream_window_octets=40_000, max_concurrent_streams=20)
QUEUED_OCTETS: Final = 200_000
OPEN_HOST: Final = "orders.example.com"

_TOKEN_NAME: Final = re.compile(rb"(?i)x[-_]serverless[-_]authorization")
"""The token's field as a service may read it: for CGI and WSGI, `-` and `_` are the same. Others are no tokens."""

KINDS: Final = (
    "client",  # octets of the client
    "service",  # octets of the service, on the newest connection to it
    "turn",
    "settle",
    "client stalls",
    "client reads",
    "service stalls",
    "service reads",
    "client goes",
    "service goes",
    "mints fail",
    "mints work",
    "connect fails",
)


class Step(NamedTuple):
    """One step of a case."""

    kind: str
    """One of `KINDS`."""
    data: bytes = b""
    """The octets of `client` and `service`."""


class End:
    """The far end of a connection: sends what it is given, and reads what the sidecar sends."""

    def __init__(self, *, is_service: bool) -> None:
        self.is_service = is_service
        self.outgoing = b""
        self.streams: list[StreamId] = []
        """Those on which a head has arrived, in this order."""
        self.features: set[str] = set()
        """What was seen, in words of which there are few."""
        self._reader = FrameReader(client=is_service)

    def receive(self, data: bytes) -> None:
        """Check what the sidecar has sent: whole frames, and no token that it did not mint."""
        side = "service" if self.is_service else "client"
        for stream_id, told in self._reader.read(data).items():
            for kind, *rest in told:
                if kind == HEADERS:
                    self._head(stream_id, cast(list[tuple[bytes, bytes, bool]], rest[1:]))
                elif kind in (RST_STREAM, GOAWAY):
                    name = "RST_STREAM" if kind == RST_STREAM else "GOAWAY"
                    code = int.from_bytes(cast(bytes, rest[-1])[-4:], "big")
                    self.features.add(f"{side} is sent {name} {bounded_code_name(code)}")

    def _head(self, stream_id: StreamId, lines: list[tuple[bytes, bytes, bool]]) -> None:
        fields = {name: value for name, value, _ in lines}
        if not self.is_service:
            self.features.add(f"client is sent {fields.get(b':status')!r} {fields.get(ERROR_FIELD)!r}")
            return
        tokens = [(name, value) for name, value, _ in lines if _TOKEN_NAME.fullmatch(name)]
        if stream_id in self.streams:
            assert tokens == [], "a token in trailers"
            self.features.add("service is sent trailers")
            return
        self.streams.append(stream_id)
        # A deployment of an open route may say that its host wants no token.
        unsigned = fields.get(b":authority") == OPEN_HOST.encode() and not tokens
        assert tokens == [(b"x-serverless-authorization", TOKEN)] or unsigned, (
            "each request has the token of its route, and no other"
        )
        self.features.add(f"service is sent {fields[b':method']!r}")

    def take(self) -> bytes:
        """Return what it sends."""
        data, self.outgoing = self.outgoing, b""
        return data


class Relay(World):
    """The data path between a hostile client, a hostile service, and neighbours that keep to the rules."""

    def __init__(self, make: EngineFactory) -> None:
        self.mints_fail = False
        self.client_end: Wire | None = None
        self.service_end: Wire | None = None
        self.hostile: list[Wire] = []
        self.features: set[str] = set()
        """What the sidecar did, in words of which there are few."""
        super().__init__(
            route("svc", signed=True),
            route("neighbour"),
            make=make,
            limits=LIMITS,
            queued_octets=QUEUED_OCTETS,
            tokens=lambda clock: TokenSource(self._mint, clock=clock, random_fraction=lambda: 0.0),
            allowed=AllowLists((OPEN_HOST,)),
        )

    async def _mint(self, key: TokenKey) -> Token:
        if self.mints_fail:
            raise CredentialsRejected("the case refuses it")
        return Token(key=key, authorization=TOKEN, expires_at=self.wall + 3_600, principal=None)

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        if origin.host.startswith("neighbour"):
            refusals, self.refusals = self.refusals, []  # they are meant for the hostile service
            try:
                return await super()._connect(origin)
            finally:
                self.refusals = refusals
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
        self.service_end = self._meet(connection, End(is_service=True))
        await connection.ready
        return connection

    def _meet(self, connection: DownstreamConnection | UpstreamConnection, end: End) -> Wire:
        connection.on_cut_off = self._cut_off
        connection.on_refused = lambda _, reason: self.features.add(f"refused: {reason}"[:60])
        transport = MemoryTransport(self.loop, connection.as_protocol())
        wire = Wire(connection, transport, cast(EnginePeer, end))
        self.hostile.append(wire)
        connection.connection_made(transport)
        return wire

    def _cut_off(self, code: int, reason: str) -> None:
        self.features.add(f"cut off: {reason}"[:50])
        assert code != ErrorCode.INTERNAL_ERROR, reason

    def _move(self) -> bool:
        moved = [wire.move() for wire in self.hostile]
        return super()._move() or any(moved)

    # ---- steps

    def play(self, step: Step) -> None:
        """Take one step; AssertionError if anything is wrong after it."""
        kind, data = step
        match kind:
            case "client":
                if self.client_end is None or self.client_end.transport.lost:
                    connection = DownstreamConnection(
                        self._engines(client=False),
                        self.budget,
                        self.flusher,
                        acceptor=self.dispatcher,
                        on_change=lambda: None,
                    )
                    self.client_end = self._meet(connection, End(is_service=False))
                _send(self.client_end, data)
            case "service":
                if self.service_end is not None:
                    _send(self.service_end, data)
            case "turn":
                self.step()
            case "settle":
                self.settle()
            case "mints fail" | "mints work":
                self.mints_fail = kind == "mints fail"
            case "connect fails":
                self.refusals = [UpstreamConnectFailed("the case refuses it")]
            case _:
                who, what = kind.split()
                wire = self.client_end if who == "client" else self.service_end
                if wire is not None and not wire.transport.lost:
                    with self.loop.in_turn():
                        _act(wire, what)
        assert not self.loop.uncaught, self.loop.uncaught

    def run_case(self, steps: Sequence[Step]) -> None:
        """Play a case from its beginning to its end; AssertionError if anything is wrong."""
        try:
            for step in steps:
                self.play(step)
            self.finish()
        finally:
            self.close()

    def finish(self) -> None:
        """Check that a neighbour is served as ever, and that nothing is left of the others when they have gone."""
        neighbour = self.client()
        stream = neighbour.request("/neighbour/hello", end=True)
        self.settle()
        service, far = self.latest("/hello")
        service.respond(far, end=True)
        self.settle()
        assert neighbour.streams[stream].status == 200
        assert neighbour.streams[stream].ended
        self._collect_features()
        gone = 0
        while leaving := self.hostile[gone:]:
            gone += len(leaving)
            with self.loop.in_turn():
                for wire in leaving:
                    _act(wire, "reads")
                    _act(wire, "goes")
            # A request that its service has not processed may be sent again, on a new connection.
            self.settle()
        self.assert_at_rest()
        for wire in self.hostile:
            assert wire.protocol.closed
            assert wire.protocol.account.octets == 0

    def _collect_features(self) -> None:
        for wire in self.hostile:
            self.features |= cast(End, wire.end).features
        metrics = self.metrics
        for label, counted in metrics.routes.items():
            self.features |= {f"{label} {code}" for code in counted.by_code()}
            self.features |= {f"{label} reset {by} {code}" for by, code in counted.resets()}
            self.features |= {f"{label} {status}" for status in counted.by_status()}

    def ends(self) -> tuple[End | None, End | None]:
        """Return the ends of client and service that are connected now."""
        client, service = (
            cast(End, wire.end) if wire is not None and not wire.transport.is_closing() else None
            for wire in (self.client_end, self.service_end)
        )
        return client, service


def _send(wire: Wire, data: bytes) -> None:
    cast(End, wire.end).outgoing += data


def _act(wire: Wire, what: str) -> None:
    match what:
        case "stalls":
            wire.transport.stall()
        case "reads":
            wire.transport.resume()
        case "goes":
            wire.lose(ConnectionResetError("by the case"))
