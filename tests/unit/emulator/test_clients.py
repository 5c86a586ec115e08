"""Requests in the form of Google's own clients, which Google accepts; and similar ones that it refuses.

What they send was read in google-auth (Python), google-auth-library-nodejs, google-cloud-rust, golang.org/x/oauth2,
google-auth-library-java and gcloud.
"""

from __future__ import annotations

import base64
import functools
import json
import time
from typing import Any
from urllib.parse import quote, quote_plus

import aiohttp
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from proxy.emulator import Google, GoogleServer
from proxy.emulator.federation import POOL_PROJECT_NUMBER
from proxy.emulator.jwts import Key
from proxy.emulator.model import SCOPE
from tests.support.emulated import AUDIENCE, CALLER, TARGET, Clock, claims_of
from tests.unit.emulator.test_federation import signed

TOKEN = "https://oauth2.googleapis.com/token"
EXCHANGE = "https://sts.googleapis.com/v1/token"
INTROSPECT = "https://sts.googleapis.com/v1/introspect"
IAM = "https://iamcredentials.googleapis.com"
ID_TOKEN = f"{IAM}/v1/projects/-/serviceAccounts/{TARGET}:generateIdToken"
PROJECTS = "https://cloudresourcemanager.googleapis.com/v1/projects"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
FLAVOR = {"Metadata-Flavor": "Google"}


def segment(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@functools.cache
def _loaded(private_key: str) -> rsa.RSAPrivateKey:
    # Loading checks the key, which takes as long as to make one.
    key = serialization.load_pem_private_key(private_key.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def sign(file: dict[str, str], claims: dict[str, object], *, key_id: bool = True) -> str:
    header = {"alg": "RS256", "typ": "JWT"} | ({"kid": file["private_key_id"]} if key_id else {})
    text = ".".join(segment(json.dumps(part).encode()) for part in (header, claims))
    return f"{text}.{segment(_loaded(file['private_key']).sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def times(clock: Clock, early: int = 0, late: int = 0) -> dict[str, object]:
    return {"iat": int(clock.now) - early, "exp": int(clock.now) + 3600 + late}


@pytest.fixture
def file(google: Google, account_key: Key) -> dict[str, str]:
    google.allow_impersonation(CALLER, TARGET)
    return google.key_file(CALLER, key=account_key)


async def post(client: aiohttp.ClientSession, url: str, **content: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(url, **content) as response:
        return response.status, await response.json()


async def grant(client: aiohttp.ClientSession, assertion: str, url: str = TOKEN) -> tuple[int, dict[str, Any]]:
    return await post(client, url, data={"grant_type": JWT_BEARER, "assertion": assertion})


# Assertions


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("more", "early", "late", "key_id"),
    [
        pytest.param({}, 10, 10, True, id="rust"),
        pytest.param({"scope": SCOPE}, 0, 0, False, id="node"),
        pytest.param({"scope": "", "sub": None}, 0, 0, False, id="node without scopes"),
        pytest.param({"sub": "", "prn": ""}, 10, -10, True, id="go"),
    ],
)
async def test_the_assertion_of_each_client_gets_an_id_token(
    client: aiohttp.ClientSession,
    file: dict[str, str],
    clock: Clock,
    more: dict[str, object],
    early: int,
    late: int,
    key_id: bool,
) -> None:
    claims = {"iss": CALLER, "aud": TOKEN, "target_audience": AUDIENCE, **times(clock, early, late), **more}
    status, answer = await grant(client, sign(file, claims, key_id=key_id))
    assert (status, set(answer)) == (200, {"id_token"})
    assert claims_of(answer["id_token"])["aud"] == AUDIENCE


@pytest.mark.asyncio
async def test_without_a_key_id_every_key_of_the_account_is_tried_and_no_other(
    client: aiohttp.ClientSession, google: Google, file: dict[str, str], clock: Clock
) -> None:
    claims = {"iss": CALLER, "aud": TOKEN, "target_audience": AUDIENCE, **times(clock)}
    for key in (google.key_file(CALLER), file):
        assert (await grant(client, sign(key, claims, key_id=False)))[0] == 200
    status, answer = await grant(client, sign(google.key_file(TARGET), claims, key_id=False))
    assert (status, answer["error"]) == (400, "invalid_grant")


@pytest.mark.asyncio
async def test_the_audience_of_an_assertion_may_be_the_address_of_the_request(
    client: aiohttp.ClientSession, server: GoogleServer, file: dict[str, str], clock: Clock
) -> None:
    claims = {"iss": CALLER, "aud": server.token_uri, "target_audience": AUDIENCE, **times(clock)}
    assert (await grant(client, sign(file, claims), server.token_uri))[0] == 200
    assert (await grant(client, sign(file, claims)))[1]["error"] == "invalid_grant"


# Refreshed users


@pytest.mark.asyncio
async def test_a_refresh_may_come_as_json_with_nulls_and_more(client: aiohttp.ClientSession, google: Google) -> None:
    user = google.user_file("person@example.com")
    body = {name: user[name] for name in ("client_id", "client_secret", "refresh_token")}
    status, answer = await post(client, TOKEN, json=body | {"grant_type": "refresh_token", "scopes": None})
    assert status == 200
    assert google.access(answer["access_token"]) is not None
    status, answer = await post(client, TOKEN, json=body | {"grant_type": "refresh_token", "client_secret": "x"})
    assert (status, answer["error"]) == (401, "invalid_client")


@pytest.mark.asyncio
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode], ids=["standard", "url-safe"])
async def test_a_client_may_authenticate_by_field(client: aiohttp.ClientSession, google: Google, encode: Any) -> None:
    user = google.user_file("person@example.com")
    form = {"grant_type": "refresh_token", "refresh_token": user["refresh_token"]}
    basic = encode(f"{user['client_id']}:{user['client_secret']}".encode()).decode().rstrip("=")
    assert (await post(client, TOKEN, data=form, headers={"Authorization": f"Basic {basic}"}))[0] == 200
    for wrong in ("Basic eDp5", f"Bearer {basic}", "Basic é"):
        refused = await post(client, TOKEN, data=form | user, headers={"Authorization": wrong})
        assert refused[1]["error"] in ("invalid_client", "unsupported_grant_type"), wrong
    assert (await post(client, TOKEN, data=form))[0] == 401


