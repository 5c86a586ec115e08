"""Deployments own their authentication: Restate's CLI registers, changes and removes it through the sidecar.

The settings of the sidecar say only what is allowed. Names are those of Cloud Run, at port 443; DNS is emulated.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from proxy.emulator import CannotListen, Certificates, CloudRun, CloudRunServer, Google, Verdict
from proxy.emulator.cloud_run import Application
from tests.support.container import Recorder, Seen
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import Sidecar, sidecar
from tests.support.world import google_by_name, resolving

PROJECT: Final = "123456789012.europe-west1.run.app"
SAMPLES, OTHER, PUBLIC = (f"{name}-{PROJECT}" for name in ("samples", "other", "public"))
CUSTOM: Final = "https://samples.example.com"
ONE, TWO, BROKEN, OWNER = (f"{name}@p.iam.gserviceaccount.com" for name in ("one", "two", "broken", "owner"))
IMPERSONATE: Final = "x-cloudrun-sidecar-gcp-impersonate-service-account"
AUDIENCE: Final = "x-cloudrun-sidecar-gcp-audience"
ID_TOKEN: Final = "x-cloudrun-sidecar-gcp-id-token"
ADDRESSES_TRIED: Final = 20

by_path_and_by_authority = pytest.mark.parametrize("by_authority", [False, True], ids=["by-path", "by-authority"])


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

    def url(self, host: str) -> str:
        """Return what to register for the service at a host."""
        return f"http://{host}" if self.by_authority else f"{self.sidecar.url}/{host}"

    async def register(self, *headers: str, host: str = SAMPLES, fails: bool = False) -> str:
        """Register with Restate's CLI, by force; return what it printed."""
        words = ["deployments", "register", "--yes", "--force", self.url(host)]
        for header in headers:
            words += ["--extra-header", header]
        program = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("restate"),
            *words,
            env={**os.environ, "RESTATE_ADMIN_URL": self.restate.admin_url, "NO_COLOR": "1", "DO_NOT_TRACK": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = " ".join((await program.communicate())[0].decode().split())
        assert (program.returncode != 0) is fails, output
        return output

    async def greeted(self) -> Seen:
        """Invoke a handler; return the invocation as the container saw it."""
        assert await self.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        return self.container.invocations("Greeter")[-1]


@asynccontextmanager
async def served(app: Application, certificates: Certificates, name: str) -> AsyncIterator[str]:
    """Run a service of this name at port 443 of a spare loopback address, which is returned."""
    for _ in range(ADDRESSES_TRIED):
        address = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
        server = CloudRunServer(app, certificates, host=address, port=443, names=(name,))
        try:
            await server.__aenter__()
        except CannotListen:
            continue
        try:
            yield address
        finally:
            await server.__aexit__(None, None, None)
        return
    raise AssertionError("no loopback address has port 443 free")


@asynccontextmanager
async def world(folder: Path, *, by_authority: bool = False) -> AsyncIterator[World]:
    """Bring everything up: services of a project that a wildcard allows, and lists of accounts and audiences."""
    google, certificates = Google(), Certificates.create(folder / "google")
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
        )


@pytest.mark.asyncio
@by_path_and_by_authority
async def test_a_registration_adds_changes_and_removes_authentication(tmp_path: Path, by_authority: bool) -> None:
    async with world(tmp_path, by_authority=by_authority) as here:
        await here.register(f"{IMPERSONATE}={ONE}", "x-application=kept")
        seen = await here.greeted()
        assert (seen.claims["email"], seen.claims["aud"]) == (ONE, f"https://{SAMPLES}")

        await here.register(f"{IMPERSONATE}={TWO}", f"{AUDIENCE}={CUSTOM}", "x-application=kept")
        seen = await here.greeted()
        assert (seen.claims["email"], seen.claims["aud"]) == (TWO, CUSTOM)

        # IAM does not let the sidecar impersonate this one: the deployment that works stays.
        said = await here.register(f"{IMPERSONATE}={BROKEN}", fails=True)
        assert "roles/iam.serviceAccountOpenIdTokenCreator" in said
        assert BROKEN in said
        assert (await here.greeted()).claims["email"] == TWO

        # Without a token the front end refuses the discovery.
        assert "403" in await here.register(f"{ID_TOKEN}=false", fails=True)
        assert (await here.greeted()).claims["email"] == TWO

        assert {seen.fields["x-application"] for seen in here.container.seen} == {"kept"}

        # A public service needs none.
        await here.register(f"{ID_TOKEN}=false", host=PUBLIC)
        assert await here.restate.invoke("Greeter", "greet", "Ada") == (200, "Hello, Ada!")
        assert {seen.tokens for seen in here.public.seen} == {0}
        for seen in (*here.container.seen, *here.public.seen):
            assert not [name for name in seen.fields if name.startswith("x-cloudrun-sidecar")]


