"""h2 and hpack as the engine uses them.

h2 keeps the states of streams, windows and settings, and builds what is sent. It is shown one frame at a time, and only
what it can accept: it ends the connection for what is a fault of one stream, and for any frame after GOAWAY. Field
sections are decoded here with a decoder of hpack's, because h2 refuses some before it has decoded them and its check of
content-length cannot be switched off; h2 sees one of an octet instead, out of HPACK's static table.

What is overridden, or used without being promised by the documentation of h2 and hpack (a test looks for the names):

=========================================  =========================================================================
name                                       reason
=========================================  =========================================================================
H2Connection.encoder                       replaced: see Encoder.add
H2Connection.MAX_CLOSED_STREAMS            overridden: h2 would remember 65,536 ends; late frames are answered here
H2Connection.inbound_flow_control_window   read: content beyond the connection's window is found before h2 finds it
H2Connection.max_inbound_frame_size        set: greater frames are taken before our SETTINGS are acknowledged
H2Connection.local_settings                replaced: what h2 offers is not what we offer; its limit of streams is left
                                           open, as it would end the connection over it; a window below the default
                                           binds the peer once it has acknowledged it (RFC 9113, 6.9.2)
H2Connection.remote_settings               read: the peer's limits of streams, and of a field section
Encoder.add                                overridden: hpack indexes every line at once, and loses the mark of a
                                           never-indexed line that a table holds (see `policy.compression`)
Encoder.header_table_size                  overridden: the table is bounded, and hpack forgets to tell of a size that
                                           is set twice before a block
Encoder.table_size_changes                 set: the smallest size and the last are told (RFC 7541, 4.2)
Encoder.header_table                       read, with HeaderTable.search and `encode_integer`, to build literals
HeaderTable.search                         see above
=========================================  =========================================================================
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, HeaderTuple, HPACKError, NeverIndexedHeaderTuple, OversizedHeaderListError
from hpack.hpack import encode_integer
from hyperframe.frame import Frame, SettingsFrame

from proxy.http2.engine import UNLIMITED, Limits
from proxy.http2.events import ErrorCode, Fields, StreamId
from proxy.http2.policy.compression import MOST_TABLE_OCTETS, SentLines
from proxy.http2.policy.faults import ConnectionFault
from proxy.http2.policy.fields import section_octets
from proxy.http2.portable import frames

__all__ = ["ANY_REQUEST", "ANY_RESPONSE", "ANY_TRAILERS", "LIBRARY", "Library", "ProtocolError"]

LIBRARY: Final = f"h2 {version('h2')}"
"""Name and version of what is underneath, for the log."""

ANY_REQUEST, ANY_RESPONSE, ANY_TRAILERS = b"\x82", b"\x88", b"\x8f"
"""GET, 200 and an empty accept-charset: what h2 sees of field sections."""

_DEFAULT_WINDOW: Final = 65_535
_NO_RFC7540_PRIORITIES: Final = 9  # RFC 9218, 2.1
_UNLIMITED: Final = (1 << 31) - 1
_KNOWN_SETTINGS: Final = range(1, 7)  # h2 would keep the others for ever
_UNCHECKED: Final[dict[str, Any]] = {  # fields are checked by `policy.fields`, and sent as they are
    f"{what}_{way}_headers": False for what in ("validate", "normalize") for way in ("inbound", "outbound")
}
_BOMB_FACTOR: Final = 4  # a section this much over the limit is not decoded to its end


class _Encoder(Encoder):
    """hpack's, with the choices of `policy.compression`."""

    def __init__(self) -> None:
        super().__init__()
        self._sent_lines = SentLines()

    @property
    def header_table_size(self) -> int:
        """Greatest size of the dynamic table; h2 sets it where the peer's SETTINGS_HEADER_TABLE_SIZE changes."""
        return int(self.header_table.maxsize)

    @header_table_size.setter
    def header_table_size(self, octets: int) -> None:
        octets = min(octets, MOST_TABLE_OCTETS)
        if octets != self.header_table.maxsize:
            smallest = min([octets, *self.table_size_changes])
            self.header_table.maxsize = octets
            self.table_size_changes = [smallest, octets] if smallest < octets else [octets]

    def add(self, to_add: tuple[bytes, bytes], sensitive: bool, huffman: bool = False) -> bytes:
        name, value = to_add
        index, _, found = self.header_table.search(name, value) or (0, name, None)
        enters = found is not None or (
            not sensitive and self._sent_lines.is_repeated(name, value, self.header_table_size)
        )
        if enters and not sensitive:
            return bytes(super().add(to_add, sensitive=False, huffman=False))
        literal = encode_integer(index, 4)  # RFC 7541, 6.2.2 and 6.2.3
        literal[0] |= 0x10 if sensitive else 0x00
        if not index:
            literal += encode_integer(len(name), 7) + name
        return bytes(literal + encode_integer(len(value), 7) + value)


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = 1


