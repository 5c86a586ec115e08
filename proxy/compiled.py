"""Finds compiled modules that do not match their sources.

Python imports a compiled module instead of its source, even if the source has changed since. So the build (setup.py)
records the digest of each file that it has compiled or that a compiled module depends on.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Final

__all__ = ["changed_sources"]

_PACKAGE: Final = Path(__file__).parent
_RECORD: Final = _PACKAGE / "compiled.json"


def changed_sources() -> list[str]:
    """Return the paths, as `proxy/…`, of files that changed since the build; empty if nothing is compiled."""
    try:
        digests: dict[str, str] = json.loads(_RECORD.read_text())["files"]
    except (OSError, ValueError, KeyError):
        return []
    return [name for name, digest in digests.items() if _digest(_PACKAGE.parent / name) not in (None, digest)]


def _digest(file: Path) -> str | None:
    """Return the digest of a file; None if it is missing, as files for the compiler are in an installed package."""
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None
