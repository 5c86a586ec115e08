from __future__ import annotations

import datetime
from typing import Any

import aiohttp
import pytest

from proxy.emulator import Fault, Google, Role
from proxy.emulator.jwts import parse
from proxy.emulator.model import SCOPE, unique_id
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock, claims_of

MIDDLE = "middle@emulated.iam.gserviceaccount.com"
ID_TOKEN = f"/v1/projects/-/serviceAccounts/{TARGET}:generateIdToken"
ACCESS_TOKEN = f"/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken"


async def _post(
    client: aiohttp.ClientSession, path: str, body: object, *, bearer: str | None, **headers: str
) -> tuple[int, dict[str, Any]]:
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    async with client.post(f"https://iamcredentials.googleapis.com{path}", json=body, headers=headers) as response:
        if response.content_type != "application/json":
            return response.status, {"page": await response.text()}
        answer: dict[str, Any] = await response.json()
        if response.status >= 400:
            answer = answer["error"]
            assert answer["code"] == response.status
            assert ("www-authenticate" in response.headers) == (response.status == 401)
        return response.status, answer


@pytest.fixture
def bearer(google: Google) -> str:
    google.allow_impersonation(CALLER, TARGET, Role.OPEN_ID_TOKEN_CREATOR)
    return google.access_token(CALLER)[0]


@pytest.mark.asyncio
async def test_a_caller_with_the_role_gets_an_id_token(
    client: aiohttp.ClientSession, google: Google, bearer: str
) -> None:
    status, answer = await _post(client, ID_TOKEN, {"audience": AUDIENCE, "includeEmail": True}, bearer=bearer)
    assert (status, set(answer)) == (200, {"token"})
    claims = parse(answer["token"]).verified(google.certificates())
    assert (claims["aud"], claims["email"], claims["azp"]) == (AUDIENCE, TARGET, unique_id(TARGET))
    assert [(mint.endpoint, mint.audience, mint.email) for mint in google.mints] == [("iam", AUDIENCE, TARGET)]


@pytest.mark.asyncio
async def test_the_account_may_be_named_by_number_or_percent_encoded(
    client: aiohttp.ClientSession, bearer: str
) -> None:
    for name in (unique_id(TARGET), TARGET.replace("@", "%40")):
        path = f"/v1/projects/-/serviceAccounts/{name}:generateIdToken"
        assert (await _post(client, path, {"audience": AUDIENCE}, bearer=bearer))[0] == 200


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fields", "email", "azp"),
    [
        ({}, None, unique_id(TARGET)),
        ({"includeEmail": False}, None, unique_id(TARGET)),
        ({"includeEmail": None}, None, unique_id(TARGET)),
        ({"includeEmail": "true", "useEmailAzp": "true"}, TARGET, TARGET),
        ({"include_email": True, "delegates": None}, TARGET, unique_id(TARGET)),
    ],
)
async def test_the_email_is_in_the_token_if_requested(
    client: aiohttp.ClientSession, bearer: str, fields: dict[str, object], email: str | None, azp: str
) -> None:
    _, answer = await _post(client, ID_TOKEN, {"audience": AUDIENCE} | fields, bearer=bearer)
    claims = claims_of(answer["token"])
    assert (claims.get("email"), claims["azp"]) == (email, azp)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "value", [None, "", "Basic Zm9v", "Bearer", "Bearer ", "Bearer ya29.invented", "ya29.invented"]
)
async def test_a_request_without_a_valid_access_token_is_unauthenticated(
    client: aiohttp.ClientSession, bearer: str, value: str | None
) -> None:
    headers = {} if value is None else {"Authorization": value}
    status, error = await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=None, **headers)
    assert (status, error["status"]) == (401, "UNAUTHENTICATED")


@pytest.mark.asyncio
async def test_an_expired_access_token_is_refused(client: aiohttp.ClientSession, bearer: str, clock: Clock) -> None:
    clock.now += 3600
    assert (await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=bearer))[0] == 401


@pytest.mark.asyncio
async def test_an_id_token_is_not_accepted_as_an_access_token(client: aiohttp.ClientSession, google: Google) -> None:
    token, _ = google.id_token(CALLER, "https://iamcredentials.googleapis.com")
    assert (await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=token))[0] == 401


