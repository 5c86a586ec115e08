from __future__ import annotations

from urllib.parse import urlencode

import aiohttp
import pytest

from proxy.emulator import Fault, Google, GoogleServer
from proxy.emulator.jwts import parse
from tests.support.emulated import AUDIENCE, Clock, claims_of

FLAVOR = {"Metadata-Flavor": "Google"}
ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default"


async def _get(
    client: aiohttp.ClientSession,
    server: GoogleServer,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    method: str = "GET",
) -> tuple[int, str]:
    url = f"http://{server.metadata_address}{path}"
    async with client.request(method, url, headers=FLAVOR if headers is None else headers) as response:
        assert response.headers["Metadata-Flavor"] == "Google"
        return response.status, await response.text()


async def _identity(client: aiohttp.ClientSession, server: GoogleServer, **query: str) -> str:
    query = {"audience": AUDIENCE} | query
    status, token = await _get(client, server, f"{ACCOUNT}/identity?{urlencode(query)}")
    assert status == 200
    return token


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "headers",
    [{}, {"Metadata-Flavor": "google"}, {"Metadata-Flavor": ""}, FLAVOR | {"X-Forwarded-For": "10.0.0.1"}],
)
@pytest.mark.parametrize("path", ["/computeMetadata/", f"{ACCOUNT}/identity?audience=x", f"{ACCOUNT}/token"])
async def test_a_request_without_the_flavor_or_forwarded_is_refused(
    client: aiohttp.ClientSession, server: GoogleServer, headers: dict[str, str], path: str
) -> None:
    status, _ = await _get(client, server, path, headers=headers)
    assert status == 403
    assert server.google.mints == []


