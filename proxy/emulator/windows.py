"""Receive windows of a connection: that of the connection reopens on receipt, that of a stream when it is read."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from proxy.emulator.limits import Limits

__all__ = ["ReceiveWindows"]

CONNECTION = 0


class ReceiveWindows:
    """What was received on a connection and not given back to the client yet.

    A WINDOW_UPDATE is sent for half of a window at a time, and at once for a stream that nobody reads any more. A
    container that does not read its request stops the client.
    """

    def __init__(self, connection: H2Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._unread: dict[int, deque[int]] = {}
        self._owed: dict[int, int] = {}

    def received(self, stream: int, octets: int, *, read_later: bool) -> None:
        """Note one DATA frame; `read_later`: an application will `read` it."""
        self._give_back(CONNECTION, octets)
        if read_later:
            self._unread.setdefault(stream, deque()).append(octets)
        else:
            self._give_back(stream, octets, at_once=True)

    def read(self, stream: int) -> None:
        """Give back the oldest unread DATA frame of a stream."""
        unread = self._unread.get(stream)
        if unread:
            self._give_back(stream, unread.popleft())

    def closed(self, stream: int) -> None:
        """Give back all of a stream that nobody reads any more; its client may still be sending."""
        self._give_back(stream, sum(self._unread.pop(stream, ())), at_once=True)

    def _give_back(self, stream: int, octets: int, *, at_once: bool = False) -> None:
        limits = self._limits
        window = limits.stream_window_octets if stream else limits.connection_window_octets
        octets += self._owed.pop(stream, 0)
        if not at_once and octets * 2 < window:
            self._owed[stream] = octets
        elif octets and (not stream or stream in self._connection.streams):  # h2 forgets those that have ended
            # The stream may have ended, and the connection, too.
            with suppress(ProtocolError):
                self._connection.increment_flow_control_window(octets, stream or None)
