# cython: boundscheck=False, wraparound=False
# An index into the states is masked, and every frame is looked up.
"""How far the peer has got on each of the latest streams, judged by its frames alone (RFC 9113, 5.1 and 5.1.1). Pure.

The rest of an engine forgets a stream that is over. A frame on it may be late (sent before the peer received our
RST_STREAM) or wrong. Which one it is depends only on what the peer has sent:

===================================================  ======================================================
HEADERS or DATA on a stream                          consequence
===================================================  ======================================================
on which the peer has sent END_STREAM or RST_STREAM  connection error STREAM_CLOSED
that the peer never opened, below one that it did    connection error PROTOCOL_ERROR
that is open to the peer, and that we have reset     none: the frame crossed our RST_STREAM and is discarded
older than the last `REMEMBERED`                     none: its state is not known any more
===================================================  ======================================================

WINDOW_UPDATE, RST_STREAM and PRIORITY may cross the end of a stream, whichever side ended it.
"""

from __future__ import annotations

from typing import Final

from proxy.http2.events import ErrorCode, StreamId
from proxy.http2.policy.faults import ConnectionFault

__all__ = ["AFTER_THE_END", "PASSED_OVER", "REMEMBERED", "StreamHistory"]

REMEMBERED: Final = 2_048
"""Streams; a power of two, and more than are commonly open at once (`max_concurrent_streams`)."""

AFTER_THE_END: Final = "HEADERS or DATA after END_STREAM or RST_STREAM"
"""The reason of the first fault in the table."""
PASSED_OVER: Final = "a frame on a stream that was never opened, below one that was"
"""The reason of the second fault in the table."""

_MASK: Final = REMEMBERED - 1
_NEVER_OPENED: Final = 0
_OPEN: Final = 1
_ENDED: Final = 2


class StreamHistory:
    """The peer's half of each of the latest streams; its frames are told in the order in which they came."""

    __slots__ = ("_client", "_states", "highest")

    def __init__(self, client: bool) -> None:
        self._client = client
        self._states = bytearray(REMEMBERED)
        self.highest: StreamId = -1
        """The latest stream that was opened; -1 before the first."""

    def opened(self, stream_id: StreamId) -> None:
        """Note the next stream, ours or the peer's; its id is odd, and higher than that of the one before."""
        passed_over = max(self.highest + 2, stream_id - 2 * _MASK)
        while passed_over < stream_id:
            self._states[passed_over >> 1 & _MASK] = _NEVER_OPENED
            passed_over += 2
        self._states[stream_id >> 1 & _MASK] = _OPEN
        self.highest = stream_id

    def section(self, stream_id: StreamId, end: bool) -> bool:
        """HEADERS came; return whether they open a stream. Raises ConnectionFault as the table says."""
        opens = not self._client and stream_id > self.highest and stream_id & 1 == 1
        if opens:
            self.opened(stream_id)
        self.content(stream_id, end)
        return opens

    def content(self, stream_id: StreamId, end: bool) -> None:
        """DATA came, or more HEADERS. Raises ConnectionFault as the table says."""
        if self._is_remembered(stream_id):
            state = self._states[stream_id >> 1 & _MASK]
            if state == _ENDED:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, AFTER_THE_END)
            if state == _NEVER_OPENED:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, PASSED_OVER)
            if end:
                self._states[stream_id >> 1 & _MASK] = _ENDED

    def reset(self, stream_id: StreamId) -> None:
        """RST_STREAM came."""
        if self._is_remembered(stream_id) and self._states[stream_id >> 1 & _MASK] == _OPEN:
            self._states[stream_id >> 1 & _MASK] = _ENDED

    def _is_remembered(self, stream_id: StreamId) -> bool:
        return stream_id & 1 == 1 and self.highest - 2 * (_MASK + 1) < stream_id <= self.highest
