"""How many octets a worker may queue, and who holds how many of them.

Each connection has an account. At the limit, the holder with the most octets gives way: all clients of one address, or
all connections to one service, because who has a thousand connections may hold little on each. Below it, new requests
are refused by connection, because a Restate has the same address as every other process of its machine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from proxy.errors import Overloaded

__all__ = ["Account", "Budget", "Holder", "memory_is_short"]

_NOTICEABLE_SHARE: Final = 256
"""A connection that holds less than this part of the limit is none of those that share it."""
_LARGE_EXCHANGE_OCTETS: Final = 16 << 10
"""An exchange with so many gives way before all smaller ones of its holder: those may just wait for an answer."""


def _give_up_nothing(octets: int, least_octets: int) -> None:
    """Do nothing: the account is closed."""


def memory_is_short() -> Overloaded:
    """Return the failure of an exchange that gives way."""
    return Overloaded("memory is short (queued_octets), and most of it is held for this client or service")


class Budget:
    """The octets that are held in a worker, against a limit.

    When the limit is reached, the holder with the most octets is told to give some of them up, in the next loop turn,
    until a quarter is free; a connection withholds its connection window until there is room. `call_soon` schedules a
    call for the next loop turn; without it no holder is told.
    """

    __slots__ = ("_call_soon", "_holders", "_known", "_relief_scheduled", "_waiting", "limit_octets", "queued_octets")

    def __init__(self, limit_octets: int, call_soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        self.limit_octets = limit_octets
        """It may be changed."""
        self.queued_octets = 0
        """What all accounts hold."""
        self._holders: set[Holder] = set()
        """Those that have an account."""
        self._known: dict[Hashable, Holder] = {}
        """Those of them that accounts can join."""
        self._call_soon = call_soon
        self._relief_scheduled = False
        self._waiting: set[Callable[[], None]] = set()

    def open_account(self, give_up: Callable[[int, int], None]) -> Account:
        """Return a new account, the only one of its holder.

        `give_up` is called with the octets that it has to give up, and how many an exchange must hold to be ended.
        """
        account = Account(self, give_up)
        self._holders.add(account.holder)
        return account

    def join(self, account: Account, key: Hashable) -> None:
        """Let the account, the only one of its holder until now, be one of the holder with this key."""
        self._leave(account)
        holder = self._known.get(key)
        if holder is None:
            holder = self._known[key] = Holder(key)
            self._holders.add(holder)
        account.holder = holder
        holder.accounts.add(account)
        holder.octets += account.octets

    def is_used_up(self) -> bool:
        """Return True if no more content should be accepted."""
        return self.queued_octets >= self.limit_octets

    def is_crowded(self) -> bool:
        """Return True if more than half is used: only what must be queued should be."""
        return self.queued_octets > self.limit_octets // 2

    def exceeds_share(self, octets: int) -> bool:
        """Return True if the budget is crowded, and so many octets are more than a share.

        The share is half of the limit, divided among the connections that hold a noticeable part of it.
        """
        if not self.is_crowded():
            return False
        noticeable = self.limit_octets // _NOTICEABLE_SHARE
        sharing = 0
        for holder in self._holders:
            for account in holder.accounts:
                if account.octets > noticeable:
                    sharing += 1
        return octets > noticeable and octets * sharing * 2 > self.limit_octets

    def change(self, octets: int) -> None:
        """Note that so many more (or fewer) octets are queued, or with 0 that the limit was changed.

        The waiting are woken once a quarter is free again; or as soon as there is room, if the holders have been told
        and could not give up so much: what is left need not become fewer.
        """
        self.queued_octets += octets
        if self._waiting and self._has_room():
            self._wake()
        if octets < 0 or self.queued_octets < self.limit_octets or self._relief_scheduled:
            return
        if self._call_soon is not None:
            self._relief_scheduled = True
            self._call_soon(self._relieve)

    def wait(self, wake: Callable[[], None]) -> None:
        """Call `wake` as soon as there is room."""
        self._waiting.add(wake)

    def leave(self, wake: Callable[[], None]) -> None:
        """Do not call `wake` any more."""
        self._waiting.discard(wake)

    def close_account(self, account: Account) -> None:
        """Forget an account; what it still holds is not charged any more."""
        account.change(-account.octets)
        self._leave(account)
        # The account is still the owner of requests whose reset is held back (`upstream.cancels`), for minutes, and
        # would keep a connection that has ended in memory with all that its engine has.
        account.give_up = _give_up_nothing

    def _leave(self, account: Account) -> None:
        """Take an account from its holder, and forget a holder without an account."""
        holder = account.holder
        holder.accounts.discard(account)
        if not holder.accounts:
            self._holders.discard(holder)
            self._known.pop(holder.key, None)

    def _has_room(self) -> bool:
        """Return True if the waiting are to be woken."""
        if self._relief_scheduled or self._call_soon is None:
            return self.queued_octets <= self._relieved_octets()
        return self.queued_octets < self.limit_octets

    def _relieved_octets(self) -> int:
        return self.limit_octets - self.limit_octets // 4

    def _relieve(self) -> None:
        """Have the holders with the most octets give them up, until a quarter of the limit is free."""
        # Holders that cannot give anything up are asked once, and what others queue meanwhile schedules no second call.
        left = set(self._holders) if self.is_used_up() else set()
        try:
            while left and (excess := self.queued_octets - self._relieved_octets()) > 0:
                largest = max(left, key=lambda holder: holder.octets)
                before = self.queued_octets
                self._ask(largest, excess)
                if self.queued_octets >= before:
                    left.discard(largest)
        finally:
            self._relief_scheduled = False
            if not self.is_used_up():
                # Nobody may have been asked, because octets left in between; they need not become fewer now.
                self._wake()

    def _wake(self) -> None:
        """Call all that wait. If one fails, the others still wait; one that waits again is called the next time."""
        for wake in tuple(self._waiting):
            if wake in self._waiting:
                self._waiting.discard(wake)
                wake()

    def _ask(self, holder: Holder, octets: int) -> None:
        """Have a holder give up so many octets, if it has them: large exchanges of all its connections first.

        So who has many connections that hold much does not end what waits on others of the same address.
        """
        until = self.queued_octets - octets
        for least_octets in (_LARGE_EXCHANGE_OCTETS, 1):
            for account in sorted(holder.accounts, key=lambda account: account.octets, reverse=True):
                excess = min(self.queued_octets - until, account.octets)
                if excess > 0:
                    account.give_up(excess, least_octets)


class Holder:
    """The accounts that one holder has, and the octets of all of them."""

    __slots__ = ("accounts", "key", "octets")

    def __init__(self, key: Hashable = None) -> None:
        self.accounts: set[Account] = set()
        self.octets = 0
        self.key = key
        """By which accounts join it; None if there is just one."""


class Account:
    """The octets that one connection of a client holds, or one to a service."""

    __slots__ = ("budget", "give_up", "held_back", "holder", "octets", "on_cancel")

    def __init__(self, budget: Budget, give_up: Callable[[int, int], None]) -> None:
        self.budget = budget
        self.give_up = give_up
        """Called with the number of octets to give up, and how many an exchange must hold to be ended."""
        self.holder = Holder()
        """Whose account it is: `Budget.join`."""
        self.holder.accounts.add(self)
        self.octets = 0
        """What is held."""
        self.on_cancel: Callable[[], None] | None = None
        """Called when a request of the connection is cancelled before its response has begun."""
        self.held_back = False
        """Whether new requests of the connection wait for a moment before they are sent."""

    def change(self, octets: int) -> None:
        """Note that the connection holds so many more (or fewer) octets."""
        self.octets += octets
        self.holder.octets += octets
        self.budget.change(octets)

    def exceeds_share(self) -> bool:
        """Return True if the budget is crowded and this connection holds more than its share."""
        return self.budget.exceeds_share(self.octets)
