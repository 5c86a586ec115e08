"""The modules that are compiled as they are: what the compiler is told of them is what they say themselves."""

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
    """The attributes that each class of a module names in `__slots__`."""
    return {
        node.name: set(ast.literal_eval(assigned.value))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
        for assigned in node.body
        if isinstance(assigned, ast.Assign) and ast.unparse(assigned.targets[0]) == "__slots__"
    }


def declared(file: Path) -> dict[str, set[str]]:
    """The attributes that a .pxd declares of each class."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in file.read_text().splitlines():
        if match := re.match(r"cdef class (\w+)", line):
            name = match[1]
            found[name] = set()
        elif name and (match := re.match(r"    cdef (?:public |readonly )?[\w.]+(?: \w+)* (\w+)$", line)):
            found[name].add(match[1])
    return found


def test_every_module_that_is_compiled_has_declarations_and_the_other_way_round() -> None:
    assert {str(path.with_suffix(".py").relative_to(REPOSITORY)) for path in DECLARATIONS} == compiled()


@pytest.mark.parametrize("file", DECLARATIONS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_attributes_are_declared_as_they_are_in_slots(file: Path) -> None:
    """An attribute that is not declared compiles, and raises AttributeError when it runs."""
    of_python = slots(file.with_suffix(".py"))
    for name, attributes in declared(file).items():
        assert attributes == of_python.get(name, set()), name
