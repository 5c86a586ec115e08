"""Engine on python-hyper h2: portable, always there.

h2 keeps the states: of streams (its state machine), of settings (when they take effect), of windows (when they are
topped up). What it does with frames is replaced, because a proxy needs other answers than h2 gives:

* a fault on one stream resets that stream; h2 ends the connection and loses the events it had parsed by then;
* GOAWAY ends nothing, in neither direction; h2 refuses every frame after it;
* credit for stream and connection goes back apart; h2 couples them;
* limits hold from the first octet; h2 makes those given to `Settings(initial_values=)` known and does not apply them;
* a field that must not be sent fails before the compressor sees it; in h2 it fails within and leaves it out of step.

`framing` cuts frames, `receiving` and `sending` decide what is done with them, `compression` and `heads` do field
sections, `outgoing` keeps what is to be sent, `flood` counts; none of these knows h2. A whole exchange (request and
response with head, 1 KiB of content and end), both ends counted, costs a twelfth of what it costs through the methods
of h2, and a fifth of that with their validation and normalisation off.

`PRIVATE_NAMES` lists what is used here of h2 beyond its documented interface; a test holds it against the installed
version.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from struct import error as StructError  # noqa: N812  (as exceptions are named elsewhere)
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import FlowControlError, ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamInputs, StreamState
from h2.utilities import guard_increment_window
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from proxy.http2 import framing
from proxy.http2.compression import FieldDecoder, FieldEncoder
from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Event, Fields, StreamId
from proxy.http2.framing import ConnectionFault
from proxy.http2.huffman import huffman_decoder
from proxy.http2.outgoing import Outgoing, Rotation
from proxy.http2.receiving import Receiver
from proxy.http2.sending import Sender
from proxy.http2.stream_history import StreamHistory

__all__ = ["LIBRARY", "PRIVATE_NAMES", "H2Engine"]

LIBRARY: Final = f"h2 {version('h2')}"
"""Name and version of what is underneath, for the log."""

PRIVATE_NAMES: Final = (
    "h2.connection.H2Connection:_acknowledge_settings",
    "h2.connection.H2Connection:_inbound_flow_control_window_manager",
    "h2.connection.H2Connection:_local_settings_acked",
    "h2.connection.H2Connection:decoder",
    "h2.connection.H2Connection:encoder",
    "h2.connection.H2Connection:highest_inbound_stream_id",
    "h2.connection.H2Connection:highest_outbound_stream_id",
    "h2.connection.H2Connection:max_outbound_frame_size",
    "h2.connection.H2Connection:outbound_flow_control_window",
    "h2.connection.H2Connection:streams",
    "h2.stream.H2Stream:_inbound_window_manager",
    "h2.stream.H2Stream:outbound_flow_control_window",
    "h2.stream.H2Stream:state_machine",
    "h2.stream.H2StreamStateMachine:headers_received",
    "h2.stream.H2StreamStateMachine:headers_sent",
    "h2.stream.H2StreamStateMachine:process_input",
    "h2.stream.H2StreamStateMachine:state",
    "h2.settings.Settings:validate_received_setting",
    "h2.windows.WindowManager:current_window_size",
    "h2.windows.WindowManager:process_bytes",
    "h2.windows.WindowManager:window_consumed",
    "h2.windows.WindowManager:window_opened",
    "hpack.table.HeaderTable:STATIC_TABLE",
)
"""Names found on instances of h2's and hpack's classes that their documentation does not promise."""

_DEFAULT_WINDOW: Final = 65_535
_UNLIMITED: Final = (1 << 31) - 1
_PEER_STREAMS_AT_FIRST: Final = 100
_KNOWN_SETTINGS: Final = frozenset(range(1, 7))
_RECEIVING: Final = (StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL)
_SENDING: Final = (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)
_CONFIGURATIONS: Final = {client: H2Configuration(client_side=client, header_encoding=None) for client in (True, False)}
_decode_huffman: Final = huffman_decoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


class _Stream(H2Stream):
    """h2's state of a stream, with what we expect on it and what we have still to send on it."""

    def __init__(self, stream_id: StreamId, config: H2Configuration, inbound: int, outbound: int) -> None:
        super().__init__(stream_id, config, inbound, outbound)
        self.outgoing = Outgoing()
        self.muted = False
        self.missing: int | None = None
        self.to_head = False

    @property
    def receives(self) -> bool:
        return self.state_machine.state in _RECEIVING

    @property
    def sends(self) -> bool:
        return self.state_machine.state in _SENDING and not (self.muted or self.outgoing.ended)

    @property
    def has_head(self) -> bool:
        return bool(self.state_machine.headers_received)

    @property
    def has_sent_head(self) -> bool:
        return bool(self.state_machine.headers_sent)

    def head_arrived(self) -> None:
        self.state_machine.process_input(StreamInputs.RECV_HEADERS)

    def head_sent(self) -> None:
        self.state_machine.process_input(StreamInputs.SEND_HEADERS)

    def consume(self, octets: int) -> bool:
        window = self._inbound_window_manager
        if octets > window.current_window_size:
            return False
        window.current_window_size -= octets
        return True

    def widen(self, increment: int) -> bool:
        try:
            self.outbound_flow_control_window = guard_increment_window(self.outbound_flow_control_window, increment)
        except FlowControlError:
            return False
        return True


