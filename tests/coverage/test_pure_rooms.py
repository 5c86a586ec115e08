"""The gate: the unit tests of the pure rooms cover every line and branch of them."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from tests.coverage.rooms import PURE, configuration, percentages, pure_files, shortfalls
from tests.support.interpreted import FEW_EXAMPLES, REPOSITORY, lay_out
from tests.support.processes import program

TESTS = (
    "tests/unit/test_errors.py",
    "tests/unit/test_restate.py",
    "tests/unit/test_request_identity.py",
    "tests/unit/test_quoting.py",
    "tests/unit/routes",
    "tests/unit/http2/policy",
    "tests/unit/cloud_run",
    "tests/unit/doctor/test_diagnosis.py",
    "tests/unit/doctor/test_claims.py",
    "tests/unit/doctor/test_rendering.py",
    "tests/unit/doctor/test_report.py",
    "tests/unit/deployments/test_target.py",
    "tests/unit/deployments/test_records.py",
    "tests/unit/deployments/test_changes.py",
    "tests/unit/deployments/test_stale.py",
    "tests/unit/deployments/test_plain_command.py",
    "tests/unit/tokens/test_model.py",
    "tests/unit/tokens/test_slot.py",
    "tests/unit/tokens/test_schedule.py",
    "tests/unit/tokens/test_calls.py",
    "tests/unit/tokens/credentials/test_iam_refusals.py",
    "tests/unit/network/test_address.py",
    "tests/unit/network/test_http_proxy.py",
    "tests/unit/connection/test_budget.py",
    "tests/unit/connection/test_rate_limit.py",
    "tests/unit/downstream/test_fields.py",
    "tests/unit/downstream/test_hosts.py",
    "tests/unit/downstream/test_http1_syntax.py",
    "tests/unit/supervisor/test_restarts.py",
    "tests/unit/supervisor/test_watchdog.py",
    "tests/unit/observe/test_lines.py",
    "tests/unit/relay/test_cancels.py",
    "tests/unit/relay/test_defects.py",
    "tests/unit/relay/test_dispatcher.py",
    "tests/unit/relay/test_early_ends.py",
    "tests/unit/relay/test_error_responses.py",
    "tests/unit/relay/test_exchange.py",
    "tests/unit/relay/test_field_section_limits.py",
    "tests/unit/relay/test_forwarding.py",
    "tests/unit/relay/test_lifetime.py",
    "tests/unit/relay/test_loop_detection.py",
    "tests/unit/relay/test_open_routes.py",
    "tests/unit/relay/test_request_tokens.py",
    "tests/unit/relay/test_retries.py",
    "tests/unit/relay/test_shares.py",
    "tests/unit/relay/test_stream_shares.py",
    "tests/unit/relay/test_signing.py",
    "tests/unit/relay/test_swap.py",
    "tests/unit/relay/test_via.py",
)
"""They run without compiled modules here, so `test_without_compiler` leaves them out."""


@pytest.mark.asyncio
async def test_the_unit_tests_of_the_pure_rooms_cover_every_branch(tmp_path: Path) -> None:
    lay_out(tmp_path)
    coverage = ["bash", "-c", f'cd "{tmp_path}" && exec "$@"', "bash", sys.executable, "-m", "coverage"]
    (tmp_path / ".coveragerc").write_text(configuration(tmp_path))
    run = [*coverage, "run", "-m", "pytest", "-q", "-p", "no:cacheprovider", FEW_EXAMPLES]
    async with program("pytest", [*run, "-p", "no:xdist", *TESTS]) as running:
        assert await running.ended(within_seconds=540.0) == 0, running.tail(60)
    async with program("coverage", [*coverage, "json", "-q", "-o", "report.json"]) as running:
        assert await running.ended(within_seconds=120.0) == 0, running.tail(60)
    assert not list(shortfalls(tmp_path / "report.json", pure_files(tmp_path)))


def test_a_file_that_is_covered_in_part_is_reported_with_its_lines_and_branches(tmp_path: Path) -> None:
    def covered(percent: float) -> dict[str, object]:
        return {
            "summary": {"percent_covered": percent},
            "missing_lines": [7],
            "missing_branches": [[6, 7]],
        }

    files = {"proxy/errors.py": covered(99.9), "proxy/worker.py": covered(95.0), "proxy/admin/page.py": covered(94.9)}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"files": files}))
    assert list(shortfalls(report, ["proxy/errors.py", "proxy/quoting.py"])) == [
        "proxy/errors.py: 99.9 % is less than 100 %; lines: 7; branches: 6->7",
        "proxy/quoting.py: no test imports it",
    ]
    assert {"proxy/errors.py", "proxy/routes/table.py"} <= {*pure_files(REPOSITORY)}


def test_the_coverage_of_rooms_and_of_all_shells_counts_lines_and_branches() -> None:
    def covered(lines: int, of_lines: int, branches: int, of_branches: int) -> dict[str, object]:
        counts = (lines, of_lines, branches, of_branches)
        names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
        return {"summary": dict(zip(names, counts, strict=True))}

    files = {
        "proxy/worker.py": covered(8, 10, 1, 2),
        "proxy/tokens/slot.py": covered(10, 10, 0, 0),
        "proxy/tokens/source.py": covered(5, 8, 0, 0),
        "proxy/empty/__init__.py": covered(0, 0, 0, 0),
    }
    assert percentages(files, ["proxy/tokens/slot.py"]) == {
        "shells": 70.0,
        "proxy/empty": 100.0,
        "proxy/tokens": pytest.approx(100 * 15 / 18),
        "proxy/worker.py": 75.0,
    }


@pytest.mark.parametrize("name", PURE)
def test_each_pure_room_exists_and_may_do_no_io(name: str) -> None:
    assert (REPOSITORY / name).exists()
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (pure,) = [one["source_modules"] for one in contracts if one["name"].startswith("pure rooms")]
    module = name.removesuffix(".py").strip("/").replace("/", ".")
    assert any(module == one or module.startswith(f"{one}.") for one in pure)
