"""Everything at once: restate-server and the sidecar as programs, Google and a private Cloud Run service emulated here.

The emulated side runs in the test's own process, so that a test can look into it and break it.
The programs do not know.
"""

from __future__ import annotations

import contextlib
import enum
import glob
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from proxy.emulator import API_HOSTS, CannotListen, Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from tests.support.container import Recorder
from tests.support.emulated import signing_key
from tests.support.ports import spare_addresses
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import Sidecar, sidecar

__all__ = [
    "AUTHORIZATION",
    "HTTPS",
    "ROUTE",
    "TARGET",
    "Identity",
    "World",
    "at_spare_address",
    "google_by_name",
    "resolving",
    "world",
]

AUTHORIZATION = "Bearer of-the-application"
"""What the deployment's requests carry for the application itself."""

TARGET = "invoker@samples.iam.gserviceaccount.com"
"""The impersonated account."""

ROUTE = "team/samples"
HTTPS = 443


class Identity(enum.Enum):
    """The identity of the sidecar at Cloud Run."""

    METADATA = "the metadata server's account"
    KEY = "a key file's account"
    METADATA_IMPERSONATING = "an account that the metadata server's account impersonates"
    KEY_IMPERSONATING = "an account that a key file's account impersonates"

    @property
    def impersonates(self) -> bool:
        """Whether the token is minted by IAM Credentials."""
        return self in (Identity.METADATA_IMPERSONATING, Identity.KEY_IMPERSONATING)

    @property
    def has_key(self) -> bool:
        """Whether the sidecar starts from a key file."""
        return self in (Identity.KEY, Identity.KEY_IMPERSONATING)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is up, and what there is to look at."""

    google: Google
    cloud_run: CloudRun
    container: Recorder
    account: str
    """The account that the container is called by."""
    sidecar: Sidecar
    restate: RestateServer

    @property
    def deployment_url(self) -> str:
        """What to register with Restate."""
        return f"{self.sidecar.url}/{ROUTE}"

    async def register(self, *, use_http_11: bool = False, **more: str) -> None:
        """Register the sample services; the deployment's requests carry AUTHORIZATION and the fields `more`."""
        fields = {"authorization": AUTHORIZATION, **{name.replace("_", "-"): value for name, value in more.items()}}
        answer = await self.restate.register(self.deployment_url, headers=fields, use_http_11=use_http_11, force=True)
        assert answer.status in (200, 201), answer.body


@asynccontextmanager
async def world(
    folder: Path, identity: Identity = Identity.METADATA, *flags: str, max_attempts: int | None = None
) -> AsyncIterator[World]:
    """Bring everything up, with the sample services in Cloud Run and one route to them; `flags` go to the sidecar.

    After `max_attempts` that fail, Restate pauses an invocation.
    """
    google = Google(slow_seconds=30.0, signing_key=signing_key())
    certificates = Certificates.create(folder / "google")
    start = "ambient@samples.iam.gserviceaccount.com" if identity.has_key else google.metadata_account
    account = TARGET if identity.impersonates else start
    container = Recorder(sample_services())
    cloud_run = CloudRun(container, google, invokers=[account])
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(CloudRunServer(cloud_run, certificates))
        reach = google_by_name if identity.impersonates else GoogleServer
        endpoints = await stack.enter_async_context(reach(google, certificates))
        environment: dict[str, str | None] = {
            "GCE_METADATA_HOST": endpoints.metadata_address,
            "SSL_CERT_FILE": str(certificates.ca_file),
        }
        if identity.has_key:
            key = folder / "key.json"
            key.write_text(json.dumps(google.key_file(start, endpoints.token_uri)))
            environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(key)
        if identity.impersonates:
            google.add_account(start)
            google.allow_impersonation(start, TARGET)
            environment |= resolving(folder, endpoints.tls_address.partition(":")[0])
        config = folder / "routes.toml"
        config.write_text(_routes(service.url, impersonate=TARGET if identity.impersonates else None))
        restate_folder = folder / "restate"
        restate_folder.mkdir()
        running = await stack.enter_async_context(sidecar("--config", config, *flags, env=environment))
        restate = await stack.enter_async_context(
            RestateServer.running(
                restate_folder,
                max_attempts=max_attempts,
                metadata_address=endpoints.metadata_address,
                ca_file=certificates.ca_file,
            )
        )
        yield World(
            google=google,
            cloud_run=cloud_run,
            container=container,
            account=account,
            sidecar=running,
            restate=restate,
        )


def resolving(folder: Path, address: str, others: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which Google's API hosts have this address: DNS as seen by one program alone.

    `others` are further names with their addresses.

    Raises FileNotFoundError when libnss_wrapper is not installed.
    """
    libraries = glob.glob("/usr/lib/*/libnss_wrapper.so") + glob.glob("/usr/lib/libnss_wrapper.so")
    if not libraries:
        raise FileNotFoundError("libnss_wrapper is not installed: `make test` installs it (Debian: libnss-wrapper)")
    hosts = folder / "hosts"
    addresses = {**dict.fromkeys(API_HOSTS, address), **(others or {})}
    hosts.write_text("".join(f"{address} {name}\n" for name, address in addresses.items()))
    return {"LD_PRELOAD": libraries[0], "NSS_WRAPPER_HOSTS": str(hosts)}


@asynccontextmanager
async def google_by_name(google: Google, certificates: Certificates) -> AsyncIterator[GoogleServer]:
    """Run Google's endpoints where their real names can lead to them: on port 443 of a spare loopback address."""
    async with AsyncExitStack() as stack:
        yield await at_spare_address(stack, lambda host: GoogleServer(google, certificates, host=host, tls_port=HTTPS))


Server = TypeVar("Server")


async def at_spare_address(stack: AsyncExitStack, make: Callable[[str], AbstractAsyncContextManager[Server]]) -> Server:
    """Enter what `make` returns for a loopback address of which no other program uses port 443, and return it."""
    for host in spare_addresses(HTTPS):
        with contextlib.suppress(CannotListen):
            return await stack.enter_async_context(make(host))
    raise AssertionError("no loopback address has port 443 free")


def _routes(url: str, *, impersonate: str | None) -> str:
    lines = [f'[routes."{ROUTE}"]', f'url = "{url}"']
    if impersonate:
        lines.append(f'gcp_impersonate_service_account = "{impersonate}"')
    return "\n".join(lines) + "\n"
