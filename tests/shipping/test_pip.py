"""`.ci/pip`, with which `make` installs packages: it shows progress while pip works."""

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
    """A virtual environment whose pip prints two lines, and fails on demand."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\n"
        'echo "Collecting first"; echo "trouble with second" >&2\n'
        'case "$*" in *unheard-of*) exit 7 ;; esac\n'
    )
    python.chmod(0o755)
    return tmp_path


def test_start_and_end_are_reported(venv: Path) -> None:
    done = subprocess.run(
        [PIP, venv, "installing things", "install", "thing"], capture_output=True, text=True, check=True
    )
    first, last = done.stdout.splitlines()
    assert first == "installing things"
    assert last.startswith("  done in ")
    assert done.stderr == ""


def test_the_whole_output_of_pip_is_shown_if_it_fails(venv: Path) -> None:
    done = subprocess.run([PIP, venv, "installing things", "install", "unheard-of"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "installing things\n")
    assert done.stderr == "Collecting first\ntrouble with second\n"


@pytest.mark.parametrize(("package", "status"), [("thing", 0), ("unheard-of", 7)])
def test_a_terminal_shows_the_progress_of_pip(venv: Path, package: str, status: int) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        done = subprocess.run(
            [PIP, venv, "installing things", "install", package],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        shown = screen.read(4096).decode()
    assert done.returncode == status
    assert shown.startswith("installing things\r\n")
    assert "\r\x1b[K  Collecting first" in shown
    assert ("trouble with second" in done.stderr.decode()) == (status != 0)
    assert ("  done in " in shown) == (status == 0)
