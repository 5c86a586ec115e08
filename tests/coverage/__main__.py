"""`python -m tests.coverage`: which lines and branches of the whole package the tests of its modules run.

The tests run interpreted, because compiled modules report nothing, in a copy of the package; programs that they start
are measured, too. Most of `tests/integration`, `tests/isolation` and `tests/e2e` are left out: many of them limit time
or memory, and recording takes more of both. It fails if a test does, or if less is covered than `tests.coverage.rooms`
demands. `build/coverage/` has the report: `index.html` for people, `report.json` for programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click

from tests.coverage.rooms import PURE, SHELLS_PERCENT, percentages, pure_files, shortfalls, whole_configuration
from tests.support.interpreted import FEW_EXAMPLES, REPOSITORY, lay_out

TESTS: Final = ("tests/unit", "tests/conformance", "tests/integration/test_traces.py")

LEFT_OUT: Final = (
    "tests/conformance/test_engines.py",  # demands the compiled engine
    "tests/conformance/test_differential.py",  # compares it
    # Random octets: they take minutes, and find lines that other tests run as well.
    "tests/conformance/test_fuzzing.py",
    "tests/conformance/test_relay_fuzzing.py",
    # Limits of time and memory.
    "tests/unit/admin/test_slices.py::test_thousands_of_routes_do_not_hold_up_the_event_loop",
    "tests/unit/admin/test_slices.py::test_thousands_of_routes_of_several_workers_do_not_either",
    "tests/unit/http2/portable/test_engine.py::test_finished_streams_cost_no_memory",
)
"""Tests of those that do not run here."""

REPORT: Final = REPOSITORY / "build/coverage"


def main() -> int:
    """Run the tests, print the coverage of each room, and return the exit code."""
    with TemporaryDirectory(prefix="cloudrun-sidecar-coverage-") as name:
        folder = Path(name)
        lay_out(folder)
        for entry in REPOSITORY.iterdir():
            if not (folder / entry.name).exists() and entry.name != ".git":
                (folder / entry.name).symlink_to(entry)
        (folder / ".coveragerc").write_text(whole_configuration(folder))
        environment = {**os.environ, "PYTHONPATH": str(folder)}

        def coverage(*arguments: str) -> int:
            command = [sys.executable, "-m", "coverage", *arguments]
            return subprocess.run(command, cwd=folder, env=environment, check=False).returncode

        flags = ("-q", "-p", "no:cacheprovider", FEW_EXAMPLES, *(f"--deselect={test}" for test in LEFT_OUT))
        failed = coverage("run", "-m", "pytest", *flags, *sys.argv[1:], *TESTS)
        report = REPORT / "report.json"
        for command in (("combine", "-q"), ("json", "-q", "-o", str(report)), ("html", "-q", "-d", str(REPORT))):
            if error := coverage(*command):
                return error
        rooms = percentages(json.loads(report.read_text())["files"], PURE)
        for room, percent in rooms.items():
            click.echo(f"{percent:6.1f} %  {room}")
        missing = [*shortfalls(report, pure_files(folder))]
    if rooms["shells"] < SHELLS_PERCENT:
        missing.append(f"the shells: {rooms['shells']:.2f} % is less than {SHELLS_PERCENT} %")
    click.echo("\n".join(missing) or f"every line and branch of the {len(PURE)} pure rooms is covered")
    click.echo(f"the lines and branches that no test runs: {REPORT / 'index.html'}")
    return failed or (1 if missing else 0)


if __name__ == "__main__":
    sys.exit(main())
