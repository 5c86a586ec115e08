"""Failures of Cloud Run itself, as a client sees them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from h2.errors import ErrorCodes

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, Limits, ServiceFault
from tests.support.emulated import CALLER, trusting
from tests.support.peers.sockets import Gone, Peer, Reset, client

pytestmark = pytest.mark.asyncio

STATUS = {
    ServiceFault.TOO_MANY_REQUESTS: 429,
    ServiceFault.NO_INSTANCE: 503,
    ServiceFault.SERVER_ERROR: 500,
    ServiceFault.PROTOCOL_ERROR: 502,
    ServiceFault.TIMEOUT: 504,
    ServiceFault.DENIED: 403,
    ServiceFault.REJECTED: 401,
    ServiceFault.IAP: 401,
    ServiceFault.SLOW: 200,
    ServiceFault.GO_AWAY: 200,
}
RESETS = {
    ServiceFault.STREAM_RESET: ErrorCodes.INTERNAL_ERROR,
    ServiceFault.STREAM_REFUSED: ErrorCodes.REFUSED_STREAM,
}


class Container:
    """Responds at once, or to `/wait` and `/begin` when it is told to; `/begin` has sent its head before."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.arrived = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        assert "proxy.emulator.stream_control" not in scope["state"]
        self.arrived.set()
        if scope["path"] == "/begin":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] != "/":
            await self.go.wait()
        if scope["path"] != "/begin":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"."})


class Setup:
    """A service, a client of it, and a valid token."""

    def __init__(self, cloud_run: CloudRun, container: Container, peer: Peer, token: bytes) -> None:
        self.cloud_run, self.container, self.peer = cloud_run, container, peer
        self.token = [(b"authorization", b"Bearer " + token)]

    def open(self, path: str = "/") -> int:
        return self.peer.open(path, method="GET", fields=self.token, end=True)

    async def status(self, path: str = "/") -> int:
        return (await self.peer.response(self.open(path))).status


@contextlib.asynccontextmanager
async def _setup(google: Google, certificates: Certificates, **more: Any) -> AsyncIterator[Setup]:
    container = Container()
    cloud_run = CloudRun(container, google, invokers=[CALLER], **more)
    limits = Limits(notice_seconds=0.01)
    async with CloudRunServer(cloud_run, certificates, limits=limits) as server:
        authority = server.url.removeprefix("https://")
        host, _, port = authority.rpartition(":")
        tls = trusting(certificates.ca_file, "h2")
        async with client(host, int(port), tls=tls, scheme="https", authority=authority) as peer:
            token, _ = google.id_token(CALLER, server.url)
            yield Setup(cloud_run, container, peer, token.encode())


async def test_a_fault_has_its_response_and_ends_after_so_many_requests(
    google: Google, certificates: Certificates
) -> None:
    assert STATUS.keys() | RESETS.keys() | {ServiceFault.HANG, ServiceFault.DROP} == set(ServiceFault)
    async with _setup(google, certificates) as here:
        for fault, status in STATUS.items():
            if fault is not ServiceFault.GO_AWAY:
                here.cloud_run.fail(fault, times=1)
                assert (await here.status(), await here.status()) == (status, 200), fault
                assert here.cloud_run.pending_fault.fault is None
        for fault, code in RESETS.items():
            here.cloud_run.fail(fault, times=1)
            with pytest.raises(Reset) as caught:
                await here.status()
            assert caught.value.code == code
        here.cloud_run.fail(ServiceFault.PROTOCOL_ERROR)
        answer = await here.peer.response(here.open())
        assert answer.content.endswith(b"reset reason: protocol error")
        # A request without a token is refused as ever.
        refused = here.peer.open("/", method="GET", end=True)
        assert (await here.peer.response(refused)).status == 403
        here.cloud_run.fail(ServiceFault.GO_AWAY, times=1)
        assert await here.status() == 200
        await here.peer.went_away
        await here.peer.closed


async def test_a_websocket_uses_up_no_fault_that_it_cannot_have(google: Google) -> None:
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def accept(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    cloud_run = CloudRun(accept, google, url="https://svc.example", invokers=["allUsers"])
    websocket: dict[str, Any] = {
        "type": "websocket",
        "path": "/",
        "headers": [(b"host", b"svc.example")],
        "client": None,
    }
    for fault in ServiceFault:
        cloud_run.fail(fault, times=1)
        await cloud_run({**websocket, "state": {}}, receive, send)
        refused = fault in (ServiceFault.DENIED, ServiceFault.REJECTED, ServiceFault.IAP)
        assert (sent.pop(), cloud_run.pending_fault.fault is None) == (
            "websocket.close" if refused else "websocket.accept",
            refused,
        )


async def test_a_dropped_connection_ends_without_goaway(google: Google, certificates: Certificates) -> None:
    async with _setup(google, certificates) as here:
        here.cloud_run.fail(ServiceFault.DROP)
        with pytest.raises(Gone):
            await here.status()
        assert not here.peer.went_away.done()


async def test_a_connection_with_many_requests_is_dropped_without_an_error(
    google: Google, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with _setup(google, certificates) as here:
        here.cloud_run.fail(ServiceFault.DROP)
        for _ in range(5):
            here.open()
        await here.peer.closed
    assert not caplog.records


async def test_a_fault_that_hangs_does_not_stop_others(google: Google, certificates: Certificates) -> None:
    async with _setup(google, certificates) as here:
        here.cloud_run.fail(ServiceFault.HANG, times=1)
        hanging = here.open()
        assert await here.status() == 200
        assert here.peer.streams[hanging].empty()


async def test_the_request_timeout_ends_a_request_before_and_during_its_response(
    google: Google, certificates: Certificates
) -> None:
    async with _setup(google, certificates, request_timeout_seconds=0.05) as here:
        assert await here.status("/wait") == 504
        with pytest.raises(Reset):
            await here.status("/begin")
        assert await here.status() == 200


async def test_only_so_many_requests_are_taken_at_a_time(google: Google, certificates: Certificates) -> None:
    async with _setup(google, certificates, max_requests=1) as here:
        first = here.open("/wait")
        await here.container.arrived.wait()
        assert await here.status() == 429
        here.container.go.set()
        assert (await here.peer.response(first)).status == 200
        assert await here.status() == 200


async def test_a_service_may_be_behind_iap_without_http2_or_cold(google: Google, certificates: Certificates) -> None:
    async with _setup(google, certificates, iap=True, cold_start_seconds=0.01) as here:
        answer = await here.peer.response(here.peer.open("/", method="GET", end=True))
        assert (answer.status, answer.fields[b"x-goog-iap-generated-response"]) == (302, b"true")
        assert answer.fields[b"location"].startswith(b"https://accounts.google.com/")
        assert await here.status() == 401  # a token for Cloud Run
        here.cloud_run.iap = False
        assert await here.status() == 200
        here.cloud_run.http2 = False
        assert await here.status() == 502
