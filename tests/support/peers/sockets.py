"""One end of an HTTP/2 connection that the test drives: python-hyper h2 on a real socket, which does nothing by itself.

Windows are given back as data is read from the peer, or only on demand (`acknowledging=False`).
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame

Fields = list[tuple[bytes, bytes]]


class Reset(Exception):
    """The other end reset the stream."""

    def __init__(self, code: int) -> None:
        super().__init__(f"reset with code {code}")
        self.code = code


class Gone(Exception):
    """The connection has ended."""


@dataclass(frozen=True, slots=True)
class Response:
    """One whole response."""

    status: int
    fields: dict[bytes, bytes]
    content: bytes
    trailers: Fields | None


class _Connection(h2.connection.H2Connection):
    """h2 refuses to go on after GOAWAY; a peer in a test must be able to."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        event = h2.events.ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data
        return [], [event]


class Peer(asyncio.Protocol):
    """A client or a server; see the module."""

    def __init__(
        self,
        *,
        client: bool,
        scheme: str = "http",
        authority: str = "sidecar",
        acknowledging: bool = True,
        settings: dict[SettingCodes, int] | None = None,
        made: Callable[[Peer], None] | None = None,
    ) -> None:
        self._made = made
        self._origin = [(b":scheme", scheme.encode()), (b":authority", authority.encode())]
        self.h2 = _Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        # Huffman codes in Python take seconds for what a test sends in large fields.
        self.h2.encoder.encode = functools.partial(self.h2.encoder.encode, huffman=False)  # type: ignore[method-assign]
        # Only initial values are sent; `update` would have an acknowledgement apply what was never sent.
        self.h2.local_settings = h2.settings.Settings(
            client=client, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: 1000, **(settings or {})}
        )
        self.acknowledging = acknowledging
        self.heads: asyncio.Queue[tuple[int, Fields, bool]] = asyncio.Queue()
        """Request heads, on a server: stream, fields, whether the stream has ended with it."""
        self.seen: list[h2.events.Event] = []
        self.streams: dict[int, asyncio.Queue[h2.events.Event | None]] = defaultdict(asyncio.Queue)
        self.windows = asyncio.Event()
        self.pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self.went_away: asyncio.Future[h2.events.ConnectionTerminated] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unacknowledged: dict[int, int] = defaultdict(int)
        self.data_frames: dict[int, list[int]] = defaultdict(list)
        self.transport: asyncio.Transport

    # ---- the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()
        if self._made is not None:
            self._made(self)

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            self._take(event)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self.windows.set()
        for queue in self.streams.values():
            queue.put_nowait(None)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def _take(self, event: h2.events.Event) -> None:
        self.seen.append(event)
        match event:
            case h2.events.RequestReceived():
                self.heads.put_nowait((event.stream_id, _plain(event.headers), event.stream_ended is not None))
            case h2.events.DataReceived():
                self.data_frames[event.stream_id].append(len(event.data))
                if self.acknowledging:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                else:
                    self.unacknowledged[event.stream_id] += event.flow_controlled_length
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self.windows.set()
            case h2.events.PingAckReceived():
                self.pongs.put_nowait(event.ping_data)
            case h2.events.ConnectionTerminated():
                if not self.went_away.done():
                    self.went_away.set_result(event)
            case _:
                pass
        stream_id = getattr(event, "stream_id", None)
        if stream_id and not isinstance(event, h2.events.WindowUpdated | h2.events.PriorityUpdated):
            self.streams[stream_id].put_nowait(event)

    # ---- sending

    def open(self, path: str, *, method: str = "POST", fields: Fields | None = None, end: bool = False) -> int:
        """Send a request head and return its stream."""
        stream_id = self.queue(path, method=method, fields=fields, end=end)
        self.flush()
        return stream_id

    def queue(self, path: str, *, method: str = "POST", fields: Fields | None = None, end: bool = False) -> int:
        """Queue a request head for the next `flush` and return its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        head = [(b":method", method.encode()), *self._origin, (b":path", path.encode()), *(fields or [])]
        self.h2.send_headers(stream_id, head, end_stream=end)
        return stream_id

    def respond(self, stream_id: int, status: int = 200, fields: Fields | None = None, *, end: bool = False) -> None:
        """Send a response head."""
        self.h2.send_headers(stream_id, [(b":status", str(status).encode()), *(fields or [])], end_stream=end)
        self.flush()

    def trailers(self, stream_id: int, fields: Fields) -> None:
        """Send a trailer section."""
        self.h2.send_headers(stream_id, fields, end_stream=True)
        self.flush()

    async def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send data as the windows allow; Gone if the connection ends before."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if room <= 0:
                self.windows.clear()
                if not self.closed.done():
                    await self.windows.wait()
                if self.closed.done():
                    raise Gone
                continue
            self.h2.send_data(stream_id, bytes(view[:room]))
            view = view[room:]
            self.flush()
        if end:
            self.h2.send_data(stream_id, b"", end_stream=True)
            self.flush()

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM."""
        self.h2.reset_stream(stream_id, code)
        self.flush()

    def raw(self, *frames: Frame) -> None:
        """Send frames that h2 would not."""
        self.flush()
        self.transport.write(b"".join(frame.serialize() for frame in frames))

    def go_away(self, last_stream_id: int, code: int = 0) -> None:
        """Send GOAWAY and go on."""
        self.raw(GoAwayFrame(0, last_stream_id=last_stream_id, error_code=code))

    def acknowledge(self, stream_id: int) -> int:
        """Give back all that is owed for a stream; return how much it was."""
        octets, self.unacknowledged[stream_id] = self.unacknowledged[stream_id], 0
        if octets:
            self.h2.acknowledge_received_data(octets, stream_id)
            self.flush()
        return octets

    # ---- receiving

    async def event(self, stream_id: int) -> h2.events.Event:
        """Return the stream's next event; Reset or Gone where it is over."""
        events = self.streams[stream_id]
        if self.closed.done() and events.empty():  # opened after the end, or asked again
            raise Gone
        event = await events.get()
        if event is None:
            raise Gone
        if isinstance(event, h2.events.StreamReset):
            raise Reset(int(event.error_code))
        return event

    async def request(self) -> tuple[int, Fields, bool]:
        """Return the next request head that came."""
        return await self.heads.get()

    async def head(self, stream_id: int) -> dict[bytes, bytes]:
        """Return the final response head."""
        while True:
            event = await self.event(stream_id)
            if isinstance(event, h2.events.ResponseReceived):
                return dict(_plain(event.headers))

    async def response(self, stream_id: int) -> Response:
        """Return the whole response, when the stream has ended."""
        fields = await self.head(stream_id)
        content, trailers = await self.rest(stream_id)
        return Response(int(fields.pop(b":status")), fields, content, trailers)

    async def body(self, stream_id: int) -> bytes:
        """Return what is left of the content, up to the end of the stream."""
        content, _ = await self.rest(stream_id)
        return content

    async def rest(self, stream_id: int) -> tuple[bytes, Fields | None]:
        """Return what is left of the content, and the trailer section if there is one."""
        content = bytearray()
        trailers: Fields | None = None
        while True:
            event = await self.event(stream_id)
            if isinstance(event, h2.events.DataReceived):
                content += event.data
            elif isinstance(event, h2.events.TrailersReceived):
                trailers = _plain(event.headers)
            elif isinstance(event, h2.events.StreamEnded):
                return bytes(content), trailers

    async def data(self, stream_id: int) -> bytes:
        """Return the content of the next DATA frame."""
        while True:
            event = await self.event(stream_id)
            if isinstance(event, h2.events.DataReceived):
                return event.data
            assert not isinstance(event, h2.events.StreamEnded), "the stream ended before more data"

    async def ping(self, payload: bytes = b"12345678") -> bytes:
        """Send PING and return the payload that comes back."""
        self.h2.ping(payload)
        self.flush()
        return await self.pongs.get()

    async def close(self) -> None:
        """Close the transport and wait for it."""
        self.transport.close()
        await self.closed


