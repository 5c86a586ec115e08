"""An outage under load, of the metadata server or of the token endpoint. Tokens live little over a minute."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, CredentialFiles, Fault, Google, GoogleServer
from proxy.emulator.cloud_run import Receive, Scope, Send
from proxy.emulator.model import Endpoint
from tests.support.sidecar import Sidecar, sidecar

USABLE_SECONDS = 3
AT_ONCE = 50
BATCHES = 6
GROWTH_OCTETS = 16 << 20


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 without content."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def threads(running: Sidecar) -> int:
    status = Path(f"/proc/{running.program.pid}/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])


def environment(certificates: Certificates, server: GoogleServer, folder: Path | None) -> dict[str, str | None]:
    """Point a sidecar at the emulator; with a folder, at a key file in there."""
    found: dict[str, str | None] = {
        "GCE_METADATA_HOST": server.metadata_address,
        "SSL_CERT_FILE": str(certificates.ca_file),
    }
    if folder is None:
        return found
    files = CredentialFiles(folder, server.google, server, account=server.google.metadata_account)
    return found | {"GOOGLE_APPLICATION_CREDENTIALS": str(files.write("service-account-key").file)}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("endpoint", "fault"), [("metadata", Fault.HANG), ("metadata", Fault.RESET), ("oauth", Fault.HANG)]
)
async def test_requests_are_served_during_an_outage_while_a_token_is_valid_then_fail_fast_then_recover(
    certificates: Certificates, tmp_path: Path, endpoint: Endpoint, fault: Fault
) -> None:
    google = Google(token_lifetime_seconds=60 + USABLE_SECONDS)
    cloud_run = CloudRun(nothing, google, invokers=[google.metadata_account])
    async with (
        GoogleServer(google, certificates) as server,
        CloudRunServer(cloud_run, certificates) as service,
        sidecar(
            *("--route", f"svc={service.url}", "--mint-timeout", "0.5"),
            env=environment(certificates, server, tmp_path if endpoint == "oauth" else None),
        ) as running,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):

        async def invoke() -> tuple[int, int]:
            """Status, and retry-after in seconds (0: none)."""
            async with client.post(f"{running.url}/svc/invoke/S/h") as response:
                return response.status, int(response.headers.get("retry-after", 0))

        while (await invoke())[0] != 200:  # The first mint, with all its imports, may take longer than that timeout.
            assert not google.mints[1:]
        google.fail(endpoint, fault)
        until = google.mints[-1].expires_at - 60

        # Served as long as the token holds, whatever the metadata server does meanwhile.
        bridged = 0
        while (answer := await invoke())[0] == 200:
            bridged += 1
        assert bridged > 0
        assert time.time() > until

        # Then every request fails, at once: few of them are calls of the metadata server.
        flat = threads(running), running.resident_octets
        calls = google.calls[endpoint]
        for _ in range(BATCHES):
            for status, seconds in (answer, *await asyncio.gather(*(invoke() for _ in range(AT_ONCE)))):
                assert status == 503
                assert 1 <= seconds <= 5
        assert google.calls[endpoint] - calls <= 6
        assert threads(running) <= flat[0]
        assert running.resident_octets - flat[1] < GROWTH_OCTETS

        # It ends without any action.
        google.fail(endpoint, None)
        minted = len(google.mints)
        while (await invoke())[0] != 200:
            assert len(google.mints) <= minted + 1
        assert (await invoke())[0] == 200
