"""Host names to addresses, so that a name which nobody answers for delays nothing but itself.

`getaddrinfo` is what knows the names of this machine: /etc/hosts, nsswitch.conf, search list and `ndots`. It blocks
for as long as name servers are silent, mostly 5 to 40 s, and cannot be cancelled. uvloop runs at most two at a time, on
threads of libuv that hold up the exit; asyncio's executor holds up the exit as well. So each look-up runs on a daemon
thread of its own here. There is one at a time for a name, shared by all who want it; who gives up leaves it running,
and the next who asks waits for the same one.

A DNS client such as c-ares would need no threads, but it does not know what nsswitch.conf names.

It stands to the right of `upstream` and `tokens`, which both use it and may not import each other. Each has a
`Resolver` of its own, so that the look-ups of the one take no threads from the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections import deque
from typing import Any, Final, NamedTuple

__all__ = ["CHECK_NAME_SERVERS", "AddressInfo", "Resolver"]

CHECK_NAME_SERVERS: Final = "check the name servers of this machine (/etc/resolv.conf) and the way to them"
"""What to do about a name that is not answered."""

_MAX_THREADS: Final = 256
"""More than most have routes; a thread that waits for a name server takes 29 KiB of memory (glibc 2.36)."""


class AddressInfo(NamedTuple):
    """One address of a service, as `getaddrinfo` returns it."""

    family: socket.AddressFamily
    type: socket.SocketKind
    proto: int
    canonname: str
    sockaddr: tuple[Any, ...]


_Outcome = list[AddressInfo] | Exception


class Resolver:
    """Looks host names up for one event loop.

    `flags` are those of getaddrinfo. At most `max_threads` look-ups run at the same time; others wait for one of these
    to end.
    """

    def __init__(self, *, flags: int = 0, max_threads: int = _MAX_THREADS) -> None:
        self._flags = flags
        self._max_threads = max_threads
        self._threads = 0
        self._look_ups: dict[str, set[asyncio.Future[_Outcome]]] = {}
        """Who waits, by host; there may be nobody left."""
        self._queue: deque[str] = deque()
        """Hosts whose look-up has no thread yet."""

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a TCP service, at least one, in the order in which they are to be tried.

        Raises OSError (socket.gaierror) or UnicodeError, as getaddrinfo does. It takes as long as name servers take:
        the caller sets the deadline, and may be cancelled at any time.
        """
        found = _literal(host)
        if not found:
            found = await self._answer(host)
        return [entry._replace(sockaddr=(entry.sockaddr[0], port, *entry.sockaddr[2:])) for entry in found]

    def is_unanswered(self, host: str) -> bool:
        """Return whether a look-up of this name is under way: so says what a missed deadline was missed by."""
        return host in self._look_ups

    async def _answer(self, host: str) -> list[AddressInfo]:
        loop = asyncio.get_running_loop()
        if host not in self._look_ups:
            self._look_ups[host] = set()
            self._queue.append(host)
        waiter: asyncio.Future[_Outcome] = loop.create_future()
        waiters = self._look_ups[host]
        waiters.add(waiter)
        self._start(loop)
        try:
            outcome = await waiter
        finally:
            waiters.discard(waiter)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the look-ups for which there are threads."""
        while self._queue and self._threads < self._max_threads:
            host = self._queue.popleft()
            if not self._look_ups[host]:  # all have given up
                del self._look_ups[host]
                continue
            thread = threading.Thread(target=self._look_up, args=(host, loop), name=f"look-up of {host}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._tell(host, OSError(errno.EAGAIN, "no thread can be started to look the name up"))
            else:
                self._threads += 1

    def _look_up(self, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """Run on a thread of its own."""
        outcome: _Outcome
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=self._flags)
            outcome = [AddressInfo(*entry) for entry in found]
        except Exception as exc:  # noqa: BLE001 - who waits is told, whatever it was
            outcome = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._end, host, outcome, loop)

    def _end(self, host: str, outcome: _Outcome, loop: asyncio.AbstractEventLoop) -> None:
        self._threads -= 1
        self._tell(host, outcome)
        self._start(loop)

    def _tell(self, host: str, outcome: _Outcome) -> None:
        for waiter in self._look_ups.pop(host):
            if not waiter.done():
                waiter.set_result(outcome)


def _literal(host: str) -> list[AddressInfo]:
    """Return what an address that is written out means, which takes no look-up; nothing for a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return []
    return [AddressInfo(*entry) for entry in found]