@pytest.mark.asyncio
@by_path_and_by_authority
async def test_what_the_lists_do_not_allow_is_refused_and_leaves_what_works(tmp_path: Path, by_authority: bool) -> None:
    async with world(tmp_path, by_authority=by_authority) as here:
        await here.register(f"{IMPERSONATE}={ONE}")
        for headers, host, reason in (
            ((f"{IMPERSONATE}={OWNER}",), SAMPLES, f"{OWNER} is not in the list accounts of [deployments]"),
            ((f"{AUDIENCE}=https://{OTHER}",), SAMPLES, "is not in the list audiences of [deployments]"),
            ((f"{AUDIENCE}=https://{SAMPLES}",), OTHER, "is not in the list audiences of [deployments]"),
            ((f"{AUDIENCE}={CUSTOM}",), OTHER, "is not in the list audiences of [deployments]"),
            (("x-cloudrun-sidecar-gcp-audiense=x",), SAMPLES, "is not a header of the sidecar"),
            ((), "evil-999999999999.europe-west1.run.app", "is not in the list hosts of [deployments]"),
            ((), "samples.europe-west1.run.app", "is not in the list hosts of [deployments]"),
        ):
            assert reason in await here.register(*headers, host=host, fails=True)
        several = await here.register(f"{IMPERSONATE}={OWNER}", f"{AUDIENCE}=https://{OTHER}", fails=True)
        assert OWNER in several
        assert OTHER in several
        assert (await here.greeted()).claims["email"] == ONE
        assert {(mint.email, mint.audience) for mint in here.google.mints} == {(ONE, f"https://{SAMPLES}")}
        assert here.other.streams == []
        assert here.cloud_run.verdicts.keys() == {Verdict.ACCEPTED}


@pytest.mark.asyncio
async def test_a_patch_of_the_deployment_may_change_its_headers(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.register(f"{IMPERSONATE}={ONE}")
        (deployment,) = await here.restate.query("SELECT id FROM sys_deployment")

        async def change(account: str) -> tuple[int, str]:
            url = f"{here.restate.admin_url}/deployments/{deployment['id']}"
            wish = {"additional_headers": {IMPERSONATE: account}}
            async with here.restate.http.patch(url, json=wish) as response:
                return response.status, await response.text()

        status, said = await change(OWNER)
        assert status == 500
        assert "is not in the list accounts of [deployments]" in said
        assert (await here.greeted()).claims["email"] == ONE
        assert (await change(TWO))[0] == 200
        assert (await here.greeted()).claims["email"] == TWO


@pytest.mark.asyncio
async def test_over_http_1_1_the_path_names_the_host_and_the_authority_does_not(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        registered = await here.restate.register(here.url(SAMPLES), headers={IMPERSONATE: ONE}, use_http_11=True)
        assert registered.status == 201, registered.body
        assert (await here.greeted()).claims["email"] == ONE
        arrived = len(here.cloud_run.streams)
        http = here.restate.http
        async with http.get(f"{here.sidecar.url}/discover", headers={"host": SAMPLES}) as response:
            assert (response.status, response.headers["x-cloudrun-sidecar-error"]) == (403, "browser-refused")
        async with http.get(f"http://{SAMPLES}/discover", proxy=here.sidecar.url) as response:
            assert (response.status, response.headers["x-cloudrun-sidecar-error"]) == (400, "bad-request")
        assert len(here.cloud_run.streams) == arrived
