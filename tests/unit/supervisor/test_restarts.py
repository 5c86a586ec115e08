"""When another worker is started in place of one that has exited."""

from __future__ import annotations

import math

from proxy.supervisor.restarts import Restarts


def test_a_worker_that_ran_for_long_is_replaced_at_once() -> None:
    restarts = Restarts()
    assert [restarts.add(100.0, 60.0, served=True) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert restarts.take_due(100.0) == 3


def test_workers_that_exit_at_their_start_are_replaced_after_growing_delays() -> None:
    restarts = Restarts()
    delays = [restarts.add(0.0, 0.1, served=True) for _ in range(10)]
    assert delays[:4] == [0.0, 0.5, 1.0, 2.0]
    assert delays[-1] == 30.0


def test_one_worker_is_started_soon_while_none_serves() -> None:
    restarts = Restarts()
    for _ in range(10):
        restarts.add(0.0, 0.1, served=True)
    restarts.take_due(20.0)
    assert restarts.next == 30.0
    assert restarts.add(20.0, 0.1, served=False) == 1.0
    assert restarts.add(20.0, 0.1, served=False) == 30.0
    assert restarts.take_due(21.0) == 1
    assert restarts.add(21.0, 0.1, served=True) == 30.0
    assert restarts.add(21.0, 0.1, served=False) == 1.0


def test_a_delay_that_is_shorter_stays_while_none_serves() -> None:
    restarts = Restarts()
    assert restarts.add(0.0, 0.1, served=False) == 0.0
    assert restarts.take_due(0.0) == 1
    assert restarts.add(0.1, 0.1, served=False) == 0.5


def test_the_delay_begins_again_after_a_worker_that_ran_for_long() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.add(0.0, 0.1, served=True)
    assert restarts.add(0.0, 10.0, served=True) == 0.0
    assert restarts.add(0.0, 0.1, served=True) == 0.0


def test_only_starts_that_are_due_are_taken() -> None:
    restarts = Restarts()
    for _ in range(3):
        restarts.add(7.0, 0.1, served=True)  # at 7, 7.5 and 8
    assert restarts.next == 7.0
    assert restarts.take_due(7.6) == 2
    assert restarts.next == 8.0
    assert restarts.take_due(7.9) == 0
    assert restarts.take_due(8.0) == 1
    assert restarts.next == math.inf


def test_no_start_is_left_once_the_workers_are_ending() -> None:
    restarts = Restarts()
    restarts.add(0.0, 60.0, served=True)
    restarts.clear()
    assert restarts.next == math.inf
