"""Which connections may be open, and which give way to a new one where there are too many.

In this order: the oldest that has sent no request (for one with TLS, the oldest handshake); of those without a live
request, the one that has been idle for longest, of the address that has most; the newest of the address that has most,
if the new one comes from an address with less than half as many. All processes of a machine have one address: among
them, those with live requests stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections import Counter
from collections.abc import Callable
from struct import pack
from typing import Final

import structlog

from proxy.downstream.cancels import address_key
from proxy.downstream.connection import DownstreamConnection
from proxy.downstream.delivery import is_tls, tls_delivered
from proxy.downstream.http1 import Gate
from proxy.downstream.http1_protocol import Http1Protocol
from proxy.network.descriptors import is_reserved
from proxy.observe.observer import DownstreamObserver

__all__ = ["AcceptedConnection", "Admission"]

_log: Final = structlog.get_logger("downstream")

_SAY_REFUSED_SECONDS: Final = 10.0
"""Between two log lines about connections that are not admitted."""
_LEAST_SECONDS: Final = 1.0
"""How long a connection may stay without a request while there are too many."""
_LOOK_SECONDS: Final = 0.1
"""Between two looks at all connections: they are some thousands, and may be in the way of as many new ones."""
_MOST_FOUND: Final = 64
"""How many connections that may give way are remembered after a look."""
_NO_LINGER: Final = pack("ii", 1, 0)
"""For SO_LINGER: the system resets the connection when it is closed."""
_CLOSE_SECONDS: Final = 0.5
"""How long an idle connection that gives way may take to receive its GOAWAY."""


class Admission:
    """The connections of one worker, and the limit on them."""

    def __init__(self, observer: DownstreamObserver, most_connections: int) -> None:
        self.most_connections = most_connections
        """How many connections may be open. It may be changed; those that are open stay."""
        self.accepted: set[AcceptedConnection] = set()
        """Those that are open."""
        self._observer = observer
        self._refused_connections, self._say_refused_at = 0, 0.0
        self._unused: dict[AcceptedConnection, None] = {}
        """Those that may not have sent a request, the oldest first; looked through when there are too many."""
        self._look_again_at = 0.0
        self._idle: list[AcceptedConnection] = []
        """Found by the last look: those without a live request; the last one gives way first."""
        self._most = ""
        """The address that had most connections then."""
        self._of_most: list[AcceptedConnection] = []
        """Its connections; the last one gives way first."""
        self._counts: Counter[str] = Counter()
        """Connections by address, new ones included, as of the last look and what was changed since."""

    def add(self, accepted: AcceptedConnection) -> None:
        """A connection is open; `admits` says whether it may stay."""
        self.accepted.add(accepted)
        self._unused[accepted] = None

    def discard(self, accepted: AcceptedConnection) -> None:
        """A connection has closed."""
        self.accepted.discard(accepted)
        self._unused.pop(accepted, None)

    def admits(self, accepted: AcceptedConnection) -> bool:
        """Return True if an accepted connection may be served; otherwise log why not, but not for each of many."""
        connection = accepted.transport.get_extra_info("socket")
        if connection is not None and is_reserved(connection.fileno(), to_service=False):
            self._log_refused("limit of open files nearly reached (ulimit -n, LimitNOFILE)", "open-files")
            return False
        if len(self.accepted) <= self.most_connections or self._make_room(accepted.accepted_at, accepted.address):
            return True
        self._log_refused("limit of connections reached (max_connections)", "max-connections")
        return False

    def lost(self) -> None:
        """The kernel had no descriptor for a connection, and has closed it: count it, and log it as those above."""
        self._log_refused("limit of open files reached (ulimit -n, LimitNOFILE)", "open-files")

    def admits_handshake(self, connection: socket.socket, under_way: int, end_oldest: Callable[[float], bool]) -> bool:
        """Return True if a TLS handshake may begin, beside so many under way; otherwise log why not.

        `end_oldest` ends the oldest of these if it began before a time, and returns whether it has.
        """
        now = asyncio.get_running_loop().time()
        if is_reserved(connection.fileno(), to_service=False):
            self._log_refused("limit of open files nearly reached (ulimit -n, LimitNOFILE)", "open-files")
            return False
        if len(self.accepted) + under_way < self.most_connections:
            return True
        if end_oldest(now - _LEAST_SECONDS):
            self._observer.connection_refused("unused")
            return True
        if self._make_room(now, None):
            return True
        self._log_refused("limit of connections reached (max_connections)", "max-connections")
        return False

    def _make_room(self, now: float, address: str | None) -> bool:
        """Have a connection give way to one from this address (None: from any); return False if none does."""
        unused = self._oldest_unused(now - _LEAST_SECONDS)
        if unused is not None:
            self._observer.connection_refused("unused")
            del self._unused[unused]
            unused.abort()
            return True
        if now >= self._look_again_at:
            self._look(now)
        while self._idle:
            idle = self._idle.pop()
            if idle in self.accepted and idle.has_been_idle(now - _LEAST_SECONDS):
                self._observer.connection_refused("idle")
                self._count_in_place_of(idle, address)
                idle.give_way()
                return True
        if address is None or self._counts[self._most] < 2 * self._counts[address]:
            return False
        while self._of_most:
            newest = self._of_most.pop()
            if newest in self.accepted:
                self._observer.connection_refused("most-connections")
                self._count_in_place_of(newest, address)
                newest.cut_off()
                return True
        return False

    def _count_in_place_of(self, ended: AcceptedConnection, address: str | None) -> None:
        """Count a new connection from this address instead of one, so that the next new one is judged by both."""
        self._counts[ended.address] -= 1
        if address is not None:
            self._counts[address] += 1

    def _look(self, now: float) -> None:
        """Find the connections that may give way, and who has how many."""
        self._look_again_at = now + _LOOK_SECONDS
        self._counts = counts = Counter(accepted.address for accepted in self.accepted)
        idle = [accepted for accepted in self.accepted if accepted.has_been_idle(now - _LEAST_SECONDS)]
        idle.sort(key=lambda accepted: (counts[accepted.address], -accepted.idle_since))
        self._idle = idle[-_MOST_FOUND:]
        self._most = max(counts, key=counts.__getitem__, default="")
        of_most = [accepted for accepted in self.accepted if accepted.address == self._most]
        of_most.sort(key=lambda accepted: accepted.accepted_at)
        self._of_most = of_most[-_MOST_FOUND:]

    def _oldest_unused(self, before: float) -> AcceptedConnection | None:
        """Return the connection without a request that was accepted first, if that was before this time."""
        while self._unused:
            accepted = next(iter(self._unused))
            if not accepted.used:
                return accepted if accepted.accepted_at < before else None
            del self._unused[accepted]
        return None

    def _log_refused(self, why: str, reason: str) -> None:
        self._observer.connection_refused(reason)
        now = asyncio.get_running_loop().time()
        self._refused_connections += 1
        if now >= self._say_refused_at:
            _log.error(
                f"closing new connections: {why}",
                closed=self._refused_connections,
                connections=len(self.accepted),
            )
            self._say_refused_at = now + _SAY_REFUSED_SECONDS
            self._refused_connections = 0


class AcceptedConnection:
    """An accepted connection, as the listener sees it."""

    __slots__ = (
        "_block",
        "_block_since",
        "accepted_at",
        "address",
        "admitted",
        "gate",
        "h2c",
        "http1",
        "http1_leaving",
        "is_tls",
        "leaving",
        "protocol_unknown",
        "transport",
    )

    def __init__(self, transport: asyncio.Transport, accepted_at: float) -> None:
        self.transport = transport
        """The transport that asyncio made for it."""
        self.accepted_at = accepted_at
        """When it was accepted, as the event loop counts."""
        self.is_tls = is_tls(transport)
        """Whether it speaks TLS, which asyncio's transport cannot say after its end."""
        self.address = address_key(transport)
        """What it has in common with the other connections of its client."""
        self.h2c: DownstreamConnection | None = None
        """What serves it, if it speaks HTTP/2."""
        self.http1: Http1Protocol | None = None
        """What serves it, if it speaks HTTP/1.1."""
        self.admitted = False
        """True once it is known to be served."""
        self.gate = Gate()
        """Set while more of an HTTP/1.1 request may be read."""
        self.gate.set()
        self.protocol_unknown = True
        """True until the first octets tell HTTP/2 from HTTP/1.1."""
        self.leaving = False
        """True after `retire`: whatever protocol it turns out to speak, it is to end gracefully."""
        self.http1_leaving = False
        """True after `retire_http1`: it is to end with its next response if it turns out to speak HTTP/1.1."""
        self._block, self._block_since = 0, 0.0

    @property
    def used(self) -> bool:
        """True once it has sent a request; over HTTP/1.1 the beginning of one."""
        return not self.protocol_unknown and (self.h2c is None or self.h2c.requests > 0)

    @property
    def idle_since(self) -> float:
        """When it had its last request, as the event loop counts; infinite while one is live, or it had none."""
        if self.h2c is not None and self.h2c.requests and not self.h2c.closed and not self.h2c.live_streams:
            return self.h2c.asked_at
        return self.http1.idle_since if self.http1 is not None else math.inf

    def has_been_idle(self, since: float) -> bool:
        """Return True if it has had requests, and none of them has been live since then."""
        return self.idle_since <= since

    def give_way(self) -> None:
        """End it, while no request is live: with GOAWAY, so that its client knows that none was lost."""
        if self.h2c is None:
            self.abort()
            return
        self.h2c.go_away("there are too many connections (max_connections)")
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self.abort)

    def cut_off(self) -> None:
        """End it at once, with its requests."""
        if self.h2c is not None:
            self.h2c.cut_off("its address has most of all connections (max_connections)")
        self.abort()

    def has_late_block(self, now: float, seconds: float) -> bool:
        """Return True if the same field block was unfinished in calls that lie so far apart."""
        block = self.h2c.engine.unfinished_block() if self.h2c is not None else 0
        if block != self._block:
            self._block, self._block_since = block, now
        return block != 0 and now >= self._block_since + seconds

    def speaks_http1(self, protocol: Http1Protocol) -> None:
        """Take note of what serves it, before that has a request."""
        self.http1 = protocol
        if self.http1_leaving:
            protocol.close_after_response()

    def retire(self) -> None:
        """End it gracefully: with GOAWAY, or over HTTP/1.1 with the next response."""
        self.leaving = True
        if self.h2c is not None:
            self.h2c.retire()
        self.retire_http1()

    def retire_http1(self) -> None:
        """Over HTTP/1.1, end it with the next response; over HTTP/2, do nothing (see `connection`)."""
        self.http1_leaving = True
        if self.http1 is not None:
            self.http1.close_after_response()

    @property
    def is_idle_http1(self) -> bool:
        """True if it speaks HTTP/1.1 and no response is due; its client may still have to read some of the last one."""
        http1 = self.http1
        return http1 is not None and not http1.refused and http1.response_complete.is_set()

    async def close_delivered(self) -> None:
        """Close it after what its client has not read yet: over TLS, that is waited for here."""
        await tls_delivered(self.transport)
        if not self.transport.is_closing():  # asyncio's TLS takes `close` once
            self.transport.close()

    def abort(self) -> None:
        """Close it at once, and wake up a reader that waits at the gate.

        Where the end of the connection would be that of a response, which is not complete, it is a reset (RST).
        """
        if self.http1 is not None and self.http1.end_looks_complete:
            connection: socket.socket = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError, ValueError):  # it is closed; uvloop raises ValueError
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()
        self.gate.set()
