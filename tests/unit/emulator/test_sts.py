from __future__ import annotations

import base64
from typing import Any

import aiohttp
import pytest

from proxy.emulator import Fault, Google
from proxy.emulator.model import SCOPE

EXCHANGE = "https://sts.googleapis.com/v1/token"
WORKFORCE = "https://sts.googleapis.com/v1/oauthtoken"
MEMBER = "principal://iam.googleapis.com/locations/global/workforcePools/emulated/subject/member@example.com"


async def post(
    client: aiohttp.ClientSession, url: str, form: Any, authorization: str | None = None
) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": authorization} if authorization else {}
    async with client.post(url, data=form, headers=headers) as response:
        return response.status, await response.json()


def basic(client: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{client}:{secret}'.encode()).decode()}"


@pytest.mark.asyncio
async def test_a_subject_token_is_exchanged(
    client: aiohttp.ClientSession, google: Google, form: dict[str, str]
) -> None:
    status, answer = await post(client, EXCHANGE, form | {"options": "%7B%22userProject%22%3A%20%22p%22%7D"})
    assert (status, answer["token_type"], answer["expires_in"]) == (200, "Bearer", 3600)
    assert answer["issued_token_type"] == form["requested_token_type"]
    access = google.access(answer["access_token"])
    assert access is not None
    assert access.principal == google.federation.principal(form["audience"], "pod")
    assert access.principal == (
        "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/emulated/subject/pod"
    )
    assert access.scopes == {SCOPE}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "unsupported_grant_type"),
        ({"requested_token_type": ""}, "invalid_request"),
        ({"requested_token_type": "urn:ietf:params:oauth:token-type:id_token"}, "invalid_request"),
        ({"subject_token_type": ""}, "invalid_request"),
        ({"subject_token_type": "jwt"}, "invalid_request"),
        ({"audience": ""}, "invalid_request"),
        ({"scope": ""}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"options": "junk"}, "invalid_request"),
        ({"options": "[]"}, "invalid_request"),
        ({"options": '{"other": 1}'}, "invalid_request"),
        ({"scope": f"{SCOPE} cloud-platform"}, "invalid_scope"),
        ({"scope": " "}, "invalid_scope"),
        ({"subjectToken": "x"}, "invalid_grant"),
        ({"subject_token": "another"}, "invalid_grant"),
        ({"subject_token_type": "urn:ietf:params:aws:token-type:aws4_request"}, "invalid_grant"),
        ({"audience": "//iam.googleapis.com/projects/1/elsewhere"}, "invalid_target"),
    ],
)
async def test_a_wrong_field_is_refused(
    client: aiohttp.ClientSession, google: Google, form: dict[str, str], changes: dict[str, str], error: str
) -> None:
    status, answer = await post(client, EXCHANGE, form | changes)
    assert (status, answer["error"]) == (400, error)
    assert answer.keys() == {"error", "error_description"}
    assert form["subject_token"] not in str(answer)


@pytest.mark.asyncio
async def test_only_a_posted_form_is_accepted(client: aiohttp.ClientSession) -> None:
    async with client.post(EXCHANGE, data="a=b", headers={"content-type": "text/plain"}) as response:
        assert (response.status, (await response.json())["error"]) == (400, "invalid_request")
    for method, url in (("GET", EXCHANGE), ("POST", EXCHANGE + "/more")):
        async with client.request(method, url) as response:
            assert response.status == 404


@pytest.mark.asyncio
async def test_a_removed_provider_is_unknown(
    client: aiohttp.ClientSession, google: Google, form: dict[str, str]
) -> None:
    google.federation.remove_provider(form["audience"])
    assert (await post(client, EXCHANGE, form))[1]["error"] == "invalid_target"


@pytest.mark.asyncio
async def test_expired_access_tokens_are_issued_on_demand(
    client: aiohttp.ClientSession, google: Google, form: dict[str, str]
) -> None:
    google.fail("sts", Fault.EXPIRED)
    _, answer = await post(client, EXCHANGE, form)
    assert answer["expires_in"] == 0
    assert google.access(answer["access_token"]) is None


# A workforce


@pytest.mark.asyncio
async def test_a_member_of_a_workforce_gets_an_access_token(client: aiohttp.ClientSession, google: Google) -> None:
    file = google.workforce_file(MEMBER)
    assert file["token_url"] == WORKFORCE
    form = {"grant_type": "refresh_token", "refresh_token": file["refresh_token"]}
    auth = basic(file["client_id"], file["client_secret"])
    status, answer = await post(client, WORKFORCE, form, auth)
    assert status == 200
    access = google.access(answer["access_token"])
    assert access is not None
    assert access.principal == MEMBER


@pytest.mark.asyncio
async def test_a_workforce_member_needs_grant_token_and_client(client: aiohttp.ClientSession, google: Google) -> None:
    file = google.workforce_file(MEMBER)
    right = {"grant_type": "refresh_token", "refresh_token": file["refresh_token"]}
    client_credentials = basic(file["client_id"], file["client_secret"])
    for form, auth, refusal in (
        (right | {"grant_type": "password"}, client_credentials, (400, "unsupported_grant_type")),
        (right | {"refresh_token": "x"}, client_credentials, (400, "invalid_grant")),
        (right, None, (401, "invalid_client")),
        (right, basic(file["client_id"], "x"), (401, "invalid_client")),
    ):
        status, answer = await post(client, WORKFORCE, form, auth)
        assert (status, answer["error"]) == refusal
    for value in ("Basic é", "Bearer eDp5"):
        async with client.post(WORKFORCE, data=right, headers={"Authorization": value}) as response:
            assert response.status == 401
    google.revoke_user(file["refresh_token"])
    assert (await post(client, WORKFORCE, right, client_credentials))[1]["error"] == "invalid_grant"
