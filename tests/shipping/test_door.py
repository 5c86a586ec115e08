"""What contributors find at the door: hooks, editor settings and the page on security fit the repository."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from proxy.settings.layers import DEFAULT_CONFIG
from tests.shipping.commands import REPOSITORY, read_yaml, settings
from tests.support.readme import anchors, links


def hooks() -> dict[str, dict[str, Any]]:
    (repository,) = read_yaml(".pre-commit-config.yaml")[0]["repos"]
    return {hook["id"]: hook for hook in repository["hooks"]}


def test_hooks_run_the_tools_of_make_check() -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "check"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    tools = re.findall(r"^\.venv/bin/(\S+)", recipe, re.MULTILINE)
    entries = [shlex.split(hook["entry"])[0] for hook in hooks().values()]
    assert [entry.removeprefix(".venv/bin/") for entry in entries if "/" in entry] == tools
    assert {hook["language"] for hook in hooks().values()} == {"system"}


@pytest.mark.parametrize(
    ("subject", "accepted"),
    [
        ("relay: retry a refused stream once", True),
        ("http2, relay: answer 431 to heads that the upstream does not take", True),
        ("Merge branch 'main'", True),
        ("relay: " + "x" * 65, True),
        ("relay: " + "x" * 66, False),
        ("Retry a refused stream once", False),
        ("relay:", False),
    ],
)
def test_the_subject_of_a_commit_is_checked(subject: str, accepted: bool, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_text(
        f"{subject}\n\nA body whose first line is longer than seventy-two characters, which it may be.\n"
    )
    done = subprocess.run([*shlex.split(hooks()["subject"]["entry"]), message], check=False)
    assert (done.returncode == 0) == accepted


def test_editors_are_told_the_line_length_of_the_formatter() -> None:
    editor = configparser.ConfigParser()
    editor.read_string("[top]\n" + (REPOSITORY / ".editorconfig").read_text())
    ruff = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["ruff"]
    assert int(editor["*"]["max_line_length"]) == ruff["line-length"]
    assert editor["Makefile"]["indent_style"] == "tab"


def test_the_page_on_security_links_to_what_exists() -> None:
    for link in links((REPOSITORY / "SECURITY.md").read_text()):
        path, _, anchor = link.partition("#")
        assert (REPOSITORY / path).exists()
        assert not anchor or anchor in anchors((REPOSITORY / path).read_text())


def test_the_settings_that_the_readme_has_a_reader_write_are_no_part_of_the_repository() -> None:
    file = str(DEFAULT_CONFIG)
    assert f"/{file}" in (REPOSITORY / ".gitignore").read_text().splitlines()
    assert settings(["serve", "--upstream", "https://a.run.app"])["routes"].keys() == {""}