@pytest.mark.asyncio
async def test_a_refresh_gets_only_granted_scopes(client: aiohttp.ClientSession, google: Google) -> None:
    user = google.user_file("person@example.com") | {"grant_type": "refresh_token"}
    granted = "openid https://www.googleapis.com/auth/sqlservice.login"
    assert (await post(client, TOKEN, data=user | {"scope": granted}))[1]["scope"] == granted
    for scope in (f"{granted} https://www.googleapis.com/auth/drive", "everything"):
        status, answer = await post(client, TOKEN, data=user | {"scope": scope})
        assert (status, answer["error"]) == (400, "invalid_scope")


# Self-signed JWTs instead of access tokens (AIP-4111)

SERVICE_AUDIENCE = {"aud": f"{IAM}/"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("claims", "early", "late", "key_id"),
    [
        pytest.param({"scope": SCOPE, "aud": None}, 10, 10, True, id="rust with scope"),
        pytest.param(SERVICE_AUDIENCE, 10, 10, True, id="rust with audience"),
        pytest.param({"scope": SCOPE, "aud": ""}, 0, 0, True, id="go"),
        pytest.param({"scope": f"openid {SCOPE}"}, 0, 0, True, id="python with scope"),
        pytest.param(SERVICE_AUDIENCE, 0, 0, True, id="python with audience"),
        pytest.param(SERVICE_AUDIENCE, 0, 0, False, id="node"),
        pytest.param({"aud": f"{IAM}/google.iam.credentials.v1.IAMCredentials"}, 0, 0, True, id="gRPC"),
        pytest.param({"scope": SCOPE, **SERVICE_AUDIENCE}, 0, 0, True, id="both"),
    ],
)
async def test_a_self_signed_jwt_is_a_bearer(
    client: aiohttp.ClientSession,
    file: dict[str, str],
    clock: Clock,
    claims: dict[str, object],
    early: int,
    late: int,
    key_id: bool,
) -> None:
    bearer = sign(file, {"iss": CALLER, "sub": CALLER, **times(clock, early, late), **claims}, key_id=key_id)
    headers = {"Authorization": f"Bearer {bearer}"}
    status, answer = await post(client, ID_TOKEN, json={"audience": AUDIENCE, "delegates": None}, headers=headers)
    assert (status, set(answer)) == (200, {"token"})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"aud": None}, 401),
        ({"aud": "https://pubsub.googleapis.com/"}, 401),
        ({"aud": "https://pubsub.googleapis.com/", "scope": SCOPE}, 401),
        ({"aud": [f"{IAM}/"]}, 401),
        ({"scope": [SCOPE]}, 401),
        ({"sub": None}, 401),
        ({"sub": "person@example.com"}, 401),
        ({"iss": TARGET}, 401),
        ({"iss": 7}, 401),
        ({"exp": 1_800_000_000 - 60}, 401),
        ({"exp": 1_800_000_000 + 3661}, 401),
        ({"iat": 1_800_000_000 + 61}, 401),
        ({"aud": None, "scope": "https://www.googleapis.com/auth/devstorage.read_only"}, 403),
    ],
)
async def test_a_wrong_self_signed_jwt_is_no_bearer(
    client: aiohttp.ClientSession, file: dict[str, str], clock: Clock, changes: dict[str, object], status: int
) -> None:
    claims = {"iss": CALLER, "sub": CALLER, "aud": f"{IAM}/", **times(clock), **changes}
    headers = {"Authorization": f"Bearer {sign(file, claims)}"}
    assert (await post(client, ID_TOKEN, json={"audience": AUDIENCE}, headers=headers))[0] == status


