"""HTTP/2 as Google's front end speaks it, on Hypercorn's connections.

What was read and is not proven: windows of 1 MiB, padded DATA, PING frames of its own, four minutes until an idle
connection ends. What an engineer of Google wrote: a connection ends after about an hour, with GOAWAY in two steps. All
of it can be changed by `Limits`; `Limits.plain()` has the defaults of HTTP/2 itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, PingAckReceived, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import AppWrapper, ConnectionState
from hyperframe.frame import Frame, GoAwayFrame, PingFrame

from proxy.emulator.front_end import refusal_of
from proxy.emulator.limits import INITIAL_WINDOW_OCTETS, LARGEST, Limits
from proxy.emulator.verdicts import Verdict
from proxy.emulator.windows import ReceiveWindows

__all__ = ["MAX_DECODED_OCTETS", "STREAM_CONTROL", "GoogleHttp2", "StreamControl"]

STREAM_CONTROL: Final = "proxy.emulator.stream_control"
"""Key of the `StreamControl` in the `state` of an ASGI scope."""

MAX_DECODED_OCTETS: Final = 4 << 20
"""Size of a request's fields that is read. h2's own limit, 64 KiB, would end the connection instead of a 431."""

PING_SECONDS: Final = 1.0
PING_OCTETS: Final = b"emulated"
LAST_PING_OCTETS: Final = b"all-read"


class StreamControl:
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

    async def read(self) -> None:
        """Note that the application has read content of the request."""
        if self._http2 is not None:
            await self._http2.read(self._stream)

    async def go_away(self) -> None:
        """Send GOAWAY in two steps; this request and those before it are still answered."""
        if self._http2 is None:
            self.reset_connection()
        else:
            await self._http2.go_away()


class GoogleHttp2(H2Protocol):
    """One HTTP/2 connection of the front end.

    `limits` are what it advertises. `reset_connection` resets the TCP connection. `on_refusal` is called with method,
    path and verdict of a request that is refused before it becomes an ASGI scope; `clock` returns seconds since the
    epoch, for the `date` of the response.
    """

    def __init__(
        self,
        *arguments: Any,
        limits: Limits,
        reset_connection: Callable[[], None],
        on_refusal: Callable[[str, str, Verdict], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(*arguments)
        self._limits = limits
        self._reset_connection = reset_connection
        self._on_refusal = on_refusal
        self._clock = clock
        self._shared_state = self.connection_state
        self._pinged = time.monotonic()
        self._going_away = False
        self._last_stream = LARGEST
        self._all_sent = False
        self.connection = _Connection(self.connection.config, limits.padding_octets, self._received)
        self._windows = ReceiveWindows(self.connection, limits)
        self.app = cast(AppWrapper, _Reading(self.app))
        self.connection.decoder.max_header_list_size = MAX_DECODED_OCTETS
        self.connection.local_settings = _settings(limits, limits.stream_window_octets)
        self.streams = _Streams()

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        """Send the settings, and open the window of the connection."""
        await super().initiate(headers, settings)
        # The window that was sent takes effect when the client acknowledges it; until then the client may use 65,535.
        self.connection.local_settings = _settings(self._limits, INITIAL_WINDOW_OCTETS)
        self.connection.local_settings.initial_window_size = self._limits.stream_window_octets
        increment = self._limits.connection_window_octets - INITIAL_WINDOW_OCTETS
        if increment > 0:
            self.connection.increment_flow_control_window(increment)
            await self._flush()

    async def _handle_events(self, events: list[Event]) -> None:
        now = time.monotonic()
        received = any(isinstance(event, DataReceived) for event in events)
        if received and self._limits.pings and now - self._pinged >= PING_SECONDS:
            self._pinged = now
            await self._write(PingFrame(0, PING_OCTETS))
        left = any(isinstance(event, ConnectionTerminated) for event in events)
        if left:
            # Hypercorn would close the connection, and its streams with it. This client only opens no more of them.
            events = [event for event in events if not isinstance(event, ConnectionTerminated)]
            self._last_stream = self.connection.highest_inbound_stream_id
        if self.context.terminated.is_set():
            # Hypercorn would reset them with NO_ERROR, which does not tell that they may be sent again.
            for event in events:
                if isinstance(event, RequestReceived):
                    self._refuse(event.stream_id or 0)
            events = [event for event in events if not isinstance(event, RequestReceived)]
        await super()._handle_events(events)
        if not self.streams and any(isinstance(event, RequestReceived | StreamReset) for event in events):
            # Hypercorn stops the timer for every request, and starts it only after a response.
            await self.send(Updated(idle=True))
        if (left and not self.streams and not self.stream_buffers) or any(
            isinstance(event, PingAckReceived) and event.ping_data == LAST_PING_OCTETS for event in events
        ):
            await self.send(Closed())
        else:
            await self._end_when_all_is_sent()

    async def stream_send(self, event: Any) -> None:
        """Send an event of a response. The stream is reset if its application has ended before its response."""
        buffer = self.stream_buffers.get(event.stream_id)
        if isinstance(event, StreamClosed) and buffer is not None and not buffer.complete:
            if buffer.buffer:
                await buffer.drain()
            await self.reset(event.stream_id, ErrorCodes.INTERNAL_ERROR)
        await super().stream_send(event)
        await self._end_when_all_is_sent()

    async def _send_data(self, stream_id: int) -> None:
        with suppress(ProtocolError):  # the stream has ended
            if self.stream_buffers[stream_id].buffer and self.connection.local_flow_control_window(stream_id) <= 0:
                # Hypercorn would let the application go on, and keep all that it sends.
                self.priority.block(stream_id)
                return
        await super()._send_data(stream_id)
        await self._end_when_all_is_sent()

    async def _end_when_all_is_sent(self) -> None:
        """After the last response of a connection that is going away, send a PING. Its acknowledgement ends it.

        A connection that is closed while its client is sending, as WINDOW_UPDATE, is reset, and the client loses all
        that it has not read. If the client does not read, the connection ends as an idle one.
        """
        if self._last_stream != LARGEST and not (self._all_sent or self.streams or self.stream_buffers):
            self._all_sent = True
            await self._write(PingFrame(0, LAST_PING_OCTETS))

    async def _create_stream(self, request: RequestReceived) -> None:
        pseudo = {bytes(name): bytes(value) for name, value in request.headers if name.startswith(b":")}
        stream = request.stream_id or 0
        # h2 counts the streams of a whole read: an earlier one of it would be refused instead of the last.
        if stream > self._last_stream or len(self.streams) >= self._limits.concurrent_streams:
            self._refuse(stream)
            await self._flush()
            return
        verdict = Verdict.ACCEPTED
        if pseudo.get(b":method") == b"CONNECT":
            verdict = Verdict.METHOD
        elif pseudo.get(b":scheme") != b"https":
            verdict = Verdict.SCHEME
        if verdict.status is not None:
            self._on_refusal(pseudo[b":method"].decode("latin-1"), pseudo.get(b":path", b"").decode("latin-1"), verdict)
            fields, body = refusal_of(verdict.status, request.headers, self._clock())
            with suppress(ProtocolError):  # as in `_refuse`
                self.connection.send_headers(stream, [(b":status", b"%d" % verdict.status), *fields])
                self.connection.send_data(stream, body, end_stream=True)
            await self._flush()
            return
        control = StreamControl(self._reset_connection, self, stream)
        self.connection_state = ConnectionState({**self._shared_state, STREAM_CONTROL: control})
        await super()._create_stream(request)

    def _refuse(self, stream: int) -> None:
        with suppress(ProtocolError):  # its client has reset it in the same read
            self.connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)

    def _received(self, octets: int, stream: int) -> None:
        self._windows.received(stream, octets, read_later=stream in self.streams)

    async def read(self, stream: int) -> None:
        """Reopen the window of a stream for the oldest content that its application had not read."""
        self._windows.read(stream)
        await self._flush()

    async def _close_stream(self, stream_id: int) -> None:
        await super()._close_stream(stream_id)
        self._windows.closed(stream_id)
        await self._flush()
        buffer = self.stream_buffers.get(stream_id)
        if buffer is not None and not buffer.complete:
            # Hypercorn would leave an application waiting that has sent more than the client takes.
            await buffer.close()
            self.priority.unblock(stream_id)
            await self.has_data.set()

    async def reset(self, stream: int, code: ErrorCodes) -> None:
        """Reset a stream; its application gets a disconnect."""
        if stream in self.streams:
            with suppress(ProtocolError):  # the connection has ended
                self.connection.reset_stream(stream, code)
            await self._flush()
            await self._close_stream(stream)
            if not self.streams:
                await self.send(Updated(idle=True))

    async def go_away(self) -> None:
        """Send GOAWAY in two steps (RFC 9113, 6.8), and close the connection when its last response has been read."""
        if self._going_away:
            return
        self._going_away = True
        await self._write(GoAwayFrame(0, LARGEST, ErrorCodes.NO_ERROR))
        self.task_group.spawn(self._end_after_notice)

    async def send_last_go_away(self) -> None:
        """Send the GOAWAY that names the last stream, unless the connection is closed; later streams are refused."""
        if self.closed:
            return
        self._last_stream = self.connection.highest_inbound_stream_id
        await self._write(GoAwayFrame(0, self._last_stream, ErrorCodes.NO_ERROR))

    async def _end_after_notice(self) -> None:
        await asyncio.sleep(self._limits.notice_seconds)
        await self.send_last_go_away()
        await self._end_when_all_is_sent()

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
        return LARGEST

    @max_concurrent_streams.setter
    def max_concurrent_streams(self, value: int) -> None:
        self[SettingCodes.MAX_CONCURRENT_STREAMS] = value


def _settings(limits: Limits, window_octets: int) -> _Advertised:
    """Return the settings of a connection whose streams now have this window."""
    return _Advertised(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.field_section_octets,
            SettingCodes.INITIAL_WINDOW_SIZE: window_octets,
        },
    )


class _Connection(H2Connection):
    """A connection that pads its DATA frames, as far as the windows allow, and leaves its receive windows to the owner.

    `received` is called with the octets and the stream of DATA that was received.
    """

    def __init__(self, config: Any, padding_octets: int, received: Callable[[int, int], None]) -> None:
        super().__init__(config=config)
        self._padding_octets = padding_octets
        self._received = received

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # h2 would end the connection, and with it the responses to a client that opens no more streams.
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = ErrorCodes(0), frame.last_stream_id
        return [], [event]

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """Tell the owner instead of reopening the windows."""
        self._received(acknowledged_size, stream_id)

    def send_data(
        self, stream_id: int, data: bytes | memoryview, end_stream: bool = False, pad_length: Any = None
    ) -> None:
        room = min(self.local_flow_control_window(stream_id), self.max_outbound_frame_size) - len(data) - 1
        padding = min(self._padding_octets, room) if data else 0
        super().send_data(stream_id, data, end_stream, padding if padding > 0 else pad_length)


class _Reading:
    """An application whose reads reopen the window of its stream."""

    def __init__(self, app: AppWrapper) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any, *more: Any) -> None:
        stream: StreamControl = scope["state"][STREAM_CONTROL]

        async def receive_and_reopen() -> Any:
            message = await receive()
            if message["type"] == "http.request" and message["more_body"]:
                await stream.read()
            return message

        await self._app(scope, receive_and_reopen, send, *more)


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
