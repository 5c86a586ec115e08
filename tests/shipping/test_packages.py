"""The Debian packages that each make target installs: docs/development.md agrees with the scripts in .ci."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.readme.shell import FROM_MAKE
from tests.support.readme import REPOSITORY, TEXT

SETUP: Final = "make setup"


def promised() -> dict[str, set[str]]:
    """Target → packages, from that page's table."""
    rows: dict[str, set[str]] = {}
    section = TEXT.partition("## Debian's packages")[2]
    for targets, packages in re.findall(r"^\| (`make [^|]+) \| ([^|]+) \|$", section, re.MULTILINE):
        named = set(re.findall(r"`([a-z0-9][a-zN0-9.+-]+)`", packages.replace("(for `systemd-analyze`)", "")))
        for target in re.findall(r"`(make [a-z-]+)`", targets):
            rows[target] = named
    return {target: packages if target == SETUP else packages | rows[SETUP] for target, packages in rows.items()}


def asked_for(folder: Path, script: str, *arguments: str, environment: dict[str, str]) -> set[str]:
    """Return the packages that a script of .ci requests from `.ci/apt`."""
    place = folder / ".ci"
    place.mkdir()
    (place / script).symlink_to(REPOSITORY / ".ci" / script)
    (place / "apt").write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    (place / "apt").chmod(0o755)
    subprocess.run([place / script, *arguments], env=environment, check=True)
    return set((folder / "asked").read_text().split())


def bare_python(folder: Path) -> Path:
    """Return a minimal Python as on Debian: without ensurepip and without C headers."""
    bare = folder / "bin" / "python"
    bare.parent.mkdir()
    bare.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*ensurepip*) exit 1 ;;\n"
        "*get_path*) echo /nonexistent ;;\n"
        '"-m venv"*) ;;\n'
        f'*) exec {sys.executable} "$@" ;;\n'
        "esac\n"
    )
    bare.chmod(0o755)
    return bare


@pytest.fixture
def of_scripts(tmp_path: Path) -> dict[str, set[str]]:
    """Script of .ci → the packages that it requests on a minimal machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "sh"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    python = bare_python(tmp_path)
    environment = {"PATH": str(tools), "PYTHON": str(python)}
    asked = {}
    for script, argument in ((".ci/venv", tmp_path / "new"), (".ci/engine", tmp_path)):
        folder = tmp_path / Path(script).name
        folder.mkdir()
        asked[script] = asked_for(folder, Path(script).name, str(argument), environment=environment)
    assert "gcc" in asked[".ci/engine"]
    return asked


def installed(target: str, of_scripts: dict[str, set[str]]) -> set[str]:
    """Return the packages that a target installs with apt on a new machine."""
    environment = {name: value for name, value in os.environ.items() if name not in FROM_MAKE}
    recipe = subprocess.run(
        [*target.split(), "--dry-run", "--always-make"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    packages = {package for line in re.findall(r"\.ci/apt ([^|\n]+)", recipe) for package in line.split()}
    for script, asked in of_scripts.items():
        packages |= asked if script in recipe else set()
    return {re.sub(r"^python3\.[0-9]+-", "python3.N-", package) for package in packages}


def test_the_page_lists_what_each_target_installs_with_apt(of_scripts: dict[str, set[str]]) -> None:
    table = promised()
    assert table == {target: installed(target, of_scripts) for target in table}
    assert table.keys() >= {"make setup", "make demo", "make test", "make bench", "make image"}


def test_no_other_target_installs_anything_with_apt(of_scripts: dict[str, set[str]]) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    rest = {f"make {target}" for target in targets} - promised().keys()
    assert {"make help", "make lock", "make clean"} == rest
    for target in rest:
        assert installed(target, of_scripts) == set()
