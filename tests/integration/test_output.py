"""Log output whose reader stops reading, closes the pipe, or reads again."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.network.address import parse_address
from tests.support.chain import Routes

one_or_two = pytest.mark.parametrize("workers", [1, 2])

LONG = "x" * 50_000
"""Part of a path, for a log line of that length."""


class Unread:
    """A sidecar whose output is read line by line, and only when the test does so."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stderr is not None
        self.output = process.stderr
        self.listen = ""
        self.admin = ""

    def read_until_it_listens(self, workers: int) -> None:
        for _ in range(workers):
            said: dict[str, Any] = {}
            while said.get("message") != "listening":
                said = json.loads(self.output.readline())
            self.listen, self.admin = said["listen"][0], said["admin"]

    @property
    def address(self) -> tuple[str, int]:
        return parse_address(self.listen)[:2]

    async def dropped(self) -> int:
        """How many lines the worker that answers has dropped."""
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.admin}/metrics") as answer:
            text = await answer.text()
        found = re.search(r"^cloudrun_sidecar_log_lines_dropped_total (\S+)$", text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))


@contextmanager
def sidecar(config: Path, workers: int, admin: str) -> Iterator[Unread]:
    flags = ["--config", str(config), "--listen", "127.0.0.1:0", "--admin", admin, "--workers", str(workers)]
    flags += ["--max-field-section", "65536"]
    argv = [sys.executable, "-m", "proxy", "serve", "--access-log", "--log-format", "json", *flags]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            running = Unread(process)
            running.read_until_it_listens(workers)
            yield running
        finally:
            process.kill()


async def ask(running: Unread, times: int) -> None:
    """Make requests that are each answered, and logged with a long line."""
    reader, writer = await asyncio.open_connection(*running.address)
    for _ in range(times):
        writer.write(f"GET /nowhere/{LONG} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
    writer.close()


@pytest.mark.asyncio
@one_or_two
async def test_a_log_reader_that_stops_reading_blocks_neither_requests_nor_the_exit(
    routes: Routes, free_port: int, workers: int
) -> None:
    with sidecar(routes(svc="https://127.0.0.1:1"), workers, f"127.0.0.1:{free_port}") as running:
        for _ in range(2 * workers):
            await ask(running, 40)  # 2 MB: the pipe takes 64 KiB, the queue 1 MiB
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.process.wait, 10) == 0


@pytest.mark.asyncio
async def test_dropped_log_lines_are_counted_and_reported_once_the_reader_reads_again(
    routes: Routes, free_port: int
) -> None:
    with sidecar(routes(svc="https://127.0.0.1:1"), 1, f"127.0.0.1:{free_port}") as running:
        await ask(running, 40)
        dropped = await running.dropped()
        assert dropped > 0

        def read_until_told() -> int:
            while True:
                said = json.loads(running.output.readline())
                if "dropped" in said:
                    assert said["severity"] == "WARNING"
                    return int(said["dropped"])

        assert await asyncio.to_thread(read_until_told) == dropped
        assert await running.dropped() == dropped


@pytest.mark.asyncio
@one_or_two
async def test_a_closed_log_pipe_affects_neither_requests_nor_the_exit_code(
    routes: Routes, free_port: int, workers: int
) -> None:
    with sidecar(routes(svc="https://127.0.0.1:1"), workers, f"127.0.0.1:{free_port}") as running:
        running.output.close()
        await ask(running, 10)
        if workers == 1:
            # A thread finds that nobody reads, line by line, and may do so after the responses.
            async with asyncio.timeout(20):
                while await running.dropped() < 10:
                    pass
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.process.wait, 10) == 0
