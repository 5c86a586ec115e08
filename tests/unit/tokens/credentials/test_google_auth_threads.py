from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from proxy.errors import TokenTimeout, TokenUnavailable
from proxy.tokens.calls import BlockingSend, Reply
from proxy.tokens.credentials import google_auth_threads as worker_module
from proxy.tokens.credentials.google_auth_threads import GoogleAuthThreads
from tests.support.loops import loop_idle


class Loopback:
    """Answers calls on the loop, when `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.threads: list[threading.Thread] = []
        self.asked = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
        self.threads.append(threading.current_thread())
        self.asked.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Reply(200, {}, f"{method} {url} {dict(headers)} {body!r}".encode())


def one_call(send: BlockingSend) -> tuple[bytes, str]:
    return send("POST", "https://x", {"a": "b"}, b"c").body, threading.current_thread().name


@pytest.mark.asyncio
async def test_a_job_runs_on_a_thread_and_its_http_on_the_loop() -> None:
    loopback = Loopback()
    worker = GoogleAuthThreads(loopback)
    body, thread = await worker.run(one_call)
    assert body == b"POST https://x {'a': 'b'} b'c'"
    assert thread.startswith("google-auth")
    assert loopback.threads == [threading.current_thread()]
    await worker.close()


@pytest.mark.asyncio
async def test_the_exception_of_a_job_is_raised() -> None:
    def fails(send: BlockingSend) -> None:
        raise TokenUnavailable("as it is")

    worker = GoogleAuthThreads(Loopback())
    with pytest.raises(TokenUnavailable, match="as it is"):
        await worker.run(fails)
    await worker.close()


@pytest.mark.asyncio
async def test_a_cancelled_job_gives_its_thread_back() -> None:
    loopback = Loopback()
    loopback.gate.clear()
    worker = GoogleAuthThreads(loopback)
    ended: list[type[BaseException]] = []

    def persists(send: BlockingSend) -> None:
        for _ in range(3):
            try:
                send("GET", "https://x", {})
            except TokenUnavailable as exc:
                ended.append(type(exc))

    for _ in range(4):  # of two threads
        loopback.asked.clear()
        async with asyncio.TaskGroup() as group:
            job = group.create_task(worker.run(persists))
            await loopback.asked.wait()
            job.cancel()
        assert job.cancelled()
    loopback.gate.set()
    await worker.run(one_call)
    await worker.close()
    assert ended == [TokenUnavailable] * 12
    assert worker._jobs == {}  # nothing is kept of an job that ended after its caller had left
    await loop_idle()
    assert loopback.cancelled == 4


@pytest.mark.asyncio
async def test_closing_cancels_jobs() -> None:
    loopback = Loopback()
    loopback.gate.clear()
    worker = GoogleAuthThreads(loopback)
    async with asyncio.TaskGroup() as group:
        job = group.create_task(asyncio.wait_for(asyncio.gather(worker.run(one_call), return_exceptions=True), 30))
        await loopback.asked.wait()
        await worker.close()
    assert isinstance(job.result()[0], TokenUnavailable)
    with pytest.raises(TokenUnavailable, match="shutting down"):
        await worker.run(one_call)


@pytest.mark.asyncio
async def test_no_thread_is_started_before_the_first_job() -> None:
    before = threading.active_count()
    worker = GoogleAuthThreads(Loopback())
    assert threading.active_count() == before
    await worker.close()


@pytest.mark.asyncio
async def test_a_loop_that_never_responds_does_not_block_a_thread_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_LONGEST_CALL_SECONDS", 0.01)
    loopback = Loopback()
    loopback.gate.clear()
    worker = GoogleAuthThreads(loopback)
    with pytest.raises(TokenTimeout):
        await worker.run(one_call)
    await worker.close()
