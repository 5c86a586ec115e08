"""The modules that are compiled where there is a compiler, tried as they are where there is none."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.processes import program

REPOSITORY = Path(__file__).parents[2]
TESTS = (
    "tests/unit/relay",
    "tests/unit/upstream/test_connection.py",
    "tests/unit/upstream/test_pool.py",
    "tests/unit/downstream/test_connection.py",
    "tests/unit/http2/test_fields.py",
    "tests/unit/telemetry/test_metrics.py",
    "tests/unit/test_routing.py",
    "tests/unit/tokens/test_slot.py",
    "tests/unit/wire",
)


def lay_out(folder: Path) -> None:
    """Copy the program without its compiled data path, and what tests it."""

    def compiled_python(place: str, names: list[str]) -> list[str]:
        modules = {name.removesuffix(".py") for name in names if name.endswith(".py")}
        return [name for name in names if name.endswith(".so") and name.split(".")[0] in {*modules, "data_path__mypyc"}]

    shutil.copytree(REPOSITORY / "proxy", folder / "proxy", ignore=compiled_python)
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    shutil.copy2(REPOSITORY / "pyproject.toml", folder)


def within(folder: Path, *argv: str) -> list[str]:
    """The command line that runs Python there, where it finds that copy first."""
    return ["bash", "-c", f'cd "{folder}" && exec "$@"', "bash", sys.executable, *argv]


@pytest.mark.asyncio
async def test_interpreted_it_passes_the_tests_that_it_passes_compiled(tmp_path: Path) -> None:
    lay_out(tmp_path)
    where = "from proxy.relay import carrier; print(carrier.__file__)"
    async with program("where", within(tmp_path, "-c", where)) as asked:
        await asked.line(re.escape(f"{tmp_path}/proxy/relay/carrier.py"))
    argv = within(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS)
    async with program("pytest", argv) as tests:
        assert await tests.ended(within_seconds=110.0) == 0, tests.tail(60)
