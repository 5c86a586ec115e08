"""The declarations (.pxd) of compiled Python modules agree with the modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DECLARATIONS = sorted(path for path in (REPOSITORY / "proxy").rglob("*.pxd") if path.with_suffix(".py").exists())


def compiled() -> set[str]:
    """The Python modules that setup.py compiles."""
    found: set[str] = set()
    for statement in ast.parse((REPOSITORY / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in ("SEAM", "DATA_PATH"):
            found |= set(ast.literal_eval(statement.value))
    return found


def slots(file: Path) -> dict[str, set[str]]:
    """The attributes in `__slots__` of each class of a module."""
    return {
        node.name: set(ast.literal_eval(assigned.value))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        for assigned in node.body
        if isinstance(assigned, ast.Assign) and ast.unparse(assigned.targets[0]) == "__slots__"
    }


def declared(file: Path) -> dict[str, set[str]]:
    """The attributes that a .pxd declares for each class."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in file.read_text().splitlines():
        if match := re.match(r"cdef class (\w+)", line):
            name = match[1]
            found[name] = set()
        elif name and (match := re.match(r"    cdef (?:public |readonly )?[\w.]+(?: \w+)* (\w+)$", line)):
            found[name].add(match[1])
    return found


def test_compiled_modules_and_declarations_correspond() -> None:
    assert {str(path.with_suffix(".py").relative_to(REPOSITORY)) for path in DECLARATIONS} == compiled()


@pytest.mark.parametrize("file", DECLARATIONS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_declared_attributes_are_those_in_slots(file: Path) -> None:
    """An attribute without a declaration compiles, but raises AttributeError at run time."""
    of_python = slots(file.with_suffix(".py"))
    for name, attributes in declared(file).items():
        assert attributes == of_python.get(name, set()), name
