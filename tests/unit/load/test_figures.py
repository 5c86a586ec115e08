from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.figures import Sample, percentile, ratio, summarize
from tests.load.targets import COMPILED, PLAIN, PORTABLE, TARGETS, judge


def sample(contender: str, turn: int, void: str | None = None, **values: float) -> Sample:
    return Sample(workload="unary", contender=contender, round=turn, values={} if void else values, void=void)


def test_a_percentile_is_one_of_the_values() -> None:
    hundred = [float(value) for value in range(100, 0, -1)]
    assert percentile(hundred, 0.50) == 50
    assert percentile(hundred, 0.99) == 99
    assert percentile(hundred, 1.0) == 100
    assert percentile(hundred, 0.0) == 1
    assert percentile([7.0], 0.99) == 7


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0, 1))
def test_a_percentile_covers_its_share_and_no_smaller_value_does(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    smaller = [value for value in values if value < found]
    assert len(smaller) < share * len(values) + 1e-9 or not smaller


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_a_summary_is_the_median_of_the_rounds_and_says_how_far_they_agree() -> None:
    rounds = [sample("envoy", turn, cpu_us=cpu) for turn, cpu in enumerate((50.0, 40.0, 44.0))]
    summary = summarize(rounds)["unary"]["envoy"]
    assert summary.values == {"cpu_us": 44.0}
    assert summary.spread["cpu_us"] == pytest.approx(10 / 44)
    assert summary.rounds == 3


def test_a_figure_that_one_round_lacks_has_no_summary() -> None:
    summaries = summarize([sample("envoy", 0, cpu_us=1.0, added_p50_us=2.0), sample("envoy", 1, cpu_us=1.0)])
    assert summaries["unary"]["envoy"].values == {"cpu_us": 1.0}


def test_one_void_round_voids_the_figure() -> None:
    rounds = [sample("envoy", 0, cpu_us=1.0), sample("envoy", 1, void="3 of 10 requests did not succeed")]
    summary = summarize(rounds)["unary"]["envoy"]
    assert summary.void == "3 of 10 requests did not succeed"
    assert not summary.values


def test_a_ratio_needs_both_sides() -> None:
    rounds = [sample(COMPILED, 0, cpu_us=20.0), sample("envoy", 0, cpu_us=50.0), sample("nghttpx", 0, void="it ended")]
    summaries = summarize(rounds)["unary"]
    assert ratio(summaries, "cpu_us", COMPILED, "envoy") == 0.4
    assert ratio(summaries, "cpu_us", COMPILED, "nghttpx") is None
    assert ratio(summaries, "cpu_us", COMPILED, "haproxy") is None
    assert ratio(summaries, "p50_us", COMPILED, "envoy") is None


def test_a_target_is_met_missed_or_not_measured() -> None:
    rounds = [
        sample(COMPILED, 0, cpu_us=24.0),
        sample("envoy", 0, cpu_us=80.0),
        sample("nghttpx", 0, cpu_us=12.0),
        sample(PORTABLE, 0, cpu_us=60.0),
        sample(PLAIN, 0, cpu_us=100.0),
    ]
    verdicts = {
        (one.target.subject, one.target.peer): one for one in judge(summarize(rounds)) if one.target.workload == "unary"
    }
    assert verdicts[COMPILED, "envoy"].mark == "✔"
    assert verdicts[COMPILED, "nghttpx"].mark == "✘"
    assert verdicts[COMPILED, "nghttpx"].ratio == 2.0
    assert verdicts[COMPILED, "cloud-run-proxy"].mark == "–"
    assert verdicts[PORTABLE, PLAIN].mark == "✔"


def test_requests_near_a_refresh_are_compared_with_the_others_of_the_run() -> None:
    values = {"refresh_p99_us": 1200.0, "p99_us": 1000.0}
    summaries = summarize([Sample(workload="refresh", contender=COMPILED, round=0, values=values)])
    verdict = next(one for one in judge(summaries) if one.target.workload == "refresh")
    assert verdict.ratio == 1.2
    assert verdict.mark == "✔"


@pytest.mark.parametrize(("microseconds", "mark"), [(1900.0, "✔"), (2100.0, "✘")])
def test_a_limit_is_compared_with_the_figure_itself(microseconds: float, mark: str) -> None:
    summaries = summarize([Sample(workload="scrape", contender=COMPILED, round=0, values={"turn_us": microseconds})])
    verdict = next(one for one in judge(summaries) if one.target.workload == "scrape")
    assert verdict.ratio == microseconds / 2000
    assert verdict.mark == mark


def test_every_target_has_a_verdict() -> None:
    assert [verdict.target for verdict in judge({})] == list(TARGETS)
    assert {verdict.mark for verdict in judge({})} == {"–"}
