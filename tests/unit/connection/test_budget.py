"""How many octets a worker queues, and which owner gives way when they are too many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from sys import getrefcount

import pytest

from proxy.connection.budget import Account, Budget


def test_waiters_are_woken_once_a_quarter_of_the_budget_is_free() -> None:
    budget = Budget(1000)
    woken: list[str] = []
    budget.change(500)
    assert not budget.is_crowded()
    budget.change(499)
    assert budget.is_crowded()
    assert not budget.is_used_up()
    budget.change(1)
    assert budget.is_used_up()
    budget.wait(lambda: woken.append("a"))
    budget.change(-249)
    assert not woken
    budget.change(-1)
    assert woken == ["a"]
    budget.change(-750)
    assert woken == ["a"]
    assert budget.queued_octets == 0


def test_a_waiter_that_was_removed_is_not_woken() -> None:
    budget = Budget(10)
    woken: list[str] = []

    def wake() -> None:
        woken.append("a")

    budget.change(10)
    budget.wait(wake)
    budget.leave(wake)
    budget.leave(wake)
    budget.change(-10)
    assert not woken


def test_a_woken_waiter_may_wait_again_at_once() -> None:
    budget = Budget(10)
    woken: list[int] = []

    def wake() -> None:
        woken.append(budget.queued_octets)
        if len(woken) == 1:
            budget.change(10)
            budget.wait(wake)

    budget.change(10)
    budget.wait(wake)
    budget.change(-10)
    assert woken == [0]
    budget.change(-10)
    assert woken == [0, 0]


def test_a_waiter_that_fails_does_not_keep_the_others_from_being_woken() -> None:
    budget = Budget(10)
    woken: list[int] = []

    def fail() -> None:
        woken.append(-1)
        raise ZeroDivisionError

    budget.change(10)
    for number in range(3):
        budget.wait(partial(woken.append, number))
    budget.wait(fail)
    with pytest.raises(ZeroDivisionError):
        budget.change(-10)
    budget.change(0)
    budget.change(0)
    assert sorted(woken) == [-1, 0, 1, 2]


def test_a_waiter_that_another_one_removes_is_not_woken() -> None:
    budget = Budget(10)
    woken: list[str] = []

    def first() -> None:
        woken.append("first")
        budget.leave(second)

    def second() -> None:
        woken.append("second")
        budget.leave(first)

    budget.change(10)
    budget.wait(first)
    budget.wait(second)
    budget.change(-10)
    assert len(woken) == 1


# ---- shares


def joined(budget: Budget, *keys: str) -> list[Account]:
    """Return an account of each of these holders."""
    accounts = [budget.open_account(lambda *_: None) for _ in keys]
    for account, key in zip(accounts, keys, strict=True):
        budget.join(account, key)
    return accounts


def test_nobody_exceeds_a_share_while_half_is_free() -> None:
    budget = Budget(1000)
    most, other, _ = accounts = joined(budget, "a", "b", "c")
    for account, octets in zip(accounts, (400, 50, 50), strict=True):
        account.change(octets)
    assert not most.exceeds_share()
    other.change(1)
    assert most.exceeds_share()
    assert not other.exceeds_share()


def test_each_connection_counts_once_among_those_that_share() -> None:
    budget = Budget(1000)
    one, other = joined(budget, "a", "b")
    one.change(240)
    other.change(300)
    assert not one.exceeds_share(), "it may have 250"
    one.change(11)
    assert one.exceeds_share()


def test_a_holder_without_an_account_is_forgotten() -> None:
    budget = Budget(1000)
    one, other = joined(budget, "a", "a")
    holder = one.holder
    assert other.holder is holder
    budget.close_account(one)
    assert joined(budget, "a")[0].holder is holder
    budget.close_account(other)
    (last,) = holder.accounts
    references = getrefcount(holder)
    budget.close_account(last)
    assert getrefcount(holder) == references - 2, "the budget has none by name, and none among all"
    assert joined(budget, "a")[0].holder is not holder


# ---- owners


class Owners:
    """A budget whose scheduled calls are made by `turn`, and owners that note what they are asked to give up."""

    def __init__(self, limit_octets: int) -> None:
        self.calls: list[Callable[[], None]] = []
        self.budget = Budget(limit_octets, self.calls.append)
        self.asked: list[tuple[str, int]] = []

    def open(
        self,
        name: str,
        octets: int,
        *,
        most_freed: int | None = None,
        owner: str | None = None,
        largest: int | None = None,
    ) -> Account:
        """Add an account that frees what it is asked for, or at most so much; its exchanges hold up to `largest`."""

        def give_up(asked: int, least_octets: int) -> None:
            if least_octets > (octets if largest is None else largest):
                return
            self.asked.append((name, asked))
            freed = asked if most_freed is None else min(asked, most_freed)
            account.change(-min(freed, account.octets))

        account = self.budget.open_account(give_up)
        account.change(octets)
        if owner is not None:
            self.budget.join(account, owner)
        return account

    def turn(self) -> None:
        """Make the calls that are scheduled."""
        calls = self.calls[:]
        self.calls.clear()
        for call in calls:
            call()


def test_the_largest_owner_gives_up_what_exceeds_three_quarters() -> None:
    owners = Owners(1000)
    small, large = owners.open("small", 300), owners.open("large", 699)
    assert not owners.calls
    small.change(1)
    owners.turn()
    assert owners.asked == [("large", 250)]
    assert (small.octets, large.octets, owners.budget.queued_octets) == (301, 449, 750)


def test_the_next_largest_is_asked_when_the_largest_cannot_give_enough() -> None:
    owners = Owners(1000)
    owners.open("first", 500, most_freed=0)
    owners.open("second", 400)
    owners.open("third", 100)
    owners.turn()
    assert owners.asked == [("first", 250), ("second", 250)]


def test_an_owner_that_gives_up_less_than_asked_is_asked_again() -> None:
    owners = Owners(1000)
    owners.open("first", 700, most_freed=100)
    owners.open("second", 300)
    owners.turn()
    assert owners.asked == [("first", 250), ("first", 150), ("first", 50)]


def test_owners_that_give_up_nothing_are_asked_once_a_turn_and_again_after_a_change() -> None:
    owners = Owners(1000)
    account = owners.open("stubborn", 1000, most_freed=0)
    owners.open("empty", 0)
    for _ in range(2):
        owners.turn()
        assert owners.asked == [("stubborn", 250)]
    account.change(1)
    owners.turn()
    account.change(-1)
    owners.turn()
    assert owners.asked == [("stubborn", 250), ("stubborn", 251)]


def test_waiters_are_woken_if_nobody_has_to_be_asked_any_more() -> None:
    """What is left may stay, and never become so little that they are woken for that."""
    owners = Owners(1000)
    woken: list[str] = []
    account = owners.open("quick", 1000)
    owners.budget.wait(lambda: woken.append("a"))
    account.change(-1)
    assert not woken
    owners.turn()
    assert not owners.asked
    assert woken == ["a"]


@pytest.mark.parametrize(("limit", "octets"), [(1000, -1), (1001, 0)], ids=["octets leave", "the limit is raised"])
def test_waiters_are_woken_as_soon_as_there_is_room_if_nobody_could_give_anything_up(limit: int, octets: int) -> None:
    """What is left may stay, and nobody is asked again below the limit."""
    owners = Owners(1000)
    woken: list[str] = []
    account = owners.open("stubborn", 1001, most_freed=0)
    owners.budget.wait(lambda: woken.append("a"))
    owners.turn()
    account.change(-1)
    assert not woken
    owners.budget.limit_octets = limit
    account.change(octets)
    assert woken == ["a"]


def test_owners_give_up_what_exceeds_a_limit_that_was_lowered() -> None:
    owners = Owners(1000)
    woken: list[str] = []
    account = owners.open("large", 900)
    owners.budget.limit_octets = 800
    owners.budget.change(0)
    owners.budget.wait(lambda: woken.append("a"))
    owners.turn()
    assert account.octets == 600
    assert woken == ["a"]


def test_waiters_are_woken_if_there_is_room_after_an_owner_has_failed_to_give_up() -> None:
    calls: list[Callable[[], None]] = []
    budget = Budget(1000, calls.append)
    woken: list[str] = []

    def fail(octets: int, least_octets: int) -> None:
        account.change(-100)
        raise ZeroDivisionError

    account = budget.open_account(fail)
    account.change(1000)
    budget.wait(lambda: woken.append("a"))
    with pytest.raises(ZeroDivisionError):
        calls.pop()()
    assert woken == ["a"]


def test_an_owner_that_fails_to_give_up_does_not_end_the_asking() -> None:
    calls: list[Callable[[], None]] = []
    budget = Budget(1000, calls.append)

    def fail(octets: int, least_octets: int) -> None:
        raise ZeroDivisionError

    account = budget.open_account(fail)
    for _ in range(2):
        account.change(1000)
        with pytest.raises(ZeroDivisionError):
            calls.pop()()
        account.change(-1000)
    assert not calls


def test_an_owner_with_many_small_accounts_gives_way_before_a_larger_account_of_another() -> None:
    owners = Owners(1000)
    for number in range(8):
        owners.open(f"many {number}", 100, owner="many")
    single = owners.open("single", 200, owner="single")
    owners.turn()
    assert {name for name, _ in owners.asked} < {f"many {number}" for number in range(8)}
    assert sum(asked for _, asked in owners.asked) == 250
    assert (single.octets, owners.budget.queued_octets) == (200, 750)


def test_large_exchanges_of_an_owner_give_way_before_a_larger_account_with_small_ones() -> None:
    owners = Owners(1 << 20)
    half, large = 1 << 19, 16 << 10
    calm = owners.open("calm", half, owner="it", largest=large - 1)
    for number in range(4):
        owners.open(f"large {number}", half // 4, owner="it", largest=large)
    owners.turn()
    assert calm.octets == half
    assert {name.partition(" ")[0] for name, _ in owners.asked} == {"large"}
    assert owners.budget.queued_octets == (1 << 20) // 4 * 3


def test_the_largest_account_of_an_owner_gives_up_first() -> None:
    owners = Owners(1000)
    for name, octets in (*((f"small {number}", 40) for number in range(10)), ("large", 600)):
        owners.open(name, octets, owner="it")
    owners.turn()
    assert owners.asked == [("large", 250)]


def test_an_owner_whose_accounts_are_closed_is_forgotten() -> None:
    owners = Owners(1000)
    first = owners.open("first", 400, owner="it")
    second = owners.open("second", 500, owner="it")
    assert first.holder is second.holder
    assert first.holder.octets == 900
    owners.budget.close_account(first)
    assert second.holder.octets == 500
    owners.budget.close_account(second)
    assert owners.open("third", 1, owner="it").holder.octets == 1
    assert owners.budget.queued_octets == 1


def test_octets_without_an_owner_evict_no_owner_nor_exchanges_that_hold_nothing() -> None:
    owners = Owners(1000)
    owners.budget.change(1000)
    owners.turn()
    owners.open("empty", 0)
    owners.open("frames", 1, largest=0)
    owners.turn()
    assert not owners.asked


def test_a_closed_account_is_charged_for_nothing() -> None:
    owners = Owners(1000)
    owners.budget.close_account(owners.open("gone", 1000))
    assert owners.budget.queued_octets == 0
    owners.open("left", 1000)
    owners.turn()
    assert owners.asked == [("left", 250)]


@pytest.mark.parametrize(
    ("octets", "others", "exceeds"),
    [
        (500, [], False),  # half is no shortage
        (501, [], True),
        (251, [250], True),
        (250, [500], False),
        (100, [450], False),
        (200, [160, 160], True),
        (3, [900], False),  # too little to be noticed, however short memory is
        (3, [4] * 170, False),
        (4, [300, 300, 300], False),
        (200, [400, *[3] * 5], False),
    ],
)
def test_an_owner_exceeds_its_share_of_half_the_limit_only_while_memory_is_short(
    octets: int, others: list[int], exceeds: bool
) -> None:
    owners = Owners(1000)
    account = owners.open("it", octets)
    for number, other in enumerate(others):
        owners.open(f"other {number}", other)
    assert account.exceeds_share() == exceeds