@pytest.mark.asyncio
async def test_the_scope_must_be_sufficient(client: aiohttp.ClientSession, google: Google, bearer: str) -> None:
    narrow, _ = google.access_token(CALLER, ["https://www.googleapis.com/auth/devstorage.read_only"])
    status, error = await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=narrow)
    assert (status, error["details"][0]["reason"]) == (403, "ACCESS_TOKEN_SCOPE_INSUFFICIENT")
    iam_only, _ = google.access_token(CALLER, ["https://www.googleapis.com/auth/iam"])
    assert (await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=iam_only))[0] == 200


@pytest.mark.asyncio
async def test_a_refusal_names_the_missing_permission(
    client: aiohttp.ClientSession, google: Google, bearer: str
) -> None:
    stranger, _ = google.access_token("stranger@emulated.iam.gserviceaccount.com")
    status, error = await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=stranger)
    assert (status, error["status"]) == (403, "PERMISSION_DENIED")
    assert error["message"] == (
        "Permission 'iam.serviceAccounts.getOpenIdToken' denied on resource (or it may not exist)."
    )
    assert error["details"][0]["reason"] == "IAM_PERMISSION_DENIED"
    assert error["details"][0]["metadata"] == {"permission": "iam.serviceAccounts.getOpenIdToken"}
    assert google.mints == []


