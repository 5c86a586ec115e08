"""The portable engine is for where nothing can be compiled: as small as h2 lets it be, not a second stack."""

from __future__ import annotations

from pathlib import Path

import proxy.http2.portable


def test_the_package_has_no_more_than_750_lines() -> None:
    folder = Path(proxy.http2.portable.__file__).parent
    assert sum(len(file.read_text().splitlines()) for file in folder.glob("*.py")) <= 750
