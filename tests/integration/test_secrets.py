"""Nothing that the sidecar writes or answers holds a secret: every source, every fault, at the noisiest log level."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, CredentialFiles, Fault, GeneratedCredentials, Google
from proxy.emulator.cloud_run import Receive, Scope, Send
from proxy.emulator.model import ENDPOINTS
from tests.support.sidecar import Sidecar, sidecar
from tests.support.world import TARGET, google_by_name, resolving

ACCOUNT = "ambient@samples.iam.gserviceaccount.com"
METADATA = "metadata-server"

ROUTES = """
[routes.ambient]
url = "{url}"
[routes.impersonating]
url = "{url}"
gcp_impersonate_service_account = "{target}"
"""

ASKED = {
    METADATA: {"metadata", "iam"},
    "service-account-key": {"oauth", "iam"},
    "authorized-user": {"oauth", "iam"},
    "external-account-file": {"sts", "iam"},
    "external-account-url": {"azure", "sts", "iam"},
    "external-account-executable": {"sts", "iam"},
    "external-account-aws-metadata": {"aws", "sts", "iam"},
    "external-account-aws-keys": {"sts", "iam"},
    "external-account-impersonating": {"sts", "iam"},
    "external-account-authorized-user": {"sts", "iam"},
    "impersonated-service-account": {"oauth", "iam"},
}
"""Source → the endpoint that mints with it."""

OF_THE_APPLICATION = {"Authorization": "Bearer credential-of-the-application"}
OF_THE_CALLER = {
    **OF_THE_APPLICATION,
    "X-Serverless-Authorization": "Bearer eyJmYWtl.eyJzcG9vZmVk.c3Bvb2ZlZA",
}
ADMIN = ("/", "/livez", "/readyz", "/startupz", "/metrics", "/routes", "/status", "/openapi.json")

# What secrets begin with: JWTs, Google's access and refresh tokens, AWS' signed requests, keys.
BEGINNINGS = ("eyJ", "ya29.", "1//", "AWS4-HMAC", "PRIVATE KEY", "credential-of-the-application")


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 without content."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def all_of(
    client: aiohttp.ClientSession, method: str, url: str, fields: Mapping[str, str] = OF_THE_CALLER
) -> str:
    """Return everything of the answer as text, and its status in front."""
    async with client.request(method, url, headers=fields) as response:
        return f"{response.status} {response.raw_headers!r} {await response.text()}"


def pieces(issued_secrets: set[str]) -> Iterator[str]:
    """The secrets, and of each token its claims and its signature by themselves."""
    for secret in issued_secrets:
        yield secret
        if secret.count(".") == 2:
            yield from secret.split(".")[1:]


async def ask_everything(google: Google, running: Sidecar, client: aiohttp.ClientSession, told: list[str]) -> None:
    """Make both routes mint with new access tokens, and append what they answer."""
    google.revoke_access_tokens()
    # All at once: where a mint hangs, they wait together.
    async with asyncio.TaskGroup() as asking:
        answers = [
            asking.create_task(all_of(client, method, f"{running.url}/{route}/{path}", fields))
            for route in ("ambient", "impersonating")
            for method, path, fields in (
                # With a token of the caller's own it is refused, and nothing is minted.
                ("GET", "discover", OF_THE_CALLER),
                ("GET", "discover", OF_THE_APPLICATION),
                ("POST", "invoke/S/h", OF_THE_CALLER),
            )
        ]
    told.extend(answer.result() for answer in answers)


async def end(running: Sidecar, told: list[str]) -> None:
    """Stop it and append all that it wrote."""
    running.program.send(signal.SIGTERM)
    await running.program.ended()
    told.extend(running.program.lines)


def assert_without_secrets(everything: str, issued_secrets: set[str]) -> None:
    """Assert that tokens were minted, that mints failed, and that no secret is in what was written and answered."""
    for event in ("token mint failed", "token minted"):
        assert event in everything
    assert len(issued_secrets) > 5
    # `redact`, the net below, had nothing to catch.
    assert "[redacted]" not in everything
    for secret in (*pieces(issued_secrets), *BEGINNINGS):
        assert secret not in everything, f"…{everything[everything.index(secret) - 200 :][:200]}"


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ASKED)
async def test_no_log_line_and_no_response_has_a_secret(certificates: Certificates, tmp_path: Path, kind: str) -> None:
    google = Google(slow_seconds=0.05)
    cloud_run = CloudRun(nothing, google, invokers=[ACCOUNT, TARGET, google.metadata_account])
    async with google_by_name(google, certificates) as server, CloudRunServer(cloud_run, certificates) as service:
        environment: dict[str, str | None] = {
            "GCE_METADATA_HOST": server.metadata_address,
            "SSL_CERT_FILE": str(certificates.ca_file),
            **resolving(tmp_path, server.tls_address.partition(":")[0]),
        }
        written = GeneratedCredentials(file=tmp_path / "no-file", principal=google.metadata_account)
        if kind != METADATA:
            files = CredentialFiles(tmp_path / "credentials", google, server, account=ACCOUNT, by_name=True)
            written = files.write(kind)
            environment |= {"GOOGLE_APPLICATION_CREDENTIALS": str(written.file), **written.environment}
        config = tmp_path / "routes.toml"
        config.write_text(ROUTES.format(url=service.url, target=TARGET))
        flags = ("--config", config, "--log-level", "debug", "--access-log")
        told: list[str] = []
        async with (
            sidecar(*flags, "--mint-timeout", "30", env=environment) as running,
            aiohttp.ClientSession() as client,
        ):
            google.allow_impersonation(written.principal, TARGET)
            await ask_everything(google, running, client, told)
            assert any(text.startswith("200 ") for text in told)
            cloud_run.invokers.clear()
            await ask_everything(google, running, client, told)
            cloud_run.url = "https://of-another-service.example"
            await ask_everything(google, running, client, told)
            for endpoint in ENDPOINTS:
                for fault in (fault for fault in Fault if fault is not Fault.HANG):
                    calls = google.calls[endpoint]
                    google.fail(endpoint, fault)
                    await ask_everything(google, running, client, told)
                    google.fail(endpoint, None)
                    if google.calls[endpoint] == calls:
                        assert endpoint not in ASKED[kind]
                        break
                    assert endpoint in ASKED[kind]
            # A mint that hangs outlasts the requests that waited for it: one process each.
            for endpoint in (endpoint for endpoint in ENDPOINTS if endpoint in ASKED[kind]):
                google.fail(endpoint, Fault.HANG)
                async with sidecar(*flags, "--mint-timeout", "3", env=environment) as another:
                    calls = google.calls[endpoint]
                    await ask_everything(google, another, client, told)
                    assert google.calls[endpoint] > calls
                    google.fail(endpoint, None)
                    await end(another, told)
            google.forbid_impersonation(written.principal, TARGET)
            await ask_everything(google, running, client, told)
            if kind != METADATA:
                written.file.write_text(written.file.read_text()[:-40])
                await ask_everything(google, running, client, told)
            told += [await all_of(client, "GET", f"http://{running.admin}{path}") for path in ADMIN]
            await end(running, told)
            everything = "\n".join(told)

    assert set(ASKED) == {METADATA, *CredentialFiles.KINDS}
    assert_without_secrets(everything, google.issued_secrets)
