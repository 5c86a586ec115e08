from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from proxy.errors import TokenTimeout
from proxy.tokens.blocking import BlockingCalls, start_daemon
from tests.support.loops import loop_idle


@pytest.mark.asyncio
async def test_a_result_and_an_exception_arrive() -> None:
    calls = BlockingCalls()
    assert await calls.run(lambda: 5, resource="a", seconds=5) == 5

    def fails() -> None:
        raise TimeoutError("of the call itself")

    with pytest.raises(TimeoutError, match="of the call itself"):
        await calls.run(fails, resource="a", seconds=5)
    assert await calls.run(lambda: 6, resource="a", seconds=5) == 6


@pytest.mark.asyncio
async def test_a_call_that_hangs_ends_at_its_deadline_and_blocks_its_own_resource_only() -> None:
    calls, go_on = BlockingCalls(), threading.Event()
    with pytest.raises(TokenTimeout, match=r"^the file /a has not answered for 0 s: .* hangs\?$"):
        await calls.run(go_on.wait, resource="the file /a", seconds=0.01)
    threads = threading.active_count()
    for _ in range(50):  # no thread each: they would pile up
        with pytest.raises(TokenTimeout):
            await calls.run(go_on.wait, resource="the file /a", seconds=60)
    assert threading.active_count() == threads
    assert await calls.run(lambda: "other", resource="the file /b", seconds=5) == "other"
    go_on.set()


@pytest.mark.asyncio
async def test_a_resource_is_usable_again_after_the_call_has_ended() -> None:
    calls, go_on, threads = BlockingCalls(), threading.Event(), list[threading.Thread]()

    def hangs() -> None:
        threads.append(threading.current_thread())
        go_on.wait()

    with pytest.raises(TokenTimeout):
        await calls.run(hangs, resource="a", seconds=0.01)
    go_on.set()
    threads[0].join(60)
    assert await calls.run(lambda: 7, resource="a", seconds=5) == 7


@pytest.mark.asyncio
async def test_a_cancelled_call_drops_its_late_result() -> None:
    calls, go_on = BlockingCalls(), threading.Event()
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(calls.run(go_on.wait, resource="a", seconds=60))
        await loop_idle()
        waiter.cancel()
    assert waiter.cancelled()
    go_on.set()


def test_a_result_after_the_end_of_the_loop_is_dropped() -> None:
    go_on = threading.Event()
    outcome = None

    def hangs() -> bool:
        return go_on.wait()

    async def gives_up() -> None:
        nonlocal outcome
        outcome = start_daemon(hangs, "test")
        with pytest.raises(TokenTimeout):
            await BlockingCalls().run(hangs, resource="a", seconds=0.01)

    asyncio.run(gives_up())
    go_on.set()
    assert outcome is not None
    assert outcome.result(5)


def test_a_process_ends_while_a_call_hangs() -> None:
    source = """
        import asyncio, threading
        from proxy.errors import TokenTimeout
        from proxy.tokens.blocking import BlockingCalls

        async def main():
            try:
                await BlockingCalls().run(threading.Event().wait, resource="a", seconds=0.01)
            except TokenTimeout:
                print("left it")

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("left it", "")
