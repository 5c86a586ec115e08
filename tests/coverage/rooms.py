"""How much of each room the tests must cover."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["CONFIG", "PURE", "is_pure", "least_percent", "least_percent_of_pure", "shortfalls"]

PURE: Final = (
    "proxy/errors.py",
    "proxy/restate.py",
    "proxy/quoting.py",
    "proxy/clock_skew.py",
    "proxy/routes/",
    "proxy/network/address.py",
    "proxy/http2/policy/",
    "proxy/connection/budget.py",
    "proxy/downstream/fields.py",
    "proxy/downstream/hosts.py",
    "proxy/downstream/http1_syntax.py",
    "proxy/relay/context.py",
    "proxy/relay/exchange.py",
    "proxy/relay/request_content.py",
    "proxy/relay/snapshot.py",
    "proxy/relay/states.py",
    "proxy/relay/signing.py",
    "proxy/relay/via.py",
    "proxy/supervisor/restarts.py",
    "proxy/tokens/model.py",
    "proxy/tokens/slot.py",
    "proxy/tokens/schedule.py",
    "proxy/tokens/calls.py",
    "proxy/cloud_run/",
    "proxy/doctor/report.py",
    "proxy/doctor/diagnosis.py",
    "proxy/doctor/claims.py",
    "proxy/doctor/rendering.py",
)
"""Files and directories that do no IO: every branch of them is tested."""

CONFIG: Final = """\
[run]
branch = true
parallel = true
source = {folder}/proxy
data_file = {folder}/.coverage
patch = subprocess, _exit
sigterm = true
[report]
exclude_also =
    raise NotImplementedError
    if TYPE_CHECKING:
"""
"""The configuration of coverage.py for a `folder`."""


def is_pure(file: str) -> bool:
    """Return whether a file, as `proxy/errors.py`, belongs to a pure room."""
    return file.startswith(PURE)


def least_percent(file: str, others: float | None = 95.0) -> float | None:
    """Return how many percent of the lines and branches of a file must be covered; `others` are not pure."""
    return 100.0 if is_pure(file) else others


def least_percent_of_pure(file: str) -> float | None:
    """Return the same for pure rooms, None for others."""
    return least_percent(file, None)


def shortfalls(report: Path, least: Callable[[str], float | None]) -> Iterator[str]:
    """Yield a line for each file of a JSON report of coverage.py that is covered less than it must be."""
    for file, found in json.loads(report.read_text())["files"].items():
        percent, wanted = found["summary"]["percent_covered"], least(file)
        if wanted is not None and percent < wanted:
            lines = ", ".join(map(str, found["missing_lines"])) or "-"
            branches = ", ".join(f"{start}->{end}" for start, end in found["missing_branches"]) or "-"
            yield f"{file}: {percent:.1f} % is less than {wanted:.0f} %; lines: {lines}; branches: {branches}"