@pytest.mark.asyncio
async def test_its_root_tells_everybody_what_it_is(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    async with client.get(f"http://{server.metadata_address}") as response:
        assert (response.status, await response.text()) == (200, "0.1/\ncomputeMetadata/\n")
        assert response.headers["Metadata-Flavor"] == "Google"
    assert (await _get(client, server, "/", headers={"X-Forwarded-For": "10.0.0.1"}))[0] == 403


@pytest.mark.asyncio
async def test_the_full_form_has_email_and_instance(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google
) -> None:
    claims = parse(await _identity(client, server, format="full")).verified(google.certificates())
    assert claims["aud"] == AUDIENCE
    assert claims["email"] == google.metadata_account
    assert claims["email_verified"] is True
    assert claims["google"]["compute_engine"]["project_id"] == "emulated"


@pytest.mark.asyncio
@pytest.mark.parametrize("query", [{}, {"format": "standard"}])
async def test_the_standard_form_has_neither(
    client: aiohttp.ClientSession, server: GoogleServer, query: dict[str, str]
) -> None:
    assert claims_of(await _identity(client, server, **query)).keys() == {"iss", "aud", "azp", "sub", "iat", "exp"}


@pytest.mark.asyncio
@pytest.mark.parametrize("query", ["", "?audience=", "?audience=a&audience=b", f"?audience={AUDIENCE}&format=short"])
async def test_an_invalid_query_is_a_bad_request(
    client: aiohttp.ClientSession, server: GoogleServer, query: str
) -> None:
    status, _ = await _get(client, server, f"{ACCOUNT}/identity{query}")
    assert status == 400


@pytest.mark.asyncio
async def test_a_token_is_cached_until_it_is_about_to_expire(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google, clock: Clock
) -> None:
    first = await _identity(client, server)
    clock.now += 3299
    assert await _identity(client, server) == first
    clock.now += 1
    second = await _identity(client, server)
    assert claims_of(second)["exp"] == clock.now + 3600
    assert [mint.audience for mint in google.mints] == [AUDIENCE] * 3


@pytest.mark.asyncio
async def test_each_audience_has_its_own_token(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    tokens = {await _identity(client, server, audience=audience) for audience in ("a", "b", "a")}
    assert {claims_of(token)["aud"] for token in tokens} == {"a", "b"}
    assert len(tokens) == 2


@pytest.mark.asyncio
async def test_an_access_token_is_valid_and_its_remaining_life_shrinks(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google, clock: Clock
) -> None:
    session = f"http://{server.metadata_address}{ACCOUNT}/token"
    async with client.get(session, headers=FLAVOR) as response:
        first = await response.json()
    assert first["token_type"] == "Bearer"
    assert first["expires_in"] == 3600
    access = google.access(first["access_token"])
    assert access is not None
    assert access.principal == google.metadata_account
    clock.now += 600
    async with client.get(session, headers=FLAVOR) as response:
        assert await response.json() == first | {"expires_in": 3000}
    google.revoke_access_tokens()
    async with client.get(session, headers=FLAVOR) as response:
        assert (await response.json())["access_token"] != first["access_token"]


@pytest.mark.asyncio
async def test_an_access_token_has_the_requested_scopes(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google
) -> None:
    url = f"http://{server.metadata_address}{ACCOUNT}/token"
    async with client.get(url, headers=FLAVOR, params={"scopes": "a,b"}) as response:
        access = google.access((await response.json())["access_token"])
    assert access is not None
    assert access.scopes == {"a", "b"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{ACCOUNT}/email", "metadata@emulated.iam.gserviceaccount.com"),
        (
            "/computeMetadata/v1/instance/service-accounts/metadata@emulated.iam.gserviceaccount.com/email",
            "metadata@emulated.iam.gserviceaccount.com",
        ),
        ("/computeMetadata/v1/universe/universe-domain", "googleapis.com"),
        ("/computeMetadata/v1/project/project-id", "emulated"),
        ("/", "0.1/\ncomputeMetadata/\n"),
        ("/computeMetadata/", "v1/\n"),
        (f"{ACCOUNT}/scopes", "https://www.googleapis.com/auth/cloud-platform\n"),
        (f"{ACCOUNT}/", "aliases\nemail\nidentity\nscopes\ntoken\n"),
        (f"{ACCOUNT}/scopes?alt=json", '["https://www.googleapis.com/auth/cloud-platform"]'),
        ("/computeMetadata/v1/", "instance/\nproject/\nuniverse/\n"),
        ("/computeMetadata/v1/instance/name", "emulated-instance"),
        ("/computeMetadata/v1/instance/attributes/", ""),
    ],
)
async def test_single_values_are_returned(
    client: aiohttp.ClientSession, server: GoogleServer, path: str, value: str
) -> None:
    assert await _get(client, server, path) == (200, value)


@pytest.mark.asyncio
async def test_the_project_has_a_number(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    _, text = await _get(client, server, "/computeMetadata/v1/project/numeric-project-id")
    assert text.isdigit()


@pytest.mark.asyncio
async def test_an_account_is_returned_recursively(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    url = f"http://{server.metadata_address}{ACCOUNT}/?recursive=true"
    async with client.get(url, headers=FLAVOR) as response:
        assert await response.json() == {
            "aliases": ["default"],
            "email": "metadata@emulated.iam.gserviceaccount.com",
            "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        }


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/computeMetadata/v1/instance/service-accounts/another@emulated.iam.gserviceaccount.com/token",
        f"{ACCOUNT}/secrets",
        f"{ACCOUNT}/email/",
        f"{ACCOUNT}/email/more",
        f"{ACCOUNT}/identity/?audience=x",
        "/computeMetadata/v1/instance/attributes/cluster-name",
        "/computeMetadata/v1beta1/instance/",
        "/computeMetadata/v2/",
    ],
)
async def test_an_unknown_path_is_not_found(client: aiohttp.ClientSession, server: GoogleServer, path: str) -> None:
    status, _ = await _get(client, server, path)
    assert status == 404


@pytest.mark.asyncio
async def test_only_get_is_allowed(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    status, _ = await _get(client, server, f"{ACCOUNT}/identity?audience=x", method="POST")
    assert status == 405


@pytest.mark.asyncio
async def test_an_expired_token_is_issued_on_demand_and_not_cached(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google, clock: Clock
) -> None:
    google.fail("metadata", Fault.EXPIRED, times=2)
    assert claims_of(await _identity(client, server))["exp"] == clock.now - 3600
    async with client.get(f"http://{server.metadata_address}{ACCOUNT}/token", headers=FLAVOR) as response:
        answer = await response.json()
    assert answer["expires_in"] == 0
    assert google.access(answer["access_token"]) is None
    assert claims_of(await _identity(client, server))["exp"] == clock.now + 3600
