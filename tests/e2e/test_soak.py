"""The soak, quick rounds on each engine at a low rate, about two minutes in all: `make soak` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.run import Plan, soak

QUICK = {
    engine: Plan(seconds=30.0, per_second=4.0, seed=seed, pace=0.3, engine=engine)
    for engine, seed in (("nghttp2", 14), ("h2", 15))
}
"""Everything goes wrong twice. Higher rates need a processor of their own."""


@pytest.mark.asyncio
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", QUICK)
async def test_no_invocation_is_lost_or_doubled_whatever_goes_wrong_around_the_sidecar(
    engine: str, tmp_path: Path
) -> None:
    report = await soak(QUICK[engine], tmp_path)
    assert report.wrong == []
    assert len(report.acts) == 14
    assert report.completed.keys() == {"enter", "move", "copy"}
