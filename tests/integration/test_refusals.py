"""Requests that break a rule of HTTP leave a trace: a metric by reason, and a line at the level `debug`."""

from __future__ import annotations

import asyncio
import json
import re
import ssl

import aiohttp
import hpack
import pytest
from hyperframe.frame import HeadersFrame, PingFrame, SettingsFrame

from tests.support.chain import Routes
from tests.support.sidecar import Sidecar, sidecar

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/svc/x")]


async def send_http2(running: Sidecar, *lines: tuple[bytes, bytes]) -> None:
    """Send a request with these lines, and wait until the sidecar has read it."""
    reader, writer = await asyncio.open_connection(*running.address)
    ping = PingFrame(0, b"12345678")
    head = HeadersFrame(1, hpack.Encoder().encode([*REQUEST, *lines]), flags=["END_HEADERS", "END_STREAM"])
    writer.write(PREFACE + b"".join(frame.serialize() for frame in (SettingsFrame(0), head, ping)))
    await reader.readuntil(b"12345678")
    writer.close()


async def send_http1(running: Sidecar, text: bytes) -> bytes:
    """Send a request and return the first line of its response."""
    reader, writer = await asyncio.open_connection(*running.address)
    writer.write(text)
    answer = await reader.readline()
    writer.close()
    return answer


async def refused(running: Sidecar) -> dict[str, int]:
    """What `/metrics` says, by reason."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{running.admin}/metrics") as answer:
        text = await answer.text()
    found = re.findall(r'^cloudrun_sidecar_requests_refused_total\{reason="([^"]+)"\} (\S+)$', text, re.MULTILINE)
    return {reason: int(float(count)) for reason, count in found}


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", ["auto", "h2"])
async def test_refused_requests_are_counted_and_logged_by_reason(routes: Routes, engine: str) -> None:
    config = routes(svc="https://127.0.0.1:1")
    flags = ["--log-level", "debug", "--http2-engine", engine]
    async with sidecar("--config", config, *flags) as running:
        assert await refused(running) == {}
        await send_http2(running, (b":authority", b"sidecar"), (b"host", b"elsewhere-s3cret"))
        await send_http2(running, (b":authority", b"ada:s3cret@sidecar"))
        await send_http2(running, (b":authority", b"sidecar"), (b"connection", b"close"))
        await send_http2(running, (b":authority", b"sidecar"), (b"x-a", b"a\x01b"))
        assert (await send_http1(running, b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")).startswith(b"HTTP/1.1 400")
        page = b"GET / HTTP/1.1\r\nhost: localhost\r\norigin: https://page.example\r\n\r\n"
        assert (await send_http1(running, page)).startswith(b"HTTP/1.1 403")
        assert await refused(running) == {
            "host-differs": 1,
            "user-info": 1,
            "field": 2,
            "bad-request": 1,
            "browser": 1,
        }
        told = [line["reason"] for line in await running.end() if line["message"] == "request refused"]
        assert told == ["host-differs", "user-info", "field", "field", "bad-request", "browser"]
        assert not [line for line in running.program.lines if "s3cret" in line]


@pytest.mark.asyncio
async def test_a_client_that_speaks_tls_where_the_sidecar_does_not_is_a_warning_with_the_remedy(routes: Routes) -> None:
    async with sidecar("--config", routes(svc="https://127.0.0.1:1")) as running:
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(*running.address, ssl=ssl.create_default_context())
        found = await running.program.line(r'"message": "request refused"')
        line = json.loads(found.string)
        assert (line["severity"], line["reason"]) == ("WARNING", "tls-not-spoken")
        assert "register http://" in line["remedy"]
        assert await refused(running) == {"tls-not-spoken": 1}
