"""HTTP/2 as Google's front end speaks it, on Hypercorn's connections.

What was read and is not proven: windows of 1 MiB, padded DATA, PING frames of its own, four minutes until an idle
connection ends. What an engineer of Google wrote: a connection ends after about an hour, with GOAWAY in two steps. All
of it can be changed by `Limits`; `Limits.plain()` has the defaults of HTTP/2 itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived
from h2.settings import SettingCodes, Settings
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ConnectionState
from hyperframe.frame import Frame, GoAwayFrame, PingFrame

from proxy.emulator.front_end import FIELD_SECTION_OCTETS, refusal_of
from proxy.emulator.verdicts import Verdict

__all__ = ["EXCHANGE", "Exchange", "GoogleHttp2", "Limits"]

EXCHANGE: Final = "proxy.emulator.exchange"
"""Key of the `Exchange` in the `state` of an ASGI scope."""

LAST_POSSIBLE_STREAM: Final = 2**31 - 1
INITIAL_WINDOW_OCTETS: Final = 65_535
PING_SECONDS: Final = 1.0
PING_OCTETS: Final = b"emulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the front end advertises and does on each HTTP/2 connection."""

    streams: int = 100
    """Requests at a time (SETTINGS_MAX_CONCURRENT_STREAMS); one more is refused with REFUSED_STREAM."""
    field_section_octets: int = FIELD_SECTION_OCTETS
    """Size of a request's fields (SETTINGS_MAX_HEADER_LIST_SIZE)."""
    window_octets: int = 1_048_576
    """Receive window of each stream, and of the connection."""
    padding_octets: int = 8
    """Padding of each DATA frame of a response."""
    pings: bool = True
    """Whether PING frames are sent while content is received, at most one each second."""
    idle_seconds: float = 240.0
    """How long a connection may have no stream."""
    age_seconds: float = 3600.0
    """After this time, new requests need a new connection."""
    notice_seconds: float = 1.0
    """Time between the two GOAWAY frames of a connection's end."""

    @classmethod
    def plain(cls, **more: Any) -> Limits:
        """Return limits with the defaults of HTTP/2: windows of 64 KiB, no padding, no PING."""
        return cls(**{"window_octets": INITIAL_WINDOW_OCTETS, "padding_octets": 0, "pings": False, **more})


class Exchange:
    """The connection of one request, and its stream, for what an ASGI application cannot do.

    Over HTTP/1.1 there are no streams: the connection is reset instead.
    """

    def __init__(self, reset_connection: Callable[[], None], http2: GoogleHttp2 | None = None, stream: int = 0) -> None:
        self.reset_connection = reset_connection
        """Reset the TCP connection."""
        self._http2 = http2
        self._stream = stream

    async def reset(self, code: ErrorCodes) -> None:
        """Reset the stream with this error code."""
        if self._http2 is None:
            self.reset_connection()
        else:
            await self._http2.reset(self._stream, code)

    async def go_away(self) -> None:
        """Send GOAWAY in two steps; this request and those before it are still answered."""
        if self._http2 is None:
            self.reset_connection()
        else:
            await self._http2.go_away()


