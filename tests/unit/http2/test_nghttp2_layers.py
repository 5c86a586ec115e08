"""The files of the compiled engine know deeper layers only; import-linter does not read Cython."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

import proxy.http2

ROOM: Final = Path(proxy.http2.__file__).parent / "nghttp2"

LAYERS: Final = (
    {"engine", "receiving", "stream"},  # an engine, its callbacks and its streams know each other's types
    {"session"},
    {"section_reader", "section_writer"},
    {"frames", "outbox", "options"},
    {"libnghttp2"},
)
TOGETHER: Final = LAYERS[0]
SEAM: Final = {"proxy.http2.engine", "proxy.http2.policy"}

FILES: Final = sorted(path for path in ROOM.iterdir() if path.suffix in (".pyx", ".pxi", ".pxd"))
TEXTS: Final = {path.stem: path.read_text() for path in FILES}


def defined(text: str) -> set[str]:
    """Return the names of classes, functions, variables and constants that a file defines."""
    classes = re.findall(r"^cdef class (\w+)", text, re.MULTILINE)
    others = re.findall(r"^(?:cdef|    void) [^=(:\n]*?(\w+)\(", text, re.MULTILINE)
    constants = re.findall(r"^ {4,8}(_?[A-Z][A-Z_0-9]+)(?:$| = | \")", text, re.MULTILINE)
    return {*classes, *others, *constants}


def used(name: str) -> set[str]:
    """Return the files of the package whose names a file uses."""
    words = set(re.findall(r"\w+", TEXTS[name]))
    own = defined(TEXTS[name])
    return {other for other, text in TEXTS.items() if other != name and words & (defined(text) - own)}


def depth(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_file_uses_deeper_layers_only(name: str) -> None:
    for other in used(name):
        assert {name, other} <= TOGETHER or depth(other) > depth(name), other


def test_every_use_is_found() -> None:
    assert used("section_writer") == {"libnghttp2", "outbox"}
    assert used("session") == {"frames", "libnghttp2", "options", "outbox", "section_writer"}
    assert used("receiving") == {"engine", "frames", "libnghttp2", "section_reader", "session", "stream"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_the_seam_is_imported(path: Path) -> None:
    for module in re.findall(r"^from (proxy[\w.]*) c?import", path.read_text(), re.MULTILINE):
        own = module.startswith("proxy.http2.nghttp2.")
        assert own or any(module == each or module.startswith(f"{each}.") for each in SEAM), module


def test_every_file_has_a_layer() -> None:
    assert {path.stem for path in FILES} == set().union(*LAYERS)
