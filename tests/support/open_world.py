"""Open routes, with everything there is around them: restate-server, its CLI, the sidecar, and services of a project.

The settings of the sidecar say only what is allowed. Names are those of Cloud Run, at port 443; DNS is emulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google
from proxy.emulator.cloud_run import Application
from tests.support.container import Recorder, Seen
from tests.support.emulated import signing_key
from tests.support.emulated_setup import CommandResult
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import Sidecar, sidecar
from tests.support.world import HTTPS, at_spare_address, google_by_name, resolving

__all__ = [
    "AUDIENCE", "BROKEN", "CUSTOM", "ID_TOKEN", "IMPERSONATE", "ONE", "OTHER", "OWNER", "PROJECT", "PUBLIC", "SAMPLES",
    "TWO", "World", "world",
]  # fmt: skip

PROJECT: Final = "123456789012.europe-west1.run.app"
SAMPLES, OTHER, PUBLIC = (f"{name}-{PROJECT}" for name in ("samples", "other", "public"))
CUSTOM: Final = "https://samples.example.com"
ONE, TWO, BROKEN, OWNER = (f"{name}@p.iam.gserviceaccount.com" for name in ("one", "two", "broken", "owner"))
IMPERSONATE: Final = "x-cloudrun-sidecar-gcp-impersonate-service-account"
AUDIENCE: Final = "x-cloudrun-sidecar-gcp-audience"
ID_TOKEN: Final = "x-cloudrun-sidecar-gcp-id-token"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is up, and what there is to look at."""

    google: Google
    cloud_run: CloudRun
    container: Recorder
    other: CloudRun
    public: Recorder
    """What runs in a service that checks no token."""
    sidecar: Sidecar
    restate: RestateServer
    by_authority: bool
    config: Path
    """The settings file of the sidecar."""
    environment: dict[str, str]
    """What the sidecar finds Google, its services and their certificates with."""

    def url(self, host: str) -> str:
        """Return what to register for the service at a host."""
        return f"http://{host}" if self.by_authority else f"{self.sidecar.url}/{host}"

    async def register(self, *headers: str, host: str = SAMPLES, fails: bool = False) -> str:
        """Register with Restate's CLI, by force; return what it printed."""
        words = ["deployments", "register", "--yes", "--force", self.url(host)]
        for header in headers:
            words += ["--extra-header", header]
        ran = await self.shell("restate " + shlex.join(words))
        assert (ran.code != 0) is fails, ran.out + ran.err
        return " ".join((ran.out + ran.err).split())

    async def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> CommandResult:
        """Run `cloudrun-sidecar` with the settings file and environment of the sidecar, to its end."""
        variables = {**self._variables(), **(env or {})}
        return await _ran([sys.executable, "-m", "proxy", *map(str, arguments)], variables)

    def _variables(self) -> dict[str, str]:
        own = {"CLOUDRUN_SIDECAR_CONFIG": str(self.config), "CLOUDRUN_SIDECAR_LISTEN": self.sidecar.listen[0]}
        return {**self.environment, **own, "CLOUDSDK_CONFIG": "/nonexistent"}

    async def on_terminal(self, typed: str, *arguments: str) -> str:
        """Run `cloudrun-sidecar` as `run` does, with a terminal on which this is typed; return what it shows."""
        ours, its = os.openpty()
        try:
            program = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "proxy",
                *arguments,
                env={**os.environ, **self._variables()},
                stdin=its,
                stdout=its,
                stderr=its,
            )
            os.close(its)
            os.write(ours, typed.encode())
            shown = await asyncio.to_thread(_read_all, ours)
            await program.wait()
            return shown
        finally:
            os.close(ours)

    async def shell(self, command: str, env: Mapping[str, str] | None = None) -> CommandResult:
        """Run a command of Restate's CLI in a shell, with the admin API of this Restate, to its end."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {"PATH": path, "RESTATE_ADMIN_URL": self.restate.admin_url, "DO_NOT_TRACK": "1"}
        return await _ran(["bash", "-c", command], {**variables, "NO_COLOR": "1", **(env or {})})

    async def deployments(self) -> list[dict[str, Any]]:
        """Return what Restate has registered, services by name, without the time of its creation."""
        async with self.restate.http.get(f"{self.restate.admin_url}/deployments") as response:
            listed: list[dict[str, Any]] = (await response.json())["deployments"]
        for one in listed:
            one["services"].sort(key=lambda service: service["name"])
        return [{name: value for name, value in one.items() if name != "created_at"} for one in listed]

    async def greeted(self) -> Seen:
        """Invoke a handler; return the invocation as the container saw it."""
        assert await self.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        return self.container.invocations("Greeter")[-1]


def _read_all(terminal: int) -> str:
    """Return all that is written to a terminal until no program has it open."""
    shown = bytearray()
    with contextlib.suppress(OSError):  # EIO: closed by the last program
        while octets := os.read(terminal, 65_536):
            shown += octets
    return shown.decode()


async def _ran(argv: Sequence[str | Path], variables: Mapping[str, str]) -> CommandResult:
    program = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await program.communicate()
    assert program.returncode is not None
    return CommandResult(program.returncode, out.decode(), err.decode())


@asynccontextmanager
async def served(app: Application, certificates: Certificates, name: str) -> AsyncIterator[str]:
    """Run a service of this name at port 443 of a spare loopback address, which is returned."""
    async with AsyncExitStack() as stack:
        server = await at_spare_address(
            stack, lambda host: CloudRunServer(app, certificates, host=host, port=HTTPS, names=(name,))
        )
        yield server.url.removeprefix("https://").partition(":")[0]


@asynccontextmanager
async def world(folder: Path, *, by_authority: bool = False) -> AsyncIterator[World]:
    """Bring everything up: services of a project that a wildcard allows, and lists of accounts and audiences."""
    google, certificates = Google(signing_key=signing_key()), Certificates.create(folder / "google")
    for account in (ONE, TWO, BROKEN, OWNER):
        google.add_account(account)
    for account in (ONE, TWO, OWNER):
        google.allow_impersonation(google.metadata_account, account)
    container = Recorder(sample_services())
    cloud_run = CloudRun(
        container, google, url=f"https://{SAMPLES}", custom_audiences=[CUSTOM], invokers=[ONE, TWO, OWNER]
    )
    other = CloudRun(Recorder(sample_services()), google, url=f"https://{OTHER}", invokers=[ONE])
    public = Recorder(sample_services())
    config = folder / "routes.toml"
    config.write_text(f"""
        [deployments]
        hosts = ["*-{PROJECT}"]
        accounts = ["{ONE}", "{TWO}", "{BROKEN}"]
        audiences = ["{SAMPLES}={CUSTOM}"]
    """)
    async with AsyncExitStack() as stack:
        addresses = {
            SAMPLES: await stack.enter_async_context(served(cloud_run, certificates, SAMPLES)),
            OTHER: await stack.enter_async_context(served(other, certificates, OTHER)),
            PUBLIC: await stack.enter_async_context(served(public, certificates, PUBLIC)),
        }
        endpoints = await stack.enter_async_context(google_by_name(google, certificates))
        environment = resolving(folder, endpoints.tls_address.partition(":")[0], addresses)
        environment |= {"GCE_METADATA_HOST": endpoints.metadata_address, "SSL_CERT_FILE": str(certificates.ca_file)}
        running = await stack.enter_async_context(sidecar("--config", config, env=environment))
        data = folder / "restate"
        data.mkdir()
        proxy = running.url if by_authority else None
        restate = await stack.enter_async_context(RestateServer.running(data, http_proxy=proxy))
        yield World(
            google=google,
            cloud_run=cloud_run,
            container=container,
            other=other,
            public=public,
            sidecar=running,
            restate=restate,
            by_authority=by_authority,
            config=config,
            environment=environment,
        )
