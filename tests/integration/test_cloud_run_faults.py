"""Refusals and failures of Cloud Run itself: what the sidecar answers and logs, and what `check` says about them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from proxy.doctor.report import Outcome
from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer, Limits, ServiceFault
from tests.integration.test_outage import environment, nothing
from tests.support.emulated_setup import emulated_setup
from tests.support.sidecar import Sidecar, sidecar
from tests.unit.doctor.test_checking import examined, faults, settings

ANSWERS: dict[ServiceFault, tuple[int, str | None]] = {
    ServiceFault.TOO_MANY_REQUESTS: (429, "no-instance"),
    ServiceFault.NO_INSTANCE: (503, "no-instance"),
    ServiceFault.SERVER_ERROR: (500, None),
    ServiceFault.PROTOCOL_ERROR: (502, "http2-not-end-to-end"),
    ServiceFault.TIMEOUT: (504, "timed-out"),
    ServiceFault.DENIED: (403, "invoker-missing"),
    ServiceFault.REJECTED: (401, "audience-refused"),
    ServiceFault.IAP: (302, "iap"),
    ServiceFault.SLOW: (200, None),
    ServiceFault.STREAM_RESET: (502, "upstream-reset"),
    ServiceFault.STREAM_REFUSED: (200, None),
    ServiceFault.GO_AWAY: (200, None),
    ServiceFault.DROP: (503, "upstream-connection-lost"),
}
"""The status of the answer to an invocation, and the code in the log; None: nothing is logged as a warning."""

FINDINGS = {
    ServiceFault.TOO_MANY_REQUESTS: "no-instance",
    ServiceFault.NO_INSTANCE: "no-instance",
    ServiceFault.SERVER_ERROR: "service-failed",
    ServiceFault.PROTOCOL_ERROR: "http2-not-end-to-end",
    ServiceFault.TIMEOUT: "timed-out",
    ServiceFault.DENIED: "invoker-missing",
    ServiceFault.REJECTED: "audience-refused",
    ServiceFault.IAP: "iap",
    ServiceFault.HANG: "no-answer",
    ServiceFault.STREAM_RESET: "no-answer",
    ServiceFault.STREAM_REFUSED: "no-answer",
    ServiceFault.DROP: "no-answer",
}
"""What `check` finds while each request fails."""

PASSING = {ServiceFault.SLOW: None, ServiceFault.GO_AWAY: None, ServiceFault.STREAM_REFUSED: 1}
"""Faults that `check` gets over, and how many requests have them; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    cloud_run: CloudRun
    sidecar: Sidecar
    client: aiohttp.ClientSession

    async def invoke(self) -> tuple[int, str]:
        url = f"{self.sidecar.url}/svc/invoke/S/h"
        async with self.client.post(url, data=b"x", allow_redirects=False) as answer:
            return answer.status, await answer.text()


@asynccontextmanager
async def _stage(certificates: Certificates, folder: Path) -> AsyncIterator[_Stage]:
    google = Google(slow_seconds=0.05)
    cloud_run = CloudRun(nothing, google, invokers=[google.metadata_account])
    async with (
        GoogleServer(google, certificates) as server,
        CloudRunServer(cloud_run, certificates, limits=Limits(notice_seconds=0.05)) as service,
        sidecar("--route", f"svc={service.url}", env=environment(certificates, server, None)) as running,
        aiohttp.ClientSession() as client,
    ):
        yield _Stage(cloud_run=cloud_run, sidecar=running, client=client)


@pytest.mark.asyncio
async def test_each_failure_is_answered_and_logged_and_the_next_request_works(
    certificates: Certificates, tmp_path: Path
) -> None:
    assert ANSWERS.keys() == set(ServiceFault) - {ServiceFault.HANG}
    async with _stage(certificates, tmp_path) as here:
        for fault, (status, _) in ANSWERS.items():
            here.cloud_run.fail(fault, times=1)
            answer, text = await here.invoke()
            assert answer == status, (fault, text)
            assert (await here.invoke())[0] == 200, fault
        log = await here.sidecar.end()
    warnings = [entry for entry in log if entry["severity"] == "WARNING"]
    assert [entry["code"] for entry in warnings] == [code for _, code in ANSWERS.values() if code is not None]
    assert all(entry["remedy"] for entry in warnings)


@pytest.mark.asyncio
async def test_check_finds_the_cause_of_each_failure(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        for fault, code in FINDINGS.items():
            here.cloud_run.fail(fault)
            seconds = 0.1 if fault is ServiceFault.HANG else 30.0
            (report,) = await examined(here, settings(here, {"svc": here.url}), answer_timeout_seconds=seconds)
            found = [step for step in report.steps if step.outcome is Outcome.FAILED]
            assert [step.code for step in found] == [code], (fault, found)
            assert found[0].remedy, fault


@pytest.mark.asyncio
async def test_check_gets_over_a_slow_start_a_refused_stream_and_the_end_of_a_connection(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.google.slow_seconds = 0.05
        for fault, times in PASSING.items():
            here.cloud_run.fail(fault, times=times)
            (report,) = await examined(here, settings(here, {"svc": here.url}))
            assert not faults(report), fault
            assert {step.name for step in report.steps if step.outcome is Outcome.SKIPPED} <= {"clock"}, fault


@pytest.mark.asyncio
async def test_check_says_that_a_slow_start_took_too_long_and_that_a_stream_was_refused(tmp_path: Path) -> None:
    assert FINDINGS.keys() | PASSING.keys() == set(ServiceFault)
    async with emulated_setup(tmp_path) as here:
        here.cloud_run.fail(ServiceFault.SLOW)
        (slow,) = await examined(here, settings(here, {"svc": here.url}), answer_timeout_seconds=0.1)
        here.cloud_run.fail(ServiceFault.STREAM_REFUSED)
        (refused,) = await examined(here, settings(here, {"svc": here.url}))
    assert (slow.steps[-1].code, slow.steps[-1].text) == ("no-answer", "no answer within 0.1 s")
    assert "--timeout sets a longer deadline" in (slow.steps[-1].remedy or "")
    assert "refused the stream without processing it" in refused.steps[-1].text


@pytest.mark.asyncio
async def test_a_service_of_another_name_or_scheme_is_not_found(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.cloud_run.hosts = frozenset({"greeter-123456789012.europe-west1.run.app"})
        here.cloud_run.url = "https://greeter-123456789012.europe-west1.run.app"
        (report,) = await examined(here, settings(here, {"svc": here.url}))
        assert "not-found" in faults(report).values()
