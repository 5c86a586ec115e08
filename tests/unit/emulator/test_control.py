from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from proxy.emulator import (
    Certificates,
    CloudRun,
    Control,
    Fault,
    Google,
    GoogleServer,
    Permission,
    ServiceFault,
    Services,
    Verdict,
    echo,
)
from proxy.emulator.model import ENDPOINTS
from tests.support.emulated import CALLER, TARGET, Clock


@pytest.fixture
def cloud_run(google: Google) -> CloudRun:
    return CloudRun(echo, google, invokers=[])


@pytest_asyncio.fixture
async def control(google: Google, cloud_run: CloudRun, certificates: Certificates) -> AsyncIterator[str]:
    async with GoogleServer(google, certificates, control=Control(google, cloud_run)) as server:
        yield f"http://{server.metadata_address}/emulator"


async def _ask(method: str, url: str, body: object = None) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client, client.request(method, url, json=body) as response:
        return response.status, await response.json(content_type=None)


def pending(google: Google) -> dict[str, tuple[Fault, int | None]]:
    return {name: (one.fault, one.times) for name, one in google.pending_faults.items() if one.fault is not None}


@pytest.mark.asyncio
async def test_a_fault_is_set_and_removed(control: str, google: Google) -> None:
    body = {"endpoint": "metadata", "fault": "server-error", "times": 2}
    assert await _ask("POST", f"{control}/faults", body) == (204, None)
    assert pending(google) == {"metadata": (Fault.SERVER_ERROR, 2)}
    _, state = await _ask("GET", f"{control}/state")
    assert state["faults"] == {"metadata": {"fault": "server-error", "times": 2}}
    assert (await _ask("POST", f"{control}/faults", {"endpoint": "metadata", "fault": None}))[0] == 204
    assert pending(google) == {}


@pytest.mark.asyncio
async def test_every_fault_has_a_name(control: str, google: Google) -> None:
    for fault in Fault:
        await _ask("POST", f"{control}/faults", {"endpoint": "iam", "fault": fault.value})
        assert pending(google) == {"iam": (fault, None)}


INVALID_FAULTS: list[object] = [
    [],
    {},
    {"endpoint": "cloud", "fault": "hang"},
    {"endpoint": "cloud-run", "fault": "junk"},
    {"endpoint": "cloud-run", "fault": "hang", "service": "other"},
    {"endpoint": "iam", "fault": "hang", "service": "service"},
    {"endpoint": "iam", "fault": "earthquake"},
    {"endpoint": "iam", "fault": ["hang"]},
    {"endpoint": "iam", "fault": "hang", "times": "2"},
    {"endpoint": "iam", "fault": "hang", "times": -1},
    {"endpoint": "iam", "fault": "hang", "times": True},
    {"endpoint": "iam", "fault": "hang", "until": "noon"},
]


@pytest.mark.asyncio
async def test_an_invalid_fault_is_refused_with_a_sentence(control: str, google: Google) -> None:
    for body in INVALID_FAULTS:
        status, answer = await _ask("POST", f"{control}/faults", body)
        assert status == 400, body
        assert answer["error"].endswith("."), body
        assert pending(google) == {}, body


@pytest.mark.asyncio
async def test_content_that_is_not_json_is_refused(control: str) -> None:
    async with aiohttp.ClientSession() as client:
        for content in (b"{", b'{"endpoint": "\xff"}', b"[" * 100_000):
            headers = {"content-type": "application/json"}
            async with client.post(f"{control}/faults", data=content, headers=headers) as response:
                assert (response.status, await response.json()) == (400, {"error": "The content is not JSON."})


