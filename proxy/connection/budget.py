"""How many octets a worker may queue, and which owner holds how many of them."""

from __future__ import annotations

from collections.abc import Callable

from proxy.errors import Overloaded

__all__ = ["Account", "Budget", "memory_is_short"]


def memory_is_short() -> Overloaded:
    """Return the failure of an exchange that gives way."""
    return Overloaded("memory is short (queued_octets), and most of it is held for this client or service")


class Budget:
    """The octets that all owners of a worker hold, against a limit.

    Each owner has an `Account`. When the limit is reached, the owner with the most octets is told to give some of them
    up, in the next loop turn, until a quarter is free; a connection withholds its connection window until there is
    room. `call_soon` schedules a call for the next loop turn; without it no owner is told.
    """

    __slots__ = ("_accounts", "_call_soon", "_relief_scheduled", "_waiting", "limit_octets", "queued_octets")

    def __init__(self, limit_octets: int, call_soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        self.limit_octets = limit_octets
        self.queued_octets = 0
        self._accounts: set[Account] = set()
        self._call_soon = call_soon
        self._relief_scheduled = False
        self._waiting: set[Callable[[], None]] = set()

    def open_account(self, give_up: Callable[[int], None]) -> Account:
        """Return the account of a new owner; `give_up` is called with the octets that it has to give up."""
        account = Account(self, give_up)
        self._accounts.add(account)
        return account

    def is_used_up(self) -> bool:
        """Return True if no more content should be accepted."""
        return self.queued_octets >= self.limit_octets

    def is_crowded(self) -> bool:
        """Return True if more than half is used: only what must be queued should be."""
        return self.queued_octets > self.limit_octets // 2

    def exceeds_share(self, octets: int) -> bool:
        """Return True if the budget is crowded, and an owner with so many octets holds more than its share.

        The share is half of the limit, divided among the owners that hold a noticeable part of it.
        """
        if not self.is_crowded():
            return False
        noticeable = self.limit_octets // 256
        holders = 0
        for account in self._accounts:
            if account.octets > noticeable:
                holders += 1
        return octets > noticeable and octets * holders * 2 > self.limit_octets

    def change(self, octets: int) -> None:
        """Note that so many more (or fewer) octets are queued; wake the waiting once a quarter is free again."""
        self.queued_octets += octets
        if self._waiting and self.queued_octets <= self._relieved_octets():
            waiting, self._waiting = self._waiting, set()
            for wake in waiting:
                wake()
        if octets <= 0 or self.queued_octets < self.limit_octets or self._relief_scheduled:
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
        """Forget an owner; what it still holds is not charged any more."""
        account.change(-account.octets)
        self._accounts.discard(account)

    def _relieved_octets(self) -> int:
        return self.limit_octets - self.limit_octets // 4

    def _relieve(self) -> None:
        """Have the owners with the most octets give them up, until a quarter of the limit is free."""
        # Owners that cannot give anything up are asked once, and what others queue meanwhile schedules no second call.
        left = set(self._accounts) if self.is_used_up() else set()
        while left and (excess := self.queued_octets - self._relieved_octets()) > 0:
            largest = max(left, key=lambda account: account.octets)
            if not largest.octets:
                break
            before = self.queued_octets
            largest.give_up(min(excess, largest.octets))
            if self.queued_octets >= before or largest not in self._accounts:
                left.discard(largest)
        self._relief_scheduled = False


class Account:
    """The octets that one owner holds: the connection of a client, or one to an upstream."""

    __slots__ = ("budget", "give_up", "held_back", "octets", "on_cancel")

    def __init__(self, budget: Budget, give_up: Callable[[int], None]) -> None:
        self.budget = budget
        self.give_up = give_up
        """Called with the number of octets to give up."""
        self.octets = 0
        self.on_cancel: Callable[[], None] | None = None
        """Called when a request of the owner is cancelled before its response has begun."""
        self.held_back = False
        """Whether new requests of the owner wait for a moment before they are sent."""

    def change(self, octets: int) -> None:
        """Note that the owner holds so many more (or fewer) octets."""
        self.octets += octets
        self.budget.change(octets)

    def exceeds_share(self) -> bool:
        """Return True if the budget is crowded and this owner holds more than its share."""
        return self.budget.exceeds_share(self.octets)
