"""TLS of upstream connections, with a peer on a real socket that sends its octets in any pieces."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Final, cast

import pytest

from proxy.connection.budget import Budget
from proxy.connection.flusher import Flusher
from proxy.emulator import Certificates
from proxy.http2.engine import Limits
from proxy.http2.portable.engine import PortableEngine
from proxy.routes import Origin
from proxy.upstream.connection import Timing, UpstreamConnection
from proxy.upstream.connector import tls_context
from proxy.upstream.tls import TlsTransport
from tests.support.peers.events import ConnectionLost, DataReceived, Event, HeadReceived
from tests.support.peers.raw import REQUEST
from tests.support.peers.receivers import RecordingReceiver
from tests.support.peers.sockets import server_context
from tests.support.peers.transport import MemoryTransport
from tests.unit.upstream.connecting import connector, left, listening

PREFACE_OCTETS: Final = 24
DATA: Final = 0
HEADERS: Final = 1
PING: Final = 6
GOAWAY: Final = 7
END_STREAM: Final = 1
END_HEADERS: Final = 4


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4) + payload


SETTINGS: Final = frame(4, 0, 0, (4).to_bytes(2) + (1 << 20).to_bytes(4)) + frame(8, 0, 0, (1 << 20).to_bytes(4))
RESPONSE: Final = frame(1, END_HEADERS, 1, b"\x88")
"""200 as the first response of a connection."""
LAST: Final = frame(DATA, END_STREAM, 1)


class Peer:
    """A TLS server on one connection, which does TLS itself."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._reader, self._writer = reader, writer
        self.clear = bytearray()
        """What the client has sent."""
        self.said_goodbye = False
        """Whether the client has sent close_notify."""

    async def shake_hands(self) -> None:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                break
            self._writer.write(self._outgoing.read())
            self._incoming.write(await self._reader.read(1 << 16))

    def encrypted(self, octets: bytes) -> bytes:
        """Return TLS records with these octets, behind what else there is to send."""
        sent = 0
        while sent < len(octets):
            sent += self._tls.write(octets[sent:])
        return self._outgoing.read()

    async def send(self, octets: bytes, pieces: Callable[[], int] = lambda: 1 << 30) -> None:
        """Send octets of TLS in pieces of these lengths, one a turn of the loop."""
        while octets:
            length = pieces()
            self._writer.write(octets[:length])
            octets = octets[length:]
            await self._writer.drain()
            await asyncio.sleep(0)

    async def receive(self) -> bool:
        """Read and decrypt; return False at the end of the connection."""
        received = await self._reader.read(1 << 16)
        self._incoming.write(received)
        with contextlib.suppress(ssl.SSLWantReadError):
            try:
                while clear := self._tls.read(1 << 16):
                    self.clear += clear
                self.said_goodbye = True
            except ssl.SSLZeroReturnError:
                self.said_goodbye = True
        return bool(received)

    def goodbye(self) -> bytes:
        """Return close_notify."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._outgoing.read()

    def frames(self) -> list[tuple[int, int, bytes]]:
        """Return kind, flags and payload of what the client has sent behind its preface."""
        rest, found = bytes(self.clear[PREFACE_OCTETS:]), []
        while len(rest) >= 9 and len(rest) >= 9 + int.from_bytes(rest[:3]):
            length = int.from_bytes(rest[:3])
            found.append((rest[3], rest[4], rest[9 : 9 + length]))
            rest = rest[9 + length :]
        return found


@asynccontextmanager
async def connected(
    certificates: Certificates,
    script: Callable[[Peer], Awaitable[None]],
    version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> AsyncIterator[UpstreamConnection]:
    """A connection to a peer that follows a script once TLS stands; `version` is the newest that it speaks."""
    context = server_context(*certificates.server_files("localhost"))
    context.maximum_version = version

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(context, reader, writer)
        await peer.shake_hands()
        await script(peer)

    async with listening(converse) as port:
        connection = await connector(PortableEngine, upstream_ca=certificates.ca_file).connect(
            Origin("https", "localhost", port)
        )
        yield connection
        await connection.gone


async def until_read(peer: Peer, done: Callable[[], bool]) -> None:
    while not done() and await peer.receive():
        pass


class Receiver(RecordingReceiver):
    """Tells when its stream has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    def note(self, event: Event) -> None:
        super().note(event)
        if isinstance(event, ConnectionLost) or getattr(event, "end_stream", False):
            self.over.set()

    @property
    def content(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, DataReceived))


