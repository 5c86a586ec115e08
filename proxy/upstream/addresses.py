"""Tries the addresses of a service until one of them serves.

An open TCP connection proves little: behind a broken tunnel or middlebox, an IPv6 address may accept connections and be
silent then, or refuse TLS. So an attempt lasts until the connection is ready. When it fails, or is not ready after a
second, another address is tried beside it, of the other family first; the first that is ready is used. An address that
failed is tried after all others for ten minutes (RFC 8305, 4; RFC 6555, 4.2).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import aiohappyeyeballs
import structlog

from proxy.errors import Failure
from proxy.network.resolver import AddressInfo

__all__ = ["Addresses", "Attempts"]

_log: Final = structlog.get_logger("upstream")

_HAPPY_EYEBALLS_DELAY_SECONDS: Final = 0.25  # RFC 8305, section 8
_PATIENCE_SECONDS: Final = 1.0
"""How long an attempt may take before another address is tried beside it: two or three round trips around the world."""
_MOST_ATTEMPTS: Final = 4
"""Handshakes for one connection. If all of them fail, the next connection begins with other addresses."""
_REMEMBERED_SECONDS: Final = 600.0
_MOST_REMEMBERED: Final = 1_024

_Connection = TypeVar("_Connection")


class Addresses:
    """Remembers which addresses accept connections and do not serve. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._avoided_until: dict[tuple[Any, ...], float] = {}

    def is_avoided(self, address: AddressInfo) -> bool:
        """Return True if this address has failed within the last ten minutes."""
        return self._avoided_until.get(address.sockaddr, 0.0) > self._clock()

    def has_failed(self, address: AddressInfo, why: str) -> None:
        """Avoid this address for ten minutes."""
        if not self.is_avoided(address):
            _log.warning(
                "address accepts connections and does not serve: others are tried before it",
                address=address.sockaddr[0],
                port=address.sockaddr[1],
                reason=why,
                seconds=_REMEMBERED_SECONDS,
            )
        self._avoided_until.pop(address.sockaddr, None)
        while len(self._avoided_until) >= _MOST_REMEMBERED:
            del self._avoided_until[next(iter(self._avoided_until))]
        self._avoided_until[address.sockaddr] = self._clock() + _REMEMBERED_SECONDS

    def has_served(self, address: AddressInfo) -> None:
        """Do not avoid this address any more."""
        self._avoided_until.pop(address.sockaddr, None)


class _Attempt(Generic[_Connection]):
    """One handshake, on the address of `candidates` that first accepts a connection."""

    def __init__(
        self, candidates: list[AddressInfo], handshake: Callable[[socket.socket], Awaitable[_Connection]]
    ) -> None:
        self.candidates = candidates
        """The addresses; when one of them has accepted, that one."""
        self.accepted = False
        self._handshake = handshake
        self._sockets: dict[socket.socket, AddressInfo] = {}

    async def run(self) -> _Connection:
        """Return the connection that is ready."""
        connected = await aiohappyeyeballs.start_connection(
            self.candidates, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_SECONDS, socket_factory=self._socket
        )
        self.candidates, self.accepted = [self._sockets[connected]], True
        self._sockets.clear()
        return await self._handshake(connected)

    def _socket(self, address: Any) -> socket.socket:
        made = socket.socket(*address[:3])
        self._sockets[made] = AddressInfo(*address)
        return made


class Attempts(Generic[_Connection]):
    """The attempts to connect to one service. `handshake` makes a connection of a socket, `drop` closes a spare one."""

    def __init__(
        self,
        known: Addresses,
        handshake: Callable[[socket.socket], Awaitable[_Connection]],
        drop: Callable[[_Connection], None],
    ) -> None:
        self.failure: BaseException | None = None
        """Why the first attempt that has failed did."""
        self._known = known
        self._handshake = handshake
        self._drop = drop
        self._failed: list[tuple[_Attempt[_Connection], BaseException]] = []
        self._running: dict[asyncio.Task[_Connection], _Attempt[_Connection]] = {}

    async def first_ready(self, addresses: Sequence[AddressInfo]) -> _Connection:
        """Return the first connection that is ready; raise `failure` if there is none. It may be cancelled."""
        try:
            while True:
                self._start_next(addresses)
                if not self._running:
                    raise self.failure or AssertionError("there is no address")
                done, _ = await asyncio.wait(
                    self._running, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if (failure := task.exception()) is None:
                        self._known.has_served(self._running.pop(task).candidates[0])
                        self._learn()
                        return task.result()
                    self.failure = self.failure or failure
                    self._failed.append((self._running.pop(task), failure))
        finally:
            # Nothing is waited for here: a cancellation meanwhile would lose the connection that is returned.
            for task in self._running:
                task.cancel()
                task.add_done_callback(self._drop_spare)

    def none_served(self, addresses: Sequence[AddressInfo]) -> None:
        """Let the next connection begin with the addresses that were not tried, if there are any.

        Called when all attempts have failed, or at the deadline. If all addresses fail, the service may be at fault.
        """
        if self._untried(addresses):
            self._learn()

    @property
    def _attempts(self) -> list[_Attempt[_Connection]]:
        return [*(attempt for attempt, _ in self._failed), *self._running.values()]

    def _untried(self, addresses: Sequence[AddressInfo]) -> list[AddressInfo]:
        tried = [address for attempt in self._attempts for address in attempt.candidates]
        return [address for address in addresses if address not in tried]

    def _start_next(self, addresses: Sequence[AddressInfo]) -> None:
        """Start an attempt on the addresses that none has tried, if there are any."""
        left = self._untried(addresses)
        if not left or len(self._attempts) >= _MOST_ATTEMPTS:
            return
        families = {address.family for attempt in self._attempts for address in attempt.candidates}
        candidates = [address for address in left if not self._known.is_avoided(address)] or left
        attempt = _Attempt(sorted(candidates, key=lambda address: address.family in families), self._handshake)
        self._running[asyncio.get_running_loop().create_task(attempt.run())] = attempt

    def _learn(self) -> None:
        """Remember which addresses accepted a connection and did not serve."""
        for attempt, failure in self._failed:
            if attempt.accepted and isinstance(failure, Failure | ssl.SSLError | ConnectionError):
                self._known.has_failed(attempt.candidates[0], f"the handshake failed ({type(failure).__name__})")
        for attempt in self._running.values():
            if attempt.accepted:
                self._known.has_failed(attempt.candidates[0], "it is silent")

    def _drop_spare(self, task: asyncio.Task[_Connection]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._drop(task.result())
