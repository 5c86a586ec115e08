from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.load.h2load import Load, NotH2load, Request, parse_counts, parse_log, shortfall

REPORT = """\
starting benchmark...
Application protocol: h2c
progress: 100% done

finished in {took}, 9674.33 req/s, 10.18MB/s
requests: 1000 total, 1000 started, 1000 done, {succeeded} succeeded, {failed} failed, {errored} errored, 0 timeout
status codes: {good} 2xx, 0 3xx, {bad} 4xx, 0 5xx
traffic: 10.52MB (11030001) total, 300.01KB (307206) headers (space savings 95.50%), 9.77MB (10240000) data
                     min         max         mean         sd        +/- sd
time for request:      105us      2.34ms       412us       131us    78.00%
"""


def report(took: str = "103.37ms", failed: int = 0, errored: int = 0, bad: int = 0) -> str:
    good = 1000 - errored - bad
    return REPORT.format(took=took, succeeded=1000 - failed, failed=failed, errored=errored, good=good, bad=bad)


@pytest.mark.parametrize(
    ("took", "seconds"), [("103.37ms", 0.10337), ("1.03s", 1.03), ("900us", 0.0009), ("2.5m", 150.0)]
)
def test_the_time_is_parsed_in_every_unit(took: str, seconds: float) -> None:
    assert parse_counts(report(took)).seconds == pytest.approx(seconds)


def test_a_run_with_only_2xx_has_no_shortfall() -> None:
    assert shortfall(parse_counts(report()), 1000) is None


def test_failed_requests_are_named_in_the_shortfall() -> None:
    refused = shortfall(parse_counts(report(failed=3, bad=3)), 1000)
    assert refused == "3 of 1000 requests did not succeed (3 failed, 3 without 2xx)"
    broken = shortfall(parse_counts(report(failed=2, errored=2)), 1000)
    assert broken == "2 of 1000 requests did not succeed (2 broken off)"


def test_fewer_requests_than_ordered_are_a_shortfall() -> None:
    assert shortfall(parse_counts(report()), 1200) == "200 of 1200 requests did not succeed (never answered)"


def test_a_text_without_the_closing_report_is_refused() -> None:
    with pytest.raises(NotH2load):
        parse_counts("starting benchmark...\nclient could not connect to host\n")


def test_the_log_has_start_status_and_duration_of_each_request() -> None:
    assert parse_log("1700000000250000\t200\t412\n1700000000260000\t-1\t9000\n") == [
        Request(1_700_000_000.25, 200, 412),
        Request(1_700_000_000.26, -1, 9000),
    ]


def test_an_incomplete_log_is_refused() -> None:
    with pytest.raises(NotH2load, match="not a line"):
        parse_log("1700000000250000\t200\t412\n17000000")


def test_the_command_line_describes_the_load() -> None:
    load = Load(connections=8, streams=16, body=Path("/body"), window_bits=16, fields=["a: b"], per_second=250)
    argv = [str(word) for word in load.argv("h2load", "http://127.0.0.1:1/x", 100, Path("/log"))]
    assert argv[:4] == ["h2load", "-c8", "-m16", "-n100"]
    assert ("-d", "/body") in itertools.pairwise(argv)
    assert ("-H", "a: b") in itertools.pairwise(argv)
    assert ("--rps", "250") in itertools.pairwise(argv)
    assert {"-w16", "-W16"} <= set(argv)
    assert argv[-1] == "http://127.0.0.1:1/x"
    assert "--h1" not in argv
    assert "--h1" in Load(http1=True).argv("h2load", "http://127.0.0.1:1/x", 1, Path("/log"))
