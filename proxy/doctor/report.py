"""The report of a check: steps with an outcome each. Pure.

The JSON form (`cloudrun-sidecar check --json`), version 1. Members may be added; existing ones keep their meaning::

    {"version": 1,
     "outcome": "failed",              the worst of the routes
     "routes": [
       {"route": "greeter",            the route's name; "" takes all paths
        "url": "https://…",            origin and base path
        "audience": "https://…",       null where the route adds no token
        "outcome": "failed",           the worst of its steps
        "steps": [
          {"step": "token",            always all of STEPS, in this order
           "outcome": "failed",        ok, warning, failed, skipped
           "code": "ambient-unsupported",  stable name of the problem; null if there is none
           "text": "…", "remedy": "…",     sentences; remedy is null if there is none
           "commands": ["gcloud …"],   to be run in this order
           "details": {…}}]}]}         measurements, by name

No text contains a token: all text from outside passes through `one_line`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from proxy.quoting import one_line

__all__ = ["STEPS", "Outcome", "RouteReport", "Step", "StepName", "as_json", "as_sentence", "skipped", "worst_outcome"]

VERSION: Final = 1

StepName: TypeAlias = Literal["credentials", "token", "dns", "tcp", "tls", "http2", "private", "clock", "discovery"]
"""Name of a step."""

STEPS: Final[tuple[StepName, ...]] = (
    "credentials",
    "token",
    "dns",
    "tcp",
    "tls",
    "http2",
    "private",
    "clock",
    "discovery",
)
"""All steps, in their order."""

_MAX_CHARACTERS: Final = 2_000


class Outcome(enum.Enum):
    """The result of a step."""

    OK = "ok"
    WARNING = "warning"
    """It works, but there is a problem to look at."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not reached, not needed, or inconclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The result of one step of a check."""

    name: StepName
    """Which step."""
    outcome: Outcome
    """Its result."""
    text: str
    """What was found, as one line."""
    code: str | None = None
    """Stable name of the problem; None if there is none."""
    remedy: str | None = None
    """What to do, one or two sentences."""
    commands: tuple[str, ...] = ()
    """Shell commands of the remedy; a word in capitals is a placeholder."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Measurements; plain JSON data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReport:
    """The steps of one route."""

    route: str
    """Name of the route; `""` matches all paths."""
    url: str
    """Origin and base path of the upstream."""
    audience: str | None
    """Audience of the route's tokens; None if the route adds no token."""
    steps: tuple[Step, ...]
    """All of STEPS, in that order."""

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of its steps."""
        return worst_outcome(step.outcome for step in self.steps)


def skipped(name: StepName, why: str) -> Step:
    """Return a step that was not done; `why` becomes its text."""
    return Step(name=name, outcome=Outcome.SKIPPED, text=why)


def worst_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """Return FAILED if one of them is, else WARNING if one of them is, else OK. Skipped steps do not count."""
    found = set(outcomes)
    return next((outcome for outcome in (Outcome.FAILED, Outcome.WARNING) if outcome in found), Outcome.OK)


def as_json(reports: Iterable[RouteReport]) -> dict[str, Any]:
    """Return the reports as JSON data; the module's docstring has its shape."""
    listed = list(reports)
    return {
        "version": VERSION,
        "outcome": worst_outcome(report.outcome for report in listed).value,
        "routes": [
            {
                "route": report.route,
                "url": report.url,
                "audience": report.audience,
                "outcome": report.outcome.value,
                "steps": [_step_as_json(step) for step in report.steps],
            }
            for report in listed
        ],
    }


def _step_as_json(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "outcome": step.outcome.value,
        "code": step.code,
        "text": step.text,
        "remedy": step.remedy,
        "commands": list(step.commands),
        "details": dict(step.details),
    }


def as_sentence(text: str) -> str:
    """Return the text of a failure as one line that ends as a sentence does."""
    text = one_line(text, _MAX_CHARACTERS)
    return text if text.endswith((".", "?", "!")) else f"{text}."
