from __future__ import annotations

import pytest

from proxy.doctor.report import (
    DeploymentReport,
    Outcome,
    RestateReport,
    RouteReport,
    Step,
    as_json,
    as_problem,
    as_remedy,
    as_sentence,
    skipped,
    worst_outcome,
)
from proxy.errors import Failure, all_failures
from proxy.quoting import one_line

OK = Step(name="dns", outcome=Outcome.OK, text="127.0.0.1", details={"addresses": ["127.0.0.1"]})
WARNING = Step(
    name="private", outcome=Outcome.WARNING, code="public", text="public", remedy="Close it.", commands=("c",)
)
FAILED = Step(name="tcp", outcome=Outcome.FAILED, code="tcp-failed", text="refused", remedy="Look.")


def report(*steps: Step, route: str = "a") -> RouteReport:
    return RouteReport(route=route, url="https://a.run.app", audience=None, steps=steps)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((), Outcome.OK),
        ((OK, skipped("clock", "no time")), Outcome.OK),
        ((OK, WARNING), Outcome.WARNING),
        ((FAILED, WARNING, OK), Outcome.FAILED),
    ],
)
def test_the_outcome_of_a_route_is_that_of_its_worst_step_without_skipped_ones(
    steps: tuple[Step, ...], expected: Outcome
) -> None:
    assert report(*steps).outcome is expected


def test_the_worst_outcome_of_no_steps_is_ok() -> None:
    assert worst_outcome([]) is Outcome.OK


def test_the_json_form_has_version_1_and_all_members() -> None:
    assert as_json([report(OK, WARNING), report(FAILED, route="")]) == {
        "version": 1,
        "outcome": "failed",
        "routes": [
            {
                "route": "a",
                "url": "https://a.run.app",
                "audience": None,
                "outcome": "warning",
                "steps": [
                    {
                        "step": "dns",
                        "outcome": "ok",
                        "code": None,
                        "text": "127.0.0.1",
                        "remedy": None,
                        "commands": [],
                        "details": {"addresses": ["127.0.0.1"]},
                    },
                    {
                        "step": "private",
                        "outcome": "warning",
                        "code": "public",
                        "text": "public",
                        "remedy": "Close it.",
                        "commands": ["c"],
                        "details": {},
                    },
                ],
            },
            {
                "route": "",
                "url": "https://a.run.app",
                "audience": None,
                "outcome": "failed",
                "steps": [
                    {
                        "step": "tcp",
                        "outcome": "failed",
                        "code": "tcp-failed",
                        "text": "refused",
                        "remedy": "Look.",
                        "commands": [],
                        "details": {},
                    }
                ],
            },
        ],
    }


def test_deployments_of_restate_are_a_member_of_their_own() -> None:
    well = DeploymentReport(id="dp_1", url="http://s/a", services=("A", "B"), refusal=None)
    gone = DeploymentReport(id="dp_2", url="http://s/b", services=(), refusal="no route for this path")
    restate = RestateReport(url="http://r:9070", deployments=(well, gone))
    document = as_json([report(OK)], restate)
    assert (document["outcome"], document["routes"][0]["outcome"]) == ("failed", "ok")
    assert (document["restate"]["outcome"], document["restate"]["problem"]) == ("failed", None)
    assert document["restate"]["deployments"] == [
        {
            "id": "dp_1",
            "url": "http://s/a",
            "services": ["A", "B"],
            "outcome": "ok",
            "text": "http://s/a (A, B)",
            "remedy": None,
            "commands": [],
        },
        {
            "id": "dp_2",
            "url": "http://s/b",
            "services": [],
            "outcome": "failed",
            "text": "http://s/b (no service): no route for this path",
            "remedy": gone.remedy,
            "commands": ["restate deployments remove dp_2"],
        },
    ]
    assert "use up their attempts if the route is gone" in str(gone.remedy)
    assert RestateReport(url="http://r:9070", deployments=(well,)).outcome is Outcome.OK
    assert RestateReport(url="http://r:9070", problem="nobody answers").outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        (" two\n\tlines \x1b[31m", "two lines [31m"),
        ("token eyJhbGciOiJS.eyJhdWQiOiJ4.c2lnbmF0dXJl!", "token [not shown]!"),
        ("ya29.a0AfH6SMBx-y_z and more", "[not shown] and more"),
        ("x" * 200, "x" * 159 + "…"),
    ],
)
def test_text_from_outside_is_one_line_without_controls_and_tokens(text: str, expected: str) -> None:
    assert one_line(text) == expected


def test_a_token_is_removed_before_the_text_is_shortened() -> None:
    assert "eyJ" not in one_line("x" * 150 + " eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2ln")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("it broke", "it broke."), ("did it?", "did it?"), ("It did.\nSo there.", "It did. So there.")],
)
def test_the_text_of_a_failure_becomes_a_sentence(text: str, expected: str) -> None:
    assert as_sentence(text) == expected


ADVISING = {
    *("ambient-unsupported", "credentials-invalid", "credentials-rejected"),
    *("impersonation-denied", "mint-refused", "proxy-invalid"),
}
"""Codes of failures whose sentences say what to do."""


@pytest.mark.parametrize("kind", all_failures(), ids=lambda kind: kind.code)
def test_each_failure_has_a_remedy_that_says_what_to_do(kind: type[Failure]) -> None:
    sentence = "it was lost: Connection reset by peer"
    plain = kind(sentence)
    if kind.code in ADVISING:
        assert as_remedy(plain) == f"{sentence}."
        assert "it was lost" not in as_problem(plain)
    else:
        assert as_problem(plain) == sentence
        assert as_remedy(plain).endswith(".")
        assert "reset by peer" not in as_remedy(plain)
    told = kind("it is gone", remedy="look for it")
    assert (str(told), as_problem(told), as_remedy(told)) == ("it is gone; look for it", "it is gone", "Look for it.")
