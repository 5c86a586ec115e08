"""Who is next among the requests that wait for a stream."""

from __future__ import annotations

import asyncio

import pytest

from proxy.upstream.wait_queue import Waiter, WaitQueue


def waiters(queue: WaitQueue, *owners: str) -> list[Waiter]:
    """Have one waiter join for each of these owners, and return them."""
    loop = asyncio.get_running_loop()
    joined: list[Waiter] = []
    for owner in owners:
        joined.append(loop.create_future())
        queue.join(owner, queue.next_ticket(), joined[-1])
    return joined


def order(queue: WaitQueue, among: list[Waiter]) -> list[int]:
    """Take all waiters, and return their places in the list."""
    taken = []
    while (waiter := queue.first()) is not None:
        taken.append(among.index(waiter))
        queue.take_first()
    return taken


@pytest.mark.asyncio
async def test_owners_have_their_turns_and_each_is_first_come_first_served() -> None:
    queue = WaitQueue()
    joined = waiters(queue, "a", "a", "a", "b", "c", "b")
    assert order(queue, joined) == [0, 3, 4, 1, 5, 2]
    assert queue.first() is None


@pytest.mark.asyncio
async def test_a_request_that_returns_to_its_place_goes_before_later_ones() -> None:
    queue = WaitQueue()
    early = queue.next_ticket()
    joined = waiters(queue, "a")
    returned: Waiter = asyncio.get_running_loop().create_future()
    queue.join("a", early, returned)
    assert order(queue, [*joined, returned]) == [1, 0]


@pytest.mark.asyncio
async def test_a_waiter_that_has_given_up_is_passed_over() -> None:
    queue = WaitQueue()
    joined = waiters(queue, "a", "a", "b")
    joined[0].cancel()
    joined[2].cancel()
    assert order(queue, joined) == [1]


@pytest.mark.asyncio
async def test_a_preferred_owner_has_the_next_turn() -> None:
    queue = WaitQueue()
    joined = waiters(queue, "a", "b", "c", "c")
    queue.prefer("c")
    assert order(queue, joined) == [2, 0, 1, 3]


@pytest.mark.asyncio
async def test_all_can_be_taken_at_once() -> None:
    queue = WaitQueue()
    joined = waiters(queue, "a", "b", "a")
    assert set(queue.take_all()) == set(joined)
    assert queue.first() is None


@pytest.mark.asyncio
async def test_what_has_given_up_is_forgotten_while_nobody_has_a_turn() -> None:
    queue = WaitQueue()
    [long] = waiters(queue, "a")
    for _ in range(3):
        joined = waiters(queue, "b", "b", "c")
        joined[1].cancel()
        queue.forget_finished("b")
        assert queue.count_owners() == 3
        for waiter in joined:
            waiter.cancel()
        for owner in ("b", "c", "c", "nobody"):
            queue.forget_finished(owner)
        assert queue.count_owners() == 1
    assert queue.take_all() == [long]
