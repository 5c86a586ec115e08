"""The metadata server of a GKE node, as a pod sees it."""

from __future__ import annotations

from typing import NamedTuple

import aiohttp
import pytest

from proxy.emulator import Google, GoogleServer, Pod, Role
from tests.support.emulated import AUDIENCE, TARGET, claims_of

ROOT = "/computeMetadata/v1"
ACCOUNT = f"{ROOT}/instance/service-accounts/default"
IDENTITY = f"{ACCOUNT}/identity?audience={AUDIENCE}&format=full"
PRINCIPAL = (
    "principal://iam.googleapis.com/projects/{}/locations/global/workloadIdentityPools/emulated.svc.id.goog"
    "/subject/ns/prod/sa/restate"
)
MEMBER = "emulated.svc.id.goog[prod/restate]"


class Seen(NamedTuple):
    status: int
    kind: str
    text: str


async def _get(client: aiohttp.ClientSession, server: GoogleServer, path: str, **fields: str) -> Seen:
    headers = {"Metadata-Flavor": "Google", **fields}
    async with client.get(f"http://{server.metadata_address}{path}", headers=headers) as response:
        assert response.headers["Metadata-Flavor"] == "Google"
        return Seen(response.status, response.content_type, await response.text())


async def _access(client: aiohttp.ClientSession, server: GoogleServer) -> str:
    async with client.get(
        f"http://{server.metadata_address}{ACCOUNT}/token", headers={"Metadata-Flavor": "Google"}
    ) as response:
        access = server.google.access((await response.json())["access_token"])
    assert access is not None
    return access.principal


@pytest.mark.asyncio
async def test_a_pod_without_the_annotation_is_a_federated_principal(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google
) -> None:
    google.pod = Pod(namespace="prod", name="restate")
    assert (await _get(client, server, f"{ACCOUNT}/email")).text == "emulated.svc.id.goog"
    assert await _access(client, server) == PRINCIPAL.format(google.project_number("emulated"))
    refused = await _get(client, server, IDENTITY)
    assert (refused.status, refused.kind) == (404, "text/plain")
    assert "prod/restate" in refused.text
    assert "iam.gke.io/gcp-service-account" in refused.text
    assert google.mints == []


@pytest.mark.asyncio
async def test_the_annotation_needs_a_binding(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google
) -> None:
    google.add_account(TARGET)
    google.pod = Pod(namespace="prod", name="restate", annotation=TARGET)
    assert (await _get(client, server, f"{ACCOUNT}/email")).text == TARGET
    for path, permission in ((IDENTITY, "getOpenIdToken"), (f"{ACCOUNT}/token", "getAccessToken")):
        refused = await _get(client, server, path)
        assert (refused.status, refused.kind) == (403, "text/plain")
        assert f"Permission 'iam.serviceAccounts.{permission}' denied" in refused.text
    for member in google.pod_names(google.pod):
        google.allow_impersonation(member, TARGET, Role.WORKLOAD_IDENTITY_USER)
        claims = claims_of((await _get(client, server, IDENTITY)).text)
        assert (claims["email"], claims["aud"], "google" in claims) == (TARGET, AUDIENCE, False)
        assert await _access(client, server) == TARGET
        google.forbid_impersonation(member, TARGET)
    assert google.pod_names(google.pod)[1] == MEMBER
    google.allow_impersonation("emulated.svc.id.goog[prod/other]", TARGET, Role.WORKLOAD_IDENTITY_USER)
    assert (await _get(client, server, IDENTITY)).status == 403


@pytest.mark.asyncio
async def test_its_tree_is_that_of_a_node_and_its_errors_are_plain_text(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google
) -> None:
    google.pod = Pod(namespace="prod", name="restate")
    listed = await _get(client, server, f"{ROOT}/instance/service-accounts/")
    assert listed.text == "default/\nemulated.svc.id.goog/\n"
    assert (await _get(client, server, f"{ROOT}/instance/attributes/cluster-name")).text == "emulated-cluster"
    for path, fields, status in (
        (f"{ROOT}/instance/machine-type", {}, 404),
        (f"{ROOT}/", {"X-Forwarded-For": "10.0.0.1"}, 403),
        (f"{ACCOUNT}/identity", {}, 400),
    ):
        refused = await _get(client, server, path, **fields)
        assert (refused.status, refused.kind) == (status, "text/plain")
