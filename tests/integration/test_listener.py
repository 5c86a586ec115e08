"""Common clients: curl over HTTP/1.1 and h2c, nghttp, h2load."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from tests.support.chain import Routes, StartChain
from tests.support.peers.sockets import Reset
from tests.support.sidecar import Sidecar, sidecar


async def run(*argv: str, stdin: bytes = b"") -> str:
    """Run a command; return its output, or fail with all of it."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await child.communicate(stdin)
    assert child.returncode == 0, output.decode(errors="replace")
    return output.decode(errors="replace")


async def mirror(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Echo the request; answer `/bytes/N` with N octets."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"].startswith("/bytes/"):
        content = bytes(int(scope["path"].removeprefix("/bytes/")))
    else:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        content = json.dumps(
            {"method": scope["method"], "path": scope["path"], "headers": headers, "octets": len(body)}
        ).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def mirrored(certificates: Certificates, routes: Routes, *flags: str) -> AsyncIterator[Sidecar]:
    async with CloudRunServer(mirror, certificates) as far:
        config = routes(svc=far.url)
        async with sidecar("--config", config, "--upstream-ca", certificates.ca_file, *flags) as running:
            yield running


@pytest.mark.asyncio
@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
async def test_curl_can_get_and_post(certificates: Certificates, routes: Routes, version: str) -> None:
    async with mirrored(certificates, routes) as running:
        url = f"{running.url}/svc/hello?x=1"
        seen = json.loads(await run("curl", "-sSf", version, "-H", "Authorization: Bearer mine", url))
        assert seen["method"] == "GET"
        assert seen["path"] == "/hello"
        assert seen["headers"]["authorization"] == "Bearer mine"
        content = bytes(3 << 20)
        seen = json.loads(await run("curl", "-sSf", version, "--data-binary", "@-", url, stdin=content))
        assert (seen["method"], seen["octets"]) == ("POST", len(content))


@pytest.mark.asyncio
async def test_curl_downloads_over_http1_chunked_and_keeps_the_connection(
    certificates: Certificates, routes: Routes
) -> None:
    async with mirrored(certificates, routes) as running:
        url = f"{running.url}/svc/bytes/5000000"
        output = await run(
            "curl",
            "-sS",
            "--http1.1",
            "-o",
            "/dev/null",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download} %{num_connects}\n",
            url,
            url,
        )
        assert output.split() == ["5000000", "1", "5000000", "0"]


@pytest.mark.asyncio
async def test_http1_upgrade_to_h2c_has_no_effect(certificates: Certificates, routes: Routes) -> None:
    async with mirrored(certificates, routes) as running:
        output = await run("curl", "-sSi", "--http2", f"{running.url}/svc/hello")
        assert output.startswith("HTTP/1.1 200")
        assert "101" not in output.splitlines()[0]
        assert "upgrade" not in output.lower()


@pytest.mark.asyncio
async def test_http1_failures_are_plain_text_with_a_code(certificates: Certificates, routes: Routes) -> None:
    async with mirrored(certificates, routes) as running:
        output = await run("curl", "-sSi", "--http1.1", f"{running.url}/nothing")
        assert output.startswith("HTTP/1.1 404")
        assert re.search(r"(?im)^x-cloudrun-sidecar-error: route-not-found\r?$", output)
        assert re.search(r"(?im)^content-type: text/plain", output)
        assert "/svc" in output
        head = await run("curl", "-sSI", "--http1.1", f"{running.url}/nothing")
        assert head.startswith("HTTP/1.1 404")
        output = await run("curl", "-sSi", "--http1.1", "-X", "CONNECT", "--request-target", "x:1", running.url)
        assert output.startswith("HTTP/1.1 501")


@pytest.mark.asyncio
async def test_http1_clients_see_a_reset_as_502_before_and_as_a_disconnect_after_the_head(chain: StartChain) -> None:
    async with chain() as (running, upstream, _):
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"GET /svc/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.reset(upstream_stream, 0x2)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"upstream-reset" in answer
        writer.close()

        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"GET /svc/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        upstream_stream, _, _ = await peer.request()
        peer.respond(upstream_stream)
        await peer.send(upstream_stream, b"half of it")
        assert b"200" in await reader.readuntil(b"half of it")
        peer.reset(upstream_stream, 0x2)
        rest = await reader.read()
        assert b"0\r\n\r\n" not in rest  # the chunk that would say: complete
        writer.close()


@pytest.mark.asyncio
async def test_an_http1_client_that_disconnects_resets_the_upstream_stream(chain: StartChain) -> None:
    async with chain() as (running, upstream, _):
        _, writer = await asyncio.open_connection(*running.address)
        writer.write(b"POST /svc/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhalf")
        peer, upstream_stream, _, _ = await upstream.request()
        assert await peer.data(upstream_stream) == b"half"
        writer.transport.abort()
        with pytest.raises(Reset) as reset:
            await peer.body(upstream_stream)
        assert reset.value.code == 0x8


