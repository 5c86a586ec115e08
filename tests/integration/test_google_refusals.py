"""Refusals of Google's APIs that no role ends: what the sidecar answers and logs, and what `check` says about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from proxy.emulator import CredentialFiles, Google
from proxy.emulator.credential_files import CredentialKind
from tests.support.emulated_setup import EmulatedSetup, emulated_setup
from tests.support.sidecar import sidecar

ACCEPT = {"accept": "application/vnd.restate.endpointmanifest.v3+json"}
IAM = "iamcredentials.googleapis.com"
TARGET = "target@emulated.iam.gserviceaccount.com"
LINKED = "linked@emulated.iam.gserviceaccount.com"
BILLING = "accountant@billing.iam.gserviceaccount.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is wrong at Google while one route mints its first token, and the sentence about it."""

    breaks: Callable[[Google], object]
    code: str
    says: str
    impersonates: bool = True


def _api_disabled(google: Google) -> None:
    google.disabled_apis.add(IAM)


def _project_denied(google: Google) -> None:
    google.project_users["billing"] = {BILLING}


def _disabled(account: str) -> Callable[[Google], None]:
    return lambda google: google.disabled.add(account)


def _attached_disabled(google: Google) -> None:
    google.disabled.add(google.metadata_account)


ENABLE_API = f"gcloud services enable {IAM} --project="
MAY_NOT_USE = "may not use the quota project billing: grant it roles/serviceusage.serviceUsageConsumer on that project"

ATTACHED = {
    "api": Refusal(breaks=_api_disabled, code="mint-refused", says=ENABLE_API),
    "project": Refusal(breaks=_project_denied, code="mint-refused", says=MAY_NOT_USE),
    "target": Refusal(
        breaks=_disabled(TARGET), code="mint-refused", says=f"gcloud iam service-accounts enable {TARGET}"
    ),
    "attached": Refusal(
        breaks=_attached_disabled,
        code="mint-refused",
        says="gcloud iam service-accounts enable ",
        impersonates=False,
    ),
}
"""With the metadata server's account, by name of the route."""

KEY = {
    "account": Refusal(
        breaks=_disabled(LINKED),
        code="credentials-rejected",
        says=f"its service account is disabled; enable it: gcloud iam service-accounts enable {LINKED}",
        impersonates=False,
    )
}
"""With a key of `LINKED`."""

FEDERATION = {
    "api": Refusal(breaks=_api_disabled, code="mint-refused", says=ENABLE_API),
    "account": Refusal(
        breaks=_disabled(LINKED), code="mint-refused", says=f"gcloud iam service-accounts enable {LINKED}"
    ),
}
"""With a federation file that impersonates `LINKED`."""

USER = {"project": Refusal(breaks=_project_denied, code="mint-refused", says=f"person@example.com {MAY_NOT_USE}")}
"""With a user's credentials."""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("kind", "refusals"),
    [
        (None, ATTACHED),
        ("service-account-key", KEY),
        ("external-account-impersonating", FEDERATION),
        ("authorized-user", USER),
    ],
    ids=["metadata", "key", "federation", "user"],
)
async def test_a_refusal_is_answered_logged_and_checked_with_its_remedy_and_minting_goes_on_without_it(
    kind: CredentialKind | None, refusals: dict[str, Refusal], tmp_path: Path
) -> None:
    async with emulated_setup(tmp_path, api_hosts=True) as here:
        _prepare(here, kind)
        config = tmp_path / "routes.toml"
        config.write_text(
            "".join(
                f'[routes.{name}]\nurl = "{here.url}"\n'
                + (f'gcp_impersonate_service_account = "{TARGET}"\n' if refusal.impersonates else "")
                for name, refusal in refusals.items()
            )
        )
        async with (
            sidecar("--config", config, env=here.environment) as running,
            aiohttp.ClientSession() as client,
        ):
            for name, refusal in refusals.items():
                refusal.breaks(here.google)
                async with client.get(f"{running.url}/{name}/discover", headers=ACCEPT) as response:
                    text = await response.text()
                assert response.status not in (200, 408, 429, 500, 502, 503, 504), (name, text)
                assert refusal.says in text, name
                assert "roles/iam." not in text, name
                checked = await here.run("check", "--json", "--config", config, name)
                assert checked.faults(name) == {"token": refusal.code}, checked.out
                assert refusal.says in checked.steps(name)["token"]["remedy"]
                assert not checked.steps(name)["token"].get("commands")
                here.google.disabled_apis.clear()
                here.google.project_users.clear()
                here.google.disabled.clear()
                async with client.get(f"{running.url}/{name}/discover", headers=ACCEPT) as response:
                    assert response.status == 200, (name, await response.text())
            log = await running.end()
    failed = [entry for entry in log if "token mint failed" in entry.values()]
    assert [entry["code"] for entry in failed] == [refusal.code for refusal in refusals.values()]
    for entry, refusal in zip(failed, refusals.values(), strict=True):
        assert refusal.says in str(entry), entry


def _prepare(here: EmulatedSetup, kind: CredentialKind | None) -> None:
    """Have the sidecar start with these credentials, a quota project, and every role that it needs."""
    here.google.add_account(TARGET)
    here.google.add_account(BILLING)
    here.environment["GOOGLE_CLOUD_QUOTA_PROJECT"] = "billing"
    caller = here.google.metadata_account
    if kind is not None:
        here.google.add_account(LINKED)
        written = CredentialFiles(here.folder / "files", here.google, here.endpoints, account=LINKED).write(kind)
        here.environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(written.file)
        here.environment.update(written.environment)
        caller = written.principal
    here.google.allow_impersonation(caller, TARGET)
    here.cloud_run.invokers.update({TARGET, LINKED})
