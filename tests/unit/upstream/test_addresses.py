"""A service with several addresses on real sockets: one of them accepts connections and does not serve."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pytest
import structlog

from proxy.emulator import Certificates
from proxy.errors import UpstreamConnectTimeout, UpstreamTlsFailed
from proxy.http2.choice import EngineFactory
from proxy.network.resolver import AddressInfo, Resolver
from proxy.routes import Origin
from proxy.upstream.addresses import Addresses, Attempts
from proxy.upstream.connection import UpstreamConnection
from tests.support.peers.engines import each_bare_engine
from tests.support.peers.sockets import Peer, server_context
from tests.unit.upstream.connecting import connector, left

NAME: Final = "greeter.example"
V6: Final = "::1"
V4: Final = "127.0.0.1"
ALERT: Final = bytes.fromhex("15 0303 0002 02 28")
"""Fatal alert: handshake_failure (RFC 8446, 6.2)."""


class Names(Resolver):
    """Resolves the one name to IPv6 loopback, IPv4 loopback, and further ones of that."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self._hosts = hosts

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        return [
            AddressInfo(*entry)
            for at in self._hosts
            for entry in socket.getaddrinfo(at, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        ]


class Broken(asyncio.Protocol):
    """Accepts a connection, and is silent, refuses TLS, or closes at the first octets."""

    def __init__(self, way: str, service: Service) -> None:
        self._way = way
        self._service = service

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._service.broken += 1
        self._service.open += 1

    def data_received(self, data: bytes) -> None:
        if self._way == "refuses TLS":
            self._transport.write(ALERT)
        if self._way != "is silent":
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.open -= 1
        self._service.changed.set()


@dataclass
class Service:
    """Listens on one port of several addresses."""

    port: int = 0
    broken: int = 0
    """Connections that a broken address has accepted."""
    open: int = 0
    """Those of them that are open."""
    peers: list[Peer] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def none_open(self) -> None:
        """Wait until no connection to a broken address is left."""
        while self.open:
            self.changed.clear()
            await self.changed.wait()


def bound(hosts: Iterable[str]) -> list[socket.socket]:
    """Return a listening socket for each address, all on one port.

    A port that is free on one address may be in use on another one, by an outgoing connection or for a minute after it.
    """
    while True:
        with ExitStack() as closing:
            port = 0
            made = []
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                try:
                    made.append(closing.enter_context(socket.create_server((host, port), family=family)))
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                    break
                port = made[0].getsockname()[1]
            else:
                closing.pop_all()
                return made


@asynccontextmanager
async def service(tls: ssl.SSLContext | None, ways: dict[str, str]) -> AsyncIterator[Service]:
    """Listen on each of the addresses, in the way that is named for it: "serves" or one of `Broken`."""
    it = Service()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as closing:
        for sock, way in zip(bound(ways), ways.values(), strict=True):
            if way == "serves":
                made = await loop.create_server(lambda: Peer(client=False, made=it.peers.append), sock=sock, ssl=tls)
            else:
                made = await loop.create_server(partial(Broken, way, it), sock=sock)
            closing.callback(made.close)
            it.port = sock.getsockname()[1]
        yield it


async def connected_to(connection: UpstreamConnection) -> str:
    """Return the address of the peer, and close the connection."""
    assert connection.transport is not None
    host: str = connection.transport.get_extra_info("peername")[0]
    await left(connection)
    return host


@each_bare_engine
@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["is silent", "refuses TLS", "closes"])
async def test_ipv4_serves_where_ipv6_accepts_connections_and_does_not_serve(
    make: EngineFactory, certificates: Certificates, way: str
) -> None:
    tls = server_context(*certificates.server_files(NAME))
    async with service(tls, {V6: way, V4: "serves"}) as it:
        connecting = connector(make, upstream_ca=certificates.ca_file, resolver=Names(V6, V4))
        with structlog.testing.capture_logs() as lines:
            first = await connecting.connect(Origin("https", NAME, it.port))
            assert (await connected_to(first), it.broken) == (V4, 1)
            again = await connecting.connect(Origin("https", NAME, it.port))
            assert (await connected_to(again), it.broken) == (V4, 1), "the other address is remembered"
        await it.none_open()
    (line,) = [line for line in lines if "does not serve" in line["event"]]
    assert (line["log_level"], line["address"]) == ("warning", V6)


@pytest.mark.asyncio
async def test_a_plain_http_service_that_is_silent_on_ipv6_is_reached_by_ipv4() -> None:
    async with service(None, {V6: "is silent", V4: "serves"}) as it:
        connection = await connector(resolver=Names(V6, V4)).connect(Origin("http", NAME, it.port))
        assert (await connected_to(connection), it.broken) == (V4, 1)


