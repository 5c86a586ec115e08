"""Flags of `register`, up to where it asks Restate; registrations are in `tests/e2e/test_register.py`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli.commands import commands
from tests.unit.cli.conftest import NO_CREDENTIALS

HOST = "svc.example.com"
ACCOUNT = "one@p.iam.gserviceaccount.com"
OPEN = ("--deployments-hosts", HOST, "--deployments-accounts", ACCOUNT)


@pytest.fixture
def nobody() -> Iterator[str]:
    """URL of an admin API at which nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(commands, ["register", *arguments], env={**NO_CREDENTIALS, **(env or {})})


def reached_restate(told: Result, admin: str) -> bool:
    return told.exit_code == 1 and f"cannot be reached at {admin}" in told.stderr


def test_without_a_check_restate_is_asked_at_once(nobody: str) -> None:
    told = run(HOST, *OPEN, "--no-check", "--yes", "--restate-admin", nobody)
    assert told.stdout == ""
    assert reached_restate(told, nobody)


def test_a_check_that_fails_ends_it(nobody: str) -> None:
    told = run("a", "--route", f"a=https{nobody.removeprefix('http')}", "--yes", "--restate-admin", nobody)
    assert told.exit_code == 1
    assert told.stdout.startswith("/a  https://127.0.0.1:")
    assert told.stderr == "cloudrun-sidecar: the deployment does not work yet, so it was not registered\n"


@pytest.mark.parametrize("command", [("register", HOST), ("check",), ("wait",)])
@pytest.mark.parametrize(
    ("given", "words"), [("nan", "nan is no number of seconds"), ("5s", "'5s' is not a valid number of seconds")]
)
def test_a_timeout_that_is_no_number_is_refused(command: tuple[str, ...], given: str, words: str) -> None:
    told = CliRunner().invoke(commands, [*command, "--timeout", given])
    assert told.exit_code == 2
    assert words in told.output


def test_the_admin_api_is_named_by_flag_or_variable(nobody: str) -> None:
    words = (HOST, *OPEN, "--no-check", "--yes")
    assert reached_restate(run(*words, env={"RESTATE_ADMIN_URL": f"{nobody}/"}), nobody)
    assert reached_restate(run(*words, "--restate-admin", nobody, env={"RESTATE_ADMIN_URL": "http://other"}), nobody)


@pytest.mark.parametrize("words", [("--yes",), ("-y",), ("--dry-run",)])
def test_without_a_terminal_it_must_be_allowed_or_only_tried(words: tuple[str, ...], nobody: str) -> None:
    given = (HOST, *OPEN, "--no-check", "--restate-admin", nobody)
    assert reached_restate(run(*given, *words), nobody)
    told = run(*given)
    assert (told.exit_code, "add --yes or --dry-run" in told.stderr) == (2, True)
    assert reached_restate(run(*given, env={"CI": "true"}), nobody)


def test_the_authentication_is_that_of_routes_by_flag_if_there_are_any(nobody: str) -> None:
    words = ("a", "--no-check", "--yes", "--restate-admin", nobody, "--gcp-impersonate-service-account", ACCOUNT)
    assert reached_restate(run(*words, "--route", f"a=https://{HOST}"), nobody)
    assert reached_restate(run(*words, env={"CLOUDRUN_SIDECAR_ROUTE": f"a=https://{HOST}"}), nobody)
    Path("config").mkdir()
    Path("config/routes.toml").write_text(f'[routes.a]\nurl = "https://{HOST}"\n')
    told = run(*words)
    assert (told.exit_code, "leave the --gcp-… flags out" in told.stderr) == (2, True)


@pytest.mark.parametrize("command", [("register", "--no-check", "--yes"), ("check",), ("token",)])
@pytest.mark.parametrize(
    ("flags", "header"),
    [
        (("--gcp-impersonate-service-account", ACCOUNT), "gcp-impersonate-service-account"),
        (("--gcp-audience", "x"), "gcp-audience"),
        (("--no-gcp-id-token",), "gcp-id-token"),
    ],
)
def test_a_host_does_not_go_without_the_authentication_that_routes_by_variable_have(
    command: tuple[str, ...], flags: tuple[str, ...], header: str
) -> None:
    env = {**NO_CREDENTIALS, "CLOUDRUN_SIDECAR_ROUTE": "a=https://svc.run.app"}
    told = CliRunner().invoke(commands, [*command, HOST, *OPEN, *flags], env=env)
    assert (told.exit_code, told.stdout) == (2, "")
    given = "the routes that --route and --upstream or their variables give"
    assert told.stderr == (
        f"cloudrun-sidecar: {flags[0]} is of {given}, and {HOST} is none of them: leave these routes out, or give it "
        f"as --extra-header x-cloudrun-sidecar-{header}=…\n"
    )


def test_an_admin_api_that_is_wrong_is_named_as_it_was_given() -> None:
    for url, wrong in (
        ("nowhere", "must be the URL of Restate's admin API"),
        ("http://a@b", "must have neither a user"),
    ):
        told = run(HOST, *OPEN, "--yes", env={"RESTATE_ADMIN_URL": url})
        assert told.stderr.startswith(f"cloudrun-sidecar: RESTATE_ADMIN_URL {wrong}")
        told = run(HOST, *OPEN, "--yes", "--restate-admin", url, env={"RESTATE_ADMIN_URL": "http://other"})
        assert told.stderr.startswith(f"cloudrun-sidecar: --restate-admin {wrong}")


def test_an_admin_api_that_cannot_be_reached_may_be_named_by_variable(nobody: str) -> None:
    told = run(HOST, *OPEN, "--no-check", "--yes", "--restate-admin", nobody)
    assert told.stderr.endswith("? --restate-admin or the variable RESTATE_ADMIN_URL says where it is\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--gcp-delegate", ACCOUNT), "delegates lead to an impersonated account"),
        (("--no-gcp-id-token", "--gcp-audience", "x"), "contradicts gcp_id_token = false"),
        (("--sidecar", "https://sidecar.example/x"), "--sidecar must be http://HOST:PORT"),
        (("--listen", "127.0.0.1:0"), "--sidecar says where Restate reaches the sidecar"),
        (("--restate-admin", "restate.example:9070"), "--restate-admin must be the URL of Restate's admin API"),
        (("--restate-admin", "http://ada@restate.example"), "must have neither a user name nor ? nor #"),
        (("--restate-token-file", "/nonexistent"), "cannot be read: No such file or directory"),
        (("--restate-token-file", "/dev/null"), "is empty"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(words: tuple[str, ...], reason: str) -> None:
    told = run(HOST, *OPEN, "--yes", *words)
    assert (told.exit_code, told.stdout) == (2, "")
    assert reason in told.stderr


def test_a_token_that_cannot_be_one_is_described_and_not_shown() -> None:
    told = run(HOST, *OPEN, "--yes", env={"RESTATE_AUTH_TOKEN": "hunter2 hunter3"})
    assert told.exit_code == 2
    assert "RESTATE_AUTH_TOKEN must have one token" in told.stderr
    assert "hunter" not in told.stderr


def test_help_has_restates_words_and_the_exit_codes() -> None:
    text = " ".join(run("--help").stdout.split())
    for words in (
        "--gcp-impersonate-service-account EMAIL",
        "--breaking",
        "--dry-run",
        "--use-http1.1",
        "Exit code: 0",
    ):
        assert words in text
    assert "--drain-timeout" not in text
