"""A report as text: one line a step, with the remedy below a problem. Pure.

::

    /greeter  https://greeter-123456789012.europe-west1.run.app
      ✔ credentials  ambient@…, by the metadata server metadata.google.internal (there is no credential file)
      ✘ token        the impersonation is not allowed
                     → ambient@… may not impersonate invoker@…: grant it …
                       $ gcloud iam service-accounts add-iam-policy-binding …
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from proxy.doctor.report import STEPS, Outcome, RestateReport, RouteReport

__all__ = ["TerminalStyle", "render", "render_restate", "styled", "summary", "to_ascii"]

_MARKS: Final = {Outcome.OK: "✔", Outcome.WARNING: "!", Outcome.FAILED: "✘", Outcome.SKIPPED: "–"}
_WORDS: Final = {Outcome.OK: "ok  ", Outcome.WARNING: "WARN", Outcome.FAILED: "FAIL", Outcome.SKIPPED: "-   "}

# SGR (ECMA-48, 8.3.117): green, yellow, red, faint.
_COLOURS: Final = {Outcome.OK: "32", Outcome.WARNING: "33", Outcome.FAILED: "31", Outcome.SKIPPED: "2"}
_BOLD: Final = "1"
_FAINT: Final = "2"

_ASCII: Final = str.maketrans({"→": "->", "–": "-", "—": "-", "…": "...", "·": "|", "’": "'", "✔": "ok", "✘": "x"})
_LABEL_COLUMNS: Final = max(map(len, STEPS))
_MIN_COLUMNS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalStyle:
    """Terminal capabilities."""

    columns: int = 100
    """Width at which text is wrapped; commands are not wrapped."""
    colour: bool = False
    """True if the terminal shows colours (SGR)."""
    ascii_only: bool = False
    """True if the terminal's encoding has ASCII only: marks are words then, and all else is for `to_ascii`."""


def render(report: RouteReport, style: TerminalStyle) -> str:
    """Return the report of a route as lines of text, the last one with a line feed."""
    lines = [styled(f"/{report.route}", _BOLD, style) + "  " + report.url]
    for step in report.steps:
        said = step.details.get("said")
        more = (f'it said "{said}"',) if isinstance(said, str) else ()
        lines += _lines(
            step.name.ljust(_LABEL_COLUMNS), step.outcome, step.text, more, step.remedy, step.commands, style
        )
    return "\n".join(lines) + "\n"


def render_restate(report: RestateReport, style: TerminalStyle) -> str:
    """Return the report about Restate's deployments as lines of text, the last one with a line feed."""
    lines = [styled("Restate", _BOLD, style) + f"  {report.url}"]
    if report.problem is not None:
        lines += _lines("asked", Outcome.FAILED, report.problem, (), None, (), style)
    elif not report.deployments:
        lines += _lines("deployments", Outcome.OK, "none is called through this sidecar", (), None, (), style)
    for one in report.deployments:
        lines += _lines(one.id, one.outcome, one.text, (), one.remedy, one.commands, style)
    return "\n".join(lines) + "\n"


def summary(reports: Sequence[RouteReport], style: TerminalStyle, restate: RestateReport | None = None) -> str:
    """Return the last line of the output: how many routes and, of Restate, deployments there are, by outcome."""
    text = _counted("route", [report.outcome for report in reports], style)
    if restate is not None and restate.problem is not None:
        text += f"; {styled('Restate could not be asked', _COLOURS[Outcome.FAILED], style)}"
    elif restate is not None and not restate.deployments:
        text += "; Restate has no deployment at this sidecar"
    elif restate is not None:
        text += f"; Restate has {_counted('deployment', [one.outcome for one in restate.deployments], style)}"
    return f"{text}\n"


def _counted(what: str, outcomes: Sequence[Outcome], style: TerminalStyle) -> str:
    counts = Counter(outcomes)
    words = {Outcome.OK: "well", Outcome.WARNING: "with a warning", Outcome.FAILED: "failing"}
    parts = [styled(f"{counts[kind]} {word}", _COLOURS[kind], style) for kind, word in words.items() if counts[kind]]
    return f"{len(outcomes)} {what}{'s' * (len(outcomes) != 1)}: {', '.join(parts) or 'nothing to check'}"


def to_ascii(text: str) -> str:
    """Return the text in ASCII: the signs of reports spelled out, any other character as `?`."""
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def _lines(
    label: str,
    outcome: Outcome,
    text: str,
    more: Sequence[str],
    remedy: str | None,
    commands: Sequence[str],
    style: TerminalStyle,
) -> list[str]:
    """Return the lines of one result: mark, label and text, and below them `more`, the remedy and its commands."""
    mark = (_WORDS if style.ascii_only else _MARKS)[outcome]
    begin = f"  {mark} {label}  "
    indent = " " * len(begin)
    first, *following = _wrapped(text, indent, indent, style)
    shown = first[len(indent) :]
    if outcome is Outcome.SKIPPED:
        lines = [styled(begin + shown, _FAINT, style), *[styled(line, _FAINT, style) for line in following]]
    else:
        lines = [f"  {styled(mark, _COLOURS[outcome], style)} {begin[3 + len(mark) :]}{shown}", *following]
    for line in more:
        lines += _wrapped(line, indent, indent, style)
    if remedy:
        lines += _wrapped(remedy, f"{indent}→ ", f"{indent}  ", style)
    lines += [f"{indent}  {styled(f'$ {command}', _BOLD, style)}" for command in commands]
    return lines


def _wrapped(text: str, first: str, following: str, style: TerminalStyle) -> list[str]:
    columns = max(style.columns, len(following) + _MIN_COLUMNS)
    return textwrap.wrap(
        re.sub(r"\s+", " ", text),
        columns,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]


def styled(text: str, sgr: str, style: TerminalStyle) -> str:
    """Return the text with this SGR parameter (ECMA-48, 8.3.117) if the terminal shows colours."""
    return f"\x1b[{sgr}m{text}\x1b[0m" if style.colour else text