@pytest.mark.asyncio
async def test_nghttp_and_h2load_work_against_the_listener(certificates: Certificates, routes: Routes) -> None:
    async with mirrored(certificates, routes) as running:
        output = await run("nghttp", "-v", f"{running.url}/svc/hello")
        assert ":status: 200" in output
        output = await run("h2load", "-n2000", "-c4", "-m25", f"{running.url}/svc/bytes/1024")
        assert "2000 succeeded, 0 failed, 0 errored" in output
        assert "status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx" in output


@pytest.mark.asyncio
async def test_h2load_works_over_http1(certificates: Certificates, routes: Routes) -> None:
    """h2load rejects a status line without a reason phrase."""
    async with mirrored(certificates, routes) as running:
        output = await run("h2load", "--h1", "-n200", "-c4", f"{running.url}/svc/bytes/1024")
        assert "200 succeeded, 0 failed, 0 errored" in output
        assert "status codes: 200 2xx, 0 3xx, 0 4xx, 0 5xx" in output


@pytest.mark.asyncio
async def test_a_smuggled_request_is_not_signed(certificates: Certificates, tmp_path: Path) -> None:
    google = Google()
    called: list[str] = []

    async def count(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            called.append(scope["path"])
        await mirror(scope, receive, send)

    cloud_run = CloudRun(count, google, invokers=[google.metadata_account])
    async with CloudRunServer(cloud_run, certificates) as far, GoogleServer(google, certificates) as endpoints:
        environment = {"GCE_METADATA_HOST": endpoints.metadata_address}
        flags = ("--route", f"g={far.url}", "--upstream-ca", certificates.ca_file)
        async with sidecar(*flags, env=environment) as running:
            for lines in (
                b"Content-Length: 54\r\nTransfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\nContent-Length: 54\r\n",
                b"Transfer-Encoding: xchunked\r\n",
                b"Content-Length: 5\nTransfer-Encoding: chunked\r\n",
                b"Content-Length: 5\r\nContent-Length: 6\r\n",
                b"X: y\r\n Content-Length: 5\r\n",
            ):
                reader, writer = await asyncio.open_connection(*running.address)
                writer.write(b"POST /g/v HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
                writer.write(b"0\r\n\r\nGET /g/smuggled HTTP/1.1\r\nHost: localhost\r\nX: y\r\n\r\n")
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
                assert answer.count(b"HTTP/1.1 ") == 1
                writer.close()
            await run("curl", "-sSf", "--http1.1", f"{running.url}/g/last")
    assert called == ["/last"]


@pytest.mark.asyncio
async def test_a_client_that_closes_its_half_gets_its_response(certificates: Certificates, routes: Routes) -> None:
    async with mirrored(certificates, routes) as running:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"GET /svc/hello HTTP/1.1\r\nhost: localhost\r\n\r\n")
        writer.write_eof()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'"path": "/hello"' in answer
        writer.close()


@pytest.mark.asyncio
async def test_container_names_and_allowed_hosts_are_accepted(certificates: Certificates, routes: Routes) -> None:
    async with mirrored(certificates, routes, "--allowed-hosts", "Sidecar.Example") as running:
        _, port = running.address
        for host, status in (("host.docker.internal", "200"), ("sidecar.example", "200"), ("other.example", "403")):
            resolve = ("--resolve", f"{host}:{port}:127.0.0.1")
            output = await run("curl", "-sSi", "--http1.1", *resolve, f"http://{host}:{port}/svc/hello")
            assert output.startswith(f"HTTP/1.1 {status} ")
            assert ("allowed_hosts" in output) is (status == "403")


@pytest.mark.asyncio
async def test_a_disconnect_on_a_unix_socket_is_noticed_at_once(chain: StartChain, tmp_path: Path) -> None:
    """TCP would not distinguish it from a client that has closed only its half."""
    path = tmp_path / "sidecar.socket"
    async with chain("--listen", "127.0.0.1:0", "--listen", f"unix:{path}") as (_, upstream, _):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"get /svc/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        peer, upstream_stream, fields, ended = await upstream.request()
        assert fields[0][1] == b"get"  # another method than GET
        assert ended
        writer.close()
        with pytest.raises(Reset) as reset:
            await peer.head(upstream_stream)
        assert reset.value.code == 0x8


@pytest.mark.asyncio
async def test_unix_sockets_work(certificates: Certificates, routes: Routes, tmp_path: Path) -> None:
    path = tmp_path / "sidecar.socket"
    async with mirrored(certificates, routes, "--listen", f"unix:{path}") as running:
        assert running.listen == (f"unix:{path}",)
        for version in ("--http1.1", "--http2-prior-knowledge"):
            seen = await run("curl", "-sSf", version, "--unix-socket", str(path), "http://sidecar/svc/hello")
            assert json.loads(seen)["path"] == "/hello"
