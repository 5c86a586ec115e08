from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.loops import asyncio_loop

PROXY = Path(__file__).parents[1] / "proxy"


def pytest_configure() -> None:
    """Refuse to test what is not there any more: of a compiled module, the source does not count."""
    old = [
        str(source.relative_to(PROXY.parent))
        for source in PROXY.rglob("*.p[xy]*")
        for compiled in source.parent.glob(f"{source.stem}.*.so")
        if source.suffix in (".py", ".pyx", ".pxd") and source.stat().st_mtime > compiled.stat().st_mtime
    ]
    if old:
        raise pytest.UsageError(f"newer than what was compiled of it: {', '.join(sorted(old))}; run `make setup`")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run asynchronous tests on a loop of asyncio, unless a folder's own conftest.py says otherwise."""
    return {"asyncio": asyncio_loop}
