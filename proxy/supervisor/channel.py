"""The supervisor's end of a worker's channel: sends commands and connections, receives reports, and never blocks.

`downstream/channel` defines the messages; `downstream/handover` is the other end.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from io import FileIO
from typing import Final

from proxy.downstream.channel import (
    ANSWER,
    CLOSED,
    COLLECT,
    COLLECTED,
    CONNECTION,
    DRAINING,
    LEAVING,
    READY,
    SETTINGS,
    SETTINGS_KEPT,
    SETTINGS_TAKEN,
    STATE,
    TLS_CONNECTION,
    WORKERS_STARTING,
    file_in_memory,
)

__all__ = ["WorkerChannel"]

_MOST_REPORTS: Final = 4_096
"""Reports read in one call."""
_MOST_FILES: Final = 16
"""Files that come with them; Linux returns at most one."""


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
        """True if the worker wants no more connections: it is sent the last ones, and then `LAST`."""
        self.alive = True
        """True if the worker has reported something since this was set to False."""
        self.gone = False
        """True if the worker has closed its end."""
        self.settings_awaited = 0
        """Number of settings that were sent and are not answered."""
        self.settings_kept = 0
        """Number of settings that the worker could not put in force; the sender of settings may reset it."""
        self.state: FileIO | None = None
        """What the worker has said last of what it has counted (`observe.totals`)."""
        self.wants_states = False
        """True if the worker has asked for the states of all; reset when they are sent."""
        self.answer_awaited = False
        """True if the worker was told to report its state, and has not."""
        self.told = WORKERS_STARTING
        """What the worker was told last of all workers; at first it knows only that they start."""
        self.full_since = 0.0
        """Since when the socket takes no more messages, on the monotonic clock; 0 while it does."""
        self.unread_since = 0.0
        """When the first of the messages was sent that the worker may not have read, on the monotonic clock."""
        self._unsent: deque[tuple[bytes, socket.socket | FileIO | None]] = deque()

    @property
    def has_unsent(self) -> bool:
        """True if messages wait until the worker has read earlier ones."""
        return bool(self._unsent)

    def unread_seconds(self, now: float) -> float:
        """Return for how long the worker has left something unread that it was sent; 0 if it has read everything."""
        return now - self.unread_since if _has_unread(self.socket) else 0.0

    def hand_over(self, connection: socket.socket, *, tls: bool = False) -> None:
        """Send the worker a connection, and close our copy of it."""
        self.connections += 1
        self._unsent.append((TLS_CONNECTION if tls else CONNECTION, connection))
        self.flush()

    def hand_over_last(self, connections: Sequence[tuple[socket.socket, bool]]) -> None:
        """Send a worker that leaves its last connections, each with whether it is for TLS."""
        self.connections += len(connections)
        self._unsent += [(TLS_CONNECTION if tls else CONNECTION, connection) for connection, tls in connections]
        self.flush()

    def send_command(self, message: bytes) -> None:
        """Send the worker a message without a file, such as `DRAIN`."""
        self._unsent.append((message, None))
        self.flush()

    def send_document(self, message: bytes, content: bytes) -> None:
        """Send the worker `SETTINGS` or `PROBLEMS` with this content. Raises OSError."""
        file = file_in_memory()
        try:
            file.write(content)
        except BaseException:
            file.close()
            raise
        self.settings_awaited += message == SETTINGS
        self._unsent.append((message, file))
        self.flush()

    def send_collection(self, states: Sequence[FileIO], known: bytes) -> None:
        """Send the worker `STATE` for each state, of which the caller keeps its copies, and `COLLECTED` with `known`.

        Raises OSError, and sends nothing then: the worker uses what comes up to a `COLLECTED` as a whole.
        """
        with ExitStack() as unless_made:
            last = unless_made.enter_context(file_in_memory())
            last.write(known)
            copies = [unless_made.enter_context(FileIO(os.dup(state.fileno()), "rb")) for state in states]
            unless_made.pop_all()
        self._unsent += [*((STATE, copy) for copy in copies), (COLLECTED, last)]
        self.flush()

    def flush(self) -> None:
        """Send queued messages, as far as the socket takes them."""
        while self._unsent and not self.gone:
            message, carried = self._unsent[0]
            if not _has_unread(self.socket):
                self.unread_since = time.monotonic()
            try:
                if carried is None:
                    self.socket.send(message)
                else:
                    socket.send_fds(self.socket, [message], [carried.fileno()])
            except BlockingIOError:
                self.full_since = self.full_since or time.monotonic()
                return
            except OSError:  # EPIPE, ECONNRESET: what it has reported before is still there
                while self.read_reports():
                    pass
                self.gone = True
                return
            self._unsent.popleft()
            self.full_since = 0.0
            if carried is not None:
                carried.close()

    def read_reports(self) -> bool:
        """Read what the worker has reported, and return True if there may be more.

        Sets `gone` at the end of the channel.
        """
        if self.gone:
            return False
        descriptors: list[int] = []
        try:
            reports, descriptors, _, _ = socket.recv_fds(self.socket, _MOST_REPORTS, _MOST_FILES)
        except BlockingIOError:
            return False
        except OSError:
            reports = b""
        self._take_states(reports, [FileIO(descriptor, "rb") for descriptor in descriptors])
        self.connections -= reports.count(CLOSED)
        self.ready = self.ready or READY in reports
        self.draining = self.draining or DRAINING in reports
        self.leaving = self.leaving or LEAVING in reports
        self.alive = self.alive or bool(reports)
        kept = reports.count(SETTINGS_KEPT)
        self.settings_kept += kept
        self.settings_awaited -= kept + reports.count(SETTINGS_TAKEN)
        self.wants_states = self.wants_states or COLLECT in reports
        self.gone = self.gone or not reports
        return not self.gone

    def _take_states(self, reports: bytes, files: list[FileIO]) -> None:
        """Keep the last state; one may come without its file, if there was no descriptor left for that."""
        if ANSWER in reports:
            self.answer_awaited = False
        for file in files:
            os.set_inheritable(file.fileno(), False)  # `recv_fds` ignores MSG_CMSG_CLOEXEC
            if self.state is not None:
                self.state.close()
            self.state = file

    def close(self) -> list[tuple[socket.socket, bool]]:
        """Close the channel; return the connections that were never sent, and whether each is for TLS."""
        self.gone = True
        self.socket.close()
        self.settings_awaited = 0
        self.answer_awaited = False
        unsent, self._unsent = self._unsent, deque()
        for _, carried in unsent:
            if isinstance(carried, FileIO):
                carried.close()
        return [(carried, kind == TLS_CONNECTION) for kind, carried in unsent if isinstance(carried, socket.socket)]


def _has_unread(end: socket.socket) -> bool:
    """Return True if the other end has not read all that was sent; False where the system does not say."""
    octets = bytearray(4)
    try:
        fcntl.ioctl(end, termios.TIOCOUTQ, octets)
    except OSError:
        return False
    return any(octets)
