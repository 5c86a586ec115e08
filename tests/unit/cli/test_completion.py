"""Shell completion, as the script that the program prints for a shell asks for it; and that script in a real shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.commands import commands
from tests.support.pasted import PASTED, told_of

PROGRAM = Path(sys.executable).with_name("cloudrun-sidecar")
HOST = "greeter-123456789012.europe-west1.run.app"
SETTINGS = f"""
[deployments]
hosts = ["{HOST}", "*-123456789012.europe-west1.run.app"]
accounts = ["one@p.iam.gserviceaccount.com"]
audiences = ["{HOST}=https://greeter.example.com"]

[routes.greeter]
url = "https://greeter.example.com"
gcp_impersonate_service_account = "two@p.iam.gserviceaccount.com"
gcp_delegates = ["three@p.iam.gserviceaccount.com"]

[routes."team/a"]
url = "https://a.example.com"
"""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path) -> Path:
    """A settings file where the program finds it without being told."""
    file = tmp_path / "config" / "routes.toml"
    file.parent.mkdir()
    file.write_text(SETTINGS)
    return file


def completed(line: str, **variables: str) -> list[str]:
    """Return what the last word of a command line may become; an empty last word is the next one."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_CLOUDRUN_SIDECAR_COMPLETE": "bash_complete"}
    # In this process: to start the program takes a second of a processor.
    ran = CliRunner().invoke(commands, env={**asked, **variables}, prog_name="cloudrun-sidecar")
    assert (ran.exit_code, ran.stderr) == (0, "")
    return [item.partition(",")[2] for item in ran.stdout.splitlines() if item]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cloudrun-sidecar re", ["register"]),
        ("cloudrun-sidecar check ", ["greeter", HOST, "team/a"]),
        ("cloudrun-sidecar check greeter t", ["team/a"]),
        ("cloudrun-sidecar check greeter ", [HOST, "team/a"]),
        ("cloudrun-sidecar check /", ["/greeter", f"/{HOST}", "/team/a"]),
        ("cloudrun-sidecar check --strict team", ["team/a"]),
        ("cloudrun-sidecar token --raw t", ["team/a"]),
        ("cloudrun-sidecar register g", ["greeter", HOST]),
        ("cloudrun-sidecar register --gcp-imp", ["--gcp-impersonate-service-account"]),
        (
            "cloudrun-sidecar register --gcp-impersonate-service-account ",
            [f"{name}@p.iam.gserviceaccount.com" for name in ("one", "three", "two")],
        ),
        ("cloudrun-sidecar register --gcp-audience ", ["https://greeter.example.com"]),
        ("cloudrun-sidecar serve --log-level ", ["debug", "error", "info", "warning"]),
        ("cloudrun-sidecar serve --log-format c", ["console"]),
        ("cloudrun-sidecar check --http2-engine ", ["auto", "h2", "nghttp2"]),
        ("cloudrun-sidecar serve --admin o", ["off"]),
        ("cloudrun-sidecar healthcheck --path /r", ["/readyz", "/readyz?routes"]),
        ("cloudrun-sidecar check --route new=https://new.example.com n", ["new"]),
        ("cloudrun-sidecar check --deployments-hosts other.example.com o", ["other.example.com"]),
        ("cloudrun-sidecar check --config nothing.toml ", []),
    ],
)
def test_names_and_values_are_completed(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_settings_on_the_command_line_and_in_the_environment_are_used(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[routes.billing]\nurl = "https://b.example.com"\n')
    assert completed(f"cloudrun-sidecar check --config {other} ") == ["billing"]
    assert completed("cloudrun-sidecar check ", CLOUDRUN_SIDECAR_CONFIG=str(other)) == ["billing"]
    variables = {"CLOUDRUN_SIDECAR_ROUTE": "x=https://x.example.com y=https://y.example.com"}
    assert completed("cloudrun-sidecar check ", CLOUDRUN_SIDECAR_CONFIG=str(other), **variables) == [
        "billing",
        "x",
        "y",
    ]


@pytest.mark.parametrize("text", ["not TOML", 'routes = "x"\ndeployments = 1\n', "[routes]\na = 1\n", "workers = 0\n"])
def test_an_invalid_settings_file_does_not_fail_the_completion(settings: Path, text: str) -> None:
    settings.write_text(text)
    assert completed("cloudrun-sidecar check ") in ([], ["a"])
    assert completed("cloudrun-sidecar register --gcp-impersonate-service-account ") == []


@pytest.mark.parametrize("flag", ["--config", "--upstream-ca", "--tls-certificate", "--tls-key", "--tls-client-ca"])
def test_a_file_is_completed_by_the_shell(flag: str) -> None:
    argv = {"COMP_WORDS": f"cloudrun-sidecar serve {flag} ", "COMP_CWORD": "3"}
    asked = {**os.environ, **argv, "_CLOUDRUN_SIDECAR_COMPLETE": "bash_complete"}
    ran = subprocess.run([PROGRAM], env=asked, capture_output=True, check=True, text=True)
    assert ran.stdout == "file,\n"


@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
def test_no_secret_is_completed(settings: Path, pasted: str) -> None:
    settings.write_text(f"[deployments]\nhosts = [{pasted!r}]\naccounts = [{pasted!r}]\n")
    for line in ("cloudrun-sidecar check ", "cloudrun-sidecar register --gcp-impersonate-service-account "):
        assert told_of(pasted, "\n".join(completed(line))) == []


def test_bash_completes_with_the_script_that_the_program_prints(tmp_path: Path) -> None:
    script = """
        eval "$(_CLOUDRUN_SIDECAR_COMPLETE=bash_source cloudrun-sidecar)"
        complete -p cloudrun-sidecar
        COMP_WORDS=(cloudrun-sidecar check te) COMP_CWORD=2
        _cloudrun_sidecar_completion cloudrun-sidecar te check
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    argv = ["bash", "--norc", "-c", script]
    ran = subprocess.run(argv, env={**os.environ, "PATH": path}, capture_output=True, check=True, text=True)
    first, *replies = ran.stdout.splitlines()
    assert first.endswith("-F _cloudrun_sidecar_completion cloudrun-sidecar")
    assert replies == ["team/a"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    asked = {**os.environ, "_CLOUDRUN_SIDECAR_COMPLETE": f"{shell}_source"}
    ran = subprocess.run([PROGRAM], env=asked, capture_output=True, check=True, text=True)
    assert f"_CLOUDRUN_SIDECAR_COMPLETE={shell}_complete" in ran.stdout
