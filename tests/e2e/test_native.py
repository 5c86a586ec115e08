"""Restate's own Google authentication reaches the same service, so that the two ways can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.invocations import measure
from tests.support.world import world


@pytest.mark.asyncio
async def test_the_sidecar_and_native_authentication_both_reach_the_service(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        ways = await measure(here, rounds=2, invocations=10)
        discoveries = here.container.discoveries()
        assert len(discoveries) == 4
        # A token of Restate's own names its account by number alone.
        assert len({(seen.claims["sub"], seen.claims["aud"]) for seen in discoveries}) == 1
    for way in ways:
        assert len(way.milliseconds) == len(way.per_second) == 2
        assert min(*way.milliseconds, *way.per_second) > 0
