"""How much of the package tests must cover: everything of the pure rooms, and most of the shells around them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["PURE", "SHELLS_PERCENT", "configuration", "percentages", "pure_files", "shortfalls", "whole_configuration"]

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
    "proxy/supervisor/watchdog.py",
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

SHELLS_PERCENT: Final = 95
"""Lines and branches of all other modules together that `make coverage` demands, of those that the tests run."""

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


def whole_configuration(folder: Path) -> str:
    """Return the configuration of coverage.py for all of a copy of the package, also in programs that tests start."""
    pure = configuration(folder)
    included = pure.index("include =")
    return (
        f"{pure[:included]}source = {folder}/proxy\nparallel = true\npatch =\n    subprocess\n    _exit\n"
        f"{pure[pure.index('data_file') :]}"
    )


def percentages(files: Mapping[str, Any], pure: Iterable[str]) -> dict[str, float]:
    """Return how much of each room is covered, in per cent, and of `shells`: all that is not below one of `pure`.

    `files` are those of a JSON report of coverage.py.
    """
    counted: dict[str, list[int]] = {"shells": [0, 0]}
    for file, found in sorted(files.items()):
        summary = found["summary"]
        rooms = ["/".join(file.split("/")[:2])]
        if not file.startswith(tuple(pure)):
            rooms.append("shells")
        for room in rooms:
            count = counted.setdefault(room, [0, 0])
            count[0] += summary["covered_lines"] + summary["covered_branches"]
            count[1] += summary["num_statements"] + summary["num_branches"]
    return {room: 100.0 * covered / all_ if all_ else 100.0 for room, (covered, all_) in counted.items()}


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
