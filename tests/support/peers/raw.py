"""A peer made of frames built and read by hand (hyperframe and hpack), so that no engine is its own oracle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from proxy.connection.protocol import Http2Protocol
from proxy.http2.engine import Limits
from proxy.http2.events import Fields
from tests.support.peers.engines import EventFactory
from tests.support.peers.events import ConnectionFailed, Event, Sent, StreamReset
from tests.support.peers.transport import MemoryTransport

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

REQUEST: Fields = [
    (b":method", b"POST", False),
    (b":scheme", b"http", False),
    (b":authority", b"greeter.internal:9081", False),
    (b":path", b"/invoke/Greeter/greet", False),
    (b"content-type", b"application/vnd.restate.invocation.v5", False),
]
RESPONSE: Fields = [(b":status", b"200", False), (b"content-type", b"application/vnd.restate.invocation.v5", False)]
TRAILERS: Fields = [(b"grpc-status", b"0", False)]


@dataclass(frozen=True)
class Seen:
    """One frame that an engine sent."""

    kind: str
    stream_id: int
    flags: frozenset[str]
    body: bytes
    frame: Frame
    fields: Fields = field(default_factory=list)
    fragments: tuple[int, ...] = ()
    """Lengths of HEADERS and its CONTINUATION frames."""

    @property
    def ends(self) -> bool:
        return "END_STREAM" in self.flags


def line(name: bytes, value: bytes) -> tuple[bytes, bytes, bool]:
    return name, value, False


class Frames:
    """Frames built and read by hand, with the compression state of both directions of one connection."""

    def __init__(self, *, expects_preface: bool) -> None:
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.decoder.max_header_list_size = 1 << 24
        self._expects_preface = expects_preface

    # ---- to send

    def block(self, fields: Iterable[tuple[bytes, bytes, bool]]) -> bytes:
        return self.encoder.encode(list(fields))

    def headers(self, stream_id: int, fields: Iterable[tuple[bytes, bytes, bool]], *, end: bool = False) -> Frame:
        return HeadersFrame(
            stream_id, self.block(fields), flags=["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        )

    def split_headers(
        self, stream_id: int, fields: Iterable[tuple[bytes, bytes, bool]], sizes: Sequence[int], *, end: bool = False
    ) -> list[Frame]:
        """HEADERS and CONTINUATION frames with fragments of these sizes, and one more with what is left."""
        block = self.block(fields)
        pieces: list[bytes] = []
        for size in sizes:
            pieces.append(block[:size])
            block = block[size:]
        pieces.append(block)
        frames: list[Frame] = [HeadersFrame(stream_id, pieces[0], flags=["END_STREAM"] if end else [])]
        frames += [ContinuationFrame(stream_id, piece) for piece in pieces[1:]]
        frames[-1].flags.add("END_HEADERS")
        return frames

    def data(self, stream_id: int, data: bytes = b"", *, end: bool = False, padding: int | None = None) -> Frame:
        frame = DataFrame(stream_id, data, flags=["END_STREAM"] if end else [])
        if padding is not None:
            frame.flags.add("PADDED")
            frame.pad_length = padding
        return frame

    def reset(self, stream_id: int, code: int) -> Frame:
        return RstStreamFrame(stream_id, code)

    def window(self, stream_id: int, increment: int) -> bytes:
        """WINDOW_UPDATE; hyperframe would not build one of zero."""
        return WindowUpdateFrame(stream_id, 1).serialize()[:9] + increment.to_bytes(4, "big")

    def settings(self, settings: dict[int, int]) -> Frame:
        return SettingsFrame(settings=settings)

    def ping(self, payload: bytes = b"12345678", *, ack: bool = False) -> Frame:
        return PingFrame(opaque_data=payload, flags=["ACK"] if ack else [])

    def go_away(self, last: int, code: int = 0, debug: bytes = b"") -> Frame:
        return GoAwayFrame(last_stream_id=last, error_code=code, additional_data=debug)

    def priority(self, stream_id: int) -> Frame:
        return PriorityFrame(stream_id, depends_on=0, stream_weight=15)

    # ---- received

    def read(self, data: bytes) -> list[Seen]:
        """Return the frames in octets that a client's preface may precede."""
        if self._expects_preface and data:
            assert data.startswith(PREFACE)
            data = data[len(PREFACE) :]
            self._expects_preface = False
        seen: list[Seen] = []
        opening: list[Frame] = []
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            body = data[9 : 9 + length]
            assert len(body) == length, "engines send whole frames"
            frame.parse_body(memoryview(body))
            data = data[9 + length :]
            if isinstance(frame, HeadersFrame | ContinuationFrame):
                opening.append(frame)
                if "END_HEADERS" in frame.flags:
                    seen.append(self._section(opening))
                    opening = []
                continue
            assert not opening, "a field block is not interrupted"
            kind = type(frame).__name__.removesuffix("Frame")
            content = bytes(frame.data) if isinstance(frame, DataFrame) else body
            seen.append(Seen(kind, frame.stream_id, frozenset(frame.flags), content, frame))
        return seen

    def _section(self, frames: list[Frame]) -> Seen:
        block = b"".join(frame.data for frame in frames)  # type: ignore[attr-defined]  # both kinds have it
        fields = [(bytes(one[0]), bytes(one[1]), not one.indexable) for one in self.decoder.decode(block, raw=True)]
        lengths = tuple(frame.body_len for frame in frames)
        return Seen("Headers", frames[0].stream_id, frozenset(frames[0].flags), block, frames[0], fields, lengths)


