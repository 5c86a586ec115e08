"""The modules that are compiled where there is a compiler, tried as they are where there is none."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from proxy.http2.choice import engine_choice
from tests.coverage.test_pure_rooms import TESTS
from tests.support.interpreted import FEW_EXAMPLES, lay_out
from tests.support.processes import program

ENGINE = ("http2/engine", "http2/policy/", "http2/nghttp2/")
"""What is compiled of the HTTP/2 engine: the classes that it derives from, the policy, and itself."""

# What is compiled of all that there is, and the tests that see what difference it makes, beside those that the coverage
# gate runs, where nothing is compiled either.
BUILDS = {
    "none": (
        (),
        (
            "tests/unit/connection",
            "tests/unit/relay",
            "tests/unit/upstream/test_connection.py",
            "tests/unit/upstream/test_connection_goaway.py",
            "tests/unit/upstream/test_connection_timeouts.py",
            "tests/unit/upstream/test_pool.py",
            "tests/unit/upstream/test_pool_waiting.py",
            "tests/unit/upstream/test_pool_failures.py",
            "tests/unit/downstream/test_connection.py",
            "tests/unit/observe/test_metrics.py",
        ),
    ),
    "engine": (
        ENGINE,
        (
            "tests/unit/connection",
            "tests/unit/relay/test_defects.py",
            "tests/unit/relay/test_forwarding.py",
            "tests/unit/relay/test_retries.py",
            "tests/unit/relay/test_early_ends.py",
            "tests/unit/relay/test_lifetime.py",
            "tests/conformance/test_callbacks.py",
            "tests/conformance/test_callback_commands.py",
            "tests/conformance/test_callback_errors.py",
        ),
    ),
}
WHERE = """
from proxy.http2.choice import engine_choice
from proxy.relay import exchange

print(exchange.__file__)
print(engine_choice("auto").name)
"""


def within(folder: Path, *argv: str) -> list[str]:
    """The command line that runs Python there, where it finds that copy first."""
    return ["bash", "-c", f'cd "{folder}" && exec "$@"', "bash", sys.executable, *argv]


@pytest.mark.asyncio
@pytest.mark.parametrize("build", BUILDS)
async def test_the_tests_pass_without_compiled_modules(build: str, tmp_path: Path) -> None:
    compiled, tests = BUILDS[build]
    lay_out(tmp_path, compiled)
    async with program("where", within(tmp_path, "-c", WHERE)) as asked:
        await asked.line(re.escape(f"{tmp_path}/proxy/relay/exchange.py"))
        await asked.line(engine_choice("auto").name if compiled else "h2")
    left_to_the_gate = [] if compiled else [f"--ignore={name}" for name in TESTS]
    flags = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", FEW_EXAMPLES]
    argv = within(tmp_path, "-m", "pytest", *flags, *left_to_the_gate, *tests)
    async with program("pytest", argv) as running:
        assert await running.ended(within_seconds=400.0) == 0, running.tail(60)
