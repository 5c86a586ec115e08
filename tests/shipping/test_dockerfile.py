"""The Dockerfile copies existing files, and the image's command is valid for the command line."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator

from proxy.settings.model import Settings
from tests.shipping.commands import REPOSITORY, accepted, settings

# One line for each instruction.
INSTRUCTIONS = re.sub(r"\\\n\s*", "", (REPOSITORY / "Dockerfile").read_text()).splitlines()
IGNORED = (REPOSITORY / ".dockerignore").read_text().splitlines()


def instructions(word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in INSTRUCTIONS if line.startswith(f"{word} ")]


def copied() -> Iterator[str]:
    """Yield the paths that are copied from the repository."""
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            yield from line.split()[:-1]


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    assert list(copied())
    for path in copied():
        assert (REPOSITORY / path).exists()
        assert f"!{path}" in IGNORED


def test_nothing_else_is_sent_to_the_builder() -> None:
    rules = [line for line in IGNORED if not line.startswith("#")]
    assert rules[0] == "*"
    assert {line.removeprefix("!") for line in rules if line.startswith("!")} == set(copied())
    # Modules that were compiled here for another Python must not get into the image.
    assert "**/*.so" in rules[rules.index("!proxy") :]


def test_all_imports_of_the_sample_service_are_copied() -> None:
    sample = [path for path in copied() if path.startswith("tests/")]
    for path in sample:
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tests."):
                assert f"{str(node.module).replace('.', '/')}.py" in sample


def test_the_user_of_the_image_can_read_what_is_copied_from_a_clone_of_a_strict_umask() -> None:
    begin = next(at for at, line in enumerate(INSTRUCTIONS) if line.endswith(" AS sample"))
    stage = list(itertools.takewhile(lambda line: not line.startswith("FROM "), INSTRUCTIONS[begin + 1 :]))
    last_copy = max(at for at, line in enumerate(stage) if line.startswith("COPY "))
    assert any("chmod -R a+rX /sample" in line for line in stage[last_copy:] if line.startswith("RUN "))


def test_entries_that_are_taken_from_the_lock_exist() -> None:
    lock = (REPOSITORY / "requirements-dev.lock").read_text()
    taken = [names.split() for line in instructions("RUN") for names in re.findall(r"\blocked ([a-z -]+) >", line)]
    build, sample = taken
    assert {"cython", "setuptools"} <= set(build)
    assert sample == ["restate-sdk"]
    for name in itertools.chain(*taken):
        assert re.search(rf"^{name}==\S+(?: ; .+)? \\\n    --hash=sha256:", lock, re.MULTILINE)


def test_everything_is_installed_with_hashes() -> None:
    for line in instructions("RUN"):
        for command in re.findall(r"pip [^&|]*install [^&|]*", line):
            assert "--require-hashes" in command or "--no-deps /wheel/*.whl" in command


def test_the_base_can_be_chosen() -> None:
    assert INSTRUCTIONS.index("FROM ${BASE} AS program") > INSTRUCTIONS.index(f"ARG BASE={default_base()}")
    stages = re.findall(r"AS (\w+)", "\n".join(instructions("FROM")))
    others = [line for line in instructions("FROM") if line.split()[0] not in {"${BASE}", "scratch", *stages}]
    assert not others


def default_base() -> str:
    (base,) = [line.removeprefix("BASE=") for line in instructions("ARG")]
    return base


def test_compose_builds_on_the_same_base() -> None:
    assert (REPOSITORY / "docker-compose.yml").read_text().count(f"${{BASE:-{default_base()}}}") == 2


def test_the_image_runs_the_sidecar_without_a_shell_and_unprivileged() -> None:
    assert instructions("USER") == ["65532:65532"]
    (entrypoint,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entrypoint) == ["cloudrun-sidecar"]
    assert settings([*json.loads(command), "--upstream", "https://a.run.app"])["listen"] == ["127.0.0.1:9081"]


def test_the_page_lets_the_sidecar_drain_before_docker_kills_it() -> None:
    (seconds,) = re.findall(r"docker run .*--stop-timeout (\d+) ", (REPOSITORY / "docs/docker.md").read_text())
    assert int(seconds) > Settings.model_fields["drain_timeout"].default


def test_the_images_health_check_uses_the_admin_port() -> None:
    (health,) = instructions("HEALTHCHECK")
    program, *words = json.loads(health.partition("CMD ")[2])
    assert program == "cloudrun-sidecar"
    assert accepted(words) == {"admin": None, "config": None, "path": "/readyz"}


def test_the_ports_of_the_image_are_the_default_ones() -> None:
    fields = Settings.model_fields
    defaults = [*fields["listen"].default, fields["admin"].default]
    assert [port for line in instructions("EXPOSE") for port in line.split()] == [
        address.rpartition(":")[2] for address in defaults
    ]
