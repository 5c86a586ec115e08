"""Google's own clients, unmodified, against the emulator: google-auth (Python) and google-auth-library (Node).

Clients for Rust, Go and Java are not run; tests/unit/emulator/test_clients.py sends what they were read to send. Rust's
is part of restate-server, which test_native_table.py runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, CredentialFiles, Google, GoogleServer, Pod, echo
from tests.support.world import google_by_name, resolving

ACCOUNT = "attached@emulated.iam.gserviceaccount.com"
NODE_LIBRARY = Path(sys.prefix) / "google-auth-node" / "node_modules"

PYTHON = """
import json, sys
import google.auth, google.auth.transport.requests
from google.oauth2 import id_token
request = google.auth.transport.requests.Request()
found = {}
try:
    found["id_token"] = id_token.fetch_id_token(request, sys.argv[1])
except google.auth.exceptions.GoogleAuthError as exc:
    found["refused"] = type(exc).__name__
credentials, found["project"] = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
credentials.refresh(request)
found["access_token"] = credentials.token
print(json.dumps(found))
"""

NODE = """
const {GoogleAuth} = require('google-auth-library');
(async () => {
  const url = process.argv[1];
  const found = {};
  const auth = new GoogleAuth({scopes: ['https://www.googleapis.com/auth/cloud-platform']});
  try {
    const client = await auth.getIdTokenClient(url);
    const answer = await client.request({url: url + '/hello'});
    found.claims = answer.data.claims;
  } catch (error) {
    found.refused = error.message;
  }
  found.access_token = await auth.getAccessToken();
  console.log(JSON.stringify(found));
})();
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    google: Google
    url: str
    files: CredentialFiles
    environment: dict[str, str | None]

    async def run(self, argv: list[str | Path], kind: str | None, **more: str) -> dict[str, Any]:
        """Run a client with a credential file of this kind, or without one; return the JSON that it prints."""
        variables: dict[str, str | None] = {**self.environment, **more}
        if kind is not None:
            written = self.files.write(kind)
            variables |= {"GOOGLE_APPLICATION_CREDENTIALS": str(written.file), **written.environment}
        environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
        child = await asyncio.create_subprocess_exec(
            *argv, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await child.communicate()
        assert child.returncode == 0, err.decode()
        found: dict[str, Any] = json.loads(out)
        return found

    def principal(self, access_token: str) -> str:
        access = self.google.access(access_token)
        assert access is not None
        return access.principal


@asynccontextmanager
async def _stage(folder: Path) -> AsyncIterator[_Stage]:
    google, certificates = Google(), Certificates.create(folder / "google")
    google.add_account(ACCOUNT)
    cloud_run = CloudRun(echo, google, invokers=[google.metadata_account, ACCOUNT])
    async with google_by_name(google, certificates) as endpoints, CloudRunServer(cloud_run, certificates) as service:
        authority = str(certificates.ca_file)
        environment: dict[str, str | None] = {
            **resolving(folder, endpoints.tls_address.partition(":")[0]),
            **_variables(endpoints, authority),
            "HOME": str(folder),
            "CLOUDSDK_CONFIG": str(folder / "no-gcloud"),
            "GOOGLE_APPLICATION_CREDENTIALS": None,
        }
        files = CredentialFiles(folder / "credentials", google, endpoints, account=ACCOUNT, by_name=True)
        yield _Stage(google=google, url=service.url, files=files, environment=environment)


def _variables(endpoints: GoogleServer, authority: str) -> Mapping[str, str]:
    """Return the variables that the command `emulate` prints."""
    address = endpoints.metadata_address
    return {
        "GCE_METADATA_HOST": address,
        "GCE_METADATA_IP": address,
        "SSL_CERT_FILE": authority,
        "REQUESTS_CA_BUNDLE": authority,
        "NODE_EXTRA_CA_CERTS": authority,
    }


@pytest.mark.asyncio
async def test_google_auth_finds_its_credentials_and_gets_its_tokens(tmp_path: Path) -> None:
    async with _stage(tmp_path) as here:
        argv: list[str | Path] = [sys.executable, "-c", PYTHON, here.url]
        metadata, key, federation = await asyncio.gather(
            here.run(argv, None),
            here.run(argv, "service-account-key"),
            here.run(argv, "external-account-file"),
        )
        claims = [read(found["id_token"], here.url) for found in (metadata, key, federation)]
        # With a federation file, fetch_id_token turns to the metadata server without a word.
        attached = here.google.metadata_account
        assert [entry["email"] for entry in claims] == [attached, ACCOUNT, attached]
        assert [here.principal(found["access_token"]) for found in (metadata, key)] == [
            here.google.metadata_account,
            ACCOUNT,
        ]
        assert (metadata["project"], key["project"]) == ("emulated", "emulated")
        # default() asks Resource Manager for the id of the pool's project.
        assert federation["project"] == "emulated"
        assert here.principal(federation["access_token"]).startswith("principal://")
        assert here.google.calls["projects"] == 1
        here.google.pod = Pod(namespace="prod", name="restate")
        pod = await here.run(argv, None)
        assert pod["refused"] == "RefreshError"
        assert here.principal(pod["access_token"]).endswith("/subject/ns/prod/sa/restate")


def read(token: str, audience: str) -> dict[str, Any]:
    from google.auth import jwt

    claims: dict[str, Any] = jwt.decode(token, verify=False)  # type: ignore[no-untyped-call]  # google-auth
    assert claims["aud"] == audience
    return claims


def _recent(node: str) -> bool:
    """Return True if a Node is new enough for Google's library."""
    argv = [node, "-p", "parseInt(process.versions.node) >= 18"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout == "true\n"


@pytest.mark.asyncio
async def test_nodes_library_calls_the_service_with_each_kind_of_credentials(tmp_path: Path) -> None:
    places = (*os.environ["PATH"].split(":"), str(Path(sys.prefix) / "bin"))
    nodes = (shutil.which("node", path=place) for place in places)
    node = next((one for one in nodes if one is not None and _recent(one)), None)
    assert node is not None, "google-auth-library needs Node 18 or newer, and there is none: `make test` brings it"
    assert NODE_LIBRARY.is_dir(), "google-auth-library is not installed: `make test` installs it"
    async with _stage(tmp_path) as here:
        argv: list[str | Path] = [node, "-e", NODE, here.url]
        kinds = (None, "service-account-key", "authorized-user", "external-account-url")
        found = dict(
            zip(
                kinds,
                await asyncio.gather(*(here.run(argv, kind, NODE_PATH=str(NODE_LIBRARY)) for kind in kinds)),
                strict=True,
            )
        )
        assert found[None]["claims"]["email"] == here.google.metadata_account
        assert found["service-account-key"]["claims"]["email"] == ACCOUNT
        # A user's token is for the client of the sign-in, and Node does not notice; Cloud Run does.
        assert "401" in found["authorized-user"]["refused"]
        assert "Cannot fetch ID token" in found["external-account-url"]["refused"]
        assert here.principal(found["authorized-user"]["access_token"]) == "person@example.com"
        assert here.principal(found["external-account-url"]["access_token"]).startswith("principal://")
