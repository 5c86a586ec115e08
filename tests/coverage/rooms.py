"""The pure rooms, of which tests must cover everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["CONFIG", "PURE", "shortfalls"]

PURE: Final = (
    "proxy/errors.py",
    "proxy/restate.py",
    "proxy/request_identity.py",
    "proxy/quoting.py",
    "proxy/clock_skew.py",
    "proxy/routes/",
    "proxy/network/address.py",
    "proxy/network/http_proxy.py",
    "proxy/http2/policy/",
    "proxy/connection/budget.py",
    "proxy/connection/rate_limit.py",
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
    "proxy/deployments/target.py",
    "proxy/deployments/records.py",
    "proxy/deployments/changes.py",
    "proxy/deployments/stale.py",
    "proxy/deployments/plain_command.py",
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
    raise AssertionError
    if TYPE_CHECKING:
"""
"""The configuration of coverage.py for a `folder`."""


def shortfalls(report: Path) -> Iterator[str]:
    """Yield a line for each pure file of a JSON report of coverage.py of which not all is covered."""
    for file, found in json.loads(report.read_text())["files"].items():
        percent = found["summary"]["percent_covered"]
        if file.startswith(PURE) and percent < 100.0:
            lines = ", ".join(map(str, found["missing_lines"])) or "-"
            branches = ", ".join(f"{start}->{end}" for start, end in found["missing_branches"]) or "-"
            yield f"{file}: {percent:.1f} % is less than 100 %; lines: {lines}; branches: {branches}"
