from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.support.processes import program


@pytest.mark.asyncio
async def test_the_bench_measures_the_sidecar_and_the_floor_and_writes_a_report(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.load.bench", "--engine", "h2", "--peer", "plain", "--rounds", "1"]
    argv += ["--seconds", "0.05", "--only", "ping-pong-1", "--only", "scrape", "--out", str(tmp_path)]
    async with program("bench", argv) as running:
        assert await running.ended(within_seconds=60.0) == 0, running.tail()
    read = await asyncio.to_thread((tmp_path / "bench.json").read_text)
    workloads = json.loads(read)["workloads"]
    found = workloads["ping-pong-1"]["contenders"]
    assert set(found) == {"sidecar-h2", "plain"}
    assert all(one["void"] is None and one["median"]["cpu_us"] > 0 for one in found.values())
    scraped = workloads["scrape"]["contenders"]["sidecar-h2"]
    assert scraped["void"] is None
    assert scraped["median"]["scrape_us"] > scraped["median"]["turn_us"] > 0
    assert scraped["median"]["quiet_turn_us"] > 0
    assert (tmp_path / "bench.svg").exists()
