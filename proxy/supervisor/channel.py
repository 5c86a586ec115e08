"""The supervisor's end of a worker's channel: orders and connections go out, reports come in; nothing ever blocks.

What the messages are stands in `downstream/handover`, where the other end is.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from proxy.downstream.channel import CONNECTION

__all__ = ["WorkerChannel"]

_MOST_REPORTS: Final = 4_096
"""Read at once."""


class WorkerChannel:
    """What the supervisor sends to one worker, and how many connections that has."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self.connections = 0
        """Handed over, and not reported to be closed."""
        self.gone = False
        """Whether the worker reads no more."""
        self._unsent: deque[tuple[bytes, socket.socket | None]] = deque()

    @property
    def full(self) -> bool:
        """Whether something waits until the worker has read what it was sent before."""
        return bool(self._unsent)

    def hand_over(self, connection: socket.socket) -> None:
        """Send the worker a connection, which is its own from now on."""
        self.connections += 1
        self._unsent.append((CONNECTION, connection))
        self.flush()

    def order(self, message: bytes) -> None:
        """Send the worker an order."""
        self._unsent.append((message, None))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the worker has read."""
        while self._unsent and not self.gone:
            message, connection = self._unsent[0]
            try:
                if connection is None:
                    self.socket.send(message)
                else:
                    socket.send_fds(self.socket, [message], [connection.fileno()])
            except BlockingIOError:
                return
            except OSError:  # EPIPE, ECONNRESET
                self.gone = True
                return
            self._unsent.popleft()
            if connection is not None:
                connection.close()

    def read_reports(self) -> None:
        """Count the connections that the worker says are closed."""
        try:
            reports = self.socket.recv(_MOST_REPORTS)
        except BlockingIOError:
            return
        except OSError:
            reports = b""
        self.connections -= len(reports)
        self.gone = self.gone or not reports

    def close(self) -> list[socket.socket]:
        """Close the channel; return the connections that the worker never got."""
        self.gone = True
        self.socket.close()
        unsent, self._unsent = self._unsent, deque()
        return [connection for _, connection in unsent if connection is not None]