@pytest.mark.asyncio
async def test_an_address_that_is_remembered_is_used_where_no_other_serves(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files(NAME))
    async with AsyncExitStack() as second:
        async with service(tls, {V6: "refuses TLS", V4: "serves"}) as it:
            connecting = connector(upstream_ca=certificates.ca_file, resolver=Names(V6, V4))
            origin = Origin("https", NAME, it.port)
            assert await connected_to(await connecting.connect(origin)) == V4
        await second.enter_async_context(at_port(it.port, tls))
        assert await connected_to(await connecting.connect(origin)) == V6


@asynccontextmanager
async def at_port(port: int, tls: ssl.SSLContext) -> AsyncIterator[None]:
    """Serve on this port of IPv6 loopback, and refuse connections to that of IPv4."""
    listening = await asyncio.get_running_loop().create_server(lambda: Peer(client=False), V6, port, ssl=tls)
    try:
        yield
    finally:
        listening.close()


@pytest.mark.asyncio
async def test_where_no_address_serves_the_first_failure_is_reported(certificates: Certificates) -> None:
    async with service(None, {V6: "refuses TLS", V4: "is silent"}) as it:
        connecting = connector(resolver=Names(V6, V4), connect_timeout_seconds=0.5)
        with structlog.testing.capture_logs() as lines, pytest.raises(UpstreamTlsFailed, match="HANDSHAKE"):
            await connecting.connect(Origin("https", NAME, it.port))
        await it.none_open()
    assert not lines, "that may be the service's fault"


@pytest.mark.asyncio
async def test_of_several_failures_the_first_is_reported() -> None:
    async with service(None, {V6: "refuses TLS", V4: "closes"}) as it:
        with pytest.raises(UpstreamTlsFailed, match="HANDSHAKE"):
            await connector(resolver=Names(V6, V4)).connect(Origin("https", NAME, it.port))


@pytest.mark.asyncio
async def test_the_other_family_is_tried_before_another_address_of_the_same(certificates: Certificates) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", V6)
    tls = server_context(*certificates.server_files(NAME))
    async with service(tls, {**dict.fromkeys(hosts[:2], "refuses TLS"), V6: "serves"}) as it:
        connecting = connector(upstream_ca=certificates.ca_file, resolver=Names(*hosts))
        connection = await connecting.connect(Origin("https", NAME, it.port))
        assert (await connected_to(connection), it.broken) == (V6, 1)


@pytest.mark.asyncio
async def test_where_all_addresses_are_silent_the_deadline_ends_all_attempts() -> None:
    async with service(None, {V6: "is silent", V4: "is silent"}) as it:
        connecting = connector(resolver=Names(V6, V4), connect_timeout_seconds=1.3)
        with pytest.raises(UpstreamConnectTimeout, match=r"within 1\.3 s"):
            await connecting.connect(Origin("https", NAME, it.port))
        assert it.broken == 2
        await it.none_open()


@pytest.mark.asyncio
async def test_a_service_that_refuses_tls_on_all_of_many_addresses_is_dialled_four_times() -> None:
    hosts = [f"127.0.0.{number}" for number in range(1, 10)]
    async with service(None, dict.fromkeys(hosts, "refuses TLS")) as it:
        with pytest.raises(UpstreamTlsFailed):
            await connector(resolver=Names(*hosts)).connect(Origin("https", NAME, it.port))
        assert it.broken == 4


@pytest.mark.asyncio
@pytest.mark.parametrize(("way", "at_a_time", "seconds"), [("is silent", 1, 0.9), ("refuses TLS", 4, 10.0)])
async def test_the_next_connection_begins_with_addresses_that_were_not_tried(
    certificates: Certificates, way: str, at_a_time: int, seconds: float
) -> None:
    *broken, good = [f"127.0.0.{number}" for number in range(1, 2 * at_a_time + 2)]
    tls = server_context(*certificates.server_files(NAME))
    async with service(tls, {**dict.fromkeys(broken, way), good: "serves"}) as it:
        connecting = connector(
            upstream_ca=certificates.ca_file, resolver=Names(*broken, good), connect_timeout_seconds=seconds
        )
        for _ in range(2):
            with pytest.raises((UpstreamTlsFailed, UpstreamConnectTimeout)):
                await connecting.connect(Origin("https", NAME, it.port))
        assert await connected_to(await connecting.connect(Origin("https", NAME, it.port))) == good
        await it.none_open()


