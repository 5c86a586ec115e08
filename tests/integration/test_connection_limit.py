"""The limit of connections of the real sidecar, and who may connect to its Unix sockets."""

from __future__ import annotations

import asyncio
import signal
import stat
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.support.chain import Routes
from tests.support.peers.sockets import Gone, Peer, client
from tests.support.processes import program
from tests.support.sidecar import Sidecar, sidecar, worker_pids


async def status(peer: Peer) -> bytes:
    """Return the status of a request, which does not end; empty if the connection was closed."""
    try:
        return (await peer.head(peer.open("/nowhere")))[b":status"]
    except Gone:
        return b""


async def statuses(running: Sidecar, stack: AsyncExitStack, connections: int) -> list[bytes]:
    """Open connections one after the other; return the status of a request on each."""
    found = []
    for _ in range(connections):
        peer = await stack.enter_async_context(client(*running.address))
        found.append(await status(peer))
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize("workers", [1, 2])
async def test_all_clients_share_the_limit_of_connections_and_a_reload_changes_it(routes: Routes, workers: int) -> None:
    config = routes("max_connections = 4", svc="https://127.0.0.1:1")
    flags = ("--workers", str(workers), *(() if workers == 1 else ("--admin", "off")))
    async with sidecar("--config", config, *flags) as running, AsyncExitStack() as stack:
        if workers > 1:
            await worker_pids(running.program)
        assert await statuses(running, stack, 6) == [b"404"] * 4 + [b""] * 2
        (line, *_) = await running.logged("closing new connections: limit of connections reached")
        assert line["severity"] == "ERROR"
        if workers == 1:
            async with aiohttp.ClientSession() as http, http.get(f"http://{running.admin}/metrics") as page:
                wanted = 'cloudrun_sidecar_downstream_connections_refused_total{reason="max-connections"} 2\n'
                assert wanted in await page.text()
        config.write_text(config.read_text().replace("max_connections = 4", "max_connections = 8"))
        running.program.send(signal.SIGHUP)
        await running.logged(r'"settings reloaded".*max_connections')
        assert await statuses(running, stack, 5) == [b"404"] * 4 + [b""]


@pytest.mark.asyncio
async def test_unix_sockets_of_listener_and_admin_port_are_open_to_owner_and_group(
    routes: Routes, tmp_path: Path
) -> None:
    sockets = tmp_path / "listen", tmp_path / "admin"
    config = routes(svc="https://127.0.0.1:1")
    addresses = ("--listen", f"unix:{sockets[0]}", "--admin", f"unix:{sockets[1]}")
    for flags, expected in (((), 0o660), (("--socket-mode", "0600"), 0o600)):
        async with sidecar("--config", config, *addresses, *flags) as running:
            assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {expected}
            reader, writer = await asyncio.open_unix_connection(sockets[1])
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            await running.end()
        assert not any(path.exists() for path in sockets)


@pytest.mark.asyncio
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_an_unknown_owner_of_a_socket_prevents_the_start_with_one_sentence(
    routes: Routes, tmp_path: Path, which: str, workers: int
) -> None:
    config = routes('socket_user = "no-such-user"', svc="https://127.0.0.1:1")
    addresses = {"listen": "127.0.0.1:0", "admin": "off", which: f"unix:{tmp_path}/s"}
    flags = [word for name, address in addresses.items() for word in (f"--{name}", address)]
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "proxy",
        "serve",
        "--config",
        config,
        "--workers",
        str(workers),
        *flags,
    ]
    async with program("serve", argv) as child:
        assert await child.ended() == 2
        await child.line(rf"cannot listen on unix:{tmp_path}/s.*: this machine has no user no-such-user")