@pytest.mark.asyncio
async def test_an_unknown_account_is_not_found(client: aiohttp.ClientSession, bearer: str) -> None:
    path = "/v1/projects/-/serviceAccounts/nobody@emulated.iam.gserviceaccount.com:generateIdToken"
    status, error = await _post(client, path, {"audience": AUDIENCE}, bearer=bearer)
    assert (status, error["status"]) == (404, "NOT_FOUND")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"audience": ""},
        {"audience": None},
        {"audience": [AUDIENCE]},
        {"audience": AUDIENCE, "includeEmail": 1},
        {"audience": AUDIENCE, "includeEmail": "yes"},
        {"audience": AUDIENCE, "delegates": MIDDLE},
        {"audience": AUDIENCE, "delegates": [MIDDLE]},
        {"audience": AUDIENCE, "delegates": [f"projects/emulated/serviceAccounts/{MIDDLE}"]},
        {"audience": AUDIENCE, "delegates": [7]},
        {"audience": AUDIENCE, "target": TARGET},
        {"audience": AUDIENCE, "include-email": True},
        [AUDIENCE],
        "audience",
    ],
)
async def test_an_invalid_field_is_an_invalid_argument(
    client: aiohttp.ClientSession, bearer: str, body: object
) -> None:
    status, error = await _post(client, ID_TOKEN, body, bearer=bearer)
    assert (status, error["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.asyncio
async def test_content_that_is_not_json_is_an_invalid_argument(client: aiohttp.ClientSession, bearer: str) -> None:
    url, headers = f"https://iamcredentials.googleapis.com{ID_TOKEN}", {"Authorization": f"Bearer {bearer}"}
    for wrong in (b"audience=x", b'{"audience": "\xff"}', b"[" * 100_000):
        async with client.post(url, data=wrong, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["status"]) == (400, "INVALID_ARGUMENT")
    headers |= {"content-type": "application/json; charset=unknown"}
    async with client.post(url, data=b'{"audience": "x"}', headers=headers) as response:
        assert response.status == 200


@pytest.mark.asyncio
async def test_the_project_is_always_the_wildcard(client: aiohttp.ClientSession, bearer: str) -> None:
    path = ID_TOKEN.replace("/-/", "/emulated/")
    assert (await _post(client, path, {"audience": AUDIENCE}, bearer=bearer))[0] == 400


@pytest.mark.asyncio
async def test_other_methods_and_paths_are_not_found(client: aiohttp.ClientSession, bearer: str) -> None:
    for path in (ID_TOKEN.replace("generateIdToken", "signJwt"), "/token", "/v1/token", "/"):
        assert (await _post(client, path, {"audience": AUDIENCE}, bearer=bearer))[0] == 404
    async with client.get(f"https://iamcredentials.googleapis.com{ID_TOKEN}") as response:
        assert response.status == 404


@pytest.mark.asyncio
async def test_two_authorization_fields_are_refused(client: aiohttp.ClientSession, bearer: str) -> None:
    headers = [("Authorization", f"Bearer {bearer}"), ("Authorization", f"Bearer {bearer}")]
    url = f"https://iamcredentials.googleapis.com{ID_TOKEN}"
    async with client.post(url, json={"audience": AUDIENCE}, headers=headers) as response:
        assert response.status == 401


@pytest.mark.asyncio
async def test_every_link_of_a_chain_must_be_granted(client: aiohttp.ClientSession, google: Google) -> None:
    bearer, _ = google.access_token(CALLER)
    body = {"audience": AUDIENCE, "delegates": [f"projects/-/serviceAccounts/{MIDDLE}"]}
    google.add_account(TARGET)
    assert (await _post(client, ID_TOKEN, body, bearer=bearer))[0] == 404
    google.allow_impersonation(CALLER, MIDDLE, Role.OPEN_ID_TOKEN_CREATOR)
    status, error = await _post(client, ID_TOKEN, body, bearer=bearer)
    assert (status, error["details"][0]["metadata"]["permission"]) == (403, "iam.serviceAccounts.implicitDelegation")
    google.allow_impersonation(CALLER, MIDDLE, Role.TOKEN_CREATOR)
    status, error = await _post(client, ID_TOKEN, body, bearer=bearer)
    assert (status, error["details"][0]["metadata"]["permission"]) == (403, "iam.serviceAccounts.getOpenIdToken")
    google.allow_impersonation(MIDDLE, TARGET, Role.OPEN_ID_TOKEN_CREATOR)
    status, answer = await _post(client, ID_TOKEN, body, bearer=bearer)
    assert status == 200
    assert claims_of(answer["token"])["sub"] == unique_id(TARGET)
    assert (await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=bearer))[0] == 403


@pytest.mark.asyncio
async def test_an_access_token_of_the_target_works_as_the_target(
    client: aiohttp.ClientSession, google: Google, clock: Clock
) -> None:
    google.allow_impersonation(CALLER, TARGET)
    bearer, _ = google.access_token(CALLER)
    body = {"scope": [SCOPE], "lifetime": "600s", "delegates": None}
    status, answer = await _post(client, ACCESS_TOKEN, body, bearer=bearer)
    assert (status, set(answer)) == (200, {"accessToken", "expireTime"})
    assert datetime.datetime.fromisoformat(answer["expireTime"]).timestamp() == clock.now + 600
    access = google.access(answer["accessToken"])
    assert access is not None
    assert (access.principal, set(access.scopes)) == (TARGET, {SCOPE})


@pytest.mark.asyncio
async def test_an_access_token_needs_the_larger_role(client: aiohttp.ClientSession, bearer: str) -> None:
    status, error = await _post(client, ACCESS_TOKEN, {"scope": [SCOPE]}, bearer=bearer)
    assert (status, error["details"][0]["metadata"]["permission"]) == (403, "iam.serviceAccounts.getAccessToken")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": []},
        {"scope": SCOPE},
        {"scope": [SCOPE], "lifetime": 600},
        {"scope": [SCOPE], "lifetime": "0s"},
        {"scope": [SCOPE], "lifetime": "3601s"},
        {"scope": [SCOPE], "lifetime": "1h"},
        {"scope": ["cloud-platform"]},
        {"scope": [SCOPE], "audience": AUDIENCE},
    ],
)
async def test_an_invalid_field_gets_no_access_token(
    client: aiohttp.ClientSession, google: Google, body: dict[str, object]
) -> None:
    google.allow_impersonation(CALLER, TARGET)
    status, _ = await _post(client, ACCESS_TOKEN, body, bearer=google.access_token(CALLER)[0])
    assert status == 400


@pytest.mark.asyncio
async def test_expired_tokens_are_issued_on_demand(client: aiohttp.ClientSession, google: Google, clock: Clock) -> None:
    google.allow_impersonation(CALLER, TARGET)
    bearer, _ = google.access_token(CALLER)
    google.fail("iam", Fault.EXPIRED, times=2)
    _, answer = await _post(client, ID_TOKEN, {"audience": AUDIENCE}, bearer=bearer)
    assert claims_of(answer["token"])["exp"] == clock.now - 3600
    _, answer = await _post(client, ACCESS_TOKEN, {"scope": [SCOPE]}, bearer=bearer)
    assert google.access(answer["accessToken"]) is None
