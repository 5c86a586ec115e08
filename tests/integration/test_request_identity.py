"""Requests that no known Restate has signed are refused by the whole sidecar, over HTTP/2 and HTTP/1.1."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from proxy.emulator.cloud_run import Receive, Scope, Send
from tests.support.container import Recorder
from tests.support.peers.sockets import client
from tests.support.sidecar import Sidecar, sidecar, worker_pids
from tests.support.signing_restate import SigningKey

INVOKE = "/invoke/Greeter/greet"
KEY, OTHER = SigningKey(b"one"), SigningKey(b"other")

each_version = pytest.mark.parametrize("http2", [True, False], ids=["h2c", "http1.1"])


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 to everything."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A sidecar before a private service, and what reached Google and the service."""

    sidecar: Sidecar
    google: Google
    cloud_run: CloudRun
    container: Recorder
    config: Path
    settings: Callable[[SigningKey], str]

    async def ask(self, path: str, fields: Mapping[str, str], *, http2: bool) -> tuple[int, str]:
        """Return the status of a request on a new connection, and the failure code."""
        if http2:
            async with client(*self.sidecar.address) as peer:
                lines = [(name.encode(), value.encode()) for name, value in fields.items()]
                head = await peer.head(peer.open(path, fields=lines, end=True))
                return int(head[b":status"]), head.get(b"x-cloudrun-sidecar-error", b"").decode()
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.sidecar.url}{path}", headers=fields) as response,
        ):
            return response.status, response.headers.get("x-cloudrun-sidecar-error", "")

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.sidecar.admin}/metrics") as page:
            return await page.text()


@asynccontextmanager
async def stage(certificates: Certificates, folder: Path, *flags: str) -> AsyncIterator[Stage]:
    google, container = Google(), Recorder(nothing)
    cloud_run = CloudRun(container, google, invokers=[google.metadata_account])
    async with CloudRunServer(cloud_run, certificates) as far, GoogleServer(google, certificates) as endpoints:

        def settings(*keys: SigningKey) -> str:
            return f'restate_identity_keys = {[key.public for key in keys]}\n[routes.svc]\nurl = "{far.url}"\n'

        config = folder / "routes.toml"
        config.write_text(settings(KEY))
        environment = {"GCE_METADATA_HOST": endpoints.metadata_address}
        async with sidecar(
            "--config", config, "--upstream-ca", certificates.ca_file, *flags, env=environment
        ) as running:
            yield Stage(
                sidecar=running,
                google=google,
                cloud_run=cloud_run,
                container=container,
                config=config,
                settings=settings,
            )


@pytest.mark.asyncio
@each_version
@pytest.mark.parametrize("engine", ["auto", "h2"])
async def test_only_a_signed_request_reaches_google_and_the_service(
    certificates: Certificates, tmp_path: Path, engine: str, http2: bool
) -> None:
    async with stage(certificates, tmp_path, "--http2-engine", engine) as here:
        for fields in (
            {},
            {"x-restate-signature-scheme": "unsigned"},
            {"x-restate-signature-scheme": "v1", "x-restate-jwt-v1": "a.b.c"},
            OTHER.fields(INVOKE),
            KEY.fields("/discover"),
            KEY.fields(INVOKE, at=1.0),
        ):
            assert await here.ask(f"/svc{INVOKE}", fields, http2=http2) == (401, "caller-unverified")
        assert here.google.mints == []
        assert here.cloud_run.streams == []
        signed = KEY.fields(INVOKE)
        assert await here.ask(f"/svc{INVOKE}", signed, http2=http2) == (200, "")
        (seen,) = here.container.seen
        assert {name: seen.fields[name] for name in signed} == signed
        assert len(here.google.mints) == 1
        reasons = ("missing", "unsigned", "malformed", "unknown-key", "wrong-path", "expired")
        exposed = await here.metrics()
        for reason in reasons:
            assert f'cloudrun_sidecar_callers_unverified_total{{reason="{reason}"}} 1\n' in exposed
        lines = await here.sidecar.end()
        (first, *_) = [line for line in lines if line.get("code") == "caller-unverified"]
        assert "restate_identity_keys" in str(first["reason"])
        for value in (signed["x-restate-jwt-v1"], OTHER.fields(INVOKE)["x-restate-jwt-v1"].rpartition(".")[2]):
            assert value not in repr(lines)


@pytest.mark.asyncio
@pytest.mark.parametrize("workers", [1, 2])
async def test_keys_are_exchanged_without_a_restart(certificates: Certificates, tmp_path: Path, workers: int) -> None:
    admin = () if workers == 1 else ("--admin", "off")
    async with stage(certificates, tmp_path, "--workers", str(workers), *admin) as here:
        if workers > 1:
            await worker_pids(here.sidecar.program)

        async def statuses(key: SigningKey) -> set[int]:
            # New connections are shared evenly: each worker is asked.
            asked = [here.ask(f"/svc{INVOKE}", key.fields(INVOKE), http2=True) for _ in range(2 * workers)]
            return {status for status, _ in await asyncio.gather(*asked)}

        assert (await statuses(KEY), await statuses(OTHER)) == ({200}, {401})
        for times, (keys, expected) in enumerate(
            {(KEY, OTHER): ({200}, {200}), (OTHER,): ({401}, {200})}.items(), start=1
        ):
            here.config.write_text(here.settings(*keys))
            here.sidecar.program.send(signal.SIGHUP)
            await here.sidecar.logged(r'"settings reloaded".*restate_identity_keys', times)
            assert (await statuses(KEY), await statuses(OTHER)) == expected


@pytest.mark.asyncio
async def test_an_invalid_key_prevents_the_start_with_one_sentence(tmp_path: Path) -> None:
    program = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "proxy",
            "serve",
            "--upstream",
            "https://svc.run.app",
            "--restate-identity-keys",
            "secret",
        ),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await program.communicate()
    assert program.returncode == 2
    assert b"--restate-identity-keys: must begin with publickeyv1_" in told
    assert b"secret" not in told
