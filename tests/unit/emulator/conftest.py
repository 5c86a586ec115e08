from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from proxy.emulator import Certificates, CloudRun, Google, GoogleServer
from proxy.emulator.jwts import Key
from proxy.emulator.model import SCOPE
from tests.support.emulated import AUDIENCE, CALLER, Clock, Names, signing_key, trusting
from tests.support.front_end import Application


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def account_key() -> Key:
    return Key()


@pytest.fixture(scope="session")
def other_key() -> Key:
    return Key()


@pytest.fixture(scope="session")
def cluster_key() -> Key:
    return Key()


@pytest.fixture
def google(clock: Clock, cluster_key: Key) -> Google:
    google = Google(clock=clock, slow_seconds=0.05, signing_key=signing_key())
    google.federation.cluster.key = cluster_key
    return google


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def cloud_run(application: Application, google: Google) -> CloudRun:
    return CloudRun(application, google, url=AUDIENCE, custom_audiences=["custom"], invokers=[CALLER])


@pytest.fixture
def form(google: Google) -> dict[str, str]:
    """A valid exchange of a pod's token."""
    cluster = google.federation.cluster
    return {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "audience": cluster.audience,
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": SCOPE,
        "subject_token": cluster.token("pod"),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    }


@pytest_asyncio.fixture
async def server(google: Google, certificates: Certificates) -> AsyncIterator[GoogleServer]:
    async with GoogleServer(google, certificates) as server:
        yield server


@pytest_asyncio.fixture
async def client(server: GoogleServer, certificates: Certificates) -> AsyncIterator[aiohttp.ClientSession]:
    """Every https name resolves to the emulator; its certificate is verified."""
    connector = aiohttp.TCPConnector(resolver=Names(server.tls_address), ssl=trusting(certificates.ca_file))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session