class Server:
    """Listens, and hands out a `Peer` for each connection."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.connections: asyncio.Queue[Peer] = asyncio.Queue()
        self.peers: list[Peer] = []
        self.port = 0
        self._server: asyncio.Server

    async def start(self, tls: ssl.SSLContext | None, port: int = 0, *, host: str = "127.0.0.1") -> Self:
        """Listen on a port, by default a free one."""
        self._server = await asyncio.get_running_loop().create_server(self._accept, host, port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _accept(self) -> Peer:
        return Peer(client=False, made=self._made, **self.options)

    def _made(self, peer: Peer) -> None:
        self.peers.append(peer)
        self.connections.put_nowait(peer)

    async def accepted(self) -> Peer:
        """Return the next connection that came."""
        return await self.connections.get()

    async def request(self) -> tuple[Peer, int, Fields, bool]:
        """Return the next request on the only connection there is, or will be."""
        peer = self.peers[0] if self.peers else await self.accepted()
        stream_id, fields, ended = await peer.request()
        return peer, stream_id, fields, ended

    async def close(self) -> None:
        """Stop listening and close every connection."""
        self._server.close()
        for peer in self.peers:
            # Up to Python 3.11.3 a TLS transport that was closed twice has nothing left that it could abort.
            if not peer.closed.done():
                peer.transport.abort()
            await peer.closed


@asynccontextmanager
async def server(tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Server]:
    """A listening server for the time of a `with`."""
    listening = await Server(**options).start(tls)
    try:
        yield listening
    finally:
        await listening.close()


@asynccontextmanager
async def client(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, address: str | None = None, **options: Any
) -> AsyncIterator[Peer]:
    """A connected client for the time of a `with`: h2c, or h2 over `tls`; `address` is its own one."""
    loop = asyncio.get_running_loop()
    local = None if address is None else (address, 0)
    _, peer = await loop.create_connection(lambda: Peer(client=True, **options), host, port, ssl=tls, local_addr=local)
    try:
        yield peer
    finally:
        if tls is not None and not peer.closed.done():
            # A server that does not read would keep an orderly end of TLS waiting.
            peer.transport.abort()
            await peer.closed
        else:
            await peer.close()


def server_context(certificate: Any, key: Any, *, alpn: list[str] | None = None) -> ssl.SSLContext:
    """A TLS server context that offers h2 (or `alpn`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"] if alpn is None else alpn)
    return context


def _plain(headers: Any) -> Fields:
    return [(bytes(name), bytes(value)) for name, value in headers or []]
