"""The supervisor's end of a worker's channel: sends commands and connections, receives reports, and never blocks.

`downstream/channel` defines the messages; `downstream/handover` is the other end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections import deque
from io import FileIO
from typing import Final

from proxy.downstream.channel import (
    CLOSED,
    CONNECTION,
    DRAINING,
    LEAVING,
    READY,
    SETTINGS,
    SETTINGS_KEPT,
    SETTINGS_TAKEN,
)

__all__ = ["WorkerChannel"]

_MOST_REPORTS: Final = 4_096
"""Reports read in one call."""


class WorkerChannel:
    """Sends to one worker, and counts its connections."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self.connections = 0
        """Number of connections that were sent and are not reported as closed."""
        self.ready = False
        """True once the worker has started."""
        self.draining = False
        """True if the worker refuses new requests."""
        self.leaving = False
        """True if the worker wants no more connections: it is sent the last ones, and then the end of the channel."""
        self.alive = True
        """True if the worker has reported something since this was set to False."""
        self.gone = False
        """True if the worker has closed its end."""
        self.settings_awaited = 0
        """Number of settings that were sent and are not answered."""
        self.settings_kept = 0
        """Number of settings that the worker could not put in force; the sender of settings may reset it."""
        self._unsent: deque[tuple[bytes, socket.socket | FileIO | None]] = deque()

    @property
    def has_unsent(self) -> bool:
        """True if messages wait until the worker has read earlier ones."""
        return bool(self._unsent)

    def hand_over(self, connection: socket.socket) -> None:
        """Send the worker a connection, and close our copy of it."""
        self.connections += 1
        self._unsent.append((CONNECTION, connection))
        self.flush()

    def send_command(self, message: bytes) -> None:
        """Send the worker `DRAIN` or `ABORT`."""
        self._unsent.append((message, None))
        self.flush()

    def send_document(self, message: bytes, content: bytes) -> None:
        """Send the worker `SETTINGS` or `PROBLEMS` with this content. Raises OSError."""
        file = _file_in_memory()
        try:
            file.write(content)
        except BaseException:
            file.close()
            raise
        self.settings_awaited += message == SETTINGS
        self._unsent.append((message, file))
        self.flush()

    def flush(self) -> None:
        """Send queued messages, as far as the socket takes them."""
        while self._unsent and not self.gone:
            message, carried = self._unsent[0]
            try:
                if carried is None:
                    self.socket.send(message)
                else:
                    socket.send_fds(self.socket, [message], [carried.fileno()])
            except BlockingIOError:
                return
            except OSError:  # EPIPE, ECONNRESET
                self.gone = True
                return
            self._unsent.popleft()
            if carried is not None:
                carried.close()
        if self.leaving and not self.gone:
            with contextlib.suppress(OSError):  # it has exited
                self.socket.shutdown(socket.SHUT_WR)

    def read_reports(self) -> None:
        """Read what the worker has reported; sets `gone` at the end of the channel."""
        try:
            reports = self.socket.recv(_MOST_REPORTS)
        except BlockingIOError:
            return
        except OSError:
            reports = b""
        self.connections -= reports.count(CLOSED)
        self.ready = self.ready or READY in reports
        self.draining = self.draining or DRAINING in reports
        self.leaving = self.leaving or LEAVING in reports
        self.alive = self.alive or bool(reports)
        kept = reports.count(SETTINGS_KEPT)
        self.settings_kept += kept
        self.settings_awaited -= kept + reports.count(SETTINGS_TAKEN)
        self.gone = self.gone or not reports

    def close(self) -> list[socket.socket]:
        """Close the channel; return the connections that were never sent."""
        self.gone = True
        self.socket.close()
        self.settings_awaited = 0
        unsent, self._unsent = self._unsent, deque()
        for _, carried in unsent:
            if isinstance(carried, FileIO):
                carried.close()
        return [carried for _, carried in unsent if isinstance(carried, socket.socket)]


def _file_in_memory() -> FileIO:
    if sys.platform == "linux":
        return FileIO(os.memfd_create("settings"), "r+b")
    with tempfile.TemporaryFile(buffering=0) as file:
        return FileIO(os.dup(file.fileno()), "r+b")
