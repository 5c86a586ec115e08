from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from proxy.admin import AdminPlane, Health
from proxy.admin.guard import Deadlines
from proxy.admin.plane import PATHS
from proxy.downstream.channel import WORKERS_READY, WORKERS_STARTING, Channel
from proxy.errors import TokenTimeout
from proxy.network.address import Address, parse_address
from proxy.observe.exposition import CONTENT_TYPE
from proxy.observe.health import RouteHealth
from proxy.observe.history import History
from proxy.observe.metrics import Metrics
from proxy.routes import Origin, Route
from proxy.tokens.model import TokenKey
from tests.support.live import StillState
from tests.support.observed import Observed

ROUTES = (
    Route(name="greeter", origin=Origin("https", "greeter.run.app", 443), base_path="/base"),
    Route(
        name="team/orders",
        origin=Origin("https", "orders.run.app", 443),
        audience="https://orders.example.com",
        impersonate="invoker@project.iam.gserviceaccount.com",
        delegates=("relay@project.iam.gserviceaccount.com",),
    ),
    Route(name="", origin=Origin("http", "127.0.0.1", 8080), signed=False),
)


@dataclass
class State:
    started: bool = True
    draining: bool = False


@dataclass
class Site:
    plane: AdminPlane
    state: State
    metrics: Metrics
    health: RouteHealth
    session: aiohttp.ClientSession

    async def get(self, path: str, method: str = "GET", host: str = "") -> tuple[int, str, dict[str, str]]:
        fields = {"Host": host} if host else {}
        async with self.session.request(method, f"http://{self.plane.address}{path}", headers=fields) as response:
            return response.status, await response.text(), dict(response.headers)


@asynccontextmanager
async def running(address: str = "127.0.0.1:0", **options: Any) -> AsyncIterator[Site]:
    state, metrics = State(), Metrics()
    health: Health = state
    routes_health = RouteHealth(metrics)
    plane = AdminPlane(address, health, metrics, routes_health, StillState(ROUTES), **options)
    await plane.start()
    connector = aiohttp.UnixConnector(address.removeprefix("unix:")) if address.startswith("unix:") else None
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            yield Site(plane, state, metrics, routes_health, session)
        finally:
            await plane.close()


def still_plane(address: str, *routes: Route) -> AdminPlane:
    metrics = Metrics()
    return AdminPlane(address, State(), metrics, RouteHealth(metrics), StillState(routes or ROUTES))


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with running() as site:
        yield site


@pytest.mark.asyncio
async def test_localhost_is_the_same_address_as_for_the_listener() -> None:
    async with running("localhost:0") as site:
        assert site.plane.address.startswith("127.0.0.1:")
        assert (await site.get("/livez"))[0] == 200


# ---- health


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("started", "draining", "live", "started_up", "ready"),
    [
        (False, False, 200, 503, 503),
        (True, False, 200, 200, 200),
        (True, True, 200, 200, 503),
        (False, True, 200, 503, 503),
    ],
)
async def test_probes_distinguish_liveness_startup_and_readiness(
    site: Site, started: bool, draining: bool, live: int, started_up: int, ready: int
) -> None:
    site.state.started, site.state.draining = started, draining
    assert [(await site.get(path))[0] for path in ("/livez", "/startupz", "/readyz")] == [live, started_up, ready]


