from __future__ import annotations

import itertools

from tests.load.contenders import contenders
from tests.load.h2load import Request
from tests.load.runner import around_refreshes, order


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
