"""The client of the streaming workloads: open streams, bounce messages on them, or leave them idle. Blocking sockets.

One read brings what has arrived on all streams, one write answers it: some two microseconds a message, so that the
figures are the proxy's.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import hpack

from tests.load import frames
from tests.load.frames import Frame, FrameReader

__all__ = ["MESSAGE_OCTETS", "StreamFailed", "StreamsClient"]

MESSAGE_OCTETS: Final = 64
_PATIENCE_SECONDS: Final = 30.0
_READ_OCTETS: Final = 1 << 18
_ALL: Final = (1 << 31) - 1


class StreamFailed(Exception):
    """A stream did not get its 200, or lost its message, or the connection ended."""


class StreamsClient:
    """One h2c connection, closed at the end of a `with`."""

    def __init__(self, port: int, path: str) -> None:
        self._path = path
        self._reader = FrameReader()
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._next = 1
        self.streams: list[int] = []
        """The open streams."""
        self._authority = f"127.0.0.1:{port}"
        self._socket = socket.create_connection(("127.0.0.1", port), _PATIENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Nothing has to be given back for two gibioctets.
        greeting = frames.settings(initial_window_size=_ALL) + frames.window_update(0, _ALL - 65_535)
        self._socket.sendall(frames.PREFACE + greeting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def open(self, count: int) -> None:
        """Open `count` streams and wait until each of them has its 200; raises StreamFailed."""
        opened = list(range(self._next, self._next + 2 * count, 2))
        self._next += 2 * count
        self._send(b"".join(self._head(stream_id) for stream_id in opened))
        waiting = set(opened)
        while waiting:
            for frame in self._receive():
                if frame.kind == frames.HEADERS:
                    self._check(frame)
                    waiting.discard(frame.stream_id)
        self.streams += opened

    def bounce(self, seconds: float, over: threading.Event | None = None) -> tuple[int, float, list[float]]:
        """Keep one message of 64 octets under way on each stream for so long, or until `over` is set.

        Returns how many came back, the seconds it took, and how long each of them took, in seconds.
        """
        message = b"m" * MESSAGE_OCTETS
        calls = {stream_id: frames.frame(frames.DATA, 0, stream_id, message) for stream_id in self.streams}
        begun = now = time.perf_counter()
        sent = dict.fromkeys(self.streams, begun)
        took: list[float] = []
        under_way = len(calls)
        self._send(b"".join(calls.values()))
        until = begun + seconds
        while under_way:
            back = [frame.stream_id for frame in self._receive() if self._is_message(frame)]
            now = time.perf_counter()
            took += [now - sent[stream_id] for stream_id in back]
            if now < until and (over is None or not over.is_set()):
                sent.update(dict.fromkeys(back, now))
                self._send(b"".join([calls[stream_id] for stream_id in back]))
            else:
                under_way -= len(back)
        return len(took), now - begun, took

    def _is_message(self, frame: Frame) -> bool:
        if frame.kind != frames.DATA:
            return False
        octets = len(frames.content(frame))
        if octets and octets != MESSAGE_OCTETS:
            raise StreamFailed(f"a message of {MESSAGE_OCTETS} octets came back as {octets}")
        return octets > 0

    def _head(self, stream_id: int) -> bytes:
        fields = [(":method", "POST"), (":scheme", "http"), (":authority", self._authority), (":path", self._path)]
        return frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, self._encoder.encode(fields))

    def _check(self, frame: Frame) -> None:
        if not frame.flags & frames.END_HEADERS:
            raise StreamFailed("the response head came in pieces")
        fields = dict(self._decoder.decode(frames.content(frame), raw=True))
        status = fields.get(b":status", b"nothing")
        if status != b"200":
            raise StreamFailed(f"a stream was answered with {status.decode()}")

    def _send(self, octets: bytes) -> None:
        if octets:
            self._socket.sendall(octets)

    def _receive(self) -> Iterator[Frame]:
        """Yield what has arrived, after answering SETTINGS and PING; raises StreamFailed."""
        try:
            data = self._socket.recv(_READ_OCTETS)
        except OSError as exc:
            raise StreamFailed(f"nothing came for {_PATIENCE_SECONDS:g} s ({exc})") from exc
        if not data:
            raise StreamFailed("the proxy closed the connection")
        for frame in self._reader.feed(data):
            if frame.kind == frames.RST_STREAM:
                raise StreamFailed(f"the proxy reset a stream with code {int.from_bytes(frame.payload, 'big')}")
            if frame.kind == frames.GOAWAY:
                raise StreamFailed(f"the proxy sent GOAWAY with code {int.from_bytes(frame.payload[4:8], 'big')}")
            self._send(frames.acknowledgement(frame))
            yield frame
