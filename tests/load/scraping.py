"""What reading the metrics does to a stream. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

from tests.load.figures import percentile
from tests.load.h2load import Request

__all__ = ["around_scrape", "of_scrapes"]


def around_scrape(started_at: float, trips: Sequence[float], scrape: Request) -> dict[str, float] | str:
    """Return how long the messages of one stream took; in words if none were sent during a scrape, or no others.

    `trips` are the seconds that each message took, one after the other from `started_at` on (seconds since the epoch).
    """
    begun, ended = scrape.started_at, scrape.started_at + scrape.microseconds / 1e6
    during: list[float] = []
    otherwise: list[float] = []
    for sent, back in itertools.pairwise(itertools.accumulate(trips, initial=started_at)):
        # What is under way when the scrape begins has waited for the start of h2load, on the same processor.
        (during if begun <= sent <= ended else otherwise).append((back - sent) * 1e6)
    if not during or not otherwise:
        return f"{len(during)} messages during a scrape and {len(otherwise)} others cannot be compared"
    return {
        "scrape_p99_us": percentile(during, 0.99),
        "p99_us": percentile(otherwise, 0.99),
        "scrape_us": scrape.microseconds,
    }


def of_scrapes(found: Sequence[Mapping[str, float] | str]) -> dict[str, float] | str:
    """Return the figures of several scrapes: the least of the longest turns, and medians; in words if one has none.

    A busy machine lengthens a turn now and then. What the program takes at a stretch, it takes in each scrape.
    """
    figures = [one for one in found if not isinstance(one, str)]
    if len(figures) < len(found):
        return next(one for one in found if isinstance(one, str))
    least = {key: min(one[key] for one in figures) for key in ("turn_us", "quiet_turn_us")}
    return {key: statistics.median(one[key] for one in figures) for key in figures[0]} | least
