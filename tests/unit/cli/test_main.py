from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from proxy import __version__
from proxy.cli.commands import commands

HEAVY = ("proxy.worker", "proxy.emulator", "proxy.settings.model", "pydantic", "aiohttp", "structlog", "asyncio")


def loaded(*arguments: str) -> set[str]:
    """Run the command line in a fresh interpreter, and return which heavy modules it took."""
    code = (
        f"import sys\nfrom proxy.cli import main\nsys.argv[1:] = {list(arguments)!r}\n"
        "try: main()\n"
        f"except SystemExit: print('\\n' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return set(ran.stdout.splitlines()[-1].split())


def test_the_version_is_printed() -> None:
    told = CliRunner().invoke(commands, ["--version"])
    assert (told.exit_code, told.output) == (0, f"cloudrun-sidecar {__version__}\n")


def test_help_lists_every_command_with_what_it_does() -> None:
    told = CliRunner().invoke(commands, ["--help"])
    assert told.exit_code == 0
    for name in ("serve", "check", "register", "token", "healthcheck", "wait", "emulate"):
        assert f"\n  {name} " in told.output


@pytest.mark.parametrize("name", ["serve", "check", "register", "token", "healthcheck", "wait", "emulate"])
def test_every_command_has_help_of_its_own(name: str) -> None:
    told = CliRunner().invoke(commands, [name, "-h"])
    assert told.exit_code == 0
    assert told.output.startswith(f"Usage: cloudrun-sidecar {name} ")


def test_every_listed_command_exists() -> None:
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command is not None
        assert command.name == name


def test_an_unknown_command_is_a_usage_error() -> None:
    told = CliRunner().invoke(commands, ["sreve"])
    assert told.exit_code == 2
    assert "there is no command 'sreve'; did you mean serve?" in told.stderr


def test_help_and_version_import_no_heavy_module() -> None:
    assert loaded("--help") == set()
    assert loaded("--version") == set()


def test_the_health_check_loads_neither_the_settings_model_nor_the_sidecar() -> None:
    assert loaded("healthcheck", "--admin", "127.0.0.1:1") == set()


def test_print_config_imports_no_heavy_module() -> None:
    """The settings are read in a process of its own, as for a sidecar that serves."""
    assert loaded("serve", "--upstream", "https://svc.run.app", "--print-config") == set()


def test_the_package_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "proxy", "--version"], capture_output=True, check=True, text=True)
    assert ran.stdout == f"cloudrun-sidecar {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_package_of_the_same_name_in_the_environment_is_named(command: str) -> None:
    code = f"import proxy, sys\ndel proxy.__version__\nfrom proxy.cli import main\nsys.argv[1:] = [{command!r}]\nmain()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("cloudrun-sidecar: another distribution with a package named proxy, such as proxy.py")
    assert "Traceback" not in ran.stderr
