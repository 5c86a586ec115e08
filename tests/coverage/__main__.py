"""`python -m tests.coverage [ARGUMENT...]`: run all tests interpreted and measure branches; arguments go to pytest.

Compiled modules cannot be traced, so a copy of the package without them is tested, in build/coverage. Workers, commands
and other subprocesses are measured, too. Tests of packages and of the gate itself are left out: they measure nothing.
The exit code is 1 where a test fails or a threshold does not hold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.coverage.rooms import CONFIG, least_percent, shortfalls
from tests.support.interpreted import REPOSITORY, lay_out

FOLDER = REPOSITORY / "build/coverage"
LEFT_OUT = ("tests/shipping", "tests/coverage")


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    lay_out(FOLDER)
    for path in REPOSITORY.iterdir():
        # What tests read beside the package: README, config, CHANGELOG, what is in the virtual environment.
        if path.name not in ("build", ".git") and not (FOLDER / path.name).exists():
            (FOLDER / path.name).symlink_to(path)
    config = FOLDER / "coverage.ini"
    config.write_text(CONFIG.format(folder=FOLDER))
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "COVERAGE_RCFILE": str(config)}

    def coverage(*command: str) -> int:
        argv = [sys.executable, "-m", "coverage", *command]
        return subprocess.run(argv, cwd=FOLDER, env=environment, check=False).returncode

    ignored = [f"--ignore={directory}" for directory in LEFT_OUT]
    tests = coverage(
        "run", "-m", "pytest", "-n", "auto", "--maxprocesses=4", "--dist", "worksteal", *ignored, *arguments
    )
    coverage("combine", "--quiet")
    coverage("json", "--quiet", "-o", "report.json")
    coverage("report", "--skip-covered", "--show-missing")
    found = list(shortfalls(FOLDER / "report.json", least_percent))
    print(*found, sep="\n")  # noqa: T201 - this is what it is for
    return 1 if tests or found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
