from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from tests.readme.stages import Stage, assigned
from tests.support.namespaces import IS_ROOT, unshared
from tests.support.processes import program


async def ran(stage: Stage, namespaces: Sequence[str]) -> list[str]:
    """Return the commands that a test program reports; fail unless it succeeded."""
    argv = [*unshared(*namespaces), sys.executable, "-m", stage.module]
    async with program("a reader", argv) as reader:
        assert await reader.ended(within_seconds=590.0) == 0, reader.tail(60)
    return [line.removeprefix("$ ") for line in reader.lines if line.startswith("$ ")]


@pytest.mark.asyncio
async def test_all_commands_of_the_readme_work() -> None:
    assert await ran(Stage.PLAY, ["--net"]) == assigned(Stage.PLAY)


@pytest.mark.asyncio
@pytest.mark.skipif(not IS_ROOT, reason="only root can make the user of the service")
async def test_the_commands_for_systemd_start_the_service() -> None:
    assert await ran(Stage.INSTALL, ["--mount"]) == assigned(Stage.INSTALL)
