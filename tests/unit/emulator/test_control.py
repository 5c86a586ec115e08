from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from proxy.emulator import Certificates, CloudRun, Control, Fault, Google, GoogleServer, echo
from proxy.emulator.model import ENDPOINTS


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


@pytest.mark.asyncio
async def test_a_fault_is_set_and_removed(control: str, google: Google) -> None:
    body = {"endpoint": "metadata", "fault": "server-error", "times": 2}
    assert await _ask("POST", f"{control}/faults", body) == (204, None)
    assert google.faults() == {"metadata": (Fault.SERVER_ERROR, 2)}
    _, state = await _ask("GET", f"{control}/state")
    assert state["faults"] == {"metadata": {"fault": "server-error", "times": 2}}
    assert (await _ask("POST", f"{control}/faults", {"endpoint": "metadata", "fault": None}))[0] == 204
    assert google.faults() == {}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", Fault)
async def test_every_fault_has_a_name(control: str, google: Google, fault: Fault) -> None:
    await _ask("POST", f"{control}/faults", {"endpoint": "iam", "fault": fault.value})
    assert google.faults() == {"iam": (fault, None)}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"endpoint": "cloud-run", "fault": "hang"},
        {"endpoint": "iam", "fault": "earthquake"},
        {"endpoint": "iam", "fault": ["hang"]},
        {"endpoint": "iam", "fault": "hang", "times": "2"},
        {"endpoint": "iam", "fault": "hang", "times": -1},
        {"endpoint": "iam", "fault": "hang", "times": True},
        {"endpoint": "iam", "fault": "hang", "until": "noon"},
    ],
)
async def test_an_invalid_fault_is_refused_with_a_sentence(control: str, google: Google, body: object) -> None:
    status, answer = await _ask("POST", f"{control}/faults", body)
    assert status == 400
    assert answer["error"].endswith(".")
    assert google.faults() == {}


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
    assert google.faults() == {}


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
    }


@pytest.mark.asyncio
async def test_other_paths_are_not_found(control: str) -> None:
    for method, path in (("GET", "faults"), ("POST", "state"), ("GET", "else")):
        assert (await _ask(method, f"{control}/{path}"))[0] == 404


async def _nothing(*_: Any) -> Any:
    return {}
