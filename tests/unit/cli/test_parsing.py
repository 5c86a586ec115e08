from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from proxy.cli.commands import commands
from proxy.cli.failures import CommandFailed, Gathered, Unusable

UPSTREAM = ("--upstream", "https://a.run.app")
TERMINAL = "register asks before it changes anything, and there is no terminal; add --yes or --dry-run"


def problems(*arguments: str) -> list[str]:
    """The problems that a command lists, after the sentence with their number."""
    result = CliRunner().invoke(commands, list(arguments))
    assert (result.exit_code, result.stdout) == (1 if arguments[0] == "healthcheck" else 2, "")
    first, *lines = result.stderr.splitlines()
    listed = [line.removeprefix("  ") for line in lines if line.startswith("  ")]
    assert first.startswith(f"cloudrun-sidecar: {len(listed)} problems with ")
    if "command line" in first:
        assert lines[-1] == f"`cloudrun-sidecar {arguments[0]} --help` has all there is"
    return listed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "register --timeout x --restate-admin foo",
            ["invalid value for '--timeout': 'x' is not a valid number of seconds", "missing argument 'URL|ROUTE'"],
        ),
        (
            "check --timeout nan --bogus 3 --bogus=1 --json=3",
            [
                "there is no option --bogus",
                "there is no option --bogus",
                "option '--json' does not take a value",
                "invalid value for '--timeout': nan is no number of seconds",
            ],
        ),
        (
            "emulate --token-lifetime q --gke-pod x --tls-port 99999999 extra",
            [
                "invalid value for '--token-lifetime': 'q' is not a valid whole number",
                "invalid value for '--gke-pod': 'x' is not NAMESPACE/NAME or NAMESPACE/NAME=ACCOUNT",
                "invalid value for '--tls-port': 99999999 is not in the range 0<=x<=65535",
                "got unexpected extra argument (extra)",
            ],
        ),
        ("healthcheck --xq --zq value", ["there is no option --xq", "there is no option --zq"]),
        # The value of an option that there is not may look like an argument, and the reverse.
        ("wait --xq --zq a b", ["there is no option --xq", "there is no option --zq"]),
        ("wait --xq --timeout", ["there is no option --xq", "option '--timeout' requires an argument"]),
    ],
)
def test_all_mistakes_of_a_command_line_are_listed(arguments: str, expected: list[str]) -> None:
    assert problems(*arguments.split()) == expected


@pytest.mark.parametrize("arguments", ["token -xyz a", "token --xyz a", "token"])
def test_what_may_follow_from_a_mistake_is_not_listed(arguments: str) -> None:
    result = CliRunner().invoke(commands, arguments.split())
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_the_help_is_shown_whatever_is_wrong_beside_it() -> None:
    assert CliRunner().invoke(commands, ["wait", "--timeout", "x", "--help"]).exit_code == 0


def test_mistakes_in_what_the_options_say_are_listed() -> None:
    admin = "--restate-admin must be the URL of Restate's admin API, as in http://127.0.0.1:9070, not 'foo'"
    sidecar = "--sidecar must be http://… or https://… with a host, not 'a'"
    route = "there is no route /nope; the routes are: /"
    header = "--extra-header must be NAME=VALUE, where NAME is the name of a header, as in x-team=payments"
    wrong = ("--restate-admin", "foo", "--sidecar", "a", "nope")
    assert problems("register", *wrong, *UPSTREAM, "--extra-header", "q") == [sidecar, header, route, admin, TERMINAL]
    assert problems("check", *wrong, *UPSTREAM) == [admin, sidecar, route]
    assert problems("token", "--sidecar", "a", "nope", *UPSTREAM) == [sidecar, route]
    unusable = (*wrong, *UPSTREAM, "--connect-timeout", "q", "--extra-header", "q", "--restate-token-file", "/nowhere")
    access = [admin, "--restate-token-file '/nowhere' cannot be read: No such file or directory"]
    found = problems("register", *unusable)
    (setting,) = [problem for problem in found if problem.startswith("--connect-timeout: ")]
    assert found == [sidecar, header, setting, *access, TERMINAL]
    assert problems("check", *unusable) == [*access, sidecar, header, setting]
    assert problems("token", *unusable[2:-2]) == [sidecar, header, setting]


def test_mistakes_in_what_an_emulated_google_gets_are_listed() -> None:
    same = ("--tls-port", "5", "--metadata-port", "5")
    names = ("--invoker", "nobody", "--user", "x")
    assert problems("emulate", *same, "--host", "0.0.0.0", *names, "--app", "foo") == [
        "--metadata-port and --tls-port have the same port, 5; each needs its own",
        "'0.0.0.0' is reachable from other machines; add --unsafe-listen if that is meant",
        "--app must be MODULE:ATTR, as in service:app, not 'foo'",
        "'nobody' is not an e-mail address, nor a member such as group:a@example.com",
        "'x' is not an e-mail address",
    ]


def test_one_mistake_is_raised_as_it_is_and_other_exceptions_pass() -> None:
    mistakes = Gathered()
    with mistakes:
        raise CommandFailed("one")
    with pytest.raises(CommandFailed, match=r"^one$") as raised:
        mistakes.raise_found()
    assert not isinstance(raised.value, Unusable)
    with pytest.raises(click.Abort), mistakes:
        raise click.Abort
    Gathered().raise_found()
