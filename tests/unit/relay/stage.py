"""The stage of the tests of the relay: the data path in memory, an exchange that has begun, and a mint in hand."""

from __future__ import annotations

import asyncio
from itertools import count

from proxy.http2.choice import EngineFactory
from proxy.http2.engine import Limits
from proxy.http2.events import Fields, StreamId
from proxy.request_identity import Verifier
from proxy.routes import AllowLists, Route
from proxy.tokens.model import Token, TokenKey
from proxy.tokens.source import TokenSource
from tests.support.data_path import World, route
from tests.support.peers.memory import Client, Service

TOKEN_FIELD = b"x-serverless-authorization"
HOUR = 3_600.0
EXCHANGE_OCTETS = 4_096
"""What is charged for each exchange beside its head and content."""

WINDOW = 40_000
DISCARDED = 64 << 10
SMALL = Limits(stream_window_octets=WINDOW)
TRAILERS: Fields = [(b"x-checksum", b"1", False)]


def begun(world: World, *, end: bool = False, path: str = "/x") -> tuple[Client, StreamId, Service, StreamId]:
    """Return both ends of an exchange whose request head has arrived."""
    client = world.client()
    stream = client.request(f"/svc{path}", end=end)
    world.settle()
    return client, stream, *world.latest(path)


class Signed(World):
    """A world with one signed route, whose mint the test controls."""

    def __init__(
        self,
        make: EngineFactory,
        *routes: Route,
        access_log: bool = False,
        allowed: AllowLists | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.mints: list[TokenKey] = []
        self.failure: Exception | None = None
        self.principal: str | None = None
        self.may_mint = asyncio.Event()
        self.may_mint.set()
        self._numbers = count(1)
        super().__init__(
            *(routes or (route("svc", signed=True),)),
            make=make,
            tokens=lambda clock: TokenSource(self._mint, clock=clock, random_fraction=lambda: 0.0),
            access_log=access_log,
            allowed=allowed,
            verifier=verifier,
        )

    async def _mint(self, key: TokenKey) -> Token:
        self.mints.append(key)
        number = next(self._numbers)
        await self.may_mint.wait()
        if self.failure is not None:
            raise self.failure
        return Token(
            key=key, authorization=b"Bearer %d" % number, expires_at=self.wall + HOUR, principal=self.principal
        )

    def tokens_of(self, path: str) -> list[bytes]:
        """Return every token field with which a request has arrived, attempt by attempt."""
        return [
            value
            for service, stream_id in self.arrivals(path)
            for name, value, _ in service.streams[stream_id].head or []
            if b"serverless" in name
        ]

    def respond(self, path: str, status: int = 200, *, challenge: bytes = b"") -> None:
        """Answer the latest request with this path, and settle."""
        service, far = self.latest(path)
        service.respond(far, status, fields=[(b"www-authenticate", challenge)] if challenge else [], end=True)
        self.settle()


def get(world: World, client: Client, path: str) -> int:
    """Send a request and return its stream, all of it settled."""
    stream = client.request(path, method="GET", end=True)
    world.settle()
    return stream


def get_by(world: World, client: Client, method: str) -> int:
    """Send a request with this method and return its stream, all of it settled."""
    stream = client.request("/svc/x", method=method, end=True)
    world.settle()
    return stream
