"""The steps `dns` and `tcp` of a check whose upstream is reached through an HTTP proxy."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.doctor.connecting import ConnectionCheck, ConnectionResult
from proxy.doctor.report import Step
from proxy.emulator import Certificates
from proxy.network.http_proxy import HttpProxy
from proxy.network.resolver import Resolver
from proxy.routes import Origin
from tests.support.peers.connect_proxy import connect_proxy
from tests.support.peers.sockets import server, server_context
from tests.unit.upstream.connecting import connector, listening

HOST = "greeter.example"
ORIGIN = Origin("https", HOST, 443)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))


async def reached(proxy: HttpProxy, ca: Path | None = None, seconds: float = 5.0) -> ConnectionResult:
    """Connect, and close the connection."""
    opener = connector(upstream_ca=ca, upstream_proxy=proxy, connect_timeout_seconds=seconds)
    found = await ConnectionCheck(opener, Resolver(), ca, seconds).connect(ORIGIN, time.time())
    if found.connection is not None:
        found.connection.abort()
        await found.connection.gone
    return found


def by_name(found: ConnectionResult) -> dict[str, Step]:
    return {step.name: step for step in found.steps}


@pytest.mark.asyncio
async def test_all_steps_pass_through_a_proxy_and_say_so(certificates: Certificates) -> None:
    tls = server_context(*certificates.server_files(HOST))
    async with server(tls) as far, connect_proxy({f"{HOST}:443": far.port}, login="ada:hunter2") as proxy:
        found = await reached(HttpProxy(host="127.0.0.1", port=proxy.port, login="ada:hunter2"), certificates.ca_file)
    assert [step.outcome.value for step in found.steps] == ["ok"] * 4
    steps = by_name(found)
    assert steps["dns"].text == f"127.0.0.1, of the proxy 127.0.0.1:{proxy.port}"
    assert steps["tcp"].text.startswith(f"through the proxy 127.0.0.1:{proxy.port} (127.0.0.1:{proxy.port}, ")
    assert steps["tcp"].details["proxy"] == f"http://127.0.0.1:{proxy.port}"
    assert steps["tls"].details["version"] == "TLSv1.3"
    assert "hunter2" not in repr(found)


@pytest.mark.asyncio
async def test_a_certificate_is_shown_through_the_tunnel_if_the_service_has_no_http2(
    certificates: Certificates,
) -> None:
    tls = server_context(*certificates.server_files(HOST), alpn=["http/1.1"])
    async with server(tls) as far, connect_proxy({f"{HOST}:443": far.port}) as proxy:
        found = await reached(HttpProxy(host="127.0.0.1", port=proxy.port), certificates.ca_file)
    assert [step.outcome.value for step in found.steps] == ["ok", "ok", "ok", "failed"]


@pytest.mark.asyncio
async def test_a_refused_tunnel_fails_in_tcp_with_the_proxys_words() -> None:
    async with connect_proxy({}, login="ada:s3cret") as proxy:
        found = await reached(HttpProxy(host="127.0.0.1", port=proxy.port))
    assert [step.outcome.value for step in found.steps] == ["ok", "failed", "skipped", "skipped"]
    step = by_name(found)["tcp"]
    assert step.code == "proxy-refused"
    assert "requires a login (407)" in step.text
    assert step.remedy is not None
    assert "upstream_proxy" in step.remedy


async def _close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


async def _wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read(-1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("conversation", "codes"), [(_close, {"proxy-failed", "proxy-refused"}), (_wait, {"proxy-timeout"})]
)
async def test_a_proxy_that_gives_no_answer_is_told_from_one_that_is_not_there(
    conversation: Callable[..., Any], codes: set[str]
) -> None:
    async with listening(conversation) as port:
        found = await reached(HttpProxy(host="127.0.0.1", port=port), seconds=0.5)
    assert by_name(found)["tcp"].code in codes
    gone = by_name(await reached(HttpProxy(host="127.0.0.1", port=port)))["tcp"]
    assert gone.code == "tcp-failed"
    assert gone.remedy == "Check host and port in upstream_proxy, and whether the proxy is running."


@pytest.mark.asyncio
async def test_a_proxy_whose_name_does_not_resolve_fails_in_dns() -> None:
    step = by_name(await reached(HttpProxy(host="proxy.invalid", port=3128)))["dns"]
    assert step.code == "dns-failed"
    assert step.text.startswith("the name proxy.invalid does not resolve")
    assert step.remedy == "Check upstream_proxy for a typo, then the resolver of this machine."


@pytest.mark.asyncio
async def test_a_tunnel_that_is_reset_as_soon_as_it_is_open_fails_in_tcp() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        checking = loop.create_task(reached(HttpProxy(host="127.0.0.1", port=proxy.getsockname()[1])))
        connection, _ = await loop.sock_accept(proxy)
        with connection:
            await loop.sock_recv(connection, 4096)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        step = by_name(await checking)["tcp"]
    assert step.code == "proxy-failed"
