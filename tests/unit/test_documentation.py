"""Every public name of the package has a docstring; its functions, and all files, are short enough to be read.

A public name is a module, a class, a function or a method without a leading underscore, an annotated attribute of a
public class, and a constant in `__all__`. A method needs no docstring where it implements a documented one of a base
class or of a protocol. The `description` of a setting is its docstring.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import pytest

REPOSITORY: Final = Path(__file__).parents[2]
PACKAGE: Final = REPOSITORY / "proxy"
MOST_FILE_LINES: Final = 400
MOST_FUNCTION_LINES: Final = 60
MOST_COLUMNS: Final = 120

# What does not keep the rules yet. Each list fails when an entry of it is no longer needed.
UNDOCUMENTED_ROOMS: Final[frozenset[str]] = frozenset()
"""Directories (`observe`) and top-level modules (`errors.py`) of the package."""
LONG_FILES: Final[frozenset[str]] = frozenset()
"""Paths, as `proxy/errors.py`."""
LONG_FUNCTIONS: Final[frozenset[str]] = frozenset()
"""Functions, as `proxy/errors.py: name`."""

DESCRIBED_ELSEWHERE: Final = frozenset({"PlainSettings"})
"""Classes whose attributes are those of another class, where each has its description."""

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Span(NamedTuple):
    """The lines that a function occupies, its decorators left out."""

    name: str
    lines: int


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def source_files() -> list[Path]:
    """Return the Python and Cython files of the package."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxi", ".pxd"))


def build_and_test_files() -> list[Path]:
    """Return the Python files beside the package: tests, and what builds it."""
    return sorted([*REPOSITORY.glob("*.py"), *REPOSITORY.glob(".ci/*.py"), *(REPOSITORY / "tests").rglob("*.py")])


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def rooms() -> list[str]:
    return sorted({room_of(path) for path in python_files()})


def undocumented(path: Path) -> Iterator[str]:
    """Yield the public names of a module that have no docstring, in the order of the file."""
    tree = ast.parse(path.read_text())
    if ast.get_docstring(tree) is None:
        yield "the module"
    exported = _exported(tree)
    for statement, following in _pairs(tree.body):
        match statement:
            case ast.ClassDef(name=name) if _public(name):
                yield from _undocumented_in_class(path, statement)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if _public(name):
                if ast.get_docstring(statement) is None and not _overloaded(statement):
                    yield name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if name in exported:
                if not _is_docstring(following):
                    yield name


def _undocumented_in_class(path: Path, declared: ast.ClassDef) -> Iterator[str]:
    if ast.get_docstring(declared) is None:
        yield declared.name
    for statement, following in _pairs(declared.body):
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if _public(name):
                if not (
                    ast.get_docstring(statement) is not None
                    or _overloaded(statement)
                    or _implements_documented(path, declared, name)
                ):
                    yield f"{declared.name}.{name}"
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if _public(name):
                described = _is_docstring(following) or _has_description(value)
                if not described and declared.name not in DESCRIBED_ELSEWHERE:
                    yield f"{declared.name}.{name}"


def _implements_documented(path: Path, declared: ast.ClassDef, name: str) -> bool:
    """Return whether a base of the class, wherever it is defined, or a protocol that it fits documents the name."""
    module = importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    bases = getattr(module, declared.name).__mro__[1:]
    if any(getattr(vars(base).get(name), "__doc__", None) for base in bases):
        return True
    own = {member.name for member in declared.body if isinstance(member, Function)}
    return any(name in documented and methods <= own for methods, documented in protocols())


@functools.cache
def protocols() -> list[tuple[frozenset[str], frozenset[str]]]:
    """Return the protocols of the package: the names of all methods of each, and of the documented ones."""
    found = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases):
                methods = [member for member in node.body if isinstance(member, Function)]
                documented = frozenset(method.name for method in methods if ast.get_docstring(method) is not None)
                found.append((frozenset(method.name for method in methods), documented))
    return found


def _exported(tree: ast.Module) -> frozenset[str]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=names):
                return frozenset(ast.literal_eval(names))
    return frozenset()


def _pairs(body: list[ast.stmt]) -> Iterable[tuple[ast.stmt, ast.stmt | None]]:
    return zip(body, [*body[1:], None], strict=True)


def _public(name: str) -> bool:
    return not name.startswith("_")


def _is_docstring(statement: ast.stmt | None) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def _has_description(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and any(keyword.arg == "description" for keyword in value.keywords)


def _overloaded(function: Function) -> bool:
    """Return whether it is an `overload`, or a property's setter: the documented one stands beside it."""
    return any(
        ast.unparse(each) == "overload" or ast.unparse(each).endswith(".setter") for each in function.decorator_list
    )


def functions(path: Path) -> Iterator[Span]:
    """Yield all functions of a Python or Cython file."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function):
                yield Span(node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        return
    yield from cython_functions(text.splitlines())


def cython_functions(lines: list[str]) -> Iterator[Span]:
    """Yield the functions of Cython source: from `def`, `cdef` or `cpdef` to the last line that is indented deeper."""
    for start, line in enumerate(lines):
        found = re.match(r"( *)(?:async )?(?:def|c(?:p)?def) [^=]*?(\w+)\(", line)
        if found is None or line.lstrip().startswith("cdef class"):
            continue
        indent, end = len(found[1]), start
        for number in range(start + 1, len(lines)):
            here = lines[number]
            if here.strip() and len(here) - len(here.lstrip()) <= indent and not here.lstrip().startswith(")"):
                break
            if here.strip():
                end = number
        if end > start:
            yield Span(found[2], end - start + 1)


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_of_a_room_has_a_docstring(room: str) -> None:
    missing = [
        f"{name_of(path)}: {name}" for path in python_files() if room_of(path) == room for name in undocumented(path)
    ]
    if room in UNDOCUMENTED_ROOMS:
        assert missing, f"{room} is documented now: take it out of UNDOCUMENTED_ROOMS"
    else:
        assert not missing, "\n".join(missing)


def test_no_line_of_a_cython_file_is_too_long() -> None:
    # ruff holds those of Python files.
    long = [
        f"{name_of(path)}:{number}"
        for path in source_files()
        if path.suffix != ".py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert not long


def test_no_file_is_too_long() -> None:
    files = [*source_files(), *build_and_test_files()]
    long = {name_of(path) for path in files if len(path.read_text().splitlines()) > MOST_FILE_LINES}
    assert long == LONG_FILES


def test_no_function_is_too_long() -> None:
    long = {
        f"{name_of(path)}: {function.name}"
        for path in source_files()
        for function in functions(path)
        if function.lines > MOST_FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS


def test_functions_of_cython_source_are_measured() -> None:
    text = """\
cdef class Session:
    cdef int open(
        self,
        int number,
    ) except -1:
        cdef int answer = ask(number)

        return answer

    def close(self):
        pass

cdef int declared(int number)
cdef inline bint even(int number) noexcept:
    return number % 2 == 0
"""
    assert list(cython_functions(text.splitlines())) == [Span("open", 7), Span("close", 2), Span("even", 2)]
