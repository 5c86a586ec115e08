from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from proxy.cli.commands import commands
from tests.unit.cli.conftest import NO_CREDENTIALS

URL = "https://svc.run.app"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["token", *arguments], env=NO_CREDENTIALS, terminal_width=100)


@pytest.mark.parametrize("raw", [(), ("--raw",)])
def test_without_a_token_only_the_reason_is_printed(raw: tuple[str, ...]) -> None:
    told = run("a", "--route", f"a={URL}", *raw)
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("cloudrun-sidecar: no Google credentials: ")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("b", "--route", f"a={URL}"), "there is no route /b; the routes are: /a"),
        (("a", "--route", f"a={URL}", "--no-gcp-id-token"), "the route /a adds no token"),
        (("a", "--route", "a=ftp://x"), "1 problem with the settings"),
        ((), "missing argument 'ROUTE|HOST'"),
    ],
)
def test_unusable_settings_and_unknown_routes_exit_with_2(arguments: tuple[str, ...], words: str) -> None:
    told = run(*arguments)
    assert (told.exit_code, told.stdout) == (2, "")
    assert words in told.stderr


def test_help_shows_how_to_use_a_token_with_curl() -> None:
    text = run("--help").stdout
    assert 'curl -H "X-Serverless-Authorization: Bearer $(cloudrun-sidecar token --raw greeter)"' in text
