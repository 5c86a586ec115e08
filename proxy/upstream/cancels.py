"""Requests that clients cancel, on their way to one upstream connection.

A server ends a connection on which too many streams are reset (CVE-2023-44487), and all clients share the connection.
So a reset beyond the limit is held back: it is sent when the limit permits, or not at all if the stream ends first.
Until then what comes on the stream is dropped, and its window stays closed. Another connection would not help: it would
be used up in the same way. The cost is a stream of this connection. When all are in use, a request that waits for one
gets one that is held back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from proxy.connection.rate_limit import RateLimit
from proxy.errors import Failure
from proxy.http2.engine import Engine, Stream, StreamReceiver
from proxy.http2.events import Fields

__all__ = ["Cancels"]

_MOST_QUEUED_OCTETS: Final = 16 << 10
"""Of a request that is held back."""


class Cancels:
    """Resets the streams of cancelled requests on one connection, so many in a minute."""

    __slots__ = ("_engine", "_held", "_loop", "_timer", "limit")

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, per_minute: int) -> None:
        self._engine = engine
        self._loop = loop
        self._held: deque[_Held] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.limit = RateLimit(per_minute, loop.time())
        """How many may be reset."""

    @property
    def held(self) -> int:
        """Number of live streams whose reset is held back."""
        if not self._held:
            return 0
        return sum(isinstance(stream.receiver, _Held) for stream in self._engine.live_streams())

    def cancel(self, stream: Stream, code: int, owner: object) -> None:
        """Reset a stream with this code, now or later; `owner` is charged for it until then.

        A stream for which much content is queued is reset now: memory is scarcer than resets.
        """
        queued = stream.count_queued_octets()
        if queued > _MOST_QUEUED_OCTETS or (not self._held and self.limit.take(self._loop.time())):
            stream.receiver = None
            stream.reset(code, False)
            return
        held = _Held(stream, code, owner)
        stream.receiver = held
        self._held.append(held)
        if self._timer is None:
            self._arm()

    def release(self) -> bool:
        """Reset one of the streams that are held back now, because a stream is needed; return False without any."""
        while self._held:
            if self._reset(self._held.popleft()):
                return True
        return False

    def close(self) -> None:
        """The connection has ended."""
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()  # With a low limit it would keep the connection in memory for a minute.

    def _arm(self) -> None:
        seconds = self.limit.seconds_until(1.0, self._loop.time())
        self._timer = self._loop.call_later(seconds, self._reset_some)

    def _reset_some(self) -> None:
        self._timer = None
        while self._held:
            now = self._loop.time()
            if self.limit.left(now) < 1.0:
                self._arm()
                return
            if self._reset(self._held.popleft()):
                self.limit.charge(now)

    def _reset(self, held: _Held) -> bool:
        """Reset the stream; return False if it was over."""
        before = self._engine.count_open_streams()
        held.stream.receiver = None
        held.stream.reset_now(held.code)
        return self._engine.count_open_streams() < before


class _Held(StreamReceiver):
    """Receives what still comes for a request that was cancelled, and drops it without giving its window back."""

    __slots__ = ("_owner", "code", "stream")

    def __init__(self, stream: Stream, code: int, owner: object) -> None:
        self.stream = stream
        self.code = code
        self._owner = owner

    def on_interim(self, fields: Fields) -> None:
        pass

    def on_response_head(self, fields: Fields, end_stream: bool) -> None:
        pass

    def on_response_data(self, data: bytes, end_stream: bool) -> None:
        pass

    def on_response_trailers(self, fields: Fields) -> None:
        pass

    def on_response_reset(self, code: int, by_peer: bool) -> None:
        pass

    def on_request_sent(self, octets: int) -> None:
        pass

    def on_unprocessed(self, spent: bool) -> None:
        pass

    def on_connection_lost(self, failure: Failure) -> None:
        pass

    def owner(self) -> object:
        return self._owner

    def on_evicted(self, failure: Failure) -> None:
        self.stream.reset_now(self.code)

    def on_internal_error(self) -> bool:
        return True
