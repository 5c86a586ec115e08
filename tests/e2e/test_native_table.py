"""Restate's own Google authentication and the sidecar, cell by cell of the table on Restate's page.

One service, one emulated Google; the credentials that both find are exchanged between the cells.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, CredentialFiles, Google
from tests.support.container import Recorder
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import Sidecar, sidecar
from tests.support.world import google_by_name, resolving

ACCOUNT = "attached@emulated.iam.gserviceaccount.com"
TARGET = "invoker@emulated.iam.gserviceaccount.com"
METADATA = "metadata@emulated.iam.gserviceaccount.com"

TABLE = {
    # source: whom the container sees without impersonation; None: no ID tokens
    "metadata": METADATA,
    "service-account-key": ACCOUNT,
    "external-account-file": None,
    "authorized-user": None,
    "impersonated-service-account": ACCOUNT,
}
"""The sources of the table, and one that is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    google: Google
    container: Recorder
    files: CredentialFiles
    well_known: Path
    service_url: str
    sidecar: Callable[[], AbstractAsyncContextManager[Sidecar]]
    """A new sidecar; a running one would take some seconds to notice other credentials."""
    restate: RestateServer

    def use(self, source: str) -> None:
        """Have both programs find these credentials, or none but the metadata server."""
        self.well_known.unlink(missing_ok=True)
        if source != "metadata":
            written = self.files.write(source)
            self.google.allow_impersonation(written.principal, TARGET)
            shutil.copy(written.file, self.well_known)

    async def discover(self, uri: str, auth: dict[str, str] | None) -> tuple[int, str, str | None]:
        """Return status and body of a registration for trial, and the account that the container saw."""
        body: dict[str, Any] = {"uri": uri, "force": True, "dry_run": True}
        if auth is not None:
            body["auth"] = {"GoogleIdToken": auth}
        before = len(self.container.discoveries())
        async with self.restate.http.post(f"{self.restate.admin_url}/deployments", json=body) as answer:
            text = await answer.text()
        seen = self.container.discoveries()[before:]
        numbers = {entry.claims["sub"] for entry in seen}
        names = {self.google.account(number) for number in numbers}
        return answer.status, text, names.pop() if names else None


@asynccontextmanager
async def _stage(folder: Path) -> AsyncIterator[_Stage]:
    google = Google()
    certificates = Certificates.create(folder / "google")
    for account in (ACCOUNT, TARGET):
        google.add_account(account)
    google.allow_impersonation(METADATA, TARGET)
    container = Recorder(sample_services())
    cloud_run = CloudRun(container, google, invokers=[METADATA, ACCOUNT, TARGET])
    well_known = folder / ".config" / "gcloud" / "application_default_credentials.json"
    well_known.parent.mkdir(parents=True)
    data = folder / "restate"
    data.mkdir()
    async with google_by_name(google, certificates) as endpoints, CloudRunServer(cloud_run, certificates) as service:
        environment = resolving(folder, endpoints.tls_address.partition(":")[0]) | {
            "HOME": str(folder),
            "CLOUDSDK_CONFIG": str(well_known.parent),
            "GCE_METADATA_HOST": endpoints.metadata_address,
            "SSL_CERT_FILE": str(certificates.ca_file),
        }
        config = folder / "routes.toml"
        config.write_text(
            f'[routes.ambient]\nurl = "{service.url}"\n'
            f'[routes.other]\nurl = "{service.url}"\ngcp_impersonate_service_account = "{TARGET}"\n'
        )
        async with RestateServer.running(data, env=environment, hosts=folder / "hosts") as restate:
            yield _Stage(
                google=google,
                container=container,
                files=CredentialFiles(folder / "credentials", google, endpoints, account=ACCOUNT, by_name=True),
                well_known=well_known,
                service_url=service.url,
                sidecar=lambda: sidecar("--config", config, env=environment),
                restate=restate,
            )


@pytest.mark.asyncio
async def test_both_ways_agree_on_every_cell(tmp_path: Path) -> None:
    async with _stage(tmp_path) as here:
        for source, ambient in TABLE.items():
            here.use(source)
            async with here.sidecar() as running:
                ways: tuple[tuple[str, dict[str, str] | None, str, dict[str, str] | None], ...] = (
                    (f"{running.url}/ambient", None, f"{running.url}/other", None),
                    (here.service_url, {}, here.service_url, {"impersonate_service_account": TARGET}),
                )
                for plain, auth, impersonating, with_target in ways:
                    status, text, seen = await here.discover(plain, auth)
                    assert (status in (200, 201), seen) == (ambient is not None, ambient), (source, plain, text)
                    if ambient is None:
                        assert "impersonat" in text, (source, plain, text)
                    status, text, seen = await here.discover(impersonating, with_target)
                    assert (status in (200, 201), seen) == (True, TARGET), (source, impersonating, text)
