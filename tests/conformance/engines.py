"""The engines under test. A second one is added here and nowhere else."""

from __future__ import annotations

import pytest

from proxy.http2.choice import EngineFactory
from proxy.http2.h2_engine import H2Engine

ENGINES: list[EngineFactory] = [H2Engine]

each_engine = pytest.mark.parametrize("make", ENGINES, ids=lambda make: str(make.name))
"""Runs a test once with every engine; its factory is the argument `make`."""
