"""A replica is added behind a balancer of connections while a real restate-server invokes: it gets its share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from tests.support.container import Recorder
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import Sidecar, sidecar

AGE_SECONDS = 4.0
BUSY_SECONDS = 20.0
"""For a busy machine, and the second before the client is asked to leave."""
CALLERS = 12


class Balancer:
    """Sends each new connection to the replica with the fewest, as a TCP balancer does; it moves none."""

    def __init__(self) -> None:
        self.replicas: list[Sidecar] = []
        self.port = 0
        self._open: Counter[str] = Counter()
        self._carrying: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen on a free port for the time of a `with`."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in self._carrying:
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replica = min(self.replicas, key=lambda each: self._open[each.url])
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        self._open[replica.url] += 1
        try:
            there, back = await asyncio.open_connection(*replica.address)
            await asyncio.gather(_carry(reader, back), _carry(there, writer), return_exceptions=True)
        finally:
            self._open[replica.url] -= 1


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@pytest.mark.asyncio
async def test_a_replica_that_is_added_gets_its_share_within_the_age_and_no_attempt_fails(tmp_path: Path) -> None:
    google, container, balancer = Google(), Recorder(sample_services()), Balancer()
    certificates = Certificates.create(tmp_path / "google")
    cloud_run = CloudRun(container, google, invokers=[google.metadata_account])
    (tmp_path / "restate").mkdir()
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(CloudRunServer(cloud_run, certificates))
        endpoints = await stack.enter_async_context(GoogleServer(google, certificates))
        environment = {"GCE_METADATA_HOST": endpoints.metadata_address, "SSL_CERT_FILE": str(certificates.ca_file)}
        flags = ("--route", f"svc={service.url}", "--max-connection-age", str(AGE_SECONDS), "--access-log")

        async def replica() -> Sidecar:
            return await stack.enter_async_context(sidecar(*flags, env=environment))

        restate = await stack.enter_async_context(RestateServer.running(tmp_path / "restate"))
        await stack.enter_async_context(balancer.listening())
        balancer.replicas.append(await replica())
        answer = await restate.register(f"http://127.0.0.1:{balancer.port}/svc")
        assert answer.status == 201, answer.body
        answered = 0
        done = asyncio.Event()

        async def call(name: str) -> None:
            """Invoke until it is over."""
            nonlocal answered
            while not done.is_set():
                assert await restate.invoke("Greeter", "greet", name) == (200, f"Hello, {name}!")
                answered += 1

        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(call(f"caller {number}"))
            await balancer.replicas[0].logged("/invoke/Greeter", 50)
            balancer.replicas.append(await replica())
            async with asyncio.timeout(AGE_SECONDS + BUSY_SECONDS):
                await balancer.replicas[1].logged("/invoke/Greeter", 50)
            done.set()
        failed = [line for line in restate.program.lines if "Invocation error" in line]
        assert not failed, "\n".join(failed)
        assert len(container.invocations("Greeter")) == answered, "each was tried once"
        assert cloud_run.verdicts.total() == len(cloud_run.streams)
        for each in balancer.replicas:
            assert not [line for line in each.log() if line["severity"] in ("WARNING", "ERROR")]
