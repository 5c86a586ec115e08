"""Tools for the emulator's tests: names that resolve to its port, a manual clock, an HTTP/2 client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
from aiohttp.abc import AbstractResolver, ResolveResult

AUDIENCE = "https://greeter-abc.a.run.app"
CALLER = "caller@emulated.iam.gserviceaccount.com"
TARGET = "target@emulated.iam.gserviceaccount.com"


class Clock:
    """A clock in seconds since the epoch that only advances on demand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Names(AbstractResolver):
    """DNS that resolves every name to the emulator's TLS port."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=self._host,
                port=self._port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        pass


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return claims


def trusting(ca_file: Path, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_file))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@dataclass
class Answer:
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None


class NotHttp2(Exception):
    """The server does not offer HTTP/2."""


class Http2Client:
    """A minimal HTTP/2 client on python-hyper's h2."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.answers: dict[int, Answer] = {}
        self.settings: dict[int, int] = {}
        self.goaway = False
        self._reader, self._writer, self._authority = reader, writer, authority

    @classmethod
    async def connect(cls, url: str, ca_file: Path) -> Http2Client:
        authority = url.removeprefix("https://")
        host, _, port = authority.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting(ca_file, "h2", "http/1.1"))
        client = cls(reader, writer, authority)
        if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            await client.close()
            raise NotHttp2
        client.h2.initiate_connection()
        await client.flush()
        return client

    async def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def request(
        self, path: str, *fields: tuple[str, str], method: str = "GET", body: bytes = b"", end: bool = True
    ) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        head = [(":method", method), (":scheme", "https"), (":authority", self._authority), (":path", path), *fields]
        self.h2.send_headers(stream, head, end_stream=end and not body)
        if body:
            self.h2.send_data(stream, body, end_stream=end)
        await self.flush()
        return stream

    async def answer(self, stream: int) -> Answer:
        """Read until the stream has ended or was reset."""
        answer = self.answers[stream]
        while not answer.ended and answer.reset is None:
            if not await self.read():
                raise ConnectionError("the connection ended before the stream")
        return answer

    async def read(self) -> bool:
        data = await self._reader.read(65_536)
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self._take(event)
        await self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = True
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings |= {int(code): change.new_value for code, change in event.changed_settings.items()}
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0, Answer())
        if isinstance(event, h2.events.ResponseReceived):
            fields = {str(name): str(value) for name, value in event.headers}
            answer.status, answer.fields = int(fields.pop(":status")), fields
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = int(event.error_code)

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
