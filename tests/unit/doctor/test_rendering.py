from __future__ import annotations

from dataclasses import replace

from proxy.doctor.rendering import TerminalStyle, render, render_restate, summary, to_ascii
from proxy.doctor.report import DeploymentReport, Outcome, RestateReport, RouteReport, Step, skipped

PLAIN = TerminalStyle()
LONG = "gcloud " + "x" * 200

REPORT = RouteReport(
    route="team/greeter",
    url="https://greeter.run.app",
    audience="https://greeter.run.app",
    steps=(
        Step(name="credentials", outcome=Outcome.OK, text="me"),
        Step(name="private", outcome=Outcome.WARNING, code="public", text="it is public", remedy="Close it."),
        skipped("clock", "the responses have no date"),
        Step(
            name="discovery",
            outcome=Outcome.FAILED,
            code="invoker-missing",
            text="may not call (403)",
            remedy="Grant the role.",
            commands=(LONG, "two"),
            details={"said": "Forbidden"},
        ),
    ),
)


def test_a_report_has_one_line_a_step_and_the_remedy_below_a_problem() -> None:
    assert render(REPORT, PLAIN) == (
        "/team/greeter  https://greeter.run.app\n"
        "  ✔ credentials  me\n"
        "  ! private      it is public\n"
        "                 → Close it.\n"
        "  – clock        the responses have no date\n"
        "  ✘ discovery    may not call (403)\n"
        '                 it said "Forbidden"\n'
        "                 → Grant the role.\n"
        f"                   $ {LONG}\n"
        "                   $ two\n"
    )


def test_an_ascii_terminal_gets_words_in_aligned_columns() -> None:
    text = to_ascii(render(REPORT, TerminalStyle(ascii_only=True)))
    assert text.isascii()
    lines = text.splitlines()
    assert lines[1] == "  ok   credentials  me"
    assert lines[2] == "  WARN private      it is public"
    assert lines[3] == "                    -> Close it."
    assert lines[4] == "  -    clock        the responses have no date"
    assert lines[5] == "  FAIL discovery    may not call (403)"


def test_colours_change_nothing_but_colour() -> None:
    coloured = render(REPORT, TerminalStyle(colour=True))
    assert "\x1b[31m✘\x1b[0m" in coloured
    assert "\x1b[32m✔\x1b[0m" in coloured
    bare = coloured
    for code in ("1", "2", "31", "32", "33", "0"):
        bare = bare.replace(f"\x1b[{code}m", "")
    assert bare == render(REPORT, PLAIN)
    assert "\x1b" not in render(REPORT, PLAIN)


def test_text_is_wrapped_at_the_terminal_width_but_commands_are_not() -> None:
    steps = (
        replace(REPORT.steps[3], remedy="many words " * 30, text="more words " * 20),
        skipped("clock", "and so " * 30),
    )
    for colour in (False, True):
        lines = render(replace(REPORT, steps=steps), TerminalStyle(columns=60, colour=colour)).splitlines()
        assert f"$ {LONG}" in " ".join(lines)
        assert all(len(line) <= 60 + 20 * colour for line in lines if LONG not in line)


def test_a_very_narrow_terminal_still_gets_text() -> None:
    assert "may not call" in render(REPORT, TerminalStyle(columns=5))


def test_the_summary_counts_routes() -> None:
    well = replace(REPORT, steps=REPORT.steps[:1])
    warned = replace(REPORT, steps=REPORT.steps[:2])
    assert summary([well], PLAIN) == "1 route: 1 well\n"
    assert summary([well, warned, REPORT, well], PLAIN) == "4 routes: 2 well, 1 with a warning, 1 failing\n"
    assert summary([REPORT], TerminalStyle(colour=True)) == "1 route: \x1b[31m1 failing\x1b[0m\n"


def test_the_summary_says_how_restate_is() -> None:
    well = replace(REPORT, steps=REPORT.steps[:1])
    taken = DeploymentReport(id="dp_1", url="http://s/a", services=("A",), refusal=None)
    orphaned = replace(taken, refusal="no route for this path")
    for restate, words in (
        (RestateReport(url="http://r", problem="nobody answers"), "Restate could not be asked"),
        (RestateReport(url="http://r"), "Restate has no deployment at this sidecar"),
        (RestateReport(url="http://r", deployments=(taken,)), "Restate has 1 deployment: 1 well"),
        (RestateReport(url="http://r", deployments=(taken, orphaned)), "Restate has 2 deployments: 1 well, 1 failing"),
    ):
        assert summary([well], PLAIN, restate) == f"1 route: 1 well; {words}\n"


def test_signs_of_reports_are_spelled_out_and_others_become_question_marks() -> None:
    assert to_ascii("a → b – c… ü") == "a -> b - c... ?"


def test_deployments_of_restate_are_listed_with_what_is_wrong() -> None:
    deployments = (
        DeploymentReport(id="dp_1", url="http://s/a", services=("A",), refusal=None),
        DeploymentReport(id="dp_2", url="http://s/b", services=("B",), refusal="no route for this path"),
    )
    text = render_restate(RestateReport(url="http://r:9070", deployments=deployments), PLAIN)
    assert text == (
        "Restate  http://r:9070\n"
        "  ✔ dp_1  http://s/a (A)\n"
        "  ✘ dp_2  http://s/b (B): no route for this path\n"
        "          → Invocations wait if a list refuses them, and use up their attempts if the route is gone.\n"
        "            Allow it again in the settings, register its services at another URL, or remove it when\n"
        "            nothing is in flight.\n"
        "            $ restate deployments remove dp_2\n"
    )
    assert render_restate(RestateReport(url="http://r:9070"), replace(PLAIN, ascii_only=True)) == (
        "Restate  http://r:9070\n  ok   deployments  none is called through this sidecar\n"
    )
    failed = render_restate(RestateReport(url="http://r:9070", problem="nobody answers"), PLAIN)
    assert failed == "Restate  http://r:9070\n  ✘ asked  nobody answers\n"
