"""The floor: the forwarder one would write first, an ASGI application on Hypercorn, and h2 towards Cloud Run.

It does for a request what the sidecar does, in the usual way: ASGI messages in, one h2 connection for each 100 streams
out, two tasks an exchange, a queue for what arrives, a static token. It streams both ways and keeps to the windows.
It leaves out what makes a proxy safe: resets, GOAWAY, limits, retries. Hypercorn runs it on uvloop with its own limits
raised (`SETTINGS`).

What it needs to know comes from the environment: PLAIN_UPSTREAM (port), PLAIN_CA (PEM file), PLAIN_AUTHORIZATION.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import h2.config
import h2.connection
import h2.events
import h2.settings

__all__ = ["SETTINGS", "app"]

SETTINGS: Final = """\
bind = "127.0.0.1:{port}"
workers = 0
worker_class = "uvloop"
h2_max_concurrent_streams = 1024
keep_alive_timeout = 3600
keep_alive_max_requests = 1000000000
graceful_timeout = 0
include_date_header = false
include_server_header = false
loglevel = "WARNING"
"""
"""Hypercorn's configuration; one process, and no access log by default."""

Message = dict[str, Any]
_STREAM_WINDOW: Final = 1 << 20
_CONNECTION_WINDOW: Final = 16 << 20
_HOP_BY_HOP: Final = {b"connection", b"host", b"transfer-encoding", b"x-serverless-authorization"}


class Upstream(asyncio.Protocol):
    """One connection to the service."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.live = 0
        self.closed = False
        self._events: dict[int, asyncio.Queue[h2.events.Event | None]] = {}
        self._room = asyncio.Event()
        self._transport: asyncio.Transport

    @property
    def has_room(self) -> bool:
        """Whether one more stream may be opened."""
        return not self.closed and self.live < min(100, self.h2.remote_settings.max_concurrent_streams)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW}
        )
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(_CONNECTION_WINDOW - 65_535)
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                self._room.set()
            elif (stream_id := getattr(event, "stream_id", None)) in self._events:
                self._events[cast("int", stream_id)].put_nowait(event)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._room.set()
        for queue in self._events.values():
            queue.put_nowait(None)

    def request(self, fields: list[tuple[bytes, bytes]]) -> int:
        """Open a stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self._events[stream_id] = asyncio.Queue()
        self.h2.send_headers(stream_id, fields)
        self.live += 1
        self._flush()
        return stream_id

    async def event(self, stream_id: int) -> h2.events.Event:
        """Return the next event of a stream; raises ConnectionError at its bad end."""
        event = await self._events[stream_id].get()
        if event is None or isinstance(event, h2.events.StreamReset):
            raise ConnectionError("the upstream ended the stream")
        return event

    async def send(self, stream_id: int, data: bytes, *, end: bool) -> None:
        """Send content as the windows allow."""
        while data and not self.closed:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if room > 0:
                self.h2.send_data(stream_id, data[:room], end_stream=end and len(data) <= room)
                data = data[room:]
                self._flush()
                if not data:
                    return
            else:
                self._room.clear()
                await self._room.wait()
        if end and not self.closed:
            self.h2.end_stream(stream_id)
            self._flush()

    def acknowledge(self, stream_id: int, octets: int) -> None:
        """Give receive windows back."""
        if octets and not self.closed:
            self.h2.acknowledge_received_data(octets, stream_id)
            self._flush()

    def done(self, stream_id: int) -> None:
        """Forget a stream."""
        del self._events[stream_id]
        self.live -= 1

    def _flush(self) -> None:
        if (data := self.h2.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)


class Forwarder:
    """The application."""

    def __init__(self) -> None:
        self._port = int(os.environ["PLAIN_UPSTREAM"])
        self._token = os.environ["PLAIN_AUTHORIZATION"].encode()
        self._tls = ssl.create_default_context(cafile=os.environ["PLAIN_CA"])
        self._tls.set_alpn_protocols(["h2"])
        self._connections: list[Upstream] = []
        self._connecting = asyncio.Lock()

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return
        upstream = next((one for one in self._connections if one.has_room), None) or await self._connect()
        stream_id = upstream.request(self._fields(scope))
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._up(upstream, stream_id, receive))
                both.create_task(self._down(upstream, stream_id, send))
        finally:
            upstream.done(stream_id)

    async def _connect(self) -> Upstream:
        async with self._connecting:
            for one in self._connections:
                if one.has_room:
                    return one
            loop = asyncio.get_running_loop()
            _, upstream = await loop.create_connection(Upstream, "127.0.0.1", self._port, ssl=self._tls)
            self._connections = [one for one in self._connections if not one.closed] + [upstream]
            return upstream

    def _fields(self, scope: Message) -> list[tuple[bytes, bytes]]:
        return [
            (b":method", scope["method"].encode()),
            (b":scheme", b"https"),
            (b":authority", f"127.0.0.1:{self._port}".encode()),
            (b":path", scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")),
            *((name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP and name[:1] != b":"),
            (b"x-serverless-authorization", self._token),
        ]

    async def _up(self, upstream: Upstream, stream_id: int, receive: Callable[[], Awaitable[Message]]) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            if message.get("body") or not more:
                await upstream.send(stream_id, message.get("body", b""), end=not more)
            if not more:
                return

    async def _down(self, upstream: Upstream, stream_id: int, send: Callable[[Message], Awaitable[None]]) -> None:
        while True:
            event = await upstream.event(stream_id)
            if isinstance(event, h2.events.ResponseReceived):
                fields = [(name, value) for name, value in event.headers or [] if name != b":status"]
                status = next(int(value) for name, value in event.headers or [] if name == b":status")
                await send({"type": "http.response.start", "status": status, "headers": fields})
            elif isinstance(event, h2.events.DataReceived):
                await send({"type": "http.response.body", "body": event.data, "more_body": True})
                upstream.acknowledge(stream_id, event.flow_controlled_length)
            elif isinstance(event, h2.events.StreamEnded):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return


_forwarder: Forwarder | None = None


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Forward one request; built at the first one, on the loop that runs it."""
    global _forwarder
    if _forwarder is None:
        _forwarder = Forwarder()
    await _forwarder(scope, receive, send)
