from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from proxy.errors import all_failures
from proxy.settings.__main__ import main
from proxy.settings.loading import load
from tests.readme.stages import Stage, assigned, complete, program_of, stage_of
from tests.support.compose import load as load_compose
from tests.support.readme import PAGES, REPOSITORY, TEXT, Block, anchors, blocks, commands, inline_commands, links

SHOWN = [(block, command) for block in blocks() if block.language == "console" for command in commands(block)]


LINKS = sorted({(page, link) for page, text in PAGES.items() for link in links(text) if not link.startswith("https:")})


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_into_the_repository_has_a_target(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target.read_text())


def test_the_readme_lists_every_page() -> None:
    assert sorted(PAGES)[1:] == sorted(f"docs/{file.name}" for file in (REPOSITORY / "docs").glob("*.md"))


def test_the_tables_of_settings_are_those_of_the_model() -> None:
    assert main("table") in TEXT, "run: python -m proxy.settings table, and put it into docs/configuration.md"


@pytest.mark.parametrize("code", [kind.code for kind in all_failures()])
def test_every_failure_code_has_a_table_row(code: str) -> None:
    assert re.search(rf"^\| `{code}` \| .+ \| .+ \|$", TEXT, re.MULTILINE)


def test_no_table_row_has_an_unknown_failure_code() -> None:
    table = TEXT.partition("| code | it is | do |")[2].partition("\n\n")[0]
    named = set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE))
    assert named == {kind.code for kind in all_failures()}


def _codes_of_findings() -> set[str]:
    """Return the codes that `check` gives to steps and findings, in the sources, besides those of failures."""
    found = set()
    for room in ("doctor", "cloud_run"):
        for file in (REPOSITORY / "proxy" / room).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                # The place of the code among the arguments.
                place = {"Finding": 0, "failed": 1}.get(ast.unparse(node.func))
                if place is not None:
                    given += node.args[place : place + 1]
                found |= {value.value for value in given if isinstance(value, ast.Constant)}
    return {str(code) for code in found}


def test_each_finding_of_check_has_a_table_row_and_no_row_is_of_another() -> None:
    table = TEXT.partition("| finding | it is | do |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == _codes_of_findings()


@pytest.mark.parametrize("text", [block.text for block in blocks() if block.language == "toml"])
def test_every_settings_file_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(text)
    assert list(load(file, {}, {}).settings.routes) == list(tomllib.loads(text).get("routes", {}))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", TEXT))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z][a-z0-9-]+)", TEXT))))
def test_every_flag_exists_here_or_in_gcloud_docker_or_restate(flag: str) -> None:
    ours = "".join(file.read_text() for file in (REPOSITORY / "proxy/cli").glob("*.py")).replace("_", "-")
    settings = (REPOSITORY / "proxy/settings/model.py").read_text().replace("_", "-")
    theirs = {"--use-http2", "--no-allow-unauthenticated", "--build-arg", "--stop-timeout", "--format"}
    theirs |= {"--extra-header", "--force", "--gcp-id-token", "--gcp-impersonate-service-account", "--gcp-audience"}
    assert flag in theirs or flag in ours or f"\n    {flag[2:]}: " in settings


@pytest.mark.parametrize(("block", "command"), SHOWN, ids=[command for _, command in SHOWN])
def test_every_command_of_a_block_can_be_run_by_its_stage(block: Block, command: str) -> None:
    assert program_of(command) in stage_of(block).programs


@pytest.mark.parametrize("command", inline_commands())
def test_every_command_in_prose_is_complete_or_can_be_completed(command: str) -> None:
    assert program_of(complete(command)) in stage_of(command).programs
    assert "…" not in complete(command), "say the whole of it, or in tests/readme/stages.py what is meant"


@pytest.mark.parametrize("command", [one for one in assigned(Stage.IMAGE) if one.startswith("docker compose")])
def test_compose_has_the_named_services_and_profiles(command: str) -> None:
    services = load_compose(REPOSITORY / "docker-compose.yml", {})
    profiles = {profile for service in services.values() for profile in service.profiles}
    words = command.split()[2:]
    while words[0] == "--profile":
        assert words[1] in profiles
        words = words[2:]
    assert {word for word in words[1:] if not word.startswith("--")} <= services.keys()


def test_every_command_is_assigned_to_exactly_one_stage() -> None:
    everything = [command for stage in Stage for command in assigned(stage)]
    assert sorted(everything) == sorted([*(command for _, command in SHOWN), *inline_commands()])


def test_inline_code_of_several_words_that_begins_like_a_program_is_a_command() -> None:
    prose = "`serve --now`, `a/bin/b c`, `helm\ninstall x`, `curl`, `--flag 1`, `CODE x`, `name: x`\n"
    assert inline_commands(prose + "```console\n$ `a b`\n```\n") == ["serve --now", "a/bin/b c", "helm install x"]