class RawPeer(Frames):
    """The other end of the engine `self.engine`."""

    def __init__(
        self,
        make: EventFactory,
        *,
        engine_is_client: bool,
        limits: Limits | None = None,
        settings: dict[int, int] | None = None,
        greet: bool = True,
        acknowledge_settings: bool = True,
    ) -> None:
        super().__init__(expects_preface=engine_is_client)
        self.engine = make(client=engine_is_client, limits=limits or Limits())
        self.opening: list[Seen] = []
        """What the engine sent first."""
        self.sent: list[Sent] = []
        """What the engine reported as sent, so far."""
        self._preface = b"" if engine_is_client else PREFACE
        if greet:
            self.send(SettingsFrame(settings=settings or {}))
            if acknowledge_settings:
                self.send(SettingsFrame(flags=["ACK"]))
            self.opening = self.take()

    # ---- sending to the engine

    def send(self, *frames: Frame | bytes) -> list[Event]:
        """Feed frames to the engine in one read; return its events."""
        data = self._preface + b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
        self._preface = b""
        return self.engine.receive(data)

    # ---- reading from the engine

    def take(self) -> list[Seen]:
        """Return every frame that the engine sends now."""
        data, sent = self.engine.take()
        assert all(octets > 0 for _, octets in sent)
        assert len({stream_id for stream_id, _ in sent}) == len(sent), "one Sent a stream"
        self.sent += sent
        return self.read(data)

    def acknowledge_settings(self) -> None:
        self.send(SettingsFrame(flags=["ACK"]))

    # ---- short cuts

    def open(self, stream_id: int = 1, fields: Fields | None = None, *, end: bool = False) -> list[Event]:
        """Let the engine, a server, receive a request."""
        return self.send(self.headers(stream_id, fields or REQUEST, end=end))

    def asked(self, fields: Fields | None = None, *, end: bool = False) -> int:
        """Let the engine, a client, send a request; return its stream."""
        stream_id = self.engine.send_request(fields or REQUEST, end_stream=end)
        self.take()
        return stream_id

    def answered(self, stream_id: int = 1) -> None:
        """Let the engine, a server, send a response head."""
        self.engine.send_head(stream_id, RESPONSE, end_stream=False)
        self.take()


class RawConnectionPeer(Frames):
    """The other end of `protocol`, a connection of the sidecar's whose transport is in memory."""

    def __init__(self, protocol: Http2Protocol, *, expects_preface: bool) -> None:
        super().__init__(expects_preface=expects_preface)
        self.protocol = protocol
        self.transport = MemoryTransport(protocol.loop, protocol.as_protocol(), reading=True)
        protocol.connection_made(self.transport)

    def send(self, *frames: Frame | bytes) -> None:
        """Let the connection read these frames at once, and flush."""
        octets = b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
        self.protocol.data_received(octets)
        self.protocol.flush()

    def take(self) -> list[Seen]:
        """Return every frame that the connection has written since the last call."""
        self.protocol.flush()
        return self.read(self.transport.read())


def of(seen: list[Seen], kind: str, stream_id: int | None = None) -> list[Seen]:
    """Return the frames of a kind, on a stream where one is named."""
    return [one for one in seen if one.kind == kind and stream_id in (None, one.stream_id)]


def codes(seen: list[Seen], kind: str) -> list[int]:
    """Return the error codes of RST_STREAM or GOAWAY frames."""
    return [one.frame.error_code for one in of(seen, kind)]  # type: ignore[attr-defined]  # both kinds have it


def credit(seen: list[Seen], stream_id: int) -> int:
    """Return how far these frames open a receive window; stream 0 is the connection's."""
    return sum(int.from_bytes(one.body, "big") for one in of(seen, "WindowUpdate", stream_id))


def content(seen: list[Seen], stream_id: int) -> bytes:
    return b"".join(one.body for one in of(seen, "Data", stream_id))


def assert_connection_failed(peer: RawPeer, events: list[Event], *allowed: int) -> None:
    """The connection has ended with one of these codes, GOAWAY is queued, and nothing comes after."""
    assert events, "an event tells that the connection failed"
    assert isinstance(events[-1], ConnectionFailed), events
    assert events[-1].code in allowed, events[-1]
    assert events[-1].reason
    assert codes(peer.take(), "GoAway") == [events[-1].code]
    assert peer.send(peer.ping()) == []
    assert not peer.engine.free_streams


def assert_stream_failed(
    peer: RawPeer,
    events: list[Event],
    stream_id: int,
    *allowed: int,
    reported: bool = True,
    or_connection: bool = False,
) -> None:
    """The stream was reset with one of these codes; `or_connection`: where `Engine` leaves that choice, it may end."""
    if or_connection and events and isinstance(events[-1], ConnectionFailed):
        assert_connection_failed(peer, events, *allowed)
        return
    resets = [event for event in events if isinstance(event, StreamReset)]
    assert len(resets) == (1 if reported else 0), events
    seen = of(peer.take(), "RstStream", stream_id)
    assert len(seen) == 1
    assert codes(seen, "RstStream")[0] in allowed, codes(seen, "RstStream")
    if reported:
        assert resets[0].stream_id == stream_id
        assert resets[0].code == codes(seen, "RstStream")[0]
        assert not resets[0].by_peer
