"""The soak, one quick round at a low rate: `make soak` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.run import Plan, soak

QUICK = Plan(seconds=1.0, per_second=4.0, seed=14, pace=0.3)
"""Everything goes wrong once. Higher rates need a processor of their own."""


@pytest.mark.asyncio
@pytest.mark.timeout(300)
async def test_no_invocation_is_lost_or_doubled_whatever_goes_wrong_around_the_sidecar(tmp_path: Path) -> None:
    report = await soak(QUICK, tmp_path)
    assert report.wrong == []
    assert len(report.acts) == 14
    assert report.completed.keys() == {"enter", "move", "copy"}
