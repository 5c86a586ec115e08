"""How many clients the admin port serves, how much they may send, and what it shows at a limit of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy.admin import guard
from proxy.network.address import parse_address
from proxy.network.loop import loop_factory
from proxy.observe.exposition import Exposition
from tests.unit.admin.test_plane import running


@pytest.mark.asyncio
async def test_a_client_that_sends_more_than_a_request_is_cut_off_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as site:
        address = parse_address(site.plane.address)
        for sent in (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20), b"\0" * 20_000):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(sent)
            async with asyncio.timeout(30):
                with contextlib.suppress(ConnectionResetError):
                    await reader.read()
            writer.close()
        assert (await site.get("/livez"))[0] == 200
    assert not caplog.records


def test_a_slow_client_is_cut_off_on_the_loop_of_a_worker() -> None:
    """uvloop's transports are not instances of `asyncio.Transport`."""

    async def ask() -> bytes:
        async with running(deadlines=guard.Deadlines(first_request_seconds=0.1)) as site:
            address = parse_address(site.plane.address)
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"GET /li")
            try:
                async with asyncio.timeout(30):
                    with contextlib.suppress(ConnectionResetError):
                        return await reader.read()
            finally:
                writer.close()
            return b""

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert runner.run(ask()) == b""


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/livez", "/metrics"])
async def test_a_client_that_closes_its_half_gets_its_answer(path: str) -> None:
    async with running() as site:
        address = parse_address(site.plane.address)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        writer.write_eof()
        async with asyncio.timeout(30):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
            # One that has its answers is closed.
            writer.close()
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"answering\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()


@pytest.mark.asyncio
async def test_a_client_that_leaves_before_its_answer_or_sends_broken_content_is_not_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as site:
        address = parse_address(site.plane.address)

        def leaving(_: Exposition, process: object) -> Iterator[str]:
            for connection in [*site.plane._connections._by_handler.values()]:
                connection.abort()
            yield "a piece\n"

        async def ask(path: str, fields: str = "", content: str = "") -> bytes:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n{content}".encode()
            )
            got = b""
            with contextlib.suppress(ConnectionResetError):
                got = await reader.read()
            writer.close()
            return got

        with monkeypatch.context() as patched:
            patched.setattr(Exposition, "pieces", leaving)
            assert b"a piece" not in await ask("/metrics")
        await ask("/livez", "Content-Encoding: gzip\r\nContent-Length: 3\r\n", "abc")
        assert (await site.get("/livez"))[0] == 200
        # What goes wrong here is logged.
        assert not caplog.records
        monkeypatch.setattr(Exposition, "pieces", lambda *_: 1 / 0)
        assert (await site.get("/metrics"))[0] == 500
        assert [record.name for record in caplog.records] == ["aiohttp.server"]


@pytest.mark.asyncio
async def test_beyond_the_limit_the_connection_without_a_request_for_longest_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "_MOST_CONNECTIONS", 3)
    async with running() as site:
        assert (await site.get("/livez"))[0] == 200
        address = parse_address(site.plane.address)
        silent = []
        for number in range(3):
            silent.append(await asyncio.open_connection(address.host, address.port))
            if number == 1:
                assert (await site.get("/livez"))[0] == 200, "a client that asks now and then keeps its connection"
        assert await silent[0][0].read() == b""
        assert (await site.get("/livez"))[0] == 200
        for _, writer in silent:
            writer.close()


@pytest.mark.asyncio
async def test_metrics_are_served_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with running() as site:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refused)
            status, text, _ = await site.get("/metrics")
    assert status == 200
    assert "cloudrun_sidecar_requests_in_flight" in text
    assert "process_resident_memory_bytes" not in text
