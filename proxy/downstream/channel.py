"""The messages between a supervisor and its workers, one octet each, and the worker's end of the channel."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from io import FileIO
from typing import Any, Final

__all__ = [
    "ABORT",
    "ALIVE",
    "ANSWER",
    "CLOSED",
    "COLLECT",
    "COLLECTED",
    "CONNECTION",
    "DRAIN",
    "DRAINING",
    "HAND_ON",
    "LAST",
    "LEAVING",
    "PROBLEMS",
    "READY",
    "REPORT",
    "SETTINGS",
    "SETTINGS_KEPT",
    "SETTINGS_TAKEN",
    "STATE",
    "TLS_CONNECTION",
    "WORKERS_DRAINING",
    "WORKERS_READY",
    "WORKERS_STARTING",
    "Channel",
    "content_of",
    "file_in_memory",
]

CONNECTION: Final = b"c"
"""To a worker: a connection, whose descriptor comes with this octet."""
TLS_CONNECTION: Final = b"l"
"""To a worker: a connection that begins with a TLS handshake, whose descriptor comes with this octet."""
DRAIN: Final = b"d"
"""To a worker: refuse new requests, let live ones finish, and exit."""
HAND_ON: Final = b"h"
"""To a worker: another sidecar serves now; let clients leave, and exit."""
ABORT: Final = b"x"
"""To a worker: abort all live requests, and exit."""
LAST: Final = b"z"
"""To a worker that has reported `LEAVING`: no connection follows."""
SETTINGS: Final = b"s"
"""To a worker: new settings, in a file whose descriptor comes with this octet. Each is answered."""
PROBLEMS: Final = b"p"
"""To a worker: new settings were refused; the reasons are in a file whose descriptor comes with this octet."""
WORKERS_STARTING: Final = b"1"
"""To a worker: a worker is starting."""
WORKERS_READY: Final = b"2"
"""To a worker: all workers that there are take requests."""
WORKERS_DRAINING: Final = b"3"
"""To a worker: a worker refuses new requests."""
REPORT: Final = b"r"
"""To a worker: send the supervisor `ANSWER`."""
STATE: Final = b"t"
"""To a worker: the state of one worker, in a file whose descriptor comes with this octet. To the supervisor: the state
of this worker, likewise."""
COLLECTED: Final = b"e"
"""To a worker: what the supervisor knows of the workers, in a file whose descriptor comes with this octet. With this,
what was asked for by `COLLECT` is complete."""
ANSWER: Final = b"a"
"""To the supervisor: the state of this worker as `STATE`, which was asked for by `REPORT`."""
COLLECT: Final = b"c"
"""To the supervisor: this worker wants the `STATE` of all workers, and then `COLLECTED`."""
SETTINGS_TAKEN: Final = b"s"
"""To the supervisor: new settings are in force."""
SETTINGS_KEPT: Final = b"k"
"""To the supervisor: new settings could not be put in force; the old ones stay."""
CLOSED: Final = b"-"
"""To the supervisor: one connection has closed."""
ALIVE: Final = b"!"
"""To the supervisor: the worker's event loop runs."""
READY: Final = b"+"
"""To the supervisor: the worker has started, and accepts connections."""
DRAINING: Final = b"."
"""To the supervisor: the worker refuses new requests, and will exit."""
LEAVING: Final = b"/"
"""To the supervisor: send `LAST`; the worker serves what was sent before that, and exits."""


class Channel:
    """A worker's end of its channel. It is pickled for the worker process."""

    def __init__(
        self,
        end: socket.socket,
        addresses: list[Any],
        *,
        tls_addresses: Sequence[Any] = (),
        admin: socket.socket | None = None,
        heartbeat_seconds: float = 0.0,
        replacing: bool = False,
    ) -> None:
        self.socket = end
        self.addresses = addresses
        """Addresses that the supervisor listens on, as `getsockname` returns them."""
        self.tls_addresses = tuple(tls_addresses)
        """Those of them that are for TLS."""
        self.admin = admin
        """The listening socket of the admin port, if the supervisor has been given one."""
        self.heartbeat_seconds = heartbeat_seconds
        """How often the worker reports `ALIVE`; 0: never."""
        self.replacing = replacing
        """Whether another sidecar takes requests on the same sockets until all workers do."""
        self._unreported = b""

    def receive(self) -> tuple[bytes, int | None]:
        """Return a message and its descriptor; b"" if the supervisor has exited. Raises BlockingIOError."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1)  # ignores MSG_CMSG_CLOEXEC
        except ConnectionError:
            return b"", None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return message, descriptors[0] if descriptors else None

    def send_file(self, message: bytes, file: FileIO) -> None:
        """Send the supervisor a message with a file, and close our copy. It is lost if the socket does not take it."""
        with file, contextlib.suppress(OSError):
            self.report(b"")
            if not self._unreported:
                socket.send_fds(self.socket, [message], [file.fileno()])

    def connection_closed(self) -> None:
        """Report a closed connection."""
        self.report(CLOSED)

    def report(self, message: bytes) -> None:
        """Send the supervisor a message; what the socket does not take is sent with the next one."""
        self._unreported += message
        if not self._unreported:
            return
        with contextlib.suppress(OSError):  # it has exited, or does not read
            self._unreported = self._unreported[self.socket.send(self._unreported) :]


def file_in_memory() -> FileIO:
    """Return a new file that has no name. Raises OSError."""
    if sys.platform == "linux":
        return FileIO(os.memfd_create("cloudrun-sidecar"), "r+b")
    with tempfile.TemporaryFile(buffering=0) as file:
        return FileIO(os.dup(file.fileno()), "r+b")


def content_of(descriptor: int | None) -> bytes:
    """Return the content of a file in memory, and close it; b"" if the kernel had no descriptor for it."""
    if descriptor is None:
        return b""
    with open(descriptor, "rb", buffering=0) as file:
        # All processes share the position in the file.
        return os.pread(descriptor, os.fstat(file.fileno()).st_size, 0)
