from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import pytest
from hypercorn.config import Config

from proxy.emulator import (
    CannotListen,
    Certificates,
    CloudRun,
    CloudRunServer,
    Google,
    Limits,
    Verdict,
    cloud_run_server,
)
from tests.support.emulated import CALLER, trusting
from tests.support.peers.sockets import Fields, Peer, Response, client

Field = tuple[str, str]


@contextlib.asynccontextmanager
async def _http2(server: CloudRunServer, certificates: Certificates) -> AsyncIterator[Peer]:
    authority = server.url.removeprefix("https://")
    host, _, port = authority.rpartition(":")
    tls = trusting(certificates.ca_file, "h2", "http/1.1")
    async with client(host, int(port), tls=tls, scheme="https", authority=authority) as peer:
        yield peer


async def _get(peer: Peer, path: str, *fields: Field) -> Response:
    return await peer.response(peer.open(path, method="GET", fields=_encoded(fields), end=True))


def _encoded(fields: Iterable[Field]) -> Fields:
    return [(name.encode(), value.encode()) for name, value in fields]


def _token(google: Google, url: str) -> Field:
    return ("x-serverless-authorization", f"Bearer {google.id_token(CALLER, url)[0]}")


class Service:
    """An ASGI application: `/echo` responds while it reads, `/early` before, `/stuck` never."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.stuck = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == "/stuck":
            self.stuck.set()
            await asyncio.Event().wait()
        else:
            await self._handle(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            self.events.append(phase)
            await send({"type": f"lifespan.{phase}.complete"})

    async def _handle(self, scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"x-saw", name + b"=" + value) for name, value in scope["headers"] if name == b"authorization"]
        trailers = "http.response.trailers" in scope["extensions"]
        await send({"type": "http.response.start", "status": 200, "headers": fields, "trailers": trailers})
        more = scope["path"] == "/echo"
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": True})
        await send({"type": "http.response.body", "body": b"."})
        if trailers:
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})


@pytest.mark.asyncio
async def test_http2_is_negotiated_and_a_token_is_accepted(google: Google, certificates: Certificates) -> None:
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates) as server, _http2(server, certificates) as peer:
        assert cloud_run.url == server.url
        fields = [_token(google, server.url), ("authorization", "Bearer of the caller"), ("te", "trailers")]
        stream = peer.open("/echo", fields=_encoded(fields))
        await peer.send(stream, b"hello", end=True)
        response = await peer.response(stream)
    assert response.status == 200
    assert response.content == b"hello."
    assert response.trailers == [(b"x-sum", b"1")]
    assert response.fields[b"x-saw"] == b"authorization=Bearer of the caller"
    assert peer.h2.remote_settings.max_concurrent_streams == 100
    assert cloud_run.verdicts == {Verdict.ACCEPTED: 1}


@pytest.mark.asyncio
async def test_http11_works_as_well(google: Google, certificates: Certificates) -> None:
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates) as server, aiohttp.ClientSession() as client:
        tls = trusting(certificates.ca_file, "http/1.1")
        async with client.post(
            f"{server.url}/echo", ssl=tls, headers=[_token(google, server.url)], data=b"x"
        ) as answer:
            assert (answer.status, await answer.read()) == (200, b"x.")
        async with client.get(f"{server.url}/", ssl=tls) as answer:
            assert answer.status == 403
            assert answer.headers["server"] == "Google Frontend"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: \r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    ],
)
async def test_a_client_of_http11_gets_no_http2_whatever_it_asks_for(
    google: Google, certificates: Certificates, request_: bytes
) -> None:
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting(certificates.ca_file, "http/1.1"))
        writer.write(request_)
        assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\na: " + b"a" * 100_000 + b"\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\na: " + b"a" * 140_000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_requests_of_http11_are_refused_by_the_front_end_and_its_limits(
    google: Google, certificates: Certificates, request_: bytes, status: bytes
) -> None:
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates, limits=Limits(field_section_octets=131_072)) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting(certificates.ca_file, "http/1.1"))
        writer.write(request_)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 " + status)
        for field in (b"\r\nserver: google frontend\r\n", b"\r\ndate: ", b"\r\ncontent-type: text/html"):
            assert field in head
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_a_service_without_http2_does_not_offer_it(google: Google, certificates: Certificates) -> None:
    async with CloudRunServer(Service(), certificates, alpn_protocols=("http/1.1",)) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        tls = trusting(certificates.ca_file, "h2", "http/1.1")
        _, writer = await asyncio.open_connection(host, int(port), ssl=tls)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_a_refusal_during_the_content_keeps_the_connection(google: Google, certificates: Certificates) -> None:
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates) as server, _http2(server, certificates) as peer:
        refused = peer.open("/echo", fields=[(b"x-serverless-authorization", b"Bearer junk")])
        assert (await peer.response(refused)).status == 401
        for _ in range(40):
            await peer.send(refused, b"x" * 8_000)
        await peer.send(refused, b"", end=True)
        response = await _get(peer, "/early", _token(google, server.url))
        assert (response.status, response.content) == (200, b".")
        assert not peer.went_away.done()


@pytest.mark.asyncio
async def test_fields_over_the_advertised_limit_are_refused_and_keep_the_connection(
    google: Google, certificates: Certificates
) -> None:
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates) as server, _http2(server, certificates) as peer:
        token = _token(google, server.url)
        large = [(f"x-{number}", "a" * 4096) for number in range(10)]
        refused = await _get(peer, "/early", token, *large)
        assert peer.h2.remote_settings.max_header_list_size == 16_384
        assert refused.status == 431
        assert (await _get(peer, "/early", token)).status == 200
        async with (
            aiohttp.ClientSession() as http1,
            http1.get(server.url, headers=dict([token, *large]), ssl=trusting(certificates.ca_file)) as response,
        ):
            assert response.status == 431
    cloud_run, limits = CloudRun(Service(), google, invokers=[CALLER]), Limits(field_section_octets=65_536)
    async with CloudRunServer(cloud_run, certificates, limits=limits) as server, _http2(server, certificates) as peer:
        accepted = await _get(peer, "/early", _token(google, server.url), *large)
        assert peer.h2.remote_settings.max_header_list_size == 65_536
        assert accepted.status == 200
        larger = [(f"x-{number}", "a" * 8_000) for number in range(12)]  # more than h2 takes by itself
        assert (await _get(peer, "/early", *larger)).status == 431
        assert (await _get(peer, "/early", _token(google, server.url))).status == 200


@pytest.mark.asyncio
async def test_a_request_for_another_host_is_not_found(google: Google, certificates: Certificates) -> None:
    cloud_run = CloudRun(Service(), google, url="https://greeter-abc.a.run.app", invokers=[CALLER])
    tls = trusting(certificates.ca_file)
    async with CloudRunServer(cloud_run, certificates, names=("tagged---greeter-abc.a.run.app",)) as server:
        fields = dict([_token(google, "https://greeter-abc.a.run.app")])
        port = server.url.rpartition(":")[2]
        async with aiohttp.ClientSession() as http1:
            for host, status in (
                ("greeter-abc.a.run.app", 200),
                ("tagged---greeter-abc.a.run.app", 200),
                (f"localhost:{port}", 404),
                (f"127.0.0.1:{port}", 404),
                ("evil.example", 404),
            ):
                async with http1.get(
                    f"{server.url}/early",
                    headers=fields | {"Host": host},
                    ssl=tls,
                    server_hostname="greeter-abc.a.run.app",
                ) as response:
                    assert response.status == status, host
    assert cloud_run.verdicts == {Verdict.ACCEPTED: 2, Verdict.UNKNOWN_HOST: 3}


@pytest.mark.asyncio
async def test_hypercorns_limit_of_requests_does_not_end_a_connection(
    google: Google, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Config().keep_alive_max_requests == 1_000
    monkeypatch.setattr(Config, "keep_alive_max_requests", 10)  # its default, so that fewer requests show it
    cloud_run = CloudRun(Service(), google, invokers=[CALLER])
    async with CloudRunServer(cloud_run, certificates) as server, _http2(server, certificates) as peer:
        streams = [peer.open("/", method="GET", end=True) for _ in range(40)]
        assert {(await peer.response(stream)).status for stream in streams} == {403}
        await peer.ping()
        assert not peer.went_away.done()
    assert len(cloud_run.streams) == 40


@pytest.mark.asyncio
async def test_an_application_that_does_not_read_does_not_block_another(
    google: Google, certificates: Certificates
) -> None:
    service = Service()
    async with CloudRunServer(service, certificates) as server, _http2(server, certificates) as peer:
        stuck = peer.open("/stuck")
        for _ in range(50):
            await peer.send(stuck, b"x")
        assert (await _get(peer, "/early")).content == b"."


@pytest.mark.asyncio
async def test_the_lifespan_of_the_application_is_run(certificates: Certificates) -> None:
    service = Service()
    async with CloudRunServer(service, certificates):
        assert service.events == ["startup"]
    assert service.events == ["startup", "shutdown"]


@pytest.mark.asyncio
async def test_a_startup_that_fails_frees_the_port(certificates: Certificates) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    server = CloudRunServer(failing, certificates)
    with pytest.raises(Exception, match="no database"):
        async with server:
            pass
    port = int(server.url.rpartition(":")[2])
    async with CloudRunServer(Service(), certificates, port=port) as again:
        assert again.url == server.url


@pytest.mark.asyncio
async def test_it_stops_although_a_request_does_not_end(certificates: Certificates) -> None:
    service = Service()
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        async with CloudRunServer(service, certificates) as server:
            peer = await stack.enter_async_context(_http2(server, certificates))
            peer.open("/stuck", method="GET", end=True)
            await service.stuck.wait()
        await peer.closed
    assert service.events == ["startup", "shutdown"]


@pytest.mark.asyncio
async def test_it_stops_although_a_client_does_not_read(certificates: Certificates) -> None:
    sent = asyncio.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sent.set()
        await send({"type": "http.response.body", "body": b"x" * 1_000_000})

    async with (
        asyncio.timeout(60),
        contextlib.AsyncExitStack() as stack,
        CloudRunServer(flood, certificates) as server,
    ):
        peer = await stack.enter_async_context(_http2(server, certificates))
        peer.transport.pause_reading()
        peer.open("/", method="GET", end=True)
        await sent.wait()


@pytest.mark.asyncio
async def test_it_stops_at_once_when_connections_are_idle(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_run_server, "GRACE_SECONDS", 3600.0)
    async with asyncio.timeout(60):
        async with CloudRunServer(Service(), certificates) as server, _http2(server, certificates) as peer:
            await _get(peer, "/early")


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
async def test_nothing_is_left_of_a_connection_that_has_ended(certificates: Certificates, protocol: str) -> None:
    async with CloudRunServer(Service(), certificates) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        before = asyncio.all_tasks()
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting(certificates.ca_file, protocol))
        if protocol == "http/1.1":
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert await reader.read(1)  # of h2, the settings
        connection = asyncio.all_tasks() - before
        writer.transport.abort()
        _, running = await asyncio.wait(connection, timeout=10)
        assert not running


@pytest.mark.asyncio
async def test_a_refusal_during_an_upload_over_http11_is_no_failure(
    google: Google, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with CloudRunServer(CloudRun(Service(), google, invokers=[CALLER]), certificates) as server:
        authority = server.url.removeprefix("https://")
        host, _, port = authority.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting(certificates.ca_file, "http/1.1"))
        writer.write(
            f"POST / HTTP/1.1\r\nhost: {authority}\r\ncontent-length: 2000000\r\n\r\n".encode() + bytes(1_000_000)
        )
        assert b" 403 " in await reader.readline()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.transport.abort()
    assert not caplog.records


@pytest.mark.asyncio
async def test_a_connection_that_breaks_hypercorn_is_logged_and_the_next_one_works(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with CloudRunServer(Service(), certificates) as server:
        async with _http2(server, certificates) as peer:
            peer.open("/\u00e9", method="GET", end=True)
            await peer.closed
        async with _http2(server, certificates) as peer:
            assert (await _get(peer, "/early")).status == 200
        assert "A connection to the emulated Cloud Run failed" in caplog.text


@pytest.mark.asyncio
async def test_a_taken_port_is_named(certificates: Certificates) -> None:
    async with CloudRunServer(Service(), certificates) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}"):
            async with CloudRunServer(Service(), certificates, port=port):
                pass


@pytest.mark.asyncio
async def test_the_certificate_is_valid_for_the_services_own_name(certificates: Certificates) -> None:
    async with CloudRunServer(Service(), certificates, names=("greeter-abc.a.run.app",)) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        _, writer = await asyncio.open_connection(
            host, int(port), ssl=trusting(certificates.ca_file), server_hostname="greeter-abc.a.run.app"
        )
        writer.close()
        await writer.wait_closed()
