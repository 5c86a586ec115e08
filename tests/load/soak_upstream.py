"""The upstream of the soak: does as the path says, and goes away again and again as Google's front end does.

::

    /echo           returns what it gets, as it comes
    /size/N         N octets
    /reset/CODE     a head, some content, RST_STREAM with that code
    /early          a whole response before the request has ended
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import h2.events
import h2.exceptions
from h2.settings import SettingCodes

from tests.support.peers.sockets import Gone, Peer, Reset

__all__ = ["Forgetful", "SoakPeer", "SoakUpstream", "octets"]

STREAMS: Final = 100
_CONNECTION_WINDOW: Final = 16 << 20
_FIRST_NOTICE: Final = (1 << 31) - 1
_NOTICE_SECONDS: Final = 0.05
_LINGER_SECONDS: Final = 5.0
_PATTERN: Final = bytes(range(256)) * 4096


def octets(count: int) -> bytes:
    """Return so many octets, at most a mebioctet."""
    return _PATTERN[:count]


class Forgetful(list[Any]):
    """A list that stays empty: a soak has no use for a record of everything."""

    def append(self, item: Any) -> None:
        """Do nothing."""


class SoakPeer(Peer):
    """A peer that keeps no record, reads some streams slowly, and tells of its end where requests are awaited."""

    def __init__(self, *, client: bool, **options: Any) -> None:
        super().__init__(client=client, **options)
        self.seen = Forgetful()
        self.slow: set[int] = set()
        """Streams whose window is given back only on demand."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # A stream that is read slowly must not keep the window from the others.
        self.h2.increment_flow_control_window(_CONNECTION_WINDOW - 65_535)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.heads.put_nowait((0, [], True))

    def _take(self, event: h2.events.Event) -> None:
        self.acknowledging = getattr(event, "stream_id", None) not in self.slow
        super()._take(event)


class SoakUpstream:
    """Serves each connection until it has had its share of streams, then says GOAWAY, or (sometimes) just cuts it."""

    def __init__(self, chance: random.Random, *, abort_share: float) -> None:
        self.connections = 0
        self.requests = 0
        self.went_away = 0
        self.aborted_at: list[float] = []
        """When connections were cut, on `time.monotonic`: what was under way then may fail."""
        self._chance = chance
        self._abort_share = abort_share
        self._peers: set[SoakPeer] = set()

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext) -> AsyncIterator[int]:
        """Listen for the time of a `with`; yields the port."""
        async with asyncio.TaskGroup() as connections:

            def made(peer: Peer) -> None:
                assert isinstance(peer, SoakPeer)
                self._peers.add(peer)
                connections.create_task(self._serve(peer))

            server = await asyncio.get_running_loop().create_server(
                lambda: SoakPeer(client=False, made=made, settings={SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS}),
                "127.0.0.1",
                ssl=tls,
            )
            try:
                yield server.sockets[0].getsockname()[1]
            finally:
                server.close()
                for peer in self._peers:
                    peer.transport.abort()

    async def _serve(self, peer: SoakPeer) -> None:
        self.connections += 1
        aborts, share = self._chance.random() < self._abort_share, self._chance.randint(50, 600)
        try:
            async with asyncio.TaskGroup() as streams:
                for _ in range(share):
                    stream_id, fields, _ = await peer.request()
                    if not stream_id:
                        return
                    streams.create_task(self._answer(peer, stream_id, fields))
                if aborts:
                    self.aborted_at.append(time.monotonic())
                    peer.transport.abort()
                else:
                    await self._go_away(peer, streams)
            # A request that is under way now will come again elsewhere. To close before it is read resets the
            # connection, and what the other side has not read yet would be lost, GOAWAY too.
            await asyncio.wait([peer.closed], timeout=_LINGER_SECONDS)
        finally:
            peer.transport.close()
            await peer.closed
            self._peers.discard(peer)

    async def _go_away(self, peer: SoakPeer, streams: asyncio.TaskGroup) -> None:
        """Say that the end is near, then where it is (RFC 9113, 6.8); what came until then is answered."""
        self.went_away += 1
        peer.go_away(_FIRST_NOTICE)
        await asyncio.sleep(_NOTICE_SECONDS)
        if peer.closed.done():
            return
        last = peer.h2.highest_inbound_stream_id
        peer.go_away(last)
        while not peer.heads.empty():
            stream_id, fields, _ = peer.heads.get_nowait()
            if 0 < stream_id <= last:
                streams.create_task(self._answer(peer, stream_id, fields))

    async def _answer(self, peer: SoakPeer, stream_id: int, fields: list[tuple[bytes, bytes]]) -> None:
        self.requests += 1
        what, _, number = dict(fields)[b":path"].decode().lstrip("/").partition("/")
        try:
            peer.respond(stream_id)
            if what == "echo":
                await _echo(peer, stream_id)
            elif what == "reset":
                await peer.send(stream_id, octets(1000))
                peer.reset(stream_id, int(number))
            else:
                await peer.send(stream_id, octets(int(number or 1000)), end=True)
                await peer.body(stream_id)
        except (Reset, Gone, h2.exceptions.ProtocolError):
            pass  # the stream was given up by the other side, or its connection is no more
        finally:
            peer.streams.pop(stream_id, None)


async def _echo(peer: SoakPeer, stream_id: int) -> None:
    while True:
        event = await peer.event(stream_id)
        if isinstance(event, h2.events.DataReceived):
            await peer.send(stream_id, event.data)
        elif isinstance(event, h2.events.StreamEnded):
            await peer.send(stream_id, b"", end=True)
            return
