"""Connections from a channel, on every event loop."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import pytest

from proxy.downstream.channel import ABORT, DRAIN, LAST, PROBLEMS, SETTINGS, STATE, Channel
from proxy.downstream.handover import HandoverServer, accept_from
from proxy.supervisor.channel import WorkerChannel
from tests.support.loops import LOOPS

every_loop = pytest.mark.parametrize("loop", LOOPS)


class Greeting(asyncio.Protocol):
    """Sends a greeting, and closes when the peer does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        family = transport.get_extra_info("socket").family
        cast(asyncio.Transport, transport).write(b"hello" if family in {socket.AF_UNIX, socket.AF_INET} else b"whose")


Commands = asyncio.Queue[str]
Use = Callable[[WorkerChannel, Commands], Coroutine[Any, Any, None]]
UseServer = Callable[[WorkerChannel, Commands, HandoverServer], Coroutine[Any, Any, None]]


def run(loop: str, use: Use) -> None:
    """Run `use` on this loop, with the supervisor's end of a served channel and the commands received from it."""
    run_with_server(loop, lambda supervisor, commands, _: use(supervisor, commands))


def run_with_server(loop: str, use: UseServer) -> None:
    """As `run`, with the server of the channel, too."""
    ours, its = socket.socketpair()

    async def serve() -> None:
        channel = Channel(its, [])
        running = asyncio.get_running_loop()
        commands = Commands()
        accept_from(
            channel,
            running,
            commands={
                DRAIN: partial(commands.put_nowait, "drain"),
                ABORT: partial(commands.put_nowait, "abort"),
            },
            documents={
                SETTINGS: lambda content: commands.put_nowait(f"settings: {content.decode()}"),
                PROBLEMS: lambda content: commands.put_nowait(f"problems: {content.decode()}"),
            },
            files={STATE: lambda file: commands.put_nowait(f"state: {file}")},
            orphan=partial(commands.put_nowait, "orphan"),
            lost=partial(commands.put_nowait, "lost"),
        )
        server = await running.create_server(Greeting, sock=its)
        supervisor = WorkerChannel(ours)
        try:
            await use(supervisor, commands, cast(HandoverServer, server))
        finally:
            server.close()
            await server.wait_closed()
            for connection, _ in supervisor.close():
                connection.close()

    with its, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(asyncio.wait_for(serve(), 20))


@every_loop
def test_the_worker_is_ready_once_it_reads_the_channel(loop: str) -> None:
    ours, its = socket.socketpair()

    async def serve() -> None:
        running = asyncio.get_running_loop()
        supervisor = WorkerChannel(ours)
        said: list[str] = []
        accept_from(
            Channel(its, []),
            running,
            commands={},
            documents={},
            files={},
            orphan=pytest.fail,
            lost=pytest.fail,
            on_ready=partial(said.append, "listening"),
        )
        supervisor.read_reports()
        assert (supervisor.ready, said) == (False, [])
        server = await running.create_server(Greeting, sock=its)
        supervisor.read_reports()
        assert (supervisor.ready, said) == (True, ["listening"])
        server.close()
        supervisor.close()

    with its, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(serve())


@every_loop
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_each_connection_gets_a_protocol(loop: str, family: int) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        for _ in range(100):
            accepted: socket.socket
            accepted, peer = socket.socketpair() if family == socket.AF_UNIX else _tcp_pair()
            with peer:
                supervisor.hand_over(accepted)
                reader, writer = await asyncio.open_connection(sock=peer)
                assert await reader.readexactly(5) == b"hello"
                writer.close()
                await writer.wait_closed()
        assert commands.empty()

    run(loop, use)


@every_loop
def test_a_connection_with_tls_is_closed_where_there_is_no_certificate(loop: str) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        accepted, peer = socket.socketpair()
        with peer:
            supervisor.hand_over(accepted, tls=True)
            reader, writer = await asyncio.open_connection(sock=peer)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(loop, use)


@every_loop
def test_commands_are_carried_out_in_order(loop: str) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        supervisor.send_command(DRAIN)
        supervisor.send_command(ABORT)
        assert [await commands.get(), await commands.get()] == ["drain", "abort"]

    run(loop, use)


@every_loop
def test_settings_and_problems_arrive_whole_and_in_order(loop: str) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        supervisor.send_document(SETTINGS, b"{}")
        supervisor.send_document(PROBLEMS, b"[]")
        supervisor.send_command(DRAIN)
        assert [await commands.get() for _ in range(3)] == ["settings: {}", "problems: []", "drain"]

    run(loop, use)


@every_loop
def test_a_file_that_the_kernel_had_no_descriptor_for_is_missed(loop: str) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        supervisor.send_command(STATE)
        assert await commands.get() == "state: None"

    run(loop, use)


@every_loop
def test_a_worker_that_has_its_last_connections_still_carries_out_commands(loop: str) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands, server: HandoverServer) -> None:
        leaving = asyncio.get_running_loop().create_task(server.leave())
        supervisor.send_command(LAST)
        await leaving
        supervisor.send_command(ABORT)
        assert await commands.get() == "abort"
        supervisor.close()
        assert await commands.get() == "orphan"

    run_with_server(loop, use)


@every_loop
def test_the_exit_of_the_supervisor_is_noticed(loop: str) -> None:
    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        supervisor.close()
        assert await commands.get() == "orphan"

    run(loop, use)


@every_loop
def test_create_server_still_listens_on_other_sockets(loop: str) -> None:
    async def use(_: WorkerChannel, __: Commands) -> None:
        running = asyncio.get_running_loop()
        async with await running.create_server(Greeting, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()

    run(loop, use)


@every_loop
def test_a_connection_without_a_descriptor_is_reported_as_closed_and_lost(loop: str) -> None:
    """At the limit of open files, the kernel delivers the message without its descriptor."""

    async def use(supervisor: WorkerChannel, commands: Commands) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        accepted, peer = socket.socketpair()
        with peer:
            first_free = os.dup(0)
            os.close(first_free)
            supervisor.hand_over(accepted)  # closes its copy: one number below the limit is free
            taken = [os.dup(0)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, limits[1]))
            try:
                assert await commands.get() == "lost"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                os.close(taken[0])
        supervisor.read_reports()
        assert supervisor.connections == 0

    run(loop, use)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    peer.setblocking(False)
    return accepted, peer
