"""The workflows for GitHub Actions are valid, and fit the rest of the repository."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.shipping.commands import REPOSITORY, read_yaml

FOLDER = REPOSITORY / ".github"
WORKFLOWS = sorted(file.name for file in (FOLDER / "workflows").glob("*.yml"))


def schema(name: str) -> Any:
    """Return a schema from an installed package whose dependencies are not installed."""
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None
    assert found.origin is not None
    return json.loads(Path(found.origin).with_name("builtin_schemas").joinpath("vendor", f"{name}.json").read_text())


def workflow(name: str) -> dict[str, Any]:
    (document,) = read_yaml(f".github/workflows/{name}")
    document["on"] = document.pop(True)  # YAML 1.1 reads the word as a truth value
    assert isinstance(document, dict)
    return document


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_valid_for_the_schema(name: str) -> None:
    validator = jsonschema.Draft7Validator(schema("github-workflows"))
    document = workflow(name)
    assert [error.message for error in validator.iter_errors(document)] == []
    next(iter(document["jobs"].values()))["runs_on"] = "x"
    assert [error.message for error in validator.iter_errors(document)] != []


def test_the_configuration_of_dependabot_is_valid_for_the_schema() -> None:
    (document,) = read_yaml(".github/dependabot.yml")
    jsonschema.Draft7Validator(schema("dependabot")).validate(document)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_job_has_a_time_limit_and_only_the_rights_that_it_names(name: str) -> None:
    document = workflow(name)
    assert document["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in document["jobs"].values())
    for step in steps(name):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_action_is_pinned_by_the_commit_of_its_release_which_a_comment_names(name: str) -> None:
    uses = re.findall(r"uses: (.*)", (FOLDER / "workflows" / name).read_text())
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_need_jobs_that_exist_and_scripts_make_targets_that_exist(name: str) -> None:
    jobs = workflow(name)["jobs"]
    for job in jobs.values():
        needs = job.get("needs", [])
        assert {needs} <= jobs.keys() if isinstance(needs, str) else set(needs) <= jobs.keys()
    scripts = "\n".join(step["run"] for step in steps(name) if "run" in step)
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", scripts):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_matrix_has_every_python_that_is_supported_with_and_without_a_compiler() -> None:
    matrix = workflow("ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["project"]["classifiers"]))
    assert named == matrix["python"]
    assert matrix["build"] == ["all", "none"]
    wheels = [f"cp{python.replace('.', '')}-*" for python in matrix["python"]]
    assert project["tool"]["cibuildwheel"]["build"] == wheels


def test_a_release_has_wheels_for_three_platforms_provenance_and_an_image_for_two() -> None:
    jobs = workflow("release.yml")["jobs"]
    runners = [entry["runner"] for entry in jobs["wheels"]["strategy"]["matrix"]["include"]]
    assert runners == ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-14"]
    promised = "on Linux (manylinux, musllinux; x86_64 and aarch64) and macOS (arm64)"
    assert promised in (REPOSITORY / "docs/installing.md").read_text()
    for name in ("files", "image"):
        assert jobs[name]["permissions"]["attestations"] == "write"
        assert any(step.get("uses", "").startswith("actions/attest-build-provenance@") for step in jobs[name]["steps"])
    (build,) = [step["with"] for step in jobs["image"]["steps"] if "build-push" in step.get("uses", "")]
    assert build["platforms"] == "linux/amd64,linux/arm64"
    assert "@$digest" in "".join(step.get("run", "") for step in jobs["image"]["steps"])