@pytest.mark.asyncio
async def test_a_self_signed_jwt_needs_a_key_of_the_account(
    client: aiohttp.ClientSession, google: Google, file: dict[str, str], clock: Clock
) -> None:
    claims = {"iss": CALLER, "sub": CALLER, "scope": SCOPE, **times(clock)}
    forged = file | {"private_key": google.key_file(TARGET)["private_key"]}
    for key_id in (True, False):
        headers = {"Authorization": f"Bearer {sign(forged, claims, key_id=key_id)}"}
        assert (await post(client, ID_TOKEN, json={"audience": AUDIENCE}, headers=headers))[0] == 401


# IAM Credentials and Resource Manager


@pytest.mark.asyncio
async def test_a_quota_project_has_to_exist(client: aiohttp.ClientSession, google: Google) -> None:
    google.allow_impersonation(CALLER, TARGET)
    bearer = {"Authorization": f"Bearer {google.access_token(CALLER)[0]}"}
    body = {"audience": AUDIENCE}
    for project in ("emulated", str(google.project_number("emulated")), POOL_PROJECT_NUMBER):
        headers = bearer | {"x-goog-user-project": project}
        assert (await post(client, ID_TOKEN, json=body, headers=headers))[0] == 200
    for project in ("no-such-project", "1", ""):
        headers = bearer | {"x-goog-user-project": project}
        status, answer = await post(client, ID_TOKEN, json=body, headers=headers)
        detail = answer["error"]["details"][0]
        assert (status, detail["reason"]) == (403, "USER_PROJECT_DENIED")
        assert detail["metadata"] == {
            "service": "iamcredentials.googleapis.com",
            "consumer": f"projects/{project}",
        }
    assert len(google.mints) == 3


@pytest.mark.asyncio
async def test_a_lifetime_may_have_a_fraction(client: aiohttp.ClientSession, google: Google, clock: Clock) -> None:
    google.allow_impersonation(CALLER, TARGET)
    headers = {"Authorization": f"Bearer {google.access_token(CALLER)[0]}"}
    url = ID_TOKEN.replace("generateIdToken", "generateAccessToken")
    status, answer = await post(client, url, json={"scope": [SCOPE], "lifetime": "600.000000000s"}, headers=headers)
    assert status == 200
    access = google.access(answer["accessToken"])
    assert access is not None
    assert access.expires_at == clock.now + 600


@pytest.mark.asyncio
async def test_an_account_may_be_used_everywhere(client: aiohttp.ClientSession, google: Google) -> None:
    google.add_account(TARGET)
    headers = {"Authorization": f"Bearer {google.access_token(CALLER)[0]}"}
    for owner in (
        f"projects/-/serviceAccounts/{TARGET}",
        f"projects/{POOL_PROJECT_NUMBER}/locations/global/workloadIdentityPools/emulated",
        "locations/global/workforcePools/emulated",
    ):
        url = f"{IAM}/v1/{owner}/allowedLocations"
        async with client.get(url, headers=headers) as response:
            assert (response.status, (await response.json())["encodedLocations"]) == (200, "0x0")
        async with client.get(url) as response:
            assert response.status == 401
        async with client.post(url, headers=headers) as response:
            assert response.status == 404
    async with client.get(f"{IAM}/v1/projects/-/serviceAccounts/a@b/allowedLocations", headers=headers) as response:
        assert response.status == 404


@pytest.mark.asyncio
async def test_the_project_of_a_pool_has_an_id(client: aiohttp.ClientSession, google: Google) -> None:
    headers = {"Authorization": f"Bearer {google.access_token(CALLER)[0]}"}
    for name in (POOL_PROJECT_NUMBER, "emulated"):
        async with client.get(f"{PROJECTS}/{name}", headers=headers) as response:
            assert (response.status, (await response.json())["projectId"]) == (200, "emulated")
    for method, name, more, status in (
        ("GET", "no-such-project", {}, 403),
        ("GET", "emulated", {"x-goog-user-project": "no-such-project"}, 403),
        ("GET", "emulated", {"Authorization": "Bearer ya29.invented"}, 401),
        ("GET", "emulated:getIamPolicy", {}, 404),
        ("POST", "emulated", {}, 404),
    ):
        async with client.request(method, f"{PROJECTS}/{name}", headers=headers | more) as response:
            assert response.status == status, (method, name, more)