def has(peer: Peer, kind: int) -> bool:
    """Tell whether the client has sent a frame of this kind."""
    return any(found == kind for found, _, _ in peer.frames())


async def greet(peer: Peer) -> None:
    """Send SETTINGS, and wait for a request."""
    await peer.send(peer.encrypted(SETTINGS))
    await until_read(peer, lambda: has(peer, HEADERS))


async def the_end(peer: Peer) -> None:
    """Read until the client has closed the connection."""
    while await peer.receive():
        pass


@pytest.mark.parametrize(
    "largest", [1, 7, 1_000, 16_405, 100_000], ids=["1", "7", "1,000", "one record", "several records"]
)
@pytest.mark.asyncio
async def test_content_arrives_in_whatever_pieces_its_records_come(certificates: Certificates, largest: int) -> None:
    lengths = random.Random(largest)
    sent = lengths.randbytes(1_000 if largest < 10 else 60_000)

    async def answer(peer: Peer) -> None:
        await greet(peer)
        frames = [frame(DATA, 0, 1, sent[at : at + 16_384]) for at in range(0, len(sent), 16_384)]
        octets = peer.encrypted(RESPONSE) + peer.encrypted(b"".join(frames)) + peer.encrypted(LAST)
        await peer.send(octets, lambda: lengths.randint(1, largest))
        await the_end(peer)

    async with connected(certificates, answer) as connection:
        receiver = Receiver()
        connection.open(REQUEST, True, receiver)
        await receiver.over.wait()
        assert receiver.content == sent
        await left(connection)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.asyncio
async def test_what_comes_with_the_end_of_the_handshake_is_served(
    certificates: Certificates, version: ssl.TLSVersion
) -> None:
    async def answer(peer: Peer) -> None:
        # Nothing has been sent since the client's last octets: Finished (with TLS 1.3, tickets), SETTINGS, and no more.
        await peer.send(peer.encrypted(SETTINGS))
        await the_end(peer)

    async with connected(certificates, answer, version) as connection:
        await left(connection)


@pytest.mark.asyncio
async def test_content_of_many_records_leaves_whole(certificates: Certificates) -> None:
    sent = random.Random(1).randbytes(900_000)
    arrived = asyncio.get_running_loop().create_future()

    async def answer(peer: Peer) -> None:
        await peer.send(peer.encrypted(SETTINGS))
        await until_read(peer, lambda: any(kind == DATA and flags for kind, flags, _ in peer.frames()))
        arrived.set_result(b"".join(payload for kind, _, payload in peer.frames() if kind == DATA))
        await the_end(peer)

    async with connected(certificates, answer) as connection:
        connection.open(REQUEST, False, Receiver()).send_data(sent, True)
        assert await arrived == sent
        await left(connection)


@pytest.mark.asyncio
async def test_nothing_is_served_while_reading_is_paused(certificates: Certificates) -> None:
    sent = asyncio.Event()

    async def answer(peer: Peer) -> None:
        await greet(peer)
        await peer.send(peer.encrypted(RESPONSE) + peer.encrypted(frame(DATA, END_STREAM, 1, b"late")))
        sent.set()
        await the_end(peer)

    async with connected(certificates, answer) as connection:
        receiver = Receiver()
        assert connection.transport is not None
        connection.transport.pause_reading()
        connection.open(REQUEST, True, receiver)
        await sent.wait()
        assert not receiver.events
        connection.transport.resume_reading()
        await receiver.over.wait()
        assert receiver.content == b"late"
        await left(connection)


@pytest.mark.asyncio
async def test_what_was_read_before_a_pause_is_served_before_the_end(certificates: Certificates) -> None:
    whole = random.Random(1).randbytes(150_000)
    closed, paused = asyncio.Event(), asyncio.Event()

    class Pausing(Receiver):
        """Pauses at the first content, while more of the same read waits."""

        def note(self, event: Event) -> None:
            if isinstance(event, DataReceived) and not paused.is_set():
                assert connection.transport is not None
                connection.transport.pause_reading()
                paused.set()
            super().note(event)

    async def answer(peer: Peer) -> None:
        await greet(peer)
        frames = [frame(DATA, 0, 1, whole[at : at + 16_384]) for at in range(0, len(whole), 16_384)]
        await peer.send(peer.encrypted(RESPONSE + b"".join(frames) + LAST))
        closed.set()

    async with connected(certificates, answer) as connection:
        receiver = Pausing()
        connection.open(REQUEST, True, receiver)
        await closed.wait()
        await paused.wait()
        # Where the machine is slow, the connection itself has paused in this read, and goes on after it.
        for _ in range(100):
            await asyncio.sleep(0)
        assert connection.transport is not None
        connection.transport.resume_reading()
        await receiver.over.wait()
        assert receiver.content == whole
        assert not receiver.ends


