"""The metadata servers of AWS and Azure."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from proxy.emulator import Fault, Google, GoogleServer
from proxy.emulator.clouds import ROLE, SUBJECT
from tests.support.emulated import Clock

JWT = "urn:ietf:params:oauth:token-type:jwt"


class Plain:
    def __init__(self, server: GoogleServer) -> None:
        self._base = f"http://{server.metadata_address}"

    async def ask(self, method: str, path: str, **fields: str) -> tuple[int, str]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, self._base + path, headers=headers) as response,
        ):
            return response.status, await response.text()

    async def aws(self, path: str) -> tuple[int, str]:
        status, session = await self.ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="300")
        assert status == 200
        return await self.ask("GET", path, X_aws_ec2_metadata_token=session)


@pytest.fixture
def plain(server: GoogleServer) -> Plain:
    return Plain(server)


@pytest.mark.asyncio
async def test_aws_returns_region_role_and_key(plain: Plain, google: Google) -> None:
    assert await plain.aws("/latest/meta-data/placement/availability-zone") == (200, "eu-west-1b")
    for path in ("/latest/meta-data/iam/security-credentials", "/latest/meta-data/iam/security-credentials/"):
        assert await plain.aws(path) == (200, ROLE)
    status, text = await plain.aws(f"/latest/meta-data/iam/security-credentials/{ROLE}")
    key = google.federation.aws.role_key(ROLE)
    assert status == 200
    assert key.secret_access_key in text
    assert '"Expiration": "2027-01-15T09:00:00Z"' in text
    assert google.calls["aws"] == 8


@pytest.mark.asyncio
async def test_aws_requires_a_session_token(plain: Plain, clock: Clock) -> None:
    path = "/latest/meta-data/iam/security-credentials"
    assert (await plain.ask("GET", path))[0] == 401
    assert (await plain.ask("GET", path, X_aws_ec2_metadata_token="made-up"))[0] == 401
    _, session = await plain.ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="300")
    clock.now += 300
    assert (await plain.ask("GET", path, X_aws_ec2_metadata_token=session))[0] == 401


@pytest.mark.asyncio
@pytest.mark.parametrize("seconds", ["", "0", "21601", "x", "-1"])
async def test_aws_requires_a_session_lifetime(plain: Plain, seconds: str) -> None:
    assert (await plain.ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds=seconds))[0] == 400


@pytest.mark.asyncio
async def test_aws_refuses_forwarded_requests_and_other_methods(plain: Plain) -> None:
    fields = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
    assert (await plain.ask("PUT", "/latest/api/token", X_Forwarded_For="192.0.2.1", **fields))[0] == 403
    assert (await plain.ask("GET", "/latest/api/token", **fields))[0] == 405
    assert (await plain.ask("POST", "/latest/meta-data/"))[0] == 405
    assert (await plain.aws("/latest/meta-data/iam/security-credentials/other"))[0] == 404


@pytest.mark.asyncio
async def test_aws_issues_an_expired_key_on_demand(plain: Plain, google: Google) -> None:
    _, session = await plain.ask("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="300")
    google.fail("aws", Fault.EXPIRED)
    path = f"/latest/meta-data/iam/security-credentials/{ROLE}"
    status, text = await plain.ask("GET", path, X_aws_ec2_metadata_token=session)
    assert status == 200
    assert '"Expiration": "2027-01-15T07:00:00Z"' in text


AZURE = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=api://emulated"


@pytest.mark.asyncio
async def test_azure_issues_an_id_token_for_a_resource(plain: Plain, google: Google) -> None:
    import json

    # As gcloud writes it into credential files.
    status, text = await plain.ask("GET", AZURE, Metadata="True")
    answer: dict[str, Any] = json.loads(text)
    assert (status, answer["expires_in"], answer["resource"]) == (200, "3600", "api://emulated")
    assert google.federation.azure.subject(JWT, answer["access_token"]) == SUBJECT
    google.fail("azure", Fault.EXPIRED)
    _, text = await plain.ask("GET", AZURE, Metadata="true")
    assert json.loads(text)["expires_in"] == "0"


@pytest.mark.asyncio
async def test_azure_requires_its_field_its_version_and_a_known_resource(plain: Plain) -> None:
    for method, path, fields, status in (
        ("GET", AZURE, {}, 400),
        ("GET", AZURE, {"Metadata": "yes"}, 400),
        ("GET", AZURE, {"Metadata": "true", "X_Forwarded_For": "192.0.2.1"}, 400),
        ("GET", AZURE.replace("2018-02-01", "latest"), {"Metadata": "true"}, 400),
        ("GET", AZURE.replace("api://emulated", ""), {"Metadata": "true"}, 400),
        ("GET", AZURE.replace("api://emulated", "api://other"), {"Metadata": "true"}, 400),
        ("POST", AZURE, {"Metadata": "true"}, 405),
        ("GET", "/metadata/instance", {"Metadata": "true"}, 404),
    ):
        assert (await plain.ask(method, path, **fields))[0] == status, (path, fields)