@pytest.mark.asyncio
async def test_a_probe_is_answered_with_one_word_and_the_reason(site: Site) -> None:
    assert (await site.get("/livez"))[1] == "alive: answering\n"
    assert (await site.get("/readyz"))[1] == "ready: taking requests\n"
    site.state.draining = True
    status, text, headers = await site.get("/readyz")
    assert (status, text) == (503, "draining: live exchanges finish, new ones are refused\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    site.state.started = site.state.draining = False
    assert (await site.get("/readyz"))[1] == (await site.get("/startupz"))[1] == "starting: not listening yet\n"


@pytest.mark.asyncio
@pytest.mark.parametrize(("replacing", "ready"), [(False, 503), (True, 200)])
async def test_a_worker_that_waits_for_others_is_ready_only_if_another_sidecar_serves(
    site: Site, replacing: bool, ready: int
) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        peers = site.plane.join(Channel(its, [], replacing=replacing))
        assert [(await site.get(path))[0] for path in ("/startupz", "/readyz")] == [503, ready]
        for message, then in ((WORKERS_READY, [200, 200]), (WORKERS_STARTING, [200, 503])):
            peers.commands[message]()
            assert [(await site.get(path))[0] for path in ("/startupz", "/readyz")] == then
        await peers.close()


@pytest.mark.asyncio
async def test_readiness_never_connects_to_an_upstream() -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.setblocking(False)
        route = Route(name="a", origin=Origin("http", "127.0.0.1", upstream.getsockname()[1]), signed=False)
        plane = still_plane("127.0.0.1:0", route)
        await plane.start()
        async with aiohttp.ClientSession() as session:
            for path in PATHS:
                async with session.get(f"http://{plane.address}{path}") as response:
                    assert response.status == 200
        await plane.close()
        with pytest.raises(BlockingIOError):
            upstream.accept()


# ---- the other paths


@pytest.mark.asyncio
async def test_metrics_are_served_in_the_format_of_prometheus(site: Site) -> None:
    site.metrics.route(ROUTES[0]).started(Observed())
    status, text, headers = await site.get("/metrics")
    assert status == 200
    assert headers["Content-Type"] == CONTENT_TYPE
    assert 'cloudrun_sidecar_requests_in_flight{route="greeter"} 1\n' in text
    assert "process_resident_memory_bytes" in text


@pytest.mark.asyncio
async def test_routes_are_listed_with_upstream_audience_and_identity(site: Site) -> None:
    _, text, headers = await site.get("/routes")
    greeter, orders, rest = json.loads(text)
    assert headers["Content-Type"].startswith("application/json")
    assert greeter == {
        "name": "greeter",
        "url": "https://greeter.run.app/base",
        "gcp_id_token": True,
        "gcp_audience": "https://greeter.run.app",
        "gcp_impersonate_service_account": None,
        "gcp_delegates": [],
    }
    assert orders["gcp_audience"] == "https://orders.example.com"
    assert orders["gcp_impersonate_service_account"] == "invoker@project.iam.gserviceaccount.com"
    assert orders["gcp_delegates"] == ["relay@project.iam.gserviceaccount.com"]
    assert (rest["name"], rest["gcp_id_token"], rest["gcp_audience"]) == ("", False, None)


@pytest.mark.asyncio
async def test_an_unknown_path_is_answered_with_the_known_ones(site: Site) -> None:
    for path in ("/nope", "/healthz", "/routes/greeter", "/livez/"):
        status, text, _ = await site.get(path)
        assert status == 404
        assert text == f"no such path; there are {' '.join(PATHS)}\n"


@pytest.mark.asyncio
async def test_only_get_and_head_are_allowed(site: Site) -> None:
    for path in PATHS:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            status, _, headers = await site.get(path, method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.asyncio
async def test_head_returns_the_status_without_a_body(site: Site) -> None:
    site.state.draining = True
    assert (await site.get("/readyz", "HEAD"))[:2] == (503, "")


@pytest.mark.asyncio
async def test_answers_do_not_name_the_server_and_forbid_caching(site: Site) -> None:
    for path in (*PATHS, "/nope"):
        _, _, headers = await site.get(path)
        assert "Server" not in headers
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.asyncio
async def test_readiness_reflects_routes_that_cannot_mint_if_the_settings_say_so(site: Site) -> None:
    assert (await site.get("/readyz?routes"))[:2] == (200, "ready: taking requests\n")
    site.health.mint_failed(TokenKey.for_route(ROUTES[0]), TokenTimeout("no answer"), 5.0, False)
    status, text, _ = await site.get("/readyz?routes")
    assert (status, text) == (503, "not ready: routes without a token\ngreeter: token-timeout: no answer\n")
    assert (await site.get("/readyz"))[0] == 200
    site.state.draining = True
    assert (await site.get("/readyz?routes"))[1].startswith("draining: ")


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["rebound.example.com", "rebound.example.com:9091", "localhost.example.com"])
async def test_a_web_page_under_a_name_of_its_own_is_refused(site: Site, host: str) -> None:
    for path in (*PATHS, "/nope"):
        status, text, _ = await site.get(path, host=host)
        assert (status, "allowed_hosts" in text) == (403, True)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:1", "[::1]:9091", "10.1.2.3", "host.docker.internal", "yours.example"]
)
async def test_names_that_no_web_page_can_have_and_allowed_hosts_are_accepted(host: str) -> None:
    async with running(allowed_hosts=["yours.example"]) as site:
        assert (await site.get("/livez", host=host))[0] == 200


