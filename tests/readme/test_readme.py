from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from proxy.errors import leaves
from proxy.settings import load
from proxy.settings.__main__ import main
from tests.support.readme import REPOSITORY, TEXT, anchors, blocks, commands, links

SHIPPED = {"docker", "kubectl", "export", "python3", "install", "systemctl"}
"""What is read here, and run by `make image` and `make dist` as far as it can be run without an engine or a cluster."""

SHIPPED_COMMANDS = [
    command
    for block in blocks()
    if block.language == "console"
    for command in commands(block)
    if command.split()[0] in SHIPPED
]


@pytest.mark.parametrize("link", links())
def test_every_link_into_the_repository_leads_somewhere(link: str) -> None:
    if link.startswith("#"):
        assert link[1:] in anchors()
    elif not link.startswith("https://"):
        assert (REPOSITORY / link).exists()


def test_the_tables_of_settings_are_those_of_the_model() -> None:
    assert main("table") in TEXT, "run: python -m proxy.settings table, and put it under Configuration"


@pytest.mark.parametrize("code", [leaf.code for leaf in leaves()])
def test_every_error_code_has_its_line(code: str) -> None:
    assert re.search(rf"^\| `{code}` \| .+ \| .+ \|$", TEXT, re.MULTILINE)


def test_no_line_is_about_an_error_code_that_there_is_not() -> None:
    table = TEXT.partition("| code | it is | do |")[2].partition("\n\n")[0]
    named = set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE))
    assert named == {leaf.code for leaf in leaves()}


@pytest.mark.parametrize("text", [block.text for block in blocks() if block.language == "toml"])
def test_every_settings_file_is_one(text: str, tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(text)
    assert list(load(file, {}, {}).routes) == list(tomllib.loads(text)["routes"])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)", TEXT))))
def test_every_target_of_make_is_one(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z][a-z0-9-]+)", TEXT))))
def test_every_flag_is_one_of_ours_or_of_gcloud_and_docker(flag: str) -> None:
    ours = "".join(file.read_text() for file in (REPOSITORY / "proxy/cli").glob("*.py")).replace("_", "-")
    settings = (REPOSITORY / "proxy/settings/model.py").read_text().replace("_", "-")
    theirs = {"--use-http2", "--no-allow-unauthenticated", "--build-arg"}
    assert flag in theirs or flag in ours or f"\n    {flag[2:]}: " in settings


@pytest.mark.parametrize("command", SHIPPED_COMMANDS)
def test_every_file_that_is_shipped_with_a_command_is_there(command: str) -> None:
    for word in shlex.split(command):
        if word.startswith("config/"):
            assert word == "config/routes.toml" or (REPOSITORY / word).exists()


@pytest.mark.parametrize("command", [one for one in SHIPPED_COMMANDS if one.startswith("docker compose")])
def test_compose_has_the_services_and_profiles_that_are_named(command: str) -> None:
    stack = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    words = shlex.split(command)[2:]
    profiles = {profile for service in stack["services"].values() for profile in service.get("profiles", [])}
    while words[0] == "--profile":
        assert words[1] in profiles
        words = words[2:]
    assert words[0] in ("up", "run", "restart")
    assert {word for word in words[1:] if not word.startswith("--")} <= set(stack["services"])


def test_every_command_is_run_or_read_by_somebody() -> None:
    played = {"make", "gcloud", "curl", ".venv/bin/cloudrun-sidecar"}
    first = {command.split()[0] for block in blocks() if block.language == "console" for command in commands(block)}
    assert first <= played | SHIPPED
