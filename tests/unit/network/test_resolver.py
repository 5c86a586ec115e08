from __future__ import annotations

import os
import socket
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.network.resolver import Resolver
from tests.support.names import NameServer, name_server
from tests.support.processes import Program, program

MORE_THAN_THERE_IS = 1 << 47


@asynccontextmanager
async def running(names: NameServer, folder: Path, source: str) -> AsyncIterator[Program]:
    """Run this coroutine body, with a `resolver` of one thread, on a machine whose name server is `names`."""
    script = folder / "script.py"
    script.write_text(
        "import asyncio\nfrom proxy.network.resolver import Resolver\n\nasync def main():\n"
        "    resolver = Resolver(max_threads=1)\n"
        f"{textwrap.indent(textwrap.dedent(source), '    ')}\nasyncio.run(main())\n"
    )
    env = {"PYTHONPATH": os.fspath(Path(__file__).parents[3])}
    async with program("script", [*names.under(folder), sys.executable, script], env=env) as ran:
        yield ran
        assert await ran.ended() == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(("host", "sockaddr"), [("127.0.0.1", ("127.0.0.1", 443)), ("::1", ("::1", 443, 0, 0))])
async def test_an_ip_address_needs_no_look_up(host: str, sockaddr: tuple[object, ...]) -> None:
    (found,) = await Resolver(max_threads=0).resolve(host, 443)
    assert found.sockaddr == sockaddr
    assert found.type == socket.SOCK_STREAM


@pytest.mark.asyncio
async def test_a_name_resolves_as_by_getaddrinfo_with_the_given_port() -> None:
    resolver = Resolver()
    expected = socket.getaddrinfo("localhost", 8080, type=socket.SOCK_STREAM)
    assert await resolver.resolve("localhost", 8080) == expected
    assert not resolver.is_unanswered("localhost")


@pytest.mark.asyncio
async def test_an_invalid_name_is_refused() -> None:
    with pytest.raises(UnicodeError):
        await Resolver().resolve("x" * 64, 443)


@pytest.mark.asyncio
async def test_a_look_up_fails_without_a_thread_and_the_next_one_runs() -> None:
    resolver = Resolver()
    before = threading.stack_size(MORE_THAN_THERE_IS)
    try:
        with pytest.raises(OSError, match="no thread can be started to look the name up"):
            await resolver.resolve("localhost", 443)
    finally:
        threading.stack_size(before)
    assert await resolver.resolve("localhost", 443)


@pytest.mark.asyncio
async def test_with_all_threads_in_use_a_look_up_waits_unless_it_is_cancelled(tmp_path: Path) -> None:
    async with (
        name_server({"next.test": ["127.0.0.2"]}, silent={"slow.test"}) as names,
        running(
            names,
            tmp_path,
            """
            async with asyncio.TaskGroup() as group:
                group.create_task(resolver.resolve("slow.test", 1))
                given_up = group.create_task(resolver.resolve("given-up.test", 1))
                next_one = group.create_task(resolver.resolve("next.test", 1))
                await asyncio.sleep(0)
                given_up.cancel()
                await asyncio.sleep(0)
                print("unanswered:", *(host for host in ("slow.test", "next.test") if resolver.is_unanswered(host)))
            print(next_one.result()[0].sockaddr)
            """,
        ) as script,
    ):
        await names.asked_for("slow.test")
        await script.line(r"unanswered: slow\.test next\.test")
        assert names.questions == {"slow.test": 1}
        names.answer_now("slow.test", "127.0.0.1")
        await script.line(r"\('127\.0\.0\.2', 1\)")
    assert names.questions == {"slow.test": 1, "next.test": 1}


@pytest.mark.asyncio
async def test_a_failure_reaches_all_callers_and_is_not_cached(tmp_path: Path) -> None:
    async with (
        name_server(silent={"slow.test"}) as names,
        running(
            names,
            tmp_path,
            """
            for _ in range(2):
                asking = (resolver.resolve("slow.test", port) for port in (1, 2))
                print(*(type(outcome).__name__ for outcome in await asyncio.gather(*asking, return_exceptions=True)))
            """,
        ) as script,
    ):
        await names.asked_for("slow.test")
        names.answer_now("slow.test")
        await script.line("gaierror gaierror")
        await names.asked_for("slow.test", times=2)
