"""h2 and hpack as the engine uses them.

h2 keeps streams, their send windows and the peer's settings, and builds what is sent. Of what is received it is shown
HEADERS without lines where a stream opens, RST_STREAM where one is over, WINDOW_UPDATE and SETTINGS: it would end the
connection for what is a fault of one stream, for a late frame, and for any frame after GOAWAY. Field sections are
decoded here, with a decoder of hpack's, because h2 refuses some before it has decoded them.

What is overridden, or used without being promised by the documentation of h2 and hpack (a test looks for the names):

=================================  =====================================================================================
name                               reason
=================================  =====================================================================================
H2Connection.encoder               replaced: see Encoder.add
H2Connection.MAX_CLOSED_STREAMS    overridden: h2 would remember 65,536 ends; late frames are answered here
H2Connection.local_settings        replaced: h2 would offer more, and end the connection over its limit of streams
H2Connection.remote_settings       read: the peer's limits of streams, and of a field section
WindowManager.window_consumed      used: the windows that h2 keeps itself do not count what it is not shown
WindowManager.process_bytes        used: h2 gives back a stream's window and the connection's together only
WindowManager.current_window_size  read: the log says if the connection's window was exceeded
WindowManager.window_opened        used: a window below the default binds once it is acknowledged (RFC 9113, 6.9.2)
WindowManager.max_window_size      set: see above
Encoder.add                        overridden: hpack indexes every line at once, and loses the mark of a never-indexed
                                   line that a table holds (see `policy.compression`)
Encoder.table_size_changes         set: the smallest size and the last are told (RFC 7541, 4.2), where hpack tells of
                                   none if the same size is set twice before a block
Encoder.header_table               used to build what `Encoder.add` returns, with `encode_integer`
HeaderTable.maxsize                set: the peer may allow gigabytes (see `policy.compression`)
HeaderTable.search                 see Encoder.header_table
=================================  =====================================================================================
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError
from hpack.hpack import encode_integer

from proxy.http2.engine import Limits
from proxy.http2.events import ErrorCode, Fields
from proxy.http2.policy.compression import MOST_TABLE_OCTETS, SentLines
from proxy.http2.policy.faults import ConnectionFault

__all__ = ["DEFAULT_WINDOW", "LIBRARY", "Connection"]

LIBRARY: Final = f"h2 {version('h2')}"
"""Name and version of what is underneath, for the log."""

DEFAULT_WINDOW: Final = 65_535
"""Octets of each window before any SETTINGS or WINDOW_UPDATE (RFC 9113, 6.9.2)."""

_UNCHECKED: Final[dict[str, Any]] = {  # fields are checked by `policy.fields`, and sent as they are
    f"{what}_{way}_headers": False for what in ("validate", "normalize") for way in ("inbound", "outbound")
}


class _Encoder(Encoder):
    """hpack's, with the choices of `policy.compression`."""

    def __init__(self) -> None:
        super().__init__()
        self._sent_lines = SentLines()

    def resize(self, octets: int) -> None:
        """Set the greatest size of the dynamic table, as the peer's SETTINGS_HEADER_TABLE_SIZE allows."""
        octets = min(octets, MOST_TABLE_OCTETS)
        if octets != self.header_table.maxsize:
            self.header_table.maxsize = octets
            self.table_size_changes = sorted({octets, min([octets, *self.table_size_changes])})

    def add(self, to_add: tuple[bytes, bytes], sensitive: bool, huffman: bool = False) -> bytes:
        name, value = to_add
        index, _, found = self.header_table.search(name, value) or (0, name, None)
        if found is not None and not sensitive:
            indexed = encode_integer(index, 7)  # RFC 7541, 6.1
            indexed[0] |= 0x80
            return bytes(indexed)
        if not sensitive and self._sent_lines.is_repeated(name, value, self.header_table_size):
            return bytes(super().add(to_add, sensitive=False))
        literal = encode_integer(index, 4)  # 6.2.2 and 6.2.3
        literal[0] |= 0x10 if sensitive else 0x00
        if not index:
            literal += encode_integer(len(name), 7) + name
        return bytes(literal + encode_integer(len(value), 7) + value)


class Connection(H2Connection):
    """h2's, with the choices of this package, and a decoder of our own."""

    MAX_CLOSED_STREAMS = 1

    def __init__(self, *, client: bool, limits: Limits) -> None:
        """Queue preface, SETTINGS and window."""
        super().__init__(H2Configuration(client_side=client, header_encoding=None, **_UNCHECKED))
        self.encoder: _Encoder = _Encoder()
        self._decoder = Decoder(limits.max_field_section_octets * 4)  # a greater section is not decoded to its end
        offered: dict[Any, int] = {
            SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_octets,
            SettingCodes.MAX_FRAME_SIZE: limits.max_frame_octets,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_field_section_octets,
            9: 1,  # SETTINGS_NO_RFC7540_PRIORITIES (RFC 9218, 2.1)
        }
        if client:
            offered[SettingCodes.ENABLE_PUSH] = 0
        else:
            offered[SettingCodes.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        self.local_settings = Settings(client, offered)
        for code in set(self.local_settings) - set(offered):
            del self.local_settings[code]
        self.initiate_connection()
        self.local_settings = Settings(client)
        if limits.connection_window_octets > DEFAULT_WINDOW:
            self.increment_flow_control_window(limits.connection_window_octets - DEFAULT_WINDOW)

    def decode(self, block: bytes) -> Fields:
        """Return a field section; raises ConnectionFault."""
        try:
            return [(*line, not line.indexable) for line in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a field section far over the limit") from None
        except (HPACKError, IndexError, UnicodeError):
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a field block that cannot be decoded") from None
