from __future__ import annotations

from tests.load.soak import Record, verdict

MIB = 1 << 20


def test_a_run_with_level_memory_and_no_failures_passes() -> None:
    assert verdict(Record(rss=[60 * MIB] * 8, files=[20] * 8)) == []


def test_growth_in_the_warm_up_is_ignored() -> None:
    assert verdict(Record(rss=[40 * MIB, 60 * MIB, *[75 * MIB] * 6], files=[9, 15, *[20] * 6])) == []


def test_memory_that_grows_after_the_first_quarter_is_named() -> None:
    (wrong,) = verdict(Record(rss=[40 * MIB, 40 * MIB, 60 * MIB, 60 * MIB, *[70 * MIB] * 4], files=[20] * 8))
    assert wrong.startswith("memory grew from 62,914,560")


def test_files_that_stay_open_are_named() -> None:
    (wrong,) = verdict(Record(rss=[60 * MIB] * 8, files=[20, 20, 20, 20, 30, 40, 50, 60]))
    assert wrong == "open files grew from 20 to 55"


def test_a_failed_exchange_is_a_failed_run() -> None:
    record = Record(rss=[60 * MIB] * 8, files=[20] * 8, failures=["download: it took over 30 s"])
    assert verdict(record) == ["exchange failed: download: it took over 30 s"]


def test_memory_is_not_judged_after_a_short_run() -> None:
    assert verdict(Record(rss=[1, 2, 3], files=[1, 2, 3])) == ["it was too short to see whether memory grows"]
