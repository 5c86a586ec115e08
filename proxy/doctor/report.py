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
           "details": {…}}]}],         measurements, by name
     "restate": {                      only with --restate-admin
       "url": "http://…",              of the admin API
       "outcome": "failed",            the worst of its deployments
       "problem": null,                a sentence if Restate could not be asked
       "deployments": [                those that are called through the sidecar
         {"id": "dp_…", "url": "http://…", "services": ["Greeter"],
          "outcome": "failed",         ok, or failed: the sidecar refuses its requests
          "text": "…", "remedy": "…", "commands": ["restate …"]}]}}

No text contains a token: all text from outside passes through `one_line`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from proxy.errors import (
    AmbientUnsupported,
    CredentialsInvalid,
    CredentialsRejected,
    Failure,
    ImpersonationDenied,
    MintRefused,
    ProxyInvalid,
)
from proxy.observe.explanation import remedy_of
from proxy.quoting import one_line

__all__ = [
    "STEPS",
    "DeploymentReport",
    "Outcome",
    "RestateReport",
    "RouteReport",
    "Step",
    "StepName",
    "as_json",
    "as_problem",
    "as_remedy",
    "as_sentence",
    "failed",
    "skipped",
    "worst_outcome",
]

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

_ADVISING: Final = {
    AmbientUnsupported.code: "these credentials cannot mint an ID token by themselves",
    CredentialsInvalid.code: "the credentials cannot be used",
    CredentialsRejected.code: "Google rejects these credentials",
    ImpersonationDenied.code: "the impersonation is not allowed",
    MintRefused.code: "Google refused to mint",
    ProxyInvalid.code: "the proxy for calls to Google cannot be used",
}
"""What is wrong, by code, for kinds whose sentences say what to do, and with which role, command or file."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentReport:
    """A deployment that Restate calls through the sidecar."""

    id: str
    """Its identifier in Restate."""
    url: str
    """Its URL."""
    services: tuple[str, ...]
    """Names of its services."""
    refusal: str | None
    """Why the sidecar refuses its requests; None if it takes them."""

    @property
    def outcome(self) -> Outcome:
        """FAILED if the sidecar refuses its requests, else OK."""
        return Outcome.OK if self.refusal is None else Outcome.FAILED

    @property
    def text(self) -> str:
        """The URL, the services, and why its requests are refused."""
        services = ", ".join(self.services) or "no service"
        return f"{self.url} ({services})" + ("" if self.refusal is None else f": {self.refusal}")

    @property
    def remedy(self) -> str | None:
        """What to do; None if its requests are taken."""
        if self.refusal is None:
            return None
        return (
            "Invocations wait if a list refuses them, and use up their attempts if the route is gone. Allow it again "
            "in the settings, register its services at another URL, or remove it when nothing is in flight."
        )

    @property
    def commands(self) -> tuple[str, ...]:
        """Shell commands of the remedy."""
        return () if self.refusal is None else (f"restate deployments remove {self.id}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestateReport:
    """What Restate has registered at the sidecar."""

    url: str
    """URL of Restate's admin API."""
    problem: str | None = None
    """Why Restate could not be asked; None if it was."""
    deployments: tuple[DeploymentReport, ...] = ()
    """The deployments that are called through the sidecar, by URL."""

    @property
    def outcome(self) -> Outcome:
        """FAILED if Restate could not be asked, or if one of its deployments is refused; else OK."""
        if self.problem is not None:
            return Outcome.FAILED
        return worst_outcome(deployment.outcome for deployment in self.deployments)


def skipped(name: StepName, why: str) -> Step:
    """Return a step that was not done; `why` becomes its text."""
    return Step(name=name, outcome=Outcome.SKIPPED, text=why)


def failed(
    name: StepName,
    code: str,
    text: str,
    remedy: str,
    commands: tuple[str, ...] = (),
    details: Mapping[str, Any] | None = None,
) -> Step:
    """Return a step that failed; the arguments are its attributes."""
    return Step(
        name=name, outcome=Outcome.FAILED, code=code, text=text, remedy=remedy, commands=commands, details=details or {}
    )


def worst_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """Return FAILED if one of them is, else WARNING if one of them is, else OK. Skipped steps do not count."""
    found = set(outcomes)
    return next((outcome for outcome in (Outcome.FAILED, Outcome.WARNING) if outcome in found), Outcome.OK)


def as_json(reports: Iterable[RouteReport], restate: RestateReport | None = None) -> dict[str, Any]:
    """Return the reports as JSON data; the module's docstring has its shape."""
    listed = list(reports)
    outcomes = [report.outcome for report in listed] + ([] if restate is None else [restate.outcome])
    document: dict[str, Any] = {
        "version": VERSION,
        "outcome": worst_outcome(outcomes).value,
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
    if restate is not None:
        document["restate"] = {
            "url": restate.url,
            "outcome": restate.outcome.value,
            "problem": restate.problem,
            "deployments": [_deployment_as_json(deployment) for deployment in restate.deployments],
        }
    return document


def _deployment_as_json(deployment: DeploymentReport) -> dict[str, Any]:
    return {
        "id": deployment.id,
        "url": deployment.url,
        "services": list(deployment.services),
        "outcome": deployment.outcome.value,
        "text": deployment.text,
        "remedy": deployment.remedy,
        "commands": list(deployment.commands),
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


def as_problem(failure: Failure) -> str:
    """Return what is wrong as one line."""
    text = failure.problem if failure.remedy else _ADVISING.get(failure.code, failure.problem)
    return one_line(text, _MAX_CHARACTERS)


def as_remedy(failure: Failure) -> str:
    """Return what to do about a failure: what it says itself, else the remedy of its kind."""
    if not failure.remedy and failure.code in _ADVISING:
        return as_sentence(str(failure))  # it may begin with an e-mail
    return as_sentence(remedy_of(failure))


def as_sentence(text: str) -> str:
    """Return the text of a failure as one line that ends as a sentence does."""
    text = one_line(text, _MAX_CHARACTERS)
    return text if text.endswith((".", "?", "!")) else f"{text}."