@pytest.mark.asyncio
async def test_a_web_page_cannot_set_a_fault(control: str, google: Google) -> None:
    async with aiohttp.ClientSession() as client:
        body = b'{"endpoint": "iam", "fault": "hang"}'
        async with client.post(f"{control}/faults", data=body, headers={"Content-Type": "text/plain"}) as response:
            assert response.status == 415
        async with client.post(
            f"{control}/faults", data=b"{", headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 400
    assert pending(google) == {}


@pytest.mark.asyncio
async def test_the_state_has_counts_and_is_not_counted(control: str, google: Google, cloud_run: CloudRun) -> None:
    google.record_mint("iam", "a@b", "audience", 0.0)
    google.fail("metadata", Fault.SERVER_ERROR, times=1)
    host = control.removesuffix("/emulator")
    async with aiohttp.ClientSession() as client, client.get(f"{host}/") as response:
        assert response.status == 500
    await cloud_run({"type": "http", "method": "GET", "path": "/", "headers": []}, _nothing, _nothing)
    _, state = await _ask("GET", f"{control}/state")
    assert state == {
        "calls": dict.fromkeys(ENDPOINTS, 0) | {"metadata": 1},
        "mints": dict.fromkeys(ENDPOINTS, 0) | {"iam": 1},
        "streams": {"no token": 1},
        "faults": {},
        "services": {
            "service": {
                "url": None,
                "invokers": [],
                "audiences": [],
                "fault": None,
                "iap": False,
                "iap_accessors": [],
                "iap_clients": [],
                "http2": True,
                "request_timeout_seconds": 300.0,
                "max_requests": None,
                "cold_start_seconds": 0.0,
            }
        },
        "requests": [{"service": "service", "method": "GET", "path": "/", "result": "no token"}],
        "grants": [],
        "groups": {},
        "projects": {},
        "disabled_accounts": [],
        "disabled_apis": [],
        "google": {
            "token_lifetime_seconds": 3600,
            "propagation_seconds": 0.0,
            "slow_seconds": 0.05,
            "accept_disabled_accounts": False,
        },
        "clock": {"ahead_seconds": 0.0},
    }


@pytest.mark.asyncio
async def test_other_paths_are_not_found(control: str) -> None:
    for method, path in (("GET", "faults"), ("POST", "state"), ("GET", "else")):
        assert (await _ask(method, f"{control}/{path}"))[0] == 404


@pytest.mark.asyncio
async def test_a_service_is_changed_while_it_runs(control: str, cloud_run: CloudRun) -> None:
    body: dict[str, Any] = {"endpoint": "cloud-run", "fault": "no-instance", "times": 3}
    assert (await _ask("POST", f"{control}/faults", body))[0] == 204
    assert cloud_run.pending_fault.state() == {"fault": "no-instance", "times": 3}
    changes: dict[str, Any] = {"iap": True, "http2": False, "request_timeout_seconds": 5, "max_requests": 2}
    changes |= {"cold_start_seconds": 1, "audiences": ["greeter"], "invokers": ["user:a@example.com"]}
    changes |= {"iap_accessors": [f"serviceAccount:{CALLER}"], "iap_clients": ["1-a.apps.googleusercontent.com"]}
    assert (await _ask("POST", f"{control}/services", {"service": "service", **changes}))[0] == 204
    assert (await _ask("POST", f"{control}/clock", {"ahead_seconds": -300}))[0] == 204
    _, state = await _ask("GET", f"{control}/state")
    assert state["services"]["service"].items() >= changes.items()
    assert state["services"]["service"]["fault"] == {"fault": "no-instance", "times": 3}
    assert (await _ask("POST", f"{control}/faults", {"endpoint": "cloud-run", "fault": None}))[0] == 204
    assert cloud_run.pending_fault.state() is None


@pytest.mark.asyncio
async def test_grants_accounts_apis_and_the_clock_are_changed(control: str, google: Google) -> None:
    grant = {"caller": CALLER, "target": TARGET, "role": "openIdTokenCreator"}
    assert (await _ask("POST", f"{control}/grants", grant))[0] == 204
    assert google.has_permission(CALLER, Permission.GET_OPEN_ID_TOKEN, TARGET)
    assert not google.has_permission(CALLER, Permission.GET_ACCESS_TOKEN, TARGET)
    assert (await _ask("POST", f"{control}/grants", grant | {"role": None}))[0] == 204
    assert not google.has_permission(CALLER, Permission.GET_OPEN_ID_TOKEN, TARGET)
    for disabled in (True, False):
        assert (await _ask("POST", f"{control}/accounts", {"account": CALLER, "disabled": disabled}))[0] == 204
        assert (CALLER in google.disabled) is disabled
        api = {"api": "iamcredentials.googleapis.com", "disabled": disabled}
        assert (await _ask("POST", f"{control}/apis", api))[0] == 204
        assert ("iamcredentials.googleapis.com" in google.disabled_apis) is disabled
    before = google.clock()
    assert (await _ask("POST", f"{control}/clock", {"ahead_seconds": -300}))[0] == 204
    assert google.clock() == before - 300


@pytest.mark.asyncio
async def test_groups_quota_projects_and_the_lifetime_of_tokens_are_changed(
    control: str, google: Google, cloud_run: CloudRun
) -> None:
    federated = "principal://iam.googleapis.com/p/subject/s"
    project = google.project_of(CALLER)
    wanted: dict[str, dict[str, Any]] = {
        "groups": {"group": "team@example.com", "members": [CALLER]},
        "projects": {"project": project, "users": [TARGET, federated]},
        "google": {"token_lifetime_seconds": 60, "propagation_seconds": 5, "accept_disabled_accounts": True},
        "grants": {"caller": CALLER, "target": TARGET, "role": "openIdTokenCreator"},
    }
    for path, body in wanted.items():
        assert await _ask("POST", f"{control}/{path}", body) == (204, None)
    assert google.groups == {"team@example.com": {CALLER}}
    assert google.project_users == {project: {TARGET, federated}}
    assert (google.token_lifetime_seconds, google.propagation_seconds, google.slow_seconds) == (60, 5, 0.05)
    _, state = await _ask("GET", f"{control}/state")
    assert (state["groups"], state["projects"]) == ({"team@example.com": [CALLER]}, {project: [federated, TARGET]})
    assert state["google"].items() >= wanted["google"].items()
    assert state["grants"] == []  # not in effect yet
    for path, body in (("groups", {"group": "team@example.com", "members": None}),
                       ("projects", {"project": str(google.project_number(project)), "users": None})):  # fmt: skip
        assert await _ask("POST", f"{control}/{path}", body) == (204, None)
    assert (google.groups, google.project_users) == ({}, {})


INVALID_CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("services", {"service": "other"}),
    ("services", {"iap": "yes"}),
    ("services", {"iap": True, "request_timeout_seconds": 0}),
    ("services", {"invokers": [CALLER, 1]}),
    ("services", {"invokers": ["nobody"]}),
    ("services", {"audiences": [""]}),
    ("services", {"iap_accessors": ["nobody"]}),
    ("groups", {"group": "team", "members": [CALLER]}),
    ("groups", {"group": "team@example.com"}),
    ("groups", {"group": "team@example.com", "members": ["team"]}),
    ("projects", {"project": "emulated", "users": ["somebody"]}),
    ("projects", {"project": "elsewhere", "users": [CALLER]}),
    ("google", {"token_lifetime_seconds": 0}),
    ("google", {"token_lifetime_seconds": None}),
    ("google", {"propagation_seconds": 1, "colour": "blue"}),
    ("services", {"colour": "blue"}),
    ("grants", {"caller": CALLER}),
    ("grants", {"caller": "nobody", "target": TARGET, "role": "tokenCreator"}),
    ("grants", {"caller": CALLER, "target": TARGET, "role": "owner"}),
    ("grants", {"caller": CALLER, "target": "nobody", "role": "tokenCreator"}),
    ("accounts", {"account": CALLER}),
    ("apis", {"api": "", "disabled": True}),
    ("clock", {"ahead_seconds": "an hour"}),
]


