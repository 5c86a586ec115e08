from __future__ import annotations

import itertools

import pytest

from tests.load.contenders import contenders
from tests.load.h2load import Request
from tests.load.runner import around_refreshes, held_up, order


def test_every_contender_runs_once_a_round_in_changing_order() -> None:
    known = contenders()
    rounds = [[one.key for one in order(known, turn)] for turn in range(4)]
    assert all(sorted(one) == sorted(contender.key for contender in known) for one in rounds)
    assert len({one[0] for one in rounds}) == len(rounds)
    followers = [dict(itertools.pairwise(one)) for one in rounds]
    assert followers[0] != followers[1]


def test_a_request_is_near_a_refresh_if_it_overlaps_the_quarter_second_around_it() -> None:
    at = 1000.0
    before = Request(at - 0.5, 200, 100)
    waits = Request(at - 0.5, 200, 300_000)
    during = Request(at + 0.1, 200, 101)
    after = Request(at + 0.3, 200, 102)
    near, away = around_refreshes([before, waits, during, after], [at, at + 100])
    assert near == [300_000, 101]
    assert away == [100, 102]


def test_without_a_refresh_no_request_is_near_one() -> None:
    assert around_refreshes([Request(1.0, 200, 5)], []) == ([], [5])


def test_messages_that_are_sent_during_a_scrape_are_compared_with_the_others() -> None:
    scrape = Request(1000.0, 200, 300_000)
    under_way, during, after = [0.02], [*[0.001] * 98, 0.003, 0.006, 0.2], [0.001] * 100
    found = held_up(999.99, [*under_way, *during, *after], scrape)
    assert isinstance(found, dict)
    assert found["held_up_us"] == pytest.approx(5000, abs=1)
    assert found["longest_us"] == pytest.approx(200_000, abs=1)
    assert found["p50_us"] == pytest.approx(1000, abs=1)
    assert found["p99_us"] == pytest.approx(1000, abs=1)
    assert found["scrape_us"] == 300_000


def test_a_scrape_without_messages_or_without_others_says_nothing() -> None:
    scrape = Request(1000.0, 200, 500_000)
    assert held_up(1000.1, [0.001], scrape) == "1 messages during a scrape and 0 others cannot be compared"
    assert held_up(2000.0, [0.001], scrape) == "0 messages during a scrape and 1 others cannot be compared"
