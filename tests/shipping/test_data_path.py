from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def data_path() -> list[str]:
    """The modules that setup.py compiles as they are."""
    for statement in ast.parse((REPOSITORY / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "DATA_PATH":
            return list(ast.literal_eval(statement.value))
    raise AssertionError("setup.py names no DATA_PATH")


@pytest.mark.parametrize("file", data_path())
def test_what_is_compiled_has_no_coroutine(file: str) -> None:
    tree = ast.parse((REPOSITORY / file).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