@pytest.mark.asyncio
async def test_a_cancellation_while_spare_attempts_end_loses_no_connection() -> None:
    """Both addresses accept; the second is ready first, and the attempt on the first one takes long to end."""
    loop = asyncio.get_running_loop()
    ending, may_end = asyncio.Event(), asyncio.Event()
    made: list[str] = []
    dropped: list[str] = []

    async def handshake(connected: socket.socket) -> str:
        with connected:
            made.append(connected.getpeername()[0])
            if len(made) > 1:
                return "ready"
            try:
                await loop.create_future()
            finally:
                ending.set()
                await may_end.wait()
            raise AssertionError

    async with service(None, {V6: "is silent", V4: "is silent"}) as it:
        attempts = Attempts(Addresses(loop.time), handshake, dropped.append)
        task = loop.create_task(attempts.first_ready(await Names(V6, V4).resolve(NAME, it.port)))
        await ending.wait()
        task.cancel()
        may_end.set()
        [result] = await asyncio.gather(task, return_exceptions=True)
        assert dropped == ["ready"] if isinstance(result, BaseException) else result == "ready"


@pytest.mark.asyncio
async def test_a_spare_connection_that_is_ready_in_the_same_turn_is_dropped() -> None:
    loop = asyncio.get_running_loop()
    both = asyncio.Event()
    made: list[int] = []
    dropped: list[int] = []
    gone = asyncio.Event()

    def drop(connection: int) -> None:
        dropped.append(connection)
        gone.set()

    async def handshake(connected: socket.socket) -> int:
        with connected:
            made.append(len(made))
            number = made[-1]
            if number:
                both.set()
            await both.wait()
            return number

    async with service(None, {V6: "is silent", V4: "is silent"}) as it:
        addresses = await Names(V6, V4).resolve(NAME, it.port)
        won = await Attempts(Addresses(loop.time), handshake, drop).first_ready(addresses)
        await gone.wait()
        assert [won, *dropped] in ([0, 1], [1, 0])


@pytest.mark.asyncio
async def test_an_address_is_not_blamed_for_what_this_machine_lacks() -> None:
    known = Addresses(asyncio.get_running_loop().time)
    dropped: list[str] = []

    async def handshake(connected: socket.socket) -> str:
        with connected:
            if connected.family == socket.AF_INET6:
                raise OSError(errno.EMFILE, "no descriptor is left")
            return "ready"

    async with service(None, {V6: "is silent", V4: "is silent"}) as it:
        addresses = await Names(V6, V4).resolve(NAME, it.port)
        assert await Attempts(known, handshake, dropped.append).first_ready(addresses) == "ready"
    assert not any(map(known.is_avoided, addresses))


@pytest.mark.asyncio
async def test_an_address_that_accepts_no_connection_is_not_remembered() -> None:
    """Nothing is lost by trying it first: the system says at once that it refuses."""
    known = Addresses(asyncio.get_running_loop().time)
    dropped: list[str] = []
    refused = asyncio.Event()

    class Watched(Attempts[str]):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "failure" and value is not None:
                refused.set()

    async def handshake(connected: socket.socket) -> str:
        with connected:
            await refused.wait()
            return "ready"

    async with service(None, {V6: "is silent"}) as it:
        addresses = await Names(V6, V4).resolve(NAME, it.port)
        assert await Watched(known, handshake, dropped.append).first_ready(addresses) == "ready"
    assert not any(map(known.is_avoided, addresses))


def test_addresses_are_avoided_for_ten_minutes_and_not_without_bound() -> None:
    now = 1_000.0
    known = Addresses(lambda: now)
    addresses = [
        AddressInfo(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.{number // 256}.{number % 256}", 443))
        for number in range(1_100)
    ]
    for address in addresses:
        known.has_failed(address, "closed")
    assert known.is_avoided(addresses[-1])
    assert not known.is_avoided(addresses[0]), "the oldest are forgotten"
    oldest, following = addresses[-1_024:][:2]
    assert known.is_avoided(oldest)
    known.has_failed(following, "closed")
    assert known.is_avoided(oldest), "nothing is forgotten for one that is known"
    known.has_failed(addresses[0], "closed")
    assert not known.is_avoided(oldest)
    known.has_failed(addresses[1], "closed")
    assert known.is_avoided(following), "it has failed again, so it is not the oldest"
    now += 599
    assert known.is_avoided(addresses[-1])
    known.has_failed(addresses[-1], "closed")
    now += 2
    assert not known.is_avoided(addresses[-2])
    assert known.is_avoided(addresses[-1])
    known.has_served(addresses[-1])
    assert not known.is_avoided(addresses[-1])