@pytest.mark.asyncio
async def test_after_a_pause_nothing_is_read_before_all_is_served(certificates: Certificates) -> None:
    loop = asyncio.get_running_loop()
    connection = UpstreamConnection(
        lambda handler: PortableEngine(client=True, limits=Limits(), handler=handler),
        Budget(1 << 20),
        Flusher(loop),
        origin=Origin("https", "localhost", 443),
        timing=Timing(),
    )
    tls = TlsTransport(connection, tls_context(certificates.ca_file), "localhost")
    near, far = socket.socketpair()
    near.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=far)
    with near, closing(writer):
        peer = Peer(server_context(*certificates.server_files("localhost")), reader, writer)
        await asyncio.gather(tls.shake_hands(loop, near), peer.shake_hands())
        transport = MemoryTransport(loop, cast(asyncio.Protocol, tls))
        tls.connection_made(transport)
        tls.data_received(peer.encrypted(SETTINGS))
        receiver = Receiver()
        connection.open(REQUEST, True, receiver)
        tls.pause_reading()
        tls.data_received(peer.encrypted(RESPONSE + frame(DATA, END_STREAM, 1, b"before the end")))
        tls.resume_reading()
        assert not receiver.events
        assert transport.reading_paused, "the end of the connection may be what comes next"
        await receiver.over.wait()
        assert receiver.content == b"before the end"
        assert not transport.reading_paused
        connection.abort()
        await connection.gone


@pytest.mark.asyncio
async def test_a_closed_connection_says_goodbye_behind_its_last_frames(certificates: Certificates) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def answer(peer: Peer) -> None:
        await peer.send(peer.encrypted(SETTINGS))
        await until_read(peer, lambda: peer.said_goodbye)
        # It takes no harm from what the peer still sends, and waits until the peer closes, too.
        await peer.send(peer.encrypted(frame(PING, 0, 0, bytes(8))))
        await the_end(peer)
        ended.set_result((peer.frames()[-1][0], peer.said_goodbye))

    async with connected(certificates, answer) as connection:
        await left(connection)
        assert await ended == (GOAWAY, True)


@pytest.mark.parametrize("politely", [True, False], ids=["close_notify", "no close_notify"])
@pytest.mark.asyncio
async def test_a_peer_that_closes_ends_the_connection(certificates: Certificates, politely: bool) -> None:
    async def answer(peer: Peer) -> None:
        await greet(peer)
        await peer.send(peer.encrypted(RESPONSE) + peer.encrypted(frame(DATA, 0, 1, b"some")))
        if politely:
            await peer.send(peer.goodbye())

    async with connected(certificates, answer) as connection:
        receiver = Receiver()
        connection.open(REQUEST, True, receiver)
        await receiver.over.wait()
        assert receiver.content == b"some"
        assert "closed by the peer" in str(receiver.failure)


@pytest.mark.asyncio
async def test_a_record_that_was_changed_on_its_way_ends_the_connection(certificates: Certificates) -> None:
    async def answer(peer: Peer) -> None:
        await greet(peer)
        good, changed = peer.encrypted(RESPONSE), bytearray(peer.encrypted(LAST))
        changed[-1] ^= 1
        await peer.send(good + changed)
        with contextlib.suppress(ConnectionError):
            await the_end(peer)

    async with connected(certificates, answer) as connection:
        receiver = Receiver()
        connection.open(REQUEST, True, receiver)
        await receiver.over.wait()
        assert [type(event) for event in receiver.events] == [HeadReceived, ConnectionLost]
        assert re.search("BAD_RECORD_MAC|RECORD_LAYER_FAILURE", str(receiver.failure))  # OpenSSL before 3.2, and since
