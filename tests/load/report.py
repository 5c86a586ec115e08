"""Tables for a terminal, and one JSON document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.load.figures import METRICS, Sample, Summary, ratio
from tests.load.targets import Verdict
from tests.load.workloads import Kind

__all__ = ["document", "shown", "table", "verdicts"]

_MILLISECOND: Final = 1000.0
_LIMITED: Final = 85.0
"""Below this share of its processor, a proxy's throughput was limited by something else."""


def shown(metric: str, value: float, beside: Sequence[float] = ()) -> str:
    """Return a value with its unit and three digits that mean something; in ms if it, or one `beside` it, is long."""
    unit = METRICS[metric].unit
    if unit == "µs" and max(map(abs, (value, *beside))) >= _MILLISECOND:
        value, unit = value / 1000, "ms"
    if unit in ("/s", ""):
        return f"{value:,.0f}{unit}"
    return f"{value:,.{_decimals(value)}f} {unit}"


def _decimals(value: float) -> int:
    return next((decimals for least, decimals in ((100, 0), (10, 1), (1, 2)) if abs(value) >= least), 3)


def table(kind: Kind, summaries: Mapping[str, Summary], labels: Mapping[str, str], reference: str) -> str:
    """Return a workload's table: a line each contender, in the order of `labels`.

    The first column is followed by how far its rounds agree and by reference ÷ contender.
    """
    heads = [_heading(kind, key) for key in kind.columns]
    rows = [["", heads[0], "±", "sidecar ÷ it", *heads[1:]]]
    notes = []
    for key, label in labels.items():
        if key not in summaries:
            continue
        summary = summaries[key]
        if summary.void is not None:
            notes.append(f"  {label}: void, {summary.void}")
            continue
        rows.append([label, *_cells(kind, summaries, key, reference)])
    rounds = max((summary.rounds for summary in summaries.values()), default=0)
    title = f"{kind.title} (median of {rounds})" if rounds > 1 else kind.title
    return "\n".join([title, *_aligned(rows), *notes])


def _heading(kind: Kind, key: str) -> str:
    return {"cpu_us": f"CPU a {kind.unit}", "rate": f"{kind.unit}s a second"}.get(key, METRICS[key].heading)


def _cells(kind: Kind, summaries: Mapping[str, Summary], key: str, reference: str) -> list[str]:
    summary, first = summaries[key], kind.columns[0]
    compared = ratio(summaries, first, reference, key)
    spread = f"{50 * summary.spread[first]:.0f} %" if summary.rounds > 1 and first in summary.spread else ""
    cells = [_cell(summaries, key, first), spread, "" if compared is None else f"{compared:.2f}"]
    return cells + [_cell(summaries, key, column) for column in kind.columns[1:]]


def _cell(summaries: Mapping[str, Summary], key: str, column: str) -> str:
    values = summaries[key].values
    if column not in values:
        return ""
    least = "≥ " if column == "rate" and values.get("busy", 100.0) < _LIMITED else ""
    beside = [summary.values[column] for summary in summaries.values() if column in summary.values]
    return least + shown(column, values[column], beside)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def verdicts(judged: Sequence[Verdict], labels: Mapping[str, str]) -> str:
    """Return the targets, a line each, with ✔, ✘ or – before it."""
    rows = [["", "", "against", "is", "at most"]]
    for verdict in judged:
        target = verdict.target
        subject = labels.get(target.subject, target.subject)
        peer = "otherwise" if target.peer_metric else labels.get(target.peer, target.peer)
        if target.limit is not None:
            peer = shown(target.metric, target.limit)
        found = "not measured" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        rows.append([f"{verdict.mark} {subject}", target.what, peer, found, f"{target.at_most:.2f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  " + "  ".join([row[i].ljust(widths[i]) if i < 3 else row[i].rjust(widths[i]) for i in range(5)]).rstrip()
        for row in rows
    ]
    return "\n".join(["Targets: sidecar ÷ what it is compared with", *lines])


def document(
    *,
    about: Mapping[str, Any],
    kinds: Sequence[Kind],
    summaries: Mapping[str, Mapping[str, Summary]],
    judged: Sequence[Verdict],
    samples: Sequence[Sample],
) -> dict[str, Any]:
    """Return everything as what JSON can hold. Units are in the names; `rate` is a second's, `busy` per cent."""
    return {
        **about,
        "workloads": {
            kind.key: {
                "title": kind.title,
                "unit": kind.unit,
                "contenders": {
                    key: {
                        "median": dict(one.values),
                        "spread": dict(one.spread),
                        "rounds": one.rounds,
                        "void": one.void,
                    }
                    for key, one in summaries[kind.key].items()
                },
            }
            for kind in kinds
            if kind.key in summaries
        },
        "targets": [
            {
                "what": verdict.target.what,
                "subject": verdict.target.subject,
                "against": verdict.target.peer,
                "limit": verdict.target.limit,
                "at_most": verdict.target.at_most,
                "ratio": verdict.ratio,
                "met": None if verdict.ratio is None else verdict.ratio <= verdict.target.at_most,
            }
            for verdict in judged
        ],
        "samples": [
            {
                "workload": sample.workload,
                "contender": sample.contender,
                "round": sample.round,
                "values": dict(sample.values),
                "void": sample.void,
            }
            for sample in samples
        ],
    }