@pytest.mark.asyncio
async def test_a_host_that_is_neither_name_nor_address_is_refused(site: Site) -> None:
    assert (await site.get("/livez", host="a b"))[:2] == (400, "the field host is neither a host name nor an address\n")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HTTP/1.1\r\nHost: ", b"GET /livez HTTP/1.1\r\nHost: x.local\r\n\r\nGET"]
)
async def test_a_client_that_sends_too_slowly_is_cut_off(sent: bytes) -> None:
    deadlines = Deadlines(first_request_seconds=0.1, idle_seconds=0.1)
    async with running(deadlines=deadlines) as site:
        address = parse_address(site.plane.address)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(sent)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        assert reader.at_eof() or reader.exception() is not None
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


@pytest.mark.asyncio
async def test_a_client_that_reads_too_slowly_is_cut_off() -> None:
    many = [Route(name=f"r{number}", origin=Origin("https", f"s{number}.run.app", 443)) for number in range(50_000)]
    metrics = Metrics()
    deadlines = Deadlines(first_request_seconds=0.1, answer_seconds=0.05)
    plane = AdminPlane("127.0.0.1:0", State(), metrics, RouteHealth(metrics), StillState(many), deadlines=deadlines)
    await plane.start()
    address = parse_address(plane.address)
    loop = asyncio.get_running_loop()
    received = b""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (address.host, address.port))
        await loop.sock_sendall(client, b"GET /routes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                while octets := await loop.sock_recv(client, 512):
                    received = (received + octets)[-5:]
    await plane.close()
    # The last chunk, which says that an answer is complete (RFC 9112, 7.1).
    assert received != b"0\r\n\r\n"


# ---- the port


@pytest.mark.asyncio
async def test_the_address_has_the_real_port() -> None:
    async with running("127.0.0.1:0") as site:
        address = parse_address(site.plane.address)
        assert address.host == "127.0.0.1"
        assert address.port > 0


@pytest.mark.asyncio
async def test_an_ipv6_address_has_brackets() -> None:
    async with running("[::1]:0") as site:
        assert site.plane.address.startswith("[::1]:")
        assert (await site.get("/livez"))[0] == 200


@pytest.mark.asyncio
async def test_a_unix_socket_is_served_and_its_file_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with running(f"unix:{path}") as site:
        assert site.plane.address == f"unix:{path}"
        async with site.session.get("http://localhost/readyz") as response:
            assert response.status == 200
    assert not path.exists()


@pytest.mark.asyncio
async def test_a_port_in_use_raises_os_error() -> None:
    async with running() as site:
        second = still_plane(site.plane.address)
        with pytest.raises(OSError, match="Address already in use") as busy:
            await second.start()
        assert busy.value.errno == errno.EADDRINUSE
        await second.close()


@pytest.mark.asyncio
async def test_workers_can_share_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = Address.of_socket(listening.getsockname())
        async with running(bound=listening.dup()) as first, running(bound=listening.dup()) as second:
            assert first.plane.address == second.plane.address == str(address)
            for site in (first, second):
                assert (await site.get("/livez"))[0] == 200


@pytest.mark.asyncio
async def test_it_has_no_address_before_start_and_can_be_closed_in_any_state() -> None:
    plane = still_plane("127.0.0.1:0")
    with pytest.raises(RuntimeError, match="not been started"):
        _ = plane.address
    await plane.close()
    await plane.start()
    await plane.close()
    await plane.close()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = plane.address


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_an_idle_client() -> None:
    async with running() as site:
        address = parse_address(site.plane.address)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"alive: answering\n")
        async with asyncio.timeout(30):
            await site.plane.close()
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_an_interval_that_cannot_be_recorded_does_not_end_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: asyncio.Queue[None] = asyncio.Queue()

    def failing(_: History) -> Iterator[str]:
        tried.put_nowait(None)
        yield ""
        raise MemoryError

    monkeypatch.setattr("proxy.admin.plane.INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(History, "sample", failing)
    metrics = Metrics()
    plane = AdminPlane("127.0.0.1:0", State(), metrics, RouteHealth(metrics), StillState(()))
    with capture_logs() as lines:
        await plane.start()
        for _ in range(2):
            await asyncio.wait_for(tried.get(), 20)
        await plane.close()
    assert {line["event"] for line in lines} == {"internal error: an interval of the history is missing"}