class GoogleHttp2(H2Protocol):
    """One HTTP/2 connection of the front end.

    `limits` are what it advertises. `reset_connection` resets the TCP connection. `on_refusal` is called with method,
    path and verdict of a request that is refused before it becomes an ASGI scope.
    """

    def __init__(
        self,
        *arguments: Any,
        limits: Limits,
        reset_connection: Callable[[], None],
        on_refusal: Callable[[str, str, Verdict], None],
    ) -> None:
        super().__init__(*arguments)
        self._limits = limits
        self._reset_connection = reset_connection
        self._on_refusal = on_refusal
        self._shared_state = self.connection_state
        self._pinged = time.monotonic()
        self._going_away = False
        self._last_stream = LAST_POSSIBLE_STREAM
        self._padded = _Padded(self.connection.config, limits.padding_octets)
        self.connection = self._padded
        self.connection.local_settings = _Advertised(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.field_section_octets,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.window_octets,
            },
        )
        self.streams = _Streams()

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        """Send the settings, and open the window of the connection."""
        await super().initiate(headers, settings)
        increment = self._limits.window_octets - INITIAL_WINDOW_OCTETS
        if increment > 0:
            self.connection.increment_flow_control_window(increment)
            await self._flush()

    async def _handle_events(self, events: list[Event]) -> None:
        now = time.monotonic()
        received = any(isinstance(event, DataReceived) for event in events)
        if received and self._limits.pings and now - self._pinged >= PING_SECONDS:
            self._pinged = now
            await self._write(PingFrame(0, PING_OCTETS))
        await super()._handle_events(events)
        if self._going_away and not self.streams:
            await self.send(Closed())

    async def stream_send(self, event: Any) -> None:
        """Send an event of a response; after the last stream of a connection that is going away, close it."""
        await super().stream_send(event)
        if self._last_stream != LAST_POSSIBLE_STREAM and not self.streams and not self.stream_buffers:
            await self.send(Closed())

    async def _create_stream(self, request: RequestReceived) -> None:
        pseudo = {bytes(name): bytes(value) for name, value in request.headers if name.startswith(b":")}
        stream = request.stream_id or 0
        # h2 counts the streams of a whole read: an earlier one of it would be refused instead of the last.
        if stream > self._last_stream or len(self.streams) >= self._limits.streams:
            self.connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            await self._flush()
            return
        verdict = Verdict.ACCEPTED
        if pseudo.get(b":method") == b"CONNECT":
            verdict = Verdict.METHOD
        elif pseudo.get(b":scheme") != b"https":
            verdict = Verdict.SCHEME
        if verdict.status is not None:
            self._on_refusal(pseudo[b":method"].decode("latin-1"), pseudo.get(b":path", b"").decode("latin-1"), verdict)
            fields, body = refusal_of(verdict.status)
            self.connection.send_headers(stream, [(b":status", b"%d" % verdict.status), *fields])
            self.connection.send_data(stream, body, end_stream=True)
            await self._flush()
            return
        exchange = Exchange(self._reset_connection, self, stream)
        self.connection_state = ConnectionState({**self._shared_state, EXCHANGE: exchange})
        await super()._create_stream(request)

    async def reset(self, stream: int, code: ErrorCodes) -> None:
        """Reset a stream; its application gets a disconnect."""
        if stream in self.streams:
            self.connection.reset_stream(stream, code)
            await self._flush()
            await self._close_stream(stream)

    async def go_away(self) -> None:
        """Send GOAWAY in two steps (RFC 9113, 6.8), and close the connection after its last stream."""
        if self._going_away:
            return
        self._going_away = True
        await self._write(GoAwayFrame(0, LAST_POSSIBLE_STREAM, ErrorCodes.NO_ERROR))
        self.task_group.spawn(self._end_after_notice)

    async def say_last(self) -> None:
        """Send the GOAWAY that names the last stream, unless the connection is closed; later streams are refused."""
        if self.closed:
            return
        self._last_stream = self.connection.highest_inbound_stream_id
        await self._write(GoAwayFrame(0, self._last_stream, ErrorCodes.NO_ERROR))

    async def _end_after_notice(self) -> None:
        await asyncio.sleep(self._limits.notice_seconds)
        await self.say_last()
        if not self.streams:
            await self.send(Closed())

    async def _write(self, frame: Frame) -> None:
        # Past h2, which would refuse to send anything after a GOAWAY.
        await self._flush()
        await self.send(RawData(data=frame.serialize()))


class _Advertised(Settings):
    """Settings whose limit of streams is advertised, and left to `GoogleHttp2` to apply.

    h2 ends the connection of a client that opens one stream more.
    """

    @property
    def max_concurrent_streams(self) -> int:
        """The limit for h2's own check: none."""
        return LAST_POSSIBLE_STREAM

    @max_concurrent_streams.setter
    def max_concurrent_streams(self, value: int) -> None:
        self[SettingCodes.MAX_CONCURRENT_STREAMS] = value


class _Padded(H2Connection):
    """A connection that pads its DATA frames, as far as the windows allow."""

    def __init__(self, config: Any, padding_octets: int) -> None:
        super().__init__(config=config)
        self._padding_octets = padding_octets

    def send_data(
        self, stream_id: int, data: bytes | memoryview, end_stream: bool = False, pad_length: Any = None
    ) -> None:
        room = min(self.local_flow_control_window(stream_id), self.max_outbound_frame_size) - len(data) - 1
        padding = min(self._padding_octets, room) if data else 0
        super().send_data(stream_id, data, end_stream, padding if padding > 0 else pad_length)


class _Streams(dict[int, Any]):
    """The streams of a connection; events of a stream that has ended are dropped.

    Hypercorn 0.18 removes a stream when its response ends. The next DATA of the request then raises KeyError, which
    closes the connection. A refusal (401, 403) usually ends before its request.
    """

    def __missing__(self, stream_id: int) -> _EndedStream:
        return _EndedStream()


class _EndedStream:
    async def handle(self, event: object) -> None:
        """Drop the event; Hypercorn restores the window by itself."""
