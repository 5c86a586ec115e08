"""What an examination found: steps with an outcome each. Pure.

The machine form (`cloudrun-sidecar check --json`), version 1. Members may be added; what is there keeps its meaning::

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
           "code": "ambient-unsupported",  what is wrong, a stable name; null where there is nothing to say
           "text": "…", "remedy": "…",     sentences; remedy is null where there is none
           "commands": ["gcloud …"],   to be run in this order
           "details": {…}}]}]}         what was measured, by names of their own

No text in here may carry a token. What comes from outside passes through `one_line`.
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
"""In the order in which they are taken."""

_MAX_CHARACTERS: Final = 2_000


class Outcome(enum.Enum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"
    """It works, and yet somebody should look at it."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not reached, not needed, or not to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an examination."""

    name: StepName
    outcome: Outcome
    text: str
    """What was found, in a line."""
    code: str | None = None
    """Stable name of what is wrong; None where there is nothing to say."""
    remedy: str | None = None
    """What to do, in a sentence or two."""
    commands: tuple[str, ...] = ()
    """Shell commands that do it; names in capitals are to be filled in."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What was measured; plain JSON data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReport:
    """All steps of one route."""

    route: str
    url: str
    audience: str | None
    """None where the route adds no token."""
    steps: tuple[Step, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst of its steps: FAILED, WARNING, else OK."""
        return worst_outcome(step.outcome for step in self.steps)


def skipped(name: StepName, why: str) -> Step:
    """Return a step that was not taken."""
    return Step(name=name, outcome=Outcome.SKIPPED, text=why)


def worst_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """Return FAILED if any is, else WARNING if any is, else OK: what was skipped is no fault."""
    found = set(outcomes)
    return next((outcome for outcome in (Outcome.FAILED, Outcome.WARNING) if outcome in found), Outcome.OK)


def as_json(reports: Iterable[RouteReport]) -> dict[str, Any]:
    """Return the machine form (see the module) of all routes."""
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
    """Return the text of a failure as a sentence to be shown."""
    text = one_line(text, _MAX_CHARACTERS)
    return text if text.endswith((".", "?", "!")) else f"{text}."
