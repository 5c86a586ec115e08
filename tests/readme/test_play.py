from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from tests.readme.stages import Stage, assigned
from tests.support.processes import program


async def ran(stage: Stage, namespaces: Sequence[str]) -> list[str]:
    """Return the commands that a program says it has run; it must have ended well."""
    argv = ["unshare", *namespaces, sys.executable, "-m", stage.module]
    async with program("a reader", argv) as reader:
        assert await reader.ended(within_seconds=590.0) == 0, reader.tail(60)
    return [line.removeprefix("$ ") for line in reader.lines if line.startswith("$ ")]


@pytest.mark.asyncio
async def test_whoever_follows_the_readme_gets_there() -> None:
    assert await ran(Stage.PLAY, ["--net"]) == assigned(Stage.PLAY)


@pytest.mark.asyncio
async def test_whoever_installs_it_as_a_service_has_it_running() -> None:
    assert await ran(Stage.INSTALL, ["--mount"]) == assigned(Stage.INSTALL)
