from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tokens.schedule import idle_check_in, refresh_in, retry_in, usable_seconds

chances = st.floats(0, 1, exclude_max=True)


def test_a_token_is_not_used_in_its_last_minute() -> None:
    assert usable_seconds(1000.0, 939.0) == 1.0
    assert usable_seconds(1000.0, 940.0) == 0.0


@pytest.mark.parametrize(("random_fraction", "left"), [(0.0, 225.0), (0.5, 210.0), (0.999, 195.03)])
def test_an_hour_long_token_is_refreshed_225_seconds_before_it_expires_or_up_to_30_later(
    random_fraction: float, left: float
) -> None:
    usable = usable_seconds(3600.0, 0.0)
    assert 3600 - refresh_in(usable, random_fraction) == pytest.approx(left)


@given(usable=st.floats(0.01, 100_000), random_fraction=chances)
def test_a_refresh_leaves_time_for_itself(usable: float, random_fraction: float) -> None:
    at = refresh_in(usable, random_fraction)
    assert usable / 2 <= at * (1 + 1e-9)
    assert at < usable
    assert usable - at >= min(135, usable / 2 * 0.8)


@given(usable=st.floats(2, 100_000))
def test_an_idle_key_is_checked_again_before_its_token_expires(usable: float) -> None:
    assert 0.5 <= idle_check_in(usable) <= min(10, usable / 2)


def test_an_idle_key_is_checked_after_half_a_second_at_the_earliest() -> None:
    assert idle_check_in(0.001) == 0.5


def test_retries_of_transient_failures_double_up_to_30_seconds() -> None:
    waits = [retry_in(failures, transient=True, random_fraction=0.0) for failures in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


@given(failures=st.integers(1, 10**6), random_fraction=chances)
def test_jitter_takes_at_most_half(failures: int, random_fraction: float) -> None:
    whole = retry_in(failures, transient=True, random_fraction=0.0)
    assert whole / 2 <= retry_in(failures, transient=True, random_fraction=random_fraction) <= whole <= 30


@given(failures=st.integers(1, 10**6), random_fraction=chances)
def test_a_permanent_failure_is_remembered_for_30_seconds(failures: int, random_fraction: float) -> None:
    assert retry_in(failures, transient=False, random_fraction=random_fraction) == 30


def test_jitter_is_half_at_most_in_proportion() -> None:
    assert retry_in(1, transient=True, random_fraction=0.5) == 0.75


def test_a_short_token_is_refreshed_after_half_of_its_usable_life() -> None:
    assert refresh_in(100.0, 0.0) == 50.0


def test_an_idle_key_is_checked_again_after_half_of_that_or_ten_seconds() -> None:
    assert idle_check_in(8.0) == 4.0
    assert idle_check_in(100.0) == 10.0
