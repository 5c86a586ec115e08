from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.doctor.identity import check_credentials, grant_commands, mint
from proxy.doctor.report import Outcome
from proxy.emulator import Certificates, Fault, Google, GoogleServer
from proxy.errors import ImpersonationDenied, MintRefused
from proxy.routes import Origin, Route
from proxy.tokens.credentials.file import CredentialFile
from proxy.tokens.credentials.kinds import KINDS
from proxy.tokens.google import CredentialInfo, GoogleMint
from proxy.tokens.model import TokenKey
from proxy.tokens.source import TokenSource
from tests.support.emulated import signing_key

CALLER = "caller@p.iam.gserviceaccount.com"
MIDDLE = "middle@q.iam.gserviceaccount.com"
TARGET = "target@r.iam.gserviceaccount.com"
BASE = "gcloud iam service-accounts add-iam-policy-binding"
CREATOR = "roles/iam.serviceAccountTokenCreator"
ID_CREATOR = "roles/iam.serviceAccountOpenIdTokenCreator"

ROUTE = Route(name="a", origin=Origin("https", "svc.run.app", 443))
KEY = TokenKey.for_route(ROUTE)


@asynccontextmanager
async def minting(
    folder: Path, environment: Mapping[str, str], google: Google | None = None
) -> AsyncIterator[tuple[GoogleMint, Mapping[str, str], GoogleServer]]:
    """A mint with this environment, and its metadata server."""
    async with GoogleServer(google or Google(signing_key=signing_key()), Certificates.create(folder)) as endpoints:
        seen = {"GCE_METADATA_HOST": endpoints.metadata_address, "HOME": str(folder), **environment}
        made = GoogleMint(environment=seen)
        try:
            yield made, seen, endpoints
        finally:
            await made.close()


@pytest.mark.asyncio
async def test_the_metadata_server_is_named_with_its_account(tmp_path: Path) -> None:
    google = Google(signing_key=signing_key())
    async with minting(tmp_path, {}, google) as (made, environment, endpoints):
        step, info = await check_credentials(made, environment, 5.0)
    assert info == CredentialInfo(None, endpoints.metadata_address, google.metadata_account)
    assert step.text == (
        f"{google.metadata_account}, by the metadata server {endpoints.metadata_address} (GCE_METADATA_HOST)"
    )


@pytest.mark.parametrize(
    ("variables", "place", "named_by"),
    [
        ({"GOOGLE_APPLICATION_CREDENTIALS": "{}/given.json"}, "given.json", "GOOGLE_APPLICATION_CREDENTIALS"),
        ({"CLOUDSDK_CONFIG": "{}/sdk"}, "sdk/application_default_credentials.json", "CLOUDSDK_CONFIG"),
        ({}, ".config/gcloud/application_default_credentials.json", "gcloud's default location"),
    ],
)
@pytest.mark.asyncio
async def test_a_file_is_named_with_the_variable_that_selected_it(
    tmp_path: Path, variables: dict[str, str], place: str, named_by: str
) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(Google().user_file("ada@example.com")))
    given = {name: value.format(tmp_path) for name, value in variables.items()}
    async with minting(tmp_path, given) as (made, environment, _):
        step, info = await check_credentials(made, environment, 5.0)
    assert info is not None
    assert step.outcome is Outcome.OK
    assert step.details["place"] == str(path)
    assert step.details["named_by"] == named_by
    assert step.text == f"user credentials {path} ({named_by})"


@pytest.mark.asyncio
async def test_without_credentials_the_step_fails_with_a_remedy(tmp_path: Path) -> None:
    async with minting(tmp_path, {"NO_GCE_CHECK": "true"}) as (made, environment, _):
        step, info = await check_credentials(made, environment, 5.0)
    assert (info, step.outcome, step.code) == (None, Outcome.FAILED, "credentials-not-found")
    assert step.text.startswith("no Google credentials: GOOGLE_APPLICATION_CREDENTIALS is not set")
    assert step.remedy
    assert step.remedy.startswith("Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth")


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.HTML])
@pytest.mark.asyncio
async def test_the_variable_that_names_a_broken_metadata_server_is_to_be_corrected(
    tmp_path: Path, fault: Fault
) -> None:
    google = Google(signing_key=signing_key())
    google.fail("metadata", fault)
    async with minting(tmp_path, {}, google) as (made, environment, endpoints):
        step, _ = await check_credentials(made, environment, 20.0)
    assert (step.outcome, step.code) == (Outcome.FAILED, "credentials-not-found")
    assert f"GCE_METADATA_HOST names {endpoints.metadata_address}, which is no metadata server" in step.text
    assert step.remedy == "Correct or unset GCE_METADATA_HOST, or set GOOGLE_APPLICATION_CREDENTIALS."


