"""An upstream that echoes what it gets, at next to no cost, and takes nothing without a token that is still good.

Run as a program: `python -m tests.load.echo_upstream CERTIFICATE KEY PORT`. It writes `listening PORT`, and, whenever a
stream brings a token it has not seen, `token SECONDS`, the time since the epoch. What it offers is what Cloud Run
offers: TLS, ALPN h2, 100 streams on a connection.

It answers every head at once with 200 (401 without a good token), and returns each DATA frame as it came. It does not
watch the peer's windows, because its clients wait for one message before they send the next, or send a small body.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
import time
from typing import Any, Final, cast

import hpack

from tests.load import frames
from tests.load.frames import Frame, FrameReader

__all__ = ["main", "seconds_left"]

STREAMS: Final = 100
_STREAM_WINDOW: Final = 1 << 20
_CONNECTION_WINDOW: Final = 16 << 20
_STATUS_200: Final = b"\x88"  # RFC 7541, appendix A, entry 8
_STATUS_401: Final = b"\x08\x03401"  # name of entry 8, value without indexing


def seconds_left(authorization: bytes, now: float) -> float:
    """Return how long a `Bearer` JWT is good for after `now`, by its `exp`; 0 for anything else. Verifies nothing."""
    try:
        scheme, _, jwt = authorization.partition(b" ")
        payload = jwt.split(b".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
        return float(claims["exp"]) - now if scheme == b"Bearer" else 0.0
    except (ValueError, LookupError, TypeError):
        return 0.0


class Guard:
    """Knows which tokens it has seen, and until when they are good."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def admits(self, head: bytes, decoder: hpack.Decoder) -> bool:
        """Return whether a field block brings a token that is good now; it must be decoded in any case."""
        now = time.time()
        for name, value in decoder.decode(head, raw=True):
            if name in (b"x-serverless-authorization", b"authorization"):
                if value not in self._until:
                    self._until[value] = now + seconds_left(value, now)
                    sys.stdout.write(f"token {now:.6f}\n")
                    sys.stdout.flush()
                return self._until[value] > now
        return False


class EchoConnection(asyncio.Protocol):
    """One connection; see the module."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._decoder = hpack.Decoder()
        self._reader = FrameReader()
        self._preface_left = len(frames.PREFACE)
        self._block = b""
        self._taken: dict[int, int] = {}
        self._taken_in_all = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        offer = frames.settings(max_concurrent_streams=STREAMS, initial_window_size=_STREAM_WINDOW)
        self._transport.write(offer + frames.window_update(0, _CONNECTION_WINDOW - 65_535))

    def data_received(self, data: bytes) -> None:
        if self._preface_left:
            skipped = min(self._preface_left, len(data))
            self._preface_left -= skipped
            data = data[skipped:]
        if answer := b"".join([self._answer(frame) for frame in self._reader.feed(data)]):
            self._transport.write(answer)

    def _answer(self, frame: Frame) -> bytes:
        if frame.kind == frames.DATA:
            return self._echo(frame)
        if frame.kind in (frames.HEADERS, frames.CONTINUATION):
            return self._head(frame)
        if frame.kind == frames.RST_STREAM:
            self._taken.pop(frame.stream_id, None)
        return frames.acknowledgement(frame)

    def _echo(self, frame: Frame) -> bytes:
        ended = frame.flags & frames.END_STREAM
        answer = frames.frame(frames.DATA, ended, frame.stream_id, frames.content(frame))
        octets = len(frame.payload)
        self._taken_in_all += octets
        if self._taken_in_all >= _CONNECTION_WINDOW // 4:
            answer += frames.window_update(0, self._taken_in_all)
            self._taken_in_all = 0
        if ended:
            self._taken.pop(frame.stream_id, None)
            return answer
        taken = self._taken.get(frame.stream_id, 0) + octets
        if taken >= _STREAM_WINDOW // 4:
            answer += frames.window_update(frame.stream_id, taken)
            taken = 0
        self._taken[frame.stream_id] = taken
        return answer

    def _head(self, frame: Frame) -> bytes:
        self._block += frames.content(frame) if frame.kind == frames.HEADERS else frame.payload
        if not frame.flags & frames.END_HEADERS:
            return b""
        block, self._block = self._block, b""
        if frame.stream_id in self._taken:  # trailers: they must be decoded all the same (RFC 7541, 2.2)
            self._decoder.decode(block, raw=True)
            del self._taken[frame.stream_id]
            return frames.frame(frames.DATA, frames.END_STREAM, frame.stream_id)
        admitted = self._guard.admits(block, self._decoder)
        ended = frame.flags & frames.END_STREAM or (0 if admitted else frames.END_STREAM)
        if not ended:
            self._taken[frame.stream_id] = 0
        status = _STATUS_200 if admitted else _STATUS_401
        return frames.frame(frames.HEADERS, frames.END_HEADERS | ended, frame.stream_id, status)


async def _serve(certificate: str, key: str, port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    guard = Guard()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EchoConnection(guard), "127.0.0.1", port, ssl=context, backlog=1024)
    sys.stdout.write(f"listening {server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main(argv: list[str]) -> None:
    """Serve until killed."""
    certificate, key, port = argv
    factory: Any = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(certificate, key, int(port)))


if __name__ == "__main__":
    main(sys.argv[1:])
