"""The engines under test: `h2`, and the compiled one wherever it could be built. Another is added here only."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory, engine_choice

# "auto" is the compiled engine where there is one, and h2 once more where there is none.
_CHOICES = (engine_choice("h2"), engine_choice("auto"))
_MAKE: dict[str, EngineFactory] = {chosen.name: chosen.make for chosen in _CHOICES}

ENGINES = list(_MAKE.values())

each_engine = pytest.mark.parametrize("make", ENGINES, ids=list(_MAKE))
"""Runs a test once with every engine; its factory is the argument `make`."""