@pytest.mark.asyncio
async def test_a_metadata_server_at_an_impossible_port_names_the_variable(tmp_path: Path) -> None:
    async with minting(tmp_path, {"GCE_METADATA_HOST": "foo:99999"}) as (made, environment, _):
        step, _ = await check_credentials(made, environment, 5.0)
    assert step.code == "credentials-invalid"
    assert step.text == "the port in GCE_METADATA_HOST must be between 1 and 65535; it holds 'foo:99999'"
    assert step.remedy == "Correct or unset GCE_METADATA_HOST."


@pytest.mark.asyncio
async def test_a_source_that_hangs_fails_at_the_deadline(tmp_path: Path) -> None:
    google = Google(signing_key=signing_key())
    google.fail("metadata", Fault.HANG)
    async with minting(tmp_path, {}, google) as (made, environment, _), asyncio.timeout(20):
        step, _ = await check_credentials(made, environment, 0.2)
    assert step.code == "token-timeout"


@pytest.mark.parametrize(
    ("lifetime", "outcome", "code"), [(3600, Outcome.OK, None), (30, Outcome.WARNING, "token-short-lived")]
)
@pytest.mark.asyncio
async def test_a_token_is_reported_by_its_claims(
    tmp_path: Path, lifetime: int, outcome: Outcome, code: str | None
) -> None:
    google = Google(token_lifetime_seconds=lifetime)
    async with minting(tmp_path, {}, google) as (made, _, _):
        tokens = TokenSource(made)
        step, token = await mint(tokens, KEY, ROUTE, CredentialInfo(None, "x", "me"), google.clock())
        await tokens.close()
    assert token is not None
    assert (step.outcome, step.code) == (outcome, code)
    assert step.details["aud"] == "https://svc.run.app"
    assert step.details["email"] == google.metadata_account
    assert step.text.startswith(f"for https://svc.run.app, as {google.metadata_account}, expires 20")
    assert "eyJ" not in repr(step)


@pytest.mark.asyncio
async def test_a_failed_mint_is_reported_with_its_remedy(tmp_path: Path) -> None:
    google = Google(signing_key=signing_key())
    google.fail("metadata", Fault.SERVER_ERROR)
    async with minting(tmp_path, {}, google) as (made, _, _):
        tokens = TokenSource(made)
        step, token = await mint(tokens, KEY, ROUTE, CredentialInfo(None, "x", "me"), google.clock())
        await tokens.close()
    assert (token, step.outcome, step.code) == (None, Outcome.FAILED, "token-unavailable")
    assert "answered 500" in step.text
    assert step.remedy
    assert step.remedy.startswith("If it does not end by itself, see whether that server has an incident")
    assert step.details == {"audience": "https://svc.run.app"}


def file_of(kind: str, info: dict[str, Any]) -> CredentialFile:
    return KINDS[kind]("/key.json", b"digest", info)


def route(impersonate: str | None, *delegates: str) -> Route:
    return Route(name="a", origin=ROUTE.origin, impersonate=impersonate, delegates=delegates)


def binding(caller: str, target: str, role: str) -> str:
    project = target.partition("@")[2].partition(".")[0]
    return f"{BASE} {target} --project={project} --member={caller} --role={role}"


def test_a_denied_impersonation_gets_a_command_for_each_link() -> None:
    info = CredentialInfo(None, "metadata.google.internal", CALLER)
    assert grant_commands(ImpersonationDenied("no"), route(TARGET, MIDDLE), info) == (
        binding(f"serviceAccount:{CALLER}", MIDDLE, CREATOR),
        binding(f"serviceAccount:{MIDDLE}", TARGET, ID_CREATOR),
    )


@pytest.mark.parametrize(
    ("source", "member"),
    [({"client_email": CALLER}, f"serviceAccount:{CALLER}"), ({"refresh_token": "x"}, "PRINCIPAL")],
)
def test_the_credential_inside_a_file_impersonates_its_account(source: dict[str, str], member: str) -> None:
    info = CredentialInfo(file_of("impersonated_service_account", {"source_credentials": source}), "/key.json", MIDDLE)
    denied = ImpersonationDenied("no")
    assert grant_commands(denied, route(None), info) == (binding(member, MIDDLE, ID_CREATOR),)
    assert grant_commands(denied, route(TARGET), info) == (
        binding(member, MIDDLE, CREATOR),
        binding(f"serviceAccount:{MIDDLE}", TARGET, ID_CREATOR),
    )


def test_other_refusals_get_no_command() -> None:
    info = CredentialInfo(None, "metadata.google.internal", CALLER)
    assert grant_commands(MintRefused("no"), route(TARGET), info) == ()
    federated = ImpersonationDenied("grant it roles/iam.workloadIdentityUser on that account")
    assert grant_commands(federated, route(TARGET), info) == ()
