from __future__ import annotations

import functools
from typing import Any

import aiohttp
import pytest
from google.auth import crypt, jwt

from proxy.emulator import Fault, Google
from proxy.emulator.jwts import Key, parse
from proxy.emulator.model import SCOPE, unique_id
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock, claims_of

TOKEN = "https://oauth2.googleapis.com/token"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@functools.cache
def _signer(private_key: str, key_id: str) -> crypt.RSASigner:
    # Loading checks the key, which takes as long as to make one.
    signer: crypt.RSASigner = crypt.RSASigner.from_string(private_key, key_id)  # type: ignore[no-untyped-call]  # google-auth
    return signer


def _assertion(file: dict[str, str], now: float, **changes: Any) -> str:
    """An assertion in the form of google-auth; a change to None removes the claim."""
    claims = {"iss": file["client_email"], "aud": TOKEN, "iat": int(now), "exp": int(now) + 3600} | changes
    present = {name: value for name, value in claims.items() if value is not None}
    token: bytes = jwt.encode(_signer(file["private_key"], file["private_key_id"]), present)  # type: ignore[no-untyped-call]  # google-auth
    return token.decode()


async def _post(client: aiohttp.ClientSession, url: str, form: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(url, data=form) as response:
        return response.status, await response.json()


async def _grant(client: aiohttp.ClientSession, assertion: str) -> tuple[int, dict[str, Any]]:
    return await _post(client, TOKEN, {"grant_type": JWT_BEARER, "assertion": assertion})


@pytest.fixture
def file(google: Google, account_key: Key) -> dict[str, str]:
    return google.key_file(CALLER, key=account_key)


@pytest.mark.asyncio
async def test_a_signed_assertion_gets_an_id_token(
    client: aiohttp.ClientSession, google: Google, file: dict[str, str], clock: Clock
) -> None:
    status, answer = await _grant(client, _assertion(file, clock.now, target_audience=AUDIENCE))
    assert (status, set(answer)) == (200, {"id_token"})
    claims = parse(answer["id_token"]).verified(google.certificates())
    assert (claims["aud"], claims["sub"], claims["email"]) == (AUDIENCE, unique_id(CALLER), CALLER)
    assert [(mint.endpoint, mint.email) for mint in google.mints] == [("oauth", CALLER)]


@pytest.mark.asyncio
async def test_a_signed_assertion_gets_an_access_token(
    client: aiohttp.ClientSession, google: Google, file: dict[str, str], clock: Clock
) -> None:
    status, answer = await _grant(client, _assertion(file, clock.now, scope=SCOPE))
    assert (status, answer["expires_in"], answer["token_type"]) == (200, 3600, "Bearer")
    access = google.access(answer["access_token"])
    assert access is not None
    assert (access.principal, set(access.scopes)) == (CALLER, {SCOPE})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"aud": "https://127.0.0.1/token"}, "invalid_grant"),
        ({"aud": [TOKEN]}, "invalid_grant"),
        ({"aud": None}, "invalid_grant"),
        ({"iss": TARGET}, "invalid_grant"),
        ({"iss": "nobody@emulated.iam.gserviceaccount.com"}, "invalid_grant"),
        ({"iss": None}, "invalid_grant"),
        ({"iss": 7}, "invalid_grant"),
        ({"iat": None}, "invalid_grant"),
        ({"exp": None}, "invalid_grant"),
        ({"exp": 1_800_000_000 - 60}, "invalid_grant"),
        ({"exp": 1_800_000_000 + 3661}, "invalid_grant"),
        ({"iat": 1_800_000_000 - 60, "exp": 1_800_000_000 + 3601}, "invalid_grant"),
        ({"iat": 1_800_000_000 + 3600, "exp": 1_800_000_000 + 7200}, "invalid_grant"),
        ({"iat": 1_800_000_000 + 10, "exp": 1_800_000_000 + 10}, "invalid_grant"),
        ({"sub": "person@example.com"}, "unauthorized_client"),
        ({"target_audience": None}, "invalid_scope"),
        ({"target_audience": ""}, "invalid_scope"),
        ({"target_audience": [AUDIENCE]}, "invalid_scope"),
        ({"target_audience": None, "scope": " "}, "invalid_scope"),
        ({"target_audience": None, "scope": "cloud-platform"}, "invalid_scope"),
        ({"target_audience": None, "scope": ["openid"]}, "invalid_scope"),
        ({"scope": [SCOPE]}, "invalid_scope"),
    ],
)
async def test_an_invalid_claim_is_refused(
    client: aiohttp.ClientSession,
    google: Google,
    file: dict[str, str],
    other_key: Key,
    clock: Clock,
    changes: dict[str, object],
    error: str,
) -> None:
    google.key_file(TARGET, key=other_key)
    assertion = _assertion(file, clock.now, **({"target_audience": AUDIENCE} | changes))
    status, answer = await _grant(client, assertion)
    assert (status, answer["error"]) == (401 if error == "unauthorized_client" else 400, error)
    assert answer.keys() == {"error", "error_description"}
    assert assertion not in str(answer)
    assert google.mints == []


