from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from h2.settings import SettingCodes

from proxy.doctor.checking import Doctor, Subject
from proxy.doctor.report import STEPS, Outcome, RouteReport, StepName
from proxy.emulator.cloud_run import Receive, Scope, Send
from proxy.errors import TokenUnavailable
from proxy.settings.model import RouteSettings, Settings
from tests.support.emulated_setup import EmulatedSetup, emulated_setup
from tests.support.peers.sockets import server


def settings(here: EmulatedSetup, urls: dict[str, str], **more: Any) -> Settings:
    routes = {name: RouteSettings(url=url, **more) for name, url in urls.items()}
    return Settings(routes=routes, upstream_ca=Path(str(here.environment["SSL_CERT_FILE"])))


def environment(here: EmulatedSetup) -> dict[str, str]:
    return {"HOME": str(here.folder), **{name: value for name, value in here.environment.items() if value}}


def subjects(given: Settings) -> list[Subject]:
    return [Subject.of_route(route) for route in given.route_table().routes]


async def examined(here: EmulatedSetup, given: Settings, **options: Any) -> list[RouteReport]:
    async with Doctor(given, environment=environment(here), **options) as doctor:
        return await doctor.check_all(subjects(given), lambda report: None)


def faults(report: RouteReport) -> dict[str, str | None]:
    return {step.name: step.code for step in report.steps if step.outcome in (Outcome.WARNING, Outcome.FAILED)}


@pytest.mark.asyncio
async def test_all_steps_run_in_order_and_report_progress(tmp_path: Path) -> None:
    begun: list[StepName] = []

    def progress(name: str, step: StepName) -> None:
        assert name == "svc"
        begun.append(step)

    async with emulated_setup(tmp_path) as here:
        here.front.ahead_seconds = 0
        (report,) = await examined(here, settings(here, {"svc": here.url}), progress=progress)
        assert [arrival.verdict.value for arrival in here.cloud_run.streams] == ["no token", "accepted"]
    assert tuple(step.name for step in report.steps) == STEPS
    assert {step.outcome for step in report.steps} == {Outcome.OK}
    assert begun == ["credentials", "token", "dns", "private", "discovery"]


