"""What is compiled, and whether that was done from the sources that are here.

The build (setup.py) leaves a record beside the package: the digest of each file that it has compiled, or that what it
compiled depends on. Python imports a compiled module in the place of its source, whatever that has become.
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
    """Return the files, from the folder of the package on, that have changed since they were compiled; none without."""
    try:
        digests: dict[str, str] = json.loads(_RECORD.read_text())["files"]
    except (OSError, ValueError, KeyError):
        return []
    return [name for name, digest in digests.items() if _digest(_PACKAGE.parent / name) not in (None, digest)]


def _digest(file: Path) -> str | None:
    """Return the digest of a file, None where there is none: installed packages lack what only the compiler reads."""
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None
