"""The listening socket with TLS; handshakes are tested with the real program."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.downstream import admission
from proxy.downstream.tls import Handshakes, TlsContext, TlsFiles, TlsServer, TlsUnusable, server_context
from proxy.emulator import Certificates
from tests.support.loops import loop_idle, skip, with_manual_clock
from tests.unit.downstream.stage import Counts


def client_hello() -> bytes:
    """Return the first octets of a TLS client."""
    context = ssl.create_default_context()
    sends = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sends, server_hostname="localhost").do_handshake()
    return sends.read()


@pytest.fixture
def context(tmp_path: Path) -> TlsContext:
    return TlsContext(TlsFiles(*Certificates.create(tmp_path).server_files("localhost")))


@pytest.mark.asyncio
async def test_all_connections_in_its_queue_are_accepted_before_it_closes(context: TlsContext) -> None:
    loop = asyncio.get_running_loop()
    accepted: list[bool] = []
    # None is admitted, so each is closed as soon as it is accepted.
    handshakes = Handshakes(loop, context, admits=lambda *_: False, on_failed=lambda *_: None)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        server = TlsServer(loop, listening, handshakes, asyncio.Protocol, lambda: accepted.append(True))
        # The event loop does not run meanwhile: the kernel connects them.
        waiting = [socket.create_connection(listening.getsockname()) for _ in range(200)]
        server.close()
        assert len(accepted) == 200
        assert {connection.recv(1) for connection in waiting} == {b""}
        for connection in waiting:
            connection.close()


@pytest.mark.asyncio
async def test_one_handshake_begins_in_a_turn_of_the_loop_and_none_before_its_client_has_spoken(
    context: TlsContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    turn, begun, hello = 1, Counter[int](), client_hello()
    complete = asyncio.Event()

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        if not complete.is_set():
            loop.call_soon(next_turn)

    connect = loop.connect_accepted_socket

    async def begin(*args: Any, **more: Any) -> Any:
        begun[turn] += 1
        if begun.total() == 20:
            complete.set()
        return await connect(*args, **more)

    monkeypatch.setattr(loop, "connect_accepted_socket", begin)
    handshakes = Handshakes(loop, context, admits=lambda *_: True, on_failed=lambda *_: None)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        server = TlsServer(loop, listening, handshakes, asyncio.Protocol, lambda: None)
        clients = [socket.create_connection(listening.getsockname()) for _ in range(21)]
        for client in clients[1:]:
            client.sendall(hello)
        next_turn()
        await complete.wait()
        assert max(begun.values()) == 1
        assert all(later - earlier > 1 for earlier, later in zip(begun, list(begun)[1:], strict=False))
        for client in clients:
            client.close()
        server.close()
        await server.wait_closed()


@pytest.mark.asyncio
@pytest.mark.parametrize("sent", [0, 5])
async def test_a_client_that_does_not_finish_its_handshake_keeps_no_closed_listener_waiting(
    context: TlsContext, sent: int
) -> None:
    loop = asyncio.get_running_loop()
    failed: list[str] = []
    handshakes = Handshakes(loop, context, admits=lambda *_: True, on_failed=lambda _, why: failed.append(why))
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as slow:
        server = TlsServer(loop, listening, handshakes, asyncio.Protocol, lambda: None)
        slow.connect(listening.getsockname())
        slow.sendall(client_hello()[:sent])
        server.close()
        began = loop.time()
        await server.wait_closed()
        assert loop.time() - began < 5
        assert failed == ["the connection ended"]
        assert slow.recv(1) == b""


class Exhausted(socket.socket):
    """A listening socket in a process that has no descriptor left."""

    def accept(self) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@with_manual_clock
async def test_a_server_that_closes_while_there_are_no_descriptors_does_not_go_on_accepting(
    context: TlsContext,
) -> None:
    loop = asyncio.get_running_loop()
    handshakes = Handshakes(loop, context, admits=lambda *_: True, on_failed=lambda *_: None)
    with Exhausted() as listening, socket.socket() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = TlsServer(loop, listening, handshakes, asyncio.Protocol, lambda: None)
        waiting.connect(listening.getsockname())
        await loop_idle()
        server.close()
        await skip(60.0)


@pytest.mark.asyncio
@pytest.mark.parametrize("sent", [0, 5])
async def test_the_oldest_handshake_gives_way_where_there_are_too_many(
    context: TlsContext, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_LEAST_SECONDS", 0.0)
    loop = asyncio.get_running_loop()
    counts = Counts()
    admits = admission.Admission(counts, 2).admits_handshake
    ended = asyncio.Queue[str]()
    handshakes = Handshakes(loop, context, admits=admits, on_failed=lambda _, why: ended.put_nowait(why))
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        server = TlsServer(loop, listening, handshakes, asyncio.Protocol, lambda: None)
        clients = [stack.enter_context(socket.create_connection(listening.getsockname())) for _ in range(3)]
        for client in clients:
            client.sendall(client_hello()[:sent])
        assert await ended.get() == "the connection ended"
        assert clients[0].recv(1) == b""
        assert counts.connections_refused == ["unused"]
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("name", ["certificate.pem", "key.pem", "clients.pem"])
def test_a_file_that_goes_away_behind_a_look_at_it_is_unusable_and_no_other_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Certificates.create(tmp_path / "authority")
    files = [tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "clients.pem"]
    for file, origin in zip(files, (*authority.server_files("localhost"), authority.ca_file), strict=True):
        file.write_bytes(origin.read_bytes())
    read = Path.read_bytes

    def read_once(path: Path) -> bytes:
        content = read(path)
        if path.name == name:
            path.unlink()
        return content

    monkeypatch.setattr(Path, "read_bytes", read_once)
    with contextlib.suppress(TlsUnusable):
        server_context(TlsFiles(*files))
