"""The engines under test: `h2`, and the compiled one wherever it could be built. Another is added here only."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory, engine_choice
from tests.support.engines import EventEngineFactory, EventFactory

# "auto" is the compiled engine where there is one, and h2 once more where there is none.
_CHOICES = (engine_choice("h2"), engine_choice("auto"))
FACTORIES: dict[str, EngineFactory] = {chosen.name: chosen.make for chosen in _CHOICES}

ENGINES: list[EventFactory] = [EventEngineFactory(name, make) for name, make in FACTORIES.items()]

each_engine = pytest.mark.parametrize("make", ENGINES, ids=list(FACTORIES))
"""Runs a test once with every engine; the factory of its `EventEngine` is the argument `make`."""

each_bare_engine = pytest.mark.parametrize("make", FACTORIES.values(), ids=list(FACTORIES))
"""The same for tests that bring their own handler and receivers."""
