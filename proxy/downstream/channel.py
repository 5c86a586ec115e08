"""What a supervisor and its workers send each other, an octet each (see `handover`), and a worker's end of it."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Final

__all__ = ["CLOSED", "CONNECTION", "CUT", "DRAIN", "Channel"]

CONNECTION: Final = b"c"
"""To a worker: here is a connection."""
DRAIN: Final = b"d"
"""To a worker: take no new requests, let live ones end, and end."""
CUT: Final = b"x"
"""To a worker: wait for nothing any more."""
CLOSED: Final = b"-"
"""To the supervisor: one connection is gone."""


class Channel:
    """A worker's end of its channel. It is pickled for the worker's process."""

    def __init__(self, end: socket.socket, addresses: list[Any]) -> None:
        self.socket = end
        self.addresses = addresses
        """What the supervisor listens on, as `getsockname` gives it."""
        self._unreported = 0

    def receive(self) -> tuple[bytes, int | None]:
        """Return a message and its descriptor; b"" where the supervisor is gone. Raises BlockingIOError."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1)  # it drops its flags: no MSG_CMSG_CLOEXEC
        except ConnectionError:
            return b"", None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return message, descriptors[0] if descriptors else None

    def connection_closed(self) -> None:
        """Report that a connection is gone."""
        self._unreported += 1
        with contextlib.suppress(OSError):  # the supervisor is gone, or busy: the next report says it, too
            self._unreported -= self.socket.send(CLOSED * self._unreported)
