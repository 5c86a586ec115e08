"""When workers that report nothing are judged."""

from __future__ import annotations

import math

from proxy.supervisor.watchdog import Watchdog

SECONDS = 8.0


def watching() -> Watchdog:
    watchdog = Watchdog()
    watchdog.start(100.0, SECONDS)
    return watchdog


def judged(watchdog: Watchdog, until: float) -> list[float]:
    """Look whenever it is due; return the times at which workers were to be judged."""
    times = []
    while (now := watchdog.due) <= until:
        if watchdog.look(now):
            times.append(now)
    return times


def test_there_is_no_look_before_the_start() -> None:
    assert Watchdog().due == math.inf


def test_workers_are_judged_twice_in_the_service_managers_time() -> None:
    assert judged(watching(), 120.0) == [104.0, 108.0, 112.0, 116.0, 120.0]


def test_after_a_standstill_workers_have_all_their_time_again() -> None:
    watchdog = watching()
    assert judged(watchdog, 103.9) == []
    assert not watchdog.look(106.0)  # it was due at 104
    assert judged(watchdog, 112.0) == [110.0]


def test_a_standstill_early_in_the_time_counts_too() -> None:
    watchdog = watching()
    assert not watchdog.look(103.5)  # it was due at 101
    assert judged(watchdog, 112.0) == [107.5, 111.5]


def test_a_little_late_is_in_time() -> None:
    watchdog = watching()
    assert judged(watchdog, 103.9) == []
    assert watchdog.look(105.0)
