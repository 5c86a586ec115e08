"""What a run measures, and what becomes of several rounds: medians, spreads, percentiles. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["METRICS", "Metric", "Sample", "Summary", "percentile", "ratio", "summarize"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity: less is better, except where it is a rate or a share."""

    key: str
    heading: str
    unit: str


CPU: Final = Metric("cpu_us", "CPU", "µs")
"""CPU of the proxy's process per unit of work, system time included."""
RATE: Final = Metric("rate", "done per second", "/s")
P50: Final = Metric("p50_us", "p50", "µs")
P99: Final = Metric("p99_us", "p99", "µs")
ADDED_P50: Final = Metric("added_p50_us", "p50 added", "µs")
"""p50 less the p50 of the same round without a proxy."""
ADDED_P99: Final = Metric("added_p99_us", "p99 added", "µs")
BUSY: Final = Metric("busy", "busy", "%")
"""Share of the time that the proxy's process was on its processor; far below 100 % its throughput was not the limit."""
OTHERS: Final = Metric("others", "others", "%")
"""Share of the time that other programs were on the proxy's processor."""
RSS: Final = Metric("rss_mib", "RSS idle", "MiB")
STREAM: Final = Metric("stream_kib", "RSS a stream", "KiB")
REFRESH_P99: Final = Metric("refresh_p99_us", "p99 at a refresh", "µs")
REFRESHES: Final = Metric("refreshes", "refreshes", "")
TURN: Final = Metric("turn_us", "longest turn", "µs")
"""Processor time of the longest turn of the event loop in a scrape, which is how long streams wait; the least of all
scrapes."""
QUIET_TURN: Final = Metric("quiet_turn_us", "without a scrape", "µs")
"""The same of the half seconds before scrapes."""
SCRAPE_P99: Final = Metric("scrape_p99_us", "p99 of trips", "µs")
"""Of the round trips during a scrape, by the clock on the wall."""
SCRAPE: Final = Metric("scrape_us", "a scrape", "µs")
"""How long a scrape takes."""

METRICS: Final[Mapping[str, Metric]] = {
    metric.key: metric
    for metric in (
        *(CPU, RATE, P50, P99, ADDED_P50, ADDED_P99, BUSY, OTHERS, RSS, STREAM, REFRESH_P99, REFRESHES),
        *(TURN, QUIET_TURN, SCRAPE_P99, SCRAPE),
    )
}
"""All of them by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One contender at one workload in one round."""

    workload: str
    contender: str
    round: int
    values: Mapping[str, float] = field(default_factory=dict)
    """By metric key; empty when void."""
    void: str | None = None
    """Why the figures do not count: a request failed, or the program ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All rounds of one contender at one workload."""

    values: Mapping[str, float]
    """Medians by metric key; empty when void."""
    spread: Mapping[str, float]
    """(greatest − least) ÷ median, by metric key: how far the rounds agree."""
    rounds: int
    void: str | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that `share` (0 to 1) of the values do not exceed; raises ValueError without values."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -int(-share * len(ordered) // 1)) - 1)]


def summarize(samples: Iterable[Sample]) -> dict[str, dict[str, Summary]]:
    """Return workload → contender → summary, in the order of first appearance.

    One void round makes the summary void: a proxy that failed requests did less work for its figures.
    """
    grouped: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        grouped.setdefault(sample.workload, {}).setdefault(sample.contender, []).append(sample)
    return {
        workload: {contender: _summary(rounds) for contender, rounds in contenders.items()}
        for workload, contenders in grouped.items()
    }


def _summary(samples: Sequence[Sample]) -> Summary:
    voids = [sample.void for sample in samples if sample.void]
    if voids:
        return Summary(values={}, spread={}, rounds=len(samples), void=voids[0])
    keys = [key for key in samples[0].values if all(key in sample.values for sample in samples)]
    columns = {key: [sample.values[key] for sample in samples] for key in keys}
    medians = {key: statistics.median(column) for key, column in columns.items()}
    spread = {
        key: (max(column) - min(column)) / abs(medians[key]) if medians[key] else 0.0 for key, column in columns.items()
    }
    return Summary(values=medians, spread=spread, rounds=len(samples))


def ratio(
    summaries: Mapping[str, Summary], metric: str, subject: str, peer: str, peer_metric: str | None = None
) -> float | None:
    """Return subject ÷ peer of a metric's medians; None where one of them is absent, void or zero.

    `peer_metric`, if given, is what is taken of the peer instead.
    """
    ours = summaries[subject].values.get(metric) if subject in summaries else None
    theirs = summaries[peer].values.get(peer_metric or metric) if peer in summaries else None
    return ours / theirs if ours is not None and theirs else None
