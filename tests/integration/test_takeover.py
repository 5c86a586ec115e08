"""A second sidecar takes over from the first one while clients make requests: none is refused, none fails."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from proxy.downstream.takeover import Takeover
from proxy.emulator import Certificates
from proxy.network.address import parse_address
from tests.support.chain import UPSTREAM, StartChain
from tests.support.peers.sockets import Gone, Peer, client
from tests.support.processes import connections_on, program
from tests.support.sidecar import Sidecar, sidecar, worker_pids

one_or_two = pytest.mark.parametrize("workers", [1, 2])
GOAWAY_TO_COME = (1 << 31) - 1


@dataclass
class Traffic:
    """Clients of all kinds that make requests until they are told to stop, and what came of these."""

    address: tuple[str, int]
    admin: str
    outcomes: Counter[str] = field(default_factory=Counter)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    clients: list[asyncio.Task[None]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_new_connections(self) -> None:
        """Make each request on a connection of its own."""
        while not self.stop.is_set():
            try:
                async with client(*self.address) as peer:
                    if _takes_streams(peer):
                        await self._ask(peer, "new connection")
            except OSError as exc:
                self._count(f"new connection: {exc}")

    async def on_one_connection(self) -> None:
        """Make requests on one connection until the server asks to leave, then on another one."""
        while not self.stop.is_set():
            async with client(*self.address) as peer:
                while not self.stop.is_set() and _takes_streams(peer):
                    await self._ask(peer, "old connection")

    async def over_http1(self) -> None:
        """Make requests on connections that are kept as long as the server wants."""
        async with aiohttp.ClientSession() as http:
            while not self.stop.is_set():
                await self._get(http, f"http://{self.address[0]}:{self.address[1]}/nowhere", "HTTP/1.1", 404)

    async def ready(self) -> None:
        """Wait until it is ready, which is a moment after the last worker has said that it listens."""
        status = 0
        async with aiohttp.ClientSession() as http, asyncio.timeout(20):
            while status != 200:
                async with http.get(f"http://{self.admin}/readyz") as answer:
                    status = answer.status

    async def of_the_admin_port(self) -> None:
        """Ask whether it is ready, on new connections."""
        while not self.stop.is_set():
            async with aiohttp.ClientSession() as http:
                await self._get(http, f"http://{self.admin}/readyz", "admin", 200)

    async def _get(self, http: aiohttp.ClientSession, url: str, kind: str, status: int) -> None:
        try:
            async with http.get(url) as answer:
                text = await answer.text()
                self._count(kind if answer.status == status else f"{kind}: {answer.status} {text}")
        except aiohttp.ClientError as exc:
            self._count(f"{kind}: {exc}")

    async def _ask(self, peer: Peer, kind: str) -> None:
        try:
            head = await peer.head(peer.open("/nowhere", end=True))
        except Gone:
            self._count(f"{kind}: lost")
        else:
            status = head[b":status"].decode()
            self._count(kind if status == "404" else f"{kind}: {status}")

    async def served(self, kind: str, more: int) -> None:
        """Wait until so many more requests of this kind have been answered."""
        enough = self.outcomes[kind] + more
        while self.outcomes[kind] < enough:
            self._changed.clear()
            await self._changed.wait()

    async def finish(self) -> None:
        """Make no more requests, and wait for the answers to those that were made."""
        self.stop.set()
        await asyncio.gather(*self.clients)

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self._changed.set()


def _takes_streams(peer: Peer) -> bool:
    """Return False if the server has said GOAWAY, or offers no streams."""
    return not peer.went_away.done() and peer.h2.remote_settings.max_concurrent_streams > 0


@asynccontextmanager
async def traffic(running: Sidecar) -> AsyncIterator[Traffic]:
    it = Traffic(running.address, running.admin)
    await it.ready()
    async with asyncio.TaskGroup() as tasks:
        for clients in (it.on_new_connections, it.on_one_connection, it.over_http1, it.of_the_admin_port):
            it.clients += [tasks.create_task(clients()) for _ in range(2)]
        try:
            async with asyncio.timeout(60):
                yield it
        finally:
            it.stop.set()


async def failing(flags: list[str | Path], *more: str | Path) -> str:
    """Start a sidecar that fails; return what it says last."""
    argv: list[str | Path] = [sys.executable, "-m", "proxy", "serve", *flags, *more]
    async with program("failing", argv) as child:
        assert await child.ended(within_seconds=30) != 0
        return child.lines[-1]


@pytest.mark.asyncio
@one_or_two
async def test_no_request_fails_while_one_sidecar_takes_over_from_another(
    chain: StartChain, tmp_path: Path, workers: int
) -> None:
    flags: list[str | Path] = ["--takeover-socket", f"unix:{tmp_path}/t", "--workers", str(workers)]
    flags += ["--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/s", "--admin", "127.0.0.1:0"]
    async with chain(*flags) as (first, upstream, near):
        # A stream that is live during all this.
        stream = near.open("/svc/conversation")
        await near.send(stream, b"before")
        peer, there, _, _ = await upstream.request()
        peer.respond(there)
        assert await peer.data(there) == b"before"
        async with traffic(first) as it:
            for kind in ("new connection", "old connection", "HTTP/1.1", "admin"):
                await it.served(kind, 5)

            taken = [*flags, "--tls-listen", f"{first.address[0]}:{first.address[1]}"]
            tls = Path(__file__)
            said = await failing(taken, "--upstream", "https://127.0.0.1:1", "--tls-certificate", tls, "--tls-key", tls)
            assert "cloudrun-sidecar: " in said
            await first.program.line("takeover failed: the new process ended before it was ready; serving on")
            await it.served("old connection", 5)

            async with sidecar(*flags, "--route", "svc=https://127.0.0.1:1") as second:
                assert (second.listen, second.admin) == (first.listen, first.admin)
                await second.program.line(rf'listening sockets taken over.*"before": {first.program.pid}')
                await near.send(stream, b"after", end=True)
                assert await peer.body(there) == b"after"
                await peer.send(there, b"answer", end=True)
                assert await near.body(stream) == b"answer"
                assert (await near.went_away).last_stream_id == GOAWAY_TO_COME
                assert await first.program.ended(within_seconds=30) == 0
                for kind in ("new connection", "old connection", "HTTP/1.1", "admin"):
                    await it.served(kind, 5)
                await it.finish()
                assert (tmp_path / "s").is_socket()
                assert (tmp_path / "t").is_socket()
                second.program.send(signal.SIGTERM)
                assert await second.program.ended() == 0
        assert set(it.outcomes) == {"new connection", "old connection", "HTTP/1.1", "admin"}
        assert [line["severity"] for line in first.log() if line["severity"] == "ERROR"] == []
        assert {"s", "t"}.isdisjoint(os.listdir(tmp_path))


@pytest.mark.asyncio
@one_or_two
async def test_a_tls_handshake_under_way_during_a_takeover_is_completed_and_its_request_served(
    certificates: Certificates, tmp_path: Path, workers: int
) -> None:
    certificate, key = certificates.server_files("localhost")
    flags: list[str | Path] = ["--takeover-socket", f"unix:{tmp_path}/t", "--workers", str(workers)]
    flags += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", "https://127.0.0.1:1"]
    flags += ["--tls-listen", "127.0.0.1:0", "--tls-certificate", certificate, "--tls-key", key]
    async with sidecar(*flags) as first:
        if workers > 1:
            await worker_pids(first.program)
        (line, *_) = await first.logged('"listening"')
        (address,) = cast(list[str], line["tls_listen"])
        context = ssl.create_default_context(cafile=certificates.ca_file)
        # The new sidecar is played by this test, which accepts nothing.
        after = await asyncio.to_thread(Takeover.open, f"unix:{tmp_path}/t")
        reader, writer = await asyncio.open_connection(*parse_address(address)[:2])
        _, later = await asyncio.open_connection(*parse_address(address)[:2], ssl=context, server_hostname="localhost")
        later.close()  # so the other one has been accepted, too
        await asyncio.to_thread(after.complete)
        await first.logged('"draining"', workers)
        await writer.start_tls(context, server_hostname="localhost")
        writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 502", b"HTTP/1.1 503"))
        assert b"connection: close" in head.lower()
        await reader.read()
        # Nobody waits for the client's next request, up to the drain timeout.
        assert await first.program.ended(within_seconds=20) == 0
        writer.close()
        after.close()


@pytest.mark.asyncio
@one_or_two
async def test_a_signal_after_a_takeover_ends_the_wait_for_clients_without_a_request(
    chain: StartChain, tmp_path: Path, workers: int
) -> None:
    flags = ["--takeover-socket", f"unix:{tmp_path}/t", "--workers", str(workers), "--drain-timeout", "600"]
    async with chain(*flags) as (first, upstream, near):
        reader, writer = await asyncio.open_connection(*first.address)
        writer.write(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        stream = near.open("/svc/live", end=True)
        peer, there, _, _ = await upstream.request()
        # The new sidecar is played by this test, which accepts nothing.
        after = await asyncio.to_thread(Takeover.open, f"unix:{tmp_path}/t")
        await asyncio.to_thread(after.complete)
        await first.logged('"draining"', workers)
        first.program.send(signal.SIGTERM)
        peer.respond(there)
        await peer.send(there, b"answer", end=True)
        assert await near.body(stream) == b"answer"
        assert await first.program.ended(within_seconds=30) == 0
        writer.close()
        after.close()


@pytest.mark.asyncio
@one_or_two
async def test_new_settings_hold_for_clients_that_have_not_left_after_a_takeover(
    chain: StartChain, tmp_path: Path, workers: int
) -> None:
    flags = ["--takeover-socket", f"unix:{tmp_path}/t", "--workers", str(workers), "--drain-timeout", "600"]
    async with chain(*flags, routes={"svc": UPSTREAM, "other": UPSTREAM}) as (first, _, _):
        reader, writer = await asyncio.open_connection(*first.address)
        writer.write(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
        # The new sidecar is played by this test, which accepts nothing.
        after = await asyncio.to_thread(Takeover.open, f"unix:{tmp_path}/t")
        await asyncio.to_thread(after.complete)
        await first.logged('"draining"', workers)
        config = tmp_path / "routes.toml"
        config.write_text(config.read_text().replace('[routes."svc"]', '[routes."renamed"]'))
        await first.logged('"routes removed')
        writer.write(b"GET /svc/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        first.program.send(signal.SIGTERM)
        assert await first.program.ended(within_seconds=30) == 0
        writer.close()
        after.close()


@pytest.mark.asyncio
async def test_a_worker_that_fails_after_a_takeover_does_not_have_the_sidecar_started_again(
    chain: StartChain, tmp_path: Path
) -> None:
    flags = ["--takeover-socket", f"unix:{tmp_path}/t", "--workers", "2", "--drain-timeout", "600"]
    async with chain(*flags) as (first, upstream, near):
        near.open("/svc/live", end=True)
        await upstream.request()
        (pid,) = [pid for pid in await worker_pids(first.program) if connections_on(pid, first.address[1])]
        # The new sidecar is played by this test, which accepts nothing.
        after = await asyncio.to_thread(Takeover.open, f"unix:{tmp_path}/t")
        await asyncio.to_thread(after.complete)
        await first.logged('"draining"', 2)
        os.kill(pid, signal.SIGKILL)
        await near.closed
        await first.logged("worker failed while draining")
        assert await first.program.ended(within_seconds=30) == 0
        after.close()
