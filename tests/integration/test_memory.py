"""The memory of an idle sidecar: the serving process loads little that it does not need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.support.sidecar import sidecar

MIB = 1 << 20

_UPSTREAM = ("--upstream", "https://127.0.0.1:1")


def anonymous_octets(status: str) -> int:
    """Return what of a process' resident memory is its own, from its /proc/PID/status: pages of files come and go."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def of(pid: object, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


@pytest.fixture
def libraries_octets() -> int:
    """What an interpreter takes that has imported the libraries as a worker does, and nothing else."""
    libraries = "aiohttp.web, aiocache, hypercorn.asyncio.run, structlog, uvloop"
    code = "from proxy.supervisor.importing import lean_imports\n"
    code += f"with lean_imports():\n  import {libraries}\nprint(open('/proc/self/status').read())"
    return anonymous_octets(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    )


@pytest.mark.asyncio
async def test_an_idle_sidecar_needs_little_more_memory_than_its_libraries(libraries_octets: int) -> None:
    async with sidecar(*_UPSTREAM) as running:
        more = anonymous_octets(of(running.program.pid, "status")) - libraries_octets
    assert 0 < more / MIB < 7  # 6.4 to 6.7: how the allocator fills its pages differs from run to run


@pytest.mark.asyncio
async def test_the_serving_process_does_not_load_what_validates_settings() -> None:
    async with sidecar(*_UPSTREAM) as running:
        maps = of(running.program.pid, "maps")
        assert "/uvloop/" in maps
        assert "pydantic" not in maps
        given = of(running.program.pid, "cmdline").split("\0")
        assert given[1:6] == ["-m", "proxy", "serve", "--log-format", "json"]
        assert given[-3:-1] == list(_UPSTREAM)


@pytest.mark.asyncio
async def test_no_worker_loads_what_validates_settings() -> None:
    async with sidecar(*_UPSTREAM, "--workers", "2") as running:
        one = (await running.program.line(r'"listening".*"worker": (\d+)'))[1]
        other = (await running.program.line(rf'"listening".*"worker": (?!{one}\b)(\d+)'))[1]
        for pid in (running.program.pid, one, other):
            assert "pydantic" not in of(pid, "maps")


@pytest.mark.asyncio
async def test_routes_larger_than_a_pipe_or_an_environment_variable_arrive(tmp_path: Path) -> None:
    config = tmp_path / "routes.toml"
    base = "x" * 200
    config.write_text("".join(f'[routes.r{n}]\nurl = "https://svc.run.app/{base}"\n' for n in range(1000)))
    async with (
        sidecar("--config", config) as running,
        aiohttp.ClientSession() as http,
        http.get(f"http://{running.admin}/routes") as answer,
    ):
        routes = await answer.json()
    assert [route["name"] for route in routes] == [f"r{n}" for n in range(1000)]
    assert {route["url"] for route in routes} == {f"https://svc.run.app/{base}"}