class Library:
    """One side of one connection, and what leaves on it, in the order in which it was queued."""

    def __init__(self, *, client: bool, limits: Limits) -> None:
        """Queue preface, SETTINGS and window. Limits out of range: ProtocolError, ValueError or struct.error."""
        self.h2 = _H2(H2Configuration(client_side=client, header_encoding=None, **_UNCHECKED))
        self.h2.encoder = _Encoder()
        self._decoder = Decoder(limits.max_field_section_octets * _BOMB_FACTOR)
        self._max_section_octets = limits.max_field_section_octets
        self._parts: list[bytes] = []
        h2 = self.h2
        offered = {
            SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_octets,
            SettingCodes.MAX_FRAME_SIZE: limits.max_frame_octets,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_field_section_octets,
        }
        h2.local_settings = Settings(client=client, initial_values=offered)
        if limits.stream_window_octets < _DEFAULT_WINDOW:
            h2.local_settings = Settings(client=client)
            h2.local_settings.initial_window_size = limits.stream_window_octets
        h2.max_inbound_frame_size = limits.max_frame_octets
        h2.initiate_connection()
        h2.clear_outbound_data_buffer()
        if client:
            offered[SettingCodes.ENABLE_PUSH] = 0
            self._parts.append(frames.PREFACE)
        else:
            offered[SettingCodes.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
            h2.receive_data(frames.PREFACE)
        settings = {int(key): value for key, value in offered.items()}
        self.write(SettingsFrame(settings={**settings, _NO_RFC7540_PRIORITIES: 1}))
        if limits.connection_window_octets > _DEFAULT_WINDOW:
            h2.increment_flow_control_window(limits.connection_window_octets - _DEFAULT_WINDOW)

    # ---- what was received

    def show(self, kind: int, flags: int, stream_id: StreamId, payload: bytes) -> list[Event]:
        """Let h2 receive a frame. Where it raises ProtocolError it has queued a GOAWAY of its own."""
        self._collect()
        header = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big")
        return self.h2.receive_data(header + payload)

    def show_section(self, stream_id: StreamId, section: bytes, *, end_stream: bool) -> None:
        """Let h2 know of a field section."""
        flags = frames.END_HEADERS | (frames.END_STREAM if end_stream else 0)
        self.show(frames.HEADERS, flags, stream_id, section)

    def apply_settings(self, payload: bytes) -> tuple[int, int]:
        """Apply the peer's SETTINGS one by one (RFC 9113, 6.5.3) and acknowledge them.

        Returns its limits of streams, and of octets in a field section.
        """
        for place in range(0, len(payload), 6):
            if int.from_bytes(payload[place : place + 2], "big") in _KNOWN_SETTINGS:
                self.show(frames.SETTINGS, 0, 0, payload[place : place + 6])
                self.h2.clear_outbound_data_buffer()
        self.write(SettingsFrame(flags=["ACK"]))
        remote = self.h2.remote_settings
        most_octets = remote.max_header_list_size
        return min(remote.max_concurrent_streams, _UNLIMITED), UNLIMITED if most_octets is None else most_octets

    def decode(self, block: bytes) -> tuple[Fields, bool]:
        """Return a field section, and whether it is over the limit; raises ConnectionFault."""
        try:
            lines = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a field section far over the limit") from None
        except (HPACKError, IndexError, UnicodeError):
            text = "a field block that cannot be decoded"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, text) from None
        fields = [(bytes(line[0]), bytes(line[1]), not line.indexable) for line in lines]
        return fields, section_octets(fields) > self._max_section_octets

    # ---- what leaves

    def write(self, frame: Frame) -> None:
        """Queue a frame that h2 need not know of, or would send nothing more after."""
        self._collect()
        self._parts.append(frame.serialize())

    def send_section(self, stream_id: StreamId, fields: Fields, *, end_stream: bool) -> None:
        """Compress and queue a field section."""
        lines = [(NeverIndexedHeaderTuple if never else HeaderTuple)(name, value) for name, value, never in fields]
        self.h2.send_headers(stream_id, lines, end_stream=end_stream)

    def has_output(self) -> bool:
        """Return whether anything is queued."""
        self._collect()
        return bool(self._parts)

    def count_output_octets(self) -> int:
        """Return the octets that are queued."""
        self._collect()
        return sum(map(len, self._parts))

    def take(self) -> bytes:
        """Return all that is queued."""
        self._collect()
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def _collect(self) -> None:
        if data := self.h2.data_to_send():
            self._parts.append(data)