class _Connection(H2Connection):
    """h2's state of a connection, and the octets that are to leave on it."""

    encoder: FieldEncoder  # type: ignore[assignment]  # in place of hpack's
    decoder: FieldDecoder  # type: ignore[assignment]  # in place of hpack's
    streams: dict[int, _Stream]  # type: ignore[assignment]  # ours

    def __init__(self, *, client: bool, limits: Limits) -> None:
        super().__init__(_CONFIGURATIONS[client])
        self.encoder = FieldEncoder(HeaderTable.STATIC_TABLE)
        self.decoder = FieldDecoder(
            HeaderTable.STATIC_TABLE, _decode_huffman, max_section_octets=limits.max_field_section_octets
        )
        self.parts: list[bytes | memoryview] = []
        self.history = StreamHistory(client=client)
        self.rotation: Rotation[_Stream] = Rotation()
        self.peer_max_streams = _PEER_STREAMS_AT_FIRST
        self.write = self.parts.append
        self.decode = self.decoder.decode
        self._client = client
        self._settings_pending = 1
        self._settings_received = False
        self._offer(limits)

    def _offer(self, limits: Limits) -> None:
        """Queue preface, SETTINGS and the connection's window, and put them into force."""
        offered = {
            SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_octets,
            SettingCodes.MAX_FRAME_SIZE: limits.max_frame_octets,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_field_section_octets,
        }
        if self._client:
            offered[SettingCodes.ENABLE_PUSH] = 0
            self.write(framing.PREFACE)
        else:
            offered[SettingCodes.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        self.local_settings = Settings(client=self._client, initial_values=offered)
        self.write(framing.settings(offered.items()))
        if limits.stream_window_octets < _DEFAULT_WINDOW:
            # A smaller window binds the peer only once it has acknowledged it (RFC 9113, 6.9.2).
            self.local_settings = Settings(client=self._client)
            self.local_settings.initial_window_size = limits.stream_window_octets
        if limits.connection_window_octets > _DEFAULT_WINDOW:
            increment = limits.connection_window_octets - _DEFAULT_WINDOW
            self._inbound_flow_control_window_manager.window_opened(increment)
            self.write(framing.window_update(0, increment))

    # ---- streams

    def open_stream(self, stream_id: StreamId) -> _Stream:
        inbound, outbound = self.local_settings.initial_window_size, self.remote_settings.initial_window_size
        stream = self.streams[stream_id] = _Stream(stream_id, self.config, inbound, outbound)
        if self._client:
            self.highest_outbound_stream_id = stream_id
            self.history.opened(stream_id)
        else:
            self.highest_inbound_stream_id = stream_id
        return stream

    def skip_stream(self, stream_id: StreamId) -> None:
        self.highest_inbound_stream_id = stream_id

    def was_opened(self, stream_id: StreamId) -> bool:
        highest = self.highest_outbound_stream_id if self._client else self.highest_inbound_stream_id
        return stream_id <= highest and stream_id & 1 == 1

    def end_arrived(self, stream: _Stream) -> None:
        stream.state_machine.process_input(StreamInputs.RECV_END_STREAM)
        self._retire_if_closed(stream)

    def reset_arrived(self, stream: _Stream) -> None:
        stream.state_machine.process_input(StreamInputs.RECV_RST_STREAM)
        self._retire_if_closed(stream)

    def reset(self, stream: _Stream, code: int) -> None:
        self.write(framing.rst_stream(stream.stream_id, code))
        stream.state_machine.process_input(StreamInputs.SEND_RST_STREAM)
        self._retire_if_closed(stream)

    def end_sent(self, stream: _Stream) -> None:
        stream.outgoing.ended = False
        stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        self._retire_if_closed(stream)

    def _retire_if_closed(self, stream: _Stream) -> None:
        if stream.state_machine.state is StreamState.CLOSED:
            self.rotation.drop(stream)
            del self.streams[stream.stream_id]

    def forget_all(self) -> None:
        self.streams.clear()
        self.rotation.clear()

    # ---- windows and settings

    def consume(self, octets: int) -> None:
        try:
            self._inbound_flow_control_window_manager.window_consumed(octets)
        except FlowControlError:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more content than the connection's window") from None

    def credit(self, octets: int) -> None:
        increment = self._inbound_flow_control_window_manager.process_bytes(octets)
        if increment:
            self.write(framing.window_update(0, increment))

    def credit_stream(self, stream: _Stream, octets: int) -> None:
        if stream.receives:
            increment = stream._inbound_window_manager.process_bytes(octets)
            if increment:
                self.write(framing.window_update(stream.stream_id, increment))

    def widen(self, increment: int) -> None:
        try:
            self.outbound_flow_control_window = guard_increment_window(self.outbound_flow_control_window, increment)
        except FlowControlError:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window passes 2^31-1") from None

    def apply_settings(self, pairs: Iterable[tuple[int, int]]) -> None:
        if not self._settings_received:
            self._settings_received = True
            self.peer_max_streams = _UNLIMITED
        for identifier, value in pairs:
            if identifier not in _KNOWN_SETTINGS:
                continue
            try:
                self.remote_settings.validate_received_setting(identifier, value)
                self.remote_settings[identifier] = value
                self._acknowledge_settings()
            except ProtocolError as exc:
                raise ConnectionFault(exc.error_code, "a setting has a value that it must not have") from None
            if identifier == SettingCodes.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value

    def settings_acknowledged(self) -> bool:
        if not self._settings_pending:
            return False
        self._settings_pending -= 1
        self._local_settings_acked()
        return True

    # ---- sending

    def write_section(self, stream_id: StreamId, fields: Fields, *, end_stream: bool) -> None:
        block = self.encoder.encode(fields)
        self.write(
            framing.headers(stream_id, block, end_stream=end_stream, max_frame_octets=self.max_outbound_frame_size)
        )

    def drained(self, stream: _Stream, *, ended: bool) -> None:
        outgoing = stream.outgoing
        if outgoing.ended:
            if outgoing.trailers is not None:
                self.write_section(stream.stream_id, outgoing.trailers, end_stream=True)
            elif not ended:
                self.write(framing.data_header(stream.stream_id, 0, end_stream=True))
            self.end_sent(stream)
        self.cut_short(stream)

    def cut_short(self, stream: _Stream) -> None:
        code = stream.outgoing.reset_code
        if code is not None:
            self.reset(stream, code)


class H2Engine(Sender[_Stream]):
    """One side of one connection on h2; the contract is `Engine`."""

    name = "h2"

    def __init__(self, *, client: bool, limits: Limits) -> None:
        """Queue preface, SETTINGS and window. Raises ValueError for limits that HTTP/2 cannot express."""
        try:
            connection = _Connection(client=client, limits=limits)
        except (ProtocolError, StructError) as exc:
            raise ValueError("limits outside the range of HTTP/2 (RFC 9113, 6.5.2)") from exc
        super().__init__(connection, Receiver(connection, client=client, limits=limits), client=client)

    def receive(self, data: bytes) -> list[Event]:
        return self._receiver.receive(data)

    def take_refused(self) -> list[tuple[StreamId, str]]:
        refused = self._receiver.refused
        if refused:
            self._receiver.refused = []
        return refused
