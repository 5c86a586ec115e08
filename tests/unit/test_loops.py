"""How tests wait until everything that is ready has run."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.loops import LOOPS, ManualLoop, loop_idle


@pytest.mark.asyncio
async def test_a_slow_callback_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    assert asyncio.get_running_loop().get_debug()
    await asyncio.sleep(0)
    time.sleep(0.15)  # noqa: ASYNC251 - it has to block
    await asyncio.sleep(0)
    assert caplog.text == ""


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_logs_slow_callbacks(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def slow() -> None:
        time.sleep(0.15)  # noqa: ASYNC251 - it has to block

    with asyncio.Runner(loop_factory=LOOPS[name], debug=True) as runner:
        runner.run(slow())
    assert caplog.text == ""


@pytest.mark.asyncio
async def test_idle_returns_after_a_chain_of_callbacks_of_any_length() -> None:
    loop = asyncio.get_running_loop()
    left = 50

    def next_one() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(next_one)

    loop.call_soon(next_one)
    await loop_idle()
    assert left == 0


@pytest.mark.asyncio
async def test_several_tasks_may_wait_for_idle_at_once() -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(loop_idle())


@pytest.mark.asyncio
async def test_idle_returns_when_octets_have_crossed_from_socket_to_socket() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        came = asyncio.get_running_loop().create_task(reader.readexactly(5))
        await loop_idle()
        writer.write(b"hello")
        await loop_idle()
        assert came.result() == b"hello"
        writer.close()
        await writer.wait_closed()


def test_an_idle_loop_has_run_what_is_ready_and_no_timer() -> None:
    ran: list[str] = []
    loop = ManualLoop()
    loop.call_soon(loop.call_soon, ran.append, "ready")
    loop.call_later(1.0, ran.append, "timer")
    loop.turn()
    assert ran == []
    loop.run_ready()
    assert ran == ["ready"]
    loop.advance(1.0)
    assert ran == ["ready", "timer"]
    loop.close()
