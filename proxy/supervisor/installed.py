"""The version that a worker would run which is started now: files of the package may have been replaced meanwhile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import proxy

__all__ = ["other_version"]

_FILE: Final = Path(proxy.__file__)
_VERSION: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def other_version() -> str:
    """Return the version that is installed, "unknown" if that cannot be read; "" if it is the one that runs."""
    try:
        found = _VERSION.search(_FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    installed = found.group(1) if found else "unknown"
    return "" if installed == proxy.__version__ else installed
