"""What all APIs refuse: projects that a caller may not use, APIs and accounts that are disabled, too many requests."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from proxy.emulator import Fault, Google, GoogleServer
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock
from tests.unit.emulator.test_clients import TOKEN, grant, sign, times

IAM = "iamcredentials.googleapis.com"
ID_TOKEN = f"https://{IAM}/v1/projects/-/serviceAccounts/{TARGET}:generateIdToken"
PERSON = "person@example.com"

pytestmark = pytest.mark.asyncio


async def _mint(client: aiohttp.ClientSession, google: Google, caller: str, **fields: str) -> tuple[int, Any]:
    google.allow_impersonation(caller, TARGET)
    headers = {"Authorization": f"Bearer {google.access_token(caller)[0]}"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    async with client.post(ID_TOKEN, json={"audience": AUDIENCE}, headers=headers) as response:
        return response.status, (await response.json()).get("error")


async def test_a_quota_project_is_for_its_users_and_its_own_accounts(
    client: aiohttp.ClientSession, google: Google
) -> None:
    project = {"x_goog_user_project": "emulated"}
    assert (await _mint(client, google, PERSON, **project))[0] == 200
    google.project_users["emulated"] = {"owner@example.com"}
    status, error = await _mint(client, google, PERSON, **project)
    (detail,) = error["details"]
    assert (status, detail["reason"]) == (403, "USER_PROJECT_DENIED")
    assert detail["metadata"] == {"service": IAM, "consumer": "projects/emulated"}
    for caller in (CALLER, "owner@example.com"):
        assert (await _mint(client, google, caller, **project))[0] == 200
    assert (await _mint(client, google, PERSON))[0] == 200


async def test_an_api_that_is_not_enabled_is_named_with_the_project(
    client: aiohttp.ClientSession, google: Google
) -> None:
    google.disabled_apis.add(IAM)
    number = google.project_number("emulated")
    status, error = await _mint(client, google, CALLER)
    (detail,) = error["details"]
    assert (status, detail["reason"]) == (403, "SERVICE_DISABLED")
    assert detail["metadata"] == {"service": IAM, "consumer": f"projects/{number}"}
    assert f"{IAM} has not been used in project {number}" in error["message"]
    google.disabled_apis.clear()
    assert (await _mint(client, google, CALLER))[0] == 200


async def test_a_disabled_account_gets_no_tokens(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google, clock: Clock
) -> None:
    file, user = google.key_file(CALLER), google.user_file(PERSON)
    google.disabled |= {CALLER, PERSON, google.metadata_account}
    assertion = sign(file, {"iss": CALLER, "aud": TOKEN, "target_audience": AUDIENCE, **times(clock)})
    assert (await grant(client, assertion))[1]["error"] == "invalid_grant"
    form = {name: user[name] for name in ("client_id", "client_secret", "refresh_token")}
    async with client.post(TOKEN, data={"grant_type": "refresh_token", **form}) as response:
        assert (response.status, (await response.json())["error"]) == (400, "invalid_grant")
    assert (await _mint(client, google, CALLER))[0] == 401
    url = f"http://{server.metadata_address}/computeMetadata/v1/instance/service-accounts/default/identity"
    async with client.get(url, params={"audience": "x"}, headers={"Metadata-Flavor": "Google"}) as response:
        assert response.status == 403
    google.disabled = set()
    token, _ = google.access_token(CALLER)
    google.disabled = {CALLER}
    assert google.access(token) is None
    google.disabled = {TARGET}
    assert google.access(token) is not None  # accepted again
    status, error = await _mint(client, google, CALLER)
    assert (status, error["message"]) == (403, f"Service account {TARGET} is disabled.")


async def test_too_many_requests_are_refused_with_the_quota(client: aiohttp.ClientSession, google: Google) -> None:
    google.fail("iam", Fault.TOO_MANY_REQUESTS)
    status, error = await _mint(client, google, CALLER)
    assert (status, error["status"], error["details"][0]["reason"]) == (
        429,
        "RESOURCE_EXHAUSTED",
        "RATE_LIMIT_EXCEEDED",
    )