@pytest.mark.asyncio
async def test_reports_come_in_the_order_of_routes(tmp_path: Path) -> None:
    async def slow_then_fast(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"].startswith("/slow"):
            await fast_is_done.wait()
        else:
            fast_is_done.set()
        await send({"type": "http.response.start", "status": 404, "headers": [(b"x-restate-server", b"x")]})
        await send({"type": "http.response.body"})

    fast_is_done = asyncio.Event()
    reported: list[str] = []
    async with emulated_setup(tmp_path, slow_then_fast) as here:
        given = settings(here, {"slow": f"{here.url}/slow", "fast": f"{here.url}/fast"})
        async with Doctor(given, environment=environment(here)) as doctor:
            reports = await doctor.check_all(subjects(given), lambda report: reported.append(report.route))
    assert reported == [report.route for report in reports] == ["slow", "fast"]


@pytest.mark.asyncio
async def test_of_many_routes_so_many_are_checked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.doctor.checking._MOST_AT_ONCE", 1, raising=False)
    begun: list[str] = []
    async with emulated_setup(tmp_path) as here:
        routes = {"one": here.url, "two": here.url}
        await examined(here, settings(here, routes), progress=lambda name, step: begun.append(name))
    assert begun == ["one"] * 5 + ["two"] * 5


@pytest.mark.asyncio
async def test_without_a_token_the_service_is_still_checked(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        here.environment["GOOGLE_APPLICATION_CREDENTIALS"] = "/nonexistent"
        (report,) = await examined(here, settings(here, {"svc": here.url}))
    outcomes = {step.name: step.outcome.value for step in report.steps}
    assert faults(report) == {"credentials": "credentials-invalid"}
    assert (outcomes["http2"], outcomes["private"], outcomes["discovery"]) == ("ok", "ok", "skipped")


@pytest.mark.asyncio
async def test_a_route_without_tokens_gets_a_discovery_only(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path, public=True) as here:
        here.front.ahead_seconds = 300
        (report,) = await examined(here, settings(here, {"svc": here.url}, gcp_id_token=False))
    outcomes = [step.outcome.value for step in report.steps]
    assert outcomes == ["skipped", "skipped", "ok", "ok", "ok", "ok", "skipped", "warning", "ok"]
    assert report.audience is None


@pytest.mark.asyncio
async def test_a_connection_that_closes_after_a_response_is_replaced(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here, server() as far, asyncio.TaskGroup() as group:
        given = settings(here, {"svc": f"http://127.0.0.1:{far.port}"}, allow_http=True)
        asked = group.create_task(examined(here, given))
        await far.accepted()  # The step `tcp` connects for itself.
        old = await far.accepted()
        stream, _, _ = await old.request()
        old.go_away(stream)
        old.respond(stream, 403, end=True)
        new = await far.accepted()
        stream, fields, _ = await new.request()
        assert b"x-serverless-authorization" in dict(fields)
        new.respond(stream, 403, end=True)
        (report,) = await asked
    assert faults(report) == {"discovery": "invoker-missing"}


@pytest.mark.asyncio
async def test_token_returns_a_token_of_the_route(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        given = settings(here, {"svc": here.url})
        (route,) = given.route_table().routes
        async with Doctor(given, environment=environment(here)) as doctor:
            token = await doctor.token(route)
            assert token.key.audience == here.url
        with pytest.raises(TokenUnavailable):
            await doctor.token(route)


@pytest.mark.asyncio
async def test_an_unreachable_service_gets_no_request(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here:
        (report,) = await examined(here, settings(here, {"svc": "https://nowhere.invalid"}))
    assert faults(report) == {"dns": "dns-failed"}
    assert [step.outcome.value for step in report.steps[-3:]] == ["skipped"] * 3


@pytest.mark.asyncio
async def test_a_timeout_and_a_reset_are_reported(tmp_path: Path) -> None:
    async with emulated_setup(tmp_path) as here, server() as far, asyncio.TaskGroup() as group:
        given = settings(here, {"svc": f"http://127.0.0.1:{far.port}"}, allow_http=True)
        silent = group.create_task(examined(here, given, answer_timeout_seconds=0.1))
        (report,) = await silent
        assert faults(report) == {"discovery": "no-answer"}
        by_name = {step.name: step for step in report.steps}
        assert by_name["private"].text == "inconclusive: no answer within 0.1 s to an unsigned request"
        while far.connections.qsize():
            await far.accepted()
        rude = group.create_task(examined(here, given))
        await far.accepted()
        peer = await far.accepted()
        for _ in range(2):
            stream, _, _ = await peer.request()
            peer.reset(stream, 0x2)
        (report,) = await rude
        step = report.steps[-1]
        assert (step.code, step.text) == ("no-answer", "the service reset the stream (INTERNAL_ERROR)")
        assert step.remedy == "The container failed, or does not speak HTTP/2 to its end: look at its log."
        assert step.commands == ("gcloud run services logs read SERVICE --region=REGION --limit=50",)


@pytest.mark.asyncio
async def test_a_service_that_allows_no_streams_is_reported(tmp_path: Path) -> None:
    none = {SettingCodes.MAX_CONCURRENT_STREAMS: 0}
    async with emulated_setup(tmp_path) as here, server(settings=none) as far:
        given = settings(here, {"svc": f"http://127.0.0.1:{far.port}"}, allow_http=True)
        (report,) = await examined(here, given)
    step = report.steps[-1]
    assert step.code == "no-answer"
    assert step.remedy
    assert step.text.endswith("allows no streams")
    assert "check again" in step.remedy
