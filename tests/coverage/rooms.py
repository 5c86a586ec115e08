"""The pure rooms, of which tests must cover everything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["PURE", "configuration", "pure_files", "shortfalls"]

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
    "proxy/tokens/credentials/iam_refusals.py",
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

_CONFIG: Final = """\
[run]
branch = true
include =
    {included}
data_file = {folder}/.coverage
[report]
exclude_also =
    raise NotImplementedError
    raise AssertionError
    if TYPE_CHECKING:
"""


def configuration(folder: Path) -> str:
    """Return the configuration of coverage.py for a copy of the package there.

    Only the pure rooms are measured: the others take as long again.
    """
    included = (f"{folder}/{room}*" if room.endswith("/") else f"{folder}/{room}" for room in PURE)
    return _CONFIG.format(folder=folder, included="\n    ".join(included))


def pure_files(folder: Path) -> list[str]:
    """Return the modules of the pure rooms, as paths in the folder."""
    found = [
        file for room in PURE for file in ((folder / room).rglob("*.py") if room.endswith("/") else [folder / room])
    ]
    return sorted(str(file.relative_to(folder)) for file in found)


def shortfalls(report: Path, files: Iterable[str]) -> Iterator[str]:
    """Yield a line for each of these files that a JSON report of coverage.py does not have, or not all covered."""
    known = json.loads(report.read_text())["files"]
    for file in files:
        if file not in known:
            yield f"{file}: no test imports it"
            continue
        found = known[file]
        percent = found["summary"]["percent_covered"]
        if percent < 100.0:
            lines = ", ".join(map(str, found["missing_lines"])) or "-"
            branches = ", ".join(f"{start}->{end}" for start, end in found["missing_branches"]) or "-"
            yield f"{file}: {percent:.1f} % is less than 100 %; lines: {lines}; branches: {branches}"
