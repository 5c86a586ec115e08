"""`.ci/pip`, which `make` installs with: it says what it is doing while pip works."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.support.readme import REPOSITORY

PIP = REPOSITORY / ".ci" / "pip"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment whose pip says two lines, and fails when it is told to."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\n"
        'echo "Collecting first"; echo "trouble with second" >&2\n'
        'case "$*" in *unheard-of*) exit 7 ;; esac\n'
    )
    python.chmod(0o755)
    return tmp_path


def test_a_sentence_comes_first_and_the_end_is_told(venv: Path) -> None:
    told = subprocess.run(
        [PIP, venv, "installing things", "install", "thing"], capture_output=True, text=True, check=True
    )
    first, last = told.stdout.splitlines()
    assert first == "installing things"
    assert last.startswith("  done in ")
    assert told.stderr == ""


def test_everything_that_pip_said_is_shown_when_it_fails(venv: Path) -> None:
    told = subprocess.run([PIP, venv, "installing things", "install", "unheard-of"], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (7, "installing things\n")
    assert told.stderr == "Collecting first\ntrouble with second\n"


@pytest.mark.parametrize(("package", "status"), [("thing", 0), ("unheard-of", 7)])
def test_a_terminal_shows_what_pip_is_at(venv: Path, package: str, status: int) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        told = subprocess.run(
            [PIP, venv, "installing things", "install", package],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        shown = screen.read(4096).decode()
    assert told.returncode == status
    assert shown.startswith("installing things\r\n")
    assert "\r\x1b[K  Collecting first" in shown
    assert ("trouble with second" in told.stderr.decode()) == (status != 0)
    assert ("  done in " in shown) == (status == 0)
