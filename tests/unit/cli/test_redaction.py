"""A secret that is pasted into a command line is in no message of click or of a command."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from proxy.cli.commands import commands
from tests.support.pasted import PASTED, told_of

OPEN = ("--deployments-hosts", "svc.example.com")
UPSTREAM = ("--upstream", "https://svc.run.app")


@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
@pytest.mark.parametrize(
    "arguments",
    [
        ("{}",),
        ("--{}",),
        ("serve", "{}"),
        ("serve", "--{}"),
        ("serve", "--no-such-flag={}"),
        ("serve", "--workers={}", *UPSTREAM),
        ("serve", "--config", "{}", *UPSTREAM),
        ("serve", "--print-config", "--listen", "unix:{}", *UPSTREAM),
        ("check", "--timeout", "{}", *UPSTREAM),
        ("check", "--strict", "{}", *UPSTREAM),
        ("token", "{}", *UPSTREAM),
        ("token", "a", "{}", *UPSTREAM),
        ("register", "{}", "--dry-run", *UPSTREAM),
        ("register", "https://{}", "--dry-run", *OPEN),
        ("register", "https://{}@svc.example.com", "--dry-run", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--gcp-impersonate-service-account", "{}", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--gcp-audience", "{}", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--extra-header", "{}", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--extra-header", "{}=x", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--sidecar", "{}", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--restate-admin", "{}", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--restate-admin", "http://{}", *OPEN),
        ("register", "svc.example.com", "--dry-run", "--restate-token-file", "{}", *OPEN),
        ("register", "svc.example.com", "--timeout", "{}", *OPEN),
        ("check", "{}", *OPEN),
        ("check", "--restate-admin", "{}", *OPEN),
        ("check", "svc.example.com", "--extra-header", "x-a={}", "--sidecar", "{}", *OPEN),
        ("healthcheck", "--admin", "{}"),
        ("healthcheck", "--admin", "127.0.0.1:1", "--path", "{}"),
        ("healthcheck", "--config", "{}"),
        ("wait", "--timeout", "0", "--admin", "{}"),
        ("wait", "--timeout", "0", "--listener", "{}"),
        ("wait", "--timeout", "{}"),
        ("emulate", "--url", "{}"),
        ("emulate", "--url", "https://{}"),
        ("emulate", "--host", "{}"),
        ("emulate", "--app", "{}"),
        ("emulate", "--app", "{}:app"),
        ("emulate", "--app", "json:{}"),
        ("emulate", "--invoker", "{}"),
        ("emulate", "--may-impersonate", "{}"),
        ("emulate", "--may-impersonate", "a@b.example={}"),
        ("emulate", "--tls-port", "{}"),
        ("emulate", "--token-lifetime", "{}"),
    ],
    ids=" ".join,
)
def test_no_command_quotes_a_secret_in_its_arguments(arguments: tuple[str, ...], pasted: str) -> None:
    told = CliRunner().invoke(commands, [argument.replace("{}", pasted) for argument in arguments])
    assert told.exit_code in (1, 2)
    assert told.exception is None or isinstance(told.exception, SystemExit)
    assert told_of(pasted, told.output) == []


@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
@pytest.mark.parametrize("variable", ["CLOUDRUN_SIDECAR_ADMIN", "CLOUDRUN_SIDECAR_CONFIG"])
def test_the_health_check_names_the_variable_and_does_not_quote_it(variable: str, pasted: str) -> None:
    told = CliRunner().invoke(commands, ["healthcheck"], env={variable: pasted})
    assert told.exit_code == 1
    assert told.output.count("\n") == 1
    assert told_of(pasted, told.output) == []


def test_an_argument_that_is_no_secret_is_quoted() -> None:
    assert "there is no command 'sreve'; did you mean serve?" in CliRunner().invoke(commands, ["sreve"]).output
    assert "'soon' is not a valid" in CliRunner().invoke(commands, ["check", "--timeout", "soon"]).output
    assert "unexpected extra argument (greeter)" in CliRunner().invoke(commands, ["serve", "greeter"]).output