# Token exchange


@pytest.mark.asyncio
async def test_gcloud_logs_in_with_a_federation_file(
    client: aiohttp.ClientSession, google: Google, form: dict[str, str]
) -> None:
    scopes = f"openid https://www.googleapis.com/auth/userinfo.email {SCOPE}"
    status, answer = await post(client, EXCHANGE, data=form | {"scope": scopes})
    assert status == 200
    basic = {"Authorization": f"Basic {base64.b64encode(b'gcloud:not-secret').decode()}"}
    asked = {"token": answer["access_token"], "token_type_hint": form["requested_token_type"]}
    status, body = await post(client, INTROSPECT, data=asked, headers=basic)
    principal = google.federation.principal(form["audience"], "pod")
    assert (status, body["active"], body["username"]) == (200, True, principal)
    assert set(body["scope"].split()) == set(scopes.split())
    assert (await post(client, INTROSPECT, data=asked))[1]["error"] == "invalid_client"
    assert (await post(client, INTROSPECT, data={"token": "ya29.invented"}, headers=basic)) == (200, {"active": False})


@pytest.mark.asyncio
async def test_an_exchange_may_come_as_json_in_camel_case(client: aiohttp.ClientSession, form: dict[str, str]) -> None:
    camel = {
        "".join(word.title() if index else word for index, word in enumerate(name.split("_"))): value
        for name, value in form.items()
    }
    assert "subjectTokenType" in camel
    for body in (camel, form):
        content = {"data": json.dumps(body), "headers": {"Content-Type": "text/json; charset=utf-8"}}
        status, answer = await post(client, EXCHANGE, **content)
        assert (status, answer["token_type"]) == (200, "Bearer")


@pytest.mark.asyncio
async def test_a_client_may_be_named_in_the_form(client: aiohttp.ClientSession, form: dict[str, str]) -> None:
    form = form | {"client_id": "c", "client_secret": "s"}
    assert (await post(client, EXCHANGE, data=form))[0] == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("escape", [quote, quote_plus], ids=["python, node", "go, java, rust"])
async def test_a_space_in_an_aws_request_may_be_escaped_in_two_ways(
    client: aiohttp.ClientSession, google: Google, clock: Clock, escape: Any, form: dict[str, str]
) -> None:
    # google-auth signs with the real clock.
    clock.now = time.time()
    request = signed(google, google.federation.aws.role_key("a+role"), Zeta="a+b c")
    form = form | {
        "audience": google.federation.aws.audience,
        "subject_token": escape(json.dumps(request)),
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
    }
    status, answer = await post(client, EXCHANGE, data=form)
    assert (status, answer.get("error_description")) == (200, None)


# Metadata


@pytest.mark.asyncio
async def test_nodes_probe_is_redirected_to_the_listing(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    url = f"http://{server.metadata_address}/computeMetadata/v1/instance"
    async with client.get(url, headers=FLAVOR, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (301, "/computeMetadata/v1/instance/")
        assert response.headers["Metadata-Flavor"] == "Google"
    async with client.get(url, headers=FLAVOR) as response:
        assert response.status == 200
        assert "service-accounts/" in (await response.text()).splitlines()


@pytest.mark.asyncio
async def test_gcloud_and_go_list_the_accounts(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    url = f"http://{server.metadata_address}/computeMetadata/v1/instance/service-accounts/"
    async with client.get(url, headers=FLAVOR) as response:
        assert await response.text() == "default/\nmetadata@emulated.iam.gserviceaccount.com/\n"
    # Java requests all of them at once.
    async with client.get(url, headers=FLAVOR, params={"recursive": "true"}) as response:
        accounts = await response.json()
    assert accounts.keys() == {"default", "metadata@emulated.iam.gserviceaccount.com"}
    assert accounts["default"]["scopes"] == [SCOPE]


@pytest.mark.asyncio
async def test_all_metadata_is_returned_recursively(client: aiohttp.ClientSession, server: GoogleServer) -> None:
    url = f"http://{server.metadata_address}/computeMetadata/v1/?recursive=true"
    async with client.get(url, headers=FLAVOR) as response:
        body = await response.json()
    assert body["project"] == {
        "attributes": {},
        "numericProjectId": server.google.project_number("emulated"),
        "projectId": "emulated",
    }
    assert body["instance"]["serviceAccounts"]["default"].keys() == {"aliases", "email", "scopes"}
    assert body["universe"] == {"universeDomain": "googleapis.com"}
