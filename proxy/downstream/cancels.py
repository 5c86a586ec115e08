"""What clients cancel, counted by their address across all of its connections (rapid reset, CVE-2023-44487).

A request that is cancelled before its response has begun costs its client a few octets, and the service much work. The
engines limit that on each connection, but a client can open another one. So each address has a budget. While it is
overdrawn,

* a connection that has cancelled more than an eighth of its requests is ended with ENHANCE_YOUR_CALM;
* the requests of new connections wait for a moment before they are sent. What a client cancels at once does not reach
  the service then, and is charged all the same.

New connections are not refused, because a Restate has the same address as every other process of its machine. A
connection that lets its requests finish is not touched.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog

from proxy.connection.budget import Account
from proxy.connection.rate_limit import RateLimit

__all__ = ["CancelBudget", "CancelBudgets", "address_key", "client_of"]

_log: Final = structlog.get_logger("downstream")

_MOST_ADDRESSES: Final = 4_096
"""Addresses without a connection whose budget is kept."""
_MOST_DEBT_SECONDS: Final = 10.0
"""How long an overdrawn budget takes to be paid back at most."""


class CancelBudgets:
    """The budgets of all addresses of one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, per_minute: int) -> None:
        self.loop = loop
        """Has the clock."""
        self._per_minute = per_minute
        self._by_address: dict[str, CancelBudget] = {}

    @property
    def per_minute(self) -> int:
        """Requests that an address may cancel in a minute. It may be changed."""
        return self._per_minute

    @per_minute.setter
    def per_minute(self, per_minute: int) -> None:
        self._per_minute = per_minute
        for budget in self._by_address.values():
            budget.limit.per_minute = per_minute

    def of(self, address: str) -> CancelBudget:
        """Return the budget of an address (`address_key`)."""
        budget = self._by_address.pop(address, None)
        if budget is None:
            budget = CancelBudget(self, address)
            self._forget_some()
        self._by_address[address] = budget  # the latest one is the last
        return budget

    def _forget_some(self) -> None:
        """Forget the addresses that have been without a new connection for longest, if there are too many."""
        excess = len(self._by_address) - _MOST_ADDRESSES
        if excess > 0:
            unused = [address for address, budget in self._by_address.items() if not budget.connections]
            for address in unused[: max(excess, len(unused) // 4)]:
                del self._by_address[address]


class CancelBudget:
    """The budget of one address."""

    def __init__(self, budgets: CancelBudgets, address: str) -> None:
        self._budgets = budgets
        self._address = address
        self._held_back: set[Account] = set()
        self._timer: asyncio.TimerHandle | None = None
        now = budgets.loop.time()
        self.limit = RateLimit(budgets.per_minute, now, most_debt_seconds=_MOST_DEBT_SECONDS)
        """How many requests may be cancelled now."""
        self.connections = 0
        """Connections, and exchanges of HTTP/1.1, that are open."""

    @property
    def overdrawn(self) -> bool:
        """True from the first cancel beyond the budget until that is paid back."""
        return self._timer is not None

    def open(self, account: Account, on_cancelled: Callable[[bool], None] | None = None) -> None:
        """Charge what the owner of this account cancels from now on; hold its requests back while overdrawn.

        `on_cancelled` is called at each cancel, with whether the budget is overdrawn.
        """
        self.connections += 1
        account.on_cancel = _Charge(self, on_cancelled)
        if self.overdrawn:
            account.held_back = True
            self._held_back.add(account)

    def close(self, account: Account) -> None:
        """The owner is gone."""
        account.on_cancel = None  # it refers to the owner
        self.connections -= 1
        self._held_back.discard(account)

    def charge(self) -> bool:
        """Note that a request was cancelled; return True if the budget is overdrawn."""
        loop = self._budgets.loop
        now = loop.time()
        self.limit.charge(now)
        if self._timer is None and self.limit.left(now) < 0.0:
            _log.warning(
                "a client cancels too many requests: those of its new connections are held back",
                client=self._address,
                cancels_per_minute=self.limit.per_minute,
            )
            self._timer = loop.call_later(self.limit.seconds_until(1.0, now), self._end_if_paid)
        return self._timer is not None

    def _end_if_paid(self) -> None:
        """Hold nothing back any more if the budget is paid back."""
        seconds = self.limit.seconds_until(1.0, self._budgets.loop.time())
        if seconds > 0.0:
            self._timer = self._budgets.loop.call_later(seconds, self._end_if_paid)
            return
        self._timer = None
        for account in self._held_back:
            account.held_back = False
        self._held_back.clear()


class _Charge:
    """What an account calls when its owner cancels a request."""

    __slots__ = ("_budget", "_on_cancelled")

    def __init__(self, budget: CancelBudget, on_cancelled: Callable[[bool], None] | None) -> None:
        self._budget = budget
        self._on_cancelled = on_cancelled

    def __call__(self) -> None:
        overdrawn = self._budget.charge()
        if self._on_cancelled is not None:
            self._on_cancelled(overdrawn)


def address_key(transport: asyncio.BaseTransport) -> str:
    """Return what all connections of one client have in common.

    An IPv4 address, a network of 64 bits for IPv6 (what one customer is given), or the path of a Unix socket.
    """
    return client_of(transport.get_extra_info("peername")) or f"unix:{transport.get_extra_info('sockname') or ''}"


def client_of(peer: object) -> str:
    """Return the client's address, or network for IPv6, from the name of its socket; "" if that has none."""
    return _network(str(peer[0])) if isinstance(peer, tuple) and peer else ""


def _network(host: str) -> str:
    """Return an IPv4 address as it is, and of an IPv6 address the first half."""
    if ":" not in host:
        return host
    octets = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if octets[:12] == bytes(10) + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, octets[12:])
    return f"{socket.inet_ntop(socket.AF_INET6, octets[:8] + bytes(8))}/64"
