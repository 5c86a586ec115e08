"""Every command says in the same way that it failed, on a terminal and in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.commands import commands

SERVE = ("serve", "--upstream", "https://svc.example.com")
FAILING = (
    ("sreve",),
    ("serve", "--nonsense"),
    ("serve", "--workers", "no"),
    ("check",),
    ("check", "--timeout", "soon"),
    ("check", "nothing", "--upstream", "https://svc.example.com"),
    ("check", "--strict"),
    ("token",),
    ("register",),
    ("register", "nothing", "--upstream", "https://svc.example.com"),
    ("healthcheck", "--admin", "127.0.0.1:1"),
    ("healthcheck", "--admin", "off"),
    ("wait", "--admin", "127.0.0.1:1", "--timeout", "0"),
    ("emulate", "--app", "nothing"),
    ("emulate", "--host", "192.0.2.1"),
)


@pytest.mark.parametrize("command", ["serve", "check", "healthcheck", "wait"])
def test_a_settings_file_that_may_not_be_read_hides_no_other_mistake(command: str) -> None:
    closed = Path("closed.toml")
    closed.touch(0o000)
    as_anybody: list[str | Path] = []
    if os.geteuid() == 0:  # whom permissions stop only without these two capabilities
        os.chown(closed, 65_534, -1)
        dropped = "-dac_override,-dac_read_search"
        as_anybody = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
    argv = [*as_anybody, sys.executable, "-m", "proxy", command, "--config", closed]
    argv += ["--workers", "no"] if command in ("serve", "check") else []
    ran = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert f"{closed}: cannot be read: Permission denied\n" in ran.stderr
    assert ("--workers: must be a whole number" in ran.stderr) is (command in ("serve", "check"))


@pytest.mark.parametrize("arguments", FAILING, ids=" ".join)
def test_an_error_begins_with_the_name_of_the_program_and_shows_no_usage(arguments: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "proxy", *arguments]
    ran = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert ran.returncode in (1, 2)
    assert ran.stdout == ""
    first, *more = ran.stderr.splitlines()
    assert first.startswith("cloudrun-sidecar: ")
    assert first[len("cloudrun-sidecar: ")] not in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert not first.endswith(".")
    assert [line for line in more if not line.startswith("  ")] == []
    assert "\x1b" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sreve",), "there is no command"),
        (("serve", "--upstream", "ftp://x"), "1 problem with the settings"),
        ((*SERVE, "--config", "/nonexistent"), "1 problem with the settings"),
        (
            # With `auto`, a warning comes first where the other engine is not compiled.
            (*SERVE, "--listen", "192.0.2.1:1", "--unsafe-listen", "--http2-engine", "h2"),
            "cannot listen on 192.0.2.1:1",
        ),
    ],
)
@pytest.mark.parametrize(
    ("variables", "begin"),
    [
        ({"TERM": "xterm"}, "\x1b[31;1mcloudrun-sidecar:\x1b[0m"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "cloudrun-sidecar:"),
        ({"TERM": "dumb"}, "cloudrun-sidecar:"),
    ],
)
def test_a_terminal_with_colours_shows_the_name_in_red(
    variables: dict[str, str], begin: str, arguments: Sequence[str], text: str
) -> None:
    ours, its = os.openpty()
    argv = [sys.executable, "-m", "proxy", *arguments]
    with subprocess.Popen(argv, stderr=its, env={**os.environ, **variables}):
        os.close(its)
        shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert shown.startswith(f"{begin} {text}")


def test_a_usage_error_names_the_help_of_its_command() -> None:
    told = CliRunner().invoke(commands, ["check", "--jsn"])
    assert told.stderr == (
        "cloudrun-sidecar: there is no option --jsn; did you mean --json or --listen? "
        "`cloudrun-sidecar check --help` has all there is\n"
    )
    told = CliRunner().invoke(commands, ["check", "--qqq"])
    assert told.stderr == (
        "cloudrun-sidecar: there is no option --qqq; `cloudrun-sidecar check --help` has all there is\n"
    )


def test_an_option_before_the_command_is_told_where_it_belongs() -> None:
    told = CliRunner().invoke(commands, ["--config", "my.toml", "serve"])
    assert told.stderr == (
        "cloudrun-sidecar: there is no option --config before the command; "
        "the options of a command come after its name; `cloudrun-sidecar --help` has all there is\n"
    )


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("check", "--strict=1"), "cloudrun-sidecar check"),
        (("serve", "--config"), "cloudrun-sidecar serve"),
        (("serve", "--route"), "cloudrun-sidecar serve"),
        (("serve", "--access-log=yes"), "cloudrun-sidecar serve"),
        (("healthcheck", "--admin"), "cloudrun-sidecar healthcheck"),
        (("--version=1",), "cloudrun-sidecar"),
        (("--nonsense", "check"), "cloudrun-sidecar"),
    ],
    ids=str,
)
def test_a_mistake_in_the_form_of_an_option_names_the_help_of_its_command(
    arguments: Sequence[str], command: str
) -> None:
    assert CliRunner().invoke(commands, arguments).stderr.endswith(f"`{command} --help` has all there is\n")


def test_without_arguments_the_help_is_shown() -> None:
    told = CliRunner().invoke(commands, [])
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == CliRunner().invoke(commands, ["--help"]).stdout


@pytest.mark.parametrize(
    "arguments",
    [("--admin", "off"), ("--admin", "foo"), ("--listener", "foo"), ("--config", "/nope"), ("--nonsense",)],
    ids=" ".join,
)
def test_what_cannot_be_asked_is_unusable_for_wait(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(commands, ["wait", *arguments]).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [("--admin", "foo"), ("--config", "/nope"), ("--path", "nope"), ("--nonsense",), ("--admin",), ("more",)],
    ids=" ".join,
)
def test_a_health_check_never_has_the_exit_code_that_docker_reserves(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(commands, ["healthcheck", *arguments]).exit_code == 1


def test_problems_are_listed_below_the_sentence(tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    config.write_text('workers = "no"\n[routes.a]\nurl = "ftp://x"\n')
    told = CliRunner().invoke(commands, ["check", "--config", str(config)])
    first, *more = told.stderr.splitlines()
    assert first == "cloudrun-sidecar: 2 problems with the settings"
    assert all(line.startswith(f"  {config}: ") for line in more)


@pytest.mark.parametrize("option", ["--tls-port", "--token-lifetime", "--concurrent-streams"])
def test_an_option_of_the_emulator_that_is_no_number_is_refused(option: str) -> None:
    told = CliRunner().invoke(commands, ["emulate", option, "many"])
    assert told.exit_code == 2
    assert f"'{option}': 'many' is not a valid whole number" in told.output
