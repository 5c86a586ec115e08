"""The package without its compiled modules, in another place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

__all__ = ["FEW_EXAMPLES", "REPOSITORY", "lay_out"]

REPOSITORY: Final = Path(__file__).parents[2]

FEW_EXAMPLES: Final = "--hypothesis-profile=few-examples"
"""A flag of pytest, for tests that run with all examples elsewhere."""


def lay_out(folder: Path, compiled: tuple[str, ...] = ()) -> None:
    """Copy the package to a folder, compiled modules only where their path begins like this, and link the tests."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "compiled.json")
    shutil.copytree(REPOSITORY / "proxy", folder / "proxy", ignore=ignored)
    for module in (REPOSITORY / "proxy").rglob("*.so"):
        place = module.relative_to(REPOSITORY / "proxy")
        if f"{place.parent}/{place.name.partition('.')[0]}".startswith(compiled):
            shutil.copy2(module, folder / "proxy" / place)
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    shutil.copy2(REPOSITORY / "pyproject.toml", folder)
    (REPOSITORY / ".hypothesis").mkdir(exist_ok=True)  # has its table of characters, which takes seconds to make
    for name in ("README.md", "CHANGELOG.md", "config", "docs", ".hypothesis"):
        (folder / name).symlink_to(REPOSITORY / name)
