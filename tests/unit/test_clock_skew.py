from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from proxy.clock_skew import direction, read_date, skew_in_words, skew_seconds

NOW = 1_800_000_000.0


def test_skew_is_how_far_now_is_ahead_of_the_date() -> None:
    assert skew_seconds(formatdate(NOW - 90, usegmt=True), NOW) == 90
    assert skew_seconds(formatdate(NOW + 90, usegmt=True), NOW) == -90


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let local time differ from UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "XST+5")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "date",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 -0000",
    ],
)
@pytest.mark.usefixtures("far_from_utc")
def test_a_date_is_in_utc_in_each_of_its_forms(date: str) -> None:
    assert read_date(date) == 784111777


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 99 Nov 9999 99:99:99 GMT"])
def test_without_a_date_there_is_no_skew(date: str | None) -> None:
    assert read_date(date) is None
    assert skew_seconds(date, NOW) is None


@pytest.mark.parametrize(
    ("skew", "whose", "words"),
    [
        (95.4, "", "the clock of this machine is 95 s ahead"),
        (-95.4, "", "the clock of this machine is 95 s behind"),
        (95.4, "Google's", "the clock of this machine is 95 s ahead of Google's"),
        (-95.4, "Google's", "the clock of this machine is 95 s behind Google's"),
    ],
)
def test_a_skew_is_named_by_its_size_and_direction(skew: float, whose: str, words: str) -> None:
    assert skew_in_words(skew, whose) == words
    assert direction(skew) in words
