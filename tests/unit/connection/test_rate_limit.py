from __future__ import annotations

from proxy.connection.rate_limit import RateLimit


def test_a_minutes_events_may_happen_at_once_and_then_evenly() -> None:
    limit = RateLimit(60, 100.0)
    assert [limit.take(100.0) for _ in range(61)] == [True] * 60 + [False]
    assert not limit.take(100.9)
    assert limit.take(101.0)
    assert not limit.take(101.0)
    assert [limit.take(103.5) for _ in range(3)] == [True, True, False]


def test_what_is_left_is_never_more_than_the_events_of_a_minute() -> None:
    limit = RateLimit(60, 0.0)
    assert limit.left(1_000.0) == 60
    assert [limit.take(1_000.0) for _ in range(61)] == [True] * 60 + [False]


def test_what_is_charged_beyond_the_limit_is_paid_back_within_a_bound() -> None:
    limit = RateLimit(60, 0.0, most_debt_seconds=10.0)
    for _ in range(65):
        limit.charge(0.0)
    assert limit.left(0.0) == -5
    assert limit.seconds_until(1.0, 0.0) == 6
    for _ in range(1_000):
        limit.charge(0.0)
    assert limit.left(0.0) == -10
    assert limit.seconds_until(1.0, 0.0) == 11
    assert limit.seconds_until(1.0, 60.0) == 0


def test_the_limit_may_change() -> None:
    limit = RateLimit(60, 0.0)
    limit.per_minute = 2
    assert [limit.take(0.0) for _ in range(3)] == [True, True, False]
    limit.per_minute = 600
    assert limit.take(0.1)
