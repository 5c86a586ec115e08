"""CONTRIBUTING.md names what there is, and every directory of tests."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.readme import REPOSITORY, blocks, commands, inline_commands

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()
COMMANDS = [
    *inline_commands(TEXT),
    *(command for block in blocks(TEXT) for command in commands(block)),
]


def test_every_directory_of_tests_has_a_row() -> None:
    rows = re.findall(r"^\| `tests/(\w+)` \|", TEXT, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files", "tests"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    parts = [Path(line).parts for line in tracked.stdout.splitlines()]
    assert sorted(rows) == sorted({part[1] for part in parts if len(part) > 2})


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:tests|proxy|\.ci)/[\w./]+|[\w.]+\.(?:py|md|toml))`", TEXT)))
)
def test_every_path_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", TEXT))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(".venv/bin/pytest")])
def test_every_pytest_command_finds_tests(command: str) -> None:
    argv = [*shlex.split(command), "--collect-only", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, check=False, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.endswith("--help")])
def test_every_program_has_its_help(command: str) -> None:
    ran = subprocess.run(shlex.split(command), cwd=REPOSITORY, capture_output=True, check=False, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "usage" in ran.stdout.lower()


@pytest.mark.parametrize("build", ["all", "engine", "none"])
def test_every_build_that_is_named_exists(build: str) -> None:
    assert f"`{build}`" in TEXT
    assert re.search(rf'CHOICES = .*"{build}":', (REPOSITORY / "setup.py").read_text())