@pytest.mark.asyncio
async def test_the_signature_is_verified(
    client: aiohttp.ClientSession, google: Google, file: dict[str, str], clock: Clock
) -> None:
    other = google.key_file(TARGET)
    forged = file | {"private_key": other["private_key"]}
    for wrong in (forged, file | {"private_key_id": other["private_key_id"]}, file | {"private_key_id": "unknown"}):
        status, answer = await _grant(client, _assertion(wrong, clock.now, target_audience=AUDIENCE))
        assert (status, answer["error"]) == (400, "invalid_grant")


@pytest.mark.asyncio
@pytest.mark.parametrize("assertion", ["", "junk", "a.b.c", "e30.e30.AA"])
async def test_junk_is_refused_as_an_assertion(client: aiohttp.ClientSession, assertion: str) -> None:
    status, answer = await _grant(client, assertion)
    assert (status, answer["error"]) == (400, "invalid_grant")


@pytest.mark.asyncio
@pytest.mark.parametrize("form", [{"a": "b"}, {"grant_type": "password"}, {"grant_type": ""}])
async def test_other_grants_are_not_supported(client: aiohttp.ClientSession, form: dict[str, str]) -> None:
    assert (await _post(client, TOKEN, form))[1]["error"] == "unsupported_grant_type"


@pytest.mark.asyncio
async def test_a_parameter_given_twice_is_refused(client: aiohttp.ClientSession) -> None:
    form = aiohttp.FormData([("grant_type", JWT_BEARER), ("grant_type", JWT_BEARER)])
    assert (await _post(client, TOKEN, form))[1]["error"] == "invalid_request"


@pytest.mark.asyncio
async def test_only_a_posted_form_is_accepted(client: aiohttp.ClientSession) -> None:
    for wrong in ("[]", "{", '{"grant_type": 7}', '{"grant_type": "a", "grant_type": "a"}', "[" * 100_000):
        async with client.post(TOKEN, data=wrong, headers={"content-type": "application/json"}) as response:
            assert (response.status, (await response.json())["error"]) == (400, "invalid_request")
    form = "application/x-www-form-urlencoded"
    for kind, content in ((form, b"grant_type=\xff"), (f"{form}; charset=unknown", b"grant_type=a")):
        async with client.post(TOKEN, data=content, headers={"content-type": kind}) as response:
            assert (response.status, (await response.json())["error"]) == (400, "invalid_request")
    async with client.post(TOKEN, data="grant_type=a", headers={"content-type": "text/plain"}) as response:
        assert (response.status, (await response.json())["error"]) == (400, "invalid_request")
    async with client.get(TOKEN) as response:
        assert response.status == 404
    async with client.post(TOKEN + "/more") as response:
        assert response.status == 404


@pytest.mark.asyncio
async def test_a_user_gets_an_access_token_and_an_id_token_for_the_client_alone(
    client: aiohttp.ClientSession, google: Google
) -> None:
    user = google.user_file("person@example.com")
    form = {name: user[name] for name in ("client_id", "client_secret", "refresh_token")}
    status, answer = await _post(client, TOKEN, form | {"grant_type": "refresh_token"})
    assert status == 200
    access = google.access(answer["access_token"])
    assert access is not None
    assert access.principal == "person@example.com"
    assert SCOPE in access.scopes
    assert claims_of(answer["id_token"])["aud"] == user["client_id"]


@pytest.mark.asyncio
async def test_a_user_may_request_fewer_scopes(client: aiohttp.ClientSession, google: Google) -> None:
    user = google.user_file("person@example.com")
    form = {name: user[name] for name in ("client_id", "client_secret", "refresh_token")}
    _, answer = await _post(client, TOKEN, form | {"grant_type": "refresh_token", "scope": SCOPE})
    assert answer["scope"] == SCOPE
    assert "id_token" not in answer
    assert google.mints == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("refresh_token", 400, "invalid_grant"),
        ("client_id", 401, "invalid_client"),
        ("client_secret", 401, "invalid_client"),
    ],
)
async def test_an_invalid_field_of_a_user_is_refused(
    client: aiohttp.ClientSession, google: Google, name: str, status: int, error: str
) -> None:
    form = google.user_file("person@example.com") | {"grant_type": "refresh_token", name: "wrong"}
    got, answer = await _post(client, TOKEN, form)
    assert (got, answer["error"]) == (status, error)


@pytest.mark.asyncio
async def test_a_revoked_user_is_refused(client: aiohttp.ClientSession, google: Google) -> None:
    form = google.user_file("person@example.com") | {"grant_type": "refresh_token"}
    google.revoke_user(form["refresh_token"])
    assert (await _post(client, TOKEN, form))[1]["error"] == "invalid_grant"


@pytest.mark.asyncio
async def test_expired_tokens_are_issued_on_demand(
    client: aiohttp.ClientSession, google: Google, file: dict[str, str], clock: Clock
) -> None:
    google.fail("oauth", Fault.EXPIRED)
    _, answer = await _grant(client, _assertion(file, clock.now, target_audience=AUDIENCE))
    assert claims_of(answer["id_token"])["exp"] == clock.now - 3600
    _, answer = await _grant(client, _assertion(file, clock.now, scope=SCOPE))
    assert answer["expires_in"] == 0
    assert google.access(answer["access_token"]) is None
