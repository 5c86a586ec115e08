"""What a service manager gives a process and is told by it: systemd's sockets and notifications.

* `ServiceManager`      tells it when the process is ready, reloads, stops, and lives: sd_notify(3)
* `inherited_sockets`   sockets that it has opened: sd_listen_fds(3)

Both are protocols of a few environment variables and datagrams. Without a service manager they do nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Final

__all__ = ["ServiceManager", "inherited_sockets"]

_FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START: the first of the descriptors that are passed."""

_REFUSED: Final = "serving with the old settings: the new ones were refused, see the log"


class ServiceManager:
    """Sends notifications to the service manager that started this process, if it wants them. It never blocks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with @ instead of the leading zero. vsock is for virtual machines.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else ""
        self.watchdog_seconds = _watchdog_seconds(environment) if self._address else 0.0
        """The service manager restarts the process if `alive` is not called for this long; 0: it does not watch."""
        self.reloads = 0
        """Number of reloads that have begun."""
        self._started = False
        self._stopping = False
        self._lock = threading.Lock()
        """Held while something is said that must be in order with what other threads say. Nothing waits meanwhile."""

    def ready(self, status: str) -> None:
        """Say that the process has started; `status` is a line for people. After `stopping` nothing is said."""
        with self._lock:
            self._started = True
            self._ready(status)

    def reloading(self) -> None:
        """Say that the process reads its settings again. `reloaded` must follow, whatever comes of it.

        It may be called from any thread. Before `ready` and after `stopping` nothing is said.
        """
        with self._lock:
            self.reloads += 1
            if self._started and not self._stopping:
                self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading settings")

    def reloaded(self, reload: int, *, refused: bool = False) -> None:
        """Say that a reload is over, and whether its settings were `refused`; `reload` is what `reloads` was after it
        had begun.

        If another one has begun since, nothing is said before that is over: the service manager would take this for its
        end. Before `ready` nothing is said: that would be taken for the end of the start.
        """
        with self._lock:
            if self._started and reload == self.reloads:
                self._ready(_REFUSED if refused else "serving")

    def stopping(self, status: str) -> None:
        """Say that the process is ending."""
        with self._lock:
            self._stopping = True
            self._send("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """Say that the process works, if that is watched; to be called at least twice in `watchdog_seconds`."""
        if self.watchdog_seconds:
            self._send("WATCHDOG=1")

    def _ready(self, status: str) -> None:
        if not self._stopping:
            self._send("READY=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A service manager that is gone, or that does not read, must not disturb what is served.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            sending.sendto("\n".join(lines).encode(), self._address)


def inherited_sockets(environment: Mapping[str, str]) -> list[tuple[str, socket.socket]]:
    """Return the sockets that were passed to this process, each with its name ("" if it has none).

    They are made non-blocking, and not inherited any further. Raises OSError if one is not a socket. Call it once: each
    call would make an owner of the same descriptors.
    """
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for place in range(int(count)):
        passed = socket.socket(fileno=_FIRST_DESCRIPTOR + place)
        passed.set_inheritable(False)
        passed.setblocking(False)
        found.append((names[place] if place < len(names) else "", passed))
    return found


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    microseconds = environment.get("WATCHDOG_USEC", "")
    of_this_process = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if microseconds.isdecimal() and of_this_process else 0.0
