"""An environment without some packages that are installed."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from tests.support.readme import REPOSITORY

__all__ = ["python_path_without"]


def python_path_without(prefix: str, folder: Path) -> str:
    """Return PYTHONPATH for `python -S`: this repository, and all installed packages but those with this prefix.

    The packages are links in `folder`.
    """
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(prefix):
            (packages / entry.name).symlink_to(entry)
    return f"{REPOSITORY}{os.pathsep}{packages}"