@pytest.mark.asyncio
async def test_an_invalid_change_changes_nothing(control: str) -> None:
    _, before = await _ask("GET", f"{control}/state")
    for path, body in INVALID_CHANGES:
        status, answer = await _ask("POST", f"{control}/{path}", body)
        assert (status, answer["error"][-1]) == (400, "."), (path, body)
        assert (await _ask("GET", f"{control}/state"))[1] == before, (path, body)


@pytest.mark.asyncio
@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "1e15", "-1e15", "1" + "0" * 400])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("clock", "ahead_seconds"),
        ("google", "propagation_seconds"),
        ("google", "slow_seconds"),
        ("google", "token_lifetime_seconds"),
        ("services", "request_timeout_seconds"),
        ("services", "cold_start_seconds"),
        ("services", "max_requests"),
        ("faults", "times"),
    ],
)
async def test_a_number_is_finite_and_not_too_large(control: str, path: str, field: str, number: str) -> None:
    before = await _ask("GET", f"{control}/state")
    more = '"endpoint": "iam", "fault": "server-error", ' if path == "faults" else ""
    text = f'{{{more}"{field}": {number}}}'
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession() as http, http.post(f"{control}/{path}", data=text, headers=headers) as answer:
        assert answer.status == 400
        assert " number from " in (await answer.text()) or " number above 0, at most " in (await answer.text())
    assert await _ask("GET", f"{control}/state") == before


@pytest.mark.asyncio
async def test_invokers_and_grants_take_effect_after_a_delay(google: Google, cloud_run: CloudRun, clock: Clock) -> None:
    google.propagation_seconds = 60.0
    cloud_run.url = "https://greeter-abc.a.run.app"
    token, _ = google.id_token(CALLER, cloud_run.url)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"authorization", b"Bearer " + token.encode())]}
    cloud_run.set_invokers([CALLER])
    google.allow_impersonation(CALLER, TARGET)
    for allowed in (False, True):
        await cloud_run({**scope, "query_string": b"", "http_version": "2"}, _request, _nothing)
        assert cloud_run.streams[-1].verdict is (Verdict.ACCEPTED if allowed else Verdict.NOT_INVOKER)
        assert google.has_permission(CALLER, Permission.GET_OPEN_ID_TOKEN, TARGET) is allowed
        clock.now += 60
    google.forbid_impersonation(CALLER, TARGET)
    assert google.has_permission(CALLER, Permission.GET_OPEN_ID_TOKEN, TARGET)
    clock.now += 60
    assert not google.has_permission(CALLER, Permission.GET_OPEN_ID_TOKEN, TARGET)


@pytest.mark.asyncio
async def test_of_several_services_one_has_to_be_named(google: Google, certificates: Certificates) -> None:
    services = Services(
        [CloudRun(echo, google, name=name, url=f"https://{name}.example", invokers=[]) for name in ("one", "two")]
    )
    async with GoogleServer(google, certificates, control=Control(google, services)) as server:
        control = f"http://{server.metadata_address}/emulator"
        body = {"endpoint": "cloud-run", "fault": "timeout"}
        status, answer = await _ask("POST", f"{control}/faults", body)
        assert (status, answer["error"]) == (400, "The service is one of one, two.")
        assert (await _ask("POST", f"{control}/faults", body | {"service": "two"}))[0] == 204
    assert [service.pending_fault.fault for service in services.services] == [None, ServiceFault.TIMEOUT]


async def _request() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _nothing(*_: Any) -> Any:
    return {}
