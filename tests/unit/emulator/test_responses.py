"""Every fault on every endpoint, over a real socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest

from proxy.emulator import Certificates, Fault, Google, GoogleServer
from proxy.emulator.model import ENDPOINTS, Endpoint
from tests.support.emulated import AUDIENCE, trusting

Ask = Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]]


@pytest.fixture
def urls(server: GoogleServer) -> dict[Endpoint, tuple[str, str]]:
    metadata = f"http://{server.metadata_address}/computeMetadata/v1/instance/service-accounts/default/identity"
    return {
        "metadata": ("GET", f"{metadata}?audience={AUDIENCE}"),
        "iam": ("POST", "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@b:generateIdToken"),
        "oauth": ("POST", "https://oauth2.googleapis.com/token"),
        "sts": ("POST", "https://sts.googleapis.com/v1/token"),
        "projects": ("GET", "https://cloudresourcemanager.googleapis.com/v1/projects/1"),
        "keys": ("GET", "https://www.googleapis.com/oauth2/v1/certs"),
        "aws": ("GET", f"http://{server.metadata_address}/latest/meta-data/placement/availability-zone"),
        "azure": ("GET", f"http://{server.metadata_address}/metadata/identity/oauth2/token"),
    }


@pytest.fixture(params=ENDPOINTS)
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    chosen: Endpoint = request.param
    return chosen


@pytest.fixture
def ask(client: aiohttp.ClientSession, urls: dict[Endpoint, tuple[str, str]], endpoint: Endpoint) -> Ask:
    return lambda: client.request(*urls[endpoint], headers={"Metadata-Flavor": "Google"})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fault", "status"), [(Fault.TOO_MANY_REQUESTS, 429), (Fault.SERVER_ERROR, 500), (Fault.DENIED, 403)]
)
async def test_a_refusal_has_the_format_of_the_endpoints_errors(
    ask: Ask, google: Google, endpoint: Endpoint, fault: Fault, status: int
) -> None:
    google.fail(endpoint, fault)
    async with ask() as response:
        assert response.status == status
        if endpoint == "metadata":
            assert response.content_type == "text/html"
            assert response.headers["Metadata-Flavor"] == "Google"
        elif endpoint in ("aws", "keys"):
            assert response.content_type == "text/html"
        elif endpoint in ("iam", "projects"):
            assert (await response.json())["error"]["code"] == status
        else:
            assert (await response.json()).keys() == {"error", "error_description"}


@pytest.mark.asyncio
async def test_a_caller_can_be_revoked_at_any_time(ask: Ask, google: Google, endpoint: Endpoint) -> None:
    google.fail(endpoint, Fault.REJECTED, times=1)
    statuses = {
        "metadata": 404,
        "iam": 401,
        "oauth": 400,
        "sts": 400,
        "projects": 401,
        "keys": 404,
        "aws": 401,
        "azure": 400,
    }
    async with ask() as response:
        assert response.status == statuses[endpoint]
        if response.status == 400:
            assert (await response.json())["error"] == "invalid_grant"


@pytest.mark.asyncio
async def test_junk_is_neither_a_token_nor_json(ask: Ask, google: Google, endpoint: Endpoint) -> None:
    google.fail(endpoint, Fault.JUNK)
    async with ask() as response:
        assert response.status == 200
        text = await response.text()
        assert text.count(".") != 2
        with pytest.raises(ValueError, match="Expecting"):
            await response.json(content_type=None)


@pytest.mark.asyncio
async def test_a_web_page_comes_with_200(ask: Ask, google: Google, endpoint: Endpoint) -> None:
    google.fail(endpoint, Fault.HTML)
    async with ask() as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "<html" in await response.text()


@pytest.mark.asyncio
async def test_a_reset_ends_the_connection_without_a_response(ask: Ask, google: Google, endpoint: Endpoint) -> None:
    google.fail(endpoint, Fault.RESET)
    with pytest.raises(aiohttp.ClientConnectionError):
        async with ask():
            pass


@pytest.mark.asyncio
async def test_a_reset_sends_rst(server: GoogleServer, google: Google) -> None:
    google.fail("metadata", Fault.RESET)
    host, _, port = server.metadata_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


@pytest.mark.asyncio
async def test_hanging_ends_when_the_client_disconnects(ask: Ask, google: Google, endpoint: Endpoint) -> None:
    google.fail(endpoint, Fault.HANG, times=1)
    google.calls = calls = _Noticing()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_error_of(ask()))
        await calls.arrived.wait()
        assert not waiting.done()
        waiting.cancel()
    async with ask() as response:
        assert response.status in (200, 400, 401)


@pytest.mark.asyncio
async def test_hanging_ends_when_the_server_stops(google: Google, certificates: Certificates) -> None:
    google.fail("oauth", Fault.HANG)
    google.calls = calls = _Noticing()
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        async with asyncio.timeout(30), GoogleServer(google, certificates) as server:
            tls = trusting(certificates.ca_file)
            waiting = group.create_task(_error_of(session.post(server.token_uri, ssl=tls)))
            await calls.arrived.wait()
        assert isinstance(await waiting, aiohttp.ClientError)


class _Noticing(Counter[Endpoint]):
    def __init__(self) -> None:
        super().__init__()
        self.arrived = asyncio.Event()

    def __setitem__(self, endpoint: Endpoint, count: int) -> None:
        super().__setitem__(endpoint, count)
        self.arrived.set()


async def _error_of(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Exception | None:
    try:
        async with request:
            return None
    except aiohttp.ClientError as exc:
        return exc


@pytest.mark.asyncio
async def test_a_slow_response_is_the_normal_one_later(
    client: aiohttp.ClientSession, urls: dict[Endpoint, tuple[str, str]], google: Google
) -> None:
    google.fail("metadata", Fault.SLOW)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with client.request(*urls["metadata"], headers={"Metadata-Flavor": "Google"}) as response:
        assert response.status == 200
        assert (await response.text()).count(".") == 2
    assert loop.time() - started >= google.slow_seconds * 0.9


@pytest.mark.asyncio
async def test_a_fault_comes_before_any_check_and_every_call_is_counted(
    client: aiohttp.ClientSession, server: GoogleServer, google: Google
) -> None:
    google.fail("metadata", Fault.SERVER_ERROR, times=1)
    for expected in (500, 403):
        async with client.get(f"http://{server.metadata_address}/computeMetadata/") as response:
            assert response.status == expected
    assert google.calls["metadata"] == 2
    assert google.mints == []
