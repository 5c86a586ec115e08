from __future__ import annotations

import pytest

from tests.load.h2load import Request
from tests.load.scraping import around_scrape, of_scrapes


def test_messages_that_are_sent_during_a_scrape_are_compared_with_the_others() -> None:
    scrape = Request(1000.0, 200, 300_000)
    under_way, during, after = [0.02], [*[0.001] * 98, 0.003, 0.006, 0.2], [0.001] * 100
    found = around_scrape(999.99, [*under_way, *during, *after], scrape)
    assert found == pytest.approx({"scrape_p99_us": 6000, "p99_us": 1000, "scrape_us": 300_000}, abs=1)


def test_a_scrape_without_messages_or_without_others_says_nothing() -> None:
    scrape = Request(1000.0, 200, 500_000)
    assert around_scrape(1000.1, [0.001], scrape) == "1 messages during a scrape and 0 others cannot be compared"
    assert around_scrape(2000.0, [0.001], scrape) == "0 messages during a scrape and 1 others cannot be compared"


def test_of_several_scrapes_the_least_of_the_longest_turns_counts_and_one_without_figures_is_named() -> None:
    found = [
        {"turn_us": 900.0, "quiet_turn_us": 100.0, "scrape_us": 3.0},
        {"turn_us": 700.0, "quiet_turn_us": 200.0, "scrape_us": 1.0},
        {"turn_us": 9000.0, "quiet_turn_us": 300.0, "scrape_us": 2.0},
    ]
    assert of_scrapes(found) == {"turn_us": 700.0, "quiet_turn_us": 100.0, "scrape_us": 2.0}
    assert of_scrapes([*found, "nothing was sent"]) == "nothing was sent"
