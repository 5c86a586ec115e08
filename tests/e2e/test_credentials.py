"""What each credential can do, and what a registration says if it cannot.

A real restate-server and the real sidecar, whose only knowledge of Google is its environment: a credential file, and
names that lead to an emulator which verifies what the credential proves.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import (
    Certificates,
    CloudRun,
    CloudRunServer,
    CredentialFiles,
    GeneratedCredentials,
    Google,
    GoogleServer,
)
from tests.support.container import Recorder
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import Sidecar, sidecar
from tests.support.world import TARGET, google_by_name, resolving

METADATA = "metadata-server"
ACCOUNT = "ambient@samples.iam.gserviceaccount.com"
MIDDLE = "middle@samples.iam.gserviceaccount.com"

ROUTES = """
[routes.ambient]
url = "{url}"
[routes.impersonating]
url = "{url}"
gcp_impersonate_service_account = "{target}"
[routes.delegated]
url = "{url}"
gcp_impersonate_service_account = "{target}"
gcp_delegates = ["{middle}"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One row of the table, on stage; its columns are routes."""

    google: Google
    cloud_run: CloudRun
    container: Recorder
    sidecar: Sidecar
    restate: RestateServer
    written: GeneratedCredentials

    async def register(self, route: str) -> tuple[int, dict[str, Any]]:
        """Register the services over a route; status and content of the answer."""
        answer = await self.restate.register(f"{self.sidecar.url}/{route}")
        return answer.status, answer.body

    async def refused(self, route: str) -> str:
        """Return what the person reads whose registration is refused before anything reached Cloud Run."""
        arrived = len(self.cloud_run.streams)
        status, body = await self.register(route)
        assert (status, body["restate_code"]) == (500, "META0003"), body
        assert len(self.cloud_run.streams) == arrived
        message: str = body["message"]
        assert "424" in message
        return message

    async def works_as(self, route: str, account: str) -> None:
        """Assert that registration and invocation reach Cloud Run as this account."""
        seen = len(self.container.seen)
        status, body = await self.register(route)
        assert status in (200, 201), body
        assert await self.restate.invoke("Greeter", "greet", route) == (200, f"Hello, {route}!")
        assert {note.claims["email"] for note in self.container.seen[seen:]} == {account}


@asynccontextmanager
async def table(folder: Path, kind: str) -> AsyncIterator[Table]:
    google = Google()
    google.add_account(TARGET)
    google.allow_impersonation(MIDDLE, TARGET)
    certificates = Certificates.create(folder / "google")
    container = Recorder(sample_services())
    cloud_run = CloudRun(container, google, invokers=[ACCOUNT, TARGET, google.metadata_account])
    async with google_by_name(google, certificates) as server, CloudRunServer(cloud_run, certificates) as service:
        written = credential(kind, folder / "credentials", google, server)
        config = folder / "routes.toml"
        config.write_text(ROUTES.format(url=service.url, target=TARGET, middle=MIDDLE))
        environment: dict[str, str | None] = {
            "GCE_METADATA_HOST": server.metadata_address,
            "SSL_CERT_FILE": str(certificates.ca_file),
            "GOOGLE_APPLICATION_CREDENTIALS": None if kind == METADATA else str(written.file),
            **written.environment,
            **resolving(folder, server.tls_address.partition(":")[0]),
        }
        (folder / "restate").mkdir()
        async with (
            sidecar("--config", config, env=environment) as running,
            RestateServer.running(folder / "restate") as restate,
        ):
            yield Table(
                google=google,
                cloud_run=cloud_run,
                container=container,
                sidecar=running,
                restate=restate,
                written=written,
            )


def credential(kind: str, folder: Path, google: Google, server: GoogleServer) -> GeneratedCredentials:
    """Write the row's credential file, with Google's own names in it."""
    if kind == METADATA:
        return GeneratedCredentials(file=Path(os.devnull), principal=google.metadata_account)
    return CredentialFiles(folder, google, server, account=ACCOUNT, by_name=True).write(kind)


ROWS = {
    METADATA: "metadata@emulated.iam.gserviceaccount.com",
    "service-account-key": ACCOUNT,
    "impersonated-service-account": ACCOUNT,
    **dict.fromkeys(kind for kind in CredentialFiles.KINDS if kind.startswith(("external", "authorized"))),
}
"""Source → its own identity at Cloud Run; None where Google gives it no ID token for an audience."""


@pytest.mark.asyncio
@pytest.mark.parametrize(("kind", "itself"), ROWS.items(), ids=ROWS)
async def test_each_source_works_or_is_refused_as_its_table_row_says(
    tmp_path: Path, kind: str, itself: str | None
) -> None:
    async with table(tmp_path, kind) as row:
        for target in (TARGET, MIDDLE):
            row.google.allow_impersonation(row.written.principal, target)
        if itself is not None:
            await row.works_as("ambient", itself)
        else:
            message = await row.refused("ambient")
            assert f"cannot mint an ID token for the audience {row.cloud_run.url}" in message
            assert str(row.written.file) in message
            for way_out in ("gcp_impersonate_service_account", "service account's key file", "metadata server"):
                assert way_out in message
            assert row.google.calls == {}
        await row.works_as("impersonating", TARGET)
        row.google.forbid_impersonation(row.written.principal, TARGET)
        await row.works_as("delegated", TARGET)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "kind", [METADATA, "authorized-user", "external-account-file", "external-account-impersonating"]
)
async def test_a_denied_impersonation_names_role_account_and_principal(tmp_path: Path, kind: str) -> None:
    async with table(tmp_path, kind) as row:
        message = await row.refused("impersonating")
        pool = (
            "principalSet://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/emulated/*"
        )
        who = pool if kind == "external-account-file" else row.written.principal
        assert who in message
        assert f"may not impersonate {TARGET}" in message
        assert "grant it roles/iam.serviceAccountOpenIdTokenCreator on that service account" in message
        # Once it is granted, nothing has to be restarted.
        row.google.allow_impersonation(row.written.principal, TARGET)
        await row.works_as("impersonating", TARGET)


@dataclass
class Desk:
    """A credential file that changes under the sidecar."""

    file: Path
    google: Google
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def put(self, content: object) -> None:
        self.clear()
        self.file.write_text(content if isinstance(content, str) else json.dumps(content))

    def put_folder(self) -> None:
        self.clear()
        self.file.mkdir()

    def clear(self) -> None:
        if self.file.is_dir():
            self.file.rmdir()
        self.file.unlink(missing_ok=True)


def broken(desk: Desk) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Every way in which a set-up can be wrong: over which route, what is to be read, how to get there."""
    key = desk.google.key_file(ACCOUNT)
    user = desk.google.user_file("person@example.com")
    federated = {
        "type": "external_account",
        "audience": desk.google.federation.cluster.audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "credential_source": {"file": str(desk.file.with_name("no-subject-token"))},
    }

    def but(info: dict[str, Any], **changes: object) -> Callable[[], None]:
        changed = {name: value for name, value in {**info, **changes}.items() if value is not None}
        return lambda: desk.put(changed)

    def revoked() -> None:
        desk.google.revoke_user(user["refresh_token"])
        desk.put(user)

    def stranger() -> None:
        file = desk.google.key_file("stranger@samples.iam.gserviceaccount.com")
        desk.put({**file, "client_email": ACCOUNT})

    yield "ambient", "No such file or directory", desk.clear
    yield "ambient", "is a directory", desk.put_folder
    yield "ambient", "is empty", lambda: desk.put("")
    yield "ambient", "is not JSON", lambda: desk.put("{")
    yield "ambient", "is not a JSON object", lambda: desk.put([key])
    yield "ambient", "has no type; a Google credential file has one of: service_account", but(key, type=None)
    yield "ambient", "has the type 'foo'", but(key, type="foo")
    yield "ambient", "has no client_email, token_uri", but(key, client_email=None, token_uri=None)
    yield "ambient", "is not an RSA key in PEM form", but(key, private_key="-----BEGIN PRIVATE KEY-----")
    yield "ambient", "credentials of Google Distributed Cloud", but(key, type="gdch_service_account")
    yield "ambient", "belongs to another universe than googleapis.com", but(key, universe_domain="example.cloud")
    yield "ambient", "does not accept the key", stranger
    yield "impersonating", "X.509 workload identity", but(federated, credential_source={"certificate": {}})
    yield "impersonating", "none of environment_id, executable, file, url", but(federated, credential_source={"a": "b"})
    yield "impersonating", "no-subject-token' was not found", but(federated)
    yield (
        "impersonating",
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
        but(federated, credential_source={"executable": {"command": "/bin/true"}}),
    )
    yield "impersonating", "run `gcloud auth application-default login`", revoked


@pytest.mark.asyncio
async def test_a_failed_registration_says_what_is_wrong_with_the_credentials(tmp_path: Path) -> None:
    async with table(tmp_path, "service-account-key") as row:
        row.google.allow_impersonation(ACCOUNT, TARGET)
        good = row.written.file.read_text()
        desk = Desk(row.written.file, row.google)
        for route, what, spoil in broken(desk):
            spoil()
            message = await row.refused(route)
            assert what in message, message
            assert str(desk.file) in message, message
            assert "PRIVATE KEY" not in message
        # What was put right is taken up by the next mint.
        desk.put(good)
        await row.works_as("ambient", ACCOUNT)
        await row.works_as("impersonating", TARGET)
