"""Resolves host names, so that a name whose servers do not answer delays only itself.

`getaddrinfo` knows all names of this machine: /etc/hosts, nsswitch.conf, the search list and `ndots`. It blocks while
name servers do not answer, usually 5 to 40 s, and cannot be cancelled. uvloop runs at most two calls at a time, on
threads of libuv that delay the exit; asyncio's executor delays the exit, too. So each look-up runs on a daemon thread
of its own. There is one look-up at a time for a name, shared by all callers. A cancelled caller leaves it running, and
the next caller waits for the same one.

A DNS client such as c-ares would need no threads, but it ignores the sources in nsswitch.conf.

`upstream` and `tokens` have a `Resolver` each, so that look-ups of one do not use up the threads of the other.
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
"""Remedy for a name whose servers do not answer."""

_MAX_THREADS: Final = 256
"""More than most configurations have routes; a waiting thread takes 29 KiB of memory (glibc 2.36)."""


class AddressInfo(NamedTuple):
    """One address of a service, as `getaddrinfo` returns it."""

    family: socket.AddressFamily
    """AF_INET or AF_INET6."""
    type: socket.SocketKind
    """SOCK_STREAM."""
    proto: int
    """IPPROTO_TCP."""
    canonname: str
    """Empty: it is not asked for."""
    sockaddr: tuple[Any, ...]
    """Address and port; for IPv6, also flow label and scope."""


_Outcome = list[AddressInfo] | Exception


class Resolver:
    """Resolves host names for one event loop.

    `flags` are those of getaddrinfo. At most `max_threads` look-ups run at a time; others wait for a free thread.
    """

    def __init__(self, *, flags: int = 0, max_threads: int = _MAX_THREADS) -> None:
        self._flags = flags
        self._max_threads = max_threads
        self._threads = 0
        self._look_ups: dict[str, set[asyncio.Future[_Outcome]]] = {}
        """Waiting callers by host; empty if all were cancelled."""
        self._queue: deque[str] = deque()
        """Hosts whose look-up waits for a thread."""

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a TCP service, at least one, in the order in which to try them.

        Raises OSError (socket.gaierror) or UnicodeError, as getaddrinfo does. There is no deadline: the caller sets
        one, and may be cancelled at any time.
        """
        found = _literal(host)
        if not found:
            found = await self._look_up_shared(host)
        return [entry._replace(sockaddr=(entry.sockaddr[0], port, *entry.sockaddr[2:])) for entry in found]

    def is_unanswered(self, host: str) -> bool:
        """Return True if a look-up of this name is running: then a missed deadline was missed in DNS."""
        return host in self._look_ups

    async def _look_up_shared(self, host: str) -> list[AddressInfo]:
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
        """Start queued look-ups while there are free threads."""
        while self._queue and self._threads < self._max_threads:
            host = self._queue.popleft()
            if not self._look_ups[host]:  # all callers were cancelled
                del self._look_ups[host]
                continue
            thread = threading.Thread(target=self._look_up, args=(host, loop), name=f"look-up of {host}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._finish(host, OSError(errno.EAGAIN, "no thread can be started to look the name up"))
            else:
                self._threads += 1

    def _look_up(self, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """Run one look-up; called on a thread of its own."""
        outcome: _Outcome
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=self._flags)
            outcome = [AddressInfo(*entry) for entry in found]
        except Exception as exc:  # noqa: BLE001 - passed on to the callers
            outcome = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._end, host, outcome, loop)

    def _end(self, host: str, outcome: _Outcome, loop: asyncio.AbstractEventLoop) -> None:
        self._threads -= 1
        self._finish(host, outcome)
        self._start(loop)

    def _finish(self, host: str, outcome: _Outcome) -> None:
        for waiter in self._look_ups.pop(host):
            if not waiter.done():
                waiter.set_result(outcome)


def _literal(host: str) -> list[AddressInfo]:
    """Return the address if `host` is an IP address, which takes no look-up; empty for a name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return []
    return [AddressInfo(*entry) for entry in found]
