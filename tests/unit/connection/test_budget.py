"""How much a worker holds for others."""

from __future__ import annotations

from proxy.connection.budget import Budget


def test_a_budget_wakes_the_waiting_once_a_quarter_is_free() -> None:
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


def test_a_waiter_that_left_is_not_woken() -> None:
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
