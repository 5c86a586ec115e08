"""The files of the compiled engine import in one direction; import-linter does not read Cython."""

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

FILES: Final = sorted(path for path in ROOM.iterdir() if path.suffix in (".pyx", ".pxd"))


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, in Python or in C."""
    found = re.findall(r"^from (proxy[\w.]*) c?import", path.read_text(), re.MULTILINE)
    return set(found)


def depth(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_imports_deeper_layers_only(path: Path) -> None:
    prefix = "proxy.http2.nghttp2."
    for module in imports(path):
        if module.startswith(prefix):
            name = module.removeprefix(prefix)
            assert {name, path.stem} <= TOGETHER or name == path.stem or depth(name) > depth(path.stem), module
        else:
            assert any(module == each or module.startswith(f"{each}.") for each in SEAM), module


def test_every_file_has_a_layer() -> None:
    assert {path.stem for path in FILES} == set().union(*LAYERS)
