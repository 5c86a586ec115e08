"""What forbids a release is found, and its bill of materials and checksums are right."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.shipping.dist import REPOSITORY
from tests.shipping.release import checksums, problems_of_changelog, problems_of_commit, problems_of_locks
from tests.shipping.sbom import bill_of_materials

COMPLETE = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n- A change.\n\n## [1.2.2] - 2026-01-01\n"


def git(folder: Path, *words: str) -> None:
    someone = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    subprocess.run(["git", *someone, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    return tmp_path


def test_a_clean_commit_can_be_released_before_and_after_it_is_tagged(repository: Path) -> None:
    assert list(problems_of_commit(repository, "1.2.3")) == []
    git(repository, "tag", "--annotate", "--message", "1.2.3", "v1.2.3")
    assert list(problems_of_commit(repository, "1.2.3")) == []


def test_all_that_forbids_to_release_a_commit_is_named(repository: Path) -> None:
    git(repository, "tag", "v1.2.dev3")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "b")
    (repository / "file").write_text("b")
    (repository / "new").touch()
    assert list(problems_of_commit(repository, "1.2.dev3")) == [
        "these files are not as committed: file, new",
        "1.2.dev3 in proxy/__init__.py is not like 1.2.3",
        "the tag v1.2.dev3 is on another commit: set a new version in proxy/__init__.py",
    ]


def test_a_changelog_with_a_dated_section_for_the_version_is_complete() -> None:
    assert list(problems_of_changelog(COMPLETE, "1.2.3")) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (COMPLETE.replace(" - 2026-01-31", ""), "the second section"),
        (COMPLETE.replace("1.2.3", "1.2.4"), "the second section"),
        (COMPLETE.replace("## [Unreleased]\n", "## [Unreleased]\n\n- Another.\n"), "the first section"),
        (COMPLETE.replace("## [Unreleased]\n", ""), "the first section"),
        ("", "the first section"),
    ],
)
def test_what_a_changelog_lacks_is_named(text: str, problem: str) -> None:
    assert any(problem in sentence for sentence in problems_of_changelog(text, "1.2.3"))


def test_lock_files_that_no_longer_fit_are_named(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n[ "$2" != requirements.lock ] || echo >> "$2"\n')
    uv.chmod(0o755)
    (sentence,) = problems_of_locks(tmp_path, [str(uv), "--offline"])
    assert sentence == "requirements.lock no longer fit pyproject.toml: run make lock"
    uv.write_text("#!/bin/sh\n")
    assert list(problems_of_locks(tmp_path, [str(uv)])) == []
    assert (tmp_path / "requirements.lock").read_bytes() == (REPOSITORY / "requirements.lock").read_bytes()


def test_a_missing_uv_is_named() -> None:
    (sentence,) = problems_of_locks(REPOSITORY, ["/nonexistent/uv"])
    assert sentence.startswith("/nonexistent/uv is not installed")


def test_checksums_are_those_of_all_files(tmp_path: Path) -> None:
    for name in ("b.whl", "a.tar.gz"):
        (tmp_path / name).write_text(name)
    sums = checksums(tmp_path)
    assert checksums(tmp_path) == sums
    said = subprocess.run(["sha256sum", "--check", sums], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout == "a.tar.gz: OK\nb.whl: OK\n"


def schema() -> Any:
    """Return CycloneDX's schema, from an installed package whose dependencies are not installed; without signatures."""
    found = importlib.util.find_spec("cyclonedx")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).with_name("schema") / "_res"
    text = (folder / "bom-1.6.SNAPSHOT.schema.json").read_text()
    text = text.replace('"spdx.SNAPSHOT.schema.json"', '"#/definitions/spdx"')
    text = text.replace('"jsf-0.82.SNAPSHOT.schema.json#/definitions/signature"', '"#/definitions/signature"')
    document = json.loads(text)
    document["definitions"] |= {
        "spdx": json.loads((folder / "spdx.SNAPSHOT.schema.json").read_text()),
        "signature": False,
    }
    return document


def test_the_bill_of_materials_is_valid() -> None:
    validator = jsonschema.Draft7Validator(schema())
    assert [error.message for error in validator.iter_errors(bill_of_materials())] == []
    broken = {**bill_of_materials(), "components": [{"name": "a"}]}
    assert [error.message for error in validator.iter_errors(broken)] == ["'type' is a required property"]


def test_the_bill_of_materials_has_every_package_of_the_lock_file_with_all_hashes_and_libnghttp2() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    bill = bill_of_materials()
    assert bill == bill_of_materials()
    components = {component["name"]: component for component in bill["components"]}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, re.MULTILINE):
        assert components.pop(name)["version"] == version
    assert components.keys() == {"libnghttp2"}
    assert f"VERSION={components['libnghttp2']['version']}\n" in (REPOSITORY / ".ci/nghttp2").read_text()
    assert sorted(re.findall(r"--hash=sha256:(\w+)", lock)) == sorted(
        entry["value"]
        for component in bill["components"]
        for entry in component.get("properties", [])
        if entry["name"].endswith(":file-sha256")
    )


def test_most_components_state_a_license() -> None:
    silent = {component["name"] for component in bill_of_materials()["components"] if "licenses" not in component}
    assert silent <= {"aiocache"}
