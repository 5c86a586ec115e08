from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _log_lines_as_they_were() -> Iterator[None]:
    """Undo the log level that a supervisor has set in this process."""
    yield
    structlog.reset_defaults()
