"""A real restate-server signs its requests, and the sidecar takes no others. The service verifies them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import restate

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from proxy.emulator.cloud_run import Application
from tests.support.container import Recorder
from tests.support.restate_server import RestateServer
from tests.support.sidecar import Sidecar, sidecar
from tests.support.signing_restate import SigningKey

INVOCATIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is up."""

    google: Google
    container: Recorder
    sidecar: Sidecar
    restate: RestateServer
    stranger: RestateServer


def greeter(key: SigningKey) -> Application:
    """Return a service that verifies itself who asks, and has a handler named like Restate's path of discoveries."""
    service = restate.Service("Greeter")

    @service.handler()
    async def greet(ctx: restate.Context, name: str) -> str:
        return f"Hello, {name}!"

    @service.handler()
    async def discover(ctx: restate.Context) -> str:
        return "found"

    return cast(Application, restate.app(services=[service], identity_keys=[key.public]))


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Bring up a Restate that signs, one that signs with another key, and the sidecar that knows the first."""
    google, certificates = Google(), Certificates.create(folder / "google")
    key, other = SigningKey(), SigningKey()
    container = Recorder(greeter(key))
    cloud_run = CloudRun(container, google, invokers=[google.metadata_account])
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(CloudRunServer(cloud_run, certificates))
        endpoints = await stack.enter_async_context(GoogleServer(google, certificates))
        running = await stack.enter_async_context(
            sidecar(
                *("--route", f"team/greeter={service.url}", "--upstream-ca", certificates.ca_file),
                *("--restate-identity-keys", key.public),
                env={"GCE_METADATA_HOST": endpoints.metadata_address},
            )
        )
        servers = []
        for name, signing in (("own", key), ("stranger", other)):
            (folder / name).mkdir()
            pem = signing.write(folder / f"{name}.pem")
            servers.append(await stack.enter_async_context(RestateServer.running(folder / name, identity_key_file=pem)))
        await servers[0].program.line(f"Loaded request identity key.*{key.public}")
        yield World(google=google, container=container, sidecar=running, restate=servers[0], stranger=servers[1])


@pytest.mark.asyncio
@pytest.mark.parametrize("use_http_11", [False, True], ids=["h2c", "http1.1"])
async def test_only_the_restate_whose_key_is_listed_is_served(tmp_path: Path, use_http_11: bool) -> None:
    async with world(tmp_path) as here:
        url = f"{here.sidecar.url}/team/greeter"
        refused = await here.stranger.register(url, use_http_11=use_http_11)
        assert refused.status == 500
        assert "caller-unverified" in str(refused.body)
        assert "restate_identity_keys" in str(refused.body)
        assert here.google.mints == []
        assert here.container.seen == []

        registered = await here.restate.register(url, use_http_11=use_http_11)
        assert registered.status == 201, registered.body
        asked = [here.restate.invoke("Greeter", "greet", f"number {number}") for number in range(INVOCATIONS)]
        assert await asyncio.gather(*asked) == [(200, f"Hello, number {number}!") for number in range(INVOCATIONS)]
        assert await here.restate.invoke("Greeter", "discover") == (200, "found")
        assert {seen.fields["x-restate-signature-scheme"] for seen in here.container.seen} == {"v1"}
