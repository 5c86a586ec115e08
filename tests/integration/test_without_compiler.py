"""The modules that are compiled where there is a compiler, tried as they are where there is none."""

from __future__ import annotations

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
    "tests/unit/test_routing.py",
)


def lay_out(folder: Path) -> None:
    """Copy the program without its compiled data path, and what tests it."""

    def compiled_python(place: str, names: list[str]) -> list[str]:
        modules = {name.removesuffix(".py") for name in names if name.endswith(".py")}
        return [name for name in names if name.endswith(".so") and name.split(".")[0] in {*modules, "data_path__mypyc"}]

    shutil.copytree(REPOSITORY / "proxy", folder / "proxy", ignore=compiled_python)
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    shutil.copy2(REPOSITORY / "pyproject.toml", folder)


@pytest.mark.asyncio
async def test_interpreted_it_passes_the_tests_that_it_passes_compiled(tmp_path: Path) -> None:
    lay_out(tmp_path)
    argv = ["bash", "-c", f'cd "{tmp_path}" && exec "$@"', "bash", sys.executable, "-m", "pytest", "-q", *TESTS]
    async with program("pytest", [*argv, "-p", "no:cacheprovider", "-p", "no:xdist"]) as tests:
        assert await tests.ended(within_seconds=110.0) == 0, tests.tail(60)
    assert not list((tmp_path / "proxy").glob("*.so"))
